"""When the processes of a training agree on whether to stop: a message to all, so not after every step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from detector import distributed

ASK_S = 1.0


class Stopping:
    """Asks ``should_stop`` after every step of a single process, and of several after about ``ASK_S`` of them.

    Any process suffices. All ask after the same steps: the pace that decides that is rank 0's, of logged steps, which
    have waited for the device; until there is one they ask after every step.
    """

    def __init__(self, should_stop: Callable[[], bool], step: int) -> None:
        self._should_stop = should_stop
        self._every = 1
        self._logged, self._at = step, time.perf_counter()

    def asked(self, step: int, *, logged: bool) -> bool:
        """Whether to stop after ``step``; ``logged``: whether its metrics were."""
        if distributed.world_size() == 1:
            return self._should_stop()
        if not logged and step % self._every:
            return False
        pace = self._pace(step) if logged and distributed.rank() == 0 else 0.0
        # A tensor of the CPU, so by gloo: nobody waits for a device.
        asked, pace = distributed.all_sum(torch.tensor([float(self._should_stop()), pace])).tolist()
        if logged:
            self._every = max(1, int(ASK_S / max(pace, 1e-3)))
        return asked > 0

    def _pace(self, step: int) -> float:
        """Seconds a step since the last logged one."""
        now = time.perf_counter()
        pace = (now - self._at) / (step - self._logged)
        self._logged, self._at = step, now
        return pace


def together() -> None:
    """Waits for all processes: one that ends with an error takes the others with it, whatever they are writing."""
    distributed.all_sum(torch.zeros(1))
