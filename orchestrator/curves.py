"""Curves of a training, read from its journal through a thinned index that is kept beside it.

    STORAGE/trainings/IDENTITY/curves.npz     beside journal.jsonl; it may be deleted, and is then made again

A journal has a value a step and metric; a figure has some hundred points. So the index holds, for each metric, sums and
counts over bins of equally many steps, at most ``BINS`` of them: when the steps outgrow them, two become one. It is
brought up to date from where it last stopped reading. It knows by the last bytes that it read whether the journal was
cut back meanwhile, as when a training goes on from a checkpoint, and then begins anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

BINS = 1024
CHUNK = 1 << 23
"""Bytes that are read at a time."""
LARGE = 1 << 25
"""Bytes of journals that are worth a process for each CPU."""
_TAIL = 512
_FORMAT = 1
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric of one training."""

    steps: np.ndarray
    """(P,) float64, ascending: the middle of each bin, or the step of each evaluation."""
    values: np.ndarray
    """(P,) float64: the mean over the bin."""
    width: int
    """Steps that a point is the mean of; 1 for evaluations."""


NOTHING = Curve(np.zeros(0), np.zeros(0), 1)


@dataclass
class _Column:
    """Values of one metric, as they are read: in runs of consecutive steps."""

    firsts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    def extend(self, first: int, values: Sequence[float | None]) -> None:
        self.firsts.append(first)
        self.lengths.append(len(values))
        self.values.extend(values)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) int64 steps and (P,) float64 values."""
        lengths = np.array(self.lengths)
        before = np.cumsum(lengths) - lengths
        steps = np.arange(len(self.values)) + np.repeat(np.array(self.firsts) - before, lengths)
        values = np.array(self.values, dtype=float)  # None is nan
        known = np.isfinite(values)
        return steps[known], values[known]


@dataclass
class _Table:
    """Sums and counts by metric over bins of ``width`` steps: bin b has the steps b · width + 1 to (b + 1) · width."""

    width: int = 1
    keys: list[str] = field(default_factory=list)
    sums: np.ndarray = field(default_factory=lambda: np.zeros((0, BINS)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, BINS), dtype=np.int64))

    def add(self, columns: Mapping[str, _Column]) -> None:
        """Adds, for each metric, steps and values; what is None or not finite doesn't count."""
        arrays = {key: column.arrays() for key, column in columns.items()}
        last = max((int(steps.max()) for steps, _ in arrays.values() if len(steps)), default=0)
        while last > self.width * BINS:
            self._halve()
        for key, (steps, values) in arrays.items():
            place = self._place(key)
            bins = (steps - 1).clip(0) // self.width
            self.sums[place] += np.bincount(bins, weights=values, minlength=BINS)
            self.counts[place] += np.bincount(bins, minlength=BINS)

    def curve(self, key: str) -> Curve | None:
        """None where there is no such metric."""
        if key not in self.keys:
            return None
        place = self.keys.index(key)
        there = np.flatnonzero(self.counts[place])
        middles = there * self.width + (self.width + 1) / 2
        return Curve(middles, self.sums[place, there] / self.counts[place, there], self.width)

    def _place(self, key: str) -> int:
        if key not in self.keys:
            self.keys.append(key)
            self.sums = np.vstack([self.sums, np.zeros((1, BINS))])
            self.counts = np.vstack([self.counts, np.zeros((1, BINS), dtype=np.int64)])
        return self.keys.index(key)

    def _halve(self) -> None:
        for name in ("sums", "counts"):
            table = getattr(self, name)
            paired = table.reshape(len(table), BINS // 2, 2).sum(-1)
            setattr(self, name, np.hstack([paired, np.zeros_like(paired)]))
        self.width *= 2


def make_missing(journals: Iterable[Path]) -> None:
    """Makes the indices of those ``journals`` that have none, on all CPUs where there is much to read."""
    missing = [path for path in journals if path.exists() and not path.with_name("curves.npz").exists()]
    processes = min(len(missing), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if processes > 1 and sum(path.stat().st_size for path in missing) > LARGE:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(_make, missing))


def _make(journal: Path) -> None:
    Index.of(journal)


class Index:
    """What is known of one journal."""

    def __init__(self) -> None:
        self._evaluations: list[dict[str, Any]] = []
        self._begin()

    def _begin(self) -> None:
        self._offset, self._tail = 0, b""
        self._single, self._means = _Table(), _Table()
        self._evaluations = []

    @classmethod
    def of(cls, journal: Path) -> Index:
        """The index of ``journal``, up to date; kept beside it where that can be written."""
        path = journal.with_name("curves.npz")
        index = cls._read(path)
        if index.catch_up(journal):
            index._keep(path)
        return index

    def catch_up(self, journal: Path) -> bool:
        """Takes in the whole lines that are new; returns whether there were any."""
        try:
            file = journal.open("rb")
        except FileNotFoundError:
            changed = self._offset > 0
            self._begin()
            return changed
        with file:
            if not self._continues(file):
                self._begin()
            file.seek(self._offset)
            changed = False
            rest = b""
            while data := file.read(CHUNK):
                data = rest + data
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if end:
                    self.take(data[:end].splitlines())
                    self._offset += end
                    self._tail = (self._tail + data[:end])[-_TAIL:]
                    changed = True
        return changed

    def curve(self, key: str, evaluation: str | None = None) -> Curve:
        """The metric ``key``; of evaluations only those of that key, if one is named. Empty where there is none."""
        evaluated = {
            entry["step"]: entry["metrics"][key]
            for entry in self._evaluations
            if entry["metrics"].get(key) is not None and evaluation in (None, entry["evaluation"])
        }
        if evaluated:
            steps = sorted(evaluated)
            return Curve(np.array(steps, dtype=float), np.array([evaluated[step] for step in steps], dtype=float), 1)
        for table in (self._single, self._means):
            found = table.curve(key)
            if found is not None and len(found.steps):
                return found
        return NOTHING

    def mean(self, key: str) -> float | None:
        """The mean of ``key`` over all that was logged."""
        for table in (self._means, self._single):
            if key in table.keys:
                place = table.keys.index(key)
                count = int(table.counts[place].sum())
                return float(table.sums[place].sum() / count) if count else None
        return None

    def _continues(self, file: Any) -> bool:
        if os.fstat(file.fileno()).st_size < self._offset:
            return False
        file.seek(self._offset - len(self._tail))
        return bool(file.read(len(self._tail)) == self._tail)

    def take(self, lines: Iterable[bytes]) -> None:
        """Takes in whole lines of a journal; what isn't an entry is passed over."""
        single: defaultdict[str, _Column] = defaultdict(_Column)
        means: defaultdict[str, _Column] = defaultdict(_Column)
        for line in lines:
            try:
                entry = json.loads(line)
                kind, step, metrics = entry["kind"], int(entry["step"]), entry["metrics"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that a crash tore, as the journal's own reader does
            if kind == "steps":
                for key, values in metrics.items():
                    single[key].extend(entry["first"], values)
            elif kind == "train":
                for key, value in metrics.items():
                    means[key].extend(step, (value,))
            elif kind == "evaluation":
                self._evaluations.append({"step": step, "evaluation": entry.get("evaluation"), "metrics": metrics})
        for table, columns in ((self._single, single), (self._means, means)):
            if columns:
                table.add(columns)

    @classmethod
    def _read(cls, path: Path) -> Index:
        index = cls()
        with contextlib.suppress(*_DAMAGED), np.load(path) as kept:
            about = json.loads(str(kept["about"]))
            if about["format"] != _FORMAT:
                return cls()
            tables = [
                _Table(about[name]["width"], about[name]["keys"], kept[f"{name}_sums"], kept[f"{name}_counts"])
                for name in ("single", "means")
            ]
            if any(t.sums.shape != (len(t.keys), BINS) or t.counts.shape != t.sums.shape for t in tables):
                return cls()
            index._single, index._means = tables
            index._offset, index._tail = int(about["offset"]), bytes.fromhex(about["tail"])
            index._evaluations = about["evaluations"]
        return index

    def _keep(self, path: Path) -> None:
        about = {
            "format": _FORMAT,
            "offset": self._offset,
            "tail": self._tail.hex(),
            "single": {"width": self._single.width, "keys": self._single.keys},
            "means": {"width": self._means.width, "keys": self._means.keys},
            "evaluations": self._evaluations,
        }
        arrays = {
            f"{name}_{part}": getattr(table, part)
            for name, table in (("single", self._single), ("means", self._means))
            for part in ("sums", "counts")
        }
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp.npz")
        with contextlib.suppress(OSError):  # who may only read makes it anew each time
            try:
                np.savez(temporary, about=np.array(json.dumps(about)), **arrays)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
