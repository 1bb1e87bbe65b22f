"""A sweep on a cluster that isn't there, event by event: which training lies where and when, and what the time goes to.

Trainings start in the scheduler's order, as many at a time as it would let run, on nodes that have room. A step takes
what it takes on one worker, and as long again as the exchange of gradients isn't hidden behind the backward pass. Nodes
are lost at random; a training that had a worker there goes on from its newest checkpoint, once it has room again.

Times are in seconds, sizes in bytes, rates in bytes per second. A *device* is a GPU, or a CPU core where there is none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.nodes import Need

Kind = Literal["iterations", "gradients", "evaluations", "checkpoints", "starting", "repeated"]
KINDS: tuple[Kind, ...] = ("iterations", "gradients", "evaluations", "checkpoints", "starting", "repeated")

BACKWARD = 2 / 3
"""The part of a step in which gradients can travel while others are computed: twice the forward pass."""
BUCKET = 25 * 2**20
"""Gradients travel in buckets of so many bytes (DistributedDataParallel's own size); the last one can't be hidden."""


@dataclass(frozen=True)
class Cluster:
    """Nodes that are all alike."""

    nodes: int
    devices: int
    """Of a node."""
    gpus: bool
    cpus: float
    """Cores of a node."""
    network: float
    """Rate at which a node sends, and at the same time receives."""
    links: float
    """The same of a device, to others of its node."""
    lifetime_s: float = math.inf
    """Mean time until a node is lost."""
    replaced_s: float = 600.0
    """Until there is another in its place."""


@dataclass(frozen=True)
class Work:
    """One training, and what is evaluated of it."""

    identity: str
    need: Need
    placement: str
    """As ``resources.placement``."""
    begun: int
    """Iterations that are there already."""
    steps: int
    """Iterations in all; as many as ``begun`` where it is only to be evaluated."""
    step_s: float
    """Of one worker alone."""
    gradients: float
    """Bytes that all workers exchange in a step."""
    inside: bool = False
    """Whether ``step_s`` has the exchange inside one node in it."""
    checkpoint_s: float = 0.0
    checkpoint_every: int | None = None
    evaluation_s: float = 0.0
    """One evaluation by all workers."""
    evaluation_every: int | None = None
    """Evaluations before the last one."""
    afterwards: tuple[float, ...] = ()
    """Evaluations of the finished model, each by one worker."""

    @property
    def devices(self) -> float:
        """That each worker holds."""
        return self.need.gpus or self.need.cpus


@dataclass
class Course:
    """What became of one training."""

    identity: str
    start: float
    end: float = 0.0
    losses: int = 0
    """How often it was thrown back."""


@dataclass
class Outcome:
    """What a simulated sweep took."""

    seconds: float
    spent: dict[Kind, float]
    """Seconds times devices, by what they went to. The rest of the cluster's was idle."""
    courses: list[Course]
    queued_until: float
    """From then on nothing waited for room."""
    lost_nodes: int = 0


def exchange_s(gradients: float, workers: int, rate: float) -> float:
    """A ring all-reduce: each worker sends and receives 2 (n - 1) / n times the gradients."""
    return 2 * (workers - 1) / workers * gradients / rate if workers > 1 else 0.0


def exposed_s(gradients: float, workers: int, rate: float, step_s: float) -> float:
    """The part of the exchange that a step waits for: what the backward pass can't hide, and at least a bucket's."""
    whole = exchange_s(gradients, workers, rate)
    last = whole * min(1.0, BUCKET / gradients) if gradients else 0.0
    return max(last, whole - BACKWARD * step_s)


def alone_s(work: Work, cluster: Cluster, start_s: float) -> float:
    """What ``work`` takes on an empty cluster that loses no node."""
    quiet = Cluster(**{**vars(cluster), "lifetime_s": math.inf})
    return simulate([work], quiet, at_once=1, start_s=start_s).seconds


def simulate(
    works: Sequence[Work],
    cluster: Cluster,
    *,
    at_once: int,
    start_s: float = 0.0,
    sweep_s: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Outcome:
    """Runs ``works`` in their order, ``at_once`` at a time. Each has room on an empty ``cluster``.

    ``start_s``: until the workers of a training do their first step; ``sweep_s``: before the first training and after
    the last. ``seed`` draws when nodes are lost.
    """
    return _Simulation(works, cluster, at_once, start_s, sweep_s, random.Random(seed)).run()


@dataclass
class _Trial:
    work: Work
    course: Course
    phase: Literal["training", "ending", "evaluating"] = "training"
    place: list[int] = field(default_factory=list)
    """Nodes of its workers; empty while it waits for room."""
    starting: float = 0.0
    """Seconds that its processes still take to start."""
    done: float = 0.0
    """Iterations."""
    ending: float = 0.0
    """Seconds left of the evaluation that ends the training, or of the one that is made after it."""
    left: list[float] = field(default_factory=list)
    """Evaluations after that."""

    def __post_init__(self) -> None:
        self.done, self.left = float(self.work.begun), list(self.work.afterwards)
        if self.work.begun >= self.work.steps:
            self.phase = "evaluating"
            self.ending = self.left.pop(0) if self.left else 0.0

    @property
    def workers(self) -> int:
        return 1 if self.phase == "evaluating" else self.work.need.workers

    @property
    def held(self) -> float:
        return len(self.place) * self.work.devices


class _Simulation:
    def __init__(
        self,
        works: Sequence[Work],
        cluster: Cluster,
        at_once: int,
        start_s: float,
        sweep_s: tuple[float, float],
        random_: random.Random,
    ) -> None:
        self.cluster, self.at_once, self.start_s, self.sweep_s = cluster, at_once, start_s, sweep_s
        self.queue, self.running = list(works), list[_Trial]()
        self.random = random_
        self.now, self.waiting, self.queued_until, self.lost = sweep_s[0], False, 0.0, 0
        self.spent: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
        self.courses: list[Course] = []
        self.back = [0.0] * cluster.nodes  # when a lost node has another in its place
        self.fails = [self.now + self._life() for _ in range(cluster.nodes)]

    def run(self) -> Outcome:
        while self.queue or self.running:
            self._admit()
            steps = [self._step(trial) for trial in self.running]
            until = min([self._ends(trial, *step) for trial, step in zip(self.running, steps, strict=True)])
            until = min([until, *(at for at in [*self.fails, *self.back] if at > self.now)])
            if math.isinf(until):
                raise ValueError(f"{self.cluster} has no room for {self.running[0].work.need}")
            for trial, step in zip(self.running, steps, strict=True):
                self._advance(trial, until - self.now, *step)
            self.now = until
            for node in range(self.cluster.nodes):
                if self.fails[node] <= self.now:
                    self._lose(node)
            self.running = [trial for trial in self.running if not self._finished(trial)]
        seconds = self.now + self.sweep_s[1]
        return Outcome(seconds, self.spent, self.courses, self.queued_until, self.lost)

    # Where trainings lie

    def _admit(self) -> None:
        while self.queue and len(self.running) < self.at_once:
            work = self.queue.pop(0)
            self.courses.append(Course(work.identity, self.now))
            self.running.append(_Trial(work, self.courses[-1]))
        for trial in self.running:
            if not trial.place:
                trial.place = self._placed(trial)
                trial.starting = self.start_s
        waiting = bool(self.queue) or any(not trial.place for trial in self.running)
        if self.waiting and not waiting:
            self.queued_until = self.now
        self.waiting = waiting

    def _fits(self, need: Need) -> list[int]:
        """How many workers of ``need`` each node has room for."""
        cpus = [self.cluster.cpus] * self.cluster.nodes
        gpus = [float(self.cluster.devices if self.cluster.gpus else 0)] * self.cluster.nodes
        for trial in self.running:
            for node in trial.place:
                cpus[node] -= trial.work.need.cpus
                gpus[node] -= trial.work.need.gpus
        found = []
        for node, free in enumerate(cpus):
            count = int((free + 1e-9) // need.cpus)
            if need.gpus:
                count = min(count, int((gpus[node] + 1e-9) // need.gpus))
            found.append(0 if self.back[node] > self.now else count)
        return found

    def _placed(self, trial: _Trial) -> list[int]:
        """Nodes for the workers of ``trial``; none where there is no room for all."""
        fits, wanted = self._fits(trial.work.need), trial.workers
        if sum(fits) < wanted:
            return []
        if trial.work.need.one_node or wanted == 1:
            enough = [node for node, count in enumerate(fits) if count >= wanted]
            return [min(enough, key=lambda node: fits[node])] * wanted if enough else []
        place: list[int] = []
        if trial.work.placement == "spread":
            while len(place) < wanted:
                node = max(range(len(fits)), key=lambda node: (fits[node] > 0, -place.count(node), fits[node]))
                fits[node] -= 1
                place.append(node)
            return place
        for node in sorted(range(len(fits)), key=lambda node: -fits[node]):
            place += [node] * min(fits[node], wanted - len(place))
        return place

    # What time goes to

    def _step(self, trial: _Trial) -> tuple[float, float, float]:
        """Seconds of an iteration, of waiting for its gradients, and of its part of evaluations and checkpoints."""
        work = trial.work
        if not trial.place or trial.phase != "training":
            return work.step_s, 0.0, 0.0
        nodes = set(trial.place)
        rate = self.cluster.links
        if len(nodes) > 1:
            crossing = [set(other.place) for other in self.running if len(set(other.place)) > 1]
            # Trainings that share a node's network get equal parts of it.
            rate = min(rate, self.cluster.network / max(sum(node in each for each in crossing) for node in nodes))
        waited = exposed_s(work.gradients, work.need.workers, rate, work.step_s)
        if work.inside and len(nodes) == 1:
            waited = 0.0
        return work.step_s, waited, self._evaluating(work) + self._saving(work)

    def _evaluating(self, work: Work) -> float:
        return _between(work.steps, work.evaluation_every) * work.evaluation_s / work.steps

    def _saving(self, work: Work) -> float:
        return _between(work.steps, work.checkpoint_every) * work.checkpoint_s / work.steps

    def _ends(self, trial: _Trial, *step: float) -> float:
        if not trial.place:
            return math.inf
        if trial.starting > 0:
            return self.now + trial.starting
        if trial.phase == "training":
            return self.now + (trial.work.steps - trial.done) * sum(step)
        return self.now + trial.ending

    def _advance(self, trial: _Trial, seconds: float, *step: float) -> None:
        if not trial.place:
            return
        if trial.starting > 0:
            trial.starting = _less(trial.starting, seconds)
            self.spent["starting"] += seconds * trial.held
        elif trial.phase == "training":
            steps = min(seconds / sum(step), trial.work.steps - trial.done)
            if _less((trial.work.steps - trial.done) * sum(step), seconds) == 0:
                steps = trial.work.steps - trial.done
                trial.done = float(trial.work.steps)
            else:
                trial.done += steps
            self._count(trial, steps, step[0], step[1])
        else:
            trial.ending = _less(trial.ending, seconds)
            self.spent["evaluations"] += seconds * trial.held

    def _count(self, trial: _Trial, steps: float, step_s: float, waited_s: float) -> None:
        held = steps * trial.held
        self.spent["iterations"] += held * step_s
        self.spent["gradients"] += held * waited_s
        self.spent["evaluations"] += held * self._evaluating(trial.work)
        self.spent["checkpoints"] += held * self._saving(trial.work)

    def _finished(self, trial: _Trial) -> bool:
        """Takes ``trial`` to its next phase where this one has ended; whether there is none."""
        if not trial.place or trial.starting > 0:
            return False
        if trial.phase == "training" and trial.done >= trial.work.steps:
            trial.phase = "ending"
            trial.ending = trial.work.evaluation_s + trial.work.checkpoint_s
        if trial.phase == "training" or trial.ending > 0:
            return False
        if trial.left:
            trial.phase, trial.place, trial.ending = "evaluating", [], trial.left.pop(0)
            return False
        trial.course.end = self.now
        return True

    # Nodes that are lost

    def _life(self) -> float:
        mean = self.cluster.lifetime_s
        return math.inf if math.isinf(mean) else self.random.expovariate(1 / mean)

    def _lose(self, node: int) -> None:
        self.lost += 1
        self.back[node] = self.now + self.cluster.replaced_s
        self.fails[node] = self.back[node] + self._life()
        for trial in self.running:
            if node in trial.place:
                trial.course.losses += 1
                self._throw_back(trial)
                trial.place = []

    def _throw_back(self, trial: _Trial) -> None:
        """To its newest checkpoint; what has to be done again was for nothing."""
        work = trial.work
        if trial.phase == "evaluating":
            return
        every = work.checkpoint_every or work.steps
        kept = max(float(work.begun), trial.done // every * every)
        if trial.phase == "ending":
            kept = max(float(work.begun), float((work.steps - 1) // every * every))
        step_s, waited_s, _ = self._step(trial)
        steps = trial.done - kept
        self._count(trial, -steps, step_s, waited_s)
        self.spent["repeated"] += steps * trial.held * (step_s + waited_s + self._evaluating(work) + self._saving(work))
        trial.phase, trial.done = "training", kept


def _between(steps: int, every: int | None) -> int:
    """How often something that is done every so many steps is done before the last one."""
    return 0 if every is None else (steps - 1) // every


def _less(left: float, seconds: float) -> float:
    """``left - seconds``, and exactly 0 where that is only rounding: times are sums of up to a year."""
    return 0.0 if left - seconds <= 1e-6 else left - seconds
