"""Opening the Arrow store of a split as large as COCO's train2017: its rows are made up, and no image lies in it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs

from detector.data import conversion
from detector.data.coco import Category, CocoSplit
from tests.benchmarks.alternating import Figure, Pairs

IMAGES, BOXES, SHARDS, TIMES = 118_000, 860_000, 75, 7
SECOND, MEBIBYTES = 1.0, 32.0

OPEN = """
import json, sys, time
from detector.data.store import open_store

def private():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

before, began = private(), time.perf_counter()
store = open_store(sys.argv[1])
opened, held = time.perf_counter() - began, private() - before
indices = store.training_indices(keep_empty=False)
ready, boxes = time.perf_counter() - began, private() - before
print(json.dumps([opened, held, ready, boxes, len(store), len(indices)]))
"""


def measure() -> list[Figure]:
    """Seconds and private memory of a fresh process, of opening alone and with the boxes that training reads."""
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        size = write(Path(scratch))
        rows = [_opened(scratch) for _ in range(TIMES)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    notes = {
        "annotations_mb": round(size / 1e6, 1),
        "with_training_boxes_s": round(statistics.median(columns[2]), 3),
        "with_training_boxes_mib": round(statistics.median(columns[3]), 1),
    }
    return [
        Pairs(columns[0], [SECOND] * TIMES).figure(
            f"opening a store of {IMAGES:,} images and {BOXES:,} boxes, s", at_most=1, peer="limit", **notes
        ),
        Pairs(columns[1], [MEBIBYTES] * TIMES).figure("the same, private memory, MiB", at_most=1, peer="limit"),
    ]


def write(folder: Path) -> int:
    """Writes all of a store but its images into ``folder``; returns the bytes of its annotations."""
    random = np.random.default_rng(0)
    counts = random.multinomial(BOXES, np.full(IMAGES, 1 / IMAGES))
    sizes = random.choice([(480, 640), (640, 480), (427, 640), (640, 427), (375, 500)], IMAGES)
    corner = random.uniform(0, 300, (BOXES, 2))
    split = CocoSplit(
        annotation_file=folder / "made_up.json",
        image_folder=folder,
        categories=tuple(Category(number, f"class {number}") for number in range(1, 81)),
        image_ids=np.sort(random.choice(600_000, IMAGES, replace=False)),
        file_names=tuple(f"{number:012}.jpg" for number in range(IMAGES)),
        sizes=sizes.astype(np.int64),
        offsets=np.r_[0, np.cumsum(counts)],
        boxes=np.concatenate([corner, random.uniform(1, 200, (BOXES, 2))], axis=1),
        category_ids=random.integers(1, 81, BOXES),
        crowd=random.random(BOXES) < 0.012,
        areas=random.uniform(1, 40_000, BOXES),
        annotation_ids=np.arange(1, BOXES + 1),
        has_annotations=True,
        annotations_sha256="made up",
    )
    files = {}
    for shard in range(SHARDS):
        (folder / f"images-{shard:05d}.arrow").write_bytes(b"none")
        files[f"images-{shard:05d}.arrow"] = {"bytes": 4, "sha256": "none"}
    shards = list(files)
    place = [(index * SHARDS // IMAGES, index) for index in range(IMAGES)]
    sink = conversion._Sink(pafs.LocalFileSystem(), str(folder), "annotations.arrow")
    writer = conversion.pa.ipc.new_file(sink.stream, conversion._ANNOTATIONS)
    writer.write_table(conversion._table(split, place, [0] * IMAGES))
    conversion._close(writer, sink, files)
    manifest = {
        "format": conversion.FORMAT,
        "digest": "made up",
        "has_annotations": True,
        "categories": [list(category) for category in split.categories],
        "shards": shards,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return sink.bytes


def _opened(folder: str) -> tuple[float, ...]:
    """Of one process: seconds and MiB until it is open, and until it knows what it trains on."""
    ended = subprocess.run([sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=True)
    *found, images, trained = json.loads(ended.stdout)
    assert images == IMAGES
    assert 0 < trained < images
    return tuple(found)
