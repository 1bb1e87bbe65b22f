"""Backbones of timm: its own features, normalisation that doesn't depend on the split, weights and refusals."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import detector
from detector.backbones import build_backbone, load_pretrained
from detector.checkpoints import load_model, save_model
from detector.config import ModelConfig
from detector.errors import InputError
from detector.timm_backbone import GroupNormAct
from detector.weights import resolve_weights
from tests.detector.conftest import small_config
from tests.detector.test_training import TrainingState, first_gradients

timm = pytest.importorskip("timm")


def config_of(name: str, **fields) -> ModelConfig:
    return resolve_weights(ModelConfig.model_validate({"backbone": f"timm:{name}", "weights": "none", **fields}))


def frozen(name: str) -> nn.Module:
    """With frozen batch normalisation and random weights, as if these had been loaded."""
    return build_backbone(config_of(name).model_copy(update={"norm": "frozen_bn", "weights": "file"}))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_features_are_timms_own(name):
    backbone = frozen(name)
    whole = timm.create_model(name, features_only=True, **({"strict_img_size": False} if "swin" in name else {}))
    keys = backbone.body.state_dict()
    whole.load_state_dict({key: keys.get(key, value) for key, value in whole.state_dict().items()})
    whole.eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        found, theirs = backbone.eval()(images), whole(images)
    if "swin" in name:
        theirs = [feature.permute(0, 3, 1, 2) for feature in theirs]
    kept = [feature for feature in theirs if feature.shape[-1] in (16, 8, 4)]
    assert [tuple(feature.shape) for feature in found] == [
        (2, channels, 96 // stride, 128 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    for mine, other in zip(found, kept, strict=True):
        torch.testing.assert_close(mine, other)


def test_frozen_normalisation_stays_whatever_train_is_called_with():
    backbone = frozen("test_efficientnet")
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert norms
    for mode in (True, False, True):
        backbone.train(mode)
        assert not any(norm.training for norm in norms)
        backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_group_normalisation_takes_the_place_of_every_batch_normalisation(name):
    backbone = build_backbone(config_of(name))
    theirs = timm.create_model(name, features_only=True, out_indices=backbone.indices)
    before = {key: module for key, module in theirs.named_modules() if isinstance(module, _BatchNorm)}
    after = {key: module for key, module in backbone.body.named_modules() if isinstance(module, nn.GroupNorm)}
    assert before.keys() == after.keys()
    assert not any(isinstance(module, _BatchNorm) for module in backbone.modules())
    for key, norm in before.items():
        assert after[key].num_groups == math.gcd(32, norm.num_features)
        assert type(getattr(norm, "act", nn.Identity())) is type(after[key].act)
    images = torch.randn(3, 3, 64, 96)
    together = backbone(images)
    for index in range(3):
        for whole, part in zip(together, backbone(images[index : index + 1]), strict=True):
            torch.testing.assert_close(whole[index : index + 1], part, rtol=1e-4, atol=1e-5)


def test_the_activation_inside_a_normalisation_is_kept():
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(48, act_layer=nn.SiLU)
    nn.init.uniform_(norm.weight)
    features = torch.randn(2, 48, 4, 4)
    expected = nn.functional.silu(nn.functional.group_norm(features, 16, norm.weight, norm.bias))
    torch.testing.assert_close(GroupNormAct(norm)(features), expected)


def test_layer_normalisation_is_left_alone_and_nothing_drops():
    backbone = build_backbone(config_of("swin_tiny_patch4_window7_224"))
    assert any(isinstance(module, nn.LayerNorm) for module in backbone.modules())
    assert not any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
    images = torch.randn(1, 3, 64, 64)
    backbone.train()
    for one, other in zip(backbone(images), backbone(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_one_step_trains_every_parameter(generated, name):
    config = small_config(model={"backbone": f"timm:{name}", "norm": "gn"})
    losses, gradients = first_gradients(config, generated[0])
    assert all(math.isfinite(value) for value in losses.values())
    trainable = {n for n, p in TrainingState(config, generated[0], torch.device("cpu")).model.network.named_parameters()
                 if p.requires_grad}  # fmt: skip
    assert gradients.keys() == trainable
    assert any(key.startswith("backbone.body.") for key in trainable)


def test_equal_seeds_begin_equal_and_a_saved_model_is_the_same(tmp_path):
    config = {"backbone": "timm:test_convnext", "weights": "none", "neck": {"channels": 64}}
    one, other = (detector.build(config, num_classes=2, seed=4) for _ in range(2))
    states = [model.network.state_dict() for model in (one, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    save_model(one, tmp_path / "model")
    loaded = load_model(tmp_path / "model").network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in states[0].items())


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_file_of_the_whole_network_is_taken(tmp_path, name, form):
    torch.manual_seed(3)
    whole = timm.create_model(name)  # with its classifier, and names like stages.0.x where features have stages_0.x
    path = tmp_path / f"weights.{form}"
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    save_file(state, path) if form == "safetensors" else torch.save({"state_dict": state}, path)
    config = config_of(name, weights=str(path))
    assert config.norm == "frozen_bn"
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    whole.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(images)[-1], whole.forward_intermediates(images, intermediates_only=True)[-1]
        )
    other = config_of("test_efficientnet", weights=str(path))
    with pytest.raises(InputError, match=r"is not a state dict of timm's test_efficientnet: \d+ tensors don't fit"):
        load_pretrained(build_backbone(other), other)


def test_timms_weights_want_their_own_pixels_and_a_connection(monkeypatch):
    config = config_of("test_convnext", weights="imagenet")  # trained with mean and deviation 0.5
    backbone = build_backbone(config)
    with pytest.raises(
        InputError, match=r"model.pixels.mean: \[127.5, 127.5, 127.5\], model.pixels.deviation: \[127.5"
    ):
        load_pretrained(backbone, config)
    half = {"mean": [127.5] * 3, "deviation": [127.5] * 3}
    config = config_of("test_convnext", weights="imagenet", pixels=half)
    create = timm.create_model
    full = create("test_convnext", features_only=True, out_indices=backbone.indices)

    def pretrained(name, pretrained=False, **options):
        assert pretrained
        return full

    monkeypatch.setattr(timm, "create_model", pretrained)
    load_pretrained(backbone, config)
    assert all(torch.equal(value, full.state_dict()[key]) for key, value in backbone.body.state_dict().items())

    def unreachable(name, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"can't be had \(Name or service not known\); give model.weights the path"):
        load_pretrained(backbone, config)


def test_pretrained_batch_normalisation_is_not_regrouped():
    config = config_of("test_resnet", weights="imagenet", norm="gn")
    with pytest.raises(InputError, match=r"for batch normalisation; use model.norm: frozen_bn"):
        load_pretrained(build_backbone(config), config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51x", ["has no network resnet51x", "did you mean", "resnet51q"]),
        ("resnet18.nope", ["no weights nope of resnet18", "a1_in1k"]),
        ("test_vit", ["features at strides 16", "needs 8, 16 and 32"]),
        ("maxvit_pico_rw_256", ["can't take images of any size"]),
    ],
)
def test_what_will_not_do_is_said(name, words):
    with pytest.raises(InputError) as refused:
        build_backbone(config_of(name))
    for word in words:
        assert word in str(refused.value)


def test_without_timm_a_plan_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("detector.weights.find_spec", lambda name: None)
    assert importlib.util.find_spec("timm") is not None
    with pytest.raises(InputError, match=r"timm is not installed; pip install 'detsweep\[timm\]'"):
        config_of("resnet18")
