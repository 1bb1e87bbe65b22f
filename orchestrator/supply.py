"""The nodes of a cluster while a sweep runs: those that join are examined, and those that are lost are waited for."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from detector.errors import UnreachableError
from orchestrator import nodes
from orchestrator.nodes import Need, Node, Nodes
from orchestrator.probe import Expected, check, check_server, probe, summary

LOOK_S = 3.0
FREE_LOOKS = 10
"""At so many looks at the nodes, room that ended jobs hold is given back."""
WAIT_S = 600.0
"""How long room that was lost is waited for, unless something else is asked for."""


class Growth:
    """What an autoscaler is asked for. Ray keeps that until it is asked for something else: nodes would never go."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, need: Need) -> None:
        """Asks for the shape of ``need``."""
        self.asked = True
        _request([{"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})}] * need.workers)

    def take_back(self) -> None:
        """Asks for nothing more, if anything was asked for."""
        if self.asked:
            self.asked = False
            _request([])


def await_room(needs: Iterable[Need], wait_s: float, growth: Growth) -> Nodes:
    """The cluster as it is once it has room for each of ``needs``.

    By ``growth`` an autoscaling cluster is asked for the shape of the largest one, and given ``wait_s`` seconds; the
    caller takes that back. Raises ``UnreachableError`` if there is still no room.
    """
    needs = list(needs)
    present = nodes.present()
    until = time.monotonic() + wait_s
    while any(present.room(need) == 0 for need in needs) and time.monotonic() < until:
        lacking = max((need for need in needs if present.room(need) == 0), key=lambda need: need.workers)
        if not growth.asked:
            _say(f"the cluster has {present}; waiting up to {wait_s / 60:g} min for {lacking}")
        growth.ask(lacking)  # each time: a cluster has one such request, and another sweep's takes its place
        time.sleep(min(LOOK_S, max(0.1, until - time.monotonic())))
        present = nodes.present()
    nodes.check_room(present, needs, waited_s=wait_s)
    return present


def examine_all(expected: Expected, tracking_uri: str) -> Nodes:
    """Probes every node and says which versions there are. Raises ``UnreachableError`` unless all can be used."""
    server = check_server(tracking_uri)
    present = nodes.present()
    found = probe(present.nodes, expected)
    _say(summary(found.values(), server))
    check(found.values())
    return present


class Supply:
    """Looks at the cluster every few seconds, in a thread of its own, as a context manager.

    ``needs`` gives what is still to be placed. ``wait_s``: seconds that room which was lost is waited for.
    """

    def __init__(self, known: Nodes, expected: Expected, needs: Callable[[], Iterable[Need]], wait_s: float) -> None:
        self._known = {node.id: node for node in known.nodes}
        self._unfit: dict[str, Node] = {}
        self._held: list[Any] = []
        self._expected, self._needs, self._wait_s = expected, needs, wait_s
        self._without_room: float | None = None
        self._error: UnreachableError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="nodes", daemon=True)

    def __enter__(self) -> Supply:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for here: a driver that was told to end has seconds for its ledger.
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Waits until the thread, once it was left, uses the cluster no more."""
        self._thread.join(timeout)

    def check(self) -> None:
        """Raises ``UnreachableError`` once nothing that is left has had room for too long."""
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        for look in itertools.count(1):
            if self._stop.wait(LOOK_S):
                return
            if look % FREE_LOOKS == 0:
                nodes.free_leftovers()
            # A cluster that is gone is noticed by whoever schedules on it.
            with contextlib.suppress(Exception):
                self._look()

    def _look(self) -> None:
        present = {node.id: node for node in nodes.present().nodes}
        for node in [node for key, node in self._known.items() if key not in present]:
            del self._known[node.id]
            _say(f"the node {node.address} is lost")
        joined = [node for key, node in present.items() if key not in self._known and key not in self._unfit]
        if joined:
            self._admit(joined)
        room = Nodes.of(self._known.values())
        needs = list(self._needs())
        if not needs or any(room.room(need) for need in needs):
            self._without_room = None
            return
        now = time.monotonic()
        if self._without_room is None:
            self._without_room = now
            _say(f"there is no room left for {needs[0]}; waiting up to {self._wait_s / 60:g} min for other nodes")
        elif now - self._without_room >= self._wait_s:
            self._error = UnreachableError(
                f"for {now - self._without_room:.0f} s the cluster has had no room for what is left: a training needs "
                f"{needs[0]}, and it has {room}; nothing is lost, and the same command continues once there are nodes"
            )

    def _admit(self, joined: list[Node]) -> None:
        for key, found in probe(joined, self._expected).items():
            node = next(node for node in joined if node.id == key)
            if found.problems:
                self._unfit[key] = node
                _say(f"the node {node.address} has joined and isn't used: {'; '.join(found.problems)}")
                self._occupy(node)
            else:
                self._known[key] = node
                _say(f"the node {node.address} has joined: {summary([found], None)}")

    def _occupy(self, node: Node) -> None:
        """Holds all of an unfit node, so that nothing of ours is placed there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        class Nothing:
            """Does nothing."""

        actor: Any = ray.remote(Nothing)
        strategy = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        self._held.append(actor.options(num_cpus=node.cpus, num_gpus=node.gpus, scheduling_strategy=strategy).remote())


def _request(bundles: list[dict[str, float]]) -> None:
    """Asks an autoscaler, if there is one."""
    from ray.autoscaler.sdk import request_resources

    with contextlib.suppress(Exception):
        request_resources(bundles=bundles)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
