"""How far each row is, on standard error: redrawn on a terminal, a few lines now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from detector.progress import duration
from orchestrator import journal
from orchestrator.ledger import Ledger
from orchestrator.record import Record

if TYPE_CHECKING:
    from orchestrator.plan import PlannedRow

LOG_EVERY_S = 60.0
OTHERS = ("failed", "stopped", "running")
"""States that are counted besides the finished rows; stopped: early, by the scheduler of a search."""
HEADER = ("row", "seed", "state", "step", "loss", "AP", "ETA", "where")


@dataclass(frozen=True)
class Line:
    """One row and seed, as it stands."""

    row: str
    seed: int
    state: str
    step: int
    iterations: int
    loss: float | None
    ap: float | None
    left: float | None
    """Seconds, estimated from this attempt's pace."""
    error: str | None
    identity: str
    where: str = ""
    """The node of its first worker and what it computes on, while it runs."""

    def cells(self) -> tuple[str, ...]:
        """What the table shows, under ``HEADER``."""
        step = f"{self.step}/{self.iterations}" if self.iterations else ""
        left = duration(self.left) if self.left is not None else ""
        return (
            self.row,
            str(self.seed),
            self.state,
            step,
            _number(self.loss, 3),
            _number(self.ap, 1),
            left,
            self.where,
        )


def read_lines(rows: Iterable[PlannedRow], ledger: Ledger) -> list[Line]:
    """The present state of ``rows``, from the ledger; rows that share a training share its figures."""
    seen: dict[tuple[str, ...], Line] = {}
    lines = []
    for row in rows:
        key = (row.identity, *row.evaluations.values())
        if key not in seen:
            seen[key] = _line(row, ledger.record(row.identity, row.evaluations))
        lines.append(Line(**{**vars(seen[key]), "row": row.row, "seed": row.seed}))
    return lines


def _line(row: PlannedRow, record: Record) -> Line:
    trained = journal.last(record.journal, "train")
    evaluated = journal.last(record.journal, "evaluation", row.evaluation or None)
    metrics = record.metrics or (evaluated["metrics"] if evaluated else {})
    left = None
    if record.state == "running" and trained and not record.trained:
        attempt = record.history[-1]
        done, spent = trained["step"] - attempt["from_step"], trained["time"] - attempt["started"]
        if done > 0:
            left = spent / done * (record.iterations - trained["step"]) - (time.time() - trained["time"])
    return Line(
        row=row.row,
        seed=row.seed,
        state="stopped" if record.stopped and record.state == "pending" and record.holder is None else record.state,
        step=record.step,
        iterations=record.iterations or row.config.schedule.max_iterations,
        loss=trained["metrics"].get("loss") if trained else None,
        ap=metrics.get("AP"),
        left=None if left is None else max(0.0, left),
        error=record.error,
        identity=row.identity,
        where=_where(record),
    )


def _where(record: Record) -> str:
    """``node``, or ``node 2×cuda`` where there are GPUs or several workers."""
    if record.state != "running" or not record.history or record.trained:
        return ""
    hardware, node = record.history[-1].get("hardware") or {}, str(record.history[-1]["node"])
    workers, device = hardware.get("workers", 1), hardware.get("device", "cpu")
    if workers > 1:
        return f"{node} {workers}×{device}"
    return f"{node} {device}" if device != "cpu" else node


def table(lines: Sequence[Line], width: int | None = None) -> str:
    """``lines`` as aligned text; cut to ``width`` columns."""
    cells = [HEADER, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    text = []
    for row in cells:
        parts = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2])]
        parts += [cell.rjust(size) for cell, size in zip(row[3:-1], widths[3:-1], strict=True)]
        parts.append(row[-1])
        text.append("  ".join(parts).rstrip()[:width])
    return "\n".join(text)


class LiveTable:
    """Shows ``rows`` until it is closed.

    On a terminal the table is drawn anew in place; elsewhere a line is written for each change of state, and one every
    ``log_every`` seconds that says how far the running rows are; ``show_first``: such a line at once.
    """

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        ledger: Ledger,
        *,
        stream: TextIO | None = None,
        log_every: float = LOG_EVERY_S,
        show_first: bool = False,
    ) -> None:
        self._rows, self._ledger = rows, ledger
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._log_every = log_every
        self._drawn = 0
        self._states: dict[tuple[str, int], str] = {}
        self._began = time.monotonic()
        self._logged = self._began - (log_every if show_first else 0.0)

    def update(self) -> None:
        """Shows what has changed."""
        lines = read_lines(self._rows, self._ledger)
        if self._tty:
            self._redraw(lines)
        else:
            self._log(lines)

    def close(self) -> None:
        """Shows the end."""
        self._logged = time.monotonic()
        self.update()

    def _redraw(self, lines: Sequence[Line]) -> None:
        size = shutil.get_terminal_size()
        shown = list(lines)
        # A table that is higher than the screen can't be redrawn in place: what is at work is shown, the rest counted.
        if len(shown) > size.lines - 4:
            order = {"running": 0, "pending": 1, "failed": 2, "stopped": 3, "finished": 3}
            shown = sorted(shown, key=lambda line: order[line.state])[: max(1, size.lines - 4)]
        text = table(shown, size.columns - 1) + "\n" + self._summary(lines)[: size.columns - 1]
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._stream.write(back + "\x1b[J" + text + "\n")
        self._stream.flush()
        self._drawn = text.count("\n") + 1

    def _log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            key = (line.row, line.seed)
            before, self._states[key] = self._states.get(key), line.state
            if before == line.state or (before is None and line.state == "pending"):
                continue
            figure = f"AP {_number(line.ap, 1) or 'undefined'}"
            early = f"at {line.step}/{line.iterations}, {figure}"
            what = {"finished": figure, "failed": line.error or "", "stopped": early}
            detail = what.get(line.state, "")
            self._write(f"{line.row} (seed {line.seed}): {line.state}" + (f", {detail}" if detail else ""))
        if time.monotonic() - self._logged >= self._log_every:
            self._logged = time.monotonic()
            running = [
                f"{line.row} (seed {line.seed}) {line.step}/{line.iterations}"
                + (f" loss {line.loss:.3f}" if line.loss is not None else "")
                + (f" AP {line.ap:.1f}" if line.ap is not None else "")
                + (f", about {duration(line.left)} left" if line.left is not None else "")
                + (f", on {line.where}" if line.where else "")
                # Rows that share a training are at the same step: the first speaks for all.
                for line in reversed({line.identity: line for line in reversed(lines)}.values())
                if line.state == "running"
            ]
            self._write("; ".join([self._summary(lines), *running]))

    def _summary(self, lines: Sequence[Line]) -> str:
        counts = {state: sum(line.state == state for line in lines) for state in ("finished", *OTHERS)}
        what = "rows" if len({line.row for line in lines}) == len(lines) else "rows and seeds"
        parts = [f"{counts['finished']} of {len(lines)} {what} finished"]
        parts += [f"{counts[state]} {state}" for state in OTHERS if counts[state]]
        return f"{', '.join(parts)}, after {duration(time.monotonic() - self._began)}"

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
