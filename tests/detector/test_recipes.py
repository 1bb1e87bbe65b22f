"""Every recipe name that there is, built: a family or a backbone that is added is tested without being listed here."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from detector.config import Backbone
from detector.data.coco import Category
from detector.heads import HEADS
from detector.layers import DeformableConv
from detector.model import build_model
from detector.recipes import FAMILIES, model_config, recipe_names

CATEGORIES = [Category(number, str(number)) for number in range(5)]


def test_every_head_has_a_recipe():
    assert {model_config(f"{family}_r18").head.name for family in FAMILIES} == set(HEADS)
    assert len(recipe_names()) == len(FAMILIES) * len(get_args(Backbone))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_builds_what_it_says(family):
    for backbone in get_args(Backbone):
        config = model_config(f"{family}_{backbone}").model_copy(update={"norm": "frozen_bn"})
        with torch.device("meta"):
            network = build_model(config, CATEGORIES, pretrained=False).network
        anchors = 9 if config.anchors.name == "retinanet" else 1
        assert network.head.class_logits.out_channels == anchors * len(CATEGORIES)
        deformed = {
            name.split(".")[0] for name, part in network.backbone.named_modules() if isinstance(part, DeformableConv)
        }
        expected = {"layer3", "layer4"} if backbone.startswith("x") else {"layer2", "layer3", "layer4"}
        assert deformed == (expected if backbone.endswith("_dcn") else set()), backbone
        combined = config.assigner.name == "atss" and config.assigner.predicted_weight != 0
        assert combined == (family.startswith("dynamic_") or family.endswith("_ciou"))
        trainable = {name.split(".")[0] for name, value in network.backbone.named_parameters() if value.requires_grad}
        assert not trainable & {"conv1", "layer1"}  # pretrained: the stem and the first stage are frozen
