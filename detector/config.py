"""Typed configuration of one training: what a YAML file, ``--set`` and a saved model all mean by the same names.

Every key of a sweep file is a field here, under the same name. The models are frozen and refuse unknown keys. Nothing
heavy is imported, so that planning, help and reports are instant. A component is built from its own model and from
nothing else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Backbone = Literal["r18", "r34", "r50", "r101", "x101_32x4d", "x101_32x8d", "x101_64x4d"]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["up", "down"]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all configuration: frozen, no unknown keys, whole numbers are not silently rounded."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NeckConfig(Section):
    """Feature pyramid P3–P7."""

    channels: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    """Channels of every level; the head's GroupNorm takes them in 32 groups of at least two."""
    relu_before_p7: bool = True
    """ReLU between P6 and P7 (the authors and VFNet: yes; mmdetection's ATSS and GFL, GFLV2: no)."""


class HeadConfig(Section):
    """Detection head, shared over levels."""

    name: Literal["atss"] = "atss"
    """Architecture of the head."""
    convolutions: Annotated[int, Field(ge=0)] = 4
    """3x3 convolutions in each of the two towers."""
    tower_bias: bool = True
    """Bias in the tower convolutions (the authors: yes; mmdetection: no)."""
    quality_branch: Literal["centerness", "iou", "none"] = "centerness"
    """What the third output predicts, and what weighs the box loss."""
    classification_loss: Literal["focal", "qfl", "vfl"] = "focal"
    """Focal loss has targets 0 and 1; QFL and VFL take the predicted IoU as target."""


class AssignerConfig(Section):
    """Which anchors are positive for which box (Eq. 1-4)."""

    name: Literal["atss"] = "atss"
    """Assignment rule."""
    topk: PositiveInt = 9
    """Candidates per box and level."""
    predicted_weight: Weight = 0.0
    """Weight of the predicted IoUs: a number, or "up" (iteration / iterations) or "down" (1 - that)."""
    anchor_weight: Weight = 1.0
    """Weight of the anchor IoUs, likewise."""

    @model_validator(mode="after")
    def _some_weight(self) -> AssignerConfig:
        if self.predicted_weight == 0 and self.anchor_weight == 0:
            raise ValueError(
                "predicted_weight and anchor_weight are both 0, so nothing ranks the candidates; give one a weight"
            )
        return self


class AnchorConfig(Section):
    """One square anchor a location, on strides 8 to 128."""

    scale: PositiveFloat = 8.0
    """Side of the anchor in strides."""
    center_offset: Fraction = 0.5
    """Centre of the anchor of column j at (j + center_offset) strides (the authors 0.5, mmdetection 0)."""


class PostprocessConfig(Section):
    """From raw outputs to detections."""

    score_threshold: Fraction = 0.05
    """Class scores at or below this are dropped before ranking."""
    candidates_per_level: PositiveInt = 1000
    """Best candidates kept on each level before suppression."""
    ranking: Literal["joint", "class"] = "joint"
    """Candidates are ranked by class score x quality (the authors), or by class score alone (mmdetection)."""
    score: Literal["geometric_mean", "product"] = "geometric_mean"
    """Final score: sqrt(class score x quality) (the authors), or the product (mmdetection)."""
    nms_iou: Fraction = 0.6
    """IoU above which the lower-scored of two boxes of a class is suppressed."""
    max_detections: PositiveInt = 100
    """Detections kept in an image."""


class ModelConfig(Section):
    """A detector."""

    backbone: Backbone = "r50"
    """ResNet or ResNeXt of torchvision."""
    weights: str = "imagenet"
    """Initial backbone: "imagenet" (torchvision's IMAGENET1K_V1), "none" (random), "auto" (imagenet where the file is
    already on this machine, else none) or the path of a state dict."""
    num_classes: PositiveInt | None = None
    """Classes; null takes them from the data set."""
    norm: Literal["frozen_bn", "gn"] | None = None
    """Normalisation of the backbone; null means frozen_bn with pretrained weights and gn without."""
    neck: NeckConfig = NeckConfig()
    head: HeadConfig = HeadConfig()
    assigner: AssignerConfig = AssignerConfig()
    anchors: AnchorConfig = AnchorConfig()
    postprocess: PostprocessConfig = PostprocessConfig()


class AugmentationConfig(Section):
    """Random changes of training images; each a function of (seed, step, image)."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    """Range of a log-uniform factor on the resized image, or null; where it would grow beyond `long_side`, a random
    window is cut."""
    crop: Fraction = 0.0
    """Probability of a random crop at the same scale, its sides between 60 % and 100 % of the image's; boxes whose
    centre leaves are dropped."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of random brightness, contrast, saturation and (a tenth of it) hue."""


class GeneratedDataConfig(Section):
    """A generated detection set, made at first use and kept in the storage."""

    train_images: PositiveInt = 400
    """Images of the split "train"."""
    val_images: PositiveInt = 100
    """Images of the split "val", drawn from a seed that training doesn't use."""
    seed: Annotated[int, Field(ge=0)] = 0
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
    short_side: PositiveInt | tuple[PositiveInt, PositiveInt] = 800
    """Shorter side after resizing, in pixels; a pair draws any integer between them for each training image (its upper
    end is used in evaluation)."""
    long_side: PositiveInt = 1333
    """Bound on the longer side after resizing, in pixels."""
    keep_empty: bool = False
    """Train on images without boxes, too."""
    cache: str | None = None
    """Folder on each node's own disk for the converted data set; null keeps it in the storage."""
    augmentation: AugmentationConfig = AugmentationConfig()
    generated: GeneratedDataConfig | None = None
    """Generate the data instead of reading `root`."""


class ScheduleConfig(Section):
    """Optimisation over iterations; the rate is a pure function of the step."""

    iterations: PositiveInt = 90_000
    """Iterations for `epochs_factor` 1."""
    epochs_factor: PositiveFloat = 1
    """Multiple of `iterations` (1x, 2x)."""
    batch_size: PositiveInt = 16
    """Images in the global batch, over all workers."""
    recipe_batch_size: PositiveInt = 16
    """Global batch for which rate and iterations are stated; profiles and bases set it, users don't."""
    scale_with_batch: Literal["linear"] | None = None
    """"linear" allows another `batch_size`: rate, length and warm-up are scaled by it. Not the paper's recipe then."""
    learning_rate: PositiveFloat = 0.01
    """Peak rate."""
    policy: Literal["step", "one_cycle"] = "step"
    """"step": warm-up, then divided by 10 at each fraction of `decay_at`; "one_cycle": cosine up and down."""
    warmup: Annotated[int, Field(ge=0)] = 500
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
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
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
    cpus_per_worker: PositiveInt = 1
    """CPU cores of each, and its threads."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each; null takes one where the cluster has them."""
    placement: Literal["pack", "spread", "one_node"] = "pack"
    """Where the workers of a training lie: on as few nodes as there is room on, on as many as possible, or all on one
    node (the training waits until one has room)."""
    micro_batch_size: PositiveInt | None = None
    """Images a worker holds at once; its share of the batch is accumulated over as many passes as that takes. Null:
    the whole share."""
    loader_workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read images for each worker; null: cpus_per_worker - 1."""
    stall_timeout_s: PositiveFloat = 120
    """Seconds without a step after which a worker counts as hung."""


class TrainingConfig(Section):
    """Everything that one training is made from."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initialisation, order and augmentation."""

    @model_validator(mode="after")
    def _workers_have_images(self) -> TrainingConfig:
        if self.resources.workers > self.schedule.batch_size:
            raise ValueError(
                f"resources.workers is {self.resources.workers}, but the global batch has only "
                f"{self.schedule.batch_size} images; use at most that many workers"
            )
        return self
