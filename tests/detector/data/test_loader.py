"""Batches: the same whatever the workers, micro-batches and loader processes; each image once in evaluation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from detector.config import AugmentationConfig, DataConfig, ResourcesConfig
from detector.data.coco import data_digest
from detector.data.loader import Batch, _read, evaluation_batches, global_batch, training_batches
from detector.data.store import Store, ensure_store
from detector.errors import InputError
from tests.detector.data.sets import annotation, write_set

DATA = DataConfig(
    short_side=(48, 72),
    long_side=96,
    augmentation=AugmentationConfig(flip=0.5, scale_jitter=(0.8, 1.3), crop=0.4, colour=0.3),
)


def read(store: Store, **options) -> list[list[Batch]]:
    return list(training_batches(store, DATA, batch_size=8, seed=3, start=2, stop=6, **options))


def joined(parts: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    images = torch.cat([batch.images for batch in parts])
    indices = torch.cat([batch.indices for batch in parts])
    boxes = [box for batch in parts for box in batch.boxes]
    return images, indices, boxes, [label for batch in parts for label in batch.labels]


def same(one: list[Batch], other: list[Batch]) -> bool:
    first, second = joined(one), joined(other)
    tensors = all(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    lists = [(a, b) for k in (2, 3) for a, b in zip(first[k], second[k], strict=True)]
    return tensors and all(torch.equal(a, b) for a, b in lists)


def test_each_epoch_has_every_image_once_across_the_borders_of_batches():
    drawn = np.concatenate([global_batch(step, n=11, batch_size=4, seed=5) for step in range(33)])
    assert drawn.dtype == np.int64
    epochs = drawn.reshape(12, 11)
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 12


def test_a_step_is_known_without_the_steps_before_it():
    far = global_batch(80_000, n=117_266, batch_size=16, seed=0)
    assert far.shape == (16,)
    assert np.array_equal(far, global_batch(80_000, n=117_266, batch_size=16, seed=0))


def test_a_batch_may_be_larger_than_the_data_set():
    drawn = global_batch(0, n=3, batch_size=8, seed=0)
    assert sorted(drawn[:3].tolist()) == sorted(drawn[3:6].tolist()) == [0, 1, 2]


def test_seeds_differ_in_order():
    assert not np.array_equal(
        global_batch(0, n=100, batch_size=16, seed=0), global_batch(0, n=100, batch_size=16, seed=1)
    )


def test_a_batch_is_what_it_says(mixed):
    for (batch,) in read(mixed):
        n, channels, height, width = batch.images.shape
        assert (n, channels, height % 32, width % 32) == (8, 3, 0, 0)
        assert batch.images.dtype == torch.uint8
        assert batch.sizes.dtype == batch.original_sizes.dtype == batch.indices.dtype == torch.int64
        assert (height, width) == tuple(32 * -(-side // 32) for side in batch.sizes.amax(0).tolist())
        for place in range(n):
            h, w = batch.sizes[place].tolist()
            assert not batch.images[place, :, h:].any()
            assert not batch.images[place, :, :, w:].any()
            assert batch.images[place, :, :h, :w].any()
            boxes = batch.boxes[place]
            assert boxes.dtype == torch.float32
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([w, h])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert len(boxes) == len(batch.labels[place])
            assert batch.original_sizes[place].tolist() == mixed.sizes[batch.indices[place]].tolist()


def test_images_without_boxes_are_left_out_unless_kept(mixed):
    def seen(data: DataConfig) -> set[int]:
        steps = training_batches(mixed, data, batch_size=4, seed=0, start=0, stop=11)
        return {index for parts in steps for batch in parts for index in batch.indices.tolist()}

    assert seen(DATA) == set(range(10))
    assert seen(DATA.model_copy(update={"keep_empty": True})) == set(range(11))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_the_split_into_workers_and_micro_batches_changes_nothing(mixed, world_size, micro_batch_size):
    whole = read(mixed)
    ranks = [
        read(mixed, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size) for rank in range(world_size)
    ]
    for step, parts in enumerate(whole):
        assert same([batch for rank in ranks for batch in rank[step]], parts)
        for rank in ranks:
            assert all(len(batch) <= (micro_batch_size or 8) for batch in rank[step])
            assert {batch.images.shape[2:] for batch in rank[step]} == {parts[0].images.shape[2:]}


def test_loader_processes_change_nothing(mixed):
    state = torch.random.get_rng_state()
    apart = read(mixed, loader_workers=2, micro_batch_size=3)
    assert torch.equal(state, torch.random.get_rng_state())
    for here, there in zip(read(mixed), apart, strict=True):
        assert [len(batch) for batch in there] == [3, 3, 2]
        assert same(here, there)


def test_processes_of_their_own_for_a_remote_store_change_nothing(mixed, monkeypatch):
    monkeypatch.setattr(mixed, "is_local", False)
    apart = list(training_batches(mixed, DATA, batch_size=8, seed=3, start=2, stop=3, loader_workers=1))
    assert same(apart[0], read(mixed)[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_loader_processes_have_the_threads_that_they_are_given(threads, caplog):
    torch.set_num_threads(2)
    with caplog.at_level("INFO"):
        assert list(_read(_threads, range(2), 2, fork=True, threads=threads)) == [threads] * 2
    torch.set_num_threads(1)
    assert f"2 loader processes of {threads} thread" in caplog.text


@pytest.mark.parametrize(
    ("cpus", "asked", "processes", "threads"),
    [(1, None, 0, 1), (4, None, 3, 1), (8, 2, 2, 3), (2, 4, 4, 1), (4, 0, 0, 3)],
)
def test_the_cpus_but_one_are_shared_out_among_the_loader_processes(cpus, asked, processes, threads):
    found = ResourcesConfig(cpus_per_worker=cpus, loader_workers=asked)
    assert (found.loader_processes, found.loader_threads) == (processes, threads)


def _threads(_: int) -> int:
    return torch.get_num_threads()


def test_a_training_that_starts_later_sees_what_it_would_have_seen(mixed):
    late = list(training_batches(mixed, DATA, batch_size=8, seed=3, start=4, stop=6))
    for here, there in zip(read(mixed)[2:], late, strict=True):
        assert same(here, there)


def test_the_padded_size_is_the_global_batchs_even_for_a_worker_with_small_images(mixed):
    shares = [read(mixed, rank=rank, world_size=8) for rank in range(8)]
    for step in range(4):
        shapes = {rank[step][0].images.shape[2:] for rank in shares}
        own = {tuple(32 * -(-side // 32) for side in rank[step][0].sizes[0].tolist()) for rank in shares}
        assert len(shapes) == 1
        assert len(own) > 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("loader_workers", [0, 2])
def test_evaluation_sees_each_image_exactly_once(mixed, world_size, loader_workers):
    seen = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": 2, "loader_workers": loader_workers}
        for batch in evaluation_batches(mixed, DATA, **options):
            padded = {tuple(32 * -(-side // 32) for side in size) for size in batch.sizes.tolist()}
            assert padded == {tuple(batch.images.shape[2:])}
            assert len(batch) <= 2
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(11))


def test_an_evaluated_image_has_the_same_company_in_any_world(mixed):
    def batches(world_size: int) -> set[tuple[int, ...]]:
        return {
            tuple(batch.indices.tolist())
            for rank in range(world_size)
            for batch in evaluation_batches(mixed, DATA, rank=rank, world_size=world_size, batch_size=3)
        }

    assert batches(1) == batches(2) == batches(3)


def test_evaluation_does_not_augment_and_carries_original_sizes(mixed):
    data = DATA.model_copy(update={"short_side": 60, "long_side": 80})
    for batch in evaluation_batches(mixed, data):
        index = int(batch.indices[0])
        assert batch.original_sizes[0].tolist() == mixed.sizes[index].tolist()
        scale = batch.sizes[0].flip(0).repeat(2) / batch.original_sizes[0].flip(0).repeat(2)
        torch.testing.assert_close(batch.boxes[0], torch.from_numpy(mixed.boxes(index)) * scale)


def test_a_batch_pickles_whole(mixed):
    batch = read(mixed)[0][0]
    assert same([pickle.loads(pickle.dumps(batch))], [batch])
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.sizes, batch.sizes)
    assert torch.equal(again.original_sizes, batch.original_sizes)


def test_a_batch_moves_whole(mixed):
    batch = read(mixed)[0][0]
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert all(tensor.is_meta for tensor in (*moved.boxes, *moved.labels, moved.sizes, moved.indices))


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_an_image_that_became_unreadable_is_named_without_a_foreign_traceback(odd, tmp_path, loader_workers):
    store = ensure_store(odd, "train", tmp_path / "stores", digest=data_digest(odd, "train"))
    shard = next((tmp_path / "stores").glob("*/images-00000.arrow"))
    content = bytearray(shard.read_bytes())
    content[content.index((odd / "train" / "train12.jpg").read_bytes()) + 200] ^= 255
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"^train12.jpg \(image 12\) no longer has its checksum[^\n]*$"):
        list(training_batches(store, DATA, batch_size=2, seed=0, start=0, stop=2, loader_workers=loader_workers))


def test_a_split_without_boxes_cannot_be_trained_on(tmp_path):
    root = write_set(tmp_path / "s", annotations=[annotation(1, 1, [0, 0, 5, 5], iscrowd=1)])
    store = ensure_store(root, "train", tmp_path / "stores", digest=data_digest(root, "train"))
    with pytest.raises(InputError, match=r"no image of .* has a box to train on"):
        training_batches(store, DATA, batch_size=2, seed=0, start=0, stop=1)


def test_scaled_decoding_changes_pixels_a_little_and_nothing_else(mixed):
    small = DataConfig(short_side=(12, 16), long_side=40)
    whole, scaled = (
        next(iter(training_batches(mixed, data, batch_size=8, seed=3, start=0, stop=1)))[0]
        for data in (small, small.model_copy(update={"scaled_decoding": True}))
    )
    assert torch.equal(whole.sizes, scaled.sizes)
    assert torch.equal(whole.indices, scaled.indices)
    difference = (whole.images.float() - scaled.images.float()).abs()
    assert 0 < difference.mean() < 6
    for one, other in zip(whole.boxes, scaled.boxes, strict=True):
        torch.testing.assert_close(one, other, atol=2.0, rtol=0.0)


def test_pixels_of_a_batch_lie_side_by_side_also_from_another_process(mixed):
    for workers in (0, 1):
        (batch,) = next(
            iter(training_batches(mixed, DATA, batch_size=4, seed=3, start=2, stop=3, loader_workers=workers))
        )
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.is_shared() == bool(workers)
