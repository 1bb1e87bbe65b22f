"""Files that the disk has, before something else says that they are there: the loss of power leaves no empty ones."""

from __future__ import annotations

import os
from pathlib import Path


def sync_tree(path: Path) -> None:
    """Waits until the disk has ``path``, a file or a folder with all that is in it."""
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        sync(each)


def sync(path: Path) -> None:
    """Waits until the disk has a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
