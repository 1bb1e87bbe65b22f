"""What training logs: every iteration's losses and statistics, and their means since metrics were last logged."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detector import distributed
from detector.data.loader import Batch
from detector.schedule import learning_rate

if TYPE_CHECKING:
    from detector.training_state import TrainingState


class Window:
    """Figures of the iterations since metrics were last logged; they stay on the device until ``settle``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        """Those that were settled, one an iteration. A checkpoint keeps them: means don't depend on interruptions."""
        self._keys: list[str] = []
        self._pending: list[Tensor] = []
        self._images = 0
        self._waited = 0.0
        self._paused = 0.0
        self._began = time.perf_counter()

    def waiting(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Passes ``batches`` on and measures how long they kept the training waiting. Time counts from the first on."""
        self._began, self._paused = time.perf_counter(), 0.0
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no part of a step, such as an evaluation: its time counts for nothing."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def add(self, terms: dict[str, Tensor], *, images: int) -> None:
        """Adds one iteration."""
        self._keys = sorted(terms)
        self._pending.append(torch.stack([terms[key].float() for key in self._keys]))
        self._images += images

    def settle(self, state: TrainingState) -> dict[str, list[float]]:
        """Sums over all processes of what was added since the last call: for each key a value an iteration.

        Waits for the device, once. Raises TrainingError where an iteration was not finite.
        """
        if not self._pending:
            return {}
        verdict = state.breakdown.figures()
        sums = distributed.all_sum(torch.cat([verdict, *self._pending])).tolist()
        state.breakdown.judge(sums[: len(verdict)])
        width = len(self._keys)
        values = [sums[start : start + width] for start in range(len(verdict), len(sums), width)]
        first = state.step - len(values)
        self._pending = []
        rows = []
        for number, row in enumerate(values):
            terms = dict(zip(self._keys, row, strict=True))
            loss = sum(value for key, value in terms.items() if key.startswith("loss_"))
            rows.append({"loss": loss, **terms, "lr": learning_rate(state.config.schedule, first + number)})
        self.rows += rows
        return {key: [row[key] for row in rows] for key in rows[0]}

    def close(self, state: TrainingState) -> dict[str, float]:
        """Means over the settled iterations; starts the next window."""
        metrics = {key: sum(row[key] for row in self.rows) / len(self.rows) for key in self.rows[-1]}
        metrics["lr"] = self.rows[-1]["lr"]
        elapsed = time.perf_counter() - self._began - self._paused
        metrics["images_per_second"] = self._images / elapsed
        metrics["data_wait"] = self._waited / elapsed
        metrics["memory_gb"] = _memory_gb(state.device)
        self.rows, self._images, self._waited, self._paused = [], 0, 0.0, 0.0
        self._began = time.perf_counter()
        return metrics


def _memory_gb(device: torch.device) -> float:
    """Most memory so far: of the device where it is CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
