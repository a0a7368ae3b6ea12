"""Intervals over photographs, and over draws or trainings beside them.

Images that share a photograph are one cluster and are left out together. Every interval is that of
the delete-one jackknife and Student's t, in which independent parts of the variance join as Welch
and Satterthwaite have it (docs/protocol.md has its coverage).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import (
    ANY,
    OF_ONE_MAP,
    POSITIVE,
    Range,
    range_of,
    t_interval,
)

# Fewer trainings say nothing about the spread between them of a mean over their pairs.
FEWEST_UNITS = 3

Values = Float[np.ndarray, " left_out"]

# From the units and the images that take part (boolean masks) to a number.
Estimate = Callable[[Bool[np.ndarray, " units"], Bool[np.ndarray, " images"]], float]


def cluster_names(rows: pd.DataFrame) -> list[str]:
    """Photograph of each row, or the image itself where none is known.

    Parameters
    ----------
    rows : DataFrame
        With columns image_id and photo.
    """
    photos = rows["photo"].fillna("").astype(str)
    return photos.where(photos != "", rows["image_id"]).to_list()


def clusters_of(rows: pd.DataFrame, image_ids: pd.Index) -> list[str]:
    """Cluster of each scored image.

    Parameters
    ----------
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    image_ids : Index
        Images that have scores.

    Raises
    ------
    ValueError
        Where an image is not in the evaluation set.
    """
    missing = image_ids[~image_ids.isin(rows["image_id"])]
    if len(missing):
        raise ValueError(
            f"image {missing[0]!r} has scores and is not in the evaluation set; score and analyze "
            "the same study"
        )
    return cluster_names(rows.set_index("image_id").loc[image_ids].reset_index())


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


def crossed_interval(
    estimate: Estimate,
    n_units: int,
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    within: Range = ANY,
) -> tuple[float, float, float]:
    """Estimate, and its interval over units, such as trainings, and images.

    Every unit goes with every image, so that either is left out in turn, a unit or a photograph,
    and the two jackknife variances add up (Owen 2007: slightly too wide, as what both share counts
    twice).

    Parameters
    ----------
    estimate : callable
        From which units and which images take part to the number.
    n_units : int
        Number of units.
    clusters : sequence of str
        Photograph of each image.
    confidence : float
        Coverage.
    within : Range
        What the number can be.

    Returns
    -------
    tuple of float
        Estimate, lower and upper end. Ends are NaN with fewer than `FEWEST_UNITS` units or
        two photographs.
    """
    names, cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    units, images = np.ones(n_units, bool), np.ones(len(cluster), bool)
    point = estimate(units, images)
    if n_units < FEWEST_UNITS or len(names) < 2:
        return point, math.nan, math.nan
    without = (
        [estimate(np.arange(n_units) != out, images) for out in range(n_units)],
        [estimate(units, cluster != out) for out in range(len(names))],
    )
    parts = [jackknife(left) for left in without]
    return point, *t_interval(point, parts, confidence=confidence, within=within)


def defined_mean(cells: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean of the defined cells over some axes; NaN where there are none."""
    known = np.isfinite(cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, cells, 0.0).sum(axis) / known.sum(axis)


@dataclass(frozen=True)
class Replicates:
    """A statistic, and its values without a part each; arithmetic keeps what is shared paired.

    Attributes
    ----------
    point : float
        The statistic on the sample itself.
    images : ndarray
        The statistic without each photograph.
    draws : mapping
        Per group of draws, the statistic without each one of them.
    seen, clusters : int
        Images and photographs with a value.
    within : Range
        What the statistic can be.
    """

    point: float
    images: Values
    draws: Mapping[tuple, Values] = field(default_factory=dict)
    seen: int = 0
    clusters: int = 0
    within: Range = ANY

    def __add__(self, other: "Replicates") -> "Replicates":
        return combined(np.add, self, other, within=self.within.minus(other.within.negative))

    def __sub__(self, other: "Replicates") -> "Replicates":
        return combined(np.subtract, self, other, within=self.within.minus(other.within))

    def __truediv__(self, other: "Replicates") -> "Replicates":
        within = POSITIVE if min(self.within.low, other.within.low) >= 0 else ANY
        return combined(np.divide, self, other, within=within)

    def __neg__(self) -> "Replicates":
        return combined(np.negative, self, within=self.within.negative)


def combined(function: Callable[..., Any], *parts: Replicates, within: Range = ANY) -> Replicates:
    """Apply a function of arrays, replicate by replicate.

    Parameters
    ----------
    function : callable
        From as many arrays as there are parts to an array, element by element.
    parts : Replicates
        Statistics of the same images.
    within : Range
        What the result can be.
    """
    sizes = {key: len(values) for part in parts for key, values in part.draws.items()}
    return Replicates(
        float(function(*(np.array([part.point]) for part in parts))[0]),
        function(*(part.images for part in parts)),
        {
            key: function(*(part.draws.get(key, np.full(size, part.point)) for part in parts))
            for key, size in sizes.items()
        },
        min(part.seen for part in parts),
        min(part.clusters for part in parts),
        within,
    )


def distance(similarity: Replicates) -> Replicates:
    """1 minus a similarity."""
    return combined(lambda values: 1 - values, similarity, within=similarity.within.turned)


def mean_of(parts: Sequence[Replicates]) -> Replicates:
    """Mean of statistics of one kind, replicate by replicate."""
    return combined(lambda *values: np.mean(values, axis=0), *parts, within=parts[0].within)


class Resamples:
    """Images of a study, of which every photograph is left out in turn.

    The variances over images and over draws add up (Owen 2007: slightly too wide, as the residual
    counts twice).

    Parameters
    ----------
    image_ids : sequence of str
        The images.
    clusters : sequence of str
        Photograph of each.
    options : Statistics
        Confidence.
    """

    def __init__(self, image_ids: Sequence[str], clusters: Sequence[str], options: Statistics):
        self.image_ids = pd.Index(image_ids)
        self.options = options
        names, self._cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self.n_clusters = len(names)
        self._kept = (np.arange(self.n_clusters)[:, None] != self._cluster).astype(float)

    def paired(self, partners: np.ndarray) -> "Resamples":
        """Of pairs of images: leaves out every pair that a photograph is part of.

        `partners` has, per image, the position of the other one.
        """
        paired = copy(self)
        paired._kept = self._kept * self._kept[:, partners]
        return paired

    def mean(
        self,
        cells: Float[np.ndarray, "*units images"],
        key: tuple = (),
        *,
        joint: bool = False,
        within: Range = ANY,
    ) -> Replicates:
        """Mean over all cells that are defined.

        Parameters
        ----------
        cells : ndarray, (images,) or (units, draws, images)
            Values, NaN where undefined.
        key : tuple
            Names the draws: equal keys share draws.
        joint : bool
            Whether units share draws, as the steps of a cascade do; else each unit's
            draws are its own.
        within : Range
            What the values can be.
        """
        cells = cells.reshape(-1, cells.shape[-2] if cells.ndim > 1 else 1, cells.shape[-1])
        n_units, n_draws, _ = cells.shape
        known = np.isfinite(cells)
        values = np.where(known, cells, 0.0)
        total, count = values.sum((0, 1)), known.sum((0, 1)).astype(float)
        seen = count > 0
        names = [(*key, "all" if joint else unit) for unit in range(n_units)]
        groups: dict[tuple, Values] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            point = float(total.sum() / count.sum())
            images = (self._kept @ total) / (self._kept @ count)
            if n_draws > 1:
                for name in dict.fromkeys(names):
                    part = [unit for unit, other in enumerate(names) if other == name]
                    groups[name] = _without_draws(values, part) / _without_draws(known, part)
        clusters = len(np.unique(self._cluster[seen]))
        if clusters < 2:
            images = np.full_like(images, np.nan)
        return Replicates(point, images, groups, int(seen.sum()), clusters, within)

    def interval(
        self, value: Replicates, confidence: float | None = None, *, images_only: bool = False
    ) -> tuple[float, float]:
        """Interval of a statistic; NaN where fewer than two photographs have a value.

        Parameters
        ----------
        value : Replicates
            The statistic.
        confidence : float, optional
            Coverage, by default that of the options.
        images_only : bool
            Whether draws are taken as given.
        """
        if value.clusters < 2 or not np.isfinite([value.point, *value.images]).all():
            return math.nan, math.nan
        # Around the point: photographs without a value, which change nothing, add nothing.
        parts = [jackknife(value.images, value.point, value.clusters)]
        if not images_only:
            parts += [jackknife(group) for group in value.draws.values()]
        confidence = confidence or self.options.confidence
        return t_interval(value.point, parts, confidence=confidence, within=value.within)

    def ratio(self, numerator: Replicates, denominator: Replicates) -> tuple[float, float, float]:
        """Ratio and its interval; NaN where the denominator may be 0 (docs/protocol.md).

        That is judged without regard to the range, on whose scale no interval reaches 0.
        """
        low, _ = self.interval(replace(denominator, within=ANY))
        # One image has no interval.
        if not (low > 0 or (math.isnan(low) and denominator.point > 0)):
            return math.nan, math.nan, math.nan
        value = numerator / denominator
        return value.point, *self.interval(value)


def _without_draws(values: np.ndarray, part: Sequence[int]) -> Values:
    """Sum of values (units, draws, images) without each draw of some units in turn.

    The draws that stay stand for the one left out, so that units keep their weights.
    """
    sums = values[list(part)].sum((0, 2))
    more = len(sums) / (len(sums) - 1)
    return values.sum() - sums.sum() + more * (sums.sum() - sums)


def interval(
    values: np.ndarray,
    clusters: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
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
    within : Range
        What the values can be; the interval lies in it.

    Returns
    -------
    tuple of float
        Of a jackknife over photographs with Student's t (`t_interval`); NaN where there are fewer
        than two.
    """
    values = np.asarray(values, dtype=np.float64)
    names = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    unique, inverse = np.unique(names, return_inverse=True)
    if len(unique) < 2:
        return math.nan, math.nan
    sizes, sums = np.bincount(inverse), np.bincount(inverse, weights=values)
    without = (sums.sum() - sums) / (len(values) - sizes)
    part = jackknife(without, values.mean())
    return t_interval(float(values.mean()), [part], confidence=confidence, within=within)


def column_interval(
    part: pd.DataFrame, column: str, options: Statistics, within: Range
) -> tuple[float, float]:
    """Interval of a column's mean over images, undefined values left out.

    Parameters
    ----------
    part : DataFrame
        One row per image, with columns image_id and photo.
    column : str
        Name of the column.
    options : Statistics
        Confidence.
    within : Range
        What the values can be.
    """
    defined = part[part[column].notna()]
    return interval(
        defined[column].to_numpy(), cluster_names(defined), **options.model_dump(), within=within
    )


def degenerate_pairs(scores: pd.DataFrame) -> pd.Series:
    """Which comparisons involve a degenerate map, or have no score."""
    return scores["degenerate"].astype(bool) | scores["score"].isna()


def telling(scores: pd.DataFrame) -> pd.Series:
    """Scores without those of pairs that hold a degenerate map.

    Such a pair scores what its blank map makes of it: of SSIM 0 or 1. Scores of a map by itself
    stay.
    """
    blank = scores["degenerate"].astype(bool) & ~scores["metric"].isin(OF_ONE_MAP)
    return scores["score"].mask(blank)


def over_images(
    scores: pd.DataFrame, keys: Sequence[str], rows: pd.DataFrame, options: Statistics
) -> pd.DataFrame:
    """Mean over images, its interval and their spread, of each group of scores.

    Undefined scores, and those of pairs with a degenerate map, are left out of the mean and
    counted as degenerate; `mean_all` has the latter too. Intervals are clustered by photograph
    (docs/protocol.md).

    Parameters
    ----------
    scores : DataFrame
        With columns image_id, score, degenerate, inverted and the keys.
    keys : sequence of str
        Columns that name a group, `metric` among them.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.
    """
    columns = [*keys, "n_images", "mean", "ci_low", "ci_high", "std", "mean_all"]
    columns += ["n_degenerate", "n_inverted"]
    scores = scores.assign(every=scores["score"], score=telling(scores))
    merged = scores.merge(rows[["image_id", "photo"]], on="image_id")
    records = []
    for names, part in merged.groupby(list(keys), sort=False):
        name = dict(zip(keys, names, strict=True))
        low, high = column_interval(part, "score", options, range_of(str(name["metric"])))
        records.append(
            {
                **name,
                "n_images": int(part["score"].notna().sum()),
                "mean": part["score"].mean(),
                "ci_low": low,
                "ci_high": high,
                "std": part["score"].std(ddof=0),
                "mean_all": part["every"].mean(),
                "n_degenerate": int(degenerate_pairs(part).sum()),
                "n_inverted": int(part["inverted"].sum()),
            }
        )
    return pd.DataFrame(records, columns=columns)
