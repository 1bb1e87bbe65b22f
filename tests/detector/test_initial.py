"""model.init: a training that starts from a whole detector takes what fits, and says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import detector
from detector import train
from detector.checkpoints import save_model
from detector.config import ModelConfig
from detector.data.coco import Category
from detector.data.synthetic import generate
from detector.errors import InputError
from detector.model import build_model
from detector.weights import resolve_weights
from tests.detector.conftest import GENERATED
from tests.detector.foreign.networks import MMDetection, randomise

SMALL = {"backbone": "r18", "weights": "none", "neck": {"channels": 64}, "head": {"convolutions": 1}}
FIVE = [Category(label, f"thing {label}") for label in range(1, 6)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A saved model of ours of three classes."""
    folder = tmp_path_factory.mktemp("ours")
    save_model(detector.build(SMALL, num_classes=3, seed=7), folder)
    return folder


@pytest.fixture(scope="module")
def atss(tmp_path_factory):
    """mmdetection's ATSS of 80 classes."""
    path = tmp_path_factory.mktemp("mmdet") / "atss.pth"
    torch.save({"state_dict": randomise(MMDetection("atss")).state_dict()}, path)
    return path


@pytest.mark.parametrize("form", ["folder", "model.safetensors", "other name"])
def test_of_a_model_of_ours_all_but_the_class_layer_is_taken(form, ours, tmp_path, capsys):
    source = ours if form == "folder" else ours / "model.safetensors"
    if form == "other name":
        for name, renamed in (("config.json", "config.json"), ("model.safetensors", "best.safetensors")):
            (tmp_path / renamed).write_bytes((ours / name).read_bytes())
        source = tmp_path / "best.safetensors"
    model = build_model(ModelConfig.model_validate({**SMALL, "init": str(source)}), FIVE, seed=1)
    theirs = detector.load(ours, device="cpu").network.state_dict()
    mine = model.network.state_dict()
    differing = [key for key in mine if mine[key].shape != theirs[key].shape or not torch.equal(mine[key], theirs[key])]
    assert differing == ["head.class_logits.weight", "head.class_logits.bias"]
    assert float(mine["head.class_logits.bias"][0].sigmoid()) == pytest.approx(0.01)
    assert (model.config.norm, len(model.categories)) == ("gn", 5)
    said = capsys.readouterr().err
    assert f"{len(mine) - 2} tensors taken" in said
    assert "2 skipped, for they don't fit: head.class_logits.bias, head.class_logits.weight" in said
    assert "2 new: head.class_logits.weight, head.class_logits.bias" in said
    assert "careful" not in said


def test_of_another_project_s_file_what_fits_is_taken_and_other_conventions_are_told(atss, capsys):
    """The authors' recipe has biases in its towers, another ReLU and other anchors."""
    config = ModelConfig.model_validate({"init": str(atss), "head": {"quality_branch": "iou"}, "backbone": "r50"})
    model = build_model(config, FIVE)
    state = torch.load(atss, weights_only=True)["state_dict"]
    network = model.network.state_dict()
    assert torch.equal(network["backbone.layer2.0.bn1.running_var"], state["backbone.layer2.0.bn1.running_var"])
    assert torch.equal(network["head.box_tower.0.weight"], state["bbox_head.reg_convs.0.conv.weight"])
    assert torch.equal(network["head.scales"], torch.stack([state[f"bbox_head.scales.{n}.scale"] for n in range(5)]))
    assert network["head.class_logits.weight"].shape[0] == 5
    assert not any(parameter.requires_grad for parameter in model.network.backbone.layer1.parameters())
    said = capsys.readouterr().err
    assert "10 new: head.class_tower.0.bias, " in said
    assert "careful: model.anchors.center_offset is 0.5 here, but the tensors were trained with 0.0" in said
    assert "careful: model.neck.relu_before_p7 is True here, but the tensors were trained with False" in said


def test_equal_classes_keep_their_layer_and_others_of_equal_number_do_not(tmp_path):
    config = ModelConfig.model_validate(SMALL)
    theirs = build_model(config, FIVE, seed=3)
    save_model(theirs, tmp_path)
    start = config.model_copy(update={"init": str(tmp_path)})
    others = [Category(label, f"fruit {label}") for label in range(1, 6)]
    weight = theirs.network.head.class_logits.weight
    assert torch.equal(build_model(start, FIVE, seed=1).network.head.class_logits.weight, weight)
    assert not torch.equal(build_model(start, others, seed=1).network.head.class_logits.weight, weight)


def test_resolving_needs_no_backbone_weights_and_refuses_what_is_not_there(ours, atss, tmp_path):
    resolved = resolve_weights(ModelConfig(backbone="x101_32x4d", init=str(atss)))  # torchvision has none of these
    assert (resolved.weights, resolved.norm, resolved.init) == ("imagenet", "frozen_bn", str(atss))
    assert resolve_weights(resolved) == resolved
    resolved = resolve_weights(ModelConfig(backbone="r18", init=str(ours / "model.safetensors")))
    assert (resolved.weights, resolved.norm, resolved.init) == ("none", "gn", str(ours))
    named = resolve_weights(ModelConfig(init="mmdet:gfl_r50_fpn_1x_coco"))
    assert named.init == "mmdet:gfl_r50_fpn_1x_coco"
    with pytest.raises(InputError, match=r"model\.init names nowhere\.pth, and there is no such file"):
        resolve_weights(ModelConfig(init="nowhere.pth"))
    with pytest.raises(InputError, match="there is no published detector"):
        resolve_weights(ModelConfig(init="mmdet:nothing"))
    with pytest.raises(InputError, match=r"both name a file, .*; leave model\.weights out"):
        resolve_weights(ModelConfig(init=str(atss), weights=str(atss)))
    with pytest.raises(InputError, match="is no saved model"):
        resolve_weights(ModelConfig(init=str(tmp_path)))


NO_TENSORS = [
    ("notes.pth", b"not tensors", "is no checkpoint: torch.save didn't write it"),
    ("empty.pth", b"", "is empty"),
    ("notes.safetensors", b"not tensors", "is truncated or no safetensors file"),
]


@pytest.mark.parametrize("key", ["init", "weights"])
@pytest.mark.parametrize(("name", "content", "sentence"), NO_TENSORS)
def test_what_holds_no_tensors_is_refused_before_anything_is_made(key, name, content, sentence, tmp_path, capsys):
    root = generate(GENERATED, tmp_path / "set", progress=False)
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "run"
    words = ["--set", f"model.{key}={tmp_path / name}", "--output", str(output), "--device", "cpu"]
    assert train.main([str(root), "--recipe", "atss_r18", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: model.{key}: {tmp_path / name} {sentence}")
    assert not output.exists()


def test_a_plan_looks_into_files_without_torch(tmp_path):
    (tmp_path / "notes.pth").write_text("not tensors")
    code = f"""
import sys
from detector.config import ModelConfig
from detector.errors import InputError
from detector.weights import resolve_weights
try:
    resolve_weights(ModelConfig(init={str(tmp_path / "notes.pth")!r}))
except InputError as error:
    print(error)
print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, heavy = done.stdout.splitlines()
    assert said.startswith("model.init: ")
    assert heavy == "False"


@pytest.mark.parametrize("fields", [{"backbone": "r34"}, {"norm": "frozen_bn"}])
def test_another_backbone_is_refused(fields, ours):
    config = ModelConfig.model_validate({**SMALL, **fields, "init": str(ours)})
    with pytest.raises(InputError, match=r"is r18 with gn, and model.backbone is .*set model\.backbone: r18 and model"):
        build_model(config, FIVE)


def test_the_command_trains_from_it(ours, tmp_path, capsys):
    root = generate(GENERATED, tmp_path / "set")
    output = tmp_path / "run"
    settings = ["model.neck.channels=64", "model.head.convolutions=1", "data.short_side=64", "data.long_side=96"]
    settings += ["schedule.batch_size=4", "schedule.iterations=2", f"model.init={ours}"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert train.main([str(root), "--recipe", "atss_r18", *words, "--output", str(output), "--device", "cpu"]) == 0
    assert "tensors taken" in capsys.readouterr().err
    assert json.loads((output / "config.json").read_text())["model"]["init"] == str(ours)
    assert len(detector.load(output / "model", device="cpu").categories) == 3
