"""What may run at once: with ``pytest -n 2`` one process has every test that begins a Ray cluster."""

from typing import Any

import pytest

CLUSTERS = ("tests/faults/", "tests/integration/", "tests/test_docs.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes the first begins with clusters, which take longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(CLUSTERS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay together, and so do all with clusters."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "clusters" if nodeid.startswith(CLUSTERS) else super()._split_scope(nodeid)

    return Scheduling(config, log)
