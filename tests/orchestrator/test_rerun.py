"""``--rerun RUN_ID``: the very configuration of a run, from any store, with the same identity. On a real sqlite."""

import json
import shutil

import pytest
from mlflow import MlflowClient

from detector.errors import InputError, UnreachableError
from orchestrator import identity as identities
from orchestrator.ledger import Ledger
from orchestrator.plan import make_plan
from orchestrator.request import SweepRequest, command_line
from orchestrator.sweep import main, refuse_other_code
from tests.orchestrator.tables import BASE, TABLE, write_data, write_table
from tests.orchestrator.test_tracking import begin, empty_database, opened, train  # noqa: F401


@pytest.fixture
def tracked(tmp_path, empty_database, monkeypatch):  # noqa: F811
    """A sweep whose rows are begun, and their runs: request, plan, storage."""
    for name in ("MLFLOW_TRACKING_URI", "DETSWEEP_DATA", "DETSWEEP_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    base = BASE.replace("data: {", f"data: {{root: {write_data(tmp_path / 'data')}, ")
    path = write_table(tmp_path, TABLE, base=base)
    storage = tmp_path / "storage"
    storage.mkdir()
    shutil.copy(empty_database, storage / "mlflow.db")
    request = SweepRequest(str(path), storage=str(storage), seeds=(3,), set=("schedule.learning_rate=0.002",))
    plan = make_plan(request)
    ledger = Ledger(storage)
    for row in plan.rows:
        config, iterations = row.config.model_dump(mode="json"), row.config.schedule.max_iterations
        mine = {"sweep": plan.key, "row": row.row, "seed": row.seed}
        ledger.claim(row.identity, **mine, config=config, iterations=iterations, basis=row.basis)
        ledger.started(row.identity, node="n", from_step=0, hardware={})
        train(ledger, row, 0, 2)
    opened(plan, ledger).push()
    return plan, storage


def request_of(plan, storage, number=1, **others):
    row = plan.rows[number]
    run_id = Ledger(plan.storage).run_id(plan.key, row.row, row.seed)
    return SweepRequest("", rerun=run_id, storage=str(storage), tracking_uri=plan.tracking_uri, **others)


def test_the_same_identity_and_configuration_from_another_storage(tracked, tmp_path):
    plan, _ = tracked
    request = request_of(plan, tmp_path / "elsewhere")
    again = make_plan(request)
    (row,) = again.rows
    assert (row.row, row.seed, row.identity) == ("D_up:1", 3, plan.rows[1].identity)
    assert row.config == plan.rows[1].config
    assert (again.name, again.key) == ("tiny", f"rerun-{request.rerun}")
    assert "--rerun" in again.command
    # From now on the storage knows it: no store is asked.
    lost = SweepRequest("", rerun=request.rerun, storage=request.storage, tracking_uri="sqlite:////nowhere/mlflow.db")
    with pytest.raises(InputError, match="no folder /nowhere"):
        make_plan(lost)
    read = make_plan(SweepRequest("", rerun=f"runs:/{request.rerun}/model", storage=request.storage), "read")
    assert read.rows[0].identity == row.identity


def test_in_the_same_storage_a_finished_training_is_reused(tracked):
    plan, storage = tracked
    again = make_plan(request_of(plan, storage))
    assert Ledger(storage).exists(again.rows[0].identity)


def test_a_dry_run_makes_nothing(tracked, tmp_path, capsys):
    plan, _ = tracked
    request = request_of(plan, tmp_path / "elsewhere")
    words = ["--rerun", request.rerun, "--tracking-uri", plan.tracking_uri, "--storage", request.storage]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["identity"] == plan.rows[1].identity
    assert not (tmp_path / "elsewhere").exists()


def test_other_sources_are_told(tracked, tmp_path, monkeypatch):
    plan, storage = tracked
    monkeypatch.setattr(identities, "sources_digest", lambda: "edited")
    known = identities._source_digests()
    monkeypatch.setattr(identities, "_source_digests", lambda: known | {"losses.py": "edited"})
    here = make_plan(request_of(plan, storage))
    with pytest.raises(InputError, match=r"trained before the code .* was changed \(losses.py\); --accept-code-change"):
        refuse_other_code(here)
    with pytest.raises(InputError, match=r"by other code than the present.*\(losses.py\); --fresh trains"):
        make_plan(request_of(plan, tmp_path / "elsewhere"))
    assert make_plan(request_of(plan, tmp_path / "elsewhere", other_code="anew")).rows[0].config.seed == 3


def test_other_images_are_told(tracked, tmp_path):
    plan, _ = tracked
    other = write_data(tmp_path / "other", classes=("cat", "horse"))
    with pytest.raises(InputError, match=r"in .*/other are not those of the run"):
        make_plan(request_of(plan, tmp_path / "elsewhere", set=(f"data.root={other}",)))
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = make_plan(request_of(plan, tmp_path / "elsewhere", set=(f"data.root={tmp_path / 'moved'}",)))
    assert moved.rows[0].identity == plan.rows[1].identity


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"set": ("model.assigner.topk=3",)}, "--set model.assigner.topk changes what decides the weights"),
        ({"profile": "laptop"}, "--profile selects within a sweep file"),
        ({"seeds": (1,)}, "--seeds selects within a sweep file"),
        ({"only": ("x",)}, "--only selects within a sweep file"),
    ],
)
def test_what_would_change_it_is_refused(tracked, tmp_path, options, said):
    plan, _ = tracked
    with pytest.raises(InputError, match=said):
        make_plan(request_of(plan, tmp_path / "elsewhere", **options))


def test_what_is_no_run_of_a_row_is_refused(tracked, tmp_path):
    plan, storage = tracked
    place = {"storage": str(tmp_path / "elsewhere"), "tracking_uri": plan.tracking_uri}
    with pytest.raises(InputError, match=r'--rerun is "best", but an MLflow run.s id has 32'):
        make_plan(SweepRequest("", rerun="best", **place))
    with pytest.raises(InputError, match=r"there is no run 0{32} in .*mlflow.db; name its store by --tracking-uri"):
        make_plan(SweepRequest("", rerun="0" * 32, **place))
    parent = Ledger(storage).parent_run_id(plan.key)
    with pytest.raises(InputError, match="is not one of a row and seed"):
        make_plan(SweepRequest("", rerun=parent, **place))
    assert main(["x.yaml", "--rerun", "0" * 32]) == 2


def test_a_stored_plug_in_is_never_executed(tracked, tmp_path):
    plan, _ = tracked
    request = request_of(plan, tmp_path / "elsewhere")
    client = MlflowClient(plan.tracking_uri)
    config = plan.rows[1].config.model_dump(mode="json")
    source = "raise SystemExit('executed')\nASSIGNERS = {'mine': 1}\n"
    config["plugins"] = [{"file": "mine.py", "source": source, "name": "mine", "provides": ["assigner"]}]
    client.log_dict(request.rerun, config, "config.json")
    with pytest.raises(InputError, match=r"uses a plug-in .mine.py., and no stored code is executed"):
        make_plan(request)


@pytest.mark.parametrize(
    "uri",
    ["http://me:hunter2@127.0.0.1:9", "http://me:hun/ter@hunter2@127.0.0.1:9", "http://127.0.0.1:9?password=hunter2"],
)
def test_a_password_is_never_shown(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    request = SweepRequest("sweeps/table3.yaml", storage=str(tmp_path), tracking_uri=uri)
    assert "hunter2" not in command_line("sweep", request)
    again = SweepRequest("", rerun="0" * 32, storage=str(tmp_path / "elsewhere"), tracking_uri=uri)
    with pytest.raises((InputError, UnreachableError)) as caught:
        make_plan(again)
    assert "hunter2" not in str(caught.value)
    assert "ter@" not in str(caught.value)
