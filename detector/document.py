"""YAML files with the line of every key, and the sentences that point at them.

The scalars are those of YAML 1.2: ``1:1`` is text and not 61, ``no`` is text and not false, ``1e-4`` is a number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detector.errors import InputError

Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _number(str(node.value)))

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _number(text: str) -> float:
    lowered = text.lower()
    return float(lowered.replace(".inf", "inf").replace(".nan", "nan"))


@dataclass(frozen=True)
class Document:
    """A YAML file: its data, and the line on which each key or item stands."""

    path: Path
    data: Any
    lines: dict[Loc, int] = field(default_factory=dict)

    def where(self, loc: Loc = (), text: str = "") -> str:
        """``sweeps/table3.yaml, line 12``: the nearest key at or above ``loc`` that the file has."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.lines:
                return f"{shown(self.path)}, line {self.lines[loc[:end]]}"
        return str(shown(self.path))


def shown(path: Path) -> Path:
    """``path`` relative to the working directory where it lies below it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def read_document(path: Path) -> Document:
    """Reads one YAML file.

    Raises InputError where it can't be read, isn't YAML, or has the same key twice in one mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{shown(path)} can't be read as UTF-8 text ({error}); check the path and its rights"
        ) from None
    lines: dict[Loc, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _value(loader, node, (), lines, path, ())
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(_yaml_sentence(path, error)) from None
    except RecursionError:
        raise InputError(f"{shown(path)} nests deeper than any sweep file; check its brackets") from None
    return Document(path, data, lines)


def read_scalar(text: str, origin: str) -> Any:
    """One YAML value given on the command line: ``3``, ``up``, ``[640, 800]``, ``null``.

    Raises InputError, naming ``origin``, where it isn't YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{origin}: the value isn't YAML ({problem}); put it in quotes") from None


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid dotted name that ``name`` was most likely meant to be, or None."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return (whole + last) / 2

    best = max(valid, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.6 else None


def suggestion(name: str, valid: Iterable[str], *, many: int = 12) -> str:
    """``did you mean "topk"?``, or what there is to choose from."""
    names = list(valid)
    near = nearest(name, names)
    if near is not None:
        return f'did you mean "{near}"?'
    if not names:
        return "there are none"
    return f"valid are: {listed(names, many)}"


def counted(number: int, noun: str) -> str:
    """``1 key``, ``3 keys``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str], many: int | None = None) -> str:
    """All of ``names``, or the first ``many`` and how many more there are."""
    rest = "" if many is None or len(names) <= many else f" and {len(names) - many} more"
    return ", ".join(names[:many]) + rest


def _value(
    loader: _Loader, node: yaml.Node, loc: Loc, lines: dict[Loc, int], path: Path, above: tuple[int, ...]
) -> Any:
    if id(node) in above:
        raise InputError(
            f"{shown(path)}, line {node.start_mark.line + 1}: an alias contains itself; write the value out"
        )
    above = (*above, id(node))
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise InputError(
            f"{shown(path)}, line {node.start_mark.line + 1}: the tag {node.tag} means nothing here; remove it"
        )
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, loc, lines, path, above)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            lines[(*loc, index)] = child.start_mark.line + 1
            items.append(_value(loader, child, (*loc, index), lines, path, above))
        return items
    return loader.construct_object(node)


def _mapping(
    loader: _Loader, node: yaml.MappingNode, loc: Loc, lines: dict[Loc, int], path: Path, above: tuple[int, ...]
) -> dict[str, Any]:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{shown(path)}, line {line}: a key must be text; put it in quotes")
        if key.value in seen:
            raise InputError(
                f'{shown(path)}, line {line}: the key "{key.value}" stands already on line {seen[key.value]}; '
                "keep one of them"
            )
        seen[key.value] = line
    loader.flatten_mapping(node)
    values: dict[str, Any] = {}
    # Merged keys come first, so that the mapping's own override them.
    for key, child in node.value:
        name = str(key.value)
        lines[(*loc, name)] = key.start_mark.line + 1
        values[name] = _value(loader, child, (*loc, name), lines, path, above)
    return values


def _yaml_sentence(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or "it can't be parsed"
    return f"{shown(path)}{line}: this isn't YAML ({problem}); correct the indentation, quotes or brackets there"
