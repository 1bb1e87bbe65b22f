"""What may run at once: with ``pytest -n 2 --dist loadgroup`` one process has every test that begins a Ray cluster."""

import pytest

CLUSTERS = ("tests/faults/", "tests/integration/", "tests/test_docs.py")


@pytest.hookimpl(tryfirst=True)  # the groups are read in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups tests by file, and those with clusters, which take longest and come first, into one."""
    if not getattr(config.option, "loadgroup", False):
        return
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTERS))
    for item in items:
        alone = item.nodeid.startswith(CLUSTERS)
        item.add_marker(pytest.mark.xdist_group("clusters" if alone else item.nodeid.partition("::")[0]))
