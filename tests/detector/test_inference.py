"""Loading, building and predicting, as someone who only wants boxes does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

import detector
from detector.checkpoints import load_model, save_model
from detector.config import ModelConfig
from detector.errors import InputError, UnreachableError
from detector.postprocess import suppress
from detector.recipes import model_config, recipe_names

SMALL = {
    "backbone": "r18",
    "weights": "none",
    "neck": {"channels": 64},
    "head": {"convolutions": 1, "quality_branch": "iou", "classification_loss": "qfl"},
}


@pytest.fixture(scope="module")
def model():
    """An untrained detector that finds things, since its class scores vary."""
    model = detector.build(SMALL, num_classes=3)
    model.short_side, model.long_side = 96, 160
    with torch.no_grad():
        model.network.head.class_logits.bias.add_(3.0)
        model.network.head.class_logits.weight.mul_(30.0)
        model.network.head.box_deltas.weight.mul_(30.0)
    return model.eval()


def picture(width, height, seed=0):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_one_image_in_any_form_gives_the_same_boxes(model, tmp_path):
    image = picture(200, 130)
    image.save(tmp_path / "a.png")
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = model.predict(image)
    assert len(expected) > 10
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), array, tensor):
        found = model.predict(form)
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)
    assert expected.boxes.dtype == torch.float32
    assert expected.boxes.shape == (len(expected), 4)
    assert expected.labels.dtype == torch.int64
    assert (expected.boxes[:, :2] >= 0).all()
    assert (expected.boxes[:, 2] <= 200).all()
    assert (expected.boxes[:, 3] <= 130).all()
    assert (expected.boxes[:, 2:] > expected.boxes[:, :2]).all()
    assert (expected.scores.diff() <= 0).all()
    assert set(expected.names) <= {"class 0", "class 1", "class 2"}
    assert torch.equal(expected.category_ids, expected.labels + 1)


def test_a_turned_photograph_is_seen_upright_in_any_form(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    picture(200, 130).save(tmp_path / "turned.jpg", exif=exif)
    by_path = model.predict(tmp_path / "turned.jpg")
    opened = model.predict(Image.open(tmp_path / "turned.jpg"))
    assert torch.equal(by_path.boxes, opened.boxes)
    assert float(by_path.boxes[:, 3].max()) > 130  # 130 wide and 200 high
    by_path.boxes[0] += 1  # results are ordinary tensors


def test_a_list_of_any_sizes_equals_one_at_a_time(model):
    images = [picture(*size, seed=n) for n, size in enumerate([(200, 130), (130, 200), (96, 96), (203, 131), (20, 9)])]
    together = model.predict(images)
    assert isinstance(together, list)
    for image, found in zip(images, together, strict=True):
        alone = model.predict(image)
        assert torch.allclose(found.boxes, alone.boxes, atol=0.05)
        assert torch.allclose(found.scores, alone.scores, atol=1e-3)


def test_a_score_threshold_bounds_what_is_returned(model):
    image = picture(200, 130)
    everything = model.predict(image)
    middle = float(everything.scores[len(everything) // 2])
    found = model.predict(image, score_threshold=middle)
    assert torch.equal(found.scores, everything.scores[everything.scores > middle])
    assert len(model.predict(image, max_detections=3)) == 3
    assert len(model.predict(image, score_threshold=1.0)) == 0


def test_class_agnostic_suppression_leaves_no_overlap_between_classes(model):
    from torchvision.ops import box_iou

    found = model.predict(picture(200, 130), class_agnostic=True)
    assert (box_iou(found.boxes, found.boxes).triu(1) <= 0.6 + 1e-4).all()


def test_suppression_equals_torchvisions_batched():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + 5 + torch.rand(400, 2, generator=generator) * 40), 1)
    scores, labels = torch.rand(400, generator=generator), torch.randint(5, (400,), generator=generator)
    assert torch.equal(suppress(boxes, scores, labels, 0.6), batched_nms(boxes, scores, labels, 0.6))


def test_results_in_cocos_form_and_drawn(model):
    image = picture(200, 130)
    found = model.predict(image)
    row = found.to_coco(42)[0]
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert row["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
    assert (row["image_id"], row["category_id"]) == (42, found.category_ids[0])
    json.dumps(row)
    assert found.to_coco(np.int64(42))[0] == row
    for wrong in ("a", "42", None, 4.2, True):
        with pytest.raises(InputError, match=f"image_id is {wrong!r}; give the image's id in the data set, a whole"):
            found.to_coco(wrong)
    drawn = found.draw(image)
    assert drawn.size == image.size
    assert np.any(np.array(drawn) != np.array(image))


def test_boxes_are_drawn_on_the_image_they_were_found_in(model):
    image = picture(200, 130)
    for found in (model.predict(image), model.predict([image], flip=True)[0]):
        assert found.size == (130, 200)
        for other in (image.resize((100, 65)), image.rotate(90, expand=True)):
            with pytest.raises(
                InputError, match=r"is \d+ x \d+ pixels, and the boxes are in pixels of one of 200 x 130"
            ):
                found.draw(other)
        assert found.scaled(0.5, 0.5).draw(image.resize((100, 65))).size == (100, 65)


def test_saved_and_loaded_finds_the_same(model, tmp_path):
    save_model(model, tmp_path / "model")
    for source in (tmp_path / "model", str(tmp_path / "model" / "model.safetensors"), tmp_path):
        loaded = detector.load(source, device="cpu")
        assert torch.equal(loaded.predict(picture(200, 130)).boxes, model.predict(picture(200, 130)).boxes)
        assert (loaded.short_side, loaded.long_side, loaded.categories) == (96, 160, model.categories)


def test_a_built_detector_is_saved_and_loaded_with_its_names(tmp_path):
    built = detector.build(SMALL, categories=["cup", "plate"], seed=3).eval()
    built.short_side, built.long_side = 96, 160
    assert built.categories == ((1, "cup"), (2, "plate"))
    folder = built.save(tmp_path / "new" / "model")
    loaded = detector.load(folder, device="cpu")
    assert (loaded.config, loaded.categories, loaded.short_side) == (built.config, built.categories, 96)
    one, other = (each.predict(picture(200, 130), score_threshold=0.0) for each in (built, loaded))
    assert len(one) > 0
    assert torch.equal(one.boxes, other.boxes)
    assert torch.equal(one.scores, other.scores)
    assert one.names == other.names
    assert set(one.names) <= {"cup", "plate"}


def test_saving_replaces_a_model_and_writes_over_nothing_else(model, tmp_path):
    detector.build(SMALL, num_classes=5).save(str(tmp_path))
    model.save(str(tmp_path))
    assert len(detector.load(tmp_path, device="cpu").categories) == 3
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="notes is a file, and a model is saved as a folder"):
        model.save(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    with pytest.raises(UnreachableError, match=r"can't be written \(.*\); name another folder"):
        model.save(tmp_path / "notes" / "model")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "detector.load is given None instead of a name; give a folder, a file, "),
        (7, "detector.load is given an object of type int instead of a name"),
        (b"model", "detector.load is given an object of type bytes instead of a name"),
        ({"a": torch.zeros(1)}, r"a table of tensors, but reads files; write it by torch.save\(state_dict, FILE\)"),
    ],
)
def test_what_names_no_model_is_one_sentence(source, sentence):
    with pytest.raises(InputError, match=sentence):
        detector.load(source)


def test_a_damaged_model_is_refused_whole(model, tmp_path):
    save_model(model, tmp_path)
    weights, description = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), description.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated or no safetensors"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    description.write_text(text.replace('"channels": 64', '"channels": 96'))
    with pytest.raises(InputError, match=r"doesn't fit .* tensors differ"):
        load_model(tmp_path)
    description.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match="newer version"):
        load_model(tmp_path)
    description.write_text("{")
    with pytest.raises(InputError, match="doesn't describe a model"):
        load_model(tmp_path)
    description.unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["model"].update(norm=None), r"config\.json: norm is null"),
        (lambda d: d["input"].update(short_side=0), r"config\.json: short_side is 0, but must be"),
        (lambda d: d["model"].update(depth=3), r'unknown key "depth"'),
        (lambda d: d["model"]["head"].update(convolutions="many"), r"head\.convolutions is \"many\""),
        (lambda d: d.update(categories=[]), "categories must be a list"),
        (lambda d: d.update(categories=[{"id": "1", "name": "a"}] * 3), "categories must be a list"),
        (lambda d: d.update(categories=7), "doesn't describe a model"),
        (lambda d: d.pop("input"), "it has no 'input'"),
        (lambda d: d.update(model=[]), "must be"),
    ],
)
def test_a_description_that_is_wrong_is_one_sentence(model, tmp_path, change, sentence):
    save_model(model, tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match=sentence) as caught:
        load_model(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:77", "foo"])
def test_a_device_that_is_not_there(model, tmp_path, device):
    save_model(model, tmp_path)
    with pytest.raises(InputError, match=f"the device '{device}' can't be used here"):
        detector.load(tmp_path, device=device)


def test_models_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no model at"):
        detector.load(tmp_path / "nowhere")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match=r"no MLflow store at sqlite:///.*tracking_uri"):
        detector.load("runs:/0123456789abcdef0123456789abcdef/model", tracking_uri=store)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("missing.jpg", "missing.jpg can't be read: No such file"),
        (np.zeros((4, 4), np.uint8), r"uint8 RGB of shape \(H, W, 3\)"),
        (np.zeros((4, 4, 3)), "float64"),
        (torch.zeros(3, 4, 4), "float32"),
        (7, "not int"),
    ],
)
def test_what_is_no_image_is_named(model, image, sentence):
    with pytest.raises(InputError, match=sentence):
        model.predict(image)


def test_recipes_build_what_their_names_say():
    final = model_config("dynamic_atss_r50")
    assert (final.head.quality_branch, final.head.classification_loss) == ("iou", "qfl")
    assert (final.assigner.predicted_weight, final.assigner.anchor_weight) == (1, 1)
    plain = model_config("atss_x101_64x4d")
    assert (plain.head.quality_branch, plain.head.classification_loss) == ("centerness", "focal")
    assert (plain.assigner.predicted_weight, plain.assigner.anchor_weight) == (0, 1)
    assert len(recipe_names()) == 9 * 12
    with pytest.raises(InputError, match="did you mean dynamic_atss_r50"):
        model_config("dynamic_ats_r50")


def test_building_by_name_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match=r"resnet18-f37072fd\.pth is not in"):
        model = detector.build("dynamic_atss_r18", num_classes=80)
    outputs = model.network(torch.zeros(1, 3, 64, 96))
    assert tuple(outputs.class_logits[0].shape[1:]) == (80, 8, 12)
    losses = model.loss(outputs, [torch.tensor([[8.0, 8.0, 40.0, 50.0]])], [torch.tensor([7])])
    assert set(losses) == {"loss_cls", "loss_reg", "loss_quality"}


def test_build_says_what_is_wrong():
    with pytest.raises(InputError, match="num_classes is needed"):
        detector.build(ModelConfig(weights="none"))
    with pytest.raises(InputError, match=r"model\.head\.convolution"):
        detector.build({"head": {"convolution": 3}}, num_classes=2)
    for classes in ("2", 2.5, True, 0, -1, 10**9):
        with pytest.raises(InputError, match=f"num_classes is {classes!r}; give a whole number"):
            detector.build(SMALL, num_classes=classes)
    with pytest.raises(InputError, match="seed is -1"):
        detector.build(SMALL, num_classes=2, seed=-1)
    for wrong in (None, 7, []):
        with pytest.raises(InputError, match=r"^model: "):
            detector.build(wrong, num_classes=2)
    assert len(detector.build(SMALL, num_classes=np.int64(2)).categories) == 2


def test_names_and_number_of_classes_agree():
    for given in ({}, {"num_classes": 2}):
        built = detector.build(SMALL, categories=("cup", "plate"), **given)
        assert ([each.name for each in built.categories], built.config.num_classes) == (["cup", "plate"], 2)
    # As without names, the number that is given stands in for the configuration's.
    assert len(detector.build({**SMALL, "num_classes": 3}, num_classes=2, categories=["cup", "plate"]).categories) == 2
    for model, given in ((SMALL, {"num_classes": 3}), ({**SMALL, "num_classes": 3}, {})):
        with pytest.raises(InputError, match=r"num_classes is 3, but categories has 2 names \(cup, plate\); leave"):
            detector.build(model, categories=["cup", "plate"], **given)
    for wrong in ("cup", [], {"cup": 1}, ["cup", 7], ["cup", " "], [None], 5):
        with pytest.raises(InputError, match=r"categories has .*; give a list of names, one for each class"):
            detector.build(SMALL, categories=wrong)
    with pytest.raises(InputError, match="categories names 'cup' twice"):
        detector.build(SMALL, categories=["cup", "plate", "cup"])
