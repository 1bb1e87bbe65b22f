"""The error level when seeds are added after looking.

Who looks at a table, adds seeds where nothing was shown, and looks again has several chances to be fooled. So the level
is spent: after n seeds at most alpha * (1 - 1/n) of it is gone, and a look may use what is new since the last one. One
seed spends nothing, two spend half of it, five 80 %, and no number of later looks spends more than alpha.

It is an error-spending function (Lan and DeMets, *Biometrika* 70, 1983: neither the number of looks nor their times
need be fixed in advance), on the number of seeds and without an end, since no number of seeds is the last. Each look's
share is used as the level of an ordinary t test, not turned into a boundary by the joint normal distribution of the
looks: with a few degrees of freedom that distribution is not to be had, and a sum of levels (Bonferroni over the looks)
holds whatever it is. O'Brien and Fleming's spending needs the last number of seeds in advance; Pocock's equal
shares need the number of looks.
"""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.05
"""Probability that a table with no difference in any of its pairs ever gets a verdict."""


def spent(seeds: float, alpha: float = ALPHA) -> float:
    """What may be gone of ``alpha`` once trainings of ``seeds`` seeds a row have been looked at."""
    return alpha * (1 - 1 / seeds) if seeds > 1 else 0.0


def look_level(seeds: float, looks: Sequence[float] = (), alpha: float = ALPHA) -> float:
    """The level for a look at ``seeds`` seeds a row after ``looks``: the earlier looks' numbers of seeds, in their
    order.

    Numbers of seeds are those that both rows of a pair have. A look at a number that is among ``looks`` is that look
    once more, if it is at the same results, and has its level; one at fewer seeds than were seen before has no level
    left, 0.
    """
    earlier = list(looks)
    if seeds in earlier:
        earlier = earlier[: earlier.index(seeds)]
    return max(0.0, spent(seeds, alpha) - spent(max(earlier, default=1.0), alpha))
