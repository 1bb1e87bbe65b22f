"""The sheet of predictions: always the same images of a split, the truth beside what was found."""

import numpy as np
import pytest
from PIL import Image

from detector import sheet
from detector.data.store import convert, open_store
from detector.sheet import predictions_sheet, shown_images
from tests.orchestrator.tables import write_data


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    write_data(folder / "data", classes=("<b>cat</b>", "dog"))
    return open_store(convert(folder / "data", "val", folder / "store", progress=False))


def test_the_images_are_fixed_by_the_split(store):
    assert shown_images(store) == shown_images(open_store(store.uri))
    assert sorted(shown_images(store)) == [0, 1]
    assert len(shown_images(store, 1)) == 1


def test_what_is_found_is_drawn_beside_the_truth_where_it_was_found(store):
    image = int(store.image_ids[shown_images(store)[0]])
    row = {"image_id": image, "category_id": 3, "bbox": [40, 10, 16, 24], "score": 0.9}
    nothing, found = (np.asarray(predictions_sheet(store, rows)).astype(int) for rows in ([], [row]))
    assert nothing.shape == found.shape
    changed = np.argwhere((nothing != found).any(2))
    scale = sheet.SIDE / 64
    left, top = sheet.SIDE + sheet._GAP + 40 * scale, 10 * scale
    assert changed.min(0) == pytest.approx([top, left], abs=2)
    assert changed[:, 0].max() == pytest.approx(34 * scale, abs=2)
    # The truth stands on the left: its box begins at (4, 5).
    plain = np.asarray(Image.fromarray(store.image(shown_images(store)[0])).resize((sheet.SIDE, 240))).astype(int)
    drawn = np.argwhere((nothing[:240, : sheet.SIDE] != plain).any(2))
    assert drawn.min(0) == pytest.approx([5 * scale, 4 * scale], abs=2)


def test_what_is_hardly_believed_is_not_drawn(store):
    image = int(store.image_ids[0])
    rows = [{"image_id": image, "category_id": 3, "bbox": [40, 10, 16, 24], "score": 0.1}]
    assert predictions_sheet(store, rows).tobytes() == predictions_sheet(store, []).tobytes()
