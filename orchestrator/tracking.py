"""MLflow as a view of the ledger: one writer on the driver turns journals into runs.

Experiment: the sweep's name. In it one parent run a sweep key, and below it one run for each row and seed, for ever the
same. A row whose training another row (of this sweep or another) did gets a light run: parameters, final metrics of its
own evaluation, model and where it came from; the curves are in the source run.

What MLflow already has is asked of MLflow itself, so that nothing is written twice after a restart of whatever kind,
and ``push`` may be repeated at any time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.origins import without_secrets
from orchestrator import artifacts, journal, registry
from orchestrator.files import read_json
from orchestrator.lease import LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.record import Record, evaluation_folder
from orchestrator.row_run import Point, RowRun
from orchestrator.run_tags import data_inputs, evaluation_tags, evaluations_of, params, row_tags, training_tags
from orchestrator.runs import AwayError, RunStore, has, of_storage, reason
from orchestrator.unreadable import is_of_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from orchestrator.plan import Plan, PlannedRow

POLL_S = 2.0
RETRY_S = 2.0
PATIENCE_S = 75.0
"""How long the start and the end of a sweep wait for a tracking server that is away."""
KILL_S = 1.5
"""How long an interrupted sweep tries to say so in MLflow: `ray job stop` kills after three seconds."""
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "pending": "KILLED"}


class Tracker:
    """Writes ``plan``'s runs. One a driver; its methods are called by one thread at a time.

    ``judged`` is what the report and the registered model are of, where ``plan`` has samples of a search beside it.
    ``thorough`` compares runs that are marked as complete with the ledger, too.
    """

    def __init__(self, plan: Plan, ledger: Ledger, *, judged: Plan | None = None, thorough: bool = False) -> None:
        self.plan, self.ledger, self._thorough = plan, ledger, thorough
        self._judged = judged or plan
        self._runs = [RowRun(row, row.evaluations) for row in plan.rows]
        self.store = RunStore(plan, ledger)
        self._away: str | None = None
        self.unreadable: dict[tuple[str, int], str] = {}
        """Why a row and seed has a run that lacks something, where its files can't be read."""
        self._foreign: dict[str, RowRun] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def opened(self) -> bool:
        """Whether the parent run is known."""
        return bool(self.store.parent)

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, once it is open."""
        return self.store.client

    def connect(self, patience: float = 0.0) -> None:
        """Reaches the store, makes its schema if it is new, and finds or makes the experiment.

        Waits up to ``patience`` seconds for a server that is away. Raises ``UnreachableError`` if it can't be done.
        """
        self._patiently(self.store.connect, patience)

    def open(self, patience: float = 0.0) -> None:
        """Finds or makes the parent run, which is RUNNING until ``finish``. As patient as ``connect``."""
        self._patiently(self.store.open, patience)

    def _patiently(self, what: Callable[[], None], patience: float) -> None:
        until = time.monotonic() + patience
        while True:
            try:
                return what()
            except AwayError as error:
                if time.monotonic() >= until:
                    raise
                self._note_away(error, f"waiting up to {patience:g} s for it")
                time.sleep(min(RETRY_S, max(0.1, until - time.monotonic())))

    def start(self) -> None:
        """Follows the journals in a thread, until ``stop_polling``."""
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._thread.start()

    def add(self, row: PlannedRow) -> None:
        """A row that wasn't planned at first: a sample of a search."""
        if all((run.row.row, run.row.seed) != (row.row, row.seed) for run in self._runs):
            self._runs.append(RowRun(row, row.evaluations))

    def stop_polling(self) -> None:
        """Ends the thread; what it had not written yet is left to ``finish``."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def push(self) -> None:
        """Brings every run to what the ledger says. Raises what MLflow raises; may be repeated."""
        self.ledger.check()
        try:
            # A row that reuses another's training comes after it, wherever it stands in the table.
            later = [run for run in self._runs if not run.complete and not self._brought(run)]
            for run in later:
                self._brought(run)
        except Exception:
            # Nobody knows how much was written: ask again.
            for run in [*self._runs, *self._foreign.values()]:
                run.reader, run.logged, run.status, run.there = None, {}, None, None
            raise

    def finish(self, parent_status: str, *, patience: float = PATIENCE_S) -> str | None:
        """Writes what is left and closes the parent run.

        Waits up to ``patience`` seconds for a server that is away, and then returns a sentence that says what to do.
        """
        until = time.monotonic() + patience
        while True:
            try:
                self.push()
                if (
                    parent_status == "FINISHED"
                    and not self.unreadable
                    and registry.register(self.store, self._judged, self.ledger)
                ):
                    self._rewrite_report()
                self.ledger.check()
                self.store.log_report()
                self.store.drop_doubles()
                self.client.update_run(self.store.parent, status=parent_status)
                return self._lacking()
            except LeaseLostError:
                raise
            except Exception as error:
                if time.monotonic() >= until:
                    command = self.plan.command.replace("orchestrator.sweep", "orchestrator.sync", 1)
                    shown = without_secrets(self.plan.tracking_uri)
                    return (
                        f"the tracking server {shown} could not be brought up to "
                        f"date ({reason(error)}); nothing is lost: `{command}` does it from the ledger"
                        + ("" if shown == self.plan.tracking_uri else ", with the server in $MLFLOW_TRACKING_URI")
                    )
                self._note_away(error, f"waiting up to {patience:g} s for it")
                time.sleep(min(RETRY_S, max(0.1, until - time.monotonic())))

    def _lacking(self) -> str | None:
        """A sentence about the runs that lack something."""
        if not self.unreadable:
            return None
        rows = "; ".join(f"{row} (seed {seed}): {why}" for (row, seed), why in self.unreadable.items())
        return (
            f"everything is in MLflow but what files of these trainings no longer say: {rows}; put the files back and "
            "run orchestrator.sync, or train such a row anew by orchestrator.sweep with --only ROW --fresh"
        )

    def _rewrite_report(self) -> None:
        from orchestrator.report import write_report

        self.ledger.publish(write_report(self._judged, self.ledger).values())

    def abandon(self, patience: float = KILL_S) -> None:
        """After an interruption: what was running is KILLED within ``patience`` seconds, or by the next command."""
        until = time.monotonic() + patience
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience)
            if self._thread.is_alive():
                return  # it is in the middle of a request to a slow server
        last = threading.Thread(target=self._kill, name="killing", daemon=True)
        last.start()
        last.join(max(0.0, until - time.monotonic()))

    def _kill(self) -> None:
        with contextlib.suppress(Exception):
            self.ledger.check()
            # The states first; what curves lack the next command adds.
            for run in self._runs:
                if run.run_id is not None and run.status == "RUNNING":
                    self._set_status(run, "KILLED")
            self.client.update_run(self.store.parent, status="KILLED")
            self.push()

    # The thread

    def _follow(self) -> None:
        wait = POLL_S
        while not self._stop.wait(wait):
            try:
                self.push()
                wait, self._away = POLL_S, None
            except LeaseLostError:
                return  # another driver writes these runs now
            except Exception as error:
                # Training must not care. The next call begins with what MLflow has by then.
                self._note_away(error, "trying again, training goes on")
                wait = min(2 * wait, 30.0)

    def _note_away(self, error: Exception, what_now: str) -> None:
        if self._away is None:
            server = f"the tracking server {without_secrets(self.plan.tracking_uri)} is away ({reason(error)})"
            logging.getLogger(__name__).warning("%s; %s", error if of_storage(error) else server, what_now)
        self._away = reason(error)

    # Rows

    def _brought(self, run: RowRun) -> bool:
        """As ``_push_row``; a file that can't be read keeps no other row waiting."""
        key = run.row.row, run.row.seed
        self.ledger.check()
        try:
            done = self._push_row(run)
            self.unreadable.pop(key, None)
            return done
        except Exception as error:
            if not is_of_files(error):
                raise
            if key not in self.unreadable:
                logging.getLogger(__name__).warning("the run of %s (seed %d) lacks something: %s", *key, reason(error))
            self.unreadable[key] = reason(error)
            if run.run_id is not None:
                self._set_status(run, STATUS[self.ledger.record(run.row.identity, run.evaluations).state])
            return True

    def _push_row(self, run: RowRun) -> bool:
        """Brings one run to what the ledger says; False if the run that it builds on isn't there yet."""
        row = run.row
        record = self.ledger.record(row.identity, run.evaluations)
        if record.attempts == 0 or (not record.trained and record.holder not in (None, self.plan.key)):
            return True  # nothing to show, or another sweep's to show
        source = self._source(row, record)
        if source is not None:
            if source.run_id is None:
                return False
            if record.state in ("pending", "running"):
                return True
        if run.run_id is None:
            self._open_row(run, record)
        if run.complete:
            return True
        if source is None:
            self._push_curves(run, record)
        else:
            assert run.run_id is not None
            self.store.set_tags(run.run_id, {"source_run": source.run_id or "", **training_tags(record)})
        if record.state == "finished":
            self._log_result(run, record)
        if record.stopped is not None and run.run_id is not None and run.status != "KILLED":
            # As MLflow has Optuna's pruned trials: KILLED; the tag tells it from one that was interrupted.
            self.store.set_tags(
                run.run_id, {"stopped_early": f"{record.stopped['by']} at step {record.stopped['step']}"}
            )
        if source is None and record.state != "running" and run.status != STATUS[record.state]:
            assert run.run_id is not None
            artifacts.log_checkpoints(self.store, self.ledger, run.run_id, row.identity)
        self._set_status(run, STATUS[record.state])
        return True

    def _source(self, row: PlannedRow, record: Record) -> RowRun | None:
        """The run that has the curves of ``row``'s training; None if that is its own."""
        first = next(run for run in self._runs if run.row.identity == row.identity)
        by_us = record.first_sweep == self.plan.key
        named = [run for run in self._runs if run.row.identity == row.identity and run.row.row == record.first_row]
        owner = named[0] if by_us and named else first
        if owner.row is not row:
            return owner
        if (record.first_sweep, record.first_row) == (self.plan.key, row.row):
            return None
        return self._elsewhere(row, record)

    def _elsewhere(self, row: PlannedRow, record: Record) -> RowRun | None:
        """The run of the sweep, or of the row not selected now, that trained this; None if this store lacks it."""
        assert record.first_sweep is not None
        assert record.first_row is not None
        if row.identity not in self._foreign:
            run_id = self.ledger.run_id(record.first_sweep, record.first_row, row.seed)
            tags = {"identity": row.identity, "training": record.training or ""}
            found = self.store.verified(run_id, tags) or self.store.search_everywhere(
                record.training or "", tags | {"sweep": record.first_sweep, "row": record.first_row}
            )
            shown = evaluations_of(found.data.tags) if found else {}
            self._foreign[row.identity] = RowRun(row, shown, found.info.run_id if found else None, foreign=True)
        source = self._foreign[row.identity]
        if source.run_id is None:
            return None
        if not source.complete:
            # This sweep continues what the other had begun: its curves grow where they are.
            record = self.ledger.record(row.identity, source.evaluations)
            self._push_curves(source, record)
            if record.state == "finished":
                self._log_result(source, record)
            self._set_status(source, STATUS[record.state])
            source.complete = record.state == "finished"
        return source

    def _open_row(self, run: RowRun, record: Record) -> None:
        """Finds the row's run, or makes it, with its parameters."""
        row = run.row
        tags = {
            "mlflow.parentRunId": self.store.parent,
            "row": row.row,
            "seed": str(row.seed),
            "sweep": self.plan.key,
            "table": self.plan.name,
            "kind": "row",
        }
        found = self.store.verified(self.ledger.run_id(self.plan.key, row.row, row.seed), tags)
        found = found or next((other for other in self.store.search() if has(other, tags)), None)
        training = {"identity": row.identity, "training": record.training or "", **evaluation_tags(row.evaluations)}
        if found is not None and not has(found, training):
            # It showed another training or evaluation of this row: trained anew, or from an edited specification.
            # Metrics can't be taken out of a run, so it goes to MLflow's trash.
            self.client.delete_run(found.info.run_id)
            found = None
        if found is None:
            name = row.row if len({other.row.seed for other in self._runs}) == 1 else f"{row.row} seed {row.seed}"
            reused = self.ledger.reused_from(self.plan.key, row.row, row.seed, row.identity)
            found = self.store.create(name, tags | training | row_tags(self.plan, row, reused))
        run.run_id, run.status = found.info.run_id, found.info.status
        self.store.remember(found, row.row, row.seed)
        known = found.data.params
        self.store.log_params(run.run_id, {key: value for key, value in params(row).items() if key not in known})
        if "complete" not in found.data.tags:
            there = artifacts.present(self.store, run.run_id)
            kept = self._kept(record, "basis.json")
            artifacts.log_configuration(self.store, run.run_id, row.config.model_dump(mode="json"), kept, there)
        if inputs := data_inputs(row, found):
            self.client.log_inputs(run.run_id, datasets=inputs)
        run.marked = found.data.tags.get("complete") == record.training
        run.complete = run.marked and record.state == "finished" and run.status == "FINISHED" and not self._thorough

    def _push_curves(self, run: RowRun, record: Record) -> None:
        """New lines of the journal, as far as MLflow lacks them."""
        assert run.run_id is not None
        if run.reader is None:
            kinds = ("train", "evaluation", "system")
            run.reader = journal.Reader(record.journal, run.evaluations.get(""), kinds=kinds)
            run.logged = self.store.steps(run.run_id)
        if run.attempts != record.attempts:
            # The journal was cut: lines before the old end may be new ones.
            run.reader.rewind()
            self.store.set_tags(run.run_id, training_tags(record))
            run.attempts = record.attempts
        entries = run.reader.poll()
        points = [
            (key, value, entry["step"], entry["time"]) for entry in entries for key, value in entry["metrics"].items()
        ]
        self._log_points(run, points)
        for entry in entries:
            if entry["kind"] == "evaluation" and entry.get("evaluation"):
                folder = evaluation_folder(record.folder, entry["evaluation"])
                self._log_sheet(run, folder, entry["step"], entry["time"])

    def _log_sheet(self, run: RowRun, folder: Path, step: int, at: float, prefix: str = "") -> None:
        assert run.run_id is not None
        if run.there is None:
            run.there = artifacts.present(self.store, run.run_id)
        there = run.there
        artifacts.log_sheet(self.store, self.ledger, run.run_id, folder, step=step, at=at, prefix=prefix, there=there)

    def _log_points(self, run: RowRun, points: Iterable[Point]) -> None:
        assert run.run_id is not None
        self.store.log_metrics(run.run_id, run.new(points))

    def _log_result(self, run: RowRun, record: Record) -> None:
        """Final metrics, configuration, detections, per-class figures and the model; then the mark that it is all."""
        assert run.run_id is not None
        if run.reader is None:
            run.logged = self.store.steps(run.run_id)
        at = record.finished or time.time()
        self._log_points(run, [(key, value, record.iterations, at) for key, value in record.metrics.items()])
        # Without the mark an upload may have been cut short.
        there = artifacts.present(self.store, run.run_id) if run.marked else set()
        for prefix, place in record.evaluations.items():
            self._log_sheet(run, place, record.iterations, at, prefix)
            artifacts.log_evaluation(self.store, run.run_id, self.ledger.fetched(place), prefix, there)
        # The row's own, of which the training's may differ in the evaluation.
        mine = None if run.foreign else run.row.config.model_dump(mode="json")
        config, basis = (self._kept(record, name) for name in ("config.json", "basis.json"))
        artifacts.log_configuration(self.store, run.run_id, mine or config, basis, there)
        assert record.model is not None
        own, model = not run.foreign, self.ledger.fetched(record.model)
        artifacts.log_model(self.store, run.run_id, model, run.row, record, own=own, there=there)
        self.store.set_tags(run.run_id, {"complete": record.training or ""})
        run.complete = True

    def _kept(self, record: Record, name: str) -> Any:
        return read_json(self.ledger.fetched(record.folder / name))

    def _set_status(self, run: RowRun, status: str) -> None:
        assert run.run_id is not None
        if run.status != status:
            self.client.update_run(run.run_id, status=status)
            run.status = status
