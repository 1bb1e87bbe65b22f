"""Tensors from a file, by name. Nothing in it is executed, and what it is instead of a checkpoint is said."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detector.document import listed
from detector.errors import InputError
from detector.signatures import PICKLE, ZIP, first_bytes

# Entries in which files keep their state dict among other things, and what precedes all keys of a parallel model.
WRAPPERS = ("state_dict", "model")
PARALLEL = "module."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in ``path``, out of a ``state_dict`` or ``model`` entry and without a ``module.`` before all names.

    Raises InputError where the file is truncated, holds objects that would have to be executed, or no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated or no safetensors file ({error}); fetch it again") from error
    else:
        content = _unpickled(path)
    for _ in WRAPPERS:
        inner = [content[name] for name in WRAPPERS if isinstance(content, Mapping) and name in content]
        if inner and isinstance(inner[0], Mapping):
            content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} is no checkpoint: it holds {_what(content)} instead of tensors by name")
    others = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"{path} is no checkpoint: beside tensors it holds {listed([str(key) for key in others], 3)}; give a file "
            "that torch.save(model.state_dict(), FILE) wrote"
        )
    if all(key.startswith(PARALLEL) for key in content):
        content = {key.removeprefix(PARALLEL): value for key, value in content.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in content.items()}


def _unpickled(path: Path) -> Any:
    start = first_bytes(path)
    try:
        with _plain_numbers(), warnings.catch_warnings():
            # What torch thinks of a file that is refused anyway, or read without a fault.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            warnings.filterwarnings("ignore", ".*looks like a TorchScript archive", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|[Cc]an only build [^:]*?([\w.]+)", str(error))
        if named is None and start.startswith(PICKLE) and "Unsupported" not in str(error):
            raise InputError(f"{path} is truncated or no checkpoint; fetch it again") from error
        objects = f" ({named[1] or named[2]})" if named else ""
        if _holds_module(path, zipped=start.startswith(ZIP)):
            raise InputError(
                f"{path} holds a whole model as a pickled object{objects}, which runs code when it is read, so it is "
                "refused; in the environment that made it, save its tensors alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise InputError(
            f"{path} holds pickled objects{objects}, which run code when they are read, so it is refused; if you trust "
            f"it, keep the tensors alone: torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], FILE)"
            " (or ['model'], where they lie under that)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript archive, a program with its weights, so it is refused; in the environment "
                "that made it, save its tensors alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise InputError(f"{path} is truncated or damaged; fetch it again") from error


def _holds_module(path: Path, *, zipped: bool) -> bool:
    """Whether a torch.nn.Module is among the objects in ``path``. Its pickles are looked through, nothing is made."""
    try:
        with path.open("rb") as file:
            if not zipped:
                # Formerly a file began with three pickles of its own; the content is the fourth.
                return any(_is_module(list(pickletools.genops(file))) for _ in range(4))
            with zipfile.ZipFile(file) as archive:
                content = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                return _is_module(list(pickletools.genops(archive.read(content))))
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return False


def _is_module(operations: list[tuple[Any, Any, Any]]) -> bool:
    # What every module keeps its state under.
    return {"_parameters", "_buffers", "_modules"} <= {value for _, value, _ in operations if isinstance(value, str)}


@contextlib.contextmanager
def _plain_numbers() -> Iterator[None]:
    """Lets NumPy's scalars pass, which checkpoints carry among their notes: nothing but their bytes is read."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    allowed: list[Any] = [np.dtype, *dtypes]
    allowed += [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    with torch.serialization.safe_globals(allowed):
        yield


def _what(content: Any) -> str:
    if isinstance(content, Mapping):
        return "an empty table"
    return "one tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
