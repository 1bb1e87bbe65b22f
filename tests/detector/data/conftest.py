"""A small data set with all that annotation files get wrong, shared by the tests of the data package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detector.data.coco import data_digest
from detector.data.store import Store, ensure_store
from tests.detector.data.sets import annotation, write_set

SHAPES = ((60, 80), (80, 60), (64, 64), (45, 80))


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Many tiny images: threads would wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Category ids with gaps, a crowd, an image without boxes, boxes outside, without area and of unlisted images."""
    return write_set(
        tmp_path / "odd",
        sizes={12: (60, 80), 5: (80, 60), 30: (64, 64)},
        annotations=[
            annotation(11, 12, [10, 20, 30, 10], category=90),
            annotation(12, 12, [70, 50, 30, 30], category=3),  # reaches 20 px beyond both sides
            annotation(13, 12, [-5.5, 4, 10, 10], category=7),
            annotation(14, 12, [100, 10, 5, 5], category=7),  # wholly outside
            annotation(15, 12, [5, 5, 0, 10], category=7),  # no area
            annotation(16, 5, [0, 0, 60, 80], category=7, iscrowd=1, area=1234.5),
            annotation(17, 5, [1.25, 2.5, 3, 4], category=90),
            annotation(18, 999, [1, 1, 5, 5]),
        ],
    )


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 11 images of four shapes, two boxes each, the last without."""
    root = tmp_path_factory.mktemp("mixed")
    sizes = {identity: SHAPES[identity % 4] for identity in range(1, 12)}
    marks = []
    for identity, (height, width) in sizes.items():
        if identity < 11:
            marks.append(annotation(2 * identity, identity, [5, 6, width / 2, height / 3], category=7))
            marks.append(annotation(2 * identity + 1, identity, [width / 2, height / 2, width / 4, height / 4]))
    write_set(root, sizes=sizes, annotations=marks)
    return ensure_store(root, "train", root / "stores", digest=data_digest(root, "train"))


@pytest.fixture
def real_images() -> Path:
    """Folder with the data sets bccd and coco128; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("DETSWEEP_TEST_IMAGES", beside))
    if not (folder / "bccd").is_dir():
        pytest.skip(f"no real images in {folder}; name their folder by DETSWEEP_TEST_IMAGES")
    return folder
