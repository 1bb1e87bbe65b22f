"""Plug-ins: parsed until they are loaded, carried as text, needed for training and for heads, not for assigners."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import detector
from detector import checkpoints, evaluate, plugins, predict, train, training
from detector.assigners import ASSIGNERS, build_assigner
from detector.checkpoints import save_model
from detector.config import TrainingConfig
from detector.data.store import open_store
from detector.data.synthetic import generate
from detector.errors import InputError
from detector.heads import HEADS
from detector.plugins import Plugin, read_plugin
from detector.rehearsal import rehearse
from detector.training import Hooks
from tests.detector.conftest import GENERATED, small_config
from tests.detector.processes import run

ASSIGNER = '''
"""Positive where an anchor's centre lies in the middle of a box."""
import torch

from detector.assigners import BACKGROUND, dense_assignment, padded
from detector.boxes import centers, distances


def build_assigner(config):
    return Middle(config.options.get("share", 0.5))


class Middle:
    def __init__(self, share):
        self.share = share

    def __call__(self, anchors, level_shapes, gt_boxes, predicted_boxes=None, progress=0.0):
        boxes, real = padded(gt_boxes, anchors)
        half = (boxes[..., 2:] - boxes[..., :2]) / 2 * self.share
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        shrunk = torch.cat((middle - half, middle + half), -1)
        inside = (distances(centers(anchors), shrunk[:, :, None]).amin(-1) > 0) & real[..., None]  # (N, G, A)
        found, owner = inside.max(1)
        return dense_assignment(torch.where(found, owner, BACKGROUND), boxes, predicted_boxes)
'''
HEAD = """
from torch import nn

from detector.heads import HeadKind, HeadOutputs
from detector.heads.atss import ATSSCriterion, decode_deltas
from detector.layers import initialise, initialise_prior


class OneLayer(nn.Module):
    def __init__(self, config, *, num_classes):
        super().__init__()
        width = config.head.options.get("width", 1)
        self.classes = nn.Conv2d(config.neck.channels, num_classes, width, padding=width // 2)
        self.boxes = nn.Conv2d(config.neck.channels, 4, width, padding=width // 2)
        self.apply(initialise)
        initialise_prior(self.classes)

    def forward(self, pyramid):
        return HeadOutputs([self.classes(level) for level in pyramid], [self.boxes(level) for level in pyramid], None)


HEAD = HeadKind(OneLayer, decode_deltas, ATSSCriterion)
"""


@pytest.fixture(autouse=True)
def _clean():
    """What a test loads is gone after it."""
    before = dict(ASSIGNERS), dict(HEADS)
    yield
    for table, kept in zip((ASSIGNERS, HEADS), before, strict=True):
        table.clear()
        table.update(kept)


def written(folder: Path, source: str, name: str = "middle.py") -> Path:
    (folder / name).write_text(source)
    return folder / name


def read(folder: Path, source: str, name: str = "middle.py") -> Plugin:
    return read_plugin(written(folder, source, name), "here")


def config_with(plugin: Plugin, *, head: dict | None = None, assigner: dict | None = None, **model) -> TrainingConfig:
    base = small_config()
    fields = base.model_dump()
    fields["plugins"] = [plugin.model_dump()]
    fields["model"]["head"] |= {"quality_branch": "none", **(head or {})}
    fields["model"]["assigner"] |= assigner or {}
    fields["model"] |= model
    return TrainingConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("def build_assigner(config:\n", "middle.py", ["line 1 isn't Python", "correct it there"]),
        ("x = 1\n", "middle.py", ["adds nothing", "build_assigner(config)", "HEAD"]),
        ("def f():\n    def build_assigner(config): ...\n", "middle.py", ["adds nothing"]),
        ("HEAD: int\n", "middle.py", ["adds nothing"]),
        ("def build_assigner(config): ...\n", "fcos.py", ["would replace the assigner fcos", "rename the file"]),
        ("HEAD = 1\n", "gfl.py", ["would replace the head gfl"]),
        ("HEAD = 1\n", "my-head.py", ["called like a Python module"]),
        ("HEAD = 1\n", "head.txt", ["called like a Python module"]),
        ("from . import other\nHEAD = 1\n", "middle.py", ["line 1 imports .", "one file"]),
        ("import beside\nHEAD = 1\n", "middle.py", ["line 1 imports beside", "put what it needs into it"]),
    ],
)
def test_what_is_no_plugin_is_refused_unexecuted(tmp_path, source, name, words):
    (tmp_path / "beside.py").write_text("")
    with pytest.raises(InputError) as refused:
        read(tmp_path, source, name)
    assert str(refused.value).startswith("here: ")
    for word in words:
        assert word in str(refused.value)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xff\xfe\x00HEAD = 1")
    with pytest.raises(InputError, match="can't be read as UTF-8"):
        read_plugin(tmp_path / "a.py", "here")
    with pytest.raises(InputError, match="there is no plug-in"):
        read_plugin(tmp_path / "b.py", "here")


def test_reading_executes_nothing_and_the_digest_is_of_the_meaning(tmp_path):
    trap = f"open({str(tmp_path / 'trace')!r}, 'w')\n"
    plugin = read(tmp_path, trap + ASSIGNER)
    assert not (tmp_path / "trace").exists()
    assert (plugin.name, plugin.provides) == ("middle", ("assigner",))
    assert plugin.digest == read(tmp_path, "# why\n" + trap + ASSIGNER.replace("Positive", "Negative")).digest
    assert plugin.digest != read(tmp_path, trap + ASSIGNER.replace("0.5", "0.25")).digest
    assert read(tmp_path, ASSIGNER + HEAD).provides == ("assigner", "head")


def test_a_name_must_be_declared(tmp_path):
    plugin = read(tmp_path, ASSIGNER)
    assert config_with(plugin, assigner={"name": "middle"}).model.assigner.name == "middle"
    with pytest.raises(ValidationError, match=r'model.assigner.name is "midle".* did you mean "middle"'):
        config_with(plugin, assigner={"name": "midle"})
    with pytest.raises(ValidationError, match=r'model.head.name is "middle", but there is no such head'):
        config_with(plugin, head={"name": "middle"})
    with pytest.raises(ValidationError, match=r'did you mean "atss"'):
        small_config(model={"assigner": {"name": "ats"}})


def test_options_are_plain_and_for_plugins(tmp_path):
    plugin = read(tmp_path, ASSIGNER)
    options = {"share": 0.25, "on": True, "text": "x", "none": None, "list": [1, 2.5, "a"]}
    assert config_with(plugin, assigner={"name": "middle", "options": options}).model.assigner.options == options
    for wrong in ({"a": {"b": 1}}, {"a": [[1]]}, {"a": float("nan")}, [1]):
        with pytest.raises(ValidationError):
            config_with(plugin, assigner={"name": "middle", "options": wrong})
    with pytest.raises(ValidationError, match=r"model.assigner.options are for plug-ins, and atss is none"):
        config_with(plugin, assigner={"options": {"share": 1}})


def test_an_assigner_assigns_with_its_options(tmp_path):
    plugins.load([read(tmp_path, ASSIGNER)])
    anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [40, 0, 48, 8]])
    boxes = [torch.tensor([[0.0, 0, 16, 8]])]  # centre (8, 4)
    for share, expected in ((0.25, [-1, -1, -1]), (0.75, [0, 0, -1])):
        config = small_config().model.assigner.model_copy(update={"name": "middle", "options": {"share": share}})
        assert build_assigner(config)(anchors, [(1, 3)], boxes).gt_index.tolist() == [expected]


def test_a_later_version_replaces_the_earlier_one(tmp_path):
    for share in (0.25, 0.75):
        plugins.load([read(tmp_path, ASSIGNER.replace("0.5", str(share)))])
        assert ASSIGNERS["middle"](small_config().model.assigner).share == share


def ten_losses(config, uri, folder):
    losses = []

    class Journal(Hooks):
        def on_metrics(self, step, metrics):
            losses.append(metrics["loss"])

    folder.mkdir(parents=True, exist_ok=True)
    training.train(config, open_store(uri), folder=folder, hooks=Journal(), device="cpu")
    return losses


def test_workers_train_with_it_from_the_configuration_alone(generated, tmp_path):
    plugin = read(tmp_path, ASSIGNER + HEAD)
    (tmp_path / "middle.py").unlink()
    head = {"name": "middle", "options": {"width": 3}}
    config = config_with(plugin, assigner={"name": "middle"}, head=head)
    config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"iterations": 4})})
    alone = ten_losses(config, generated[0].uri, tmp_path / "alone")
    assert len(alone) == 4
    shared = run(ten_losses, 2, tmp_path / "two", config, generated[0].uri, tmp_path / "shared")
    assert shared[0] == pytest.approx(alone, rel=1e-4)


def test_a_saved_model_needs_its_head_but_not_its_assigner(tmp_path, capsys):
    plugin = read(tmp_path, ASSIGNER + HEAD)
    rehearse(config_with(plugin, assigner={"name": "middle"}))
    for name, head in (("assigner", {}), ("head", {"name": "middle"})):
        config = config_with(plugin, assigner={"name": "middle"}, head=head).model
        save_model(detector.build(config, num_classes=3), tmp_path / name)
    script = f"""
import detector, numpy
found = detector.load({str(tmp_path / "assigner")!r}, device="cpu")
print(len(found.predict(numpy.zeros((64, 64, 3), "uint8"))))
for attempt in (lambda: found.criterion.assigner, lambda: detector.load({str(tmp_path / "head")!r}, device="cpu")):
    try:
        attempt()
    except detector.errors.InputError as error:
        print(error)
detector.plugins.use({str(tmp_path / "middle.py")!r})
print(detector.load({str(tmp_path / "head")!r}, device="cpu").config.head.name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count, assigner, head, name = done.stdout.splitlines()
    assert count.isdigit()
    assert assigner.startswith('there is no assigner "middle"')
    assert head.startswith('there is no head "middle"')
    assert 'detector.plugins.use("middle.py")' in head
    assert name == "middle"


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect"])
def test_a_command_without_the_file_of_a_head_asks_for_its_own_option(tmp_path, capsys, monkeypatch, command):
    path = written(tmp_path, HEAD)
    plugin = read_plugin(path, "a test")
    plugins.load([plugin])
    detector.build(config_with(plugin, head={"name": "middle"}).model, categories=["disc", "bar", "triangle"]).save(
        tmp_path / "model"
    )
    monkeypatch.delitem(HEADS, "middle")  # as in a process of the command's own
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    root = generate(GENERATED, tmp_path / "data", progress=False)
    model, out = str(tmp_path / "model"), ["--out", str(tmp_path / "out")]
    run, words = {
        "predict": (predict.main, [model, str(tmp_path / "image.png"), *out]),
        "evaluate": (evaluate.main, [model, "--data", str(root), "--split", "val", *out]),
        "inspect": (checkpoints.main, ["inspect", model]),
    }[command]
    assert run(words) == 2
    assert "name its file: --plugin middle.py in commands" in capsys.readouterr().err
    assert run([*words, "--plugin", str(path)]) == 0


def test_building_with_a_name_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r'there is no assigner "fixed_io" \(did you mean "fixed_iou"\?\)'):
        detector.build({"assigner": {"name": "fixed_io"}, "weights": "none", "backbone": "r18"}, num_classes=2)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module\n" + ASSIGNER, ["middle.py, line 1: ModuleNotFoundError"]),
        ("build_assigner = 3\n", ["build_assigner must be a function"]),
        ("def build_assigner(config):\n    return config.options['k']\n", ["middle.py, line 2: KeyError: 'k'"]),
        ("def build_assigner(config):\n    return lambda *words: None\n", ["gave a NoneType", "dense_assignment"]),
        (ASSIGNER.replace("gt_boxes, predicted_boxes=None, progress=0.0", "gt_boxes"), ["TypeError"]),
        (ASSIGNER + HEAD.replace("HeadKind(OneLayer,", "("), ["HEAD must be a detector.heads.HeadKind, not tuple"]),
        (ASSIGNER + HEAD.replace("self.apply", "self.unused = nn.Linear(2, 2)\n        self.apply"), ["unused.weight"]),
    ],
)
def test_what_fails_is_said_with_its_line_before_anything_starts(tmp_path, source, words):
    config = config_with(
        read(tmp_path, source),
        assigner={"name": "middle"},
        head={"name": "middle"} if "HEAD" in source else {},
    )
    with pytest.raises(InputError) as refused:
        rehearse(config)
    for word in words:
        assert word in str(refused.value)


SMALL = [
    *("--recipe", "atss_r18", "--set", "model.weights=none", "--set", "model.neck.channels=64"),
    *("--set", "model.head.convolutions=1", "--set", "model.head.quality_branch=none"),
    *("--set", "data.short_side=64", "--set", "data.long_side=96", "--set", "schedule.batch_size=4"),
    *("--set", "schedule.iterations=2"),
]


def test_the_command_trains_with_it(tmp_path, capsys):
    root = generate(GENERATED, tmp_path / "data")
    path = written(tmp_path, ASSIGNER + HEAD)
    words = [str(root), *SMALL, "--plugin", str(path), "--output", str(tmp_path / "run")]
    assert train.main(words) == 2
    assert "add --set model.assigner.name=middle" in capsys.readouterr().err
    words += ["--set", "model.assigner.name=middle", "--set", "model.assigner.options.share=0.75"]
    words += ["--set", "model.head.name=middle"]
    assert train.main(words) == 0
    assert f"--plugin {path}" in capsys.readouterr().out
    assert train.main(words) == 0
    written(tmp_path, ASSIGNER + "\n# Only a comment.\n" + HEAD)
    assert train.main(words) == 0
    capsys.readouterr()
    written(tmp_path, ASSIGNER.replace("0.5", "0.4") + HEAD)
    assert train.main(words) == 2
    assert "the plug-in differ" in capsys.readouterr().err
    assert train.main([*words, "--plugin", str(tmp_path / "none.py")]) == 2
    assert "there is no plug-in" in capsys.readouterr().err
