"""``python -m tests.statistics [NAME…]``: simulates sweeps whose truth is known and prints what the statistics make of
them.

Exit status 1 if a figure misses its limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from tests.statistics.images import image_coverage
from tests.statistics.orders import order_coverage
from tests.statistics.sweeps import (
    SETTINGS,
    coverage,
    false_tables,
    false_tables_adding_to_the_nearest,
    false_tables_adding_what_is_advised,
    power_of,
)

Line = tuple[str, float, float, float]
"""What it is, the share, and its limits."""


def intervals(count: int) -> Iterator[Line]:
    """95 % intervals of the differences."""
    for setting in SETTINGS:
        yield setting.name, coverage(setting, count), 0.93, 0.97


def verdicts(count: int) -> Iterator[Line]:
    """Tables with a false verdict on any pair at any look."""
    for setting in SETTINGS:
        yield setting.name, false_tables(setting, count, seed=1), 0.0, 0.05
    for rows, pairs in ((4, 3), (8, 5)):
        name = f"{rows} rows, {pairs} pairs, seeds added as advised"
        yield name, false_tables_adding_what_is_advised(rows, pairs, count, seed=2), 0.0, 0.05
    for rows, pairs in ((4, 3), (8, 5)):
        name = f"{rows} rows, {pairs} pairs, seeds added to the nearest"
        yield name, false_tables_adding_to_the_nearest(rows, pairs, count, seed=6), 0.0, 0.05
    often = SETTINGS[6]
    yield f"(each look at 5 %: {often.name})", false_tables(often, count, seed=1, spending=False), 0.0, 1.0


def powers(count: int) -> Iterator[Line]:
    """Sweeps in which a true difference is shown, beside the power that was predicted."""
    for rows, pairs, seeds in ((4, 3, 2), (4, 3, 3), (8, 3, 3), (9, 8, 5), (5, 4, 8)):
        for wanted in (0.5, 0.8):
            predicted, real = power_of(rows, pairs, seeds, wanted, count, seed=3)
            name = f"{rows} rows, {pairs} pairs, {seeds} seeds, predicted {predicted:.3f}"
            yield name, real, predicted - 0.05, predicted + 0.05


def orders(count: int) -> Iterator[Line]:
    """Intervals of Kendall's tau; conservative where there are few rows and few values."""
    for rows, spread in ((4, 0.2), (8, 0.1), (8, 0.2), (8, 0.8), (12, 0.2)):
        for related in (1.0, 0.0):
            found = order_coverage(rows, spread, 3, count // 2, seed=4, related=related)
            kind = f"{rows} rows {spread} AP apart, {'the same truth' if related else 'no relation'}"
            for name in ("true order", "second run") if related else ("true order",):
                yield f"{kind}: {name}", found[name], 0.92, 1.0
            if related:
                yield f"{kind}: second run below its median", found["below median"], 0.35, 0.65


def images(count: int) -> Iterator[Line]:
    """Intervals over resampled images; that over seeds, too, is conservative."""
    for seeds in (1, 3):
        for name, share in image_coverage(seeds, count // 5, seed=5).items():
            yield f"{seeds} seeds: {name}", share, 0.92, 1.0


SUBJECTS: dict[str, Callable[[int], Iterator[Line]]] = {
    "intervals": intervals,
    "verdicts": verdicts,
    "powers": powers,
    "orders": orders,
    "images": images,
}


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.statistics", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--sweeps", type=int, default=2000, help="simulated sweeps for each line (default: 2000)")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in SUBJECTS:
            parser.error(f"there is no {name!r}; there are {', '.join(SUBJECTS)}")
    missed = 0
    for subject in arguments.names or SUBJECTS:
        began = time.perf_counter()
        print(f"{subject}: {(SUBJECTS[subject].__doc__ or '').strip()}")
        for name, share, low, high in SUBJECTS[subject](arguments.sweeps):
            good = low <= share <= high
            missed += not good
            print(f"  {name:64} {share:.3f}   {low:.2f}-{high:.2f}{'' if good else '  MISSED'}", flush=True)
        print(f"  {time.perf_counter() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
