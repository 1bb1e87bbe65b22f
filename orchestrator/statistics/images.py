"""Intervals of a difference from resampled validation images: how much of it is owed to these very images.

A difference between two rows has two sources of chance: which seeds were drawn and which images it was measured on.

- *These trainings, images like these*: percentiles of the difference over resamples of the images, the same resample
for
  both rows (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13). Needs one seed.
- *These images, seeds like these*: the interval over seeds (``pairs.Judgement.interval``). Needs two.
- *Images and seeds like these*: both variances added. Every seed is measured on every image, and no resampling is exact
for
  such crossed factors (McCullagh, *Bernoulli* 6, 2000). Drawing seeds and images independently, the pigeonhole
  bootstrap (Owen, *Annals of Applied Statistics* 1, 2007), is conservative, since what a seed does on an image alone
  is counted up to three times; but it takes the variance over n seeds too small by (n-1)/n, a half for two. Adding the
  variance over seeds, with its t, to the variance over images counts that part twice: conservative, too, and right for
  few seeds. Degrees of freedom by Satterthwaite (*Biometrics Bulletin* 2, 1946).

B resamples; all figures are AP in percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.statistics.variance import t_quantile

FEWEST = 100
"""Resamples with a defined AP below which no interval is given."""


@dataclass(frozen=True)
class ImageIntervals:
    """95 % intervals of one difference; None where there is too little to tell."""

    images: tuple[float, float] | None
    """These trainings, images like these."""
    seeds: tuple[float, float] | None
    """These images, seeds like these."""
    both: tuple[float, float] | None
    """Images and seeds like these; conservative."""
    undefined: int
    """Resamples without a defined AP, which are left out."""


def image_intervals(
    difference: float,
    resampled: np.ndarray,
    *,
    images: int,
    error: float | None = None,
    df: int = 0,
    alpha: float = 0.05,
) -> ImageIntervals:
    """Intervals of ``difference`` (AP of one row less another's, averaged over the seeds that both have).

    ``resampled`` is (B,): that same average for each resample of the ``images`` images, nan where it is undefined.
    ``error`` is the standard error of the difference over the seeds and ``df`` its degrees of freedom; None with one
    seed.
    """
    draws = np.asarray(resampled, dtype=float)
    defined = draws[np.isfinite(draws)]
    undefined = int(draws.size - defined.size)
    over_seeds = None
    if error is not None and df > 0:
        over_seeds = _about(difference, t_quantile(df, alpha) * error)
    if defined.size < FEWEST:
        return ImageIntervals(None, over_seeds, None, undefined)
    low, high = np.quantile(defined, [alpha / 2, 1 - alpha / 2]).tolist()
    both = None
    if error is not None and df > 0:
        parts = (error**2, df), (float(defined.var(ddof=1)), max(1, images - 1))
        variance = sum(part for part, _ in parts)
        if variance > 0:
            freedom = variance**2 / sum(part**2 / own for part, own in parts)
            both = _about(difference, t_quantile(freedom, alpha) * math.sqrt(variance))
    return ImageIntervals((low, high), over_seeds, both, undefined)


def _about(middle: float, half: float) -> tuple[float, float]:
    return middle - half, middle + half
