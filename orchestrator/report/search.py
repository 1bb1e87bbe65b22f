"""What a search has tried, for the report and the terminal: every sample with its values, its state and its figure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from orchestrator.plan import Plan, PlannedRow
from orchestrator.results import Results
from orchestrator.search_text import data_line, rule_line

UNDEFINED = "–"


@dataclass(frozen=True)
class Tried:
    """One sample."""

    row: PlannedRow
    state: str
    """As of a training, or "stopped" where the scheduler ended it."""
    step: int
    iterations: int
    value: float | None
    """Its figure on what the search sees: at the end, or where it was stopped."""
    run_id: str | None
    best: bool


def tried(plan: Plan, ledger: Results) -> list[Tried]:
    """All samples: the trained ones by their figures, the best first, then the stopped by how far they came."""
    if plan.search is None:
        return []
    found = []
    for row in plan.search.samples:
        record = ledger.record(row.identity, row.evaluations)
        state, value = record.state, record.metrics.get(plan.search.spec.metric)
        if record.stopped is not None and record.over_for(plan.key):
            state, value = "stopped", record.stopped["value"]
        best = plan.search.winner is not None and row.row == plan.search.winner.row
        run_id = ledger.run_id(plan.key, row.row, row.seed)
        iterations = row.config.schedule.max_iterations
        found.append(Tried(row, state, record.step, iterations, value, run_id, best))
    sign = -1.0 if plan.search.spec.mode == "max" else 1.0
    order = {"finished": 0, "stopped": 1, "running": 2, "pending": 3, "failed": 4}

    def place(one: Tried) -> tuple[float, ...]:
        figure = float("inf") if one.value is None else sign * one.value
        return (order.get(one.state, 5), -one.step if one.state == "stopped" else 0, figure)

    return sorted(found, key=place)


def search_html(plan: Plan, ledger: Results) -> list[str]:
    """The section of the page; nothing for a sweep that doesn't search."""
    if plan.search is None:
        return []
    head, lines = _table(plan, ledger)
    names = "".join(f'<th class="text">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="text">{escape(cell)}</td>' for cell in line) + "</tr>" for line in lines
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(plan))
    return [
        f'<div class="wide"><table class="samples"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>',
        f'<ul class="notes">{notes}</ul>',
    ]


def search_markdown(plan: Plan, ledger: Results) -> str:
    """The same for a document."""
    if plan.search is None:
        return ""
    head, lines = _table(plan, ledger)
    rows = ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in (head, ["---"] * len(head), *lines)]
    rows[1] = "|" + " --- |" * len(head)
    notes = [f"- {_cell(note)}" for note in _notes(plan)]
    return "\n".join(["", "## What the search tried", "", *rows, "", *notes]) + "\n"


def search_terminal(plan: Plan, ledger: Results) -> str:
    """The best few and how many there are, in fixed-width columns."""
    if plan.search is None:
        return ""
    head, lines = _table(plan, ledger)
    shown = [head[:-1], *(line[:-1] for line in lines[:5])]
    widths = [max(len(line[column]) for line in shown) for column in range(len(shown[0]))]
    text = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in shown]
    more = [f"and {len(lines) - 5} more samples, in the report"] if len(lines) > 5 else []
    return "\n".join(["", "the search", *text, *more, *_notes(plan)]) + "\n"


def _table(plan: Plan, ledger: Results) -> tuple[list[str], list[list[str]]]:
    assert plan.search is not None
    found = tried(plan, ledger)
    columns = list(found[0].row.show) if found else []
    head = ["sample", *columns, plan.search.spec.metric, "step", "state", "run"]
    lines = []
    for one in found:
        number = str(plan.search.samples.index(one.row) + 1) + (" (best)" if one.best else "")
        value = UNDEFINED if one.value is None else f"{one.value:.2f}"
        step = f"{one.step:,} of {one.iterations:,}"
        shown = [one.row.show[column] for column in columns]
        lines.append([number, *shown, value, step, one.state, one.run_id or UNDEFINED])
    return head, lines


def _notes(plan: Plan) -> list[str]:
    assert plan.search is not None
    metric = plan.search.spec.metric
    return [
        f"{data_line(plan)}. So the {metric} of the samples isn't that of the table: it is of other images, and the "
        "best of many is higher by choice. What the winner is worth stands in the table.",
        rule_line(plan) + ". A stopped sample has the figure of the step at which it was stopped, and has not failed.",
    ]


def _cell(text: str) -> str:
    for character in "\\`*_[]|#":
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;").replace(">", "&gt;")
