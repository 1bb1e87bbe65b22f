"""One identity being trained and evaluated: a Tune trial that runs Ray Train and tells the ledger how it ended.

Checkpoints are our own (:mod:`detector.checkpoint_store`); Ray Train is given none, so it has no other opinion of which
to go on from. Whenever the same identity is trained again, its workers begin from the newest one that is whole. Tune
only decides when each trial starts.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from detector.data.store import locate
from orchestrator import nodes
from orchestrator.cancellation import is_cancelled
from orchestrator.evaluation import EvaluationJob, evaluate_training
from orchestrator.heartbeat import Watch, read_signs
from orchestrator.lease import STALE_S
from orchestrator.ledger import Ledger
from orchestrator.outage import wait_out
from orchestrator.probe import UnfitNodeError
from orchestrator.recovery import ERROR_RETRIES, Retries, Waiting, cause, causes, chain, is_lost, is_waiting, sentence
from orchestrator.worker import Assignment, checkpoints, work

WAITS = 4
"""Times that Ray Train begins again to start workers, which without room takes it a minute; then it is asked anew."""

UNFIT_PAUSES_S = (5.0, 10.0, 20.0, 40.0)
"""Between two tries of an evaluation that came to a node which nobody had examined yet."""

# A trial's function only waits. It takes no CPU, which its own workers may need, but a little of a resource that only
# the head node has, so that it and the controller beside it stay on the node least likely to go away.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}

log = logging.getLogger(__name__)

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
    _await_storage(ledger, assignment.identity)
    to_end = not ledger.record(assignment.identity).trained and _train(assignment, ledger)
    if ledger.record(assignment.identity).trained:
        for job in assignment.evaluations:
            if ledger.record(assignment.identity, {"": job.key}).state != "finished":
                _evaluate(assignment, job, ledger)
            _resample(assignment, job, ledger)
        ledger.release(assignment.identity)
    elif to_end or is_cancelled(ledger, assignment.identity):
        ledger.release(assignment.identity)
    # Tune forgets a trial that never reports.
    tune.report({"state": ledger.record(assignment.identity).state})


def _train(assignment: Assignment, ledger: Ledger) -> bool:
    """Until it is trained or has failed, or is to end, by its user or its driver: True then."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    identity, timeout = assignment.identity, assignment.training_config.resources.stall_timeout_s
    retries, waiting = Retries(), Waiting(assignment.wait_s)
    while not is_cancelled(ledger, identity):
        launch = uuid.uuid4().hex
        watch = Watch(ledger.place, identity, launch, timeout)
        try:
            with watch:
                result = _trainer(assignment, ledger, launch).fit()
            if result.return_value is None:
                raise RuntimeError("the training ended without a result")
            _await_storage(ledger, identity)
            _keep(assignment, ledger, result.return_value)
            return False
        except TrainingFailedError as error:
            _await_storage(ledger, identity)  # which may be what has failed
            # Who puts it back once its workers have saved takes the mark away before they are seen to have ended.
            if is_cancelled(ledger, identity) or any(type(one).__name__ == "TrainingStopped" for one in causes(error)):
                return True
            if is_waiting(error):
                if waiting.goes_on(room=_has_room(assignment)):
                    continue
                minutes = assignment.wait_s / 60
                ledger.failed(identity, f"for {minutes:g} min the cluster has lacked room for {_need(assignment)}")
                return False
            waiting = Waiting(assignment.wait_s)
            said = watch.stalled or cause(error)
            stalled = watch.stalled is not None
            outcome = "lost" if stalled or is_lost(error) else "failed"
            reached = max((worker["step"] for worker in read_signs(ledger.place, identity, launch)), default=0)
            ledger.attempt_failed(identity, said, outcome=outcome, step=reached)
            kept = checkpoints(ledger, identity).steps()
            if not retries.again(error, stalled=stalled, step=max(kept, default=0)):
                ledger.failed(identity, said)
                return False
        except (OSError, RuntimeError) as error:
            ledger.failed(identity, sentence(error))
            return False
    return True


def _await_storage(ledger: Ledger, identity: str) -> None:
    wait_out(lambda: ledger.record(identity), STALE_S)


def _need(assignment: Assignment) -> nodes.Need:
    resources = assignment.training_config.resources
    one_node = resources.placement == "one_node"
    return nodes.Need(resources.workers, resources.cpus_per_worker, assignment.gpus_per_worker, one_node)


def _has_room(assignment: Assignment) -> bool:
    """Whether the nodes together have what the training needs, whoever holds it now."""
    return nodes.present().room(_need(assignment)) > 0


def _keep(assignment: Assignment, ledger: Ledger, result: dict[str, Any]) -> None:
    first = assignment.evaluations[0]
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
        folder = checkpoints(ledger, assignment.identity).fetch(result["checkpoint"], Path(scratch))
        ledger.evaluated(assignment.identity, first.key, folder, result["evaluation"], first.settings)
        ledger.finished(assignment.identity, folder, result["training"])


def _evaluate(assignment: Assignment, job: EvaluationJob, ledger: Ledger) -> None:
    """One task with the room of one worker, outside the trial's own, which has none.

    Where it came to a node that isn't fit, it is tried again: the driver finds such a node out, and occupies it.
    """
    import ray

    task = ray.remote(
        num_cpus=assignment.training_config.resources.cpus_per_worker,
        num_gpus=assignment.gpus_per_worker,
        max_retries=ERROR_RETRIES,
        scheduling_strategy="DEFAULT",
    )(evaluate_training)
    for pause in (*UNFIT_PAUSES_S, None):
        try:
            ray.get(task.remote(assignment, job))
            return
        except Exception as error:
            inner = list(chain(error))[-1]
            if pause is None or not isinstance(inner, UnfitNodeError):
                ledger.evaluation_failed(assignment.identity, job.key, sentence(inner))
                return
            log.info("%s; trying again", inner)
            time.sleep(pause)


def _resample(assignment: Assignment, job: EvaluationJob, ledger: Ledger) -> None:
    """For the report, which makes it itself where this fails."""
    if ledger.record(assignment.identity, {"": job.key}).state == "finished":
        try:
            ledger.resampled(assignment.identity, job.key, job.digest)
            ledger.examined(assignment.identity, job.key, job.digest)
            ledger.curves(assignment.identity)
        except Exception:
            log.exception("the evaluation %s of %s could not be looked into", job.key, assignment.identity)


def _trainer(assignment: Assignment, ledger: Ledger, launch: str) -> Any:
    import ray.train
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.process_group import PlainTrainer, WorkersMeet

    api: Any = ray.train  # its type hints are still those of Ray Train's first version
    resources = assignment.training_config.resources
    gpus = assignment.gpus_per_worker
    # Its checkpoints of an earlier version; Ray Train would refuse to start where one has been removed.
    (ledger.training(assignment.identity) / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    place = ledger.place.shared("trainings")
    filesystem, path = locate(place) if isinstance(place, str) else (None, str(place))
    return PlainTrainer(
        work,
        train_loop_config={"assignment": assignment, "launch": launch},
        backend_config=WorkersMeet(),
        scaling_config=api.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            placement_strategy=PLACEMENT[resources.placement],
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=api.RunConfig(
            name=assignment.identity,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=WAITS),
            callbacks=[TuneReportCallback()] if assignment.reports else [],
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(resources.cpus_per_worker)}},
        ),
    )
