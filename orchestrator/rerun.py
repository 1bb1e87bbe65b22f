"""``--rerun RUN_ID``: a sweep of one row, the very configuration of a run that MLflow has.

What the run says is kept, so that status, report and sync need no tracking server:

    STORAGE/sweeps/rerun-RUN_ID/rerun.json   {"run_id", "table", "row", "seed", "identity", "config", "basis"}
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.config import TrainingConfig
from detector.document import Loc
from detector.errors import InputError, UnreachableError
from detector.keys import Setting
from detector.origins import without_secrets
from detector.refusals import checked, short
from orchestrator.history import MOST, differences
from orchestrator.identity import deciding
from orchestrator.spec import RowSpec, SweepSpec

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger
    from orchestrator.request import SweepRequest

_RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Rerun:
    """A run, as a sweep of its own."""

    said: dict[str, Any]
    """What the run says of itself, as it is kept."""
    config: TrainingConfig
    spec: SweepSpec

    @property
    def key(self) -> str:
        """Of the sweep."""
        return key_of(self.said["run_id"])

    def keep(self, ledger: Ledger) -> None:
        """Keeps what the run says in the sweep's folder."""
        ledger.update(f"sweeps/{self.key}/rerun.json", lambda found: None if found == self.said else self.said)

    def refuse_another(self, identity: str, basis: dict[str, Any]) -> None:
        """Raises InputError where a training with this ``identity`` and ``basis`` would not be that of the run."""
        if identity == self.said["identity"]:
            return
        run, before = self.said["run_id"], self.said["basis"]
        changed = differences(before, basis) if before else ()
        what = "; ".join(changed[:MOST]) or "the run doesn't say what"
        if before and before["train_digest"] != basis["train_digest"]:
            raise InputError(
                f"the training images or annotations in {self.config.data.root} are not those of the run {run}; name "
                "theirs by --set data.root=FOLDER"
            )
        raise InputError(
            f"the run {run} was trained by other code than the present, and its training is not in the storage "
            f"({what}); --fresh trains its configuration by the present code, or check out the revision that its tag "
            "mlflow.source.git.commit names"
        )


def key_of(run_id: str) -> str:
    """The key of the sweep that runs ``run_id`` again."""
    return f"rerun-{run_id}"


def read_run(request: SweepRequest, ledger: Ledger, tracking_uri: str, settings: list[Setting]) -> Rerun:
    """The run that ``request`` names: as it is kept in the storage, else as MLflow has it, with ``settings`` on top.

    Raises InputError where there is no such run, it is no row's, or ``settings`` change what decides its weights, and
    UnreachableError where the store doesn't answer.
    """
    assert request.rerun is not None
    run_id = request.rerun.removeprefix("runs:/").partition("/")[0]
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(f"--rerun is {short(request.rerun)}, but an MLflow run's id has 32 hexadecimal digits")
    for option, given in (("--profile", request.profile), ("--only", request.only), ("--seeds", request.seeds)):
        if given:
            raise InputError(f"{option} selects within a sweep file, but --rerun is one run; leave it out")
    said = _kept(ledger, run_id) or _fetched(run_id, tracking_uri)
    origin = f"the config.json of the run {run_id}"
    stored = _config(said["config"], origin)
    if stored.plugins:
        names = ", ".join(plugin.file for plugin in stored.plugins)
        raise InputError(
            f"the run {run_id} uses a plug-in ({names}), and no stored code is executed; run its sweep file again: "
            f"{said['command'] or said['table']}"
        )
    document = stored.model_dump(mode="json")
    for setting in settings:
        _put(document, setting)
    config = _config(document, "--set")
    if deciding(config) != deciding(stored):
        changed = next(s.key for s in settings if deciding(_with(stored, s)) != deciding(stored))
        raise InputError(
            f"--set {changed} changes what decides the weights, but --rerun trains the run's own configuration; keep "
            "to keys such as data.root and resources.workers, or write a sweep file"
        )
    row = RowSpec(said["row"], base=(), settings=())
    spec = SweepSpec(
        path=Path(f"run {run_id}"),
        name=said["table"],
        title=f"{said['row']}, seed {said['seed']}, of {said['table']}: the run {run_id} again",
        rows=(row,),
        quoted=(),
        compare=(),
        seeds=(int(said["seed"]),),
        figures=(),
    )
    return Rerun(said, config, spec)


def _config(document: Any, origin: str) -> TrainingConfig:
    def where(loc: Loc, text: str = "") -> str:
        return origin

    return checked(TrainingConfig, document, where, what="a training")


def _with(config: TrainingConfig, setting: Setting) -> TrainingConfig:
    document = config.model_dump(mode="json")
    _put(document, setting)
    return _config(document, "--set")


def _put(document: dict[str, Any], setting: Setting) -> None:
    *parts, last = setting.key.split(".")
    for part in parts:
        document = document.setdefault(part, {})
        if not isinstance(document, dict):
            raise InputError(f"{setting.origin}: {setting.key} can't be set here; {part} is no section of this run")
    document[last] = setting.value


def _kept(ledger: Ledger, run_id: str) -> dict[str, Any] | None:
    try:
        found = ledger.place.read(f"sweeps/{key_of(run_id)}/rerun.json")
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("run_id") == run_id else None


def _fetched(run_id: str, tracking_uri: str) -> dict[str, Any]:
    """What MLflow has of the run."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    shown = without_secrets(tracking_uri)
    file = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    if tracking_uri.startswith("sqlite:///") and not Path(file).is_file():
        raise InputError(f"--rerun: there is no MLflow store at {shown}; name the run's by --tracking-uri")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from orchestrator.runs import is_away, reason

    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        run = client.get_run(run_id)
        tags = run.data.tags
        if tags.get("kind") != "row":
            raise InputError(
                f"--rerun: the run {run_id} in {shown} is not one of a row and seed; name one of a sweep's children"
            )
        with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
            there = {artifact.path for artifact in client.list_artifacts(run_id)}
            if "config.json" not in there:
                raise InputError(
                    f"--rerun: the run {run_id} in {shown} has no config.json; `orchestrator.sync` adds it"
                )
            found = {
                name: json.loads(Path(client.download_artifacts(run_id, name, scratch)).read_text(encoding="utf-8"))
                for name in ("config.json", "basis.json")
                if name in there
            }
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(
                f"--rerun: there is no run {run_id} in {shown}; name its store by --tracking-uri"
            ) from None
        raise _away(run_id, shown, error, is_away(error), reason(error)) from None
    except ValueError as error:
        raise InputError(f"--rerun: the configuration of the run {run_id} in {shown} is damaged ({error})") from None
    except OSError as error:
        raise _away(run_id, shown, error, True, reason(error)) from None
    return {
        "run_id": run_id,
        "table": tags.get("table", "rerun"),
        "row": tags["row"],
        "seed": int(tags["seed"]),
        "identity": tags.get("identity", ""),
        "command": tags.get("mlflow.source.name", ""),
        "config": found["config.json"],
        "basis": found.get("basis.json"),
    }


def _away(run_id: str, shown: str, error: Exception, away: bool, why: str) -> Exception:
    sentence = f"the run {run_id} can't be fetched from {shown} ({why}); check --tracking-uri"
    return UnreachableError(sentence) if away else InputError(sentence)
