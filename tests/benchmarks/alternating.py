"""Two things measured in turns in one process, and what is said about them: medians, their ratio, its spread, a goal.

An entry is a file here whose ``measure()`` returns a list of ``Figure``::

    pairs = alternate(ours, theirs, pairs=11)
    return [pairs.figure("decode, s an image", at_least=1.5, per=32)]

Samples are costs (seconds, bytes, seconds an image): less is better. With ``at_most`` the ratio is ours over theirs
(a goal of 0.9 is "a tenth cheaper"), with ``at_least`` theirs over ours (a goal of 15 is "15 times faster").
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """A line of the table: what | ours | against | ratio (spread) | goal."""

    what: str
    """What was measured, with its unit."""
    ours: float
    """Median of ours."""
    against: float | None = None
    """Median of the peer's, or the limit; None where there is nothing to compare with."""
    ratio: float | None = None
    """Median of the pairs' ratios."""
    low: float | None = None
    """Lower end of the ratio's 95 % interval; None for a single pair."""
    high: float | None = None
    """Its upper end."""
    goal: str | None = None
    """What the ratio should be, such as "<= 0.9"."""
    reached: bool | None = None
    """Whether it is."""
    pairs: int = 1
    """How many pairs it is from."""
    peer: str = ""
    """What ``against`` is of."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything else worth knowing, by name."""

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Pairs:
    """Costs of ours and of theirs, taken in turns: the n-th of one belongs to the n-th of the other."""

    ours: Sequence[float]
    against: Sequence[float]

    def figure(
        self,
        what: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        judged: Literal["ratio", "low", "high"] = "ratio",
        per: float = 1.0,
        peer: str = "",
        **notes: Any,
    ) -> Figure:
        """The line for the table. The goal is ``at_most`` or ``at_least``, or none: then the ratio is ours over theirs.

        ``judged`` says which end of the interval must reach it, by default the median; costs are divided by ``per``.
        """
        top, bottom = (self.against, self.ours) if at_least is not None else (self.ours, self.against)
        ratios = [a / b for a, b in zip(top, bottom, strict=True)]
        low, high = interval(ratios)
        values = {"ratio": statistics.median(ratios), "low": low, "high": high}
        value = values[judged] if values[judged] is not None else values["ratio"]
        assert value is not None
        goal, reached = None, None
        if at_most is not None:
            goal, reached = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            goal, reached = f">= {at_least:g}", value >= at_least
        if goal is not None and judged != "ratio":
            goal = f"{judged} end {goal}"
        return Figure(
            what,
            ours=statistics.median(self.ours) / per,
            against=statistics.median(self.against) / per,
            ratio=values["ratio"],
            low=low,
            high=high,
            goal=goal,
            reached=reached,
            pairs=len(ratios),
            peer=peer,
            notes=notes,
        )


def alternate(
    ours: Callable[[], Any], against: Callable[[], Any], *, pairs: int = 11, warm_up: int = 2, repeats: int = 1
) -> Pairs:
    """Seconds of each, in turns, after ``warm_up`` pairs that don't count; ``repeats`` calls make one sample.

    The order alternates too, so that neither always runs on what the other left in the caches. A device is waited for
    by the callables themselves.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(warm_up + pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            call = (ours, against)[which]
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            if number >= warm_up:
                times[which].append((time.perf_counter() - began) / repeats)
    return Pairs(*times)


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the median by order statistics, which assumes nothing of the distribution; of fewer than six
    values the smallest and the largest, of one nothing.
    """
    ordered, count = sorted(values), len(values)
    if count < 2:
        return None, None
    rank, below = 0, 0.5**count  # below: probability that at most ``rank`` values are under the median
    while True:
        more = below + math.comb(count, rank + 1) * 0.5**count
        if more > 0.025:
            break
        rank, below = rank + 1, more
    return ordered[rank], ordered[count - 1 - rank]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch works with ``count`` threads within."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
