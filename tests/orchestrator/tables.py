"""Small sweeps, data sets and results for the tests of planning and reporting."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from detector.data.store import Store
from detector.error_kinds import ErrorKinds
from orchestrator import journal
from orchestrator.curves import Index
from orchestrator.looks import Look, Looks, before
from orchestrator.plan import Plan
from orchestrator.record import Record
from orchestrator.resampling import Resampled

BASE = """\
data: {train: train, val: val, short_side: 64, long_side: 64}
model: {backbone: r18, weights: none}
schedule: {iterations: 100, batch_size: 4, recipe_batch_size: 4}
"""
TABLE = """\
name: tiny
title: A tiny table
base: small
rows:
  - name: "1:1"
    show: {PIoUs: 1, AIoUs: 1}
    set: {model.assigner.predicted_weight: 1}
    paper: {AP: 39.75, AP50: 57.43}
  - name: "D_up:1"
    show: {PIoUs: D_up, AIoUs: 1}
    set: {model.assigner.predicted_weight: up}
compare: [["1:1", "D_up:1"]]
seeds: [0]
figures: [{name: weights, metric: loss_reg, rows: ["1:1", "D_up:1"]}]
"""


def write_table(
    folder: Path, table: str = TABLE, *, name: str = "tiny.yaml", base: str = BASE, **profiles: str
) -> Path:
    """A sweep file in ``folder`` with its base "small" and the profiles given by name."""
    (folder / "bases").mkdir(parents=True, exist_ok=True)
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "bases" / "small.yaml").write_text(base)
    for profile, text in profiles.items():
        (folder / "profiles" / f"{profile}.yaml").write_text(text)
    (folder / name).write_text(table)
    return folder / name


def write_data(
    root: Path, *, classes: Sequence[str] = ("cat", "dog"), splits: Sequence[str] = ("train", "val")
) -> Path:
    """A COCO-format folder of two images a split."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split in splits:
        (root / split).mkdir(exist_ok=True)
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)]
        for image in images:
            Image.new("RGB", (64, 48), (int(image["id"]) * 40, 90, len(split))).save(root / split / image["file_name"])
        annotations = [
            {"id": i, "image_id": i, "category_id": 3, "bbox": [4, 5, 20, 30], "area": 600, "iscrowd": 0}
            for i in (1, 2)
        ]
        categories = [{"id": 3 + 4 * index, "name": name} for index, name in enumerate(classes)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(document))
    return root


class MemoryLedger:
    """Results that a test states, in the place of those in the storage."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.journals: dict[str, dict[str, list[tuple[int, float | None]]]] = {}
        self.runs: dict[tuple[str, int], str] = {}
        self.reused: dict[tuple[str, int], str] = {}
        self.seen: Looks = []
        self.resamples: dict[str, Resampled] = {}
        self.errors: dict[str, ErrorKinds] = {}
        self.splits: dict[str, Store] = {}

    def state(
        self, plan: Plan, row: str, state: str, *, seed: int = 0, error: str | None = None, **metrics: float | None
    ) -> str:
        """States what has become of ``row``; returns its identity."""
        identity = next(planned.identity for planned in plan.rows if (planned.row, planned.seed) == (row, seed))
        record = Record(
            identity,
            Path("nowhere"),
            state=state,
            trained=state == "finished",
            iterations=100,
            metrics=metrics,
            error=error,
        )
        self.records[identity] = replace(record, step=100 if state == "finished" else 0)
        return identity

    def record(self, identity: str, evaluations: Mapping[str, str] | None = None) -> Record:
        return self.records.get(identity, Record(identity, Path("nowhere")))

    def run_id(self, sweep_key: str, row: str, seed: int) -> str | None:
        return self.runs.get((row, seed))

    def reused_from(self, sweep_key: str, row: str, seed: int, identity: str) -> str | None:
        return self.reused.get((row, seed))

    def journal_metrics(
        self, identity: str, keys: Iterable[str], evaluation: str | None = None
    ) -> tuple[list[int], dict[str, list[float | None]]]:
        keys = list(keys)
        journal = self.journals.get(identity, {})
        table = {key: dict(journal.get(key, [])) for key in keys}
        steps = sorted({step for values in table.values() for step in values})
        return steps, {key: [table[key].get(step) for step in steps] for key in keys}

    def curves(self, identity: str) -> Index:
        index = Index()
        for key, values in self.journals.get(identity, {}).items():
            index.take(journal.line(step, "train", {key: value}).rstrip() for step, value in values)
        return index

    def examined(self, identity: str, key: str, split_digest: str) -> ErrorKinds | str:
        return self.errors.get(identity, "its detections are not in the storage")

    def split(self, split_digest: str) -> Store | str:
        return self.splits.get(split_digest, "its converted images are no longer in the storage")

    def looks(self, sweep_key: str) -> Looks:
        return list(self.seen)

    def remember_look(self, sweep_key: str, look: Look) -> None:
        if len(before(self.seen, look)) == len(self.seen):
            self.seen.append(look)

    def resampled(self, identity: str, key: str, split_digest: str) -> Resampled | str:
        return self.resamples.get(identity, "its detections are not in the storage")
