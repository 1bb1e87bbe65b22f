"""Plug-ins: an assigner or a head of one's own, in one file, without a fork.

``NAME.py`` adds an assigner called NAME by defining ``build_assigner(config)``, which returns an ``Assigner`` for an
AssignerConfig, and a head called NAME by defining ``HEAD``, a ``HeadKind``. Their options are free:
``config.options`` of an assigner, ``config.head.options`` of a head.

A plug-in is named by a sweep file, on a command line or to ``use``, never by a checkpoint or a saved model. Until it is
loaded its source is only parsed. It travels as text with the configuration of the training that uses it, so no worker
needs the file.
"""

from __future__ import annotations

import ast
import keyword
import linecache
import os
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from detector.errors import InputError
from detector.fields import Section
from detector.model_config import BUILT_IN, Kind
from detector.sources import source_digest

# What a file defines at its top level to provide the kind.
DEFINES: dict[Kind, str] = {"assigner": "build_assigner", "head": "HEAD"}


class Plugin(Section):
    """A plug-in as it was read."""

    name: str
    """Of the assigner or the head: the file's name without .py."""
    file: str
    """The file, as it was named."""
    provides: tuple[Literal["assigner", "head"], ...]
    """What it defines."""
    source: str
    """Its text."""

    @property
    def digest(self) -> str:
        """SHA-256 of its syntax tree: comments and layout don't count."""
        return source_digest(self.source)

    @property
    def frame(self) -> str:
        """The file's name in tracebacks."""
        return f"<plug-in {self.file}>"

    def __str__(self) -> str:
        return f"{self.file} ({' and '.join(self.provides)} {self.name}, {self.digest[:12]})"


def read_plugins(named: Sequence[str], origins: Sequence[str], beside: Path) -> tuple[Plugin, ...]:
    """The plug-ins that a sweep file in ``beside`` declares; ``origins`` say where each name is written.

    Raises InputError.
    """
    found: dict[str, Plugin] = {}
    for file, origin in zip(named, origins, strict=True):
        plugin = read_plugin(find_plugin(file, origin, beside), origin, named=file)
        if plugin.name in found:
            raise InputError(
                f"{origin}: {file} and {found[plugin.name].file} would both be called {plugin.name}; rename one"
            )
        found[plugin.name] = plugin
    return tuple(found.values())


def find_plugin(named: str, origin: str, beside: Path) -> Path:
    """The file that a sweep file calls ``named``: in the working directory, else in ``beside``.

    Raises InputError where there is none, and for anything that lies outside the working directory, also through ".."
    or a link.
    """
    home = Path.cwd().resolve()
    places = [home / named, beside / named]
    path = next((place for place in places if place.is_file()), places[0])
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(home):
        raise InputError(
            f"{origin}: the plug-in {named} lies outside the working directory ({real}, not below {home}); copy it "
            "there, or start the command where it is"
        )
    if not path.is_file():
        raise InputError(f"{origin}: there is no plug-in {named} in {home}; correct the path")
    return path


def read_plugin(path: Path, origin: str, *, named: str | None = None) -> Plugin:
    """The plug-in in ``path``. It is parsed, not executed, and nothing heavy is imported.

    Raises InputError, beginning with ``origin``, where it isn't the Python source of a plug-in.
    """
    file, name = named or str(path), path.stem
    if path.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(
            f"{origin}: the plug-in {file} gives its name to what it adds, so it must be called like a Python module; "
            "rename it to letters, digits and underscores, and .py"
        )
    try:
        source = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{origin}: there is no plug-in {file}; correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{origin}: the plug-in {file} can't be read as UTF-8 text ({error})") from None
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(f"{origin}: {file}{line} isn't Python ({reason}); correct it there") from None
    _check_imports(tree, path, f"{origin}: {file}")
    bound = set(_bound(tree.body))
    provides = tuple(kind for kind, defined in DEFINES.items() if defined in bound)
    if not provides:
        raise InputError(
            f"{origin}: {file} adds nothing: define build_assigner(config) for an assigner called {name}, or HEAD for "
            "a head of that name"
        )
    for kind in provides:
        if name in BUILT_IN[kind]:
            raise InputError(f"{origin}: {file} would replace the {kind} {name}, which is built in; rename the file")
    return Plugin(name=name, file=file, provides=provides, source=source)


def _check_imports(tree: ast.Module, path: Path, origin: str) -> None:
    """Raises InputError for an import of a file beside the plug-in: only the plug-in itself is sent to the workers."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = ["." * node.level + (node.module or "")]
        for name in names:
            top = name.split(".")[0]
            if not top or any((folder / f"{top}.py").is_file() for folder in (path.parent, Path.cwd())):
                raise InputError(
                    f"{origin}, line {node.lineno} imports {name} from beside it, but a plug-in is one file: no worker "
                    "has the other; put what it needs into it"
                )


def _bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Names that the statements of a module bind at its top level."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if node.value else []
            yield from (part.id for each in targets for part in ast.walk(each) if isinstance(part, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _bound(node.body)
            yield from _bound(getattr(node, "orelse", []))


def use(path: str | os.PathLike[str]) -> Plugin:
    """Reads and loads the plug-in in ``path``, for instance before a saved model with its head is loaded.

    Raises InputError.
    """
    plugin = read_plugin(Path(path).expanduser(), "detector.plugins.use", named=os.fspath(path))
    load([plugin])
    return plugin


def load(plugins: Iterable[Plugin]) -> None:
    """Executes ``plugins`` and enters what they provide into ``ASSIGNERS`` and ``HEADS``.

    Raises InputError where one fails, or what it defines is of another kind.
    """
    plugins = tuple(plugins)
    if not plugins:
        return
    from detector.assigners import ASSIGNERS
    from detector.heads import HEADS, HeadKind

    for plugin in plugins:
        module = _execute(plugin)
        builder, head = (getattr(module, defined, None) for defined in DEFINES.values())
        if "assigner" in plugin.provides:
            if not callable(builder):
                raise InputError(f"{plugin.file}: build_assigner must be a function of an AssignerConfig")
            ASSIGNERS[plugin.name] = builder
        if "head" in plugin.provides:
            if not isinstance(head, HeadKind):
                raise InputError(f"{plugin.file}: HEAD must be a detector.heads.HeadKind, not {type(head).__name__}")
            HEADS[plugin.name] = head


def _execute(plugin: Plugin) -> types.ModuleType:
    module = types.ModuleType(f"detector_plugin_{plugin.name}")
    module.__file__ = plugin.frame
    # Tracebacks show its lines, though no such file need be on this machine; dataclasses look their module up.
    linecache.cache[plugin.frame] = (len(plugin.source), None, plugin.source.splitlines(keepends=True), plugin.frame)
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.source, plugin.frame, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise InputError(f"{blamed([plugin], error)}; correct it there") from error
    return module


def blamed(plugins: Iterable[Plugin], error: BaseException) -> str:
    """Where in ``plugins`` an ``error`` arose, and what it was."""
    files = {plugin.frame: plugin.file for plugin in plugins}
    where, trace = " and ".join(files.values()), error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        where = f"{files[name]}, line {trace.tb_lineno}" if name in files else where
        trace = trace.tb_next
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
