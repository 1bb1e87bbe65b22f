"""Whether a training that broke off is started again: what a retry can cure, how often, and what is said of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from orchestrator.probe import UnfitNodeError

ERROR_RETRIES = 1
"""Times that a training is started again after an error of its own code, which may have been its node's."""
LOSSES = 4
"""Times in a row, without a new checkpoint in between, that workers may be lost."""
WAIT_S = 3600.0
"""Seconds that a training waits for nodes that the cluster lacks while it has room for others."""
_PEER_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "nccl", "socket timeout")


class Retries:
    """Counts what has happened to one training in this pass."""

    def __init__(self) -> None:
        self._errors, self._losses, self._step = 0, 0, -1

    def again(self, error: BaseException, *, stalled: bool, step: int) -> bool:
        """Whether to start again after ``error``, or after a standstill; ``step`` is that of the newest checkpoint."""
        if step > self._step:
            self._losses, self._step = 0, step
        if stalled or is_lost(error):
            self._losses += 1
            return self._losses <= LOSSES
        # What we say ourselves, of wrong data, of a loss that isn't finite or of too little memory, stays so.
        if any(is_ours(one) for one in causes(error)):
            return False
        self._errors += 1
        return self._errors <= ERROR_RETRIES


class Waiting:
    """How long a training has waited for its workers' room: without end where only others hold it."""

    def __init__(self, most_s: float = WAIT_S) -> None:
        self._most_s = most_s
        self._since: float | None = None

    def goes_on(self, *, room: bool) -> bool:
        """Whether to wait on; ``room``: whether the whole cluster, with nothing on it, would have enough."""
        if room:
            self._since = None
            return True
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since < self._most_s


def is_waiting(error: BaseException) -> bool:
    """Whether the workers were not even started, since there was no room for them yet."""
    return any(type(one).__name__ == "WorkerGroupStartupTimeoutError" for one in causes(error))


def is_lost(error: BaseException) -> bool:
    """Whether a worker or its node went away, not the training's code failed."""
    if any(is_ours(one) for one in causes(error)):
        return False
    return any(_went_away(one) for one in causes(error))


def cause(error: BaseException) -> str:
    """What went wrong underneath Ray Train's wrapping, in one sentence: our own error if there is one."""
    found = causes(error)
    lost = next((one for one in found if _died(one)), None)
    if lost is not None and not any(is_ours(one) for one in found):
        return f"a worker was killed or its node was lost ({_whose(lost)})"
    if is_lost(error):
        text = " ".join(str(next(one for one in found if _went_away(one))).split())
        words = next((words for words in _PEER_LOST if words in text.lower()), "")
        return f"a worker was killed or its node was lost (another one was told: {words or text[:200]})"
    return sentence(max(found, key=is_ours))


def causes(error: BaseException) -> list[BaseException]:
    """The innermost errors: one a worker that failed, or the controller's."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    return [list(chain(failures[rank]))[-1] for rank in sorted(failures)]


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it wraps, from the outside in."""
    link: BaseException | None = error
    while link is not None:
        yield link
        inner = next(
            (found for name in ("_base_exc", "health_check_failure", "cause") if (found := getattr(link, name, None))),
            link.__cause__,
        )
        link = inner if isinstance(inner, BaseException) else None


def sentence(error: BaseException) -> str:
    """``error`` in one line: our own errors as they are, others with their type."""
    text = " ".join(str(error).split()) or "no further explanation"
    if is_ours(error):
        return text
    return f"{type(error).__name__}: {text[:500]}"


def is_ours(error: BaseException) -> bool:
    """Whether ``error`` was raised by us and for people: it speaks for itself, and trying again doesn't cure it."""
    return type(error).__module__.startswith(("detector.", "orchestrator.")) and not isinstance(error, UnfitNodeError)


def _died(error: BaseException) -> bool:
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    died = isinstance(error, RayActorError | NodeDiedError | WorkerCrashedError | OutOfMemoryError)
    return died or type(error).__name__ == "WorkerGroupStartupFailedError"


def _went_away(error: BaseException) -> bool:
    # Who waits for a worker that was killed is told so by the network, and may be the first to say it.
    return _died(error) or isinstance(error, UnfitNodeError) or any(words in str(error).lower() for words in _PEER_LOST)


def _whose(error: BaseException) -> str:
    """The process that Ray names, or what Ray says."""
    text = " ".join(str(error).split())
    pid, address = re.search(r"\bpid: (\d+)", text), re.search(r"\bip: (\S+)", text)
    if pid and address:
        return f"process {pid[1]} on {address[1]}"
    return text[:200] + ("…" if len(text) > 200 else "")
