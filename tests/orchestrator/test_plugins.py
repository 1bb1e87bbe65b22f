"""Plug-ins of a sweep: confined to the working directory, part of the identity, shown, and shipped as text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detector.errors import InputError
from orchestrator.dry_run import describe
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, make_plan
from orchestrator.report import write_report
from orchestrator.request import SweepRequest
from orchestrator.session import Limits, Pass
from orchestrator.sweep import closing_lines, try_plugins
from orchestrator.worker import Assignment
from tests.detector.test_plugins import ASSIGNER, HEAD
from tests.orchestrator.tables import BASE, MemoryLedger, write_data, write_table

TABLE = """\
name: tiny
title: A tiny table
base: small
plugins: [middle.py]
rows:
  - {name: ATSS}
  - {name: Middle, set: {model.assigner.name: middle, model.assigner.options: {share: 0.5}}}
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table in the working directory with its plug-in beside it."""
    for name in ("DETSWEEP_STORAGE", "DETSWEEP_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write_data(tmp_path / "data")
    (work / "middle.py").write_text(ASSIGNER)
    return write_table(work, TABLE, base=BASE + f"data.root: {tmp_path / 'data'}\n")


def plan_of(table: Path, *sets: str, purpose: str = "run") -> Plan:
    request = SweepRequest(str(table), set=sets, storage=str(table.parent.parent / "storage"))
    return make_plan(request, purpose)  # type: ignore[arg-type]


def identities(table: Path, *sets: str) -> dict[str, str]:
    return {row.row: row.identity for row in plan_of(table, *sets).rows}


def refusal(table: Path, old: str, new: str) -> str:
    assert old in TABLE
    table.write_text(TABLE.replace(old, new))
    with pytest.raises(InputError) as refused:
        plan_of(table)
    return str(refused.value)


def test_a_row_carries_the_plugins_that_it_uses_and_no_others(table: Path) -> None:
    plan = plan_of(table)
    assert [[plugin.name for plugin in row.config.plugins] for row in plan.rows] == [[], ["middle"]]
    assert plan.rows[1].config.plugins[0].source == ASSIGNER
    assert plan.rows[1].differences["model.assigner.options"] == {"share": 0.5}


def test_the_identity_changes_with_its_meaning_and_only_of_rows_that_use_it(table: Path) -> None:
    before = identities(table)
    (table.parent / "middle.py").write_text("# A comment.\n" + ASSIGNER.replace("\n\n\n", "\n\n"))
    assert identities(table) == before
    (table.parent / "middle.py").write_text(ASSIGNER.replace(".amin(-1) > 0", ".amin(-1) > 1"))
    after = identities(table)
    assert after["ATSS"] == before["ATSS"]
    assert after["Middle"] != before["Middle"]
    (table.parent / "middle.py").write_text(ASSIGNER)
    assert identities(table) == before
    table.write_text(TABLE.replace("plugins: [middle.py]\n", "").split("  - {name: Middle")[0])
    assert identities(table) == {"ATSS": before["ATSS"]}


def test_options_have_keys_of_their_own(table: Path) -> None:
    table.write_text(TABLE.split("rows:")[0] + "grid: {model.assigner.options.share: [0.25, 0.75]}\n")
    assert "model.assigner.options are for plug-ins" in refusal_of(table)
    plan = plan_of(table, "model.assigner.name=middle")
    assert [row.row for row in plan.rows] == ["share=0.25", "share=0.75"]
    assert [row.config.model.assigner.options for row in plan.rows] == [{"share": 0.25}, {"share": 0.75}]
    assert len({row.identity for row in plan.rows}) == 2
    table.write_text(TABLE)
    plan = plan_of(table, "model.assigner.name=middle", "model.assigner.options.more=[1, x]")
    assert [row.config.model.assigner.options for row in plan.rows] == [
        {"more": [1, "x"]},
        {"share": 0.5, "more": [1, "x"]},
    ]
    for wrong in ("model.assigner.options.", "model.assigner.options.a.b=1", "plugins=[x.py]"):
        with pytest.raises(InputError, match=r"unknown key|KEY=VALUE"):
            plan_of(table, wrong)


def refusal_of(table: Path) -> str:
    with pytest.raises(InputError) as refused:
        plan_of(table)
    return str(refused.value)


def test_files_outside_the_working_directory_are_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(ASSIGNER)
    (table.parent / "link.py").symlink_to(tmp_path / "outside.py")
    (table.parent / "folder").symlink_to(tmp_path)
    inside = table.parent / "below"
    inside.mkdir()
    (inside / "middle.py").write_text(ASSIGNER)
    for named in ("../outside.py", str(tmp_path / "outside.py"), "link.py", "folder/outside.py", "/no/such.py"):
        sentence = refusal(table, "[middle.py]", f"[{named}]")
        assert sentence.startswith("tiny.yaml, line 4: ")
        assert "lies outside the working directory" in sentence
    for named in ("below/middle.py", "below/../middle.py", str(inside / "middle.py")):
        table.write_text(TABLE.replace("[middle.py]", f"[{named}]"))
        assert plan_of(table).plugins[0].file == named


def test_a_plugin_beside_the_sweep_file_is_found(table: Path) -> None:
    below = table.parent / "below"
    below.mkdir()
    for path in (table, table.parent / "middle.py", table.parent / "bases"):
        path.rename(below / path.name)
    assert plan_of(below / table.name).plugins[0].name == "middle"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, ["there is no plug-in middle.py in"]),
        ("def f(:", ["middle.py, line 1 isn't Python"]),
        ("print('x')", ["middle.py adds nothing", "build_assigner(config)"]),
    ],
)
def test_what_is_no_plugin_is_refused_with_the_line_that_names_it(
    table: Path, source: str | None, words: list[str]
) -> None:
    (table.parent / "middle.py").unlink()
    if source is not None:
        (table.parent / "middle.py").write_text(source)
    sentence = refusal_of(table)
    assert sentence.startswith("tiny.yaml, line 4: ")
    for word in words:
        assert word in sentence
    assert not (table.parent.parent / "storage").exists()


def test_only_what_is_declared_can_be_named(table: Path) -> None:
    sentence = refusal(table, "model.assigner.name: middle", "model.assigner.name: midle")
    assert sentence.startswith("tiny.yaml, line 7: ")
    assert 'did you mean "middle"?' in sentence
    assert 'is "middle", but there is no such assigner' in refusal(table, "plugins: [middle.py]\n", "")
    text = refusal(
        table, "model.assigner.name: middle, model.assigner.options: {share: 0.5}", "model.head.name: middle"
    )
    assert 'is "middle", but there is no such head' in text
    (table.parent / "other").mkdir()
    (table.parent / "other" / "middle.py").write_text(ASSIGNER)
    assert "would both be called middle" in refusal(table, "[middle.py]", "[middle.py, other/middle.py]")
    assert "is listed twice" in refusal(table, "[middle.py]", "[middle.py, middle.py]")


def test_rows_of_an_included_table_keep_their_plugins(table: Path) -> None:
    whole = write_table(table.parent, "name: whole\ntitle: All\ninclude: [tiny.yaml]\n", name="whole.yaml",
                        base=(table.parent / "bases" / "small.yaml").read_text())  # fmt: skip
    assert identities(whole) == {f"tiny/{row}": identity for row, identity in identities(table).items()}
    assert [plugin.name for plugin in plan_of(whole).plugins] == ["middle"]


def test_a_dry_run_and_the_report_list_them(table: Path) -> None:
    (table.parent / "head.py").write_text(HEAD)
    table.write_text(TABLE.replace("[middle.py]", "[middle.py, head.py]"))
    plan, ledger = plan_of(table), MemoryLedger()
    ledger.state(plan, "Middle", "finished", AP=10.0)
    text = describe(plan, ledger)
    middle, head = plan.plugins
    assert f"plug-ins  middle.py (assigner middle, {middle.digest[:12]})\n" in text
    assert f"head.py (head head, {head.digest[:12]}): no row uses it\n" in text
    paths = write_report(plan, ledger)
    for name in ("report.html", "report.md"):
        assert middle.digest[:12] in paths[name].read_text()
    assert "class Middle:" in paths["report.html"].read_text()
    assert "plugins.use" not in closing_lines(plan, Ledger(plan.storage), paths["report.html"])


def test_planning_imports_nothing_heavy_and_executes_nothing(table: Path) -> None:
    (table.parent / "middle.py").write_text("raise SystemExit('executed')\n" + ASSIGNER)
    script = (
        "import sys; from orchestrator.sweep import main; status = main(sys.argv[1:]);"
        "print(status, 'torch' in sys.modules)"
    )
    words = [str(table), "--dry-run", "--storage", str(table.parent.parent / "storage")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 False"


def test_it_is_tried_before_anything_starts(table: Path) -> None:
    plan = plan_of(table)
    try_plugins(plan, Ledger(plan.storage), fresh=False)
    (table.parent / "middle.py").write_text(ASSIGNER.replace("config.options.get", "config.options.pop_it"))
    plan = plan_of(table)
    with pytest.raises(InputError, match=r"middle.py, line \d+: AttributeError"):
        try_plugins(plan, Ledger(plan.storage), fresh=False)


def test_workers_are_sent_its_text(table: Path) -> None:
    plan = plan_of(table)
    (table.parent / "middle.py").unlink()
    row = plan.rows[1]
    assignment: Assignment = Pass(plan, Ledger(plan.place), lambda: None, Limits())._assignment(row, 0.0, None, (row,))
    assert assignment.training_config.plugins[0].source == ASSIGNER
    assert assignment.evaluations[0].config["plugins"][0]["source"] == ASSIGNER
