"""Objects in images of any sizes, each seen once or, on request, mirrored and at several sizes.

A *view* is one way to see an image: at one size, as it is or mirrored. Several views of an image are put together by
their candidates, all of them in the first view's pixels: boxes of one class suppress each other whichever view they
come from, at the recipe's IoU, and the best ``max_detections`` remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.config import DataConfig, PostprocessConfig
from detector.data.plans import ImagePlan, padded_size, resized_size
from detector.data.transforms import apply
from detector.detections import Detections
from detector.errors import InputError
from detector.folding import folded
from detector.model import Detector
from detector.outputs import HeadOutputs
from detector.pictures import Picture, read_picture
from detector.postprocess import candidates, survivors

if TYPE_CHECKING:
    from detector.pictures import ImageLike

# Views of equal padded size go through the network together, up to this many pixels at once; one by one on a CPU, which
# gains nothing by batches.
PIXELS_AT_ONCE = {"cpu": 0}
PIXELS_AT_ONCE_ELSEWHERE = 4 * 800 * 1344
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """How to look at images, and what to return. Raises InputError for what means nothing."""

    score_threshold: float | None = None
    """Least score of what is returned, between 0 and 1; None: the recipe's rule for what is ranked."""
    max_detections: int = 100
    """Detections kept in an image."""
    class_agnostic: bool = False
    """Boxes of all classes suppress each other."""
    flip: bool = False
    """Look at the mirrored image, too."""
    scales: tuple[int, ...] | None = None
    """Short sides to look at, in pixels; None: the model's own. The bound on the long side goes with them."""
    precision: str = "float32"
    """Arithmetic of the network, one of ``PRECISIONS``; all after it is float32."""
    compile: bool = False
    """Compile the network first, which takes minutes and a C++ compiler, and pays with thousands of images."""

    def __post_init__(self) -> None:
        threshold, most, scales = self.score_threshold, self.max_detections, self.scales
        if threshold is not None and not (_is(threshold, Real) and 0 <= threshold <= 1):
            raise InputError(f"score_threshold is {threshold!r}; give a number from 0 to 1, or None")
        if not (_is(most, Integral) and 1 <= most <= 10**9):
            raise InputError(f"max_detections is {most!r}; give a whole number from 1 up")
        for name in ("class_agnostic", "flip", "compile"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise InputError(f"{name} is {getattr(self, name)!r}; give True or False")
        if scales is not None:
            if not isinstance(scales, list | tuple) or not scales:
                raise InputError(f"scales is {scales!r}; give short sides in pixels, such as (640, 800)")
            for side in scales:
                if not (_is(side, Integral) and 32 <= side <= 16_384):
                    raise InputError(f"scales has {side!r}; a short side is a whole number of pixels, 32 to 16384")
            object.__setattr__(self, "scales", tuple(dict.fromkeys(int(side) for side in scales)))
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; give {' or '.join(PRECISIONS)}")
        object.__setattr__(self, "max_detections", int(most))
        object.__setattr__(self, "score_threshold", None if threshold is None else float(threshold))

    @property
    def one_view(self) -> bool:
        """Whether each image is seen once, as the model's own configuration says."""
        return not self.flip and self.scales is None


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def predict(
    model: Detector,
    images: ImageLike | Sequence[ImageLike],
    *,
    score_threshold: float | None = None,
    max_detections: int = 100,
    class_agnostic: bool = False,
    flip: bool = False,
    scales: Sequence[int] | None = None,
    precision: str = "float32",
    compile: bool = False,
) -> Detections | list[Detections]:
    """Objects in one image, or in each of a list of images, of any sizes.

    An image is a path, a PIL image, a uint8 RGB array (H, W, 3) or a uint8 tensor (3, H, W). Boxes are in pixels of the
    original image. ``score_threshold`` None is the recipe's rule (class scores above 0.05 are ranked); a number also
    bounds the scores that are returned. With ``class_agnostic`` boxes of all classes suppress each other. ``flip`` and
    ``scales`` (short sides in pixels) look several times and merge; ``precision`` "bfloat16" is faster on CPUs that
    multiply it. Raises InputError, naming the image, for one that can't be read, and for options that mean nothing.
    """
    options = Options(
        score_threshold=score_threshold,
        max_detections=max_detections,
        class_agnostic=class_agnostic,
        flip=flip,
        scales=scales,  # type: ignore[arg-type]
        precision=precision,
        compile=compile,
    )
    if isinstance(images, Picture) or not isinstance(images, list | tuple):
        return find(model, [read_picture(images)], model.input, options)[0]  # type: ignore[arg-type]
    return find(model, (read_picture(image, f"images[{n}]") for n, image in enumerate(images)), model.input, options)


def find(model: Detector, pictures: Iterable[Picture], data: DataConfig, options: Options) -> list[Detections]:
    """Detections in each of ``pictures``, on the CPU and in pixels of the original image; ``data`` says their size."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            search = _Search(model, data, options)
            for place, picture in enumerate(pictures):
                search.add(place, picture)
            return search.results()
    finally:
        model.train(training)


def forward(model: Detector, options: Options) -> Callable[[Tensor], HeadOutputs]:
    """Normalised batches (N, 3, H, W) -> raw outputs, by the weights that ``model`` has now: for one use, not to keep.

    To be called under autocast where ``options.precision`` is bfloat16.
    """
    precision = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    network = folded(model.network, precision)
    return partial(_compiled_outputs, network) if options.compile else network


@cache
def compiled() -> Callable[[nn.Module, Tensor], HeadOutputs]:
    """A network and a batch -> raw outputs, compiled at the first call and for all networks of one structure: weights
    are arguments of it, so it holds none.
    """
    return torch.compile(_outputs)


def _outputs(network: nn.Module, batch: Tensor) -> HeadOutputs:
    return network(batch)


def _compiled_outputs(network: nn.Module, batch: Tensor) -> HeadOutputs:
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        return compiled()(network, batch)
    except BackendCompilerFailed as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"compile is true, but the network can't be compiled here ({reason}); install a C++ compiler, or leave "
            "compile out"
        ) from error


class View(NamedTuple):
    """One way to see an image."""

    short_side: int
    long_side: int
    flip: bool


def views(data: DataConfig, options: Options) -> list[View]:
    """All ways in which ``options`` ask to see an image; the first is not mirrored."""
    own, bound = data.evaluated_short_side, data.long_side
    sides = [(own, bound)] if options.scales is None else [(side, round(bound * side / own)) for side in options.scales]
    return [View(*side, flip) for side in sides for flip in ((False, True) if options.flip else (False,))]


class _Seen(NamedTuple):
    """A view of an image on its way through the network."""

    place: int
    number: int
    pixels: Tensor
    """(3, H, W) of 0 to 255."""


class _Search:
    """Gathers views of equal padded size, runs the network on them, and puts the views of an image together."""

    def __init__(self, model: Detector, data: DataConfig, options: Options) -> None:
        self.model, self.options, self.resize = model, options, data.resize
        recipe = model.config.postprocess.model_dump()
        self.config = PostprocessConfig.model_validate(recipe | {"max_detections": options.max_detections})
        self.views = views(data, options)
        self.forward = forward(model, options)
        self.at_once = PIXELS_AT_ONCE.get(model.device.type, PIXELS_AT_ONCE_ELSEWHERE)
        self.sizes: list[tuple[int, int]] = []
        self.found: dict[int, Detections] = {}
        # GroupNorm sees padding, so only views of equal padded size share a batch: the batch then changes nothing.
        self._waiting: dict[tuple[int, int], list[_Seen]] = {}
        self._parts: dict[int, dict[int, Detections]] = {}
        self._frames: dict[int, tuple[int, int]] = {}

    def add(self, place: int, picture: Picture) -> None:
        """Takes the next picture."""
        self.sizes.append(picture.size)
        self._parts[place] = {}
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        height, width = picture.pixels.shape[:2]
        for number, view in enumerate(self.views):
            size = resized_size(picture.size, view.short_side, view.long_side, self.resize)
            plan = ImagePlan((height, width), (0, 0, height, width), size, flip=view.flip, resize=self.resize)
            shape = padded_size([size])
            group = self._waiting.setdefault(shape, [])
            group.append(_Seen(place, number, apply(plan, picture.pixels, *nothing)[0]))
            self._frames.setdefault(place, size)
            if (len(group) + 1) * shape[0] * shape[1] > self.at_once:
                self._run(shape)

    def results(self) -> list[Detections]:
        """The detections in all pictures, in their order."""
        for shape in list(self._waiting):
            self._run(shape)
        return [self.found[place] for place in range(len(self.sizes))]

    def _run(self, shape: tuple[int, int]) -> None:
        group, device = self._waiting.pop(shape), self.model.device
        sizes = torch.tensor([tuple(seen.pixels.shape[-2:]) for seen in group], device=device)
        padded = [
            F.pad(pixels, (0, shape[1] - pixels.shape[2], 0, shape[0] - pixels.shape[1])) for _, _, pixels in group
        ]
        batch = self.model.normalise(torch.stack(padded).to(device), sizes)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
            outputs = self.forward(batch)
        chosen = candidates(
            *(outputs, self.model.criterion, sizes, self.model.categories, self.config),
            min_score=self.options.score_threshold,
        )
        for seen, found in zip(group, chosen, strict=True):
            height, width = seen.pixels.shape[-2:]
            frame = self._frames[seen.place]
            found = found.mirrored(width) if self.views[seen.number].flip else found
            if (height, width) != frame:
                found = found.scaled(frame[1] / width, frame[0] / height)
            parts = self._parts[seen.place]
            parts[seen.number] = found
            if len(parts) == len(self.views):
                self._finish(seen.place)

    def _finish(self, place: int) -> None:
        """Puts the views of an image together, and turns pixels of the first into those of the original image."""
        parts = self._parts.pop(place)
        (height, width), frame = self.sizes[place], self._frames.pop(place)
        merged = joined([parts[number] for number in range(len(self.views))])
        best = survivors(merged, self.config, class_agnostic=self.options.class_agnostic)
        scaled = best.scaled(width / frame[1], height / frame[0]).to("cpu")
        scaled.boxes[:, 0::2].clamp_(max=width)
        scaled.boxes[:, 1::2].clamp_(max=height)
        self.found[place] = replace(scaled, size=(height, width))


def joined(parts: Sequence[Detections]) -> Detections:
    """All of ``parts``, which are of one image, in no order."""
    if len(parts) == 1:
        return parts[0]
    boxes, scores, labels = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")
    )
    return Detections(boxes, scores, labels, parts[0].categories)
