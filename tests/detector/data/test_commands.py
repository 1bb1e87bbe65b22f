"""``python -m detector.data``: exit statuses, one-line errors, help without anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from detector.data.__main__ import main
from detector.data.store import open_store
from tests.detector.data.sets import annotation, write_set


@pytest.mark.parametrize("command", [[], ["check"], ["import"], ["convert"], ["synthesize"], ["download"], ["browse"]])
def test_help_needs_nothing_heavy(command):
    code = (
        "import sys; from detector.data.__main__ import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'torchvision', 'pyarrow', 'ray', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m detector.data")


def test_check_accepts_with_0_and_refuses_with_2(tmp_path, capsys):
    root = write_set(tmp_path)
    assert main(["check", str(root), "--short-side", "60"]) == 0
    assert "training accepts all splits" in capsys.readouterr().out
    (root / "train" / "train1.jpg").write_bytes(b"")
    assert main(["check", str(root), "--split", "train"]) == 2
    assert "ERROR" in capsys.readouterr().out


def test_a_missing_root_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_import_convert_and_check_fit_together(tmp_path, capsys):
    source = tmp_path / "yolo"
    source.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (source / "classes.txt").write_text("cup")
    assert main(["import", str(source), str(tmp_path / "set"), "--val", "0.25", "--seed", "3"]) == 0
    assert "train 3 images, val 1 images" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "set"), "--short-side", "30"]) == 0
    assert main(["convert", str(tmp_path / "set"), "--split", "train", "--out", str(tmp_path / "store")]) == 0
    assert len(open_store(tmp_path / "store")) == 3
    assert main(["convert", str(tmp_path / "set"), "--split", "train", "--out", str(tmp_path / "store")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_unwritable_place_is_status_4(tmp_path, capsys):
    root = write_set(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["convert", str(root), "--split", "train", "--out", str(tmp_path / "file" / "store")]) == 4
    assert "can't be written" in capsys.readouterr().err


def test_synthesize_prints_the_folder_it_made(tmp_path, capsys):
    assert main(["synthesize", str(tmp_path), "--train-images", "2", "--val-images", "1", "--long-side", "128"]) == 0
    out, err = capsys.readouterr()
    root = Path(out.strip())
    assert err.splitlines()[-1].startswith(f"next: python -m detector.train {root}")
    assert len(json.loads((root / "annotations" / "train.json").read_text())["images"]) == 2


def test_values_outside_their_domain_are_one_line_and_status_2(tmp_path, capsys):
    assert main(["synthesize", str(tmp_path), "--classes", "9"]) == 2
    assert capsys.readouterr().err == "error: --classes 9: Input should be less than or equal to 8\n"
    assert main(["download", "coco2017", "--root", str(tmp_path), "--base-url", "ftp://x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wrong_command_line_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["check", str(tmp_path), "--short-side", "0"]) == 2
    assert main(["convert", str(tmp_path)]) == 2
    assert main(["import", str(tmp_path), str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert main(["browse", str(tmp_path), "--out", "x.png", "--seed", "-1"]) == 2
    assert main(["browse", str(tmp_path), "--out", "x.png", "--seed", "x"]) == 2
    assert main(["browse", str(tmp_path), "--out", "x.png", "--scale-jitter", "2", "0.5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6
    assert "0 is not a positive number; see python -m detector.data check --help" in errors[0]
    assert "--split, --out; see python -m detector.data convert --help" in errors[1]
    assert "--seed: -1 is not a whole number ≥ 0 and < 2^32" in errors[2]
    assert "--seed: -1 is not a whole number" in errors[3]
    assert "--seed: 'x' is not a whole number" in errors[4]
    assert "the smaller factor stands first; write [0.5, 2]" in errors[5]


def test_browse_draws_boxes_and_positive_anchors(tmp_path, capsys):
    marks = [annotation(1, 1, [10, 10, 40, 40], 3), annotation(2, 2, [20, 5, 50, 50], 90)]
    root = write_set(tmp_path, sizes={1: (96, 128), 2: (128, 96), 3: (96, 96)}, annotations=marks)
    out = tmp_path / "sheet.png"
    options = ["--short-side", "96", "--long-side", "160", "--anchor-scale", "4", "--flip", "0"]
    assert main(["browse", str(root), "--out", str(out), *options]) == 0
    assert "2 images" in capsys.readouterr().out  # the third has no boxes
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 128 + 6, 128)
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert {(0xE6, 0x19, 0x4B), (0x43, 0x63, 0xD8)} <= colours  # of the first and the third class
