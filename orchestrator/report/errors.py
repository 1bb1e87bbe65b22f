"""Kinds of error and confusion matrices of the rows, as HTML and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from orchestrator.plan import Plan
from orchestrator.report.evidence import SHOWN, Evidence, RowErrors, most_confused
from orchestrator.report.table import UNDEFINED

CLASSES = 10
"""Most classes of a confusion matrix."""
MATRICES = 40
"""Most of them in a report."""
WRONG = tuple(kind for kind in SHOWN if kind != "found")
DEFINITIONS = (
    "Boxes and detections from the score upwards at which the row's F1 is highest, at IoU 0.5 and as pycocotools "
    "matches, means over the seeds. Localisation: IoU of 0.1 to 0.5 with a box of its class; confusion: at least 0.5 "
    "with one of another class; duplicate: of a box that was found already; background: below 0.1 with all; both: "
    "badly placed by a box of another class; missed: a box that nothing found and no localisation or confusion is "
    "about. After Bolya et al., TIDE, ECCV 2020; counted, not weighed by AP."
)
HEAD = ("row", "F1", "score from", "boxes", *SHOWN)


def error_sections(plan: Plan, evidence: Evidence) -> list[str]:
    """As HTML; nothing where nothing is finished."""
    rows = evidence.rows()
    if not rows:
        return []
    return [f"<p>{escape(DEFINITIONS)}</p>", _table(rows), *_matrices(plan, rows)]


def cells(row: RowErrors) -> list[str]:
    """A line of the table, below ``HEAD``."""
    if row.why:
        return [row.name, *[UNDEFINED] * (len(HEAD) - 1)]
    known = sorted(value for value in row.thresholds if math.isfinite(value))
    score = UNDEFINED if not known else f"{known[0]:.2f}" + (f" to {known[-1]:.2f}" if len(known) > 1 else "")
    f1 = UNDEFINED if row.f1 is None else f"{row.f1:.1f}"
    return [row.name, f1, score, f"{row.boxes:,}", *(_count(row.counts[kind]) for kind in SHOWN)]


def missing(rows: Sequence[RowErrors]) -> list[str]:
    """Sentences about rows that couldn't be examined."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why:
            reasons.setdefault(row.why, []).append(row.name)
    return [f"Not examined: {', '.join(names)} ({why})." for why, names in reasons.items()]


def _table(rows: Sequence[RowErrors]) -> str:
    head = '<th class="text">row</th>' + "".join(f"<th>{escape(name)}</th>" for name in HEAD[1:])
    head += '<th class="text">errors</th>'
    most = max((sum(row.counts[kind] for kind in WRONG) for row in rows if not row.why), default=0.0)
    lines = []
    for row in rows:
        first, *others = cells(row)
        figures = "".join(f'<td class="figure">{escape(cell)}</td>' for cell in others)
        lines.append(f'<tr><th scope="row" class="text">{escape(first)}</th>{figures}<td>{_bar(row, most)}</td></tr>')
    legend = "".join(f'<span class="c{index}"><i></i>{kind}</span>' for index, kind in enumerate(WRONG))
    notes = "".join(f"<p>{escape(note)}</p>" for note in missing(rows))
    return (
        f'<div class="wide"><table class="dense"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="legend">{legend}</p>{notes}'
    )


def _bar(row: RowErrors, most: float) -> str:
    if row.why or not most:
        return UNDEFINED
    parts = "".join(
        f'<i class="c{index}" style="width:{100 * row.counts[kind] / most:.1f}%" '
        f'title="{kind} {_count(row.counts[kind])}"></i>'
        for index, kind in enumerate(WRONG)
    )
    return f'<div class="bar">{parts}</div>'


def _matrices(plan: Plan, rows: Sequence[RowErrors]) -> list[str]:
    parts = []
    for number, row in enumerate(row for row in rows if not row.why):
        if number == MATRICES:
            parts.append(f"<p>Confusion matrices are shown for the first {MATRICES} rows.</p>")
            break
        val = next(planned.val for planned in plan.rows if planned.row == row.name)
        names = dict(val.categories) if val else {}
        # The same classes for all rows of the same data, so that matrices can be laid side by side.
        alike = {planned.row for planned in plan.rows if planned.val and val and planned.val.digest == val.digest}
        chosen = most_confused([one for one in rows if one.name in alike], list(names), CLASSES)
        parts.append(
            f"<details{' open' if number == 0 else ''}><summary>Confusion matrix of {escape(row.name)}</summary>"
            f"{_matrix(row, chosen, names)}</details>"
        )
    return parts


def _matrix(row: RowErrors, chosen: Sequence[int], names: Mapping[int, str]) -> str:
    labels = [*(names[category] for category in chosen), "nothing"]
    columns = [*chosen, -1]
    boxes = {
        category: sum(count for (true, _), count in row.confusions.items() if true == category) for category in columns
    }
    head = '<th class="text">annotated ↓ taken for →</th>' + "".join(
        f"<th>{escape(_short(name))}</th>" for name in labels
    )
    lines = []
    for category, name in zip(columns, [*labels[:-1], "background"], strict=True):
        each = []
        for said in columns:
            if category == said == -1:
                each.append("<td></td>")
                continue
            if not boxes[category]:
                each.append(f'<td class="soft">{UNDEFINED}</td>')
                continue
            count = row.confusions.get((category, said), 0.0)
            share = count / boxes[category]
            colour = "--c2" if category == said else "--c1"
            ground = f' style="background:color-mix(in srgb,var({colour}) {55 * share:.0f}%,transparent)"'
            each.append(f"<td{ground if count else ''}>{_count(count) if count else '·'}</td>")
        lines.append(f'<tr><th scope="row" class="text">{escape(_short(name))}</th>{"".join(each)}</tr>')
    left = len(names) - len(chosen)
    note = f"; the {left:,} other classes are left out" if left > 0 else ""
    return (
        f'<div class="wide"><table class="matrix"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        f'</div><p class="caption">Mean over {row.seeds} seed{"s" * (row.seeds > 1)}; colour: share of the line'
        f"{note}. {UNDEFINED}: there is no box of that class, so it is undefined.</p>"
    )


def _count(value: float) -> str:
    """Whole where it is; a mean over seeds with one digit."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
