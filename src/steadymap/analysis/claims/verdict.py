"""Outcome of a claim: estimate, interval and verdict, from paired cluster bootstraps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import (
    ANY,
    FEWEST_PHOTOS,
    POSITIVE,
    Range,
    jackknife,
    percentiles,
    resample_counts,
    t_interval,
)

Draws = Float[np.ndarray, " draws"]


class MissingError(LookupError):
    """What a claim needs and the study lacks."""


@dataclass(frozen=True)
class Finding:
    """What a claim comes to here.

    The claim is judged on `judged` where that differs from the interval of the value: holds if it
    lies wholly above (or below) `bound`.
    """

    value: float
    interval: tuple[float, float]
    bound: float = 0.0
    above: bool = True
    judged: tuple[float, float] | None = None
    unit: str = ""
    comparable: bool = True
    notes: tuple[str, ...] = ()
    n_images: int | None = None

    @property
    def direction(self) -> str:
        """Verdict: holds, fails or inconclusive."""
        low, high = self.interval if self.judged is None else self.judged
        if low > self.bound:
            return "holds" if self.above else "fails"
        if high <= self.bound and self.above:
            return "fails"
        if high < self.bound and not self.above:
            return "holds"
        return "inconclusive"

    def size(self, paper: float) -> str:
        """Whether the paper's value lies inside the interval."""
        low, high = self.interval
        if not self.comparable or not np.isfinite([paper, low, high]).all():
            return "not comparable"
        return "inside" if low <= paper <= high else "outside"


class Resamples:
    """One set of resampled images, by photograph, that all statistics share: everything is paired.

    Row 0 of `weights` is the sample itself. With fewer than `FEWEST_PHOTOS` clusters the rows leave
    out one of them each (jackknife), for intervals by Student's t: resampling few says little.
    """

    def __init__(self, image_ids: Sequence[str], clusters: Sequence[str], options: Statistics):
        self.image_ids = pd.Index(image_ids)
        self.confidence = options.confidence
        names, self._cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        n = len(names)
        self.n_clusters = n
        self.jackknife = n < FEWEST_PHOTOS
        counts = resample_counts(n, n_bootstrap=options.n_bootstrap, seed=options.seed)
        self.weights = np.vstack([np.ones(len(image_ids)), counts[:, self._cluster]])
        self.seen: list[int] = []

    def mean(self, values: Float[np.ndarray, "images ..."]) -> Float[np.ndarray, "draws ..."]:
        """Mean over the images that have a value; no draws where fewer than two clusters do."""
        known = np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (self.weights @ np.where(known, values, 0.0)) / (self.weights @ known)
        complete = known.reshape(len(known), -1).any(axis=1)
        self.seen.append(int(complete.sum()))
        if len(np.unique(self._cluster[complete])) < 2:
            found[1:] = np.nan
        return found

    def interval(
        self, draws: Draws, confidence: float | None = None, *, within: Range = ANY
    ) -> tuple[float, float]:
        """Interval of a statistic from its draws; NaN where they are undefined."""
        confidence, others = confidence or self.confidence, draws[1:]
        if not self.jackknife:
            # A resample may hold no image that has the score; a few such don't move the ends.
            return percentiles(others, confidence, (1 - self.confidence) / 4)
        if len(others) < 2 or not np.isfinite(draws).all():
            return math.nan, math.nan
        part = jackknife(others)
        return t_interval(float(draws[0]), [part], confidence=confidence, within=within)

    def smallest(self, parts: Mapping[str, Draws], **options) -> Finding:
        """Smallest of several statistics.

        Its lower end is the smallest lower end, its upper end the smallest upper end with the error
        shared among the parts (Bonferroni): a 95 % interval of the true minimum, which the
        bootstrap of a minimum, being biased downwards, is not.
        """
        return self._extreme(parts, 1, **options)

    def largest(self, parts: Mapping[str, Draws], **options) -> Finding:
        """Largest of several statistics; the mirror image of `smallest`."""
        return self._extreme(parts, -1, **options)

    def _extreme(
        self, parts: Mapping[str, Draws], sign: int, *, within: Range = ANY, **options
    ) -> Finding:
        turned = within if sign > 0 else Range(-within.high, -within.low)
        strict = 1 - (1 - self.confidence) / len(parts)
        lows, highs, points = [], [], []
        verdicts: dict[str, list[str]] = {"holds": [], "fails": [], "inconclusive": []}
        for label, draws in parts.items():
            loose = self.interval(sign * draws, within=turned)
            lows.append(loose[0])
            highs.append(self.interval(sign * draws, strict, within=turned)[1])
            points.append(sign * float(draws[0]))
            own = (loose[0], loose[1]) if sign > 0 else (-loose[1], -loose[0])
            verdicts[Finding(points[-1], own, **options).direction].append(label)
        ends = sorted((sign * float(np.min(lows)), sign * float(np.min(highs))))
        extreme = f"{'smallest' if sign > 0 else 'largest'}: {list(parts)[int(np.argmin(points))]}"
        notes: tuple[str, ...] = (extreme,) if len(parts) > 1 else ()
        if sign > 0 and len(parts) > 1:
            counted = ", ".join(f"{len(found)} {name}" for name, found in verdicts.items())
            notes = (f"of {len(parts)}: {counted}", *notes)
            if 0 < len(verdicts["fails"]) <= 6:
                notes += (f"fails: {', '.join(verdicts['fails'])}",)
        return Finding(sign * min(points), (ends[0], ends[1]), notes=notes, **options)

    def finding(self, draws: Draws, *, within: Range = ANY, **options) -> Finding:
        """Outcome of a statistic given as replicates."""
        return Finding(float(draws[0]), self.interval(draws, within=within), **options)

    def formed(self, denominator: Draws) -> bool:
        """Whether a ratio may be formed: its denominator stands out from 0.

        Judged without regard to the range: on a scale that ends at 0 every interval lies above it.
        """
        low, _ = self.interval(denominator)
        return low > 0

    def ratio(
        self, numerator: Draws, denominator: Draws, *, of: Range = POSITIVE, **options
    ) -> Finding:
        """Ratio against 1, or the difference against 0 where none can be formed.

        `of` is the range of numerator and denominator.
        """
        if self.formed(denominator):
            within = POSITIVE if of.low >= 0 else ANY
            ratio = numerator / denominator
            return self.finding(ratio, **{"bound": 1.0, **options, "within": within})
        note = f"ratio not formed: its denominator, {denominator[0]:.3g}, does not stand out from 0"
        options = {key: value for key, value in options.items() if key != "bound"}
        notes = (note, *options.pop("notes", ()))
        difference = numerator - denominator
        options |= {"unit": "difference", "comparable": False, "within": of.minus(of)}
        return self.finding(difference, **options, notes=notes)
