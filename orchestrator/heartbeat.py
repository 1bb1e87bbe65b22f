"""Signs of life of a training's workers, and the watch over them.

Each worker's process says in a document of its own how often it has made progress: an iteration, a batch of an
evaluation, data being opened. A worker that is frozen, or waits for one that is, says nothing new. Ray notices a
process that died, but not one that stands still.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import psutil

from orchestrator.storage import Storage

log = logging.getLogger(__name__)


def interval(timeout: float) -> float:
    """Seconds between two signs, and between two looks at them: both together are a tenth of ``timeout``."""
    return min(5.0, timeout / 20)


class Heartbeat:
    """A worker's signs, as a context manager. Written by a thread, which a frozen process has no more than a loop."""

    def __init__(self, storage: Storage, identity: str, launch: str, rank: int, timeout: float) -> None:
        self._storage, self._key = storage, f"{_folder(identity)}/{rank}.json"
        self._interval = interval(timeout)
        self._document: dict[str, Any] = {"launch": launch, "rank": rank, "step": 0, "count": 0, "done": False}
        self._document |= {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": socket.gethostname()}
        self._document["node"] = _node()
        self._written = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def step(self) -> int:
        """Completed iterations."""
        return self._document["step"]

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._document["done"] = True
        self._write()

    def beat(self, step: int | None = None) -> None:
        """Progress was made; ``step`` iterations are complete."""
        if step is not None:
            self._document["step"] = step
        self._document["count"] += 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """What is done inside takes its time and waits for no other worker."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(self._interval):
                self.beat()

        thread = threading.Thread(target=go_on, name="busy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self) -> None:
        while True:
            if self._document["count"] != self._written:
                self._written = self._document["count"]
                self._write()
            if self._stop.wait(self._interval):
                return

    def _write(self) -> None:
        # A storage that can't be written is for the checkpoint to say.
        with contextlib.suppress(Exception):
            self._storage.update(self._key, lambda _: dict(self._document))


class Watch:
    """Ends all workers of a launch, as a context manager, when none has made progress for ``timeout`` seconds.

    Those that are done don't count; nor is anything ended before the first has begun, which may have to wait for room.
    """

    def __init__(self, storage: Storage, identity: str, launch: str, timeout: float) -> None:
        self._storage, self._identity, self._launch, self._timeout = storage, identity, launch, timeout
        self.stalled: str | None = None
        """What was seen, in one sentence, once the workers were ended."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        counts: dict[int, int] = {}
        changed = time.monotonic()
        while not self._stop.wait(interval(self._timeout)):
            try:
                workers = read_signs(self._storage, self._identity, self._launch)
            except Exception:  # the storage is away for a moment: nothing is known, so nothing is ended
                changed = time.monotonic()
                continue
            now = {worker["rank"]: worker["count"] for worker in workers if not worker["done"]}
            if now != counts or not now:
                counts, changed = now, time.monotonic()
            elif time.monotonic() - changed > 0.9 * self._timeout:
                self._end(workers)
                return

    def _end(self, workers: list[dict[str, Any]]) -> None:
        step = max(worker["step"] for worker in workers)
        found = [f"worker {w['rank']} (process {w['pid']} on {w['host']}) was {how}" for w, how in end(workers)]
        frozen = [words for words in found if words.endswith("stopped")] or found
        self.stalled = (
            f"no iteration was completed for {self._timeout:g} s after step {step}: {', '.join(frozen)}; where "
            "iterations take that long, raise resources.stall_timeout_s"
        )
        log.warning("%s", self.stalled)


def read_signs(storage: Storage, identity: str, launch: str | None) -> list[dict[str, Any]]:
    """The newest signs of the workers of a launch, or of any (None), by rank."""
    folder = _folder(identity)
    names = [name for name in storage.names(folder) if name.endswith(".json") and not name.startswith(".")]
    found = [storage.read(f"{folder}/{name}") for name in names]
    return sorted((one for one in found if one and launch in (None, one["launch"])), key=lambda one: one["rank"])


def end(workers: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Kills the processes of ``workers``, each by a task on its own node; how each was found, in a word."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(kill)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(worker["node"], soft=False)).remote(
            worker["pid"], worker["created"]
        )
        for worker in workers
    ]
    found = []
    for worker, answer in zip(workers, asked, strict=True):
        try:
            found.append((worker, ray.get(answer, timeout=60)))
        except Exception:  # its node doesn't answer either; Ray gives that one up by itself
            found.append((worker, "out of reach"))
    return found


def kill(pid: int, created: float) -> str:
    """Ends a process of this machine, unless another one has its id by now; how it was found."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) > 2:
            return "gone"
        status = process.status()
        process.kill()
    except psutil.NoSuchProcess:
        return "gone"
    return "stopped" if status == psutil.STATUS_STOPPED else "waiting"


def _folder(identity: str) -> str:
    return f"trainings/{identity}/workers"


def _node() -> str | None:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
