"""Optimisers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detector.config import ScheduleConfig

# The one-cycle policy rises over this share of the training, from and to these fractions of the peak
# (Smith and Topin, 2018; the defaults of torch's OneCycleLR).
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4


def learning_rate(config: ScheduleConfig, step: int) -> float:
    """Rate of the update that follows ``step`` completed ones."""
    peak, total = config.learning_rate * config.batch_factor, config.max_iterations
    if config.policy == "one_cycle":
        position, rise = step / max(1, total - 1), RISE
        if position < rise:
            return peak * _cosine(FIRST, 1.0, position / rise)
        return peak * _cosine(1.0, LAST, (position - rise) / (1 - rise))
    warmup = min(config.warmup / config.batch_factor, 0.05 * total)
    if step < warmup:
        share = step / warmup if config.warmup_shape == "linear" else 0.0
        return peak * (config.warmup_factor * (1 - share) + share)
    return peak * 0.1 ** sum(step >= fraction * total for fraction in config.decay_at)


def _cosine(first: float, last: float, position: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, position))) / 2


def build_optimizer(config: ScheduleConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``network``'s trainable parameters. Its groups' rates are ``learning_rate`` times "rate_factor".

    SGD: with ``double_bias_rate`` biases learn twice as fast and don't decay. AdamW: only matrices and kernels decay.
    Both are fused: only so can an update be left out on the device, by ``found_inf``.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            group = biases if name.endswith("bias") else matrices if parameter.ndim > 1 else vectors
            group.append(parameter)
    decay = config.weight_decay
    if config.optimizer == "adamw":
        groups = [
            {"params": matrices, "weight_decay": decay, "rate_factor": 1.0},
            {"params": vectors + biases, "weight_decay": 0.0, "rate_factor": 1.0},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    special = config.double_bias_rate
    groups = [
        {"params": matrices + vectors, "weight_decay": decay, "rate_factor": 1.0},
        {"params": biases, "weight_decay": 0.0 if special else decay, "rate_factor": 2.0 if special else 1.0},
    ]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets every group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives every tensor of the optimiser's state the memory layout of its parameter.

    The CPU's fused kernels take both in the order of memory, whatever the strides: where a restored state is laid out
    otherwise, a weight would silently get another one's momentum.
    """
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
