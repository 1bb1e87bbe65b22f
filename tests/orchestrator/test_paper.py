"""The paper's tables as sweep files: their rows, which of them are one training, and that every profile plans them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.config import ModelConfig
from detector.keys import resolve
from detector.recipes import model_config
from orchestrator.plan import Plan, PlannedRow, make_plan
from orchestrator.report import terminal_table
from orchestrator.report.table import make_table, notes
from orchestrator.request import SweepRequest
from orchestrator.spec import installed_sweeps, load_spec
from tests.orchestrator.tables import MemoryLedger, write_data

SWEEPS = sorted(path.name for path in installed_sweeps().glob("*.yaml"))
ROWS = {"table1": 3, "table2": 10, "table3": 8, "table4": 4, "table5": 12}
SHARED = (
    {"table1/ATSS", "table2/ATSS", "table5/ATSS R-50"},
    {"table1/ATSS + CIoUs", "table2/ATSS + CIoUs", "table3/1:1"},
    {"table2/CIoUs + QFL + IoU branch", "table5/Dynamic ATSS R-50"},
)
# Rows whose model has a recipe of the same meaning.
RECIPES = {
    "table2/ATSS": "atss_r50",
    "table2/CIoUs + QFL + IoU branch": "dynamic_atss_r50",
    "table4/GFLV2": "gflv2_r50",
    "table4/GFLV2 + CIoUs": "gflv2_ciou_r50",
    "table4/VFNet": "vfnet_r50",
    "table4/VFNet + CIoUs": "vfnet_ciou_r50",
    "table5/ATSS R-101": "atss_r101",
    "table5/ATSS R-101-DCN": "atss_r101_dcn",
    "table5/ATSS X-101-32x8d": "atss_x101_32x8d",
    "table5/Dynamic ATSS X-101-64x4d": "dynamic_atss_x101_64x4d",
    "table5/Dynamic ATSS X-101-64x4d-DCN": "dynamic_atss_x101_64x4d_dcn",
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO in little: train2017, val2017, test-dev2017 as a list of images without boxes, and train and val as well."""
    root = write_data(tmp_path_factory.mktemp("coco"), splits=("train2017", "val2017", "test2017", "train", "val"))
    path = root / "annotations" / "test2017.json"
    document = json.loads(path.read_text())
    del document["annotations"]
    (root / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(document))
    path.unlink()
    return root


def plan_of(name: str, profile: str | None, coco: Path, folder: Path) -> Plan:
    small = ("train_images=2", "val_images=1", "long_side=128")
    sets = tuple(f"data.generated.{value}" for value in small) if profile == "laptop" else (f"data.root={coco}",)
    return make_plan(SweepRequest(f"sweeps/{name}", profile=profile, set=sets, storage=str(folder / "storage")))


@pytest.fixture(params=[None, "laptop", "small_data", "1x8gpu"], ids=lambda profile: profile or "recipe")
def profile(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_plans_as_it_is_and_under_every_profile(
    name: str, profile: str | None, coco: Path, tmp_path: Path
) -> None:
    plan = plan_of(name, profile, coco, tmp_path)
    seeds = {row.seed for row in plan.rows}
    assert len(seeds) == (1 if plan.search is None else 5)
    assert len(plan.row_names) * len(seeds) == len(plan.rows)
    assert all(row.differences for row in plan.rows)
    departs = profile in ("laptop", "small_data")
    assert all(bool(row.departures) == departs for row in plan.rows)


def test_the_paper_has_37_rows_and_32_trainings_and_quotes_11(profile: str | None, coco: Path, tmp_path: Path) -> None:
    plan = plan_of("paper.yaml", profile, coco, tmp_path)
    assert {table: sum(name.startswith(f"{table}/") for name in plan.row_names) for table in ROWS} == ROWS
    assert (len(plan.rows), len(plan.quoted)) == (37, 11)
    assert len(plan.trainings) == 32
    groups: dict[str, set[str]] = {}
    for row in plan.rows:
        groups.setdefault(row.identity, set()).add(row.row)
    assert sorted(map(sorted, (group for group in groups.values() if len(group) > 1))) == sorted(map(sorted, SHARED))


def test_figures_3_to_5_are_drawn_from_the_rows_of_their_tables() -> None:
    figures = {figure.name: figure for figure in load_spec("sweeps/paper.yaml").figures}
    drawn = {
        "table1/Figure 3": ["table1/ATSS", "table1/ATSS + CIoUs"],
        "table4/Figure 4": ["table4/GFLV2", "table4/GFLV2 + CIoUs"],
        "table4/Figure 5": ["table4/VFNet", "table4/VFNet + CIoUs"],
    }
    for name, rows in drawn.items():
        assert (figures[name].metric, figures[name].rows) == ("loss_reg", rows)


def test_only_figures_that_were_read_in_a_source_stand_beside_rows() -> None:
    spec = load_spec("sweeps/paper.yaml")
    papers = {row.name: row.paper for row in spec.rows if row.paper}
    combined = {"table1/ATSS + CIoUs", "table2/ATSS + CIoUs", "table3/1:1"}
    for name in combined:
        assert papers[name]["AP"] == 39.75
        assert papers[name] == papers["table3/1:1"]
    # Zhang et al., CVPR 2020, Table 8: on test-dev, and so not to be compared with what val2017 gives.
    assert {name: paper["test_AP"] for name, paper in papers.items() if name not in combined} == {
        "table5/ATSS R-101": 43.6,
        "table5/ATSS R-101-DCN": 46.3,
        "table5/ATSS X-101-32x8d": 45.1,
        "table5/ATSS X-101-64x4d": 45.6,
        "table5/ATSS X-101-64x4d-DCN": 47.7,
    }
    assert all(len(paper) == 6 for paper in papers.values())
    assert all(key.startswith("test_") for quoted in spec.quoted for key in quoted.paper)


@pytest.mark.parametrize("row", RECIPES)
def test_a_rows_model_is_the_recipe_of_its_name(row: str) -> None:
    (spec,) = (each for each in load_spec("sweeps/paper.yaml").rows if each.name == row)
    assert _stated(resolve([spec.base, spec.settings]).model) == _stated(model_config(RECIPES[row]))


def _stated(model: ModelConfig) -> ModelConfig:
    """Without the normalisation, which a recipe leaves to the weights."""
    return model.model_copy(update={"norm": None})


def test_all_rows_of_a_family_learn_by_its_own_schedule() -> None:
    configs = {row.name: resolve([row.base, row.settings]) for row in load_spec("sweeps/paper.yaml").rows}
    for name, factor, sides, warmup, double in (
        ("table1/ATSS", 1, 800, (1 / 3, "constant"), True),
        ("table4/GFLV2 + CIoUs", 2, (480, 960), (0.001, "linear"), False),
        ("table4/VFNet + CIoUs", 2, (480, 960), (0.1, "linear"), True),
        ("table5/ATSS R-50", 1, 800, (1 / 3, "constant"), True),
        ("table5/Dynamic ATSS R-101", 2, (640, 800), (1 / 3, "constant"), True),
    ):
        schedule = configs[name].schedule
        assert (schedule.epochs_factor, configs[name].data.short_side) == (factor, sides)
        assert (schedule.warmup_factor, schedule.warmup_shape, schedule.double_bias_rate) == (*warmup, double)
    assert {name for name, config in configs.items() if config.data.test == "test-dev2017"} == {
        name for name in configs if name.startswith("table5/")
    }


def test_test_dev_is_evaluated_and_not_scored_here(coco: Path, tmp_path: Path) -> None:
    plan = plan_of("table5.yaml", None, coco, tmp_path)
    assert all(set(row.evaluations) == {"", "test_"} for row in plan.rows)
    r101 = _row(plan, "ATSS R-101")
    assert r101.test is not None
    assert (r101.val.split if r101.val else None, r101.test.split, r101.test.annotated) == (
        "val2017", "test-dev2017", False,
    )  # fmt: skip
    ledger = MemoryLedger()
    ledger.state(plan, "ATSS R-101", "finished", AP=43.4, test_AP=None)
    table = make_table(plan, ledger)
    (shown,) = (row for row in table.rows if row.name == "ATSS R-101")
    # What test-dev gave others is no measure of what val2017 gives here.
    assert (shown.cells["AP"].paper, shown.cells["AP"].difference) == (None, None)
    assert (shown.cells["test_AP"].ours, shown.cells["test_AP"].paper) == (None, 43.6)
    assert shown.detail == "test-dev2017 not scored here"
    assert "detector.evaluate" in " ".join(notes(plan, table))
    lines = {line.split("  ")[0]: line for line in terminal_table(plan, ledger).splitlines()}
    assert lines["ATSS R-101"].split()[2] == "43.40"
    assert lines["ATSS R-101"].endswith("finished (test-dev2017 not scored here)")


def _row(plan: Plan, name: str) -> PlannedRow:
    return next(row for row in plan.rows if row.row == name)
