"""Where the ledger's documents lie: a folder that all nodes share, or an object store.

A key is a path below the storage, such as ``trainings/IDENTITY/status.json``. A document is JSON that people can read,
whole or not there. ``update`` is the only way in which a document is changed that several may write: read, change and
write are one step, or it begins again.

On a folder that is a lock and a rename. On an object store, which has neither, it is a conditional write: see
:mod:`orchestrator.objects`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from detector.durable import sync, sync_tree
from detector.errors import InputError, UnreachableError
from orchestrator import journal
from orchestrator.files import locked, read_json, write_json

Change = Callable[[Any | None], Any | None]
"""From what is there (None: nothing) to what shall be (None: the same). Raises to refuse; may be called again."""
Update = Callable[[str, Change], None]
"""Replaces the document with a key: ``Storage.update``, or the ledger's, which asks first who may."""
SCHEMES = ("s3",)


class Storage(Protocol):
    """What the ledger asks of a place."""

    address: str
    """The folder's path, or the URI without anything secret."""
    root: Path
    """The folder itself; of an object store, what this node has of it."""
    pause: float
    """Seconds between two looks at what changes."""

    def prepare(self) -> None:
        """Makes what is needed; raises ``UnreachableError`` if it can't be written, or not as the ledger needs it."""

    def read(self, key: str) -> Any | None:
        """The document; None if there is none. Raises ``ValueError`` where it isn't JSON."""

    def update(self, key: str, change: Change) -> None:
        """Replaces the document by what ``change`` makes of it, alone against all other writers."""

    def guarded(self, key: str, check: Callable[[Any | None], None]) -> contextlib.AbstractContextManager[None]:
        """A context that the document doesn't change in, unless ``check`` refuses it by raising."""

    def age(self, key: str) -> float | None:
        """Seconds since the document was written, by the storage's own clock; None if there is none."""

    def names(self, folder: str) -> list[str]:
        """What lies in ``folder``, by name."""

    def put(self, source: Path, key: str) -> None:
        """Copies a file or folder there, if it exists; whole or not there."""

    def shared(self, key: str) -> str | Path:
        """A folder's path, or its URI for what is read by ``pyarrow.fs``."""

    def fetch(self, key: str) -> Path:
        """Where a file or folder that no longer changes can be read on this node."""

    def move(self, folder: str, target: str) -> None:
        """Moves a folder, if it is there."""

    def append(self, key: str, lines: bytes, *, guard: str, check: Callable[[Any | None], None], durable: bool) -> None:
        """Adds to a journal, unless ``check`` refuses the document ``guard`` by raising."""

    def cut(self, key: str, step: int, attempt: int) -> None:
        """Drops what a journal has after ``step``; from now on this node adds to it as the ``attempt``-th writer."""

    def flush(self, key: str) -> None:
        """Makes sure that what was appended here is in the storage."""

    def follow(self, key: str, attempts: list[int]) -> Path:
        """A journal as a file on this node; ``attempts`` are the steps that each of its writers began at."""


def open_storage(place: str | Path) -> Storage:
    """The storage at a folder's path, or at a URI. Raises ``InputError`` where it can't be one."""
    text = str(place)
    if "://" not in text:
        return Folder(Path(os.path.abspath(Path(text).expanduser())))
    check_scheme(text)
    from orchestrator.objects import ObjectStore

    return ObjectStore(text)


def check_scheme(address: str, origin: str = "--storage") -> None:
    """Raises ``InputError`` for a URI whose kind of store can't hold a ledger."""
    scheme = address.split("://")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"{origin} is a {scheme}:// address, but a ledger needs writes that succeed only where nobody else has "
            "written, which is known here of s3:// alone; name a bucket there, or a folder that every node sees under "
            "one path, such as /mnt/shared/detsweep"
        )


def mirror(address: str) -> Path:
    """Where this node keeps what it has read of an object store."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "detsweep" / hashlib.sha256(address.encode()).hexdigest()[:16]


class Folder:
    """A folder that all nodes see under one path: changes by lock and rename."""

    pause = 0.5

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, str(root)

    def prepare(self) -> None:
        """Makes the folders."""
        try:
            for name in ("data", "sweeps", "trainings"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UnreachableError(
                f"the storage {self.root} can't be written ({error.strerror}); name a folder of yours with --storage"
            ) from None

    def read(self, key: str) -> Any | None:
        """The document."""
        return read_json(self.root / key)

    def update(self, key: str, change: Change) -> None:
        """Under the document's lock."""
        path = self.root / key
        with locked(_lock(path)):
            new = change(read_json(path))
            if new is not None:
                write_json(path, new)

    @contextlib.contextmanager
    def guarded(self, key: str, check: Callable[[Any | None], None]) -> Iterator[None]:
        """Under the document's lock."""
        path = self.root / key
        with locked(_lock(path)):
            check(read_json(path))
            yield

    def age(self, key: str) -> float | None:
        """By the times of files, which a file server stamps."""
        path = self.root / key
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:
            return None
        now = time.time()
        with contextlib.suppress(OSError):  # who may only read has but the own clock
            probe = path.with_name(f".now-{uuid.uuid4().hex}")
            probe.write_bytes(b"")
            now = probe.stat().st_mtime
            probe.unlink()
        return now - written

    def names(self, folder: str) -> list[str]:
        """What lies there."""
        place = self.root / folder
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []

    def put(self, source: Path, key: str) -> None:
        """By a copy beside it that the disk has, then a rename; what was there goes last."""
        target = self.root / key
        if not source.exists() or source == target:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        replaced = temporary.with_suffix(".replaced")
        try:
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, temporary)
            sync_tree(temporary)
            if target.is_dir():
                os.rename(target, replaced)
            os.replace(temporary, target)
            sync(target.parent)
        finally:
            if replaced.exists() and not target.exists():
                os.rename(replaced, target)
            for left in (temporary, replaced):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def shared(self, key: str) -> Path:
        """The folder."""
        return self.root / key

    def fetch(self, key: str) -> Path:
        """It is there already."""
        return self.root / key

    def move(self, folder: str, target: str) -> None:
        """By a rename."""
        if (self.root / folder).exists():
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.root / folder, self.root / target)

    def append(self, key: str, lines: bytes, *, guard: str, check: Callable[[Any | None], None], durable: bool) -> None:
        """Under the guard's lock: whoever is refused has added nothing after another was let in."""
        with self.guarded(guard, check):
            journal.write(self.root / key, lines, durable=durable)

    def cut(self, key: str, step: int, attempt: int) -> None:
        """In place."""
        journal.cut(self.root / key, step)

    def flush(self, key: str) -> None:
        """Waits until the disk has it."""
        journal.sync(self.root / key)

    def follow(self, key: str, attempts: list[int]) -> Path:
        """It is there already."""
        return self.root / key


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
