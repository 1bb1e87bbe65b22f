"""A look at each node before it is used: the package, its versions, the storage and the data are there and the same.

What differs would otherwise fail at the first checkpoint, or not at all. Nothing heavy is imported where no GPU is.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import time
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.errors import UnreachableError
from detector.transfer import request
from orchestrator.storage import open_storage

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger
    from orchestrator.nodes import Node

SUPPORTED = {
    "Python": ">=3.11",
    "Ray": ">=2.54,<3",
    "torch": ">=2.6",
    "torchvision": ">=0.21",
    "MLflow": ">=3.6,<3.18",
    "MLflow's server": ">=3.6,<4",
}
"""What this package is made for; those of the packages are its requirements."""
ALIKE = ("Python", "Ray", "torch", "torchvision", "detsweep")
"""What must be the same on all nodes; of Python, the first two numbers."""
ANSWER_S = 120.0
"""A node that takes longer to answer counts as unfit: its first process may have to be started, on a busy machine."""


class UnfitNodeError(Exception):
    """A worker found itself on a node that lacks something; another may have it."""


@dataclass(frozen=True)
class Expected:
    """What a node must find."""

    storage: str
    """Address of the storage."""
    sweep: str
    """Key of the sweep, in whose folder each node leaves its name."""
    nonce: str
    """What it must read there."""
    versions: dict[str, str]
    """Those of the driver."""
    stores: tuple[str, ...] = ()
    """Digests of converted splits that it must see in the storage."""
    caches: tuple[str, ...] = ()
    """Folders on its own disk that it must be able to write."""


@dataclass(frozen=True)
class Finding:
    """What was found on one node."""

    node: str
    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def expect(ledger: Ledger, sweep: str, stores: Iterable[str] = (), caches: Iterable[str] = ()) -> Expected:
    """What all nodes must find, from what is here. Leaves a mark in the sweep's folder for them to read.

    Raises ``LeaseLostError`` where another driver has taken over: its nodes must go on finding its mark.
    """
    nonce = uuid.uuid4().hex
    ledger.update(_key(sweep), lambda found: {"nonce": nonce, "time": time.time(), "nodes": {}})
    return Expected(ledger.address, sweep, nonce, versions(), tuple(sorted(stores)), tuple(sorted(caches)))


def examine(expected: Expected, node: str | None = None) -> Finding:
    """Looks around on the node that this is called on."""
    node = node or socket.gethostname()
    here = versions()
    problems = [*_wrong_versions(here, expected.versions), *_storage(expected, node)]
    if not problems:
        problems += _data(expected)
    return Finding(node, here, tuple(problems))


def require(expected: Expected) -> None:
    """Raises ``UnfitNodeError`` where this node isn't fit: one that has joined since the sweep began."""
    found = examine(expected)
    if found.problems:
        raise UnfitNodeError(f"the node {found.node} can't be used: {'; '.join(found.problems)}")


def probe(nodes: Iterable[Node], expected: Expected) -> dict[str, Finding]:
    """Examines ``nodes`` at the same time, each by a task of its own; findings by node id."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = list(nodes)
    task: Any = ray.remote(examine)
    tasks = {
        node.id: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        ).remote(expected, node.address)
        for node in nodes
    }
    ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=ANSWER_S)
    found: dict[str, Finding] = {}
    for node in nodes:
        try:
            found[node.id] = ray.get(tasks[node.id], timeout=0.1)
        except Exception as error:
            found[node.id] = Finding(node.address, problems=(_why(error),))
    marks = (open_storage(expected.storage).read(_key(expected.sweep)) or {}).get("nodes", {})
    for node in nodes:
        one = found[node.id]
        if not one.problems and node.address not in marks:
            problem = f"what it writes to {expected.storage} isn't seen here: it is another folder of that name"
            found[node.id] = Finding(one.node, one.versions, (problem,))
    return found


def check(found: Iterable[Finding]) -> None:
    """Raises ``UnreachableError``, naming nodes and what they lack, unless all are fit."""
    unfit = [one for one in found if one.problems]
    if unfit:
        said = "; ".join(f"{one.node}: {', '.join(one.problems)}" for one in unfit[:4])
        more = f"; and {len(unfit) - 4} more nodes" if len(unfit) > 4 else ""
        raise UnreachableError(f"nodes of the cluster can't be used: {said}{more}; nothing was started")


def check_server(uri: str) -> str | None:
    """The version of MLflow's server at ``uri``, if it says so. Raises ``UnreachableError`` for one out of range."""
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        with urllib.request.urlopen(request(f"{uri.rstrip('/')}/version"), timeout=10) as answer:
            version = answer.read(100).decode().strip()
    except (OSError, ValueError, http.client.HTTPException):
        return None  # behind a login, or away: who connects to it says that better
    if not re.fullmatch(r"\d+(\.\d+)+\S*", version):
        return None
    problem = _out_of_range("MLflow's server", version)
    if problem:
        raise UnreachableError(f"the tracking server can't be used: {problem}")
    return version


def summary(found: Iterable[Finding], server: str | None) -> str:
    """One line that says which nodes there are and which versions they have."""
    found = list(found)
    names = ", ".join(one.node for one in found[:8]) + (" …" if len(found) > 8 else "")
    nccl = sorted({one.versions["NCCL"] for one in found if "NCCL" in one.versions})
    have = {**found[0].versions, "NCCL": " and ".join(nccl) or "none"} if found else {}
    have["MLflow"] = have.get("MLflow", "?") + (f" (its server {server})" if server else "")
    said = ", ".join(f"{name} {have[name]}" for name in ("Ray", "Python", "torch", "NCCL", "MLflow") if name in have)
    return f"{len(found)} node{'s' * (len(found) != 1)} ({names}): {said}"


@cache
def versions() -> dict[str, str]:
    """What is installed here, by name. "detsweep" is a digest of the package's sources."""
    found = {"Python": platform.python_version()}
    for name, distribution in (
        ("Ray", "ray"),
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("MLflow", "mlflow"),
    ):
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    found["detsweep"] = _package_digest()
    if os.path.exists("/dev/nvidiactl"):
        import torch

        if torch.cuda.is_available() and torch.distributed.is_nccl_available():
            found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _package_digest() -> str:
    import detector

    whole = hashlib.sha256()
    for folder in (Path(detector.__file__).resolve().parent, Path(__file__).resolve().parent):
        for path in sorted(folder.rglob("*.py")):
            whole.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:12]


def _wrong_versions(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    problems = [problem for name, version in here.items() if (problem := _out_of_range(name, version))]
    for name in ALIKE:
        if _compared(name, here.get(name)) != _compared(name, there.get(name)):
            wanted = f" (supported: {SUPPORTED[name]}, the same on all nodes)" if name in SUPPORTED else ""
            what = "the package detsweep has other sources" if name == "detsweep" else f"{name} is {here.get(name)}"
            problems.append(f"{what}, and the driver's {there.get(name)}{wanted}")
    return problems


def _compared(name: str, version: str | None) -> str | None:
    if version is None:
        return None
    # Builds for CPUs and for CUDA work together.
    return ".".join(version.split(".")[:2]) if name == "Python" else version.split("+")[0]


def _out_of_range(name: str, version: str) -> str | None:
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    wanted = SUPPORTED.get(name)
    if wanted is None:
        return None
    try:
        right = Version(version) in SpecifierSet(wanted, prereleases=True)
    except InvalidVersion:
        right = False
    return None if right else f"{name} is {version}, supported is {wanted}"


def _storage(expected: Expected, node: str) -> list[str]:
    try:
        place = open_storage(expected.storage)
        if (place.read(_key(expected.sweep)) or {}).get("nonce") != expected.nonce:
            return [f"it doesn't see the storage {expected.storage}, or another folder of that name"]

        def sign(found: Any | None) -> dict[str, Any]:
            known = found if isinstance(found, dict) else {}
            return {**known, "nodes": {**known.get("nodes", {}), node: time.time()}}

        place.update(_key(expected.sweep), sign)
    except Exception as error:
        return [f"it can't write to the storage {expected.storage} ({getattr(error, 'strerror', None) or error})"]
    return []


def _data(expected: Expected) -> list[str]:
    from detector.data.store import is_store

    stores = open_storage(expected.storage).shared("data")
    missing = [one for one in expected.stores if not is_store(f"{stores}/{one}")]
    problems = [f"it doesn't see the converted data {stores}/{missing[0]}"] if missing else []
    for folder in expected.caches:
        try:
            path = Path(folder).expanduser()
            path.mkdir(parents=True, exist_ok=True)
            mark = path / f".writable-{uuid.uuid4().hex}"
            mark.write_bytes(b"")
            mark.unlink()
            shutil.disk_usage(path)
        except OSError as error:
            problems.append(f"data.cache {folder} can't be written ({error.strerror})")
    return problems


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "ModuleNotFoundError" in text or "No module named" in text:
        module = re.search(r"No module named '([\w.]+)'", text)
        return f"it lacks {module[1] if module else 'a module'}; install the package there, in the driver's version"
    if "GetTimeoutError" in type(error).__name__:
        return f"it has not answered within {ANSWER_S:g} s"
    return f"it can't run a task ({type(error).__name__}: {text[:200]})"


def _key(sweep: str) -> str:
    return f"sweeps/{sweep}/probe.json"
