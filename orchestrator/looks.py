"""The looks at a sweep's verdicts, kept with it, so that who adds seeds after looking isn't fooled by chance.

STORAGE/sweeps/KEY/looks.json   {"looks": [{"rows": {"ROW": [0, 1]}, "time": Unix seconds}, …]}

A look is a report with verdicts, by the seeds that each of its rows then had. The same seeds again are the same look.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.storage import Storage, Update

Look = Mapping[str, tuple[int, ...]]
"""Seeds of each row, in ascending order."""
Looks = list[Look]
"""In the order in which they were taken."""
EVERY_ROW = "*"
"""Stands for all rows in what was written when a look had the seeds of the whole table."""


def read(place: Storage, key: str) -> Looks:
    """Those of a sweep. Raises ValueError where the document isn't what was written there."""
    return _known(place.read(_document(key)))


def remember(update: Update, key: str, look: Look) -> None:
    """Adds ``look``, if it is a new one."""

    def change(found: Any | None) -> dict[str, Any] | None:
        known = _known(found)
        if len(before(known, look)) < len(known):
            return None
        rows = {row: list(seeds) for row, seeds in look.items()}
        return {"looks": [*(found["looks"] if found else []), {"rows": rows, "time": time.time()}]}

    update(_document(key), change)


def seeds_of(look: Look, row: str) -> set[int]:
    """What ``row`` had at ``look``."""
    return set(look.get(row, look.get(EVERY_ROW, ())))


def both(look: Look, pair: tuple[str, str]) -> set[int]:
    """Seeds that both rows of ``pair`` had at ``look``."""
    return seeds_of(look, pair[0]) & seeds_of(look, pair[1])


def shared(look: Look, pair: tuple[str, str]) -> int:
    """How many those are."""
    return len(both(look, pair))


def before(looks: Looks, present: Look) -> Looks:
    """The looks that were taken before the one at ``present``: all, if no earlier one had these seeds of these rows."""
    for number, look in enumerate(looks):
        if all(seeds_of(look, row) == set(seeds) for row, seeds in present.items()):
            return looks[:number]
    return list(looks)


def _document(key: str) -> str:
    return f"sweeps/{key}/looks.json"


def _known(found: Any | None) -> Looks:
    if found is None:
        return []
    if not isinstance(found, dict) or not isinstance(found.get("looks"), list):
        raise ValueError("looks.json has no list of looks")
    return [
        {row: tuple(map(int, seeds)) for row, seeds in (look.get("rows") or {EVERY_ROW: look["seeds"]}).items()}
        for look in found["looks"]
    ]
