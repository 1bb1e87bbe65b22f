"""What is tried again: lost workers as long as the training gets on, other errors once, what we say ourselves never."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError  # type: ignore[attr-defined]
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2.api.exceptions import ControllerError

from detector.errors import InputError, TrainingError
from orchestrator.recovery import ERROR_RETRIES, LOSSES, Retries, cause, is_lost


class Wrapped(Exception):
    """As Ray Train hands on what a worker raised."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("a long traceback")
        self._base_exc = inner


class Unhealthy(Exception):
    """As Ray Train hands on that a worker died."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("a health check failed")
        self.health_check_failure = inner


def group(**failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("…", {int(rank[1:]): error for rank, error in failures.items()})


DIED = Unhealthy(ActorDiedError())
PEER = Wrapped(RuntimeError("[/pytorch/third_party/gloo/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:123"))
SHAPE = Wrapped(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
OURS = Wrapped(TrainingError("the loss is no longer finite at step 7"))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (group(_0=DIED), True),
        (group(_0=PEER, _1=DIED), True),
        (group(_0=PEER), True),
        (ControllerError(WorkerGroupStartupFailedError("its node went while it started")), True),
        (group(_0=SHAPE), False),
        (group(_0=PEER, _1=OURS), False),
    ],
)
def test_a_lost_worker_is_told_from_a_failing_one(error, lost):
    assert is_lost(error) is lost


def test_the_cause_is_named_not_its_consequence():
    assert cause(group(_0=PEER, _1=OURS)) == "the loss is no longer finite at step 7"
    assert cause(group(_0=PEER, _1=DIED)).startswith("a worker was killed or its node was lost (")
    assert cause(group(_0=SHAPE)) == "RuntimeError: mat1 and mat2 shapes cannot be multiplied"


def test_lost_workers_are_replaced_as_long_as_there_are_new_checkpoints():
    retries = Retries()
    for step in range(0, 100, 10):
        assert retries.again(group(_0=DIED), stalled=False, step=step)
    again = [retries.again(group(_0=DIED), stalled=False, step=90) for _ in range(LOSSES)]
    assert again == [True] * (LOSSES - 1) + [False]
    assert Retries().again(group(_0=SHAPE), stalled=True, step=0)


def test_who_is_told_by_the_network_that_another_went_away_says_so_in_words():
    assert cause(group(_0=PEER)) == (
        "a worker was killed or its node was lost (another one was told: connection closed by peer)"
    )


def test_an_error_is_tried_once_more_and_our_own_not_at_all():
    retries = Retries()
    assert [retries.again(group(_0=SHAPE), stalled=False, step=10 * n) for n in range(ERROR_RETRIES + 1)] == [
        True,
        False,
    ]
    assert not Retries().again(group(_0=OURS), stalled=False, step=0)
    assert not Retries().again(group(_0=PEER, _1=Wrapped(InputError("image 7"))), stalled=False, step=0)
