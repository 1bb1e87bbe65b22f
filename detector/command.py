"""What the detector's commands share: parsing, and errors as one sentence with an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from detector.errors import InputError, TrainingError, UnreachableError


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


def output_folder(path: Path) -> Path:
    """``path``, made if need be. Raises UnreachableError where that can't be a folder to write into."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnreachableError(f"--out {path} can't be written ({error.strerror}); name another folder") from error
    return path


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Runs ``command`` on the parsed ``argv``. 0: done; 2: wrong input; 3: the training failed; 4: out of reach."""
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
