"""MLflow's store as tracking uses it: an experiment, one parent run a sweep key, and runs found again by their tags.

Nothing in here knows of trainings; what MLflow already has is always asked of MLflow itself.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.errors import UnreachableError
from detector.origins import without_secrets
from orchestrator.files import locked
from orchestrator.lease import LeaseLostError
from orchestrator.ledger import Ledger
from orchestrator.run_tags import sweep_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from orchestrator.plan import Plan

BATCH = 1000
"""Most metrics that MLflow takes at once."""
PAUSES_S = (0.2, 0.4, 0.8)


class AwayError(UnreachableError):
    """The tracking server doesn't answer, or says that it can't now: it may be there again in a while."""

    def __init__(self, sentence: str, why: str) -> None:
        super().__init__(sentence)
        self.why = why


class _Persistent:
    """MLflow's client, whose requests are tried again for a moment where the server says that it can't now.

    Not the making of a run, which ``RunStore.create`` does, or of a model's version: it may have been made although
    the answer said otherwise.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._client, name)
        if name in ("create_run", "create_model_version") or not callable(request):
            return request

        def persistent(*args: Any, **options: Any) -> Any:
            for pause in PAUSES_S:
                try:
                    return request(*args, **options)
                except Exception as error:
                    if not is_away(error):
                        raise
                    time.sleep(pause)
            return request(*args, **options)

        return persistent


class RunStore:
    """The runs of ``plan``'s experiment."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan, self.ledger = plan, ledger
        self.parent = ""
        """The sweep's own run, once it is open."""
        self._client: MlflowClient | None = None
        self._experiment = ""

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, once it is open."""
        assert self._client is not None
        return self._client

    def connect(self) -> None:
        """Reaches the store, makes its schema if it is new, and finds or makes the experiment.

        Raises ``UnreachableError`` if that can't be done.
        """
        with self._reachable():
            self._connect()

    def open(self) -> None:
        """Finds or makes the parent run, which is RUNNING until the sweep ends. Raises ``UnreachableError``."""
        with self._reachable():
            self.parent = self._open_parent()

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (LeaseLostError, UnreachableError):
            raise  # the storage's, which says so itself
        except Exception as error:
            sentence = (
                f"the tracking server {without_secrets(self.plan.tracking_uri)} can't be used ({reason(error)}); "
                "check --tracking-uri, or leave it out to keep runs in the storage"
            )
            if is_away(error):
                raise AwayError(sentence, reason(error)) from None
            raise UnreachableError(sentence) from None

    def _connect(self) -> None:
        # A server that is away is our loop's business: MLflow's own retries would hold it for minutes, and repeat what
        # may have been done although the answer said otherwise.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("alembic", "mlflow"):  # after the import, which sets them up
            logging.getLogger(name).setLevel(logging.ERROR)
        uri = self.plan.tracking_uri
        with _first_to_open(uri):
            client: Any = _Persistent(MlflowClient(tracking_uri=uri))
            self._client = client
            found = self.client.get_experiment_by_name(self.plan.name)
            if found is None:
                # A database has no place of its own for files: they lie beside it, not in the working directory.
                location = _artifacts(uri, self.plan)
                try:
                    self._experiment = self.client.create_experiment(self.plan.name, artifact_location=location)
                    return
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    # Another driver was faster, or the request was repeated.
                    found = self.client.get_experiment_by_name(self.plan.name)
                    assert found is not None
        self._experiment = found.experiment_id
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(self._experiment)

    def _open_parent(self) -> str:
        tags = {"sweep": self.plan.key, "table": self.plan.name, "kind": "sweep"}
        run = self.verified(self.ledger.parent_run_id(self.plan.key), tags)
        run = run or next((run for run in self.search() if has(run, tags)), None)
        if run is None:
            run = self.create(self.plan.key, tags | sweep_tags(self.plan))
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.remember(run)
        return run.info.run_id

    def create(self, name: str, tags: dict[str, str]) -> Run:
        """A new run of the experiment, and the only one with ``tags``.

        A server that answered 429 or 5xx is asked again; a run that it had made all the same goes to MLflow's trash.
        Where no answer came at all nobody knows how long it may still take: that is the caller's to wait for.
        """
        with contextlib.suppress(Exception):  # there are hosts without a name for their user
            tags = {**tags, "mlflow.user": getpass.getuser()}
        for tries, pause in enumerate((*PAUSES_S, None)):
            try:
                made = self.client.create_run(self._experiment, run_name=name, tags=tags)
            except Exception as error:
                if pause is None or not _chain_has(error, _REFUSED):
                    raise
                time.sleep(pause)
                continue
            if tries:
                for other in list(self.search()):
                    if has(other, tags) and other.info.run_id != made.info.run_id:
                        self.client.delete_run(other.info.run_id)
            break
        return made

    def remember(self, run: Run, row: str | None = None, seed: int = 0) -> None:
        """Keeps that ``run`` is the sweep's own, or that of a row and seed.

        Raises ``LeaseLostError`` where another driver has taken over; a run that it doesn't use goes to MLflow's trash.
        """
        try:
            self.ledger.remember_run(self.plan.key, run.info.run_id, row, seed)
        except LeaseLostError:
            known = self.ledger.parent_run_id(self.plan.key)
            if row is not None:
                known = self.ledger.run_id(self.plan.key, row, seed)
            if known is not None and known != run.info.run_id:
                self.client.delete_run(run.info.run_id)
            raise

    def search(self) -> Iterator[Run]:
        """The experiment's runs, the newest first."""
        token = None
        while True:
            page = self.client.search_runs([self._experiment], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def search_everywhere(self, training: str, tags: dict[str, str]) -> Run | None:
        """The run with ``tags`` in any experiment: the ids in the ledger may be those of another store."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments, filter_string=f"tags.training = '{training}'")
        return next((run for run in found if has(run, tags)), None)

    def verified(self, run_id: str | None, tags: dict[str, str]) -> Run | None:
        """The run of that id, if this store has it and it is the one that ``tags`` describe."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" and has(run, tags) else None

    def drop_doubles(self) -> None:
        """Keeps one run of the sweep and one a row and seed: a server that answers late may have made another."""
        known = self.ledger.runs(self.plan.key)
        kept = {known["parent"], *(run_id for seeds in known["rows"].values() for run_id in seeds.values())}
        for run in list(self.search()):
            tags = run.data.tags
            mine = tags.get("sweep") == self.plan.key and tags.get("kind") in ("sweep", "row")
            known_id = known["parent"] if tags.get("kind") == "sweep" else self._known(known, tags)
            if mine and known_id is not None and run.info.run_id not in kept:
                self.client.delete_run(run.info.run_id)

    def _known(self, known: dict[str, Any], tags: dict[str, str]) -> str | None:
        return known["rows"].get(tags.get("row"), {}).get(tags.get("seed"))

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Writes parameters, which MLflow takes a hundred at a time."""
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(run_id, params=items[start : start + 100])

    def steps(self, run_id: str) -> dict[str, set[int]]:
        """Steps that MLflow has, by metric."""
        keys = self.client.get_run(run_id).data.metrics
        return {key: {metric.step for metric in self.client.get_metric_history(run_id, key)} for key in keys}

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Writes ``tags`` over what the run has."""
        from mlflow.entities import RunTag

        if tags:
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_metrics(self, run_id: str, metrics: list[Metric]) -> None:
        """Writes points, ``BATCH`` at a time."""
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def log_file(self, run_id: str, path: Path, name: str) -> None:
        """Puts a file into the run under ``name``."""
        if name == path.name:
            self.client.log_artifact(run_id, str(path))
            return
        with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
            self.client.log_artifact(run_id, shutil.copy(path, Path(scratch) / name))

    def log_report(self) -> None:
        """Puts the report, as far as it is written, into the sweep's own run."""
        for name in ("report.html", "report.md", "table.csv", "pairs.csv"):
            path = self.plan.folder / name
            if path.exists():
                self.client.log_artifact(self.parent, str(path), artifact_path="report")


def _artifacts(uri: str, plan: Plan) -> str | None:
    """Where files of runs lie: None is the server's business."""
    if not uri.startswith("sqlite:"):
        return None
    folder = plan.storage if plan.uri is None else Path(os.path.abspath(uri.removeprefix("sqlite:///"))).parent
    return (folder / "mlartifacts").as_uri()


@contextlib.contextmanager
def _first_to_open(uri: str) -> Iterator[None]:
    """Several processes that open a new sqlite file at once break it for good, and so does one that dies as it does.

    They take turns, and a file is there once its tables are.
    """
    path = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else None
    if not path or path == ":memory:":
        yield
        return
    target = Path(path.split("?")[0])
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            _new_database(target)
        yield


def _new_database(target: Path) -> None:
    from mlflow import MlflowClient

    begun = target.with_name(f".{target.name}.new")
    begun.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{begun}").search_experiments(max_results=1)
    begun.replace(target)


def has(run: Run, tags: dict[str, str]) -> bool:
    """Whether ``run`` has all of ``tags``."""
    return all(run.data.tags.get(key) == value for key, value in tags.items())


_REFUSED = re.compile(r"error code (429|5\d\d)|too many (429|5\d\d)")
_NO_SUCH_HOST = re.compile(r"Name or service not known|nodename nor servname|NameResolution|getaddrinfo")
_NO_ANSWER = re.compile(r"ConnectionError|ConnectTimeout|ReadTimeout")


def is_away(error: BaseException) -> bool:
    """Whether it may be better in a while: no connection, no answer in time, or one of 429 and 5xx."""
    if _chain_has(error, _NO_SUCH_HOST):
        return False
    no_answer = any(isinstance(link, ConnectionError | TimeoutError) for link in chain(error))
    return no_answer or _chain_has(error, _NO_ANSWER) or _chain_has(error, _REFUSED)


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error``, what caused it, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _chain_has(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(f"{type(link).__name__} {link}") for link in chain(error))


def of_storage(error: BaseException) -> bool:
    """Whether the sweep's storage is away, not the tracking server; it says so itself."""
    return isinstance(error, UnreachableError) and not isinstance(error, AwayError)


def reason(error: BaseException) -> str:
    """What went wrong, in a few words: of a chain of exceptions the operating system's own, if it is in there."""
    if isinstance(error, AwayError):
        return error.why
    if of_storage(error):
        return str(error)
    for link in chain(error):
        if isinstance(link, OSError) and link.strerror and link.errno:
            return link.strerror
    return without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__
