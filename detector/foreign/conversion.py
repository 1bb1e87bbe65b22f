"""From another project's tensors to a detector of ours with that project's conventions. Everything fits, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from detector.anchors import anchors_per_location
from detector.checkpoints import check_finite, not_finite
from detector.config import ModelConfig
from detector.data.coco import Category
from detector.document import counted, listed
from detector.errors import InputError
from detector.foreign import maskrcnn_benchmark, mmdetection, torchvision_v1
from detector.foreign.backbone import backbone_fields
from detector.foreign.layout import Layout, Tensors
from detector.model import Detector, Network, build_model

LAYOUTS = (*mmdetection.LAYOUTS, *maskrcnn_benchmark.LAYOUTS, *torchvision_v1.LAYOUTS)
SHORT_SIDE, LONG_SIDE = 800, 1333
# Batch norms that are live where they come from count batches; ours don't.
COUNTER = ".num_batches_tracked"
SHOWN = 20


@dataclass(frozen=True)
class Reading:
    """A file that was recognised, and how far it fits."""

    source: str
    layout: Layout
    config: ModelConfig
    categories: tuple[Category, ...]
    state: dict[str, Tensor]
    """Tensors by our names: those that fit."""
    unneeded: tuple[str, ...]
    """Keys of the file that say nothing new."""
    unmatched: tuple[str, ...]
    """Keys of the file that this detector has no place for."""
    missing: tuple[str, ...]
    """Keys that the file should have."""
    misshapen: tuple[str, ...]
    """Keys of the file with another shape or, for constants, value, and what is expected."""

    @property
    def fits(self) -> bool:
        """Whether every tensor of the detector is there, and nothing else."""
        return not (self.unmatched or self.missing or self.misshapen)

    @property
    def loads(self) -> bool:
        """Whether ``detector`` gives one: everything fits and is a number."""
        return self.fits and not not_finite(self.state)

    def detector(self) -> Detector:
        """The detector. Raises InputError, with what doesn't match, unless everything fits and is finite."""
        if not self.fits:
            raise InputError(
                f"{self.source} looks like {self.layout.name}, but doesn't fit, and nothing was loaded: "
                f"{'; '.join(self.problems())}. To start a training from what fits, set model.init: {self.source}"
            )
        check_finite(self.state, self.source)
        model = build_model(
            self.config,
            self.categories,
            short_side=SHORT_SIDE,
            long_side=LONG_SIDE,
            resize=self.layout.resize,
            pretrained=False,
        )
        model.network.load_state_dict(self.state)
        return model.eval()

    def problems(self, shown: int | None = SHOWN) -> list[str]:
        """What doesn't match, a clause each; of many keys the first ones."""
        kinds = (
            ("unmatched key", "", self.unmatched),
            ("missing key", "", self.missing),
            ("key", " with another shape", self.misshapen),
        )
        return [f"{counted(len(keys), noun)}{what}: {listed(keys, shown)}" for noun, what, keys in kinds if keys]


def read(tensors: Tensors, source: Path | str) -> Reading:
    """What the ``tensors`` of ``source`` are. Raises InputError where no layout is recognised."""
    for mark, name in torchvision_v1.UNSUPPORTED.items():
        if mark in tensors:
            raise InputError(
                f"{source} is {name}, which isn't supported; use it with torchvision, or load the first version, "
                "torchvision:retinanet_resnet50_fpn"
            )
    for layout in LAYOUTS:
        renamed = {layout.renamed(key): value for key, value in tensors.items()}
        if layout.recognises(renamed):
            return _read(layout, renamed, str(source))
    raise InputError(unknown(tensors, source))


def unknown(tensors: Tensors, source: Path | str) -> str:
    """The sentence for a file whose keys are of no known layout."""
    keys = sorted(tensors)
    if "conv1.weight" in tensors and "layer4.0.conv1.weight" in tensors:
        return f"{source} holds a backbone alone and no detector; train one from it by model.weights: {source}"
    return (
        f"{source} is another model: its {counted(len(keys), 'tensor')} ({listed(keys, 3)}) fit none of "
        f"{', '.join(layout.name for layout in LAYOUTS)}, nor a model of detsweep; convert it to one of these"
    )


def _read(layout: Layout, tensors: dict[str, Tensor], source: str) -> Reading:
    try:
        fields = {**layout.configure(tensors), **_backbone(layout, tensors)}
        config = ModelConfig.model_validate({**fields, "norm": "frozen_bn"})
    except InputError as error:
        raise InputError(f"{source} looks like {layout.name}, but {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{source} looks like {layout.name}, but model.{where}: {first['msg']}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{source} looks like {layout.name}, but lacks or mistakes {error}") from error
    rows = tensors[f"{layout.classes}.weight"].shape[0] // anchors_per_location(config.anchors) - layout.unused_classes
    if rows < 1:
        raise InputError(f"{source} looks like {layout.name}, but its class layer has no class")
    config = config.model_copy(update={"num_classes": rows})
    with torch.device("meta"):
        wanted = Network(config, rows, seed=0).state_dict()
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    misshapen: list[str] = []
    for key, target in wanted.items():
        names = layout.names(key, config)
        used.update(names)
        absent = [name for name in names if name not in tensors]
        if absent:
            missing += absent
            continue
        value = _assembled([tensors[name] for name in names])
        if key.startswith("head.class_logits.") and layout.unused_classes:
            value = value[: -layout.unused_classes]
        if value.shape == target.shape:
            state[key] = value
        else:
            misshapen.append(f"{names[0]} {tuple(value.shape)} instead of {tuple(target.shape)}")
    unneeded, unmatched = [], []
    for key in tensors.keys() - used:
        constant = layout.constants(key)
        if constant is not None and not _same(tensors[key], constant):
            misshapen.append(f"{key} {tensors[key].flatten().tolist()} instead of {constant.flatten().tolist()}")
        elif constant is not None or key.endswith(COUNTER):
            unneeded.append(key)
        else:
            unmatched.append(key)
    return Reading(
        source=source,
        layout=layout,
        config=config,
        categories=categories(rows, labels_are_ids=layout.labels_are_ids),
        state=state,
        unneeded=tuple(sorted(unneeded)),
        unmatched=tuple(sorted(unmatched)),
        missing=tuple(missing),
        misshapen=tuple(misshapen),
    )


def _backbone(layout: Layout, tensors: Tensors) -> dict:
    fields = backbone_fields(tensors, layout.backbone)
    suffix = "_dcn" if "dcn_stages" in fields else ""
    return {**fields, "backbone": fields["backbone"] + suffix}


def _assembled(parts: list[Tensor]) -> Tensor:
    """One tensor, or the vector of the single numbers that one a level holds."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part.reshape(()) for part in parts]) if all(p.numel() == 1 for p in parts) else torch.cat(parts)


def _same(tensor: Tensor, expected: Tensor) -> bool:
    return tensor.shape == expected.shape and bool(torch.allclose(tensor.float(), expected, atol=1e-3))


def categories(count: int, *, labels_are_ids: bool = False) -> tuple[Category, ...]:
    """Names and ids of ``count`` labels: COCO's 80, or all of its 91 ids, where that many; else numbered."""
    coco = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if labels_are_ids:
        names = coco if count == len(coco) else [f"class {label}" for label in range(count)]
        return tuple(Category(label, name) for label, name in enumerate(names))
    real = [Category(label, name) for label, name in enumerate(coco) if label and name != "N/A"]
    if count == len(real):
        return tuple(real)
    return tuple(Category(label + 1, f"class {label}") for label in range(count))
