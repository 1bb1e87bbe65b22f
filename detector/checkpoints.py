"""Models and training states on disk, and ``python -m detector.checkpoints inspect FILE``, which says what one is.

Nothing in them is executed when they are read. torch is imported where it is used: the command's help is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector import __version__, command, plugins
from detector.config import DataConfig, ModelConfig, PostprocessConfig
from detector.data.coco import Category
from detector.document import Loc, counted, listed
from detector.errors import InputError
from detector.origins import WEIGHTS
from detector.refusals import checked

if TYPE_CHECKING:
    from torch import Tensor

    from detector.model import Detector

DESCRIPTION, STATE, STEP = "config.json", "state.pt", "step.json"
FORMAT = 1
# What the layer that depends on the number of classes is called in every head.
CLASS_LAYER = "head.class_logits."
FINITE_REMEDY = "take an earlier checkpoint of that training, or fetch the file again"


def save_model(model: Detector, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Writes ``model`` (with other ``weights`` of its network, if given) as model.safetensors and config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = model.network.state_dict() if weights is None else weights
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "version": __version__,
        "model": model.config.model_dump(mode="json"),
        "categories": [{"id": category.id, "name": category.name} for category in model.categories],
        "input": {"short_side": model.short_side, "long_side": model.long_side, "resize": model.resize},
    }
    write_json(folder / DESCRIPTION, description)


def load_model(
    folder: Path,
    postprocess: PostprocessConfig | None = None,
    *,
    tensors: dict[str, Tensor] | None = None,
    source: Path | None = None,
) -> Detector:
    """Reads what ``save_model`` wrote, with another way from raw outputs to detections if ``postprocess`` is given.

    ``tensors``, out of ``source``, stand in for those of model.safetensors.
    Raises InputError, and loads nothing, unless everything fits.
    """
    from detector.model import build_model

    config, categories, view = read_description(folder)
    config = config if postprocess is None else config.model_copy(update={"postprocess": postprocess})
    tensors = read_weights(folder) if tensors is None else tensors
    model = build_model(
        config,
        categories,
        short_side=view.evaluated_short_side,
        long_side=view.long_side,
        resize=view.resize,
        pretrained=False,
    )
    wanted = model.network.state_dict()
    wrong = sorted(
        key for key in wanted.keys() | tensors.keys() if key not in wanted or key not in tensors
        or wanted[key].shape != tensors[key].shape
    )  # fmt: skip
    if wrong:
        source = source or folder / WEIGHTS
        what = f"{counted(len(wrong), 'tensor')} {'differs' if len(wrong) == 1 else 'differ'} ({listed(wrong, 3)})"
        if all(key.startswith(CLASS_LAYER) for key in wrong):
            what = f"its class layer is for another number of classes than the {len(categories)} that it names"
        raise InputError(
            f"{source} doesn't fit the model of the {DESCRIPTION} beside it: {what}. To start a training from what "
            f"fits, set model.init: {source}"
        )
    check_finite(tensors, source or folder / WEIGHTS)
    model.network.load_state_dict(tensors)
    return model.eval()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the ``tensors`` with NaN or infinite values, in their order."""
    return [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]


def check_finite(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises InputError where ``tensors``, out of ``source``, aren't all finite."""
    if wrong := not_finite(tensors):
        raise InputError(f"{source}: {broken(wrong, len(tensors))}, and nothing was loaded; {FINITE_REMEDY}")


def broken(wrong: Sequence[str], of: int) -> str:
    """What is to be said of ``wrong``, the names of tensors that aren't finite."""
    verb = "has" if len(wrong) == 1 else "have"
    return f"{len(wrong):,} of its {counted(of, 'tensor')} {verb} NaN or infinite values, the first is {wrong[0]}"


def read_description(folder: Path) -> tuple[ModelConfig, list[Category], DataConfig]:
    """Model, categories and input sizes of the model saved in ``folder``. Raises InputError where there is none."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{folder} is no saved model: it has no {DESCRIPTION}; give the folder that holds both files")

    def where(loc: Loc, text: str = "") -> str:
        return str(path)

    try:
        description = json.loads(path.read_text())
        if description["format"] > FORMAT:
            raise InputError(f"{folder} was written by a newer version ({description['version']}); upgrade detsweep")
        config = checked(ModelConfig, description["model"], where, what="model")
        view = checked(DataConfig, description["input"], where, what="input")
        categories = [Category(entry["id"], entry["name"]) for entry in description["categories"]]
    except KeyError as error:
        raise InputError(f"{path} doesn't describe a model: it has no {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} doesn't describe a model: {' '.join(str(error).split())}") from error
    if config.norm is None:
        raise InputError(
            f"{path}: norm is null, but a saved model has one; write frozen_bn or gn there, as it was trained"
        )
    if not categories or not all(isinstance(entry.id, int) and isinstance(entry.name, str) for entry in categories):
        raise InputError(f"{path}: categories must be a list of whole-number ids and names, one for each class")
    return config, categories, view


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of the model saved in ``folder``. Raises InputError where there are none, or not all of them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{folder} is no saved model: it has no {WEIGHTS}; give the folder that holds both files")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or no safetensors file ({error})") from error


def save_state(folder: Path, state: dict[str, Any], step: int) -> None:
    """Writes the state of a training after ``step`` iterations: tensors and plain types only."""
    import torch

    torch.save(state, folder / STATE)
    write_json(folder / STEP, {"step": step})


def load_state(folder: Path) -> dict[str, Any]:
    """Reads what ``save_state`` wrote. Raises InputError when it is damaged."""
    import torch

    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"step", "network", "optimizer"} <= state.keys():
            raise ValueError("it holds something else")
    except Exception as error:  # a damaged pickle may raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"the checkpoint {folder} is incomplete or damaged ({reason}); remove it") from error
    return state


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.run(_inspect, _parser(), argv)


def _parser() -> command.Parser:
    parser = command.Parser("checkpoints", "Say what a file of weights is, what of it matches, and under what licence.")
    parser.add_argument("action", choices=["inspect"], help="recognise a file, and say which conventions follow")
    parser.add_argument("file", metavar="FILE", help=".pth, .pt, .safetensors, a model's folder, or mmdet:NAME")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store of runs:/ and models:/")
    command.add_plugins(parser, "the file of a model's head, where that is a plug-in")
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    from detector.inspection import describe

    plugins.load(command.read_plugins(arguments))
    text, fits = describe(arguments.file, arguments.tracking_uri)
    print(text)
    return 0 if fits else 2


if __name__ == "__main__":
    sys.exit(main())
