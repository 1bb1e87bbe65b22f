"""The truth about every training, in the storage: what is pending, running, finished or failed, and what it produced.

    STORAGE/trainings/IDENTITY/   config.json  status.json  journal.jsonl  worker.log  checkpoint_*/
                                  model/  detections.json  per_class.json      (once it is finished)
    STORAGE/sweeps/KEY/           lease.json  runs.json  the report
    STORAGE/data/                 converted data sets

Every file is JSON that people can read, and every write is complete or not there. MLflow and Ray Tune keep nothing that
can't be rebuilt from here. Nothing heavy is imported.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.errors import InputError, UnreachableError
from orchestrator import journal, lease
from orchestrator.files import locked, read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """What is known of one training."""

    identity: str
    folder: Path
    state: str = "pending"
    """"pending", "running", "finished" or "failed"; one whose driver died is pending again."""
    step: int = 0
    """Completed iterations, as far as the journal says."""
    iterations: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    """Final metrics; empty until it is finished."""
    error: str | None = None
    """Why it failed, in one sentence."""
    started: float | None = None
    """Unix seconds of the first attempt."""
    finished: float | None = None
    """Unix seconds of success or of the last failure."""
    seconds: float | None = None
    """Time spent in all attempts."""
    history: tuple[dict[str, Any], ...] = ()
    """Attempts: node, started, ended, from_step, outcome, error."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """Of the newest attempt: device, threads, workers, versions."""
    holder: str | None = None
    """Key of the sweep that is to train it now."""
    training: str | None = None
    """Unique name of this training; another one after `--fresh`."""
    first_sweep: str | None = None
    """Key of the sweep that trained it first,"""
    first_row: str | None = None
    """the row there,"""
    first_seed: int | None = None
    """and the seed."""

    @property
    def attempts(self) -> int:
        """How often it was started."""
        return len(self.history)

    @property
    def journal(self) -> Path:
        """Metrics over steps, one JSON object a line."""
        return self.folder / "journal.jsonl"

    @property
    def model(self) -> Path | None:
        """Folder for ``detector.load``, once it is finished."""
        return self.folder / "model" if self.state == "finished" else None


class Ledger:
    """The ledger in ``storage``, a folder that all nodes share.

    Raises ``InputError`` for a storage that is not a folder's path.
    """

    def __init__(self, storage: str | Path) -> None:
        if "://" in str(storage):
            raise InputError(
                f"--storage is {str(storage).split('://')[0]}://..., but the storage must be a folder that every node "
                "sees under one path, such as /mnt/shared/detsweep"
            )
        self.storage = Path(os.path.abspath(storage))

    # Places

    @property
    def data(self) -> Path:
        """Where converted and generated data sets lie."""
        return self.storage / "data"

    def training(self, identity: str) -> Path:
        """Folder of a training."""
        return self.storage / "trainings" / identity

    def sweep(self, key: str) -> Path:
        """Folder of a sweep."""
        return self.storage / "sweeps" / key

    def prepare(self) -> None:
        """Makes the folders. Raises ``UnreachableError`` if the storage can't be written."""
        try:
            for name in ("data", "sweeps", "trainings"):
                (self.storage / name).mkdir(parents=True, exist_ok=True)
            probe = self.storage / f".writable-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UnreachableError(
                f"the storage {self.storage} can't be written ({error.strerror}); name a folder of yours with --storage"
            ) from None

    # Reading

    def record(self, identity: str) -> Record:
        """What is known of ``identity``; a pending record if nothing is."""
        folder = self.training(identity)
        status = self._status(identity)
        if status is None:
            return Record(identity, folder)
        state, now = status["state"], time.time()
        if state == "running" and not lease.held(self.sweep(status.get("holder") or "-")):
            state = "pending"
        newest = journal.last(folder / "journal.jsonl")
        step = status["iterations"] if state == "finished" else min(newest["step"] if newest else 0, _limit(status))
        seen = newest["time"] if newest else None
        first = status.get("first") or {}
        return Record(
            identity=identity,
            folder=folder,
            state=state,
            step=step,
            iterations=status["iterations"],
            metrics=status.get("metrics") or {},
            error=status.get("error") if state == "failed" else None,
            started=status["attempts"][0]["started"] if status["attempts"] else None,
            finished=status.get("finished"),
            seconds=_spent(status["attempts"], now if state == "running" else seen),
            history=tuple(status["attempts"]),
            hardware=status["attempts"][-1].get("hardware") or {} if status["attempts"] else {},
            holder=status.get("holder"),
            training=status["training"],
            first_sweep=first.get("sweep"),
            first_row=first.get("row"),
            first_seed=first.get("seed"),
        )

    def journal_metrics(self, identity: str, keys: Iterable[str]) -> tuple[list[int], dict[str, list[float | None]]]:
        """Values of ``keys`` over the steps that have any: steps (n), and for each key n values or None."""
        return journal.series(journal.read(self.training(identity) / "journal.jsonl"), keys)

    # Writing: the driver before and after, the trial and its rank 0 meanwhile; one at a time by the training's lock

    def claim(self, identity: str, *, sweep: str, row: str, seed: int, config: dict[str, Any], iterations: int) -> bool:
        """Makes ``sweep`` the one that trains ``identity``; False if another live sweep is at it."""
        folder = self.training(identity)
        with self._lock(identity):
            status = self._status(identity)
            if status is None:
                status = {
                    "format": FORMAT,
                    "identity": identity,
                    "training": uuid.uuid4().hex,
                    "state": "pending",
                    "iterations": iterations,
                    "first": {"sweep": sweep, "row": row, "seed": seed},
                    "attempts": [],
                }
                write_json(folder / "config.json", config)
            elif (holder := status.get("holder")) not in (None, sweep) and lease.held(self.sweep(holder)):
                return False
            for attempt in status["attempts"]:
                if "outcome" not in attempt:
                    newest = journal.last(folder / "journal.jsonl")
                    attempt.update(outcome="lost", ended=max(attempt["started"], newest["time"] if newest else 0.0))
            status.update(holder=sweep, state="pending", error=None)
            write_json(folder / "status.json", status)
            return True

    def started(self, identity: str, *, node: str, from_step: int, hardware: dict[str, Any]) -> None:
        """An attempt begins; the journal is cut back to ``from_step``."""
        with self._lock(identity):
            status = self._known(identity)
            now = time.time()
            for attempt in status["attempts"]:
                if "outcome" not in attempt:
                    attempt.update(outcome="lost", ended=now)
            status["attempts"].append({"node": node, "started": now, "from_step": from_step, "hardware": hardware})
            status["state"] = "running"
            journal.cut(self.training(identity) / "journal.jsonl", from_step)
            write_json(self.training(identity) / "status.json", status)

    def attempt_failed(self, identity: str, error: str) -> None:
        """The running attempt ended by ``error``; whether there is another is not decided here."""
        with self._lock(identity):
            status = self._known(identity)
            _end(status, "failed", error)
            write_json(self.training(identity) / "status.json", status)

    def finished(self, identity: str, checkpoint: Path, metrics: dict[str, float | None]) -> None:
        """Success: the model and the results in ``checkpoint`` move beside the status, then the state changes."""
        folder = self.training(identity)
        for name in ("model", "detections.json", "per_class.json"):
            if (checkpoint / name).exists():
                _copy(checkpoint / name, folder / name)
        with self._lock(identity):
            status = self._known(identity)
            _end(status, "finished")
            status.update(state="finished", metrics=metrics, error=None, finished=time.time(), holder=None)
            write_json(folder / "status.json", status)

    def failed(self, identity: str, error: str | None = None) -> None:
        """Failure for good, by ``error``, or by what the last attempt said of itself."""
        with self._lock(identity):
            status = self._known(identity)
            if status["state"] == "finished" or status.get("holder") is None:
                return  # it was given back meanwhile: what its workers say while they are being ended is no failure
            said = [attempt["error"] for attempt in status["attempts"] if attempt.get("error")]
            sentence = (said[-1] if said else None) or error or "it ended without saying why"
            _end(status, "failed", error)
            status.update(state="failed", error=sentence, finished=time.time(), holder=None)
            write_json(self.training(identity) / "status.json", status)

    def interrupted(self, identity: str) -> None:
        """Its driver was told to stop: it is pending, to be continued from its newest checkpoint."""
        with self._lock(identity):
            status = self._known(identity)
            if status["state"] in ("pending", "running"):
                _end(status, "interrupted")
                status.update(state="pending", holder=None)
                write_json(self.training(identity) / "status.json", status)

    def set_aside(self, identity: str) -> None:
        """Moves a training out of the way, so that it is trained anew; what it had stays in STORAGE/replaced/."""
        folder = self.training(identity)
        if folder.exists():
            target = self.storage / "replaced" / f"{identity}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, target)

    # MLflow's run ids, so that a row's run is found again

    def runs(self, key: str) -> dict[str, Any]:
        """``{"parent": run id, "rows": {"ROW": {"SEED": run id}}}`` of a sweep, as far as known."""
        try:
            found = read_json(self.sweep(key) / "runs.json")
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {"parent": None, "rows": {}}

    def run_id(self, sweep_key: str, row: str, seed: int) -> str | None:
        """MLflow run of a row and seed."""
        return self.runs(sweep_key)["rows"].get(row, {}).get(str(seed))

    def parent_run_id(self, sweep_key: str) -> str | None:
        """MLflow run of the sweep."""
        return self.runs(sweep_key)["parent"]

    def remember_run(self, sweep_key: str, run_id: str, row: str | None = None, seed: int | None = None) -> None:
        """Stores the parent's run id, or that of a row and seed."""
        with locked(self.sweep(sweep_key) / ".runs.lock"):
            runs = self.runs(sweep_key)
            if row is None:
                runs["parent"] = run_id
            else:
                runs["rows"].setdefault(row, {})[str(seed)] = run_id
            write_json(self.sweep(sweep_key) / "runs.json", runs)

    def reused_from(self, sweep_key: str, row: str, seed: int, identity: str) -> str | None:
        """The row that trained ``identity``: None for the row itself, ROW in the same sweep, else KEY/ROW."""
        first = (self._status(identity) or {}).get("first")
        if not first or (first["sweep"], first["row"], first["seed"]) == (sweep_key, row, seed):
            return None
        return first["row"] if first["sweep"] == sweep_key else f"{first['sweep']}/{first['row']}"

    def _lock(self, identity: str) -> AbstractContextManager[None]:
        return locked(self.training(identity) / ".lock")

    def _status(self, identity: str) -> dict[str, Any] | None:
        path = self.training(identity) / "status.json"
        try:
            status = read_json(path)
        except ValueError:
            raise InputError(
                f"{path} is not the JSON that was written there; move the folder away to train it anew"
            ) from None
        except OSError as error:
            raise UnreachableError(f"{path} can't be read ({error.strerror})") from None
        if status is not None and status.get("format") != FORMAT:
            raise InputError(
                f"{path} has format {status.get('format')}, but this version reads {FORMAT}; use the version that "
                "wrote it, or move the folder away to train it anew"
            )
        return status

    def _known(self, identity: str) -> dict[str, Any]:
        status = self._status(identity)
        if status is None:
            raise InputError(f"the storage {self.storage} has no training {identity}; it was moved while it ran")
        return status


def _limit(status: dict[str, Any]) -> int:
    return status["iterations"] if status["iterations"] else 1 << 62


def _end(status: dict[str, Any], outcome: str, error: str | None = None) -> None:
    for attempt in status["attempts"]:
        if "outcome" not in attempt:
            attempt.update(outcome=outcome, ended=time.time())
            if error:
                attempt["error"] = error


def _spent(attempts: list[dict[str, Any]], until: float | None) -> float | None:
    """Seconds in all attempts; one without an end lasted to ``until``."""
    if not attempts:
        return None
    return sum(max(0.0, (a.get("ended") or until or a["started"]) - a["started"]) for a in attempts)


def _copy(source: Path, target: Path) -> None:
    """Copies a file or folder to ``target``, which is whole or not there."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    if source.is_dir():
        shutil.copytree(source, temporary)
    else:
        shutil.copy2(source, temporary)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(temporary, target)
