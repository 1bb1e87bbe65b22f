"""Finding objects: one image at a time or many, seen once or several times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

from detector import prediction
from detector.errors import InputError
from detector.pictures import Picture
from detector.prediction import Options, View, views
from tests.detector.talkative import NETWORKS, picture, talkative

SIZES = [(200, 130), (130, 200), (96, 96), (203, 131), (20, 9), (400, 40), (1, 1), (200, 130)]


@pytest.fixture(scope="module")
def model():
    return talkative("dynamic_atss_r18")


@pytest.mark.parametrize("family", NETWORKS)
def test_a_list_of_any_sizes_equals_one_at_a_time(family):
    model = talkative(f"{family}_r18")
    images = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    together = model.predict(images)
    assert isinstance(together, list)
    assert sum(map(len, together)) > 100
    for image, found in zip(images, together, strict=True):
        same(found, model.predict(image))
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor(image.size).repeat(2)).all()


@pytest.mark.parametrize("family", NETWORKS)
def test_a_batch_equals_one_at_a_time(family, monkeypatch):
    """As on a GPU. (Where an image is of one colour, scores of neighbours differ by less than a batch changes them.)"""
    model = talkative(f"{family}_r18")
    images = [picture(*size, seed=number) for number, size in enumerate(SIZES[:4] * 2)]
    alone = [model.predict(image) for image in images]
    passes = []
    hook = model.network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    monkeypatch.setitem(prediction.PIXELS_AT_ONCE, "cpu", 3 * 96 * 160)
    together = model.predict(images)
    hook.remove()
    assert max(passes) == 3
    assert sum(passes) == len(images)
    for found, expected in zip(together, alone, strict=True):
        same(found, expected)


def same(found, expected):
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.boxes, expected.boxes, rtol=0, atol=0.05)
    assert torch.allclose(found.scores, expected.scores, rtol=0, atol=1e-3)


def test_no_image_is_no_result(model):
    assert model.predict([]) == []
    assert model.predict(()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"score_threshold": "x"}, "score_threshold is 'x'; give a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"score_threshold": 50}, "score_threshold is 50"),
        ({"score_threshold": True}, "score_threshold is True"),
        ({"max_detections": 0}, "max_detections is 0; give a whole number from 1 up"),
        ({"max_detections": 1.5}, "max_detections is 1.5"),
        ({"max_detections": None}, "max_detections is None"),
        ({"class_agnostic": 2}, "class_agnostic is 2; give True or False"),
        ({"flip": "no"}, "flip is 'no'"),
        ({"compile": 1}, "compile is 1; give True or False"),
        ({"scales": 640}, "scales is 640; give short sides"),
        ({"scales": ()}, "scales is"),
        ({"scales": (640, 0)}, "scales has 0"),
        ({"precision": "float16"}, "precision is 'float16'; give float32 or bfloat16"),
    ],
)
def test_options_that_mean_nothing_are_one_sentence(model, options, sentence):
    for images in (picture(20, 20), []):
        with pytest.raises(InputError, match=sentence) as caught:
            model.predict(images, **options)
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(model):
    image = picture(200, 130)
    found = model.predict(
        image, score_threshold=np.float32(0.5), max_detections=np.int64(3), class_agnostic=np.bool_(0)
    )
    assert torch.equal(found.boxes, model.predict(image, score_threshold=0.5, max_detections=3).boxes)


def test_an_image_that_is_none_is_named_by_its_place_and_leaves_the_model_as_it_was(model):
    model.train()
    with pytest.raises(InputError, match=r"images\[1\] has no pixels"):
        model.predict([picture(20, 20), np.zeros((0, 5, 3), np.uint8)])
    assert model.training
    model.eval()


def test_views_are_every_size_as_it_is_and_mirrored(model):
    data = model.input  # 96, at most 160
    assert views(data, Options()) == [View(96, 160, False)]
    assert views(data, Options(flip=True)) == [View(96, 160, False), View(96, 160, True)]
    # The bound on the long side keeps its ratio to the short one.
    assert views(data, Options(scales=(48, 96, 48))) == [View(48, 80, False), View(96, 160, False)]


def test_one_view_by_its_size_is_the_plain_one(model):
    image = picture(200, 130)
    plain, sized = model.predict(image), model.predict(image, scales=(96,))
    assert torch.equal(plain.boxes, sized.boxes)
    assert torch.equal(plain.scores, sized.scores)


def test_views_are_merged_by_class_wise_suppression_over_all_their_candidates(model):
    """The witness works on numpy's mirrored pixels and torchvision's suppression, one view after the other."""
    array = np.array(picture(200, 130))
    boxes, scores, labels = [], [], []
    keep_all = {"nms_iou": 1.0, "max_detections": 10**6}
    for side in (64, 96):
        for mirrored in (False, True):
            seen = Picture(np.ascontiguousarray(array[:, ::-1]) if mirrored else array, (130, 200))
            height, width = side, int(side * 200 / 130)
            pixels = torch.nn.functional.interpolate(
                torch.from_numpy(seen.pixels).permute(2, 0, 1)[None], (height, width), mode="bilinear", antialias=True
            )
            padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.uint8)
            padded[..., :height, :width] = pixels
            size = torch.tensor([[height, width]])
            with torch.no_grad():
                found = model.postprocess(model.network(model.normalise(padded, size)), size, **keep_all)[0]
            here = found.boxes * torch.tensor([200 / width, 130 / height] * 2)
            boxes.append(
                torch.stack((200 - here[:, 2], here[:, 1], 200 - here[:, 0], here[:, 3]), 1) if mirrored else here
            )
            scores.append(found.scores)
            labels.append(found.labels)
    boxes, scores, labels = map(torch.cat, (boxes, scores, labels))
    best = batched_nms(boxes, scores, labels, 0.6)[:100]
    found = model.predict(array, flip=True, scales=(64, 96))
    assert torch.equal(found.labels, labels[best])
    assert torch.allclose(found.scores, scores[best], atol=1e-4)
    assert torch.allclose(found.boxes, boxes[best], atol=0.05)
    plain = model.predict(array)
    assert not torch.equal(found.scores, plain.scores)


def test_several_views_in_a_list_equal_one_image_at_a_time(model):
    images = [picture(*size, seed=number) for number, size in enumerate(SIZES[:3])]
    for image, found in zip(images, model.predict(images, flip=True, scales=(64, 96)), strict=True):
        same(found, model.predict(image, flip=True, scales=[64, 96]))


@pytest.mark.parametrize("family", NETWORKS)
def test_bfloat16_finds_nearly_the_same(family):
    model = talkative(f"{family}_r18")
    image = picture(200, 130)
    exact, coarse = model.predict(image), model.predict(image, precision="bfloat16")
    assert coarse.boxes.dtype == coarse.scores.dtype == torch.float32
    assert len(coarse) > 0.7 * len(exact)
    assert coarse.scores[:10].mean() == pytest.approx(float(exact.scores[:10].mean()), abs=0.05)
    assert not torch.equal(coarse.scores, exact.scores)


def test_boxes_of_a_reduced_image_are_in_pixels_of_the_whole(model):
    array = np.array(picture(200, 130))
    whole = array.repeat(2, 0).repeat(2, 1)
    reduced, full = model.predict(Picture(array, (260, 400))), model.predict(whole)
    assert float(reduced.boxes.max()) > 250
    assert torch.allclose(reduced.scores[:5], full.scores[:5], atol=0.1)


def test_any_form_can_be_drawn_on_and_is_upright(model, tmp_path):
    image = picture(200, 130)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    array = np.array(image.transpose(Image.Transpose.ROTATE_270))
    found = model.predict(array)
    expected = np.array(found.draw(array))
    assert expected.shape == (200, 130, 3)
    assert (expected != array).any()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = (tmp_path / "turned.png", str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png"), tensor)
    for form in forms:
        assert np.array_equal(np.array(found.draw(form)), expected)
    assert found.draw(Image.fromarray(array).convert("L")).mode == "RGB"
    with pytest.raises(InputError, match="can't be read: No such file"):
        found.draw(tmp_path / "missing.png")
    small = np.array(found.draw(Picture(array[::2, ::2].copy(), (200, 130))))
    assert small.shape == (100, 65, 3)
