"""What combined IoUs cost over plain ATSS: ResNet-50 training steps on images of 512x512, alternating in pairs."""

from __future__ import annotations

import torch

from detector.config import TrainingConfig
from detector.data.coco import Category
from detector.data.loader import Batch
from detector.model import Detector, build_model
from detector.schedule import build_optimizer, set_rate
from tests.benchmarks.alternating import Figure, alternate, threads

WARM_UP, PAIRS, IMAGES, BOXES, SIZE = 2, 24, 1, 8, 512
CATEGORIES = [Category(number + 1, f"class {number}") for number in range(80)]


def measure() -> list[Figure]:
    """Time of a step with combined IoUs over one of plain ATSS, on one thread."""
    with threads(1):
        combined, plain = _Step(1.0), _Step(0.0)
        pairs = alternate(combined, plain, pairs=PAIRS, warm_up=WARM_UP)
        equal = _same_detections(plain.model, combined.model)
    return [pairs.figure("training step with combined IoUs, s", peer="plain ATSS", equal_detections=equal)]


class _Step:
    """One training step after the other of ATSS with a weight for the predicted IoUs."""

    def __init__(self, predicted_weight: float) -> None:
        config = TrainingConfig.model_validate(
            {"model": {"weights": "none", "norm": "gn", "assigner": {"predicted_weight": predicted_weight}}}
        )
        self.model = build_model(config.model, CATEGORIES)
        self.optimizer = build_optimizer(config.schedule, self.model.network)
        # At rate 0 a step costs what it costs and leaves the weights: both go on working on the same numbers.
        set_rate(self.optimizer, 0.0)
        self.batch = _batch()

    def __call__(self) -> None:
        batch = self.batch
        outputs = self.model.network(self.model.normalise(batch.images, batch.sizes))
        losses = self.model.loss(outputs, batch.boxes, batch.labels)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((IMAGES, 2), SIZE)
    corner = torch.rand(IMAGES, BOXES, 2, generator=generator) * (SIZE - 64)
    extent = 16 + torch.rand(IMAGES, BOXES, 2, generator=generator) * (SIZE - 32)
    boxes = torch.cat((corner, (corner + extent).clamp(max=SIZE)), -1)
    return Batch(
        images=torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator),
        sizes=sizes,
        original_sizes=sizes,
        boxes=list(boxes),
        labels=list(torch.randint(0, 80, (IMAGES, BOXES), generator=generator)),
        indices=torch.arange(IMAGES),
    )


@torch.no_grad()
def _same_detections(first: Detector, second: Detector) -> bool:
    batch = _batch()
    found = []
    for model in (first.eval(), second.eval()):
        outputs = model.network(model.normalise(batch.images, batch.sizes))
        found.append(model.postprocess(outputs, batch.sizes, score_threshold=0.0))
    pairs = list(zip(*found, strict=True))
    return all(torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) for a, b in pairs)
