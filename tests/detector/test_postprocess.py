"""Post-processing that touches little against the one that ranks everything, and against torchvision."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import batched_nms

from detector.anchors import level_shapes
from detector.boxes import clip
from detector.config import PostprocessConfig
from detector.data.coco import Category
from detector.heads import HeadOutputs, build_criterion
from detector.heads.gfl import BINS
from detector.postprocess import candidates, kept, least_logit, ranked, suppress
from detector.recipes import FAMILIES, model_config

CLASSES, IMAGES, SIDES = 5, 2, (256, 320)
CATEGORIES = [Category(number, str(number)) for number in range(CLASSES)]
SIZES = torch.tensor([[256, 320], [240, 311]])


def outputs(family: str, *, mean: float = -3.0, dtype=torch.float32, layout=torch.channels_last) -> HeadOutputs:
    """Raw outputs of ``family``, made up: class logits about ``mean``."""
    generator = torch.Generator().manual_seed(3)

    def levels(channels: int, spread: float, middle: float = 0.0) -> list[torch.Tensor]:
        made = [torch.randn(IMAGES, channels, h, w, generator=generator) for h, w in level_shapes(*SIDES)]
        return [(spread * level + middle).to(dtype).contiguous(memory_format=layout) for level in made]

    anchors = 9 if family == "retinanet" else 1
    wide = 4 * BINS if family.startswith("gfl") else 4
    boxes = [level.abs() if family in ("fcos", "vfnet") else level for level in levels(anchors * wide, 3.0)]
    with_quality = family in ("atss", "dynamic_atss", "fcos", "gflv2")
    return HeadOutputs(levels(anchors * CLASSES, 2.0, mean), boxes, levels(1, 1.0) if with_quality else None)


def plain(raw: HeadOutputs, criterion, config: PostprocessConfig, min_score: float | None):
    """Of each image boxes, scores and labels of all candidates, best first: all scores computed, all ranked."""
    threshold = config.score_threshold if min_score is None else min(config.score_threshold, min_score)
    scores, labels, boxes = ranked(raw, criterion, criterion.grid(raw), config, threshold)
    boxes = clip(boxes, SIZES[:, None])
    found = []
    for image, keep in enumerate(kept(scores, boxes, config, min_score)):
        order = scores[image][keep].argsort(descending=True, stable=True)
        found.append(tuple(part[image][keep][order] for part in (boxes, scores, labels)))
    return found


def belongings(boxes, scores, labels) -> torch.Tensor:
    """Sums by label of boxes and their squares, times the scores: another box for a score or a label changes them."""
    parts = torch.cat((boxes, boxes**2), 1).double() * scores[:, None]
    return torch.zeros(CLASSES, 8, dtype=torch.float64).index_add(0, labels, parts)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.endswith("_ciou")])
def test_candidates_are_those_of_ranking_everything(family, layout):
    config = model_config(f"{family}_r18")
    criterion = build_criterion(config)
    for changes, min_score in (
        ({}, None),
        ({"candidates_per_level": 40}, None),
        ({"threshold_on": "final", "candidates_per_level": 100}, None),
        ({"threshold_on": "final", "score": "product", "ranking": "class"}, 0.02),
        ({"candidates_per_level": 50}, 0.0),
        ({}, 0.3),
        ({"score_threshold": 1.0}, None),
    ):
        rules = PostprocessConfig.model_validate(config.postprocess.model_dump() | changes)
        raw = outputs(family, layout=layout)
        found = candidates(raw, criterion, SIZES, CATEGORIES, rules, min_score=min_score)
        for image, (boxes, scores, labels) in enumerate(plain(raw, criterion, rules, min_score)):
            # Scores that differ by rounding alone may change places, so the order is not compared.
            assert torch.allclose(found[image].scores.sort(descending=True).values, scores, rtol=1e-5)
            assert torch.equal(*(each.bincount(minlength=CLASSES) for each in (found[image].labels, labels)))
            mine = belongings(found[image].boxes, found[image].scores, found[image].labels)
            assert torch.allclose(mine, belongings(boxes, scores, labels), rtol=1e-5, atol=1e-3)
        assert (len(found[0]) == 0) == (changes.get("score_threshold") == 1.0)


@pytest.mark.parametrize("family", ["atss", "fcos", "gflv2"])
def test_nothing_is_lost_at_the_threshold_in_bfloat16(family):
    """Logits are spread by bfloat16 over few values, many of them at the threshold itself."""
    config = model_config(f"{family}_r18")
    criterion = build_criterion(config)
    rules = config.postprocess.model_copy(update={"candidates_per_level": 10**6})
    raw = outputs(family, dtype=torch.bfloat16)
    found = candidates(raw, criterion, SIZES, CATEGORIES, rules)
    for image, (boxes, scores, _) in enumerate(plain(raw, criterion, rules, None)):
        assert found[image].boxes.dtype == found[image].scores.dtype == torch.float32
        assert torch.allclose(found[image].scores.sort(descending=True).values, scores, rtol=1e-5)
        assert torch.allclose(found[image].boxes.sum(0), boxes.sum(0), rtol=1e-4)


def test_logits_that_can_pass_are_told_from_those_that_can_not():
    rules = PostprocessConfig(threshold_on="final")
    logits = torch.linspace(-40, 20, 600_001)
    for threshold in (1e-6, 0.02, 0.05, 0.5, 0.97, 1 - 1e-6):
        for config, scores in ((rules, logits.sigmoid().sqrt()), (PostprocessConfig(), logits.sigmoid())):
            least = least_logit(threshold, config, quality=True)
            above = logits[scores > threshold]
            assert above.min() > least
            assert above.min() - least < 0.02 * (1 + abs(least))
    assert least_logit(0.0, rules, quality=True) == -float("inf")
    assert least_logit(1.0, rules, quality=False) == float("inf")


def test_logits_that_are_no_numbers_are_no_candidates():
    config = model_config("atss_r18")
    raw = outputs("atss", mean=-30.0)
    raw.class_logits[0][0, 0, :4] = float("nan")
    assert len(candidates(raw, build_criterion(config), SIZES, CATEGORIES, config.postprocess)[0]) == 0


@pytest.mark.parametrize("most", [1, 3, 17, 60, 10**9])
def test_the_best_survivors_are_torchvisions_first(most):
    """Crowded: of the boxes that are compared first, too few survive."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(900, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 30 + torch.rand(900, 2, generator=generator) * 10), 1)
    scores = (torch.rand(900, generator=generator) * 50).round() / 50  # many are equal
    labels = torch.randint(3, (900,), generator=generator)
    expected = batched_nms(boxes, scores, labels, 0.3)
    assert 20 < len(expected) < 300
    assert torch.equal(suppress(boxes, scores, labels, 0.3, most=most), expected[:most])
    together = batched_nms(boxes, scores, torch.zeros_like(labels), 0.3)
    assert torch.equal(suppress(boxes, scores, None, 0.3, most=most), together[:most])


def test_nothing_survives_of_nothing():
    for labels in (torch.zeros(0, dtype=torch.int64), None):
        assert suppress(torch.zeros(0, 4), torch.zeros(0), labels, 0.6, most=100).shape == (0,)
