"""The metrics journal of one training: JSON lines, appended by rank 0, cut back to the checkpoint on resuming.

A line is ``{"step": 40, "kind": "train" | "evaluation", "time": unix seconds, "metrics": {...}}``, in the order of
steps; that of an evaluation has its key as "evaluation". Whoever reads it may do so while it grows; a line without its
end is not there yet.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Metrics = dict[str, float | None]
Entry = dict[str, Any]


def append(
    path: Path, step: int, kind: str, metrics: Metrics, *, evaluation: str | None = None, durable: bool = False
) -> None:
    """Adds a line, of the ``evaluation`` with that key if it is one. ``durable`` waits until the disk has it.

    Values that are not finite are kept as null.
    """
    entry: Entry = {"step": int(step), "kind": kind, "time": round(time.time(), 3)}
    entry["metrics"] = {key: _finite(value) for key, value in metrics.items()}
    line = json.dumps(entry if evaluation is None else entry | {"evaluation": evaluation})
    # One write in append mode: a reader sees the whole line or none of it.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (line + "\n").encode())
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut(path: Path, step: int) -> None:
    """Drops everything after ``step``, and a line that was torn when its writer was killed."""
    keep = 0
    try:
        with path.open("rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is None or entry["step"] > step:
                    break
                keep += len(line)
            else:
                return
        os.truncate(path, keep)
    except FileNotFoundError:
        return


def read(path: Path, evaluation: str | None = None) -> list[Entry]:
    """All complete lines, but no evaluations of another key than ``evaluation``, if one is named."""
    return Reader(path, evaluation).poll()


def last(path: Path, kind: str | None = None, evaluation: str | None = None) -> Entry | None:
    """The newest complete line (of ``kind``; no evaluation of another key), read from the end of the file."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            tail = b""
            while position:
                start = max(0, position - 16_384)
                file.seek(start)
                tail = file.read(position - start) + tail
                position = start
                # The first piece may have lost its beginning, unless it is the file's own.
                for line in reversed(tail.splitlines(keepends=True)[0 if position == 0 else 1 :]):
                    entry = _parse(line)
                    if entry is not None and kind in (None, entry["kind"]) and _concerns(entry, evaluation):
                        return entry
    except FileNotFoundError:
        pass
    return None


class Reader:
    """Reads a journal from where it stopped the last time, but no evaluations of another key than the one named."""

    def __init__(self, path: Path, evaluation: str | None = None) -> None:
        self.path, self._evaluation = path, evaluation
        self._offset = 0

    def rewind(self) -> None:
        """Begins again, as after a cut."""
        self._offset = 0

    def poll(self) -> list[Entry]:
        """The complete lines that are new since the last call; everything, if the journal was cut meanwhile."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self._offset = 0
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        entries = map(_parse, whole.splitlines(keepends=True))
        return [entry for entry in entries if entry is not None and _concerns(entry, self._evaluation)]


def series(entries: Iterable[Entry], keys: Iterable[str]) -> tuple[list[int], dict[str, list[float | None]]]:
    """Values of ``keys`` over the steps that have any of them: steps (n), and for each key n values or None."""
    keys = list(keys)
    table: dict[int, Metrics] = {}
    for entry in entries:
        found = {key: entry["metrics"][key] for key in keys if key in entry["metrics"]}
        if found:
            table.setdefault(entry["step"], {}).update(found)
    steps = sorted(table)
    return steps, {key: [table[step].get(key) for step in steps] for key in keys}


def _concerns(entry: Entry, evaluation: str | None) -> bool:
    return evaluation is None or entry["kind"] != "evaluation" or entry.get("evaluation") == evaluation


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry and "metrics" in entry else None
