"""Where a run is seen in MLflow's own pages."""

from __future__ import annotations

import shlex

from orchestrator.plan import Plan
from orchestrator.runs import without_secrets

LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a store that is a file or a database."""


def run_link(plan: Plan, run_id: str | None) -> str | None:
    """The page of a run, without user and password; None where there is none."""
    if run_id is None:
        return None
    uri = without_secrets(plan.tracking_uri)
    place = uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL
    return f"{place}/#/runs/{run_id}"


def link_note(plan: Plan) -> str | None:
    """What must be done first for the links to lead anywhere; None for a server."""
    uri = without_secrets(plan.tracking_uri)
    if uri.startswith(("http://", "https://")):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
