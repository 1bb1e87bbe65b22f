"""A thread that reads one item ahead changes neither order nor errors, and doesn't outlive who it reads for."""

from __future__ import annotations

import threading

import pytest
import torch

from detector.config import DataConfig
from detector.data import loader
from detector.data.ahead import one_ahead
from detector.data.loader import Batch, evaluation_batches, training_batches
from detector.errors import InputError
from detector.training import Hooks, train
from tests.detector.conftest import small_config

DATA = DataConfig(short_side=(48, 72), long_side=96)


def readers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("reading")]


@pytest.fixture
def cuda(monkeypatch):
    """As if a device were in use, as far as the loader asks; the shapes of pixels that were pinned."""
    pinned: list[torch.Size] = []

    def pin(tensor):
        if tensor.ndim == 4:
            pinned.append(tensor.shape)
        return tensor

    monkeypatch.setattr(loader.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(loader.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(loader.torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return pinned


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.images, other.images), (one.indices, other.indices), *zip(one.boxes, other.boxes, strict=True)]
    return all(torch.equal(*pair) for pair in pairs) and one.images.stride() == other.images.stride()


def read(store, start=0):
    steps = training_batches(store, DATA, batch_size=4, seed=3, start=start, stop=5, micro_batch_size=3)
    return [batch for micro_batches in steps for batch in micro_batches]


def test_items_come_in_order_and_one_is_made_ahead():
    made = [threading.Event() for _ in range(5)]
    by = []

    def make(key):
        by.append(threading.current_thread().name.startswith("reading"))
        made[key].set()
        return key

    for place, key in enumerate(one_ahead(make, range(4))):
        assert key == place
        assert key == 3 or made[key + 1].wait(10)
        assert not any(each.is_set() for each in made[key + 2 :])
    assert by == [True] * 4
    assert not readers()


def test_what_one_item_raises_comes_in_its_place():
    def make(key):
        if key == 2:
            raise InputError("unreadable")
        return key

    items = one_ahead(make, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(InputError, match="unreadable"):
        next(items)
    assert not readers()


def test_closed_early_the_thread_has_ended():
    items = one_ahead(lambda key: key, range(100))
    next(items)
    assert len(readers()) == 1
    items.close()
    assert not readers()


def test_with_a_device_batches_are_the_same_and_pinned(generated, cuda, monkeypatch):
    found = [read(generated[0]), read(generated[0], start=2), list(evaluation_batches(generated[1], DATA))]
    assert len(cuda) == sum(map(len, found))
    monkeypatch.setattr(loader.torch.cuda, "is_initialized", lambda: False)
    expected = [read(generated[0]), read(generated[0], start=2), list(evaluation_batches(generated[1], DATA))]
    for mine, theirs in zip(found, expected, strict=True):
        assert all(map(same, mine, theirs))
        assert len(mine) == len(theirs)
    assert not readers()


def test_a_training_that_fails_leaves_no_thread(generated, tmp_path, cuda):
    class Failing(Hooks):
        def on_progress(self, step):
            assert len(readers()) == 1
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else") as kept:
        train(small_config(), generated[0], folder=tmp_path, hooks=Failing(), device="cpu")
    assert kept.traceback  # which holds the frames of the training
    assert not readers()
