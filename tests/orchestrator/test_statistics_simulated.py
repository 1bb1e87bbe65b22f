"""The promises of the statistics in a few hundred simulated sweeps; ``python -m tests.statistics`` does more.

Seeds are fixed, and the limits lie four standard errors of the simulation and more beyond the promise.
"""

from __future__ import annotations

import pytest

from tests.statistics.images import image_coverage
from tests.statistics.orders import order_coverage
from tests.statistics.sweeps import (
    SETTINGS,
    coverage,
    false_tables,
    false_tables_adding_what_is_advised,
    power_of,
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_intervals_contain_the_true_difference(setting):
    assert coverage(setting, 300) == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_few_tables_get_a_false_verdict_at_any_look(setting):
    assert false_tables(setting, 200) <= 0.11


def test_few_tables_do_where_seeds_are_added_as_advised():
    assert false_tables_adding_what_is_advised(4, 3, 100) <= 0.13


@pytest.mark.parametrize(("rows", "pairs", "seeds"), [(4, 3, 2), (8, 3, 3)])
def test_the_power_is_the_predicted_one(rows, pairs, seeds):
    predicted, real = power_of(rows, pairs, seeds, 0.8, 300)
    assert predicted == pytest.approx(0.8, abs=1e-5)
    assert real == pytest.approx(predicted, abs=0.1)


def test_the_intervals_of_tau_hold():
    held = order_coverage(8, 0.2, 3, 100)
    assert held["true order"] > 0.85
    assert held["second run"] > 0.85
    assert 0.3 < held["below median"] < 0.7


def test_the_intervals_over_images_hold():
    held = image_coverage(2, 20, images=40, draws=100)
    assert held["images"] > 0.7
    assert held["images and seeds"] > 0.7
