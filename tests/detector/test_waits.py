"""A training step never makes the host wait for the device; a logged one does once.

Counted on the CPU by what would wait (``tests/detector/waits.py``), and on a CUDA device by torch itself.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from detector.layers import FrozenBatchNorm
from detector.recipes import FAMILIES, model_config
from detector.training import TrainingState, _batches
from tests.detector.conftest import small_config
from tests.detector.waits import Waits

ROWS = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: ROWS[0, 0].item(),
        lambda: float(ROWS.sum()),
        lambda: bool(ROWS.sum() > 0),
        lambda: ROWS.tolist(),
        lambda: ROWS.cpu(),
        lambda: ROWS.numpy(),
        lambda: ROWS[ROWS > 3],
        lambda: ROWS[:, ROWS[0] > 1],
        lambda: ROWS.clone().masked_select(ROWS > 3),
        lambda: ROWS.clone().__setitem__(ROWS > 3, torch.zeros(8)),
        lambda: ROWS.nonzero(),
        lambda: torch.where(ROWS > 3),
        lambda: ROWS.unique(),
        lambda: torch.arange(3).repeat_interleave(torch.tensor([1, 0, 2])),
        lambda: torch.equal(ROWS, ROWS + 1),
        lambda: ROWS.new_tensor([1.0, 2.0]),
        lambda: torch.tensor([1.0], device=ROWS.device),
        lambda: ROWS.to("cpu"),
        lambda: ROWS.to(device=ROWS.device),
        lambda: ROWS.clone().copy_(ROWS),
    ],
)  # fmt: skip
def test_what_waits_is_counted(wait):
    with Waits() as names:
        wait()
    assert len(names) == 1


def test_what_does_not_wait_is_not_counted():
    with Waits() as names:
        kept = torch.where(ROWS > 3, ROWS, 0.0).sum(1) + ROWS[torch.tensor([0, 2, 1])].amax(1)
        kept.scatter(0, torch.arange(3), kept.neg()).repeat_interleave(3)
        ROWS.masked_fill(ROWS > 2, 1.0)[:, 1:]
        ROWS.to(torch.bfloat16).to(ROWS.device, non_blocking=True).copy_(ROWS, non_blocking=True)
    assert names == []


def prepared(config, store, device="cpu"):
    state = TrainingState(config, store, torch.device(device), pretrained=False)
    return state, list(_batches(config, store, start=0, stop=3))


def of_family(family, **changes):
    """As the recipes have it: frozen normalisation, stem and first stage, on channels-last tensors."""
    model = model_config(f"{family}_r18").model_dump(mode="json")
    model |= {"weights": "imagenet", "norm": "frozen_bn", "neck": model["neck"] | {"channels": 64}}
    model["head"]["convolutions"] = 1
    return small_config(model=model, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_waits(generated, family):
    state, batches = prepared(of_family(family), generated[0])
    backbone = state.model.network.backbone
    assert not backbone.conv1.weight.requires_grad
    assert isinstance(backbone.bn1, FrozenBatchNorm)
    assert backbone.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for micro_batches in batches:
        with Waits() as names:
            state.window.add(state.update(micro_batches), images=4)
        assert names == []


@pytest.mark.parametrize(
    "schedule",
    [{}, {"ema": 0.9}, {"optimizer": "adamw", "clip_norm": 1.0, "precision": "bfloat16"}],
)
def test_a_logged_step_waits_once(generated, schedule):
    config = small_config(model={"norm": "gn"}, schedule=schedule, resources={"micro_batch_size": 2})
    state, batches = prepared(config, generated[0])
    for micro_batches in batches:
        with Waits() as names:
            state.window.add(state.update(micro_batches), images=4)
            state.window.settle(state)
            state.window.close(state)
        assert names == ["tolist"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose waits torch counts itself")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("schedule", "micro_batch_size"),
    [
        ({}, None),
        ({"precision": "bfloat16"}, None),
        ({"ema": 0.9}, 2),
        ({"ema": 0.9, "optimizer": "adamw", "clip_norm": 1.0, "precision": "bfloat16"}, 2),
    ],
)
def test_on_cuda_no_step_waits_and_a_logged_one_does_once(generated, family, schedule, micro_batch_size):
    config = of_family(family, schedule=schedule, resources={"micro_batch_size": micro_batch_size})
    state, batches = prepared(config, generated[0], "cuda")
    batches = [[batch.pin_memory() for batch in micro_batches] for micro_batches in batches]
    state.window.add(state.update(batches[0]), images=4)  # what is set up once may wait
    state.window.settle(state)
    for micro_batches in batches[1:]:
        assert _waits_on_cuda(lambda now=micro_batches: state.window.add(state.update(now), images=4)) == 0
    assert _waits_on_cuda(lambda: state.window.settle(state)) == 1


def _waits_on_cuda(call) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in caught)
