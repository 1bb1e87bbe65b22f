"""In which order trainings start: the cheapest informative first.

Seed by seed, in the order in which the seeds are listed. Of each seed first the rows that ``compare`` names, a pair at
a time: the pair whose lacking trainings cost least, its cheaper row first. Then the rows that no pair names, the
cheapest first. Equal costs keep the order of the table. So the first difference is known as early as it can be, and
every pair has a seed more before any has two more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.costs import Measurement, relative_costs, remembered, workload_key

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger
    from orchestrator.plan import Plan, PlannedRow
    from orchestrator.results import Results

RULE = "seed by seed; first the pairs that are compared, then the other rows; the cheapest first"


def order(plan: Plan, ledger: Results, measurements: Mapping[str, Measurement]) -> tuple[list[str], bool]:
    """The identities that aren't trained yet, in the order in which they start, and whether their costs are measured.

    What is begun costs what is left of it.
    """
    costs, measured = relative_costs(plan.rows, measurements)
    left: dict[str, float] = {}
    for identity, config in plan.trainings.items():
        record = ledger.record(identity)
        if not record.trained:
            left[identity] = costs[identity] * (1 - record.step / max(1, config.schedule.max_iterations))
    by_name: dict[tuple[str, int], str] = {(row.row, row.seed): row.identity for row in plan.rows}
    compared = [pair for pair in plan.compare if set(pair) <= set(plan.row_names)]
    found: dict[str, None] = {}
    for seed in dict.fromkeys(row.seed for row in plan.rows):
        pairs = [
            [by_name[name, seed] for name in pair] for pair in compared if all((name, seed) in by_name for name in pair)
        ]
        while pairs:
            # What an earlier pair has in common with a later one is no longer lacking there.
            pair = min(pairs, key=lambda pair: sum(left.get(one, 0.0) for one in {*pair} - found.keys()))
            pairs.remove(pair)
            found.update(dict.fromkeys(sorted(pair, key=lambda one: left.get(one, 0.0))))
        others = [row.identity for row in plan.rows if row.seed == seed and row.identity not in found]
        found.update(dict.fromkeys(sorted(others, key=lambda one: left.get(one, 0.0))))
    return [identity for identity in found if identity in left], measured


def in_order(plan: Plan, ledger: Ledger) -> list[PlannedRow]:
    """The rows as a sweep takes them: those that are trained and may lack an evaluation, then as :func:`order` says."""
    turns, _ = order(plan, ledger, remembered(ledger.place, map(workload_key, plan.rows)))
    place = {identity: number for number, identity in enumerate(turns)}
    return sorted(plan.rows, key=lambda row: place.get(row.identity, -1))
