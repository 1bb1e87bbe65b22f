"""Typed configuration of one training: what a YAML file, ``--set`` and a saved model all mean by the same names.

Every key of a sweep file is a field here or in ``detector.model_config``, under the same name. The models are frozen
and refuse unknown keys. Nothing heavy is imported, so that planning, help and reports are instant. A component is
built from its own model and from nothing else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from detector.document import suggestion
from detector.fields import Fraction, JitterFactor, Pixels, PositiveFloat, PositiveInt, Section, Seed
from detector.model_config import (
    BUILT_IN,
    HEAD_PARTS,
    AnchorConfig,
    AssignerConfig,
    Backbone,
    HeadConfig,
    Kind,
    ModelConfig,
    NeckConfig,
    PixelsConfig,
    PostprocessConfig,
)
from detector.plugins import Plugin

__all__ = [
    "HEAD_PARTS",
    "AnchorConfig",
    "AssignerConfig",
    "AugmentationConfig",
    "Backbone",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "GeneratedDataConfig",
    "HeadConfig",
    "ModelConfig",
    "NeckConfig",
    "PixelsConfig",
    "PostprocessConfig",
    "Resize",
    "ResourcesConfig",
    "ScheduleConfig",
    "Section",
    "Seed",
    "TrackingConfig",
    "TrainingConfig",
]

Resize = Literal["antialias", "torchvision", "opencv"]


class AugmentationConfig(Section):
    """Random changes of training images; each a function of (seed, step, image)."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    scale_jitter: tuple[JitterFactor, JitterFactor] | None = None
    """Range of a log-uniform factor on the resized image, or null; where it would grow beyond `long_side`, a random
    window is cut."""
    crop: Fraction = 0.0
    """Probability of a random crop at the same scale, its sides between 60 % and 100 % of the image's; boxes whose
    centre leaves are dropped."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random brightness, contrast, saturation and (a tenth of it) hue."""

    @field_validator("scale_jitter")
    @classmethod
    def _lower_end_first(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(
                f"the smaller factor stands first; write [{value[1]:g}, {value[0]:g}] instead of "
                f"[{value[0]:g}, {value[1]:g}]"
            )
        return value


class GeneratedDataConfig(Section):
    """A generated detection set, made at first use and kept in the storage."""

    train_images: Annotated[int, Field(ge=1, le=1_000_000)] = 400
    """Images of the split "train"."""
    val_images: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Images of the split "val", drawn from a seed that training doesn't use."""
    seed: Seed = 0
    """Seed of the drawing."""
    classes: Annotated[int, Field(ge=1, le=8)] = 4
    """Kinds of shapes."""
    long_side: Annotated[int, Field(ge=128, le=1024)] = 320
    """Longer side of the images, in pixels."""


class DataConfig(Section):
    """The data set and how its images enter the network."""

    root: str | None = None
    """COCO-format folder: annotations/instances_SPLIT.json or annotations/SPLIT.json, images in SPLIT/ or
    images/SPLIT/."""
    train: str = "train2017"
    """Split to train on."""
    val: str = "val2017"
    """Split to evaluate on."""
    test: str | None = None
    """Split evaluated once, at the end."""
    short_side: Pixels | tuple[Pixels, Pixels] = 800
    """Shorter side after resizing, in pixels; a pair draws any integer between them for each training image (its upper
    end is used in evaluation)."""
    evaluation_short_side: Pixels | None = None
    """Shorter side in evaluation and prediction; null: `short_side`, or the upper end of its range."""
    long_side: Pixels = 1333
    """Bound on the longer side after resizing, in pixels."""
    resize: Resize = "antialias"
    """How images are resized, and their sizes rounded: bilinear with antialiasing (as the authors do), bilinear
    without and in floating point (as torchvision's detectors do), or bilinear without (as mmdetection does)."""
    scaled_decoding: bool = False
    """Decode JPEGs that training makes much smaller at a half, a quarter or an eighth of their size: quicker, with
    slightly other pixels. Evaluation and images that are cut are decoded whole."""
    keep_empty: bool = False
    """Train on images without boxes, too."""
    cache: str | None = None
    """Folder on each node's own disk for the converted data set; null keeps it in the storage."""
    augmentation: AugmentationConfig = AugmentationConfig()
    generated: GeneratedDataConfig | None = None
    """Generate the data instead of reading `root`."""

    @property
    def evaluated_short_side(self) -> int:
        """`evaluation_short_side`, or what stands for it."""
        if self.evaluation_short_side is not None:
            return self.evaluation_short_side
        return self.short_side if isinstance(self.short_side, int) else max(self.short_side)


class ScheduleConfig(Section):
    """Optimisation over iterations; the rate is a pure function of the step."""

    iterations: PositiveInt = 90_000
    """Iterations for `epochs_factor` 1."""
    epochs_factor: Annotated[float, Field(gt=0, le=1000)] = 1
    """Multiple of `iterations` (1x, 2x)."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Images in the global batch, over all workers."""
    recipe_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Global batch for which rate and iterations are stated; profiles and bases set it, users don't."""
    scale_with_batch: Literal["linear"] | None = None
    """"linear" allows another `batch_size`: rate, length and warm-up are scaled by it. Not the paper's recipe then."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.01
    """Peak rate."""
    policy: Literal["step", "one_cycle"] = "step"
    """"step": warm-up, then divided by 10 at each fraction of `decay_at`; "one_cycle": cosine up and down."""
    warmup: Annotated[int, Field(ge=0, le=10**9)] = 500
    """Warm-up of the step policy, in iterations; at most 5 % of the training."""
    warmup_factor: PositiveFloat = 1 / 3
    """Rate at the start of the warm-up, over the peak."""
    warmup_shape: Literal["constant", "linear"] = "constant"
    """Whether the warm-up stays at `warmup_factor` or rises from it."""
    decay_at: tuple[Fraction, ...] = (2 / 3, 8 / 9)
    """Fractions of the iterations at which the step policy divides the rate by 10."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-4
    """Decay of the weights. AdamW: of kernels alone; SGD: see `double_bias_rate`."""
    double_bias_rate: bool = True
    """SGD: biases at twice the rate and without decay (the authors, VFNet; not GFL and GFLV2)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; bfloat16 is autocast, losses and assignment stay float32."""
    clip_norm: PositiveFloat | None = None
    """Bound on the global gradient norm, or null."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved, or null."""

    @model_validator(mode="after")
    def _batch_is_the_recipes(self) -> ScheduleConfig:
        if self.batch_size != self.recipe_batch_size and self.scale_with_batch is None:
            raise ValueError(
                f"batch_size is {self.batch_size}, but rate and length are stated for a global batch of "
                f"{self.recipe_batch_size}; keep {self.recipe_batch_size} (resources.workers and "
                "resources.micro_batch_size divide it as you like) or set schedule.scale_with_batch: linear"
            )
        return self

    @property
    def batch_factor(self) -> float:
        """Global batch over the recipe's."""
        return self.batch_size / self.recipe_batch_size

    @property
    def max_iterations(self) -> int:
        """Iterations of this training."""
        return max(1, round(self.iterations * self.epochs_factor / self.batch_factor))


class CheckpointConfig(Section):
    """When the state of a training is saved."""

    every: PositiveInt | None = 1000
    """Iterations between checkpoints; null saves only at the end."""


class EvaluationConfig(Section):
    """When the validation split is evaluated."""

    every: PositiveInt | None = None
    """Iterations between evaluations; null evaluates only at the end."""
    batch_size: PositiveInt = 1
    """Images of equal padded size evaluated together."""


class TrackingConfig(Section):
    """When metrics are written."""

    every: PositiveInt = 20
    """Iterations over which logged metrics are averaged."""


class ResourcesConfig(Section):
    """What a training runs on; never decides its result."""

    workers: PositiveInt = 1
    """Processes that share the global batch."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=4096)] = 1
    """CPU cores of each, and its threads."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=4096)] | None = None
    """GPUs of each; null takes one where the cluster has them."""
    placement: Literal["pack", "spread", "one_node"] = "pack"
    """Where the workers of a training lie: on as few nodes as there is room on, on as many as possible, or all on one
    node (the training waits until one has room)."""
    micro_batch_size: PositiveInt | None = None
    """Images a worker holds at once; its share of the batch is accumulated over as many passes as that takes. Null:
    the whole share."""
    loader_workers: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Processes that read images for each worker; null: cpus_per_worker - 1."""
    compile: bool = False
    """Compile backbone, neck and head before training (torch.compile: minutes at the start, and a C++ compiler where
    there is no GPU). Numbers differ as little as by another number of workers."""
    stall_timeout_s: PositiveFloat = 120
    """Seconds without a step after which a worker counts as hung."""

    @property
    def loader_processes(self) -> int:
        """`loader_workers`, or what stands for it."""
        return self.cpus_per_worker - 1 if self.loader_workers is None else self.loader_workers

    @property
    def loader_threads(self) -> int:
        """Threads of each of them: the CPUs but one, which trains, are shared out."""
        return max(1, (self.cpus_per_worker - 1) // max(1, self.loader_processes))


class TrainingConfig(Section):
    """Everything that one training is made from."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    seed: Seed = 0
    """Seed of initialisation, order and augmentation."""
    plugins: tuple[Plugin, ...] = ()
    """Plug-ins that the model uses; a sweep file names them at its top, a command by --plugin."""

    @model_validator(mode="after")
    def _names_are_known(self) -> TrainingConfig:
        parts: dict[Kind, AssignerConfig | HeadConfig] = {"assigner": self.model.assigner, "head": self.model.head}
        for kind, part in parts.items():
            mine = [plugin.name for plugin in self.plugins if kind in plugin.provides]
            known = [*BUILT_IN[kind], *mine]
            if part.name not in known:
                raise ValueError(
                    f'model.{kind}.name is "{part.name}", but there is no such {kind}, built in or among the plug-ins '
                    f"that are declared; {suggestion(part.name, known)}"
                )
        return self

    @model_validator(mode="after")
    def _workers_have_images(self) -> TrainingConfig:
        if self.resources.workers > self.schedule.batch_size:
            raise ValueError(
                f"resources.workers is {self.resources.workers}, but the global batch has only "
                f"{self.schedule.batch_size} images; use at most that many workers"
            )
        return self
