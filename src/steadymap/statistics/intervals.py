"""Ranges of measures, and intervals that lie within them."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import special, stats


class Range(NamedTuple):
    """Values that a measure can take, ends included; a `share` is a mean of zeros and ones."""

    low: float = -math.inf
    high: float = math.inf
    share: bool = False

    @property
    def spread(self) -> "Range":
        """Standard deviations (ddof 0) of such values."""
        return Range(0.0, (self.high - self.low) / 2)

    @property
    def turned(self) -> "Range":
        """1 minus such a value."""
        return Range(1 - self.high, 1 - self.low)

    @property
    def negative(self) -> "Range":
        """Such a value times -1."""
        return Range(-self.high, -self.low)

    def minus(self, other: "Range") -> "Range":
        """Differences between a value and one of another range."""
        return Range(self.low - other.high, self.high - other.low)


ANY = Range()

POSITIVE = Range(0.0)

SIMILARITY_RANGE = Range(-1.0, 1.0)

SHARE = Range(0.0, 1.0, share=True)

# A custom metric is a similarity, 1 for equal maps and never more.
OWN = Range(high=1.0)

_RANGES = {
    **dict.fromkeys(("ssim", "spearman", "pearson", "hog_pearson"), SIMILARITY_RANGE),
    **dict.fromkeys(("edge_correlation", "autocorrelation"), SIMILARITY_RANGE),
    **dict.fromkeys(("insertion", "deletion", "iou", "mass_inside"), Range(0.0, 1.0)),
    "localization_error": SHARE,
    **dict.fromkeys(("dynamic_range", "l1"), POSITIVE),
}


# Scores of a map by itself; all others are of a pair of maps.
OF_ONE_MAP = ("insertion", "deletion", "localization_error", "iou", "dynamic_range")


def range_of(metric: str) -> Range:
    """Range of a score, by the name of its metric."""
    return _RANGES.get(metric, OWN)


def t_interval(
    point: float,
    parts: Iterable[tuple[float, float]],
    *,
    confidence: float = 0.95,
    within: Range = ANY,
) -> tuple[float, float]:
    """Student's t interval that lies within a range by construction.

    It is formed on the logarithm of the odds of the two ends of the range, on the logarithm where
    there is one end, and as it is where there is none; the standard error is carried over by the
    delta method. Of a correlation this is Fisher's z. A point whose standard error exceeds its
    distance from an end tells nothing on that scale: there the plain interval is cut at the end,
    which costs no coverage. Of a share it is Wilson's interval at the effective number of trials,
    p (1 - p) / variance, or the degrees of freedom where the variance is 0.

    Parameters
    ----------
    point : float
        The estimate.
    parts : iterable of tuple of float
        Independent parts of its variance with their degrees of freedom, which join as Welch and
        Satterthwaite have it.
    confidence : float
        Coverage.
    within : Range
        What the measure can be.

    Returns
    -------
    tuple of float
        Lower and upper end; NaN where the point or the variance is not finite.
    """
    known = list(parts)
    variance = sum(part for part, _ in known)
    if not (math.isfinite(point) and math.isfinite(variance)):
        return math.nan, math.nan
    uncertain = sum(part**2 / freedom for part, freedom in known)
    certain = variance <= 0 or uncertain <= 0
    freedom = sum(freedom for _, freedom in known) if certain else variance**2 / uncertain
    quantile = float(stats.t.ppf(0.5 + confidence / 2, freedom))
    if within.share:
        return _wilson(point, quantile, freedom if certain else point * (1 - point) / variance)
    if certain:
        return point, point
    error = math.sqrt(variance)
    reach = quantile * error
    below, above = point - within.low, within.high - point
    if min(below, above) < error * (1 - 1e-9):
        return max(point - reach, within.low), min(point + reach, within.high)
    step = reach * (1 / below + 1 / above)
    if math.isinf(below) and math.isinf(above):
        return point - reach, point + reach
    with np.errstate(over="ignore"):
        if math.isinf(above):
            ends = within.low + below * np.exp([-step, step])
        elif math.isinf(below):
            ends = within.high - above * np.exp([step, -step])
        else:
            odds = special.expit(math.log(below / above) + np.array([-step, step]))
            ends = within.low + (below + above) * odds
    return float(ends[0]), float(ends[1])


def share_interval(share: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of n images that have nothing in common, such as an accuracy.

    Parameters
    ----------
    share : float
        The share, in [0, 1].
    n : int
        Number of images.
    confidence : float
        Coverage.
    """
    part = (share * (1 - share) / max(n, 1), max(n, 1))
    return t_interval(share, [part], confidence=confidence, within=SHARE)


def _wilson(share: float, quantile: float, n: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of n trials, which needs no spread among them."""
    weight = quantile**2 / n
    reach = math.sqrt(weight * share * (1 - share) + weight**2 / 4)
    low, high = ((share + weight / 2 + side * reach) / (1 + weight) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def stands_out(point: float, low: float, within: Range) -> bool:
    """Whether a plain interval of half-width t times the error would exclude the range's lower end.

    On the scale of `t_interval` no lower end reaches it, so that `low` alone can't tell.

    Parameters
    ----------
    point : float
        The estimate.
    low : float
        Lower end of its interval on the scale of `t_interval`.
    within : Range
        What the measure can be.
    """
    below, above = point - within.low, within.high - point
    if not low > within.low or min(below, above) <= 0:
        return False
    step = math.log(below / (low - within.low))
    if math.isfinite(above):
        step += math.log((within.high - low) / above)
    return step < 1 + below / above
