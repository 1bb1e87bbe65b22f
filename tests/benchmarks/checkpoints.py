"""Steps with a checkpoint every 50 against steps without any, ATSS R50 on one image of 512x512.

A checkpoint is taken early among its 50 steps, and the time ends when it is kept. In bfloat16, whose steps take half as
long as those of float32, while the checkpoint stays as large: it has twice the share.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from detector.checkpoint_store import CheckpointStore
from detector.checkpoint_writer import CheckpointWriter
from detector.training import RUN_AHEAD, Hooks, _checkpoint
from tests.benchmarks.alternating import Figure, alternate
from tests.benchmarks.training_step import OurStep, backbone_weights

EVERY, TAKEN_AT, PAIRS = 50, 5, 20


def measure() -> list[Figure]:
    """Ratio of the times of 50 steps; by the lower end of its interval."""
    with backbone_weights() as weights, tempfile.TemporaryDirectory(prefix="detsweep-") as temporary:
        step, folder = OurStep(weights, "bfloat16"), Path(temporary)
        store = CheckpointStore(folder / "kept")

        class Keeping(Hooks):
            def keep(self, step: int, folder: Path) -> None:
                store.keep(folder, step)

        def plain() -> None:
            for _ in range(EVERY):
                step()

        def saving() -> None:
            with CheckpointWriter(EVERY // RUN_AHEAD) as writer:
                for number in range(EVERY):
                    step()
                    writer.keep_up(step.state.step)
                    if number == TAKEN_AT:
                        _checkpoint(step.state, writer, folder / "scratch", Keeping(), {})

        pairs = alternate(saving, plain, pairs=PAIRS, warm_up=1)
    figure = pairs.figure(
        f"{EVERY} steps with a checkpoint, bfloat16, s", at_most=1.02, judged="low", peer="without one"
    )
    return [figure]
