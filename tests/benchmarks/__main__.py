"""``python -m tests.benchmarks [NAME…]``: prints figures, all of them or those named; ``--json`` as one line."""

from __future__ import annotations

import argparse
import json
import platform
import sys

from tests.benchmarks import assignment_share, combined_cost, report_time

ENTRIES = {
    "assignment_share": assignment_share.measure,
    "combined_cost": combined_cost.measure,
    "report_time": report_time.measure,
}


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENTRIES)}; default: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ENTRIES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(ENTRIES)}")
    figures = {name: ENTRIES[name]() for name in arguments.names or ENTRIES}
    if arguments.json:
        print(json.dumps({"machine": platform.platform(), **figures}))
        return 0
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:32} {value:.4g}" if isinstance(value, float) else f"  {key:32} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
