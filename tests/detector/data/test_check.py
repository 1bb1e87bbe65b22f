"""``check``: each thing that is wrong, with its file and id, and what training does about it."""

from __future__ import annotations

import io
import shutil

import pytest

from detector.data.check import check, splits_of, write_report
from detector.errors import InputError
from tests.detector.data.sets import annotation, write_set


def report(
    root, *splits: str, short_side: int = 60, long_side: int = 1000, everything: bool = False
) -> tuple[str, bool]:
    """The printed report and whether training refuses."""
    reports = check(root, list(splits) or splits_of(root), short_side=short_side, long_side=long_side)
    out = io.StringIO()
    write_report(reports, short_side=short_side, long_side=long_side, everything=everything, out=out)
    return out.getvalue(), any(split.refused for split in reports)


def line(text: str, *parts: str) -> str:
    """The line of ``text`` that has all ``parts``."""
    found = [row for row in text.splitlines() if all(part in row for part in parts)]
    assert found, f"no line with {parts} in\n{text}"
    return found[0]


def test_a_sound_set_is_accepted_with_its_counts(tmp_path):
    text, refused = report(
        write_set(tmp_path, annotations=[annotation(n, 1, [n / 3, 5, 20, 20], n) for n in (3, 7, 90)])
    )
    assert not refused
    assert "train: 1 images, 3 annotations, 3 boxes to train on in 1 images" in text
    assert "boxes by class: bird 1, cat 1, dog 1" in text
    assert text.endswith("training accepts all splits; 0 notes\n")


def test_odd_annotations_are_named_with_what_becomes_of_them(odd):
    text, refused = report(odd)
    assert not refused
    assert "training leaves it out" in line(text, "annotation 14 of image 12 (train12.jpg)", "wholly outside", "80x60")
    assert "training leaves it out" in line(text, "annotation 15 of image 12", "[5.0, 5.0, 0.0, 10.0] has no area")
    assert "training clips it" in line(text, "annotation 12 of image 12", "reaches beyond the image")
    assert "training clips it" in line(text, "annotation 13 of image 12", "reaches beyond the image")
    assert "left out" in line(text, "image 999", "isn't listed")
    assert "unless data.keep_empty" in line(text, "1 of 3 images have no box to train on")
    assert "ignored in evaluation" in line(text, "1 annotations are crowds")
    assert "annotation 11" not in text
    assert "train.json" in line(text, "annotation 14")


def test_a_box_over_the_border_by_rounding_is_no_problem(tmp_path):
    text, _ = report(write_set(tmp_path, annotations=[annotation(1, 1, [70.5, 10, 10, 10])]))
    assert "reaches beyond" not in text


def test_bad_images_are_refused_by_file_and_id(tmp_path):
    root = write_set(tmp_path, sizes={1: (60, 80), 2: (60, 80), 3: (60, 80), 4: (60, 80)})
    (root / "train" / "train2.jpg").write_bytes(b"no image")
    (root / "train" / "train3.jpg").unlink()
    content = (root / "train" / "train4.jpg").read_bytes()
    (root / "train" / "train4.jpg").write_bytes(content[: len(content) // 2])
    text, refused = report(root)
    assert refused
    assert "training refuses; replace the file" in line(text, "ERROR", "train2.jpg: image 2", "can't be decoded")
    assert line(text, "ERROR", "train3.jpg: image 3", "No such file")
    assert line(text, "ERROR", "train4.jpg: image 4", "can't be decoded")
    assert text.splitlines()[-1].startswith("training refuses train;")


def test_another_size_than_annotated_is_refused(tmp_path):
    root = write_set(tmp_path, images=[{"id": 1, "file_name": "train1.jpg", "height": 80, "width": 60}])
    text, refused = report(root)
    assert refused
    assert line(text, "train1.jpg: image 1", "it is 80x60 pixels, but its annotations say width 60, height 80")


def test_all_refusals_of_the_json_are_listed_not_just_the_first(tmp_path):
    marks = [annotation(number, 1, [1, 1, 9, 9], category=4) for number in range(1, 31)]
    text, refused = report(write_set(tmp_path, annotations=marks))
    assert refused
    assert sum("its category_id 4 is not among the categories" in row for row in text.splitlines()) == 30


def test_json_that_is_not_coco_is_a_refusal(tmp_path):
    root = write_set(tmp_path)
    (root / "annotations" / "train.json").write_text("{}")
    text, refused = report(root)
    assert refused
    assert line(text, "ERROR", 'not COCO, "images" is missing')


def test_duplicates_are_found_in_the_json_the_folder_and_between_splits(tmp_path):
    marks = [annotation(1, 1, [5, 5, 20, 20]), annotation(2, 1, [5, 5, 20, 20]), annotation(3, 2, [5, 5, 20, 20])]
    root = write_set(tmp_path, sizes={1: (60, 80), 2: (60, 80)}, annotations=marks)
    write_set(root, split="val")
    shutil.copy(root / "train" / "train1.jpg", root / "train" / "train2.jpg")
    shutil.copy(root / "train" / "train1.jpg", root / "val" / "val1.jpg")
    text, refused = report(root)
    assert not refused
    assert "both are trained on" in line(text, "annotation 2 of image 1", "the box of annotation 1")
    assert "trained on twice" in line(text, "train2.jpg: image 2", "same bytes as train1.jpg")
    assert "too good" in line(text, "val/val1.jpg", "same bytes as train1.jpg of split train")


def test_files_nobody_lists_and_classes_without_boxes_are_noted(tmp_path):
    root = write_set(tmp_path)
    shutil.copy(root / "train" / "train1.jpg", root / "train" / "spare.jpg")
    text, _ = report(root)
    assert "training leaves it out" in line(text, "spare.jpg", "is not listed in train.json")
    assert line(text, "category 'dog'", "has no box")
    assert "category 'bird'" not in text


def test_different_categories_of_two_splits_are_noted(tmp_path):
    root = write_set(tmp_path)
    write_set(root, split="val", categories=[{"id": 3, "name": "bird"}])
    text, _ = report(root)
    assert line(text, "split val", "categories differ from those of split train")


@pytest.mark.parametrize(("tiny", "warned"), [(1, False), (2, True)])
def test_small_boxes_at_training_resolution_are_warned_of_above_ten_percent(tmp_path, tiny, warned):
    # The image of 60x80 is halved: 14 px become 7. One of ten boxes is exactly 10 %, which is not more.
    marks = [annotation(n + 1, 1, [n, n, 14 if n < tiny else 40, 30]) for n in range(10)]
    text, refused = report(write_set(tmp_path, annotations=marks), short_side=30)
    assert not refused
    assert (f"{10 * tiny}.0 % of the boxes are under 8 px wide or high at training resolution" in text) == warned
    assert f"{10 * tiny}.0 % under 8" in line(text, "shorter side of the boxes at short side 30, long side 1000")


def test_many_notes_of_a_kind_are_cut_short_unless_all_are_wanted(tmp_path):
    marks = [annotation(n, 1, [n, 5, 0, 5]) for n in range(1, 31)]
    root = write_set(tmp_path, annotations=[*marks, annotation(40, 1, [5, 5, 20, 20])])
    short, _ = report(root)
    assert short.count("has no area") == 20
    assert "10 more of this kind (no area): --all shows them" in short
    assert report(root, everything=True)[0].count("has no area") == 30


def test_a_split_without_boxes_is_refused(tmp_path):
    text, refused = report(write_set(tmp_path, annotations=[]))
    assert refused
    assert line(text, "ERROR", "no image has a box to train on")


def test_splits_are_found_by_their_annotation_files(tmp_path):
    root = write_set(tmp_path)
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    assert splits_of(root) == ["val2017", "train"]
    text, refused = report(root)
    assert refused
    assert line(text, "split val2017", "no images of split 'val2017'")
    assert not report(root, "train")[1]


def test_a_missing_root_says_what_is_expected(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        splits_of(tmp_path / "nowhere")


def test_real_sets_are_accepted(real_images):
    assert not report(real_images / "bccd", short_side=256, long_side=256)[1]
    assert not report(real_images / "coco128")[1]
