"""Identity: changed by each key that decides the weights, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import detector
from detector.config import TrainingConfig
from detector.keys import Setting, keys, resolve
from orchestrator.identity import (
    NOT_DECIDING,
    deciding_sources,
    digest,
    evaluation_identity,
    identity,
    source_digest,
    sources_digest,
)

DECIDING: dict[str, Any] = {
    "model.backbone": "r18",
    "model.weights": "none",
    "model.init": "mmdet:atss_r50_fpn_1x_coco",
    "model.num_classes": 7,
    "model.norm": "gn",
    "model.norm_epsilon": 0,
    "model.stride_in_1x1": True,
    "model.dcn_version": 1,
    "model.dcn_stages": [4, 5],
    "model.neck.channels": 96,
    "model.neck.relu_before_p7": False,
    "model.head.convolutions": 2,
    "model.head.tower_bias": False,
    "model.head.deformable": True,
    "model.head.assigned_boxes": "initial",
    "model.head.quality_branch": "iou",
    "model.head.classification_loss": "qfl",
    "model.assigner.name": "fixed_iou",
    "model.assigner.positive_iou": 0.6,
    "model.assigner.negative_iou": 0.3,
    "model.assigner.keep_best": False,
    "model.assigner.center_radius": 2,
    "model.assigner.topk": 5,
    "model.assigner.predicted_weight": "up",
    "model.assigner.anchor_weight": 0.5,
    "model.anchors.scale": 4,
    "model.anchors.center_offset": 0,
    "model.anchors.strides": "rounded",
    "model.pixels.order": "bgr",
    "model.pixels.mean": [1, 2, 3],
    "model.pixels.deviation": [1, 1, 1],
    "data.resize": "opencv",
    "data.scaled_decoding": True,
    "data.short_side": [640, 800],
    "data.long_side": 1000,
    "data.keep_empty": True,
    "data.augmentation.flip": 0,
    "data.augmentation.scale_jitter": [0.8, 1.25],
    "data.augmentation.crop": 0.5,
    "data.augmentation.colour": 0.5,
    "schedule.iterations": 100,
    "schedule.epochs_factor": 2,
    "schedule.learning_rate": 0.02,
    "schedule.policy": "one_cycle",
    "schedule.warmup": 10,
    "schedule.warmup_factor": 0.1,
    "schedule.warmup_shape": "linear",
    "schedule.decay_at": [0.5],
    "schedule.optimizer": "adamw",
    "schedule.momentum": 0.8,
    "schedule.weight_decay": 0,
    "schedule.double_bias_rate": False,
    "schedule.precision": "bfloat16",
    "schedule.clip_norm": 1,
    "schedule.ema": 0.99,
    "seed": 1,
}
OTHERS: dict[str, Any] = {
    "model.postprocess.score_threshold": 0.1,
    "model.postprocess.threshold_on": "final",
    "model.postprocess.keep_empty": True,
    "model.postprocess.candidates_per_level": 10,
    "model.postprocess.ranking": "class",
    "model.postprocess.score": "product",
    "model.postprocess.nms_iou": 0.5,
    "model.postprocess.max_detections": 10,
    "data.root": "/elsewhere",
    "data.train": "other",
    "data.val": "other",
    "data.test": "other",
    "data.cache": "/cache",
    "data.evaluation_short_side": 640,
    "data.generated.train_images": 3,
    "data.generated.val_images": 3,
    "data.generated.seed": 3,
    "data.generated.classes": 3,
    "data.generated.long_side": 300,
    "checkpoint.every": 7,
    "evaluation.every": 7,
    "evaluation.batch_size": 7,
    "tracking.every": 7,
    "resources.workers": 2,
    "resources.cpus_per_worker": 2,
    "resources.gpus_per_worker": 1,
    "resources.placement": "spread",
    "resources.micro_batch_size": 2,
    "resources.loader_workers": 2,
    "resources.compile": True,
    "resources.stall_timeout_s": 3,
}
# Their only other values go together, or there is but one value.
TOGETHER = {
    "model.head.name",
    "model.anchors.name",
    "model.neck.name",
    "schedule.batch_size",
    "schedule.recipe_batch_size",
    "schedule.scale_with_batch",
    "model.assigner.options",
    "model.head.options",
}


def of(**settings: Any) -> str:
    return changed({key.replace("__", "."): value for key, value in settings.items()})


def changed(settings: dict[str, Any]) -> str:
    return identity(resolve([[Setting(key, value, "test") for key, value in settings.items()]]), train_digest="d")


@pytest.mark.parametrize("key", DECIDING)
def test_what_decides_the_weights_changes_it(key: str) -> None:
    assert changed({key: DECIDING[key]}) != changed({})


@pytest.mark.parametrize("key", OTHERS)
def test_nothing_else_changes_it(key: str) -> None:
    assert changed({key: OTHERS[key]}) == changed({})


def test_every_key_is_on_one_side() -> None:
    listed = [*DECIDING, *OTHERS, *TOGETHER]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(keys())


def test_the_training_data_changes_it() -> None:
    config = TrainingConfig()
    assert identity(config, train_digest="a") != identity(config, train_digest="b")


def test_one_training_said_in_two_ways_is_one() -> None:
    assert of(schedule__iterations=180_000) == of(schedule__epochs_factor=2)
    assert of(model__assigner__predicted_weight=1) == of(model__assigner__predicted_weight=1.0)
    assert of(schedule__batch_size=8, schedule__recipe_batch_size=8) != of()
    scaled = of(schedule__batch_size=8, schedule__scale_with_batch="linear")
    assert scaled != of(schedule__batch_size=8, schedule__recipe_batch_size=8)
    assert of(schedule__scale_with_batch="linear") == of()


def test_a_detector_to_start_from_counts_by_its_contents(tmp_path: Path) -> None:
    for name, content in (("one", b"w"), ("two", b"w"), ("other", b"v")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "config.json").write_bytes(b"{}")
        (tmp_path / f"{name}.pth").write_bytes(content)
    for ending in ("", ".pth"):
        assert of(model__init=str(tmp_path / f"one{ending}")) == of(model__init=str(tmp_path / f"two{ending}"))
        assert of(model__init=str(tmp_path / f"one{ending}")) != of(model__init=str(tmp_path / f"other{ending}"))
    assert of(model__init="mmdet:atss_r50_fpn_1x_coco") != of(model__init="mmdet:gfl_r50_fpn_1x_coco")


def test_a_file_of_weights_counts_by_its_contents(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.pth", "two.pth", "other.pth"))
    one.write_bytes(b"w")
    two.write_bytes(b"w")
    other.write_bytes(b"v")
    assert of(model__weights=str(one)) == of(model__weights=str(two))
    assert of(model__weights=str(one)) != of(model__weights=str(other))


def test_an_evaluation_has_an_identity_of_its_own() -> None:
    def evaluated(val: str = "v", **settings: Any) -> str:
        layer = [Setting(key.replace("__", "."), value, "test") for key, value in settings.items()]
        return evaluation_identity(resolve([layer]), split_digest=val)

    assert evaluated("w") != evaluated()
    assert evaluated(model__postprocess__nms_iou=0.5) != evaluated()
    assert evaluated(data__short_side=400) != evaluated()
    assert evaluated(seed=3, schedule__iterations=5) == evaluated()


def test_only_the_meaning_of_a_source_counts() -> None:
    source = 'def f(x: int = 1) -> int:\n    """Doc."""\n    return x + 1\n'
    same = '# A comment.\ndef f(x: int=1) -> int:\n\n    "Other words."\n    return (x + 1)  # why\n'
    assert source_digest(source) == source_digest(same)
    for old, new in (("x + 1", "x + 2"), ("x + 1", "x - 1"), ("int = 1", "int = 2"), ("return x", "x")):
        assert source_digest(source) != source_digest(source.replace(old, new))
    assert source_digest("x = None") != source_digest("x = 0")
    assert source_digest("f(1, None)") != source_digest("f(None, 1)")


def test_sources_of_the_computation_count_and_commands_do_not() -> None:
    root = Path(detector.__file__).parent
    names = {path.relative_to(root).as_posix() for path in deciding_sources()}
    assert {"model.py", "losses.py", "criterion.py", "training.py", "schedule.py", "data/loader.py"} <= names
    assert {"assigners/atss.py", "heads/atss.py", "data/transforms.py"} <= names
    assert not names & {"config.py", "evaluation.py", "inference.py", "progress.py", "data/synthetic.py"}
    everything = {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    assert names == everything - NOT_DECIDING


def test_digests_are_stable_over_processes_and_notations() -> None:
    assert digest({"b": 1.0, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1})
    assert sources_digest() == sources_digest()
    assert len(of()) == 16
