"""The built wheel, in an empty folder, has the same commands, recipes and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's contents, as an installation would lay them out."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), "."]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("detsweep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_only_the_two_packages_are_at_the_top(unpacked):
    top = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"detector", "orchestrator"}
    assert (unpacked / "orchestrator" / "sweeps" / "table3.yaml").is_file()
    assert (unpacked / "orchestrator" / "sweeps" / "profiles" / "laptop.yaml").is_file()
    assert (unpacked / "orchestrator" / "cluster" / "README.md").is_file()


def test_the_sweep_of_the_readme_is_found_from_an_empty_folder(unpacked, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    code = (
        "import orchestrator, runpy, sys\n"
        f"assert orchestrator.__file__.startswith({str(unpacked)!r}), orchestrator.__file__\n"
        "sys.argv = ['sweep', 'sweeps/table3.yaml', '--profile', 'laptop', '--dry-run', '--storage', 'here',\n"
        "            '--set', 'data.generated.train_images=4', '--set', 'data.generated.val_images=2']\n"
        "runpy.run_module('orchestrator.sweep', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "8 distinct trainings" in done.stdout
