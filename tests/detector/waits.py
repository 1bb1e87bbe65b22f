"""Counts what would make the host wait for a GPU, on a machine that has none."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Results, or sizes of results, that the host must know.
OPERATORS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "is_nonzero", "equal", "unique_dim",
    "_unique", "_unique2", "unique_consecutive", "bincount", "repeat_interleave.Tensor", "argwhere",
}  # fmt: skip
# Indexing by a mask looks for its places first.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Copies between host and device, which operators of the CPU don't show.
FUNCTIONS = {"tolist", "cpu", "numpy", "__array__", "new_tensor"}
FACTORIES = {"tensor", "as_tensor", "asarray"}
# And these unless they are told not to; ``to`` where it names a device.
MOVES = {"to", "cuda", "copy_"}
# Torch's own moves of gradients' norms and of ``found_inf``, to the device that they are on.
MOVES_NOTHING = {"torch.nn.utils.clip_grad", "torch.optim.sgd", "torch.optim.adam", "torch.optim.adamw"}


class Waits:
    """Names of what would wait, in order, as a context manager."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._modes = (_Operators(self.names), _Functions(self.names))

    def __enter__(self) -> list[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.names

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operators(TorchDispatchMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in OPERATORS or f"{name}.{function._overloadname}" in OPERATORS:
            self._names.append(name)
        if name in INDEXING and any(_is_mask(each) for each in args[1]):
            self._names.append(f"{name} by a mask")
        return function(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in FUNCTIONS or (name in FACTORIES and (kwargs or {}).get("device") is not None):
            self._names.append(name)
        if name in MOVES and _caller() not in MOVES_NOTHING and _blocks(name, args, kwargs or {}):
            self._names.append(name)
        return function(*args, **(kwargs or {}))


def _caller() -> str:
    """The module that has called a function of torch, as seen by the mode's method."""
    return sys._getframe(2).f_globals["__name__"]


def _blocks(name: str, args: tuple, options: dict[str, Any]) -> bool:
    if options.get("non_blocking"):
        return False
    return name != "to" or "device" in options or any(isinstance(each, torch.device | str | int) for each in args[1:2])


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
