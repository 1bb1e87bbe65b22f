"""train, evaluate and predict as commands, one after the other, and what they say when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from PIL import Image

import detector
from detector import evaluate, predict, train
from detector.checkpoint_store import CheckpointStore
from detector.checkpoints import save_model
from detector.data.synthetic import generate
from detector.evaluation import FIGURES
from tests.detector.conftest import GENERATED

SMALL = [
    *("--recipe", "dynamic_atss_r18"),
    *("--set", "model.weights=none", "--set", "model.neck.channels=64", "--set", "model.head.convolutions=1"),
    *("--set", "data.short_side=64", "--set", "data.long_side=96", "--set", "schedule.batch_size=4"),
    *("--set", "tracking.every=2", "--set", "checkpoint.every=4"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(GENERATED, tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    status = train.main([str(root), *SMALL, "--set", "schedule.iterations=6", "--output", str(output)])
    assert status == 0
    return output


@pytest.fixture(scope="module")
def talking(trained, root, tmp_path_factory):
    """The trained model with class scores spread out, so that it finds things, and what it finds in the split "val"."""
    folder = tmp_path_factory.mktemp("talking")
    model = detector.load(trained / "model", device="cpu")
    with torch.no_grad():
        model.network.head.class_logits.bias.add_(3.0)
        model.network.head.class_logits.weight.mul_(20.0)
    save_model(model, folder / "model")
    arguments = [str(folder / "model"), "--data", str(root), "--split", "val", "--out", str(folder / "out")]
    assert evaluate.main(arguments) == 0
    return folder


def test_a_training_leaves_its_model_and_results(trained, root):
    steps = [json.loads(line)["step"] for line in (trained / "journal.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    config = json.loads((trained / "config.json").read_text())
    assert config["schedule"]["iterations"] == 6
    assert config["schedule"]["learning_rate"] == pytest.approx(0.01 * 4 / 16)  # the linear rule
    model = detector.load(trained / "model", device="cpu")
    assert [category.name for category in model.categories] == ["disc", "bar", "triangle"]
    assert not list(root.glob("*.arrow")), "a data root is only read"


def test_the_same_command_again_trains_nothing_and_another_length_is_refused(trained, root, capsys):
    before = (trained / "journal.jsonl").read_text()
    assert train.main([str(root), *SMALL, "--set", "schedule.iterations=6", "--output", str(trained)]) == 0
    assert "continuing from step 6" in capsys.readouterr().err
    assert (trained / "journal.jsonl").read_text() == before
    assert train.main([str(root), *SMALL, "--set", "schedule.iterations=9", "--output", str(trained)]) == 2
    assert "another configuration (schedule.iterations differ)" in capsys.readouterr().err


def test_changed_data_is_not_continued_on(root, tmp_path, capsys):
    copy = tmp_path / "set"
    shutil.copytree(root, copy)
    arguments = [str(copy), *SMALL, "--set", "schedule.iterations=4", "--output", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    path = copy / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert train.main(arguments) == 2
    assert "(the data differ)" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_one_sentence(root, tmp_path, capsys):
    wrong = ["--set", "schedule.iterations=8", "--set", "schedule.learning_rate=1000"]
    assert train.main([str(root), *SMALL, *wrong, "--output", str(tmp_path)]) == 3
    assert "error: the loss is no longer finite at step" in capsys.readouterr().err


def test_it_ends_with_the_command_that_predicts(trained, root, tmp_path, capsys):
    train.main([str(root), *SMALL, "--set", "schedule.iterations=6", "--output", str(trained)])
    said = capsys.readouterr().out.splitlines()[-1]
    words = said.split()
    assert words[:3] == ["python", "-m", "detector.predict"]
    assert predict.main([*words[3:-2], "--out", str(tmp_path / "found"), "--score-threshold", "0"]) == 0
    assert len(list((tmp_path / "found").glob("*.png"))) == 1
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert rows
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score", "file_name"}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("step.json", b"garbage", "step.json has 7 bytes instead of"),
        ("state.pt", b"", "state.pt has 0 bytes instead of"),
        ("manifest.json", b"{}", "its manifest is damaged"),
        ("manifest.json", None, "it is incomplete, it has no manifest"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(trained, root, tmp_path, caplog, name, content, why):
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    store = CheckpointStore(output / "checkpoints", "step_")
    newest = output / "checkpoints" / store.newest().name
    if content is None:
        (newest / name).unlink()
        (newest / "state.pt").unlink()
    else:
        (newest / name).write_bytes(content)
    (output / "journal.jsonl").open("a").write('{"step": 7, "loss}\n7}\n')
    assert train.main([str(root), *SMALL, "--set", "schedule.iterations=6", "--output", str(output)]) == 0
    assert f"the checkpoint {newest.name} in {newest.parent} is not used: {why}" in caplog.text
    assert store.newest().step == 6
    before, after = (read_steps(folder / "journal.jsonl") for folder in (trained, output))
    assert before == after


def read_steps(journal):
    return [json.loads(line)["step"] for line in journal.read_text().splitlines()]


@pytest.mark.parametrize("place", ["taken", "taken/run"])
def test_a_file_where_the_training_should_go_is_refused(root, tmp_path, capsys, place):
    (tmp_path / "taken").write_text("mine")
    assert train.main([str(root), *SMALL, "--output", str(tmp_path / place)]) == 2
    assert "taken is a file; name another" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("weights", ["/dev/null", "/tmp", "nowhere.pth"])
def test_weights_that_are_no_file_are_refused(root, tmp_path, capsys, weights):
    arguments = [str(root), *SMALL, "--set", f"model.weights={weights}", "--output", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: model.weights names {weights}, and th")
    assert said.endswith("give the path of a state dict, imagenet, none or auto")


def test_images_are_read_by_the_cpus_that_are_left(root, monkeypatch):
    from detector.keys import read_settings
    from detector.recipes import model_config

    def workers(cpus, *given):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cpus))
        model = model_config("dynamic_atss_r18").model_dump(mode="json")
        resources = train._config(model, str(root), read_settings(given, {})).resources
        return resources.loader_workers

    assert [workers(cpus) for cpus in (1, 2, 5, 64)] == [0, 1, 4, 4]
    assert workers(64, "resources.loader_workers=7") == 7
    assert workers(64, "resources.cpus_per_worker=3") is None  # two, by the configuration's own rule
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert workers(64) == 3


def test_evaluate_repeats_the_trainings_own_figures(trained, root, tmp_path, capsys):
    arguments = [str(trained / "model"), "--data", str(root), "--split", "val", "--out", str(tmp_path / "out")]
    assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("AP ")
    assert "triangle" in said
    assert re.search(r"[0-9.]+ ms an image, one at a time, from pixels to boxes, on \w+", said)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    classes = {f"AP_class/{row['id']}": row["AP"] for row in json.loads((trained / "per_class.json").read_text())}
    assert len(classes) == 3
    assert {key: metrics[key] for key in classes} == classes
    assert set(metrics) == {*FIGURES, *classes, "loss_reg_fixed", "inference_ms", "eval_seconds", "device"}
    for name in ("per_class.json", "detections.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((trained / name).read_text())


def test_a_split_without_annotations_gives_the_servers_zip(trained, root, tmp_path, capsys):
    images = json.loads((root / "annotations" / "val.json").read_text())
    (tmp_path / "annotations").mkdir()
    without = {"images": images["images"], "categories": images["categories"], "info": {}}
    (tmp_path / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(without))
    (tmp_path / "test2017").symlink_to(root / "val")
    arguments = [str(trained / "model"), "--data", str(tmp_path), "--split", "test-dev2017"]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    name = "detections_test-dev2017_detsweep_results"
    with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        rows = json.loads(archive.read(f"{name}.json"))
    assert rows == json.loads((tmp_path / "out" / "detections.json").read_text())
    assert "7 images without annotations: not scored here" in capsys.readouterr().out


def with_categories(root, folder, change):
    """A copy of the validation split under ``folder`` whose JSON ``change`` has been at."""
    content = json.loads((root / "annotations" / "val.json").read_text())
    change(content)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    (folder / "val").symlink_to(root / "val")
    return ["--data", str(folder), "--split", "val"]


def test_data_of_other_categories_is_refused(trained, root, tmp_path, capsys):
    def rename(content):
        content["categories"][0]["name"] = "plate"

    data = with_categories(root, tmp_path, rename)
    assert evaluate.main([str(trained / "model"), *data, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the model finds 3 categories (disc, bar, triangle), but" in said
    assert "has 3 (plate, bar, triangle): category 1" in said
    assert "is 'plate' there and 'disc' to the model" in said


def test_a_model_of_more_categories_is_evaluated_by_id(talking, root, tmp_path):
    """As torchvision's 91 labels on COCO's 80: what only the model knows neither counts nor is written."""
    kept = []

    def drop_first(content):
        gone = content["categories"].pop(0)["id"]
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] != gone]
        kept.extend(category["id"] for category in content["categories"])

    data = with_categories(root, tmp_path, drop_first)
    assert evaluate.main([str(talking / "model"), *data, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    whole = json.loads((talking / "out" / "detections.json").read_text())
    assert 0 < len(rows) < len(whole)
    assert rows == [row for row in whole if row["category_id"] in kept]
    per_class = json.loads((tmp_path / "out" / "per_class.json").read_text())
    before = json.loads((talking / "out" / "per_class.json").read_text())
    assert per_class == [row for row in before if row["id"] in kept]


def test_evaluate_and_predict_look_several_times(talking, root, tmp_path, capsys):
    views = ["--flip", "--scales", "48,64", "--precision", "bfloat16"]
    model, data = str(talking / "model"), ["--data", str(root), "--split", "val"]
    assert evaluate.main([model, *data, "--out", str(tmp_path / "out"), *views]) == 0
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert rows != json.loads((talking / "out" / "detections.json").read_text())
    assert (
        predict.main([model, str(root / "val"), "--out", str(tmp_path / "out"), *views, "--score-threshold", "0"]) == 0
    )
    assert len(list((tmp_path / "out").glob("*.png"))) == 7
    for wrong, sentence in (("640,x", "expected short sides"), ("0", "scales has 0")):
        assert evaluate.main([model, *data, "--scales", wrong, "--out", str(tmp_path / "no")]) == 2
        assert predict.main([model, str(root / "val"), "--scales", wrong, "--out", str(tmp_path / "no")]) == 2
        assert capsys.readouterr().err.count(sentence) == 2
    assert not (tmp_path / "no").exists()


def test_files_folders_and_globs_give_a_picture_each_and_nothing_is_written_over(trained, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "b.gif"):
        Image.new("RGB", (64, 48)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    model, out = str(trained / "model"), tmp_path / "out"
    assert predict.main([model, str(folder), str(folder / "*.png"), str(folder / "a.jpg"), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["a-2.png", "a.png", "b.png"]
    before = (folder / "a.png").read_bytes()
    assert predict.main([model, str(folder / "a.png"), "--out", str(folder)]) == 2
    assert "a.png would be written over" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before


def test_a_file_where_the_output_should_go_is_refused_first(trained, root, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    Image.new("RGB", (64, 48)).save(tmp_path / "good.jpg")
    out = ["--out", str(tmp_path / "taken")]
    assert predict.main([str(trained / "model"), str(tmp_path / "good.jpg"), *out]) == 4
    assert evaluate.main([str(trained / "model"), "--data", str(root), "--split", "val", *out]) == 4
    assert capsys.readouterr().err.count("can't be written (File exists)") == 2


def test_unreadable_images_are_skipped_by_name(trained, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    Image.new("RGB", (64, 48)).save(tmp_path / "good.jpg")
    assert predict.main([str(trained / "model"), str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "bad.jpg can't be read" in said.err
    assert "in 1 images" in said.out
    assert predict.main([str(trained / "model"), str(tmp_path / "bad.jpg"), "--out", str(tmp_path / "out")]) == 2
    assert predict.main([str(trained / "model"), str(tmp_path / "*.gif"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "model.backbon=r18"], 'unknown key "model.backbon"; did you mean "model.backbone"?'),
        (["--set", "schedule.iterations=many"], "schedule.iterations"),
        (["--set", "schedule.batch_size"], "expected --set KEY=VALUE"),
        (["--set", "=3"], "error: --set =3: expected --set KEY=VALUE, such as --set schedule.iterations=100"),
        (["--recipe", "dynamic_atss_r5"], "did you mean dynamic_atss_r50"),
        (["--set", "data.root=elsewhere"], "it is the command's first argument"),
        (["--sett", "a=1"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([str(root), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_data_set_says_what_is_expected(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([str(tmp_path / "nothing"), *SMALL]) == 2
    assert "annotations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["train", "evaluate", "predict", "export"])
def test_help_imports_nothing_heavy(module):
    code = (
        f"import sys\nfrom detector.{module} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("usage: python -m detector.")
    assert done.stderr.strip() == "[]"
