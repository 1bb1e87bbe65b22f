"""One item ahead of who asks for it, made by a thread: decoding and the device work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def one_ahead(
    make: Callable[[K], T], keys: Iterable[K], begin: Callable[[], object] = lambda: None
) -> Generator[T, None, None]:
    """``make(key)`` of every key in order, as ``map`` gives them; while one is used the next is made.

    What ``make`` raises is raised where its item would have been given. ``begin`` is called by the thread first. When
    the generator is exhausted or closed, the thread has ended.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="reading", initializer=begin)
    try:
        coming: Future[T] | None = None
        for key in keys:
            coming, ready = thread.submit(make, key), coming
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
    finally:
        thread.shutdown(cancel_futures=True)
