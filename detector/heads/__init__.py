"""Heads: from the pyramid to raw outputs, from these to boxes, and what they are trained on.

To add a head: a file here, an entry in ``HEADS``, its name in ``HeadName`` and ``HEAD_PARTS``, a test. Or, without a
fork, a plug-in: see docs/add-an-assigner.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from detector.config import ModelConfig
from detector.criterion import Criterion
from detector.document import suggestion
from detector.errors import InputError
from detector.heads import atss, fcos, gfl, retinanet, vfnet
from detector.outputs import HeadOutputs

__all__ = ["HEADS", "HeadKind", "HeadOutputs", "build_criterion", "build_head"]


class HeadKind(NamedTuple):
    """What a head is made of."""

    module: Callable[..., nn.Module]
    """Of a ModelConfig and ``num_classes``: from P3 to P7 to HeadOutputs."""
    decode: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Raw regression (..., D), anchors (..., 4), strides (..., 1) -> boxes (..., 4)."""
    criterion: type[Criterion]
    """Its losses."""


HEADS: dict[str, HeadKind] = {
    "atss": HeadKind(atss.ATSSHead, atss.decode_deltas, atss.ATSSCriterion),
    "retinanet": HeadKind(retinanet.RetinaNetHead, retinanet.decode_unit_deltas, retinanet.RetinaNetCriterion),
    "fcos": HeadKind(fcos.FCOSHead, fcos.decode_strides, fcos.FCOSCriterion),
    "gfl": HeadKind(gfl.GFLHead, gfl.decode_distributions, gfl.GFLCriterion),
    "gflv2": HeadKind(gfl.GFLV2Head, gfl.decode_distributions, gfl.GFLCriterion),
    "vfnet": HeadKind(vfnet.VFNetHead, vfnet.decode_pixels, vfnet.VFNetCriterion),
}


def build_head(config: ModelConfig, *, num_classes: int) -> nn.Module:
    """The head that ``config`` describes. Raises InputError for one that isn't here."""
    return _kind(config).module(config, num_classes=num_classes)


def build_criterion(config: ModelConfig) -> Criterion:
    """The losses of the head that ``config`` describes. Raises InputError for one that isn't here."""
    kind = _kind(config)
    return kind.criterion(config, kind.decode)


def _kind(config: ModelConfig) -> HeadKind:
    name = config.head.name
    if name not in HEADS:
        raise InputError(
            f'there is no head "{name}" ({suggestion(name, HEADS)}); if a plug-in adds it, name its file: '
            f'--plugin {name}.py in commands, detector.plugins.use("{name}.py") in Python'
        )
    return HEADS[name]
