"""Progress of a long job on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """``seconds`` as people say it: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts up to ``total`` and says how far it is and how long the rest will take.

    On a terminal one line is redrawn; elsewhere a line is written every ``log_every`` seconds, and the last one.
    """

    def __init__(
        self, total: int, label: str, *, start: int = 0, log_every: float = 15.0, stream: TextIO | None = None
    ) -> None:
        self.total, self.label, self.done, self._first = total, label, start, start
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._interval = 0.1 if self._tty else log_every
        self._began = self._shown = time.monotonic()
        self._open = False

    def update(self, done: int, detail: str = "") -> None:
        """``done`` of the total are behind; ``detail`` is added to the line."""
        self.done = done
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._write(detail)

    def close(self, detail: str = "") -> None:
        """Writes the last line."""
        self._write(detail)
        if self._tty and self._open:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, detail: str) -> None:
        spent = time.monotonic() - self._began
        advanced = self.done - self._first
        if self.done >= self.total:
            when = f"in {duration(spent)}"
        elif advanced:
            when = f"about {duration(spent / advanced * (self.total - self.done))} left"
        else:
            when = ""
        parts = [f"{self.label} {self.done}/{self.total}", detail, when]
        text = "  ".join(part for part in parts if part)
        if self._tty:
            filled = 24 * self.done // max(1, self.total)
            self._stream.write(f"\r\x1b[K[{'█' * filled}{'·' * (24 - filled)}] {text}")
            self._open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yields ``items`` with progress."""
    progress = Progress(total, label)
    for count, item in enumerate(items, 1):
        yield item
        progress.update(count)
    progress.close()
