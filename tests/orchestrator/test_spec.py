"""Sweep files: what they may say, and the sentence for what they may not."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from detector.config import TrainingConfig
from detector.document import read_document, read_scalar
from detector.errors import InputError
from detector.keys import Setting, flat, keys, resolve
from orchestrator.spec import find_sweep, installed_sweeps, load_profile, load_spec, read_set
from tests.orchestrator.tables import TABLE, write_table


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_spec(str(path))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_table_is_read(tmp_path: Path) -> None:
    spec = load_spec(str(write_table(tmp_path)))
    assert (spec.name, spec.title, spec.seeds) == ("tiny", "A tiny table", (0,))
    assert [row.name for row in spec.rows] == ["1:1", "D_up:1"]
    assert spec.rows[0].show == {"PIoUs": "1", "AIoUs": "1"}
    assert spec.rows[0].paper == {"AP": 39.75, "AP50": 57.43}
    assert spec.rows[1].settings == (
        Setting("model.assigner.predicted_weight", "up", f"{tmp_path / 'tiny.yaml'}, line 11"),
    )
    assert spec.compare == (("1:1", "D_up:1"),)
    assert spec.figures[0].metric == "loss_reg"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("model.assigner.predicted_weight: up", "model.assigner.predicted_wieght: up", 11,
         ['unknown key "model.assigner.predicted_wieght"', 'did you mean "model.assigner.predicted_weight"?']),
        ("seeds: [0]", "seed: [0]", 13, ['unknown key "seed"', 'did you mean "seeds"?']),
        ("    paper: {AP: 39.75, AP50: 57.43}", "    papers: {AP: 39.75}", 8,
         ['unknown key "papers"', 'did you mean "paper"?']),
        ("AP50: 57.43", "AP60: 57.43", 8, ['"AP60"', '"AP50"']),
        ("AP: 39.75", "AP: high", 8, ["rows.0.paper.AP", '"high"', "must be a number"]),
        ('name: "D_up:1"', 'name: "1:1"', 9, ['row name "1:1" is used twice', "line 5", "another name"]),
        ("title: A tiny table", "name: A tiny table", 2, ['the key "name" stands already on line 1']),
        ("title: A tiny table\n", "", None, ["has no title", "add it"]),
        ("base: small", "base: smal", 3, ['there is no base "smal"', 'did you mean "small"?']),
        ('compare: [["1:1", "D_up:1"]]', 'compare: [["1:1", "D_up:2"]]', 12, ['unknown row "D_up:2"', '"D_up:1"?']),
        ('rows: ["1:1", "D_up:1"]}', 'rows: ["1;1"]}', 14, ['figures names an unknown row "1;1"', '"1:1"?']),
        ("metric: loss_reg", "metric: loss_regr", 14, ['unknown metric "loss_regr"', '"loss_reg"?']),
        ("seeds: [0]", "seeds: [0, 0]", 13, ["different whole numbers"]),
        ("seeds: [0]", "seeds: [-1]", 13, ["seeds.0 is -1", "a whole number ≥ 0"]),
        ("seeds: [0]", "seeds: three", 13, ['seeds is "three"', "must be a list"]),
        ("{model.assigner.predicted_weight: up}", "{schedule.iterations: 5}", 11,
         ["a row can't set schedule.iterations", "schedule.epochs_factor"]),
        ("{model.assigner.predicted_weight: up}", "{schedule: {iterations: 5}}", 11, ["schedule.epochs_factor"]),
        ("{model.assigner.predicted_weight: up}", "{seed: 5}", 11, ["a row can't set seed", "--seeds"]),
        ("{model.assigner.predicted_weight: up}", "[1]", 11, ["rows.1.set is [1]"]),
        ("AP: 39.75, AP50: 57.43", "AP: 0.393", 8, ["figures are in percent", "write AP: 39.3 for 0.393"]),
        ("AP: 39.75", "AP: 139.3", 8, ["rows.0.paper.AP is 139.3", "100"]),
        ("AP: 39.75", "AP: true", 8, ["rows.0.paper.AP is true", "must be a number"]),
        ("seeds: [0]", "seeds: [true]", 13, ["seeds.0 is true", "a whole number ≥ 0"]),
        ("seeds: [0]", "seeds: [9999999999]", 13, ["seeds.0 is 9999999999", "≤ 4,294,967,295"]),
        ('compare: [["1:1", "D_up:1"]]', 'compare: [["1:1"]]', 12, ["compare.0 is ['1:1']", "a pair, each text"]),
        (
            'compare: [["1:1", "D_up:1"]]',
            'compare: [["1:1", "D_up:1"], ["D_up:1", "1:1"]]',
            12,
            ["the same two rows twice", '("D_up:1", "1:1")', "remove it"],
        ),
        ("{model.assigner.predicted_weight: up}", "3", 11, ["rows.1.set is 3, but must be a mapping;"]),
        ("{PIoUs: D_up, AIoUs: 1}", "3", 10, ["rows.1.show is 3, but must be a mapping, each text;"]),
        ("name: tiny", "name: a/b", 1, ['name is "a/b"', "letters"]),
        ("rows:", "rows: [", 5, ["isn't YAML"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, line: int, words: list[str]) -> None:
    assert old in TABLE
    sentence = refusal(write_table(tmp_path, TABLE.replace(old, new, 1)))
    assert sentence.startswith(f"{tmp_path / 'tiny.yaml'}" + (f", line {line}: " if line else ": "))
    for word in words:
        assert word in sentence


def test_unquoted_ratios_are_names_and_not_numbers_in_base_60(tmp_path: Path) -> None:
    assert yaml.safe_load("1:30") == 90
    spec = load_spec(str(write_table(tmp_path, TABLE.replace('name: "1:1"', "name: 1:1"))))
    assert spec.rows[0].name == "1:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-4", 1e-4), ("1.5", 1.5), ("3", 3), ("-2", -2), ("012", 12), (".inf", float("inf")), ("true", True)],
        *[("up", "up"), ("no", "no"), ("2024-01-01", "2024-01-01"), ("null", None), ("", None), ("[6, 8]", [6, 8])],
    ],
)
def test_values_on_the_command_line_are_yaml(text: str, value: object) -> None:
    assert read_scalar(text, "--set") == value
    assert type(read_scalar(text, "--set")) is type(value)


def test_unknown_key_in_a_base_or_profile_names_its_own_file(tmp_path: Path) -> None:
    table = write_table(tmp_path, base="model:\n  backbone: r18\n  wieghts: none\n", bad="schedule.iteration: 3\n")
    assert refusal(table) == (
        f'{tmp_path / "bases" / "small.yaml"}, line 3: unknown key "model.wieghts"; did you mean "model.weights"?'
    )
    with pytest.raises(
        InputError, match=r'bad.yaml, line 1: unknown key "schedule.iteration"; .*"schedule.iterations"'
    ):
        load_profile("bad", tmp_path)


def test_unknown_profile_lists_those_that_exist(tmp_path: Path) -> None:
    write_table(tmp_path, mine="schedule.iterations: 3\n")
    with pytest.raises(InputError) as caught:
        load_profile("lapptop", tmp_path)
    assert 'no profile "lapptop"' in str(caught.value)
    assert 'did you mean "laptop"?' in str(caught.value)
    assert "mine" in str(caught.value)
    assert "small_data" in str(caught.value)


def test_a_missing_sweep_lists_the_installed_ones() -> None:
    with pytest.raises(InputError, match=r'no sweep file sweeps/tabel3.yaml; did you mean "sweeps/table3.yaml"\?'):
        find_sweep("sweeps/tabel3.yaml")
    with pytest.raises(InputError, match=r"valid are: .*sweeps/table3.yaml"):
        find_sweep("qqq")


def test_installed_sweeps_are_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_sweep("sweeps/table3.yaml") == (installed_sweeps() / "table3.yaml").resolve()
    own = write_table(tmp_path / "sweeps", name="table3.yaml")
    assert find_sweep("sweeps/table3.yaml") == own.resolve()


def test_a_grid_is_the_product_of_its_values(tmp_path: Path) -> None:
    head = "name: g\ntitle: Grid\nbase: small\n"
    grid = "grid:\n  model.assigner.topk: [5, 9]\n  model.assigner.predicted_weight: [1, up]\n"
    spec = load_spec(str(write_table(tmp_path, head + grid)))
    assert [row.name for row in spec.rows] == [
        "topk=5, predicted_weight=1", "topk=5, predicted_weight=up", "topk=9, predicted_weight=1",
        "topk=9, predicted_weight=up",
    ]  # fmt: skip
    assert [setting.value for setting in spec.rows[1].settings] == [5, "up"]
    assert "unknown key" in refusal(write_table(tmp_path, head + "grid: {model.topk: [1]}\n"))
    assert "epochs_factor" in refusal(write_table(tmp_path, head + "grid: {schedule.iterations: [1]}\n"))
    assert "has no values" in refusal(write_table(tmp_path, head + "grid: {model.assigner.topk: []}\n"))
    assert "exclude each other" in refusal(write_table(tmp_path, head + grid + "rows: [{name: a}]\n"))
    assert "nothing to train" in refusal(write_table(tmp_path, "name: g\ntitle: Grid\n"))


def test_included_rows_carry_the_name_of_their_table(tmp_path: Path) -> None:
    write_table(tmp_path)
    paper = "name: paper\ntitle: All\ninclude: [tiny.yaml]\nquoted: [{show: {Method: X}, paper: {AP: 40}}]\n"
    spec = load_spec(str(write_table(tmp_path, paper, name="paper.yaml")))
    assert [row.name for row in spec.rows] == ["tiny/1:1", "tiny/D_up:1"]
    assert spec.compare == (("tiny/1:1", "tiny/D_up:1"),)
    assert spec.figures[0].rows == ["tiny/1:1", "tiny/D_up:1"]
    assert spec.quoted[0].paper == {"AP": 40}
    deeper = write_table(tmp_path, "name: d\ntitle: D\ninclude: [paper.yaml]\n", name="deeper.yaml")
    assert "one level deep" in refusal(deeper)
    round_trip = "name: tiny\ntitle: T\ninclude: [again.yaml]\n"
    write_table(tmp_path, "name: again\ntitle: A\ninclude: [loop.yaml]\n", name="again.yaml")
    assert "loop.yaml" in refusal(write_table(tmp_path, round_trip, name="loop.yaml"))


def test_aliases_and_merge_keys_work_and_may_not_contain_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one: &one {a: 1, b: 2}\ntwo:\n  <<: *one\n  b: 3\n")
    assert read_document(path).data == {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}}
    path.write_text("one: &one\n  - *one\n")
    with pytest.raises(InputError, match="contains itself"):
        read_document(path)
    path.write_text("one: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match=r"line 1: the tag .* means nothing here"):
        read_document(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.assigner.topkk=3", ['unknown key "model.assigner.topkk"', '"model.assigner.topk"?']),
        ("model.assigner.topk", ["expected --set KEY=VALUE"]),
        ("=3", ["expected --set KEY=VALUE"]),
        ("seed=3", ["--seeds"]),
        ("schedule.recipe_batch_size=3", ["schedule.scale_with_batch"]),
        ("model.weights=[", ["isn't YAML"]),
        ("model.assigner={topkk: 3}", ['unknown key "model.assigner.topkk"', '"model.assigner.topk"?']),
        ("schedule={recipe_batch_size: 3}", ["schedule.recipe_batch_size can't be set here"]),
    ],
)
def test_set_is_checked(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_set([text])
    assert str(caught.value).startswith(f"--set {text}: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.assigner.predicted_weight", -1, ["is -1", 'a number ≥ 0, "up" or "down"']),
        ("model.assigner.predicted_weight", "upp", ['is "upp"', 'a number ≥ 0, "up" or "down"']),
        ("model.assigner.anchor_weight", True, ["is true", 'a number ≥ 0, "up" or "down"']),
        ("model.assigner.anchor_weight", 0, ["both 0", "give one a weight"]),
        ("schedule.iterations", 1.5, ["is 1.5", "a whole number ≥ 1"]),
        ("schedule.iterations", True, ["is true", "a whole number ≥ 1"]),
        ("schedule.batch_size", 8, ["8", "global batch of 16", "schedule.scale_with_batch: linear"]),
        ("data.short_side", [640], ["is [640]", "or a pair, each a whole number ≥ 1 and ≤ 16,384"]),
        ("data.keep_empty", "perhaps", ["true or false"]),
        ("model.backbone", "r51", ['is "r51"', '"r50"']),
        ("schedule.iterations", 10**21, ["is 1000000000000000000000,", "≤ 1,000,000,000"]),
        ("schedule.weight_decay", math.inf, ["is inf", "must be finite, a number ≥ 0"]),
        ("resources.gpus_per_worker", math.inf, ["is inf", "must be finite, a number ≥ 0"]),
        ("model.assigner.predicted_weight", math.inf, ["is inf", 'must be finite, a number ≥ 0, "up" or "down"']),
        ("data.augmentation.scale_jitter", [2, 0.5], ["the smaller factor stands first; write [0.5, 2]"]),
        ("data.augmentation.scale_jitter", [2], ["is [2]", "a pair, each a number ≥ 0.01 and ≤ 100"]),
        ("data.augmentation.scale_jitter", [True, 2], ["scale_jitter.0 is true", "a number"]),
        ("seed", 2**40, ["is 1099511627776", "≤ 4,294,967,295"]),
        ("model.neck.channels", 65, ["is 65", "a whole number ≥ 64 and a multiple of 32"]),
        ("model.norm", "bn", ['"frozen_bn", "gn" or null']),
        ("model", 3, ["model is 3", "backbone"]),
        ("resources.workers", 17, ["resources.workers is 17", "16 images"]),
    ],
)
def test_wrong_values_are_said_with_what_is_expected(key: str, value: object, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve([[Setting(key, value, "sweeps/x.yaml, line 7")]])
    assert str(caught.value).startswith("sweeps/x.yaml, line 7: ")
    assert key.rpartition(".")[2].split("_")[0] in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_blamed_line_is_that_of_the_key_that_the_sentence_is_about() -> None:
    layer = [Setting("schedule.batch_size", 8, "line of batch"), Setting("schedule.momentum", 0.5, "line of momentum")]
    with pytest.raises(InputError, match=r"^line of batch: "):
        resolve([layer])


def test_later_layers_win_and_mappings_merge() -> None:
    layers = [
        [Setting("model.backbone", "r50", "base"), Setting("data.generated", None, "base")],
        [Setting("model.backbone", "r18", "profile"), Setting("data.generated.classes", 3, "profile")],
        [Setting("schedule.epochs_factor", 2, "row"), Setting("data.augmentation", {"flip": 0.0}, "row")],
    ]
    config = resolve(layers)
    assert config.model.backbone == "r18"
    assert config.data.generated is not None
    assert config.data.generated.classes == 3
    assert config.schedule.max_iterations == 180_000
    assert config.data.augmentation.flip == 0
    assert resolve([*layers, [Setting("data.generated", None, "--set")]]).data.generated is None


def test_a_mapping_for_a_section_leaves_the_other_keys_as_they_are() -> None:
    given = read_set(["data={val: other, augmentation: {crop: 0.5}}"])
    below = [Setting("data.train", "mine", "base"), Setting("data.augmentation.flip", 0.25, "base")]
    config = resolve([below, given])
    assert (config.data.train, config.data.val) == ("mine", "other")
    assert (config.data.augmentation.flip, config.data.augmentation.crop) == (0.25, 0.5)


def test_every_key_of_the_configuration_is_a_key_of_a_sweep_file() -> None:
    known = set(keys())
    assert {"model.assigner.topk", "data.generated.classes", "schedule.precision", "resources.workers"} <= known
    assert known >= {key for key in flat(TrainingConfig()) if key != "data.generated"}


@pytest.mark.parametrize("path", sorted(installed_sweeps().glob("*.yaml")), ids=lambda path: path.name)
def test_installed_sweeps_resolve_with_every_profile(path: Path) -> None:
    spec = load_spec(str(path))
    text = path.read_text()
    assert text.startswith("# ")
    assert f"python -m orchestrator.sweep sweeps/{path.name}" in text
    for profile in (installed_sweeps() / "profiles").glob("*.yaml"):
        layer = load_profile(profile.stem, path.parent)
        for row in spec.rows:
            resolve([row.base, layer, row.settings])


def test_table_3_has_eight_distinct_rows_and_only_figures_that_were_checked() -> None:
    spec = load_spec("sweeps/table3.yaml")
    configs = [resolve([row.base, row.settings]) for row in spec.rows]
    assert len(spec.rows) == 8
    assert len({config.model_dump_json() for config in configs}) == 8
    assert {row.name: row.paper for row in spec.rows if row.paper} == {
        "1:1": {"AP": 39.75, "AP50": 57.43, "AP75": 43.08, "APs": 23.03, "APm": 43.83, "APl": 52.27}
    }
    for config in configs:
        assert (config.model.backbone, config.model.weights) == ("r50", "imagenet")
        assert (config.model.head.classification_loss, config.model.head.quality_branch) == ("focal", "centerness")
        assert (config.schedule.max_iterations, config.schedule.batch_size) == (90_000, 16)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(3, "model is 3, but it is a section with keys of its own, such as model.backbone"), (None, "model is null, but")],
)
def test_a_section_given_one_value_is_refused(value: object, sentence: str) -> None:
    below = [Setting("model.backbone", "r18", "base.yaml, line 2")]
    with pytest.raises(InputError, match=re.escape(f"profile.yaml, line 1: {sentence}")):
        resolve([below, [Setting("model", value, "profile.yaml, line 1")]])


def test_a_figure_that_is_null_is_not_known(tmp_path: Path) -> None:
    spec = load_spec(str(write_table(tmp_path, TABLE.replace("AP: 39.75", "AP: null"))))
    assert spec.rows[0].paper == {"AP50": 57.43}
    small = load_spec(str(write_table(tmp_path, TABLE.replace("AP: 39.75, AP50: 57.43", "AP: 0.9, AP50: 2.1"))))
    assert small.rows[0].paper == {"AP": 0.9, "AP50": 2.1}
