"""The pages of docs/ that are meant to be pasted are pasted: each block in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|yaml|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def paste(page: str, folder: Path) -> list[str]:
    """Files are written under the name of their first line, commands and other Python run; returns what they print."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parent),
        "DETSWEEP_STORAGE": str(folder / "storage"),
        "OMP_NUM_THREADS": "1",
    }
    said = []
    for language, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        named = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if named:
            (folder / named[1]).write_text(text)
            continue
        words = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    return said


@pytest.mark.timeout(400)
def test_an_assigner_and_a_head_are_added_as_the_page_says(tmp_path: Path) -> None:
    assigner, table, head, loaded = paste("add-an-assigner.md", tmp_path)
    assert "python -m detector.predict runs/middle/model" in assigner
    assert re.search(r"plug-ins  middle\.py \(assigner middle, [0-9a-f]{12}\)", table)
    assert "3 rows and seeds, 3 distinct trainings" in table
    assert "--plugin plain.py" in head
    assert loaded == ""
    assert len(list((tmp_path / "found_plain").glob("*.png"))) == 4
    assert not (tmp_path / "storage").exists(), "a dry run makes nothing"
