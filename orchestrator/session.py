"""One pass over a sweep: what is finished stays, the rest is trained and evaluated on Ray, MLflow follows the journals.

The main thread holds the ledger, the live table and the signals; Tune runs in a thread of its own and the tracking
writer in another. Nothing in here is needed to resume: the same call again is the resumption.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from detector.errors import UnreachableError
from orchestrator import nodes, recovery
from orchestrator.background import Background
from orchestrator.budget import BudgetSpentError, check_budget
from orchestrator.cancellation import end_gracefully
from orchestrator.history import forget_accepted
from orchestrator.identity import evaluation_settings
from orchestrator.interruption import Interrupted, signals
from orchestrator.lease import STALE_S, Lease, LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.live_table import LiveTable
from orchestrator.order import in_order
from orchestrator.outage import Outage
from orchestrator.preparation import data_of, make_ready, remember_choices, state_of, unfinished
from orchestrator.probe import Expected, expect
from orchestrator.report.refresh import Refresh
from orchestrator.supply import WAIT_S, Growth, Supply, await_room, examine_all
from orchestrator.tracking import PATIENCE_S, Tracker
from orchestrator.tuning import run_tuner

if TYPE_CHECKING:
    from orchestrator.evaluation import EvaluationJob
    from orchestrator.plan import Plan, PlannedRow
    from orchestrator.worker import Assignment


THREADS_END_S = 60.0
"""Tune looks at least this often whether it is to end, as a rule ten times a second; a probe of nodes takes seconds."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a pass ended."""

    status: str
    """"complete", "partial", "interrupted" or "unreachable"."""
    error: str | None = None
    """One sentence, if it is not complete."""
    exit_status: int = 0
    """Of the command: 0, 3, 130, 143 or 4."""
    notice: str | None = None
    """One sentence about what does not change the result, such as a tracking server that was away at the end."""


def run_sweep(
    plan: Plan,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    fresh: bool = False,
    quiet_json: bool = False,
    max_gpu_hours: float | None = None,
    wait_for_nodes_s: float | None = None,
) -> SweepOutcome:
    """Trains what ``plan`` still lacks, on the cluster at ``address`` or on one that is started here.

    At most ``max_concurrent`` trainings run at once, as many as the cluster has room for, or may get room for where
    ``wait_for_nodes_s`` says that it grows. ``fresh`` sets earlier results of these trainings aside and trains them
    anew. ``quiet_json`` is for callers that print JSON on standard output; nothing here writes there in either case.
    ``max_gpu_hours`` ends the pass when this sweep's trainings have taken as much. ``wait_for_nodes_s``: how long a
    cluster may take to have room, at first (None: no time) and after nodes were lost (None: ``supply.WAIT_S``).

    Raises ``InputError`` (the data or the storage's contents are wrong) and ``SweepHeldError`` (another live driver
    has the sweep); everything else is in the outcome.
    """
    ledger = Ledger(plan.place)
    with signals() as listen:
        try:
            ledger.prepare()
            make_ready(plan, ledger, address, fresh=fresh)
            with Lease(ledger.place, plan.key) as lease:
                fenced = Ledger(plan.place, lease.fence)
                remember_choices(plan, fenced)
                limits = Limits(max_concurrent, max_gpu_hours, wait_for_nodes_s)
                return Pass(plan, fenced, listen, limits).run(address, fresh)
        except UnreachableError as error:
            return SweepOutcome("unreachable", str(error), 4)
        except OSError as error:
            return unusable(error, ledger)
        except Interrupted as stop:
            return interrupted(stop)


@dataclass(frozen=True)
class Limits:
    """How much a pass may take."""

    concurrent: int | None = None
    gpu_hours: float | None = None
    wait_for_nodes_s: float | None = None


class Pass:
    """One pass over ``plan``."""

    def __init__(self, plan: Plan, ledger: Ledger, listen: Callable[[], None], limits: Limits) -> None:
        self.plan, self.ledger, self._listen, self._limits = plan, ledger, listen, limits
        self._claimed: list[str] = []
        self._held: list[str] = []
        """Identities that another live sweep is training."""
        self._stop = threading.Event()
        self._tune: threading.Thread | None = None
        self._supply: Supply | None = None
        self._growth = Growth()
        self._broken: BaseException | None = None
        self._tune_error: dict[str, str] = {}

    def run(self, address: str | None, fresh: bool) -> SweepOutcome:
        """The pass, from what is left to its outcome."""
        tracker = self._tracker()
        todo = self._todo(fresh)
        # MLflow's first look at its store takes seconds, which the cluster's start can hide.
        connecting = Background(lambda: tracker.connect(PATIENCE_S))
        try:
            if todo:
                with nodes.connected(address) as cluster:
                    self._listen()
                    try:
                        connecting.wait()
                        self._train(cluster, todo, tracker, fresh)
                    except Interrupted as stop:
                        # Here and not outside: the ledger comes before the cluster's end, which takes seconds.
                        return self._give_up(tracker, stop)
                    except BudgetSpentError as error:
                        pace = max(one.resources.stall_timeout_s for one in self.plan.trainings.values())
                        end_gracefully(self.ledger, self._claimed, self._tune, pace)
                        self._end_threads()
                        self._release()
                        tracker.stop_polling()
                        notice = tracker.finish("KILLED") if tracker.opened else None
                        return SweepOutcome("partial", str(error), 3, notice)
                    finally:
                        self._growth.take_back()
                        self._end_threads()
            else:
                connecting.wait()
                tracker.open(PATIENCE_S)
        except Interrupted as stop:
            return self._give_up(tracker, stop)
        except LeaseLostError:
            raise  # the ledger and the runs are another driver's
        except BaseException:
            self._release()
            with contextlib.suppress(Exception):
                if tracker.opened:
                    tracker.stop_polling()
                    tracker.finish("FAILED", patience=0.0)
            raise
        return self._outcome(tracker)

    def _tracker(self) -> Tracker:
        return Tracker(self.plan, self.ledger)

    def _shown(self) -> Plan:
        """What the report is of, as it stands now."""
        return self.plan

    def _todo(self, fresh: bool) -> list[str]:
        return unfinished(self.plan, self.ledger, fresh)

    def _train(self, cluster: nodes.Nodes, todo: list[str], tracker: Tracker, fresh: bool) -> None:
        needs = {identity: cluster.need(self.plan.trainings[identity].resources) for identity in todo}
        for identity in [] if fresh else [one for one in todo if self.ledger.record(one).trained]:
            needs[identity] = replace(needs[identity], workers=1)  # only to be evaluated
        cluster, expected, at_once = self._placed(cluster, needs, todo)
        assignments = self._claim(needs, fresh, expected)
        tracker.open(PATIENCE_S)
        tracker.start()
        self._tune = threading.Thread(target=self._run_tune, args=(assignments, at_once), name="tune", daemon=True)
        table = LiveTable(self.plan.rows, self.ledger)
        self._follow(cluster, expected, needs, table)
        for identity, assignment in assignments.items():
            error = self._tune_error.get(identity)
            if self.ledger.record(identity).state in ("pending", "running"):
                self.ledger.failed(identity, error)
            for job in assignment.evaluations if self.ledger.record(identity).trained else ():
                if self.ledger.record(identity, {"": job.key}).state in ("pending", "running"):
                    self.ledger.evaluation_failed(identity, job.key, error or "it ended without saying why")
        table.close()
        tracker.stop_polling()

    def _placed(
        self, cluster: nodes.Nodes, needs: dict[str, nodes.Need], todo: list[str]
    ) -> tuple[nodes.Nodes, Expected | None, int]:
        """The cluster once it has room, what its nodes must find, and how many of ``todo`` run at once."""
        expected = None
        if cluster.here:
            nodes.check_room(cluster, needs.values())
        else:
            nodes.free_leftovers()
            await_room(needs.values(), self._limits.wait_for_nodes_s or 0.0, self._growth)
            expected = expect(self.ledger, self.plan.key, *data_of(self.plan, todo))
            cluster = examine_all(expected, self.plan.tracking_uri)
        gpus = any(need.gpus for need in needs.values())
        if self._limits.gpu_hours is not None and not gpus:
            sys.stderr.write("these trainings use no GPU: --max-gpu-hours counts the hours of their workers\n")
        self._check_budget(gpus)
        return cluster, expected, self._at_once(cluster, needs)

    def _at_once(self, cluster: nodes.Nodes, needs: dict[str, nodes.Need]) -> int:
        """How many trainings may ask for room at the same time: on a cluster that grows, more than there is yet."""
        room, most = min(cluster.room(need) for need in needs.values()), self._limits.concurrent
        if most is not None and self._limits.wait_for_nodes_s and not cluster.here:
            return most
        return max(1, min(room, most or room))

    def _follow(
        self, cluster: nodes.Nodes, expected: Expected | None, needs: dict[str, nodes.Need], table: LiveTable
    ) -> None:
        """Starts Tune's thread, and shows and checks what goes on until it ends."""
        assert self._tune is not None
        gpus = any(need.gpus for need in needs.values())
        outage = Outage(STALE_S)  # for as long as nobody takes this driver for dead
        self._tune.start()
        with contextlib.ExitStack() as stack:
            stack.enter_context(Refresh(self._shown, self.ledger))
            if expected is not None:
                wait_s = WAIT_S if self._limits.wait_for_nodes_s is None else self._limits.wait_for_nodes_s
                left = functools.partial(self._left, needs)
                self._supply = stack.enter_context(Supply(cluster, expected, left, wait_s))
            while self._tune.is_alive():
                self._tune.join(timeout=self.ledger.place.pause)
                with outage.borne():
                    self.ledger.check()
                    table.update()
                    self._check_budget(gpus)
                    if self._growth.asked and self._begun():
                        self._growth.take_back()
                if self._supply is not None:
                    self._supply.check()
        if self._broken is not None:
            raise UnreachableError(
                f"the cluster stopped scheduling ({_last_words(self._broken)}); run the same command again to continue"
            )

    def _check_budget(self, gpus: bool) -> None:
        check_budget(self.plan.whole, self.ledger, self._limits.gpu_hours, gpus=gpus)

    def _begun(self) -> bool:
        """Whether a training has its nodes; from then on the trainings themselves ask for them."""
        return any(self.ledger.record(one).state != "pending" for one in self._claimed)

    def _left(self, needs: dict[str, nodes.Need]) -> list[nodes.Need]:
        """What is left needs: trainings, and evaluations of those that are trained."""
        undone = {row.identity for row in self.plan.rows if state_of(row, self.ledger) in ("pending", "running")}
        left = [one for one in self._claimed if one in undone]
        return [replace(needs[one], workers=1) if self.ledger.record(one).trained else needs[one] for one in left]

    def _claim(self, needs: dict[str, nodes.Need], fresh: bool, expected: Expected | None) -> dict[str, Assignment]:
        """Takes what is not finished; what each training is to do, by identity, in the order in which they start."""
        assignments: dict[str, Assignment] = {}
        for row in in_order(self.plan, self.ledger):
            if row.identity not in needs or row.identity in assignments or row.identity in self._held:
                continue
            record = self.ledger.record(row.identity)
            if record.cancelled and not fresh:
                continue
            if self._claimed_now(row, fresh):
                assignments[row.identity] = self._assignment(row, needs[row.identity].gpus, expected, self.plan.rows)
        return assignments

    def _claimed_now(self, row: PlannedRow, fresh: bool) -> bool:
        """Takes the training of ``row``, ``fresh`` anew; False, and noted, where another live sweep has it."""
        record = self.ledger.record(row.identity)
        if fresh and not (record.state == "running" and record.holder != self.plan.key):
            self.ledger.set_aside(row.identity)
            forget_accepted(self.ledger, row.identity)
        mine = self.ledger.claim(
            row.identity,
            sweep=self.plan.key,
            row=row.row,
            seed=row.seed,
            config=row.config.model_dump(mode="json"),
            iterations=row.config.schedule.max_iterations,
            basis=row.basis,
        )
        (self._claimed if mine else self._held).append(row.identity)
        return mine

    def _assignment(
        self, row: PlannedRow, gpus: float, expected: Expected | None, rows: Sequence[PlannedRow]
    ) -> Assignment:
        """What a trial is to do for ``row``, with the evaluations that ``rows`` ask of its training."""
        from orchestrator.worker import Assignment

        # The driver's own waiting, which fails nothing, comes first.
        return Assignment(
            identity=row.identity,
            storage=self.ledger.address,
            config=row.config.model_dump(mode="json"),
            digests={facts.split: facts.digest for facts in (row.train, row.val) if facts is not None},
            evaluations=self._evaluations(row.identity, rows),
            gpus_per_worker=gpus,
            fence=self.ledger.fence,
            expected=expected,
            wait_s=max(recovery.WAIT_S, 2 * (self._limits.wait_for_nodes_s or 0.0)),
        )

    def _evaluations(self, identity: str, rows: Sequence[PlannedRow]) -> tuple[EvaluationJob, ...]:
        """What the rows of a training ask for, each once; first that of the first row, which is its own."""
        from orchestrator.evaluation import EvaluationJob

        jobs: dict[str, EvaluationJob] = {}
        for row in rows:
            for facts, key in ((row.val, row.evaluation), (row.test, row.test_evaluation)):
                if row.identity == identity and facts is not None and key not in jobs:
                    settings = evaluation_settings(row.config, split_digest=facts.digest)
                    config = row.config.model_dump(mode="json")
                    jobs[key] = EvaluationJob(key, facts.split, facts.digest, config, settings)
        return tuple(jobs.values())

    def _run_tune(self, assignments: dict[str, Assignment], at_once: int) -> None:
        try:
            from ray import tune

            from orchestrator.trial import run_trial
        except BaseException as error:  # a thread's end says nothing by itself
            self._broken = error
            return
        trial = functools.partial(run_trial, assignments=assignments)
        self._tuned(trial, at_once=at_once, param_space={"identity": tune.grid_search(self._claimed)})

    def _tuned(self, function: Callable[[dict[str, Any]], None], **options: Any) -> None:
        try:
            self._tune_error = run_tuner(function, self.plan.folder / ".tune", self._stop, **options)
        except BaseException as error:
            if not self._stop.is_set():
                self._broken = error

    def _release(self) -> None:
        def give_back(identity: str) -> None:
            with contextlib.suppress(Exception):
                self.ledger.release(identity)

        with ThreadPoolExecutor(8) as pool:  # an object store takes its time for each
            list(pool.map(give_back, self._claimed))

    def _give_up(self, tracker: Tracker, stop: Interrupted) -> SweepOutcome:
        """A signal: first the ledger, then the runs' states, within the seconds that a job's stop leaves."""
        self._release()
        if tracker.opened:
            tracker.abandon()
        return interrupted(stop)

    def _end_threads(self) -> None:
        """Ends the threads that must not outlive the connection to Ray: using it then ends the process."""
        self._stop.set()
        if self._tune is not None and self._tune.is_alive():
            self._tune.join(timeout=THREADS_END_S)
        if self._supply is not None:
            self._supply.join(timeout=THREADS_END_S)

    def _outcome(self, tracker: Tracker) -> SweepOutcome:
        from orchestrator.report import write_report

        states = [state_of(row, self.ledger) for row in self.plan.rows]
        complete = all(state == "finished" for state in states)
        self.ledger.check()  # a folder's report is written in its place
        self.ledger.publish(write_report(self.plan, self.ledger).values())
        notice = tracker.finish("FINISHED" if complete else "FAILED")
        if complete:
            return SweepOutcome("complete", notice=notice)
        failed = [row.row for row, state in zip(self.plan.rows, states, strict=True) if state == "failed"]
        parts = [f"{len(failed)} of {len(self.plan.rows)} rows failed ({', '.join(failed)})"] if failed else []
        if self._held:
            parts.append(f"{len(self._held)} trainings are another live sweep's; run this again when it has ended")
        elif waiting := sum(state in ("pending", "running") for state in states):
            parts.append(f"{waiting} rows are pending again; the same command trains them")
        return SweepOutcome("partial", "; ".join(parts), 3, notice)


def _last_words(error: BaseException) -> str:
    """What ``error`` says; a task's has a traceback before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:300] if lines else type(error).__name__


def unusable(error: OSError, ledger: Ledger) -> SweepOutcome:
    """The storage refused a write."""
    where = error.filename or ledger.address
    return SweepOutcome(
        "unreachable",
        f"the storage can't be used ({error.strerror or error}: {where}); what is in it is intact: make room "
        "or give write permission, and run the same command again",
        4,
    )


def interrupted(stop: Interrupted) -> SweepOutcome:
    """A signal ended the pass."""
    return SweepOutcome(
        "interrupted", f"interrupted by {stop}; run the same command again to continue", 128 + stop.number
    )
