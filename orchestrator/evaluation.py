"""One evaluation of a finished training: a single task on the cluster that loads the model and trains nothing."""

from __future__ import annotations

import logging
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.config import TrainingConfig
from orchestrator.fields import METRICS
from orchestrator.ledger import Ledger
from orchestrator.probe import require
from orchestrator.record import Metrics

if TYPE_CHECKING:
    from detector.data.store import Store
    from detector.evaluation import Evaluation
    from orchestrator.worker import Assignment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationJob:
    """What is evaluated how, as it is sent to its task."""

    key: str
    split: str
    digest: str
    """Of the split."""
    config: dict[str, Any]
    """The resolved ``TrainingConfig`` of the row that asks for it, as plain values."""
    settings: dict[str, Any]
    """What the key is a hash of."""


def evaluate_training(assignment: Assignment, job: EvaluationJob) -> None:
    """Evaluates the model of ``assignment``'s training and puts the result into the ledger.

    Raises what loading and evaluating raise, and ``UnfitNodeError`` before anything else on a node that isn't fit.
    """
    if assignment.expected is not None:
        require(assignment.expected)
    import torch

    from detector import plugins
    from detector.checkpoints import load_model, write_json
    from detector.evaluation import evaluate
    from orchestrator.caching import node_store
    from orchestrator.worker import log_to

    config = TrainingConfig.model_validate(job.config)
    ledger = Ledger(assignment.storage, assignment.fence)
    folder = ledger.training(assignment.identity)
    log_to(folder / "evaluation.log")
    torch.set_num_threads(config.resources.cpus_per_worker)
    device = torch.device("cuda" if assignment.gpus_per_worker and torch.cuda.is_available() else "cpu")
    ledger.evaluation_started(assignment.identity, job.key, job.settings)
    log.info("evaluation %s of %s on %s, %s", job.key, job.split, socket.gethostname(), device)
    try:
        store = node_store(config, job.split, ledger, digest=job.digest)
        plugins.load(config.plugins)
        model = load_model(ledger.fetched(folder / "model"), config.model.postprocess).to(device)
        result = evaluate(model, store, config.data, batch_size=config.evaluation.batch_size)
    except Exception:
        log.exception("evaluation %s failed", job.key)
        raise
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        write_json(Path(scratch) / "detections.json", result.detections)
        if store.has_annotations:
            write_json(Path(scratch) / "per_class.json", result.per_class)
        # Without annotations the figures are not missing but undefined.
        undefined: Metrics = dict.fromkeys(METRICS)
        metrics = undefined | result.metrics
        show(ledger, assignment.identity, job.key, config.schedule.max_iterations, store, result)
        ledger.evaluated(assignment.identity, job.key, Path(scratch), metrics, job.settings)


def show(ledger: Ledger, identity: str, key: str, step: int, store: Store, result: Evaluation) -> None:
    """Keeps what is only shown of an evaluation after ``step`` iterations: precision over recall, and predictions.

    A sheet that can't be drawn or kept stops no training; the log says why.
    """
    from detector.checkpoints import write_json
    from detector.sheet import predictions_sheet

    try:
        with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
            folder = Path(scratch)
            if result.precision:
                write_json(folder / "precision.json", result.precision)
            path = folder / sheet_name(step)
            path.parent.mkdir()
            predictions_sheet(store, result.detections).save(path, quality=80)
            ledger.show(identity, key, folder)
    except Exception:
        log.exception("the predictions of step %d can't be shown", step)


def sheet_name(step: int) -> str:
    """Where the sheet of predictions after ``step`` iterations lies beside its evaluation."""
    return f"predictions/step_{step:08d}.webp"
