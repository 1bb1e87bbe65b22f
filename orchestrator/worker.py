"""What each Ray Train worker runs: one rank of one training, from the newest checkpoint to the last step.

Rank 0 keeps the ledger and the journal; every rank reports its checkpoints to Ray Train, which stores them beside both.
"""

from __future__ import annotations

import json
import logging
import platform
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config import TrainingConfig
from orchestrator import journal
from orchestrator.cancellation import watching
from orchestrator.evaluation import EvaluationJob
from orchestrator.lease import Fence
from orchestrator.ledger import Ledger
from orchestrator.record import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """One training, as it is sent to its workers."""

    identity: str
    storage: str
    config: dict[str, Any]
    """The resolved ``TrainingConfig`` as plain values."""
    digests: dict[str, str]
    """Digest of the training and of the validation split."""
    evaluations: tuple[EvaluationJob, ...]
    """Those that the rows ask for; the training makes the first one itself."""
    gpus_per_worker: float
    """GPUs of each worker; 0 trains on CPUs."""
    fence: Fence | None = None
    """Of the driver's lease: what its workers write counts as long as it holds the sweep."""

    @property
    def training_config(self) -> TrainingConfig:
        """The configuration, checked again."""
        return TrainingConfig.model_validate(self.config)


def work(settings: dict[str, Assignment]) -> dict[str, Metrics]:
    """Trains this rank's share of ``settings["assignment"]``; returns the final metrics of "training" and "evaluation".

    Raises what the training raises, after writing it into the ledger.
    """
    import ray.train
    import torch

    from detector.data.store import ensure_store
    from detector.training import train

    assignment = settings["assignment"]
    config = assignment.training_config
    ledger = Ledger(assignment.storage, assignment.fence)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log_to(ledger.training(assignment.identity) / ("worker.log" if rank == 0 else f"worker-{rank}.log"))
    threads = config.resources.cpus_per_worker
    torch.set_num_threads(threads)
    device = torch.device("cuda" if assignment.gpus_per_worker and torch.cuda.is_available() else "cpu")
    try:
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(checkpoint.path) if checkpoint else None
        from_step = json.loads((resume_from / "step.json").read_text())["step"] if resume_from else 0
        log.info("rank %d of %d on %s, %s, %d threads", rank, world_size, socket.gethostname(), device, threads)
        if rank == 0:
            hardware = _hardware(device, threads, world_size)
            ledger.started(assignment.identity, node=socket.gethostname(), from_step=from_step, hardware=hardware)
        assert config.data.root is not None
        folder = Path(config.data.cache) if config.data.cache else ledger.stores
        stores = [
            ensure_store(config.data.root, split, folder, digest=assignment.digests[split])
            for split in (config.data.train, config.data.val)
        ]
        with (
            watching(ledger, assignment.identity) as cancelled,
            tempfile.TemporaryDirectory(prefix="detsweep-") as scratch,
        ):
            hooks = _hooks(ledger, assignment, rank, cancelled)
            metrics = train(config, *stores, folder=Path(scratch), hooks=hooks, resume_from=resume_from, device=device)
        training = {key: value for key, value in metrics.items() if key not in hooks.evaluated}
        return {"training": training, "evaluation": hooks.evaluated}
    except Exception as error:
        log.exception("rank %d failed", rank)
        ledger.attempt_failed(assignment.identity, sentence(error))
        raise


def sentence(error: BaseException) -> str:
    """``error`` in one line: our own errors as they are, others with their type."""
    text = " ".join(str(error).split()) or "no further explanation"
    if is_ours(error):
        return text
    return f"{type(error).__name__}: {text[:500]}"


def is_ours(error: BaseException) -> bool:
    """Whether ``error`` was raised by us and for people: it speaks for itself, and trying again doesn't cure it."""
    return type(error).__module__.startswith("detector.")


def _hooks(ledger: Ledger, assignment: Assignment, rank: int, cancelled: threading.Event) -> Any:
    import ray.train

    from detector.training import Hooks

    identity, evaluation = assignment.identity, assignment.evaluations[0].key

    class JournalHooks(Hooks):
        """Rank 0 writes the journal; all ranks report checkpoints, which is a barrier."""

        def __init__(self) -> None:
            self.evaluated: Metrics = {}

        def on_steps(self, first: int, columns: dict[str, list[float]]) -> None:
            if rank == 0:
                ledger.append(identity, journal.steps_line(first, columns))

        def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
            if rank == 0:
                ledger.append(identity, journal.line(step, "train", dict(metrics)))

        def on_evaluation(self, step: int, metrics: dict[str, float | None]) -> None:
            if rank == 0:
                line = journal.line(step, "evaluation", metrics, evaluation=evaluation)
                ledger.append(identity, line, durable=True)
                self.evaluated = metrics

        def on_checkpoint(self, step: int, folder: Path | None, metrics: dict[str, float | None]) -> None:
            checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(folder)
            if rank == 0:
                ledger.flush(identity)
            # The scratch folder would otherwise grow by every checkpoint.
            ray.train.report(
                {"step": step, **metrics}, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True
            )

        def should_stop(self) -> bool:
            return cancelled.is_set()

    return JournalHooks()


def _hardware(device: Any, threads: int, workers: int) -> dict[str, Any]:
    import ray
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": device.type,
        "name": name,
        "workers": workers,
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def log_to(path: Path) -> None:
    """Writes what we log from now on to ``path``, and nowhere else."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("orchestrator", "detector"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
