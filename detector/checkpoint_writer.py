"""Checkpoints are written while training goes on: by a thread of its own, one after the other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType

from safetensors import SafetensorError

from detector.errors import UnreachableError


class CheckpointWriter:
    """Runs one writing at a time beside the training, as a context manager: nothing is being written after it.

    ``busy`` is entered while the training has to wait. It may be ``ahead`` steps ahead of what is being written: with
    0 it isn't written beside the training at all. What a writing raises is raised by the next call, at the latest by
    the one that waits for the last.
    """

    def __init__(
        self,
        ahead: int = 0,
        busy: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._ahead, self._busy = ahead, busy
        self._step = 0
        self._then: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:  # that one is told; what is being written becomes whole all the same
            self._join()

    def start(self, write: Callable[[], None] | None, then: Callable[[], None], step: int, place: object) -> None:
        """Begins to ``write`` the checkpoint of ``step`` into ``place``, after waiting for the one before.

        ``then`` is called by the training's own thread, when it has waited for it. Where others write, ``write`` is
        None, and ``then`` is called after as many steps as with them.
        """
        self.wait()
        self._step, self._then = step, then
        if write is not None:
            # Not a daemon: an interpreter that ends waits for it.
            self._thread = threading.Thread(target=self._run, args=(write, step, place), name="checkpoint")
            self._thread.start()
        self.keep_up(step)

    def keep_up(self, step: int) -> None:
        """Training has come to ``step``: waits where that is as far ahead as it may be."""
        if step - self._step >= self._ahead:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises UnreachableError where that couldn't be done."""
        self._join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._then is not None:
            then, self._then = self._then, None
            then()

    def _join(self) -> None:
        if self._thread is not None:
            with self._busy():
                self._thread.join()
            self._thread = None

    def _run(self, write: Callable[[], None], step: int, place: object) -> None:
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:  # each says a full disk in its own way
            self._error = _unwritten(error, step, place)
        except BaseException as error:
            self._error = error


def _unwritten(error: Exception, step: int, place: object) -> UnreachableError:
    told = UnreachableError(
        f"the checkpoint of step {step} can't be written to {place} ({' '.join(str(error).split())}); those before it "
        "are intact: make room or give write permission, and run the same command again"
    )
    told.__cause__ = error
    return told
