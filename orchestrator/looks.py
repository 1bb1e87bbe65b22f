"""The looks at a sweep's verdicts, kept with it, so that who adds seeds after looking isn't fooled by chance.

STORAGE/sweeps/KEY/looks.json   {"looks": [{"seeds": [0, 1], "time": Unix seconds}, …]}

A look is a report with verdicts, by the seeds that its rows then had. The same seeds again are the same look.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from orchestrator.storage import Storage, Update

Looks = list[tuple[int, ...]]
"""Seeds of each look, in the order of the looks."""


def read(place: Storage, key: str) -> Looks:
    """Those of a sweep. Raises ValueError where the document isn't what was written there."""
    return _known(place.read(_document(key)))


def remember(update: Update, key: str, seeds: Sequence[int]) -> None:
    """Adds a look at ``seeds``, if it is a new one."""
    look = tuple(sorted(seeds))

    def change(found: Any | None) -> dict[str, Any] | None:
        if look in _known(found):
            return None
        kept = found["looks"] if found else []
        return {"looks": [*kept, {"seeds": list(look), "time": time.time()}]}

    update(_document(key), change)


def before(looks: Looks, seeds: Sequence[int]) -> Looks:
    """The looks that were taken before the one at ``seeds``: all, if that is a new one."""
    look = tuple(sorted(seeds))
    return looks[: looks.index(look)] if look in looks else list(looks)


def _document(key: str) -> str:
    return f"sweeps/{key}/looks.json"


def _known(found: Any | None) -> Looks:
    if found is None:
        return []
    if not isinstance(found, dict) or not isinstance(found.get("looks"), list):
        raise ValueError("looks.json has no list of looks")
    return [tuple(int(seed) for seed in look["seeds"]) for look in found["looks"]]
