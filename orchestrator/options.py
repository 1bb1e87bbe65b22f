"""Options that all commands about a sweep share, and how their errors become one sentence, a JSON line and a status."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from detector.command import while_read
from detector.errors import InputError, UnreachableError
from orchestrator.lease import SweepHeldError
from orchestrator.request import SweepRequest


class Parser(argparse.ArgumentParser):
    """Command-line parser whose errors are sentences like all others."""

    def __init__(self, module: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"python -m orchestrator.{module}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True)
class Answer:
    """What a command has to say in the end."""

    exit_status: int
    document: dict[str, Any]
    """What ``--json`` prints."""
    text: str = ""
    """What is printed otherwise, on standard output."""
    error: str | None = None
    """Sentence for standard error."""


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says which sweep is meant."""
    parser.add_argument(
        "sweep",
        metavar="SWEEP",
        nargs="?",
        help="sweep file: a path, or an installed one such as sweeps/table3.yaml",
    )
    parser.add_argument(
        "--rerun", metavar="RUN_ID", help="in the place of SWEEP: the very configuration of an MLflow run of a row"
    )
    parser.add_argument("--profile", metavar="NAME", help="file of profiles/ to lay over the base, such as laptop")
    parser.add_argument(
        *("--set",),
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key of every row, such as schedule.iterations=1000; repeatable, and stronger than all files",
    )
    parser.add_argument("--only", metavar="ROW", action="append", default=[], help="only this row; repeatable")
    parser.add_argument("--seeds", metavar="0,1,2", type=_seeds, help="seeds instead of the sweep file's")
    parser.add_argument(
        "--storage",
        metavar="PLACE",
        help="folder that all nodes share, or s3://...; default: $DETSWEEP_STORAGE, then ~/detsweep",
    )
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow; default: $MLFLOW_TRACKING_URI, then sqlite:///STORAGE/mlflow.db",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON on standard output, nothing else")


def sweep_request(arguments: argparse.Namespace) -> SweepRequest:
    """What the options of :func:`add_sweep_options` ask for. Raises InputError unless one sweep is named."""
    if (arguments.sweep is None) == (arguments.rerun is None):
        raise InputError("give SWEEP, a sweep file such as sweeps/table3.yaml, or a run by --rerun RUN_ID: one of both")
    return SweepRequest(
        sweep=arguments.sweep or "",
        rerun=arguments.rerun,
        profile=arguments.profile,
        set=tuple(arguments.set),
        only=tuple(arguments.only),
        seeds=arguments.seeds,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
    )


def answer(command: Callable[[argparse.Namespace], Answer], parser: Parser, argv: Sequence[str] | None) -> int:
    """Runs ``command`` on the parsed ``argv`` and says its answer; returns the exit status.

    With ``--json`` standard output carries the document and nothing else, also where libraries print, and also for
    errors.
    """
    return while_read(lambda: _answer(command, parser, argv))


def _answer(command: Callable[[argparse.Namespace], Answer], parser: Parser, argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    named = next((word for word in words if not word.startswith("-")), None)
    with _one_line_of_output(as_json) as say:
        try:
            arguments = parser.parse_args(words)
            named = arguments.sweep
            found = command(arguments)
        except InputError as error:
            found = _refusal(named, "refused", str(error), 2)
        except UnreachableError as error:
            found = _refusal(named, "unreachable", str(error), 4)
        except SweepHeldError as error:
            found = _refusal(named, "refused", str(error), 5)
        except KeyboardInterrupt:
            found = _refusal(named, "interrupted", "interrupted; run the same command again to continue", 130)
        except SystemExit as end:
            if not isinstance(end.code, int) or end.code <= 128:  # --help
                raise
            by = signal.Signals(end.code - 128).name
            found = _refusal(named, "interrupted", f"interrupted by {by}; run the same command again", end.code)
        if found.error is not None:
            print(f"error: {found.error}", file=sys.stderr)
        say(json.dumps(found.document, ensure_ascii=False) + "\n" if as_json else found.text)
    return found.exit_status


def _refusal(sweep: str | None, status: str, sentence: str, exit_status: int) -> Answer:
    document: dict[str, Any] = {"sweep": sweep, "status": status, "rows": [], "report": None, "error": sentence}
    return Answer(exit_status, document, error=sentence)


@contextlib.contextmanager
def _one_line_of_output(as_json: bool) -> Iterator[Callable[[str], None]]:
    """Gives what writes to standard output; with ``as_json`` everything else goes to standard error meanwhile."""
    if not as_json:
        yield _write
        return
    sys.stdout.flush()
    # The descriptor, too: child processes and compiled libraries write past sys.stdout.
    kept = os.dup(1)
    os.dup2(2, 1)
    lines: list[str] = []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield lines.append
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        _write("".join(lines))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,1,2") from None


def positive(text: str) -> int:
    """A whole number of at least 1, for ``type=``."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number ≥ 1")
    return number


def positive_number(text: str) -> float:
    """A finite number above 0, for ``type=``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number > 0")
    return number
