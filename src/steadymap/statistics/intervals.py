"""Intervals of means over images that may share photographs."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats

from steadymap.draws import derived_seed
from steadymap.params.schema import Statistics

# Below this many photographs, resampling them says little.
FEWEST_PHOTOS = 10


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

    def minus(self, other: "Range") -> "Range":
        """Differences between a value and one of another range."""
        return Range(self.low - other.high, self.high - other.low)


ANY = Range()

POSITIVE = Range(0.0)

SIMILARITY_RANGE = Range(-1.0, 1.0)

SHARE = Range(0.0, 1.0, share=True)

# A metric of one's own is a similarity, 1 for equal maps and never more.
OWN = Range(high=1.0)

_RANGES = {
    **dict.fromkeys(("ssim", "spearman", "pearson", "hog_pearson"), SIMILARITY_RANGE),
    **dict.fromkeys(("insertion", "deletion", "iou"), Range(0.0, 1.0)),
    "localization_error": SHARE,
    **dict.fromkeys(("dynamic_range", "l1"), POSITIVE),
}


def range_of(metric: str) -> Range:
    """Range of a score, by the name of its metric."""
    return _RANGES.get(metric, OWN)


def cluster_names(rows: pd.DataFrame) -> list[str]:
    """Photograph of each row, or the image itself where none is known.

    Parameters
    ----------
    rows : DataFrame
        With columns image_id and photo.
    """
    photos = rows["photo"].fillna("").astype(str)
    return photos.where(photos != "", rows["image_id"]).to_list()


def resampled(n: int, *, n_bootstrap: int, seed: int) -> np.ndarray:
    """Clusters of each bootstrap resample, shape (n_bootstrap, n); the same wherever n is."""
    rng = np.random.default_rng(derived_seed("bootstrap", seed, n))
    return rng.integers(n, size=(n_bootstrap, n))


def resample_counts(
    n: int, *, n_bootstrap: int, seed: int
) -> Float[np.ndarray, "resamples clusters"]:
    """How often each cluster occurs in each resample; with few clusters, all but one of them."""
    if n < FEWEST_PHOTOS:
        return 1.0 - np.eye(n)
    counts = np.zeros((n_bootstrap, n))
    chosen = resampled(n, n_bootstrap=n_bootstrap, seed=seed)
    np.add.at(counts, (np.arange(n_bootstrap)[:, None], chosen), 1.0)
    return counts


def jackknife(
    without: Sequence[float] | np.ndarray, center: float | None = None, n: int | None = None
) -> tuple[float, int]:
    """Variance of a statistic and its degrees of freedom.

    Parameters
    ----------
    without : sequence of float
        The statistic without each of the clusters in turn.
    center : float, optional
        What deviations are from; the mean of `without` by default.
    n : int, optional
        Number of clusters that bear on the statistic, where some of `without` change nothing.
    """
    values = np.asarray(without, dtype=np.float64)
    n = len(values) if n is None else n
    deviations = values - (values.mean() if center is None else center)
    return (n - 1) / n * float((deviations**2).sum()), n - 1


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
    which costs no coverage.

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
    if variance <= 0 or uncertain <= 0:
        return point, point
    error = math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + confidence / 2, variance**2 / uncertain)) * error
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


def stands_out(point: float, low: float, within: Range) -> bool:
    """Whether a plain interval of half-width t times the error would exclude the range's lower end.

    On the scale of `t_interval` no lower end reaches it, so that `low` alone can't tell.
    """
    below, above = point - within.low, within.high - point
    if not low > within.low or min(below, above) <= 0:
        return False
    step = math.log(below / (low - within.low))
    if math.isfinite(above):
        step += math.log((within.high - low) / above)
    return step < 1 + below / above


def percentiles(values: np.ndarray, confidence: float, missing: float = 0.0) -> tuple[float, float]:
    """Ends of the middle share of resampled values; NaN where more than `missing` are undefined."""
    if np.isnan(values).mean() > missing:
        return math.nan, math.nan
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    # Between a finite value and an infinite ratio there is nothing to interpolate.
    if np.isinf(values).any():
        low, high = np.nanquantile(values, ends, method="closest_observation")
    else:
        low, high = np.nanquantile(values, ends)
    return float(low), float(high)


def interval(
    values: np.ndarray,
    clusters: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    seed: int = 0,
    within: Range = ANY,
) -> tuple[float, float]:
    """Interval of the mean over images that may share photographs.

    Parameters
    ----------
    values : ndarray
        One value per image.
    clusters : sequence of str, optional
        Photograph of each image; by default each is one of its own.
    confidence : float
        Coverage.
    n_bootstrap : int
        Resamples.
    seed : int
        Seed of the resamples.
    within : Range
        What the values can be; the interval lies in it.

    Returns
    -------
    tuple of float
        Percentile bootstrap over clusters; with fewer than `FEWEST_PHOTOS`, a jackknife over them
        with Student's t (`t_interval`). Where all values of a share agree, the exact
        (Clopper-Pearson) bound of as many clusters, for resampling them has no width. NaN where
        there are fewer than two.
    """
    values = np.asarray(values, dtype=np.float64)
    names = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    unique, inverse = np.unique(names, return_inverse=True)
    n = len(unique)
    if n < 2:
        return math.nan, math.nan
    if within.share and (values == values[0]).all() and values[0] in (0.0, 1.0):
        least = ((1 - confidence) / 2) ** (1 / n)
        return (least, 1.0) if values[0] else (0.0, 1 - least)
    sizes = np.bincount(inverse).astype(np.float64)
    sums = np.bincount(inverse, weights=values)
    if n < FEWEST_PHOTOS:
        without = (sums.sum() - sums) / (sizes.sum() - sizes)
        part = jackknife(without)
        return t_interval(float(values.mean()), [part], confidence=confidence, within=within)
    chosen = resampled(n, n_bootstrap=n_bootstrap, seed=seed)
    return percentiles(sums[chosen].sum(1) / sizes[chosen].sum(1), confidence)


def column_interval(
    part: pd.DataFrame, column: str, options: Statistics, within: Range
) -> tuple[float, float]:
    """Interval of a column's mean over images."""
    known = part[part[column].notna()]
    return interval(
        known[column].to_numpy(),
        cluster_names(known),
        confidence=options.confidence,
        n_bootstrap=options.n_bootstrap,
        seed=options.seed,
        within=within,
    )


def over_images(
    scores: pd.DataFrame, keys: Sequence[str], rows: pd.DataFrame, options: Statistics
) -> pd.DataFrame:
    """Mean over images, its interval and their spread, of each group of scores.

    Undefined scores are left out of the mean and counted as degenerate; intervals are clustered by
    photograph (docs/protocol.md). The columns `keys` name a group, `metric` among them.
    """
    columns = [*keys, "n_images", "mean", "ci_low", "ci_high", "std", "n_degenerate", "n_inverted"]
    merged = scores.merge(rows[["image_id", "photo"]], on="image_id")
    found = []
    for names, part in merged.groupby(list(keys), sort=False):
        name = dict(zip(keys, names, strict=True))
        low, high = column_interval(part, "score", options, range_of(str(name["metric"])))
        found.append(
            {
                **name,
                "n_images": int(part["score"].notna().sum()),
                "mean": part["score"].mean(),
                "ci_low": low,
                "ci_high": high,
                "std": part["score"].std(ddof=0),
                "n_degenerate": int((part["degenerate"] | part["score"].isna()).sum()),
                "n_inverted": int(part["inverted"].sum()),
            }
        )
    return pd.DataFrame(found, columns=columns)
