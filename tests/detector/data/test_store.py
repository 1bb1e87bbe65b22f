"""Arrow stores: the same data again, bad images found when they are made, damage found when they are read."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detector.data import conversion
from detector.data.coco import data_digest
from detector.data.images import decode_image
from detector.data.store import convert, ensure_store, open_store
from detector.errors import InputError, UnreachableError
from tests.detector.cocos import document
from tests.detector.data.sets import annotation, write_set


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_store_gives_back_what_the_folder_holds(odd, tmp_path):
    store = open_store(convert(odd, "train", tmp_path / "store", progress=False))
    assert len(store) == 3
    assert store.image_ids.tolist() == [5, 12, 30]
    assert store.sizes.tolist() == [[80, 60], [60, 80], [64, 64]]
    assert [category.id for category in store.categories] == [3, 7, 90]
    assert store.digest == data_digest(odd, "train")
    assert store.boxes(1).tolist() == [[10, 20, 40, 30], [70, 50, 80, 60], [0, 4, 4.5, 14]]
    assert store.boxes(1).dtype == np.float32
    assert store.labels(1).tolist() == [2, 0, 1]
    assert store.labels(1).dtype == np.int64
    assert store.boxes(2).shape == (0, 4)
    for index, name in enumerate(store.file_names):
        content = (odd / "train" / name).read_bytes()
        assert bytes(store.encoded(index)) == content
        assert np.array_equal(store.image(index), decode_image(content))


def test_images_without_training_boxes_train_only_when_asked(odd, tmp_path):
    store = open_store(convert(odd, "train", tmp_path / "store", progress=False))
    assert store.training_indices(keep_empty=False).tolist() == [0, 1]
    assert store.training_indices(keep_empty=True).tolist() == [0, 1, 2]


def test_the_evaluation_code_sees_original_boxes_and_crowds(odd, tmp_path):
    store = open_store(convert(odd, "train", tmp_path / "store", progress=False))
    path = tmp_path / "again.json"
    path.write_text(json.dumps(document(store)))
    ours, theirs = COCO(str(path)), COCO(str(odd / "annotations" / "train.json"))
    assert sorted(ours.imgs) == sorted(theirs.imgs)
    assert ours.cats == theirs.cats
    expected = {key: value for key, value in theirs.anns.items() if value["image_id"] in theirs.imgs}
    assert {key: dict(value) for key, value in ours.anns.items()} == expected


def test_a_store_pickles_and_reads_on_elsewhere(mixed):
    again = pickle.loads(pickle.dumps(mixed))
    assert np.array_equal(again.image(3), mixed.image(3))
    assert len(pickle.dumps(mixed)) < 1000


def test_a_store_is_read_and_written_by_uri(odd, tmp_path):
    uri = f"file://{tmp_path}/by-uri"
    assert convert(odd, "train", uri, progress=False) == uri
    assert open_store(uri).image(0).shape == (80, 60, 3)


def test_a_store_at_another_file_system_is_read_without_a_memory_map(odd, tmp_path, monkeypatch):
    store = open_store(convert(odd, "train", tmp_path / "store", progress=False))
    monkeypatch.setattr(store, "is_local", False)
    assert np.array_equal(store.image(1), decode_image((odd / "train" / "train12.jpg").read_bytes()))


def test_images_are_spread_over_shards(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 1)
    store = open_store(convert(odd, "train", tmp_path / "store", progress=False))
    assert len(list((tmp_path / "store").glob("images-*.arrow"))) == 3
    assert [store.image(index).shape[:2] for index in range(3)] == [(80, 60), (60, 80), (64, 64)]


def corrupt(path: Path) -> None:
    path.write_bytes(b"\xff\xd8 this is no image")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("damage", [corrupt, cut, Path.unlink])
def test_a_bad_image_is_named_by_file_and_id_and_nothing_stays(tmp_path, damage):
    root = write_set(tmp_path / "set", sizes={1: (60, 80), 44: (60, 80)}, annotations=[])
    damage(root / "train" / "train44.jpg")
    (tmp_path / "stores").mkdir()
    with pytest.raises(InputError, match=r"train44.jpg \(image 44 in .*train.json\)"):
        convert(root, "train", tmp_path / "stores" / "store", progress=False)
    assert left_behind(tmp_path / "stores") == []


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    image = {"id": 1, "file_name": "train1.jpg", "height": 61, "width": 80}
    root = write_set(tmp_path / "set", images=[image])
    with pytest.raises(InputError, match=r"train1.jpg \(image 1 .*it is 80x60 pixels"):
        convert(root, "train", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_an_existing_place_is_not_overwritten(odd, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        convert(odd, "train", tmp_path / "store", progress=False)
    assert left_behind(tmp_path / "store") == ["diary.txt"]


def test_an_unwritable_place_is_unreachable(odd, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="can't be written"):
        convert(odd, "train", tmp_path / "file" / "store", progress=False)
    with pytest.raises(UnreachableError, match="can't be written"):
        ensure_store(odd, "train", tmp_path / "file", digest=data_digest(odd, "train"))


def test_a_flipped_bit_in_an_image_is_found_when_it_is_read(odd, tmp_path):
    folder = convert(odd, "train", tmp_path / "store", progress=False)
    shard = folder / "images-00000.arrow"
    content = bytearray(shard.read_bytes())
    place = content.index((odd / "train" / "train12.jpg").read_bytes()) + 300
    content[place] ^= 1
    shard.write_bytes(content)
    store = open_store(folder)
    assert store.image(0).shape == (80, 60, 3)
    with pytest.raises(InputError, match=r"train12.jpg \(image 12\) no longer has its checksum"):
        store.image(1)


def test_damage_elsewhere_is_found_when_the_store_is_opened(odd, tmp_path):
    folder = convert(odd, "train", tmp_path / "store", progress=False)
    annotations = folder / "annotations.arrow"
    whole = annotations.read_bytes()
    annotations.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"annotations.arrow has \d+ bytes instead of \d+"):
        open_store(folder)
    annotations.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(InputError, match="does not have the checksum"):
        open_store(folder)
    annotations.write_bytes(whole)
    open_store(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        open_store(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is not the manifest of a store"),
        ("3", "is not the manifest of a store"),
        ("{}", "is not the manifest of a store"),
        ('{"format": 2}', "has store format 2, this is 1"),
        ('{"format": 1}', "lacks digest"),
        ('{"format": 1, "digest": 3}', "lacks digest"),
        ('{"format": 1, "digest": "", "has_annotations": true, "categories": [1], "shards": [], "files": {}}',
         r"lacks categories\.0"),
        ('{"format": 1, "digest": "", "has_annotations": true, "categories": [], "shards": [], "files": {}}',
         r"lists no annotations\.arrow"),
        ("[", "is not valid JSON"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=rf"{words}.*; delete .*convert again"):
        open_store(tmp_path)


def test_checksums_are_those_of_the_files(odd, tmp_path):
    folder = convert(odd, "train", tmp_path / "store", progress=False)
    store = open_store(folder)
    assert [int(value) for value in store._crc32] == [
        zlib.crc32((odd / "train" / name).read_bytes()) for name in store.file_names
    ]


def test_a_list_of_images_converts_without_annotations(tmp_path):
    root = write_set(tmp_path / "set", split="test2017")
    path = root / "annotations" / "test2017.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    store = open_store(convert(root, "test2017", tmp_path / "store", progress=False))
    assert not store.has_annotations
    assert store.boxes(0).shape == (0, 4)
    assert len(store.instances()) == 0


def ensure(root: str, folder: str, digest: str, results) -> None:
    results.put(len(ensure_store(root, "train", folder, digest=digest)))


def test_processes_that_convert_at_once_get_one_store(odd, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    digest = data_digest(odd, "train")
    arguments = (str(odd), str(tmp_path / "stores"), digest, results)
    processes = [context.Process(target=ensure, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [3, 3, 3]
    for process in processes:
        process.join()
    assert left_behind(tmp_path / "stores") == [digest]


def test_what_a_killed_conversion_left_is_removed_by_the_next(odd, tmp_path):
    digest = data_digest(odd, "train")
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    leftover = tmp_path / "stores" / f".{digest}.{os.uname().nodename}.{process.pid}.12345678"
    leftover.mkdir(parents=True)
    (leftover / "images-00000.arrow").write_text("half")
    ensure_store(odd, "train", tmp_path / "stores", digest=digest)
    assert left_behind(tmp_path / "stores") == [digest]


def test_data_that_changed_since_they_were_planned_are_refused(odd, tmp_path):
    digest = data_digest(odd, "train")
    path = odd / "annotations" / "train.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="changed while they were being read"):
        ensure_store(odd, "train", tmp_path / "stores", digest=digest)
    assert left_behind(tmp_path / "stores") == []


def test_real_images_convert(real_images, tmp_path):
    store = open_store(convert(real_images / "coco128", "train2017", tmp_path / "store", progress=False))
    assert len(store) == 128
    assert len(store.categories) == 80
    assert max(label for index in range(128) for label in store.labels(index)) <= 79
    assert len(store.instances()) == 929


def test_annotations_of_a_plain_set_survive_unchanged(tmp_path):
    marks = [annotation(5, 1, [1.5, 2.5, 10, 20], category=90)]
    store = open_store(convert(write_set(tmp_path / "s", annotations=marks), "train", tmp_path / "t", progress=False))
    assert document(store)["annotations"] == [{**marks[0], "area": 200.0}]
