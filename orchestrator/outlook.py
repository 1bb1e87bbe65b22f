"""``python -m orchestrator.plan SWEEP --cluster 8x8xV100``: what a forecast says, as a table and for ``--json``."""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from detector.document import listed
from detector.errors import InputError
from orchestrator.costs import remembered, workload_key
from orchestrator.forecast import (
    GPU_LIFETIME_H,
    START_S,
    SWEEP_S,
    Forecast,
    cores_of_a_node,
    forecast,
    read_shape,
)
from orchestrator.ledger import Ledger
from orchestrator.options import Answer, Parser, add_sweep_options, answer, positive, positive_number, sweep_request
from orchestrator.plan import Plan, make_plan
from orchestrator.results import result_rows
from orchestrator.simulation import KINDS, Cluster, Kind

_LABELS: dict[Kind, str] = {
    "iterations": "iterations",
    "gradients": "waiting for gradients",
    "evaluations": "evaluations",
    "checkpoints": "checkpoints",
    "starting": "starting processes",
    "repeated": "done again after losses",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = Parser(
        "plan",
        "Say what a sweep would take on a cluster, and what limits it, by simulating it. Nothing is started.",
    )
    add_sweep_options(parser)
    add = parser.add_argument
    add("--cluster", metavar="NODESxGPUSxNAME", required=True, help="such as 8x8xV100; 1x2xcpu: two cores")
    add("--price", metavar="P", type=positive_number, help="of an hour of a GPU, or of a core")
    add("--max-concurrent", metavar="N", type=positive, help="most trainings at a time, as of the sweep")
    add("--cpus", metavar="N", type=positive, help="cores of a node with GPUs; default: as many as its workers ask for")
    add("--network", metavar="GB/S", type=positive_number, default=1.25, help="of a node; default 1.25 (10 Gbit/s)")
    add("--links", metavar="GB/S", type=positive_number, default=10.0, help="between GPUs of a node; default 10 (PCIe)")
    add("--disk", metavar="GB/S", type=positive_number, default=0.5, help="of the storage, for a training; default 0.5")
    add(
        "--lifetime",
        metavar="HOURS",
        type=_lifetime,
        help=f"mean time until a node is lost; default {GPU_LIFETIME_H:,.0f} over its GPUs; inf: never",
    )
    add(
        "--replacement",
        metavar="MINUTES",
        type=positive_number,
        default=10.0,
        help="until another is there; default 10",
    )
    add("--start", metavar="S", type=positive_number, default=START_S, help=f"of a training; default {START_S:g}")
    return answer(_plan, parser, argv)


def _lifetime(text: str) -> float:
    return math.inf if text == "inf" else positive_number(text)


def _plan(arguments: argparse.Namespace) -> Answer:
    shape = read_shape(arguments.cluster)
    plan = make_plan(sweep_request(arguments), "describe")
    if plan.search is not None:
        raise InputError(f"{plan.key} is a search, which decides as it goes what it trains; plan a table of rows")
    ledger = Ledger(plan.place)
    most = max((cores_of_a_node(row.config, shape) for row in plan.rows), default=0)
    lifetime = arguments.lifetime
    if lifetime is None:
        lifetime = GPU_LIFETIME_H / shape.devices if shape.gpus else math.inf
    cluster = Cluster(
        nodes=shape.nodes,
        devices=shape.devices,
        gpus=shape.gpus,
        cpus=float(shape.devices if not shape.gpus else arguments.cpus or most),
        network=arguments.network * 1e9,
        links=arguments.links * 1e9,
        lifetime_s=lifetime * 3600,
        replaced_s=arguments.replacement * 60,
    )
    found = forecast(
        plan,
        ledger,
        remembered(ledger.place, map(workload_key, plan.rows)),
        shape,
        cluster,
        disk=arguments.disk * 1e9,
        start_s=arguments.start,
        most=arguments.max_concurrent,
        price=arguments.price,
    )
    document: dict[str, Any] = {
        "sweep": plan.key,
        "status": "dry_run",
        "rows": result_rows(plan, ledger),
        "report": None,
        "error": None,
        "forecast": None if found is None else forecast_document(found),
    }
    if found is None:
        return Answer(0, document, f"{plan.key}: nothing is left to do\n")
    return Answer(0, document, "\n".join(forecast_lines(plan, found)) + "\n")


# What is said


def limits(found: Forecast) -> list[str]:
    """What holds the sweep back, in sentences, the most important one first."""
    seconds, shape = found.seconds, found.shape
    name, longest = found.longest
    total = shape.nodes * shape.devices
    held = max((work.need.workers * work.devices for work in found.works), default=0.0)
    waiting = statistics.fmean(one.queued_until for one in found.outcomes)
    idle = found.idle / found.device_hours
    said = []
    if longest >= 0.9 * (seconds - sum(SWEEP_S)):
        shared = f"; more workers for it could ({_workers(found)})" if _workers(found) else ""
        said.append(
            f"the longest training: {found.names[name]} takes {_time(longest)} by itself, so more "
            f"{shape.device}s wouldn't end the sweep sooner{shared}"
        )
    elif idle > 0.1 and waiting < 0.9 * seconds:
        said.append(
            f"its end: from {_time(waiting)} on no training waits for {shape.device}s, and those that run go on for "
            f"another {_time(seconds - waiting)}"
        )
        if found.longest_first < 0.95 * found.outcomes[0].seconds:
            said.append(f"its order, the cheapest first: the longest first, it would take {_time(found.longest_first)}")
    else:
        said.append(f"the number of {shape.device}s: trainings wait for them until {_time(waiting)}")
    spare = total - found.at_once * held
    if len(found.works) > found.at_once and spare >= 1 and spare / total > 0.1:
        said.append(f"{spare:g} {shape.device}s stay empty, since {found.at_once} trainings run at once")
    work = sum(map(found.hours, KINDS))
    for kind in KINDS[1:]:
        share = found.hours(kind) / work
        if share > 0.1:
            where = 0 if share > 0.4 else len(said)
            said.insert(where, f"{share:.0%} of what trainings hold goes to {_LABELS[kind]}")
    return said


def _workers(found: Forecast) -> str:
    """The key that gives the longest training more workers, where it could have more."""
    (work,) = (work for work in found.works if work.identity == found.longest[0])
    return "resources.workers" if work.need.workers < 16 and work.begun < work.steps else ""


def forecast_lines(plan: Plan, found: Forecast) -> list[str]:
    """A table, what limits, and what the figures rest on."""
    shape, unit = found.shape, f"{found.shape.device}-hours"
    total = found.device_hours
    table = [("", "hours", ""), ("the sweep", _hours(found.seconds / 3600), _spread(found))]
    table.append((f"{unit} of the cluster", _hours(total), ""))
    for kind in KINDS:
        table.append((f"  {_LABELS[kind]}", _hours(found.hours(kind)), _share(found.hours(kind) / total)))
    table.append(("  idle", _hours(found.idle), _share(found.idle / total)))
    if found.price is not None:
        table.append((f"cost at {found.price:g}", f"{total * found.price:,.0f}", f"{unit} of the cluster, used or not"))
    widths = [max(len(line[column]) for line in table) for column in range(2)]
    lines = [
        f"{plan.key} on {shape}, simulated: {len(found.works)} training{'s' * (len(found.works) != 1)}, "
        f"{found.at_once} at a time",
        "",
        *(f"{line[0].ljust(widths[0])}  {line[1].rjust(widths[1])}  {line[2]}".rstrip() for line in table),
        "",
    ]
    for label, texts in (("limit", limits(found)), ("steps", _steps(found)), ("stated", _stated(found))):
        for index, text in enumerate(texts):
            start = f"{label:<10}" if not index else " " * 10
            lines += textwrap.wrap(text, 110, initial_indent=start, subsequent_indent=" " * 12, break_on_hyphens=False)
    return lines


def _steps(found: Forecast) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for work in found.works:
        if work.begun < work.steps:
            groups.setdefault((f"{work.step_s:.3g}", found.sources[work.identity]), []).append(work.identity)
    return [
        f"{step} s a step: {listed([found.names[one] for one in names], 2)} ({source})"
        for (step, source), names in sorted(groups.items(), key=lambda group: float(group[0][0]))
    ]


def _stated(found: Forecast) -> list[str]:
    cluster = found.cluster
    before, after = SWEEP_S
    said = [f"{found.start_s:g} s to start a training, {before:g} s before the first and {after:g} s after the last"]
    if any(work.need.workers > 1 for work in found.works):
        sizes = sorted({work.gradients / 1e6 for work in found.works})
        size = f"{sizes[0]:.0f}" if sizes[0] == sizes[-1] else f"{sizes[0]:.0f} to {sizes[-1]:.0f}"
        said.append(
            f"{size} MB of gradients a step by ring all-reduce, over {cluster.links / 1e9:g} GB/s inside a node and "
            f"{cluster.network / 1e9:g} GB/s between nodes; hidden while 2/3 of the step go on, but for the last 25 MiB"
        )
    if any(work.inside for work in found.works):
        said.append(
            "a published step is of two images a worker, with the gradients inside a node; others by their images"
        )
    if not math.isinf(cluster.lifetime_s):
        said.append(
            f"a node is lost every {cluster.lifetime_s / 3600:,.0f} h on average, and replaced after "
            f"{cluster.replaced_s / 60:g} min; means of {len(found.outcomes)} simulations"
        )
    return said


def _spread(found: Forecast) -> str:
    seconds = [one.seconds for one in found.outcomes]
    days = f"{found.seconds / 86400:.1f} days" if found.seconds > 2 * 86400 else f"{found.seconds:,.0f} s"
    if max(seconds) - min(seconds) < 0.02 * found.seconds:
        return days
    return f"{days}; {_hours(min(seconds) / 3600)} to {_hours(max(seconds) / 3600)} h, by which nodes are lost when"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{_hours(seconds / 3600)} h"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _share(share: float) -> str:
    return f"{share:.1%}"


def forecast_document(found: Forecast) -> dict[str, Any]:
    """For ``--json``."""
    one = found.outcomes[0]
    by_identity = {course.identity: course for course in one.courses}
    total = found.device_hours
    return {
        "cluster": str(found.shape),
        "hours": found.seconds / 3600,
        "seconds": found.seconds,
        "seconds_low": min(each.seconds for each in found.outcomes),
        "seconds_high": max(each.seconds for each in found.outcomes),
        "unit": f"{found.shape.device}-hours",
        "device_hours": total,
        "utilisation": found.hours("iterations") / total,
        "shares": {**{kind: found.hours(kind) / total for kind in KINDS}, "idle": found.idle / total},
        "cost": None if found.price is None else total * found.price,
        "price": found.price,
        "at_once": found.at_once,
        "limits": limits(found),
        "stated": _stated(found),
        "lost_nodes": statistics.fmean(each.lost_nodes for each in found.outcomes),
        "trainings": [
            {
                "identity": work.identity,
                "row": found.names[work.identity],
                "workers": work.need.workers,
                "step_seconds": work.step_s,
                "source": found.sources[work.identity],
                "start": by_identity[work.identity].start,
                "end": by_identity[work.identity].end,
            }
            for work in found.works
        ],
    }
