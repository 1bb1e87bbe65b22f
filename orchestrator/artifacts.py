"""What a row's run has beside its figures: made from the ledger, and put into MLflow once each.

config.json  basis.json          the resolved configuration, and what the identity is a hash of: to train again
detections.json                  a COCO results file; test_… of the test split, here and below
per_class.json  per_class.csv    AP by class
precision_recall.svg             from COCO's own precision table
images/                          predictions on fixed images after each evaluation, for MLflow's image grid
checkpoints.json                 where the checkpoints lie, with checksums; they stay in the storage
model/                           an MLflow model (orchestrator.packaging)
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.config import ModelConfig
from detector.errors import InputError
from detector.origins import without_secrets
from orchestrator.evaluation import sheet_name
from orchestrator.files import read_json
from orchestrator.packaging import write_package

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger
    from orchestrator.plan import PlannedRow
    from orchestrator.record import Record
    from orchestrator.runs import RunStore

HISTORY = "mlflow.log-model.history"
IMAGES = "mlflow.loggedImages"
EVALUATED = ("detections.json", "per_class.json")


def present(store: RunStore, run_id: str) -> set[str]:
    """Paths of the run's artifacts, at its top, of its model and of its images."""
    found = {file.path for file in store.client.list_artifacts(run_id)}
    for folder in ("model", "images"):
        if folder in found:
            found |= {file.path for file in store.client.list_artifacts(run_id, folder)}
    return found


def log_sheet(
    store: RunStore, ledger: Ledger, run_id: str, folder: Path, *, step: int, at: float, prefix: str, there: set[str]
) -> None:
    """Puts the sheet of predictions after ``step`` iterations into the run, if ``folder``, an evaluation's, has it.

    The names are those of ``MlflowClient.log_image``, which draws one of its own each time: asked for twice, it would
    add the image twice. ``there`` has the paths of the run's artifacts, and gets the new ones.
    """
    name = f"images/{prefix}predictions+step+{step}+"
    if any(path.startswith(name) for path in there):
        return
    with contextlib.suppress(OSError):
        sheet = ledger.fetched(folder / sheet_name(step))
        if sheet.is_file():
            file = f"{name}timestamp+{round(at * 1000)}+{prefix}predictions"
            with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
                for ending in (".webp", "+compressed.webp"):
                    shutil.copy(sheet, Path(scratch) / f"{file.removeprefix('images/')}{ending}")
                store.client.log_artifacts(run_id, scratch, artifact_path="images")
            there.add(f"{file}.webp")
            store.set_tags(run_id, {IMAGES: "True"})


def log_evaluation(store: RunStore, run_id: str, folder: Path, prefix: str, there: set[str]) -> None:
    """Puts what a finished evaluation has in ``folder``, on this machine, into the run."""
    for name in EVALUATED:
        if (folder / name).exists() and prefix + name not in there:
            store.log_file(run_id, folder / name, prefix + name)
    texts = {}
    if (folder / "per_class.json").exists():
        texts["per_class.csv"] = class_table(read_json(folder / "per_class.json") or [])
    if (folder / "precision.json").exists():
        texts["precision_recall.svg"] = precision_recall_plot(read_json(folder / "precision.json") or {})
    for name, text in texts.items():
        if prefix + name not in there:
            store.client.log_text(run_id, text, prefix + name)


def log_configuration(store: RunStore, run_id: str, config: Any, basis: Any, there: set[str]) -> None:
    """Puts the resolved configuration into the run, and what the identity is a hash of."""
    for name, content in (("config.json", config), ("basis.json", basis)):
        if content and name not in there:
            store.client.log_dict(run_id, content, name)


def log_model(
    store: RunStore, run_id: str, model: Path, row: PlannedRow, record: Record, *, own: bool, there: set[str]
) -> None:
    """Puts the model in the folder ``model`` into the run. ``own``: with the row's way from raw outputs to boxes.

    The MLmodel file goes last: a folder with one is whole.
    """
    if "model/MLmodel" in there:
        return
    client = store.client
    description: Any = _description(model / "config.json")
    postprocess = row.config.model.postprocess.model_dump(mode="json")
    # What is loaded from a row's run must find what the row's figures say.
    changed = own and description["model"]["postprocess"] != postprocess
    if changed:
        description["model"]["postprocess"] = postprocess
    client.log_artifacts(run_id, str(model), artifact_path="model")
    if changed:
        client.log_dict(run_id, description, "model/config.json")
    notes = {"identity": record.identity, "training": record.training or "", "row": row.row, "seed": str(row.seed)}
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        folder = Path(scratch)
        tags = write_package(
            folder,
            ModelConfig.model_validate(description["model"]),
            run_id=run_id,
            training=record.training or "",
            finished=record.finished,
            notes=notes,
        )
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "MLmodel"):
            client.log_artifact(run_id, str(path), artifact_path="model")
    store.set_tags(run_id, {HISTORY: json.dumps([tags])})


def _description(path: Path) -> Any:
    """The model's config.json. Raises InputError where it can't be read: then there is no model to give away."""
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "model" not in found:
        raise InputError(f"{path} is {'damaged' if path.exists() else 'missing'}")
    return found


def log_checkpoints(store: RunStore, ledger: Ledger, run_id: str, identity: str) -> None:
    """Says where the checkpoints lie, and their checksums: checkpoints.json, and the newest as tags."""
    found = checkpoints_of(ledger, identity)
    if not found:
        return
    store.client.log_dict(run_id, {"checkpoints": found}, "checkpoints.json")
    newest = found[-1]
    store.set_tags(run_id, {"checkpoint": newest["uri"], "checkpoint_sha256": newest["sha256"]})


def checkpoints_of(ledger: Ledger, identity: str) -> list[dict[str, Any]]:
    """Whole checkpoints in the storage, oldest first: step, uri, sha256 of the manifest (which has each file's)."""
    folder = f"trainings/{identity}"
    found = []
    for name in ledger.place.names(folder):
        if not name.startswith("checkpoint_"):
            continue
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            manifest: Any = ledger.place.read(f"{folder}/{name}/manifest.json")
            size = sum(file["bytes"] for file in manifest["files"].values())
            shared = ledger.place.shared(f"{folder}/{name}")
            uri = shared.as_uri() if isinstance(shared, Path) else shared
            found.append(
                {
                    "step": manifest["step"],
                    "AP": manifest["AP"],
                    "uri": without_secrets(uri),
                    "bytes": size,
                    "sha256": manifest["sha256"],
                }
            )
    return sorted(found, key=lambda one: (one["step"], one["uri"]))


def class_table(per_class: list[dict[str, Any]]) -> str:
    """AP by class as CSV; what is undefined, for want of boxes, is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", "name", "AP", "AP50", "boxes"))
    for one in per_class:
        figures = ("" if one[key] is None else f"{one[key]:.4f}" for key in ("AP", "AP50"))
        writer.writerow((one["id"], one["name"], *figures, one["boxes"]))
    return stream.getvalue()


_CURVES = (("0.5", "#0072b2"), ("0.75", "#d55e00"), ("0.5:0.95", "#009e73"))


def precision_recall_plot(precision: dict[str, list[float | None]]) -> str:
    """Precision over recall as an SVG of its own: a curve for each of the IoUs, none where it is undefined."""
    left, top, side = 56, 24, 360
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + side + 24}" height="{top + side + 52}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for tenth in range(0, 11, 2):
        along, up = left + side * tenth / 10, top + side * (10 - tenth) / 10
        parts.append(f'<path d="M{left} {up:g}h{side}M{along:g} {top}v{side}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{up + 4:g}" text-anchor="end">{tenth / 10:g}</text>')
        parts.append(f'<text x="{along:g}" y="{top + side + 16}" text-anchor="middle">{tenth / 10:g}</text>')
    for number, (iou, colour) in enumerate(_CURVES):
        values = [value for value in precision.get(iou, ()) if value is not None]
        if len(values) > 1:
            last = len(values) - 1
            points = " ".join(
                f"{left + side * place / last:.1f},{top + side * (1 - value):.1f}" for place, value in enumerate(values)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            label = f"IoU {iou}: AP {100 * sum(values) / len(values):.1f}"
        else:
            label = f"IoU {iou}: undefined"
        parts.append(f'<text x="{left + side - 6}" y="{top + 18 + 16 * number}" text-anchor="end" fill="{colour}">')
        parts.append(f"{label}</text>")
    middle = left + side / 2
    parts.append(f'<text x="{middle:g}" y="{top + side + 36}" text-anchor="middle">recall</text>')
    parts.append(
        f'<text transform="translate(16 {top + side / 2:g}) rotate(-90)" text-anchor="middle">precision</text>'
    )
    parts.append(f'<text x="{middle:g}" y="16" text-anchor="middle">mean over the classes with boxes</text></svg>')
    return "".join(parts)
