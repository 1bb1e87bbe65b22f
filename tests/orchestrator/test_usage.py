"""What the machine does, and which code runs, as a training writes it down."""

import subprocess
from pathlib import Path

import psutil
import torch

import detector
from orchestrator import revision
from orchestrator.identity import sources_digest
from orchestrator.usage import Usage


def test_samples_have_mlflows_names_and_are_not_taken_all_the_time():
    usage = Usage(torch.device("cpu"), every_s=1000.0)
    sample = usage.sample()
    assert sample is not None
    assert set(sample) == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    }
    assert 0 <= sample["system/cpu_utilization_percentage"] <= 100
    assert 0 < sample["system/system_memory_usage_megabytes"] <= psutil.virtual_memory().total / 1e6
    assert usage.sample() is None
    assert Usage(torch.device("cpu"), every_s=0.0).sample() is not None


def test_the_revision_is_the_checkouts(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    package = tmp_path / "detector" / "__init__.py"
    package.parent.mkdir()
    package.write_text("one = 1\\n")
    monkeypatch.setattr(detector, "__file__", str(package))
    found = revision.code_revision.__wrapped__()
    assert found == {"sources": sources_digest()[:16]}
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = revision.code_revision.__wrapped__()["revision"]
    assert len(commit) == 40
    package.write_text("one = 2\\n")
    assert revision.code_revision.__wrapped__()["revision"] == f"{commit}-modified"
    assert Path(detector.__file__) == package
