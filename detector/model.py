"""A detector: network, losses and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from detector.assigners import build_assigner
from detector.backbones import build_backbone, channels_of, load_pretrained
from detector.config import DataConfig, ModelConfig, PostprocessConfig, Resize
from detector.data.coco import Category
from detector.detections import Detections
from detector.errors import InputError, UnreachableError
from detector.heads import HeadOutputs, build_criterion, build_head
from detector.necks import build_neck
from detector.postprocess import detections
from detector.weights import resolve_weights


class Network(nn.Module):
    """Backbone, neck and head: normalised images in, raw outputs out."""

    def __init__(self, config: ModelConfig, num_classes: int, seed: int) -> None:
        super().__init__()
        # Each part draws from its own seed: rows that differ in one part start from equal weights in the others.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3 * seed)
            self.backbone = build_backbone(config)
            torch.manual_seed(3 * seed + 1)
            self.neck = build_neck(config.neck, channels_of(self.backbone))
            torch.manual_seed(3 * seed + 2)
            self.head = build_head(config, num_classes=num_classes)

    def forward(self, batch: Tensor) -> HeadOutputs:
        """Batch (N, 3, H, W) float, normalised, H and W multiples of 32 -> raw outputs."""
        return self.head(self.neck(self.backbone(batch)))


class Detector(nn.Module):
    """A network with what it takes to train and to use it.

    ``config``: resolved, with its classes. ``categories``: the data set's, by label.
    ``short_side``, ``long_side``, ``resize``: how images are resized before the network sees them, as in DataConfig.
    """

    def __init__(
        self,
        config: ModelConfig,
        categories: Sequence[Category],
        *,
        short_side: int = 800,
        long_side: int = 1333,
        resize: Resize = "antialias",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.categories = tuple(categories)
        self.short_side, self.long_side, self.resize = short_side, long_side, resize
        self.network = Network(config, len(self.categories), seed)
        self.criterion = build_criterion(config)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixels.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixels.deviation).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    @property
    def input(self) -> DataConfig:
        """How images are resized for it."""
        return DataConfig(short_side=self.short_side, long_side=self.long_side, resize=self.resize)

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Padded RGB images (N, 3, H, W) of 0 to 255, of sizes (N, 2), (height, width) -> float32, 0 in the padding."""
        images = images.flip(1) if self.config.pixels.order == "bgr" else images
        pixels = (images.float() - self.pixel_mean) / self.pixel_std
        rows = torch.arange(images.shape[-2], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[-1], device=images.device) < sizes[:, 1:]
        pixels = pixels * (rows[:, None, :, None] & columns[:, None, None, :])
        return pixels.contiguous(memory_format=memory_format(self.config))

    def loss(
        self, outputs: HeadOutputs, gt_boxes: Sequence[Tensor], gt_labels: Sequence[Tensor], progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Scalar losses, weighted as they enter the sum, of a batch by itself.

        ``gt_boxes``: N tensors (G_i, 4) xyxy in pixels of the input; ``gt_labels``: (G_i,) in 0..C-1;
        ``progress``: iteration / iterations.
        """
        targets = self.criterion.targets(outputs, gt_boxes, gt_labels, progress)
        return self.criterion.losses(outputs, targets, targets.totals)

    def postprocess(
        self,
        outputs: HeadOutputs,
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        *,
        min_score: float | None = None,
        class_agnostic: bool = False,
        **overrides: Any,
    ) -> list[Detections]:
        """Detections in pixels of the input; ``image_sizes``: (height, width) before padding.

        ``overrides`` are fields of PostprocessConfig; for the others see ``detector.postprocess.detections``.
        """
        config = PostprocessConfig.model_validate(self.config.postprocess.model_dump() | overrides)
        return detections(
            outputs,
            self.criterion,
            image_sizes,
            self.categories,
            config,
            min_score=min_score,
            class_agnostic=class_agnostic,
        )

    def predict(self, images: Any, **options: Any) -> Any:
        """Finds objects; see ``detector.prediction.predict`` for images and options."""
        from detector.prediction import predict

        return predict(self, images, **options)

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the folder ``path``, which ``detector.load`` gives the same detector back from; returns it.

        A model that lies there already is replaced. Raises InputError where ``path`` is a file, UnreachableError where
        it can't be written.
        """
        from detector.checkpoints import save_model

        folder = Path(path).expanduser()
        if folder.is_file():
            raise InputError(f"{path} is a file, and a model is saved as a folder; name a folder")
        try:
            save_model(self, folder)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnreachableError(f"{path} can't be written ({reason}); name another folder") from error
        return folder

    def export(self, path: Any, **options: Any) -> Any:
        """Writes an ONNX graph from pixels to boxes; see ``detector.export.export``."""
        from detector.export import export

        return export(self, path, **options)


def memory_format(config: ModelConfig) -> torch.memory_format:
    """How a network of ``config`` lays out its tensors: GroupNorm's backward pass is slow on channels-last ones."""
    return torch.contiguous_format if config.norm == "gn" else torch.channels_last


def build_model(
    config: ModelConfig,
    categories: Sequence[Category],
    *,
    short_side: int = 800,
    long_side: int = 1333,
    resize: Resize = "antialias",
    seed: int = 0,
    pretrained: bool = True,
) -> Detector:
    """The detector that ``config`` describes, with the initial weights that it names.

    Raises InputError when these can't be had. ``pretrained=False`` leaves the backbone random, to be loaded over.
    """
    config = resolve_weights(config) if pretrained else config
    config = config.model_copy(update={"num_classes": len(categories)})
    model = Detector(config, categories, short_side=short_side, long_side=long_side, resize=resize, seed=seed)
    if pretrained:
        build_assigner(config.assigner)  # what can't be assigned is refused now, not at the first step
        if config.init is None:
            load_pretrained(model.network.backbone, config)
        else:
            from detector.initial import start_from

            start_from(model)
    return model.to(memory_format=memory_format(config))
