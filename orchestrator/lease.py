"""One driver a sweep: a document that names who holds it, kept fresh by a heartbeat, with a number that only grows.

The number is what keeps a driver from writing that was stopped, was taken for dead and goes on: whoever writes to the
ledger shows it (:class:`Fence`), and the ledger refuses all but the newest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator.storage import Folder, Storage

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A holder whose heartbeat is older counts as dead."""


class SweepHeldError(Exception):
    """Another driver holds the sweep. Commands exit with status 5."""


class LeaseLostError(SweepHeldError):
    """Another driver has taken over meanwhile, and this one may write no more."""


@dataclass(frozen=True)
class Fence:
    """What a driver and its workers show when they write."""

    sweep: str
    """Key of the sweep that was held,"""
    number: int
    """for the how-many-th time."""


class Lease:
    """The right to run the sweep ``key`` of ``storage``, as a context manager.

    Raises ``SweepHeldError``, naming the holder, if another live driver has it. A dead holder is replaced: one on this
    host whose process is gone, or any whose heartbeat is older than ``STALE_S``.
    """

    def __init__(self, storage: Storage | Path, key: str = "") -> None:
        self._storage, self._folder = _place(storage, key)
        self.lost = threading.Event()
        """Set once another driver has taken over."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._mine: dict[str, Any] = {}

    @property
    def fence(self) -> Fence:
        """What writes made under this lease show."""
        return Fence(self._folder.rpartition("/")[2], self._mine["number"])

    def __enter__(self) -> Lease:
        self._storage.update(_document(self._folder), self._take)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # The number stays: the next holder must have another.
        with contextlib.suppress(LeaseLostError):
            self._storage.update(_document(self._folder), lambda found: self._still(found) | {"released": time.time()})

    def _take(self, found: Any | None) -> dict[str, Any]:
        holder = _holder(found)
        if holder is not None and _alive(holder, self._storage, self._folder):
            raise SweepHeldError(_refusal(holder, self._storage, self._folder))
        now = time.time()
        self._mine = {
            "number": (found.get("number", 0) if isinstance(found, dict) else 0) + 1,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "namespace": _namespace(),
            "boot": _boot(),
            "process_started": _process_started(os.getpid()),
            "started": now,
            "heartbeat": now,
        }
        return self._mine

    def _still(self, found: Any | None) -> dict[str, Any]:
        """What is there, if that is still this lease; raises ``LeaseLostError`` otherwise."""
        refuse_lost(found, self.fence)
        return self._mine

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._mine = self._mine | {"heartbeat": time.time()}
                self._storage.update(_document(self._folder), self._still)
            except LeaseLostError:
                self.lost.set()
                return
            except Exception:
                # A disk that is full for a moment must not end the sweep; the next beat tries again.
                continue


def refuse_lost(found: Any | None, fence: Fence) -> None:
    """Raises ``LeaseLostError`` unless ``fence`` is that of the lease document ``found``."""
    if not isinstance(found, dict) or found.get("number") != fence.number:
        holder = _holder(found)
        by = f" by process {holder['pid']} on {holder['host']}" if holder else ""
        raise LeaseLostError(
            f"the sweep {fence.sweep} was taken over{by}, since this driver gave no sign of life for a while; it "
            "writes no more"
        )


def check_fence(storage: Storage, fence: Fence) -> None:
    """Raises ``LeaseLostError`` if another driver has taken over since ``fence`` was given."""
    refuse_lost(_read(*_place(storage, fence.sweep)), fence)


def refuse_held(storage: Storage | Path, key: str = "") -> None:
    """Raises ``SweepHeldError``, naming the holder, if a live driver runs the sweep ``key``."""
    storage, folder = _place(storage, key)
    holder = _holder(_read(storage, folder))
    if holder is not None and _alive(holder, storage, folder):
        raise SweepHeldError(_refusal(holder, storage, folder))


def held(storage: Storage | Path, key: str = "") -> bool:
    """Whether a live driver runs the sweep ``key``."""
    storage, folder = _place(storage, key)
    holder = _holder(_read(storage, folder))
    return holder is not None and _alive(holder, storage, folder)


def _place(storage: Storage | Path, key: str) -> tuple[Storage, str]:
    """A storage and the sweep's folder in it; a path is that of such a folder."""
    if isinstance(storage, Path):
        return Folder(storage.parent), storage.name
    return storage, f"sweeps/{key}"


def _document(folder: str) -> str:
    return f"{folder}/lease.json"


def _read(storage: Storage, folder: str) -> Any | None:
    try:
        return storage.read(_document(folder))
    except ValueError:
        return None


def _holder(found: Any | None) -> dict[str, Any] | None:
    """Who has the lease, unless it was given back."""
    known = isinstance(found, dict) and {"host", "pid", "heartbeat"} <= found.keys() and "released" not in found
    return found if known else None


def _refusal(holder: dict[str, Any], storage: Storage, folder: str) -> str:
    return (
        f"the sweep in {storage.address}/{folder} is already being run by process {holder['pid']} on {holder['host']}, "
        f"seen {max(0, time.time() - holder['heartbeat']):.0f} s ago; wait for it, watch it with "
        "`python -m orchestrator.status`, or end that process first"
    )


def _alive(holder: dict[str, Any], storage: Storage, folder: str) -> bool:
    if (holder["host"], holder.get("namespace"), holder.get("boot")) == (socket.gethostname(), _namespace(), _boot()):
        # A process id is used again after a restart: the time when the process began tells the two apart.
        started = _process_started(holder["pid"])
        there = started is not None and abs(started - (holder.get("process_started") or started)) < 2.0
        return there and time.time() - holder["heartbeat"] < STALE_S
    # Clocks of two hosts may differ by more than a heartbeat's age; the storage has one for both.
    age = storage.age(_document(folder))
    return age is not None and age < STALE_S


def _namespace() -> str | None:
    """Containers of one host may share its name, but not its process ids."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _boot() -> str | None:
    """Machines may share a name, such as "localhost", and outside of containers all have the same namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _process_started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
