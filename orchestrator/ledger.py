"""The truth about every training, in the storage: what is pending, running, finished or failed, and what it produced.

    STORAGE/trainings/IDENTITY/   config.json  status.json  journal.jsonl  worker.log  checkpoint_*/
                                  model/                                        (once it is finished)
                                  evaluations/KEY/detections.json, per_class.json, matches.npz, resampled.npz,
                                                  errors.npz, precision.json, predictions/step_*.webp
                                  curves.npz                                    (what figures need of the journal)
    STORAGE/sweeps/KEY/           lease.json  runs.json  looks.json  the report
    STORAGE/data/                 converted data sets

Every file is JSON that people can read, and every write is complete or not there. A write is refused that another
driver's take-over, or a later attempt, has made void. MLflow and Ray Tune keep nothing that can't be rebuilt from here.
Nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from detector.errors import InputError, UnreachableError
from orchestrator import curves, journal
from orchestrator.beside import BesideTrainings
from orchestrator.lease import Fence, LeaseLostError
from orchestrator.record import (
    Metrics,
    Record,
    checked,
    end_attempts,
    evaluations_of,
    finished_evaluations,
    new_status,
    read_record,
)
from orchestrator.storage import open_storage

Status = dict[str, Any]


class Ledger(BesideTrainings):
    """The ledger in ``storage``: a folder that all nodes share, or a URI.

    Whoever writes under a lease gives its ``fence``, and is refused by ``LeaseLostError`` once that is no longer the
    newest. Raises ``InputError`` for what can't be a storage.
    """

    def __init__(self, storage: str | Path, fence: Fence | None = None) -> None:
        self.place = open_storage(storage)
        self.storage = self.place.root
        """The folder; of an object store, what this node has of it."""
        self.fence = fence
        self._attempts: dict[str, int] = {}
        """Attempts that this process began, by identity."""

    # Places

    @property
    def data(self) -> Path:
        """Where generated data sets, and what is known of all, lie on this node."""
        return self.storage / "data"

    @property
    def stores(self) -> str | Path:
        """Where converted data sets lie."""
        return self.place.shared("data")

    def training(self, identity: str) -> Path:
        """Folder of a training."""
        return self.storage / "trainings" / identity

    # Reading

    def record(self, identity: str, evaluations: Mapping[str, str] | None = None) -> Record:
        """What is known of ``identity``; a pending record if nothing is.

        ``evaluations``: keys of those that are asked for, too, by the prefix of their metrics ("" or "test_"). Without
        any it is the training alone.
        """
        folder = self.training(identity)
        status = self._status(identity)
        if status is None:
            return Record(identity, folder)
        holder = status.get("holder")
        return read_record(
            identity,
            folder,
            status,
            evaluations=evaluations or {},
            newest=journal.last(self._journal(identity, status)),
            held=holder is not None and self.held(holder),
            now=time.time(),
        )

    def exists(self, identity: str) -> bool:
        """Whether anything is known of ``identity``."""
        return self._status(identity) is not None

    def journal_metrics(
        self, identity: str, keys: Iterable[str], evaluation: str | None = None
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        """Values of ``keys`` over the steps that have any: steps (n), and for each key n values or None.

        ``evaluation``: leaves out the figures of evaluations with another key.
        """
        status = self._status(identity)
        entries = journal.read(self._journal(identity, status), evaluation) if status else []
        return journal.series(entries, keys)

    def curves(self, identity: str) -> curves.Index:
        """Curves of a training, thinned; an empty index if nothing is known of it."""
        status = self._status(identity)
        return curves.Index.of(self._journal(identity, status)) if status else curves.Index()

    # Writing: the driver before and after, the trial and its rank 0 meanwhile; one at a time by the training's lock

    def claim(
        self,
        identity: str,
        *,
        sweep: str,
        row: str,
        seed: int,
        config: dict[str, Any],
        iterations: int,
        basis: dict[str, Any] | None = None,
    ) -> bool:
        """Makes ``sweep`` the one that trains or evaluates ``identity``; False if another live sweep is at it.

        Nor where the user has cancelled it. What had failed or was cut short is pending then. ``basis``: what the
        identity is a hash of, kept with a training that is new.
        """
        if self._status(identity) is None:
            self._write(identity, "config.json", config)
            if basis is not None:
                self._write(identity, "basis.json", basis)
        mine = True

        def change(status: Status | None) -> Status | None:
            nonlocal mine
            if status is None:
                status = new_status(identity, sweep=sweep, row=row, seed=seed, iterations=iterations)
            holder = status.get("holder")
            mine = not status.get("cancelled") and (holder in (None, sweep) or not self.held(holder))
            if not mine:
                return None
            if self.fence is not None and holder == sweep and (status.get("fence") or 0) > self.fence.number:
                raise LeaseLostError(f"the sweep {sweep} was taken over by another driver; this one writes no more")
            newest = journal.last(self._journal(identity, status))
            told = {"at": newest["time"], "step": newest["step"]} if newest else {"at": 0.0}
            end_attempts(status, "lost", **told)
            status.update(holder=sweep, fence=None if self.fence is None else self.fence.number, error=None)
            status.pop("stopping", None)
            if status["state"] != "finished":
                status["state"] = "pending"
            status["evaluations"] = finished_evaluations(status)
            return status

        self.update(self._key(identity), lambda found: change(self._checked(identity, found)))
        return mine

    def started(self, identity: str, *, node: str, from_step: int, hardware: dict[str, Any], **more: Any) -> bool:
        """An attempt begins; the journal is cut back to ``from_step``, and what earlier attempts add is refused.

        False, and nothing begins, where the training is to end: it was cancelled, or its driver stops. ``more`` is kept
        with the attempt: "nodes" of all workers, "revision" and "sources" of the code.
        """
        begins = True

        def change(status: Status) -> Status | None:
            nonlocal begins
            begins = not (status.get("cancelled") or status.get("stopping"))
            if not begins:
                return None
            now = time.time()
            end_attempts(status, "lost", at=now)
            status["attempts"].append(
                {"node": node, "started": now, "from_step": from_step, "hardware": hardware} | more
            )
            status["state"] = "running"
            self._attempts[identity] = len(status["attempts"])
            self.place.cut(self._journal_key(identity), from_step, len(status["attempts"]))
            return status

        self._change(identity, change)
        return begins

    def append(self, identity: str, *lines: bytes, durable: bool = False) -> None:
        """Adds :mod:`orchestrator.journal`'s lines; refused once another attempt has begun."""
        key, check = self._journal_key(identity), self._refuse_replaced(identity)
        self.place.append(key, b"".join(lines), guard=self._key(identity), check=check, durable=durable)

    def writing(self, identity: str) -> contextlib.AbstractContextManager[None]:
        """Inside, files of the training may change: no later attempt or driver begins before it is left.

        (In an object store one may: that is asked right before.) Refused once one has begun.
        """
        return self.place.guarded(self._key(identity), self._refuse_replaced(identity))

    def flush(self, identity: str) -> None:
        """Makes sure that the storage has what was appended: a checkpoint must not be ahead of it."""
        self.place.flush(self._journal_key(identity))

    def attempt_failed(self, identity: str, error: str, *, outcome: str = "failed", step: int | None = None) -> None:
        """The running attempt ended by ``error`` after ``step``, as "failed" or as "lost"; whether there is another is
        not decided here.
        """

        def change(status: Status) -> Status | None:
            if self._is_replaced(status):
                return None  # the running one is another's
            end_attempts(status, outcome, error=error, step=step)
            return status

        self._change(identity, change, given_back="leave")

    def finished(self, identity: str, checkpoint: Path, metrics: Metrics) -> None:
        """Success: the model in ``checkpoint`` moves beside the status, then the state changes."""

        def change(status: Status) -> Status:
            end_attempts(status, "finished", step=status["iterations"])
            status.update(state="finished", metrics=metrics, error=None, finished=time.time())
            status.pop("cancelled", None)
            return status

        self._may_write(identity)
        self.place.put(checkpoint / "model", f"trainings/{identity}/model")
        self._change(identity, change)

    def failed(self, identity: str, error: str | None = None) -> None:
        """Failure for good, by ``error``, or by what the last attempt said of itself."""

        def change(status: Status) -> Status | None:
            if status["state"] == "finished" or status.get("cancelled") or status.get("holder") is None:
                return None  # what its workers say while they are being ended is no failure
            said = [attempt["error"] for attempt in status["attempts"] if attempt.get("error")]
            sentence = (said[-1] if said else None) or error or "it ended without saying why"
            end_attempts(status, "failed", error=error)
            status.update(state="failed", error=sentence, finished=time.time(), holder=None)
            return status

        self._change(identity, change, given_back="leave")

    def stop(self, identity: str, **why: Any) -> None:
        """Asks whoever trains to save a checkpoint and end; ``why`` is kept with the training."""

        def change(status: Status) -> Status | None:
            going_on = status["state"] in ("pending", "running")
            return {**status, "stopping": time.time(), **why} if going_on else None

        self._change(identity, change, given_back="leave")

    def release(self, identity: str) -> None:
        """Nobody is at it any more: what isn't finished, failed or cancelled is pending, from its newest checkpoint."""

        def change(status: Status) -> Status:
            if status["state"] in ("pending", "running") or status.get("cancelled"):
                # As far as this machine knows: who is told to end has seconds.
                newest = journal.last(self.place.root / self._journal_key(identity))
                end_attempts(status, "interrupted", step=newest["step"] if newest else None)
                status["state"] = "failed" if status.get("cancelled") else "pending"
            status["evaluations"] = {
                key: one for key, one in evaluations_of(status).items() if one["state"] != "running"
            }
            status.update(holder=None)
            status.pop("stopping", None)
            return status

        self._change(identity, change, given_back="leave")

    def evaluation_started(self, identity: str, key: str, settings: dict[str, Any]) -> None:
        """The evaluation ``key`` of a finished training begins; ``settings`` say in words what the key is a hash of."""
        self._evaluation(identity, key, {"state": "running", "started": time.time(), "settings": settings})

    def evaluated(self, identity: str, key: str, results: Path, metrics: Metrics, settings: dict[str, Any]) -> None:
        """An evaluation's figures, and detections.json and per_class.json in the folder ``results``."""
        self._may_write(identity)
        target = f"trainings/{identity}/evaluations/{key}"
        for name in ("detections.json", "per_class.json"):
            self.place.put(results / name, f"{target}/{name}")
        self._evaluation(
            identity, key, {"state": "finished", "finished": time.time(), "settings": settings, "metrics": metrics}
        )

    def show(self, identity: str, key: str, folder: Path) -> None:
        """Keeps the files of ``folder`` beside an evaluation, whether or not it is the last one with this key."""
        self._may_write(identity)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = f"trainings/{identity}/evaluations/{key}/{path.relative_to(folder).as_posix()}"
                self.place.put(path, target)

    def evaluation_failed(self, identity: str, key: str, error: str) -> None:
        """An evaluation failed for good; the training stays finished."""

        def change(status: Status) -> Status | None:
            if status.get("holder") is None or key in finished_evaluations(status):
                return None  # as above
            known = evaluations_of(status).get(key, {})
            status["evaluations"] = evaluations_of(status) | {key: known | {"state": "failed", "error": error}}
            return status

        self._change(identity, change, given_back="leave")

    def _evaluation(self, identity: str, key: str, entry: dict[str, Any]) -> None:
        def change(status: Status) -> Status:
            status["evaluations"] = evaluations_of(status) | {key: entry}
            return status

        self._change(identity, change)

    def set_aside(self, identity: str) -> None:
        """Moves a training out of the way, so that it is trained anew; what it had stays in STORAGE/replaced/."""
        self.check()
        name = f"{identity}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.place.move(f"trainings/{identity}", f"replaced/{name}")

    def reused_from(self, sweep_key: str, row: str, seed: int, identity: str) -> str | None:
        """The row that trained ``identity``: None for the row itself, ROW in the same sweep, else KEY/ROW."""
        first = (self._status(identity) or {}).get("first")
        if not first or (first["sweep"], first["row"], first["seed"]) == (sweep_key, row, seed):
            return None
        return first["row"] if first["sweep"] == sweep_key else f"{first['sweep']}/{first['row']}"

    # Documents

    def _key(self, identity: str) -> str:
        return f"trainings/{identity}/status.json"

    def _journal_key(self, identity: str) -> str:
        return f"trainings/{identity}/journal.jsonl"

    def _journal(self, identity: str, status: Status) -> Path:
        begun = [attempt["from_step"] for attempt in status["attempts"]]
        return self.place.follow(self._journal_key(identity), begun)

    def _write(self, identity: str, name: str, document: dict[str, Any]) -> None:
        self.update(f"trainings/{identity}/{name}", lambda found: document)

    def _change(self, identity: str, change: Callable[[Status], Status | None], *, given_back: str = "refuse") -> None:
        """Changes what is known of ``identity``.

        Where the driver whose fence this is has given it back, that is refused, or, by ``given_back="leave"``, nothing.
        """

        def apply(found: Any | None) -> Status | None:
            status = self._checked(identity, found)
            if status is None:
                raise InputError(f"the storage {self.address} has no training {identity}; it was moved while it ran")
            try:
                self._refuse_stale(status)
            except LeaseLostError:
                if given_back == "leave":
                    return None
                raise
            return change(status)

        self.update(self._key(identity), apply)

    def _may_write(self, identity: str) -> None:
        """Raises ``LeaseLostError`` before anything large is written in vain."""
        self._change(identity, lambda status: None)

    def _refuse_replaced(self, identity: str) -> Callable[[Any | None], None]:
        """Raises ``LeaseLostError`` for a status by which another attempt or driver is at it."""

        def check(found: Any | None) -> None:
            status = self._checked(identity, found)
            if status is None or self._is_replaced(status):
                raise LeaseLostError(f"another attempt at the training {identity} has begun; this one writes no more")
            self._refuse_stale(status)
            self.check()

        return check

    def _is_replaced(self, status: Status) -> bool:
        begun = len(status["attempts"])
        return begun != self._attempts.get(status["identity"], begun)

    def _refuse_stale(self, status: Status) -> None:
        """Raises ``LeaseLostError`` unless the training is held under this ledger's fence, or under an earlier one."""
        mine = self.fence
        if mine is None or (status.get("holder") == mine.sweep and (status.get("fence") or 0) <= mine.number):
            return
        raise LeaseLostError(
            f"the training {status['identity']} is no longer held by this driver of the sweep {mine.sweep}; it writes "
            "no more"
        )

    def _status(self, identity: str) -> Status | None:
        key = self._key(identity)
        try:
            return self._checked(identity, self.place.read(key))
        except ValueError:
            raise InputError(
                f"{self.address}/{key} is not the JSON that was written there; move the folder away to train it anew"
            ) from None
        except OSError as error:
            raise UnreachableError(f"{self.address}/{key} can't be read ({error.strerror})") from None

    def _checked(self, identity: str, status: Any | None) -> Status | None:
        return checked(status, f"{self.address}/{self._key(identity)}")
