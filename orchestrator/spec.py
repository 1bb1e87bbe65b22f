"""What a sweep file says, checked: YAML in, ``SweepSpec`` out, or one sentence about the line that is wrong.

Files are looked up in the working directory and then among the recipes that are installed with the package. Bases and
profiles lie in ``bases/`` and ``profiles/`` beside the sweep file, or beside the installed ones. A base may itself
stand on another: ``base: NAME`` in it, and then what is different.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import orchestrator
from detector.config import Section, Seed
from detector.document import Document, Loc, read_document, shown, suggestion
from detector.errors import InputError
from detector.keys import Setting, check_key, read_layer, read_settings
from detector.plugins import Plugin, read_plugins
from detector.refusals import checked, short
from orchestrator.fields import JOURNAL_METRICS, Figures, Metric, Text
from orchestrator.search_spec import Search, check_search

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODEL_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9 ._-]{0,198}[A-Za-z0-9_-])?")
_FORBIDDEN_IN_ROWS = {
    "schedule.iterations": "rows state only schedule.epochs_factor (1, 2, ...); a profile or --set gives the "
    "iterations for factor 1",
    "schedule.recipe_batch_size": "it is stated by a base or a profile, together with the rate; set "
    "schedule.scale_with_batch: linear to train with another batch",
    "seed": "seeds are listed under seeds: or by --seeds",
}
_FORBIDDEN_IN_SET = {key: _FORBIDDEN_IN_ROWS[key] for key in ("schedule.recipe_batch_size", "seed")}


class _Row(Section):
    name: Text
    base: str | None = None
    show: dict[str, Text] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    paper: Figures = Field(default_factory=dict)


class Quoted(Section):
    """A row that is shown, never trained."""

    show: dict[str, Text]
    """Columns as the paper prints them."""
    paper: Figures
    """Figures as the paper prints them."""


class Figure(Section):
    """A metric over the steps, one curve a row."""

    name: Text
    """Title and file name."""
    metric: str
    """One of the metric keys."""
    rows: list[Text]
    """Rows whose curves are drawn."""


class Register(Section):
    """Where the winner of a sweep goes."""

    name: Text
    """Registered model of MLflow."""
    metric: Metric = "AP"
    """What the winner has most of, on the validation split."""


# Every class with an abstract base has a method of that name, which nobody calls here.
warnings.filterwarnings("ignore", 'Field name "register" in "_SweepFile" shadows', UserWarning)


class _SweepFile(Section):
    name: str
    title: str
    base: str | None = None
    rows: list[_Row] | None = None
    grid: dict[str, list[Any]] | None = None
    include: list[str] = Field(default_factory=list)
    plugins: list[str] = Field(default_factory=list)
    quoted: list[Quoted] = Field(default_factory=list)
    compare: list[tuple[Text, Text]] = Field(default_factory=list)
    seeds: list[Seed] = Field(default_factory=lambda: [0])
    figures: list[Figure] = Field(default_factory=list)
    register: Register | None = None
    search: Search | None = None


@dataclass(frozen=True)
class RowSpec:
    """One row: what it sets over its base, and what the paper prints for it."""

    name: str
    base: tuple[Setting, ...]
    settings: tuple[Setting, ...]
    show: dict[str, str] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    """Those that its sweep file declares, used or not."""
    stands_on: str = ""
    """Name of its base."""


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep file."""

    path: Path
    name: str
    title: str
    rows: tuple[RowSpec, ...]
    quoted: tuple[Quoted, ...]
    compare: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    figures: tuple[Figure, ...]
    plugins: tuple[Plugin, ...] = ()
    """Those of the file and of the files that it includes."""
    register: Register | None = None
    """The file's own; not those of the files that it includes."""
    search: Search | None = None
    """What is searched beyond the rows."""


def installed_sweeps() -> Path:
    """The folder of the recipes that came with the package: in a wheel inside it, in a checkout beside it."""
    package = Path(orchestrator.__file__).resolve().parent
    inside = package / "sweeps"
    return inside if inside.is_dir() else package.parent / "sweeps"


def find_sweep(name: str, beside: Path | None = None) -> Path:
    """The file of a sweep that was named on the command line, or in a file that lies in ``beside``.

    Raises InputError, listing the installed sweeps, where there is none.
    """
    asked = Path(name).expanduser()
    installed = installed_sweeps()
    # "sweeps/table3.yaml" means the installed file from any working directory, and so does "table3.yaml".
    inside = Path(*asked.parts[1:]) if asked.parts[:1] == ("sweeps",) and len(asked.parts) > 1 else asked
    for folder, path in ((beside or Path.cwd(), asked), (installed, inside)):
        candidate = folder / path
        if candidate.is_file():
            return candidate.resolve()
    available = [f"sweeps/{path.name}" for path in sorted(installed.glob("*.yaml"))]
    raise InputError(
        f"there is no sweep file {name}; {suggestion(name, available)} (or give the path of your own file)"
    )


def load_spec(name: str, *, beside: Path | None = None, within: tuple[Path, ...] = ()) -> SweepSpec:
    """Reads and checks a sweep file and everything that it includes.

    Raises InputError.
    """
    path = find_sweep(name, beside)
    if within:
        _refuse_nested(path, within)
    document = read_document(path)
    if not isinstance(document.data, dict):
        raise InputError(f"{shown(path)}: expected a sweep with name, title, base and rows; see sweeps/table3.yaml")
    said = checked(_SweepFile, document.data, document.where, what="a sweep file")
    if within and said.include:
        raise InputError(
            f"{document.where(('include',))}: {shown(path)} is itself included by {shown(within[-1])}; includes are "
            "one level deep, so list the files there"
        )
    if not _NAME.fullmatch(said.name):
        raise InputError(
            f"{document.where(('name',))}: name is {short(said.name)}, but names folders and runs; use letters, "
            "digits, dots, dashes and underscores"
        )
    _check_seeds(said.seeds, document.where(("seeds",)))
    if said.register is not None and not _MODEL_NAME.fullmatch(said.register.name):
        raise InputError(
            f"{document.where(('register', 'name'))}: register.name is {short(said.register.name)}, but "
            "models:/NAME@best must name it; use up to 200 letters, digits, dots, dashes, underscores and inner spaces"
        )
    included = [
        load_spec(other, beside=path.parent, within=(*within, path))
        for other in _each_once(said.include, document, ("include",), "included file")
    ]
    declared = _each_once(said.plugins, document, ("plugins",), "plug-in")
    origins = [document.where(("plugins", index)) for index in range(len(declared))]
    plugins = read_plugins(declared, origins, path.parent)
    own = [replace(row, plugins=plugins) for row in _own_rows(said, document)]
    rows = [*own, *(row for spec in included for row in _prefixed_rows(spec))]
    _refuse_duplicates(rows, document)
    names = [row.name for row in rows]
    _check_references(said, names, document)
    check_search(said.search, names, said.seeds, bool(said.include or within), document)
    return SweepSpec(
        path=path,
        name=said.name,
        title=said.title,
        rows=tuple(rows),
        quoted=(*said.quoted, *(quoted for spec in included for quoted in spec.quoted)),
        compare=(
            *said.compare,
            *((f"{spec.name}/{one}", f"{spec.name}/{two}") for spec in included for one, two in spec.compare),
        ),
        seeds=tuple(said.seeds),
        figures=(*said.figures, *(figure for spec in included for figure in _prefixed_figures(spec))),
        search=said.search,
        plugins=tuple(dict.fromkeys((*plugins, *(plugin for spec in included for plugin in spec.plugins)))),
        register=said.register,
    )


def load_profile(name: str, beside: Path) -> list[Setting]:
    """The settings of a profile.

    Raises InputError, listing the profiles that exist, where there is none of that name.
    """
    return _load_settings("profile", name, beside, "--profile")


def read_set(values: Sequence[str]) -> list[Setting]:
    """The settings of ``--set KEY=VALUE``, in the order given.

    Raises InputError for a key that doesn't exist or a value that isn't YAML.
    """
    return read_settings(values, _FORBIDDEN_IN_SET)


def check_seeds(seeds: Sequence[int], origin: str) -> tuple[int, ...]:
    """``seeds`` as given by ``origin``: at least one, none negative, none twice.

    Raises InputError.
    """
    _check_seeds(seeds, origin)
    return tuple(seeds)


def _check_seeds(seeds: Sequence[int], origin: str) -> None:
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(set(seeds)) != len(seeds):
        raise InputError(
            f"{origin}: seeds are {short(list(seeds))}, but must be different whole numbers ≥ 0 and < 2^32, at "
            "least one"
        )


def _refuse_nested(path: Path, within: tuple[Path, ...]) -> None:
    if path in within:
        raise InputError(f"{shown(within[-1])} includes {shown(path)}, which includes it; remove one of the two")


def _own_rows(said: _SweepFile, document: Document) -> Iterator[RowSpec]:
    if said.rows is not None and said.grid is not None:
        raise InputError(f"{document.where(('grid',))}: rows and grid exclude each other; keep one of them")
    if said.rows is None and said.grid is None:
        if not said.include:
            raise InputError(f"{shown(document.path)}: there is nothing to train; add rows, grid or include")
        return
    base = None if said.base is None else _load_base(said.base, document, ("base",))
    if said.grid is not None:
        rows = _grid_rows(said.grid, _needed(base, document), document)
        yield from (replace(row, stands_on=said.base or "") for row in rows)
        return
    if not said.rows:
        raise InputError(f"{document.where(('rows',))}: rows is empty; add at least one row")
    for index, row in enumerate(said.rows):
        loc: Loc = ("rows", index)
        if any(character < " " for character in row.name):
            raise InputError(
                f"{document.where((*loc, 'name'))}: the row's name has a control character; use plain text"
            )
        settings = tuple(read_layer(document, document.data["rows"][index].get("set"), (*loc, "set")))
        _refuse_in_rows(settings)
        # A row's own base takes the place of the table's, it isn't laid over it.
        below = base if row.base is None else _load_base(row.base, document, (*loc, "base"))
        paper = {str(key): value for key, value in row.paper.items()}
        stands_on = row.base or said.base or ""
        yield RowSpec(row.name, _needed(below, document, loc), settings, dict(row.show), paper, stands_on=stands_on)


def _load_base(name: str, document: Document, loc: Loc) -> tuple[Setting, ...]:
    return tuple(_load_settings("base", name, document.path.parent, document.where(loc)))


def _needed(base: tuple[Setting, ...] | None, document: Document, loc: Loc = ()) -> tuple[Setting, ...]:
    if base is None:
        raise InputError(
            f"{document.where(loc)}: rows need a base; add base: coco_r50_1x or one of your own in bases/, to the file "
            "or to each of its rows"
        )
    return base


def _grid_rows(grid: dict[str, list[Any]], base: tuple[Setting, ...], document: Document) -> Iterator[RowSpec]:
    for key, values in grid.items():
        origin = document.where(("grid", key))
        check_key(key, origin)
        _refuse_in_rows([Setting(key, None, origin)])
        if not values:
            raise InputError(f"{origin}: {key} has no values; list at least one")
    if not grid:
        raise InputError(f"{document.where(('grid',))}: grid is empty; add a key with a list of values")
    short_names = {key: _short_name(key, grid) for key in grid}
    for combination in itertools.product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        settings = tuple(
            Setting(key, value, document.where(("grid", key, grid[key].index(value)))) for key, value in chosen.items()
        )
        shown_values = {short_names[key]: _plain(value) for key, value in chosen.items()}
        name = ", ".join(f"{key}={value}" for key, value in shown_values.items())
        yield RowSpec(name, base, settings, shown_values)


def _short_name(key: str, grid: dict[str, list[Any]]) -> str:
    """The last part of a dotted key where that is enough to tell it from the others."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in grid].count(last) == 1 else key


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_in_rows(settings: Sequence[Setting]) -> None:
    for setting in settings:
        if setting.key in _FORBIDDEN_IN_ROWS:
            raise InputError(f"{setting.origin}: a row can't set {setting.key}; {_FORBIDDEN_IN_ROWS[setting.key]}")


def _prefixed_rows(spec: SweepSpec) -> Iterator[RowSpec]:
    for row in spec.rows:
        yield replace(row, name=f"{spec.name}/{row.name}")


def _prefixed_figures(spec: SweepSpec) -> Iterator[Figure]:
    for figure in spec.figures:
        rows = [f"{spec.name}/{row}" for row in figure.rows]
        yield Figure(name=f"{spec.name}/{figure.name}", metric=figure.metric, rows=rows)


def _refuse_duplicates(rows: Sequence[RowSpec], document: Document) -> None:
    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.name in seen:
            here, there = document.where(("rows", index, "name")), document.lines.get(("rows", seen[row.name], "name"))
            also = f" as on line {there}" if there else ""
            raise InputError(f'{here}: the row name "{row.name}" is used twice{also}; give one of them another name')
        seen[row.name] = index


def _check_references(said: _SweepFile, names: Sequence[str], document: Document) -> None:
    for index, pair in enumerate(said.compare):
        for name in pair:
            if name not in names:
                where = document.where(("compare", index))
                raise InputError(f'{where}: compare names an unknown row "{name}"; {suggestion(name, names)}')
        if pair[0] == pair[1] or {*pair} in [{*other} for other in said.compare[:index]]:
            where = document.where(("compare", index))
            problem = "a row with itself" if pair[0] == pair[1] else "the same two rows twice"
            raise InputError(f'{where}: compare has {problem} ("{pair[0]}", "{pair[1]}"); remove it')
    for index, figure in enumerate(said.figures):
        for name in figure.rows:
            if name not in names:
                where = document.where(("figures", index))
                raise InputError(f'{where}: figures names an unknown row "{name}"; {suggestion(name, names)}')
        if figure.metric not in JOURNAL_METRICS and not re.fullmatch(r"AP_class/\d+", figure.metric):
            where = document.where(("figures", index, "metric"))
            raise InputError(f'{where}: unknown metric "{figure.metric}"; {suggestion(figure.metric, JOURNAL_METRICS)}')


def _each_once(names: Sequence[str], document: Document, loc: Loc, what: str) -> Sequence[str]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{document.where((*loc, index))}: the {what} {name} is listed twice; remove one")
    return names


def _load_settings(
    kind: Literal["base", "profile"], name: str, beside: Path, origin: str, above: tuple[str, ...] = ()
) -> list[Setting]:
    """The settings of a base or profile; ``above``: the bases that stand on this one."""
    if name in above:
        circle = " on ".join((*above, name))
        raise InputError(f"{origin}: the base {name} stands on itself ({circle}); name another there")
    folders = [folder / f"{kind}s" for folder in (beside, installed_sweeps())]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if _NAME.fullmatch(name) and path.is_file():
            document = read_document(path)
            data, settings = document.data, []
            if kind == "base" and isinstance(data, dict) and "base" in data:
                below, at = data["base"], document.where(("base",))
                if not isinstance(below, str):
                    raise InputError(f"{at}: base is {short(below)}, but must be the name of another base")
                settings = _load_settings("base", below, beside, at, (*above, name))
                data = {key: value for key, value in data.items() if key != "base"}
            settings += read_layer(document, data)
            for setting in settings:
                if setting.key == "seed":
                    raise InputError(f"{setting.origin}: a {kind} can't set seed; {_FORBIDDEN_IN_ROWS['seed']}")
            return settings
    existing = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = suggestion(name, existing)
    listed = "" if near.startswith("valid are") or not existing else f" ({kind}s: {', '.join(existing)})"
    raise InputError(f'{origin}: there is no {kind} "{name}"; {near}{listed}')
