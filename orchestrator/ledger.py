"""The truth about every training, in the storage: what is pending, running, finished or failed, and what it produced.

    STORAGE/trainings/IDENTITY/   config.json  status.json  journal.jsonl  worker.log  checkpoint_*/
                                  model/                                        (once it is finished)
                                  evaluations/KEY/detections.json, per_class.json
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
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from detector.errors import InputError, UnreachableError
from orchestrator import journal, lease
from orchestrator.files import locked, read_json, write_json
from orchestrator.record import Metrics, Record, evaluation_folder, read_record

FORMAT = 1


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

    def record(self, identity: str, evaluations: Mapping[str, str] | None = None) -> Record:
        """What is known of ``identity``; a pending record if nothing is.

        ``evaluations``: keys of those that are asked for, too, by the prefix of their metrics ("" or "test_"). Without
        any it is the training alone.
        """
        folder = self.training(identity)
        status = self._status(identity)
        if status is None:
            return Record(identity, folder)
        return read_record(
            identity,
            folder,
            status,
            evaluations=evaluations or {},
            newest=journal.last(folder / "journal.jsonl"),
            held=lease.held(self.sweep(status.get("holder") or "-")),
            now=time.time(),
        )

    def journal_metrics(
        self, identity: str, keys: Iterable[str], evaluation: str | None = None
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        """Values of ``keys`` over the steps that have any: steps (n), and for each key n values or None.

        ``evaluation``: leaves out the figures of evaluations with another key.
        """
        return journal.series(journal.read(self.training(identity) / "journal.jsonl", evaluation), keys)

    # Writing: the driver before and after, the trial and its rank 0 meanwhile; one at a time by the training's lock

    def claim(self, identity: str, *, sweep: str, row: str, seed: int, config: dict[str, Any], iterations: int) -> bool:
        """Makes ``sweep`` the one that trains or evaluates ``identity``; False if another live sweep is at it.

        What had failed or was cut short is pending then.
        """
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
            status.update(holder=sweep, error=None)
            if status["state"] != "finished":
                status["state"] = "pending"
            status["evaluations"] = _finished(status)
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

    def finished(self, identity: str, checkpoint: Path, metrics: Metrics) -> None:
        """Success: the model in ``checkpoint`` moves beside the status, then the state changes."""
        folder = self.training(identity)
        if (checkpoint / "model").exists():
            _copy(checkpoint / "model", folder / "model")
        with self._lock(identity):
            status = self._known(identity)
            _end(status, "finished")
            status.update(state="finished", metrics=metrics, error=None, finished=time.time())
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

    def release(self, identity: str) -> None:
        """Nobody is at it any more: what isn't finished or failed is pending, a training from its newest checkpoint."""
        with self._lock(identity):
            status = self._known(identity)
            if status["state"] in ("pending", "running"):
                _end(status, "interrupted")
                status["state"] = "pending"
            status["evaluations"] = {key: one for key, one in _evaluations(status).items() if one["state"] != "running"}
            status["holder"] = None
            write_json(self.training(identity) / "status.json", status)

    def evaluation_started(self, identity: str, key: str, settings: dict[str, Any]) -> None:
        """The evaluation ``key`` of a finished training begins; ``settings`` say in words what the key is a hash of."""
        self._evaluation(identity, key, {"state": "running", "started": time.time(), "settings": settings})

    def evaluated(self, identity: str, key: str, results: Path, metrics: Metrics, settings: dict[str, Any]) -> None:
        """An evaluation's figures, and detections.json and per_class.json in the folder ``results``."""
        target = evaluation_folder(self.training(identity), key)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("detections.json", "per_class.json"):
            if (results / name).exists():
                _copy(results / name, target / name)
        self._evaluation(
            identity, key, {"state": "finished", "finished": time.time(), "settings": settings, "metrics": metrics}
        )

    def evaluation_failed(self, identity: str, key: str, error: str) -> None:
        """An evaluation failed for good; the training stays finished."""
        with self._lock(identity):
            status = self._known(identity)
            if status.get("holder") is None or key in _finished(status):
                return  # as above
            known = _evaluations(status).get(key, {})
            status["evaluations"] = _evaluations(status) | {key: known | {"state": "failed", "error": error}}
            write_json(self.training(identity) / "status.json", status)

    def _evaluation(self, identity: str, key: str, entry: dict[str, Any]) -> None:
        with self._lock(identity):
            status = self._known(identity)
            status["evaluations"] = _evaluations(status) | {key: entry}
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


def _evaluations(status: dict[str, Any]) -> dict[str, Any]:
    return status.get("evaluations") or {}


def _finished(status: dict[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in _evaluations(status).items() if one["state"] == "finished"}


def _end(status: dict[str, Any], outcome: str, error: str | None = None) -> None:
    for attempt in status["attempts"]:
        if "outcome" not in attempt:
            attempt.update(outcome=outcome, ended=time.time())
            if error:
                attempt["error"] = error


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
