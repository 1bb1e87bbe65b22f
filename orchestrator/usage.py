"""What the machine of a training's first worker is doing, under the names that MLflow gives its system metrics.

Measured here and not by MLflow: workers never talk to it, and the journal has the figures like all others.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

EVERY_S = 10.0
"""Seconds between two samples, at least; MLflow's own default."""


class Usage:
    """Takes samples of the processors, the memory and the GPU of ``device``, if it is one."""

    def __init__(self, device: torch.device, every_s: float = EVERY_S) -> None:
        self._device, self._every_s = device, every_s
        self._next = time.monotonic()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def sample(self) -> dict[str, float] | None:
        """The figures since the last sample, in percent and in megabytes; None where that was a moment ago."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._every_s
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        if self._device.type == "cuda":
            found |= self._of_gpu()
        return {f"system/{key}": round(value, 3) for key, value in found.items()}

    def _of_gpu(self) -> dict[str, float]:
        import torch

        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        free, whole = torch.cuda.mem_get_info(index)
        name = f"gpu_{index}"
        found = {
            f"{name}_memory_usage_megabytes": (whole - free) / 1e6,
            f"{name}_memory_usage_percentage": 100 * (whole - free) / whole,
        }
        # It takes NVIDIA's management library and its Python package, which torch doesn't bring.
        with contextlib.suppress(Exception):
            found[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(index))
        return found
