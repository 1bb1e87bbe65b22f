"""What each Ray Train worker runs: one rank of one training, from the newest checkpoint to the last step.

Rank 0 keeps the ledger, the journal and the checkpoints beside both. Where a search asks for it, every rank reports to
Ray Train when one is kept.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import platform
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.checkpoint_store import CheckpointStore
from detector.config import TrainingConfig
from orchestrator import journal
from orchestrator.cancellation import watching
from orchestrator.evaluation import EvaluationJob, show
from orchestrator.heartbeat import Heartbeat
from orchestrator.lease import Fence
from orchestrator.ledger import Ledger
from orchestrator.probe import Expected, require
from orchestrator.record import Metrics
from orchestrator.recovery import WAIT_S, is_lost, sentence
from orchestrator.revision import code_revision
from orchestrator.storage import open_storage
from orchestrator.usage import Usage

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
    expected: Expected | None = None
    """What a node must find before it is used; None on the driver's own machine."""
    reports: bool = False
    """Whether Tune hears of every checkpoint: a search's scheduler decides by that. Otherwise nobody waits for it."""
    wait_s: float = WAIT_S
    """Seconds that it waits for nodes which the cluster lacks while it has room for others."""

    @property
    def training_config(self) -> TrainingConfig:
        """The configuration, checked again."""
        return TrainingConfig.model_validate(self.config)


def checkpoints(ledger: Ledger, identity: str) -> CheckpointStore:
    """The checkpoints of a training."""
    place = ledger.place.shared(f"trainings/{identity}")
    return CheckpointStore(place, writing=functools.partial(ledger.writing, identity))


def work(settings: dict[str, Any]) -> dict[str, Any]:
    """Trains this rank's share of ``settings["assignment"]``, as the launch that ``settings["launch"]`` names.

    Returns the final metrics of "training" and "evaluation", and the name of the last "checkpoint".

    Raises what the training raises, after writing it into the ledger.
    """
    import ray.train

    from orchestrator.process_group import process_group

    assignment: Assignment = settings["assignment"]
    if assignment.expected is not None:
        require(assignment.expected)
    context: Any = ray.train.get_context()
    place, timeout = open_storage(assignment.storage), assignment.training_config.resources.stall_timeout_s
    # From here on, so that one that never comes to the others' meeting is missed.
    with Heartbeat(place, assignment.identity, settings["launch"], context.get_world_rank(), timeout) as heartbeat:
        with heartbeat.busy():  # takes seconds, and waits for nobody
            for name in ("detector.training", "detector.evaluation", "orchestrator.caching"):
                importlib.import_module(name)
        with process_group(gpus=assignment.gpus_per_worker > 0):
            heartbeat.beat()
            return _work(settings, context, heartbeat)


def _work(settings: dict[str, Any], context: Any, heartbeat: Heartbeat) -> dict[str, Any]:
    import torch

    from detector import distributed
    from detector.evaluation import watched
    from detector.training import TrainingStopped, train
    from orchestrator.caching import node_store

    assignment: Assignment = settings["assignment"]
    config = assignment.training_config
    ledger = Ledger(assignment.storage, assignment.fence)
    rank, world_size = context.get_world_rank(), context.get_world_size()
    log_to(ledger.training(assignment.identity) / ("worker.log" if rank == 0 else f"worker-{rank}.log"))
    threads, stall = config.resources.cpus_per_worker, config.resources.stall_timeout_s
    torch.set_num_threads(threads)
    device = torch.device("cuda" if assignment.gpus_per_worker and torch.cuda.is_available() else "cpu")
    try:
        with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
            kept_ones = checkpoints(ledger, assignment.identity)
            with heartbeat.busy():
                newest = kept_ones.newest() if rank == 0 else None
            # One decides: what is damaged for one worker alone must not make them begin at different steps.
            newest = distributed.broadcast(newest)
            with heartbeat.busy():
                resume_from = kept_ones.fetch(newest.name, Path(scratch)) if newest else None
            step = newest.step if newest else 0
            log.info("rank %d of %d on %s, %s, %d threads", rank, world_size, socket.gethostname(), device, threads)
            log.info("from %s", f"the checkpoint {newest.name}" if newest else "the beginning")
            names = distributed.gather(socket.gethostname())
            if rank == 0 and not ledger.started(
                assignment.identity,
                node=socket.gethostname(),
                from_step=step,
                hardware=_hardware(device, threads, world_size),
                nodes=sorted(set(names)),
                **code_revision(),
            ):
                raise TrainingStopped("it was to end before it began")
            with heartbeat.busy():
                stores = [
                    node_store(config, split, ledger, digest=assignment.digests[split])
                    for split in (config.data.train, config.data.val)
                ]
            heartbeat.beat(step)
            key = assignment.evaluations[0].key
            with (
                watching(ledger, assignment.identity, settings["launch"], stall) as cancelled,
                watched(lambda store, found: show(ledger, assignment.identity, key, heartbeat.step, store, found)),
            ):
                hooks = _hooks(ledger, assignment, rank, cancelled, heartbeat)
                hooks.usage = Usage(device) if rank == 0 else None
                metrics = train(
                    config, *stores, folder=Path(scratch), hooks=hooks, resume_from=resume_from, device=device
                )
        training = {key: value for key, value in metrics.items() if key not in hooks.evaluated}
        if not training and rank == 0:
            # It went on from its last step, and made none.
            means = journal.last(ledger.record(assignment.identity).journal, "train")
            training = dict(means["metrics"]) if means else {}
        return {"training": training, "evaluation": hooks.evaluated, "checkpoint": hooks.checkpoint}
    except Exception as error:
        log.exception("rank %d failed", rank)
        # What a worker's end makes others say is not the cause, which the trial will know.
        if not is_lost(error):
            outcome = "interrupted" if isinstance(error, TrainingStopped) else "failed"
            ledger.attempt_failed(assignment.identity, sentence(error), outcome=outcome, step=heartbeat.step)
        raise


def _hooks(ledger: Ledger, assignment: Assignment, rank: int, cancelled: threading.Event, heartbeat: Heartbeat) -> Any:
    import ray.train

    from detector.training import Hooks

    identity, evaluation = assignment.identity, assignment.evaluations[0].key

    class JournalHooks(Hooks):
        """Rank 0 writes the journal; reports, where they are asked for, are a barrier of all ranks."""

        def __init__(self) -> None:
            self.evaluated: Metrics = {}
            self.checkpoint: str | None = None
            self.usage: Usage | None = None

        def on_progress(self, step: int) -> None:
            heartbeat.beat(step)

        def busy(self) -> contextlib.AbstractContextManager[None]:
            return heartbeat.busy()

        def on_steps(self, first: int, columns: dict[str, list[float]]) -> None:
            if rank == 0:
                ledger.append(identity, journal.steps_line(first, columns))

        def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
            if rank == 0:
                system = self.usage.sample() if self.usage is not None else None
                lines = [journal.line(step, "train", dict(metrics))]
                ledger.append(identity, *lines, *([journal.line(step, "system", dict(system))] if system else []))

        def on_evaluation(self, step: int, metrics: dict[str, float | None]) -> None:
            if rank == 0:
                line = journal.line(step, "evaluation", metrics, evaluation=evaluation)
                ledger.append(identity, line, durable=True)
                self.evaluated = metrics

        def on_checkpoint(self, step: int, metrics: dict[str, float | None]) -> None:
            if assignment.reports:
                ray.train.report({"step": step, "checkpoint_path": self.checkpoint, **metrics})

        def keep(self, step: int, folder: Path) -> None:
            ledger.flush(identity)
            self.checkpoint = checkpoints(ledger, identity).keep(folder, step)

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
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("orchestrator", "detector"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
