"""Heads: from the pyramid to raw outputs.

To add a head: a file here, an entry in ``HEADS``, its name in ``HeadConfig``, a test.
"""

from __future__ import annotations

from detector.config import HeadConfig
from detector.heads.atss import ATSSHead
from detector.heads.outputs import HeadOutputs

__all__ = ["HEADS", "ATSSHead", "HeadOutputs", "build_head"]

HEADS = {"atss": ATSSHead}


def build_head(config: HeadConfig, *, in_channels: int, num_classes: int) -> ATSSHead:
    """The head that ``config`` describes, over levels of ``in_channels``."""
    return HEADS[config.name](config, in_channels=in_channels, num_classes=num_classes)
