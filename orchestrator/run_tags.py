"""Tags, parameters and inputs of MLflow's runs: which row a run is, on what data, by what code, and where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from detector.keys import flat
from detector.origins import without_secrets
from orchestrator.dataset import SplitFacts
from orchestrator.record import Record

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

    from orchestrator.plan import Plan, PlannedRow

LONGEST = 6000
"""Characters of a parameter that MLflow keeps."""
SPLITS = {"train": "training", "val": "evaluation", "test": "test"}
"""What MLflow calls the use of a data set."""


def sweep_tags(plan: Plan) -> dict[str, str]:
    """Those of the sweep's own run that say how it was asked for."""
    rows, trainings = len(plan.rows), len(plan.trainings)
    note = (
        f"{_code(plan.title)}\n\n{_code(plan.command)}\n\n{rows} row{'s' * (rows != 1)} with their seeds, {trainings} "
        f"distinct training{'s' * (trainings != 1)}; the comparison is in `report/report.html` among the artifacts."
    )
    return {
        "title": plan.title,
        "profile": plan.profile or "",
        "command": plan.command,
        **_source(plan),
        "mlflow.note.content": note,
    }


def row_tags(plan: Plan, row: PlannedRow, reused_from: str | None) -> dict[str, str]:
    """Those of a row's run that never change, beside the ones that it is found by."""
    sets = ", ".join(f"{key}: {value}" for key, value in row.differences.items())
    note = f"Row {_code(row.row)} of {_code(plan.title)}, seed {row.seed}."
    note += f"\n\nOver its base it sets {_code(sets)}." if sets else "\n\nIt is its base unchanged."
    if reused_from:
        note += f"\n\nIts training is that of {_code(reused_from)}: the curves are in the run that `source_run` names."
    return {**_source(plan), "mlflow.note.content": note, **({"reused_from": reused_from} if reused_from else {})}


def training_tags(record: Record) -> dict[str, str]:
    """What the newest attempt says of itself: which it is, where it ran and by what code."""
    if not record.history:
        return {}
    newest, hardware = record.history[-1], record.hardware
    nodes = newest.get("nodes") or [newest.get("node", "")]
    found = {"attempt": str(record.attempts), "nodes": ", ".join(nodes)}
    if hardware:
        workers, threads = hardware.get("workers", 1), hardware.get("threads", 1)
        found["hardware"] = (
            f"{hardware.get('device')} {hardware.get('name')}, {workers} worker{'s' * (workers != 1)} of {threads} "
            f"thread{'s' * (threads != 1)}"
        )
        found |= {key: str(hardware[key]) for key in ("python", "torch", "ray") if key in hardware}
    for key, tag in (("revision", "mlflow.source.git.commit"), ("sources", "sources")):
        if newest.get(key):
            found[tag] = newest[key]
    return found


def params(row: PlannedRow) -> dict[str, str]:
    """The resolved configuration under the YAML's dotted keys."""
    named = {"plugins": ", ".join(map(str, row.config.plugins))} if row.config.plugins else {}
    return {key: str(value)[:LONGEST] for key, value in {**flat(row.config), **named}.items()}


def data_inputs(row: PlannedRow, run: Run) -> list[DatasetInput]:
    """The row's splits as MLflow's data sets, without those that ``run`` has."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = getattr(run, "inputs", None)
    known = {
        (one.dataset.name, one.dataset.digest, tag.value)
        for one in (inputs.dataset_inputs if inputs else ())
        for tag in one.tags
    }
    found = []
    for split, context in SPLITS.items():
        facts: SplitFacts | None = getattr(row, split)
        if facts is None or (_name(facts), facts.digest[:32], context) in known:
            continue
        profile = {"images": facts.images, "boxes": facts.boxes, "classes": len(facts.categories)}
        data = Dataset(
            name=_name(facts),
            digest=facts.digest[:32],  # MLflow keeps 36 characters
            source_type="local",
            source=json.dumps({"uri": without_secrets(facts.root), "split": facts.split, "sha256": facts.digest}),
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    return found


def evaluation_tags(evaluations: dict[str, str]) -> dict[str, str]:
    """Keys of a row's evaluations."""
    return {f"{prefix}evaluation": key for prefix, key in evaluations.items()}


def evaluations_of(tags: dict[str, str]) -> dict[str, str]:
    """The reverse of ``evaluation_tags``."""
    return {prefix: tags[f"{prefix}evaluation"] for prefix in ("", "test_") if f"{prefix}evaluation" in tags}


def _source(plan: Plan) -> dict[str, str]:
    return {"mlflow.source.name": plan.command, "mlflow.source.type": "LOCAL"}


def _name(facts: SplitFacts) -> str:
    folder: Any = facts.root.rstrip("/").rpartition("/")[2]
    return f"{folder or facts.root}/{facts.split}"[:500]


def _code(text: str) -> str:
    """``text`` as Markdown shows it letter by letter."""
    return f"`{text.replace('`', chr(39))}`"
