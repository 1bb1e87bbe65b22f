"""What ``--dry-run`` says: the rows, what is different about them, what is done already, and what the rest needs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from detector.config import TrainingConfig
from detector.document import listed
from detector.keys import flat
from detector.origins import without_secrets
from orchestrator.dataset import SplitFacts
from orchestrator.estimate import Estimate, estimate_lines
from orchestrator.history import MOST
from orchestrator.order import RULE
from orchestrator.plan import Plan, PlannedRow
from orchestrator.prospects import prospect_lines, prospects
from orchestrator.results import Results
from orchestrator.search_text import search_lines

MOST_TURNS = 40
"""Trainings whose order is shown; the rest is counted, and is in --json."""


def describe(plan: Plan, ledger: Results, costs: Estimate | None = None, turns: Sequence[str] = ()) -> str:
    """The whole description, for a terminal.

    ``turns``: identities in the order in which they will start; ``costs``: what was measured of them.
    """
    lines = [f"{plan.key}: {plan.title}", ""]
    lines += _rows(plan, ledger)
    lines += ["", *_changes(plan), *_trainings(plan, ledger)]
    lines += ["", *_needs(plan)]
    lines += _search(plan, costs)
    lines += _order(plan, turns)
    told = estimate_lines(costs) if costs is not None else []
    lines += ["", *told] if told else []
    lines += _prospects(plan, ledger, costs)
    lines += [
        "",
        *_common(plan),
        *_bases(plan),
        *_plugins(plan),
        f"storage   {plan.storage}",
        f"run       {plan.command}",
        *_server(plan),
    ]
    return "\n".join(lines) + "\n"


def _server(plan: Plan) -> list[str]:
    """What ``run`` can't say: the address of a tracking server with a password in it."""
    if without_secrets(plan.tracking_uri) == plan.tracking_uri:
        return []
    return ["          with the tracking server's address, whose secrets aren't shown, in $MLFLOW_TRACKING_URI"]


def _rows(plan: Plan, ledger: Results) -> list[str]:
    table = [("row", "seed", "training", "state", "sets")]
    for row in plan.rows:
        if row.other_code is not None and not row.other_code.accepted:
            state = f"refused: {'trained' if row.other_code.done else 'begun'} by other code"
            table.append((row.row, str(row.seed), row.identity, state, _sets(plan, row)))
            continue
        record = ledger.record(row.identity, row.evaluations)
        if record.trained and record.state in ("pending", "failed"):
            state = "evaluate"
        elif record.cancelled:
            state = "cancelled, stays out until `status --retry`"
        elif record.state == "pending":
            state = f"continues ({record.step}/{record.iterations})" if record.step else "new"
        else:
            state = {"finished": "done", "failed": "failed, is tried again"}.get(record.state, "running elsewhere")
        reused = ledger.reused_from(plan.key, row.row, row.seed, row.identity)
        state += f", from {reused}" if reused else ""
        name = row.identity if row.drawn else "not drawn yet"
        table.append((row.row, str(row.seed), name, state, _sets(plan, row)))
    widths = [max(len(line[index]) for line in table) for index in range(5)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]


def _search(plan: Plan, costs: Estimate | None) -> list[str]:
    found = []
    for index, line in enumerate(search_lines(plan, costs)):
        start = " " * 10 if index else "search    "
        found += textwrap.wrap(
            line, 110, initial_indent=start, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
        )
    return ["", *found] if found else []


def _order(plan: Plan, turns: Sequence[str]) -> list[str]:
    """The trainings in the order in which they start, each under the first row that shows it."""
    if len(turns) < 2:
        return []
    first = {row.identity: row for row in reversed(plan.rows)}
    several = len({row.seed for row in plan.rows}) > 1
    names = [first[one].row + (f" (seed {first[one].seed})" if several else "") for one in turns]
    shown = names[:MOST_TURNS]
    more = f"; and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    text = f"{RULE}: {'; '.join(shown)}{more}"
    lines = textwrap.wrap(
        text,
        110,
        initial_indent="order     ",
        subsequent_indent=" " * 10,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return ["", *lines]


def _sets(plan: Plan, row: PlannedRow) -> str:
    return ", ".join([*_base(plan, row), *(f"{key}={_value(value)}" for key, value in row.differences.items())])


def _changes(plan: Plan) -> list[str]:
    """What an edit of the sweep file or of the code has changed since the sweep was last run, the rows together."""
    said: dict[str, list[str]] = {}
    for row in plan.rows:
        name = row.row if len({other.seed for other in plan.rows}) == 1 else f"{row.row} (seed {row.seed})"
        if row.other_code is not None:
            how = "reused although" if row.other_code.accepted else "refused, as"
            said.setdefault(f"{how} the code has changed since: {row.other_code}", []).append(name)
        elif row.changed:
            said.setdefault(f"other than when this was last run: {listed(row.changed, MOST)}", []).append(name)
    lines = [f"{', '.join(names)}: {text}" for text, names in said.items()]
    if any(row.other_code is not None and not row.other_code.accepted for row in plan.rows):
        lines.append("--accept-code-change uses what was trained by other code; --fresh, with --only, trains anew")
    if plan.dropped:
        lines.append(f"no longer in the sweep file: {', '.join(plan.dropped)} (what they trained is kept)")
    found = []
    for index, line in enumerate(lines):
        start = "changed   " if index == 0 else " " * 10
        found += textwrap.wrap(
            line, 110, initial_indent=start, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
        )
    return [*found, ""] if found else []


def _trainings(plan: Plan, ledger: Results) -> list[str]:
    records = {identity: ledger.record(identity) for identity in plan.trainings}
    done = sum(record.state == "finished" for record in records.values())
    left = [
        config.schedule.max_iterations - records[identity].step
        for identity, config in plan.trainings.items()
        if records[identity].state != "finished"
    ]
    images = sum(
        (config.schedule.max_iterations - records[identity].step) * config.schedule.batch_size
        for identity, config in plan.trainings.items()
        if records[identity].state != "finished"
    )
    # Those of trainings that aren't done come with them.
    evaluations = {
        (row.identity, key)
        for row in plan.rows
        for key in row.evaluations.values()
        if records[row.identity].trained and ledger.record(row.identity, {"": key}).state != "finished"
    }
    rows = len(plan.rows)
    begun = sum(records[identity].step > 0 and records[identity].state != "finished" for identity in plan.trainings)
    continued = f", {begun} to continue" if begun else ""
    text = (
        f"{rows} row{'s' * (rows != 1)} and seeds, {len(plan.trainings)} distinct trainings, {done} of them done"
        f"{continued}; left: {sum(left):,} iterations, {images:,} images"
    )
    return [text + (f", {len(evaluations)} evaluations of what is done" if evaluations else "")]


def _needs(plan: Plan) -> list[str]:
    lines: dict[str, int] = {}
    for config in plan.trainings.values():
        need = _need(config)
        lines[need] = lines.get(need, 0) + 1
    return [f"{count} × {need}" for need, count in lines.items()]


def _need(config: TrainingConfig) -> str:
    resources, schedule = config.resources, config.schedule
    cpus = resources.workers * resources.cpus_per_worker
    if resources.gpus_per_worker is None:
        gpus = f"{resources.workers} GPU{'s' * (resources.workers != 1)} where the cluster has them"
    else:
        total = resources.workers * resources.gpus_per_worker
        gpus = f"{total:g} GPU{'s' * (total != 1)}"
    workers = f"{resources.workers} worker{'s' * (resources.workers != 1)}"
    cores = f"{cpus} CPU{'s' * (cpus != 1)}"
    return (
        f"training: {workers}, {cores}, {gpus}; {schedule.max_iterations:,} iterations of "
        f"{schedule.batch_size} images in {schedule.precision}"
    )


def _prospects(plan: Plan, ledger: Results, costs: Estimate | None) -> list[str]:
    """What the planned seeds can show of each pair that is compared."""
    found = []
    for index, line in enumerate(prospect_lines(prospects(plan, ledger), costs)):
        start = "compare   " if index == 0 else " " * 10
        found += textwrap.wrap(
            line, 110, initial_indent=start, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
        )
    return ["", *found] if found else []


def _common(plan: Plan) -> list[str]:
    """What all rows share, and what of it isn't the paper's recipe."""
    configs = [flat(row.config) for row in plan.rows]
    first = configs[0]
    shared = {
        key: value
        for key, value in first.items()
        if key not in ("seed", "data.root") and all(config.get(key) == value for config in configs)
    }
    lines = _data(plan)
    settings = ", ".join(f"{key}={_value(value)}" for key, value in shared.items() if value is not None)
    lines += textwrap.wrap(
        settings, 110, initial_indent="shared    ", subsequent_indent=" " * 10, break_on_hyphens=False
    )
    departures = list(dict.fromkeys(key for row in plan.rows for key in row.departures))
    if departures:
        text = f"not the recipe's: {', '.join(departures)}"
        lines += textwrap.wrap(
            text, 110, initial_indent="note      ", subsequent_indent=" " * 10, break_on_hyphens=False
        )
    return lines


def _data(plan: Plan) -> list[str]:
    """The data sets that the rows are trained and evaluated on, and classes without a box, a line each."""
    groups: dict[tuple[SplitFacts | None, ...], list[PlannedRow]] = {}
    for row in plan.rows:
        groups.setdefault((row.train, row.val, row.test), []).append(row)
    lines = []
    for (train, *others), rows in groups.items():
        splits = [split for split in others if split is not None]
        if train is None or not splits:
            continue
        of = f" ({listed(list(dict.fromkeys(row.row for row in rows)), MOST)})" if len(groups) > 1 else ""
        lines.append(
            f"{train.root}: {train.images:,} images of {train.split}, "
            + "".join(f"{split.images:,} of {split.split}, " for split in splits)
            + f"{len(train.categories)} classes{of}"
        )
        if not rows[0].drawn:
            lines.append("They aren't there yet: the sweep draws them first, and names its trainings by them.")
        if train.without_boxes:
            lines.append(f"No box of these in {train.split}, so they can't be learned: {_classes(train)}")
        lines += [
            f"No box of these in {split.split}, so they are undefined there and in no AP: {_classes(split)}"
            for split in splits
            if split.without_boxes and split.annotated
        ]
    return [f"{'' if index else 'data':<10}{line}" for index, line in enumerate(lines)]


def _classes(split: SplitFacts) -> str:
    return listed(split.without_boxes, MOST)


def _base(plan: Plan, row: PlannedRow) -> list[str]:
    """The base of ``row`` with its head, where the rows have several bases."""
    several = len({other.base for other in plan.rows}) > 1
    return [f"{row.base} ({row.config.model.head.name})"] if several else []


def _bases(plan: Plan) -> list[str]:
    """Where the rows have several bases: what all rows of one have, and all of another have otherwise."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in plan.rows:
        own = {*row.differences, "seed", "data.root"}
        values = {key: value for key, value in flat(row.config).items() if key not in own}
        groups.setdefault(row.base, []).append(values)
    if len(groups) < 2:
        return []
    shared = {
        base: {key: value for key, value in rows[0].items() if all(key in row and row[key] == value for row in rows)}
        for base, rows in groups.items()
    }
    lines: list[str] = []
    for base, values in shared.items():
        apart = [
            f"{key}={_value(value)}"
            for key, value in values.items()
            if any(key in other and other[key] != value for other in shared.values())
        ]
        label = f"{'' if lines else 'bases':<10}"
        text = f"{base}: {', '.join(apart)}"
        lines += textwrap.wrap(text, 110, initial_indent=label, subsequent_indent=" " * 12, break_on_hyphens=False)
    return lines


def _plugins(plan: Plan) -> list[str]:
    used = {plugin for row in plan.rows for plugin in row.config.plugins}
    said = [str(plugin) + ("" if plugin in used else ": no row uses it") for plugin in plan.plugins]
    return [f"{'plug-ins' if not index else '':<10}{text}" for index, text in enumerate(said)]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
