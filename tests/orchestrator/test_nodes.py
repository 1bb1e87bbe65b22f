"""Addresses of clusters: what can't be joined is said at once, while Ray itself would try for minutes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from detector.errors import InputError, UnreachableError
from orchestrator.nodes import check_address


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that nobody listens at and nobody else can take."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_nobody_there(unheard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match=rf"the Ray cluster at {unheard} can't be joined \(Connection refused\)"):
        check_address(unheard)
    monkeypatch.setenv("RAY_ADDRESS", unheard)
    with pytest.raises(UnreachableError, match=unheard):
        check_address(None)


@pytest.mark.parametrize("address", ["127.0.0.1:99999999", "no.such.host.invalid:6379"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UnreachableError, match="can't be joined"):
        check_address(address)


def test_auto_where_the_cluster_has_died(unheard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: unheard)
    with pytest.raises(UnreachableError, match=rf"cluster at {unheard}, which auto means here, can't be joined"):
        check_address("auto")


def test_auto_where_there_has_been_no_cluster(unheard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    with pytest.raises(UnreachableError, match="no Ray cluster on this machine that auto could mean"):
        check_address("auto")


def test_somebody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_address(None)
    check_address("local")


def test_the_client_protocol_is_refused() -> None:
    with pytest.raises(InputError, match="client protocol"):
        check_address("ray://127.0.0.1:10001")


LEAVING = """
import gc, threading, time
import ray
from orchestrator.nodes import connected

class Cycle:
    pass

def collect():
    while ray.is_initialized():
        time.sleep(0.0001)
    gc.collect()

gc.disable()
with connected(None):
    for number in range(20_000):
        cycle = Cycle()
        cycle.itself, cycle.object = cycle, ray.put(number)
    del cycle
    other = threading.Thread(target=collect)
    other.start()
other.join()
print("left", gc.isenabled())
gc.enable()
with connected(None):
    pass
print("again", gc.isenabled())
"""


def test_garbage_with_references_to_objects_of_the_cluster_does_not_end_the_process_that_leaves_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ran = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, env=environment, timeout=240)
    assert (ran.returncode, ran.stdout) == (0, "left False\nagain True\n"), ran.stderr
