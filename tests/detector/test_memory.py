"""Too little memory: the sentence names the largest micro-batch that fits, and the key that sets it."""

from __future__ import annotations

import pytest
import torch

from detector import training_state
from detector.errors import TrainingError
from detector.training import train
from tests.detector.conftest import small_config


def test_the_largest_micro_batch_that_fits_is_found_and_named(generated, tmp_path, monkeypatch):
    passes = []
    forward = training_state.TrainingState.forward

    def small(self, batch, network=None):
        passes.append(len(batch))
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch, network)

    monkeypatch.setattr(training_state.TrainingState, "forward", small)
    config = small_config(
        schedule={"batch_size": 8, "recipe_batch_size": 8, "iterations": 2}, data={"short_side": 64, "long_side": 64}
    )
    with pytest.raises(TrainingError) as error:
        train(config, generated[0], folder=tmp_path)
    assert passes == [8, 4, 6, 5]
    assert "too small for 8 images a worker at once; the largest micro-batch that fits is 5" in str(error.value)
    assert "set resources.micro_batch_size=5, which changes no result" in str(error.value)
    assert error.value.__context__ is None  # else its traceback would hold the memory


def test_where_not_one_image_fits_it_says_what_else_to_do(generated, tmp_path, monkeypatch):
    def none(self, batch, network=None):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(training_state.TrainingState, "forward", none)
    with pytest.raises(TrainingError, match=r"too small for a single image a worker; lower data.short_side"):
        train(small_config(), generated[0], folder=tmp_path)
