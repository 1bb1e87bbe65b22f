"""The sweep and report commands: exit statuses, one line of JSON, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detector.data import synthetic
from detector.errors import UnreachableError
from orchestrator import session
from orchestrator.lease import SweepHeldError
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report.__main__ import main as report_main
from orchestrator.session import SweepOutcome
from orchestrator.status import main as status_main
from orchestrator.sweep import main
from orchestrator.sync import main as sync_main

HEAVY = ("torch", "torchvision", "ray", "mlflow", "pandas")


def run(*words: str) -> tuple[int, str, str]:
    """The command in a process of its own, which ends by naming the heavy modules that it imported."""
    code = (
        "import sys; from orchestrator.sweep import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code or 0\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ.copy())
    return done.returncode, done.stdout, done.stderr


def finish(plan: Plan, **outcome: Any) -> SweepOutcome:
    """What a session does to the ledger, without training."""
    ledger = Ledger(plan.storage)
    for identity, config in plan.trainings.items():
        row = next(row for row in plan.rows if row.identity == identity)
        claimed = {"sweep": plan.key, "row": row.row, "seed": row.seed, "iterations": config.schedule.max_iterations}
        ledger.claim(identity, config=config.model_dump(mode="json"), basis=row.basis, **claimed)
        ledger.started(identity, node="here", from_step=0, hardware={})
        ledger.evaluated(identity, row.evaluation, plan.storage, {"AP": 10.0 + len(row.row), "AP50": None}, {})
        ledger.finished(identity, plan.storage, {})
        ledger.remember_run(plan.key, f"run-of-{row.row}", row.row, row.seed)
    return SweepOutcome(**{"status": "complete", **outcome})


def test_help_and_dry_run_import_nothing_heavy(table: Path) -> None:
    status, out, err = run("--help")
    assert (status, err.strip()) == (0, "heavy:")
    for option in ("--profile", "--set", "--dry-run", "--only", "--seeds", "--storage", "--tracking-uri", "--address",
                   "--max-concurrent", "--max-gpu-hours", "--wait-for-nodes", "--fresh", "--accept-code-change",
                   "--json"):  # fmt: skip
        assert option in out
    status, out, err = run(str(table), "--dry-run")
    assert (status, err.strip()) == (0, "heavy:")
    assert "2 rows and seeds, 2 distinct trainings, 0 of them done; left: 200 iterations, 800 images" in out
    assert "1 worker, 1 CPU" in out
    assert "model.assigner.predicted_weight=up" in out


def test_a_dry_run_tells_rows_of_several_bases_apart(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweeps/table4.yaml", "--profile", "laptop", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for name, base in (("GFLV2 + CIoUs", "gflv2_r50_2x (gflv2)"), ("VFNet + CIoUs", "vfnet_r50_2x (vfnet)")):
        (row,) = (line for line in lines if line.startswith(name))
        assert row.endswith(f"  {base}, model.assigner.predicted_weight=1")
    start = next(number for number, line in enumerate(lines) if line.startswith("bases "))
    end = next(number for number, line in enumerate(lines) if line.startswith("storage "))
    first, _, second = " ".join(" ".join(lines[start:end]).split()).partition(" vfnet_r50_2x: ")
    assert first.startswith("bases gflv2_r50_2x: ")
    for head, warmup, text in (("gflv2", "0.001", first), ("vfnet", "0.1", second)):
        assert f"model.head.name={head}," in text
        assert f"schedule.warmup_factor={warmup}," in text
        assert "model.backbone" not in text, "the profile gives all rows the same"
        assert "predicted_weight" not in text, "rows say it themselves"


def test_a_dry_run_of_one_base_doesn_t_name_it(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(table), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "  new    model.assigner.predicted_weight=1\n" in out
    assert "bases" not in out


def test_json_of_a_dry_run_stands_alone_on_standard_output(table: Path) -> None:
    status, out, err = run(str(table), "--dry-run", "--json", "--seeds", "0,1", "--only", "1:1")
    assert (status, err.strip(), out.count("\n")) == (0, "heavy:", 1)
    document = json.loads(out)
    assert (document["sweep"], document["status"], document["trainings"]) == ("tiny", "dry_run", 2)
    assert [(row["row"], row["seed"], row["state"]) for row in document["rows"]] == [
        ("1:1", 0, "pending"), ("1:1", 1, "pending"),
    ]  # fmt: skip
    assert set(document["rows"][0]) == {
        "row", "seed", "identity", "state", "run_id", "reused_from", "step", "metrics", "error",
    }  # fmt: skip
    assert set(document) == {"sweep", "status", "rows", "report", "error", "trainings"}


@pytest.mark.parametrize(
    ("words", "status", "kind", "sentence"),
    [
        (["--profile", "lapptop"], 2, "refused", "lapptop"),
        (["--only", "1;1"], 2, "refused", '"1:1"'),
        (["--set", "model.norn=gn"], 2, "refused", '"model.norm"'),
        (["--set", "data.root=/nowhere"], 2, "refused", "--profile laptop"),
        (["--seeds", "x"], 2, "refused", "--seeds"),
        (["--max-concurrent", "0"], 2, "refused", "--max-concurrent"),
        (["--max-gpu-hours", "0"], 2, "refused", "--max-gpu-hours"),
        (["--wait-for-nodes", "inf"], 2, "refused", "--wait-for-nodes"),
        (["--bogus"], 2, "refused", "--bogus"),
        (["--storage", "s3://x"], 2, "refused", "--storage"),
        (["--seeds", "99999999999"], 2, "refused", "--seeds"),
        (
            ["--tracking-uri", "htp://me:secret@x"],
            2,
            "refused",
            "is htp://x, but MLflow has no store for htp://; did you",
        ),
        (["--tracking-uri", "sqlite:////no/such/x.db"], 2, "refused", "there is no folder /no/such;"),
        (["--storage", "/dev/null/x"], 4, "unreachable", "/dev/null/x"),
    ],
)
def test_errors_are_one_sentence_also_as_json(
    table: Path, words: list[str], status: int, kind: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table), *words]) == status
    plain = capfd.readouterr()
    assert plain.out == ""
    assert plain.err.startswith("error: ")
    assert plain.err.count("\n") == 1
    assert sentence in plain.err
    assert main([str(table), *words, "--json"]) == status
    out, err = capfd.readouterr()
    assert err == plain.err
    assert out.count("\n") == 1
    document = json.loads(out)
    assert (document["status"], document["rows"]) == (kind, [])
    assert f"error: {document['error']}\n" == err


def test_no_sweep_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "SWEEP" in capfd.readouterr().err


def test_a_complete_sweep_ends_with_the_table_and_the_lines_that_open_things(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_sweep", lambda plan, **_: finish(plan))
    assert main([str(table)]) == 0
    out, err = capfd.readouterr()
    storage = table.parent / "storage"
    assert err == ""
    assert "16.00" in out  # D_up:1 has six letters
    assert f"mlflow ui --backend-store-uri sqlite:///{storage}/mlflow.db" in out
    assert (storage / "sweeps" / "tiny" / "report.html").as_uri() in out
    assert 'detector.load("runs:/run-of-D_up:1/model")' in out


def test_a_store_that_is_not_found_by_itself_is_named_in_the_load_line(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_sweep", lambda plan, **_: finish(plan))
    elsewhere = tmp_path / "elsewhere"
    assert main([str(table), "--storage", str(elsewhere)]) == 0
    out = capfd.readouterr().out
    assert f'detector.load("runs:/run-of-D_up:1/model", tracking_uri="sqlite:///{elsewhere}/mlflow.db")' in out
    assert main([str(table), "--tracking-uri", "http://me:secret@127.0.0.1:5000"]) == 0
    out = capfd.readouterr().out
    assert "secret" not in out
    assert "python -m webbrowser http://127.0.0.1:5000" in out


def test_output_of_libraries_does_not_reach_the_json(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(plan: Plan, **_: object) -> SweepOutcome:
        print("from Python")
        os.write(1, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)
        return finish(plan)

    monkeypatch.setattr(session, "run_sweep", noisy)
    assert main([str(table), "--json"]) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert out.count("\n") == 1
    assert (document["status"], document["report"]) == (
        "complete", str(table.parent / "storage" / "sweeps" / "tiny" / "report.html"),
    )  # fmt: skip
    assert document["rows"][0]["metrics"] == {"AP": 13.0, "AP50": None}
    assert {"from Python", "from C", "from a child"} <= set(err.splitlines())


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (SweepOutcome("partial", "1 of 2 rows failed (1:1)", 3), 3),
        (SweepOutcome("interrupted", "interrupted", 130), 130),
        (SweepOutcome("interrupted", "interrupted", 143), 143),
        (SweepOutcome("unreachable", "no cluster", 4), 4),
        (UnreachableError("no cluster"), 4),
        (SweepHeldError("another driver"), 5),
    ],
)
def test_what_a_session_says_becomes_the_exit_status(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], outcome: Any, status: int
) -> None:
    def session_ends(plan: Plan, **_: object) -> SweepOutcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(session, "run_sweep", session_ends)
    assert main([str(table), "--json"]) == status
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert err == f"error: {document['error']}\n"
    if isinstance(outcome, SweepOutcome):
        assert document["status"] == outcome.status
        assert len(document["rows"]) == 2


def test_options_reach_the_session(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(session, "run_sweep", lambda plan, **options: seen.update(options) or finish(plan))
    assert main([str(table), "--address", "ray://x", "--max-concurrent", "3", "--fresh", "--json"]) == 0
    assert seen == {
        "address": "ray://x",
        "max_concurrent": 3,
        "fresh": True,
        "quiet_json": True,
        "max_gpu_hours": None,
        "wait_for_nodes_s": None,
    }
    assert main([str(table), "--max-gpu-hours", "2.5", "--wait-for-nodes", "3"]) == 0
    assert (seen["max_gpu_hours"], seen["wait_for_nodes_s"]) == (2.5, 180.0)


def test_a_dry_run_knows_what_is_done(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_sweep", lambda plan, **_: finish(plan))
    assert main([str(table), "--only", "1:1"]) == 0
    capfd.readouterr()
    assert main([str(table), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "2 distinct trainings, 1 of them done; left: 100 iterations, 400 images" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith(("1:1", "D_up:1"))}
    assert " done " in lines["1:1"]
    assert " new " in lines["D_up:1"]


def test_a_finished_training_that_is_asked_for_another_evaluation_is_only_evaluated(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_sweep", lambda plan, **_: finish(plan))
    assert main([str(table)]) == 0
    words = [str(table), "--set", "model.postprocess.nms_iou=0.5", "--dry-run"]
    capfd.readouterr()
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "2 distinct trainings, 2 of them done; left: 0 iterations, 0 images, 2 evaluations of what is done" in out
    assert [" evaluate" in line for line in out.splitlines() if line.startswith(("1:1", "D_up:1"))] == [True, True]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [(row["state"], row["metrics"]) for row in rows] == [("pending", {})] * 2


def test_the_report_command_means_the_same_sweep(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_sweep", lambda plan, **_: finish(plan))
    assert main([str(table), "--set", "schedule.iterations=7"]) == 0
    capfd.readouterr()
    assert report_main([str(table), "--set", "schedule.iterations=7", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["status"] == "complete"
    assert Path(document["report"]).is_file()
    assert document["sweep"].startswith("tiny+")
    (table.parent / "storage" / "sweeps" / "tiny").mkdir()
    assert report_main([str(table)]) == 0
    out = capfd.readouterr().out
    assert "2 of 2 rows are not finished" in out
    assert "report.html" in out


GENERATED = ("--set", "data.generated.train_images=2", "--set", "data.generated.val_images=1")


@pytest.mark.parametrize("command", [status_main, report_main, sync_main])
@pytest.mark.parametrize("more", [(), GENERATED])
def test_what_reads_a_sweep_makes_nothing_where_there_is_none(
    table: Path, capfd: pytest.CaptureFixture[str], command: Any, more: tuple[str, ...]
) -> None:
    before = sorted(table.parent.rglob("*"))
    assert command([str(table), *more]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f'error: the storage {table.parent / "storage"} has no sweep "tiny')
    assert err.count("\n") == 1
    assert f"`python -m orchestrator.sweep {table}" in err
    assert sorted(table.parent.rglob("*")) == before


def test_a_dry_run_on_a_new_storage_makes_nothing_and_says_what_would_be_drawn(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(table.parent.rglob("*"))
    assert main([str(table), *GENERATED, "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert [line.split()[2:6] for line in out.splitlines() if line.startswith(("1:1", "D_up:1"))] == [
        ["not", "drawn", "yet", "new"]
    ] * 2
    assert "2 images of train, 1 of val, 4 classes" in out
    assert "the sweep draws them first" in out
    assert main([str(table), *GENERATED, "--dry-run", "--json"]) == 0
    assert [row["identity"] for row in json.loads(capfd.readouterr().out)["rows"]] == [None, None]
    assert sorted(table.parent.rglob("*")) == before


def test_being_ended_while_images_are_drawn_is_an_interruption(
    table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "draw_image", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    # As in a command that was just started: a library may have left a handler of its own in this process.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main([str(table), *GENERATED, "--json"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    document = json.loads(capfd.readouterr().out)
    assert (document["status"], document["error"]) == (
        "interrupted",
        "interrupted by SIGTERM; run the same command again",
    )
    assert list((table.parent / "storage" / "data").iterdir()) == []
