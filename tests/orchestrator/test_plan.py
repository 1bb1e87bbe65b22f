"""Plans: key, places, precedence, data, and what is created when something is wrong: nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import InputError, UnreachableError
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, make_plan
from orchestrator.request import SweepRequest
from orchestrator.sweep import main
from tests.orchestrator.tables import BASE, TABLE, write_data, write_table


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DETSWEEP_STORAGE", "DETSWEEP_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    return write_table(tmp_path, base=BASE + f"data.root: {tmp_path / 'data'}\n")


def plan_of(table: Path, *sets: str, **options: object) -> Plan:
    storage = options.pop("storage", str(table.parent / "storage"))
    return make_plan(SweepRequest(str(table), set=sets, storage=storage, **options))  # type: ignore[arg-type]


def test_rows_and_seeds_are_resolved(table: Path, tmp_path: Path) -> None:
    plan = plan_of(table, seeds=(0, 3))
    assert [(row.row, row.seed) for row in plan.rows] == [("1:1", 0), ("1:1", 3), ("D_up:1", 0), ("D_up:1", 3)]
    first = plan.rows[0]
    assert first.config.data.root == str(tmp_path / "data")
    assert (first.config.model.num_classes, first.config.model.norm, first.config.seed) == (2, "gn", 0)
    assert first.differences == {"model.assigner.predicted_weight": 1.0}
    assert (first.show, first.paper) == ({"PIoUs": "1", "AIoUs": "1"}, {"AP": 39.75, "AP50": 57.43})
    assert first.departures == ()
    assert first.train is not None
    assert (first.train.images, first.train.categories) == (2, ((3, "cat"), (7, "dog")))
    assert len(plan.trainings) == 4
    assert plan.folder == tmp_path / "storage" / "sweeps" / "tiny"


def test_the_key_is_name_profile_and_hash_of_the_set_values(table: Path) -> None:
    write_table(
        table.parent, base=(table.parent / "bases" / "small.yaml").read_text(), quick="schedule.iterations: 9\n"
    )
    assert plan_of(table).key == "tiny"
    assert plan_of(table, profile="quick").key == "tiny@quick"
    changed = plan_of(table, "schedule.iterations=5", profile="quick").key
    assert changed.startswith("tiny@quick+")
    assert len(changed) == len("tiny@quick+") + 8
    assert plan_of(table, "schedule.iterations=5").key == changed.replace("@quick", "")
    assert plan_of(table, "schedule.iterations= 5").key == changed.replace("@quick", "")
    assert plan_of(table, "schedule.iterations=6").key != changed.replace("@quick", "")
    both = ("schedule.iterations=5", "schedule.momentum=0.5")
    assert plan_of(table, *both).key == plan_of(table, *reversed(both)).key
    # --only and --seeds select within the sweep; they don't name another.
    assert plan_of(table, only=("1:1",), seeds=(4,)).key == "tiny"


def test_a_relative_data_root_means_the_same_sweep_from_elsewhere(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    here = plan_of(table, "data.root=data")
    monkeypatch.chdir(table.parent / "data")
    there = plan_of(table, "data.root=../data")
    assert here.key == there.key
    assert here.rows[0].config.data.root == there.rows[0].config.data.root


def test_base_profile_row_and_command_line_in_that_order(table: Path) -> None:
    text = TABLE.replace("{model.assigner.predicted_weight: up}", "{model.backbone: r34, schedule.epochs_factor: 2}")
    base = (table.parent / "bases" / "small.yaml").read_text()
    write_table(table.parent, text, base=base, other="model.backbone: r50\nschedule: {iterations: 10}\n")
    one, two = plan_of(table).rows
    assert (one.config.model.backbone, two.config.model.backbone) == ("r18", "r34")
    one, two = plan_of(table, profile="other").rows
    # A profile's backbone is the default for rows that don't set one.
    assert (one.config.model.backbone, two.config.model.backbone) == ("r50", "r34")
    assert (one.config.schedule.max_iterations, two.config.schedule.max_iterations) == (10, 20)
    assert set(one.departures) == {"model.backbone", "schedule.iterations"}
    assert set(two.departures) == {"schedule.iterations"}
    one, two = plan_of(table, "model.backbone=r101", profile="other").rows
    assert (one.config.model.backbone, two.config.model.backbone) == ("r101", "r101")


def test_places_fall_back_to_the_environment(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(table, storage=None)
    assert plan.storage == tmp_path / "home" / "detsweep"
    assert plan.tracking_uri == f"sqlite:///{plan.storage}/mlflow.db"
    monkeypatch.setenv("DETSWEEP_STORAGE", str(tmp_path / "mine"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    plan = plan_of(table, storage=None)
    assert (plan.storage, plan.tracking_uri) == (tmp_path / "mine", "http://127.0.0.1:1")
    assert plan_of(table, tracking_uri="sqlite:///x.db").tracking_uri == "sqlite:///x.db"
    monkeypatch.chdir(tmp_path)
    assert plan_of(table, storage="here").storage == tmp_path / "here"


def test_the_environment_names_the_data_above_the_base_and_below_the_command_line(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETSWEEP_DATA", str(write_data(tmp_path / "other")))
    assert plan_of(table).rows[0].config.data.root == str(tmp_path / "other")
    assert plan_of(table, f"data.root={tmp_path / 'data'}").rows[0].config.data.root == str(tmp_path / "data")


def test_generated_data_needs_nothing_and_is_made_once(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETSWEEP_DATA", "/nowhere")
    sets = ("data.generated.train_images=2", "data.generated.val_images=1", "data.generated.long_side=128")
    plan = plan_of(table, *sets)
    root = Path(str(plan.rows[0].config.data.root))
    assert root.parent == plan.storage / "data"
    assert (plan.rows[0].config.data.train, plan.rows[0].config.data.val) == ("train", "val")
    assert plan.rows[0].config.model.num_classes == 4
    assert "data.generated" in plan.rows[0].departures
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert plan_of(table, *sets).rows[0].identity == plan.rows[0].identity
    assert stamps == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_plan_that_only_describes_makes_nothing_and_has_no_identities_of_what_is_not_drawn(table: Path) -> None:
    sets = ("data.generated.train_images=2", "data.generated.val_images=1", "data.generated.long_side=128")
    request = SweepRequest(str(table), set=sets, storage=str(table.parent / "storage"))
    before = make_plan(request, "describe")
    assert not before.storage.exists()
    assert [(row.drawn, row.config.model.num_classes) for row in before.rows] == [(False, 4)] * 2
    with pytest.raises(InputError, match=r"model.num_classes is 3, but the data set in .* has 4 categories"):
        make_plan(replace(request, set=(*sets, "model.num_classes=3")))
    assert not before.storage.exists()
    plan, after = make_plan(request), make_plan(request, "describe")
    assert [row.drawn for row in after.rows] == [True, True]
    assert [row.identity for row in after.rows] == [row.identity for row in plan.rows]
    assert after.rows[0].config == before.rows[0].config
    with pytest.raises(InputError, match='has no sweep "tiny'):
        make_plan(request, "read")
    plan.folder.mkdir()
    assert [row.identity for row in make_plan(request, "read").rows] == [row.identity for row in plan.rows]
    shutil.rmtree(str(plan.rows[0].config.data.root))
    with pytest.raises(
        InputError, match=r"no longer in .*generated-\w+, .* `python -m orchestrator.sweep .* draws them"
    ):
        make_plan(request, "read")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.train=other"], ["--set data.train=other: data.train is", "splits train and val", "leave it out"]),
        (["data={val: x}"], ["--set data={val: x}: data.val is", "splits train and val"]),
        (["data.test=final"], ["data.test is"]),
        (["data.root="], ["--set data.root=: data.root is null", "leave it out"]),
        (["data.root=null"], ["data.root is null"]),
        (["data.root=data", "data.generated.classes=3"], ["data.root is", "keep one of data.root and data.generated"]),
    ],
)
def test_data_that_would_be_ignored_for_generated_ones_are_refused(
    table: Path, tmp_path: Path, sets: list[str], words: list[str]
) -> None:
    gen = "data: {root: null, train: train, generated: {train_images: 2, val_images: 1, long_side: 128}}\n"
    write_table(tmp_path, base=BASE, gen=gen)
    with pytest.raises(InputError) as caught:
        plan_of(table, *sets, profile="gen")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "storage").exists()


def test_data_named_on_the_command_line_beats_a_profile_that_generates(table: Path, tmp_path: Path) -> None:
    write_table(tmp_path, base=BASE, gen="data: {generated: {train_images: 2, val_images: 1, long_side: 128}}\n")
    plan = plan_of(table, f"data.root={tmp_path / 'data'}", profile="gen")
    assert plan.rows[0].config.data.generated is None
    assert plan.rows[0].config.data.root == str(tmp_path / "data")


def test_rows_that_are_one_training_share_it(table: Path) -> None:
    again = "  - {name: again, set: {model.assigner.predicted_weight: 1.0, resources.workers: 2}}\ncompare"
    table.write_text(TABLE.replace("compare", again, 1))
    plan = plan_of(table)
    assert plan.rows[0].identity == plan.rows[2].identity
    assert len(plan.trainings) == 2


def test_rows_of_one_training_may_be_evaluated_differently(table: Path) -> None:
    again = "  - {name: again, set: {model.assigner.predicted_weight: 1, model.postprocess.nms_iou: 0.5}}\ncompare"
    table.write_text(TABLE.replace("compare", again, 1))
    first, _, again_row = plan_of(table).rows
    assert first.identity == again_row.identity
    assert first.evaluation != again_row.evaluation


def test_the_test_split_is_checked_and_evaluated_by_a_key_of_its_own(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no annotations of split 'final'"):
        plan_of(table, "data.test=final")
    write_data(tmp_path / "data", splits=("train", "val", "final"))
    plain, tested = plan_of(table).rows[0], plan_of(table, "data.test=final").rows[0]
    assert (tested.identity, tested.evaluation) == (plain.identity, plain.evaluation)
    assert plain.evaluations == {"": plain.evaluation}
    assert tested.test is not None
    assert tested.test.images == 2
    assert tested.evaluations == {"": plain.evaluation, "test_": tested.test_evaluation}
    write_data(tmp_path / "data", splits=("final",), classes=("cat",))
    with pytest.raises(InputError, match="different categories"):
        plan_of(table, "data.test=final")


def test_only_selects_rows_and_what_refers_to_them(table: Path) -> None:
    plan = plan_of(table, only=("D_up:1",))
    assert plan.row_names == ("D_up:1",)
    assert plan.compare == ()
    assert len(plan.figures) == 1
    with pytest.raises(InputError, match=r'no row "D_up;1"; did you mean "D_up:1"\?'):
        plan_of(table, only=("D_up;1",))


def test_the_command_means_the_same_sweep(table: Path) -> None:
    plan = plan_of(table, "schedule.iterations=5", only=("1:1",), seeds=(1, 2), tracking_uri="http://u:secret@h/")
    assert plan.command == (
        f"python -m orchestrator.sweep {table} --set schedule.iterations=5 --only 1:1 --seeds 1,2 "
        f"--storage {table.parent / 'storage'}"
    )


@pytest.mark.parametrize(
    ("sets", "options", "words"),
    [
        (["data.root=/nowhere"], {}, ["/nowhere", "annotations/instances_train.json", "download coco2017", "laptop"]),
        (["data.train=trian"], {}, ["trian", "annotations"]),
        (["schedule.batch_size=3"], {}, ["global batch of 4"]),
        (["model.assigner.anchor_weight=0", "model.assigner.predicted_weight=0"], {}, ["both 0"]),
        (["model.num_classes=3"], {}, ["model.num_classes is 3", "2 categories"]),
        (["model.weights=/no/such/file"], {}, ["/no/such/file"]),
        (["model.init=/no/such/model"], {}, ["model.init names /no/such/model", "detector.load"]),
        (["model.init=mmdet:atss_r50"], {}, ["no published detector mmdet:atss_r50", "mmdet:atss_r50_fpn_1x_coco"]),
        ([], {"profile": "none_such"}, ["none_such", "laptop"]),
        ([], {"only": ("x",)}, ['no row "x"']),
        ([], {"seeds": (1, 1)}, ["--seeds"]),
        ([], {"storage": "s3://bucket/x"}, ["--storage", "s3://", "folder"]),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_created(
    table: Path, sets: list[str], options: dict[str, object], words: list[str]
) -> None:
    before = sorted(table.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        plan_of(table, *sets, **options)
    for word in words:
        assert word in str(caught.value)
    assert sorted(table.parent.rglob("*")) == before


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"images": []}'])
def test_annotations_that_are_not_coco_are_refused_and_nothing_is_created(table: Path, text: str) -> None:
    (table.parent / "data" / "annotations" / "val.json").write_text(text)
    with pytest.raises(InputError, match=r"val\.json"):
        plan_of(table)
    assert not (table.parent / "storage").exists()


@pytest.mark.parametrize(
    ("split", "change", "words"),
    [
        ("val", {"annotations": None}, ["val.json has no annotations, and so nothing to evaluate against", "data.val"]),
        ("val", {"annotations": []}, ["val.json has no box to evaluate against", "data.val"]),
        ("train", {"annotations": None}, ["train.json has no annotations, and so nothing to train on", "data.train"]),
        ("train", {"annotations": []}, ["train.json has no box to train on", "data.train"]),
    ],
)
def test_splits_without_boxes_are_refused_and_nothing_is_created(
    table: Path, split: str, change: dict[str, object], words: list[str]
) -> None:
    path = table.parent / "data" / "annotations" / f"{split}.json"
    document = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    with pytest.raises(InputError) as caught:
        plan_of(table)
    for word in words:
        assert word in str(caught.value)
    assert not (table.parent / "storage").exists()


def test_a_database_may_lie_in_a_storage_that_is_yet_to_be_made_and_nowhere_else(table: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'storage' / 'mine.db'}"
    assert plan_of(table, tracking_uri=uri).tracking_uri == uri
    with pytest.raises(InputError, match=r"--tracking-uri is sqlite:.*, but there is no folder .*/typo;"):
        plan_of(table, tracking_uri=f"sqlite:///{tmp_path / 'typo' / 'mine.db'}")


def test_splits_with_other_categories_are_refused(table: Path) -> None:
    write_data(table.parent / "data", classes=("cat", "bird"), splits=("val",))
    with pytest.raises(InputError, match=r"train\.json and .*val\.json list different categories .*dog.*bird"):
        plan_of(table)


def test_unwritable_storage_can_not_be_reached(table: Path) -> None:
    (table.parent / "file").write_text("")
    with pytest.raises(UnreachableError, match=r"storage .*/file/x can't be written"):
        plan_of(table, storage=str(table.parent / "file" / "x"))


def test_what_was_learnt_of_the_data_is_remembered_until_it_changes(table: Path) -> None:
    one = plan_of(table)
    remembered = json.loads((Ledger(one.storage).data / "splits.json").read_text())
    assert {facts["images"] for facts in remembered.values()} == {2}
    assert plan_of(table).rows[0].identity == one.rows[0].identity
    (table.parent / "data" / "train" / "1.jpg").write_bytes(b"longer than before" * 99)
    assert plan_of(table).rows[0].identity != one.rows[0].identity


def test_the_validation_split_does_not_change_the_identity(table: Path) -> None:
    one = plan_of(table).rows[0]
    image = table.parent / "data" / "val" / "1.jpg"
    image.write_bytes(image.read_bytes() + b"more")
    two = plan_of(table).rows[0]
    assert (one.identity, one.evaluation) != (two.identity, two.evaluation)
    assert one.identity == two.identity


def test_a_dry_run_names_every_data_set_and_classes_without_a_box(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_data(table.parent / "other", classes=("bird", "cat", "dog"))
    settings = "{model.assigner.predicted_weight: up}"
    other = f"{{model.assigner.predicted_weight: up, data.root: {table.parent / 'other'}}}"
    table.write_text(TABLE.replace(settings, other))
    assert main([str(table), "--dry-run", "--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 0
    out = capfd.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert f"data      {table.parent / 'data'}: 2 images of train, 2 of val, 2 classes (1:1)" in lines
    assert f"{table.parent / 'other'}: 2 images of train, 2 of val, 3 classes (D_up:1)" in lines
    assert lines.count("No box of these in train, so they can't be learned: dog") == 1
    assert lines.count("No box of these in val, so they are undefined there and in no AP: cat, dog") == 1
    assert "me:secret" not in out
    assert lines[-1].endswith("in $MLFLOW_TRACKING_URI")
