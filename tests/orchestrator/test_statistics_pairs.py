"""Verdicts: what is said of a pair, and when nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.images import image_intervals
from orchestrator.statistics.looks import look_level
from orchestrator.statistics.pairs import (
    CANT_TELL,
    ELSEWHERE,
    holm,
    judge,
    sentence,
)
from orchestrator.statistics.power import SeedRange
from orchestrator.statistics.variance import fit

PAPER = {"a": 39.75, "b": 39.25, "c": 39.7}


def results(shift=0.0, seeds=4, seed=0, rows=("a", "b", "c")):
    """AP of three rows; b is ``shift`` above the others."""
    generator = np.random.default_rng(seed)
    return {row: {s: 39 + shift * (row == "b") + float(generator.normal(0, 0.1)) for s in range(seeds)} for row in rows}


def test_two_rows_are_the_paired_t_test():
    table = results(rows=("a", "b"))
    found = judge(table, [("a", "b")], {})[0]
    one, two = (list(table[row].values()) for row in "ab")
    witness = stats.ttest_rel(one, two)
    low, high = witness.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(one) - np.mean(two))
    assert found.interval == pytest.approx((low, high))
    assert found.p == pytest.approx(witness.pvalue)
    assert (found.n, found.df) == (4, 3)


def test_the_deviation_of_the_whole_table_is_used():
    table = results()
    found = judge(table, [("a", "b")], {})[0]
    pooled = fit(table)
    half = stats.t.ppf(0.975, 6) * pooled.deviation * math.sqrt(2 / 4)
    assert (found.df, found.deviation) == (6, pooled.deviation)
    assert found.interval == pytest.approx((found.difference - half, found.difference + half))


@pytest.mark.parametrize(("shift", "verdict"), [(-1.0, "reproduced"), (1.0, "contradicted"), (0.0, CANT_TELL)])
def test_the_three_verdicts(shift, verdict):
    assert judge(results(shift), [("a", "b")], PAPER)[0].verdict == verdict


def test_elsewhere_other_words_are_used():
    words = [judge(results(shift), [("a", "b")], PAPER, labels=ELSEWHERE)[0].verdict for shift in (-1, 1, 0)]
    assert words == ["same direction", "opposite", CANT_TELL]


@pytest.mark.parametrize("paper", [{}, {"a": 39.0}, {"a": 39.0, "b": 39.0}])
def test_without_a_difference_in_the_paper_the_row_is_higher_or_lower(paper):
    assert [judge(results(shift), [("a", "b")], paper)[0].verdict for shift in (-1, 1)] == ["higher", "lower"]


def test_one_seed_can_never_tell():
    table = {"a": {0: 60.0}, "b": {0: 20.5}, "c": {0: 39.0}}
    found = judge(table, [("a", "b")], PAPER)[0]
    assert (found.verdict, found.p_adjusted, found.interval, found.reason) == (CANT_TELL, 1, None, "one seed")
    assert found.difference == pytest.approx(39.5)
    # Not even where other rows have more seeds and the table a deviation.
    table = results(-20.0)
    table["b"] = {0: 20.5}
    table["a"] |= {0: 39.0}
    assert judge(table, [("a", "b")], PAPER)[0].verdict == CANT_TELL


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.04, 0.09, 0.09, 1])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []


def test_the_decision_is_that_of_intervals_at_holms_levels():
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    for seed in range(40):
        table = results(-0.15, seed=seed)
        judged = judge(table, pairs, {})
        pooled, level, stopped = fit(table), look_level(4), False
        for passed, found in enumerate(sorted(judged, key=lambda found: found.p)):
            half = stats.t.isf(level / (3 - passed) / 2, found.df) * pooled.deviation * math.sqrt(2 / 4)
            stopped = stopped or abs(found.difference) <= half
            assert (found.verdict == CANT_TELL) == stopped


def test_later_looks_ask_for_more():
    table = results(-0.35, seed=3)
    first = judge(table, [("a", "b")], PAPER)[0]
    later = judge(table, [("a", "b")], PAPER, looks={("a", "b"): [2, 3]})[0]
    assert later.p == first.p
    assert later.interval == first.interval
    assert first.p_adjusted == pytest.approx(first.p * 0.05 / look_level(4))
    assert later.p_adjusted == pytest.approx(first.p * 0.05 / look_level(4, [2, 3]))


def test_seeds_are_advised_for_a_difference_like_the_papers():
    found = judge(results(), [("a", "c"), ("a", "b")], PAPER)
    more = found[0].more_seeds
    assert 1 <= more.lowest <= more.about
    assert more.highest is None or more.about <= more.highest
    assert sentence(found[0]).startswith(f"can't tell: about {more.about} more seed")
    assert "80 % power" in sentence(found[0])
    assert judge(results(-1.0), [("a", "b")], PAPER)[0].more_seeds is None


def test_seeds_are_advised_for_a_difference_like_ours_where_the_paper_has_none():
    table = results()
    found = judge(table, [("a", "b")], {})[0]
    witness = judge(table, [("a", "b")], {"a": found.difference, "b": 0.0})[0]
    assert found.more_seeds == witness.more_seeds is not None
    assert sentence(found) == f"{sentence(witness)}, if the difference is the one seen"
    once = {row: {0: cells[0]} for row, cells in table.items()}
    assert judge(once, [("a", "b")], {})[0].more_seeds is None


def test_a_pair_is_judged_by_the_seeds_that_both_rows_have():
    # By hand, over the seeds 0 and 1: (1.0 + 0.5) / 2. What c has beside them says nothing of a and b.
    table = {"a": {0: 40.0, 1: 40.0, 2: 45.0}, "b": {0: 39.0, 1: 39.5}, "c": {0: 39.0, 1: 39.2, 2: 40.0}}
    found = judge(table, [("a", "b")], {})[0]
    assert (found.n, found.difference) == (2, pytest.approx(0.75))
    assert found.error == pytest.approx(found.deviation * math.sqrt(2 / 2))
    assert found.df == fit(table).df


def test_a_pair_spends_by_its_own_seeds():
    table = {row: dict(cells) for row, cells in results(-0.35, seed=3).items()}
    del table["c"][3]
    looks = {("a", "b"): [2, 4], ("a", "c"): [2]}
    first, second = judge(table, list(looks), PAPER, looks=looks)
    levels = look_level(4, [2]), look_level(3, [2])
    adjusted = holm([found.p * 0.05 / level for found, level in zip((first, second), levels, strict=True)])
    assert [first.p_adjusted, second.p_adjusted] == pytest.approx([min(1, p) for p in adjusted])


def test_before_there_is_a_deviation_the_assumed_one_advises():
    table = {row: {0: 39.0} for row in "abc"}
    wide, narrow = (judge(table, [("a", "b")], PAPER, assumed=(d, d))[0].more_seeds for d in (0.4, 0.1))
    assert narrow.about < wide.about
    assert wide == SeedRange(wide.about, wide.about, wide.about)


def test_direction_and_size_are_apart():
    # b is lower as in the paper, but by 3 AP and not by 0.5.
    found = judge(results(-3.0), [("a", "b")], PAPER)[0]
    assert (found.verdict, found.size.verdict) == ("reproduced", "larger")
    assert judge(results(3.0), [("a", "b")], PAPER)[0].size.verdict == "smaller"
    assert judge(results(-0.5), [("a", "b")], PAPER)[0].size.verdict == "as the paper's"


def test_the_papers_own_noise():
    table = results()
    half = 1.96 * math.sqrt(2) * fit(table).between_seeds
    large, small = judge(table, [("a", "b"), ("a", "c")], PAPER)
    assert large.size.paper_range == pytest.approx((0.5 - half, 0.5 + half))
    assert (large.size.within_noise, small.size.within_noise) == (False, True)
    assert not large.size.assumed
    alone = judge({row: {0: 39.0} for row in "abc"}, [("a", "b")], PAPER)[0].size
    assert alone.assumed
    assert alone.paper_range == pytest.approx((0.5 - 0.25 * 1.96 * math.sqrt(2), 0.5 + 0.25 * 1.96 * math.sqrt(2)))
    assert alone.within_noise


def test_a_collapsed_row_is_judged_by_itself_and_spoils_no_other():
    table = results(-0.5)
    with_collapsed = {**table, "d": {0: 0.5, 1: 4.0, 2: 1.0, 3: 9.0}}
    pairs = [("a", "b"), ("a", "d")]
    alone = judge(table, pairs[:1], {})[0]
    healthy, fallen = judge(with_collapsed, pairs, {})
    assert (healthy.df, healthy.deviation) == (alone.df, alone.deviation)
    assert fallen.reason == "collapsed: d"
    witness = stats.ttest_rel(list(table["a"].values()), list(with_collapsed["d"].values()))
    assert (fallen.df, fallen.p) == (3, pytest.approx(witness.pvalue))
    assert fallen.verdict == "higher"


def test_missing_rows_count_among_the_pairs():
    table = {**results(-0.25, seed=1), "d": {}}
    one = judge(table, [("a", "b")], PAPER)[0]
    with_missing, missing = judge(table, [("a", "b"), ("a", "d")], PAPER)
    assert with_missing.p_adjusted == pytest.approx(min(1, 2 * one.p_adjusted))
    assert (missing.verdict, missing.n, missing.difference) == (CANT_TELL, 0, None)
    assert missing.reason == "the two rows share no seed"


def test_a_training_under_two_names_counts_once():
    table = results()
    twice = {**table, "again": table["a"]}
    plain = judge(table, [("a", "b")], PAPER)[0]
    one, same, none = judge(twice, [("a", "b"), ("again", "b"), ("a", "again")], PAPER, same_training={"again": "a"})
    assert (one.df, one.deviation, one.p) == (plain.df, plain.deviation, plain.p)
    assert (same.difference, same.p) == (one.difference, one.p)
    assert (none.verdict, none.difference, none.reason) == (CANT_TELL, 0, "the two rows are one training")


def test_equal_figures_prove_nothing():
    table = {row: {0: 0.0, 1: 0.0} for row in "abc"}
    found = judge(table, [("a", "b")], PAPER)[0]
    assert (found.verdict, found.interval, found.reason) == (CANT_TELL, None, "the trainings came out equal")


def test_nothing_at_all_is_no_error():
    found = judge({"a": {}, "b": {}}, [("a", "b")], PAPER)[0]
    assert (found.verdict, found.n, found.difference) == (CANT_TELL, 0, None)
    assert judge({}, [], {}) == []


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match="no row 'x'"):
        judge(results(), [("a", "x")], PAPER)
    with pytest.raises(ValueError, match="'a' is said to be the training of 'x'"):
        judge(results(), [("a", "b")], PAPER, same_training={"a": "x"})


def test_intervals_over_images_and_seeds():
    draws = np.random.default_rng(0).normal(0.4, 0.3, 100_000)
    found = image_intervals(0.4, draws, images=5000, error=0.2, df=4)
    assert found.images == pytest.approx((0.4 - 1.96 * 0.3, 0.4 + 1.96 * 0.3), abs=0.01)
    half = stats.t.ppf(0.975, 4) * 0.2
    assert found.seeds == pytest.approx((0.4 - half, 0.4 + half))
    # Satterthwaite by hand: (0.09 + 0.04)^2 / (0.04^2 / 4 + 0.09^2 / 4999)
    half = stats.t.ppf(0.975, 0.13**2 / (0.0016 / 4 + 0.0081 / 4999)) * math.sqrt(0.13)
    assert found.both == pytest.approx((0.4 - half, 0.4 + half), abs=0.01)
    single = image_intervals(0.4, draws, images=5000)
    assert (single.images, single.seeds, single.both) == (found.images, None, None)


def test_undefined_resamples_are_counted_and_too_few_give_no_interval():
    draws = np.r_[np.full(50, np.nan), np.linspace(0, 1, 200)]
    assert image_intervals(0.5, draws, images=10).undefined == 50
    assert image_intervals(0.5, draws[:149], images=10, error=0.1, df=2).images is None
    assert image_intervals(0.5, draws[:149], images=10, error=0.1, df=2).seeds is not None
