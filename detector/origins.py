"""Where a whole model lies: a file, a folder, MLflow's store or a published file, found without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from detector.errors import InputError, UnreachableError
from detector.foreign.published import fetch_published, is_published

WEIGHTS = "model.safetensors"
TRACKED = ("runs:/", "models:/")


def locate(source: str, tracking_uri: str | None = None) -> Path:
    """The file, or the folder with a model.safetensors, that ``source`` names, brought to this machine if need be.

    ``tracking_uri``: the MLflow store of ``runs:/`` and ``models:/``; None means ``default_tracking_uri()``.
    Raises InputError when there is none, UnreachableError when a store or a server doesn't answer.
    """
    if source.startswith(TRACKED):
        return _download(source, tracking_uri or default_tracking_uri())
    if is_published(source):
        return fetch_published(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"there is no model at {path}; give a folder, a file, runs:/…, models:/… or mmdet:NAME")
    # A training's checkpoint has the model beside its own state.
    return path / "model" if (path / "model" / WEIGHTS).is_file() else path


def default_tracking_uri() -> str:
    """``$MLFLOW_TRACKING_URI``, else the sqlite file in ``$DETSWEEP_STORAGE``, else in ``~/detsweep``."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    storage = Path(os.environ.get("DETSWEEP_STORAGE") or "~/detsweep").expanduser().absolute()
    return f"sqlite:///{storage}/mlflow.db"


# A password may look like a port and a path; web addresses alone have an @ behind these.
_DATABASE = re.compile(r"(?<=://)(?<!http://)(?<!https://)[^/\s@:]*:\S*@")
_PASSWORD = re.compile(r"(?<=://)[^/\s@:]*:(?!\d+(?:[/?#\s'\")]|$))\S*@")
_USER = re.compile(r"(?<=://)[^/\s]*@")
_NO_SCHEME = re.compile(r"(?<![\w:/.@%+-])[\w.%+-]+:[^\s@/]+@(?=[\w\[])")
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|token|secret|key|odbc_connect)[\w.-]*=)[^&;\s'\")]+", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """``text``, an address or a sentence with addresses in it, without users, passwords and keys.

    >>> without_secrets("postgresql://me:p@ss/word@db:5432/mlflow?sslpassword=x")
    'postgresql://db:5432/mlflow?sslpassword=...'
    """
    for address in (_DATABASE, _PASSWORD, _USER, _NO_SCHEME):
        text = address.sub("", text)
    return _QUERY.sub(r"\1...", text)


def _download(uri: str, tracking_uri: str) -> Path:
    """The model's folder on this machine."""
    # MLflow itself would try for minutes.
    for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")):
        os.environ.setdefault(name, value)
    try:
        import mlflow.artifacts
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InputError(f"{uri} is an MLflow model and mlflow is not installed; pip install mlflow") from error
    shown = without_secrets(tracking_uri)
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
        # MLflow would make an empty store there.
        raise InputError(f"{uri}: there is no MLflow store at {shown}; give tracking_uri, or set MLFLOW_TRACKING_URI")
    try:
        return Path(
            mlflow.artifacts.download_artifacts(artifact_uri=_place(uri, tracking_uri), tracking_uri=tracking_uri)
        )
    except MlflowException as error:
        reason = without_secrets(str(error).splitlines()[0])
        if "API request" in reason or "Max retries" in reason or "Connection" in reason:
            raise UnreachableError(f"{uri}: the MLflow store {shown} doesn't answer; is its server running?") from error
        raise InputError(f"{uri} was not found in the MLflow store {shown}: {reason}") from error
    except Exception as error:
        # A file that is no database, a store of another version: each raises something of its own.
        reason = without_secrets(" ".join(str(error).split()))[:200]
        raise UnreachableError(f"{uri} could not be fetched from the MLflow store {shown}: {reason}") from error


def _place(uri: str, tracking_uri: str) -> str:
    """Where the artifacts of a registered model's version lie; another ``uri`` is its own.

    MLflow itself looks for ``models:/`` in the store that its process uses, whatever it is told.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))/?", uri)
    if found is None:
        return uri
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    name, alias, version = found.groups()
    if alias is not None:
        version = str(client.get_model_version_by_alias(name, alias).version)
    return client.get_model_version_download_uri(name, version)
