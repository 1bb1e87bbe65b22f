"""An exponential moving average of a network's weights, which never asks the device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

COUNT = "n_averaged"
PREFIX = "module."


class Average:
    """Averaged weights of ``network``, whose state is that of torch's AveragedModel.

    That one keeps its count in a tensor, which a step would wait for: here it is a number.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = copy.deepcopy(network), decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module, flag: Tensor) -> None:
        """averaged += (1 - decay) * (current - averaged), the first time averaged = current.

        ``flag``: a scalar on the device; where it is 1 nothing changes.
        """
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(network.parameters())
        if self.count == 0:
            torch._foreach_copy_(averaged, current)
        else:
            change = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(change, (1 - self.decay) * (1 - flag))
            torch._foreach_add_(averaged, change)
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """The count, and the weights with a prefix."""
        weights = self.module.state_dict(prefix=PREFIX)
        return {COUNT: torch.tensor(self.count), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.count = int(state[COUNT])
        self.module.load_state_dict({key.removeprefix(PREFIX): state[key] for key in state if key != COUNT})
