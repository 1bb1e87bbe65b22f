"""``python -m tests.benchmarks [NAME…]``: measures all entries or those named, each in this one process, and prints
what | ours | against | ratio (spread) | goal; ``--json`` as one line.

A new entry is a file here with a function ``measure() -> list[Figure]`` and its name in ``ENTRIES``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.alternating import Figure

# Name, which is also the module's, and what it measures.
ENTRIES = {
    "assignment": "label assignment against a vectorised one, image by image",
    "assignment_share": "share of assignment and losses in a small training step",
    "checkpoints": "steps with a checkpoint every 50 against steps without, R50",
    "combined_cost": "combined IoUs against plain ATSS, R50",
    "compiled_inference": "the network of ATSS R50 at 800x1344, compiled and not",
    "evaluation": "COCO's figures from arrays, against pycocotools",
    "inference": "ATSS R50 at 800x1344 against torchvision's FCOS, and against matrix multiplications",
    "loader": "training batches of one loader process, against torchvision's CocoDetection",
    "postprocessing": "its share of an image's inference, with many candidates",
    "predicted_and_real": "a sweep as orchestrator.plan predicts it, and as it goes",
    "report_time": "writing the report of a large sweep",
    "store_opening": "opening a store of 118,000 images",
    "sweep_cost": "a sweep through Ray and MLflow against the same trainings bare",
    "training_compiled": "a compiled training step against one that isn't, R50",
    "training_memory": "memory of a training step against torchvision's FCOS, R50",
    "training_step": "a training step against torchvision's FCOS, R50",
    "two_workers": "two workers of one thread each against one, R50",
}
# Those that take the better part of an hour are measured only by name.
LONG = {"checkpoints"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    listing = "\n".join(f"  {name:22} {what}" for name, what in ENTRIES.items())
    listed = ", ".join(sorted(LONG))
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog=f"entries:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"entries to measure; default: all but {listed}")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in ENTRIES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(ENTRIES)}")
    if not arguments.json:
        print("; ".join(f"{key} {value}" for key, value in machine().items()))
    found: dict[str, list[Figure]] = {}
    for name in arguments.names or [name for name in ENTRIES if name not in LONG]:
        began = time.perf_counter()
        print(f"{name}: measuring {ENTRIES[name]} …", file=sys.stderr, flush=True)
        found[name] = importlib.import_module(f"tests.benchmarks.{name}").measure()
        if not arguments.json:
            print(f"\n{name} ({time.perf_counter() - began:.0f} s)\n{table(found[name])}", flush=True)
    if arguments.json:
        figures = {name: [figure.as_dict() for figure in figures] for name, figures in found.items()}
        print(json.dumps({"machine": machine(), **figures}))
    return 0


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    packages = {}
    for name in ("torch", "torchvision", "ray", "mlflow", "pycocotools"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines of text."""
    rows = [("what", "ours", "against", "ratio (spread)", "goal")]
    for figure in figures:
        spread = "" if figure.low is None else f" ({figure.low:.3g}–{figure.high:.3g}, {figure.pairs} pairs)"
        rows.append(
            (
                figure.what,
                f"{figure.ours:.4g}",
                "" if figure.against is None else f"{figure.against:.4g}" + (f" {figure.peer}" if figure.peer else ""),
                "" if figure.ratio is None else f"{figure.ratio:.3g}x{spread}",
                _goal(figure),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    notes = [f"  {figure.what}: {key} {value}" for figure in figures for key, value in figure.notes.items()]
    return "\n".join(lines + notes)


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"{figure.goal}{'' if figure.ratio is None else 'x'} {'reached' if figure.reached else 'NOT REACHED'}"


if __name__ == "__main__":
    sys.exit(main())
