"""Label assignment: which anchors learn which box.

To add a rule: a file here, an entry in ``ASSIGNERS``, its name in ``AssignerName``, a test. Or, without a fork, a
plug-in: see docs/add-an-assigner.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from detector.assigners.assignment import BACKGROUND, IGNORED, Assignment, dense_assignment, padded
from detector.assigners.atss import ATSSAssigner
from detector.assigners.fcos import FCOSAssigner
from detector.assigners.fixed_iou import FixedIoUAssigner
from detector.config import AssignerConfig
from detector.document import suggestion
from detector.errors import InputError

__all__ = [
    "ASSIGNERS",
    "BACKGROUND",
    "IGNORED",
    "ATSSAssigner",
    "Assigner",
    "Assignment",
    "FCOSAssigner",
    "FixedIoUAssigner",
    "build_assigner",
    "dense_assignment",
    "padded",
]


class Assigner(Protocol):
    """What every rule does; shapes as in ``ATSSAssigner``."""

    def __call__(
        self,
        anchors: Tensor,
        level_shapes: Sequence[tuple[int, int]],
        gt_boxes: Sequence[Tensor],
        predicted_boxes: Tensor | None = None,
        progress: float = 0.0,
    ) -> Assignment: ...


ASSIGNERS: dict[str, Callable[[AssignerConfig], Assigner]] = {
    "atss": lambda config: ATSSAssigner(config.topk, config.predicted_weight, config.anchor_weight),
    "fixed_iou": lambda config: FixedIoUAssigner(config.positive_iou, config.negative_iou, config.keep_best),
    "fcos": lambda config: FCOSAssigner(config.center_radius),
}


def build_assigner(config: AssignerConfig) -> Assigner:
    """The assigner that ``config`` describes. Raises InputError for one that isn't here."""
    if config.name not in ASSIGNERS:
        raise InputError(
            f'there is no assigner "{config.name}" ({suggestion(config.name, ASSIGNERS)}); if a plug-in adds it, name '
            f'its file: --plugin {config.name}.py in commands, detector.plugins.use("{config.name}.py") in Python'
        )
    return ASSIGNERS[config.name](config)
