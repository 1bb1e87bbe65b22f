"""Agreement of orders: scipy's tau-b, and what a second run can reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.ordering import ordering, tau_b


def table(values, seeds=3, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return {row: {s: ap + float(generator.normal(0, noise)) for s in range(seeds)} for row, ap in values.items()}


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_with_ties(seed):
    generator = np.random.default_rng(seed)
    reference = generator.integers(0, 5, 9).astype(float)
    values = generator.integers(0, 5, (20, 9)).astype(float)
    witness = [stats.kendalltau(line, reference).statistic for line in values]
    assert tau_b(values, reference) == pytest.approx(witness)
    assert np.isnan(tau_b(np.ones((1, 9)), reference)).all()


def test_orders_that_are_far_apart_come_again():
    paper = {f"row {number}": 30.0 + 3 * number for number in range(6)}
    found = ordering(table(paper, noise=0.1), paper)
    assert (found.tau, found.interval) == (1, (1, 1))
    assert (found.paper_again, found.paper_again_interval) == (1, (1, 1))
    backwards = {row: 100 - ap for row, ap in paper.items()}
    found = ordering(table(backwards, noise=0.1), paper)
    assert (found.tau, found.interval) == (-1, (-1, -1))


def test_an_order_of_noise_does_not():
    paper = {f"row {number}": 39.0 + 0.01 * number for number in range(8)}
    found = ordering(table(dict.fromkeys(paper, 39.0), noise=0.2), paper)
    assert abs(found.paper_again) < 0.1
    assert found.paper_again_interval[0] < -0.3
    assert found.paper_again_interval[1] > 0.3


def test_it_is_the_same_each_time():
    paper = {"a": 39.0, "b": 39.3, "c": 39.5, "d": 39.2}
    results = table(paper, noise=0.2)
    assert ordering(results, paper) == ordering(results, paper)
    assert ordering(results, paper, seed=1).tau == ordering(results, paper).tau


def test_one_seed_has_an_interval_from_the_assumed_deviation():
    paper = {"a": 39.0, "b": 39.3, "c": 39.5, "d": 39.2}
    found = ordering(table(paper, seeds=1), paper, assumed=0.2)
    assert (found.tau, found.deviation, found.assumed) == (pytest.approx(1), 0.2, True)
    assert found.interval[0] < 1


def test_a_collapsed_row_has_its_place_in_the_order_alone():
    paper = {"a": 39.0, "b": 39.3, "c": 39.5, "d": 2.0}
    results = table({**paper, "d": 3.0}, noise=0.1, seed=4)
    with_row = ordering(results, paper)
    without = ordering({row: cells for row, cells in results.items() if row != "d"}, paper)
    assert with_row.rows == ("a", "b", "c", "d")
    assert with_row.deviation == without.deviation
    # Three of six pairs are sure: so tau can't fall below (3 - 3) / 6.
    assert with_row.interval[0] >= 0


def test_equal_ap_stay_equal():
    found = ordering(
        {"a": {0: 39.1, 1: 39.7}, "b": {0: 39.7, 1: 39.1}, "c": {0: 10.3, 1: 10.1}}, {"a": 3, "b": 2, "c": 1}
    )
    assert found.tau == pytest.approx(stats.kendalltau([39.4, 39.4, 10.2], [3, 2, 1]).statistic)


def test_without_an_order_there_is_no_tau():
    paper = {"a": 39.0, "b": 39.3}
    for results in ({}, {"a": {0: 39.0}}, {"a": {0: 39.0}, "b": {1: 39.0}}, {"x": {0: 1.0}, "y": {0: 2.0}}):
        found = ordering(results, paper)
        assert (found.tau, found.interval) == (None, None)
    assert ordering(table(paper), {"a": 39.0, "b": 39.0}).tau is None
    assert ordering({}, {}).paper_again is None
    assert not math.isnan(ordering(table(paper), paper).paper_again)
