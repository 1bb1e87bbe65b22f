"""Agreement of the order of a table's rows with the paper's: Kendall's tau, and what can be expected of it.

tau-b (Kendall, *Biometrika* 33, 1945) is 1 for the same order, -1 for the reverse, 0 for no relation; ties count for
neither side. Its interval comes from simulation and not from resampling seeds: of two seeds there are three different
resamples, of three ten. True AP are drawn given what was measured, and their order is compared with the printed one.

Measured rows lie further apart than true ones, by the noise: drawn about the measured figures as they stand, an order
that is all noise would seem to come again. So the draws are pulled together by empirical Bayes (Morris, *Journal of the
American Statistical Association* 78, 1983): true rows are taken to vary normally about a mean, with a variance that is
what the measured one leaves beyond the noise, and the noise's and that variance's own uncertainty are drawn, too. Of
ours the mean is a line in the paper's figures, of whatever slope fits (Fay and Herriot, *Journal of the American
Statistical Association* 74, 1979), since these may be evidence of the same truth or of none. So the interval is for the
order that our rows truly have; the tau beside it still has our own noise in it, is rather too low, and may lie at the
interval's edge or outside.

What a second run of the paper would reach is the measure to hold ours against: the paper trained each row once, and its
own figures, drawn anew, would not have kept their order either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from orchestrator.statistics.power import ASSUMED_DEVIATION
from orchestrator.statistics.variance import Results, collapsed, fit

DRAWS = 10_000


@dataclass(frozen=True)
class Agreement:
    """Of the order of the rows that both we and the paper have figures of."""

    rows: tuple[str, ...]
    tau: float | None
    """tau-b of ours with the paper's; None below two rows, where all of a side are equal, or where no seeds link the
    rows."""
    interval: tuple[float, float] | None
    """95 % interval of the tau that our rows' true order has with the paper's."""
    paper_again: float | None
    """Median tau that another run of the paper, of one training a row, would reach with the printed figures."""
    paper_again_interval: tuple[float, float] | None
    """Where 95 % of such runs lie."""
    deviation: float
    """AP between seeds that the paper's figures are taken to have."""
    assumed: bool
    """Whether it is assumed, for want of results."""


def ordering(
    results: Results,
    paper: Mapping[str, float],
    *,
    assumed: float = ASSUMED_DEVIATION[1],
    papers_deviation: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Agreement:
    """Compares the order of the rows of ``results`` with that of ``paper`` (AP by row), both in percent.

    Rows without a result or without a figure of the paper are left out. Rows that collapsed have their place in the
    order, and no part in the deviation. ``papers_deviation`` is what the paper's figures vary by, where ours are of
    other data or another model; None takes that of ours. Deterministic for a ``seed``.
    """
    table = fit(results)
    fallen = collapsed(results)
    pool = fit(results, [row for row in results if row not in fallen])
    rows = tuple(row for row in table.rows if row in paper)
    figures = np.array([paper[row] for row in rows])
    known = pool.between_seeds is not None and pool.between_seeds > 0
    between = pool.between_seeds if known and pool.between_seeds is not None else assumed
    generator = np.random.default_rng(seed)
    places = [table.rows.index(row) for row in rows]
    tau, interval = None, None
    if len(rows) > 1 and len(set(table.component[places].tolist())) == 1:
        effects = table.effects[places].round(9)  # equal AP stay equal after least squares
        value = float(tau_b(effects[None], figures)[0])
        if not math.isnan(value):
            tau = value
            noise = np.full(draws, between)
            if pool.deviation is not None and pool.deviation > 0:
                # What the degrees of freedom leave open of the deviation.
                noise = pool.deviation * np.sqrt(pool.df / generator.chisquare(pool.df, draws))
            apart = np.array([row in fallen for row in rows], dtype=bool)
            covariance = table.covariance[np.ix_(places, places)]
            interval = _middle(tau_b(_true(effects, covariance, noise, apart, generator, figures), figures))[1]
    fallen_there = collapsed({row: {0: paper[row]} for row in rows})
    apart = np.array([row in fallen_there for row in rows], dtype=bool)
    theirs = between if papers_deviation is None else papers_deviation
    again = _true(figures, np.eye(len(rows)), np.full(draws, theirs), apart, generator)
    again += generator.normal(0.0, theirs, again.shape)
    median, around = _middle(tau_b(again, figures))
    assumed_theirs = not known or papers_deviation is not None
    return Agreement(rows, tau, interval, median, around, theirs, assumed_theirs)


def _true(
    measured: np.ndarray,
    covariance: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    generator: np.random.Generator,
    guide: np.ndarray | None = None,
) -> np.ndarray:
    """(B, R) draws of the rows' true AP, but for a constant, given what was measured.

    ``measured`` (R,) has errors of ``covariance`` (R, R) times the square of ``noise`` (B,). The rows in ``apart`` (R,)
    lie far from all others: they say nothing about how the others vary, and are drawn as they stand. Of the others the
    expected place is a line in ``guide`` (R,), or the same for all without one.
    """
    drawn = measured + noise[:, None] * np.sqrt(np.diag(covariance)) * generator.standard_normal(
        (len(noise), len(measured))
    )
    near = np.flatnonzero(~apart)
    if len(near) < 2:
        return drawn
    centring = np.eye(len(near)) - 1 / len(near)
    # In these coordinates errors are independent of each other; the first is the common constant, without a meaning.
    errors, axes = np.linalg.eigh(centring @ covariance[np.ix_(near, near)] @ centring)
    errors, axes = np.maximum(errors[1:], 0.0), axes[:, 1:]
    middle = measured[near].mean()
    along = (measured[near] - middle) @ axes
    free, expected, rest = len(along), np.zeros((1, 1)), along
    led = np.zeros(free) if guide is None else (guide[near] - guide[near].mean()) @ axes
    weight = float((led**2).sum())
    if free > 1 and weight > 0:
        slope = float(along @ led) / weight
        free, rest = free - 1, along - slope * led
    error = noise[:, None] ** 2 * errors
    # Of what is measured the noise is a part, however well a line happens to fit.
    total = np.maximum((rest**2).sum() / generator.chisquare(free, len(noise)), error.mean(1))
    if free < len(along):
        expected = (slope + np.sqrt(total / weight) * generator.standard_normal(len(noise)))[:, None] * led
    variance = (total - error.mean(1))[:, None]
    kept = np.divide(variance, variance + error, out=np.ones_like(error), where=variance + error > 0)
    places = expected + kept * (along - expected) + np.sqrt(kept * error) * generator.standard_normal(error.shape)
    drawn[:, near] = middle + places @ axes.T
    return drawn


def tau_b(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each line of ``values`` (draws, R) with ``reference`` (R,): (draws,), nan where one side is
    all ties."""
    one, two = np.triu_indices(len(reference), 1)
    right = np.sign(reference[one] - reference[two])
    total = np.empty(len(values))
    for start in range(0, len(values), 1000):
        left = np.sign(values[start : start + 1000, one] - values[start : start + 1000, two])
        untied = np.abs(left).sum(1) * np.abs(right).sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            total[start : start + 1000] = (left @ right) / np.sqrt(untied)
    return total


def _middle(draws: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
    """Median and the middle 95 %; None where nothing is defined."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return None, None
    low, median, high = np.quantile(defined, [0.025, 0.5, 0.975]).tolist()
    return median, (low, high)
