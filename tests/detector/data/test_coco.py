"""Reading COCO-format folders: what training makes of odd annotations, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detector.data.coco import (
    data_digest,
    inspect_split,
    read_split,
    training_boxes,
)
from detector.data.places import find_annotations, find_images
from detector.errors import InputError
from tests.detector.data.sets import GAPPED, annotation, write_set


def test_images_and_categories_are_in_the_order_of_their_ids(odd):
    found = read_split(odd, "train")
    assert found.image_ids.tolist() == [5, 12, 30]
    assert found.file_names == ("train5.jpg", "train12.jpg", "train30.jpg")
    assert found.sizes.tolist() == [[80, 60], [60, 80], [64, 64]]
    assert [category.id for category in found.categories] == [3, 7, 90]
    assert [category.name for category in found.categories] == ["bird", "cat", "dog"]


def test_annotations_lie_with_their_images_as_they_were_written(odd):
    found = read_split(odd, "train")
    assert found.offsets.tolist() == [0, 2, 7, 7]
    assert found.annotation_ids.tolist() == [16, 17, 11, 12, 13, 14, 15]  # 18 names an image that isn't listed
    assert found.boxes[4].tolist() == [-5.5, 4, 10, 10]
    assert found.crowd.tolist() == [True] + 6 * [False]
    assert found.areas[0] == 1234.5


def test_training_boxes_are_clipped_and_those_without_area_and_crowds_left_out(odd):
    found = read_split(odd, "train")
    sizes = np.repeat(found.sizes, np.diff(found.offsets), 0)
    boxes, kept = training_boxes(found.boxes, sizes, found.crowd)
    assert boxes.dtype == np.float32
    assert found.annotation_ids[kept].tolist() == [17, 11, 12, 13]
    assert boxes[kept].tolist() == [[1.25, 2.5, 4.25, 6.5], [10, 20, 40, 30], [70, 50, 80, 60], [0, 4, 4.5, 14]]


def test_annotation_ids_that_evaluation_cannot_use_are_numbered_anew(tmp_path):
    marks = [annotation(0, 1, [1, 1, 5, 5]), annotation(4, 1, [2, 2, 5, 5]), annotation(4, 1, [3, 3, 5, 5])]
    found, problems = inspect_split(write_set(tmp_path, annotations=marks), "train")
    assert found.annotation_ids.tolist() == [1, 2, 3]
    assert [problem.kind for problem in problems] == ["annotation ids"]


def test_missing_area_and_crowd_flag_have_their_plain_meaning(tmp_path):
    marks = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 5]}]
    found = read_split(write_set(tmp_path, annotations=marks), "train")
    assert found.areas.tolist() == [20.0]
    assert found.crowd.tolist() == [False]


def test_a_list_of_images_without_annotations_is_test_data(tmp_path):
    root = write_set(tmp_path, split="test2017")
    content = json.loads((root / "annotations" / "test2017.json").read_text())
    del content["annotations"]
    (root / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    found = read_split(root, "test-dev2017")
    assert found.image_folder == root / "test2017"
    assert not found.has_annotations
    assert len(found) == 1
    assert found.boxes.shape == (0, 4)


def test_both_names_of_the_annotation_file_and_both_image_folders_are_found(tmp_path):
    root = write_set(tmp_path)
    assert find_annotations(root, "train") == root / "annotations" / "train.json"
    shutil.copy(root / "annotations" / "train.json", root / "annotations" / "instances_train.json")
    assert find_annotations(root, "train") == root / "annotations" / "instances_train.json"
    (root / "images").mkdir()
    (root / "train").rename(root / "images" / "train")
    assert find_images(root, "train") == root / "images" / "train"


def test_a_missing_root_says_what_is_expected_and_what_else_can_be_done(tmp_path):
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "nowhere", "train2017")
    message = str(caught.value)
    for part in (
        "nowhere",
        "annotations/instances_train2017.json",
        "images/train2017/",
        "Give another folder as ROOT, or make one by `python -m detector.data`",
    ):
        assert part in message


def test_a_missing_split_says_which_files_are_there(tmp_path):
    with pytest.raises(
        InputError, match=r"no annotations of split 'val'.*annotations/ holds train.json; --split names"
    ):
        read_split(write_set(tmp_path), "val")


def test_missing_images_folder_says_where_it_was_expected(tmp_path):
    root = write_set(tmp_path)
    shutil.rmtree(root / "train")
    with pytest.raises(InputError, match="no images of split 'train'; expected them in train/ or images/train/"):
        read_split(root, "train")


REFUSED = {
    "truncated JSON": ('{"images": [', "is not valid JSON"),
    "a results file": ("[]", 'not COCO.*expected a mapping with lists "images"'),
    "no categories": ('{"images": [], "annotations": []}', '"categories" is missing'),
    "annotations of another kind": (
        '{"images": [], "annotations": {}, "categories": []}',
        '"annotations" is not a list',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_json_that_is_not_coco_is_refused_with_its_name(tmp_path, case):
    content, message = REFUSED[case]
    root = write_set(tmp_path)
    (root / "annotations" / "train.json").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_split(root, "train")
    assert "train.json" in str(caught.value)


IMAGE = {"id": 1, "file_name": "train1.jpg", "height": 60, "width": 80}
WRONG = {
    "unlisted category": ({"annotations": [annotation(8, 1, [1, 1, 2, 2], category=4)]}, r"annotation 8 of image 1.*4"),
    "short box": ({"annotations": [annotation(8, 1, [1, 1, 2, 2], bbox=[1, 1, 2])]}, "annotation 8.*four finite"),
    "NaN box": ({"annotations": [annotation(8, 1, [1, 1, float("nan"), 2])]}, "annotation 8.*four finite"),
    "text box": ({"annotations": [annotation(8, 1, [1, 1, 2, 2], bbox=["1", 1, 2, 2])]}, "four finite"),
    "image id twice": ({"images": [IMAGE, IMAGE]}, "image 1 .*listed twice"),
    "text id": ({"images": [{**IMAGE, "id": "one"}]}, "'one'; ids are whole numbers"),
    "no size": ({"images": [{"id": 1, "file_name": "train1.jpg"}]}, 'image 1 .*"width" and "height"'),
    "file outside": ({"images": [{**IMAGE, "file_name": "../secret.jpg"}]}, "not a path inside"),
    "category twice": ({"categories": [*GAPPED, {"id": 3, "name": "fox"}]}, "category 3: is listed twice"),
    "nameless category": ({"categories": [{"id": 3}]}, 'category 3: has no whole-number "id" and "name"'),
    "no images": ({"images": []}, "lists no images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_training_cannot_deal_with_is_refused_by_id(tmp_path, case):
    document, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        read_split(write_set(tmp_path, **document), "train")


def test_the_first_of_several_refusals_is_named_and_the_others_counted(tmp_path):
    marks = [annotation(number, 1, [1, 1, 2, 2], category=4) for number in (8, 9, 10)]
    with pytest.raises(InputError, match=r"annotation 8 .*\(2 more: `python -m detector.data check"):
        read_split(write_set(tmp_path, annotations=marks), "train")


def test_the_digest_follows_annotations_and_image_sizes_but_not_the_place(tmp_path):
    root = write_set(tmp_path / "a")
    first = data_digest(root, "train")
    shutil.copytree(root, tmp_path / "b")
    assert data_digest(tmp_path / "b", "train") == first
    (root / "train" / "stranger.jpg").write_bytes(b"not listed")
    assert data_digest(root, "train") == first
    with (root / "train" / "train1.jpg").open("ab") as file:
        file.write(b"x")
    assert data_digest(root, "train") != first
    path = tmp_path / "b" / "annotations" / "train.json"
    path.write_text(path.read_text() + " ")
    assert data_digest(tmp_path / "b", "train") != first


def test_the_digest_is_remembered_without_missing_a_change(tmp_path, monkeypatch):
    root, memory = write_set(tmp_path), tmp_path / "deep" / "digests.json"
    first = data_digest(root, "train", remember=memory)
    with monkeypatch.context() as patch:
        patch.setattr("detector.data.coco.read_split", lambda *_: pytest.fail("the JSON was read again"))
        assert data_digest(root, "train", remember=memory) == first
        with (root / "train" / "train1.jpg").open("ab") as file:
            file.write(b"x")
        changed = data_digest(root, "train", remember=memory)
    assert changed == data_digest(root, "train") != first
    memory.write_text("{broken")
    assert data_digest(root, "train", remember=memory) == changed


def test_a_missing_image_is_named_before_anything_starts(tmp_path):
    root = write_set(tmp_path, sizes={4: (60, 80), 5: (60, 80)}, annotations=[])
    Path(root / "train" / "train5.jpg").unlink()
    with pytest.raises(InputError, match=r"train5.jpg is missing.*image 5"):
        data_digest(root, "train")
