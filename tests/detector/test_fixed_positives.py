"""The box loss on fixed positives: plain loops as the witness, and trainings that don't notice it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detector.boxes import encode
from detector.data.coco import Category
from detector.data.store import open_store
from detector.evaluation import evaluate
from detector.fixed_positives import IMAGES, FixedPositives, fixed_images, fixed_losses, mean_loss
from detector.model import build_model
from detector.prediction import Options
from detector.recipes import FAMILIES, model_config
from detector.training import Hooks, TrainingState, train
from tests.detector import plain_atss
from tests.detector.conftest import small_config
from tests.detector.processes import run

BOXES = [
    torch.tensor([[10.0, 12.0, 70.0, 90.0], [30.0, 30.0, 50.0, 60.0], [100.0, 5.0, 158.0, 120.0]]),
    torch.zeros(0, 4),
    torch.tensor([[64.0, 64.0, 96.0, 88.0]]),
]


def plain_giou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def small_model(family):
    config = model_config(f"{family}_r18")
    changes = {"weights": "none", "neck": config.neck.model_copy(update={"channels": 64})}
    if family != "retinanet":
        changes["head"] = config.head.model_copy(update={"convolutions": 1})
    torch.manual_seed(0)
    return build_model(config.model_copy(update=changes), [Category(1, "a"), Category(2, "b")]).eval()


def squares(shapes, offset, rounded):
    found = []
    for (height, width), stride in zip(shapes, (8, 16, 32, 64, 128), strict=True):
        step_y, step_x = (128 // height, 160 // width) if rounded else (stride, stride)
        for row in range(height):
            for column in range(width):
                x, y, half = (column + offset) * step_x, (row + offset) * step_y, 4.0 * stride
                found.append((x - half, y - half, x + half, y + half))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_plain_loops_for_every_head(family):
    model = small_model(family)
    with torch.no_grad():
        outputs = model.network(torch.randn(3, 3, 128, 160, generator=torch.Generator().manual_seed(1)))
        outputs.box_regression[0].add_(0.3)
    found = fixed_losses(model.criterion, outputs, BOXES, [0, 1, 2])
    anchors = model.config.anchors
    locations = squares(outputs.shapes(), anchors.center_offset, anchors.strides == "rounded")
    grid = model.criterion.grid(outputs)
    predicted = model.criterion.decode(model.criterion.regression(outputs), grid.boxes, grid.stride).tolist()
    of_one = 9 if family == "retinanet" else 1
    for image, boxes in enumerate(BOXES):
        index, _ = plain_atss.assign(
            locations, outputs.shapes(), boxes.tolist(), [(0, 0, 1, 1)] * len(locations), 0.0, 1.0, 9
        )
        losses = []
        for location, owner in enumerate(index):
            if owner < 0:
                continue
            own = range(location * of_one, (location + 1) * of_one)
            box = boxes[owner].tolist()
            best = max(own, key=lambda a: (plain_atss.iou(grid.boxes[a].tolist(), box), -a))
            losses.append(1 - plain_giou(predicted[image][best], box))
        assert found[image][1] == len(losses)
        assert found[image][0] == pytest.approx(sum(losses), rel=1e-4, abs=1e-6)
        assert bool(losses) == bool(len(boxes))


def test_a_perfect_prediction_costs_nothing_and_the_combined_weights_do_not_matter():
    plain, combined = small_model("atss"), small_model("dynamic_atss")
    with torch.no_grad():
        outputs = plain.network(torch.zeros(1, 3, 128, 160))
    same = [fixed_losses(model.criterion, outputs, BOXES[:1], [0]) for model in (plain, combined)]
    assert same[0] == same[1]
    assert same[0][0][1] > 3
    grid = plain.criterion.grid(outputs)
    found = plain.criterion.assigner(grid.boxes, outputs.shapes(), BOXES[:1])
    # Deltas that put each positive's box exactly where its own is.
    wanted = BOXES[0][found.gt_index[0].clamp(min=0)]
    deltas, start, levels = encode(wanted, grid.boxes), 0, []
    for height, width in outputs.shapes():
        part = deltas[start : start + height * width]
        levels.append(part.view(1, height, width, 4).permute(0, 3, 1, 2))
        start += height * width
    ((total, count),) = fixed_losses(plain.criterion, outputs._replace(box_regression=levels), BOXES[:1], [0])
    assert count == same[0][0][1]
    assert total == pytest.approx(0, abs=1e-4)


def test_the_images_are_fixed_by_the_splits_digest():
    def split(count, digest="d", empty=()):
        indices = np.array([index for index in range(count) if index not in empty])
        ids = np.arange(count) * 7 + 3
        return SimpleNamespace(digest=digest, image_ids=ids, training_indices=lambda keep_empty: indices)

    assert fixed_images(split(5, empty=(1, 4))) == {0, 2, 3}
    many = fixed_images(split(1000))
    assert len(many) == IMAGES
    assert many == fixed_images(split(1000))
    assert many != fixed_images(split(1000, digest="e"))
    assert max(many) > 900


def test_the_mean_is_over_positives_and_undefined_without_any():
    assert mean_loss([{0: (3.0, 2)}, {4: (1.0, 6), 9: (0.0, 0)}]) == 0.5
    assert mean_loss([{}, {3: (0.0, 0)}]) is None


def measured(config, uri):
    torch.set_num_threads(1)
    state = TrainingState(config, open_store(uri), torch.device("cpu"))
    return evaluate(state.model, open_store(uri), config.data, batch_size=2).metrics["loss_reg_fixed"]


def test_one_and_two_processes_agree(generated, tmp_path):
    config, uri = small_config(), generated[1].uri
    alone = measured(config, uri)
    assert 0 < alone < 2
    assert run(measured, 2, tmp_path, config, uri) == [alone, alone]


def test_it_is_left_out_where_it_means_nothing(generated):
    config, store = small_config(), generated[1]
    model = TrainingState(config, store, torch.device("cpu")).model
    views = Options(max_detections=5, flip=True)
    assert "loss_reg_fixed" not in evaluate(model, store, config.data, options=views).metrics


class Kept(Hooks):
    def __init__(self):
        self.evaluations, self.checkpoints, self.draws = [], [], []

    def on_evaluation(self, step, metrics):
        self.evaluations.append(metrics["loss_reg_fixed"])
        self.draws.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))

    def keep(self, step, folder):
        self.checkpoints.append(folder)


def test_a_training_is_bit_for_bit_the_same_with_and_without_it(generated, tmp_path, monkeypatch):
    config = small_config(schedule={"iterations": 6, "ema": 0.9}, evaluation={"every": 2})
    torch.manual_seed(5)
    with_it = Kept()
    train(config, *generated, folder=tmp_path / "with", hooks=with_it)
    assert len(with_it.evaluations) == 3
    assert all(0 < value < 2 for value in with_it.evaluations)
    monkeypatch.setattr(FixedPositives, "add", lambda *_: None)
    torch.manual_seed(5)
    without = Kept()
    train(config, *generated, folder=tmp_path / "without", hooks=without)
    assert without.evaluations == [None] * 3
    for (torchs, numpys), (others, another) in zip(with_it.draws, without.draws, strict=True):
        assert torch.equal(torchs, others)
        assert numpys == another
    states = [torch.load(hooks.checkpoints[-1] / "state.pt", weights_only=True) for hooks in (with_it, without)]
    for key, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][key]), key
    files = [(hooks.checkpoints[-1] / "detections.json").read_text() for hooks in (with_it, without)]
    assert json.loads(files[0]) == json.loads(files[1])
