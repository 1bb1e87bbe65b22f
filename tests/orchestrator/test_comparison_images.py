"""What the report says of differences from resampled validation images, beside those over seeds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.comparison import compare
from orchestrator.plan import Plan
from orchestrator.report.forest import forest
from orchestrator.report.page import page
from orchestrator.report.pairs import documents, pair_notes
from orchestrator.report.table import make_table
from orchestrator.resampling import Resampled
from tests.orchestrator.comparisons import AP, finished, plan_of
from tests.orchestrator.tables import MemoryLedger


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(tmp_path)


def with_images(plan: Plan, ledger: MemoryLedger, *, spread: float = 0.5, without: tuple[int, ...] = ()) -> None:
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 2, 1000)
    for number, row in enumerate(plan.rows):
        own = np.random.default_rng(number + 1).normal(0, spread, 1000)
        ap = AP[row.row][row.seed % 3] + luck + own
        ledger.resamples[row.identity] = Resampled(ap, 500, without, "same")


def test_uncertainty_from_the_images_stands_beside_that_from_seeds(tmp_path: Path) -> None:
    single = plan_of(tmp_path, seeds=(0,))
    ledger = finished(single)
    with_images(single, ledger)
    both = compare(single, ledger).pairs[0]
    assert both.images is not None
    assert both.images.images is not None
    # What the images do to both rows alike is gone; two independent parts of 0.5 are left.
    low, high = both.images.images
    assert high - low == pytest.approx(2 * 1.96 * 0.5 * 2**0.5, rel=0.1)
    assert both.images.both is None
    several = plan_of(tmp_path, seeds=(0, 1, 2))
    ledger = finished(several)
    with_images(several, ledger, spread=0.1)
    comparison = compare(several, ledger)
    both = comparison.pairs[0]
    assert both.images is not None
    assert both.images.images is not None
    assert both.images.both is not None
    low, high = both.images.images
    assert high - low == pytest.approx(2 * 1.96 * 0.1 * (2 / 3) ** 0.5, rel=0.1)
    assert both.images.both[0] < low < high < both.images.both[1]
    entry = documents(comparison)[0]
    assert entry["interval_images"] == [low, high]
    text = page(several, make_table(several, ledger), ledger, comparison)
    assert "from these images only" in text


def test_missing_matches_and_undefined_classes_are_said(plan: Plan) -> None:
    ledger = finished(plan)
    comparison = compare(plan, ledger)
    assert comparison.pairs[0].images is None
    assert any("No interval from the images" in note and "detections" in note for note in pair_notes(comparison))
    with_images(plan, ledger, without=(7,))
    comparison = compare(plan, ledger)
    assert any(note.endswith("has a box of them: dog.") for note in pair_notes(comparison))
    many = replace(comparison, without_boxes=tuple(f"class {number}" for number in range(3000)))
    assert any(note.endswith("class 8, class 9 and 2990 more.") for note in pair_notes(many))
    for row in plan.rows:
        ledger.resamples[row.identity] = replace(ledger.resamples[row.identity], ap=np.full(1000, np.nan))
    assert compare(plan, ledger).pairs[0].images_missing == "AP is undefined on most resamples of the images"


def test_few_images_leave_room_for_the_seeds_interval(plan: Plan) -> None:
    def drawn(spread: float) -> tuple[float, float]:
        """Width of the images' bar and of the seeds' interval."""
        ledger = finished(plan)
        with_images(plan, ledger, spread=spread)
        lines = re.findall(r'<line class="(images|ours)" x1="([0-9.]+)" x2="([0-9.]+)"', forest(compare(plan, ledger)))
        first = {kind: float(end) - float(start) for kind, start, end in reversed(lines)}
        return first["images"], first["ours"]

    images, ours = drawn(0.5)
    assert 0 < images < 12 * ours
    images, ours = drawn(500.0)
    assert ours > 20, "of 1,100"
    assert images > ours
