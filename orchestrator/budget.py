"""GPU-hours that a sweep's own trainings have taken, in all their attempts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.ledger import Ledger

if TYPE_CHECKING:
    from orchestrator.plan import Plan


@dataclass(frozen=True)
class Spent:
    """What trainings have taken."""

    hours: float
    unit: str
    """"GPU-hours", or "worker-hours" where there is no GPU."""

    def __str__(self) -> str:
        return f"{self.hours:.3g} {self.unit}"


class BudgetSpentError(Exception):
    """The budget is used up."""


def spent(plan: Plan, ledger: Ledger, *, gpus: bool) -> Spent:
    """What the trainings that ``plan``'s sweep began have taken until now; without ``gpus`` each worker counts as one.

    Attempts on a GPU count by the GPUs that their workers held. Evaluations of finished trainings aren't counted.
    """
    seconds = 0.0
    for identity, config in plan.trainings.items():
        record = ledger.record(identity)
        if record.first_sweep != plan.key:
            continue
        for attempt in record.history:
            hardware = attempt.get("hardware") or {}
            until = attempt.get("ended") or (time.time() if record.state == "running" else attempt["started"])
            on_gpu = hardware.get("device") == "cuda"
            each = (config.resources.gpus_per_worker or 1.0) if on_gpu else 0.0 if gpus else 1.0
            seconds += max(0.0, until - attempt["started"]) * hardware.get("workers", 1) * each
    return Spent(seconds / 3600, "GPU-hours" if gpus else "worker-hours")


def check_budget(plan: Plan, ledger: Ledger, most: float | None, *, gpus: bool) -> None:
    """Raises ``BudgetSpentError`` where ``most`` hours are used up."""
    if most is None:
        return
    used = spent(plan, ledger, gpus=gpus)
    if used.hours >= most:
        raise BudgetSpentError(
            f"the budget of {most:g} {used.unit} is used up ({used} in all attempts of this sweep's trainings); what "
            "is left is pending, and the same command with a larger --max-gpu-hours continues"
        )
