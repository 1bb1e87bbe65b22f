"""Being asked to end while something is half made: by an exception, so that it can be removed first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

PLAIN: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""The handlers of a Python process in which nobody has installed others."""


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt; a second one waits.

    Handlers that somebody else installed stay, and outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number, handler in PLAIN.items() if signal.getsignal(number) == handler]
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            return  # what the first one began takes no time worth mentioning
        asked = True
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, PLAIN[number])
