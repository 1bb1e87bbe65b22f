"""Sweeps of seconds through the real command, and what is done to their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from orchestrator.ledger import Ledger
from orchestrator.record import Record

BASE = """
data:
  generated: {{train_images: 8, val_images: 2, classes: 2, long_side: 128}}
  train: train
  val: val
  short_side: 64
  long_side: 64
model: {{backbone: r18, weights: none, neck: {{channels: 64}}, head: {{convolutions: 1}}, anchors: {{scale: 4}}}}
schedule: {{iterations: {iterations}, batch_size: 2, recipe_batch_size: 2, learning_rate: 0.001}}
checkpoint: {{every: 5}}
tracking: {{every: 1}}
resources: {{workers: {workers}, cpus_per_worker: 1, loader_workers: 0, stall_timeout_s: {stall}}}
"""
ROOT = Path(__file__).parents[2]
PLAIN = "  - {name: plain}\n"


class Sweep:
    """A sweep file in a folder of its own, its storage and its command."""

    def __init__(
        self,
        folder: Path,
        rows: str = PLAIN,
        *,
        iterations: int = 20,
        workers: int = 1,
        stall: float = 120,
        plugin: str | None = None,
    ) -> None:
        (folder / "bases").mkdir(parents=True)
        (folder / "bases" / "small.yaml").write_text(BASE.format(iterations=iterations, workers=workers, stall=stall))
        named = ""
        if plugin is not None:
            (folder / "faulty.py").write_text(plugin)
            named = "plugins: [faulty.py]\n"
        (folder / "tiny.yaml").write_text(f"name: tiny\ntitle: A tiny sweep\nbase: small\n{named}rows:\n{rows}")
        self.folder, self.storage, self.iterations = folder, folder / "storage", iterations
        self.process: subprocess.Popen | None = None

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        """The command, started."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        command = [sys.executable, "-m", "orchestrator.sweep", "tiny.yaml", "--json", "--storage", str(self.storage)]
        self.process = subprocess.Popen(
            [*command, *options],
            cwd=self.folder,
            env=kept | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pipesize=1 << 20,  # read at the end; it must not wait for that
            text=True,
        )
        return self.process

    def end(self, status: int, patience: float = 280) -> dict[str, Any]:
        """Waits for the command, which must exit with ``status`` within ``patience`` seconds; its JSON."""
        process = self.process
        assert process is not None
        try:
            output, error = process.communicate(timeout=patience)
        finally:
            self.kill()
        assert process.returncode == status, error + output
        assert "Traceback" not in error, error
        return json.loads(output)

    def kill(self) -> None:
        """Ends all that is left."""
        process = self.process
        if process is not None and process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()

    def run(self, status: int = 0, *options: str, **environment: str) -> dict[str, Any]:
        """Start and end."""
        self.start(*options, **environment)
        return self.end(status)

    def training(self, number: int = 0) -> Path:
        """The folder of the only training, or of one of several in the order of their names."""
        return sorted(path for path in (self.storage / "trainings").iterdir() if path.is_dir())[number]

    def record(self, identity: str | None = None) -> Record:
        """What the ledger knows of it."""
        return Ledger(self.storage).record(identity or self.training().name)

    def workers(self) -> list[dict[str, Any]]:
        """The newest signs of the workers."""
        found = [path.read_text() for path in sorted(self.storage.glob("trainings/*/workers/[0-9].json"))]
        return [json.loads(text) for text in found]

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 200) -> Any:
        """Waits until ``condition`` is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = condition()
            if found:
                return found
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the sweep ended before {what}: {self.process.communicate()}")
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"not within {seconds} s: {what}")

    def wait_for_step(self, step: int) -> list[dict[str, Any]]:
        """Waits until the workers have completed ``step`` iterations; their signs."""
        return self.wait(
            lambda: (signs := self.workers()) and min(sign["step"] for sign in signs) >= step and signs, f"step {step}"
        )


def executed(record: Record) -> int:
    """Iterations of all attempts of a finished training."""
    return sum(attempt.get("to_step", attempt["from_step"]) - attempt["from_step"] for attempt in record.history)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the finished model beside a training's status."""
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
