"""MLflow's run ids, kept with each sweep so that a row's run is found again.

STORAGE/sweeps/KEY/runs.json   {"parent": run id, "rows": {"ROW": {"SEED": run id}}}
"""

from __future__ import annotations

from typing import Any

from orchestrator.storage import Storage, Update


def read(place: Storage, key: str) -> dict[str, Any]:
    """Those of a sweep, as far as known."""
    try:
        return _known(place.read(_document(key)))
    except ValueError:
        return _known(None)


def remember(update: Update, key: str, run_id: str, row: str | None = None, seed: int | None = None) -> None:
    """Stores the parent's run id, or that of a row and seed."""

    def change(found: Any | None) -> dict[str, Any]:
        runs = _known(found)
        if row is None:
            runs["parent"] = run_id
        else:
            runs["rows"].setdefault(row, {})[str(seed)] = run_id
        return runs

    update(_document(key), change)


def _document(key: str) -> str:
    return f"sweeps/{key}/runs.json"


def _known(found: Any | None) -> dict[str, Any]:
    return found if isinstance(found, dict) else {"parent": None, "rows": {}}
