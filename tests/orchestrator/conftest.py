"""What tests of the commands share."""

from __future__ import annotations

import shutil
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


@pytest.fixture(scope="session")
def search_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small search with its data and an empty MLflow store, whose schema takes seconds to make."""
    from orchestrator.ledger import Ledger
    from orchestrator.runs import RunStore
    from tests.orchestrator.searches import plan_of, write_search

    folder = tmp_path_factory.mktemp("search")
    write_search(folder)
    plan = plan_of(folder, "describe")
    RunStore(plan, Ledger(plan.storage)).connect()
    return folder


@pytest.fixture
def search_folder(search_template: Path, tmp_path: Path) -> Path:
    """The same, for one test."""
    from tests.orchestrator.searches import write_search

    shutil.copytree(search_template, tmp_path, dirs_exist_ok=True)
    write_search(tmp_path)
    return tmp_path
