"""The training loop: plain PyTorch, by iterations, on one process or many.

The result doesn't depend on how the global batch is split: every normaliser is a sum over all of it, over processes and
micro-batches, and the collectives stand outside any branch that depends on one process' data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor

from detector import distributed, plugins
from detector.breakdown import refuse_broken_weights
from detector.checkpoint_store import write_manifest
from detector.checkpoint_writer import CheckpointWriter
from detector.checkpoints import write_json
from detector.config import TrainingConfig
from detector.data.loader import Batch, training_batches
from detector.data.store import Store
from detector.errors import InputError, TrainingError
from detector.evaluation import Evaluation, evaluate
from detector.memory import is_out_of_memory, largest_micro_batch, remedy
from detector.stopping import Stopping, together
from detector.training_state import TrainingState

__all__ = ["Hooks", "TrainingError", "TrainingState", "TrainingStopped", "train"]


RUN_AHEAD = 20
"""Training waits for a checkpoint when it has gone on for one such part of ``checkpoint.every``, so that no more than
that is done again, beside ``checkpoint.every`` steps, after a death."""


class TrainingStopped(Exception):
    """A training was asked to stop, and has saved its state."""


class Hooks:
    """What a training tells while it runs. Every method may be overridden; ``step`` counts completed iterations."""

    def on_progress(self, step: int) -> None:
        """Something went on: an iteration, or a batch of an evaluation; often, and on every rank."""

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """Is entered while this process does something long on its own, such as comparing or writing."""
        return contextlib.nullcontext()

    def on_steps(self, first: int, columns: dict[str, list[float]]) -> None:
        """Losses, statistics and learning rate of every iteration from ``first`` on, for each key one value each; when
        they are logged or a checkpoint is made, on rank 0.
        """

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Means over the last ``tracking.every`` iterations; on rank 0."""

    def on_evaluation(self, step: int, metrics: dict[str, float | None]) -> None:
        """Figures of the validation split; on rank 0."""

    def on_checkpoint(self, step: int, metrics: dict[str, float | None]) -> None:
        """The checkpoint of ``step`` is kept, and these are the ``metrics`` of then; up to a twentieth of
        ``checkpoint.every`` steps later, on every rank after as many.
        """

    def keep(self, step: int, folder: Path) -> None:
        """A checkpoint's files are in ``folder``, with a manifest, and may go after this; on rank 0, in a thread of
        its own, one checkpoint after the other, the last one before ``train`` ends.
        """

    def should_stop(self) -> bool:
        """Whether to save and stop, asked after every step of a single process, and about once a second of several; on
        every rank, any one suffices.
        """
        return False


def train(
    config: TrainingConfig,
    train_store: Store,
    val_store: Store | None = None,
    *,
    folder: Path,
    hooks: Hooks | None = None,
    resume_from: Path | None = None,
    device: torch.device | str | None = None,
) -> dict[str, float | None]:
    """Trains what ``config`` describes, as one of torch.distributed's processes where there are several.

    ``folder`` takes the checkpoints; ``resume_from`` is one to continue from. Returns the last metrics: losses of the
    last iterations, and the validation figures. Raises InputError for wrong data or weights, TrainingError when the
    loss is no longer finite or the memory too small, TrainingStopped after a stop that ``hooks`` asked for.
    """
    hooks = hooks or Hooks()
    if distributed.world_size() > config.schedule.batch_size:
        raise InputError(
            f"{distributed.world_size()} processes share a global batch of {config.schedule.batch_size} images; "
            "start at most as many processes as schedule.batch_size"
        )
    plugins.load(config.plugins)
    state = TrainingState(config, train_store, torch.device(device or distributed.default_device()))
    if resume_from is not None:
        state.load(resume_from)
    batches = _batches(config, train_store, start=state.step, stop=config.schedule.max_iterations)
    writing = CheckpointWriter((config.checkpoint.every or 0) // RUN_AHEAD, hooks.busy)
    with contextlib.closing(batches), writing as writer:
        owed = val_store if resume_from is not None and _owes_evaluation(state, resume_from) else None
        return _steps(state, state.window.waiting(batches), val_store, writer, folder, hooks, owed)


def _steps(
    state: TrainingState,
    batches: Iterator[list[Batch]],
    val_store: Store | None,
    writer: CheckpointWriter,
    folder: Path,
    hooks: Hooks,
    owed: Store | None,
) -> dict[str, float | None]:
    """All iterations that are left, with what is due after each, and before them an evaluation of ``owed``; the last
    metrics.
    """
    config, total = state.config, state.config.schedule.max_iterations
    metrics: dict[str, float | None] = {}
    stopping = Stopping(hooks.should_stop, state.step)

    def save(evaluation: Evaluation | None = None) -> None:
        with state.window.paused():
            _checkpoint(state, writer, folder, hooks, metrics, evaluation)

    if owed is not None:
        made_up = _evaluated(state, owed, hooks)
        metrics |= made_up.metrics
        save(made_up)  # of the same step: it is owed no more, and who waits for its figures is told
    for micro_batches in batches:
        state.window.add(_updated(state, micro_batches), images=config.schedule.batch_size)
        hooks.on_progress(state.step)
        with state.window.paused():
            writer.keep_up(state.step)
        step, last = state.step, state.step == total
        logged = last or step % config.tracking.every == 0
        evaluates = val_store is not None and not last and _due(step, config.evaluation.every)
        saves = not last and _due(step, config.checkpoint.every)
        if logged or evaluates or saves:
            _settled(state, hooks)
        if logged:
            metrics |= _logged(state, hooks)
        if stopping.asked(step, logged=logged):
            save()
            writer.wait()
            together()
            raise TrainingStopped(f"stopped at step {step} of {total}, resumable")
        evaluation = None
        if evaluates and val_store is not None:
            evaluation = _evaluated(state, val_store, hooks)
            metrics |= evaluation.metrics
        if saves:
            save(evaluation)
    evaluation = None
    if val_store is not None:
        evaluation = _evaluated(state, val_store, hooks)
        metrics |= evaluation.metrics
    save(evaluation)
    return metrics


def _updated(state: TrainingState, micro_batches: list[Batch]) -> dict[str, Tensor]:
    """One iteration. Where memory isn't enough it is tried what would be."""
    try:
        return state.update(micro_batches)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler, whose traceback holds what the iteration had allocated.
    images = max(len(batch) for batch in micro_batches)
    raise TrainingError(remedy(state, images, largest_micro_batch(state, micro_batches)))


def _owes_evaluation(state: TrainingState, checkpoint: Path) -> bool:
    """Whether a stop, which waits for nothing, left out the evaluation that was due at the ``checkpoint``'s step."""
    schedule, every = state.config.schedule, state.config.evaluation.every
    due = _due(state.step, every) and 0 < state.step < schedule.max_iterations
    return due and not (checkpoint / "per_class.json").exists()


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _batches(config: TrainingConfig, store: Store, *, start: int, stop: int) -> Generator[list[Batch], None, None]:
    return training_batches(
        store,
        config.data,
        batch_size=config.schedule.batch_size,
        seed=config.seed,
        start=start,
        stop=stop,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batch_size=config.resources.micro_batch_size,
        loader_workers=config.resources.loader_processes,
        loader_threads=config.resources.loader_threads,
    )


def _settled(state: TrainingState, hooks: Hooks) -> None:
    """Every iteration up to here is told, and was finite: a checkpoint must not be ahead of that. The one wait for the
    device of a logged step.
    """
    columns = state.window.settle(state)
    if columns and distributed.rank() == 0:
        hooks.on_steps(state.step - len(columns["loss"]) + 1, columns)


def _logged(state: TrainingState, hooks: Hooks) -> dict[str, float]:
    metrics = state.window.close(state)
    if distributed.rank() == 0:
        hooks.on_metrics(state.step, metrics)
    return metrics


def _evaluated(state: TrainingState, store: Store, hooks: Hooks) -> Evaluation:
    with state.window.paused(), state.averaged_weights():
        result = evaluate(
            state.model,
            store,
            state.config.data,
            batch_size=state.config.evaluation.batch_size,
            loader_workers=state.config.resources.loader_processes,
            loader_threads=state.config.resources.loader_threads,
            tell=lambda: hooks.on_progress(state.step),
            alone=hooks.busy,
        )
    hooks.on_progress(state.step)
    if distributed.rank() == 0:
        hooks.on_evaluation(state.step, result.metrics)
    return result


def _checkpoint(
    state: TrainingState,
    writer: CheckpointWriter,
    folder: Path,
    hooks: Hooks,
    metrics: dict[str, float | None],
    evaluation: Evaluation | None = None,
) -> None:
    """``evaluation`` is one of this very step, if there is one."""
    _settled(state, hooks)
    refuse_broken_weights(state.model.network, state.step)
    writer.wait()  # so that there are never two snapshots
    step, told = state.step, dict(metrics)

    def then() -> None:
        hooks.on_checkpoint(step, told)
        hooks.on_progress(state.step)

    if distributed.rank() > 0:
        writer.start(None, then, step, folder)
        return
    snapshot, place = state.snapshot(), folder / f"step_{step:08d}"

    def write() -> None:
        snapshot.write(place)
        if evaluation is not None:
            write_json(place / "detections.json", evaluation.detections)
            write_json(place / "per_class.json", evaluation.per_class)
        write_manifest(place, step, evaluation.metrics.get("AP") if evaluation else None)
        hooks.keep(step, place)

    hooks.on_progress(step)
    writer.start(write, then, step, folder)
