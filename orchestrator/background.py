"""What may go on beside something else until its result is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A function in a thread, whose error is raised where it is waited for."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._error: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Until it is over. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
