"""From raw outputs to boxes: threshold, best candidates a level, class-wise suppression.

Legend: N images, A_l anchors of a level, C classes, K candidates kept over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.anchors import Grid
from detector.boxes import clip
from detector.config import PostprocessConfig
from detector.criterion import Criterion
from detector.data.coco import Category
from detector.detections import Detections
from detector.outputs import HeadOutputs, flatten_level

# Suppression looks at this many times the boxes that are wanted, and at so many times more while too few survive.
FIRST_COMPARED = 5
# A bfloat16 number, and a threshold turned into one, is off by less than this part of itself.
ROUNDING = 0.01


def detections(
    outputs: HeadOutputs,
    criterion: Criterion,
    image_sizes: Sequence[tuple[int, int]] | Tensor,
    categories: Sequence[Category],
    config: PostprocessConfig,
    *,
    min_score: float | None = None,
    class_agnostic: bool = False,
) -> list[Detections]:
    """One ``Detections`` an image, in pixels of the input.

    ``criterion`` knows the anchors and how boxes are coded; ``image_sizes``: (height, width) of each image before
    padding. Scores above ``config.score_threshold`` enter; ``min_score`` also bounds the scores that are returned (and
    lets lower ones enter, where it is the lower of the two). With ``class_agnostic`` boxes of all classes suppress each
    other.
    """
    found = candidates(outputs, criterion, image_sizes, categories, config, min_score=min_score)
    return [survivors(each, config, class_agnostic=class_agnostic) for each in found]


def candidates(
    outputs: HeadOutputs,
    criterion: Criterion,
    image_sizes: Sequence[tuple[int, int]] | Tensor,
    categories: Sequence[Category],
    config: PostprocessConfig,
    *,
    min_score: float | None = None,
) -> list[Detections]:
    """What suppression chooses from, for each image; arguments as for ``detections``. In no order."""
    threshold = config.score_threshold if min_score is None else min(config.score_threshold, min_score)
    grid = criterion.grid(outputs)
    sizes = torch.as_tensor(image_sizes, device=outputs.class_logits[0].device)
    found = []
    for image in range(len(sizes)):
        scores, labels, boxes = best_above(outputs, criterion, grid, config, threshold, image)
        boxes = clip(boxes, sizes[image, None])
        chosen = kept(scores, boxes, config, min_score)
        found.append(Detections(boxes[chosen], scores[chosen], labels[chosen], categories))
    return found


def kept(scores: Tensor, boxes: Tensor, config: PostprocessConfig, min_score: float | None = None) -> Tensor:
    """(..., K) bool: which candidates, of scores (..., K) and clipped boxes (..., K, 4), are in question at all."""
    keep = scores > (0.0 if min_score is None else min_score)
    return keep if config.keep_empty else keep & ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)


def survivors(found: Detections, config: PostprocessConfig, *, class_agnostic: bool = False) -> Detections:
    """The best of one image's candidates that no better one suppresses, best first."""
    labels = None if class_agnostic else found.labels
    best = suppress(found.boxes, found.scores, labels, config.nms_iou, most=config.max_detections)
    return Detections(found.boxes[best], found.scores[best], found.labels[best], found.categories)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float, *, most: int | None = None) -> Tensor:
    """Indices of the boxes (D, 4) that survive suppression within each label, best first; of all if labels is None.

    With ``most`` only the best so many. A box falls to better ones alone, so the best survivors are known once enough
    of the best boxes have been compared.
    """
    if labels is not None and len(boxes):
        # One call for all classes: boxes of different classes are moved apart. In float64, so that no IoU changes.
        boxes = boxes.float() if boxes.device.type == "mps" else boxes.double()
        boxes = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order].to(boxes)
    most = len(order) if most is None else most
    compared = FIRST_COMPARED * most
    while True:
        best = nms(boxes[:compared], scores[:compared], iou)
        if len(best) >= most or compared >= len(order):
            return order[best[:most]]
        compared *= FIRST_COMPARED


def best_above(
    outputs: HeadOutputs, criterion: Criterion, grid: Grid, config: PostprocessConfig, threshold: float, image: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``ranked`` keeps of one image, without the entries below ``threshold``: scores (K,), labels, boxes (K, 4).

    Beyond one comparison for each class logit it touches only those that may be above.
    """
    per_location = criterion.anchors_per_location
    least = least_logit(threshold, config, quality=outputs.quality_logits is not None)
    levels, start = [], 0
    for level, logits in enumerate(outputs.class_logits):
        channels, height, width = logits.shape[1:]
        classes = channels // per_location
        index = (logits[image] > least).permute(1, 2, 0).reshape(-1).nonzero()[:, 0]
        location, channel = index // channels, index % channels
        y, x = location // width, location % width
        class_score = logits[image, channel, y, x].float().sigmoid()
        joint = final = class_score
        if outputs.quality_logits is not None:
            joint = class_score * outputs.quality_logits[level][image, 0, y, x].float().sigmoid()
            final = joint.sqrt() if config.score == "geometric_mean" else joint
        compared = final if config.threshold_on == "final" else class_score
        ranking = torch.where(compared > threshold, joint if config.ranking == "joint" else class_score, -1.0)
        best, chosen = ranking.topk(min(config.candidates_per_level, len(ranking)))
        chosen = chosen[best >= 0]
        anchor = index[chosen] // classes
        raw = outputs.box_regression[level][image][:, y[chosen], x[chosen]].float().T
        raw = raw.reshape(len(chosen), per_location, raw.shape[1] // per_location)
        raw = raw[torch.arange(len(chosen), device=raw.device), anchor % per_location]
        at = anchor + start
        levels.append((final[chosen], index[chosen] % classes, criterion.decode(raw, grid.boxes[at], grid.stride[at])))
        start += height * width * per_location
    scores, labels, boxes = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return scores, labels, boxes


def least_logit(threshold: float, config: PostprocessConfig, *, quality: bool) -> float:
    """A class logit below which no score that is compared with ``threshold`` can be above it.

    Lower by a margin than the exact one, for what rounding to bfloat16 may add.
    """
    if quality and config.threshold_on == "final" and config.score == "geometric_mean":
        threshold = threshold**2  # a quality is at most 1
    if threshold <= 0:
        return -math.inf
    if threshold >= 1:
        return math.inf
    logit = math.log(threshold) - math.log1p(-threshold)
    return logit - ROUNDING * (1 + abs(logit))


def ranked(
    outputs: HeadOutputs, criterion: Criterion, grid: Grid, config: PostprocessConfig, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of every level: final scores (N, K), 0 where below ``threshold``, labels, boxes (N, K, 4).

    Every shape follows from those of ``outputs``, as a graph that is exported needs it.
    """
    per_location = criterion.anchors_per_location
    levels, start = [], 0
    for level, logits in enumerate(outputs.class_logits):
        class_scores = flatten_level(logits, per_location).sigmoid()  # (N, A_l, C)
        count, classes = class_scores.shape[1:]
        joint = final = class_scores
        if outputs.quality_logits is not None:
            joint = class_scores * flatten_level(outputs.quality_logits[level]).sigmoid()
            final = joint.sqrt() if config.score == "geometric_mean" else joint
        compared = final if config.threshold_on == "final" else class_scores
        ranking = joint if config.ranking == "joint" else class_scores
        ranking = torch.where(compared > threshold, ranking, -1.0).flatten(1)
        best, index = ranking.topk(min(config.candidates_per_level, ranking.shape[1]))
        score = final.flatten(1).gather(1, index)
        anchor = index // classes
        raw = flatten_level(outputs.box_regression[level], per_location)
        raw = raw.gather(1, anchor[..., None].expand(-1, -1, raw.shape[-1]))
        at = anchor + start
        boxes = criterion.decode(raw, grid.boxes[at], grid.stride[at])
        levels.append((torch.where(best >= 0, score, 0.0), index % classes, boxes))
        start += count
    scores, labels, boxes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    return scores, labels, boxes
