"""A training step of ATSS R50 against torchvision's FCOS R50: forward, backward, SGD, on one image of 512x512.

Both begin from the same backbone, with stem and first stage frozen and frozen BatchNorm, and run in the same precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.config import TrainingConfig
from detector.data.coco import Category
from detector.data.loader import Batch
from detector.outputs import HeadOutputs
from detector.training_state import TrainingState
from tests.benchmarks.alternating import Figure, alternate

SIZE, BOXES, CLASSES = 512, 20, 80
PAIRS, WARM_UP = 9, 2
GOALS = {"float32": 0.9, "bfloat16": 0.85}


def measure() -> list[Figure]:
    """Ratio of the steps' times in both precisions, and the share of assignment and losses."""
    figures = []
    with backbone_weights() as weights:
        for precision, goal in GOALS.items():
            ours, peer = OurStep(weights, precision), PeerStep(weights, precision)
            pairs = alternate(ours, peer, pairs=PAIRS, warm_up=WARM_UP)
            figures.append(
                pairs.figure(f"training step, {precision}, s", at_most=goal, peer="torchvision's FCOS", boxes=BOXES)
            )
            pairs = alternate(LossStep(ours), ours, pairs=PAIRS, warm_up=WARM_UP)
            figures.append(pairs.figure(f"assignment and losses, {precision}, s", at_most=0.03, peer="whole step"))
    return figures


@contextmanager
def backbone_weights() -> Iterator[Path]:
    """A file with a ResNet-50's random weights, scaled so that its frozen normalisation keeps numbers of usual size."""
    torch.manual_seed(0)
    state = torchvision.models.resnet50(weights=None).state_dict()
    state = {key: value * 0.2 if key.endswith("bn3.weight") else value for key, value in state.items()}
    with tempfile.TemporaryDirectory(prefix="detsweep-") as folder:
        path = Path(folder) / "resnet50.pth"
        torch.save(state, path)
        yield path


def make_batch(images: int = 1, size: int = SIZE, boxes: int = BOXES) -> Batch:
    """Noise with boxes of 16 px and more."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.full((images, 2), size)
    corner = torch.rand(images, boxes, 2, generator=generator) * (size - 64)
    extent = 16 + torch.rand(images, boxes, 2, generator=generator) * (size - 32)
    return Batch(
        images=torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator),
        sizes=sizes,
        original_sizes=sizes,
        boxes=list(torch.cat((corner, (corner + extent).clamp(max=size)), -1)),
        labels=list(torch.randint(0, CLASSES, (images, boxes), generator=generator)),
        indices=torch.arange(images),
    )


def make_state(weights: Path, precision: str, compile: bool) -> TrainingState:
    """The state of a training of the recipe's model, with combined IoUs."""
    config = TrainingConfig.model_validate(
        {
            "model": {"weights": str(weights), "assigner": {"predicted_weight": 1.0}},
            "schedule": {"learning_rate": 1e-6, "precision": precision},
            "resources": {"compile": compile},
        }
    )
    categories = [Category(number + 1, f"class {number}") for number in range(CLASSES)]
    return TrainingState(config, SimpleNamespace(categories=categories), torch.device("cpu"))  # type: ignore[arg-type]


class OurStep:
    """One iteration after the other, as trainings make them."""

    def __init__(self, weights: Path, precision: str, images: int = 1, compile: bool = False) -> None:
        self.state = make_state(weights, precision, compile)
        self.batch = make_batch(images)

    def __call__(self) -> None:
        self.state.update([self.batch])


class LossStep:
    """Of a step what is neither network nor optimiser: assignment, targets, losses, and their gradients back to the
    network's outputs.
    """

    def __init__(self, step: OurStep) -> None:
        self.criterion, self.batch = step.state.model.criterion, step.batch
        outputs = step.state.forward(step.batch)
        levels = [None if each is None else [level.detach().requires_grad_() for level in each] for each in outputs]
        self.outputs = HeadOutputs(*levels)  # type: ignore[arg-type]

    def __call__(self) -> None:
        targets = self.criterion.targets(self.outputs, self.batch.boxes, self.batch.labels, 0.0)
        losses = self.criterion.losses(self.outputs, targets, targets.totals)
        torch.stack(list(losses.values())).sum().backward()


class PeerStep:
    """The same of torchvision's FCOS, with a plain SGD."""

    def __init__(self, weights: Path, precision: str, images: int = 1) -> None:
        backbone = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        state = torch.load(weights, weights_only=True)
        backbone.load_state_dict({key: value for key, value in state.items() if "num_batches" not in key})
        extractor = _resnet_fpn_extractor(backbone, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
        self.model: nn.Module = FCOS(extractor, CLASSES, min_size=SIZE, max_size=SIZE).train()
        learned = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.SGD(learned, lr=1e-6, momentum=0.9, weight_decay=1e-4)
        self.bfloat16 = precision == "bfloat16"
        batch = make_batch(images)
        self.images = [image.float() / 255 for image in batch.images]
        self.targets: list[dict[str, Tensor]] = [
            {"boxes": boxes, "labels": labels} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            losses = self.model(self.images, self.targets)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
