"""The winner of a sweep becomes a model's version only where it is better on the same data. On a real sqlite."""

import json
import shutil
from dataclasses import replace

import pytest
from mlflow import MlflowClient

import detector
from detector.config import ModelConfig, TrainingConfig
from detector.errors import InputError
from orchestrator import registry
from orchestrator.dataset import SplitFacts
from orchestrator.ledger import Ledger
from orchestrator.report.table import make_table, notes
from orchestrator.spec import Register, load_spec
from tests.orchestrator.tables import TABLE, write_table
from tests.orchestrator.test_tracking import STEPS, begin, empty_database, make_plan, opened, storage, train  # noqa: F401

VAL = SplitFacts("/data", "val", "v" * 64, ((1, "cat"),), 10, 20)
MODEL = {"backbone": "r18", "weights": "none", "norm": "gn", "neck": {"channels": 64}, "head": {"convolutions": 1}}
MODEL["postprocess"] = {"score_threshold": 0.0}  # an untrained model believes in nothing


def registering(storage, rows, seeds=(0,), key="t", metric="AP", val=VAL):  # noqa: F811
    plan = make_plan(storage, rows, key=key, seeds=seeds)
    config = TrainingConfig(model=ModelConfig.model_validate({**MODEL, "num_classes": 1}))
    planned = [
        replace(row, val=val, config=config.model_copy(update={"seed": row.seed}), evaluation=f"val-{val.digest[:4]}")
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(planned), register=Register(name="detector", metric=metric))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A real model, so that what is registered can be loaded."""
    return detector.build({**MODEL, "num_classes": 1}).save(tmp_path_factory.mktemp("saved") / "model")


def finish(ledger, row, saved, **metrics):
    checkpoint = ledger.storage / "checkpoint" / row.identity
    shutil.copytree(saved, checkpoint / "model")
    ledger.finished(row.identity, checkpoint, {"loss": 1.0})
    results = ledger.storage / "results"
    results.mkdir(exist_ok=True)
    (results / "detections.json").write_text("[]")
    ledger.evaluated(row.identity, row.evaluation, results, metrics, {})
    ledger.release(row.identity)


def swept(plan, saved, *values):
    """The sweep with these AP, one a row and seed; the registered model's versions afterwards."""
    ledger = Ledger(plan.storage)
    for row, value in zip(plan.rows, values, strict=True):
        begin(ledger, plan, row)
        train(ledger, row, 0, 2)
        finish(ledger, row, saved, AP=value, AP50=value)
    return again(plan)


def again(plan):
    assert opened(plan, Ledger(plan.storage)).finish("FINISHED") is None
    client = MlflowClient(tracking_uri=plan.tracking_uri)
    versions = {int(v.version): v for v in client.search_model_versions("name = 'detector'")}
    best = client.get_registered_model("detector").aliases.get("best") if versions else None
    return versions, best and int(best)


def test_the_best_row_is_registered_once_and_loads_by_its_alias(storage, saved, monkeypatch):  # noqa: F811
    plan = registering(storage, {"a": "a", "b": "b"}, seeds=(0, 1))
    # The row b has the higher mean, the row a the highest single figure.
    versions, best = swept(plan, saved, 20.0, 31.0, 29.0, 30.0)
    assert set(versions) == {1}
    assert best == 1
    tags = versions[1].tags
    assert (tags["row"], tags["seed"], tags["AP"]) == ("b", "1", "30.0")
    assert versions[1].run_id == Ledger(storage).run_id("t", "b", 1)
    decided = registry.kept(plan)
    assert "mean AP 29.50 over 2 seeds on val (the highest of 2 rows)" in decided["sentence"]
    assert "nothing had the alias best" in decided["sentence"]
    assert any("version 1 with the alias best" in note for note in notes(plan, make_table(plan, Ledger(storage))))
    # The same command again, and one that died before it could keep what it had decided.
    assert set(again(plan)[0]) == {1}
    assert registry.kept(plan) == decided
    (plan.folder / "registered.json").unlink()
    assert set(again(plan)[0]) == {1}
    model = detector.load("models:/detector@best", tracking_uri=plan.tracking_uri)
    assert model.config.backbone == "r18"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", plan.tracking_uri)
    assert detector.load("models:/detector/1").config.num_classes == 1
    with pytest.raises(InputError, match="models:/detector@other was not found"):
        detector.load("models:/detector@other")


def test_a_holder_is_replaced_by_what_is_better_on_the_same_data_only(storage, saved):  # noqa: F811
    swept(registering(storage, {"a": "a"}), saved, 30.0)
    worse = registering(storage, {"worse": "w"}, key="two")
    assert swept(worse, saved, 29.0)[1] == 1
    assert registry.kept(worse)["sentence"].endswith(
        "was not registered: detector version 1, which has the alias best, has AP 30.00 on the same data"
    )
    better = registering(storage, {"better": "c"}, key="three")
    versions, best = swept(better, saved, 31.0)
    assert (set(versions), best) == ({1, 2}, 2)
    assert "it beats version 1 with AP 30.00 on the same data" in registry.kept(better)["sentence"]
    elsewhere = registering(storage, {"x": "d"}, key="four", val=replace(VAL, digest="w" * 64))
    versions, best = swept(elsewhere, saved, 90.0)
    assert (set(versions), best) == ({1, 2}, 2)
    assert "was measured on other data or at another size" in registry.kept(elsewhere)["sentence"]
    # The first sweep again: its model has lost the alias and is not better.
    versions, best = again(registering(storage, {"a": "a"}))
    assert (set(versions), best) == ({1, 2}, 2)


def test_a_version_that_no_sweep_registered_keeps_the_alias(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a"})
    tracker = opened(plan, Ledger(storage))
    tracker.client.create_registered_model("detector")
    tracker.client.create_model_version("detector", saved.as_uri())
    tracker.client.set_registered_model_alias("detector", "best", "1")
    assert swept(plan, saved, 99.0)[1] == 1
    assert "was not registered by a sweep with a figure of AP" in registry.kept(plan)["sentence"]


def test_rows_on_different_data_and_undefined_figures_rank_nothing(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a", "b": "b"})
    other = replace(plan.rows[1], val=replace(VAL, digest="w" * 64))
    plan = replace(plan, rows=(plan.rows[0], other))
    assert swept(plan, saved, 10.0, 20.0)[0] == {}
    assert "b and a are evaluated on different data" in registry.kept(plan)["sentence"]
    undefined = registering(storage, {"c": "c"}, key="u", metric="APs")
    assert swept(undefined, saved, 10.0)[0] == {}
    assert registry.kept(undefined)["sentence"] == "nothing was registered: no row has APs for all of its seeds"


def test_an_unfinished_sweep_registers_nothing(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a"})
    ledger = Ledger(storage)
    begin(ledger, plan, plan.rows[0])
    train(ledger, plan.rows[0], 0, STEPS - 1)
    assert opened(plan, ledger).finish("KILLED") is None
    assert registry.kept(plan) is None


def test_a_selection_of_rows_registers_nothing_and_takes_nothing_back(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a", "b": "b"})
    alone = replace(plan, rows=plan.rows[:1], left_out=("b",))
    assert swept(alone, saved, 20.0) == ({}, None)
    said = registry.kept(alone)["sentence"]
    assert said.startswith("nothing was registered: b is not finished, and the winner is chosen among all rows")
    ledger = Ledger(plan.storage)
    begin(ledger, plan, plan.rows[1])
    train(ledger, plan.rows[1], 0, 2)
    finish(ledger, plan.rows[1], saved, AP=30.0, AP50=30.0)
    versions, best = again(plan)
    assert (set(versions), best) == ({1}, 1)
    decided = registry.kept(plan)
    assert (decided["row"], decided["value"]) == ("b", 30.0)
    # With --only a the winner is still that of both, or none.
    for later in (replace(plan, rows=plan.rows[:1], wider=plan), alone):
        versions, best = again(later)
        assert (set(versions), best) == ({1}, 1)
        assert registry.kept(plan) == decided


def test_a_row_of_which_seeds_are_missing_registers_nothing(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a"})
    assert swept(replace(plan, partly=("b",)), saved, 20.0) == ({}, None)
    assert registry.kept(plan)["sentence"].startswith("nothing was registered: b is not finished")


def test_a_winner_that_the_store_has_no_run_of_is_not_registered_and_holds_nothing_up(storage, saved):  # noqa: F811
    plan = registering(storage, {"a": "a", "b": "b"})
    ledger = Ledger(storage)
    for row, value in zip(plan.rows, (20.0, 30.0), strict=True):
        begin(ledger, plan, row)
        train(ledger, row, 0, 2)
        finish(ledger, row, saved, AP=value, AP50=value)
    selected = replace(plan, rows=plan.rows[:1], wider=plan)
    assert again(selected) == ({}, None)
    assert "this tracking server has no run of it; orchestrator.sync brings it" in registry.kept(plan)["sentence"]
    versions, best = again(plan)
    assert (set(versions), best) == ({1}, 1)
    assert versions[1].tags["row"] == "b"


@pytest.mark.parametrize("name", ["a/b", "models:x", "best@1", " ", "x" * 300, "<b>", "../x"])
def test_a_name_that_models_cant_have_is_refused_at_its_line(tmp_path, name):
    path = write_table(tmp_path, TABLE + f"register: {{name: {json.dumps(name)}}}\n")
    with pytest.raises(InputError, match=r"tiny\.yaml, line 15.*register\.name"):
        load_spec(str(path))


def test_a_metric_that_doesnt_exist_is_refused(tmp_path):
    path = write_table(tmp_path, TABLE + "register: {name: ours, metric: mAP}\n")
    with pytest.raises(InputError, match=r"line 15.*metric"):
        load_spec(str(path))
    assert load_spec(str(write_table(tmp_path, TABLE + "register: {name: ours}\n"))).register == Register(name="ours")
