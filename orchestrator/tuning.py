"""Ray Tune as it is used here: it decides when trials start, and can be ended from outside; its state is scratch."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class _Stopped(BaseException):
    """Ends Tune's loop at once. Tune would answer an ordinary exception by waiting for all trials."""


def run_tuner(
    function: Callable[[dict[str, Any]], None],
    scratch: Path,
    stop: threading.Event,
    *,
    at_once: int,
    param_space: dict[str, Any] | None = None,
    **search: Any,
) -> dict[str, str]:
    """Runs trials of ``function`` until all are done or ``stop`` is set; why Tune gave up on some, by "identity".

    ``search``: further fields of TuneConfig, such as a search algorithm. Raises what Tune raises.
    """
    from ray import tune

    from orchestrator.trial import TRIAL_RESOURCES
    from orchestrator.trial import cause as cause_of

    class StopOnRequest(tune.Callback):
        """Tune has no other way of being ended from outside."""

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop.is_set():
                raise _Stopped

        def __reduce__(self) -> Any:
            # Tune saves its callbacks with its state, which nobody will read.
            return tune.Callback, ()

    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tuner = tune.Tuner(
            tune.with_resources(function, TRIAL_RESOURCES),
            param_space=param_space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                # The next trial runs in the same process, which has its seconds of imports behind it.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
                **search,
            ),
            run_config=tune.RunConfig(
                name="state",
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[StopOnRequest()],
            ),
        )
        results = tuner.fit()
        return {
            result.config["identity"]: cause_of(result.error)
            for result in (results[index] for index in range(len(results)))
            if result.error is not None and result.config is not None
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
