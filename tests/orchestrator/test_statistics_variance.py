"""The row + seed model: scipy's tests and sums by hand, with all cells and with some missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.variance import collapsed, deviation_range, fit, t_probability, t_quantile


def table(values):
    """Results from rows of AP; nan is a missing cell."""
    return {
        f"row {number}": {seed: value for seed, value in enumerate(row) if not math.isnan(value)}
        for number, row in enumerate(values)
    }


def random_table(rows, seeds, missing=0.0, seed=0):
    generator = np.random.default_rng(seed)
    values = 39 + generator.normal(0, 0.3, (rows, 1)) + generator.normal(0, 0.2, (rows, seeds))
    values[generator.random(values.shape) < missing] = math.nan
    return values


def by_dummies(values):
    """Row contrasts with the first row, their variances in units of the rest's, its deviation and df: lstsq on
    dummies."""
    rows, seeds = values.shape
    places = np.argwhere(~np.isnan(values))
    design = np.zeros((len(places), rows + seeds))
    design[np.arange(len(places)), places[:, 0]] = 1
    design[np.arange(len(places)), rows + places[:, 1]] = 1
    observed = values[~np.isnan(values)]
    solution, _, rank, _ = np.linalg.lstsq(design, observed)
    contrasts = np.zeros((rows - 1, rows + seeds))
    contrasts[:, 0] = -1
    contrasts[np.arange(rows - 1), np.arange(1, rows)] = 1
    variances = np.diag(contrasts @ np.linalg.pinv(design.T @ design) @ contrasts.T)
    df = len(observed) - rank
    return contrasts @ solution, variances, math.sqrt(((observed - design @ solution) ** 2).sum() / df), df


def difference(found, first, second):
    """``first`` minus ``second``, and its standard error in units of the rest's deviation; None where nothing links
    them."""
    if not {first, second} <= set(found.rows):
        return None
    one, two = found.rows.index(first), found.rows.index(second)
    if found.component[one] != found.component[two]:
        return None
    variance = found.covariance[one, one] + found.covariance[two, two] - 2 * found.covariance[one, two]
    return found.effects[one] - found.effects[two], math.sqrt(variance)


def test_two_full_rows_are_the_paired_t_test():
    values = random_table(2, 5)
    found = fit(table(values))
    witness = stats.ttest_rel(*values)
    apart, error = difference(found, "row 0", "row 1")
    assert found.df == 4
    assert apart / (error * found.deviation) == pytest.approx(witness.statistic)
    assert t_probability(apart / (error * found.deviation), found.df) == pytest.approx(witness.pvalue)


def test_a_full_table_by_hand():
    # Row means 10, 12, 17, seed means 12 and 14, all in all 13. The rest is +-0.5, +-0.5, 0: squares 4 * 0.25 = 1.
    found = fit({"a": {0: 9.5, 1: 10.5}, "b": {0: 10.5, 1: 13.5}, "c": {0: 16.0, 1: 18.0}})
    assert difference(found, "b", "a") == (pytest.approx(2), pytest.approx(1))  # sqrt(2 / 2 seeds)
    assert found.effects == pytest.approx([10, 12, 17])
    assert (found.df, found.deviation) == (2, pytest.approx(math.sqrt(1 / 2)))
    # Within the rows: 0.5, 4.5 and 2, with one degree of freedom each.
    assert found.between_seeds == pytest.approx(math.sqrt(7 / 3))


@pytest.mark.parametrize("seed", range(8))
def test_missing_cells_are_least_squares_on_what_there_is(seed):
    values = random_table(6, 4, 0.3, seed)
    values[:, 0] = np.where(np.isnan(values[:, 0]), 39.0, values[:, 0])  # each row has one, so that all are linked
    contrasts, variances, deviation, df = by_dummies(values)
    found = fit(table(values))
    for row, (contrast, variance) in enumerate(zip(contrasts, variances, strict=True), 1):
        assert difference(found, f"row {row}", "row 0") == pytest.approx((contrast, math.sqrt(variance)), abs=1e-9)
    assert (found.df, found.deviation) == (df, pytest.approx(deviation))


def test_rows_that_no_seed_links_are_not_compared():
    found = fit({"a": {0: 39.0}, "b": {0: 39.5}, "c": {1: 38.0}, "d": {1: 39.0}, "e": {}})
    assert difference(found, "a", "b") == (pytest.approx(-0.5), pytest.approx(math.sqrt(2)))
    assert difference(found, "a", "c") is None
    assert difference(found, "a", "e") is None
    assert (found.df, found.deviation, found.between_seeds) == (0, None, None)


def test_rows_are_linked_through_others():
    # a - b is -1 at seed 0, b - c is 2 at seed 1: a - c is 1, with the variance of both.
    found = fit({"a": {0: 39.0}, "b": {0: 40.0, 1: 40.5}, "c": {1: 38.5}})
    assert difference(found, "a", "c") == (pytest.approx(1), pytest.approx(2))


def test_one_seed_and_nothing_at_all_have_no_deviation():
    assert fit({"a": {3: 39.0}, "b": {3: 39.4}}).deviation is None
    empty = fit({"a": {}})
    assert (empty.rows, empty.df, empty.deviation) == ((), 0, None)


def test_a_shift_of_a_seed_or_of_everything_changes_no_difference():
    values = random_table(4, 3, seed=2)
    plain = fit(table(values))
    shifted = fit(table(values + np.array([0, 5, -3]) + 1000))
    assert difference(shifted, "row 1", "row 3") == pytest.approx(difference(plain, "row 1", "row 3"), abs=1e-9)
    assert shifted.deviation == pytest.approx(plain.deviation, abs=1e-9)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="row 'a', seed 1: AP is nan"):
        fit({"a": {0: 39.0, 1: math.nan}})


def test_collapsed_rows_are_named():
    results = {"a": {0: 39.0}, "b": {0: 40.0}, "c": {0: 4.0}, "d": {0: 39.5, 1: 0.1}, "e": {}, "f": {0: 33.0}}
    assert collapsed(results) == ("c", "d")
    # Where everything is tiny, a half is nothing.
    assert collapsed({"a": {0: 1.0}, "b": {0: 0.2}, "c": {0: 2.0}}) == ()
    assert collapsed({"a": {}}) == ()


@pytest.mark.parametrize("df", [1, 3, 14])
def test_the_interval_of_a_deviation(df):
    low, high = deviation_range(0.2, df)
    assert low == pytest.approx(0.2 * math.sqrt(df / stats.chi2.ppf(0.975, df)))
    assert high == pytest.approx(0.2 * math.sqrt(df / stats.chi2.ppf(0.025, df)))
    with pytest.raises(ValueError, match="degrees of freedom"):
        deviation_range(0.2, 0)


@pytest.mark.parametrize("df", [1, 2.5, 30])
def test_quantiles_are_those_of_students_t(df):
    assert t_quantile(df, 0.05) == pytest.approx(stats.t.ppf(0.975, df))
    assert t_probability(-1.3, df) == pytest.approx(2 * stats.t.sf(1.3, df))
