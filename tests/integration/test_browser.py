"""The report and MLflow's own pages in a real browser: what a reader sees, and nothing in the console.

Left out where no Chromium is installed (Debian: ``apt-get install chromium``; or name one by $BROWSER_COMMAND).
Pictures of what was seen go to $BROWSER_PICTURES, if that is set.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import sync
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.report import __main__ as report
from tests.browser import Tab, browsing, find_browser
from tests.faults.servers import mlflow_server
from tests.made_up import make_sweep, name_of

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium is installed: report and MLflow's pages unseen"
)


@dataclass(frozen=True)
class Place:
    plan: Plan
    ledger: Ledger
    page: Path
    server: str
    client: MlflowClient


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A sweep of three rows and two seeds in a server of MLflow, one training of it not finished, and its report."""
    folder = tmp_path_factory.mktemp("browser")
    with mlflow_server(folder) as uri:
        plan, ledger = make_sweep(
            folder, rows=3, seeds=2, steps=3000, images=12, pairs=2, tracking_uri=uri, unfinished=[(2, 1)], models=True
        )
        arguments = [str(folder / "made_up.yaml"), "--storage", str(folder / "storage"), "--tracking-uri", uri]
        assert sync.main(arguments) == 0
        assert report.main(arguments) == 0
        yield Place(plan, ledger, plan.folder / "report.html", uri, MlflowClient(tracking_uri=uri))


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    command = find_browser()
    assert command is not None
    with browsing(command) as tab:
        yield tab


def picture(tab: Tab, name: str, **options: object) -> None:
    folder = os.environ.get("BROWSER_PICTURES")
    if folder:
        tab.screenshot(Path(folder) / f"{name}.png", **options)  # type: ignore[arg-type]


def own(errors: list[str]) -> list[str]:
    """Without what MLflow 3 says of any server that has no users."""
    return [error for error in errors if not error.endswith("/mlflow/users/current")]


def test_the_report_is_read_offline_and_without_an_error(place: Place, tab: Tab) -> None:
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    try:
        seen = tab.open(place.page.as_uri())
    finally:
        tab.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
    assert seen.errors == []
    assert seen.requests == [place.page.as_uri()], "it asks for nothing but itself"
    assert tab.evaluate("document.querySelectorAll('h2').length") == 7
    assert tab.evaluate(
        "[...document.querySelectorAll('svg.picture use')].every(u => u.getBoundingClientRect().width > 50)"
    )
    sizes = "[...document.querySelectorAll('svg.plot')].map(s => Math.round(s.getBoundingClientRect().width))"
    assert min(tab.evaluate(sizes)) > 300
    tab.size(390, 844)
    # On a telephone only what scrolls by itself is wider than the screen.
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for name, options in (("report", {}), ("report-dark", {"dark": True}), ("report-narrow", {"width": 390})):
        picture(tab, name, **options)
    tab.size(1280, 900)
    printed = tab.call("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 10_000


def test_every_link_of_the_report_leads_somewhere(place: Place, tab: Tab) -> None:
    tab.open(place.page.as_uri())
    links = tab.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    inner = [link for link in links if link.startswith("#")]
    assert len(inner) == 7
    assert tab.evaluate(f"{json.dumps(inner)}.every(h => document.getElementById(h.slice(1)))")
    runs = {link for link in links if not link.startswith("#")}
    wanted = {place.ledger.run_id(place.plan.key, row.row, row.seed) for row in place.plan.rows}
    assert runs == {f"{place.server}/#/runs/{run}" for run in wanted}
    seen = tab.open(sorted(runs)[0], until="document.body.innerText.includes('loss_reg')")
    assert own(seen.errors) == []
    picture(tab, "mlflow-run", height=1000)


def test_mlflow_shows_the_sweep_as_one_run_with_its_children(place: Place, tab: Tab) -> None:
    experiment = place.client.get_experiment_by_name("made_up")
    assert experiment is not None
    seen = tab.open(
        f"{place.server}/#/experiments/{experiment.experiment_id}/runs",
        until="document.body.innerText.includes('7 matching runs')",
    )
    assert own(seen.errors) == []
    name = json.dumps(f"{name_of(0)} seed 0")
    tab.wait("document.querySelector('.ag-row button')")
    assert not tab.evaluate(f"document.body.innerText.includes({name})"), "one run, closed"
    tab.evaluate("document.querySelector('.ag-row button').click()")
    tab.wait(f"document.body.innerText.includes({name})")
    rows = tab.evaluate("new Set([...document.querySelectorAll('.ag-row')].map(r => r.getAttribute('row-id'))).size")
    assert rows == 7
    picture(tab, "mlflow-runs", height=900)


def test_in_the_compare_view_the_columns_that_differ_are_what_the_table_varies(place: Place, tab: Tab) -> None:
    experiment = place.client.get_experiment_by_name("made_up")
    assert experiment is not None
    chosen = [place.ledger.run_id(place.plan.key, name_of(number), 0) for number in range(3)]
    values = {"runs": json.dumps(chosen), "experiments": json.dumps([experiment.experiment_id])}
    seen = tab.open(
        f"{place.server}/#/compare-runs?{urllib.parse.urlencode(values, quote_via=urllib.parse.quote)}",
        until="document.body.innerText.includes('model.assigner.topk')",
    )
    assert own(seen.errors) == []
    picture(tab, "mlflow-compare", height=1600)
    tab.evaluate("document.querySelector('button[aria-label=\"Parameters - Show diff only\"]').click()")
    tab.wait("!document.body.innerText.includes('model.assigner.topk')")
    lines = tab.text().split("Show diff only")[1].split("Metrics")[0].strip().splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == ["model.assigner.predicted_weight"]
    picture(tab, "mlflow-compare-differences", height=1600)
