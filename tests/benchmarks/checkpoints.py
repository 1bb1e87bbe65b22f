"""Steps with a checkpoint every 50 against steps without any, ATSS R50 on one image of 512x512.

What a checkpoint costs lies within a few steps, for which training goes on before it waits. So 12 steps with one, which
end when it is kept, are timed in turns with 12 without, and 38 more of the latter are added to both. In bfloat16, whose
steps take half as long as those of float32, while the checkpoint stays as large: it has twice the share.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from detector.checkpoint_store import CheckpointStore
from detector.checkpoint_writer import CheckpointWriter
from detector.training import RUN_AHEAD, Hooks, _checkpoint
from tests.benchmarks.alternating import Figure, Pairs, alternate
from tests.benchmarks.training_step import OurStep, backbone_weights

EVERY, TIMED, TAKEN_AT, PAIRS = 50, 12, 2, 24


def measure() -> list[Figure]:
    """Ratio of the times of 50 steps; by the lower end of its interval."""
    with backbone_weights() as weights, tempfile.TemporaryDirectory(prefix="detsweep-") as temporary:
        step, folder = OurStep(weights, "bfloat16"), Path(temporary)
        store = CheckpointStore(folder / "kept")

        class Keeping(Hooks):
            def keep(self, step: int, folder: Path) -> None:
                store.keep(folder, step)

        def plain() -> None:
            for _ in range(TIMED):
                step()

        def saving() -> None:
            with CheckpointWriter(EVERY // RUN_AHEAD) as writer:
                for number in range(TIMED):
                    step()
                    writer.keep_up(step.state.step)
                    if number == TAKEN_AT:
                        _checkpoint(step.state, writer, folder / "scratch", Keeping(), {})

        timed = alternate(saving, plain, pairs=PAIRS, warm_up=1)
    others = [without * (EVERY / TIMED - 1) for without in timed.against]
    pairs = Pairs(*([a + b for a, b in zip(one, others, strict=True)] for one in (timed.ours, timed.against)))
    figure = pairs.figure(
        f"{EVERY} steps with a checkpoint, bfloat16, s", at_most=1.02, judged="low", peer="without one"
    )
    return [figure]
