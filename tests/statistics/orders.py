"""Simulated orders of rows: where a second run of the paper comes to lie, and the true order of ours."""

from __future__ import annotations

import numpy as np

from orchestrator.statistics.ordering import ordering, tau_b

DEVIATION = 0.2


def order_coverage(
    rows: int, spread: float, seeds: int, count: int, seed: int = 0, related: float = 1.0
) -> dict[str, float]:
    """Shares of ``count`` tables in which the intervals hold; the true AP of the rows have deviation ``spread``.

    ``related`` is the correlation of our rows' true AP with the paper's: 1 the same truth, 0 none in common.

    ``true order`` is how often the interval of tau contains the tau of our rows' true order with the paper's figures,
    ``second run`` how often a second run of the paper falls into its interval, and ``below median`` how often that
    run's tau is below the median that was foretold (a half where it is right, ties counted half).
    """
    generator = np.random.default_rng(seed)
    names = [f"row {number}" for number in range(rows)]
    held = {"true order": 0.0, "second run": 0.0, "below median": 0.0}
    for _ in range(count):
        truth = 39 + generator.normal(0, spread, rows)
        printed, second = truth + generator.normal(0, DEVIATION, (2, rows))
        own = 39 + related * (truth - 39) + np.sqrt(1 - related**2) * generator.normal(0, spread, rows)
        ours = own[:, None] + generator.normal(0, DEVIATION, (rows, seeds))
        results = {row: dict(enumerate(cells)) for row, cells in zip(names, ours.tolist(), strict=True)}
        found = ordering(results, dict(zip(names, printed.tolist(), strict=True)), draws=1000)
        assert found.interval is not None
        assert found.paper_again_interval is not None
        assert found.paper_again is not None
        true, again = tau_b(np.stack([own, second]), printed).tolist()
        held["true order"] += found.interval[0] - 1e-9 <= true <= found.interval[1] + 1e-9
        held["second run"] += found.paper_again_interval[0] - 1e-9 <= again <= found.paper_again_interval[1] + 1e-9
        held["below median"] += (again < found.paper_again - 1e-9) + (abs(again - found.paper_again) < 1e-9) / 2
    return {name: value / count for name, value in held.items()}
