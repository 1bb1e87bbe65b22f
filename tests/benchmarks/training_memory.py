"""Memory of a training step of ATSS R50 against torchvision's FCOS R50, float32: the most that a fresh process takes,
less what it took before the model was built.

``python -m tests.benchmarks.training_memory ours|peer`` is that process; it prints bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.benchmarks.alternating import Figure, Pairs

PAIRS, STEPS = 3, 3


def measure() -> list[Figure]:
    """Bytes of both, each time in a process of its own."""
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(PAIRS):
        for side, values in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.training_memory", side]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            values.append(int(answer.split()[-1]))
    pairs = Pairs(found["ours"], found["peer"])
    return [pairs.figure("memory of a training step, float32, MB", at_most=0.9, per=1e6, peer="torchvision's FCOS")]


def _peak() -> int:
    """Most bytes that were resident so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _main(side: str) -> None:
    from tests.benchmarks.training_step import OurStep, PeerStep, backbone_weights

    with backbone_weights() as weights:
        # What making that file took is given back, and the high-water mark begins anew.
        Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
        step = {"ours": OurStep, "peer": PeerStep}[side](weights, "float32")
        for _ in range(STEPS):
            step()
        print(_peak() - before)


if __name__ == "__main__":
    _main(sys.argv[1])
