"""``--resume``: tests of faults that have passed on this very code are left out, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEY = "faults/passed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", action="store_true", help="leave out what has passed on this very code")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--resume", False) and config.cache is not None:
        config.pluginmanager.register(_Resumed(config), "faults-resumed")


class _Resumed:
    def __init__(self, config: pytest.Config) -> None:
        self._cache, self._code = config.cache, _digest()
        before = self._cache.get(KEY, {})
        self._passed: list[str] = before.get("tests", []) if before.get("code") == self._code else []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=done)
        if done and not items:
            self._passed.clear()  # all have passed: the next run is a new one

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.append(report.nodeid)
            self._cache.set(KEY, {"code": self._code, "tests": self._passed})


def _digest() -> str:
    whole = hashlib.sha256()
    for folder in ("detector", "orchestrator", "cluster", "tests/faults"):
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"):
            whole.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
