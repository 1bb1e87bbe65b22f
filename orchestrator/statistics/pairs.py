"""Difference, interval and verdict of each pair of rows that a table names in ``compare``.

The difference is the first row's AP less the second's, paired by seed: the mean over the seeds that both have. Its
interval is Student's t with the deviation and the degrees of freedom of the whole table's row + seed model
(``variance``). **The interval that is shown is the pair's own at 95 %, not adjusted; the verdict
comes from p adjusted** for the number of pairs (Holm, *Scandinavian Journal of Statistics* 6, 1979, which holds for any
dependence between the pairs, here through shared rows, seeds and the common deviation) and for the look
(``looks``). Said with intervals: ordered by p, the k-th of m pairs gets a verdict when its interval at confidence
1 - level/(m-k+1) lies wholly on one side of 0, and those of all pairs before it did. All pairs of the table count in m,
also those that can't be judged yet.

Direction and size are separate. Direction is the verdict. Size asks whether ours fits the paper's difference, which is
one training against another, of which neither shares a seed with the other as far as is known.

All figures are AP in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.statistics.looks import ALPHA, look_level
from orchestrator.statistics.power import ASSUMED_DEVIATION, SeedRange, seed_range
from orchestrator.statistics.variance import Fit, Results, collapsed, deviation_range, fit, t_probability, t_quantile

CANT_TELL = "can't tell"
TINY = 1e-9
"""AP; a deviation below it is none: the trainings came out equal, as those do that found nothing."""


@dataclass(frozen=True)
class Labels:
    """What a shown direction is called when it is the paper's, and when it is the other."""

    same: str
    opposite: str


REPRODUCTION = Labels("reproduced", "contradicted")
"""For the paper's own data, model, initial weights, schedule and precision."""
ELSEWHERE = Labels("same direction", "opposite")
"""For everything else."""
WITHOUT_PAPER = Labels("higher", "lower")
"""Where the paper has no difference: what the first row is against the second."""


@dataclass(frozen=True)
class Size:
    """How large the difference is beside the paper's."""

    paper: float
    """The paper's difference."""
    paper_range: tuple[float, float]
    """The paper's difference ± 1.96 · sqrt(2) · deviation between seeds: what a second run of the paper's two
    trainings would come from."""
    within_noise: bool
    """Whether the paper's difference is smaller than that: within the paper's own noise."""
    verdict: str | None
    """``as the paper's``, ``smaller`` or ``larger`` (in the paper's direction); None without a difference of ours, or
    where ours is of something else. Ours has an error of its own, so it may lie outside ``paper_range`` by as much and
    still be as the paper's."""
    assumed: bool
    """Whether the deviation is assumed, for want of results."""


@dataclass(frozen=True)
class Judgement:
    """What the results say of one pair."""

    first: str
    second: str
    n: int
    """Seeds that both rows have."""
    difference: float | None
    """First less second. None where the rows can't be compared yet."""
    interval: tuple[float, float] | None
    """95 % confidence interval of the difference, not adjusted for the other pairs."""
    error: float | None
    """Standard error of the difference; None where there is no interval."""
    deviation: float | None
    """Of the rest in the row + seed model, pooled over the table; None without degrees of freedom."""
    deviation_range: tuple[float, float] | None
    """95 % confidence interval of it."""
    df: int
    p: float | None
    """Two-sided, of this pair alone."""
    p_adjusted: float
    """For the number of pairs (Holm) and for the look; to be compared with alpha. 1 where there is no p."""
    verdict: str
    """One of the labels, or ``can't tell``."""
    more_seeds: SeedRange | None
    """Seeds to add to both rows until a difference like the paper's is shown at 80 % power, or, where the paper's isn't
    known, one like ours of several seeds, with the deviation's interval; None where a verdict is given or there is no
    difference."""
    size: Size | None
    """None where the paper has no figures for both rows."""
    reason: str
    """Why there is no interval, or why it is not from the table's deviation; empty otherwise."""


def judge(
    results: Results,
    pairs: Sequence[tuple[str, str]],
    paper: Mapping[str, float],
    *,
    looks: Mapping[tuple[str, str], Sequence[int]] | None = None,
    seeds: Mapping[tuple[str, str], int] | None = None,
    seen: Mapping[tuple[str, str], Results] | None = None,
    labels: Labels | Mapping[tuple[str, str], Labels] = REPRODUCTION,
    others: int = 0,
    same_training: Mapping[str, str] | None = None,
    assumed: tuple[float, float] = ASSUMED_DEVIATION,
    alpha: float = ALPHA,
) -> list[Judgement]:
    """Judges each of ``pairs`` from all rows of ``results``, which has an entry for each row, empty or not.

    ``paper`` is the paper's AP by row, as far as it has any. ``looks`` are the earlier looks at each pair, as the
    number of seeds that both rows had, and ``seeds`` is that of this one: None takes those that both have results of.
    ``seen`` has, for a pair that was looked at with as many seeds before, the results of that look: a deviation
    from other results would be another test at a level that is spent. ``same_training`` names, for a row that is
    another row's training under a second name, that other row. ``labels`` may differ by pair. ``others`` pairs of
    the table count in m without being judged here. ``assumed`` stands for the deviation as long as there is no
    estimate, and for the paper's own noise where the labels say that ours is of something else: then sizes aren't
    compared, either. Rows that collapsed (``variance.collapsed``) are left out of the common deviation; a pair with
    one is judged by its own differences alone. Raises ValueError on rows without an entry and on an AP that isn't
    finite.
    """
    same = same_training or {}
    for row in (row for pair in pairs for row in pair):
        if row not in results:
            raise ValueError(f"there is no row {row!r} in the results; give each row of the table, empty if need be")
    for row, other in same.items():
        if other not in results or same.get(other, other) != other:
            raise ValueError(f"row {row!r} is said to be the training of {other!r}, which has no results of its own")
    table = _Table(results, same)
    tables = {pair: table if pair not in (seen or {}) else _Table((seen or {})[pair], same) for pair in pairs}
    single = [_evidence(tables[one, two], same.get(one, one), same.get(two, two)) for one, two in pairs]
    now = [evidence.n if seeds is None else seeds[pair] for pair, evidence in zip(pairs, single, strict=True)]
    taken = [list((looks or {}).get(pair, ())) for pair in pairs]
    # Each pair has spent by its own seeds, so its p is brought to alpha before the pairs are put in order. A null pair
    # is then shown at any of its looks with probability alpha at most, and Holm's argument holds as it stands.
    own = [
        None if evidence.p is None else _at_level(evidence.p, look_level(count, earlier, alpha), alpha)
        for evidence, count, earlier in zip(single, now, taken, strict=True)
    ]
    adjusted = holm([*own, *[None] * others])[: len(single)]
    found = []
    for (first, second), pair, p, count, earlier in zip(pairs, single, adjusted, now, taken, strict=True):
        called = labels if isinstance(labels, Labels) else labels[first, second]
        known = first in paper and second in paper
        stated = round(paper[first] - paper[second], 9) if known else None
        shown = pair.difference is not None and pair.p is not None and p <= alpha
        verdict = _label(pair.difference or 0.0, stated, called) if shown else CANT_TELL
        more = None
        # A difference that was seen once says nothing of its size.
        wanted = stated if stated is not None else pair.difference if pair.n > 1 else None
        if not shown and wanted and pair.rows > 1:
            deviation, ends = pair.deviation_or(assumed)
            m = len(pairs) + others
            needed = seed_range(wanted, deviation, ends, rows=pair.rows, pairs=m, looks=[*earlier, count], alpha=alpha)
            more = SeedRange(*(None if n is None else n - count for n in (needed.about, needed.lowest, needed.highest)))
        found.append(
            Judgement(
                first=first,
                second=second,
                n=pair.n,
                difference=pair.difference,
                interval=pair.interval(alpha),
                error=pair.error,
                deviation=pair.deviation,
                deviation_range=None if pair.deviation is None else deviation_range(pair.deviation, pair.df, 1 - alpha),
                df=pair.df,
                p=pair.p,
                p_adjusted=p,
                verdict=verdict,
                more_seeds=more,
                size=None if stated is None else _size(pair, stated, tables[first, second].fit, assumed[1], called),
                reason=pair.reason,
            )
        )
    return found


def _at_level(p: float, level: float, alpha: float) -> float:
    """``p`` as it would be were ``level`` the whole of ``alpha``."""
    return min(1.0, p * alpha / level) if level > 0 else 1.0


def holm(p: Sequence[float | None]) -> list[float]:
    """Holm's adjusted p: in ascending order, p times the number of pairs not yet passed, never falling, at most 1.

    None, a pair without p, counts among the pairs and stays at 1.
    """
    adjusted = [1.0] * len(p)
    highest = 0.0
    order = sorted((value, number) for number, value in enumerate(p) if value is not None)
    for passed, (value, number) in enumerate(order):
        highest = max(highest, min(1.0, value * (len(p) - passed)))
        adjusted[number] = highest
    return adjusted


def sentence(judgement: Judgement, where: str = "") -> str:
    """The verdict in words: ``reproduced``, or ``can't tell: about 3 more seeds at 80 % power (1 to 12)``, which
    says so where they are of a difference like ours; ``where`` it is said of, if not of the paper's own recipe: ``same
    direction on generated images``."""
    more, verdict = judgement.more_seeds, f"{judgement.verdict} on {where}" if where else judgement.verdict
    if judgement.verdict != CANT_TELL or more is None:
        return verdict
    if more.about is None:
        like = "the one seen" if judgement.size is None else "the paper's"
        return f"{verdict}: more seeds than anyone runs, for a difference like {like}"
    ends = f"{more.lowest} or far more" if more.highest is None else f"{more.lowest} to {more.highest}"
    seeds = "seed" if more.about == 1 else "seeds"
    seen = ", if the difference is the one seen" if judgement.size is None else ""
    return f"{verdict}: about {more.about} more {seeds} at 80 % power ({ends}){seen}"


@dataclass(frozen=True)
class _Evidence:
    """One pair by itself: what there is to judge it by."""

    rows: int
    """That share the deviation."""
    df: int
    deviation: float | None
    n: int
    difference: float | None
    error: float | None
    reason: str

    @property
    def p(self) -> float | None:
        if self.difference is None or self.error is None:
            return None
        return t_probability(self.difference / self.error, self.df)

    def interval(self, alpha: float) -> tuple[float, float] | None:
        if self.difference is None or self.error is None:
            return None
        half = t_quantile(self.df, alpha) * self.error
        return self.difference - half, self.difference + half

    def deviation_or(self, assumed: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        """The deviation and its interval; what is assumed where there is none."""
        if self.deviation is None or self.deviation < TINY:
            return sum(assumed) / 2, assumed
        return self.deviation, deviation_range(self.deviation, self.df)


class _Table:
    """What rows share: the deviation of those that didn't collapse."""

    def __init__(self, results: Results, same: Mapping[str, str]) -> None:
        self.results = {row: cells for row, cells in results.items() if same.get(row, row) == row}
        self.fallen = collapsed(self.results)
        self.fit = fit(self.results, [row for row in self.results if row not in self.fallen])


def _evidence(table: _Table, first: str, second: str) -> _Evidence:
    results, out = table.results, [row for row in (first, second) if row in table.fallen]
    # A row that collapsed varies in a way of its own: then the pair's own differences are all there is.
    used = fit(results, [first, second]) if out and first != second else table.fit
    both = sorted(results[first].keys() & results[second].keys())
    n = len(both)
    difference = sum(results[first][seed] - results[second][seed] for seed in both) / n if both else None
    error, reason = None, f"collapsed: {', '.join(out)}" if out else ""
    if first == second:
        reason = "the two rows are one training"
    elif n < 2:
        reason = "one seed" if n else "the two rows share no seed"
    elif used.deviation is None or used.deviation < TINY:
        reason = "the trainings came out equal"
    else:
        error = used.deviation * math.sqrt(2 / n)
    return _Evidence(len(used.rows), used.df, used.deviation, n, difference, error, reason)


def _label(difference: float, paper: float | None, labels: Labels) -> str:
    if not paper:
        return WITHOUT_PAPER.same if difference > 0 else WITHOUT_PAPER.opposite
    return labels.same if difference * paper > 0 else labels.opposite


def _size(pair: _Evidence, paper: float, table: Fit, assumed: float, labels: Labels) -> Size:
    # The noise of other data or of another model is not the paper's.
    between_seeds = table.between_seeds if labels == REPRODUCTION else None
    known = between_seeds is not None and between_seeds >= TINY
    deviation = between_seeds if known and between_seeds is not None else assumed
    half = 1.96 * math.sqrt(2) * deviation
    verdict = None
    if pair.difference is not None and labels == REPRODUCTION:
        # Without a standard error ours is a single seed, and as good as the paper's.
        error = math.sqrt(2) * deviation if pair.error is None else pair.error
        if abs(pair.difference - paper) <= math.hypot(half, 1.96 * error):
            verdict = "as the paper's"
        else:
            verdict = "larger" if (pair.difference - paper) * paper > 0 else "smaller"
    return Size(paper, (paper - half, paper + half), abs(paper) < half, verdict, not known)
