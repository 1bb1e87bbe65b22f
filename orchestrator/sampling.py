"""What is tried next and what is stopped: Optuna's sampler and successive halving, as Ray Tune has them.

Both forget everything when their process ends. What they must know is therefore told to them again from the ledger:
finished samples with their figures, those that were stopped as pruned, and at each rung every figure that was reached.
Samples go by their numbers in the ledger, not by Tune's names of trials, which are others after every start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from orchestrator.identity import digest
from orchestrator.samples import Sample
from orchestrator.search_spec import Domain, Search

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What has become of a sample in earlier runs of the search."""

    sample: Sample
    state: str
    """"finished", "stopped", "failed", or "pending" for one that is still to be trained."""
    reached: tuple[tuple[int, float], ...] = ()
    """Its figures at the evaluations, by step."""


def space_of(search: Search) -> dict[str, Any]:
    """The space in Tune's words."""
    return {key: _domain(domain) for key, domain in search.parameters.items()}


def _domain(domain: Domain) -> Any:
    if domain.uniform is not None:
        return tune.uniform(*domain.uniform)
    if domain.loguniform is not None:
        return tune.loguniform(*domain.loguniform)
    if domain.randint is not None:
        return tune.randint(*domain.randint)
    assert domain.choice is not None
    return tune.choice(domain.choice)


class Sampler(OptunaSearch):
    """Optuna's TPE over the space of ``search``, that knows what was ``told``.

    ``begin`` is given the number of a sample that was drawn earlier (None: of a new one) and its values, and returns
    the sample and what its trial is given; ``outcome`` gives the state of a sample and its figure. The seed follows
    from that of the search and from how many samples there are: it is the same whenever the search goes on from there.
    """

    def __init__(
        self,
        search: Search,
        told: list[Told],
        begin: Callable[[int | None, dict[str, Any]], tuple[Sample, dict[str, Any]] | None],
        outcome: Callable[[Sample], tuple[str, float | None]],
    ) -> None:
        self._search, self._begin, self._outcome = search, begin, outcome
        self._waiting = [one.sample for one in told if one.state == "pending"]
        self._samples: dict[str, Sample] = {}
        seed = int(digest([search.seed, len(told)])[:8], 16)
        super().__init__(
            space=self.convert_search_space(space_of(search)),
            metric=search.metric,
            mode=search.mode,
            points_to_evaluate=[sample.values for sample in self._waiting] or None,
            seed=seed,
        )
        for one in told:
            if one.state == "pending":
                continue
            values = [value for _, value in one.reached]
            if one.state != "failed" and not values:
                continue
            self.add_evaluated_point(
                dict(one.sample.values),
                values[-1] if values else 0.0,
                error=one.state == "failed",
                pruned=one.state == "stopped",
                intermediate_values=values or None,
            )

    def suggest(self, trial_id: str) -> Any:
        """The next one that was begun earlier, or a new one; None or FINISHED where there is to be none."""
        drawn = super().suggest(trial_id)
        if drawn is None:
            return None
        values = {key: domain.rounded(_plain(drawn[key])) for key, domain in self._search.parameters.items()}
        waiting = next((one for one in self._waiting if one.values == values), None)
        if waiting is not None:
            self._waiting.remove(waiting)
        begun = self._begin(None if waiting is None else waiting.number, values)
        if begun is None:
            return tune.search.Searcher.FINISHED
        self._samples[trial_id], given = begun
        return given

    def sample_of(self, trial_id: str) -> Sample | None:
        """The sample that a trial of Tune's trains."""
        return self._samples.get(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells Optuna a figure, where there is one."""
        if result.get(self._search.metric) is not None:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna how it ended, by the ledger: what Tune saw last may be from before a stop."""
        sample = self._samples.get(trial_id)
        state, value = ("failed", None) if sample is None else self._outcome(sample)
        known = {self._search.metric: value} if state == "finished" and value is not None else None
        super().on_trial_complete(trial_id, known, error=known is None and state != "stopped")

    def save(self, checkpoint_path: str) -> None:
        """Tune keeps its state in a scratch folder, which nobody reads."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: what there is to know is in the ledger."""

    def __reduce__(self) -> Any:
        # Tune writes its configuration into the same folder; the ledger and its locks can't be written.
        return tune.search.Searcher, ()


class Halving(FIFOScheduler):
    """Successive halving by training step, that lets a trial end by itself.

    Tune would kill the trial's process in the middle of its work. Here ``stop`` asks the training to save a checkpoint
    and end, as a user's cancellation does; its trial ends within seconds. ``sample_of`` finds a trial's sample,
    ``steps`` are those of a whole training and ``every`` how many lie between evaluations.
    """

    def __init__(
        self,
        search: Search,
        told: list[Told],
        sample_of: Callable[[str], Sample | None],
        stop: Callable[[Sample, int, float], None],
        *,
        steps: int,
        every: int,
    ) -> None:
        super().__init__()
        self._figure, self._sample_of, self._stop = search.metric, sample_of, stop
        self._steps, self._every = steps, every
        self._over: set[int] = set()
        self._known: set[int] = set()
        self._rule = ASHAScheduler(
            time_attr="step",
            metric=search.metric,
            mode=search.mode,
            max_t=max(steps + 1, every),  # a training that is over needs no stop
            grace_period=every,
            reduction_factor=search.scheduler.reduction_factor,
        )
        for one in told:
            for step, value in one.reached:
                self._decide(one.sample, step, value)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stops what is not among the best at its rung; Tune itself is always told to go on."""
        sample, step, value = self._sample_of(trial.trial_id), result.get("step"), result.get(self._figure)
        # A checkpoint between two evaluations reports the figures of the last one again.
        fresh = isinstance(step, int) and (step % self._every == 0 or step >= self._steps)
        if sample is None or sample.number in self._over or not fresh or value is None:
            return TrialScheduler.CONTINUE
        assert isinstance(step, int)
        if self._decide(sample, step, value) and step < self._steps:
            self._over.add(sample.number)
            self._stop(sample, step, float(value))
        return TrialScheduler.CONTINUE

    def _decide(self, sample: Sample, step: int, value: float) -> bool:
        """Whether the rule stops it."""
        stand_in: Any = _Trial(f"sample {sample.number}")
        if sample.number not in self._known:
            self._known.add(sample.number)
            self._rule.on_trial_add(None, stand_in)  # type: ignore[arg-type]
        figures = {"step": step, self._figure: value}
        return self._rule.on_trial_result(None, stand_in, figures) == TrialScheduler.STOP  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        return FIFOScheduler, ()


@dataclass(frozen=True)
class _Trial:
    """All that the rule asks of a trial."""

    trial_id: str


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def run_sample(params: Mapping[str, Any]) -> None:
    """Tune's function of one sample; one that is known already, or another sweep's, trains nothing."""
    assignment = params["assignment"]
    if assignment is None:
        tune.report({"state": "known"})
        return
    from orchestrator.trial import run_trial

    run_trial({"identity": assignment.identity}, assignments={assignment.identity: assignment})
