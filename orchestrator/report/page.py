"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from orchestrator.comparison import Comparison
from orchestrator.departures import data_name, model_name
from orchestrator.plan import Plan
from orchestrator.report import changed, cost, made
from orchestrator.report.cost import RowCost
from orchestrator.report.errors import error_sections
from orchestrator.report.evidence import Evidence
from orchestrator.report.figures import FIXED, Curves, figure
from orchestrator.report.forest import forest
from orchestrator.report.links import run_link
from orchestrator.report.pairs import HEAD, TEXT, order_note, pair_cells, pair_notes
from orchestrator.report.search import search_html
from orchestrator.report.style import STYLE
from orchestrator.report.table import MARK, Cell, Table, TableRow, difference, named, notes, ours, paper
from orchestrator.results import Results

FIXED_SENTENCE = (
    "Read regression losses of different assignments with care: combined IoUs choose positives whose predicted boxes "
    "already fit, so their loss is lower by choice and not only by better boxes. Beside it is therefore the loss of "
    "the same models on one fixed set of positives: 1 - GIoU, averaged over the anchors that plain ATSS takes on fixed "
    "validation images, whatever the row's own assignment is."
)
FIGURE_KEY = "it is measured at every evaluation"


def page(
    plan: Plan,
    table: Table,
    ledger: Results,
    comparison: Comparison | None = None,
    evidence: Evidence | None = None,
    curves: Curves | None = None,
) -> str:
    """The whole report; without ``comparison`` the pairs are left out.

    ``evidence`` and ``curves`` are what was read of the results already.
    """
    evidence, curves = evidence or Evidence(plan, ledger), curves or Curves(plan, ledger)
    sections = {
        "table": ("The table", _main(plan, table)),
        "pairs": ("What the rows say of each other", _comparison(table, comparison) if comparison is not None else []),
        "search": ("What the search tried", search_html(plan, ledger)),
        "figures": ("Curves", _figures(plan, curves)),
        "errors": ("Kinds of error", error_sections(plan, evidence)),
        "images": ("Images that changed most", _images(plan, ledger, evidence)),
        "cost": ("Cost", _cost(cost.costs(plan, ledger, curves))),
        "made": ("How it was made", made.section(plan, ledger)),
    }
    shown = {key: (title, parts) for key, (title, parts) in sections.items() if parts}
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in shown.items())
    body = [
        f"<header><h1>{escape(plan.title)}</h1>",
        f'<p class="lead soft">{escape(_about(plan))}</p>',
        f'<p class="soft">Sweep <code>{escape(plan.key)}</code> · AP in percent, ours at the last checkpoint · '
        f"{_states(table)}</p>",
        f"<nav>{links}</nav></header>",
    ]
    for key, (title, parts) in shown.items():
        body += [f'<section id="{key}"><h2>{escape(title)}</h2>', *parts, "</section>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # A browser asks for an icon otherwise.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(plan.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _about(plan: Plan) -> str:
    models = list(dict.fromkeys(map(model_name, plan.rows)))
    data = list(dict.fromkeys(map(data_name, plan.rows)))
    seeds = sorted({sum(row.row == name for row in plan.rows) for name in plan.row_names})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{len(plan.row_names)} rows, {number} seed{'s' * (seeds[-1] > 1)} each, "
        f"{len(plan.trainings)} distinct trainings of {', '.join(models[:4])}"
        f"{' and others' if len(models) > 4 else ''} on {' and '.join(data[:3])}"
    )


def _main(plan: Plan, table: Table) -> list[str]:
    return [
        f'<div class="wide">{_table(plan, table)}</div>',
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes(plan, table)) + "</ul>",
    ]


def _table(plan: Plan, table: Table) -> str:
    head = "".join(f'<th class="text">{escape(name)}</th>' for name in ("row", *table.columns))
    head += "".join(f"<th>{escape(metric)}</th>" for metric in table.metrics) + '<th class="text">state</th>'
    lines = []
    for row in table.rows:
        text = f'<th scope="row" class="text">{escape(row.name)}</th>' + "".join(
            f'<td class="text">{escape(row.show.get(column, ""))}</td>' for column in table.columns
        )
        figures = "".join(_cell(row.cells[metric], bool(row.departures)) for metric in table.metrics)
        lines.append(f'<tr class="{escape(row.state)}">{text}{figures}{_state(plan, row)}</tr>')
    return f'<table class="main"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _state(plan: Plan, row: TableRow) -> str:
    kind = "failed" if row.state == "failed" else "state"
    parts = [f'<span class="{kind}">{escape(row.state)}</span>']
    links = [(run_id, run_link(plan, run_id)) for run_id in row.run_ids]
    shown = " ".join(
        f'<a href="{escape(link)}" title="run {escape(run_id)}">run {number}</a>'
        for number, (run_id, link) in enumerate(links, 1)
        if link
    )
    parts += [f"<small>{shown}</small>"] if shown else []
    parts += [f"<small>{escape(row.detail)}</small>"] if row.detail else []
    parts += [f'<small class="mark">{MARK} {escape(row.mark)}</small>'] if row.mark else []
    return f'<td class="text">{"".join(parts)}</td>'


def _cell(cell: Cell, departs: bool) -> str:
    figure, _, spread = ours(cell).partition(" ")
    mine = f'<span class="ours">{escape(figure)}</span>' + (f"<small>{escape(spread)}</small>" if spread else "")
    if cell.paper is None:
        return f"<td>{mine}</td>"
    beside = f"<small>paper {escape(paper(cell))}</small>"
    if cell.difference is not None:
        # What isn't the paper's recipe isn't judged by it: its differences have a colour, but no ground.
        kind = "up" if cell.difference >= 0 else "down"
        judged = "" if departs else " judged"
        beside += f'<span class="delta {kind}{judged}">{escape(difference(cell))}</span>'
    return f"<td>{mine}{beside}</td>"


def _comparison(table: Table, comparison: Comparison) -> list[str]:
    parts = []
    if comparison.pairs:
        drawn = forest(comparison)
        if drawn:
            parts += [
                f'<div class="wide">{drawn}</div>',
                '<p class="caption">Dot and line: our difference with its 95 % interval over seeds; broad: from these '
                "images only, cut off where it would leave the others no room. Diamond and thin line: the paper's "
                "difference and what a second run of it would come to.</p>",
            ]
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
    said = [*pair_notes(comparison, named(table)), *([order] if order else [])]
    return (
        [*parts, '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in said) + "</ul>"] if said else []
    )


def _class(column: str) -> str:
    return f' class="text{" wider" if column == "size" else ""}"' if column in TEXT else ""


def _states(table: Table) -> str:
    states = [row.state for row in table.rows if row.state != "quoted"]
    counts = [
        f"{states.count(state)} {state}" for state in ("finished", "running", "pending", "failed") if state in states
    ]
    return ", ".join(counts)


def _figures(plan: Plan, curves: Curves) -> list[str]:
    parts: list[str] = []
    explained = False
    for wanted in plan.figures:
        rows = [row for row in wanted.rows if row in plan.row_names]
        drawn = [_drawn(curves, wanted.name, wanted.metric, rows)]
        if wanted.metric == "loss_reg":
            drawn.append(_drawn(curves, f"{wanted.name}, on fixed positives", FIXED, rows))
        parts.append(f'<div class="figures">{"".join(drawn)}</div>')
        if wanted.metric == "loss_reg" and len(rows) > 1 and not explained:
            parts.append(f"<p>{escape(FIXED_SENTENCE)}</p>")
            explained = True
    return parts


def _drawn(curves: Curves, title: str, metric: str, rows: Sequence[str]) -> str:
    lines = curves.lines(metric, rows)
    if lines:
        return figure(title, metric, lines)
    later = f"; {FIGURE_KEY}" if metric == FIXED else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b></figcaption>"
        f"<p>There are no values of {escape(metric)} yet{later}.</p></figure>"
    )


def _images(plan: Plan, ledger: Results, evidence: Evidence) -> list[str]:
    found = changed.sections(plan, ledger, evidence)
    if not found:
        return []
    key = (
        '<p class="key">Boxes:<i class="truth"></i>annotated<i class="lost"></i>annotated, missed or nearly found'
        '<i class="first"></i>found by the row<i class="wrong"></i>an error. Their classes and scores show when the '
        "mouse rests on them.</p>"
    )
    how = (
        "<p>An error is a box that was missed, or nearly found (a localisation or confusion is about it), or a "
        "detection that found none, as counted above. These are the images where the two rows' numbers of errors "
        "differ most, half of them in favour of each: extremes, chosen by looking at the results, not what is "
        "usual.</p>"
    )
    return [how, key, *found]


def _cost(found: Sequence[RowCost]) -> list[str]:
    names = "".join(f"<th{_left(name)}>{escape(name)}</th>" for name in cost.HEAD)
    lines = []
    for row in found:
        first, *others = cost.cells(row)
        each = "".join(
            f"<td{_left(name)}>{escape(cell)}</td>" for name, cell in zip(cost.HEAD[1:], others, strict=True)
        )
        lines.append(f'<tr><th scope="row" class="text">{escape(first)}</th>{each}</tr>')
    return [
        f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>',
        f"<p>{escape(cost.said(found))}</p>",
    ]


def _left(name: str) -> str:
    return ' class="text"' if name in ("row", "on") else ""
