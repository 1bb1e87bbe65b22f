"""Post-processing of ATSS R50 at 800x1344 with many candidates: its share of one image's inference, and the same by
ranking all scores.
"""

from __future__ import annotations

import torch

from detector.boxes import clip
from detector.model import Detector
from detector.outputs import HeadOutputs
from detector.postprocess import kept, ranked, suppress
from detector.prediction import Options, forward
from tests.benchmarks.alternating import Figure, alternate
from tests.benchmarks.inference import HEIGHT, WIDTH, detector_r50, image, normalised

SIZES = torch.tensor([[HEIGHT, WIDTH]])
ABOVE, PAIRS = 1500, 7


@torch.no_grad()
def measure() -> list[Figure]:
    """Its share with ``ABOVE`` class scores above the threshold on each of P3 to P5, in both precisions."""
    model, figures = detector_r50(), []
    batch = normalised(model, image())
    for precision in ("float32", "bfloat16"):
        options = Options(precision=precision)
        low = precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            outputs = crowded(forward(model, options)(batch))
        found = model.postprocess(outputs, SIZES)[0]

        def whole(outputs: HeadOutputs = outputs, options: Options = options, low: bool = low) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                forward(model, options)(batch)
            model.postprocess(outputs, SIZES)

        def ours(outputs: HeadOutputs = outputs) -> None:
            model.postprocess(outputs, SIZES)

        notes = {"candidates": counts(model, outputs), "kept": len(found)}
        pairs = alternate(ours, whole, pairs=PAIRS, warm_up=1)
        what = f"post-processing, {precision}, s"
        figures.append(pairs.figure(what, at_most=0.02, peer="whole inference", **notes))

        def everything(outputs: HeadOutputs = outputs) -> None:
            _plain(model, outputs)

        pairs = alternate(ours, everything, pairs=21, warm_up=3)
        figures.append(pairs.figure(what, peer="ranking all scores, suppressing all candidates"))
    return figures


def crowded(outputs: HeadOutputs) -> HeadOutputs:
    """``outputs`` with other numbers in the same layout: ``ABOVE`` class scores above 0.05 on each of P3 to P5, the
    others at about 0.0003, and boxes of one to two anchors' size.
    """
    generator = torch.Generator().manual_seed(0)
    for number, level in enumerate(outputs.class_logits):
        values = torch.randn(level.shape, generator=generator) * 0.5 - 8
        if number < 3:
            chosen = torch.randperm(values.numel(), generator=generator)[:ABOVE]
            values.view(-1)[chosen] = torch.rand(ABOVE, generator=generator) * 4 - 2.5
        level.copy_(values)
    for level in outputs.box_regression:
        level.copy_(torch.randn(level.shape, generator=generator))
    for level in outputs.quality_logits or []:
        level.copy_(torch.randn(level.shape, generator=generator))
    return outputs


def counts(model: Detector, outputs: HeadOutputs) -> list[int]:
    """Class scores above the recipe's threshold, by level."""
    threshold = model.config.postprocess.score_threshold
    return [int((level.float().sigmoid() > threshold).sum()) for level in outputs.class_logits]


def _plain(model: Detector, outputs: HeadOutputs) -> torch.Tensor:
    config = model.config.postprocess
    scores, labels, boxes = ranked(
        outputs, model.criterion, model.criterion.grid(outputs), config, config.score_threshold
    )
    boxes = clip(boxes, SIZES[:, None])
    keep = kept(scores, boxes, config)[0]
    return suppress(boxes[0][keep], scores[0][keep], labels[0][keep], config.nms_iou)[: config.max_detections]
