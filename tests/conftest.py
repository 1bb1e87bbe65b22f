"""What may run at once: with ``pytest -n 2 --dist loadgroup`` one process has every test that begins a Ray cluster."""

from collections.abc import Iterator

import pytest

CLUSTERS = ("tests/faults/", "tests/integration/", "tests/test_docs.py")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # pytest-xdist reads the groups in this hook, and first
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Groups tests by file, and those with clusters, which take longest and come first, into one."""
    if getattr(config.option, "loadgroup", False):
        items.sort(key=lambda item: not item.nodeid.startswith(CLUSTERS))
        for item in items:
            alone = item.nodeid.startswith(CLUSTERS)
            item.add_marker(pytest.mark.xdist_group("clusters" if alone else item.nodeid.partition("::")[0]))
    return (yield)
