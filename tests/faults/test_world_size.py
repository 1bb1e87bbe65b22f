"""The number of workers changes across restarts, on images of four aspect ratios: the training stays the same.

Simulated: processes of a gloo group, 2 then 1 then 2 of them, each going on from the others' checkpoint. Were the
global batch, its padding, the rate or the order a matter of the workers' number, the first step after a change would
have another loss than a restart with an unchanged number has from the same checkpoint.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from detector import distributed
from detector.data.store import open_store
from detector.training import Hooks, TrainingState, _batches, train
from tests.detector.conftest import generated, small_config  # noqa: F401 (a fixture)
from tests.detector.processes import run


class Losses(Hooks):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.rates: dict[int, float] = {}

    def on_metrics(self, step, metrics):
        self.losses[step], self.rates[step] = metrics["loss"], metrics["lr"]


class Stop(Losses):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def should_stop(self) -> bool:
        return max(self.losses, default=0) >= self.at


def go_on(config, uri, folder, resume_from, until):
    """Trains up to a step; losses and rates by step, and the sums of the pixels of this process' batches."""
    from detector.training import TrainingStopped

    hooks = Stop(until)
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    start = int(resume_from.name.split("_")[1]) if resume_from else 0
    pixels = {
        step: [(batch.indices.tolist(), tuple(batch.images.shape[1:]), int(batch.images.sum())) for batch in batches]
        for step, batches in enumerate(_batches(config, open_store(uri), start=start, stop=until), start)
    }
    with contextlib.suppress(TrainingStopped):
        train(config, open_store(uri), folder=folder, hooks=hooks, resume_from=resume_from)
    return hooks.losses, hooks.rates, pixels


@pytest.mark.long
def test_two_workers_then_one_then_two(generated, tmp_path, measured):  # noqa: F811
    store = generated[0]
    assert len({round(width / height, 1) for height, width in store.sizes.tolist()}) >= 4
    config = small_config(schedule={"iterations": 9}, data={"short_side": [64, 96]}, tracking={"every": 1})

    def part(workers: int, name: str, resume_from, until: int):
        arguments = (config, store.uri, tmp_path / name, resume_from, until)
        if workers == 1:
            return [go_on(*arguments)]
        return run(go_on, workers, tmp_path / f"{name}-meet", *arguments)

    resume_from, before, largest = None, None, 0.0
    for number, (workers, until) in enumerate(((2, 3), (1, 6), (2, 9))):
        changed = part(workers, f"changed-{number}", resume_from, until)
        if before is not None:
            same = part(before, f"same-{number}", resume_from, until)
            first = until - 2
            assert changed[0][0][first] == pytest.approx(same[0][0][first], rel=1e-4)
            largest = max(largest, abs(changed[0][0][first] / same[0][0][first] - 1))
            assert changed[0][1] == same[0][1]  # rates
            for step in range(first - 1, until):
                whole = [[one for share in shares for one in share[2][step]] for shares in (changed, same)]
                indices = [[index for batch in batches for index in batch[0]] for batches in whole]
                assert indices[0] == indices[1]
                assert {batch[1] for batch in whole[0]} == {batch[1] for batch in whole[1]}
                assert sum(batch[2] for batch in whole[0]) == sum(batch[2] for batch in whole[1])
        resume_from, before = tmp_path / f"changed-{number}" / f"step_{until:08d}", workers
    state = TrainingState(config, store, torch.device("cpu"))
    state.load(resume_from)
    assert state.step == 9
    measured("15: two workers, then one, then two", wasted=0, said=f"(first losses differ by {largest:.0e} at most)")
