"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from orchestrator.comparison import Comparison
from orchestrator.plan import Plan
from orchestrator.report.figures import curves, svg
from orchestrator.report.pairs import HEAD, TEXT, order_note, pair_cells, pair_notes
from orchestrator.report.search import search_html
from orchestrator.report.table import UNDEFINED, Cell, Table, difference, notes, ours, paper
from orchestrator.results import Results

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --up: #0a7d32; --down: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; } .soft { opacity: .75; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { border-bottom-width: 2px; } th.text, td.text { text-align: left; } tr.quoted { opacity: .75; }
td small { display: block; opacity: .8; white-space: nowrap; } td.text small { white-space: normal; max-width: 24rem; }
.up { color: var(--up); } .down { color: var(--down); } .failed { color: var(--down); font-weight: 600; }
table.pairs td { white-space: nowrap; } table.pairs td.text { white-space: normal; min-width: 9rem; max-width: 22rem; }
ul.notes { background: var(--soft); padding: .7rem 1rem .7rem 2rem; border-radius: .4rem; }
svg { width: 100%; max-width: 46rem; height: auto; } svg text { font-size: 12px; fill: currentColor; }
svg .grid { stroke: var(--line); } .legend span { margin-right: 1.2rem; }
.legend i { display: inline-block; width: 1.4em; height: .25em; margin-right: .4em; vertical-align: middle; }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: .4rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) { :root { --up: #6fd08c; --down: #ff8f84; } }
"""


def page(plan: Plan, table: Table, ledger: Results, comparison: Comparison | None = None) -> str:
    """The whole report; without ``comparison`` the pairs are left out."""
    body = [
        f"<h1>{escape(plan.title)}</h1>",
        f'<p class="soft">Sweep <code>{escape(plan.key)}</code> · AP in percent, ours at the last checkpoint · '
        f"{_states(table)}</p>",
        f'<div class="wide">{_table(table)}</div>',
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes(plan, table)) + "</ul>",
        *(_comparison(table, comparison) if comparison is not None else []),
        *search_html(plan, ledger),
        *_figures(plan, ledger),
        "<h2>How it was made</h2>",
        f"<pre>{escape(plan.command)}</pre>",
        _made(plan, ledger),
        *(
            f"<details><summary>{escape(str(plugin))}</summary><pre>{escape(plugin.source)}</pre></details>"
            for plugin in plan.plugins
        ),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(plan.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th class="text">{escape(name)}</th>' for name in ("row", *table.columns))
    head += "".join(f"<th>{escape(metric)}</th>" for metric in table.metrics) + '<th class="text">state</th>'
    lines = []
    for row in table.rows:
        text = "".join(
            f'<td class="text">{escape(value)}</td>'
            for value in (row.name, *(row.show.get(column, "") for column in table.columns))
        )
        figures = "".join(_cell(row.cells[metric], bool(row.departures)) for metric in table.metrics)
        detail = f"<small>{escape(row.detail)}</small>" if row.detail else ""
        kind = "failed" if row.state == "failed" else "state"
        state = f'<td class="text"><span class="{kind}">{escape(row.state)}</span>{detail}</td>'
        lines.append(f'<tr class="{escape(row.state)}">{text}{figures}{state}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(cell: Cell, departs: bool) -> str:
    if cell.paper is None:
        return f"<td>{escape(ours(cell))}</td>"
    text = difference(cell)
    # A colour would judge; what isn't the paper's recipe isn't judged by it.
    if cell.difference is not None and not departs:
        text = f'<span class="{"up" if cell.difference >= 0 else "down"}">{escape(text)}</span>'
    beside = f"paper {escape(paper(cell))}" + ("" if cell.difference is None else f", {text}")
    return f"<td>{escape(ours(cell)) if cell.ours else UNDEFINED}<small>{beside}</small></td>"


def _comparison(table: Table, comparison: Comparison) -> list[str]:
    parts = ["<h2>What the rows say of each other</h2>"] if comparison.pairs else []
    if comparison.pairs:
        head = "".join(f"<th{_class(name)}>{escape(name)}</th>" for name in HEAD)
        lines = "".join(
            "<tr>"
            + "".join(
                f"<td{_class(name)}>{escape(cell)}</td>" for name, cell in zip(HEAD, pair_cells(pair), strict=True)
            )
            + "</tr>"
            for pair in comparison.pairs
        )
        parts.append(
            f'<div class="wide"><table class="pairs"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        )
    order = order_note(comparison, table.has_paper)
    said = [*pair_notes(comparison), *([order] if order else [])]
    return (
        [*parts, '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in said) + "</ul>"] if said else []
    )


def _class(column: str) -> str:
    return ' class="text"' if column in TEXT else ""


def _states(table: Table) -> str:
    states = [row.state for row in table.rows if row.state != "quoted"]
    counts = [
        f"{states.count(state)} {state}" for state in ("finished", "running", "pending", "failed") if state in states
    ]
    return ", ".join(counts)


def _figures(plan: Plan, ledger: Results) -> list[str]:
    parts: list[str] = []
    for figure in plan.figures:
        drawn = curves(plan, ledger, figure.metric, [row for row in figure.rows if row in plan.row_names])
        parts.append(f"<h2>{escape(figure.name)}: {escape(figure.metric)} over the steps</h2>")
        if not drawn:
            parts.append(f"<p>There are no values of {escape(figure.metric)} yet.</p>")
            continue
        parts.append(svg(figure.metric, drawn))
        if figure.metric == "loss_reg" and len(drawn) > 1:
            parts.append(
                "<p>Read regression losses of different assignments with care: combined IoUs choose positives whose "
                "predicted boxes already fit, so their loss is lower by choice and not only by better boxes.</p>"
            )
    return parts


def _made(plan: Plan, ledger: Results) -> str:
    head = ("row", "seed", "identity", "iterations", "time", "attempts", "hardware", "what the row sets", "run")
    lines = []
    for row in plan.rows:
        record = ledger.record(row.identity)
        hardware = ", ".join(f"{key} {value}" for key, value in record.hardware.items())
        sets = ", ".join(f"{key}: {_value(value)}" for key, value in row.differences.items())
        cells = (
            *(row.row, str(row.seed), row.identity, f"{row.config.schedule.max_iterations:,}"),
            UNDEFINED if record.seconds is None else f"{record.seconds / 60:,.1f} min",
            *(str(record.attempts), hardware or UNDEFINED, sets or UNDEFINED),
            ledger.run_id(plan.key, row.row, row.seed) or UNDEFINED,
        )
        lines.append("<tr>" + _text_cells(cells) + "</tr>")
    names = "".join(f'<th class="text">{escape(name)}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _text_cells(cells: Sequence[str]) -> str:
    return "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
