"""Statistics of the extended IPR test: do explanations move when the model's parameters do.

IPR: independent parameter randomization. After Sriram and Conati, *Evaluating the overall
sensitivity of saliency-based explanation methods*, 2023, arXiv:2306.13682, cited by equation and
section, with the intervals, floor and controls that the paper leaves out
(docs/protocol.md).

All functions start from one frame of scores, one row per comparison of two maps:

=============================  ==================================================================
columns                        content
=============================  ==================================================================
model, method, order           names; order as in `steadymap.models.randomization.ORDERS`
unit, unit_index               unit randomized (in cascades, the one added); "" and -1 without one
draw                           draw of the weights; repetition of `floor` and `mismatch`
image_id, kind                 image, and one of `KINDS`
metric, convention, score      similarity of the two maps, in [-1, 1]; NaN where undefined
degenerate                     whether one of them is (`steadymap.similarity.degenerate`)
inverted                       whether the pair is (`steadymap.similarity.inverted`)
randomizer, preset (optional)  how and what was randomized; given as arguments where absent
=============================  ==================================================================

==========  ======================================================================================
kind        maps compared
==========  ======================================================================================
`same`      trained and randomized model, the same draws of the method in both
`fresh`     trained and randomized model, fresh draws of the method for the latter
`floor`     the trained model twice, with fresh draws
`mismatch`  the trained model's maps of two different images
==========  ======================================================================================

Rows `floor` and `mismatch` hold for a model and method whatever was randomized: their order,
randomizer, preset and unit are not looked at. Deterministic methods have no rows `fresh` and
`floor`: their floor is 0.

S = 1 - similarity lies in [0, 2], as SSIM can be negative (the paper has SSIM in [0, 1]); it is
never clipped. Undefined scores are left out of means and counted.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from steadymap.params.schema import Statistics
from steadymap.statistics.correlation import correlate, exact_p, holm, rank_correlation, ranks, t_p
from steadymap.statistics.intervals import SIMILARITY_RANGE, range_of
from steadymap.statistics.resampling import Replicates, Resamples, clusters_of, minus
from steadymap.store.tables import RANDOMIZATION_SCORE_COLUMNS

KINDS = ("same", "fresh", "floor", "mismatch")

SIMILARITIES = ("ssim", "spearman", "pearson", "hog_pearson")

# Equations 3, 5 and 7: 1 - .99. The paper derives it for SSIM alone.
THRESHOLD = 0.01

# "a bootstrapped confidence interval of 90%" (section 6), over images alone.
PAPER_CONFIDENCE = 0.9

# Fewer trained architectures than the paper's five say nothing about a correlation.
FEWEST_ARCHITECTURES = 5

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

# What the maps react to more, by both measures of the plane; or why that is undecided.
PARAMETERS, HYPERPARAMETER, UNDECIDED = "parameters", "hyperparameter", "undecided"

DISAGREE = "undecided: SSIM and rank correlation disagree"

PLANE_METRICS = {"ssim": "common", "spearman": "signed"}

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

MOVED = ("same", "fresh")

# Of S by SSIM; means and standard deviations of it over networks lie in it too.
MOVED_RANGE = SIMILARITY_RANGE.turned

_KEYS = ["model", "method", "metric", "convention", "order", "randomizer", "preset"]


def perceived_similarity(ssim: float) -> str:
    """Band of Table 1: excellent >= .99, good >= .95, fair >= .88, poor >= .5, else bad.

    The bands come from people judging compressed photographs (Wang et al. 2004), not heat maps.
    `undefined` for NaN.
    """
    if math.isnan(ssim):
        return "undefined"
    return next((name for bound, name in _BANDS if ssim >= bound), "bad")


# Scores


def _checked(scores: pd.DataFrame, randomizer: str, preset: str) -> pd.DataFrame:
    """The frame with all columns, similarities alone."""
    missing = [name for name in RANDOMIZATION_SCORE_COLUMNS if name not in scores.columns]
    if missing:
        raise ValueError(
            f"scores lack column {missing[0]!r}; give {', '.join(RANDOMIZATION_SCORE_COLUMNS)}"
        )
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
    double = found["kind"].isin(MOVED) & found.duplicated(
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


class Group:
    """Scores of one model, method, similarity, order and randomizer."""

    def __init__(
        self,
        part: pd.DataFrame,
        resamples: Resamples,
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
        moved = part[part["kind"].isin(MOVED)]
        self.kinds = {str(kind): rows for kind, rows in moved.groupby("kind", sort=False)}
        self.kinds |= shared or {}
        self.cells = {kind: _grid(rows, resamples.image_ids) for kind, rows in self.kinds.items()}
        if "same" not in self.kinds:
            names = ", ".join(str(first[name]) for name in _KEYS[:5])
            raise ValueError(
                f"{names}: scores have no kind 'same'; compare the maps of the trained and the "
                "randomized model"
            )

    @property
    def units(self) -> list[str]:
        """Units in the model's order."""
        return _unit_names(self.kinds["same"])

    def _mean(self, kind: str) -> Replicates | None:
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
    def same(self) -> Replicates:
        """S with the same draws in both maps."""
        found = self._mean("same")
        assert found is not None
        return found

    @cached_property
    def fresh(self) -> Replicates | None:
        """S with fresh draws for the randomized model."""
        return self._mean("fresh") if self.stochastic else self.same

    @cached_property
    def floor(self) -> Replicates | None:
        """1 - SSIM between two maps of the trained model with fresh draws."""
        return self._mean("floor") if self.stochastic else minus(self.same, self.same)

    @cached_property
    def mismatch(self) -> Replicates | None:
        """1 - SSIM between maps of different images."""
        return self._mean("mismatch")

    @cached_property
    def excess(self) -> Replicates | None:
        """S with fresh draws minus the floor."""
        if not self.stochastic:
            return self.same
        if self.fresh is None or self.floor is None:
            return None
        return minus(self.fresh, self.floor)

    @property
    def anchored(self) -> float:
        """S_rel = (S_fresh - floor) / (S_mismatch - floor); NaN where that can't be formed."""
        if self.mismatch is None or self.excess is None or self.floor is None:
            return math.nan
        reach = minus(self.mismatch, self.floor)
        low, _ = self.resamples.interval(reach)
        # Definitions 3.6: no ratio over what may be 0. One image has no interval.
        if not (low > 0 or (math.isnan(low) and reach.point > 0)):
            return math.nan
        return self.excess.point / reach.point

    def verdict(self, threshold: float) -> str:
        """Whether the method passes at a threshold: yes, no or inconclusive."""
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
        """Standard deviation of S between draws of the weights."""
        return _draw_sd(self.cells["same"])

    @property
    def n_degenerate(self) -> int:
        """Number of pairs with a degenerate map."""
        rows = self.kinds["same"]
        return int((rows["degenerate"].astype(bool) | rows["score"].isna()).sum())

    @property
    def n_inverted(self) -> int:
        """Number of inverted pairs."""
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


class Study:
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
        self._resamples: dict[tuple[str, ...], Resamples] = {}

    def resamples(self, image_ids: Sequence[str]) -> Resamples:
        """Resamples of these images; those of the same images are the same."""
        key = tuple(sorted(image_ids))
        if key not in self._resamples:
            index = pd.Index(key)
            self._resamples[key] = Resamples(key, clusters_of(self.rows, index), self.options)
        return self._resamples[key]

    @cached_property
    def _shared(self) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
        """Rows `floor` and `mismatch` per model, method and similarity."""
        rows = self.scores[~self.scores["kind"].isin(MOVED)]
        rows = rows.drop_duplicates([*_KEYS[:4], "kind", "draw", "image_id"])
        found: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
        for names, part in rows.groupby([*_KEYS[:4], "kind"], sort=False):
            one_unit = part.assign(unit="", unit_index=-1)
            found.setdefault(tuple(map(str, names[:4])), {})[str(names[4])] = one_unit
        return found

    def groups(
        self, resamples: Resamples | None = None, part: pd.DataFrame | None = None
    ) -> Iterator[tuple[dict[str, str], Group]]:
        """Groups with their names; each on its own images unless resamples are given."""
        frame = self.scores if part is None else part
        frame = frame[frame["kind"].isin(MOVED)]
        for names, rows in frame.groupby(_KEYS, sort=False):
            labels = dict(zip(_KEYS, map(str, names), strict=True))
            own = self.resamples(rows["image_id"].unique()) if resamples is None else resamples
            shared = {
                kind: found[found["image_id"].isin(own.image_ids)]
                for kind, found in self._shared.get(tuple(map(str, names[:4])), {}).items()
            }
            stochastic = labels["method"] in self.stochastic
            yield labels, Group(rows, own, stochastic, shared)


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
            f"critical unit {missing[0]!r} was not randomized; choose among {', '.join(units)}"
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
    study = Study(
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


def _point(found: Replicates | None) -> float:
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
    """Sensitivity to each unit, beside what randomizing it did: `tables/ipr_units.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    changes : DataFrame or None
        One row per model, order, unit and draw (and randomizer, where the frame has it) with
        accuracy, kept_predictions and target_change, as
        `steadymap.models.randomization.functional_change` gives them.
    rows, options, stochastic, randomizer, preset
        As for `ipr`.

    Returns
    -------
    DataFrame
        Columns `UNIT_COLUMNS`, units from the input to the logits. S_same is S_{l_j} (equation 2)
        as a mean over images and draws; low and high its interval over both, draw_sd its standard
        deviation over draws. accuracy, kept_predictions and target_change are means over draws.
    """
    study = Study(
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
        group = Group(part, own, labels["method"] in study.stochastic)
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
            row[f"rho_{label}"], row[f"p_{label}"] = rank_correlation(moved, change)
        found.append(row)
    return pd.DataFrame(found, columns=list(FUNCTION_COLUMNS))


def chosen_models(architectures: Mapping[str, str]) -> dict[str, str]:
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
        As `ipr` makes it, of one randomizer and preset.
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
    models = chosen_models(architectures)
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
            row["reason"] = too_few_architectures(n)
        else:
            a, b = np.array(pairs).T
            for name, ranked in (("spearman", True), ("pearson", False)):
                rho = float(correlate(ranks(a), ranks(b)) if ranked else correlate(a, b))
                row[name] = rho
                row[f"{name}_p_exact"] = exact_p(a, b, ranked=ranked)
                row[f"{name}_p_t"] = t_p(rho, n)
            if math.isnan(row["spearman"]):
                row["reason"] = "S is the same on all architectures"
        found.append(row)
    result = pd.DataFrame(found, columns=list(CORRELATION_COLUMNS))
    for name in ("spearman", "pearson"):
        result[f"{name}_p_holm"] = holm(result[f"{name}_p_exact"].astype(float).to_list())
    return result


def too_few_architectures(n: int) -> str:
    """Reason why a correlation over architectures is not measurable."""
    return (
        f"{NOT_MEASURABLE}: both methods are measured on {n} trained "
        f"{'architecture' if n == 1 else 'architectures'}, {FEWEST_ARCHITECTURES} are needed"
    )


def plane_verdicts(table: pd.DataFrame) -> pd.Series:
    """What the maps of each point of table `plane` react to more, by both similarities."""
    low, high = (table[f"difference_{end}"].astype(float) for end in ("low", "high"))
    side = (low > 0).astype(int) - (high < 0).astype(int)
    sweeps = table["sweep"].fillna("")
    points = side.groupby([table["method"], sweeps, table["model"]])
    least, most = points.transform("min"), points.transform("max")
    both = points.transform("size") == len(PLANE_METRICS)
    found = side.map({1: PARAMETERS, -1: HYPERPARAMETER, 0: UNDECIDED})
    found = found.where(both, UNDECIDED).where(least == most, DISAGREE)
    return found.where(sweeps != "", "")
