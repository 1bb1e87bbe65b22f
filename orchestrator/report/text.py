"""The table as text: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
import unicodedata
from collections.abc import Sequence

from orchestrator.comparison import Comparison
from orchestrator.plan import Plan
from orchestrator.report import cost, errors
from orchestrator.report.cost import RowCost
from orchestrator.report.evidence import RowErrors
from orchestrator.report.pairs import HEAD, TEXT, order_note, pair_cells, pair_notes
from orchestrator.report.table import MARK, UNDEFINED, Table, TableRow, difference, named, notes, ours, paper
from orchestrator.runs import without_secrets


def terminal(plan: Plan, table: Table, comparison: Comparison | None = None, width: int | None = None) -> str:
    """The table in columns, for a fixed-width font; without its last metrics where ``width`` columns are too few."""
    metrics = list(table.metrics)
    lines = _lines(table, metrics)
    while width is not None and len(metrics) > 1 and max(map(_width, lines)) > width:
        metrics.pop()
        lines = _lines(table, metrics)
    rule = "─" * max(map(_width, lines))
    hidden = table.metrics[len(metrics) :]
    said = [f"For want of width without {', '.join(hidden)}; report.md has all."] if hidden else []
    below = [*_pairs(comparison), *_wrapped([*said, *notes(plan, table)], width)]
    if comparison is not None:
        below += _wrapped(_comparison_notes(table, comparison), width)
    return "\n".join([plan.title, rule, lines[0], rule, *lines[1:], rule, *below]) + "\n"


def _lines(table: Table, metrics: Sequence[str]) -> list[str]:
    """The table with ``metrics`` in columns, its head first."""
    head = ["row", *_own_columns(table), *metrics, "state"]
    body: list[list[str]] = []
    for row in table.rows:
        shown = [row.show.get(column, "") for column in _own_columns(table)]
        state = row.state + (f" ({_shortened(row.detail)})" if row.detail else "")
        if row.state != "quoted":
            body.append([_marked(row), *shown, *(ours(row.cells[metric]) for metric in metrics), state])
        if any(row.cells[metric].paper is not None for metric in metrics):
            label = "paper" if row.state != "quoted" else _clean(row.name)
            blank = [""] * len(shown) if row.state != "quoted" else shown
            body.append([f"  {label}", *blank, *(paper(row.cells[metric]) for metric in metrics), ""])
        if any(row.cells[metric].difference is not None for metric in metrics):
            cells = (difference(row.cells[metric]) for metric in metrics)
            body.append(["  difference", *([""] * len(shown)), *cells, ""])
    return _columns([head, *body], {0, *range(1, 1 + len(_own_columns(table))), len(head) - 1})


def _pairs(comparison: Comparison | None) -> list[str]:
    """The pairs in columns; what is longest below each other's figures."""
    if comparison is None or not comparison.pairs:
        return []
    chosen = [HEAD.index(name) for name in ("pair", "seeds", "difference", "95 % interval over seeds", "verdict")]
    body = [[_clean(line[index]) for index in chosen] for line in map(pair_cells, comparison.pairs)]
    head = ["compared", "seeds", "difference", "95 % interval", "verdict"]
    return [*_columns([head, *body], {0, 4}), ""]


def _columns(lines: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """``lines`` in columns as wide as their widest text, those in ``left`` to the left."""
    widths = [max(_width(line[index]) for line in lines) for index in range(len(lines[0]))]
    return [
        "  ".join(_pad(text, widths[index], index in left) for index, text in enumerate(line)).rstrip()
        for line in lines
    ]


def _wrapped(sentences: Sequence[str], width: int | None) -> list[str]:
    most = min(110, width or 110)
    return [textwrap.fill(_clean(sentence), most, break_on_hyphens=False) for sentence in sentences]


def _comparison_notes(table: Table, comparison: Comparison) -> list[str]:
    order = order_note(comparison, table.has_paper)
    return [*pair_notes(comparison, named(table)), *([order] if order else [])]


def markdown(
    plan: Plan,
    table: Table,
    comparison: Comparison | None = None,
    found: Sequence[RowErrors] = (),
    spent: Sequence[RowCost] = (),
) -> str:
    """The table for a document: ours, the paper's and the difference in one cell; errors and cost, if given."""
    head = ["row", *table.columns, *table.metrics, "state"]
    lines = [f"# {_escaped(plan.title)}", "", f"Sweep `{plan.key}`. Ours / paper / difference, in percent.", ""]
    lines += [
        _line([_escaped(name) for name in head]),
        _line(["---"] * (1 + len(table.columns)) + ["---:"] * len(table.metrics) + ["---"]),
    ]
    for row in table.rows:
        cells = []
        for metric in table.metrics:
            cell = row.cells[metric]
            parts = [ours(cell)] if cell.paper is None else [ours(cell), paper(cell), difference(cell)]
            cells.append(UNDEFINED if set(parts) == {UNDEFINED} else " / ".join(parts))
        state = row.state + (f" ({row.detail})" if row.detail else "")
        shown = [row.show.get(column, "") for column in table.columns]
        lines.append(_line([_escaped(text) for text in (_marked(row), *shown)] + cells + [_escaped(state)]))
    lines += ["", *(f"- {_escaped(note)}" for note in notes(plan, table)), ""]
    if comparison is not None and comparison.pairs:
        lines += ["## Compared", "", _line(HEAD), _line(["---" if name in TEXT else "---:" for name in HEAD])]
        lines += [_line([_escaped(cell) for cell in pair_cells(pair)]) for pair in comparison.pairs]
        lines += [""]
    if comparison is not None and (said := _comparison_notes(table, comparison)):
        lines += [*(f"- {_escaped(note)}" for note in said), ""]
    if found:
        lines += ["## Kinds of error", "", _line(errors.HEAD), _line(["---", *["---:"] * (len(errors.HEAD) - 1)])]
        lines += [_line([_escaped(cell) for cell in errors.cells(row)]) for row in found]
        lines += ["", *(f"- {_escaped(note)}" for note in (errors.DEFINITIONS, *errors.missing(found))), ""]
    if spent:
        lines += ["## Cost", "", _line(cost.HEAD), _line(["---", *["---:"] * (len(cost.HEAD) - 2), "---"])]
        lines += [_line([_escaped(cell) for cell in cost.cells(row)]) for row in spent]
        lines += ["", f"- {_escaped(cost.said(spent))}", ""]
    lines += ["Made by", "", f"    {without_secrets(plan.command)}"]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """The table for a program: unrounded, an empty field where a figure is undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *("row", *table.columns, "state", "seeds"),
            *(name for metric in table.metrics for name in (metric, f"{metric}_std", f"{metric}_paper")),
        ]
    )
    for row in table.rows:
        seeds = max((cell.ours.n for cell in row.cells.values() if cell.ours), default=0)
        figures: list[float | None] = []
        for metric in table.metrics:
            cell = row.cells[metric]
            figures += [cell.ours.value if cell.ours else None, cell.ours.deviation if cell.ours else None, cell.paper]
        shown = [row.show.get(column, "") for column in table.columns]
        writer.writerow([row.name, *shown, row.state, seeds, *("" if value is None else value for value in figures)])
    return file.getvalue()


def _own_columns(table: Table) -> Sequence[str]:
    """Columns that say more than the rows' names do."""
    return [column for column in table.columns if any(row.show.get(column, "") not in row.name for row in table.rows)]


def _marked(row: TableRow) -> str:
    """The row's name, with ``MARK`` where its hardware or versions aren't those of most."""
    return f"{_clean(row.name)} {MARK}" if row.mark else _clean(row.name)


def _clean(text: str) -> str:
    """``text`` without what could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _shortened(text: str, limit: int = 60) -> str:
    text = _clean(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line and one cell."""
    for character in "\\`*_[]<>|#":
        text = text.replace(
            character, f"\\{character}" if character not in "<>" else f"&{'lt' if character == '<' else 'gt'};"
        )
    return " ".join(text.split())
