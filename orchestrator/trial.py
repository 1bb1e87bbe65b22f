"""One identity being trained: a Tune trial whose function runs Ray Train and tells the ledger how it ended.

Ray Train keeps its checkpoints under the identity's own folder, and so continues from the newest one whenever the same
identity is trained again. Tune only decides when each trial starts.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from orchestrator.ledger import Ledger
from orchestrator.worker import Assignment, sentence, work

RETRIES = 1
"""Times that workers are started again after they failed or their node was lost."""
WAITS = 60
"""Minutes that a training waits for room which others of the cluster hold: Ray Train counts each as a failed start."""

# A trial's function only waits. It takes no CPU, which its own workers may need, but a little of a resource that only
# the head node has, so that it and the controller beside it stay on the node least likely to go away.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}

PLACEMENT = {"pack": "PACK", "spread": "SPREAD", "one_node": "STRICT_PACK"}


def run_trial(params: dict[str, Any], *, assignments: dict[str, Assignment]) -> None:
    """Tune's function: trains ``params["identity"]``. A failure is written down, not raised, so that others go on."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    api: Any = ray.train  # its type hints are still those of Ray Train's first version
    assignment = assignments[params["identity"]]
    resources = assignment.training_config.resources
    ledger = Ledger(assignment.storage)
    gpus = assignment.gpus_per_worker
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer: Any = TorchTrainer(
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
            failure_config=api.FailureConfig(max_failures=RETRIES, controller_failure_limit=WAITS),
            checkpoint_config=api.CheckpointConfig(num_to_keep=2),
            callbacks=[TuneReportCallback()],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(resources.cpus_per_worker)}},
        ),
    )
    try:
        result = trainer.fit()
        if result.checkpoint is None or result.return_value is None:
            raise RuntimeError("the training ended without a checkpoint")
        ledger.finished(assignment.identity, Path(result.checkpoint.path), result.return_value)
    except TrainingFailedError as error:
        ledger.failed(assignment.identity, cause(error))
    except (OSError, RuntimeError) as error:
        ledger.failed(assignment.identity, sentence(error))
    state = ledger.record(assignment.identity).state
    tune.report({"state": state, "done_by": os.getpid()})


def cause(error: Exception) -> str:
    """What went wrong underneath Ray Train's wrapping, in one sentence."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return sentence(_innermost(next(iter(dict(sorted(failures.items())).values()))))
    return sentence(_innermost(getattr(error, "controller_failure", error)))


def _innermost(error: BaseException) -> BaseException:
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and isinstance(inner, BaseException):
        error = inner
    return error
