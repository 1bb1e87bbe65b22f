"""Label assignment: which anchors learn which box.

To add a rule: a file here, an entry in ``ASSIGNERS``, its name in ``AssignerConfig``, a test.
"""

from __future__ import annotations

from detector.assigners.assignment import Assignment
from detector.assigners.atss import ATSSAssigner
from detector.config import AssignerConfig

__all__ = ["ASSIGNERS", "ATSSAssigner", "Assignment", "build_assigner"]

ASSIGNERS = {"atss": ATSSAssigner}


def build_assigner(config: AssignerConfig) -> ATSSAssigner:
    """The assigner that ``config`` describes."""
    return ASSIGNERS[config.name](
        topk=config.topk, predicted_weight=config.predicted_weight, anchor_weight=config.anchor_weight
    )
