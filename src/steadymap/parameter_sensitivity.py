"""Statistics of the extended IPR test: do explanations move when the model's parameters do.

IPR: independent parameter randomization. After Sriram and Conati, *Evaluating the overall
sensitivity of saliency-based explanation methods*, 2023, arXiv:2306.13682, cited by equation and
section, with the intervals, floor and controls that the paper leaves out
(docs/protocol.md).

All functions start from one frame of scores, one row per comparison of two maps:

=============================  ==================================================================
columns                        content
=============================  ==================================================================
model, method, order           names; order as in `steadymap.randomization.ORDERS`
unit, unit_index               unit randomised (in cascades, the one added); "" and -1 without one
draw                           draw of the weights; repetition of `floor` and `mismatch`
image_id, kind                 image, and one of `KINDS`
metric, convention, score      similarity of the two maps, in [-1, 1]; NaN where undefined
degenerate                     whether one of them is (`steadymap.similarity.degenerate`)
inverted                       whether the pair is (`steadymap.similarity.inverted`)
randomizer, preset (optional)  how and what was randomised; given as arguments where absent
=============================  ==================================================================

==========  ======================================================================================
kind        maps compared
==========  ======================================================================================
`same`      trained and randomised model, the same draws of the method in both
`fresh`     trained and randomised model, fresh draws of the method for the latter
`floor`     the trained model twice, with fresh draws
`mismatch`  the trained model's maps of two different images
==========  ======================================================================================

Rows `floor` and `mismatch` hold for a model and method whatever was randomised: their order,
randomizer, preset and unit are not looked at. Deterministic methods have no rows `fresh` and
`floor`: their floor is 0.

S = 1 - similarity lies in [0, 2], as SSIM can be negative (the paper has SSIM in [0, 1]); it is
never clipped. Undefined scores are left out of means and counted.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from steadymap.draws import derived_seed
from steadymap.intervals import (
    ANY,
    FEWEST_PHOTOS,
    SIMILARITY_RANGE,
    Range,
    cluster_names,
    jackknife,
    percentiles,
    range_of,
    resample_counts,
    t_interval,
)
from steadymap.params import Statistics

KINDS = ("same", "fresh", "floor", "mismatch")
SIMILARITIES = ("ssim", "spearman", "pearson", "hog_pearson")
# Equations 3, 5 and 7: 1 - .99. The paper derives it for SSIM alone.
THRESHOLD = 0.01
# "a bootstrapped confidence interval of 90%" (section 6), over images alone.
PAPER_CONFIDENCE = 0.9
# Fewer trained architectures than the paper's five say nothing about a correlation.
FEWEST_ARCHITECTURES = 5

SCORE_COLUMNS = (
    *("model", "method", "order", "unit", "unit_index", "draw", "image_id", "kind"),
    *("metric", "convention", "score", "degenerate", "inverted"),
)
IPR_COLUMNS = (
    *("model", "method", "metric", "convention", "order", "randomizer", "preset"),
    *("n_images", "n_units", "n_draws", "S_same", "same_low", "same_high"),
    *("same_low90", "same_high90", "S_fresh", "floor", "excess", "excess_low", "excess_high"),
    *("S_rel", "share_sensitive", "draw_sd", "threshold", "passes", "n_degenerate"),
    "n_inverted",
)
UNIT_COLUMNS = (
    *("model", "method", "metric", "convention", "order", "randomizer", "unit", "unit_index"),
    *("n_images", "n_draws", "S_same", "low", "high", "S_fresh", "draw_sd"),
    *("accuracy", "kept_predictions", "target_change", "n_degenerate", "n_inverted"),
)
CORRELATION_COLUMNS = (
    *("method", "other", "metric", "convention", "n_architectures"),
    *("spearman", "spearman_p_exact", "spearman_p_holm", "spearman_p_t"),
    *("pearson", "pearson_p_exact", "pearson_p_holm", "pearson_p_t"),
    *("paper_spearman", "paper_pearson", "reason"),
)
FUNCTION_COLUMNS = (
    *("model", "method", "metric", "convention", "order", "randomizer", "n_units"),
    *("rho_target_drop", "p_target_drop", "rho_lost_predictions", "p_lost_predictions"),
)
PLANE_COLUMNS = (
    *("method", "sweep", "hyperparameter", "model", "metric", "convention"),
    *("n_images", "n_variants", "x", "x_low", "x_high", "y", "y_low", "y_high"),
    *("difference", "difference_low", "difference_high", "share_below", "filled", "ranked"),
    *("rank", "reason", "x_inverted", "y_inverted", "verdict"),
)
# What the maps react to more, by both measures of the plane; or why that is undecided.
PARAMETERS, HYPERPARAMETER, UNDECIDED = "parameters", "hyperparameter", "undecided"
DISAGREE = "undecided: SSIM and rank correlation disagree"
_PLANE_METRICS = {"ssim": "common", "spearman": "signed"}
# As the table of the SAM paper's claims has them.
CLAIM_COLUMNS = (
    *("claim", "name", "section", "statement", "recipe", "paper_value", "value"),
    *("ci_low", "ci_high", "unit", "n_images", "direction", "size", "reason"),
)
NOT_MEASURABLE = "not measurable here"

# In the order of Tables 2 and 3.
PAPER_METHODS = (
    "guided_backprop",
    "guided_gradcam",
    "deeplift",
    "input_x_gradient",
    "integrated_gradients",
    "gradient",
    "lime",
)
PAPER_ARCHITECTURES = ("inception_v3", "vgg16", "mobilenet_v2", "resnet18", "resnet50")
# Upper triangles of Tables 2 and 3, row by row.
_TABLE_2 = (
    *(0.9, 0.8, 0.3, 0.3, -0.3, -0.4),
    *(0.9, 0.4, 0.4, -0.6, -0.2),
    *(0.7, 0.7, -0.7, -0.1),
    *(1.0, -0.8, 0.5),
    *(-0.8, 0.5),
    -0.6,
)
_TABLE_3 = (
    *(0.9843, 0.4187, 0.1809, 0.3962, -0.2681, -0.3885),
    *(0.5138, 0.3082, 0.4971, -0.4129, -0.3004),
    *(0.949, 0.9847, -0.493, -0.3175),
    *(0.9668, -0.6291, -0.048),
    *(-0.591, -0.1874),
    -0.6071,
)
PAIRS = tuple(itertools.combinations(PAPER_METHODS, 2))
PAPER_SPEARMAN = dict(zip(PAIRS, _TABLE_2, strict=True))
PAPER_PEARSON = dict(zip(PAIRS, _TABLE_3, strict=True))

_BANDS = ((0.99, "excellent"), (0.95, "good"), (0.88, "fair"), (0.5, "poor"))
_MOVED = ("same", "fresh")
# Of S by SSIM; means and standard deviations of it over networks lie in it too.
_MOVED_RANGE = SIMILARITY_RANGE.turned
_KEYS = ["model", "method", "metric", "convention", "order", "randomizer", "preset"]
# Permutations of 9 take a second; of 10, minutes.
_MOST_PERMUTED = 9

Draws = Float[np.ndarray, " draws"]


def perceived_similarity(ssim: float) -> str:
    """Band of Table 1: excellent >= .99, good >= .95, fair >= .88, poor >= .5, else bad.

    The bands come from people judging compressed photographs (Wang et al. 2004), not heat maps.
    `undefined` for NaN.
    """
    if math.isnan(ssim):
        return "undefined"
    return next((name for bound, name in _BANDS if ssim >= bound), "bad")


# Resampling


def _clusters(rows: pd.DataFrame, image_ids: pd.Index) -> list[str]:
    missing = image_ids[~image_ids.isin(rows["image_id"])]
    if len(missing):
        raise ValueError(
            f"image {missing[0]!r} has scores and is not in the evaluation set; score and analyse "
            "the same study"
        )
    return cluster_names(rows.set_index("image_id").loc[image_ids].reset_index())


@dataclass(frozen=True)
class _Replicates:
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


def _combined(
    function: Callable[..., Any], *parts: _Replicates, within: Range = ANY
) -> _Replicates:
    """Apply a function of arrays, replicate by replicate; `within`: what it can be."""
    groups = dict.fromkeys(key for part in parts for key in part.draws)
    return _Replicates(
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


def _minus(a: _Replicates, b: _Replicates) -> _Replicates:
    return _combined(np.subtract, a, b, within=a.within.minus(b.within))


class _Resamples:
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
    ) -> _Replicates:
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
        return _Replicates(point, images, both, groups, int(seen.sum()), clusters, within)

    def interval(
        self, found: _Replicates, confidence: float | None = None, *, images_only: bool = False
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


# Scores


def _checked(scores: pd.DataFrame, randomizer: str, preset: str) -> pd.DataFrame:
    """The frame with all columns, similarities alone."""
    missing = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if missing:
        raise ValueError(f"scores lack column {missing[0]!r}; give {', '.join(SCORE_COLUMNS)}")
    unknown = sorted(set(scores["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(f"kind {unknown[0]!r} is unknown; choose one of {', '.join(KINDS)}")
    # A metric of one's own is a similarity too.
    found = scores[scores["metric"].isin(SIMILARITIES) | (scores["convention"] == "own")]
    # An empty name comes back from a CSV file as NaN.
    found = found.assign(unit=found["unit"].fillna("").astype(str))
    for name, value in (("randomizer", randomizer), ("preset", preset)):
        if name not in found.columns:
            found = found.assign(**{name: value})
    double = found["kind"].isin(_MOVED) & found.duplicated(
        [*_KEYS, "kind", "unit", "draw", "image_id"]
    )
    if double.any():
        row = found[double].iloc[0]
        raise ValueError(
            f"{row['model']} {row['method']} {row['metric']} {row['convention']}: unit "
            f"{row['unit']!r}, draw {row['draw']}, image {row['image_id']!r} is scored twice as "
            f"{row['kind']!r}; give each comparison once"
        )
    return found


def _grid(part: pd.DataFrame, image_ids: pd.Index) -> Float[np.ndarray, "units draws images"]:
    """S of one kind, units in order and draws sorted; NaN where there is none."""
    units = part.drop_duplicates("unit").sort_values("unit_index", kind="stable")["unit"]
    draws = np.sort(part["draw"].unique())
    found = np.full((len(units), len(draws), len(image_ids)), np.nan)
    found[
        pd.Index(units).get_indexer(pd.Index(part["unit"])),
        pd.Index(draws).get_indexer(pd.Index(part["draw"])),
        image_ids.get_indexer(pd.Index(part["image_id"])),
    ] = 1 - part["score"].to_numpy(np.float64)
    found[np.isinf(found)] = np.nan
    return found


def _unit_names(part: pd.DataFrame) -> list[str]:
    ordered = part.drop_duplicates("unit").sort_values("unit_index", kind="stable")
    return ordered["unit"].to_list()


class _Group:
    """Scores of one model, method, similarity, order and randomiser."""

    def __init__(
        self,
        part: pd.DataFrame,
        resamples: _Resamples,
        stochastic: bool,
        shared: Mapping[str, pd.DataFrame] | None = None,
    ):
        self.resamples = resamples
        self.stochastic = stochastic
        first = part.iloc[0]
        # Methods share a model's weights, hence their draws.
        self.key = tuple(str(first[name]) for name in ("model", "order", "randomizer", "preset"))
        self.joint = first["order"] != "independent"
        self.within = range_of(str(first["metric"])).turned
        moved = part[part["kind"].isin(_MOVED)]
        self.kinds = {str(kind): rows for kind, rows in moved.groupby("kind", sort=False)}
        self.kinds |= shared or {}
        self.cells = {kind: _grid(rows, resamples.image_ids) for kind, rows in self.kinds.items()}
        if "same" not in self.kinds:
            names = ", ".join(str(first[name]) for name in _KEYS[:5])
            raise ValueError(
                f"{names}: scores have no kind 'same'; compare the maps of the trained and the "
                "randomised model"
            )

    @property
    def units(self) -> list[str]:
        return _unit_names(self.kinds["same"])

    def _mean(self, kind: str) -> _Replicates | None:
        if kind not in self.cells:
            return None
        if kind in ("same", "fresh"):
            return self.resamples.mean(
                self.cells[kind], self.key, joint=self.joint, within=self.within
            )
        # The method's own draws belong to an image each: resampling images covers them.
        with np.errstate(invalid="ignore", divide="ignore"):
            known = np.isfinite(self.cells[kind])
            total = np.where(known, self.cells[kind], 0.0).sum((0, 1))
            means = (total / known.sum((0, 1)))[None, None]
            return self.resamples.mean(means, within=self.within)

    @cached_property
    def same(self) -> _Replicates:
        found = self._mean("same")
        assert found is not None
        return found

    @cached_property
    def fresh(self) -> _Replicates | None:
        return self._mean("fresh") if self.stochastic else self.same

    @cached_property
    def floor(self) -> _Replicates | None:
        return self._mean("floor") if self.stochastic else _minus(self.same, self.same)

    @cached_property
    def mismatch(self) -> _Replicates | None:
        return self._mean("mismatch")

    @cached_property
    def excess(self) -> _Replicates | None:
        if not self.stochastic:
            return self.same
        if self.fresh is None or self.floor is None:
            return None
        return _minus(self.fresh, self.floor)

    @property
    def anchored(self) -> float:
        """S_rel = (S_fresh - floor) / (S_mismatch - floor); NaN where that can't be formed."""
        if self.mismatch is None or self.excess is None or self.floor is None:
            return math.nan
        reach = _minus(self.mismatch, self.floor)
        low, _ = self.resamples.interval(reach)
        # Definitions 3.6: no ratio over what may be 0. One image has no interval.
        if not (low > 0 or (math.isnan(low) and reach.point > 0)):
            return math.nan
        return self.excess.point / reach.point

    def verdict(self, threshold: float) -> str:
        if math.isnan(threshold):
            return ""
        parts = [self.same, *([self.excess] if self.stochastic and self.excess else [])]
        ends = [self.resamples.interval(part) for part in parts]
        if any(high < threshold for _, high in ends):
            # Maps that turned over did react, however alike SSIM calls them.
            return "inconclusive" if self.n_inverted else "no"
        complete = not self.stochastic or self.excess is not None
        return "yes" if complete and all(low >= threshold for low, _ in ends) else "inconclusive"

    def sensitive(
        self, threshold: float, critical: Collection[str] | None
    ) -> Float[np.ndarray, "draws images"]:
        """Whether every critical unit moved the map: 1, 0, or NaN where undefined."""
        return _all_above(self.cells["same"][_chosen(self.units, critical)], threshold)

    @property
    def draw_sd(self) -> float:
        return _draw_sd(self.cells["same"])

    @property
    def n_degenerate(self) -> int:
        rows = self.kinds["same"]
        return int((rows["degenerate"].astype(bool) | rows["score"].isna()).sum())

    @property
    def n_inverted(self) -> int:
        return int(self.kinds["same"]["inverted"].astype(bool).sum())


def _all_above(
    cells: Float[np.ndarray, "units draws images"], threshold: float
) -> Float[np.ndarray, "draws images"]:
    """Definition 2; a unit below settles it, whatever is undefined elsewhere."""
    # As the paper's equation 1: SSIM <= .99, which 1 - SSIM >= .01 in floats need not be.
    above = (1 - cells <= 1 - threshold) | np.isnan(cells)
    undefined = above.all(0) & np.isnan(cells).any(0)
    return np.where(undefined, np.nan, above.all(0).astype(float))


def _draw_sd(cells: Float[np.ndarray, "units draws images"]) -> float:
    """Standard deviation (ddof 1) over weight draws of the mean over units and images."""
    known = np.isfinite(cells)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(known, cells, 0.0).sum((0, 2)) / known.sum((0, 2))
    means = means[np.isfinite(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else math.nan


class _Study:
    """Scores in groups that share their resamples."""

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        *,
        randomizer: str = "init",
        preset: str = "paper",
        stochastic: Collection[str] | None = None,
    ):
        self.scores = _checked(scores, randomizer, preset)
        self.rows = rows
        self.options = options
        drawn = self.scores["kind"].isin(["fresh", "floor"])
        found = set(self.scores.loc[drawn, "method"]) if stochastic is None else set(stochastic)
        self.stochastic = found
        self._resamples: dict[tuple[str, ...], _Resamples] = {}

    def resamples(self, image_ids: Sequence[str]) -> _Resamples:
        """Resamples of these images; those of the same images are the same."""
        key = tuple(sorted(image_ids))
        if key not in self._resamples:
            index = pd.Index(key)
            self._resamples[key] = _Resamples(key, _clusters(self.rows, index), self.options)
        return self._resamples[key]

    @cached_property
    def _shared(self) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
        """Rows `floor` and `mismatch` per model, method and similarity."""
        rows = self.scores[~self.scores["kind"].isin(_MOVED)]
        rows = rows.drop_duplicates([*_KEYS[:4], "kind", "draw", "image_id"])
        found: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
        for names, part in rows.groupby([*_KEYS[:4], "kind"], sort=False):
            one_unit = part.assign(unit="", unit_index=-1)
            found.setdefault(tuple(map(str, names[:4])), {})[str(names[4])] = one_unit
        return found

    def groups(
        self, resamples: _Resamples | None = None, part: pd.DataFrame | None = None
    ) -> Iterator[tuple[dict[str, str], _Group]]:
        """Groups with their names; each on its own images unless resamples are given."""
        frame = self.scores if part is None else part
        frame = frame[frame["kind"].isin(_MOVED)]
        for names, rows in frame.groupby(_KEYS, sort=False):
            labels = dict(zip(_KEYS, map(str, names), strict=True))
            own = self.resamples(rows["image_id"].unique()) if resamples is None else resamples
            shared = {
                kind: found[found["image_id"].isin(own.image_ids)]
                for kind, found in self._shared.get(tuple(map(str, names[:4])), {}).items()
            }
            stochastic = labels["method"] in self.stochastic
            yield labels, _Group(rows, own, stochastic, shared)


def by_image(
    scores: pd.DataFrame,
    *,
    threshold: float = THRESHOLD,
    critical_units: Mapping[str, Collection[str]] | None = None,
    randomizer: str = "init",
    preset: str = "paper",
) -> pd.DataFrame:
    """Each image's S^i (equation 4), and whether the method is sensitive for it (definition 2).

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    threshold : float
        Of S, for SSIM (equation 3).
    critical_units : mapping of str to collection of str, optional
        Per model, the units that must move the map, L_c; all of them by default.
    randomizer, preset : str
        Names where the frame has none.

    Returns
    -------
    DataFrame
        model, method, metric, convention, order, randomizer, preset, image_id, S (mean over units
        and draws) and sensitive, the share of draws in which every critical unit's SSIM is <= .99
        (equation 1; definition 1 has < .99), NaN for other similarities.
    """
    frame = _checked(scores, randomizer, preset)
    found = []
    for names, rows in frame[frame["kind"] == "same"].groupby(_KEYS, sort=False):
        labels = dict(zip(_KEYS, map(str, names), strict=True))
        image_ids = pd.Index(rows["image_id"].unique())
        cells = _grid(rows, image_ids)
        chosen = _chosen(_unit_names(rows), (critical_units or {}).get(labels["model"]))
        known = np.isfinite(cells)
        flags = _all_above(cells[chosen], threshold)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, cells, 0.0).sum((0, 1)) / known.sum((0, 1))
            share = np.nansum(flags, axis=0) / np.isfinite(flags).sum(0)
        found.append(
            pd.DataFrame(
                {
                    **labels,
                    "image_id": image_ids,
                    "S": mean,
                    "sensitive": share if labels["metric"] == "ssim" else np.nan,
                }
            )
        )
    columns = [*_KEYS, "image_id", "S", "sensitive"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def _chosen(units: Sequence[str], critical: Collection[str] | None) -> Bool[np.ndarray, " units"]:
    if critical is None:
        return np.ones(len(units), dtype=bool)
    missing = [name for name in critical if name not in units]
    if missing:
        raise ValueError(
            f"critical unit {missing[0]!r} was not randomised; choose among {', '.join(units)}"
        )
    return np.array([name in critical for name in units])


def ipr(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    thresholds: Mapping[str, float] | None = None,
    critical_units: Mapping[str, Collection[str]] | None = None,
    stochastic: Collection[str] | None = None,
    randomizer: str = "init",
    preset: str = "paper",
) -> pd.DataFrame:
    """Sensitivity of each method to each model's parameters: `tables/ipr.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence, resamples and seed.
    thresholds : mapping of str to float, optional
        Per similarity, the least S that passes; .01 for ssim (equation 7) and none for others, for
        which the paper has no threshold.
    critical_units : mapping of str to collection of str, optional
        Per model, the units of definition 2; all by default.
    stochastic : collection of str, optional
        Methods that draw random numbers at their settings; by default those with rows `fresh` or
        `floor`. One of them that lacks either can't pass.
    randomizer, preset : str
        Names where the frame has none.

    Returns
    -------
    DataFrame
        Columns `IPR_COLUMNS`. S_same is the paper's S^I (equation 6) as a mean over units, images
        and draws, with the interval over images and draws at the confidence of the options, and
        over images alone at 90 % (`same_low90`, `same_high90`: the paper's). excess = S_fresh -
        floor. S_rel = excess / (S_mismatch - floor) (docs/protocol.md), NaN where the denominator's
        interval reaches 0. share_sensitive: share of images and draws that meet definition 2.
        draw_sd: standard deviation over weight draws; with one draw it is NaN, and no interval
        knows of other draws. passes: `yes`, `no` or `inconclusive` (docs/protocol.md).
        n_degenerate counts undefined scores and degenerate maps, n_inverted the pairs that are
        inverted: where there are any, `passes` is not `no`.

    Raises
    ------
    ValueError
        Where columns, kinds or rows are not as described.
    """
    limits = {"ssim": THRESHOLD} if thresholds is None else dict(thresholds)
    study = _Study(
        scores, rows, options, randomizer=randomizer, preset=preset, stochastic=stochastic
    )
    found = []
    for labels, group in study.groups():
        resamples = group.resamples
        low, high = resamples.interval(group.same)
        low90, high90 = resamples.interval(group.same, PAPER_CONFIDENCE, images_only=True)
        excess = (math.nan, math.nan) if group.excess is None else resamples.interval(group.excess)
        threshold = limits.get(labels["metric"], math.nan)
        critical = (critical_units or {}).get(labels["model"])
        flags = group.sensitive(threshold, critical)
        found.append(
            {
                **labels,
                "n_images": group.same.seen,
                "n_units": group.cells["same"].shape[0],
                "n_draws": group.cells["same"].shape[1],
                "S_same": group.same.point,
                "same_low": low,
                "same_high": high,
                "same_low90": low90,
                "same_high90": high90,
                "S_fresh": _point(group.fresh),
                "floor": _point(group.floor),
                "excess": _point(group.excess),
                "excess_low": excess[0],
                "excess_high": excess[1],
                "S_rel": group.anchored,
                "share_sensitive": math.nan
                if math.isnan(threshold) or np.isnan(flags).all()
                else float(np.nanmean(flags)),
                "draw_sd": group.draw_sd,
                "threshold": threshold,
                "passes": group.verdict(threshold),
                "n_degenerate": group.n_degenerate,
                "n_inverted": group.n_inverted,
            }
        )
    return pd.DataFrame(found, columns=list(IPR_COLUMNS))


def _point(found: _Replicates | None) -> float:
    return math.nan if found is None else found.point


def ipr_units(
    scores: pd.DataFrame,
    changes: pd.DataFrame | None,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    stochastic: Collection[str] | None = None,
    randomizer: str = "init",
    preset: str = "paper",
) -> pd.DataFrame:
    """Sensitivity to each unit, beside what randomising it did: `tables/ipr_units.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    changes : DataFrame or None
        One row per model, order, unit and draw (and randomizer, where the frame has it) with
        accuracy, kept_predictions and target_change, as
        `steadymap.randomization.functional_change` gives them.
    rows, options, stochastic, randomizer, preset
        As for `ipr`.

    Returns
    -------
    DataFrame
        Columns `UNIT_COLUMNS`, units from the input to the logits. S_same is S_{l_j} (equation 2)
        as a mean over images and draws; low and high its interval over both, draw_sd its standard
        deviation over draws. accuracy, kept_predictions and target_change are means over draws.
    """
    study = _Study(
        scores, rows, options, randomizer=randomizer, preset=preset, stochastic=stochastic
    )
    measures = ["accuracy", "kept_predictions", "target_change"]
    function: dict[tuple[str, ...], Mapping[str, float]] = {}
    if changes is not None and len(changes):
        named = changes if "randomizer" in changes else changes.assign(randomizer=randomizer)
        means = named.groupby(["model", "order", "randomizer", "unit"], sort=False)[measures].mean()
        function = {tuple(map(str, key)): row for key, row in means.to_dict("index").items()}
    found = []
    moved = study.scores[study.scores["kind"].isin(["same", "fresh"])]
    for names, part in moved.groupby([*_KEYS, "unit", "unit_index"], sort=False):
        labels = dict(zip([*_KEYS, "unit"], map(str, names[:-1]), strict=True))
        own = study.resamples(part["image_id"].unique())
        group = _Group(part, own, labels["method"] in study.stochastic)
        low, high = own.interval(group.same)
        place = (labels["model"], labels["order"], labels["randomizer"], labels["unit"])
        del labels["preset"]
        found.append(
            {
                **labels,
                "unit_index": names[-1],
                "n_images": group.same.seen,
                "n_draws": group.cells["same"].shape[1],
                "S_same": group.same.point,
                "low": low,
                "high": high,
                "S_fresh": _point(group.fresh),
                "draw_sd": group.draw_sd,
                **{name: function.get(place, {}).get(name, math.nan) for name in measures},
                "n_degenerate": group.n_degenerate,
                "n_inverted": group.n_inverted,
            }
        )
    table = pd.DataFrame(found, columns=list(UNIT_COLUMNS))
    groups = ["model", "method", "metric", "convention", "order", "randomizer"]
    first = table.groupby(groups, sort=False).ngroup()
    return (
        table.assign(_group=first)
        .sort_values(["_group", "unit_index"], kind="stable", ignore_index=True)
        .drop(columns="_group")
    )


def function_correlation(units: pd.DataFrame) -> pd.DataFrame:
    """Whether maps move as much as the model did: S against function change over units.

    Parameters
    ----------
    units : DataFrame
        As `ipr_units` makes it.

    Returns
    -------
    DataFrame
        Columns `FUNCTION_COLUMNS` (docs/protocol.md): Spearman's correlation over units of S_same
        with the drop of the target's probability and with the share of predictions lost, p by the
        t-approximation. NaN with fewer than three units or where either is constant.
    """
    keys = list(FUNCTION_COLUMNS[:6])
    found = []
    for names, part in units.groupby(keys, sort=False):
        drop = -part["target_change"].to_numpy(np.float64)
        lost = 1 - part["kept_predictions"].to_numpy(np.float64)
        moved = part["S_same"].to_numpy(np.float64)
        row: dict[str, Any] = dict(zip(keys, names, strict=True))
        row["n_units"] = int((np.isfinite(drop) & np.isfinite(moved)).sum())
        for label, change in (("target_drop", drop), ("lost_predictions", lost)):
            row[f"rho_{label}"], row[f"p_{label}"] = _rank_correlation(moved, change)
        found.append(row)
    return pd.DataFrame(found, columns=list(FUNCTION_COLUMNS))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    rho, p = stats.spearmanr(a, b)
    return float(rho), float(p)


# Correlations over architectures


def _ranks(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(values, axis=-1)


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where a side is constant."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    constant = norm <= 1e-300
    return np.where(constant, np.nan, (a * b).sum(-1) / np.where(constant, 1.0, norm))


def exact_p(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, ranked: bool = True
) -> float:
    """Exact two-sided permutation p of a correlation.

    Parameters
    ----------
    a, b : sequence of float
        Up to nine pairs of values.
    ranked : bool
        Spearman's correlation (else Pearson's).

    Returns
    -------
    float
        Share of permutations with a correlation at least as large in magnitude; NaN where a side is
        constant, or with more than nine values.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if ranked:
        first, second = _ranks(first), _ranks(second)
    observed = float(_correlate(first, second))
    if math.isnan(observed) or len(first) > _MOST_PERMUTED:
        return math.nan
    permuted = np.array(list(itertools.permutations(second)))
    found = _correlate(first, permuted)
    return float((np.abs(found) >= abs(observed) - 1e-9).mean())


def _t_p(rho: float, n: int) -> float:
    """Two-sided p of a correlation by Student's t with n - 2 degrees of freedom."""
    if math.isnan(rho):
        return math.nan
    if abs(rho) >= 1 - 1e-12:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * math.sqrt((n - 2) / (1 - rho**2)), n - 2))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted after Holm (1979); NaN stays and doesn't count."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1) if len(order) else []
    return adjusted.tolist()


def _chosen_models(architectures: Mapping[str, str]) -> dict[str, str]:
    """Architecture to its first model."""
    found: dict[str, str] = {}
    for model, architecture in architectures.items():
        found.setdefault(architecture, model)
    return found


def correlations(
    table: pd.DataFrame,
    architectures: Mapping[str, str],
    *,
    metric: str = "ssim",
    convention: str = "common",
    order: str = "independent",
) -> pd.DataFrame:
    """Correlations of S^I between methods over architectures: Tables 2 and 3.

    Parameters
    ----------
    table : DataFrame
        As `ipr` makes it, of one randomiser and preset.
    architectures : mapping of str to str
        From *trained* models to their architectures; each architecture's first model counts.
        Networks with random weights are no results: leave them out.
    metric, convention, order : str
        Which rows of the table.

    Returns
    -------
    DataFrame
        Columns `CORRELATION_COLUMNS`, always the paper's 21 pairs. p: by all permutations, that
        adjusted after Holm over the pairs measured, and by the t-approximation, which is what the
        paper's stars rest on (its rho = .9 (*) from five networks has an exact p of .083). NaN
        with the reason where fewer than `FEWEST_ARCHITECTURES` architectures have both methods.
    """
    part = table[
        (table["metric"] == metric)
        & (table["convention"] == convention)
        & (table["order"] == order)
    ]
    if part.duplicated(["model", "method"]).any():
        raise ValueError(
            "table holds a model and method more than once; give one randomizer and preset"
        )
    values = {(row.model, row.method): float(row.S_same) for row in part.itertuples()}
    models = _chosen_models(architectures)
    found = []
    for method, other in PAIRS:
        pairs = [
            (values[model, method], values[model, other])
            for model in models.values()
            if math.isfinite(values.get((model, method), math.nan))
            and math.isfinite(values.get((model, other), math.nan))
        ]
        n = len(pairs)
        row: dict[str, Any] = {
            "method": method,
            "other": other,
            "metric": metric,
            "convention": convention,
            "n_architectures": n,
            "paper_spearman": PAPER_SPEARMAN[method, other],
            "paper_pearson": PAPER_PEARSON[method, other],
            "reason": "",
        }
        if n < FEWEST_ARCHITECTURES:
            row["reason"] = _too_few(n)
        else:
            a, b = np.array(pairs).T
            for name, ranked in (("spearman", True), ("pearson", False)):
                rho = float(_correlate(_ranks(a), _ranks(b)) if ranked else _correlate(a, b))
                row[name] = rho
                row[f"{name}_p_exact"] = exact_p(a, b, ranked=ranked)
                row[f"{name}_p_t"] = _t_p(rho, n)
            if math.isnan(row["spearman"]):
                row["reason"] = "S is the same on all architectures"
        found.append(row)
    result = pd.DataFrame(found, columns=list(CORRELATION_COLUMNS))
    for name in ("spearman", "pearson"):
        result[f"{name}_p_holm"] = holm(result[f"{name}_p_exact"].astype(float).to_list())
    return result


def _too_few(n: int) -> str:
    return (
        f"{NOT_MEASURABLE}: both methods are measured on {n} trained "
        f"{'architecture' if n == 1 else 'architectures'}, {FEWEST_ARCHITECTURES} are needed"
    )


# The sensitivity plane


def plane(
    ipr_scores: pd.DataFrame,
    sweep_scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    references: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
    randomizer: str = "init",
    preset: str = "paper",
) -> pd.DataFrame:
    """Sensitivity to hyperparameters (x) against sensitivity to parameters (y).

    Parameters
    ----------
    ipr_scores : DataFrame
        As the module's docstring has them; independent order.
    sweep_scores : DataFrame
        As `steadymap.scores.score` makes them: variants against their sweep's reference.
    rows, options, randomizer, preset
        As for `ipr`.
    references : mapping
        Per sweep, all hyperparameters of its reference.
    settings : mapping
        Per method, all hyperparameters that `ipr_scores` used.

    Returns
    -------
    DataFrame
        Columns `PLANE_COLUMNS`, one row per method, sweep and model, for SSIM (`common`) and
        Spearman (docs/protocol.md); both axes in [0, 2], on the images that both have. x: mean of
        1 - similarity over images and variants; y: over images, units and weight draws;
        difference = y - x with the interval paired by image; share_below: share of images with
        x < y. ranked: the sweep's reference is the setting of `ipr_scores`; filled: the largest x
        of the method's ranked sweeps on that model; rank: of the filled points, by difference, per
        model and similarity. x_inverted and y_inverted: pairs of maps behind x and y that are
        inverted. verdict: `parameters` or `hyperparameter`, whichever the maps react to more, where
        the intervals of both similarities' differences lie on that side of 0; `undecided` where
        both hold 0, and `DISAGREE` otherwise. Methods without a sweep stand at x = 0, are not
        ranked and have no verdict.
    """
    study = _Study(ipr_scores, rows, options, randomizer=randomizer, preset=preset)
    wanted = _PLANE_METRICS
    part = study.scores[
        (study.scores["order"] == "independent")
        & (study.scores["kind"] == "same")
        & (study.scores["convention"] == study.scores["metric"].map(wanted))
    ]
    if len(part[["randomizer", "preset"]].drop_duplicates()) > 1:
        raise ValueError(
            "scores hold several randomizers or presets; draw one plane for each of them"
        )
    # A seed sweep has no shared draws; a count sweep's independent ones stand beside.
    sweeps = sweep_scores[
        ((sweep_scores["draws"] != "independent") | (sweep_scores["hyperparameter"] == "seed"))
        & (sweep_scores["convention"] == sweep_scores["metric"].map(wanted))
    ]
    found: list[dict[str, Any]] = []
    for names, mine in part.groupby(["model", "method", "metric", "convention"], sort=False):
        model, method, metric, convention = map(str, names)
        label = {"method": method, "model": model, "metric": metric, "convention": convention}
        theirs = sweeps[
            (sweeps["model"] == model) & (sweeps["method"] == method) & (sweeps["metric"] == metric)
        ]
        if theirs.empty:
            group = _Group(mine, study.resamples(mine["image_id"].unique()), stochastic=False)
            reason = "the method has no sweep"
            empty = {"sweep": "", "hyperparameter": "", "reason": reason}
            found.append({**label, **empty, **_place(None, group)})
        for sweep, variants in theirs.groupby("sweep", sort=False):
            if sweep not in references:
                raise ValueError(
                    f"sweep {sweep!r} has no reference; give the hyperparameters of its reference"
                )
            shared = mine["image_id"][mine["image_id"].isin(variants["image_id"])].unique()
            if not len(shared):
                raise ValueError(
                    f"{sweep} and the IPR test of {method} on {model} have no image in common; "
                    "run both on the same evaluation set"
                )
            own = study.resamples(shared)
            group = _Group(mine[mine["image_id"].isin(shared)], own, stochastic=False)
            x = _variant_cells(variants[variants["image_id"].isin(shared)], own.image_ids)
            differs = _differing(references[str(sweep)], settings.get(method))
            found.append(
                {
                    **label,
                    "sweep": sweep,
                    "hyperparameter": variants["hyperparameter"].iloc[0],
                    **_place(x, group),
                    "ranked": not differs,
                    "reason": differs,
                    "x_inverted": int(
                        variants.loc[variants["image_id"].isin(shared), "inverted"].sum()
                    ),
                }
            )
    table = pd.DataFrame(found, columns=list(PLANE_COLUMNS))
    table["ranked"] = table["ranked"].eq(True)
    keys = ["model", "metric", "convention"]
    ranked = table[table["ranked"]]
    worst = ranked.loc[ranked.groupby([*keys, "method"])["x"].idxmax().dropna()]
    table["filled"] = table.index.isin(worst.index)
    table["rank"] = worst.groupby(keys)["difference"].rank(ascending=False, method="min")
    return table.assign(verdict=plane_verdicts(table))


def plane_verdicts(table: pd.DataFrame) -> pd.Series:
    """What the maps of each point of table `plane` react to more, by both similarities."""
    low, high = (table[f"difference_{end}"].astype(float) for end in ("low", "high"))
    side = (low > 0).astype(int) - (high < 0).astype(int)
    sweeps = table["sweep"].fillna("")
    points = side.groupby([table["method"], sweeps, table["model"]])
    least, most = points.transform("min"), points.transform("max")
    both = points.transform("size") == len(_PLANE_METRICS)
    found = side.map({1: PARAMETERS, -1: HYPERPARAMETER, 0: UNDECIDED})
    found = found.where(both, UNDECIDED).where(least == most, DISAGREE)
    return found.where(sweeps != "", "")


def _variant_cells(
    variants: pd.DataFrame, image_ids: pd.Index
) -> Float[np.ndarray, "variants images"]:
    values = pd.Index(variants["value"].unique())
    found = np.full((len(values), len(image_ids)), np.nan)
    found[
        values.get_indexer(pd.Index(variants["value"])),
        image_ids.get_indexer(pd.Index(variants["image_id"])),
    ] = 1 - variants["score"].to_numpy(np.float64)
    return found


def _place(x: np.ndarray | None, group: _Group) -> dict[str, Any]:
    """Coordinates of a point, and their paired difference."""
    resamples, y = group.resamples, group.same
    low, high = resamples.interval(y)
    found: dict[str, Any] = {
        "n_images": y.seen,
        "n_variants": 0 if x is None else len(x),
        "x": 0.0,
        "y": y.point,
        "y_low": low,
        "y_high": high,
        "x_inverted": 0,
        "y_inverted": group.n_inverted,
    }
    if x is None:
        return found
    across = resamples.mean(x[:, None], within=group.within)
    # Settings of a sweep are chosen, not drawn: they are not resampled.
    difference = _minus(y, across)
    known = np.isfinite(group.cells["same"])
    with np.errstate(invalid="ignore", divide="ignore"):
        of_y = np.where(known, group.cells["same"], 0.0).sum((0, 1)) / known.sum((0, 1))
        of_x = np.nansum(x, axis=0) / np.isfinite(x).sum(0)
    both = np.isfinite(of_x) & np.isfinite(of_y)
    found["x"] = across.point
    found["x_low"], found["x_high"] = resamples.interval(across)
    found["difference"] = difference.point
    found["difference_low"], found["difference_high"] = resamples.interval(difference)
    found["share_below"] = float((of_x < of_y)[both].mean()) if both.any() else math.nan
    return found


def _differing(reference: Mapping[str, Any], setting: Mapping[str, Any] | None) -> str:
    """Why a sweep's reference is not the setting of the IPR test; "" where it is."""
    if setting is None:
        return "the IPR test's setting is not given"
    for name in dict.fromkeys([*reference, *setting]):
        if reference.get(name) != setting.get(name):
            here, there = (
                f"{name} {values[name]}" if name in values else f"no {name}"
                for values in (reference, setting)
            )
            return f"the reference has {here}, the IPR test {there}"
    return ""


# Claims


class _MissingError(LookupError):
    """What a claim needs and the study lacks."""


@dataclass(frozen=True)
class _Finding:
    value: float
    interval: tuple[float, float]
    direction: str
    n_images: int
    notes: tuple[str, ...] = ()

    def size(self, paper: float) -> str:
        low, high = self.interval
        if not np.isfinite([paper, low, high]).all():
            return "not comparable"
        return "inside" if low <= paper <= high else "outside"


def _direction(interval: tuple[float, float]) -> str:
    """Verdict on 'above 0' (docs/protocol.md)."""
    low, high = interval
    if low > 0:
        return "holds"
    return "fails" if high <= 0 else "inconclusive"


class _Evidence:
    """S^I of every model and method on images that all of them have."""

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        architectures: Mapping[str, str],
        *,
        convention: str,
        randomizer: str,
        preset: str,
        stochastic: Collection[str] | None,
    ):
        self.study = _Study(
            scores, rows, options, randomizer=randomizer, preset=preset, stochastic=stochastic
        )
        frame = self.study.scores
        frame = frame[
            (frame["metric"] == "ssim")
            & (frame["convention"] == convention)
            & (frame["order"] == "independent")
            & (frame["randomizer"] == randomizer)
            & (frame["preset"] == preset)
            & frame["model"].isin(list(architectures))
            & frame["kind"].isin(_MOVED)
        ]
        self.frame = frame
        # Groups keep their own images (some methods run on fewer); resamples span all of them.
        images = frame["image_id"].unique()
        self.resamples = self.study.resamples(images) if len(images) else None
        self.groups = {
            (labels["model"], labels["method"]): group
            for labels, group in self.study.groups(self.resamples, frame)
        }
        self.models = _chosen_models(architectures)
        self.stochastic = self.study.stochastic

    def group(self, architecture: str, method: str) -> _Group:
        model = self.models.get(architecture)
        if model is None:
            raise _MissingError(f"the study has no trained {architecture}")
        if (model, method) not in self.groups:
            raise _MissingError(f"the study has no IPR test of {method} on {model}")
        return self.groups[model, method]

    def all_groups(self, architectures: Sequence[str], methods: Sequence[str]) -> list[_Group]:
        """Groups of all networks and methods; the reason names all networks that lack."""
        absent = [name for name in architectures if name not in self.models]
        if absent:
            raise _MissingError(f"the study has no trained {', '.join(absent)}")
        return [self.group(a, m) for a in architectures for m in methods]

    def interval(self, found: _Replicates, confidence: float | None = None) -> tuple[float, float]:
        assert self.resamples is not None
        return self.resamples.interval(found, confidence)

    def finding(self, found: _Replicates, *notes: str) -> _Finding:
        interval = self.interval(found)
        return _Finding(found.point, interval, _direction(interval), found.seen, notes)

    def smallest(self, parts: Mapping[str, _Replicates]) -> _Finding:
        """Smallest of several statistics, claimed to be above 0.

        Lower end: the smallest lower end; upper end: the smallest upper end with the error shared
        (Bonferroni). A bootstrap of the minimum would be biased downwards.
        """
        strict = 1 - (1 - self.study.options.confidence) / len(parts)
        lows = [self.interval(part)[0] for part in parts.values()]
        highs = [self.interval(part, strict)[1] for part in parts.values()]
        points = [part.point for part in parts.values()]
        least = int(np.argmin(points))
        interval = float(np.min(lows)), float(np.min(highs))
        notes = (f"smallest: {list(parts)[least]}",) if len(parts) > 1 else ()
        seen = min(part.seen for part in parts.values())
        return _Finding(points[least], interval, _direction(interval), seen, notes)


@dataclass(frozen=True)
class _Claim:
    claim: str
    name: str
    section: str
    statement: str
    recipe: str
    paper_value: float
    unit: str
    judge: Callable[[_Evidence], _Finding]


def ipr_claims(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    architectures: Mapping[str, str],
    convention: str = "common",
    randomizer: str = "init",
    preset: str = "paper",
    stochastic: Collection[str] | None = None,
) -> pd.DataFrame:
    """The extended-IPR paper's claims, recomputed: `tables/ipr_claims.csv`.

    Parameters
    ----------
    scores, rows, options, stochastic
        As for `ipr`.
    architectures : mapping of str to str
        From *trained* models to their architectures; each architecture's first model counts.
    convention, randomizer, preset : str
        Which SSIM and which randomising; independent order always.

    Returns
    -------
    DataFrame
        Columns `CLAIM_COLUMNS`, always the same rows. direction: `holds`, `fails`, `inconclusive`
        or `not measurable here`, with the reason; size: the paper's value `inside` or `outside`
        the interval, or `not comparable`. Intervals cover images and weight draws of these very
        networks. Where the paper prints no number, paper_value is NaN.
    """
    evidence = _Evidence(
        scores,
        rows,
        options,
        architectures,
        convention=convention,
        randomizer=randomizer,
        preset=preset,
        stochastic=stochastic,
    )
    found = []
    for claim in _CLAIMS:
        row: dict[str, Any] = {
            "claim": claim.claim,
            "name": claim.name,
            "section": claim.section,
            "statement": claim.statement,
            "recipe": claim.recipe,
            "paper_value": claim.paper_value,
            "value": math.nan,
            "ci_low": math.nan,
            "ci_high": math.nan,
            "unit": claim.unit,
            "n_images": 0,
            "direction": NOT_MEASURABLE,
            "size": "not comparable",
        }
        try:
            finding = claim.judge(evidence)
        except _MissingError as missing:
            row["reason"] = str(missing)
        else:
            row |= {
                "value": finding.value,
                "ci_low": finding.interval[0],
                "ci_high": finding.interval[1],
                "n_images": finding.n_images,
                "direction": finding.direction,
                "size": finding.size(claim.paper_value),
                "reason": "; ".join(finding.notes),
            }
        found.append(row)
    return pd.DataFrame(found, columns=list(CLAIM_COLUMNS))


_GUIDED = ("guided_backprop", "guided_gradcam")
_OTHERS = tuple(name for name in PAPER_METHODS if name not in _GUIDED)
_LINEAR = ("deeplift", "input_x_gradient", "integrated_gradients")
_LOW, _HIGH = ("vgg16", "resnet18", "resnet50"), ("inception_v3", "mobilenet_v2")


def _all_pass(evidence: _Evidence, groups: Mapping[str, _Group]) -> _Finding:
    parts: dict[str, _Replicates] = {}
    verdicts: dict[str, list[str]] = {"yes": [], "no": [], "inconclusive": []}
    for name, group in groups.items():
        verdicts[group.verdict(THRESHOLD)].append(name)
        parts[name] = group.same
        if group.stochastic and group.excess is not None:
            parts[f"{name} (excess)"] = group.excess
    found = evidence.smallest(parts)
    counted = ", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts.items())
    notes = (f"of {len(groups)}: {counted}", *found.notes)
    if verdicts["no"]:
        notes += (f"no: {', '.join(verdicts['no'])}",)
    everyone = len(verdicts["yes"]) == len(groups)
    direction = "holds" if everyone else "fails" if verdicts["no"] else "inconclusive"
    return _Finding(found.value, found.interval, direction, found.n_images, notes)


def _pass_on_papers(evidence: _Evidence) -> _Finding:
    groups = evidence.all_groups(PAPER_ARCHITECTURES, PAPER_METHODS)
    names = [f"{m} on {a}" for a in PAPER_ARCHITECTURES for m in PAPER_METHODS]
    return _all_pass(evidence, dict(zip(names, groups, strict=True)))


def _pass_here(evidence: _Evidence) -> _Finding:
    groups = {f"{method} on {model}": group for (model, method), group in evidence.groups.items()}
    if not groups:
        raise _MissingError("the study has no IPR test of a trained model")
    found = _all_pass(evidence, groups)
    absent = [m for m in PAPER_METHODS if m not in {method for _, method in evidence.groups}]
    notes = (*found.notes, f"not tested: {', '.join(absent)}") if absent else found.notes
    return _Finding(found.value, found.interval, found.direction, found.n_images, notes)


def _lowest(method: str) -> Callable[[_Evidence], _Finding]:
    def judge(evidence: _Evidence) -> _Finding:
        evidence.all_groups(PAPER_ARCHITECTURES, (method,))
        return evidence.smallest(
            {
                f"{high} minus {low}": _minus(
                    evidence.group(high, method).same, evidence.group(low, method).same
                )
                for high in _HIGH
                for low in _LOW
            }
        )

    return judge


def _spread(*values: np.ndarray) -> np.ndarray:
    return np.std(np.stack(values), axis=0, ddof=1)


def _average(*values: np.ndarray) -> np.ndarray:
    return np.mean(np.stack(values), axis=0)


def _guided_against_others(
    statistic: Callable[..., np.ndarray], sign: int
) -> Callable[[_Evidence], _Finding]:
    """Smallest sign * (guided - other) of a statistic over the five networks."""

    def judge(evidence: _Evidence) -> _Finding:
        evidence.all_groups(PAPER_ARCHITECTURES, PAPER_METHODS)
        over = {
            method: _combined(
                statistic,
                *(evidence.group(a, method).same for a in PAPER_ARCHITECTURES),
                within=_MOVED_RANGE,
            )
            for method in PAPER_METHODS
        }
        return evidence.smallest(
            {
                f"{guided} against {other}": _combined(
                    lambda a, b: sign * (a - b),
                    over[guided],
                    over[other],
                    within=_MOVED_RANGE.minus(_MOVED_RANGE),
                )
                for guided in _GUIDED
                for other in _OTHERS
            }
        )

    return judge


def _lime_resnet50(evidence: _Evidence) -> _Finding:
    group = evidence.group("resnet50", "lime")
    others = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.all_groups(others, ("lime",))
    above = evidence.smallest(
        {f"above {a}": _minus(group.same, evidence.group(a, "lime").same) for a in others}
    )
    count = group.cells["same"].size
    note = f"degenerate or undefined: {group.n_degenerate} of {count} comparisons"
    found = evidence.finding(group.same)
    return _Finding(found.value, found.interval, above.direction, found.n_images, (note,))


def _like_gradients(evidence: _Evidence) -> _Finding:
    architectures = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.all_groups(architectures, ("lime", "gradient"))
    means = {
        method: _combined(
            _average,
            *(evidence.group(a, method).same for a in architectures),
            within=_MOVED_RANGE,
        )
        for method in ("lime", "gradient")
    }
    difference = _minus(means["lime"], means["gradient"])
    found = evidence.finding(difference)
    low, high = found.interval
    inside = low > -_COMPARABLE and high < _COMPARABLE
    outside = high < -_COMPARABLE or low > _COMPARABLE
    direction = "holds" if inside else "fails" if outside else "inconclusive"
    return _Finding(found.value, found.interval, direction, found.n_images)


# "Comparable": the paper gives no bound.
_COMPARABLE = 0.1


def _correlated(
    pairs: Sequence[tuple[str, str]], *, ranked: bool, claimed: bool = True
) -> Callable[[_Evidence], _Finding]:
    """Weakest of the correlations claimed, or strongest of those claimed absent."""

    def judge(evidence: _Evidence) -> _Finding:
        per_pair: dict[tuple[str, str], _Replicates] = {}
        p: list[float] = []
        numbers: dict[tuple[str, str], int] = {}
        for pair in PAIRS:
            architectures = [
                a
                for a, m in evidence.models.items()
                if all((m, x) in evidence.groups for x in pair)
            ]
            if len(architectures) < FEWEST_ARCHITECTURES:
                if pair in pairs:
                    reason = _too_few(len(architectures)).removeprefix(f"{NOT_MEASURABLE}: ")
                    raise _MissingError(f"{' and '.join(pair)}: {reason}")
                p.append(math.nan)
                continue
            numbers[pair] = len(architectures)
            sides = [[evidence.group(a, m).same for a in architectures] for m in pair]
            points = [np.array([part.point for part in side]) for side in sides]
            p.append(exact_p(points[0], points[1], ranked=ranked))
            if pair in pairs:
                per_pair[pair] = _combined(
                    lambda *values: _over_architectures(values, ranked),
                    *sides[0],
                    *sides[1],
                    within=SIMILARITY_RANGE,
                )
        constant = [pair for pair in pairs if math.isnan(per_pair[pair].point)]
        if constant:
            raise _MissingError(f"{' or '.join(constant[0])} has the same S on all architectures")
        adjusted = dict(zip(PAIRS, holm(p), strict=True))
        chosen = (min if claimed else max)(pairs, key=lambda pair: per_pair[pair].point)
        found = per_pair[chosen]
        interval = evidence.interval(found)
        shown = [pair for pair in pairs if adjusted[pair] <= 0.05]
        if claimed:
            holds = len(shown) == len(pairs) and found.point > 0
            direction = "holds" if holds else "fails" if interval[1] <= 0 else "inconclusive"
        else:
            direction = "fails" if shown else "inconclusive"
        notes = [f"exact p {p[PAIRS.index(chosen)]:.3g}, after Holm {adjusted[chosen]:.3g}"]
        if len(pairs) > 1:
            notes.insert(0, f"{'weakest' if claimed else 'largest'}: {' and '.join(chosen)}")
        n = numbers[chosen]
        least = min(2 / math.factorial(n) * sum(map(math.isfinite, p)), 1.0)
        if least > 0.05:
            notes.append(
                f"{n} architectures can't show one: the smallest p after Holm is {least:.2g}"
            )
        return _Finding(found.point, interval, direction, found.seen, tuple(notes))

    return judge


def _over_architectures(values: Sequence[np.ndarray], ranked: bool) -> np.ndarray:
    half = len(values) // 2
    a, b = np.stack(values[:half], axis=-1), np.stack(values[half:], axis=-1)
    found = np.full(len(a), np.nan)
    whole = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    a, b = a[whole], b[whole]
    found[whole] = _correlate(_ranks(a), _ranks(b)) if ranked else _correlate(a, b)
    return found


def _within_unit_interval(evidence: _Evidence) -> _Finding:
    same = evidence.frame[evidence.frame["kind"] == "same"]
    if same["score"].notna().sum() == 0:
        raise _MissingError("the study has no IPR test of a trained model")
    largest = max(
        (group.same.point, f"{method} on {model}")
        for (model, method), group in evidence.groups.items()
        if math.isfinite(group.same.point)
    )
    below = same["score"] < 0
    cells = (1 - same["score"]).groupby([same["model"], same["method"], same["image_id"]]).mean()
    notes = (
        f"largest: {largest[1]}",
        f"SSIM is negative in {int(below.sum())} of {int(same['score'].notna().sum())} "
        f"comparisons; S^i exceeds 1 for {int((cells > 1).sum())} of {len(cells)} images and "
        "methods",
    )
    direction = "holds" if largest[0] <= 1 else "fails"
    seen = same["image_id"].nunique()
    return _Finding(largest[0], (math.nan, math.nan), direction, seen, notes)


_NO_NUMBER = math.nan
_DIFFERENCE = "difference of S"

_CLAIMS = (
    _Claim(
        "I1",
        "all seven methods pass on the paper's five networks",
        "7, Fig. 3",
        "S^I of all seven methods on all five networks is at least .01",
        "smallest S_same, and excess of stochastic methods, over methods and networks; holds where "
        "all pass (docs/protocol.md, Randomised parameters)",
        _NO_NUMBER,
        "S",
        _pass_on_papers,
    ),
    _Claim(
        "I1b",
        "all methods pass on the networks here",
        "7, Fig. 3",
        "The same for the methods and networks of this study, whatever they are",
        "as I1, over what was tested",
        _NO_NUMBER,
        "S",
        _pass_here,
    ),
    _Claim(
        "I2",
        "guided backprop is lowest on VGG16 and ResNets",
        "7, Fig. 3",
        "Guided backprop's S^I is lowest on VGG16, ResNet-18 and ResNet-50, higher on InceptionV3 "
        "and MobileNetV2",
        "smallest S_same of a network said to be high minus one said to be low",
        _NO_NUMBER,
        _DIFFERENCE,
        _lowest("guided_backprop"),
    ),
    _Claim(
        "I3",
        "Guided GradCAM is lowest on VGG16 and ResNets",
        "7, Fig. 3",
        "Guided GradCAM's S^I is lowest on VGG16, ResNet-18 and ResNet-50, higher on InceptionV3 "
        "and MobileNetV2",
        "as I2",
        _NO_NUMBER,
        _DIFFERENCE,
        _lowest("guided_gradcam"),
    ),
    _Claim(
        "I4",
        "the other methods' S is high",
        "7, Fig. 3",
        "S^I of DeepLIFT, InputXGradient, IG, Gradients and LIME is consistently high",
        "smallest mean over the five networks of one of them minus that of guided backprop or "
        "Guided GradCAM; the paper names no level",
        _NO_NUMBER,
        _DIFFERENCE,
        _guided_against_others(_average, -1),
    ),
    _Claim(
        "I5",
        "the other methods' S varies little",
        "7, Fig. 3",
        "S^I of guided backprop and Guided GradCAM varies much between networks, that of the "
        "others little",
        "smallest standard deviation over the five networks of guided backprop or Guided GradCAM "
        "minus that of another method",
        _NO_NUMBER,
        "difference of standard deviations",
        _guided_against_others(_spread, 1),
    ),
    _Claim(
        "I6",
        "LIME reaches 1.0 on ResNet-50",
        "7",
        "LIME's S^I on ResNet-50 is 1.0, above that on the other networks",
        "S_same of LIME on ResNet-50; direction: above LIME's S_same on each other network",
        1.0,
        "S",
        _lime_resnet50,
    ),
    _Claim(
        "I7",
        "LIME is comparable to Gradients elsewhere",
        "7",
        "But for ResNet-50, LIME's S^I is comparable to that of Gradients",
        f"mean S_same of LIME minus Gradients over the other four networks; comparable: within "
        f"{_COMPARABLE:g}, a bound of our own",
        _NO_NUMBER,
        _DIFFERENCE,
        _like_gradients,
    ),
    _Claim(
        "I8",
        "guided backprop and Guided GradCAM go together",
        "7, Table 2",
        "Their S^I are significantly correlated over networks (Spearman)",
        "Spearman's correlation of S_same over architectures; holds at exact p <= .05 after Holm "
        "over the 21 pairs",
        PAPER_SPEARMAN["guided_backprop", "guided_gradcam"],
        "correlation",
        _correlated([("guided_backprop", "guided_gradcam")], ranked=True),
    ),
    _Claim(
        "I8b",
        "guided backprop and Guided GradCAM go together linearly",
        "7, Table 3",
        "Their S^I are significantly correlated over networks (Pearson)",
        "as I8, Pearson",
        PAPER_PEARSON["guided_backprop", "guided_gradcam"],
        "correlation",
        _correlated([("guided_backprop", "guided_gradcam")], ranked=False),
    ),
    _Claim(
        "I9",
        "DeepLIFT, InputXGradient and IG go together",
        "7, Table 2",
        "Their S^I are significantly correlated over networks (Spearman)",
        "as I8, weakest of the three correlations; the paper's own weakest, .7, is not significant",
        min(PAPER_SPEARMAN[pair] for pair in itertools.combinations(_LINEAR, 2)),
        "correlation",
        _correlated(list(itertools.combinations(_LINEAR, 2)), ranked=True),
    ),
    _Claim(
        "I9b",
        "DeepLIFT, InputXGradient and IG go together linearly",
        "7, Table 3",
        "Their S^I are significantly correlated over networks (Pearson)",
        "as I9, Pearson",
        min(PAPER_PEARSON[pair] for pair in itertools.combinations(_LINEAR, 2)),
        "correlation",
        _correlated(list(itertools.combinations(_LINEAR, 2)), ranked=False),
    ),
    _Claim(
        "I10",
        "Gradients stand apart",
        "7, Table 2",
        "S^I of Gradients is not significantly correlated with DeepLIFT, InputXGradient and IG "
        "(Spearman)",
        "largest of the three correlations; fails where one has exact p <= .05 after Holm; a "
        "correlation not shown is no correlation shown absent, so this can't hold",
        max(PAPER_SPEARMAN[method, "gradient"] for method in _LINEAR),
        "correlation",
        _correlated([(name, "gradient") for name in _LINEAR], ranked=True, claimed=False),
    ),
    _Claim(
        "I10b",
        "Gradients stand apart linearly",
        "7, Table 3",
        "S^I of Gradients is not significantly correlated with DeepLIFT, InputXGradient and IG "
        "(Pearson)",
        "as I10, Pearson",
        max(PAPER_PEARSON[method, "gradient"] for method in _LINEAR),
        "correlation",
        _correlated([(name, "gradient") for name in _LINEAR], ranked=False, claimed=False),
    ),
    _Claim(
        "I11",
        "S lies between 0 and 1",
        "4, definition 3",
        "As SSIM is in [0, 1], S^I is in [0, 1] for any method",
        "largest S_same over methods and networks, at most 1; SSIM of signed maps can be negative",
        _NO_NUMBER,
        "S",
        _within_unit_interval,
    ),
)
