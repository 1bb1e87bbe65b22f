"""A trained model as an MLflow model: what its folder has beside the weights, so that MLflow loads and serves it.

    model/  model.safetensors  config.json                       what detector.load reads
            MLmodel  LICENCES.md  input_example.json  serving_input_example.json
            requirements.txt  conda.yaml  python_env.yaml         versions that are installed here; nothing is fetched

Loading is `detector.serving`, named by the MLmodel file: no pickle, and no code in the folder.
"""

from __future__ import annotations

import base64
import io
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import detector
from detector.config import ModelConfig

LOADER = "detector.serving"
PINNED = ("mlflow", "torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")
IMAGENET = (
    "torchvision's ImageNet weights: PyTorch names no terms beyond the library's BSD-3-Clause; ImageNet's images are "
    "for non-commercial research and education"
)


def write_package(
    folder: Path, model: ModelConfig, *, run_id: str, training: str, finished: float | None, notes: dict[str, str]
) -> dict[str, Any]:
    """Writes what belongs beside the weights of ``model`` into ``folder``; returns MLflow's description of it.

    ``notes`` go into the MLmodel file. The same arguments give the same files.
    """
    from datetime import UTC, datetime

    import mlflow.pyfunc
    from mlflow.models import Model

    licence = initial_licence(model)
    made = datetime.fromtimestamp(finished or 0, UTC).replace(tzinfo=None)
    described = Model(
        artifact_path="model",
        run_id=run_id,
        utc_time_created=str(made),
        model_uuid=training,
        signature=_signature(),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "type": "dataframe",
            "pandas_orient": "split",
            "serving_input_path": "serving_input_example.json",
        },
        metadata={**notes, "initial_weights": initial_weights(model), "licence_of_initial_weights": licence},
    )
    mlflow.pyfunc.add_to_model(
        described, loader_module=LOADER, conda_env="conda.yaml", python_env="python_env.yaml", streamable=False
    )
    example = {"columns": ["image"], "data": [[base64.b64encode(_example()).decode()]]}
    requirements = [f"detsweep=={detector.__version__}", *_installed()]
    python = platform.python_version()
    pip: list[Any] = ["pip", {"pip": requirements}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [f"python={python}", *pip]}
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    files = {
        "LICENCES.md": _licences(model, licence),
        "input_example.json": json.dumps(example),
        "serving_input_example.json": json.dumps({"dataframe_split": example}),
        "requirements.txt": "".join(f"{line}\n" for line in requirements),
        "conda.yaml": yaml.safe_dump(conda, sort_keys=False),
        "python_env.yaml": yaml.safe_dump(environment, sort_keys=False),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    described.save(str(folder / "MLmodel"))
    return described.get_tags_dict()


def initial_weights(model: ModelConfig) -> str:
    """What the training of ``model`` started from, in a word: no path of this machine."""
    if model.init is not None:
        return model.init if _is_named(model.init) else Path(model.init).name
    if model.weights in ("imagenet", "none"):
        return {"imagenet": f"ImageNet, {model.backbone}", "none": "none: random"}[model.weights]
    return Path(model.weights).name


def initial_licence(model: ModelConfig) -> str:
    """Terms of the weights that ``model`` started from, as docs/licences.md has them."""
    if model.init is not None:
        return _licence_of_init(model.init)
    if model.weights == "none":
        return "none: training began with random weights"
    if model.weights != "imagenet":
        return f"not known here: those of {Path(model.weights).name}, which the training was given as model.weights"
    if model.backbone.startswith("timm:"):
        return f"those that timm names for it: timm.get_pretrained_cfg('{model.backbone[5:]}').license"
    return IMAGENET


def _licence_of_init(init: str) -> str:
    if init.startswith("torchvision:"):
        return "torchvision's detectors: PyTorch names no terms beyond the library's BSD-3-Clause; trained on COCO"
    if init.startswith("mmdet:"):
        from detector.foreign.mmdetection import LICENCE

        return LICENCE
    return f"not known here: those of {Path(init).name}, which the training was given as model.init"


def _is_named(init: str) -> bool:
    from detector.foreign.published import is_published

    return is_published(init)


def _licences(model: ModelConfig, licence: str) -> str:
    return (
        "# Licences\n"
        f"Initial weights: {initial_weights(model)}\n\n"
        f"Their terms: {licence}.\n\n"
        "What was trained on top of them is under the terms of the training data and of these weights.\n"
    )


def _signature() -> Any:
    """Bytes of an image file in, lists of what was found out; over HTTP the bytes are in base64."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    columns: list[tuple[str, Any]] = [
        ("boxes", Array(Array(DataType.double))),
        ("scores", Array(DataType.double)),
        ("labels", Array(DataType.long)),
        ("names", Array(DataType.string)),
        ("category_ids", Array(DataType.long)),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kind, name) for name, kind in columns]),
        params=ParamSchema(
            [ParamSpec("score_threshold", DataType.double, 0.0), ParamSpec("max_detections", DataType.long, 100)]
        ),
    )


def _example() -> bytes:
    """A small JPEG, drawn here: an example must not carry anybody's photograph."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (96, 64), (90, 120, 150))
    pen = ImageDraw.Draw(image)
    pen.rectangle((10, 12, 40, 50), fill=(200, 60, 40))
    pen.ellipse((52, 20, 84, 52), fill=(40, 160, 80))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _installed() -> list[str]:
    found = []
    for name in PINNED:
        try:
            # A local part such as +cpu names a build that no index has.
            found.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            found.append(name)
    return found
