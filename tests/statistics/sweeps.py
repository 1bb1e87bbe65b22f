"""Simulated sweeps: rows with known AP, seeds with known effects, and the verdicts that are given about them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.statistics.looks import ALPHA, look_level
from orchestrator.statistics.pairs import CANT_TELL, REPRODUCTION, Judgement, holm, judge
from orchestrator.statistics.power import power, smallest_difference

DEVIATION = 0.2
"""AP; of the rest, in every setting."""


@dataclass(frozen=True)
class Setting:
    """A kind of sweep."""

    rows: int
    pairs: int
    seeds: tuple[int, ...]
    """Seeds at each look; the last is all of them."""
    seed_effect: float = 0.2
    """AP; deviation of what a seed does to all rows alike."""
    missing: float = 0.0
    """Share of the cells that never get a result."""
    differing: int = 0
    """Rows, from the second on, that are truly apart from the first, by a quarter of an AP and more."""

    @property
    def name(self) -> str:
        """For a line of figures."""
        parts = [f"{self.rows} rows", f"{self.pairs} pairs", f"{'+'.join(map(str, self.seeds))} seeds"]
        parts += [f"{self.missing:.0%} missing"] if self.missing else []
        parts += [f"{self.differing} differ"] if self.differing else []
        return ", ".join(parts)

    @property
    def row_names(self) -> list[str]:
        """All rows."""
        return [f"row {number}" for number in range(self.rows)]

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Half of the pairs are with the first row, as in an ablation, and the others side by side."""
        names = self.row_names
        star = [(names[0], name) for name in names[1:]]
        chain = list(itertools.pairwise(names[1:]))
        half = max(1, math.ceil(self.pairs / 2), self.pairs - len(chain))
        return star[:half] + chain[: self.pairs - half]

    @property
    def truth(self) -> dict[str, float]:
        """AP by row."""
        apart = {self.row_names[1 + number]: 0.25 + 0.1 * number for number in range(self.differing)}
        return {row: 39.0 - apart.get(row, 0.0) for row in self.row_names}


SETTINGS = (
    Setting(4, 3, (2,)),
    Setting(4, 3, (3,), seed_effect=0.0),
    Setting(8, 3, (3,)),
    Setting(8, 5, (2, 3, 5)),
    Setting(9, 8, (2, 4, 8), seed_effect=0.4),
    Setting(5, 4, (3, 5), missing=0.15),
    Setting(9, 8, (2, 3, 4, 5, 6, 7, 8), missing=0.1),
    Setting(6, 5, (3, 6), differing=2),
    Setting(9, 6, (5,), missing=0.25, differing=3),
)


def sweeps(setting: Setting, count: int, seed: int = 0) -> Iterator[dict[str, dict[int, float]]]:
    """``count`` results of all seeds; every row has one at least."""
    generator = np.random.default_rng(seed)
    truth, total = setting.truth, setting.seeds[-1]
    for _ in range(count):
        by_seed = generator.normal(0, setting.seed_effect, total)
        rest = generator.normal(0, DEVIATION, (setting.rows, total))
        there = generator.random((setting.rows, total)) >= setting.missing
        there[np.arange(setting.rows), generator.integers(0, total, setting.rows)] = True
        yield {
            row: {
                number: truth[row] + float(by_seed[number] + rest[place, number])
                for number in range(total)
                if there[place, number]
            }
            for place, row in enumerate(setting.row_names)
        }


def up_to(results: dict[str, dict[int, float]], seeds: int) -> dict[str, dict[int, float]]:
    """What there was when only the first ``seeds`` seeds had been trained."""
    return {row: {seed: ap for seed, ap in cells.items() if seed < seeds} for row, cells in results.items()}


class Looks:
    """The looks at a table so far, as a sweep's report keeps them."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.counts: dict[tuple[str, str], list[int]] = {pair: [] for pair in pairs}
        self._first: dict[tuple[tuple[str, str], int], dict[str, dict[int, float]]] = {}

    def judge(self, results: dict[str, dict[int, float]], paper: dict[str, float]) -> list[Judgement]:
        """Judges ``results``, which is a look. A pair without a new seed keeps the results of its look."""
        at = {pair: (pair, len(results[pair[0]].keys() & results[pair[1]].keys())) for pair in self.counts}
        seen = {pair: self._first[now] for pair, now in at.items() if now in self._first}
        judged = judge(results, list(self.counts), paper, looks=self.counts, seen=seen)
        for pair, now in at.items():
            self.counts[pair].append(now[1])
            self._first.setdefault(now, results)
        return judged


def is_false(judgement: Judgement, truth: dict[str, float]) -> bool:
    """Whether a verdict is given where there is no difference, or on the wrong side."""
    difference = truth[judgement.first] - truth[judgement.second]
    return judgement.verdict != CANT_TELL and (judgement.difference or 0.0) * difference <= 0


def coverage(setting: Setting, count: int, seed: int = 0) -> float:
    """Share of the pairs' 95 % intervals, at the last look, that contain the true difference."""
    truth, hit, total = setting.truth, 0, 0
    for results in sweeps(setting, count, seed):
        for judgement in judge(results, setting.compared, {}):
            if judgement.interval is not None:
                total += 1
                low, high = judgement.interval
                hit += low <= truth[judgement.first] - truth[judgement.second] <= high
    return hit / total


def false_tables(setting: Setting, count: int, seed: int = 0, *, spending: bool = True) -> float:
    """Share of the tables that got a false verdict on any pair at any look; ``spending`` False: as if each look were
    the only one, at the whole level."""
    false = 0
    for results in sweeps(setting, count, seed):
        looks = Looks(setting.compared)
        for seeds in setting.seeds:
            judged = looks.judge(up_to(results, seeds), {})
            if not spending:
                shown = zip(judged, holm([judgement.p for judgement in judged]), strict=True)
                judged = [replace(one, verdict="shown" if p <= ALPHA else CANT_TELL) for one, p in shown]
            if any(is_false(judgement, setting.truth) for judgement in judged):
                false += 1
                break
    return false / count


def false_tables_adding_what_is_advised(rows: int, pairs: int, count: int, most: int = 12, seed: int = 0) -> float:
    """The same where whoever runs the sweep adds as many seeds as the report says, as long as it can't tell.

    So the number of seeds depends on the results. No two rows differ; the paper says that all do.
    """
    setting = Setting(rows, pairs, (most,))
    paper = {row: 39.0 - 0.3 * number for number, row in enumerate(setting.row_names)}
    false = 0
    for results in sweeps(setting, count, seed):
        looks, seeds = Looks(setting.compared), 2
        while True:
            judged = looks.judge(up_to(results, seeds), paper)
            if any(judgement.verdict != CANT_TELL for judgement in judged):
                false += 1
                break
            if seeds == most:
                break
            advised = [j.more_seeds.about for j in judged if j.more_seeds and j.more_seeds.about]
            seeds = min(most, seeds + min(advised, default=1))
    return false / count


def false_tables_adding_to_the_nearest(rows: int, pairs: int, count: int, most: int = 12, seed: int = 0) -> float:
    """The same where each time a seed is added to the two rows alone that are nearest to a verdict."""
    setting = Setting(rows, pairs, (most,))
    false = 0
    for results in sweeps(setting, count, seed):
        looks = Looks(setting.compared)
        have = dict.fromkeys(setting.row_names, 2)
        while True:
            seen = {row: {number: ap for number, ap in results[row].items() if number < have[row]} for row in results}
            judged = looks.judge(seen, {})
            if any(judgement.verdict != CANT_TELL for judgement in judged):
                false += 1
                break
            open_ones = [one for one in judged if min(have[one.first], have[one.second]) < most]
            if not open_ones:
                break
            nearest = min(open_ones, key=lambda one: 1.0 if one.p is None else one.p)
            seeds = min(have[nearest.first], have[nearest.second]) + 1
            have |= {row: max(have[row], seeds) for row in (nearest.first, nearest.second)}
    return false / count


def power_of(rows: int, pairs: int, seeds: int, wanted: float, count: int, seed: int = 0) -> tuple[float, float]:
    """The power that is predicted for a difference, and the share of sweeps in which it is shown.

    The first pair differs truly, by as much as is predicted to be shown with probability ``wanted``, and no other does.
    """
    setting = Setting(rows, pairs, (seeds,))
    level = look_level(seeds) / pairs
    difference = smallest_difference(DEVIATION, seeds=seeds, rows=rows, level=level, wanted=wanted)
    assert difference is not None
    first, second = setting.compared[0]
    # The row that is moved may stand in no other pair, or that would truly differ as well.
    others = [row for row in setting.row_names if row != second]
    compared = [(first, second), *itertools.islice(itertools.combinations(others, 2), pairs - 1)]
    shown = 0
    for results in sweeps(setting, count, seed):
        results[second] = {number: ap - difference for number, ap in results[second].items()}
        judged = judge(results, compared, {first: 39.0, second: 39.0 - difference})[0]
        shown += judged.verdict == REPRODUCTION.same
    return power(difference, DEVIATION, seeds=seeds, rows=rows, level=level), shown / count
