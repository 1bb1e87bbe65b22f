"""Sweeps that nobody trained, as the ledger would hold them: for tests of the report, and for how long it takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.store import Store, ensure_store
from orchestrator import journal
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow, make_plan
from orchestrator.request import SweepRequest

HARDWARE = {"device": "cuda", "name": "Made-up GPU", "workers": 2, "threads": 4, "python": "3.11.7"}
HARDWARE |= {"torch": "2.14.1", "ray": "2.60.0"}
PAPER = (39.75, 39.33, 39.41, 39.20)
KEYS = ("loss", "loss_cls", "loss_reg", "loss_quality", "positives_per_gt", "positive_iou", "lr")


def write_sweep(
    folder: Path, *, rows: int, seeds: int, steps: int, images: int, pairs: int, title: str = "A sweep made up"
) -> Path:
    """A sweep file with its base below ``folder``: generated images, rows that differ in one weight."""
    (folder / "bases").mkdir(parents=True, exist_ok=True)
    (folder / "bases" / "made.yaml").write_text(
        f"data: {{train: train, val: val, short_side: 160, long_side: 160,\n"
        f"  generated: {{train_images: 4, val_images: {images}, long_side: 320, classes: 4}}}}\n"
        "model: {backbone: r18, weights: none, norm: gn}\n"
        f"schedule: {{iterations: {steps}, batch_size: 4, recipe_batch_size: 4}}\n"
        "tracking: {every: 50}\n"
    )
    names = [name_of(number) for number in range(rows)]
    document: dict[str, Any] = {
        "name": "made_up",
        "title": title,
        "base": "made",
        "rows": [
            {
                "name": name,
                "show": {"PIoUs": f"{1 + number / 100:.2f}", "AIoUs": "1"},
                "set": {"model.assigner.predicted_weight": 1 + number / 100},
                **({"paper": {"AP": PAPER[number]}} if number < len(PAPER) else {}),
            }
            for number, name in enumerate(names)
        ],
        "compare": [[names[0], other] for other in names[1 : pairs + 1]],
        "seeds": list(range(seeds)),
        "figures": [
            {"name": "Figure 3", "metric": "loss_reg", "rows": names[:2]},
            {"name": "Weights", "metric": "loss_reg", "rows": names[:8]},
            {"name": "Validation", "metric": "AP", "rows": names[:8]},
        ],
    }
    path = folder / "made_up.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def name_of(number: int) -> str:
    """Of the row with that number."""
    return f"weight {1 + number / 100:.2f}"


def make_sweep(
    folder: Path,
    *,
    rows: int = 3,
    seeds: int = 2,
    steps: int = 400,
    images: int = 12,
    pairs: int = 2,
    tracking_uri: str | None = None,
    unfinished: Sequence[tuple[int, int]] = (),
    models: bool = False,
    journals: int | None = None,
) -> tuple[Plan, Ledger]:
    """A sweep whose trainings are all there, but for those (row, seed) that are ``unfinished``: their journals end.

    ``journals``: how many different ones are made, each used for several trainings; None makes one for each.
    ``models`` gives each a model's folder, of hardly any weights: what logs models finds one, what loads them doesn't.
    """
    path = write_sweep(folder, rows=rows, seeds=seeds, steps=steps, images=images, pairs=pairs)
    plan = make_plan(SweepRequest(str(path), storage=str(folder / "storage"), tracking_uri=tracking_uri))
    plan.folder.mkdir(parents=True)
    ledger = Ledger(plan.place)
    val = plan.rows[0].val
    assert val is not None
    store = ensure_store(val.root, "val", ledger.stores, digest=val.digest)
    numbers = {name: number for number, name in enumerate(plan.row_names)}
    lines: dict[tuple[int, int, str], bytes] = {}
    for place, row in enumerate(plan.rows):
        number = numbers[row.row]
        ends = (number, row.seed) in unfinished
        which = place if journals is None else place % journals, steps // 2 if ends else steps, row.evaluation
        if which not in lines:
            random = np.random.default_rng([number, row.seed, 1])
            lines[which] = b"".join(journal_lines(random, which[1], steps, _skill(number, row.seed), row.evaluation))
        if models:
            _save_model(row, store, ledger.storage / "scratch" / row.identity / "model")
        _train(row, plan, ledger, store, number, steps, lines[which], ends)
        if journals is None:
            del lines[which]
    return plan, ledger


def _save_model(row: PlannedRow, store: Store, folder: Path) -> None:
    import torch

    from detector.checkpoints import save_model
    from detector.model import build_model

    model = build_model(row.config.model, store.categories, pretrained=False)
    save_model(model, folder, {"nothing": torch.zeros(1)})


def _skill(number: int, seed: int) -> float:
    """How good the detector of a row and seed is: about 1 for the first row."""
    return float(1 - number / 60 + np.random.default_rng([number, seed]).normal(0, 0.01))


def _train(
    row: PlannedRow, plan: Plan, ledger: Ledger, store: Store, number: int, steps: int, lines: bytes, ends: bool
) -> None:
    random, skill = np.random.default_rng([number, row.seed, 2]), _skill(number, row.seed)
    ledger.claim(row.identity, sweep=plan.key, row=row.row, seed=row.seed, config={}, iterations=steps)
    ledger.started(row.identity, node="made-up-1", from_step=0, hardware=HARDWARE)
    ledger.append(row.identity, lines)
    if ends:
        return
    folder = ledger.storage / "scratch" / row.identity
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detections.json").write_text(json.dumps(detections(store, random, skill)))
    (folder / "per_class.json").write_text("[]")
    ap = 39.75 - number / 4 + random.normal(0, 0.2)
    metrics = {"AP": ap, "AP50": ap * 1.45, "AP75": ap * 1.08, "APs": None, "APm": ap * 1.1, "APl": ap * 1.3}
    metrics |= {"loss_reg_fixed": 0.4 / skill, "inference_ms": 21.5 + number, "eval_seconds": 9.0}
    ledger.evaluated(row.identity, row.evaluation, folder, metrics, {})
    ledger.finished(row.identity, folder, {"loss": 1.0})
    ledger.release(row.identity)
    # As at the end of every evaluation.
    ledger.resampled(row.identity, row.evaluation, store.digest)
    ledger.examined(row.identity, row.evaluation, store.digest)
    ledger.curves(row.identity)


def journal_lines(random: np.random.Generator, until: int, steps: int, skill: float, evaluation: str, every: int = 50):
    """As rank 0 writes them, up to the step ``until`` of ``steps``: every step, means, and ten evaluations."""
    progress = np.arange(1, steps + 1) / steps
    noise = random.normal(0, 0.15, (len(KEYS), steps))
    loss_reg = (1.6 * np.exp(-3 * progress) + 0.45 / skill) * (1 + noise[2])
    columns = {
        "loss_cls": (1.2 * np.exp(-4 * progress) + 0.3) * (1 + noise[1]),
        "loss_reg": loss_reg,
        "loss_quality": 0.6 * (1 + noise[3] / 4),
        "positives_per_gt": 9 - 3 * progress + noise[4],
        "positive_iou": 0.3 + 0.4 * progress + noise[5] / 20,
        "lr": np.where(progress < 2 / 3, 0.01, np.where(progress < 8 / 9, 0.001, 0.0001)),
    }
    columns["loss"] = columns["loss_cls"] + loss_reg + columns["loss_quality"]
    for first in range(0, until, every):
        last = min(first + every, until)
        part = {key: [float(f"{value:.6g}") for value in columns[key][first:last]] for key in KEYS}
        yield journal.steps_line(first + 1, part)
        means = {key: sum(values) / len(values) for key, values in part.items()}
        yield journal.line(
            last, "train", means | {"images_per_second": 31.0 + skill, "data_wait": 0.02, "memory_gb": 6.1}
        )
        if last * 10 // steps > first * 10 // steps:
            reached = last / steps
            figures = {
                "AP": 40 * skill * (1 - np.exp(-4 * reached)),
                "loss_reg_fixed": 0.4 / skill + 0.6 * (1 - reached),
            }
            yield journal.line(last, "evaluation", figures, evaluation=evaluation)


def detections(store: Store, random: np.random.Generator, skill: float) -> list[dict[str, Any]]:
    """What a detector of that ``skill``, below 1, might find: boxes moved, lost, confused, doubled and imagined."""
    found = []
    truth = store.instances()
    ids = truth.category_ids.tolist()

    def add(image: int, category: int, box: Sequence[float], score: float) -> None:
        score = float(np.clip(score, 0.01, 0.999))
        found.append({"image_id": image, "category_id": category, "bbox": list(map(float, box)), "score": score})

    images, categories = truth.image_ids[truth.image].tolist(), truth.category_ids[truth.category].tolist()
    for box, image, category in zip(truth.boxes, images, categories, strict=True):
        size = np.sqrt(box[2] * box[3])
        if random.random() > 0.9 * skill:
            continue
        moved = box + random.normal(0, 0.05 / skill, 4) * size
        moved[2:] = moved[2:].clip(2)
        said = category if random.random() < 0.95 * skill else int(random.choice(ids))
        add(image, said, moved, random.normal(0.7, 0.15))
        if random.random() < 0.1:
            add(image, said, moved + 2, random.normal(0.45, 0.1))
        if random.random() < 0.15:
            add(image, said, [moved[0] + 0.5 * moved[2], *moved[1:]], random.normal(0.4, 0.1))
    for image, (height, width) in zip(store.image_ids.tolist(), store.sizes.tolist(), strict=True):
        for _ in range(int(random.poisson(1.5))):
            corner = random.uniform(0, 0.7, 2) * (width, height)
            add(image, int(random.choice(ids)), [*corner, *random.uniform(10, 60, 2)], random.beta(1.5, 5))
    return sorted(found, key=lambda row: (row["image_id"], -row["score"]))
