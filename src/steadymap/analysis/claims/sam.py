"""Claims of the SAM paper (Bansal et al., 2020), recomputed from scores per image.

The claims stand in `sam.yaml`, each with the name of its recipe, one of the functions below.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.analysis import structure
from steadymap.analysis.claims import verdict
from steadymap.analysis.claims.scores import (
    ACCURACY,
    GUIDED,
    SIMILARITY,
    TABLE_ROWS,
    Spread,
    StudyScores,
    bars,
    by_training,
    in_order,
    mean_ratio,
    of_metric,
    relative_spread,
    robust_gain,
    twins,
)
from steadymap.analysis.claims.verdict import (
    NOT_RESOLVED,
    Finding,
    Interval,
    Judge,
    MissingError,
    Recipes,
    claim_table,
    read_claims,
)
from steadymap.analysis.readings import SEEN, seen_objects
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import POSITIVE, SHARE, SIMILARITY_RANGE, Range, t_interval
from steadymap.statistics.resampling import (
    Replicates,
    Resamples,
    combined,
    defined_mean,
    mean_of,
)

CLAIM_COLUMNS = (*verdict.CLAIM_COLUMNS, "grid", "papers_grid")

# "Near 1" of claim 11 and "about 10 %" of claim 3: the paper gives no bound.
_NEAR_ONE, _SOME_SPREAD = 0.95, 0.05

# Two hyperparameters matter alike where neither moves scores this much more than the other.
_FACTOR = 2.0

# A map is blank where its peak is below this share of the object's probability.
_BLANK = 0.1

# Patch over object: its blank maps had at most 29/84, its oversized ones at least 29/19.
_SMALL_PATCH, _LARGE_PATCH = 0.35, 1.5

# With fewer objects that a model sees, Fig. 6 is an anecdote.
_FEWEST_OBJECTS = 8

# From this step on the masks of robust models do not change, says Fig. S10.
_STANDS_STILL = 10

# An object is huge where its box covers this share of the image; the paper gives no bound.
_HUGE = 0.5

# The paper's accuracies, %, on the whole of ImageNet's validation set; and how far from them, in
# points, ours may lie.
_PAPERS_ACCURACIES = {
    **{"googlenet": 68.862, "resnet50": 75.59, "googlenet-r": 50.938, "resnet50-r": 56.25},
}
_IMAGENET, _POINTS = 50_000, 0.5

# Options of a difference that stands for a ratio that can't be formed.
_STDS: dict[str, Any] = {"unit": "difference of stds", "comparable": False}

recipe = Recipes()


class Evidence(StudyScores):
    """Everything that claims are judged on; parameters as for `claims`."""

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        models: pd.DataFrame,
        options: Statistics,
        **more: Any,
    ):
        self.object_size: pd.DataFrame | None = more.pop("object_size", None)
        self.convergence: pd.DataFrame | None = more.pop("convergence", None)
        self.scatter: pd.DataFrame | None = more.pop("scatter", None)
        self.structure: pd.DataFrame | None = more.pop("structure", None)
        self.fluctuation: pd.DataFrame | None = more.pop("fluctuation", None)
        self.image_size: int | None = more.pop("image_size", None)
        super().__init__(scores, rows, options, models=list(models["model"]), **more)
        self.accuracies = models
        self.judge = Judge(self.resamples)

    def conclude(self, recipe: Callable[..., Finding], arguments: Mapping[str, Any]) -> Finding:
        """Outcome of a recipe, with the grid and the trainings that it rests on."""
        # Made before, or the first claim on it would rest on the sweeps of all its rows.
        _ = self.table
        self.used.clear()
        self.compares_twins = False
        finding = recipe(self, **arguments)
        notes = []
        if finding.judged is not None:
            notes.append("judged on [{:.3g}, {:.3g}]".format(*finding.judged))
        if np.isfinite(finding.value) and not np.isfinite(finding.interval).all():
            notes.append("no interval: too few photographs")
        grid, papers_grid = self.grid()
        rests_on = ""
        if self.compares_twins:
            pairs = "this pair" if len(self._pairs) == 1 else "these pairs"
            rests_on = f"{self.n_trainings} trainings" if self.n_trainings > 1 else pairs
        return finding.noted(*notes, rests_on=rests_on, grid=grid, papers_grid=papers_grid)

    def table_of(
        self,
        *metrics: str,
        pairs: bool = False,
        robust: bool | None = None,
        uses: Collection[str] = tuple(TABLE_ROWS),
    ) -> pd.DataFrame:
        """Rows of Table S1 of some metrics.

        Parameters
        ----------
        metrics : str
            Names of the metrics.
        pairs : bool
            Whether models must be in pairs.
        robust : bool, optional
            Whether of robust or of regular models; of both by default.
        uses : collection of str
            Rows that the claim rests on.
        """
        if pairs:
            self.need_pairs()
        for metric in metrics:
            if self.table["metric"].eq(metric).any():
                continue
            present = [sweep for sweep in TABLE_ROWS.values() if sweep in self.sweeps.index]
            if not present:
                raise MissingError("the study has none of Table S1's sweeps")
            raise MissingError(self.reason(present[0], metric, self.conventions[metric]))
        part = pd.concat([of_metric(self.table, metric, robust) for metric in metrics])
        self.used += part.loc[part["row"].isin(uses), "sweep"].to_list()
        return part

    def formed(self, values: Collection[Replicates]) -> bool:
        """Whether ratios over all of these may be formed."""
        return all(self.judge.formed(value) for value in values)


def claims(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    models: pd.DataFrame,
    options: Statistics,
    *,
    alpha: float = 0.25,
    **evidence: Any,
) -> pd.DataFrame:
    """Every claim of the SAM paper, each with our value, its interval and a verdict.

    Parameters
    ----------
    scores : DataFrame
        Similarity and accuracy rows, as in scores.parquet.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    models : DataFrame
        Columns model, n_val, clean_accuracy; pairs are (m, m-r).
    options : Statistics
        Confidence.
    alpha : float
        Threshold of the localization error.
    comparisons, object_size : DataFrame, optional
        As in comparisons.parquet and object_size.parquet.
    convergence : DataFrame, optional
        Columns model, image_id, converged_step (NaN: never), n_iterations, of a run of meaningful
        perturbation.
    scatter : DataFrame, optional
        Columns model, value (blur radius), image_id, scatter (as `scatter` measures it), of the
        sweep MP-blur.
    structure : DataFrame, optional
        As in structure.parquet.
    fluctuation : DataFrame, optional
        Columns model, image_id, fluctuation: how much masks of meaningful perturbation still change
        (`fluctuation`).
    image_size : int, optional
        Side of the images, px.
    grids : mapping of str to sequence of str, optional
        Values of each sweep, its reference among them.

    Returns
    -------
    DataFrame
        Columns `CLAIM_COLUMNS`; always the same rows. `direction` holds or fails where the interval
        lies wholly on or off the claimed side; `size` says whether it holds the paper's value
        (docs/protocol.md), or `another grid`. `reason` says why a claim is not measurable, or what
        goes with the value. `grid` has the values swept, and the paper's where they differ;
        `papers_grid` is yes, no, or '' where a claim rests on no sweep of the paper's.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        study = Evidence(scores, rows, models, options, alpha=alpha, **evidence)
        every, confidence = read_claims("sam.yaml"), options.confidence
        return claim_table(every, recipe, study, confidence=confidence, columns=CLAIM_COLUMNS)


def scatter(maps: Float[np.ndarray, "batch height width"]) -> Float[np.ndarray, " batch"]:
    """Total variation of each map over its mass, in 1/px: high for scattered, low for smooth maps.

    Our measure of what Figs. 4a and S16 show: for a region of constant value, its perimeter over
    its area. NaN for a map that is 0 everywhere.
    """
    maps = np.abs(np.asarray(maps, dtype=np.float64))
    steps = np.abs(np.diff(maps, axis=1)).sum((1, 2)) + np.abs(np.diff(maps, axis=2)).sum((1, 2))
    mass = maps.sum((1, 2))
    return np.divide(steps, mass, out=np.full(len(maps), np.nan), where=mass > 0)


def fluctuation(
    snapshots: Float[np.ndarray, "batch steps height width"], steps: Sequence[int]
) -> Float[np.ndarray, " batch"]:
    """Mean absolute change of a mask from a snapshot to the next, once robust models' stand still.

    NaN where fewer than two snapshots are that late.

    Parameters
    ----------
    snapshots : ndarray
        Masks in [0, 1] on their way.
    steps : sequence of int
        Steps after which they were taken.
    """
    late = np.asarray(snapshots, dtype=np.float64)[:, np.asarray(steps) >= _STANDS_STILL]
    if late.shape[1] < 2:
        return np.full(len(late), np.nan)
    return np.abs(np.diff(late, axis=1)).mean((1, 2, 3))


def _listed(values: Mapping[str, Replicates], form: str = ".3g") -> str:
    return ", ".join(f"{label} {value.point:{form}}" for label, value in values.items())


def _steps(levels: Mapping[str, Replicates], label: str = "{} to {}") -> dict[str, Replicates]:
    """Difference of each value's level from that of the value before."""
    return {label.format(a, b): levels[b] - levels[a] for a, b in pairwise(levels)}


def _without_rows(table: pd.DataFrame) -> tuple[str, ...]:
    """Note of the rows of Table S1 that are not there."""
    absent = [row for row in TABLE_ROWS if row not in set(table["row"])]
    return (f"without {', '.join(absent)}",) if absent else ()


# Table S1 and Fig. 5


def _moving(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Cells of Table S1 of whose spread a ratio may be formed, and a note of the saturated ones."""
    kept = table[~table["saturated"].astype(bool)]
    lost = len(table) - len(kept)
    return kept, (f"{lost} of {len(table)} cells saturated, left out",) if lost else ()


@recipe
def relative_localization_spread(study: Evidence, robust: bool) -> Finding:
    """RMS std over mean of the localization error, mean over rows and robust or regular models.

    Judged on regular minus robust.
    """
    table = study.table_of("localization_error", pairs=True)
    moving, saturated = _moving(table)
    group = of_metric(moving, "localization_error", robust)
    notes = (*_without_rows(table), *saturated)
    both_kinds = moving["model"].str.endswith(ROBUST).nunique() == 2
    if both_kinds and study.formed(moving["mean"]):
        kinds = [relative_spread(moving, robust=kind) for kind in (False, True)]
        mean = mean_ratio(group, "std_mean", "mean")
        options: dict[str, Any] = {"comparable": not notes}
        notes = (*notes, f"with the mean of the stds {mean.point:.3g}")
    else:
        kinds = [
            mean_of(list(of_metric(table, "localization_error", kind)["std_rms"]))
            for kind in (False, True)
        ]
        options = {"unit": "std", "comparable": False}
        notes = (*notes, "ratios not formed: a mean localization error does not stand out from 0")
    return study.judge.finding(kinds[robust], judged=kinds[0] - kinds[1], notes=notes, **options)


@recipe
def spread_ratio_of_pairs(study: Evidence) -> Finding:
    """RMS std of regular over that of robust models, mean over rows, pairs and accuracy metrics."""
    study.need_pairs()
    measured = [metric for metric in ACCURACY if study.table["metric"].eq(metric).any()]
    table = study.table_of(*(measured or ["insertion"]))
    if "localization_error" not in measured:
        raise MissingError("no image of the study has a box")
    both, notes = twins(table), _without_rows(table)
    formed = np.array([study.judge.formed(value) for value in both["std_rms_robust"]])
    formed &= ~both[["saturated", "saturated_robust"]].astype(bool).any(axis=1).to_numpy()
    if formed.all():
        ratios = (both["std_rms"] / both["std_rms_robust"]).map(lambda ratio: ratio.point)
        notes += (f"median of the ratios {ratios.median():.3g}",)
        options: dict[str, Any] = {"bound": 1.0, "comparable": len(notes) == 1, "notes": notes}
        return study.judge.finding(robust_gain(both), **options)
    count = f"{(~formed).sum()} of {len(formed)} ratios not formed"
    note = f"{count} (a std may be 0, or scores are saturated)"
    if formed.any():
        others = robust_gain(both[formed])
        note += f"; mean of the others {others.point:.3g}"
    difference = mean_of(list(both["std_rms"] - both["std_rms_robust"]))
    return study.judge.finding(difference, **_STDS, notes=(*notes, note))


@recipe
def spread_of_small_patches(study: Evidence, relative: bool) -> Finding:
    """RMS std of the localization error over SP-S, or that over its mean, over regular models."""
    table = study.table_of("localization_error", robust=False, uses=("SP-S",))
    table = table[table["row"] == "SP-S"]
    if table.empty:
        raise MissingError("the study has no sweep SP-S")
    options: dict[str, Any] = {"bound": _SOME_SPREAD}
    note = f"mean of the stds {mean_of(list(table['std_mean'])).point:.3g}"
    moving, saturated = _moving(table)
    if relative and study.formed(table["mean"]) and len(moving):
        return study.judge.finding(relative_spread(moving), **options, notes=saturated)
    if relative:
        note = "ratio not formed: the mean error does not stand out from 0; " + note
        options |= {"unit": "std", "comparable": False}
    return study.judge.finding(mean_of(list(table["std_rms"])), **options, notes=(note,))


@recipe
def similarity_of_small_patches(study: Evidence, bound: float, above: bool = True) -> Finding:
    """Mean SSIM over SP-S, mean over all models.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    bound : float
        What the claim holds the value against.
    above : bool
        Whether the claim is that the value lies above the bound.
    """
    levels = bars(study.table_of("ssim", uses=("SP-S",)))
    if "SP-S" not in levels:
        raise MissingError("the study has no sweep SP-S")
    return study.judge.finding(levels["SP-S"], bound=bound, above=above)


@recipe
def most_varying_metric(study: Evidence) -> Finding:
    """RMS std over mean of the localization error over that of insertion and of deletion."""
    tables = {metric: study.table_of(metric) for metric in ACCURACY}
    others, notes = ("insertion", "deletion"), _without_rows(tables["insertion"])
    moving = {metric: _moving(table) for metric, table in tables.items()}
    notes += tuple(f"{metric}: {note}" for metric, (_, said) in moving.items() for note in said)
    comparable = not notes
    tables = {metric: kept for metric, (kept, _) in moving.items()}
    if all(len(table) and study.formed(table["mean"]) for table in tables.values()):
        spreads = {
            metric: relative_spread(table, metric=metric) for metric, table in tables.items()
        }
        notes = (f"std / mean: {_listed(spreads)}", *notes)
        if study.formed([spreads[metric] for metric in others]):
            parts = {f"over {m}": spreads["localization_error"] / spreads[m] for m in others}
            return study.judge.smallest(parts, bound=1.0, comparable=comparable).noted(*notes)
    # Their difference would be no substitute: an error of 0 or 1 varies more than an area.
    seen = min(mean.seen for mean in study.table_of(*ACCURACY)["mean"])
    note = "ratios not formed: a mean or a spread does not stand out from 0"
    return _undecided(seen, note, *notes)


def _undecided(n_images: int, *notes: str, verdict: str = "inconclusive") -> Finding:
    """Finding without a value."""
    options: dict[str, Any] = {"verdict": verdict, "comparable": False, "notes": notes}
    return Finding(math.nan, (math.nan, math.nan), n_images, **options)


@recipe
def similarity_deficit_of_large_patches(
    study: Evidence, others: Sequence[str], convention: str
) -> Finding:
    """Lowest mean SSIM of other rows of Table S1 minus that of SP-L, means over models.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    others : sequence of str
        Other rows of Table S1.
    convention : str
        Convention of the metric.
    """
    levels = {}
    sweeps = {row: TABLE_ROWS[row] for row in ("SP-L", *others)}
    for row, sweep in sweeps.items():
        # Methods may explain different numbers of images.
        of_models = [
            study.similarity(sweep, model, "ssim", convention, beside=list(sweeps.values()))
            for model in study.models_of(sweep, "ssim", convention)
        ]
        levels[row] = mean_of(of_models)
    parts = {row: levels[row] - levels["SP-L"] for row in others}
    return study.judge.smallest(parts).noted(f"mean SSIM: {_listed(levels)}")


@recipe
def smallest_similarity_gain_in_table_s1(study: Evidence) -> Finding:
    """Smallest robust minus regular mean SSIM, over rows of Table S1 and pairs."""
    return _smallest_in_table_s1(study, ("ssim",), "mean", lambda regular, robust: robust - regular)


@recipe
def smallest_spread_loss_in_table_s1(study: Evidence) -> Finding:
    """Smallest regular minus robust RMS std, over rows of Table S1, pairs and accuracy metrics."""
    return _smallest_in_table_s1(
        study, ACCURACY, "std_rms", lambda regular, robust: regular - robust
    )


def _smallest_in_table_s1(
    study: Evidence,
    metrics: Sequence[str],
    column: str,
    difference: Callable[[Replicates, Replicates], Replicates],
) -> Finding:
    table = study.table_of(*metrics, pairs=True)
    notes = _without_rows(of_metric(table, metrics[0]))
    parts = {
        f"{row['row']} {row['model']} {row['metric']}": difference(
            row[column], row[f"{column}_robust"]
        )
        for row in twins(table).to_dict("records")
    }
    return study.judge.smallest(parts, comparable=not notes).noted(*notes)


# Sections 4.1 and 4.2: comparisons


@recipe
def noise_ratio(study: Evidence, variance: float) -> Finding:
    """Spearman of the gradients of clean and noisy input, mean over robust / regular models."""
    key, pairs = _noise_key(study, variance), study.need_pairs()
    regular, robust = (
        mean_of([study.compared("gradient-noise", model, "", key, "spearman") for model in side])
        for side in zip(*pairs, strict=True)
    )
    return study.judge.ratio(robust, regular)


@recipe
def smallest_noise_gain(study: Evidence, variance: float) -> Finding:
    """Smallest robust minus regular similarity under noise, over metrics and pairs."""
    key, name = _noise_key(study, variance), "gradient-noise"
    parts = {
        f"{metric} {regular}": study.compared(name, robust, "", key, metric)
        - study.compared(name, regular, "", key, metric)
        for regular, robust in study.need_pairs()
        for metric in SIMILARITY
    }
    return study.judge.smallest(parts)


def _noise_key(study: Evidence, variance: float) -> str:
    for value in dict.fromkeys(study.comparison("gradient-noise")["value"].astype(str)):
        if math.isclose(float(value), variance):
            return value
    raise MissingError(f"the study has no comparison gradient-noise at variance {variance:g}")


@dataclass(frozen=True)
class _Rise:
    """Similarity to robust models' plain maps before and after de-noising, and mismatched."""

    plain: Replicates
    denoised: Replicates
    plain_mismatched: Replicates
    denoised_mismatched: Replicates

    @property
    def beyond(self) -> Replicates:
        """Rise beyond that of maps of other images (docs/protocol.md)."""
        rise = self.denoised - self.plain
        return rise - (self.denoised_mismatched - self.plain_mismatched)

    def finding(self, study: Evidence, notes: tuple[str, ...] = ()) -> Finding:
        """Ratio after to before; judged on the rise beyond that of mismatched images."""
        ratio = study.judge.ratio(self.denoised, self.plain)
        finding = ratio.judged_by(study.judge.finding(self.beyond))
        note = (
            f"{self.plain.point:.3g} to {self.denoised.point:.3g}; mismatched images "
            f"{self.plain_mismatched.point:.3g} to {self.denoised_mismatched.point:.3g}"
        )
        return finding.noted(note, *notes)


def _rise(
    study: Evidence,
    comparison: str,
    targets: Sequence[tuple[str, str]],
    keys: Sequence[str],
    metric: str = "ssim",
) -> _Rise:
    """Rise from the plain map to the maps at some keys, means over targets and keys."""
    plain = study.keys(comparison)[0]
    levels = [
        mean_of(
            [
                mean_of([study.compared(comparison, *t, key, metric, pairing) for t in targets])
                for key in group
            ]
        )
        for pairing in ("same", "mismatched")
        for group in ([plain], keys)
    ]
    return _Rise(*levels)


def _key(study: Evidence, comparison: str, guided: bool) -> str:
    """Guided backprop, or the largest value of the de-noising, which the claim then rests on."""
    keys = study.keys(comparison)
    if guided:
        return GUIDED
    study.rests_on(comparison, keys)
    return keys[-1]


def _stand_in(pair: tuple[str, str], family: str) -> tuple[str, ...]:
    if family == "resnet" and pair[0] != "resnet50":
        return (f"{pair[0]} stands for ResNet-50",)
    return ()


@recipe
def denoising_ratio(
    study: Evidence, comparison: str, role: str, guided: bool = False, family: str = ""
) -> Finding:
    """Mean SSIM to robust models' plain maps after de-noising over that before.

    Judged on the rise beyond that of mismatched images.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    comparison : str
        Name of the comparison.
    role : {'twin', 'control'}
        Whether the robust model is the regular one's twin.
    guided : bool
        Whether guided backprop takes the place of the largest value.
    family : str
        Network of the paper, `googlenet` or `resnet`; all pairs where empty.
    """
    pair = study.family(family) if family else None
    if role == "twin":
        study.need_pairs()
    targets = study.targets(comparison, role, pair[0] if pair else None)
    rise = _rise(study, comparison, targets, [_key(study, comparison, guided)])
    return rise.finding(study, _stand_in(pair, family) if pair else ())


@recipe
def denoising_ratio_of_two(study: Evidence, comparison: str) -> Finding:
    """As `denoising_ratio`, after is the mean of the largest N and guided backprop."""
    study.need_pairs()
    targets = study.targets(comparison, "twin")
    keys = [_key(study, comparison, guided) for guided in (False, True)]
    return _rise(study, comparison, targets, keys).finding(study)


@recipe
def smallest_denoising_step(study: Evidence, comparison: str) -> Finding:
    """Smallest step of similarity from a value to the next, over values, metrics and pairs."""
    study.need_pairs()
    keys = study.keys(comparison)
    study.rests_on(comparison, keys)
    parts: dict[str, Replicates] = {}
    for target in study.targets(comparison, "twin"):
        for metric in SIMILARITY:
            levels = {key: study.compared(comparison, *target, key, metric) for key in keys}
            parts |= _steps(levels, f"{metric} {target[0]} {{}} to {{}}")
    return study.judge.smallest(parts)


@recipe
def smallest_rise_beyond_mismatch(
    study: Evidence, comparison: str, guided: bool = False
) -> Finding:
    """Smallest rise of similarity beyond that of mismatched images, over metrics and pairs.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    comparison : str
        Name of the comparison.
    guided : bool
        Whether guided backprop takes the place of the largest value.
    """
    study.need_pairs()
    keys = [_key(study, comparison, guided)]
    parts = {
        f"{metric} {target[0]}": _rise(study, comparison, [target], keys, metric).beyond
        for target in study.targets(comparison, "twin")
        for metric in SIMILARITY
    }
    return study.judge.smallest(parts)


@recipe
def distance_ratio(study: Evidence, family: str) -> Finding:
    """Mean L1 distance of the maps at smallest and largest N, regular over robust model."""
    pair = study.family(family)
    key = str(study.comparison("distance")["value"].iloc[0])
    study.rests_on("distance", key.split("-"))
    regular, robust = (study.compared("distance", model, "", key, "l1") for model in pair)
    return study.judge.ratio(regular, robust, notes=_stand_in(pair, family))


# Sections 4.3 and 4.4: how consistent maps are


@recipe
def similarity_of_robust(study: Evidence, sweep: str) -> Finding:
    """Mean SSIM over a sweep, mean over robust models."""
    levels = [study.similarity(sweep, robust, "ssim") for _, robust in study.need_pairs()]
    return study.judge.finding(mean_of(levels), bound=_NEAR_ONE)


@recipe
def consistency_ratio(
    study: Evidence, sweep: str, metrics: Sequence[str], family: str = ""
) -> Finding:
    """Mean over metrics of mean similarity of robust over that of regular models.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    sweep : str
        Name of the sweep.
    metrics : sequence of str
        Names of the similarities.
    family : str
        Network of the paper, `googlenet` or `resnet`; all pairs where empty.
    """
    pairs = [study.family(family)] if family else study.need_pairs()
    sides = {
        metric: [
            mean_of([study.similarity(sweep, model, metric) for model in side])
            for side in zip(*pairs, strict=True)
        ]
        for metric in metrics
    }
    notes = _stand_in(pairs[0], family)
    if len(metrics) == 1:
        regular, robust = sides[metrics[0]]
        return study.judge.ratio(robust, regular, notes=notes)
    unformed = [name for name, (regular, _) in sides.items() if not study.judge.formed(regular)]
    if unformed:
        difference = mean_of([robust - regular for regular, robust in sides.values()])
        note = f"ratio not formed: {', '.join(unformed)} of the regular models may be 0"
        options: dict[str, Any] = {
            "unit": "difference",
            "comparable": False,
            "notes": (*notes, note),
        }
        return study.judge.finding(difference, **options)
    ratios = {metric: robust / regular for metric, (regular, robust) in sides.items()}
    mean = mean_of(list(ratios.values()))
    return study.judge.finding(mean, bound=1.0, notes=(*notes, _listed(ratios)))


def _gains(study: Evidence, sweeps: Sequence[str], metrics: Sequence[str]) -> dict[str, Replicates]:
    """Similarity of robust minus that of regular models, by sweep, metric and pair."""
    return {
        f"{sweep} {metric} {regular}": study.similarity(sweep, robust, metric)
        - study.similarity(sweep, regular, metric)
        for sweep in sweeps
        for regular, robust in study.need_pairs()
        for metric in metrics
    }


@recipe
def smallest_gain(
    study: Evidence,
    sweeps: Sequence[str],
    metrics: Sequence[str],
    above: bool = True,
) -> Finding:
    """Smallest robust minus regular similarity, over sweeps, metrics and pairs.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    sweeps : sequence of str
        Names of the sweeps.
    metrics : sequence of str
        Names of the similarities.
    above : bool
        Whether the claim is that the value lies above 0.
    """
    return study.judge.smallest(_gains(study, sweeps, metrics), above=above)


@recipe
def mean_gain(study: Evidence, sweep: str) -> Finding:
    """Robust minus regular similarity in a sweep, mean over metrics and pairs."""
    gains = _gains(study, (sweep,), SIMILARITY)
    notes = (_listed(gains, "+.3f"),)
    return study.judge.finding(mean_of(list(gains.values())), above=False, notes=notes)


@recipe
def smallest_hog_excess(study: Evidence, sweeps: Sequence[str]) -> Finding:
    """Smallest HOG correlation minus Spearman or SSIM, over sweeps and models."""
    parts = {
        f"{sweep} {model} over {metric}": study.similarity(sweep, model, "hog_pearson")
        - study.similarity(sweep, model, metric)
        for sweep in sweeps
        for model in study.models_of(sweep, "hog_pearson")
        for metric in ("spearman", "ssim")
    }
    return study.judge.smallest(parts)


@recipe
def smallest_amplitude_step(study: Evidence) -> Finding:
    """Smallest step of SP-L's mean dynamic range from one patch size to the next, over models."""
    parts: dict[str, Replicates] = {}
    for model in study.models_of("SP-L", "dynamic_range"):
        levels = study.setting_means("SP-L", model, "dynamic_range")
        parts |= _steps(levels, f"{model} {{}} to {{}} px")
    if not parts:
        raise MissingError("SP-L has one setting")
    return study.judge.smallest(parts)


@recipe
def scatter_ratio(study: Evidence, robust: bool) -> Finding:
    """Mean scatter of MP's maps at the largest over that at the smallest blur radius."""
    frame = study.scatter
    if frame is None or frame.empty:
        raise MissingError("the scatter of MP-blur's maps was not measured")
    models = [pair[robust] for pair in study.need_pairs()]
    values = in_order(frame["value"].astype(str))
    if len(values) < 2:
        raise MissingError("MP-blur has one setting")
    study.rests_on("MP-blur", values)
    ends = {}
    for value in (values[0], values[-1]):
        part = frame[frame["value"].astype(str) == value]
        missing = f"no scatter of {{}} at blur radius {value}"
        ends[value] = _mean_over_models(study, part, "scatter", models, missing)
    first, last = ends.values()
    note = f"{first.point:.3g} at {values[0]}, {last.point:.3g} at {values[-1]} per px"
    return study.judge.ratio(last, first, above=not robust, notes=(note,))


def _mean_over_models(
    study: Evidence, frame: pd.DataFrame, column: str, models: Sequence[str], missing: str
) -> Replicates:
    """Mean over models of a positive column's mean over images."""
    absent = [model for model in models if model not in set(frame["model"])]
    if absent:
        raise MissingError(missing.format(absent[0]))
    frame = by_training(frame.astype({column: float}))
    parts = [study.per_image(frame[frame["model"] == model], column) for model in models]
    return mean_of([study.mean(part, POSITIVE) for part in parts])


@recipe
def steps_to_converge(study: Evidence) -> Finding:
    """First step from which MP's loss stays within 5 % of its drop, mean over robust models.

    Judged on regular minus robust.
    """
    frame = study.convergence
    if frame is None or frame.empty:
        raise MissingError("the study has no losses of meaningful perturbation")
    steps = frame.assign(step=frame["converged_step"].fillna(frame["n_iterations"]))
    missing = "no losses of meaningful perturbation on {}"
    regular, robust = (
        _mean_over_models(study, steps, "step", side, missing)
        for side in zip(*study.need_pairs(), strict=True)
    )
    never = int(frame["converged_step"].isna().sum())
    notes = [f"regular {regular.point:.3g} steps, of {frame['n_iterations'].max()}"]
    notes += [f"{never} runs never converge, counted at the last step"] if never else []
    return study.judge.finding(robust, judged=regular - robust, notes=tuple(notes))


# Fig. 6


@dataclass(frozen=True)
class _Objects:
    """Rows of the largest or the smallest object, and a judge that resamples its images."""

    frame: pd.DataFrame
    judge: Judge

    @property
    def size(self) -> int:
        """Side of the object, px."""
        return self.frame["object_size"].iloc[0]

    def mean(self, column: str, where: pd.Series | slice = slice(None)) -> Replicates:
        """Mean of a column over images, of some rows."""
        values = self.frame[where].groupby("image_id")[column].mean()
        within = SIMILARITY_RANGE if column in ("peak", "score") else POSITIVE
        values = values.reindex(self.judge.resamples.image_ids)
        return self.judge.resamples.mean(values.to_numpy(float), within=within)

    def finding(self, finding: Finding, patches: pd.Series | None = None) -> Finding:
        """Finding with its patches, number of objects and how its interval was formed."""
        n = len(self.judge.resamples.image_ids)
        notes = []
        if patches is not None:
            sizes = ", ".join(map(str, sorted(self.frame.loc[patches, "patch_size"].unique())))
            notes = [f"patches of {sizes} px on {self.size} px"]
        return finding.noted(*notes, n_images=n)


def _objects(study: Evidence, extreme: str) -> _Objects:
    frame = study.object_size
    if frame is None or frame.empty:
        raise MissingError("the study has no comparison of patch and object sizes")
    n, frame = frame["image_id"].nunique(), seen_objects(frame)
    if (known := frame["image_id"].nunique()) < _FEWEST_OBJECTS:
        raise MissingError(
            f"{known} of {n} objects alone have a probability of {SEEN:g} or more; it takes "
            f"{_FEWEST_OBJECTS}: raise comparisons.object_size.n_images"
        )
    frame = frame[frame["object_size"] == frame["object_size"].agg(extreme)]
    image_ids = list(dict.fromkeys(frame["image_id"]))
    # Objects stand on a blank background: no photograph is shared.
    resamples = Resamples(image_ids, image_ids, study.resamples.options)
    return _Objects(frame, Judge(resamples))


@recipe
def peak_of_small_patches(study: Evidence) -> Finding:
    """Peak of SP's map over the probability of the object alone, for patches much smaller."""
    objects = _objects(study, "max")
    small = objects.frame["patch_size"] <= _SMALL_PATCH * objects.size
    if not small.any():
        raise MissingError("no patch is small beside the largest object")
    peak, score = (objects.mean(column, small) for column in ("peak", "score"))
    options: dict[str, Any] = {"bound": _BLANK, "above": False}
    if objects.judge.formed(score):
        return objects.finding(objects.judge.finding(peak / score, **options), small)
    options |= {"unit": "probability"}
    note = "ratio not formed: the object's own probability may be 0"
    return objects.finding(objects.judge.finding(peak, **options, notes=(note,)), small)


@recipe
def area_of_large_patches(study: Evidence) -> Finding:
    """Area of SP's map above half its maximum over the object's, for patches much larger."""
    objects = _objects(study, "min")
    large = objects.frame["patch_size"] >= _LARGE_PATCH * objects.size
    if not large.any():
        raise MissingError("no patch is large beside the smallest object")
    area, size = (objects.mean(column, large) for column in ("area_above_half", "object_area"))
    return objects.finding(objects.judge.ratio(area, size), large)


@recipe
def smallest_area_step(study: Evidence) -> Finding:
    """Smallest step of the mean area above half the maximum from one patch size to the next."""
    objects = _objects(study, "min")
    patches = objects.frame["patch_size"]
    if patches.nunique() < 2:
        raise MissingError("one patch size alone")
    levels = {
        str(size): objects.mean("area_above_half", patches == size)
        for size in sorted(patches.unique())
    }
    return objects.finding(objects.judge.smallest(_steps(levels, "{} to {} px")))


# Section 4.6, Fig. 7


@recipe
def global_spread_ratio(study: Evidence, numerator: str, denominator: str, metric: str) -> Finding:
    """Std over a sweep's dataset means, scaled to the paper's images, over that of another.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    numerator : str
        Sweep whose spread is divided.
    denominator : str
        Sweep whose spread it is divided by.
    metric : str
        Name of the metric.
    """
    spreads = {
        f"{sweep} {metric}": study.scaled(sweep, metric) for sweep in (numerator, denominator)
    }
    if weak := _not_resolved(study, spreads):
        return weak
    above, below = spreads.values()
    finding = study.judge.ratio(above.own, below.own)
    if below.std.point > 0:
        return finding.noted(f"at this study's n {above.std.point / below.std.point:.3g}")
    return finding


def _not_resolved(study: Evidence, spreads: Mapping[str, Spread]) -> Finding | None:
    """Finding where a hyperparameter's spread is the images' noise, or scores are saturated."""
    n = min(spread.n_images for spread in spreads.values())
    level = (1 - study.resamples.options.confidence) / 2
    weak = {name: spread for name, spread in spreads.items() if not spread.p <= level}
    if weak:
        listed = ", ".join(f"{name} p {spread.p:.2g}" for name, spread in weak.items())
        finding = _undecided(n, f"not resolved at n = {n}: {listed}", verdict=NOT_RESOLVED)
        images = [spread.resolved_by(level) for spread in weak.values()]
        return replace(finding, resolved_by=float(np.max(images)))
    stuck = [name for name, spread in spreads.items() if spread.saturated]
    return _undecided(n, f"no ratio, saturated: {', '.join(stuck)}") if stuck else None


@recipe
def largest_global_spread_factor(study: Evidence) -> Finding:
    """Largest factor between the global spreads of two hyperparameters of a method, no seeds."""
    ratios: dict[tuple[str, str, str], Replicates] = {}
    missing, weak = [], []
    for first, second in (("SP-L", "SP-S"), ("MP-N", "MP-blur")):
        for metric in ACCURACY:
            try:
                spreads = {f"{s} {metric}": study.scaled(s, metric) for s in (first, second)}
            except MissingError as error:
                missing.append(str(error))
                continue
            if unresolved := _not_resolved(study, spreads):
                weak.append(unresolved)
                continue
            above, below = (spread.own for spread in spreads.values())
            if study.formed((above, below)):
                ratios[first, second, metric] = above / below
    notes = [f"left out: {reason}" for reason in dict.fromkeys(missing)]
    notes += [note for finding in weak for note in finding.notes]
    if ratios:
        return _largest_factor(study, ratios).noted(*notes)
    if weak:
        return replace(weak[0], notes=tuple(notes))
    if len(missing) == 2 * len(ACCURACY):
        raise MissingError(missing[0])
    return _undecided(len(study.resamples.image_ids), "ratios not formed", *notes)


@recipe
def seed_spread_factor(study: Evidence) -> Finding:
    """Largest factor, over accuracy metrics, between the global spreads of LIME's and MP's seed."""
    spreads = {
        metric: {name: study.scaled(f"{name}-seed", metric) for name in ("LIME", "MP")}
        for metric in ACCURACY
    }
    every = {f"{name}-seed {m}": s for m, pair in spreads.items() for name, s in pair.items()}
    if weak := _not_resolved(study, every):
        return weak
    return _factor(
        study,
        {m: {name: s.scaled for name, s in pair.items()} for m, pair in spreads.items()},
    )


@recipe
def seed_spread_factor_per_image(study: Evidence) -> Finding:
    """Factor between the RMS stds of the localization error over LIME's and MP's seed."""
    return _factor(study, {"localization_error": _spread_per_image(study, "LIME", "MP")})


@recipe
def patch_spread_ratio_per_image(study: Evidence) -> Finding:
    """RMS std of the localization error over SP-L over that over SP-S, means over models."""
    return study.judge.ratio(*_spread_per_image(study, "SP-L", "SP-S").values())


def _spread_per_image(study: Evidence, *rows: str) -> dict[str, Replicates]:
    """RMS std of the localization error of rows of Table S1, means over models."""
    table = study.table_of("localization_error", uses=rows)
    moving, _ = _moving(table)
    spreads = bars(moving, "localization_error", "std_rms")
    for row in rows:
        if row not in set(table["row"]):
            raise MissingError(f"the study has no sweep {TABLE_ROWS[row]}")
        # Where all is saturated the spread is 0, of which no ratio is formed.
        if row not in spreads:
            spreads[row] = bars(table, "localization_error", "std_rms")[row]
    return {row: spreads[row] for row in rows}


def _factor(study: Evidence, spreads: Mapping[str, Mapping[str, Replicates]]) -> Finding:
    """Largest factor between two spreads over metrics, whichever is the larger."""
    ratios: dict[tuple[str, str, str], Replicates] = {}
    for metric, pair in spreads.items():
        for name, spread in pair.items():
            if not study.judge.formed(spread):
                note = f"ratio not formed: the {metric} spread of {name}'s seed may be 0"
                return _undecided(spread.seen, note)
        ratios["LIME", "MP", metric] = pair["LIME"] / pair["MP"]
    return _largest_factor(study, ratios, above=False)


def _largest_factor(
    study: Evidence, ratios: Mapping[tuple[str, str, str], Replicates], above: bool = True
) -> Finding:
    """Largest factor between two spreads of a metric; whether claimed above `_FACTOR`, or below."""
    logarithms = {}
    for (first, second, metric), ratio in ratios.items():
        logarithm = combined(np.log, ratio)
        logarithms[f"{first}/{second} {metric}"] = logarithm
        logarithms[f"{second}/{first} {metric}"] = -logarithm
    finding = study.judge.largest(logarithms, bound=_FACTOR, above=above)
    at = finding.at
    assert at is not None

    def factor(confidence: float) -> Interval:
        low, high = at(confidence)
        return math.exp(low), math.exp(high)

    ends = factor(study.resamples.options.confidence)
    changes: dict[str, Any] = {"value": math.exp(finding.value), "interval": ends, "at": factor}
    listed = {f"{a}/{b} {metric}": ratio for (a, b, metric), ratio in ratios.items()}
    return replace(finding, **changes).noted(_listed(listed))


@recipe
def smallest_global_spread_ratio(study: Evidence, sweep: str, others: Sequence[str]) -> Finding:
    """Smallest ratio of a sweep's global spread to another's, over accuracy metrics and others.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    sweep : str
        Name of the sweep.
    others : sequence of str
        Sweeps that it is held against.
    """
    spreads = {f"{s} {m}": study.scaled(s, m) for m in ACCURACY for s in (sweep, *others)}
    if weak := _not_resolved(study, spreads):
        return weak
    ratios, differences = {}, {}
    for metric in ACCURACY:
        above = spreads[f"{sweep} {metric}"].own
        for other in others:
            below = spreads[f"{other} {metric}"].own
            differences[f"{metric} over {other}"] = above - below
            if study.judge.formed(below):
                ratios[f"{metric} over {other}"] = above / below
    if len(ratios) == len(differences):
        return study.judge.smallest(ratios, bound=1.0)
    note = "ratios not formed: a spread may be 0"
    return study.judge.smallest(differences, **_STDS).noted(note)


# What only ImageNet can tell


@recipe
def accuracies(study: Evidence) -> Finding:
    """Largest distance of the accuracies of the paper's models from the paper's, in points."""
    ours = study.accuracies.set_index("model")
    listed = ", ".join(
        f"{row.Index} {100 * row.clean_accuracy:.1f} % of {row.n_val}" for row in ours.itertuples()
    )
    if not set(_PAPERS_ACCURACIES) <= set(ours.index) or (ours["n_val"] != _IMAGENET).any():
        raise MissingError(
            f"needs ImageNet's 50,000 validation images and the paper's weights; here {listed}"
        )
    parts = {
        model: abs(100 * ours.loc[model, "clean_accuracy"] - paper)
        for model, paper in _PAPERS_ACCURACIES.items()
    }
    options: dict[str, Any] = {"bound": _POINTS, "above": False, "notes": (listed,)}
    largest = max(parts.values())
    # The same images, of which nothing is a sample.
    verdict = "holds" if largest < _POINTS else "fails"
    return Finding(largest, (math.nan, math.nan), _IMAGENET, verdict=verdict, **options)


@recipe
def images_that_rise(study: Evidence, comparison: str, family: str) -> Finding:
    """Share of the images whose similarity to the robust twin rises as the example's does.

    From every value to the next, and highest under guided backprop.
    """
    pair = study.family(family)
    keys = [*study.keys(comparison), GUIDED]
    study.rests_on(comparison, keys[:-1])
    levels = [study.compared_images(comparison, *pair, key, "ssim") for key in keys]
    ordered = [after > before for before, after in pairwise(levels[:-1])]
    ordered.append(levels[-1] > np.max(levels[:-1], axis=0))
    known = np.isfinite(levels).all(axis=0)
    share = study.mean(np.where(known, np.all(ordered, axis=0), np.nan), SHARE)
    verdict = "holds" if share.point > 0 else "fails"
    return study.judge.finding(share, verdict=verdict, comparable=False).noted(
        *_stand_in(pair, family)
    )


@recipe
def widest_gain(study: Evidence, sweep: str, family: str) -> Finding:
    """Largest difference of one image's SSIM on the robust and the regular model of a sweep."""
    pair = study.family(family)
    regular, robust = (defined_mean(study.cells(sweep, model, "ssim")[1], (0, 2)) for model in pair)
    gains = pd.Series(robust - regular, study.resamples.image_ids).dropna()
    if gains.empty:
        raise MissingError(f"{sweep} has no image with scores on both models")
    image_id = gains.idxmax()
    place = study.resamples.image_ids.get_loc(image_id)
    note = f"{image_id}: {regular[place]:.4f} on {pair[0]}, {robust[place]:.4f} on {pair[1]}"
    options: dict[str, Any] = {"comparable": False, "notes": (note, *_stand_in(pair, family))}
    verdict = "holds" if gains.max() > 0 else "fails"
    ends = math.nan, math.nan
    return Finding(gains.max(), ends, len(gains), verdict=verdict, **options)


# What the paper says and does not count


@recipe
def clean_accuracy_loss(study: Evidence) -> Finding:
    """Clean accuracy of regular minus that of robust models, mean over pairs."""
    rows = study.accuracies.set_index("model")
    pairs = study.need_pairs()
    shares = rows["clean_accuracy"].astype(float)
    losses = {regular: shares[regular] - shares[robust] for regular, robust in pairs}
    variances = (shares * (1 - shares) / rows["n_val"])[np.unique(pairs)]
    # Two accuracies on the same images vary together: taken as independent, on the safe side.
    parts = [(value / len(pairs) ** 2, rows["n_val"].min() - 1) for value in variances]
    mean = float(np.mean([*losses.values()]))

    def at(confidence: float) -> Interval:
        within = SHARE.minus(SHARE)
        return t_interval(mean, parts, confidence=confidence, within=within)

    listed = ", ".join(f"{model} {loss:+.3f}" for model, loss in losses.items())
    ends, n = at(study.resamples.options.confidence), int(rows["n_val"].min())
    return Finding(mean, ends, n, at=at, notes=(listed,))


def _structures(study: Evidence, method: str, metric: str) -> dict[str, structure.Structure]:
    """Structure of a method's maps at the reference of its first sweep, by model."""
    frame = study.structure
    if frame is None or frame.empty:
        raise MissingError("the structure of maps was not measured")
    frame = frame[(frame["method"] == method) & (frame["metric"] == metric)]
    if frame.empty:
        raise MissingError(f"the study has no {metric} of {method}")
    frame = frame[frame["sweep"] == frame["sweep"].iloc[0]]
    return {key[2]: found for key, found in structure.measured(frame, study.resamples)}


@recipe
def smallest_structure_gain(study: Evidence, method: str, metric: str) -> Finding:
    """Smallest robust minus regular structure beyond the floor, over pairs.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    method : str
        Name of the method.
    metric : str
        Name of the metric of structure.
    """
    found = _structures(study, method, metric)
    parts = {
        regular: found[robust].beyond - found[regular].beyond
        for regular, robust in study.need_pairs()
    }
    levels = {model: one.beyond for model, one in found.items()}
    return study.judge.smallest(parts).noted(f"beyond the floor: {_listed(levels)}")


@recipe
def smallest_structure(study: Evidence, method: str, metric: str) -> Finding:
    """Smallest structure of robust models' maps beyond the floor.

    Parameters
    ----------
    study : Evidence
        The study's scores.
    method : str
        Name of the method.
    metric : str
        Name of the metric of structure.
    """
    robust = [pair[1] for pair in study.need_pairs()]
    found = _structures(study, method, metric)
    return study.judge.smallest({model: found[model].beyond for model in robust})


@recipe
def smallest_spread_beyond_means(study: Evidence) -> Finding:
    """Smallest RMS std per image over the std of dataset means, over rows of Table S1.

    Means over models and three metrics; twice the std is subtracted where a ratio can't be formed.
    """
    spreads = {
        row: [study.scaled(sweep, metric) for metric in ACCURACY]
        for row, sweep in TABLE_ROWS.items()
        if sweep in study.sweeps.index
    }
    if not spreads:
        raise MissingError("the study has none of Table S1's sweeps")
    if study.formed([spread.std for row in spreads.values() for spread in row]):
        ratios = {
            row: mean_of([spread.per_image / spread.std for spread in found])
            for row, found in spreads.items()
        }
        return study.judge.smallest(ratios, bound=_FACTOR).noted(_listed(ratios))

    def less_twice(spread: Spread) -> Replicates:
        within = Range(-_FACTOR / 2, 0.5)
        return combined(lambda a, b: a - _FACTOR * b, spread.per_image, spread.std, within=within)

    less = {
        row: mean_of([less_twice(spread) for spread in found]) for row, found in spreads.items()
    }
    note = "ratios not formed: dataset means may not differ"
    options: dict[str, Any] = {"unit": "std less twice that of means", "comparable": False}
    return study.judge.smallest(less, **options).noted(note)


@recipe
def drop_of_huge_objects(study: Evidence) -> Finding:
    """Dynamic range of SP-L's maps at the largest patch, huge objects minus others.

    Mean over regular models.
    """
    rows, side = study.rows, study.image_size
    if side is None or "x0" not in rows or not (rows["x0"] >= 0).any():
        raise MissingError("no image of the study has a box")
    area = (rows["x1"] - rows["x0"]) * (rows["y1"] - rows["y0"]) / side**2
    huge = (area >= _HUGE).to_numpy()
    others = (rows["x0"] >= 0).to_numpy() & ~huge
    if min(huge.sum(), others.sum()) < 2:
        raise MissingError(f"{huge.sum()} of {len(rows)} objects cover half of the image or more")
    models = [m for m in study.models_of("SP-L", "dynamic_range") if not m.endswith(ROBUST)]
    groups: dict[str, Replicates] = {}
    for name, chosen in (("huge", huge), ("others", others)):
        drops = []
        for model in models:
            values, cells = study.cells("SP-L", model, "dynamic_range")
            largest = np.where(chosen, cells[..., len(values) - 1], np.nan)
            drops.append(study.mean(largest, POSITIVE))
        groups[name] = mean_of(drops)
    note = f"{huge.sum()} huge objects {groups['huge'].point:.3g}, {others.sum()} others "
    note += f"{groups['others'].point:.3g}, patch {values[-1]} px"
    difference = groups["huge"] - groups["others"]
    return study.judge.finding(difference, above=False, notes=(note,))


@recipe
def fluctuation_ratio(study: Evidence) -> Finding:
    """Mean change of MP's masks once robust models' stand still, regular over robust models."""
    frame = study.fluctuation
    if frame is None or frame["fluctuation"].isna().all():
        raise MissingError("no masks of meaningful perturbation were kept on their way")
    missing = "no masks of meaningful perturbation on {}"
    regular, robust = (
        _mean_over_models(study, frame, "fluctuation", side, missing)
        for side in zip(*study.need_pairs(), strict=True)
    )
    return study.judge.ratio(regular, robust)
