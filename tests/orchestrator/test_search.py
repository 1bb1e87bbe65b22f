"""A search from its first sample to the verdict on its winner, on a stand-in for Tune and a real ledger.

The samples' AP is a function of their values with one highest point, so it is known what must win and what is stopped.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

import orchestrator.search
from detector.errors import InputError, UnreachableError
from orchestrator import outage
from orchestrator.comparison import compare
from orchestrator.departures import other_than_paper
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.live_table import read_lines
from orchestrator.plan import Plan
from orchestrator.samples import read_samples
from orchestrator.session import SweepOutcome
from orchestrator.sweep import main
from tests.orchestrator.searches import SEARCH, Tuned, height, plan_of, rows_of, search, write_search


@pytest.fixture
def folder(search_folder: Path) -> Path:
    return search_folder


def test_the_best_sample_is_trained_anew_and_judged_on_images_the_search_did_not_see(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuned(monkeypatch, height)
    plan, outcome = search(folder)
    assert outcome == SweepOutcome("complete")
    assert plan.search is not None
    assert plan.search.winner is not None
    ledger = Ledger(plan.storage)
    found = {row.row: ledger.record(row.identity, row.evaluations) for row in plan.search.samples}
    assert len(found) == 12
    trained = {row: record.metrics["AP"] for row, record in found.items() if record.trained}
    assert plan.search.winner.row == max(trained, key=lambda row: trained[row] or 0.0)
    assert 0 < len(trained) < 12, "some were stopped"
    title = f"winner: {plan.search.winner.row}"
    assert plan.row_names == ("plain", "both", title)
    assert {row.seed for row in plan.rows} == {0, 1, 2}
    assert {row.seed for row in plan.search.samples} == {7}
    seen = {row.config.data.val for row in plan.search.samples}
    unseen = {row.config.data.val for row in plan.rows}
    assert (seen, unseen) == ({"val-search"}, {"val-judge"})
    assert plan.compare == ((title, "both"),)
    # The paper's figures would be of all images.
    assert all("data.val" in other_than_paper(row) for row in plan.rows)
    (pair,) = compare(plan, ledger).pairs
    assert pair.judgement is not None
    assert pair.judgement.difference == pytest.approx(
        height({**values_of(plan), "seed": 0}) - height({"weight": 1, "topk": 9, "seed": 0})
    )
    assert pair.judgement.n == 3


def values_of(plan: Plan) -> dict[str, Any]:
    assert plan.search is not None
    assert plan.search.winner is not None
    assigner = plan.search.winner.config.model.assigner
    return {"weight": assigner.predicted_weight, "topk": assigner.topk}


def test_a_stopped_sample_is_no_failure_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tuned(monkeypatch, height, tracked=True)
    plan, _ = search(folder)
    assert plan.search is not None
    ledger = Ledger(plan.storage)
    records = [ledger.record(row.identity, row.evaluations) for row in plan.search.samples]
    stopped = [index for index, record in enumerate(records) if record.stopped]
    assert stopped
    rows = rows_of(plan)
    lines = {line.row: line for line in read_lines(plan.whole.rows, ledger)}
    client = MlflowClient(tracking_uri=plan.tracking_uri)
    for index in stopped:
        row, record = plan.search.samples[index], records[index]
        assert record.state == "pending", "for others its training can be continued"
        assert record.holder is None
        assert record.stopped is not None
        assert record.stopped["step"] == record.step < 100
        entry = rows[row.row, 7]
        assert entry["state"] == "finished"
        assert entry["stopped"] == {"by": "asha", "step": record.step}
        assert entry["metrics"]["AP"] == pytest.approx(height(sample_values(row)) * record.step / 100)
        assert lines[row.row].state == "stopped"
        run = client.get_run(entry["run_id"])
        assert run.info.status == "KILLED"
        assert run.data.tags["stopped_early"] == f"asha at step {record.step}"
    assert all(entry["state"] == "finished" for entry in rows.values())
    parents = [run for run in client.search_runs(["1"]) if run.data.tags["kind"] == "sweep"]
    assert [run.info.status for run in parents] == ["FINISHED"]


def sample_values(row: Any) -> dict[str, Any]:
    assigner = row.config.model.assigner
    return {"weight": assigner.predicted_weight, "topk": assigner.topk, "seed": row.seed}


def test_what_is_stopped_is_what_successive_halving_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Li et al., 2020: at a rung a figure below the best third of those that were there before ends the training."""
    tuned = Tuned(monkeypatch, height)
    plan, _ = search(folder)
    assert plan.search is not None
    ends = {identity: last for identity, _, last in tuned.trained}
    rungs: dict[int, list[float]] = {10: [], 30: [], 90: []}
    for row in plan.search.samples:
        top, expected = height(sample_values(row)), 100
        for step, before in rungs.items():
            value = top * step / 100
            stop = bool(before) and value < np.percentile(before, 100 * (1 - 1 / 3))
            before.append(value)
            if stop:
                expected = step
                break
        assert ends[row.identity] == expected, row.row


def test_the_same_command_goes_on_with_what_was_interrupted_and_draws_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Tuned(monkeypatch, height)
    tuned.until = 5
    _, outcome = search(folder)
    assert outcome.exit_status == 4, "as where the cluster breaks off"
    first = plan_of(folder)
    assert first.search is not None
    assert [row.row for row in first.search.samples] == [row.row for row in plan_of(folder, "read").search.samples]  # type: ignore[union-attr]
    assert len(first.search.samples) == 5
    # As if the driver had been killed in the middle of the last one.
    half = first.search.samples[-1]
    status = Ledger(first.storage).training(half.identity) / "status.json"
    document = json.loads(status.read_text())
    if document["state"] == "finished":
        document.update(state="running", holder="hunt")
        document.pop("evaluations")
        status.write_text(json.dumps(document))
    tuned.until = 1000
    plan, outcome = search(folder)
    assert outcome == SweepOutcome("complete")
    assert plan.search is not None
    assert [row.row for row in plan.search.samples[:5]] == [row.row for row in first.search.samples]
    assert len(plan.search.samples) == 12
    assert len({row.row for row in plan.search.samples}) == 12, "the sampler doesn't begin anew"
    begun = [identity for identity, _, _ in tuned.trained]
    assert {identity for identity in begun if begun.count(identity) > 1} <= {half.identity}
    trained = len(tuned.trained)
    assert search(folder)[1] == SweepOutcome("complete")
    assert len(tuned.trained) == trained, "and again it trains nothing"


def test_the_sampler_is_told_what_earlier_runs_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import sampling

    tuned = Tuned(monkeypatch, height)
    tuned.until = 6
    search(folder)
    tuned.until = 1000
    seen: list[Any] = []
    real = sampling.Sampler.__init__

    def spy(self: Any, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        seen.append([(trial.state.name, dict(trial.params), trial.value) for trial in self._ot_study.trials])

    monkeypatch.setattr(sampling.Sampler, "__init__", spy)
    plan, _ = search(folder)
    assert plan.search is not None
    (told,) = seen
    assert len(told) == 6
    ledger = Ledger(plan.storage)
    for (state, params, value), row in zip(told, plan.search.samples, strict=False):
        record = ledger.record(row.identity, row.evaluations)
        assert params == {key: row.differences[key] for key in plan.search.spec.parameters}
        assert state == ("COMPLETE" if record.trained else "PRUNED")
        assert value == pytest.approx(record.metrics["AP"] if record.trained else record.stopped["value"])  # type: ignore[index]


def test_the_same_seed_draws_the_same_samples_and_finds_better_ones(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuned(monkeypatch, height)
    text = SEARCH.replace("samples: 12", "samples: 40")
    write_search(folder, text)
    plan, _ = search(folder)
    other = tmp_path_factory.mktemp("again")
    shutil.copytree(folder / "data", other / "data")
    write_search(other, text)
    again, _ = search(other)
    assert plan.search is not None
    assert again.search is not None
    assert [row.row for row in plan.search.samples] == [row.row for row in again.search.samples]
    tops = [height(sample_values(row)) for row in plan.search.samples]
    assert np.mean(tops[20:]) > np.mean(tops[:10]), "TPE draws where it was good"
    # Random search would come as near to 1.5 in one of 40 with a probability of about 0.98: a bound, no claim.
    assert abs(values_of(plan)["weight"] - 1.5) < 0.25


def test_more_samples_reopen_the_search_and_another_space_begins_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Tuned(monkeypatch, height)
    first, _ = search(folder)
    write_search(folder, SEARCH.replace("samples: 12", "samples: 15"))
    plan = plan_of(folder)
    assert plan.search is not None
    assert plan.search.winner is None
    more, outcome = search(folder)
    assert outcome == SweepOutcome("complete")
    assert more.search is not None
    assert first.search is not None
    assert more.search.samples[:12] == first.search.samples
    assert len(more.search.samples) == 15
    write_search(folder, SEARCH.replace("uniform: [0, 2]", "uniform: [0, 1]"))
    narrow = plan_of(folder)
    assert narrow.search is not None
    assert narrow.search.samples == ()
    trained = len(tuned.trained)
    narrow, _ = search(folder)
    assert values_of(narrow)["weight"] <= 1
    # The rows of the file are trained already.
    assert len(tuned.trained) == trained + 12 + 3


def test_a_failed_sample_is_said_and_the_best_of_the_others_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(monkeypatch, height)
    tuned.failing = {2}
    plan, outcome = search(folder)
    assert (outcome.status, outcome.exit_status) == ("partial", 3)
    assert "1 samples of the search failed" in str(outcome.error)
    assert plan.search is not None
    assert plan.search.winner is not None
    failed = plan.search.samples[1]
    assert rows_of(plan)[failed.row, 7]["error"] == "it diverged"
    assert failed.row not in plan.row_names


def test_a_storage_that_is_away_for_a_moment_is_waited_for_while_samples_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "PAUSE_S", 0.001)
    refused: list[str] = []

    def flicker(owner: Any, name: str) -> None:
        real, calls = getattr(owner, name), itertools.count()

        def every_other(*given: Any, **named: Any) -> Any:
            if threading.current_thread().name == "tune" and next(calls) % 2 == 0:
                refused.append(name)
                raise UnreachableError("503")
            return real(*given, **named)

        monkeypatch.setattr(owner, name, every_other)

    for owner, name in (
        (orchestrator.search, "add_sample"),
        (orchestrator.search, "mark_stopped"),
        (orchestrator.search._SearchPass, "_claimed_now"),
        (orchestrator.search._SearchPass, "_value"),
    ):
        flicker(owner, name)
    Tuned(monkeypatch, height)
    plan, outcome = search(folder)
    assert outcome == SweepOutcome("complete")
    assert plan.search is not None
    assert len(plan.search.samples) == 12
    assert set(refused) == {"add_sample", "mark_stopped", "_claimed_now", "_value"}


def test_a_sample_whose_answer_was_lost_is_written_down_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSE_S", 0.001)
    write, lost = orchestrator.search.add_sample, itertools.count()

    def answer_lost(*given: Any) -> Any:
        found = write(*given)
        if next(lost) in (3, 7):
            raise UnreachableError("503")
        return found

    monkeypatch.setattr(orchestrator.search, "add_sample", answer_lost)
    Tuned(monkeypatch, height)
    plan, outcome = search(folder)
    assert outcome == SweepOutcome("complete")
    assert plan.search is not None
    assert plan.search.winner is not None
    known = read_samples(Ledger(plan.storage), plan.key, plan.search.key).samples
    assert [sample.number for sample in known] == list(range(12))
    figures = [Ledger(plan.storage).record(row.identity, row.evaluations).metrics for row in plan.search.samples]
    best = max(plan.search.samples, key=lambda row: figures[plan.search.samples.index(row)].get("AP") or 0.0)
    assert plan.search.winner.row == best.row


def test_fresh_begins_the_search_anew_and_keeps_what_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(monkeypatch, height)
    first, _ = search(folder)
    again, outcome = search(folder, fresh=True)
    assert outcome == SweepOutcome("complete")
    assert first.search is not None
    assert again.search is not None
    assert len(tuned.trained) == 2 * (12 + 9)
    assert all(begin == 0 for _, begin, _ in tuned.trained)
    document = json.loads((first.folder / "search.json").read_text())
    assert len(document["searches"]) == 2
    # 12 samples, and 3 seeds of three rows; the samples of the same values were moved out of the way first.
    assert len(list((first.storage / "replaced").iterdir())) == 12 + 9


def test_samples_by_other_code_are_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(monkeypatch, height)
    tuned.until = 3
    search(folder)
    path = plan_of(folder).folder / "search.json"
    path.write_text(path.read_text().replace('"sources": "', '"sources": "0'))
    with pytest.raises(InputError, match=r"3 samples of the search were trained before the code .* was changed"):
        plan_of(folder)
    assert plan_of(folder, "read").search is not None
    tuned.until = 1000
    accepted, outcome = search(folder, other_code="accept")
    assert outcome == SweepOutcome("complete")
    assert plan_of(folder).search == accepted.search


def test_without_optuna_the_command_to_install_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(folder / "hunt.yaml"), "--storage", str(folder / "storage")]) == 2
    assert "pip install 'detsweep[search]'" in capfd.readouterr().err
    assert not plan_of(folder, "describe").folder.exists()


def test_planning_a_search_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from orchestrator.sweep import main\n"
        f"main([{str(folder / 'hunt.yaml')!r}, '--storage', {str(folder / 'storage')!r}, '--dry-run'])\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'optuna') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_samples_are_read_as_they_were_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tuned(monkeypatch, height)
    plan, _ = search(folder)
    assert plan.search is not None
    known = read_samples(Ledger(plan.storage), plan.key, plan.search.key)
    assert [one.number for one in known.samples] == list(range(12))
    for one, row in zip(known.samples, plan.search.samples, strict=True):
        assert row.row == ", ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in one.values.items())
        assert row.config.model.assigner.predicted_weight == one.values["model.assigner.predicted_weight"]
    assert replace(known, samples=()).winner == known.winner


def test_another_sweep_goes_on_with_a_training_that_a_search_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuned(monkeypatch, height)
    plan, _ = search(folder)
    assert plan.search is not None
    ledger = Ledger(plan.storage)
    row = next(row for row in plan.search.samples if ledger.record(row.identity).stopped)
    step = ledger.record(row.identity).step
    with Lease(ledger.place, "other") as lease:
        other = Ledger(plan.storage, lease.fence)
        assert other.claim(row.identity, sweep="other", row="mine", seed=7, config={}, iterations=100)
        other.started(row.identity, node="there", from_step=step, hardware={})
        record = ledger.record(row.identity)
        assert (record.state, record.step, record.over_for(plan.key)) == ("running", step, False)
        assert rows_of(plan)[row.row, 7]["state"] == "running"
        other.finished(row.identity, plan.storage / "results", {"loss": 0.5})
    record = ledger.record(row.identity)
    assert (record.trained, record.stopped) == (True, None)
    # The winner was chosen when the search was over, and stays.
    assert plan_of(folder).search.winner == plan.search.winner  # type: ignore[union-attr]


def test_tune_can_write_down_what_draws_and_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import cloudpickle

    written: list[bytes] = []
    tuned = Tuned(monkeypatch, height)
    real = tuned.search

    def spy(ledger: Any, running: Any, **options: Any) -> None:
        written.append(cloudpickle.dumps((options["search_alg"], options["scheduler"])))
        params = options["search_alg"].suggest("a trial of Tune's")
        written.append(cloudpickle.dumps(params))
        real(ledger, running, **options)

    monkeypatch.setattr(tuned, "search", spy)
    search(folder)
    assert len(written) == 2
    assert cloudpickle.loads(written[1])["identity"]
