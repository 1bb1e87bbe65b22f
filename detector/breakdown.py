"""The first loss or gradient that is not finite: seen on the device, told to the host when it asks anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detector.errors import TrainingError

REMEDY = "lower schedule.learning_rate or set schedule.clip_norm"


def loud(loss: Tensor) -> Tensor:
    """``loss``; where it is not finite, every gradient through it is NaN.

    So a sum of gradients over processes tells all of them, and no collective of its own is needed.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class Breakdown:
    """Whether a training has ceased to be finite, when, and with which losses. It stays so."""

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), device=device)
        """1 from the first gradient on that was not finite, else 0; equal in all processes, as gradients are."""
        self._step = torch.zeros((), device=device)
        self._terms: Tensor | None = None
        self._names: list[str] = []

    def note(self, norm: Tensor, losses: dict[str, Tensor], step: int) -> None:
        """Looks at one iteration, the ``step``-th: its gradients' ``norm``, and this process' part of the losses."""
        first = ~norm.isfinite() & (self.flag == 0)
        self._names = sorted(losses)
        terms = torch.stack([losses[name].float() for name in self._names])
        self._terms = terms if self._terms is None else torch.where(first, terms, self._terms)
        self._step = torch.where(first, float(step), self._step)
        self.flag = torch.maximum(self.flag, first.float())

    def figures(self) -> Tensor:
        """(F,): what ``judge`` needs, to be summed over the processes first."""
        assert self._terms is not None
        return torch.cat([torch.stack([self.flag, self._step]), self._terms])

    def judge(self, figures: Sequence[float]) -> None:
        """Raises TrainingError if it has happened, in all processes alike."""
        flag, step, *terms = figures
        if flag:
            what = "loss" if not all(map(math.isfinite, terms)) else "gradient"
            words = ", ".join(f"{name} {value:.4g}" for name, value in zip(self._names, terms, strict=True))
            raise TrainingError(f"the {what} is no longer finite at step {step / flag:.0f} ({words}); {REMEDY}")


def refuse_broken_weights(network: torch.nn.Module, step: int) -> None:
    """Raises TrainingError where the weights after ``step`` iterations are not finite. Waits for the device."""
    if not torch.nn.utils.get_total_norm([each.detach() for each in network.parameters()]).isfinite():
        raise TrainingError(f"the weights are no longer finite after step {step}; {REMEDY}")
