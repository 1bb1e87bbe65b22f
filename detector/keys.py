"""The dotted keys of a configuration, and settings by origin.

A *layer* (a base, a profile, a row's ``set``, ``--set``) is a list of settings. Layers are laid over each other in
order, and every setting remembers where it was written, so that a refused value points at its own line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from detector.config import TrainingConfig
from detector.document import Document, Loc, read_scalar, suggestion
from detector.errors import InputError
from detector.plugins import Plugin
from detector.refusals import checked, model_in, short

REQUIRED_SECTIONS = frozenset(
    {"model", "data", "schedule", "checkpoint", "evaluation", "tracking", "resources", "data.augmentation"}
    | {f"model.{part}" for part in ("neck", "head", "assigner", "anchors", "postprocess")}
)
"""Sections that can't be null. To drop them silently would drop what the layers below say."""

NOT_KEYS = frozenset({"plugins"})
"""Parts of a configuration that no layer sets: a sweep file names its plug-ins at its top, a command by --plugin."""

FREE = ("model.assigner.options", "model.head.options")
"""Keys whose value is a mapping of anything; what is in it has keys, too, such as model.assigner.options.k."""


@dataclass(frozen=True)
class Setting:
    """One value for one dotted key."""

    key: str
    value: Any
    origin: str
    """Where it was written: ``sweeps/table3.yaml, line 12`` or ``--set model.norm=gn``."""


@cache
def sections(model: type[BaseModel] = TrainingConfig, prefix: str = "") -> dict[str, type[BaseModel]]:
    """Dotted names of the parts of a configuration that have keys of their own."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in model.model_fields.items():
        part = model_in(field.annotation)
        if part is not None and name not in NOT_KEYS:
            found[prefix + name] = part
            found.update(sections(part, f"{prefix}{name}."))
    return found


@cache
def keys(model: type[BaseModel] = TrainingConfig) -> tuple[str, ...]:
    """Every dotted key that has a value of its own, in the order of the configuration."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        part = model_in(field.annotation)
        if name not in NOT_KEYS:
            found.extend([name] if part is None else [f"{name}.{key}" for key in keys(part)])
    return tuple(found)


def read_layer(document: Document, data: Any, loc: Loc = ()) -> list[Setting]:
    """The settings of a mapping of dotted or nested keys that stands at ``loc`` of ``document``.

    Raises InputError for a key that no training has.
    """
    return list(_settings(document, data, loc, ""))


def check_key(key: str, origin: str) -> None:
    """Raises InputError, with the nearest key, where no training has ``key``."""
    free = key.rpartition(".")[0] in FREE and not key.endswith(".")
    if key not in keys() and key not in sections() and not free:
        raise InputError(f'{origin}: unknown key "{key}"; {suggestion(key, [*keys(), *sections()])}')


def read_settings(values: Sequence[str], refused: Mapping[str, str]) -> list[Setting]:
    """The settings of several ``--set KEY=VALUE``, in the order given; ``refused`` keys with the reason why.

    Raises InputError for a key that doesn't exist or is refused, and for a value that isn't YAML.
    """
    settings = []
    for text in values:
        key, equals, value = text.partition("=")
        origin = f"--set {text}"
        key = key.strip()
        if not equals or not key:
            raise InputError(f"{origin}: expected --set KEY=VALUE, such as --set schedule.iterations=100")
        check_key(key, origin)
        for leaf, inside in leaves(key, read_scalar(value, origin)):
            check_key(leaf, origin)
            if leaf in refused:
                raise InputError(f"{origin}: {leaf} can't be set here; {refused[leaf]}")
            settings.append(Setting(leaf, inside, origin))
    return settings


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The single values of what was given for ``key``, which may be a mapping where it is a section."""
    if isinstance(value, dict) and value and key in sections():
        for name, inside in value.items():
            yield from leaves(f"{key}.{name}", inside)
    else:
        yield key, value


def lay(layers: Sequence[Sequence[Setting]]) -> dict[str, Any]:
    """Nested values of ``layers``, later ones over earlier ones.

    A mapping is merged into what is below; null removes a section that may be absent (``data.generated``).

    Raises InputError for a section that is given one value, or null though every training has it.
    """
    tree: dict[str, Any] = {}
    for setting in (setting for layer in layers for setting in layer):
        for key, value in leaves(setting.key, setting.value):
            _lay(tree, Setting(key, value, setting.origin))
    return tree


def _lay(tree: dict[str, Any], setting: Setting) -> None:
    *above, last = setting.key.split(".")
    if setting.key in sections() and not isinstance(setting.value, dict) and setting.value is not None:
        example = next(key for key in keys() if key.startswith(f"{setting.key}."))
        raise InputError(
            f"{setting.origin}: {setting.key} is {short(setting.value)}, but it is a section with keys of its own, "
            f"such as {example}"
        )
    if setting.value is None and setting.key in REQUIRED_SECTIONS:
        raise InputError(f"{setting.origin}: {setting.key} is null, but every training has it; name the key below it")
    branch = tree
    for name in above:
        if not isinstance(branch.get(name), dict):
            branch[name] = {}
        branch = branch[name]
    if setting.value == {} and setting.key in sections():
        if not isinstance(branch.get(last), dict):
            branch[last] = {}
    else:
        # A copy, since keys of a free mapping may be laid into it.
        branch[last] = dict(setting.value) if setting.key in FREE and isinstance(setting.value, dict) else setting.value


def resolve(layers: Sequence[Sequence[Setting]], plugins: Sequence[Plugin] = ()) -> TrainingConfig:
    """The configuration that ``layers`` give, with those of the declared ``plugins`` that its model uses.

    Raises InputError naming the origin, the key, what was given and what is expected.
    """
    written = {setting.key: setting.origin for layer in layers for setting in layer}

    def where(loc: Loc, text: str = "") -> str:
        key = ".".join(str(part) for part in loc)
        below = [other for other in written if other.startswith(key + "." if key else "")]
        blamed = [other for other in below if other in text]
        blamed = blamed or [other for other in below if other.rpartition(".")[2] in text]
        if blamed:
            return written[blamed[-1]]
        while key:
            if key in written:
                return written[key]
            below = [origin for other, origin in written.items() if other.startswith(key + ".")]
            if below:
                return below[-1]
            key = key.rpartition(".")[0]
        return "the configuration"

    config = checked(TrainingConfig, {**lay(layers), "plugins": tuple(plugins)}, where)
    used = {"assigner": config.model.assigner.name, "head": config.model.head.name}
    mine = tuple(plugin for plugin in plugins if any(used[kind] == plugin.name for kind in plugin.provides))
    return config.model_copy(update={"plugins": mine})


def flat(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of ``config`` with its value; a section that is null is given as such."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name in NOT_KEYS:
            continue
        if isinstance(value, BaseModel):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def _settings(document: Document, data: Any, loc: Loc, prefix: str) -> Iterator[Setting]:
    if data is None and not prefix:
        return
    if not isinstance(data, Mapping):
        raise InputError(
            f"{document.where(loc)}: expected keys with values such as model.backbone: r50, not {short(data)}"
        )
    for name, value in data.items():
        key, at = prefix + str(name), (*loc, name)
        check_key(key, document.where(at))
        if isinstance(value, Mapping) and value and key in sections():
            yield from _settings(document, value, at, key + ".")
        else:
            yield Setting(key, value, document.where(at))
