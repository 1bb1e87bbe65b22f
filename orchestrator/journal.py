"""The metrics journal of one training: JSON lines, appended by rank 0, cut back to the checkpoint on resuming.

A line is ``{"step": 40, "kind": "train" | "evaluation", "time": unix seconds, "metrics": {...}}``, in the order of
steps: the means over the last ``tracking.every`` steps, which are what curves show, or an evaluation's figures with its
key as "evaluation". Lines of the kind "system" have what the machine was doing then (:mod:`orchestrator.usage`). Lines
of the kind "steps" have every single step: ``{"step": 40, "kind": "steps", "first": 21, "time": ..., "metrics":
{"loss": [twenty values], ...}}``. Whoever reads the journal may do so while it grows; a line without its end is not
there yet.
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


def line(step: int, kind: str, metrics: Metrics, *, evaluation: str | None = None, at: float | None = None) -> bytes:
    """An entry as it is written: of the ``evaluation`` with that key if it is one, ``at`` this time (None: now).

    Values that are not finite are kept as null.
    """
    entry: Entry = {"step": int(step), "kind": kind, "time": round(time.time() if at is None else at, 3)}
    entry["metrics"] = {key: _finite(value) for key, value in metrics.items()}
    return json.dumps(entry if evaluation is None else entry | {"evaluation": evaluation}).encode() + b"\n"


def steps_line(first: int, columns: dict[str, list[float]]) -> bytes:
    """The entry that has every step from ``first`` on: for each key a value a step."""
    entry: Entry = {"step": first + len(next(iter(columns.values()))) - 1, "kind": "steps", "first": first}
    entry |= {"time": round(time.time(), 3), "metrics": {k: [_short(v) for v in c] for k, c in columns.items()}}
    return json.dumps(entry).encode() + b"\n"


def append(
    path: Path, step: int, kind: str, metrics: Metrics, *, evaluation: str | None = None, durable: bool = False
) -> None:
    """Adds a line. ``durable`` waits until the disk has it."""
    write(path, line(step, kind, metrics, evaluation=evaluation), durable=durable)


def write(path: Path, lines: bytes, *, durable: bool = False) -> None:
    """Adds whole lines. ``durable`` waits until the disk has them."""
    # One write in append mode: a reader sees the whole of it or, while it grows, whole lines and a torn one.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        view = memoryview(lines)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Waits until the disk has what was written, if anything was."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY)
        try:
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


def until(lines: bytes, step: int | None) -> bytes:
    """The complete lines up to ``step``; None: all."""
    kept = []
    for line in lines.splitlines(keepends=True):
        entry = _parse(line)
        if entry is None or (step is not None and entry["step"] > step):
            break
        kept.append(line)
    return b"".join(kept)


def read(path: Path, evaluation: str | None = None) -> list[Entry]:
    """Means and evaluations, but no evaluations of another key than ``evaluation``, if one is named."""
    return Reader(path, evaluation).poll()


def every_step(path: Path, key: str) -> dict[int, float | None]:
    """The value of ``key`` at every single step."""
    found: dict[int, float | None] = {}
    for entry in Reader(path, kinds=("steps",)).poll():
        found.update(enumerate(entry["metrics"].get(key, ()), entry["first"]))
    return found


def last(path: Path, kind: str | None = None, evaluation: str | None = None) -> Entry | None:
    """The newest complete line (of ``kind``; no evaluation of another key), read from the end of the file."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            torn = b""
            while position:
                start = max(0, position - 65_536)
                file.seek(start)
                lines = (file.read(position - start) + torn).splitlines(keepends=True)
                position = start
                # The first piece may have lost its beginning, unless it is the file's own.
                torn = lines.pop(0) if position else b""
                for line in reversed(lines):
                    entry = _parse(line, None if kind is None else (kind,))
                    if entry is not None and _concerns(entry, evaluation):
                        return entry
    except FileNotFoundError:
        pass
    return None


class Reader:
    """Reads lines of ``kinds`` from where it stopped the last time; of evaluations only those of the key, if named."""

    def __init__(
        self, path: Path, evaluation: str | None = None, *, kinds: tuple[str, ...] = ("train", "evaluation")
    ) -> None:
        self.path, self._evaluation, self._kinds = path, evaluation, kinds
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
        entries = (_parse(line, self._kinds) for line in whole.splitlines(keepends=True))
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


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _parse(line: bytes, kinds: tuple[str, ...] | None = None) -> Entry | None:
    """The entry in ``line``, unless it is torn or of another kind."""
    if not line.endswith(b"\n") or (kinds is not None and not any(f'"kind": "{k}"'.encode() in line for k in kinds)):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    known = isinstance(entry, dict) and {"step", "kind", "metrics"} <= entry.keys()
    return entry if known and (kinds is None or entry["kind"] in kinds) else None
