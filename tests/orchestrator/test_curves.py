"""The thinned index of a journal: means over bins, made step by step or at once, and never of what was cut away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator import curves, journal
from orchestrator.curves import BINS, Index


def write(path: Path, first: int, last: int, *, every: int = 50, offset: float = 0.0) -> None:
    """Steps from ``first`` to ``last`` whose loss is the step itself plus ``offset``, and their means."""
    for start in range(first, last + 1, every):
        values = [float(step) + offset for step in range(start, min(start + every, last + 1))]
        journal.write(path, journal.steps_line(start, {"loss": values}))
        means = {"loss": sum(values) / len(values), "images_per_second": 20.0}
        journal.append(path, start + len(values) - 1, "train", means)


def plain(path: Path, width: int) -> tuple[list[float], list[float]]:
    """Middles and means of bins, by a loop over every step."""
    bins: dict[int, list[float]] = {}
    for step, value in journal.every_step(path, "loss").items():
        if value is not None:
            bins.setdefault((step - 1) // width, []).append(value)
    return [place * width + (width + 1) / 2 for place in sorted(bins)], [
        sum(bins[place]) / len(bins[place]) for place in sorted(bins)
    ]


def test_few_steps_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 120)
    curve = Index.of(path).curve("loss")
    assert curve.steps.tolist() == curve.values.tolist() == list(range(1, 121))
    assert curve.width == 1


@pytest.mark.parametrize("steps", [BINS, BINS + 1, 5000, 90_000])
def test_bins_are_those_of_a_plain_loop(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, steps, every=500)
    curve = Index.of(path).curve("loss")
    assert len(curve.steps) <= BINS
    assert curve.width == 2 ** max(0, int(np.ceil(np.log2(steps / BINS))))
    middles, means = plain(path, curve.width)
    assert curve.steps.tolist() == middles
    assert curve.values == pytest.approx(means)


def test_made_step_by_step_or_at_once_or_read_again_it_is_the_same(tmp_path: Path) -> None:
    path, whole = tmp_path / "journal.jsonl", tmp_path / "whole" / "journal.jsonl"
    for first in range(1, 4001, 400):
        write(path, first, first + 399)
        Index.of(path)
    whole.parent.mkdir()
    whole.write_bytes(path.read_bytes())
    kept = path.with_name("curves.npz").stat().st_mtime_ns
    assert path.with_name("curves.npz").stat().st_size < 200_000
    for key in ("loss", "images_per_second"):
        one, two = Index.of(path).curve(key), Index.of(whole).curve(key)
        assert one.steps.tolist() == two.steps.tolist()
        assert one.values == pytest.approx(two.values.tolist())
    assert path.with_name("curves.npz").stat().st_mtime_ns == kept, "nothing was new"
    assert Index.of(path).mean("images_per_second") == 20.0
    assert Index.of(path).mean("nothing") is None


def test_those_that_are_missing_are_made_on_all_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journals = [tmp_path / str(number) / "journal.jsonl" for number in range(3)]
    for number, path in enumerate(journals):
        path.parent.mkdir()
        write(path, 1, 120, offset=float(number))
    monkeypatch.setattr(curves, "LARGE", 0)
    curves.make_missing([*journals, tmp_path / "never begun" / "journal.jsonl"])
    read = []
    monkeypatch.setattr(Index, "take", lambda self, lines: read.append(lines))
    assert [Index.of(path).curve("loss").values[0] for path in journals] == [1.0, 2.0, 3.0]
    assert not read


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 1000)
    Index.of(path)
    write(path, 1001, 1050)
    taken: list[bytes] = []
    take = Index.take
    monkeypatch.setattr(Index, "take", lambda self, lines: take(self, taken.extend(lines) or taken))
    Index.of(path)
    assert len(taken) == 2


@pytest.mark.parametrize("beyond", [700, 1000, 1500])
def test_a_journal_that_was_cut_back_and_went_on_is_read_anew(tmp_path: Path, beyond: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 1000)
    Index.of(path)
    journal.cut(path, 500)
    write(path, 501, beyond, offset=7.0)
    curve = Index.of(path).curve("loss")
    assert curve.steps[-1] >= beyond - curve.width
    middles, means = plain(path, curve.width)
    assert (curve.steps.tolist(), curve.values.tolist()) == (middles, pytest.approx(means))


def test_torn_lines_gaps_and_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.write(path, journal.steps_line(1, {"loss": [1.0, float("nan"), 3.0]}))
    with path.open("ab") as file:
        file.write(b"not json\n" + journal.steps_line(4, {"loss": [4.0]})[:-10])
    index = Index.of(path)
    assert index.curve("loss").steps.tolist() == [1, 3]
    with path.open("ab") as file:
        file.write(journal.steps_line(4, {"loss": [4.0]})[-10:])
    assert Index.of(path).curve("loss").values.tolist() == [1, 3, 4]
    assert not len(Index.of(tmp_path / "none.jsonl").curve("loss").steps)


def test_evaluations_are_kept_one_by_one_and_apart_by_their_key(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for step, key, value in ((10, "a", 1.0), (20, "a", 2.0), (20, "b", 9.0), (30, "a", None)):
        journal.append(path, step, "evaluation", {"AP": value}, evaluation=key)
    found = Index.of(path).curve("AP", "a")
    assert (found.steps.tolist(), found.values.tolist(), found.width) == ([10, 20], [1, 2], 1)
    assert Index.of(path).curve("AP", "b").values.tolist() == [9]
    assert not len(Index.of(path).curve("AP", "c").steps)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"{}"])
def test_a_damaged_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 100)
    path.with_name("curves.npz").write_bytes(content)
    assert len(Index.of(path).curve("loss").steps) == 100
    assert len(Index.of(path).curve("loss").steps) == 100


def test_who_may_only_read_gets_the_curves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 100)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "savez", refuse)
    assert len(Index.of(path).curve("loss").steps) == 100
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal.jsonl"]
