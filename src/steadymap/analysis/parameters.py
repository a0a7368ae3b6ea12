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
randomizer, preset             how and what was randomized
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

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from steadymap.params.schema import Statistics
from steadymap.statistics.correlation import correlate, exact_p, holm, rank_correlation, t_p
from steadymap.statistics.intervals import SHARE, range_of
from steadymap.statistics.pairing import mismatched
from steadymap.statistics.resampling import (
    Replicates,
    Resamples,
    clusters_of,
    defined_mean,
    degenerate_pairs,
)
from steadymap.store.tables import RANDOMIZATION_COLUMNS

KINDS = ("same", "fresh", "floor", "mismatch")

MOVED = ("same", "fresh")

SIMILARITIES = ("ssim", "spearman", "pearson", "hog_pearson")

# Equations 3, 5 and 7: 1 - .99. The paper derives it for SSIM alone, and has none for others.
THRESHOLD = 0.01

# "a bootstrapped confidence interval of 90%" (section 6), over images alone.
PAPER_CONFIDENCE = 0.9

# Fewer trained architectures than the paper's five say nothing about a correlation.
FEWEST_ARCHITECTURES = 5

IPR_COLUMNS = (
    *("model", "method", "metric", "convention", "order", "randomizer", "preset"),
    *("n_images", "n_units", "n_draws", "S_same", "same_low", "same_high"),
    *("same_low90", "same_high90", "S_fresh", "floor", "floor_low", "floor_high"),
    *("excess", "excess_low", "excess_high"),
    *("S_rel", "rel_low", "rel_high", "share_sensitive", "share_low", "share_high"),
    *("draw_sd", "threshold", "passes", "n_degenerate", "n_inverted"),
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

# In the order of Tables 2 and 3.
PAPER_METHODS = (
    *("guided_backprop", "guided_gradcam", "deeplift", "input_x_gradient"),
    *("integrated_gradients", "gradient", "lime"),
)

PAPER_ARCHITECTURES = ("inception_v3", "vgg16", "mobilenet_v2", "resnet18", "resnet50")

PAIRS = tuple(combinations(PAPER_METHODS, 2))

KEYS = ["model", "method", "metric", "convention", "order", "randomizer", "preset"]


def paper_correlations() -> pd.DataFrame:
    """Tables 2 and 3 of the paper: spearman and pearson by method and other."""
    table = pd.read_csv(str(files("steadymap.analysis.claims") / "paper_correlations.csv"))
    return table.set_index(["method", "other"])


# Scores


def _checked(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of similarities; a ValueError where columns, kinds or rows are not as described."""
    missing = [name for name in RANDOMIZATION_COLUMNS if name not in scores.columns]
    if missing:
        raise ValueError(
            f"scores lack column {missing[0]!r}; give {', '.join(RANDOMIZATION_COLUMNS)}"
        )
    unknown = sorted(set(scores["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(f"kind {unknown[0]!r} is unknown; choose one of {', '.join(KINDS)}")
    # A custom metric is a similarity too.
    checked = scores[scores["metric"].isin(SIMILARITIES) | (scores["convention"] == "own")]
    # An empty name comes back from a CSV file as NaN.
    checked = checked.assign(unit=checked["unit"].fillna("").astype(str))
    double = checked["kind"].isin(MOVED) & checked.duplicated(
        [*KEYS, "kind", "unit", "draw", "image_id"]
    )
    if double.any():
        row = checked[double].iloc[0]
        raise ValueError(
            f"{row['model']} {row['method']} {row['metric']} {row['convention']}: unit "
            f"{row['unit']!r}, draw {row['draw']}, image {row['image_id']!r} is scored twice as "
            f"{row['kind']!r}; give each comparison once"
        )
    return checked


def _unit_names(part: pd.DataFrame) -> list[str]:
    ordered = part.drop_duplicates("unit").sort_values("unit_index", kind="stable")
    return ordered["unit"].to_list()


def _grid(part: pd.DataFrame, image_ids: pd.Index) -> Float[np.ndarray, "units draws images"]:
    """S of one kind, units in order and draws sorted; NaN where there is none."""
    units, draws = _unit_names(part), np.sort(part["draw"].unique())
    images = image_ids.get_indexer(part["image_id"])
    known = images >= 0
    place = pd.Index(units).get_indexer(part["unit"]), np.searchsorted(draws, part["draw"]), images
    cells = np.full((len(units), len(draws), len(image_ids)), np.nan)
    cells[tuple(axis[known] for axis in place)] = 1 - part["score"].to_numpy(np.float64)[known]
    cells[np.isinf(cells)] = np.nan
    return cells


class Group:
    """Scores of one model, method, similarity, order and randomizer.

    Parameters
    ----------
    part : DataFrame
        Rows of kind `same` and `fresh`.
    resamples : Resamples
        Resamples of the group's images.
    stochastic : bool
        Whether the method draws random numbers at its setting.
    shared : mapping of str to DataFrame, optional
        Rows of kind `floor` and `mismatch`.
    partners : Series, optional
        By image, the other one of its pair `mismatch`.

    Raises
    ------
    ValueError
        Where there are no rows `same`.
    """

    def __init__(
        self,
        part: pd.DataFrame,
        resamples: Resamples,
        stochastic: bool,
        shared: Mapping[str, pd.DataFrame] | None = None,
        partners: pd.Series | None = None,
    ):
        self.resamples, self.partners = resamples, partners
        self.stochastic = stochastic
        first = part.iloc[0]
        # Methods share a model's weights, hence their draws.
        self.key = tuple(str(first[name]) for name in ("model", "order", "randomizer", "preset"))
        self.joint = first["order"] != "independent"
        # S is 1 minus a similarity.
        self.within = range_of(str(first["metric"])).turned
        moved = part[part["kind"].isin(MOVED)]
        self.kinds = {str(kind): rows for kind, rows in moved.groupby("kind", sort=False)}
        self.kinds |= shared or {}
        self.cells = {kind: _grid(rows, resamples.image_ids) for kind, rows in self.kinds.items()}
        if "same" not in self.kinds:
            names = ", ".join(str(first[name]) for name in KEYS[:5])
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
        if kind in MOVED:
            return self.resamples.mean(
                self.cells[kind], self.key, joint=self.joint, within=self.within
            )
        # The method's own draws belong to an image each: leaving out images covers them.
        resamples = self.resamples
        if kind == "mismatch" and self.partners is not None:
            images = resamples.image_ids
            others = images.get_indexer(self.partners.reindex(images))
            resamples = resamples.paired(np.where(others < 0, np.arange(len(images)), others))
        return resamples.mean(defined_mean(self.cells[kind], (0, 1)), within=self.within)

    @cached_property
    def same(self) -> Replicates:
        """S with the same draws in both maps."""
        same = self._mean("same")
        assert same is not None
        return same

    @cached_property
    def fresh(self) -> Replicates | None:
        """S with fresh draws for the randomized model."""
        return self._mean("fresh") if self.stochastic else self.same

    @cached_property
    def floor(self) -> Replicates | None:
        """1 - SSIM between two maps of the trained model with fresh draws."""
        return self._mean("floor") if self.stochastic else self.same - self.same

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
        return self.fresh - self.floor

    @property
    def relative(self) -> tuple[float, float, float]:
        """S_rel = S / S_mismatch and its interval; NaN where that can't be formed."""
        if self.mismatch is None:
            return math.nan, math.nan, math.nan
        return self.resamples.ratio(self.same, self.mismatch)

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
        return _all_above(self.cells["same"][_is_critical(self.units, critical)], threshold)

    @property
    def draw_sd(self) -> float:
        """Standard deviation (ddof 1) between weight draws of S's mean over units and images."""
        means = defined_mean(self.cells["same"], (0, 2))
        means = means[np.isfinite(means)]
        return float(means.std(ddof=1)) if len(means) > 1 else math.nan

    @property
    def n_degenerate(self) -> int:
        """Number of pairs with a degenerate map."""
        return int(degenerate_pairs(self.kinds["same"]).sum())

    @property
    def n_inverted(self) -> int:
        """Number of inverted pairs."""
        return int(self.kinds["same"]["inverted"].astype(bool).sum())

    def summary(self) -> dict[str, Any]:
        """Numbers of images and draws, S, its spread between draws, and counts of flagged pairs."""
        return {
            "n_images": self.same.seen,
            "n_draws": self.cells["same"].shape[1],
            "S_same": self.same.point,
            "S_fresh": _point(self.fresh),
            "draw_sd": self.draw_sd,
            "n_degenerate": self.n_degenerate,
            "n_inverted": self.n_inverted,
        }


def _all_above(
    cells: Float[np.ndarray, "units draws images"], threshold: float
) -> Float[np.ndarray, "draws images"]:
    """Definition 2; a unit below settles it, whatever is undefined elsewhere."""
    # As the paper's equation 1: SSIM <= .99, which 1 - SSIM >= .01 in floats need not be.
    above = (1 - cells <= 1 - threshold) | np.isnan(cells)
    undefined = above.all(0) & np.isnan(cells).any(0)
    return np.where(undefined, np.nan, above.all(0).astype(float))


def _is_critical(
    units: Sequence[str], critical: Collection[str] | None
) -> Bool[np.ndarray, " units"]:
    if critical is None:
        return np.ones(len(units), dtype=bool)
    missing = [name for name in critical if name not in units]
    if missing:
        raise ValueError(
            f"critical unit {missing[0]!r} was not randomized; choose among {', '.join(units)}"
        )
    return np.array([name in critical for name in units])


class Study:
    """Scores in groups that share their resamples.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.
    stochastic : collection of str, optional
        Methods that draw random numbers at their settings; by default those with rows `fresh` or
        `floor`.

    Raises
    ------
    ValueError
        Where columns, kinds or rows are not as described.
    """

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        stochastic: Collection[str] | None = None,
    ):
        self.scores = _checked(scores)
        self.rows, self.options = rows, options
        drawn = self.scores.loc[self.scores["kind"].isin(["fresh", "floor"]), "method"]
        self.stochastic = set(drawn if stochastic is None else stochastic)
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
        rows = self.scores[~self.scores["kind"].isin(MOVED)].assign(unit="", unit_index=-1)
        rows = rows.drop_duplicates([*KEYS[:4], "kind", "draw", "image_id"])
        shared: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
        for names, part in rows.groupby([*KEYS[:4], "kind"], sort=False):
            shared.setdefault(tuple(map(str, names[:4])), {})[str(names[4])] = part
        return shared

    def group(self, rows: pd.DataFrame, resamples: Resamples) -> Group:
        """Rows of one model, method, similarity, order and randomizer as a group."""
        names = tuple(str(rows.iloc[0][name]) for name in KEYS[:4])
        shared = {
            kind: others[others["image_id"].isin(resamples.image_ids)]
            for kind, others in self._shared.get(names, {}).items()
        }
        partners = None
        if "mismatch" in shared:
            paired = self._shared[names]["mismatch"]["image_id"]
            images = self.rows[self.rows["image_id"].isin(paired)]
            ids = images["image_id"].to_numpy()
            partners = pd.Series(ids[mismatched(images)], ids) if len(ids) > 1 else None
        return Group(rows, resamples, names[1] in self.stochastic, shared, partners)

    def groups(
        self, resamples: Resamples | None = None, part: pd.DataFrame | None = None
    ) -> Iterator[tuple[dict[str, str], Group]]:
        """Groups of all scores or of some, with their names.

        Each group has resamples of its own images unless resamples are given.
        """
        frame = self.scores if part is None else part
        for names, rows in frame[frame["kind"].isin(MOVED)].groupby(KEYS, sort=False):
            labels = dict(zip(KEYS, map(str, names), strict=True))
            group_resamples = resamples or self.resamples(rows["image_id"].unique())
            yield labels, self.group(rows, group_resamples)


def by_image(scores: pd.DataFrame, stochastic: Collection[str]) -> pd.DataFrame:
    """Sensitivity to the model's parameters per image (equation 4): `tables/ipr_images.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    stochastic : collection of str
        Methods that draw random numbers at their settings.

    Returns
    -------
    DataFrame
        Columns model, method, metric, convention, order, randomizer, preset, image_id, S_same (mean
        over units and draws) and, for the stochastic ones, excess = S_fresh - floor
        (docs/protocol.md), NaN for the others; n_inverted, the inverted pairs behind S_same. SSIM
        in convention `common`, as in `tables/images.csv`.
    """
    scores = _checked(scores)
    scores = scores[(scores["metric"] != "ssim") | (scores["convention"] == "common")]
    scores = scores.assign(S=1 - scores["score"].where(np.isfinite(scores["score"])))
    kinds = dict(list(scores.groupby("kind")))
    nothing = scores[:0]
    keys = [*KEYS, "image_id"]
    same = kinds.get("same", nothing).groupby(keys, sort=False)
    fresh = kinds.get("fresh", nothing).groupby(keys)["S"].mean()
    floor = kinds.get("floor", nothing).groupby([*KEYS[:4], "image_id"])["S"].mean()
    table = same.agg(S_same=("S", "mean"), n_inverted=("inverted", "sum")).reset_index()
    table = table.join(fresh.rename("fresh"), on=keys)
    table = table.join(floor.rename("floor"), on=[*KEYS[:4], "image_id"])
    excess = (table["fresh"] - table["floor"]).where(table["method"].isin(stochastic))
    table = table.assign(excess=excess, n_inverted=table["n_inverted"].astype(int))
    return table[[*keys, "S_same", "excess", "n_inverted"]]


def ipr(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    critical_units: Mapping[str, Collection[str]] | None = None,
    stochastic: Collection[str] | None = None,
) -> pd.DataFrame:
    """Sensitivity of each method to each model's parameters: `tables/ipr.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.
    critical_units : mapping of str to collection of str, optional
        Per model, the units of definition 2; all by default.
    stochastic : collection of str, optional
        Methods that draw random numbers at their settings; by default those with rows `fresh` or
        `floor`. One of them that lacks either can't pass.

    Returns
    -------
    DataFrame
        Columns `IPR_COLUMNS`. S_same is the paper's S^I (equation 6) as a mean over units, images
        and draws, with the interval over images and draws at the confidence of the options, and
        over images alone at 90 % (`same_low90`, `same_high90`: the paper's). excess = S_fresh -
        floor. S_rel = S_same / S_mismatch (docs/protocol.md), NaN where the denominator's interval
        reaches 0. share_sensitive: share of images and draws that meet definition 2. floor, excess,
        S_rel (`rel_`) and share_sensitive (`share_`) have intervals as S_same has.
        draw_sd: standard deviation over weight draws; with one draw it is NaN, and no interval
        knows of other draws. threshold: the least S that passes, of SSIM alone. passes: `yes`, `no`
        or `inconclusive` (docs/protocol.md). n_degenerate counts undefined scores and degenerate
        maps, n_inverted the pairs that are inverted: where there are any, `passes` is not `no`.

    Raises
    ------
    ValueError
        Where columns, kinds or rows are not as described.
    """
    records = []
    for labels, group in Study(scores, rows, options, stochastic).groups():
        resamples = group.resamples
        low, high = resamples.interval(group.same)
        low90, high90 = resamples.interval(group.same, PAPER_CONFIDENCE, images_only=True)
        excess, floor = (
            (math.nan,) * 3 if value is None else (value.point, *resamples.interval(value))
            for value in (group.excess, group.floor)
        )
        threshold = THRESHOLD if labels["metric"] == "ssim" else math.nan
        flags = group.sensitive(threshold, (critical_units or {}).get(labels["model"]))
        # Without a threshold nothing is judged.
        flags = flags if threshold > 0 else np.full_like(flags, np.nan)
        share = resamples.mean(flags, group.key, joint=group.joint, within=SHARE)
        relative = group.relative
        records.append(
            {
                **labels,
                **group.summary(),
                "n_units": len(group.cells["same"]),
                "same_low": low,
                "same_high": high,
                "same_low90": low90,
                "same_high90": high90,
                **dict(zip(("floor", "floor_low", "floor_high"), floor, strict=True)),
                **dict(zip(("excess", "excess_low", "excess_high"), excess, strict=True)),
                **dict(zip(("S_rel", "rel_low", "rel_high"), relative, strict=True)),
                "share_sensitive": share.point,
                **dict(zip(("share_low", "share_high"), resamples.interval(share), strict=True)),
                "threshold": threshold,
                "passes": group.verdict(threshold),
            }
        )
    return pd.DataFrame(records, columns=list(IPR_COLUMNS))


def _point(value: Replicates | None) -> float:
    return math.nan if value is None else value.point


def ipr_units(
    scores: pd.DataFrame,
    changes: pd.DataFrame | None,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    stochastic: Collection[str] | None = None,
) -> pd.DataFrame:
    """Sensitivity to each unit, beside what randomizing it did: `tables/ipr_units.csv`.

    Parameters
    ----------
    scores : DataFrame
        As the module's docstring has them.
    changes : DataFrame or None
        One row per model, order, randomizer, unit and draw with accuracy, kept_predictions and
        target_change, as `steadymap.models.randomization.functional_change` gives them.
    rows, options, stochastic
        As for `ipr`.

    Returns
    -------
    DataFrame
        Columns `UNIT_COLUMNS`, units from the input to the logits. S_same is S_{l_j} (equation 2)
        as a mean over images and draws; low and high its interval over both, draw_sd its standard
        deviation over draws. accuracy, kept_predictions and target_change are means over draws.
    """
    study = Study(scores, rows, options, stochastic)
    moved = study.scores[study.scores["kind"].isin(MOVED)]
    records = []
    for names, part in moved.groupby([*KEYS, "unit", "unit_index"], sort=False):
        labels = dict(zip([*KEYS, "unit", "unit_index"], names, strict=True))
        resamples = study.resamples(part["image_id"].unique())
        group = Group(part, resamples, labels["method"] in study.stochastic)
        low, high = resamples.interval(group.same)
        records.append({**labels, **group.summary(), "low": low, "high": high})
    measures = ["accuracy", "kept_predictions", "target_change"]
    table = pd.DataFrame(records, columns=[name for name in UNIT_COLUMNS if name not in measures])
    if changes is None or changes.empty:
        table = table.assign(**dict.fromkeys(measures, math.nan))
    else:
        place = ["model", "order", "randomizer", "unit"]
        table = table.join(changes.groupby(place)[measures].mean(), on=place)
    group_number = table.groupby(list(UNIT_COLUMNS[:6]), sort=False).ngroup()
    in_order = np.lexsort([table["unit_index"], group_number])
    return table.iloc[in_order].reset_index(drop=True)[list(UNIT_COLUMNS)]


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
    records = []
    for names, part in units.groupby(keys, sort=False):
        moved = part["S_same"].to_numpy(np.float64)
        drop = -part["target_change"].to_numpy(np.float64)
        lost = 1 - part["kept_predictions"].to_numpy(np.float64)
        n_units = int((np.isfinite(drop) & np.isfinite(moved)).sum())
        correlations = (*rank_correlation(moved, drop), *rank_correlation(moved, lost))
        records.append((*names, n_units, *correlations))
    return pd.DataFrame(records, columns=list(FUNCTION_COLUMNS))


def first_models(architectures: Mapping[str, str]) -> dict[str, str]:
    """First model of each architecture, from the architecture of each model."""
    models: dict[str, str] = {}
    for model, architecture in architectures.items():
        models.setdefault(architecture, model)
    return models


def correlations(table: pd.DataFrame, architectures: Mapping[str, str]) -> pd.DataFrame:
    """Correlations of S^I between methods over architectures: Tables 2 and 3.

    Parameters
    ----------
    table : DataFrame
        As `ipr` makes it, of one randomizer and preset; SSIM (`common`) in independent order is
        read.
    architectures : mapping of str to str
        From *trained* models to their architectures; each architecture's first model counts.
        Networks with random weights are no results: leave them out.

    Returns
    -------
    DataFrame
        Columns `CORRELATION_COLUMNS`, always the paper's 21 pairs. p: by all permutations, that
        adjusted after Holm over the pairs measured, and by the t-approximation, which is what the
        paper's stars rest on (its rho = .9 (*) from five networks has an exact p of .083). NaN
        with the reason where fewer than `FEWEST_ARCHITECTURES` architectures have both methods.

    Raises
    ------
    ValueError
        Where the table holds a model and method more than once.
    """
    part = table[
        (table["metric"] == "ssim")
        & (table["convention"] == "common")
        & (table["order"] == "independent")
    ]
    if part.duplicated(["model", "method"]).any():
        raise ValueError(
            "table holds a model and method more than once; give one randomizer and preset"
        )
    part = part[part["model"].isin(first_models(architectures).values())]
    wide = part.pivot(index="model", columns="method", values="S_same").astype(float)
    printed, records = paper_correlations(), []
    for pair in PAIRS:
        values = wide.reindex(columns=pair).dropna()
        row: dict[str, Any] = dict(zip(("method", "other"), pair, strict=True))
        row |= {"metric": "ssim", "convention": "common", "n_architectures": len(values)}
        row |= printed.loc[pair].add_prefix("paper_").to_dict() | {"reason": ""}
        if len(values) < FEWEST_ARCHITECTURES:
            row["reason"] = f"not measurable here: {too_few_architectures(len(values))}"
        else:
            a, b = values.to_numpy().T
            for name, ranked in (("spearman", True), ("pearson", False)):
                row[name] = float(correlate(a, b, ranked=ranked))
                row[f"{name}_p_exact"] = exact_p(a, b, ranked=ranked)
                row[f"{name}_p_t"] = t_p(a, b, ranked=ranked)
            if math.isnan(row["spearman"]):
                row["reason"] = "S is the same on all architectures"
        records.append(row)
    result = pd.DataFrame(records, columns=list(CORRELATION_COLUMNS))
    for name in ("spearman", "pearson"):
        result[f"{name}_p_holm"] = holm(result[f"{name}_p_exact"].astype(float).to_list())
    return result


def too_few_architectures(n: int) -> str:
    """Reason why a correlation over architectures is not measurable."""
    return (
        f"both methods are measured on {n} trained "
        f"{'architecture' if n == 1 else 'architectures'}, {FEWEST_ARCHITECTURES} are needed"
    )
