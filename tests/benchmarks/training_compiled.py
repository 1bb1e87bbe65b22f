"""A training step of ATSS R50 with ``resources.compile`` against one without."""

from __future__ import annotations

import time

from tests.benchmarks.alternating import Figure, alternate
from tests.benchmarks.training_step import OurStep, backbone_weights

PAIRS = 5


def measure() -> list[Figure]:
    """Ratio of the steps' times in both precisions; compiling itself is in the notes."""
    figures = []
    with backbone_weights() as weights:
        for precision in ("float32", "bfloat16"):
            plain, ours = OurStep(weights, precision), OurStep(weights, precision, compile=True)
            began = time.perf_counter()
            ours()
            seconds = round(time.perf_counter() - began, 1)
            pairs = alternate(ours, plain, pairs=PAIRS)
            what = f"training step, {precision}, compiled, s"
            figures.append(pairs.figure(what, peer="not compiled", first_step=f"{seconds} s"))
    return figures
