"""Step times of others: what is in the table, and what isn't is said."""

from __future__ import annotations

import pytest
import torch

from detector.config import TrainingConfig
from detector.data.coco import Category
from detector.keys import resolve
from detector.model import build_model
from orchestrator.published import _BACKBONE_WEIGHTS, _HEAD_WEIGHTS, _IMAGES_PER_SECOND, Published, published
from orchestrator.spec import load_spec

CATEGORIES = [Category(number, str(number)) for number in range(1, 81)]


def config(
    backbone: str = "r50", head: str = "atss", short_side: object = 800, precision: str = "float32"
) -> TrainingConfig:
    """A configuration of the paper's sizes."""
    parts = {"gfl": {"quality_branch": "none", "classification_loss": "qfl"}}
    parts["gflv2"] = parts["gfl"]
    parts["vfnet"] = {"quality_branch": "none", "classification_loss": "vfl", "convolutions": 3}  # type: ignore[dict-item]
    return TrainingConfig.model_validate(
        {
            "model": {"backbone": backbone, "head": {"name": head, **parts.get(head, {})}},
            "data": {"root": "/data", "short_side": short_side, "evaluation_short_side": 800, "long_side": 1333},
            "schedule": {"precision": precision},
        }
    )


def test_the_plain_one_is_what_mmdetection_states() -> None:
    found = published(config(), "V100")
    assert isinstance(found, Published)
    assert 2 * found.image_s == pytest.approx(0.357)
    assert 1 / found.eval_image_s == pytest.approx(19.3)
    assert found.source == "mmdetection 1.x"
    larger = published(config("r101"), "V100")
    assert isinstance(larger, Published)
    assert 2 * larger.image_s == pytest.approx(0.357 + 0.429 - 0.308)
    ranged = published(config(short_side=(640, 800)), "V100")
    assert isinstance(ranged, Published)
    squares = [side * side for side in range(640, 801)]
    assert ranged.image_s / found.image_s == pytest.approx(sum(squares) / len(squares) / 800**2, rel=1e-3)


def test_every_training_of_the_paper_has_one() -> None:
    for row in load_spec("sweeps/paper.yaml").rows:
        resolved = resolve([row.base, row.settings])
        assert isinstance(published(resolved, "V100"), Published), row.name


@pytest.mark.parametrize(
    ("asked", "gpu", "sentence"),
    [
        (config(), "A100", "nothing is published for the GPU A100, only for V100"),
        (config("r18"), "V100", "nothing is published for atss on r18 with a V100"),
        (config(short_side=512), "H100", "nothing is published for the GPU H100"),
        (config(short_side=320), "V100", "of images of 800 x 1333 pixels, not 320"),
        (config(precision="bfloat16"), "V100", "in float32"),
    ],
)
def test_what_is_not_published_is_said(asked: TrainingConfig, gpu: str, sentence: str) -> None:
    assert sentence in str(published(asked, gpu))


@pytest.mark.parametrize("backbone", sorted(_BACKBONE_WEIGHTS))
def test_weights_are_those_of_the_built_backbone(backbone: str) -> None:
    network = _network(backbone, "atss")
    for name in ("conv1", "bn1", "layer1"):
        getattr(network.backbone, name).requires_grad_(False)
    # Biases and normalisation of the backbone are vectors, and frozen.
    learn = sum(each.numel() for each in network.backbone.parameters() if each.requires_grad and each.ndim > 1)
    assert _BACKBONE_WEIGHTS[backbone] == pytest.approx(learn, rel=2e-3)
    assert backbone in _IMAGES_PER_SECOND


@pytest.mark.parametrize("head", sorted(_HEAD_WEIGHTS))
def test_weights_are_those_of_the_built_head(head: str) -> None:
    network = _network("r50", head)
    learn = sum(each.numel() for name, each in network.named_parameters() if not name.startswith("backbone."))
    assert _HEAD_WEIGHTS[head] == pytest.approx(learn, rel=2e-3)


def _network(backbone: str, head: str):
    model = config(backbone, head).model.model_copy(update={"weights": "none", "norm": "gn", "num_classes": 80})
    with torch.device("meta"):
        return build_model(model, CATEGORIES).network
