"""What tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.tables import BASE, write_data, write_table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small table with its data; storage and runs are the test's own."""
    monkeypatch.setenv("DETSWEEP_STORAGE", str(tmp_path / "storage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DETSWEEP_DATA", raising=False)
    write_data(tmp_path / "data")
    return write_table(tmp_path, base=BASE + f"data.root: {tmp_path / 'data'}\n")
