"""What ``predict(…, compile=True)`` gains: the network of ATSS R50 at 800x1344, compiled and not, in turns."""

from __future__ import annotations

import time

import torch

from detector.prediction import Options, forward
from tests.benchmarks.alternating import Figure, alternate
from tests.benchmarks.inference import detector_r50, image, normalised

PAIRS = 5


@torch.no_grad()
def measure() -> list[Figure]:
    """Backbone to head in both precisions; how long compiling took is beside it."""
    model, figures = detector_r50(), []
    batch = normalised(model, image())
    for precision in ("float32", "bfloat16"):

        def run(compiled: bool, precision: str = precision) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                forward(model, Options(precision=precision, compile=compiled))(batch)

        began = time.perf_counter()
        run(True)
        took = time.perf_counter() - began
        pairs = alternate(lambda run=run: run(True), lambda run=run: run(False), pairs=PAIRS, warm_up=1)  # type: ignore[misc]
        what = f"backbone to head, compiled, {precision}, s"
        figures.append(pairs.figure(what, peer="not compiled", **{"first call, s": f"{took:.0f}"}))
    return figures
