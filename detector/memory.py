"""What to do where the memory of a worker is too small: the largest micro-batch that fits, found by trying."""

from __future__ import annotations

import contextlib
import ctypes
import gc

import torch

from detector.data.loader import Batch
from detector.training_state import TrainingState


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or, as far as that is ever said, on the host."""
    # The last is what oneDNN says of a convolution that it finds no room for.
    said = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def largest_micro_batch(state: TrainingState, micro_batches: list[Batch]) -> int:
    """The most images of ``micro_batches``, which don't fit, that this process can take through one pass; 0: none.

    By bisection on its own, without the other processes, and with the optimiser's state beside it.
    """
    batch = max(micro_batches, key=len)
    state.optimizer.zero_grad(set_to_none=True)
    if state.device.type == "cpu":
        _give_back_what_is_freed()
    fits, too_many = 0, len(batch)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(state, batch.first(middle)):
            fits = middle
        else:
            too_many = middle
    return fits


def _fits(state: TrainingState, batch: Batch) -> bool:
    gc.collect()
    if state.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        beside = _missing_state(state)
        state.rehearse(batch)
        del beside
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        state.optimizer.zero_grad(set_to_none=True)


def _give_back_what_is_freed() -> None:
    """From now on a freed tensor is the system's again at once.

    Otherwise glibc keeps what several tries leave, in pieces that are too small for the next one.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not every C library has these
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 128 * 1024)
        libc.malloc_trim(0)


def _missing_state(state: TrainingState) -> list[torch.Tensor]:
    """As much as the optimiser will hold after its first step, if that hasn't been."""
    if state.optimizer.state:
        return []
    copies = 2 if isinstance(state.optimizer, torch.optim.AdamW) else 1
    learned = [each for group in state.optimizer.param_groups for each in group["params"]]
    return [torch.empty_like(each) for each in learned for _ in range(copies)]


def remedy(state: TrainingState, images: int, fits: int) -> str:
    """One sentence for people: ``images`` at once were too many for a worker, ``fits`` are not."""
    where = f"the memory of {state.device.type}"
    if fits:
        return (
            f"{where} is too small for {images} images a worker at once; the largest micro-batch that fits is {fits}: "
            f"set resources.micro_batch_size={fits}, which changes no result"
        )
    return (
        f"{where} is too small for a single image a worker; lower data.short_side and data.long_side, set "
        "schedule.precision: bfloat16, or take a device with more memory"
    )
