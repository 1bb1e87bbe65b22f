"""The generated set: the same each time, and as varied as it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.config import GeneratedDataConfig
from detector.data import synthetic
from detector.data.coco import read_split
from detector.data.synthetic import draw_image, generate
from detector.errors import UnreachableError

CONFIG = GeneratedDataConfig(train_images=80, val_images=12)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate(CONFIG, tmp_path_factory.mktemp("generated"), progress=False)


def test_it_is_a_coco_folder_with_real_jpegs(root):
    for split, count in (("train", 80), ("val", 12)):
        found = read_split(root, split)
        assert len(found) == count
        assert [category.id for category in found.categories] == [1, 2, 3, 4]
        for name, size in zip(found.file_names, found.sizes.tolist(), strict=True):
            with Image.open(found.image_folder / name) as image:
                assert image.format == "JPEG"
                assert [image.height, image.width] == size


def test_it_has_all_sizes_slender_objects_and_four_aspect_ratios(root):
    found = read_split(root, "train")
    small, large = (found.areas < 32**2).mean(), (found.areas > 96**2).mean()
    assert 0.15 < small < 0.4
    assert 0.05 < large < 0.3
    sides = found.boxes[:, 2:]
    assert (sides.max(1) / sides.min(1)).max() > 5
    assert np.percentile(sides.min(1), 5) >= 12
    assert len(np.unique(found.sizes[:, 1] / found.sizes[:, 0])) == 4
    counts = np.diff(found.offsets)
    assert counts.min() >= 1
    assert counts.max() <= 8
    assert set(found.category_ids.tolist()) == {1, 2, 3, 4}


def test_objects_are_cut_by_the_border_and_overlap(root):
    found = read_split(root, "train")
    sizes = np.repeat(found.sizes, np.diff(found.offsets), 0)
    x1, y1 = found.boxes[:, 0], found.boxes[:, 1]
    x2, y2 = x1 + found.boxes[:, 2], y1 + found.boxes[:, 3]
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= sizes[:, 1]).all()
    assert (y2 <= sizes[:, 0]).all()
    assert ((x1 == 0) | (x2 == sizes[:, 1]) | (y1 == 0) | (y2 == sizes[:, 0])).mean() > 0.1
    overlapping = 0
    for first, last in zip(found.offsets, found.offsets[1:], strict=False):
        for one in range(first, last):
            for other in range(one + 1, last):
                wide = min(x2[one], x2[other]) > max(x1[one], x1[other])
                overlapping += wide and min(y2[one], y2[other]) > max(y1[one], y1[other])
    assert overlapping > 20


def test_boxes_are_tight_around_what_is_seen(monkeypatch):
    place = synthetic._place

    def place_one(rng, label, side, canvas, owner, whole):
        return not whole and place(rng, label, side, canvas, owner, whole)

    monkeypatch.setattr(synthetic, "_ground", lambda rng, height, width: np.full((height, width, 3), 128.0, np.float32))
    monkeypatch.setattr(synthetic, "_place", place_one)
    for number in range(24):
        pixels, objects = draw_image(np.random.default_rng(number), 8, 320)
        seen = np.abs(pixels.astype(int) - 128).max(2) > 40  # the grain of the image stays below
        rows, columns = np.flatnonzero(seen.sum(1) > 1), np.flatnonzero(seen.sum(0) > 1)
        ((_, (x, y, w, h), area),) = objects
        np.testing.assert_allclose([x, y, x + w, y + h], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=3)
        assert 0.3 * w * h < area <= w * h


def test_bytes_are_equal_each_time(root, tmp_path):
    again = generate(CONFIG, tmp_path, progress=False)
    assert again.name == root.name
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert len(files) == 80 + 12 + 2
    for file in files:
        assert (again / file).read_bytes() == (root / file).read_bytes()


def test_it_is_made_once(root, monkeypatch):
    monkeypatch.setattr(synthetic, "draw_image", lambda *_: pytest.fail("drawn again"))
    assert generate(CONFIG, root.parent) == root


def test_another_configuration_is_another_set(root):
    other = generate(CONFIG.model_copy(update={"seed": 1, "train_images": 1, "val_images": 1}), root.parent)
    assert other != root
    assert (other / "train" / "000001.jpg").read_bytes() != (root / "train" / "000001.jpg").read_bytes()


def test_validation_is_drawn_from_another_seed(root):
    assert (root / "train" / "000001.jpg").read_bytes() != (root / "val" / "000001.jpg").read_bytes()


def test_more_images_leave_the_first_ones_as_they_are(root, tmp_path):
    fewer = generate(CONFIG.model_copy(update={"train_images": 2, "val_images": 1}), tmp_path, progress=False)
    assert (fewer / "train" / "000002.jpg").read_bytes() == (root / "train" / "000002.jpg").read_bytes()


def test_all_eight_classes_are_drawn(tmp_path):
    config = GeneratedDataConfig(classes=8, train_images=30, val_images=1, long_side=128)
    root = generate(config, tmp_path, progress=False)
    document = json.loads((root / "annotations" / "train.json").read_text())
    assert {mark["category_id"] for mark in document["annotations"]} == set(range(1, 9))
    assert len({category["name"] for category in document["categories"]}) == 8


def test_nothing_half_made_stays(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(CONFIG, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_unreachable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="can't be written"):
        generate(CONFIG, tmp_path / "file", progress=False)
