"""Files that are complete or not there: JSON by atomic replacement, and an exclusive lock between processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detector.errors import UnreachableError

PATIENCE_S = 60.0
"""How long a lock is waited for: who holds it longer was stopped in the middle of a write."""


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` to ``path`` as readable JSON: through a temporary neighbour, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_json(path: Path) -> Any | None:
    """The value in ``path``; None if there is no such file.

    Raises ``ValueError`` for a file that isn't JSON: it was not written by :func:`write_json`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return json.loads(text)


@contextlib.contextmanager
def locked(path: Path, patience: float | None = PATIENCE_S) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` (made if need be), against threads and processes of all hosts.

    Raises ``UnreachableError`` if it isn't to be had within ``patience`` seconds; None waits for ever.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise UnreachableError(
                    f"another process has held {path} for more than {patience:g} s; see whether one that writes there "
                    "was stopped, and end it"
                ) from None
            time.sleep(0.01)
