"""Tensors from a file, by name. Nothing in it is executed, and what it is instead of a checkpoint is said."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detector.errors import InputError

# Entries in which files keep their state dict among other things, and what precedes all keys of a parallel model.
WRAPPERS = ("state_dict", "model")
PARALLEL = "module."
# The first bytes of what torch.save writes: a zip, formerly pickles.
ZIP, PICKLE = b"PK\x03\x04", b"\x80"


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
            f"{path} is no checkpoint: beside tensors it holds {', '.join(map(str, others[:3]))}"
            f"{', …' if len(others) > 3 else ''}; give a file that torch.save(model.state_dict(), FILE) wrote"
        )
    if all(key.startswith(PARALLEL) for key in content):
        content = {key.removeprefix(PARALLEL): value for key, value in content.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in content.items()}


def _unpickled(path: Path) -> Any:
    try:
        start = path.open("rb").read(4)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give another file") from error
    if not start.startswith((ZIP, PICKLE)):
        what = "is empty" if not start else "is no checkpoint: torch.save didn't write it, nor is it named .safetensors"
        raise InputError(f"{path} {what}; give a model that can be loaded")
    try:
        with _plain_numbers():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|[Cc]an only build [^:]*?([\w.]+)", str(error))
        if named is None and start.startswith(PICKLE) and "Unsupported" not in str(error):
            raise InputError(f"{path} is truncated or no checkpoint; fetch it again") from error
        objects = f" ({named[1] or named[2]})" if named else ""
        raise InputError(
            f"{path} holds pickled objects{objects}, which run code when they are read, so it is refused; if you trust "
            f"it, keep the tensors alone: torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], FILE)"
            " (or ['model'], where they lie under that)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is truncated or damaged; fetch it again") from error


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
