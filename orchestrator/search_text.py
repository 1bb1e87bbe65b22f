"""What a search is, in words: its space, its rule and its data."""

from __future__ import annotations

from orchestrator.estimate import Estimate
from orchestrator.plan import Plan
from orchestrator.search_spec import Domain


def space_line(plan: Plan) -> str:
    """``predicted_weight uniform 0 to 2; topk one of 5, 9, 13``."""
    assert plan.search is not None
    return "; ".join(f"{key} {_domain(domain)}" for key, domain in plan.search.spec.parameters.items())


def rule_line(plan: Plan) -> str:
    """How many samples, and when one is stopped."""
    assert plan.search is not None
    spec, config = plan.search.spec, plan.search.template.config
    return (
        f"{spec.samples} samples by Optuna's TPE (seed {spec.seed}), each trained with seed "
        f"{plan.search.template.seed} as {plan.search.template.row}; asynchronous successive halving stops all but the "
        f"best 1/{spec.scheduler.reduction_factor} at {_rungs(plan)} of {config.schedule.max_iterations:,} iterations"
    )


def data_line(plan: Plan) -> str:
    """What the search sees, and what it doesn't."""
    assert plan.search is not None
    seen, unseen = plan.search.template.val, plan.rows[0].val
    assert seen is not None
    assert unseen is not None
    return (
        f"the search sees {seen.split} ({seen.images:,} images); the winner and the rows are judged on {unseen.split} "
        f"({unseen.images:,} images), which it doesn't see"
    )


def search_lines(plan: Plan, costs: Estimate | None = None) -> list[str]:
    """For a dry run, with what the samples cost, where that is known; nothing for a sweep that doesn't search."""
    if plan.search is None:
        return []
    spec, samples = plan.search.spec, len(plan.search.samples)
    left = max(0, spec.samples - samples)
    winner = plan.search.winner
    state = f"the winner is {winner.row}" if winner else f"{samples} samples begun, {left} to draw"
    then = f"then {len(plan.rows)} rows and seeds are judged" + ("" if winner else ", and as many seeds of the winner")
    lines = [space_line(plan), rule_line(plan), data_line(plan), f"{state}; {then}"]
    reference = spec.reference_row(plan.row_names)
    each = next((row.each for row in costs.rows if row.row == reference), None) if costs is not None else None
    if costs is not None and each is not None and winner is None:
        most = (left + len({row.seed for row in plan.rows})) * each
        cost = "" if costs.price is None else f", cost {most * costs.price:,.2f}"
        lines.append(
            f"beside the rows above, the samples to draw and the winner take at most {most:,.3g} {costs.unit}{cost}; "
            "less, as samples are stopped"
        )
    return lines


def _rungs(plan: Plan) -> str:
    assert plan.search is not None
    config = plan.search.template.config
    step, found = config.evaluation.every or config.schedule.max_iterations, []
    while step < config.schedule.max_iterations:
        found.append(f"{step:,}")
        step *= plan.search.spec.scheduler.reduction_factor
    return ", ".join(found) or "none"


def _domain(domain: Domain) -> str:
    if domain.uniform is not None:
        return f"uniform {domain.uniform[0]:g} to {domain.uniform[1]:g}"
    if domain.loguniform is not None:
        return f"log-uniform {domain.loguniform[0]:g} to {domain.loguniform[1]:g}"
    if domain.randint is not None:
        return f"a whole number from {domain.randint[0]} to {domain.randint[1] - 1}"
    assert domain.choice is not None
    return f"one of {', '.join(map(str, domain.choice))}"
