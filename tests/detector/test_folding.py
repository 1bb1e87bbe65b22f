"""Frozen normalisation folded into convolutions: equal numbers, and nothing else is changed or kept."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from detector.config import ModelConfig
from detector.data.coco import Category
from detector.export import _graph
from detector.folding import folded
from detector.layers import DeformableConv
from detector.model import Detector, build_model
from detector.prediction import Options
from tests.detector.talkative import picture

SMALL = {"neck": {"channels": 64}, "head": {"convolutions": 1, "quality_branch": "iou"}}


def frozen(backbone: str = "r18", **changes) -> Detector:
    """A detector that finds things, with random frozen normalisation as a trained one has it."""
    config = ModelConfig.model_validate({**SMALL, "backbone": backbone, "norm": "frozen_bn", **changes})
    model = build_model(
        config, [Category(1, "cup"), Category(2, "plate")], pretrained=False, short_side=96, long_side=160
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.uniform_(0.3, 0.9, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            elif isinstance(module, DeformableConv):
                module.offset.weight.normal_(0, 0.01, generator=generator)
        model.network.head.class_logits.bias.add_(3.0)
        model.network.head.class_logits.weight.mul_(30.0)
        model.network.head.box_deltas.weight.mul_(10.0)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return frozen()


def batch(seed: int = 0) -> torch.Tensor:
    pixels = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(seed))
    return pixels.contiguous(memory_format=torch.channels_last)


def normalisations(network) -> int:
    return sum(isinstance(module, FrozenBatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [("r18", {}), ("r50", {"norm_epsilon": 0.0}), ("r50", {"stride_in_1x1": True}), ("r50_dcn", {})],
)
@torch.no_grad()
def test_raw_outputs_are_equal(backbone, changes):
    model = frozen(backbone, **changes)
    network = folded(model.network)
    assert normalisations(model.network) == {"r18": 20}.get(backbone, 53)
    assert normalisations(network) == 0
    for expected, found in zip(model.network(batch()), network(batch()), strict=True):
        for one, other in zip(expected, found, strict=True):
            assert float(one.std()) > 1e-3
            assert torch.allclose(one, other, rtol=0, atol=1e-4)


@torch.no_grad()
def test_feature_maps_stay_bfloat16_under_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        exact = model.network(batch()).class_logits[0]
        features = folded(model.network, torch.bfloat16).backbone(batch())
        found = folded(model.network, torch.bfloat16)(batch()).class_logits[0]
    assert {feature.dtype for feature in features} == {torch.bfloat16}
    reference = model.network(batch()).class_logits[0]
    # As near to float32 as without folding, but for what a second rounding adds.
    assert (found.float() - reference).abs().mean() < 2 * (exact.float() - reference).abs().mean()


def test_deformable_convolutions_keep_float32_weights():
    network = folded(frozen("r50_dcn").network, torch.bfloat16)
    assert network.backbone.layer2[0].conv2.weight.dtype == torch.float32
    assert network.backbone.layer2[0].conv1.weight.dtype == torch.bfloat16


def test_the_network_itself_and_what_is_saved_stay_as_they_are(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    children = dict(model.network.named_modules())
    model.predict(picture(200, 130))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(module is children[name] for name, module in model.network.named_modules())
    assert folded(model.network).head is model.network.head


def test_a_network_without_frozen_normalisation_is_itself():
    config = ModelConfig.model_validate({**SMALL, "backbone": "r18", "norm": "gn", "weights": "none"})
    network = build_model(config, [Category(1, "cup")], pretrained=False).network
    assert folded(network) is network


@torch.no_grad()
def witness(model: Detector, image) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores before suppression by what is exported: the plain network, all of its outputs ranked."""
    size = torch.tensor([96, 147])  # 200 by 130 at a short side of 96
    pixels = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], (96, 147), mode="bilinear", antialias=True
    )
    padded = torch.nn.functional.pad(pixels, (0, 13))
    boxes, scores, _ = _graph(model, Options())(padded, size)
    best = scores.argmax()
    return boxes[best] * torch.tensor([200 / 147, 130 / 96] * 2), scores[best]


def _load(model):
    model.network.load_state_dict(frozen("r18", norm_epsilon=0.0).network.state_dict())
    with torch.no_grad():
        model.network.backbone.conv1.weight.mul_(1.5)


def _train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.train()
    outputs = model.network(batch())
    losses = model.loss(outputs, [torch.tensor([[8.0, 8.0, 90.0, 80.0]])] * 2, [torch.tensor([1])] * 2)
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.eval()


def _write_data(model):
    model.network.backbone.layer3[0].conv1.weight.data.mul_(1.7)  # which autograd's version counters don't see


def _write_statistics(model):
    model.network.backbone.layer2[0].bn1.running_mean.data.add_(0.3)


@pytest.mark.parametrize("change", [_load, _train, _write_data, _write_statistics])
def test_weights_that_change_are_the_ones_that_predict(change):
    import numpy as np

    model, image = frozen(), np.array(picture(200, 130))
    before = model.predict(image)
    change(model)
    found = model.predict(image)
    box, score = witness(model, image)
    assert float(found.scores[0]) == pytest.approx(float(score), abs=1e-4)
    assert torch.allclose(found.boxes[0], box.clamp(min=0), atol=0.05)
    assert not torch.allclose(found.scores[:5], before.scores[:5], atol=1e-3)


def test_what_hooks_watch_is_not_folded(model):
    seen = {}
    hooks = [
        model.network.backbone.layer1[0].conv1.register_forward_hook(lambda *_: seen.update(conv=_[2])),
        model.network.backbone.layer3.register_forward_hook(lambda *_: seen.update(stage=_[2])),
    ]
    plain = model.network.backbone.layer1[0].bn1
    network = folded(model.network)
    assert normalisations(network) == 1
    assert network.backbone.layer1[0].bn1 is plain
    with torch.no_grad():
        network(batch())
        observed = dict(seen)
        model.network(batch())
    for hook in hooks:
        hook.remove()
    assert torch.allclose(observed["conv"], seen["conv"], atol=1e-4)
    assert torch.allclose(observed["stage"], seen["stage"], atol=1e-4)


def test_a_block_of_another_kind_is_left_alone():
    """Whose forward is not known here may use its children in another order."""
    from torchvision.models.resnet import BasicBlock

    class Reversed(BasicBlock):
        def forward(self, x):
            return self.conv1(self.bn1(x))

    block = Reversed(8, 8, norm_layer=FrozenBatchNorm2d)
    network = torch.nn.Sequential(block, torch.nn.Conv2d(8, 8, 1), FrozenBatchNorm2d(8))
    found = folded(network)
    assert found[0] is block
    assert normalisations(found) == normalisations(network) - 1
    assert "bias" in dict(found[1].named_parameters())
