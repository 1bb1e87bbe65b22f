"""What seeds can show: scipy's noncentral t, and the levels that looks have."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from orchestrator.statistics.looks import ALPHA, look_level, spent
from orchestrator.statistics.power import (
    MOST_SEEDS,
    SeedRange,
    forecast,
    power,
    seed_range,
    seeds_needed,
    smallest_difference,
)


@pytest.mark.parametrize(("rows", "seeds", "level"), [(2, 2, 0.05), (8, 3, 0.01), (4, 10, 0.002)])
def test_power_is_that_of_the_noncentral_t(rows, seeds, level):
    df = (rows - 1) * (seeds - 1)
    limit = stats.t.isf(level / 2, df)
    expected = stats.nct.sf(limit, df, 0.3 / (0.2 * math.sqrt(2 / seeds)))
    assert power(0.3, 0.2, seeds=seeds, rows=rows, level=level) == pytest.approx(expected)
    assert power(-0.3, 0.2, seeds=seeds, rows=rows, level=level) == pytest.approx(expected)


def test_without_a_difference_only_half_of_the_level_falls_on_the_true_side():
    assert power(0.0, 0.2, seeds=4, rows=5, level=0.05) == pytest.approx(0.025)


@pytest.mark.parametrize("difference", [3.0, 30.0, 3000.0])
def test_a_difference_out_of_all_proportion_is_shown(difference):
    assert power(difference, 0.2, seeds=20, rows=8, level=0.01) == pytest.approx(1)


@pytest.mark.parametrize(("rows", "seeds"), [(2, 2), (3, 2), (8, 3), (9, 10)])
def test_the_smallest_difference_has_the_power_that_was_asked_for(rows, seeds):
    found = smallest_difference(0.2, seeds=seeds, rows=rows, level=0.01)
    assert power(found, 0.2, seeds=seeds, rows=rows, level=0.01) == pytest.approx(0.8, abs=1e-5)
    assert smallest_difference(0.4, seeds=seeds, rows=rows, level=0.01) == pytest.approx(2 * found)


def test_one_seed_shows_nothing():
    assert smallest_difference(0.2, seeds=1, rows=8, level=0.05) is None
    assert power(10.0, 0.2, seeds=1, rows=8, level=0.05) == 0


@pytest.mark.parametrize("looks", [(), (2,), (2, 3)])
def test_the_seeds_that_are_needed_are_the_first_that_suffice(looks):
    def reached(seeds):
        return power(0.3, 0.2, seeds=seeds, rows=8, level=look_level(seeds, looks) / 3)

    needed = seeds_needed(0.3, 0.2, rows=8, pairs=3, looks=looks)
    assert reached(needed) >= 0.8 > reached(needed - 1)


def test_hopeless_differences_end_the_search():
    assert seeds_needed(0.001, 0.2, rows=8, pairs=3) is None
    assert seeds_needed(0.001, 0.2, rows=8, pairs=3, looks=[MOST_SEEDS]) is None


def test_more_pairs_and_more_noise_need_more_seeds():
    few, many = (seeds_needed(0.3, 0.2, rows=8, pairs=pairs) for pairs in (1, 10))
    assert few < many
    found = seed_range(0.3, 0.2, (0.15, 0.3), rows=8, pairs=3)
    assert found.lowest < found.about < found.highest


def test_looks_spend_the_level_and_never_more():
    assert spent(1) == spent(0.5) == look_level(1) == 0
    assert look_level(2) == pytest.approx(0.025)
    assert look_level(5) == pytest.approx(0.04)
    assert look_level(5, [2]) == pytest.approx(0.015)
    taken = [2, 2.5, 3, 7, 40, 1000]
    levels = [look_level(seeds, taken[:number]) for number, seeds in enumerate(taken)]
    assert min(levels) > 0
    assert sum(levels) == pytest.approx(spent(1000))
    assert spent(1e9) <= ALPHA


def test_the_same_look_again_costs_nothing_and_a_look_back_shows_nothing():
    assert look_level(3, [2, 3]) == look_level(3, [2]) == look_level(3, [2, 3, 8])
    assert look_level(4, [2, 8]) == 0


def test_a_forecast_is_made_of_these():
    pairs, paper = [("a", "b"), ("a", "c")], {"a": 39.75, "b": 39.35}
    one, two = (forecast(pair, paper, rows=4, pairs=2, seeds=3, deviations=(0.2, 0.25)) for pair in pairs)
    level = look_level(3) / 2
    ends = [smallest_difference(deviation, seeds=3, rows=4, level=level) for deviation in (0.2, 0.25)]
    assert one.smallest == two.smallest == pytest.approx(ends)
    assert one.paper == pytest.approx(0.4)
    needed = (seeds_needed(0.4, deviation, rows=4, pairs=2) for deviation in (0.225, 0.2, 0.25))
    assert one.seeds == SeedRange(*needed)
    assert (two.paper, two.seeds) == (None, None)
    # Equal figures name no difference to look for.
    assert forecast(pairs[0], {"a": 39.75, "b": 39.75}, rows=4, pairs=1, seeds=1).seeds is None
    assert forecast(pairs[0], {}, rows=4, pairs=1, seeds=1).smallest is None
