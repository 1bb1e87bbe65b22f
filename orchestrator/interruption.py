"""SIGINT and SIGTERM as an exception in the main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """SIGINT or SIGTERM; raised in the main thread, so that what is held is given back."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM raise ``Interrupted``; a second one ends the process at once.

    Yields what installs the handlers again: Ray replaces them when it starts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        sys.stderr.write("\nstopping: the ledger is being closed; once more ends at once\n")
        raise Interrupted(number)

    def listen() -> None:
        for number in before:
            signal.signal(number, handle)

    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
