"""Training: the same whatever the split into workers and micro-batches, and whenever it was interrupted."""

from __future__ import annotations

import json

import pytest
import torch

import detector
from detector import distributed
from detector.data.store import open_store
from detector.recipes import FAMILIES, model_config
from detector.training import Hooks, TrainingError, TrainingState, TrainingStopped, train
from tests.detector.conftest import small_config
from tests.detector.processes import run

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


class Journal(Hooks):
    def __init__(self, stop_at=None):
        self.steps, self.checkpoints, self.evaluations, self.stop_at = {}, [], {}, stop_at

    def on_metrics(self, step, metrics):
        self.steps[step] = metrics

    def on_evaluation(self, step, metrics):
        self.evaluations[step] = metrics

    def keep(self, step, folder):
        self.checkpoints.append((step, folder))

    def should_stop(self):
        return self.stop_at is not None and max(self.steps, default=0) >= self.stop_at


def first_gradients(config, store):
    """Losses and summed gradients of the first step, before the update."""
    from detector.training import _batches

    state = TrainingState(config, store, torch.device("cpu"))
    kept = {}

    def keep(*_):
        kept.update({n: p.grad.clone() for n, p in state.model.network.named_parameters() if p.grad is not None})

    state.optimizer.register_step_pre_hook(keep)
    losses = state.update(next(_batches(config, store, start=0, stop=1)))
    return {key: distributed.all_sum(value).item() for key, value in losses.items()}, kept


def all_steps(config, uri, folder):
    store = open_store(uri)
    journal = Journal()
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    losses, gradients = first_gradients(config, store)
    train(config, store, folder=folder, hooks=journal)
    return losses, gradients, [journal.steps[step]["loss"] for step in sorted(journal.steps)]


@pytest.mark.parametrize("head", [{}, {"classification_loss": "qfl", "quality_branch": "iou"}])
def test_workers_and_micro_batches_change_nothing(generated, tmp_path, head):
    store = generated[0]
    shapes = {tuple(size) for size in store.sizes[:, 0:2].tolist()}
    assert len({round(width / height, 1) for height, width in shapes}) >= 4  # images of four aspect ratios
    base = small_config()
    base = base.model_copy(
        update={"model": base.model.model_copy(update={"head": base.model.head.model_copy(update=head)})}
    )
    micro = base.model_copy(update={"resources": base.resources.model_copy(update={"micro_batch_size": 2})})
    losses, gradients, curve = all_steps(base, store.uri, tmp_path / "one")
    others = {
        "two micro-batches": [all_steps(micro, store.uri, tmp_path / "micro")],
        "two workers": run(all_steps, 2, tmp_path / "two", base, store.uri, tmp_path / "two" / "train"),
    }
    assert len(curve) == 10
    for name, results in others.items():
        assert results[0][0] == pytest.approx(losses, rel=1e-4), name
        assert results[0][2] == pytest.approx(curve, rel=1e-4), name
        for key, expected in gradients.items():
            difference = (results[-1][1][key] - expected).norm() / expected.norm().clamp(min=1e-8)
            assert difference < 1e-4, (name, key)


def test_workers_of_unequal_numbers_of_micro_batches_change_nothing(generated, tmp_path):
    """One image in one micro-batch, and two in two: collectives in another order would wait for each other forever."""
    schedule = {"iterations": 4, "batch_size": 3, "recipe_batch_size": 3}
    uri = generated[0].uri
    losses, gradients, curve = all_steps(small_config(schedule=schedule), uri, tmp_path / "one")
    split = small_config(schedule=schedule, resources={"micro_batch_size": 1})
    for result in run(all_steps, 2, tmp_path / "two", split, uri, tmp_path / "two" / "train"):
        assert result[0] == pytest.approx(losses, rel=1e-4)
        for key, expected in gradients.items():
            assert (result[1][key] - expected).norm() / expected.norm().clamp(min=1e-8) < 1e-4, key
        if result[2]:  # told by rank 0 alone
            assert result[2] == pytest.approx(curve, rel=1e-4)
    assert len(curve) == 4


def train_with_empty_images(config, uri, folder):
    store = open_store(uri)
    journal = Journal()
    losses, gradients = first_gradients(config, store)
    train(config, store, folder=folder, hooks=journal)
    return losses, len(gradients), [journal.steps[step]["loss"] for step in sorted(journal.steps)]


def bare_store(folder, empty):
    """A store in which the second half of the first global batch, or every image, has no boxes."""
    from detector.data.coco import data_digest
    from detector.data.loader import global_batch
    from detector.data.store import ensure_store
    from detector.data.synthetic import generate
    from tests.detector.conftest import GENERATED

    root = generate(GENERATED, folder)
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]]
    second = global_batch(0, n=len(ids), batch_size=4, seed=0)[2:]
    bare = set(ids) if empty == "all" else {ids[place] for place in second}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in bare]
    path.write_text(json.dumps(content))
    store = ensure_store(root, "train", folder / "stores", digest=data_digest(root, "train", remember=None))
    assert len(store.boxes(int(second[0]))) == 0
    return store


@pytest.mark.parametrize("empty", ["one worker's", "all"])
def test_a_worker_without_boxes_takes_part(tmp_path, empty):
    store = bare_store(tmp_path, empty)
    config = small_config(
        data={"keep_empty": True}, schedule={"iterations": 2}, model={"assigner": {"predicted_weight": 1.0}}
    )
    alone = train_with_empty_images(config, store.uri, tmp_path / "alone")
    both = run(train_with_empty_images, 2, tmp_path / "two", config, store.uri, tmp_path / "two" / "train")
    assert all(torch.tensor(curve).isfinite().all() for _, _, curve in both)
    assert both[0][1] == both[1][1] == alone[1] > 0  # every parameter has a gradient on both
    assert both[0][0] == pytest.approx(alone[0], rel=1e-4)
    assert both[0][2] == pytest.approx(alone[2], rel=1e-4)


def first_steps(uri, micro_batch_size=None):
    """First losses and gradients of every family of models."""
    found = {}
    for family in FAMILIES:
        model = model_config(f"{family}_r18").model_dump(mode="json")
        model |= {"weights": "none", "neck": model["neck"] | {"channels": 64}}
        model["head"]["convolutions"] = 1
        config = small_config(model=model, data={"keep_empty": True}, resources={"micro_batch_size": micro_batch_size})
        found[family] = first_gradients(config, open_store(uri))
    return found


def test_no_head_depends_on_the_split_even_where_a_worker_has_no_boxes(tmp_path):
    store = bare_store(tmp_path, "one worker's")
    alone = first_steps(store.uri)
    others = {
        "two micro-batches": first_steps(store.uri, 2),
        "two workers": run(first_steps, 2, tmp_path / "two", store.uri)[1],
    }
    for name, results in others.items():
        for family, (losses, gradients) in results.items():
            assert losses == pytest.approx(alone[family][0], rel=1e-4), (name, family)
            assert gradients.keys() == alone[family][1].keys()
            for key, expected in alone[family][1].items():
                difference = (gradients[key] - expected).norm() / expected.norm().clamp(min=1e-6)
                assert difference < 1e-3, (name, family, key)


@pytest.mark.parametrize("schedule", [{}, {"optimizer": "adamw", "policy": "one_cycle", "ema": 0.9, "clip_norm": 1.0}])
def test_stopped_and_continued_is_bit_for_bit_the_uninterrupted(generated, tmp_path, schedule):
    config = small_config(
        schedule={"iterations": 80, **schedule},
        data={"short_side": [48, 64], "long_side": 64, "augmentation": {"colour": 0.2, "crop": 0.5}},
        checkpoint={"every": None},
        tracking={"every": 20},
    )
    whole, stopped, continued = Journal(), Journal(stop_at=40), Journal()
    train(config, generated[0], folder=tmp_path / "whole", hooks=whole)
    with pytest.raises(TrainingStopped, match="step 40 of 80"):
        train(config, generated[0], folder=tmp_path / "parts", hooks=stopped)
    assert [step for step, _ in stopped.checkpoints] == [40]
    train(config, generated[0], folder=tmp_path / "parts", hooks=continued, resume_from=stopped.checkpoints[0][1])
    assert sorted(continued.steps) == [60, 80]
    assert continued.steps[80]["loss"] == whole.steps[80]["loss"]
    states = [torch.load(journal.checkpoints[-1][1] / "state.pt", weights_only=True) for journal in (whole, continued)]
    for key, value in states[0]["network"].items():
        assert torch.equal(value, states[1]["network"][key]), key
    models = [detector.load(journal.checkpoints[-1][1]).network.state_dict() for journal in (whole, continued)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(generated, tmp_path):
    config = small_config(
        schedule={"iterations": 6}, checkpoint={"every": None}, evaluation={"every": 2}, tracking={"every": 2}
    )
    whole, stopped, continued, again = Journal(), Journal(stop_at=4), Journal(), Journal()
    train(config, *generated, folder=tmp_path / "whole", hooks=whole)
    with pytest.raises(TrainingStopped, match="step 4 of 6"):
        train(config, *generated, folder=tmp_path / "parts", hooks=stopped)
    assert sorted(stopped.evaluations) == [2]
    train(config, *generated, folder=tmp_path / "parts", hooks=continued, resume_from=stopped.checkpoints[-1][1])
    found = stopped.evaluations | continued.evaluations
    assert [step for step, _ in continued.checkpoints] == [4, 6], "it is kept, and owed no more"
    assert (continued.checkpoints[0][1] / "per_class.json").exists()
    assert sorted(found) == sorted(whole.evaluations) == [2, 4, 6]
    assert [one["AP"] for one in found.values()] == [one["AP"] for one in whole.evaluations.values()]
    # A checkpoint that has its evaluation owes none.
    saving = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 2})})
    train(saving, *generated, folder=tmp_path / "saving", hooks=again)
    resumed = Journal()
    train(saving, *generated, folder=tmp_path / "resumed", hooks=resumed, resume_from=dict(again.checkpoints)[4])
    assert sorted(resumed.evaluations) == [6]


def test_checkpoints_metrics_and_evaluations_come_when_they_are_due(generated, tmp_path):
    config = small_config(
        schedule={"iterations": 6}, checkpoint={"every": 2}, evaluation={"every": 3}, tracking={"every": 2}
    )
    journal = Journal()
    metrics = train(config, *generated, folder=tmp_path, hooks=journal)
    assert [step for step, _ in journal.checkpoints] == [2, 4, 6]
    assert sorted(journal.steps) == [2, 4, 6]
    assert sorted(journal.evaluations) == [3, 6]
    last = journal.steps[6]
    assert last["loss"] == pytest.approx(last["loss_cls"] + last["loss_reg"] + last["loss_quality"])
    for key in ("lr", "positives_per_gt", "positive_iou", "images_per_second", "data_wait", "memory_gb"):
        assert last[key] >= 0
    assert metrics["AP"] == journal.evaluations[6]["AP"]
    final = journal.checkpoints[-1][1]
    assert len(json.loads((final / "per_class.json").read_text())) == 3
    results = json.loads((final / "detections.json").read_text())
    assert {row["image_id"] for row in results} <= set(generated[1].image_ids.tolist())
    assert json.loads((final / "step.json").read_text()) == {"step": 6}


def test_a_loss_that_is_no_longer_finite_ends_the_training(generated, tmp_path):
    config = small_config(schedule={"iterations": 20, "learning_rate": 1000})
    with pytest.raises(TrainingError, match=r"no longer finite at step \d+ \(.*lower schedule.learning_rate"):
        train(config, generated[0], folder=tmp_path)


def test_rows_that_differ_in_assignment_start_from_equal_weights(generated):
    first = TrainingState(small_config(), generated[0], torch.device("cpu"))
    other = small_config(model={"head": {"convolutions": 1, "quality_branch": "none"}})
    second = TrainingState(other, generated[0], torch.device("cpu"))
    mine, theirs = first.model.network.state_dict(), second.model.network.state_dict()
    assert set(mine) - set(theirs) == {"head.quality.weight", "head.quality.bias"}
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    seeded = TrainingState(small_config(seed=1), generated[0], torch.device("cpu"))
    assert not torch.equal(seeded.model.network.backbone.conv1.weight, first.model.network.backbone.conv1.weight)


def test_every_step_is_told_once_and_means_do_not_depend_on_interruptions(generated, tmp_path):
    class Steps(Journal):
        def __init__(self, stop_at=None):
            super().__init__(stop_at)
            self.told = []

        def on_steps(self, first, columns):
            self.told += enumerate(columns["loss"], first)

        def should_stop(self):
            return self.stop_at is not None and bool(self.told) and self.told[-1][0] >= self.stop_at

    config = small_config(
        schedule={"iterations": 8}, data={"short_side": 48, "long_side": 48}, tracking={"every": 4},
        checkpoint={"every": 3},
    )  # fmt: skip
    whole, stopped, continued = Steps(), Steps(stop_at=3), Steps()
    train(config, generated[0], folder=tmp_path / "whole", hooks=whole)
    with pytest.raises(TrainingStopped):
        train(config, generated[0], folder=tmp_path / "parts", hooks=stopped)
    resumed = next(folder for step, folder in stopped.checkpoints if step == 3)
    train(config, generated[0], folder=tmp_path / "parts", hooks=continued, resume_from=resumed)
    assert [step for step, _ in whole.told] == list(range(1, 9))
    assert [pair for pair in stopped.told if pair[0] <= 3] + continued.told == whole.told
    assert [continued.steps[step]["loss"] for step in (4, 8)] == [whole.steps[step]["loss"] for step in (4, 8)]
    losses = dict(whole.told)
    assert whole.steps[8]["loss"] == pytest.approx(sum(losses[step] for step in (5, 6, 7, 8)) / 4)
