"""What the rows' evaluations got wrong, read once for a report: each row over its seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.plan import Plan, PlannedRow
from orchestrator.results import Results

if TYPE_CHECKING:
    from detector.error_kinds import ErrorKinds

SHOWN = ("found", "missed", "localisation", "confusion", "duplicate", "background", "both")
"""Kinds of a row's errors, in the order of the table."""


@dataclass(frozen=True)
class RowErrors:
    """Means over the seeds of a row."""

    name: str
    seeds: int
    """Finished evaluations that could be examined."""
    thresholds: tuple[float, ...]
    """From which score upwards detections count, by seed; infinite where nothing was found."""
    boxes: int
    """To be found."""
    counts: dict[str, float]
    """By kind, of ``SHOWN``."""
    confusions: dict[tuple[int, int], float]
    """How often a box of one category was taken for one of another, by their ids; None's place is taken by -1:
    (-1, c) are detections where nothing of any class is, (c, -1) boxes that nothing told of."""
    why: str = ""
    """Why there are none; empty if there are."""

    @property
    def f1(self) -> float | None:
        """2 · found / (detections + boxes), in percent; undefined where there is neither."""
        told = sum(self.counts[kind] for kind in SHOWN if kind != "missed")
        return 200 * self.counts["found"] / (told + self.boxes) if told + self.boxes else None


class Evidence:
    """Examined evaluations of a sweep, each read once."""

    def __init__(self, plan: Plan, ledger: Results) -> None:
        self._plan, self._ledger = plan, ledger
        self._read: dict[tuple[str, str], ErrorKinds | str] = {}

    def of(self, row: PlannedRow) -> ErrorKinds | str | None:
        """Of a row and seed; None where it isn't finished, a sentence where something is missing."""
        if row.val is None or self._ledger.record(row.identity, row.evaluations).state != "finished":
            return None
        key = row.identity, row.evaluation
        if key not in self._read:
            self._read[key] = self._ledger.examined(*key, row.val.digest)
        return self._read[key]

    def rows(self) -> list[RowErrors]:
        """All rows that have anything finished, in their order."""
        found = [self._row(name) for name in self._plan.row_names]
        return [one for one in found if one is not None]

    def _row(self, name: str) -> RowErrors | None:
        answers = [self.of(row) for row in self._plan.rows if row.row == name]
        finished = [answer for answer in answers if answer is not None]
        if not finished:
            return None
        known = [answer for answer in finished if not isinstance(answer, str)]
        if not known:
            return RowErrors(name, 0, (), 0, {}, {}, str(finished[0]))
        counts = [one.counts() for one in known]
        return RowErrors(
            name=name,
            seeds=len(known),
            thresholds=tuple(float(one.threshold) for one in known),
            boxes=counts[0]["boxes"],
            counts={kind: sum(each[kind] for each in counts) / len(known) for kind in SHOWN},
            confusions=_confusions(known),
        )


def _confusions(known: Sequence[ErrorKinds]) -> dict[tuple[int, int], float]:
    from detector.error_kinds import confusions

    total: Counter[tuple[int, int]] = Counter()
    for one in known:
        ids = [*one.category_ids.tolist(), -1]
        for true, said, count in confusions(one).tolist():
            total[ids[true], ids[said]] += count
    return {pair: count / len(known) for pair, count in total.items()}


def most_confused(rows: Sequence[RowErrors], categories: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the categories' ids, in their order: those most often taken for each other by any row, then
    those with most boxes found or missed.
    """
    mixed: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    for row in rows:
        for (true, said), count in row.confusions.items():
            for category in {true, said} - {-1}:
                (mixed if -1 not in (true, said) and true != said else seen)[category] += count  # type: ignore[assignment]
    order = {category: place for place, category in enumerate(categories)}
    chosen = sorted(categories, key=lambda category: (-mixed[category], -seen[category], order[category]))[:most]
    return sorted(chosen, key=order.__getitem__)
