"""A small search, and a stand-in for Tune that trains its samples in no time, on a ledger that is real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.search
from orchestrator import journal, nodes, session
from orchestrator.files import read_json
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow, make_plan
from orchestrator.request import SweepRequest
from orchestrator.results import result_rows
from orchestrator.search import run_search
from orchestrator.session import SweepOutcome
from orchestrator.worker import Assignment
from tests.orchestrator.tables import BASE, write_data, write_table

SEARCH = """\
name: hunt
title: A small search
base: small
rows:
  - {name: plain, set: {model.assigner.predicted_weight: 0}}
  - {name: both, set: {model.assigner.predicted_weight: 1}}
seeds: [7]
search:
  parameters:
    model.assigner.predicted_weight: {uniform: [0, 2]}
    model.assigner.topk: {randint: [5, 12]}
  reference: both
  samples: 12
  seed: 3
  scheduler: {grace_period: 10, reduction_factor: 3}
  winner_seeds: [0, 1, 2]
"""


def write_search(folder: Path, text: str = SEARCH) -> Path:
    """The sweep file, with its data."""
    if not (folder / "data").exists():
        write_data(folder / "data", splits=("train", "val", "other"))
        image = folder / "data" / "other" / "1.jpg"
        image.write_bytes(image.read_bytes() + b"more")
    return write_table(folder, text, name="hunt.yaml", base=BASE + f"data.root: {folder / 'data'}\n")


def request_of(folder: Path, **options: Any) -> SweepRequest:
    return SweepRequest(str(folder / "hunt.yaml"), storage=str(folder / "storage"), **options)


def plan_of(folder: Path, purpose: Any = "run", **options: Any) -> Plan:
    return make_plan(request_of(folder, **options), purpose)


class Untracked:
    """In the place of MLflow's writer, which takes a second a run."""

    opened = True

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        pass

    def connect(self, patience: float = 0.0) -> None: ...

    def open(self, patience: float = 0.0) -> None: ...

    def start(self) -> None: ...

    def add(self, row: PlannedRow) -> None: ...

    def stop_polling(self) -> None: ...

    def finish(self, status: str, *, patience: float = 0.0) -> str | None:
        return None


class Tuned:
    """What trains: a sample's AP rises with its steps to ``height`` of its values; after ``until`` trials it breaks."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, height: Callable[[dict[str, Any]], float], *, tracked: bool = False
    ) -> None:
        self.height, self.until = height, 1000
        self.trained: list[tuple[str, int, int]] = []
        """Identity, first and last step."""
        self.failing: set[int] = set()
        """Samples, by their place in the order of trials, whose training fails."""
        self.trials = 0
        tuned = self

        @contextlib.contextmanager
        def connected(address: str | None) -> Iterator[nodes.Nodes]:
            yield nodes.Nodes(cpus=(4.0,), gpus=(0.0,), here=True)

        def search(self: session.Pass, function: Any, **options: Any) -> None:
            if "search_alg" in options:
                tuned.search(Ledger(self.plan.place, self.ledger.fence), self, **options)
            else:
                for assignment in function.keywords["assignments"].values():
                    tuned.train(Ledger(self.plan.place), assignment)

        monkeypatch.setattr(nodes, "connected", connected)
        if not tracked:
            for module in (session, orchestrator.search):
                monkeypatch.setattr(module, "Tracker", Untracked)
        monkeypatch.setattr(session.Pass, "_tuned", search)

    def search(self, ledger: Ledger, running: session.Pass, **options: Any) -> None:
        sampler, scheduler = options["search_alg"], options["scheduler"]
        for number in range(options["num_samples"]):
            if self.trials >= self.until:
                running._broken = RuntimeError("the cluster is gone")
                return
            self.trials += 1
            trial = SimpleNamespace(trial_id=f"{id(running)}-{number}")
            params = sampler.suggest(trial.trial_id)
            if params == "FINISHED":
                return

            def tell(step: int, value: float, trial: Any = trial) -> None:
                result = {"step": step, "AP": value, "training_iteration": step}
                scheduler.on_trial_result(None, trial, result)
                sampler.on_trial_result(trial.trial_id, result)

            if params["assignment"] is not None:
                if self.trials in self.failing:
                    ledger.started(params["identity"], node="here", from_step=0, hardware={})
                    ledger.failed(params["identity"], "it diverged")
                else:
                    self.train(ledger, params["assignment"], tell)
            sampler.on_trial_complete(trial.trial_id, {"state": "done"})

    def train(
        self, ledger: Ledger, assignment: Assignment, tell: Callable[[int, float], None] = lambda step, value: None
    ) -> None:
        identity, config = assignment.identity, assignment.training_config
        job = assignment.evaluations[0]
        weight = config.model.assigner.predicted_weight
        top = self.height({"weight": weight, "topk": config.model.assigner.topk, "seed": config.seed})
        every, steps = config.evaluation.every or 100, config.schedule.max_iterations
        begin = ledger.record(identity).step
        ledger.started(identity, node="here", from_step=begin, hardware={"device": "cpu", "workers": 1})
        for step in [*range(begin + every, steps, every), steps]:
            value = top * step / steps
            ledger.append(identity, journal.line(step, "evaluation", {"AP": value}, evaluation=job.key))
            tell(step, value)
            if read_json(ledger.training(identity) / "status.json").get("stopping"):
                self.trained.append((identity, begin, step))
                ledger.release(identity)
                return
        self.trained.append((identity, begin, steps))
        results = ledger.storage / "results"
        (results / "model").mkdir(parents=True, exist_ok=True)
        (results / "model" / "config.json").write_text('{"model": {"postprocess": {}}}')
        ledger.evaluated(identity, job.key, results, {"AP": top}, job.settings)
        ledger.finished(identity, results, {"loss": 1.0})
        ledger.release(identity)


def height(values: dict[str, Any]) -> float:
    """Highest at a weight of 1.5 and 9 candidates; seeds differ a little, but every row alike."""
    return 30 - 8 * abs(values["weight"] - 1.5) - 0.5 * abs(values["topk"] - 9) + 0.1 * (values["seed"] % 3)


def search(folder: Path, *, fresh: bool = False, **options: Any) -> tuple[Plan, SweepOutcome]:
    request = request_of(folder, **options)
    outcome = run_search(make_plan(request), lambda: make_plan(request), fresh=fresh)
    return make_plan(request), outcome


def rows_of(plan: Plan) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["row"], one["seed"]): one for one in result_rows(plan.whole, Ledger(plan.storage))}
