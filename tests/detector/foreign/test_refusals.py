"""What isn't a checkpoint that fits is refused whole, and the sentence says which of the possible faults it is."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn_v2

import detector
from detector.checkpoints import main, save_model
from detector.errors import InputError
from detector.recipes import model_config
from tests.detector.foreign.networks import MMDetection, OriginalATSS


@pytest.fixture(scope="module")
def atss():
    """The state dict of mmdetection's ATSS of three classes."""
    return MMDetection("atss", classes=3).state_dict()


def saved(path, content):
    torch.save(content, path)
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        detector.load(path, device="cpu")
    return " ".join(str(caught.value).split())


CLASSES, P6 = "bbox_head.atss_cls.weight", "neck.fpn_convs.3.conv.weight"
CHANGES = {
    "an unknown key": ({"bbox_head.extra.weight": torch.zeros(3)}, (), "1 unmatched key: bbox_head.extra.weight"),
    "a missing key": ({}, (P6,), f"1 missing key: {P6}"),
    "a missing factor": ({}, ("bbox_head.scales.4.scale",), "1 missing key: bbox_head.scales.4.scale"),
    "another shape": (
        {P6: torch.zeros(256, 512, 3, 3)},
        (),
        f"1 key with another shape: {P6} (256, 512, 3, 3) instead of (256, 256, 3, 3)",
    ),
    "class layers of two minds": (
        {CLASSES: torch.zeros(5, 256, 3, 3)},
        (),
        "bbox_head.atss_cls.bias (3,) instead of (5,)",
    ),
    "another pyramid": (
        {f"neck.lateral_convs.3.conv.{kind}": torch.zeros(1) for kind in ("bias", "weight")},
        (),
        "2 unmatched keys: neck.lateral_convs.3.conv.bias, neck.lateral_convs.3.conv.weight",
    ),
    "another depth": ({}, ("backbone.layer3.5.conv1.weight",), "1 missing key: backbone.layer3.5.conv1.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_doesn_t_match_is_listed_and_nothing_is_loaded(change, atss, tmp_path):
    added, removed, expected = CHANGES[change]
    state = {key: value for key, value in (atss | added).items() if key not in removed}
    sentence = refusal(saved(tmp_path / "file.pth", {"state_dict": state}))
    assert "looks like mmdetection's ATSS, but doesn't fit, and nothing was loaded" in sentence
    assert expected in sentence
    assert f"set model.init: {tmp_path / 'file.pth'}" in sentence


def test_an_unknown_backbone_is_named(atss, tmp_path):
    state = {key: value for key, value in atss.items() if not key.startswith("backbone.layer3.5.")}
    assert "its backbone has 3-4-5-3 blocks in its stages" in refusal(saved(tmp_path / "file.pth", state))


def test_other_anchors_than_ours_are_refused(tmp_path):
    state = OriginalATSS(classes=3).state_dict()
    state["rpn.anchor_generator.cell_anchors.0"] = torch.tensor([[-12.0, -12.0, 20.0, 20.0]])
    sentence = refusal(saved(tmp_path / "file.pth", {"model": state}))
    assert "cell_anchors.0 [-12.0, -12.0, 20.0, 20.0] instead of [-27.5, -27.5, 35.5, 35.5]" in sentence


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def script() -> bytes:
    """A TorchScript archive, as far as torch tells one: by its constants."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"script/{name}", pickle.dumps((), 2) if name.endswith("pkl") else "3\n")
    return content.getvalue()


FILES = {
    "text.pth": (lambda path: path.write_text("hello"), "no checkpoint: torch.save didn't write it"),
    "empty.pth": (lambda path: path.write_bytes(b""), "is empty"),
    "object.pth": (
        lambda path: torch.save(nn.Linear(1, 1), path),
        "holds a whole model as a pickled object (torch.nn.modules.linear.Linear), which runs code when it is read, so "
        "it is refused; in the environment that made it, save its tensors alone: torch.save(model.state_dict(), FILE)",
    ),
    "wrapped.pt": (
        lambda path: torch.save({"epoch": 3, "model": nn.Linear(1, 1)}, path, pickle_protocol=4),
        "holds a whole model as a pickled object",
    ),
    "script.pt": (lambda path: path.write_bytes(script()), "is a TorchScript archive"),
    "evil.pth": (lambda path: torch.save({"state_dict": {"a": Evil()}}, path), "holds pickled objects"),
    "old.pth": (
        lambda path: torch.save(nn.Linear(1, 1), path, _use_new_zipfile_serialization=False),
        "in the environment that made it",
    ),
    "list.pt": (lambda path: torch.save([torch.zeros(1)], path), "no checkpoint: it holds a list instead of tensors"),
    "nothing.pt": (lambda path: torch.save({}, path), "no checkpoint: it holds an empty table"),
    "numbers.pt": (lambda path: torch.save({"epoch": 3}, path), "beside tensors it holds epoch"),
    "cut.safetensors": (lambda path: path.write_bytes(b"\x08\0\0\0\0\0\0\0{"), "truncated or no safetensors file"),
    "other.safetensors": (
        lambda path: save_file({"a": torch.zeros(2)}, path),
        "is another model: its 1 tensor (a) fit",
    ),
    "backbone.pth": (lambda path: torch.save(resnet18().state_dict(), path), "a backbone alone and no detector"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_said(name, tmp_path, capsys):
    write, expected = FILES[name]
    write(tmp_path / name)
    assert expected in refusal(tmp_path / name)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.99])
def test_a_truncated_file_is_called_truncated(zipped, part, atss, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": atss}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "truncated or damaged; fetch it again" in refusal(path)


def test_torchvision_s_second_retinanet_is_called_what_it_is(tmp_path):
    state = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2).state_dict()
    sentence = refusal(saved(tmp_path / "file.pth", state))
    assert "is torchvision's RetinaNet v2 (retinanet_resnet50_fpn_v2" in sentence
    assert "isn't supported; use it with torchvision, or load the first version" in sentence
    assert "v1" not in sentence


@pytest.mark.parametrize("name", ["object.pth", "wrapped.pt", "evil.pth", "script.pt"])
def test_torch_s_own_remarks_don_t_precede_the_sentence(name, tmp_path):
    FILES[name][0](tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal(tmp_path / name)


def test_other_warnings_still_come_through(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "file.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: warnings.warn("something else", stacklevel=1))
    with pytest.warns(UserWarning, match="something else"):
        refusal(tmp_path / "file.pth")


TOWER, SCALE = "bbox_head.reg_convs.1.gn.weight", "bbox_head.scales.2.scale"


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        ({TOWER: float("nan")}, "1 of its {} tensors has NaN or infinite values, the first is head.box_tower.4.weight"),
        (
            {TOWER: float("inf"), SCALE: float("-inf")},
            "2 of its {} tensors have NaN or infinite values, the first is head.",
        ),
    ],
)
def test_weights_that_aren_t_numbers_are_refused_and_inspect_says_so(spoilt, sentence, atss, tmp_path, capsys):
    state = {key: tensor.clone() for key, tensor in atss.items()}
    for key, value in spoilt.items():
        state[key].view(-1)[0] = value
    path = saved(tmp_path / "file.pth", state)
    count = len(detector.load(saved(tmp_path / "good.pth", atss), device="cpu").network.state_dict())
    for said in (refusal(path), inspected(path, capsys)):
        assert sentence.format(count) in said
        assert said.endswith("take an earlier checkpoint of that training, or fetch the file again")
    assert "everything matches" not in inspected(path, capsys)


def test_a_model_of_ours_that_isn_t_finite_is_refused_too(tmp_path, capsys):
    model = detector.build({"backbone": "r18", "weights": "none", "neck": {"channels": 64}}, num_classes=2)
    with torch.no_grad():
        model.network.neck.p6.weight[0, 0, 0, 0] = float("nan")
    save_model(model, tmp_path)
    assert "1 of its " in refusal(tmp_path)
    assert "the first is neck.p6.weight" in refusal(tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "the first is neck.p6.weight" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^model\.init: .* the first is neck\.p6\.weight"):
        detector.build({"backbone": "r18", "neck": {"channels": 64}, "init": str(tmp_path)}, num_classes=2)


def inspected(path, capsys):
    """What inspect prints of a file that can't be loaded."""
    assert main(["inspect", str(path)]) == 2
    return capsys.readouterr().out.strip()


def test_plain_numbers_of_numpy_pass_and_no_other_objects(atss, tmp_path):
    meta = {"time": np.float64(1.5), "epoch": np.int64(3), "CLASSES": ("a", "b", "c"), "config": "model = dict()"}
    path = saved(tmp_path / "file.pth", {"state_dict": atss, "meta": meta})
    assert len(detector.load(path, device="cpu").categories) == 3
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / "older.pth", "w") as old:
        for name in new.namelist():  # as NumPy's first version wrote them
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(detector.load(tmp_path / "older.pth", device="cpu").categories) == 3
    saved(path, {"state_dict": atss, "meta": {"args": argparse.Namespace(lr=1)}})
    sentence = refusal(path)
    assert "pickled objects (argparse.Namespace)" in sentence
    assert "torch.save(torch.load(" in sentence


def test_our_own_tensors_under_another_name(tmp_path):
    model = detector.build({"backbone": "r18", "weights": "none", "neck": {"channels": 64}}, num_classes=2)
    save_model(model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    for name in ("other.safetensors", "whole.pth"):
        loaded = detector.load(tmp_path / name, device="cpu")
        assert torch.equal(loaded.network.neck.p6.weight, model.network.neck.p6.weight)
    description = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        description.replace('"name": "class 1"', '"name": "class 1"}, {"id": 9, "name": "x"')
    )
    sentence = refusal(tmp_path / "other.safetensors")
    assert "its class layer is for another number of classes than the 3 that it names" in sentence
    assert "set model.init" in sentence
    (tmp_path / "config.json").unlink()
    assert "put the config.json that was written with it beside it" in refusal(tmp_path / "whole.pth")


def test_inspect_says_what_a_file_is(atss, tmp_path, capsys):
    path = saved(tmp_path / "file.pth", {"state_dict": atss})
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for line in (
        "what: mmdetection's ATSS",
        "Apache-2.0",
        "model: atss on r50, 3 classes (class 0, class 1, class 2)",
        "  model.anchors.center_offset: 0.0",
        "  model.pixels.mean: 123.675, 116.28, 103.53",
        "  model.postprocess.ranking: class",
        "everything matches",
    ):
        assert line in said
    state = {key: value for key, value in atss.items() if not key.startswith("neck.fpn_convs.4")}
    assert main(["inspect", str(saved(path, state))]) == 2
    assert "2 missing keys: neck.fpn_convs.4.conv.weight, neck.fpn_convs.4.conv.bias" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "nowhere.pth")]) == 2
    assert "there is no model at" in capsys.readouterr().err


@pytest.mark.parametrize(("head", "scored"), [("retinanet", True), ("gfl", True), ("gflv2", False), ("atss", False)])
def test_inspect_says_by_what_a_model_without_quality_ranks(head, scored, tmp_path, capsys):
    """As the network does: where there is no quality, its outputs have none to multiply by."""
    fields = {**model_config(f"{head}_r18").model_dump(), "weights": "none", "norm": "gn", "backbone": "r18"}
    model = detector.build(fields, num_classes=1)
    save_model(model, tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"model: {head} on r18, 1 class (class 0)" in said
    assert (model.network(torch.zeros(1, 3, 64, 64)).quality_logits is None) == scored
    for key in ("ranking", "score"):
        assert (f"  model.postprocess.{key}: class score, for there is no other" in said) == scored


def test_the_command_s_help_needs_no_torch():
    code = "import sys; from detector.checkpoints import _parser; _parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
