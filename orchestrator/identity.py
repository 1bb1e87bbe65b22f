"""What decides the trained weights, and the hash of it: one identity is trained once, wherever it is asked for.

In it: model, assigner, losses, the training split by digest, what changes its pixels, schedule, global batch, seed,
precision, and the sources that compute them, also a plug-in's. Not in it: names, resources, checkpoints, tracking,
evaluation.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import detector
from detector.checkpoints import DESCRIPTION
from detector.config import TrainingConfig
from detector.foreign.published import find_published, is_published
from detector.origins import WEIGHTS
from detector.sources import source_digest

NOT_DECIDING = frozenset(
    {
        # Names, words and what is written about a training; every value of a configuration is hashed itself.
        *("__init__.py", "config.py", "model_config.py", "fields.py", "keys.py", "document.py", "recipes.py"),
        *("errors.py", "progress.py", "refusals.py", "memory.py", "stopping.py"),
        # A plug-in counts by its own source.
        *("plugins.py", "rehearsal.py", "sources.py"),
        # What happens to the weights afterwards.
        *("postprocess.py", "detections.py", "evaluation.py", "inference.py", "checkpoints.py", "checkpoint_store.py"),
        *("checkpoint_writer.py", "matches.py", "matching.py", "precision.py", "results.py", "data/instances.py"),
        *("bootstrap.py", "fixed_positives.py", "error_kinds.py", "folding.py"),
        *("pictures.py", "prediction.py", "timing.py", "export.py", "inspection.py", "sheet.py", "serving.py"),
        # How a whole detector is found and read; it counts where a training starts from one.
        *("origins.py", "loading.py", "initial.py", "transfer.py", "foreign/__init__.py", "foreign/published.py"),
        *("foreign/layout.py", "foreign/files.py", "foreign/conversion.py", "foreign/backbone.py"),
        *("foreign/mmdetection.py", "foreign/maskrcnn_benchmark.py", "foreign/torchvision_v1.py"),
        # Commands.
        *("command.py", "train.py", "evaluate.py", "predict.py", "data/__init__.py", "data/__main__.py"),
        *("data/check.py", "data/importers.py", "data/formats.py", "data/download.py", "data/browse.py"),
        "data/ending.py",
        # What it makes is in the digest of the data.
        "data/synthetic.py",
    }
)
"""Files of ``detector`` that can't change the weights of a training. A file that isn't listed is taken to."""

READING_INIT = (
    *("initial.py", "loading.py", "foreign/layout.py", "foreign/files.py", "foreign/conversion.py"),
    *("foreign/backbone.py", "foreign/mmdetection.py", "foreign/maskrcnn_benchmark.py", "foreign/torchvision_v1.py"),
)
"""Files of ``detector`` that turn the file of ``model.init`` into the first weights."""

EVALUATING = (
    *("detections.py", "evaluation.py", "fixed_positives.py", "folding.py", "postprocess.py"),
    *("data/instances.py", "results.py", "matching.py", "precision.py"),
)
"""Files of ``detector`` that turn raw outputs into figures, or change these by as much as rounding does."""

_MODEL_NOT = {"postprocess"}
_DATA = ("short_side", "long_side", "resize", "scaled_decoding", "keep_empty", "augmentation")
_SCHEDULE_NOT = {"iterations", "epochs_factor", "recipe_batch_size", "scale_with_batch"}


def identity(config: TrainingConfig, *, train_digest: str) -> str:
    """The identity of a training, 16 hexadecimal digits.

    ``config`` must be resolved: classes, weights and normalisation known. ``train_digest`` is that of its training
    split.
    """
    decided = _with_contents(config)
    if config.model.init is not None:
        decided["init_sources"] = _sources_of(READING_INIT)
    return digest({**decided, "train_digest": train_digest, "sources": sources_digest()})[:16]


def basis(config: TrainingConfig, *, train_digest: str) -> dict[str, Any]:
    """What the identity of a training is a hash of, in a form whose differences can be named.

    "deciding": values by dotted key. "sources": a digest for each file that computes the weights, plug-ins among them.
    "recipe": a hash of everything but the sources.
    """
    decided = _with_contents(config)
    sources = dict(_source_digests())
    if config.model.init is not None:
        sources |= _digests_of(READING_INIT)
    for plugin in config.plugins:
        sources[f"plug-in {plugin.file}"] = plugin.digest[:16]
    decided["plugins"] = sorted(plugin.name for plugin in config.plugins)
    return {
        "recipe": digest({**decided, "train_digest": train_digest})[:16],
        "deciding": flattened(_canonical(decided)),
        "train_digest": train_digest,
        "sources": sources,
    }


def deciding(config: TrainingConfig) -> dict[str, Any]:
    """The part of ``config`` that decides the weights, in the effective form: 180,000 iterations are 2x of 90,000."""
    model = config.model.model_dump(mode="json", exclude=_MODEL_NOT)
    if config.model.init is None:
        del model["init"]
    schedule = config.schedule.model_dump(mode="json", exclude=_SCHEDULE_NOT)
    schedule["max_iterations"] = config.schedule.max_iterations
    schedule["batch_factor"] = config.schedule.batch_factor
    data = config.data.model_dump(mode="json", include=set(_DATA))
    decided = {"model": model, "data": data, "schedule": schedule, "seed": config.seed}
    if config.plugins:
        decided["plugins"] = {plugin.name: plugin.digest for plugin in config.plugins}
    return decided


def _with_contents(config: TrainingConfig) -> dict[str, Any]:
    """``deciding``, with files of weights by their contents, wherever they lie."""
    decided = deciding(config)
    if config.model.weights not in ("imagenet", "none"):
        decided["model"]["weights"] = _file_digest(Path(config.model.weights).expanduser())
    if config.model.init is not None:
        decided["model"]["init"] = _init_digest(config.model.init)
    return decided


def evaluation_settings(config: TrainingConfig, *, split_digest: str) -> dict[str, Any]:
    """How a training is evaluated: images, their size and the way from raw outputs to detections."""
    return {
        "split_digest": split_digest,
        "short_side": config.data.evaluated_short_side,
        "long_side": config.data.long_side,
        "resize": config.data.resize,
        "postprocess": config.model.postprocess.model_dump(mode="json"),
        "sources": _sources_of(EVALUATING),
    }


def evaluation_identity(config: TrainingConfig, *, split_digest: str) -> str:
    """The hash of ``evaluation_settings``, 16 hexadecimal digits."""
    return digest(evaluation_settings(config, split_digest=split_digest))[:16]


def digest(value: Any) -> str:
    """SHA-256 of ``value`` as canonical JSON; 1 and 1.0 are the same number."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def deciding_sources() -> list[Path]:
    """The files of ``detector`` that compute the weights."""
    root = Path(detector.__file__).resolve().parent
    return [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).as_posix() not in NOT_DECIDING]


@cache
def sources_digest() -> str:
    """SHA-256 of the meaning of the deciding sources: comments, docstrings and layout don't count."""
    root = Path(detector.__file__).resolve().parent
    whole = hashlib.sha256()
    for path in deciding_sources():
        whole.update(path.relative_to(root).as_posix().encode() + b"\0")
        whole.update(source_digest(path.read_text(encoding="utf-8")).encode())
    return whole.hexdigest()


@cache
def _source_digests() -> dict[str, str]:
    root = Path(detector.__file__).resolve().parent
    return _digests_of(tuple(path.relative_to(root).as_posix() for path in deciding_sources()))


def _digests_of(names: tuple[str, ...]) -> dict[str, str]:
    root = Path(detector.__file__).resolve().parent
    return {name: source_digest((root / name).read_text(encoding="utf-8"))[:16] for name in names}


@cache
def _sources_of(names: tuple[str, ...]) -> str:
    root = Path(detector.__file__).resolve().parent
    return digest([source_digest((root / name).read_text(encoding="utf-8")) for name in names])


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``tree`` by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _init_digest(init: str) -> str:
    """Of a resolved ``model.init``: the contents of the file or of the folder's two, or the checksum in a name."""
    if is_published(init):
        return find_published(init).checksum.value
    path = Path(init)
    files = [path / DESCRIPTION, path / WEIGHTS] if path.is_dir() else [path]
    return digest([_file_digest(file) for file in files])
