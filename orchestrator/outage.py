"""A storage that is away for a moment, such as a bucket that answers 503: who only looks at it goes on meanwhile, and
who needs it waits.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from detector.errors import UnreachableError

PAUSE_S = 1.0


def wait_out(look: Callable[[], object], most_s: float) -> None:
    """Waits until ``look`` raises no ``UnreachableError`` any more, or raises that after ``most_s`` seconds."""
    until = time.monotonic() + most_s
    while True:
        try:
            look()
            return
        except UnreachableError:
            if time.monotonic() > until:
                raise
        time.sleep(PAUSE_S)


class Outage:
    """Swallows ``UnreachableError`` inside its ``with`` until one has followed the other for ``most_s`` seconds."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._since: float | None = None

    @contextlib.contextmanager
    def borne(self) -> Iterator[None]:
        """What is done inside may fail for a while; that it does is said once."""
        try:
            yield
        except UnreachableError as error:
            now = time.monotonic()
            if self._since is None:
                self._since = now
                sys.stderr.write(f"{error}; trying again for {self._most_s:g} s, training goes on\n")
            elif now - self._since > self._most_s:
                raise
        else:
            self._since = None
