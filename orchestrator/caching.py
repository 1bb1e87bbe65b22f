"""Converted data on a node's own disk: copied from the storage once a node, under a lock, and checked on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

import pyarrow.fs as pafs

from detector.config import TrainingConfig
from detector.data.store import Store, ensure_store, is_store, open_store
from detector.errors import InputError, UnreachableError
from orchestrator.files import locked
from orchestrator.ledger import Ledger

CHUNK = 4 << 20


def node_store(config: TrainingConfig, split: str, ledger: Ledger, *, digest: str) -> Store:
    """The converted ``split``: that of the storage, or this node's own copy where ``data.cache`` names a place."""
    assert config.data.root is not None
    if config.data.cache is None:
        return ensure_store(config.data.root, split, ledger.stores, digest=digest)
    cache = Path(config.data.cache).expanduser()
    source = f"{ledger.stores}/{digest}"
    if not is_store(source):
        return ensure_store(config.data.root, split, cache, digest=digest)
    return fill(source, cache / digest)


def fill(source: str, target: Path) -> Store:
    """A copy of the store ``source``; workers of one node that come at the same time make it once.

    Raises ``InputError`` where a file hasn't the checksum of its manifest, ``UnreachableError`` where the copy can't be
    written.
    """
    if not is_store(target):
        try:
            with locked(target.with_name(f".{target.name}.lock"), patience=None):
                if not is_store(target):
                    _copy(source, target)
        except OSError as error:
            raise UnreachableError(
                f"data.cache can't be filled: {target.parent} ({error.strerror or error}); name a folder of the node's "
                "own disk with room for the data"
            ) from error
    return open_store(target)


def _copy(source: str, target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    filesystem, path = pafs.FileSystem.from_uri(source) if "://" in source else (pafs.LocalFileSystem(), source)
    try:
        part.mkdir(parents=True)
        with filesystem.open_input_file(f"{path}/manifest.json") as file:
            manifest = file.read()
        for name, expected in json.loads(manifest)["files"].items():
            if _copied(filesystem, f"{path}/{name}", part / name) != expected["sha256"]:
                raise InputError(
                    f"{source}/{name} doesn't have the checksum of its manifest; delete {source}, and run the command "
                    "again to convert the data anew"
                )
        # Last, as it makes the rest a store.
        (part / "manifest.json").write_bytes(manifest)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copied(filesystem: pafs.FileSystem, source: str, target: Path) -> str:
    """Copies a file; returns its SHA-256."""
    digest = hashlib.sha256()
    with filesystem.open_input_stream(source) as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()
