"""What a sweep takes on a cluster that isn't there: its trainings as the simulation wants them, and what that finds.

Step times are those that ``sweep --dry-run --measure`` kept in the storage, on such a device, or published ones
(:mod:`orchestrator.published`). Where there is neither, nothing is said but how to measure. The rest of what a figure
rests on is stated with it (:mod:`orchestrator.outlook`), and an option each.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from detector.config import TrainingConfig
from detector.document import listed
from detector.errors import InputError
from orchestrator.costs import Measurement, workload_key
from orchestrator.nodes import Nodes
from orchestrator.order import order
from orchestrator.plan import Plan, PlannedRow
from orchestrator.published import published
from orchestrator.results import Results
from orchestrator.simulation import KINDS, Cluster, Kind, Outcome, Work, alone_s, simulate

START_S = 20.0
"""From a training's turn to its first step: worker processes, imports, data, model."""
SWEEP_S = (14.0, 6.0)
"""Before the first training (Ray, MLflow) and after the last one (report, MLflow)."""
# Both of two CPU cores, from what docs/performance.md says that sweeps and trainings cost there.
GPU_LIFETIME_H = 50_700.0
"""Mean hours until a GPU, or what it needs, fails: 419 unexpected interruptions of 16,384 GPUs in 54 days (Grattafiori
et al., 2024, The Llama 3 herd of models, table 5)."""
DRAWS = 20
"""Simulations with other lost nodes; times are their means."""
BYTES = 4
"""Of a weight, and of its gradient: the recipes have float32 weights in bfloat16, too."""
SAVED = 3
"""Numbers that a checkpoint holds of a weight: twice itself, and the momentum."""

_CLUSTER = re.compile(r"(\d+)x(\d+)x([A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True)
class Shape:
    """NODESxDEVICESxNAME."""

    nodes: int
    devices: int
    name: str
    """Of the GPU; "cpu" where the devices are CPU cores."""

    @property
    def gpus(self) -> bool:
        return self.name != "cpu"

    @property
    def device(self) -> str:
        return "GPU" if self.gpus else "core"

    def __str__(self) -> str:
        return f"{self.nodes}x{self.devices}x{self.name}"


@dataclass(frozen=True)
class Forecast:
    """A sweep, simulated."""

    shape: Shape
    cluster: Cluster
    works: tuple[Work, ...]
    sources: dict[str, str]
    """Where the step times of each training are from."""
    names: dict[str, str]
    """A row of each training."""
    at_once: int
    outcomes: tuple[Outcome, ...]
    """One, or as many as times were drawn when nodes are lost."""
    longest: tuple[str, float]
    """The training that takes longest on its own, and its seconds."""
    longest_first: float
    """Seconds of the first of ``outcomes`` in another order: what takes longest goes first."""
    start_s: float
    price: float | None

    @property
    def seconds(self) -> float:
        """Of the whole sweep."""
        return statistics.fmean(one.seconds for one in self.outcomes)

    @property
    def device_hours(self) -> float:
        """That the cluster has in this time."""
        return self.seconds / 3600 * self.shape.nodes * self.shape.devices

    def hours(self, kind: Kind) -> float:
        """Device-hours that go to one thing."""
        return statistics.fmean(one.spent[kind] for one in self.outcomes) / 3600

    @property
    def idle(self) -> float:
        """Device-hours that nothing holds."""
        return self.device_hours - sum(map(self.hours, KINDS))


def read_shape(text: str) -> Shape:
    """What ``--cluster`` means. Raises InputError where it isn't NODESxGPUSxNAME."""
    match = _CLUSTER.fullmatch(text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise InputError(
            f"--cluster {text} is not NODESxGPUSxNAME; write 8x8xV100 for eight nodes of eight V100, or 1x2xcpu for "
            "one node of two CPU cores"
        )
    name = "cpu" if match[3].lower() == "cpu" else match[3].upper()
    return Shape(int(match[1]), int(match[2]), name)


def cores_of_a_node(config: TrainingConfig, shape: Shape) -> int:
    gpus = 1.0 if config.resources.gpus_per_worker is None else config.resources.gpus_per_worker
    return math.ceil(shape.devices / gpus) * config.resources.cpus_per_worker if gpus else shape.devices


def forecast(
    plan: Plan,
    ledger: Results,
    measurements: Mapping[str, Measurement],
    shape: Shape,
    cluster: Cluster,
    *,
    disk: float = 0.5e9,
    start_s: float = START_S,
    most: int | None = None,
    price: float | None = None,
) -> Forecast | None:
    """What is left of ``plan`` on ``cluster``; None where that is nothing.

    ``disk``: bytes a second of a checkpoint; ``most``: trainings at a time. Raises InputError where no step times are
    known for a training, and where one has no room.
    """
    rows: dict[str, list[PlannedRow]] = {}
    for row in plan.rows:
        rows.setdefault(row.identity, []).append(row)
    turns, _ = order(plan, ledger, measurements)
    evaluated = [one for one in rows if one not in turns and _missing(rows[one], ledger)]
    works: list[Work] = []
    sources: dict[str, str] = {}
    unknown: dict[str, list[str]] = {}
    for identity in [*evaluated, *turns]:
        first = rows[identity][0]
        times = _times(first, measurements.get(workload_key(first)), shape, disk)
        if isinstance(times, str):
            unknown.setdefault(times, []).append(first.row)
            continue
        sources[identity] = times.source
        works.append(_work(identity, rows[identity], ledger, times, cluster))
    if unknown:
        raise InputError(_unknown(unknown, plan, shape))
    if not works:
        return None
    for work in works:
        if _nodes(cluster).room(work.need) == 0:
            raise InputError(
                f"{rows[work.identity][0].row} needs {work.need}, and {shape} has {_nodes(cluster)}; it would never "
                "start there: lower resources.workers, cpus_per_worker or gpus_per_worker with --set, or give a "
                "larger --cluster"
            )
    room = min(_nodes(cluster).room(work.need) for work in works)
    at_once = max(1, min(room, most or room))
    draws = 1 if math.isinf(cluster.lifetime_s) else DRAWS
    each = {work.identity: alone_s(work, cluster, start_s) for work in works}
    longest = sorted(works, key=lambda work: -each[work.identity])

    def run(works: Sequence[Work], seed: int = 0) -> Outcome:
        return simulate(works, cluster, at_once=at_once, start_s=start_s, sweep_s=SWEEP_S, seed=seed)

    return Forecast(
        shape=shape,
        cluster=cluster,
        works=tuple(works),
        sources=sources,
        names={identity: mine[0].row for identity, mine in rows.items()},
        at_once=at_once,
        outcomes=tuple(run(works, seed) for seed in range(draws)),
        longest=(longest[0].identity, each[longest[0].identity]),
        longest_first=run(longest).seconds,
        start_s=start_s,
        price=price,
    )


@dataclass(frozen=True)
class _Times:
    """What a training's steps take on one worker, and from where that is known."""

    step_s: float
    eval_image_s: float
    checkpoint_s: float
    gradients: float
    inside: bool
    source: str


def _times(row: PlannedRow, measured: Measurement | None, shape: Shape, disk: float) -> _Times | str:
    """Those of ``row`` on ``shape``, or why there are none: first what was measured."""
    config = row.config
    if measured is not None and measured.step_s is not None and _is(measured, shape):
        if config.resources.workers > 1 and measured.gradient_bytes is None:
            return "what was measured is of an earlier version, which didn't note the gradients"
        return _Times(
            step_s=measured.step_s,
            eval_image_s=measured.eval_image_s or 0.0,
            checkpoint_s=measured.checkpoint_s or 0.0,
            gradients=float(measured.gradient_bytes or 0),
            inside=False,
            source=f"measured on {measured.hardware}",
        )
    if not shape.gpus:
        return "nothing was measured on a CPU"
    found = published(config, shape.name)
    if isinstance(found, str):
        return found
    share = math.ceil(config.schedule.batch_size / config.resources.workers)
    return _Times(
        step_s=found.image_s * share,
        eval_image_s=found.eval_image_s,
        checkpoint_s=SAVED * BYTES * found.weights / disk,
        gradients=BYTES * found.weights,
        inside=True,
        source=f"published: {found.source}",
    )


def _is(measured: Measurement, shape: Shape) -> bool:
    """Whether ``measured`` is of the devices of ``shape``."""
    if not shape.gpus:
        return measured.device == "cpu"
    words = re.split(r"[^A-Z0-9.]+", measured.hardware.upper())
    return measured.device == "cuda" and shape.name in words


def _unknown(unknown: Mapping[str, Sequence[str]], plan: Plan, shape: Shape) -> str:
    said = "; ".join(f"{listed(names, 3)}: {why}" for why, names in unknown.items())
    command = plan.command.replace("orchestrator.plan", "orchestrator.sweep", 1)
    where = "on a machine with such a GPU" if shape.gpus else "here"
    return f"the step times aren't known ({said}); `{command} --dry-run --measure` {where} times them into the storage"


def _missing(rows: Sequence[PlannedRow], ledger: Results) -> bool:
    """Whether a trained model lacks an evaluation."""
    return any(ledger.record(row.identity, row.evaluations).state != "finished" for row in rows)


def _work(identity: str, rows: Sequence[PlannedRow], ledger: Results, times: _Times, cluster: Cluster) -> Work:
    config, record = rows[0].config, ledger.record(identity)
    resources = config.resources
    need = _nodes(cluster).need(resources)
    trained = record.trained
    images: dict[str, int] = {}
    for row in rows:
        for facts, key in ((row.val, row.evaluation), (row.test, row.test_evaluation)):
            if facts is not None and not (trained and ledger.record(identity, {"": key}).state == "finished"):
                images.setdefault(key, facts.images)
    counts = list(images.values())
    # The training makes the first one itself, its workers together.
    own = 0 if trained else counts.pop(0)
    steps = config.schedule.max_iterations
    return Work(
        identity=identity,
        need=replace(need, workers=1) if trained else need,
        placement=resources.placement,
        begun=steps if trained else min(record.step, steps - 1),
        steps=steps,
        step_s=times.step_s,
        gradients=times.gradients if resources.workers > 1 else 0.0,
        inside=times.inside,
        checkpoint_s=times.checkpoint_s,
        checkpoint_every=config.checkpoint.every,
        evaluation_s=own * times.eval_image_s / resources.workers,
        evaluation_every=config.evaluation.every,
        afterwards=tuple(count * times.eval_image_s for count in counts),
    )


def _nodes(cluster: Cluster) -> Nodes:
    """``cluster`` as the scheduler would see it."""
    gpus = float(cluster.devices if cluster.gpus else 0)
    return Nodes((cluster.cpus,) * cluster.nodes, (gpus,) * cluster.nodes)
