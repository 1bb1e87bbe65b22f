"""What the detector's commands share: parsing, and errors as one sentence with an exit status."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from detector.errors import InputError, TrainingError, UnreachableError
from detector.plugins import Plugin, read_plugin


class Parser(argparse.ArgumentParser):
    """Command-line parser whose errors are sentences like all others."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(
            prog=f"python -m detector.{module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def add_views(parser: Parser) -> None:
    """Adds how a model looks at images: ``--flip``, ``--scales``, ``--precision``, ``--compile``."""
    parser.add_argument("--flip", action="store_true", help="look at the mirrored image, too, and merge")
    parser.add_argument("--scales", metavar="S,S", help="short sides to look at and merge, such as 640,800")
    parser.add_argument("--precision", metavar="P", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the network first: pays with many images")


def views(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``add_views`` was given, as fields of ``detector.prediction.Options``."""
    try:
        scales = None if arguments.scales is None else tuple(int(side) for side in arguments.scales.split(","))
    except ValueError as error:
        raise InputError(f"--scales {arguments.scales}: expected short sides in pixels, such as 640,800") from error
    return {"flip": arguments.flip, "scales": scales, "precision": arguments.precision, "compile": arguments.compile}


def add_plugins(parser: argparse.ArgumentParser, use: str) -> None:
    """Adds --plugin; ``use`` says what it is for."""
    parser.add_argument("--plugin", metavar="FILE", action="append", default=[], help=f"{use}; repeatable")


def read_plugins(arguments: argparse.Namespace) -> list[Plugin]:
    """The plug-ins of ``--plugin FILE``, parsed and not executed. Raises InputError."""
    return [read_plugin(Path(file).expanduser(), f"--plugin {file}", named=file) for file in arguments.plugin]


def check_folder(path: Path, option: str) -> None:
    """Raises InputError where ``path``, given as ``option``, can't become a folder; makes nothing."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())
    if not nearest.is_dir():
        raise InputError(f"{option} {path} can't be a folder: {nearest} is a file; name another")


def output_folder(path: Path) -> Path:
    """``path``, made if need be. Raises UnreachableError where that can't be a folder to write into."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(f"--out {path} can't be written ({error.strerror}); name another folder") from error
    return path


# As for a program that SIGPIPE ends.
NO_READER = 141


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Runs ``command`` on the parsed ``argv``.

    0: done; 2: wrong input; 3: the training failed; 4: out of reach; 130: interrupted; 141: no reader.
    """
    return while_read(lambda: _status(command, parser, argv))


def while_read(command: Callable[[], int]) -> int:
    """The exit status of ``command``; ``NO_READER``, and no traceback, where ``| head`` has read enough."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # not left to the interpreter's end, which would print the error
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:  # another pipe, such as one between processes: that is a fault
            raise
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:
            os.dup2(nothing, stream.fileno())  # takes what is still buffered
        os.close(nothing)
        return NO_READER


def _has_no_reader(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False


def _status(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    try:
        return command(parser.parse_args(argv)) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except UnreachableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the same command continues what it had saved", file=sys.stderr)
        return 130
