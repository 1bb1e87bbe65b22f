"""The comparison table: what the paper shows, ours beside it, and the difference."""

from __future__ import annotations

from dataclasses import dataclass

from detector.document import listed
from orchestrator import registry
from orchestrator.departures import other_than_paper
from orchestrator.fields import METRICS
from orchestrator.plan import Plan
from orchestrator.report.hardware import marks
from orchestrator.results import Mean, Results, mean, result_rows

UNDEFINED = "–"
MARK = "◆"
"""Beside the name of a row that ran on other hardware, or with other versions, than most."""
MOST_NAMED = 10
"""Rows that a note names; the rest is counted."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row."""

    ours: Mean | None
    paper: float | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.value - self.paper


@dataclass(frozen=True)
class TableRow:
    """One row over its seeds; or one that is quoted from elsewhere and not trained."""

    name: str
    show: dict[str, str]
    cells: dict[str, Cell]
    """By metric, for every metric of the table."""
    state: str
    """Of all its seeds: finished, failed, running or pending; "quoted" for rows that are never trained."""
    detail: str = ""
    """How many seeds are finished, where not all are; whose training is reused; what failed."""
    run_ids: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()
    """Keys in which it is not what the paper did."""
    mark: str = ""
    """Hardware or versions of its trainings, where they aren't what most of the table has."""


@dataclass(frozen=True)
class Table:
    """All rows, in the order of the sweep file."""

    columns: tuple[str, ...]
    """What the paper shows to tell the rows apart."""
    metrics: tuple[str, ...]
    """What it measures."""
    rows: tuple[TableRow, ...]
    seeds: int
    """Most seeds that a row has."""

    @property
    def has_paper(self) -> bool:
        """Whether any row has a figure to compare with."""
        return any(cell.paper is not None for row in self.rows for cell in row.cells.values())


def make_table(plan: Plan, ledger: Results) -> Table:
    """The table of ``plan`` as the ledger stands now."""
    entries = result_rows(plan, ledger)
    tested = any(row.test is not None and row.test.annotated for row in plan.rows)
    # The paper's figures of a split whose boxes only a server knows stand there, too, with nothing of ours beside them.
    stated: set[str] = {key for row in plan.rows for key in row.paper} | {
        str(key) for quoted in plan.quoted for key in quoted.paper
    }
    tested = tested or any(key.startswith("test_") for key in stated)
    metrics: tuple[str, ...] = (*METRICS, *(f"test_{metric}" for metric in METRICS if tested))
    rows: list[TableRow] = []
    marked = marks(plan, ledger)
    for name in plan.row_names:
        pairs = [(row, entry) for row, entry in zip(plan.rows, entries, strict=True) if row.row == name]
        first = pairs[0][0]
        paper_figures: dict[str, float] = dict(first.paper)
        finished = [entry for _, entry in pairs if entry["state"] == "finished"]
        cells: dict[str, Cell] = {
            metric: Cell(mean(entry["metrics"].get(metric) for entry in finished), paper_figures.get(metric))
            for metric in metrics
        }
        states = [entry["state"] for _, entry in pairs]
        details = [f"{len(finished)} of {len(pairs)} seeds"] if len(finished) < len(pairs) and len(pairs) > 1 else []
        if first.test is not None and not first.test.annotated:
            details.append(f"{first.test.split} not scored here")
        reused = list(dict.fromkeys(entry["reused_from"] for _, entry in pairs if entry["reused_from"]))
        details += [f"reused from {', '.join(reused)}"] if reused else []
        details += list(dict.fromkeys(str(entry["error"]) for _, entry in pairs if entry["error"]))
        rows.append(
            TableRow(
                name=name,
                show=first.show,
                cells=cells,
                state=_state(states),
                detail="; ".join(details),
                run_ids=tuple(entry["run_id"] for _, entry in pairs if entry["run_id"]),
                departures=other_than_paper(first),
                mark=marked.get(name, ""),
            )
        )
    for quoted in plan.quoted:
        paper = {str(key): value for key, value in quoted.paper.items()}
        cells = {metric: Cell(None, paper.get(metric)) for metric in metrics}
        rows.append(TableRow(" ".join(quoted.show.values()), dict(quoted.show), cells, "quoted"))
    columns = tuple(dict.fromkeys(column for row in rows for column in row.show))
    seeds = max((sum(row.row == name for row in plan.rows) for name in plan.row_names), default=0)
    return Table(columns, metrics, tuple(rows), seeds)


def ours(cell: Cell) -> str:
    """``39.75``, ``39.75 ± 0.21 (3)`` over seeds, or a dash."""
    if cell.ours is None:
        return UNDEFINED
    if cell.ours.deviation is None:
        return f"{cell.ours.value:.2f}"
    return f"{cell.ours.value:.2f} ± {cell.ours.deviation:.2f} ({cell.ours.n})"


def paper(cell: Cell) -> str:
    """The paper's figure or a dash."""
    return UNDEFINED if cell.paper is None else f"{cell.paper:.2f}"


def difference(cell: Cell) -> str:
    """``+0.12``, ``-0.12`` or a dash."""
    return UNDEFINED if cell.difference is None else f"{cell.difference:+.2f}"


def named(table: Table) -> list[str]:
    """Keys in which any row isn't what the paper did; :func:`notes` names them where the paper has any figure."""
    return list(dict.fromkeys(key for row in table.rows for key in row.departures)) if table.has_paper else []


def notes(plan: Plan, table: Table) -> list[str]:
    """Sentences that a reader of the table must know."""
    found = []
    changed = named(table)
    if changed:
        changer = "the profile or --set" if plan.search is None else "the profile, --set or the search's holdout"
        found.append(
            f"Not the paper's recipe: {changer} changed "
            + ", ".join(changed)
            + ". The paper's figures are shown for orientation; the differences judge nothing."
        )
    missing = [
        row.name
        for row in table.rows
        if row.state != "quoted" and not any(c.paper is not None for c in row.cells.values())
    ]
    if missing and table.has_paper:
        found.append(f"The sweep file has no figures of the paper for: {', '.join(missing)}.")
    if table.seeds == 1:
        found.append(
            "One seed a row: on COCO, two trainings that differ only in their seed differ with a standard deviation of "
            "about 0.2-0.25 AP, so a difference of two single trainings carries about ±0.5 to ±0.7 AP, and more on "
            "smaller data. No verdict is given."
        )
    elif table.seeds > 1:
        found.append("Several seeds: mean ± standard deviation, and in brackets the number of trainings.")
    if any(row.mark for row in table.rows):
        found.append(
            f"{MARK} Not trained on the hardware, or with the versions, of most rows: "
            + "; ".join(f"{row.name} ({row.mark})" for row in table.rows if row.mark)
            + ". Speeds can't be compared, and results may differ by rounding."
        )
    blind = list(dict.fromkeys(row.test.split for row in plan.rows if row.test and not row.test.annotated))
    if blind:
        found.append(
            f"{', '.join(blind)} has no annotations here: what was found on it lies beside each training as "
            "evaluations/KEY/detections.json and in each run as test_detections.json, in the form that COCO's server "
            "takes; `python -m detector.evaluate runs:/RUN_ID/model --data ROOT --split SPLIT` packs the zip for it."
        )
    registered = registry.kept(plan)
    if registered is not None:
        sentence = registered["sentence"]
        found.append(f"{sentence[0].upper()}{sentence[1:]}.")
    if plan.plugins:
        found.append(
            "Plug-ins, with the first digits of the SHA-256 of their syntax trees: "
            + ", ".join(map(str, plan.plugins))
            + ". Rows that use them can't be trained without these files."
        )
    other = [(row, row.other_code) for row in plan.rows if row.other_code and row.identity == row.other_code.identity]
    for accepted in (True, False):
        rows = [(row.row, code.files) for row, code in other if code.accepted == accepted]
        if rows:
            names = ", ".join(dict.fromkeys(name for name, _ in rows))
            files = ", ".join(dict.fromkeys(file for _, files in rows for file in files))
            how = " (--accept-code-change)" if accepted else ""
            found.append(
                f"Trained, or begun, by other code than the present{how}: {names}. Since then these have changed: "
                f"{files}."
            )
    if plan.left_out:
        found.append(f"Not selected by --only, and not finished: {listed(plan.left_out, MOST_NAMED)}.")
    unfinished = sum(row.state not in ("finished", "quoted") for row in table.rows)
    if unfinished:
        found.append(f"{unfinished} of {len(plan.row_names)} rows are not finished.")
    return found


def _state(states: list[str]) -> str:
    for state in ("failed", "running", "pending"):
        if state in states:
            return state
    return "finished"
