"""One identity being trained and evaluated: a Tune trial that runs Ray Train and tells the ledger how it ended.

Ray Train keeps its checkpoints under the identity's own folder, and so continues from the newest one whenever the same
identity is trained again. Tune only decides when each trial starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.cancellation import is_cancelled
from orchestrator.evaluation import EvaluationJob, evaluate_training
from orchestrator.ledger import Ledger
from orchestrator.worker import Assignment, is_ours, sentence, work

RETRIES = 1
"""Times that a training is started again after its workers failed or their node was lost."""
WAITS = 60
"""Minutes that a training waits for room which others of the cluster hold: Ray Train counts each as a failed start."""

# A trial's function only waits. It takes no CPU, which its own workers may need, but a little of a resource that only
# the head node has, so that it and the controller beside it stay on the node least likely to go away.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}

PLACEMENT = {"pack": "PACK", "spread": "SPREAD", "one_node": "STRICT_PACK"}


def run_trial(params: dict[str, Any], *, assignments: dict[str, Assignment]) -> None:
    """Tune's function: trains ``params["identity"]``, unless that is done, and makes the evaluations that it lacks.

    A failure is written down, not raised, so that others go on.
    """
    from ray import tune

    assignment = assignments[params["identity"]]
    ledger = Ledger(assignment.storage, assignment.fence)
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not ledger.record(assignment.identity).trained:
        _train(assignment, ledger)
    if ledger.record(assignment.identity).trained:
        for job in assignment.evaluations:
            if ledger.record(assignment.identity, {"": job.key}).state != "finished":
                _evaluate(assignment, job, ledger)
        ledger.release(assignment.identity)
    # Tune forgets a trial that never reports.
    tune.report({"state": ledger.record(assignment.identity).state})


def _train(assignment: Assignment, ledger: Ledger) -> None:
    from ray.train.v2.api.exceptions import TrainingFailedError

    first = assignment.evaluations[0]
    for retries_left in range(RETRIES, -1, -1):
        if is_cancelled(ledger, assignment.identity):
            return
        try:
            result = _trainer(assignment, ledger).fit()
            if result.checkpoint is None or result.return_value is None:
                raise RuntimeError("the training ended without a checkpoint")
            checkpoint, metrics = Path(result.checkpoint.path), result.return_value
            ledger.evaluated(assignment.identity, first.key, checkpoint, metrics["evaluation"], first.settings)
            ledger.finished(assignment.identity, checkpoint, metrics["training"])
            return
        except TrainingFailedError as error:
            # Wrong data, or a loss that is no longer finite, would only fail again.
            if retries_left == 0 or any(is_ours(one) for one in _causes(error)):
                ledger.failed(assignment.identity, cause(error))
                return
        except (OSError, RuntimeError) as error:
            ledger.failed(assignment.identity, sentence(error))
            return


def _evaluate(assignment: Assignment, job: EvaluationJob, ledger: Ledger) -> None:
    """One task with the room of one worker, outside the trial's own, which has none."""
    import ray

    task = ray.remote(
        num_cpus=assignment.training_config.resources.cpus_per_worker,
        num_gpus=assignment.gpus_per_worker,
        max_retries=RETRIES,
        scheduling_strategy="DEFAULT",
    )(evaluate_training)
    try:
        ray.get(task.remote(assignment, job))
    except Exception as error:
        ledger.evaluation_failed(assignment.identity, job.key, sentence(list(_chain(error))[-1]))


def _trainer(assignment: Assignment, ledger: Ledger) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    api: Any = ray.train  # its type hints are still those of Ray Train's first version
    resources = assignment.training_config.resources
    gpus = assignment.gpus_per_worker
    return TorchTrainer(
        work,  # type: ignore[arg-type]
        train_loop_config={"assignment": assignment},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        scaling_config=api.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            placement_strategy=PLACEMENT[resources.placement],
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=api.RunConfig(
            name=assignment.identity,
            storage_path=str(ledger.training(assignment.identity).parent),
            failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=WAITS),
            checkpoint_config=api.CheckpointConfig(num_to_keep=2),
            callbacks=[TuneReportCallback()],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(resources.cpus_per_worker)}},
        ),
    )


def cause(error: Exception) -> str:
    """What went wrong underneath Ray Train's wrapping, in one sentence: our own error if there is one."""
    return sentence(max(_causes(error), key=is_ours))


def _causes(error: Exception) -> list[BaseException]:
    """The innermost errors: one a worker that failed, or the controller's."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    return [list(_chain(failures[rank]))[-1] for rank in sorted(failures)]


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        inner = getattr(link, "_base_exc", None) or getattr(link, "cause", None) or link.__cause__
        link = inner if isinstance(inner, BaseException) else None
