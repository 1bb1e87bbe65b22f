"""What is asked for on the command line: which sweep, and where its storage, its runs and its data are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.document import suggestion
from detector.errors import InputError
from detector.keys import Setting
from detector.origins import without_secrets
from orchestrator.identity import digest
from orchestrator.storage import check_scheme

TRACKING_SCHEMES = (
    "http",
    "https",
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "databricks",
    "databricks-uc",
    "uc",
    "file",
)
"""What an address of MLflow's may begin with."""


@dataclass(frozen=True)
class SweepRequest:
    """What was asked for on the command line."""

    sweep: str
    """Sweep file; "" where a run is trained again."""
    profile: str | None = None
    """Name of a file in profiles/."""
    set: tuple[str, ...] = ()
    """``KEY=VALUE`` each."""
    only: tuple[str, ...] = ()
    """Names of rows; empty means all."""
    seeds: tuple[int, ...] | None = None
    """None: those of the sweep file."""
    storage: str | None = None
    """Folder or URI; None: $DETSWEEP_STORAGE, then ~/detsweep."""
    tracking_uri: str | None = None
    """None: $MLFLOW_TRACKING_URI, then sqlite in the storage."""
    other_code: Literal["refuse", "accept", "anew"] = "refuse"
    """What becomes of a training that was made by other code than the present."""
    rerun: str | None = None
    """MLflow run whose configuration is trained again, in the place of a sweep file."""


def resolve_storage(given: str | None) -> Path | str:
    """The storage as an absolute path, or as the URI that it is: ``given``, else $DETSWEEP_STORAGE, else ~/detsweep.

    Raises InputError for a URI that can't be one.
    """
    text, origin = given, "--storage"
    if text is None:
        text, origin = os.environ.get("DETSWEEP_STORAGE") or "~/detsweep", "$DETSWEEP_STORAGE"
    if not text:
        raise InputError(f"{origin} is empty; give the path of a folder")
    if "://" in text:
        check_scheme(text, origin)
        return text.rstrip("/")
    return Path(os.path.abspath(Path(text).expanduser()))


def resolve_tracking_uri(given: str | None, storage: Path | str) -> str:
    """MLflow's store: ``given``, else $MLFLOW_TRACKING_URI, else a database in the storage.

    Raises InputError where the storage can't hold one.
    """
    named = given or os.environ.get("MLFLOW_TRACKING_URI")
    if named is None and isinstance(storage, str):
        raise InputError(
            f"--storage is {storage}, which can't hold MLflow's database; name a tracking server with --tracking-uri "
            "or $MLFLOW_TRACKING_URI, or a folder that every node sees with --storage"
        )
    return named or f"sqlite:///{Path(storage) / 'mlflow.db'}"


def check_tracking_uri(given: str | None, storage: Path | str) -> None:
    """Raises InputError for slips of the hand: an address that MLflow has no store for, and a database in a folder that
    isn't there, other than the storage.
    """
    uri = resolve_tracking_uri(given, storage)
    origin = "--tracking-uri" if given else "$MLFLOW_TRACKING_URI"
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else None
    if scheme is not None and scheme not in TRACKING_SCHEMES:
        raise InputError(
            f"{origin} is {without_secrets(uri)}, but MLflow has no store for {scheme}://; "
            f"{suggestion(scheme, TRACKING_SCHEMES)}"
        )
    path = uri.removeprefix("sqlite:///").split("?")[0] if uri.startswith("sqlite:///") else None
    if not path or path == ":memory:":
        return
    folder = Path(os.path.abspath(path)).parent
    if folder != storage and not folder.is_dir():
        raise InputError(f"{origin} is {uri}, but there is no folder {folder}; make it, or correct the address")


def sweep_key(name: str, profile: str | None, settings: Sequence[Setting]) -> str:
    """NAME, ``@PROFILE`` if there is one, and ``+HASH8`` of the ``--set`` values if there are any."""
    values = {setting.key: setting.value for setting in settings}
    if isinstance(values.get("data.root"), str):
        values["data.root"] = absolute(values["data.root"])
    changed = f"+{digest(values)[:8]}" if values else ""
    return name + (f"@{profile}" if profile else "") + changed


def command_line(module: str, request: SweepRequest) -> str:
    """``python -m orchestrator.MODULE`` with everything that makes it mean the same sweep."""
    named = [request.sweep] if request.rerun is None else ["--rerun", request.rerun]
    words = ["python", "-m", f"orchestrator.{module}", *named]
    if request.profile:
        words += ["--profile", request.profile]
    for value in request.set:
        words += ["--set", value]
    for name in request.only:
        words += ["--only", name]
    if request.seeds is not None:
        words += ["--seeds", ",".join(map(str, request.seeds))]
    if request.storage is not None:
        words += ["--storage", request.storage]
    # A password is never shown; it stays in $MLFLOW_TRACKING_URI.
    if request.tracking_uri is not None and without_secrets(request.tracking_uri) == request.tracking_uri:
        words += ["--tracking-uri", request.tracking_uri]
    return shlex.join(words)


def absolute(path: str) -> str:
    """``path`` made absolute against the working directory; an address stays as it is."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
