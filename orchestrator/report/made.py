"""How a report's rows were made: command, code, versions, hardware, time, and what each row sets."""

from __future__ import annotations

import json
import time
from html import escape
from importlib import metadata
from typing import Any

from detector.keys import flat
from orchestrator.plan import Plan
from orchestrator.record import Record
from orchestrator.report.hardware import settings
from orchestrator.report.links import link_note, run_link
from orchestrator.report.table import UNDEFINED
from orchestrator.results import Results
from orchestrator.runs import without_secrets

PACKAGES = ("detsweep", "torch", "torchvision", "ray", "mlflow", "numpy", "scipy")
HEAD = ("row", "seed", "identity", "iterations", "time", "attempts", "hardware", "versions", "code", "run")


def section(plan: Plan, ledger: Results) -> list[str]:
    """As HTML."""
    parts = [f"<pre>{escape(without_secrets(plan.command))}</pre>"]
    note = link_note(plan)
    if note:
        parts.append(f"<p>Links to runs lead to MLflow's pages while this runs: <code>{escape(note)}</code></p>")
    here = ", ".join(f"{name} {version}" for name, version in installed().items())
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    parts.append(f"<p>Written {written} with {escape(here)}. {escape(_data(plan))}</p>")
    parts += ["<h3>What the rows set</h3>", _differences(plan)]
    parts += ["<h3>Trainings</h3>", _trainings(plan, ledger)]
    parts += [
        f"<details><summary>{escape(str(plugin))}</summary><pre>{escape(plugin.source)}</pre></details>"
        for plugin in plan.plugins
    ]
    shared = _shared(plan)
    lines = "\n".join(f"{key}: {text(value)}" for key, value in shared.items())
    parts.append(
        f"<details><summary>The configuration that all rows share ({len(shared)} keys)</summary>"
        f"<pre>{escape(lines)}</pre></details>"
    )
    return parts


def installed() -> dict[str, str]:
    """Versions of what is installed where the report is written."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def text(value: object) -> str:
    """A value of a configuration, in short."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _configurations(plan: Plan) -> dict[str, dict[str, Any]]:
    first = {row.row: row for row in reversed(plan.rows)}
    return {name: {k: v for k, v in flat(first[name].config).items() if k != "seed"} for name in plan.row_names}


def _shared(plan: Plan) -> dict[str, Any]:
    each = list(_configurations(plan).values())
    keys = [key for key in each[0] if all(key in one for one in each)] if each else []
    return {key: each[0][key] for key in keys if all(one[key] == each[0][key] for one in each)}


def _differences(plan: Plan) -> str:
    """A column for each key in which rows differ."""
    rows = _configurations(plan)
    shared = _shared(plan)
    keys = [key for key in dict.fromkeys(key for one in rows.values() for key in one) if key not in shared]
    if not keys:
        return "<p>Nothing: there is one configuration.</p>"
    head = "".join(f'<th class="text">{escape(key)}</th>' for key in ("row", *keys))
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th>'
        + "".join(f'<td class="text">{escape(text(one[key])) if key in one else UNDEFINED}</td>' for key in keys)
        + "</tr>"
        for name, one in rows.items()
    )
    return f'<div class="wide"><table class="small"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _data(plan: Plan) -> str:
    splits = dict.fromkeys(facts for row in plan.rows for facts in (row.train, row.val, row.test) if facts is not None)
    said = [f"{facts.split} ({facts.images:,} images, digest {facts.digest[:12]})" for facts in splits]
    return "Data: " + ", ".join(said) + "." if said else ""


def _trainings(plan: Plan, ledger: Results) -> str:
    lines = []
    for row in (*plan.rows, *(plan.search.samples if plan.search is not None else ())):
        record = ledger.record(row.identity)
        ran = settings(record)
        run_id = ledger.run_id(plan.key, row.row, row.seed)
        cells = (
            *(row.row, str(row.seed), row.identity, f"{row.config.schedule.max_iterations:,}"),
            UNDEFINED if record.seconds is None else f"{record.seconds / 60:,.1f} min",
            str(record.attempts),
            "; ".join(dict.fromkeys(name for name, _ in ran)) or UNDEFINED,
            "; ".join(dict.fromkeys(version for _, version in ran if version)) or UNDEFINED,
            _revision(record),
        )
        link = run_link(plan, run_id)
        run = f'<a href="{escape(link)}">{escape(str(run_id)[:8])}</a>' if link else UNDEFINED
        each = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        lines.append(f'<tr>{each}<td class="text">{run}</td></tr>')
    names = "".join(f'<th class="text">{escape(name)}</th>' for name in HEAD)
    table = f'<table class="small"><thead><tr>{names}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _revision(record: Record) -> str:
    """Of the newest attempt that says so."""
    known = [str(attempt["revision"]) for attempt in record.history if attempt.get("revision")]
    return known[-1][:19] if known else "not recorded"
