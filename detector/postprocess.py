"""From raw outputs to boxes: threshold, best candidates a level, class-wise suppression.

Legend: N images, A_l anchors of a level, C classes, K candidates kept over all levels.
"""

from __future__ import annotations

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
    scores, labels, boxes = ranked(outputs, criterion, grid, config, threshold)
    sizes = torch.as_tensor(image_sizes, device=boxes.device)
    boxes = clip(boxes, sizes[:, None])
    keep = kept(scores, boxes, config, min_score)
    return [
        Detections(box[chosen], score[chosen], label[chosen], categories)
        for box, score, label, chosen in zip(boxes, scores, labels, keep, strict=True)
    ]


def kept(scores: Tensor, boxes: Tensor, config: PostprocessConfig, min_score: float | None = None) -> Tensor:
    """(N, K) bool: which candidates, of scores (N, K) and clipped boxes (N, K, 4), are in question at all."""
    keep = scores > (0.0 if min_score is None else min_score)
    return keep if config.keep_empty else keep & ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)


def survivors(found: Detections, config: PostprocessConfig, *, class_agnostic: bool = False) -> Detections:
    """The best of one image's candidates that no better one suppresses, best first."""
    labels = None if class_agnostic else found.labels
    best = suppress(found.boxes, found.scores, labels, config.nms_iou)[: config.max_detections]
    return Detections(found.boxes[best], found.scores[best], found.labels[best], found.categories)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou: float) -> Tensor:
    """Indices of the boxes (D, 4) that survive suppression within each label, best first; of all if labels is None."""
    if labels is None or not len(boxes):
        return nms(boxes, scores, iou)
    # One call for all classes: boxes of different classes are moved apart. In float64, so that no IoU changes.
    wide = boxes.float() if boxes.device.type == "mps" else boxes.double()
    apart = labels.to(wide) * (wide.max() + 1)
    return nms(wide + apart[:, None], scores.to(wide), iou)


def ranked(
    outputs: HeadOutputs, criterion: Criterion, grid: Grid, config: PostprocessConfig, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of every level: final scores (N, K), 0 where below ``threshold``, labels, boxes (N, K, 4)."""
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
