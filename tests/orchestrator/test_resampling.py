"""Matches and resampled AP are made once an evaluation and kept beside it; what is damaged or missing is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detector.data.coco import data_digest
from detector.data.store import ensure_store
from detector.matches import Matches
from orchestrator import resampling
from orchestrator.ledger import Ledger
from orchestrator.looks import before, shared
from orchestrator.resampling import Resampled
from tests.detector.cocos import cocos_own, document
from tests.orchestrator.tables import write_data


@pytest.fixture
def place(tmp_path: Path) -> tuple[Ledger, str]:
    """A ledger with the converted split val, and its digest."""
    root = write_data(tmp_path / "data")
    ledger, digest = Ledger(tmp_path / "storage"), data_digest(root, "val")
    ensure_store(root, "val", ledger.stores, digest=digest)
    return ledger, digest


def evaluate(ledger: Ledger, key: str, *, shift: float = 0.0) -> Path:
    """An evaluation that found the box of the first image, ``shift`` pixels aside, and something else in the second."""
    scratch = ledger.storage.parent / f"results-{key}"
    scratch.mkdir(parents=True)
    found = [
        {"image_id": 1, "category_id": 3, "bbox": [4 + shift, 5, 20, 30], "score": 0.9},
        {"image_id": 2, "category_id": 3, "bbox": [40, 5, 20, 30], "score": 0.4},
    ]
    (scratch / "detections.json").write_text(json.dumps(found))
    ledger.claim("a1", sweep="t", row="r", seed=0, config={}, iterations=1)
    ledger.evaluated("a1", key, scratch, {"AP": 50.0}, {})
    return ledger.training("a1") / "evaluations" / key


def test_resamples_are_those_of_the_images(place: tuple[Ledger, str]) -> None:
    ledger, digest = place
    folder = evaluate(ledger, "k")
    found = ledger.resampled("a1", "k", digest)
    assert isinstance(found, Resampled)
    assert (found.images, found.without_boxes) == (2, (7,))
    assert found.ap.shape == (1000,)
    # Of two images: twice the one that was found, twice the other, or each once.
    # The first has the higher score, so half of the recall comes at full precision: 51 of 101 points.
    assert sorted(set(found.ap.round(6).tolist())) == [0.0, pytest.approx(5100 / 101), 100.0]
    with np.load(folder / "matches.npz") as arrays:
        matches = Matches(**arrays)
    assert matches.image_ids.tolist() == [1, 2]


def test_what_is_kept_needs_neither_detections_nor_images(
    place: tuple[Ledger, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, digest = place
    folder = evaluate(ledger, "k")
    first = ledger.resampled("a1", "k", digest)
    (folder / "detections.json").unlink()
    shutil.rmtree(Path(ledger.stores) / digest)
    second = ledger.resampled("a1", "k", digest)
    assert isinstance(first, Resampled)
    assert isinstance(second, Resampled)
    assert np.array_equal(first.ap, second.ap)
    # Resampled in another way than now, or damaged: made again, from the matches.
    monkeypatch.setattr(resampling, "_pairing", lambda images: "another")
    third = ledger.resampled("a1", "k", digest)
    assert isinstance(third, Resampled)
    assert third.pairing == "another"
    (folder / "resampled.npz").write_bytes(b"PK\x03\x04 cut short")
    assert isinstance(ledger.resampled("a1", "k", digest), Resampled)
    (folder / "resampled.npz").unlink()
    (folder / "matches.npz").write_bytes(b"")
    assert ledger.resampled("a1", "k", digest) == "its converted images are no longer in the storage"


def test_two_evaluations_are_paired_by_image(place: tuple[Ledger, str]) -> None:
    ledger, digest = place
    evaluate(ledger, "exact")
    evaluate(ledger, "aside", shift=3.0)
    exact, aside = (ledger.resampled("a1", key, digest) for key in ("exact", "aside"))
    assert isinstance(exact, Resampled)
    assert isinstance(aside, Resampled)
    assert exact.pairing == aside.pairing
    assert ((exact.ap > 0) == (aside.ap > 0)).all()
    assert (exact.ap >= aside.ap).all()


def test_without_detections_it_says_so(place: tuple[Ledger, str]) -> None:
    ledger, digest = place
    folder = evaluate(ledger, "k")
    (folder / "detections.json").unlink()
    assert ledger.resampled("a1", "k", digest) == "its detections are not in the storage"
    assert ledger.resampled("a1", "other", digest) == "its detections are not in the storage"
    assert not (folder / "matches.npz").exists()


def test_a_split_without_annotations_is_not_resampled(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    ledger, digest = Ledger(tmp_path / "storage"), data_digest(root, "val")
    ensure_store(root, "val", ledger.stores, digest=digest)
    evaluate(ledger, "k")
    assert ledger.resampled("a1", "k", digest) == "its images have no annotations here"


def test_resampled_ap_of_every_image_once_is_cocos(place: tuple[Ledger, str]) -> None:
    from detector.bootstrap import average_precision
    from detector.data.store import open_store

    ledger, digest = place
    folder = evaluate(ledger, "k", shift=3.0)
    ledger.resampled("a1", "k", digest)
    with np.load(folder / "matches.npz") as arrays:
        whole = average_precision(Matches(**arrays))
    annotations = document(open_store(f"{ledger.stores}/{digest}"))
    cocos = cocos_own(annotations, json.loads((folder / "detections.json").read_text())).stats[0]
    assert whole.tolist() == [pytest.approx(100 * cocos)]


def test_looks_are_kept_with_the_sweep(tmp_path: Path) -> None:
    from detector.errors import InputError

    ledger = Ledger(tmp_path)
    assert ledger.looks("t") == []
    two, three, apart = {"a": (0, 1), "b": (0, 1)}, {"a": (0, 1, 2), "b": (0, 1, 2)}, {"a": (0, 1, 2), "b": (0, 1)}
    for look in (two, {"a": (0, 1)}, apart, three, two):
        ledger.remember_look("t", look)
    assert ledger.looks("t") == [two, apart, three]
    assert before(ledger.looks("t"), two) == []
    assert before(ledger.looks("t"), {"b": (0, 1, 2)}) == [two, apart]
    assert before(ledger.looks("t"), {"a": (0, 1, 2, 3)}) == [two, apart, three]
    assert [shared(look, ("a", "b")) for look in ledger.looks("t")] == [2, 2, 3]
    assert Ledger(tmp_path).looks("other") == []
    # As it was written when a look was of the whole table.
    (tmp_path / "sweeps" / "t" / "looks.json").write_text('{"looks": [{"seeds": [0, 1], "time": 1.0}]}')
    assert [shared(look, ("a", "b")) for look in ledger.looks("t")] == [2]
    assert before(ledger.looks("t"), two) == []
    ledger.remember_look("t", three)
    assert [shared(look, ("a", "b")) for look in ledger.looks("t")] == [2, 3]
    (tmp_path / "sweeps" / "t" / "looks.json").write_text("{}")
    with pytest.raises(InputError, match=r"looks\.json is not what was written there"):
        ledger.looks("t")
