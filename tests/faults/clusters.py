"""Clusters of several Ray nodes on this machine, as cluster/start_local makes them, and sweeps on them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults.sweeps import ROOT, Sweep


class LocalCluster:
    """What cluster/start_local starts: a head on 127.0.0.2, and worker nodes of one CPU; jobs write to ``storage``.

    A job that is stopped has ``grace`` seconds before it is killed.
    """

    def __init__(self, storage: Path, port: int, grace: int = 30) -> None:
        self.port, self.storage, self.grace = port, storage, grace
        self.address, self.dashboard = f"127.0.0.2:{port}", f"http://127.0.0.1:{port + 2000}"
        # A socket's path must be short.
        self._folder = Path(f"/tmp/dsc-{os.getpid()}-{port}")

    def do(self, *words: str) -> str:
        """``cluster/start_local WORDS``; what it prints."""
        command = [sys.executable, str(ROOT / "cluster" / "start_local"), *words, "--folder", str(self._folder)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        environment = kept | {"PYTHONPATH": str(ROOT), "DETSWEEP_STORAGE": str(self.storage)}
        environment["RAY_JOB_STOP_WAIT_TIME_S"] = str(self.grace)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def nodes(self) -> list[str]:
        """Addresses of those that are alive, the head's first."""
        return self.do("status").strip().split(", ")

    def start(self, sweep: Sweep, *options: str) -> subprocess.Popen:
        """Starts a sweep here."""
        return sweep.start("--address", self.address, *options, RAY_AUTH_MODE="token")


@contextlib.contextmanager
def local_cluster(storage: Path, port: int, grace: int = 30) -> Iterator[LocalCluster]:
    """A head that trains nothing and two worker nodes."""
    found = LocalCluster(storage, port, grace)
    try:
        found.do("start", "--nodes=2", "--cpus=1", f"--port={port}", f"--dashboard-port={port + 2000}")
        yield found
    finally:
        found.do("stop")


@contextlib.contextmanager
def another_ray() -> Iterator[None]:
    """Somebody else's Ray on the same machine."""
    code = "import ray; ray.init(address='local', num_cpus=1); print('up', flush=True); input()"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert b"up" in process.stdout.readline()
        yield
    finally:
        process.communicate(b"\n", timeout=60)
