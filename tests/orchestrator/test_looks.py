"""Looks at verdicts: remembered with the sweep, by the seeds of each row, and spent by each pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import UnreachableError
from orchestrator.comparison import compare
from orchestrator.looks import EVERY_ROW
from orchestrator.report import write_report
from orchestrator.report.pairs import looks_document, pair_notes
from tests.orchestrator.comparisons import finished, look_of, plan_of, verdicts


def test_a_look_is_remembered_once_and_leaves_less_to_the_next(tmp_path: Path) -> None:
    first = plan_of(tmp_path, seeds=(0, 1))
    ledger = finished(first)
    assert ledger.seen == []
    write_report(first, ledger)
    write_report(first, ledger)
    assert ledger.seen == [look_of(first, 0, 1)]
    second = plan_of(tmp_path, seeds=(0, 1, 2))
    fresh, later = finished(second), finished(second)
    later.seen = [look_of(second, 0, 1)]
    p_fresh, p_later = (compare(second, ledger).pairs[0].judgement for ledger in (fresh, later))
    assert p_fresh is not None
    assert p_later is not None
    # Of 0.05: 2/3 after three seeds, of which 1/2 was gone after two; 2/3 - 1/2 = 1/6.
    assert p_later.p_adjusted == pytest.approx(4 * p_fresh.p_adjusted)
    write_report(second, later)
    assert later.seen == [look_of(second, 0, 1), look_of(second, 0, 1, 2)]
    comparison = compare(second, later)
    assert any("looked at 2 times (at 2, 3 seeds)" in note for note in pair_notes(comparison))
    assert [look["pairs"][0]["level"] for look in looks_document(comparison)] == pytest.approx([0.05 / 2, 0.05 / 6])
    # The first look once more has its own level again.
    again = compare(first, later)
    assert not again.withheld
    assert looks_document(again) == looks_document(comparison)


def test_seeds_that_were_seen_can_not_be_left_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(1, 2, 3))
    ledger = finished(plan)
    ledger.seen = [{EVERY_ROW: (0, 1)}]
    comparison = compare(plan, ledger)
    assert set(verdicts(comparison).values()) == {"can't tell"}
    assert "an earlier look had the seeds 0 of" in comparison.withheld


def test_a_pair_selected_by_itself_is_the_look_that_the_table_was(tmp_path: Path) -> None:
    """Otherwise the same difference would be tested with another deviation at the same level once more."""
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = finished(plan)
    write_report(plan, ledger)
    rows = tuple(row for row in plan.rows if row.row in ("both", "plain"))
    alone = replace(plan, rows=rows, compare=plan.compare[:1], wider=plan)
    whole, selected = (compare(one, ledger).pairs[0].judgement for one in (plan, alone))
    assert selected is not None
    assert selected == whole
    # Where it was looked at by itself first, the table has that deviation.
    other = finished(plan)
    other.seen = [{"both": (0, 1), "plain": (0, 1)}]
    first, later = (compare(one, other).pairs[0].judgement for one in (alone, plan))
    assert first is not None
    assert later is not None
    assert first.df == later.df == 1
    assert first.p == later.p


def test_a_look_keeps_the_results_of_a_row_that_failed_since(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0, 1))
    ledger = finished(plan)
    write_report(plan, ledger)
    first = compare(plan, ledger).pairs[0].judgement
    rows = {name: tuple(row for row in plan.rows if row.row == name) for name in plan.row_names}
    left = replace(plan, rows=rows["plain"] + rows["both"], compare=plan.compare[:1], beside=rows["half"] + rows["up"])
    assert compare(left, ledger).pairs[0].judgement == first


def test_seeds_of_one_row_alone_are_a_look_at_its_pairs_alone(tmp_path: Path) -> None:
    """Rows trained with more seeds than the others take nothing from the level of the others."""
    plan = plan_of(tmp_path)
    rows = [row for row in plan.rows if row.row in ("both", "plain") or row.seed < 2]
    partly, ledger = replace(plan, rows=tuple(rows)), finished(plan)
    ledger.seen = [look_of(plan, 0, 1)]
    comparison = compare(partly, ledger)
    assert not comparison.withheld
    first, *others = looks_document(comparison)[-1]["pairs"]
    assert (first["seeds"], first["level"]) == (3, pytest.approx(0.05 / 6))
    assert [(pair["seeds"], pair["level"]) for pair in others] == [(2, pytest.approx(0.05 / 2))] * 2
    # Their level is that of the first look, and so are their results: a third seed elsewhere is no new test of them.
    at_first = compare(plan_of(tmp_path, seeds=(0, 1)), finished(plan_of(tmp_path, seeds=(0, 1))))
    for before, now in zip(at_first.pairs[1:], comparison.pairs[1:], strict=True):
        assert before.judgement is not None
        assert now.judgement is not None
        assert (now.judgement.df, now.judgement.p) == (3, pytest.approx(before.judgement.p))
    assert comparison.pairs[0].judgement is not None
    assert comparison.pairs[0].judgement.df == 4  # of ten trainings, less four rows and two more seeds
    note = next(note for note in pair_notes(comparison) if "looked at" in note)
    assert "looked at 2 times. both \N{MINUS SIGN} plain: at 2, 3 seeds" in note
    assert "at 2, 2 seeds; this look could use a level of 0.0250" in note
    # The rest's third seed is a look of its own at their pairs, though the table has had three seeds before.
    ledger.seen = list(comparison.looks)
    assert [pair["level"] for pair in looks_document(compare(plan, ledger))[-1]["pairs"]] == pytest.approx(
        [0.05 / 6] * 3
    )


def test_a_look_that_can_not_be_kept_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    ledger = finished(plan)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ledger, "remember_look", refuse)
    with pytest.raises(UnreachableError, match=r"the report can't be written to .* \(Permission denied\)"):
        write_report(plan, ledger)
