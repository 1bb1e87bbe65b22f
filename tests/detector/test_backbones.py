"""Backbones: torchvision's own, with their weights, and what is frozen."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.backbones import RESNETS, build_backbone, load_pretrained
from detector.config import HeadConfig, ModelConfig, NeckConfig
from detector.data.coco import Category
from detector.errors import InputError
from detector.layers import FrozenBatchNorm
from detector.model import build_model
from detector.weights import resolve_weights


def checkpoint(tmp_path, name="resnet18"):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    return reference.eval(), tmp_path / "weights.pth"


def test_a_torchvision_state_dict_gives_torchvisions_features(tmp_path):
    reference, path = checkpoint(tmp_path)
    config = resolve_weights(ModelConfig(backbone="r18", weights=str(path)))
    assert config.norm == "frozen_bn"
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    images = torch.randn(2, 3, 64, 96)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
    c3 = reference.layer2(reference.layer1(x))
    expected = [c3, reference.layer3(c3), reference.layer4(reference.layer3(c3))]
    got = backbone.train()(images)  # frozen statistics: training mode changes nothing
    assert [tuple(feature.shape[1:]) for feature in got] == [(128, 8, 12), (256, 4, 6), (512, 2, 3)]
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def with_torchvisions_norm(module):
    """A copy of ``module`` whose frozen normalisations are torchvision's own."""
    twin = copy.deepcopy(module)
    for part in list(twin.modules()):
        for name, child in part.named_children():
            if isinstance(child, FrozenBatchNorm):
                plain = FrozenBatchNorm2d(child.weight.numel(), child.eps)
                plain.load_state_dict(child.state_dict())
                setattr(part, name, plain)
    return twin


@pytest.mark.parametrize("name", ["r18", "r50", "r50_dcn"])
def test_frozen_normalisation_in_place_gives_torchvisions_numbers_and_gradients(name):
    torch.manual_seed(2)
    mine = build_backbone(ModelConfig(backbone=name, norm="frozen_bn", weights="none"))
    for module in mine.modules():
        if isinstance(module, FrozenBatchNorm):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    theirs = with_torchvisions_norm(mine)
    assert not any(isinstance(module, FrozenBatchNorm) for module in theirs.modules())
    images = torch.randn(1, 3, 64, 64)
    found = [backbone(images) for backbone in (mine, theirs)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    for features in found:
        sum(feature.square().mean() for feature in features).backward()
    gradients = [{key: each.grad for key, each in backbone.named_parameters()} for backbone in (mine, theirs)]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][key]) for key, gradient in gradients[0].items())


def test_feature_maps_stay_bfloat16_behind_frozen_normalisation():
    backbone = build_backbone(ModelConfig(backbone="r18", norm="frozen_bn", weights="none"))
    plain = with_torchvisions_norm(backbone)
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, expected = backbone(images), plain(images)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float32)
        assert (one.float() - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_frozen_normalisation_of_short_numbers_is_computed_in_float32_and_rounded_once(precision):
    torch.manual_seed(3)
    mine, theirs = FrozenBatchNorm(8), FrozenBatchNorm2d(8)
    nn.init.uniform_(mine.weight, 0.2, 2.0)
    nn.init.normal_(mine.bias)
    nn.init.normal_(mine.running_mean)
    nn.init.uniform_(mine.running_var, 0.1, 2.0)
    theirs.load_state_dict(mine.state_dict())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(2, 8, 9, 7).to(precision).to(memory_format=memory_format).requires_grad_()
        found = mine(features)
        assert found.dtype == precision
        # Multiplying and adding in one operation or in two may fall on either side of a rounding.
        expected = theirs(features.detach())
        spacing = torch.finfo(precision).eps * expected.abs().clamp(min=1e-2)
        assert ((found.float() - expected).abs() <= spacing).all()
        assert (found == expected.to(precision)).float().mean() > 0.99
        gradient = torch.randn(2, 8, 9, 7).to(precision)
        found.backward(gradient)
        scale = mine.weight * (mine.running_var + mine.eps).rsqrt()
        assert torch.equal(features.grad, (gradient.float() * scale.view(-1, 1, 1)).to(precision))


def test_the_stem_and_first_stage_are_frozen_only_with_pretrained_weights():
    frozen = build_backbone(ModelConfig(backbone="r18", norm="frozen_bn"))
    trainable = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("conv1", "layer1")) for name in trainable)
    assert any(name.startswith("layer2") for name in trainable)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    scratch = build_backbone(ModelConfig(backbone="r18", norm="gn", weights="none"))
    assert all(parameter.requires_grad for parameter in scratch.parameters())
    assert not any(isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d) for module in scratch.modules())


@pytest.mark.parametrize("name", RESNETS)
def test_channels_are_those_of_the_features(name):
    with torch.device("meta"):
        backbone = build_backbone(ModelConfig(backbone=name, norm="frozen_bn"))
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert tuple(feature.shape[1] for feature in features) == backbone.channels
    assert [feature.shape[-1] for feature in features] == [8, 4, 2]


def test_parameters_of_atss_r50_are_mmdetections():
    config = ModelConfig(weights="none", norm="gn", head=HeadConfig(tower_bias=False), neck=NeckConfig())
    model = build_model(config, [Category(index, str(index)) for index in range(80)], pretrained=False)
    # GroupNorm has as many parameters as the BatchNorm that the count is of.
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 32_295_322


def test_weights_that_cannot_be_had_say_how_to_supply_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail_to_download)
    with pytest.raises(InputError, match=r"put resnet18-f37072fd\.pth there, give model\.weights the path"):
        build_model(ModelConfig(backbone="r18"), [Category(1, "a")])
    with pytest.raises(InputError, match=r"no ImageNet weights for x101_32x4d; give model\.weights the path"):
        resolve_weights(ModelConfig(backbone="x101_32x4d"))
    with pytest.raises(InputError, match=r"model\.weights names nowhere\.pth"):
        resolve_weights(ModelConfig(weights="nowhere.pth"))
    with pytest.raises(InputError, match="frozen random normalisation"):
        resolve_weights(ModelConfig(weights="none", norm="frozen_bn"))


def fail_to_download(*_, **__):
    raise OSError("no route")


def test_auto_takes_the_imagenet_weights_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    auto = ModelConfig(backbone="r18", weights="auto")
    assert (resolve_weights(auto).weights, resolve_weights(auto).norm) == ("none", "gn")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    reference, path = checkpoint(tmp_path)
    path.rename(folder / "resnet18-f37072fd.pth")
    assert (resolve_weights(auto).weights, resolve_weights(auto).norm) == ("imagenet", "frozen_bn")
    model = build_model(auto, [Category(1, "a")])
    assert torch.equal(model.network.backbone.conv1.weight, reference.conv1.weight)


@pytest.mark.parametrize("content", ["other model", "truncated", "pickled object", "a list"])
def test_files_that_are_no_state_dict_are_refused(tmp_path, content):
    _, path = checkpoint(tmp_path, "resnet34" if content == "other model" else "resnet18")
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "pickled object":
        torch.save(nn.Linear(1, 1), path)
    elif content == "a list":
        torch.save([torch.zeros(1)], path)
    with pytest.raises(InputError, match=r"weights\.pth .*(don't fit|can't be read|no state dict)"):
        build_model(ModelConfig(backbone="r18", weights=str(path)), [Category(1, "a")])
