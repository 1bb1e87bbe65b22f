"""What tests of faults measure, as a table at the end; and ``--resume``, which goes on with an interrupted run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from tests.faults.sweeps import ROOT

KEY = "faults/passed"
COLUMNS = ("fault", "completed", "steps wasted", "seconds to recover", "duplicates", "damaged", "what was said")
Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", action="store_true", help="leave out what has passed on this very code")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--resume", False) and config.cache is not None:
        config.pluginmanager.register(_Resumed(config), "faults-resumed")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measure:
    """Notes what a fault cost; see ``COLUMNS``. A dash stands where something has no meaning, or wasn't counted.

    Duplicates and what is damaged are counted by :func:`tests.faults.counted.counted`.
    """

    def note(
        fault: str,
        *,
        completed: str = "yes",
        wasted: object = "–",
        seconds: float | None = None,
        duplicates: object = "–",
        damaged: object = "–",
        said: str = "–",
    ) -> None:
        took = "–" if seconds is None else f"{seconds:.1f}"
        cells = (fault, completed, wasted, took, duplicates, damaged, " ".join(said.split()))
        record_property("measured", "| " + " | ".join(map(str, cells)) + " |")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    resumed = config.pluginmanager.getplugin("faults-resumed")
    rows = list(resumed.before) if resumed else []
    for report in terminalreporter.getreports("passed"):
        rows += [row for key, row in report.user_properties if key == "measured"]
    if rows:
        terminalreporter.section("what was measured")
        terminalreporter.write_line("| " + " | ".join(COLUMNS) + " |")
        terminalreporter.write_line("|" + " --- |" * len(COLUMNS))
        for row in dict.fromkeys(rows):
            terminalreporter.write_line(row)


class _Resumed:
    def __init__(self, config: pytest.Config) -> None:
        assert config.cache is not None
        self._cache, self._code = config.cache, _digest()
        known = self._cache.get(KEY, {})
        self._passed: dict[str, list[str]] = known["tests"] if known.get("code") == self._code else {}
        self.before = [row for rows in self._passed.values() for row in rows]
        """What was measured before the interruption."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed[report.nodeid] = [str(row) for key, row in report.user_properties if key == "measured"]
            self._cache.set(KEY, {"code": self._code, "tests": self._passed})


def _digest() -> str:
    whole = hashlib.sha256()
    for folder in ("detector", "orchestrator", "cluster", "tests/faults"):
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"):
            whole.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
