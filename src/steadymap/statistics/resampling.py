"""Bootstrap over images and weight draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.draws import derived_seed
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import (
    ANY,
    FEWEST_PHOTOS,
    Range,
    cluster_names,
    jackknife,
    percentiles,
    resample_counts,
    t_interval,
)

Draws = Float[np.ndarray, " draws"]

# Resampling


def clusters_of(rows: pd.DataFrame, image_ids: pd.Index) -> list[str]:
    """Cluster of each scored image: its photograph, or the image itself."""
    missing = image_ids[~image_ids.isin(rows["image_id"])]
    if len(missing):
        raise ValueError(
            f"image {missing[0]!r} has scores and is not in the evaluation set; score and analyze "
            "the same study"
        )
    return cluster_names(rows.set_index("image_id").loc[image_ids].reset_index())


@dataclass(frozen=True)
class Replicates:
    """A statistic, and its values on resamples; arithmetic keeps what is shared paired.

    Attributes
    ----------
    point : float
    images : ndarray
        Images resampled (or left out), weight draws as they are.
    both : ndarray, optional
        Images and weight draws resampled; None for the jackknife.
    draws : mapping
        Jackknife: per group of weight draws, the statistic without each one of them.
    seen, clusters : int
        Images and photographs with a value.
    within : Range
        What the statistic can be.
    """

    point: float
    images: Draws
    both: Draws | None
    draws: Mapping[tuple, Draws] = field(default_factory=dict)
    seen: int = 0
    clusters: int = 0
    within: Range = ANY


def combined(function: Callable[..., Any], *parts: Replicates, within: Range = ANY) -> Replicates:
    """Apply a function of arrays, replicate by replicate; `within`: what it can be."""
    groups = dict.fromkeys(key for part in parts for key in part.draws)
    return Replicates(
        float(function(*(np.array([part.point]) for part in parts))[0]),
        function(*(part.images for part in parts)),
        None if parts[0].both is None else function(*(part.both for part in parts)),
        {
            key: function(
                *(
                    part.draws[key]
                    if key in part.draws
                    else np.full(
                        len(next(p.draws[key] for p in parts if key in p.draws)), part.point
                    )
                    for part in parts
                )
            )
            for key in groups
        },
        min(part.seen for part in parts),
        min(part.clusters for part in parts),
        within,
    )


def minus(a: Replicates, b: Replicates) -> Replicates:
    """Difference of two statistics, replicate by replicate."""
    return combined(np.subtract, a, b, within=a.within.minus(b.within))


class Resamples:
    """Resampled images, by photograph, that all statistics of a study share.

    With fewer than `FEWEST_PHOTOS` photographs a delete-one jackknife and Student's t (Welch's
    degrees of freedom) take the bootstrap's place, over photographs and over weight draws alike.
    In both, the two variances add up (Owen 2007: slightly too wide, as the residual counts twice).
    """

    def __init__(self, image_ids: Sequence[str], clusters: Sequence[str], options: Statistics):
        self.image_ids = pd.Index(image_ids)
        self.options = options
        names, cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        self._cluster = cluster
        self.n_clusters = n = len(names)
        self.jackknife = n < FEWEST_PHOTOS
        counts = resample_counts(n, n_bootstrap=options.n_bootstrap, seed=options.seed)
        self.weights = counts[:, cluster]
        self._drawn: dict[tuple, Float[np.ndarray, "resamples draws"]] = {}

    def _draw_weights(self, key: tuple, n_draws: int) -> Float[np.ndarray, "resamples draws"]:
        """How often each weight draw occurs in each resample.

        One draw fewer than there are is taken: the variance of a mean is then unbiased, where n of
        n draws would give (n - 1) / n of it, half of it with two draws (Rao & Wu 1988).
        """
        if (*key, n_draws) not in self._drawn:
            seed = derived_seed("bootstrap draws", self.options.seed, *key)
            rng = np.random.default_rng(seed)
            n = len(self.weights)
            counts = np.zeros((n, n_draws))
            np.add.at(
                counts,
                (np.arange(n)[:, None], rng.integers(n_draws, size=(n, n_draws - 1))),
                1.0,
            )
            self._drawn[*key, n_draws] = counts
        return self._drawn[*key, n_draws]

    def mean(
        self,
        cells: Float[np.ndarray, "units draws images"],
        key: tuple = (),
        *,
        joint: bool = False,
        within: Range = ANY,
    ) -> Replicates:
        """Mean over all cells that are defined.

        Parameters
        ----------
        cells : ndarray
            S per unit, weight draw and image, NaN where undefined.
        key : tuple
            Names the weights: equal keys share resampled draws.
        joint : bool
            Whether units share a draw's weights, as the steps of a cascade do; else each unit's
            draws are its own.
        within : Range
            What S can be.
        """
        n_units, n_draws, _ = cells.shape
        known = np.isfinite(cells)
        values = np.where(known, cells, 0.0)
        total, count = values.sum((0, 1)), known.sum((0, 1)).astype(float)
        seen = count > 0
        drawn = {(*key, "all" if joint else unit): unit for unit in range(n_units)}
        with np.errstate(invalid="ignore", divide="ignore"):
            point = float(total.sum() / count.sum())
            images = (self.weights @ total) / (self.weights @ count)
            both: Draws | None = None
            groups: dict[tuple, Draws] = {}
            if self.jackknife and n_draws > 1:
                for name, unit in drawn.items():
                    part = slice(None) if joint else slice(unit, unit + 1)
                    sums, counts = values[part].sum((0, 2)), known[part].sum((0, 2))
                    # The draws that stay stand for the one left out, so that units keep their
                    # weights.
                    more = n_draws / (n_draws - 1)
                    top = values.sum() - sums.sum() + more * (sums.sum() - sums)
                    bottom = known.sum() - counts.sum() + more * (counts.sum() - counts)
                    groups[name] = top / bottom
            elif not self.jackknife and n_draws > 1:
                top, bottom = np.zeros(len(images)), np.zeros(len(images))
                for unit in range(n_units):
                    counts = self._draw_weights((*key, "all" if joint else unit), n_draws)
                    top = top + (counts * (self.weights @ values[unit].T)).sum(1)
                    bottom = bottom + (counts * (self.weights @ known[unit].T)).sum(1)
                both = top / bottom
            elif not self.jackknife:
                both = images
        clusters = len(np.unique(self._cluster[seen]))
        if clusters < 2:
            images = np.full_like(images, np.nan)
            both = None if both is None else images
        return Replicates(point, images, both, groups, int(seen.sum()), clusters, within)

    def interval(
        self, found: Replicates, confidence: float | None = None, *, images_only: bool = False
    ) -> tuple[float, float]:
        """Interval of a statistic; NaN where fewer than two photographs have a value."""
        confidence = confidence or self.options.confidence
        if not self.jackknife:
            values = found.images if images_only or found.both is None else found.both
            # A resample may hold no image that has the score; a few such don't move the ends.
            return percentiles(values, confidence, (1 - confidence) / 4)
        n = found.clusters
        if n < 2 or not np.isfinite([found.point, *found.images]).all():
            return math.nan, math.nan
        # Around the point: photographs without a value, which change nothing, add nothing.
        parts = [jackknife(found.images, found.point, n)]
        if not images_only:
            parts += [jackknife(group) for group in found.draws.values()]
        return t_interval(found.point, parts, confidence=confidence, within=found.within)
