"""The exported graph in ONNX Runtime finds what ``predict`` finds, at sizes other than the one it was traced at.

Export takes up to a minute for each network: what traces a graph, and what rewrites it, is PyTorch's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import export
from detector.checkpoints import save_model
from detector.config import ModelConfig
from detector.data.coco import Category
from detector.detections import Detections
from detector.errors import InputError
from detector.export import export as export_model
from detector.model import build_model
from detector.recipes import model_config
from tests.detector.talkative import NETWORKS, picture, talkative

onnxruntime = pytest.importorskip("onnxruntime")

# Two that are not square, one whose P6 and P7 have odd sizes (torchvision's rounded strides), and one beyond the
# bound of most images. The graph is traced at 256 x 320.
SIZES = [(160, 416), (288, 224), (64, 96), (480, 736)]


def coarse(height, width, dtype=np.uint8):
    """Coloured noise (1, 3, H, W), 5 rows and 7 columns less than that of which are not padding."""
    generator = np.random.default_rng(height)
    noise = np.kron(generator.integers(0, 256, (1, 3, height // 16, width // 16)), np.ones((16, 16)))
    noise[:, :, height - 5 :], noise[..., width - 7 :] = 0, 0
    return noise.astype(dtype), np.array([height - 5, width - 7])


def same_sets(boxes, scores, labels, expected: Detections, *, pixels=1e-3, points=1e-4):
    """Each detection has a counterpart with the same label, its box to so many pixels, its score to so many points."""
    assert len(scores) == len(expected) > 0
    near = np.abs(boxes[:, None] - expected.boxes.numpy()).max(-1) < pixels
    near &= np.abs(scores[:, None] - expected.scores.numpy()) < points
    near &= labels[:, None] == expected.labels.numpy()
    # Where the last scores are equal, another may be the last.
    certain = scores > scores.min() + points
    assert near.any(1)[certain].all()
    assert (np.diff(scores) <= 0).all()


def compare(model, path, sizes=SIZES, **options):
    """``options`` are those of ``model.postprocess``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtype = np.float32 if model.resize == "torchvision" else np.uint8
    for height, width in sizes:
        image, size = coarse(height, width, dtype)
        found = session.run(["boxes", "scores", "labels"], {"image": image, "size": size})
        with torch.no_grad():
            outputs = model.network(model.normalise(torch.from_numpy(image), torch.from_numpy(size)[None]))
            expected = model.postprocess(outputs, [tuple(size)], **{"max_detections": 100, **options})[0]
        same_sets(*found, expected)
    return session


@pytest.mark.parametrize(
    "family",
    [
        family if family == "dynamic_atss" else pytest.param(family, marks=pytest.mark.slow)
        for family in NETWORKS
        if family != "fcos"
    ],
)
def test_each_head(family, tmp_path):
    model = talkative(f"{family}_r18")
    model.train()
    assert model.export(tmp_path / "model.onnx") == tmp_path / "model.onnx"
    assert model.training
    model.eval()
    session = compare(model, tmp_path / "model.onnx")
    assert [tuple(entry.shape) for entry in session.get_inputs()] == [(1, 3, "height", "width"), (2,)]
    said = json.loads(session.get_modelmeta().custom_metadata_map["detsweep"])
    assert [entry["id"] for entry in said["categories"]] == [1, 2, 3, 4]
    assert said["input"]["short_side"] == 96
    if family == "dynamic_atss":
        as_the_page_says(model, tmp_path)


def as_the_page_says(model, folder):
    """The lines of docs/inference.md that run a graph find what ``predict`` finds in the file of an image.

    But for what Pillow's resizing and ours round differently: a 255th here and there.
    """
    picture(500, 333).save(folder / "street.jpg")
    page = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
    lines = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "InferenceSession" in block)
    places = {name: str(folder / name) for name in ("model.onnx", "street.jpg")}
    for name, place in places.items():
        lines = lines.replace(f'"{name}"', repr(place))
    found: dict = {}
    exec(lines, found)
    expected = model.predict(places["street.jpg"])
    assert found["names"][0] == expected.names[0]
    same_sets(found["boxes"], found["scores"], found["labels"], expected, pixels=1.0, points=0.01)


def test_the_command_and_its_options(tmp_path, capsys):
    model = talkative("fcos_r18")
    model.resize = "torchvision"  # its input isn't whole numbers
    save_model(model, tmp_path / "model")
    path = tmp_path / "found.onnx"
    options = ["--score-threshold", "0.6", "--max-detections", "70"]
    assert export.main([str(tmp_path / "model"), "--out", str(path), *options]) == 0
    assert capsys.readouterr().out.startswith(str(path))
    session = compare(model, path, min_score=0.6, max_detections=70)
    nothing = session.run(None, {"image": np.zeros((1, 3, 64, 64), np.float32), "size": np.array([0, 0])})
    assert len(nothing[0]) == len(nothing[1]) == len(nothing[2]) <= 70


@pytest.mark.slow
def test_deformable_convolutions_and_frozen_normalisation(tmp_path):
    fields = model_config("dynamic_atss_r50_dcn").model_dump(mode="json")
    fields["neck"]["channels"], fields["head"]["convolutions"] = 64, 1
    config = ModelConfig.model_validate(fields | {"norm": "frozen_bn"})
    model = build_model(config, [Category(7, "thing"), Category(9, "other")], pretrained=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.network.head.class_logits.bias.add_(3.0)
        for name, value in model.network.named_parameters():
            if "offset.weight" in name:  # sampling points that differ from the plain ones
                value.copy_(torch.randn(value.shape, generator=generator) * 0.005)
    export_model(model, tmp_path / "model.onnx")
    compare(model, tmp_path / "model.onnx", SIZES[:2])


def test_what_cannot_be_exported_is_one_sentence(tmp_path):
    model = talkative("atss_r18")
    for wrong, sentence in (
        ({"max_detections": 0}, "max_detections is 0"),
        ({"score_threshold": 7}, "score_threshold is 7"),
    ):
        with pytest.raises(InputError, match=sentence):
            export_model(model, tmp_path / "model.onnx", **wrong)
    for path in (tmp_path, tmp_path / "nowhere" / "model.onnx"):
        with pytest.raises(InputError, match="can't be written"):
            export_model(model, path)
    assert not list(tmp_path.iterdir())
