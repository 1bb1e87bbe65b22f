"""What trainings ran on, in words, and which rows ran on something else than the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.plan import Plan
from orchestrator.record import Record
from orchestrator.results import Results

VERSIONS = ("python", "torch", "ray")
"""Of an attempt's, which rows must share to be compared without a mark."""


def hardware(values: Mapping[str, Any]) -> str:
    """What an attempt ran on, in words."""
    name = str(values.get("name") or values.get("device") or "?")
    workers = values.get("workers", 1)
    each = "" if values.get("device") == "cuda" else f" of {values.get('threads', 1)} threads"
    return f"{workers} x {name}{each}" if workers != 1 or not each else f"{name}, {values.get('threads', 1)} threads"


def versions(values: Mapping[str, Any]) -> str:
    """Of an attempt's hardware, in words."""
    return ", ".join(f"{name} {values[name]}" for name in VERSIONS if values.get(name))


def hardware_of(record: Record) -> list[Mapping[str, Any]]:
    """What the attempts of a training ran on, as far as they say."""
    return [attempt["hardware"] for attempt in record.history if attempt.get("hardware")]


def settings(record: Record) -> list[tuple[str, str]]:
    """Hardware and versions of the attempts of a training, in words, each once."""
    return list(dict.fromkeys((hardware(values), versions(values)) for values in hardware_of(record)))


def marks(plan: Plan, ledger: Results) -> dict[str, str]:
    """Rows that ran on other hardware, or with other versions, in any attempt, than most trainings of the table, with
    what is other."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in plan.row_names}
    for row in plan.rows:
        found[row.row] += settings(ledger.record(row.identity))
    counted = Counter(one for ones in found.values() for one in ones)
    if len(counted) < 2:
        return {}
    usual = counted.most_common(1)[0][0]
    marked = {}
    for name, ones in found.items():
        other = [
            part for one in dict.fromkeys(ones) for part, most in zip(one, usual, strict=True) if part != most and part
        ]
        if other:
            marked[name] = ", ".join(dict.fromkeys(other))
    return marked
