"""Joining a Ray cluster or starting one here, and what it has room for."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config import ResourcesConfig
from detector.errors import InputError, UnreachableError

# Read by Ray and MLflow when they are imported or started: the user sees our own table, and a report need not wait two
# seconds.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A thread that is late in noticing the end must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

# A Ray that is started here has no node that anybody takes away with a warning: nothing needs to look out for that.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

CONNECT_S = 10.0
START_TRIES = 3


@dataclass(frozen=True)
class Need:
    """What one training holds while it runs."""

    workers: int
    cpus: int
    gpus: float
    one_node: bool = False
    """Whether all workers must lie on one node."""

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        where = " on one node" if self.one_node and self.workers > 1 else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)} of {self.cpus} CPU{gpus} each{where}"


@dataclass(frozen=True)
class Node:
    """One node of a cluster."""

    id: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Nodes:
    """CPUs and GPUs of each live node."""

    cpus: tuple[float, ...]
    gpus: tuple[float, ...]
    nodes: tuple[Node, ...] = ()
    """The same nodes, by id and address."""
    here: bool = False
    """Whether the cluster was started by this process, on this machine alone."""

    @classmethod
    def of(cls, nodes: Iterable[Node], *, here: bool = False) -> Nodes:
        """These nodes together."""
        nodes = tuple(nodes)
        return cls(tuple(node.cpus for node in nodes), tuple(node.gpus for node in nodes), nodes, here)

    def need(self, resources: ResourcesConfig) -> Need:
        """``resources`` on this cluster: null GPUs means one where there are any."""
        gpus = resources.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if any(count >= 1 for count in self.gpus) else 0.0
        return Need(resources.workers, resources.cpus_per_worker, gpus, resources.placement == "one_node")

    def room(self, need: Need) -> int:
        """Trainings of this kind that fit at the same time."""
        fits = []
        for cpus, gpus in zip(self.cpus, self.gpus, strict=True):
            by_cpus = int(cpus // need.cpus)
            fits.append(min(by_cpus, int((gpus + 1e-9) // need.gpus)) if need.gpus else by_cpus)
        return sum(fit // need.workers for fit in fits) if need.one_node else sum(fits) // need.workers

    def __str__(self) -> str:
        gpus = f" and {sum(self.gpus):g} GPU" if sum(self.gpus) else " and no GPU"
        return f"{len(self.cpus)} node{'s' * (len(self.cpus) != 1)} with {sum(self.cpus):g} CPU{gpus} in all"


def check_room(nodes: Nodes, needs: Iterable[Need], *, waited_s: float = 0.0) -> None:
    """Raises ``UnreachableError`` if some training could never be placed."""
    for need in needs:
        if nodes.room(need) == 0:
            after = f" after {waited_s / 60:g} min" if waited_s else ""
            raise UnreachableError(
                f"a training needs {need}, but the cluster has {nodes}{after}; lower resources.workers, "
                "resources.cpus_per_worker or resources.gpus_per_worker with --set, join a larger cluster with "
                "--address, or give one that grows time with --wait-for-nodes"
            )


def present() -> Nodes:
    """The nodes that are alive now, of the cluster that this process has joined."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return Nodes.of(
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in alive
    )


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Nodes]:
    """Joins ``address``, ``$RAY_ADDRESS`` or the job's cluster; without any, starts a local one and ends it after.

    Raises ``UnreachableError`` if it can't be joined or started, ``InputError`` for an address that can't be used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or None
    check_address(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
        # What this process starts inherits its environment, and so finds our packages from any working directory.
        os.environ["PYTHONPATH"] = _with_our_packages(os.environ.get("PYTHONPATH", ""))
    import ray

    try:
        if address is None:
            _start_here(include_dashboard=False, **quiet)
        else:
            # Inside a submitted job Ray has already shipped or found the packages.
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
                path = _with_our_packages(os.environ.get("PYTHONPATH", ""))
                quiet["runtime_env"] = {"env_vars": {"PYTHONPATH": path, **QUIET}}
            ray.init(address=address, **quiet)
    except Exception as error:
        where = f"the Ray cluster at {_without_secrets(address)} can't be joined" if address else "Ray can't be started"
        reason = _without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
        raise UnreachableError(
            f"{where} ({reason}); "
            + (
                "check --address, that it runs, and that RAY_AUTH_MODE here is as it is there"
                if address
                else "see whether the machine has memory, disk and processes left"
            )
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield Nodes.of(present().nodes, here=address is None)
    finally:
        _shut_down()


def _shut_down() -> None:
    """Leaves the cluster.

    A reference to one of Ray's objects that is collected meanwhile, by whichever thread, ends the process with
    status 1. Tune's exceptions leave such garbage behind.
    """
    import ray

    collects = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def free_leftovers() -> None:
    """Gives back the room that jobs of this cluster hold although they have ended.

    Ray keeps a placement group whose request arrives as its job ends, which happens where a driver goes while its
    training waits for nodes. What was made to outlive its job stays.
    """
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state import list_jobs, list_placement_groups

    # Without an address Ray asks any cluster of this machine, and refuses where there are several.
    cluster = {"address": ray.get_runtime_context().gcs_address, "limit": 10_000}
    # The state of a cluster is told by its dashboard, which may be slow or not there.
    with contextlib.suppress(Exception):
        jobs = list_jobs(**cluster)
        alive = {job.job_id for job in jobs if job.status in ("PENDING", "RUNNING")}
        ended = {job.job_id for job in jobs} - alive
        for group in list_placement_groups(**cluster, detail=True, filters=[("state", "!=", "REMOVED")]):
            if group.creator_job_id in ended and not group.is_detached:
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group.placement_group_id))))


def _start_here(**options: Any) -> None:
    """Starts a local Ray. It gives its node 30 seconds, which a busy machine may not keep: then it is tried again."""
    import ray

    for left in reversed(range(START_TRIES)):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def check_address(address: str | None) -> None:
    """Raises ``UnreachableError`` at once where nobody answers at ``address`` or ``$RAY_ADDRESS``: Ray would try for
    minutes. ``InputError`` for an address that can't be used.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        return
    if address.startswith("ray://"):
        raise InputError(
            f"the address {_without_secrets(address)} is Ray's client protocol, over which Tune can't be used; submit "
            "the sweep with `ray job submit`, or give HOST:PORT from a machine of the cluster"
        )
    found = _automatic() if address == "auto" else address
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        return  # "local" and the like, which Ray knows
    where = address if found == address else f"{found}, which {address} means here,"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UnreachableError(
            f"the Ray cluster at {where} can't be joined ({getattr(error, 'strerror', None) or error}); check "
            "--address (or $RAY_ADDRESS) and that it runs"
        ) from None


def _automatic() -> str:
    """The address that Ray takes "auto" for: of a cluster that was started on this machine, and may have ended since.

    Raises ``UnreachableError`` if there has been none.
    """
    try:
        from ray._private.services import get_ray_address_from_environment

        return get_ray_address_from_environment("auto", None) or ""
    except ConnectionError:
        raise UnreachableError(
            "there is no Ray cluster on this machine that auto could mean; start one, or give --address HOST:PORT"
        ) from None
    except (ImportError, TypeError):
        return ""  # a Ray that finds it in another way has to say itself what is wrong with it


def _with_our_packages(path: str) -> str:
    ours = str(Path(__file__).resolve().parents[1])
    others = [part for part in path.split(os.pathsep) if part and part != ours]
    return os.pathsep.join([ours, *others] if ours not in _installed() else others)


def _installed() -> set[str]:
    import site

    return {*site.getsitepackages(), site.getusersitepackages(), *(sys.prefix,)}


def _without_secrets(text: str | None) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text or "")
