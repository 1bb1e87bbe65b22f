"""What is said of a folder that isn't a data set: in the words of the command that was run."""

from __future__ import annotations

import pytest

from detector import evaluate, train
from detector.data.__main__ import main as data
from detector.data.places import IN_SWEEPS, check_places
from detector.errors import InputError
from tests.detector.data.sets import write_set

COMMANDS = {
    "train": (lambda root, out: train.main([str(root), "--recipe", "atss_r18", "--output", str(out)]), "ROOT"),
    "evaluate": (lambda root, out: evaluate.main([str(out), "--data", str(root), "--out", str(out)]), "--data"),
    "check": (lambda root, out: data(["check", str(root)]), "ROOT"),
    "convert": (lambda root, out: data(["convert", str(root), "--split", "train", "--out", str(out)]), "ROOT"),
    "browse": (lambda root, out: data(["browse", str(root), "--out", str(out)]), "ROOT"),
}


def said(command, root, tmp_path, capsys):
    """The one line that ``command`` ends with."""
    assert COMMANDS[command][0](root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_folder_is_told_by_the_command_s_own_option(command, tmp_path, capsys):
    error = said(command, tmp_path / "nowhere", tmp_path, capsys)
    assert f"{COMMANDS[command][1]} is {tmp_path / 'nowhere'}, which is not a folder" in error
    assert f"Give another folder as {COMMANDS[command][1]}" in error
    assert "--profile" not in error
    assert "data.root" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_the_folder_above_a_generated_set_is_told_which_to_give(command, tmp_path, capsys):
    above = tmp_path / "shapes"
    assert data(["synthesize", str(above), "--train-images", "1", "--val-images", "1", "--long-side", "128"]) == 0
    (root,) = above.iterdir()
    capsys.readouterr()
    assert f"give {root} as {COMMANDS[command][1]}" in said(command, above, tmp_path, capsys)


def test_of_several_sets_in_a_folder_one_is_to_be_given(tmp_path):
    for name in ("one", "other"):
        write_set(tmp_path / name)
    with pytest.raises(InputError, match=rf"give one of {tmp_path}/one, {tmp_path}/other$"):
        check_places(tmp_path, ["train"], IN_SWEEPS)


def test_a_sweep_is_told_of_its_key_and_of_generated_data(tmp_path):
    with pytest.raises(InputError, match=r"^data\.root is .* Name another folder by data\.root, .*`--profile laptop`"):
        check_places(tmp_path / "nowhere", ["train"], IN_SWEEPS)


@pytest.mark.parametrize(
    ("command", "option"), [("train", "--set data.train=… or data.val=…"), ("evaluate", "--split")]
)
def test_another_split_is_named_by_the_command_s_own_option(command, option, tmp_path, capsys):
    root = write_set(tmp_path / "set", split="all")
    assert f"annotations/ holds all.json; {option} names another split" in said(command, root, tmp_path, capsys)
