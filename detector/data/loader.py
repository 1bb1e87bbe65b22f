"""Batches of images. Order, pixels and padding are functions of (seed, step, image) and of the global batch, never of
the number of workers, the size of micro-batches or the number of loader processes.

n images in a batch, H and W its padded size, G boxes in an image. Boxes are xyxy in pixels of the network's input.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detector.config import DataConfig
from detector.data.ahead import one_ahead
from detector.data.jpeg import decode
from detector.data.plans import ORDER_STREAM, ImagePlan, padded_size, plan_image
from detector.data.store import Store
from detector.data.transforms import apply
from detector.errors import InputError

T = TypeVar("T")

log = logging.getLogger(__name__)

PREFETCHED = 2
"""Batches that each loader process has ready ahead of the training."""


@dataclass
class Batch:
    """Images padded with zeros at the right and the bottom, and what is on them."""

    images: torch.Tensor
    """(n, 3, H, W) RGB of 0 to 255, channels last in memory: uint8, or float32 with "torchvision" resizing."""
    sizes: torch.Tensor
    """(n, 2) int64, height and width before padding."""
    original_sizes: torch.Tensor
    """(n, 2) int64, height and width of the file."""
    boxes: list[torch.Tensor]
    """n of (G, 4) float32 xyxy."""
    labels: list[torch.Tensor]
    """n of (G,) int64."""
    indices: torch.Tensor
    """(n,) int64, positions in the store."""

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Batch:
        """The first ``count`` images, as a batch of their own."""
        return Batch(**{name: value[:count] for name, value in self.__dict__.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device; from pinned memory without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            images=change(self.images),
            sizes=change(self.sizes),
            original_sizes=change(self.original_sizes),
            boxes=[change(boxes) for boxes in self.boxes],
            labels=[change(labels) for labels in self.labels],
            indices=change(self.indices),
        )

    def __getstate__(self) -> dict[str, Any]:
        # Between processes each tensor costs a shared file; only the pixels are worth one.
        state = dict(self.__dict__, sizes=self.sizes.numpy(), original_sizes=self.original_sizes.numpy())
        state.update(indices=self.indices.numpy(), boxes=[box.numpy() for box in self.boxes])
        return dict(state, labels=[label.numpy() for label in self.labels])

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key in ("sizes", "original_sizes", "indices"):
            state[key] = torch.from_numpy(state[key])
        for key in ("boxes", "labels"):
            state[key] = [torch.from_numpy(value) for value in state[key]]
        self.__dict__.update(state)


def global_batch(step: int, *, n: int, batch_size: int, seed: int) -> np.ndarray:
    """(batch_size,) int64 positions below ``n``: the global batch of ``step``.

    Epochs are permutations of all ``n``, one after the other without regard for the borders of batches. Any step is
    worked out directly.
    """
    first = step * batch_size
    positions = np.arange(first, first + batch_size)
    epochs = {epoch: _permutation(n, seed, epoch) for epoch in np.unique(positions // n).tolist()}
    return np.array([epochs[place // n][place % n] for place in positions.tolist()], np.int64)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(n)


def training_batches(
    store: Store,
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batch_size: int | None = None,
    loader_workers: int = 0,
    loader_threads: int = 1,
) -> Generator[list[Batch], None, None]:
    """For each step from ``start`` to before ``stop``, this rank's share of the global batch, in micro-batches.

    The share is the contiguous slice ``rank * B // world_size`` to ``(rank + 1) * B // world_size``. All micro-batches
    of all ranks have one padded size, that of the global batch. ``loader_workers`` processes of ``loader_threads`` each
    read ahead; without any, a batch is read when it is asked for, or, where there is a CUDA device, by a thread while
    the one before it is used. InputError where no image can be trained on, or where one has become unreadable.
    """
    indices = store.training_indices(data.keep_empty)
    if not len(indices):
        raise InputError(f"no image of {store.uri} has a box to train on; annotate some, or set data.keep_empty: true")
    share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
    steps = _TrainingSteps(store, data, indices, batch_size, seed, share, micro_batch_size or batch_size)
    return _read(steps, range(start, stop), loader_workers, fork=store.is_local, threads=loader_threads)


@dataclass
class _TrainingSteps:
    """Makes one rank's micro-batches of a step. A class, since loader processes may have to be sent it."""

    store: Store
    data: DataConfig
    indices: np.ndarray
    batch_size: int
    seed: int
    share: slice
    micro_batch_size: int

    def __call__(self, step: int) -> list[Batch]:
        positions = global_batch(step, n=len(self.indices), batch_size=self.batch_size, seed=self.seed)
        chosen = self.indices[positions].tolist()
        sizes = self.store.sizes[chosen].tolist()
        plans = [
            plan_image(self.data, size, seed=self.seed, step=step, index=index, training=True)
            for index, size in zip(chosen, sizes, strict=True)
        ]
        padded = padded_size([plan.output_size for plan in plans])
        mine = list(zip(chosen, plans, strict=True))[self.share]
        starts = range(0, len(mine), self.micro_batch_size)
        return [_batch(self.store, mine[place : place + self.micro_batch_size], padded) for place in starts]


def evaluation_batches(
    store: Store,
    data: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 1,
    loader_workers: int = 0,
    loader_threads: int = 1,
) -> Generator[Batch, None, None]:
    """Batches of images with equal padded size, each image exactly once over all ranks.

    Batches are made before they are dealt out to the ranks, so that an image has the same company in any world.
    """
    plans = [plan_image(data, size, seed=0, step=0, index=0, training=False) for size in store.sizes.tolist()]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, plan in enumerate(plans):
        groups.setdefault(padded_size([plan.output_size]), []).append(index)
    batches = [
        (padded, [(index, plans[index]) for index in members[place : place + batch_size]])
        for padded, members in sorted(groups.items(), reverse=True)
        for place in range(0, len(members), batch_size)
    ][rank::world_size]
    made = _EvaluationBatches(store, batches)
    return _read(made, range(len(batches)), loader_workers, fork=store.is_local, threads=loader_threads)


@dataclass
class _EvaluationBatches:
    store: Store
    batches: list[tuple[tuple[int, int], list[tuple[int, ImagePlan]]]]

    def __call__(self, number: int) -> Batch:
        padded, chosen = self.batches[number]
        return _batch(self.store, chosen, padded)


def _batch(store: Store, chosen: list[tuple[int, ImagePlan]], padded: tuple[int, int]) -> Batch:
    images = torch.zeros(0)
    boxes, labels = [], []
    for place, (index, plan) in enumerate(chosen):
        whole = store.image(index, decode=decode, reduction=plan.reduction)
        pixels, moved, kept = apply(plan, whole, store.boxes(index), store.labels(index))
        if place == 0:
            images = _canvas(len(chosen), padded, pixels.dtype)
        height, width = pixels.shape[1:]
        images[place, :, :height, :width] = pixels
        images[place, :, height:] = 0
        images[place, :, :height, width:] = 0
        boxes.append(moved)
        labels.append(kept)
    return Batch(
        images=images,
        sizes=torch.tensor([plan.output_size for _, plan in chosen]).reshape(-1, 2),
        original_sizes=torch.tensor([plan.source_size for _, plan in chosen]).reshape(-1, 2),
        boxes=boxes,
        labels=labels,
        indices=torch.tensor([index for index, _ in chosen]),
    )


def _canvas(count: int, size: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """(count, 3, H, W), not filled. The colours of a pixel lie side by side, as the decoder leaves them, so that rows
    are copied whole; in a loader process it lies where the training process will read it.
    """
    shape = (count, *size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype).permute(0, 3, 1, 2)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape).permute(0, 3, 1, 2)


def _read(
    make: Callable[[int], T], keys: range, processes: int, *, fork: bool, threads: int = 1
) -> Generator[T, None, None]:
    # Whoever trains or predicts on a CUDA device has its model there by now; a CPU's training opens none.
    if processes == 0 and torch.cuda.is_initialized():
        log.info("no loader process: images are read one batch ahead, by %d threads", torch.get_num_threads())
        # In a thread that knew no device, page-locked memory would open the first one.
        same_device = partial(torch.cuda.set_device, torch.cuda.current_device())
        yield from one_ahead(lambda key: _pinned(make(key)), keys, same_device)
        return
    if processes == 0:
        log.info("no loader process: images are read when they are asked for, by %d threads", torch.get_num_threads())
        yield from map(make, keys)
        return
    log.info(
        "%d loader process%s of %d thread%s, each up to %d batches ahead",
        *(processes, "es" * (processes > 1), threads, "s" * (threads > 1), PREFETCHED),
    )
    loader: DataLoader[Any] = DataLoader(
        _Items(make),
        batch_size=None,
        sampler=keys,
        num_workers=processes,
        collate_fn=_unchanged,
        worker_init_fn=partial(_set_threads, threads),
        prefetch_factor=PREFETCHED,
        # From page-locked memory a batch goes to the device while the step before it is computed.
        pin_memory=torch.cuda.is_initialized(),
        # Connections to a remote store don't survive a fork; there each process opens its own.
        multiprocessing_context=None if fork else "spawn",
        generator=torch.Generator(),  # else starting the processes would draw from the training's own generator
    )
    for item in loader:
        if isinstance(item, InputError):
            raise item
        yield item


def _pinned(item: Any) -> Any:
    """A batch, or a list of them, in page-locked memory."""
    return [each.pin_memory() for each in item] if isinstance(item, list) else item.pin_memory()


class _Items(Dataset[Any]):
    """One item a key, made in a loader process. An InputError comes back as the item, without a foreign traceback."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, key: int) -> Any:
        try:
            return self.make(key)
        except InputError as error:
            return InputError(str(error))


def _unchanged(item: T) -> T:
    return item


def _set_threads(threads: int, _: int) -> None:
    torch.set_num_threads(threads)
