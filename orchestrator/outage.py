"""A storage that is away for a moment, such as a bucket that answers 503: who only looks at it goes on meanwhile, and
who needs it waits.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from detector.errors import UnreachableError

PAUSE_S = 1.0

T = TypeVar("T")


def wait_out(ask: Callable[[], T], most_s: float, stop: threading.Event | None = None) -> T:
    """What ``ask`` returns, once it raises no ``UnreachableError`` any more.

    Raises that where it still does after ``most_s`` seconds, or when ``stop`` is set.
    """
    until, stop = time.monotonic() + most_s, stop or threading.Event()
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() > until or stop.wait(PAUSE_S):
                raise


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
