"""What the planned seeds can show of each pair that a sweep compares, before they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.comparison import data_of, paper_of, planned_cells, same_training, seeds_by_row
from orchestrator.departures import data_name, other_than_paper
from orchestrator.estimate import Estimate
from orchestrator.looks import before, shared
from orchestrator.plan import Plan
from orchestrator.results import Results
from orchestrator.statistics.power import ASSUMED_DEVIATION, Forecast, SeedRange, forecast
from orchestrator.statistics.variance import collapsed, deviation_range, fit

THE_WINNER = "the winner"
"""Stands for the sample that a search will choose."""


@dataclass(frozen=True)
class Prospects:
    """Of a whole table."""

    pairs: tuple[Forecast, ...]
    """Of the pairs whose rows have the same data."""
    apart: tuple[tuple[str, str], ...]
    """Pairs that are never compared: their rows have different data."""
    planned: Mapping[tuple[str, str], int]
    """Seeds that both rows of a pair are to have."""
    deviations: tuple[float, float]
    """AP between seeds, as a range."""
    measured: int
    """Degrees of freedom of that; 0: it is assumed."""
    elsewhere: str
    """The data, where they, or the model, aren't the paper's."""


def prospects(plan: Plan, ledger: Results) -> Prospects:
    """What can be said now: by the deviation that the ledger's results have, or by an assumed one."""
    plan = plan.reported  # which is what is judged, earlier seeds and all
    cells, _, _ = planned_cells(plan, ledger)
    first = {row.row: row for row in reversed(plan.rows)}
    pairs = [pair for pair in plan.compare if set(pair) <= first.keys()]
    present = dict(seeds_by_row(plan))
    search = plan.search if plan.search is not None and plan.search.winner is None else None
    if search is not None:
        # Nobody knows yet which sample it will be; its data and seeds are those of the rows.
        reference = search.spec.reference_row(plan.row_names)
        first[THE_WINNER], present[THE_WINNER] = first[reference], present[reference]
        pairs.append((THE_WINNER, reference))
    looks = before(ledger.looks(plan.key), present) if pairs else []
    found: dict[tuple[str, str], Forecast] = {}
    deviations, measured = ASSUMED_DEVIATION, 0
    for data in dict.fromkeys(map(data_of, first.values())):
        rows = {name for name, row in first.items() if data_of(row) == data}
        group = [pair for pair in pairs if set(pair) <= rows]
        if not group:
            continue
        again = same_training(plan, rows)
        known = {name: cells[name] for name in plan.row_names if name in rows and name not in again}
        fallen = collapsed(known)
        table = fit(known, [name for name in known if name not in fallen])
        if table.deviation and table.df > measured:
            deviations, measured = deviation_range(table.deviation, table.df), table.df
        for pair in group:
            found[pair] = forecast(
                pair,
                paper_of(first[name] for name in rows if name != THE_WINNER),
                rows=len(known) + (search is not None),
                pairs=max(plan.pairs, len(plan.compare)),
                seeds=shared(present, pair),
                looks=[shared(look, pair) for look in looks],
                deviations=deviation_range(table.deviation, table.df) if table.deviation else ASSUMED_DEVIATION,
            )
    other = [row for row in first.values() if other_than_paper(row)]
    return Prospects(
        pairs=tuple(found[pair] for pair in pairs if pair in found),
        apart=tuple(pair for pair in pairs if pair not in found),
        planned={pair: shared(present, pair) for pair in pairs},
        deviations=deviations,
        measured=measured,
        elsewhere=" and ".join(dict.fromkeys(map(data_name, other))),
    )


def prospect_lines(told: Prospects, costs: Estimate | None = None) -> list[str]:
    """A line a pair, below one that says by what deviation; nothing where no rows are compared.

    ``costs`` say what the seeds of both rows take.
    """
    if not told.pairs and not told.apart:
        return []
    low, high = told.deviations
    by = f"{low:.2f} to {high:.2f} AP between seeds"
    if told.measured:
        by += f" (95 % interval, {told.measured} degrees of freedom of what is trained)"
    else:
        by += " (assumed, of COCO" + (f"; {told.elsewhere} may vary more)" if told.elsewhere else ")")
    counts = sorted(set(told.planned.values()))
    of = _count(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    lines = [f"of {of}, at 80 % power, by {by}:"]
    for pair in told.pairs:
        seeds = told.planned[pair.first, pair.second]
        if pair.smallest is None:
            shown = f"{_count(seeds)} show{'s' * (seeds == 1)} nothing"
        else:
            shown = f"differences from {_range(*pair.smallest)} AP are shown"
        each = costs.of_a_seed(pair.first, pair.second) if costs is not None else None
        cost = _Cost(each, costs.unit, costs.price) if costs is not None and each is not None else None
        planned = f" ({cost.of(seeds)})" if cost else ""
        lines.append(f"{_name(pair.first, pair.second)}: {shown}{planned}; {_needed(pair, cost)}")
    lines += [f"{_name(*pair)}: never compared, as the rows have different data" for pair in told.apart]
    return lines


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}"


def _name(first: str, second: str) -> str:
    return f"{first} \N{MINUS SIGN} {second}"


@dataclass(frozen=True)
class _Cost:
    """Of one seed of both rows of a pair."""

    hours: float
    unit: str
    price: float | None

    def of(self, seeds: int, most: int | None = None) -> str:
        """``seeds`` of them, or up to ``most``."""
        counts = [seeds] if most in (None, seeds) else [seeds, most]
        hours = " to ".join(f"{count * self.hours:,.3g}" for count in counts)
        money = " to ".join(f"{count * self.hours * (self.price or 0.0):,.2f}" for count in counts)
        return f"{hours} {self.unit} for both rows" + (f", cost {money}" if self.price is not None else "")


def _needed(pair: Forecast, cost: _Cost | None) -> str:
    if pair.seeds is None:
        return "the paper's difference isn't known" if pair.paper is None else "the paper has no difference"
    text = f"the paper's {pair.paper:+.2f} would need {_seeds(pair.seeds)}"
    if cost is None or pair.seeds.lowest is None:
        return text
    return f"{text} ({cost.of(pair.seeds.lowest, pair.seeds.highest)}" + (
        " or far more)" if pair.seeds.highest is None else ")"
    )


def _seeds(needed: SeedRange) -> str:
    if needed.lowest is None:
        return "more than 1,000 seeds"
    if needed.highest is None:
        return f"{needed.lowest} seeds or far more"
    if needed.lowest == needed.highest:
        return f"{needed.lowest} seeds"
    return f"{needed.lowest} to {needed.highest} seeds"


def _range(low: float, high: float) -> str:
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
