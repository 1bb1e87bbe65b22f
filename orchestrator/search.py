"""A pass over a sweep that searches: first the samples, then the winner and the rows of the file, which are judged.

Drawing, stopping and training of samples is one pass, whose rows are made while it goes on; the judged rows are an
ordinary one. The same call again goes on with whichever is not done.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from detector.errors import InputError, UnreachableError
from orchestrator import journal, nodes
from orchestrator.budget import BudgetSpentError, check_budget
from orchestrator.interruption import Interrupted, signals
from orchestrator.lease import STALE_S, Lease, refuse_held
from orchestrator.ledger import Ledger
from orchestrator.live_table import LiveTable
from orchestrator.outage import wait_out
from orchestrator.plan import PlannedSearch
from orchestrator.preparation import convert_data
from orchestrator.samples import (
    Sample,
    accept_code,
    add_sample,
    choose_winner,
    forget,
    mark_stopped,
    read_samples,
)
from orchestrator.search_plan import sample_row
from orchestrator.session import Limits, Pass, SweepOutcome, interrupted, run_sweep, unusable
from orchestrator.tracking import PATIENCE_S, Tracker

if TYPE_CHECKING:
    from orchestrator.plan import Plan, PlannedRow
    from orchestrator.probe import Expected
    from orchestrator.sampling import Told

T = TypeVar("T")

MISSING = "a search needs Optuna, which is not installed here; pip install 'detsweep[search]'"


def check_optuna() -> None:
    """Raises InputError, before anything is started, where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError(MISSING)


def run_search(plan: Plan, again: Callable[[], Plan], *, fresh: bool = False, **options: Any) -> SweepOutcome:
    """Searches what ``plan`` still lacks, then trains what is judged; ``again`` makes the plan anew, with the winner.

    ``options`` are those of :func:`orchestrator.session.run_sweep`. Raises as that does.
    """
    check_optuna()
    assert plan.search is not None
    if fresh:
        refuse_held(Ledger(plan.place).place, plan.key)
        forget(Ledger(plan.place), plan.key, plan.search.key)
        plan = again()
    assert plan.search is not None
    if plan.search.winner is None:
        outcome = _run_samples(plan, fresh=fresh, **options)
        if outcome.exit_status:
            return outcome
        plan = again()
    assert plan.search is not None
    outcome = run_sweep(plan, fresh=fresh, **options)
    failed = [row.row for row in plan.search.samples if Ledger(plan.place).record(row.identity).state == "failed"]
    if outcome.status == "complete" and failed:
        error = (
            f"{len(failed)} samples of the search failed ({', '.join(failed)}); the winner is the best of the others"
        )
        return replace(outcome, status="partial", error=error, exit_status=3)
    return outcome


def _run_samples(
    plan: Plan,
    *,
    fresh: bool,
    address: str | None = None,
    max_concurrent: int | None = None,
    quiet_json: bool = False,
    max_gpu_hours: float | None = None,
    wait_for_nodes_s: float | None = None,
) -> SweepOutcome:
    assert plan.search is not None
    ledger = Ledger(plan.place)
    with signals() as listen:
        try:
            ledger.prepare()
            refuse_held(ledger.place, plan.key)
            nodes.check_address(address)
            drawn = replace(plan, rows=(plan.search.template,), compare=())
            convert_data(drawn, [plan.search.template.identity], ledger, fresh=True)
            with Lease(ledger.place, plan.key) as lease:
                limits = Limits(max_concurrent, max_gpu_hours, wait_for_nodes_s)
                fenced = Ledger(plan.place, lease.fence)
                if plan.search.samples:
                    accept_code(fenced, plan.key, plan.search.key)
                return _SearchPass(plan, drawn, fenced, listen, limits).run(address, fresh)
        except UnreachableError as error:
            return SweepOutcome("unreachable", str(error), 4)
        except OSError as error:
            return unusable(error, ledger)
        except Interrupted as stop:
            return interrupted(stop)


class _SearchPass(Pass):
    """``drawn``: the plan with a single row, the template of all samples."""

    def __init__(self, plan: Plan, drawn: Plan, ledger: Ledger, listen: Callable[[], None], limits: Limits) -> None:
        super().__init__(drawn, ledger, listen, limits)
        assert plan.search is not None
        self._whole, self._search = plan, plan.search
        self._rows: list[PlannedRow] = list(plan.search.samples)
        """In the order of the samples; grows while they are drawn."""
        self._by_number = dict(enumerate(self._rows))
        self._closing = False
        self._fresh = False

    def _todo(self, fresh: bool) -> list[str]:
        left = self._search.spec.samples - len(self._rows)
        undone = [row for row in self._rows if self._state(row) in ("pending", "running")]
        return [self._search.template.identity] if left > 0 or undone else []

    def _tracker(self) -> Tracker:
        return Tracker(replace(self.plan, rows=tuple(self._rows)), self.ledger)

    def _shown(self) -> Plan:
        return replace(self._whole, search=replace(self._search, samples=tuple(self._rows)))

    def _state(self, row: PlannedRow) -> str:
        record = self.ledger.record(row.identity, row.evaluations)
        return "stopped" if record.over_for(self.plan.key) else record.state

    def _value(self, row: PlannedRow) -> float | None:
        return self.ledger.record(row.identity, row.evaluations).metrics.get(self._search.spec.metric)

    def _train(self, cluster: nodes.Nodes, todo: list[str], tracker: Tracker, fresh: bool) -> None:
        template, spec = self._search.template, self._search.spec
        needs = {template.identity: cluster.need(template.config.resources)}
        cluster, expected, at_once = self._placed(cluster, needs, todo)
        tracker.open(PATIENCE_S)
        tracker.start()
        told = self._told()
        self._fresh = fresh
        number = max(0, spec.samples - len(told)) + sum(one.state == "pending" for one in told)
        run = functools.partial(self._run_search, told, number, at_once, needs[template.identity], expected, tracker)
        self._tune = threading.Thread(target=run, name="tune", daemon=True)
        table = LiveTable(self._rows, self.ledger)
        self._follow(cluster, expected, needs, table)
        for row in self._rows:
            if self.ledger.record(row.identity, row.evaluations).state in ("pending", "running") and (
                row.identity in self._tune_error
            ):
                self.ledger.failed(row.identity, self._tune_error[row.identity])
        table.close()
        tracker.stop_polling()

    def _left(self, needs: dict[str, nodes.Need]) -> list[nodes.Need]:
        return list(needs.values())

    def _check_budget(self, gpus: bool) -> None:
        try:
            plan = replace(self.plan, rows=tuple(self._rows), search=None)
            check_budget(plan, self.ledger, self._limits.gpu_hours, gpus=gpus)
        except BudgetSpentError:
            self._closing = True  # nothing more is drawn
            raise

    def _told(self) -> list[Told]:
        """What the earlier runs of the search have come to; what failed is tried again."""
        from orchestrator.sampling import Told

        known = read_samples(self.ledger, self.plan.key, self._search.key)
        found = []
        for sample, row in zip(known.samples, self._rows, strict=True):
            record = self.ledger.record(row.identity, row.evaluations)
            state = "stopped" if record.over_for(self.plan.key) else record.state
            entries = journal.read(record.journal, row.evaluation)
            reached = [
                (entry["step"], entry["metrics"].get(self._search.spec.metric))
                for entry in entries
                if entry["kind"] == "evaluation"
            ]
            if record.stopped is not None and state == "stopped":
                reached = [(step, value) for step, value in reached if step <= record.stopped["step"]]
            figures = tuple((step, value) for step, value in reached if value is not None)
            found.append(Told(sample, state if state in ("finished", "stopped") else "pending", figures))
        return found

    def _run_search(
        self,
        told: list[Told],
        number: int,
        at_once: int,
        need: nodes.Need,
        expected: Expected | None,
        tracker: Tracker,
    ) -> None:
        # Reports of checkpoints between two evaluations have no figure; Tune would refuse them.
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        try:
            import optuna

            from orchestrator.sampling import Halving, Sampler, run_sample

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            begin = functools.partial(self._begin, need, expected, tracker)
            sampler = Sampler(self._search.spec, told, begin, self._outcome_of)
            template = self._search.template.config
            scheduler = Halving(
                self._search.spec,
                told,
                sampler.sample_of,
                self._stop_early,
                steps=template.schedule.max_iterations,
                every=template.evaluation.every or template.schedule.max_iterations,
            )
        except BaseException as error:
            self._broken = error
            return
        self._tuned(run_sample, at_once=at_once, num_samples=number, search_alg=sampler, scheduler=scheduler)

    def _begin(
        self,
        need: nodes.Need,
        expected: Expected | None,
        tracker: Tracker,
        number: int | None,
        values: dict[str, Any],
    ) -> tuple[Sample, dict[str, Any]] | None:
        """Writes a sample down and claims its training; called by Tune's thread whenever there is room for one."""
        if self._closing or self._stop.is_set():
            return None
        known = {row.identity for row in self._rows}
        if number is None:
            row = sample_row(self._search.spec, self._search.template, values)
            sample = self._patiently(
                lambda: add_sample(self.ledger, self.plan.key, self._search.key, values, row.identity, len(self._rows))
            )
            self._by_number[sample.number] = row
            self._rows.append(row)
            tracker.add(row)
        else:
            row = self._by_number[number]
            sample, known = Sample(number, values, row.identity), set()
        assignment = None
        # One that was drawn twice is trained once.
        anew = self._fresh and row.identity not in self._claimed
        if row.identity not in known and self._patiently(lambda: self._claimed_now(row, anew)):
            assignment = replace(self._assignment(row, need.gpus, expected, (row,)), reports=True)
        return sample, {"identity": row.identity, "assignment": assignment}

    def _outcome_of(self, sample: Sample) -> tuple[str, float | None]:
        row = self._by_number[sample.number]
        return self._patiently(lambda: (self._state(row), self._value(row)))

    def _stop_early(self, sample: Sample, step: int, value: float) -> None:
        metric = self._search.spec.metric
        why: dict[str, Any] = {"by": "asha", "step": step, "metric": metric, "value": value}
        self._patiently(lambda: mark_stopped(self.ledger, sample.identity, sweep=self.plan.key, **why))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """``ask``, in Tune's thread, which an exception would end with the whole search: an outage is waited for."""
        return wait_out(ask, STALE_S, self._stop)

    def _outcome(self, tracker: Tracker) -> SweepOutcome:
        """Chooses the winner, once every sample is done; the sweep's run goes on with what is judged."""
        states = [self._state(row) for row in self._rows]
        undone = sum(state in ("pending", "running") for state in states)
        missing = max(0, self._search.spec.samples - len(self._rows))
        best = winner(self._search, self._rows, [self._value(row) for row in self._rows])
        finished = bool(self._rows) and not undone and not missing
        if finished and best is not None:
            choose_winner(self.ledger, self.plan.key, self._search.key, best)
            sys.stderr.write(f"the search is done: {self._rows[best].row} is best of {len(self._rows)} samples\n")
            return SweepOutcome("complete", notice=tracker.finish("RUNNING"))
        notice = tracker.finish("FAILED")
        if finished:
            return SweepOutcome(
                "partial", "no sample of the search was trained to its end; see why with status", 3, notice
            )
        parts = [f"{undone + missing} of {self._search.spec.samples} samples of the search are not done"]
        if self._held:
            parts.append(f"{len(self._held)} trainings are another live sweep's; run this again when it has ended")
        return SweepOutcome("partial", "; ".join(parts), 3, notice)


def winner(search: PlannedSearch, rows: list[PlannedRow], values: list[float | None]) -> int | None:
    """The number of the best sample that was trained to its end, the first of equals; None where there is none."""
    sign = 1.0 if search.spec.mode == "max" else -1.0
    known = [(sign * value, -number) for number, value in enumerate(values) if value is not None]
    return -max(known)[1] if known and len(rows) == len(values) else None
