"""Claims of the SAM paper (Bansal et al., 2020), recomputed from scores per image."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.analysis.claims.scores import (
    ACCURACY,
    SIMILARITY,
    TABLE_ROWS,
    StudyScores,
    in_order,
    mean_of,
    of_metric,
    stacked,
    twins,
)
from steadymap.analysis.claims.verdict import Draws, Finding, MissingError, Resamples
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import POSITIVE, SIMILARITY_RANGE, range_of

CLAIM_COLUMNS = (
    *("claim", "name", "section", "statement", "recipe", "paper_value", "value"),
    *("ci_low", "ci_high", "unit", "n_images", "direction", "size", "reason"),
    *("grid", "papers_grid"),
)

NOT_MEASURABLE = "not measurable here"

OTHER_GRID = "another grid"

# Robust models are "not more consistent" where they gain less than this similarity.
_MARGIN = 0.05

# "Near 1", "about 1" and "blank": the paper gives no bound.
_NEAR_ONE, _ABOUT_ONE, _BLANK = 0.95, 0.9, 0.1

# Patch over object: its blank maps had at most 29/84, its oversized ones at least 29/19.
_SMALL_PATCH, _LARGE_PATCH = 0.35, 1.5

# Ranges of a difference between two similarities, and of spreads of accuracy scores.
_GAIN = SIMILARITY_RANGE.minus(SIMILARITY_RANGE)

_STD = range_of("insertion").spread

_STDS: dict[str, Any] = {
    "within": _STD.minus(_STD),
    "unit": "difference of stds",
    "comparable": False,
}


def relative_spread(
    table: pd.DataFrame, *, metric: str = "localization_error", robust: bool | None = None
) -> np.ndarray:
    """Mean over rows and models of std / mean (SAM 4.5).

    Parameters
    ----------
    table : DataFrame
        Columns row, model, metric, mean, std_rms.
    metric : str
        Name of the metric.
    robust : bool, optional
        Whether over robust or regular models; over all by default.

    Returns
    -------
    ndarray
        0-dimensional for a table of numbers, (draws,) for one of draws.
    """
    part = of_metric(table, metric, robust)
    return np.mean(stacked(part, "std_rms") / stacked(part, "mean"), axis=0)


def robust_gain(table: pd.DataFrame) -> np.ndarray:
    """Mean over rows, pairs and accuracy metrics of std of regular / std of robust (SAM 4.5)."""
    both = twins(table[table["metric"].isin(ACCURACY)])
    return np.mean(stacked(both, "std_rms") / stacked(both, "std_rms_robust"), axis=0)


def bars(table: pd.DataFrame, metric: str = "ssim", column: str = "mean") -> dict[str, np.ndarray]:
    """Mean over models of a column, per row of the table (Fig. 5)."""
    part = table[table["metric"] == metric]
    return {
        str(row): np.mean(stacked(own, column), axis=0)
        for row, own in part.groupby("row", sort=False)
    }


def scatter(maps: Float[np.ndarray, "batch height width"]) -> Float[np.ndarray, " batch"]:
    """Total variation of each map over its mass, in 1/px: high for scattered, low for smooth maps.

    Our measure of what Figs. 4a and S16 show: for a region of constant value, its perimeter over
    its area. NaN for a map that is 0 everywhere.
    """
    maps = np.abs(np.asarray(maps, dtype=np.float64))
    steps = np.abs(np.diff(maps, axis=1)).sum((1, 2)) + np.abs(np.diff(maps, axis=2)).sum((1, 2))
    mass = maps.sum((1, 2))
    return np.divide(steps, mass, out=np.full(len(maps), np.nan), where=mass > 0)


@dataclass(frozen=True)
class _Evidence:
    """Everything that claims are judged on."""

    study: StudyScores
    models: pd.DataFrame
    object_size: pd.DataFrame | None
    convergence: pd.DataFrame | None
    scatter: pd.DataFrame | None


@dataclass(frozen=True)
class _Claim:
    claim: str
    name: str
    section: str
    statement: str
    recipe: str
    paper: float
    unit: str
    evaluate: Callable[[_Evidence], Finding]


def claims(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    models: pd.DataFrame,
    options: Statistics,
    *,
    alpha: float = 0.25,
    comparisons: pd.DataFrame | None = None,
    object_size: pd.DataFrame | None = None,
    convergence: pd.DataFrame | None = None,
    scatter: pd.DataFrame | None = None,
    grids: Mapping[str, Sequence[str]] | None = None,
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
        Confidence, resamples and their seed.
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
    study = StudyScores(
        scores,
        rows,
        options,
        alpha=alpha,
        models=list(models["model"]),
        comparisons=comparisons,
        grids=grids,
    )
    evidence = _Evidence(study, models, object_size, convergence, scatter)
    # Made once, or the first claim on it would count the images of all its rows.
    with np.errstate(divide="ignore", invalid="ignore"):
        _ = study.table
        found = [_line(claim, evidence) for claim in _CLAIMS]
    return pd.DataFrame(found, columns=list(CLAIM_COLUMNS))


def _line(claim: _Claim, evidence: _Evidence) -> dict[str, object]:
    line = {key: getattr(claim, key) for key in CLAIM_COLUMNS[:5]} | {"paper_value": claim.paper}
    resamples = evidence.study.resamples
    resamples.seen.clear()
    evidence.study.used.clear()
    try:
        found = claim.evaluate(evidence)
    except MissingError as error:
        nothing = dict.fromkeys(("value", "ci_low", "ci_high"), math.nan)
        verdict = {"direction": NOT_MEASURABLE, "size": "", "reason": str(error)}
        verdict |= {"grid": "", "papers_grid": ""}
        return line | nothing | {"unit": claim.unit, "n_images": 0} | verdict
    notes = list(found.notes)
    if found.judged is not None:
        notes.append("judged on [{:.3g}, {:.3g}]".format(*found.judged))
    if not np.isfinite(found.interval).all():
        # Without a value the notes say why.
        notes += [] if math.isnan(found.value) and notes else ["no interval: too few images"]
    elif resamples.jackknife and found.n_images is None:
        notes.append(f"t-interval of the jackknife over {resamples.n_clusters} photographs")
    grid, papers = evidence.study.grid()
    size = found.size(claim.paper)
    return line | {
        "value": found.value,
        "ci_low": found.interval[0],
        "ci_high": found.interval[1],
        "unit": found.unit or claim.unit,
        "n_images": min(resamples.seen, default=0) if found.n_images is None else found.n_images,
        "direction": found.direction,
        "size": OTHER_GRID if papers == "no" and size in ("inside", "outside") else size,
        "reason": "; ".join(notes),
        "grid": grid,
        "papers_grid": papers,
    }


# Table S1 and Fig. 5.


def _table(
    evidence: _Evidence,
    metric: str,
    *,
    pairs: bool = False,
    uses: Collection[str] = tuple(TABLE_ROWS),
) -> pd.DataFrame:
    """Rows of Table S1 of a metric; `uses` are those that the claim rests on."""
    study = evidence.study
    if pairs:
        study.need_pairs()
    part = study.table[study.table["metric"] == metric]
    if part.empty:
        present = [row for row, sweep in TABLE_ROWS.items() if sweep in study.sweeps.index]
        if not present:
            raise MissingError("the study has none of Table S1's sweeps")
        convention = study.conventions[metric]
        raise MissingError(study.reason(TABLE_ROWS[present[0]], metric, convention))
    study.resamples.seen.append(int(part["n_images"].min()))
    study.used += part.loc[part["row"].isin(uses), "sweep"].to_list()
    return part


def _rows_missing(table: pd.DataFrame) -> tuple[bool, tuple[str, ...]]:
    """Whether all five rows are there, and a note where not."""
    absent = [row for row in TABLE_ROWS if row not in set(table["row"])]
    return not absent, (f"without {', '.join(absent)}",) if absent else ()


def _relative(robust: bool) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        table = _table(evidence, "localization_error", pairs=True)
        complete, notes = _rows_missing(table)
        own = table[table["model"].str.endswith(ROBUST) == robust]
        if all(study.resamples.formed(draws) for draws in table["mean"]):
            spreads = [relative_spread(table, robust=kind) for kind in (False, True)]
            judged = study.resamples.interval(spreads[0] - spreads[1])
            means = np.mean(stacked(own, "std_mean") / stacked(own, "mean"), axis=0)
            notes = (*notes, f"with the mean of the stds {means[0]:.3g}")
            return study.resamples.finding(
                spreads[robust], within=POSITIVE, judged=judged, notes=notes, comparable=complete
            )
        kinds = [
            mean_of(list(of_metric(table, "localization_error", kind)["std_rms"]))
            for kind in (False, True)
        ]
        judged = study.resamples.interval(kinds[0] - kinds[1], within=_STD.minus(_STD))
        note = "ratios not formed: a mean localization error does not stand out from 0"
        told = {"unit": "std", "comparable": False, "notes": (*notes, note)}
        return study.resamples.finding(kinds[robust], within=_STD, judged=judged, **told)

    return evaluate


def _gain(evidence: _Evidence) -> Finding:
    study = evidence.study
    study.need_pairs()
    if study.table[study.table["metric"].isin(ACCURACY)].empty:
        _table(evidence, "insertion")
    table = study.table[study.table["metric"].isin(ACCURACY)]
    study.used += table["sweep"].to_list()
    study.resamples.seen.append(int(table["n_images"].min()))
    complete, notes = _rows_missing(table)
    absent = [metric for metric in ACCURACY if metric not in set(table["metric"])]
    if "localization_error" in absent:
        raise MissingError("no image of the study has a box")
    both = twins(table)
    ratios = stacked(both, "std_rms") / np.where(
        stacked(both, "std_rms_robust") > 0, stacked(both, "std_rms_robust"), np.nan
    )
    formed = np.array([study.resamples.formed(draws) for draws in both["std_rms_robust"]])
    if formed.all():
        return study.resamples.finding(
            robust_gain(table),
            within=POSITIVE,
            bound=1.0,
            comparable=complete,
            notes=(*notes, f"median of the ratios {np.median(ratios[:, 0]):.3g}"),
        )
    note = f"{(~formed).sum()} of {len(formed)} ratios not formed (the robust std may be 0)"
    if formed.any():
        note += f"; mean of the others {np.mean(ratios[formed, 0]):.3g}"
    difference = np.mean(stacked(both, "std_rms") - stacked(both, "std_rms_robust"), axis=0)
    return study.resamples.finding(difference, **_STDS, notes=(*notes, note))


def _small_patch_spread(relative: bool) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        table = _table(evidence, "localization_error", uses=("SP-S",))
        own = table[(table["row"] == "SP-S") & ~table["model"].str.endswith(ROBUST)]
        if own.empty:
            raise MissingError("the study has no sweep SP-S")
        spread = mean_of(list(own["std_rms"]))
        means = mean_of(list(own["std_mean"]))
        note = f"mean of the stds {means[0]:.3g}"
        if not relative:
            return study.resamples.finding(spread, within=_STD, bound=0.05, notes=(note,))
        if not all(study.resamples.formed(draws) for draws in own["mean"]):
            note = "ratio not formed: the mean error does not stand out from 0; " + note
            told = {"unit": "std", "comparable": False, "bound": 0.05, "notes": (note,)}
            return study.resamples.finding(spread, within=_STD, **told)
        return study.resamples.finding(relative_spread(own), within=POSITIVE, bound=0.05)

    return evaluate


def _small_patch_ssim(evidence: _Evidence) -> Finding:
    found = bars(_table(evidence, "ssim", uses=("SP-S",)))
    if "SP-S" not in found:
        raise MissingError("the study has no sweep SP-S")
    level = found["SP-S"]
    return evidence.study.resamples.finding(level, within=SIMILARITY_RANGE, bound=_ABOUT_ONE)


def _small_patch_inconsistent(evidence: _Evidence) -> Finding:
    found = _small_patch_ssim(evidence)
    return replace(found, bound=1.0, above=False)


def _variation(evidence: _Evidence) -> Finding:
    study = evidence.study
    tables = {metric: _table(evidence, metric) for metric in ACCURACY}
    complete, notes = _rows_missing(tables["insertion"])
    others = ("insertion", "deletion")
    if all(study.resamples.formed(d) for table in tables.values() for d in table["mean"]):
        spreads = {m: relative_spread(table, metric=m) for m, table in tables.items()}
        listed = ", ".join(f"{metric} {draws[0]:.3g}" for metric, draws in spreads.items())
        notes = (f"std / mean: {listed}", *notes)
        if all(study.resamples.formed(spreads[metric]) for metric in others):
            high = spreads["localization_error"]
            parts = {f"over {metric}": high / spreads[metric] for metric in others}
            found = study.resamples.smallest(parts, within=POSITIVE, bound=1.0, comparable=complete)
            return replace(found, notes=(*found.notes, *notes))
    stds = {metric: mean_of(list(table["std_rms"])) for metric, table in tables.items()}
    parts = {f"over {metric}": stds["localization_error"] - stds[metric] for metric in others}
    found = study.resamples.smallest(parts, **_STDS)
    note = "ratios not formed: a mean or a spread does not stand out from 0"
    return replace(found, notes=(*found.notes, note, *notes))


def _smoothgrad_level(evidence: _Evidence) -> Finding:
    study = evidence.study
    robust = [twin for _, twin in study.need_pairs()]
    levels = [study.similarity("SG-N", model, "ssim") for model in robust]
    return study.resamples.finding(mean_of(levels), within=SIMILARITY_RANGE, bound=_NEAR_ONE)


def _pair_ratio(sweep: str, metrics: Sequence[str], family: str = "") -> Callable:
    """Mean over metrics of mean similarity of robust over that of regular models."""

    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        pairs = [study.family(family)] if family else study.need_pairs()
        sums = {}
        for metric in metrics:
            regular = mean_of([study.similarity(sweep, pair[0], metric) for pair in pairs])
            robust = mean_of([study.similarity(sweep, pair[1], metric) for pair in pairs])
            sums[metric] = robust, regular
        notes = _stand_in(pairs[0], family)
        if len(metrics) == 1:
            return study.resamples.ratio(*sums[metrics[0]], of=SIMILARITY_RANGE, notes=notes)
        unformed = [metric for metric, pair in sums.items() if not study.resamples.formed(pair[1])]
        if unformed:
            difference = mean_of([robust - regular for robust, regular in sums.values()])
            note = f"ratio not formed: {', '.join(unformed)} of the regular models may be 0"
            told = {"unit": "difference", "comparable": False, "notes": (*notes, note)}
            return study.resamples.finding(difference, within=_GAIN, **told)
        ratios = {metric: robust / regular for metric, (robust, regular) in sums.items()}
        listed = ", ".join(f"{metric} {draws[0]:.3g}" for metric, draws in ratios.items())
        return study.resamples.finding(
            mean_of(list(ratios.values())), bound=1.0, notes=(*notes, listed)
        )

    return evaluate


def _stand_in(pair: tuple[str, str], family: str) -> tuple[str, ...]:
    if family == "resnet" and pair[0] != "resnet50":
        return (f"{pair[0]} stands for ResNet-50",)
    return ()


def _shortest(others: Sequence[str], convention: str) -> Callable[[_Evidence], Finding]:
    """How much lower SP-L's mean similarity is than that of the lowest other row."""

    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        levels = {}
        for row in ("SP-L", *others):
            sweep = TABLE_ROWS[row]
            models = study.models_of(sweep, "ssim", convention)
            levels[row] = mean_of(
                [study.similarity(sweep, model, "ssim", convention) for model in models]
            )
        parts = {row: levels[row] - levels["SP-L"] for row in others}
        found = study.resamples.smallest(parts, within=_GAIN)
        listed = ", ".join(f"{row} {draws[0]:.3g}" for row, draws in levels.items())
        return replace(found, notes=(*found.notes, f"mean SSIM: {listed}"))

    return evaluate


def _all_pairs(metrics: Sequence[str], column: str, sign: int) -> Callable:
    """Smallest, over rows of Table S1, pairs and metrics, of robust minus regular times `sign`."""

    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        tables = [_table(evidence, metric, pairs=True) for metric in metrics]
        complete, notes = _rows_missing(tables[0])
        both = twins(pd.concat(tables))
        parts = {
            f"{row['row']} {row['model']} {row['metric']}": sign
            * (row[f"{column}_robust"] - row[column])
            for row in both.to_dict("records")
        }
        within = _STDS["within"] if column == "std_rms" else _GAIN
        found = study.resamples.smallest(parts, within=within, comparable=complete)
        return replace(found, notes=(*found.notes, *notes))

    return evaluate


# Sections 4.1 and 4.2: comparisons.


def _noise_ratio(variance: float) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        key = _noise_key(study, variance)
        pairs = study.need_pairs()
        sides = [
            mean_of([_under_noise(study, pair[side], key, "spearman") for pair in pairs])
            for side in (0, 1)
        ]
        return study.resamples.ratio(sides[1], sides[0], of=SIMILARITY_RANGE)

    return evaluate


def _noise_key(study: StudyScores, variance: float) -> str:
    for value in dict.fromkeys(study.comparison("gradient-noise")["value"].astype(str)):
        if math.isclose(float(value), variance):
            return value
    raise MissingError(f"the study has no comparison gradient-noise at variance {variance:g}")


def _under_noise(study: StudyScores, model: str, key: str, metric: str) -> Draws:
    return study.compared("gradient-noise", model, "", key, "same", metric)


def _noise_all(evidence: _Evidence) -> Finding:
    study = evidence.study
    key = _noise_key(study, 0.1)
    parts = {}
    for regular, robust in study.need_pairs():
        for metric in SIMILARITY:
            ours, theirs = (_under_noise(study, m, key, metric) for m in (robust, regular))
            parts[f"{metric} {regular}"] = ours - theirs
    return study.resamples.smallest(parts, within=_GAIN)


@dataclass(frozen=True)
class _Rise:
    """Similarity to robust models' plain maps before and after de-noising, and mismatched."""

    plain: Draws
    denoised: Draws
    plain_mismatched: Draws
    denoised_mismatched: Draws

    @property
    def beyond(self) -> Draws:
        """Rise beyond that of maps of other images (docs/protocol.md)."""
        matched = self.denoised - self.plain
        return matched - (self.denoised_mismatched - self.plain_mismatched)

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            f"{self.plain[0]:.3g} to {self.denoised[0]:.3g}; mismatched images "
            f"{self.plain_mismatched[0]:.3g} to {self.denoised_mismatched[0]:.3g}",
        )


def _rise(
    study: StudyScores,
    comparison: str,
    targets: Sequence[tuple[str, str]],
    key: str,
    metric: str = "ssim",
) -> _Rise:
    plain = study.keys(comparison)[0]

    def level(key: str, pairing: str) -> Draws:
        return mean_of(
            [study.compared(comparison, *target, key, pairing, metric) for target in targets]
        )

    return _Rise(
        level(plain, "same"),
        level(key, "same"),
        level(plain, "mismatched"),
        level(key, "mismatched"),
    )


def _risen(study: StudyScores, rise: _Rise, notes: tuple[str, ...] = ()) -> Finding:
    """Ratio after to before; judged on the rise beyond that of mismatched images."""
    found = study.resamples.ratio(rise.denoised, rise.plain, of=SIMILARITY_RANGE)
    notes = (*found.notes, *rise.notes, *notes)
    # The judged difference is about 0, the ratio about 1.
    judged = study.resamples.interval(rise.beyond, within=_GAIN.minus(_GAIN))
    return replace(found, bound=0.0, judged=judged, notes=notes)


def _denoised(comparison: str, role: str, *, guided: bool = False, family: str = "") -> Callable:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        pair = study.family(family) if family else None
        if pair is None and role == "twin":
            study.need_pairs()
        targets = study.targets(comparison, role, pair[0] if pair else None)
        keys = study.keys(comparison)
        key = "guided_backprop" if guided else keys[-1]
        if not guided:
            study.rests_on(comparison, keys)
        notes = _stand_in(pair, family) if pair else ()
        return _risen(study, _rise(study, comparison, targets, key), notes)

    return evaluate


def _denoised_both(evidence: _Evidence) -> Finding:
    study = evidence.study
    study.need_pairs()
    name = "denoising-gradient"
    targets, keys = study.targets(name, "twin"), study.keys(name)
    study.rests_on(name, keys)
    smooth, guided = (_rise(study, name, targets, key) for key in (keys[-1], "guided_backprop"))
    rise = _Rise(
        smooth.plain,
        (smooth.denoised + guided.denoised) / 2,
        smooth.plain_mismatched,
        (smooth.denoised_mismatched + guided.denoised_mismatched) / 2,
    )
    return _risen(study, rise)


def _monotone(comparison: str) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        study.need_pairs()
        parts = {}
        keys = study.keys(comparison)
        study.rests_on(comparison, keys)
        for model, other in study.targets(comparison, "twin"):
            for metric in SIMILARITY:
                levels = [
                    study.compared(comparison, model, other, key, "same", metric) for key in keys
                ]
                for (a, low), (b, high) in _steps(keys, levels):
                    parts[f"{metric} {model} {a} to {b}"] = high - low
        return study.resamples.smallest(parts, within=_GAIN)

    return evaluate


def _steps(keys: Sequence[str], levels: Sequence[Draws]) -> Iterator[tuple]:
    named = list(zip(keys, levels, strict=True))
    return pairwise(named)


def _beyond(comparison: str, *, guided: bool = False) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        study.need_pairs()
        parts, keys = {}, study.keys(comparison)
        if not guided:
            study.rests_on(comparison, keys)
        for target in study.targets(comparison, "twin"):
            key = "guided_backprop" if guided else keys[-1]
            for metric in SIMILARITY:
                rise = _rise(study, comparison, [target], key, metric)
                parts[f"{metric} {target[0]}"] = rise.beyond
        return study.resamples.smallest(parts, within=_GAIN.minus(_GAIN))

    return evaluate


def _distance(evidence: _Evidence) -> Finding:
    study = evidence.study
    pair = study.family("resnet")
    key = str(study.comparison("distance")["value"].iloc[0])
    study.rests_on("distance", key.split("-"))
    regular, robust = (study.compared("distance", m, "", key, "same", "l1") for m in pair)
    return study.resamples.ratio(regular, robust, notes=_stand_in(pair, "resnet"))


# Sections 4.3 and 4.4: how consistent maps are.


def _more_consistent(sweeps: Sequence[str], metrics: Sequence[str]) -> Callable:
    """Smallest gain in similarity of robust over regular models; claimed above 0."""

    def evaluate(evidence: _Evidence) -> Finding:
        gains = _gains(evidence.study, sweeps, metrics)
        return evidence.study.resamples.smallest(gains, within=_GAIN)

    return evaluate


def _gains(study: StudyScores, sweeps: Sequence[str], metrics: Sequence[str]) -> dict[str, Draws]:
    return {
        f"{sweep} {metric} {regular}": study.similarity(sweep, robust, metric)
        - study.similarity(sweep, regular, metric)
        for sweep in sweeps
        for regular, robust in study.need_pairs()
        for metric in metrics
    }


def _no_consistent_gain(sweeps: Sequence[str]) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        gains = _gains(study, sweeps, SIMILARITY)
        return study.resamples.smallest(gains, within=_GAIN, bound=_MARGIN, above=False)

    return evaluate


def _no_gain(sweep: str) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        gains = _gains(study, (sweep,), SIMILARITY)
        listed = ", ".join(f"{label} {draws[0]:+.3f}" for label, draws in gains.items())
        average = mean_of(list(gains.values()))
        told = {"bound": _MARGIN, "above": False, "notes": (listed,)}
        return study.resamples.finding(average, within=_GAIN, **told)

    return evaluate


def _structure(evidence: _Evidence) -> Finding:
    study = evidence.study
    parts = {}
    for sweep in ("LIME-seed", "LIME-N"):
        for model in study.models_of(sweep, "hog_pearson"):
            high = study.similarity(sweep, model, "hog_pearson")
            for metric in ("spearman", "ssim"):
                parts[f"{sweep} {model} over {metric}"] = high - study.similarity(
                    sweep, model, metric
                )
    return study.resamples.smallest(parts, within=_GAIN)


def _amplitude(evidence: _Evidence) -> Finding:
    study = evidence.study
    parts = {}
    for model in study.models_of("SP-L", "dynamic_range"):
        values, means = study.setting_means("SP-L", model, "dynamic_range")
        for (a, low), (b, high) in _steps(values, list(means.T)):
            parts[f"{model} {a} to {b} px"] = high - low
    if not parts:
        raise MissingError("SP-L has one setting")
    return study.resamples.smallest(parts)


def _scattered(robust: bool) -> Callable[[_Evidence], Finding]:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        frame = evidence.scatter
        if frame is None or frame.empty:
            raise MissingError("the scatter of MP-blur's maps was not measured")
        pairs = study.need_pairs()
        values = in_order(dict.fromkeys(frame["value"].astype(str)))
        if len(values) < 2:
            raise MissingError("MP-blur has one setting")
        study.rests_on("MP-blur", values)
        ends = []
        for value in (values[0], values[-1]):
            own = []
            for model in (pair[robust] for pair in pairs):
                part = frame[(frame["model"] == model) & (frame["value"].astype(str) == value)]
                if part.empty:
                    raise MissingError(f"no scatter of {model} at blur radius {value}")
                scores = part.set_index("image_id")["scatter"].astype(float)
                known = scores.reindex(study.resamples.image_ids).to_numpy()
                own.append(study.resamples.mean(known))
            ends.append(mean_of(own))
        note = f"{ends[0][0]:.3g} at {values[0]}, {ends[1][0]:.3g} at {values[-1]} per px"
        return study.resamples.ratio(ends[1], ends[0], above=not robust, notes=(note,))

    return evaluate


def _convergence(evidence: _Evidence) -> Finding:
    study = evidence.study
    frame = evidence.convergence
    if frame is None or frame.empty:
        raise MissingError("the study has no losses of meaningful perturbation")
    pairs = study.need_pairs()
    steps = frame.assign(step=frame["converged_step"].fillna(frame["n_iterations"]))
    sides = []
    for side in (0, 1):
        own = []
        for pair in pairs:
            part = steps[steps["model"] == pair[side]]
            if part.empty:
                raise MissingError(f"no losses of meaningful perturbation on {pair[side]}")
            known = part.groupby("image_id")["step"].mean().reindex(study.resamples.image_ids)
            own.append(study.resamples.mean(known.to_numpy(float)))
        sides.append(mean_of(own))
    never = int(frame["converged_step"].isna().sum())
    notes = [f"regular {sides[0][0]:.3g} steps, of {frame['n_iterations'].max()}"]
    notes += [f"{never} runs never converge, counted at the last step"] if never else []
    judged = study.resamples.interval(sides[0] - sides[1])
    return study.resamples.finding(sides[1], within=POSITIVE, judged=judged, notes=tuple(notes))


# Fig. 6.


def _objects(evidence: _Evidence, *, large: bool) -> tuple[Resamples, pd.DataFrame]:
    """Rows of the largest or smallest object, and resamples of their images."""
    frame = evidence.object_size
    if frame is None or frame.empty:
        raise MissingError("the study has no comparison of patch and object sizes")
    sizes = frame["object_size"]
    frame = frame[sizes == (sizes.max() if large else sizes.min())]
    ids = list(dict.fromkeys(frame["image_id"]))
    # Objects stand on a blank background: no photograph is shared.
    return Resamples(ids, ids, evidence.study.options), frame


def _object_means(own: Resamples, frame: pd.DataFrame, column: str) -> Draws:
    means = frame.groupby("image_id")[column].mean().reindex(own.image_ids)
    return own.mean(means.to_numpy(float))


def _of_objects(found: Finding, own: Resamples, *notes: str) -> Finding:
    n = len(own.image_ids)
    how = "t-interval of the jackknife" if own.jackknife else "bootstrap"
    return replace(found, n_images=n, notes=(*found.notes, *notes, f"{how} over {n} objects"))


def _blank(evidence: _Evidence) -> Finding:
    own, frame = _objects(evidence, large=True)
    small = frame[frame["patch_size"] <= _SMALL_PATCH * frame["object_size"]]
    if small.empty:
        raise MissingError("no patch is small beside the largest object")
    peak, score = (_object_means(own, small, column) for column in ("peak", "score"))
    if own.formed(score):
        found = own.finding(peak / score, bound=_BLANK, above=False)
    else:
        note = "ratio not formed: the object's own probability may be 0"
        told = {"bound": _BLANK, "above": False, "unit": "probability", "notes": (note,)}
        found = own.finding(peak, within=SIMILARITY_RANGE, **told)
    sizes = ", ".join(map(str, sorted(small["patch_size"].unique())))
    return _of_objects(found, own, f"patches of {sizes} px on {frame['object_size'].iloc[0]} px")


def _oversized(evidence: _Evidence) -> Finding:
    own, frame = _objects(evidence, large=False)
    large = frame[frame["patch_size"] >= _LARGE_PATCH * frame["object_size"]]
    if large.empty:
        raise MissingError("no patch is large beside the smallest object")
    area, size = (_object_means(own, large, c) for c in ("area_above_half", "object_area"))
    found = own.ratio(area, size)
    sizes = ", ".join(map(str, sorted(large["patch_size"].unique())))
    return _of_objects(found, own, f"patches of {sizes} px on {frame['object_size'].iloc[0]} px")


def _growing(evidence: _Evidence) -> Finding:
    own, frame = _objects(evidence, large=False)
    sizes = sorted(frame["patch_size"].unique())
    if len(sizes) < 2:
        raise MissingError("one patch size alone")
    levels = [
        _object_means(own, frame[frame["patch_size"] == size], "area_above_half") for size in sizes
    ]
    keys = [str(size) for size in sizes]
    parts = {f"{a} to {b} px": high - low for (a, low), (b, high) in _steps(keys, levels)}
    return _of_objects(own.smallest(parts), own)


# Section 4.6, Fig. 7.


def _global_ratio(numerator: str, denominator: str, metric: str) -> Callable:
    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        found = study.resamples.ratio(
            study.scaled(numerator, metric), study.scaled(denominator, metric), of=_STD
        )
        own = [study.raw(sweep, metric) for sweep in (numerator, denominator)]
        if own[1] > 0:
            raw = f"at this study's n {own[0] / own[1]:.3g}"
            return replace(found, notes=(*found.notes, raw))
        return found

    return evaluate


def _up_to(evidence: _Evidence) -> Finding:
    """Largest ratio of the global spreads of two hyperparameters of a method, seeds left out."""
    study = evidence.study
    ratios, differences, missing, n_ratios = {}, {}, [], 0
    for one, other in (("SP-L", "SP-S"), ("MP-N", "MP-blur")):
        for metric in ACCURACY:
            try:
                pair = study.scaled(one, metric), study.scaled(other, metric)
                stand_out = [study.stands_out(sweep, metric) for sweep in (one, other)]
            except MissingError as error:
                missing.append(str(error))
                continue
            n_ratios += 2
            # Two spreads that are noise alone have the same ratio in every draw: an interval
            # without width, which would hold or fail for sure.
            if not any(stand_out):
                continue
            # Which of the two is larger is not known beforehand.
            for label, (a, b) in ((f"{one}/{other}", pair), (f"{other}/{one}", pair[::-1])):
                differences[f"{label} {metric}"] = a - b
                if all(stand_out) and study.resamples.formed(b):
                    ratios[f"{label} {metric}"] = a / b
    if not n_ratios:
        raise MissingError(missing[0])
    # One of a pair's two ratios is at least 1; without it the other says nothing on the largest.
    if any(draws[0] >= 1 for draws in ratios.values()):
        found = study.resamples.largest(ratios, within=POSITIVE, bound=1.0)
    elif differences:
        found = study.resamples.largest(differences, **_STDS)
    else:
        found = Finding(math.nan, (math.nan, math.nan), comparable=False)
    notes = list(found.notes)
    if unformed := n_ratios - len(ratios):
        notes.append(
            f"{unformed} of {n_ratios} ratios not formed (a spread may be 0, or does not stand out "
            "from the noise of this study's images)"
        )
    notes += [f"left out: {reason}" for reason in dict.fromkeys(missing)]
    return replace(found, notes=tuple(notes))


def _alike(evidence: _Evidence) -> Finding:
    """Largest factor, over accuracy metrics, between two seeds' spreads; claimed below 2."""
    study = evidence.study
    pairs = {
        metric: (study.scaled("LIME-seed", metric), study.scaled("MP-seed", metric))
        for metric in ACCURACY
    }
    return _factor(study, pairs)


def _alike_per_image(evidence: _Evidence) -> Finding:
    study = evidence.study
    table = _table(evidence, "localization_error", uses=("LIME", "MP"))
    found = bars(table, "localization_error", "std_rms")
    for row in ("LIME", "MP"):
        if row not in found:
            raise MissingError(f"the study has no sweep {TABLE_ROWS[row]}")
    return _factor(study, {"localization_error": (found["LIME"], found["MP"])})


def _factor(study: StudyScores, pairs: Mapping[str, tuple[Draws, Draws]]) -> Finding:
    parts: dict[str, Draws] = {}
    for metric, (lime, perturbation) in pairs.items():
        for name, draws in (("LIME", lime), ("MP", perturbation)):
            if not study.resamples.formed(draws):
                note = f"ratio not formed: the {metric} spread of {name}'s seed may be 0"
                return Finding(math.nan, (math.nan, math.nan), comparable=False, notes=(note,))
        logarithm = np.log(lime / perturbation)
        parts |= {f"LIME/MP {metric}": logarithm, f"MP/LIME {metric}": -logarithm}
    found = study.resamples.largest(parts, bound=math.log(2), above=False)
    listed = ", ".join(f"{m} {a[0] / b[0]:.3g}" for m, (a, b) in pairs.items())
    low, high = (math.exp(end) for end in found.interval)
    return replace(
        found,
        value=math.exp(found.value),
        interval=(low, high),
        bound=2.0,
        notes=(f"LIME over MP: {listed}",),
    )


def _larger_patches_per_image(evidence: _Evidence) -> Finding:
    table = _table(evidence, "localization_error", uses=("SP-L", "SP-S"))
    found = bars(table, "localization_error", "std_rms")
    for row in ("SP-L", "SP-S"):
        if row not in found:
            raise MissingError(f"the study has no sweep {row}")
    return evidence.study.resamples.ratio(found["SP-L"], found["SP-S"], of=_STD)


def _most_varying(first: str, others: Sequence[str]) -> Callable[[_Evidence], Finding]:
    """Smallest ratio of global spreads, over metrics and other sweeps."""

    def evaluate(evidence: _Evidence) -> Finding:
        study = evidence.study
        ratios, differences = {}, {}
        for metric in ACCURACY:
            own = study.scaled(first, metric)
            for other in others:
                theirs = study.scaled(other, metric)
                differences[f"{metric} over {other}"] = own - theirs
                if study.resamples.formed(theirs):
                    ratios[f"{metric} over {other}"] = own / theirs
        if len(ratios) == len(differences):
            return study.resamples.smallest(ratios, within=POSITIVE, bound=1.0)
        note = "ratios not formed: a spread may be 0"
        found = study.resamples.smallest(differences, **_STDS)
        return replace(found, notes=(*found.notes, note))

    return evaluate


# What only ImageNet can tell.


def _accuracies(evidence: _Evidence) -> Finding:
    ours = [
        f"{row.model} {100 * row.clean_accuracy:.1f} % of {row.n_val}"
        for row in evidence.models.itertuples()
    ]
    raise MissingError(
        f"needs ImageNet's 50,000 validation images and the paper's weights; here {', '.join(ours)}"
    )


def _one_image(evidence: _Evidence) -> Finding:
    raise MissingError("one image of ImageNet, with the paper's weights")


_RATIO = "ratio"

_MEANS_OF_PAIRS = "mean over robust models / mean over regular models"

_BEYOND_TEXT = "judged on the rise beyond that of maps of other images (mismatched)"

_SMALLEST_TEXT = (
    "interval of a minimum: smallest lower end, smallest upper end with the error shared"
)

_NO_NUMBER = math.nan

_CLAIMS: tuple[_Claim, ...] = (
    _Claim(
        "1",
        "relative spread of localization, regular",
        "4.5",
        "The std of the localization error is .51 of its mean on regular models (.31 on robust)",
        "mean over Table S1's rows and regular models of RMS std / mean; judged on regular minus "
        "robust",
        0.51,
        _RATIO,
        _relative(False),
    ),
    _Claim(
        "1b",
        "relative spread of localization, robust",
        "4.5",
        "The std of the localization error is .31 of its mean on robust models",
        "as 1, over robust models; judged on regular minus robust",
        0.31,
        _RATIO,
        _relative(True),
    ),
    _Claim(
        "2",
        "robust models' accuracy scores vary less",
        "4.5",
        "Over settings the accuracy of explanations varies 2.4 times less on robust models",
        "mean over rows, pairs and three metrics of RMS std of regular / of robust",
        2.4,
        _RATIO,
        _gain,
    ),
    _Claim(
        "3",
        "SP-S moves localization",
        "4.5, Fig. 5",
        "One pixel of patch size gives a std of the localization error of about 10 %",
        "RMS std of SP-S, absolute, mean over regular models; claimed above .05. Paper's value "
        "from Table S1",
        0.1054,
        "std",
        _small_patch_spread(False),
    ),
    _Claim(
        "3b",
        "SP-S moves localization, relative reading",
        "4.5",
        "One pixel of patch size gives a std of about 10 % of the mean (the text's reading)",
        "RMS std / mean of SP-S, mean over regular models; claimed above .05. Paper's value from "
        "Table S1, which does not give 10 %",
        0.2585,
        _RATIO,
        _small_patch_spread(True),
    ),
    _Claim(
        "4",
        "SP-S hardly moves maps",
        "4.5",
        "Under one pixel of patch size the mean SSIM is about 1",
        f"mean SSIM (sam) of SP-S over all models; claimed above {_ABOUT_ONE}",
        0.966,
        "SSIM",
        _small_patch_ssim,
    ),
    _Claim(
        "5",
        "localization varies most",
        "4.5",
        "Beside their means, localization errors vary more than insertion and deletion",
        "mean of RMS std / mean over rows and models: localization over the larger of the two "
        f"others; {_SMALLEST_TEXT}",
        2.389,
        _RATIO,
        _variation,
    ),
    _Claim(
        "6",
        "robust gradients stand noise",
        "4.1, S13",
        "Gradients of clean and noisy input correlate 36 times more on robust models",
        f"Spearman at noise variance .1 (std .316, as coded): {_MEANS_OF_PAIRS}",
        36,
        _RATIO,
        _noise_ratio(0.1),
    ),
    _Claim(
        "6b",
        "robust gradients stand noise, second reading",
        "4.1, S13",
        "As 6, noise of standard deviation .1",
        f"Spearman at noise variance .01: {_MEANS_OF_PAIRS}",
        36,
        _RATIO,
        _noise_ratio(0.01),
    ),
    _Claim(
        "7",
        "SmoothGrad makes models look alike",
        "4.2, Fig. 2, S3",
        "SSIM of a regular model's SmoothGrad and its robust twin's gradient rises up to 1.4 times",
        f"mean SSIM at the largest N / at N = 0, means over pairs; {_BEYOND_TEXT}",
        1.4,
        _RATIO,
        _denoised("denoising-gradient", "twin"),
    ),
    _Claim(
        "7c",
        "SmoothGrad makes models look alike, control",
        "4.2",
        "As 7, towards a robust model that is not the twin: shared ancestry can't be the cause",
        f"as 7, mean over pairs with role control; {_BEYOND_TEXT}",
        _NO_NUMBER,
        _RATIO,
        _denoised("denoising-gradient", "control"),
    ),
    _Claim(
        "8",
        "de-noised maps look 1.5 times more alike",
        "1, 4.2",
        "Maps of regular and robust models appear 1.5 times more similar after de-noising",
        "SSIM: mean of SmoothGrad's at the largest N and guided backprop's / plain gradient's, "
        f"means over pairs (1.4 and .377/.239 give 1.49); {_BEYOND_TEXT}",
        1.5,
        _RATIO,
        _denoised_both,
    ),
    _Claim(
        "9",
        "guided backprop makes models look alike",
        "4.2",
        "ResNet's guided backprop and ResNet-R's gradient have SSIM .377, the gradients .239",
        f"ratio of the two mean SSIMs, ResNet pair; {_BEYOND_TEXT}",
        0.377 / 0.239,
        _RATIO,
        _denoised("denoising-gradient", "twin", guided=True, family="resnet"),
    ),
    _Claim(
        "9c",
        "guided backprop makes models look alike, control",
        "4.2",
        "As 9, towards a robust model that is not the twin",
        f"as 9, all regular models, mean over pairs with role control; {_BEYOND_TEXT}",
        _NO_NUMBER,
        _RATIO,
        _denoised("denoising-gradient", "control", guided=True),
    ),
    _Claim(
        "10",
        "SmoothGrad's settings lie apart",
        "4.3.1, S12b",
        "L1 distance of the maps at smallest and largest N is over 5 times larger on ResNet",
        "mean L1 distance of max-abs scaled maps, ResNet / ResNet-R, over images (the paper: one)",
        5,
        _RATIO,
        _distance,
    ),
    _Claim(
        "11",
        "SmoothGrad is steady on robust models",
        "4.3.1, S12a",
        "Over N, SmoothGrad's maps of robust models are nearly the same",
        f"mean SSIM (sam) of SG-N, nested draws, mean over robust models; claimed above "
        f"{_NEAR_ONE}. Paper's value from Table S1",
        0.9714,
        "SSIM",
        _smoothgrad_level,
    ),
    _Claim(
        "11b",
        "SmoothGrad is steadier on robust models",
        "4.3.1, S12a",
        "Over N, SmoothGrad's maps of robust models are more consistent than of regular ones",
        f"mean SSIM (sam) of SG-N: {_MEANS_OF_PAIRS}. Paper's value from Table S1",
        1.361,
        _RATIO,
        _pair_ratio("SG-N", ("ssim",)),
    ),
    _Claim(
        "12",
        "MP over iterations",
        "4.3.2, S8b",
        "Over the number of iterations, MP's maps of robust models are 1.4 times more consistent",
        f"mean SSIM (sam) of MP-N: {_MEANS_OF_PAIRS}",
        1.4,
        _RATIO,
        _pair_ratio("MP-N", ("ssim",)),
    ),
    _Claim(
        "13",
        "MP converges early on robust models",
        "4.3.2, S9, S10",
        "On robust models MP converges within about 10 steps",
        "first step from which the loss stays within 5 % of its drop, mean over images and robust "
        "models (the paper: one loss curve); judged on regular minus robust",
        10,
        "steps",
        _convergence,
    ),
    _Claim(
        "14",
        "MP over seeds",
        "4.3.2, S7",
        "Over seeds, MP's maps of robust models are 1.22 times more consistent",
        f"mean over Spearman, HOG and SSIM (sam) of MP-seed: {_MEANS_OF_PAIRS}",
        1.22,
        _RATIO,
        _pair_ratio("MP-seed", SIMILARITY),
    ),
    _Claim(
        "15",
        "SmoothGrad over sigma",
        "S4.1",
        "Over sigma, Spearman correlation on GoogLeNet-R is 2.5 times that on GoogLeNet",
        "mean Spearman of SG-sigma, GoogLeNet-R / GoogLeNet",
        2.5,
        _RATIO,
        _pair_ratio("SG-sigma", ("spearman",), "googlenet"),
    ),
    _Claim(
        "16",
        "LIME: superpixels over seed",
        "4.6, Fig. 7c",
        "The number of superpixels moves LIME's insertion score 130.5 times as much as the seed",
        "std over settings of dataset means, scaled to 1,735 images, mean over models: LIME-S / "
        "LIME-seed",
        130.5,
        _RATIO,
        _global_ratio("LIME-S", "LIME-seed", "insertion"),
    ),
    _Claim(
        "17",
        "MP: iterations over seed",
        "4.6, Fig. 7c",
        "The number of iterations moves MP's insertion score 74 times as much as the seed",
        "as 16: MP-N / MP-seed",
        74,
        _RATIO,
        _global_ratio("MP-N", "MP-seed", "insertion"),
    ),
    _Claim(
        "17b",
        "MP: blur over seed",
        "4.6, Fig. 7c",
        "The blur radius moves MP's insertion score 16.6 times as much as the seed",
        "as 16: MP-blur / MP-seed",
        16.6,
        _RATIO,
        _global_ratio("MP-blur", "MP-seed", "insertion"),
    ),
    _Claim(
        "18",
        "some hyperparameters move scores up to 10 times more",
        "1",
        "Some hyperparameters cause up to 10 times more variation in accuracy than others",
        "unspecified; ours: largest ratio of scaled global stds between two hyperparameters of "
        "one method "
        "(SP-L and SP-S, MP-N and MP-blur) over three metrics; seeds are left out, as theirs "
        "shrink with the number of images, and no ratio with a spread that is no more than the "
        "noise of the study's images; claimed above 1",
        10,
        _RATIO,
        _up_to,
    ),
    _Claim(
        "19",
        "seeds of LIME and MP matter alike",
        "4.6, Fig. 7",
        "The seed causes similar variation in LIME and in MP in all three accuracy metrics",
        "largest factor between the scaled global stds of LIME-seed and MP-seed; claimed below 2",
        _NO_NUMBER,
        "factor",
        _alike,
    ),
    _Claim(
        "19b",
        "seeds of LIME and MP matter alike, per image",
        "4.6",
        "As 19, in the spread of each image's localization error",
        "factor between the RMS stds, means over models; claimed below 2. Paper's value from "
        "Table S1",
        1.079,
        "factor",
        _alike_per_image,
    ),
    _Claim(
        "20",
        "larger patch range, larger spread",
        "4.6, Fig. 7a",
        "SP-L moves the localization error more than SP-S",
        "scaled global std, mean over models: SP-L / SP-S",
        _NO_NUMBER,
        _RATIO,
        _global_ratio("SP-L", "SP-S", "localization_error"),
    ),
    _Claim(
        "20b",
        "larger patch range, larger spread, per image",
        "4.6",
        "As 20, in the spread of each image's localization error",
        "RMS std, means over models: SP-L / SP-S. Paper's value from Table S1",
        2.762,
        _RATIO,
        _larger_patches_per_image,
    ),
    _Claim(
        "21",
        "accuracies and images",
        "3, S2",
        "Accuracies are 68.86, 75.59, 50.94 and 56.25 %; 1,735 images",
        "accuracy on ImageNet's validation set",
        _NO_NUMBER,
        "%",
        _accuracies,
    ),
    _Claim(
        "22",
        "example of Fig. S1",
        "S1",
        "SSIM at 0, 10, 50, 100 trials .7909, .8648, .8714, .8765; guided backprop .8833",
        "one image",
        _NO_NUMBER,
        "SSIM",
        _one_image,
    ),
    _Claim(
        "23",
        "example of Fig. S6",
        "S6b, Fig. 1",
        "SSIM .0918 on ResNet and .5655 on ResNet-R; match stick at probability .535",
        "one image",
        _NO_NUMBER,
        "SSIM",
        _one_image,
    ),
    _Claim(
        "D1",
        "similarity rises with every N",
        "4.2, S3",
        "Similarity of SmoothGrad to the robust twin's gradient rises with N, in three metrics and "
        "both pairs",
        f"smallest step from one N to the next over metrics and pairs; {_SMALLEST_TEXT}",
        _NO_NUMBER,
        "difference",
        _monotone("denoising-gradient"),
    ),
    _Claim(
        "D1b",
        "the rise with N is more than smoothness",
        "4.2, S3",
        "As D1; a rise that maps of other images show too is no likeness of the models",
        "smallest rise from N = 0 to the largest N beyond that of mismatched images, over metrics "
        "and pairs",
        _NO_NUMBER,
        "difference",
        _beyond("denoising-gradient"),
    ),
    _Claim(
        "D2",
        "similarity rises with every number of trials",
        "S2",
        "Similarity of integrated gradients to the robust twin's input x gradient rises with the "
        "trials",
        f"as D1, over the number of trials, 0 being input x gradient; {_SMALLEST_TEXT}",
        _NO_NUMBER,
        "difference",
        _monotone("denoising-input_x_gradient"),
    ),
    _Claim(
        "D2b",
        "the rise with trials is more than smoothness",
        "S2",
        "As D2, beyond what maps of other images show",
        "as D1b, for integrated gradients",
        _NO_NUMBER,
        "difference",
        _beyond("denoising-input_x_gradient"),
    ),
    _Claim(
        "D3",
        "guided backprop nears the robust input x gradient",
        "S1",
        "Guided backprop appears closer to the robust twin's input x gradient than the plain map",
        "smallest rise beyond that of mismatched images, over metrics and pairs",
        _NO_NUMBER,
        "difference",
        _beyond("denoising-input_x_gradient", guided=True),
    ),
    _Claim(
        "D4",
        "robust gradients stand noise in every metric",
        "4.1, S13",
        "Gradients of robust models are more invariant to noise under all three metrics",
        f"smallest robust minus regular at variance .1, over metrics and pairs; {_SMALLEST_TEXT}",
        _NO_NUMBER,
        "difference",
        _noise_all,
    ),
    _Claim(
        "D5",
        "SmoothGrad over N, every metric",
        "4.3.1, S12a",
        "SmoothGrad is less consistent on regular models under all three metrics",
        f"smallest robust minus regular in SG-N, nested draws; {_SMALLEST_TEXT}",
        _NO_NUMBER,
        "difference",
        _more_consistent(("SG-N",), SIMILARITY),
    ),
    _Claim(
        "D6",
        "SmoothGrad over sigma, every metric",
        "S4.1, S4a",
        "SmoothGrad is more sensitive to sigma on regular models",
        "smallest robust minus regular in SG-sigma, over metrics and pairs",
        _NO_NUMBER,
        "difference",
        _more_consistent(("SG-sigma",), SIMILARITY),
    ),
    _Claim(
        "D7",
        "MP scatters with blur on regular models",
        "4.3.2, Fig. 4a, S16",
        "With larger blur radius MP's maps of regular models become more scattered",
        "total variation over mass of the map, largest radius / smallest, means over images and "
        "regular models (our measure); claimed above 1",
        _NO_NUMBER,
        _RATIO,
        _scattered(False),
    ),
    _Claim(
        "D8",
        "MP smooths with blur on robust models",
        "4.3.2, Fig. 4a, S16",
        "With larger blur radius MP's maps of robust models become smoother and more localized",
        "as D7, over robust models; claimed below 1",
        _NO_NUMBER,
        _RATIO,
        _scattered(True),
    ),
    _Claim(
        "D9",
        "MP over blur",
        "4.3.2, S8a",
        "Over blur radii MP is more consistent on robust models under Spearman and SSIM",
        "smallest robust minus regular in MP-blur, over the two metrics and pairs",
        _NO_NUMBER,
        "difference",
        _more_consistent(("MP-blur",), ("spearman", "ssim")),
    ),
    _Claim(
        "D10",
        "MP over iterations, every metric",
        "4.3.2, S8b",
        "Over iterations MP is more consistent on robust models under all metrics",
        "smallest robust minus regular in MP-N, over metrics and pairs",
        _NO_NUMBER,
        "difference",
        _more_consistent(("MP-N",), SIMILARITY),
    ),
    _Claim(
        "D11",
        "MP over seeds, every metric",
        "S4.3, S7a",
        "Over seeds MP is more consistent on robust models under all metrics",
        "smallest robust minus regular in MP-seed, over metrics and pairs",
        _NO_NUMBER,
        "difference",
        _more_consistent(("MP-seed",), SIMILARITY),
    ),
    _Claim(
        "D12",
        "SP-L is no better on robust models",
        "4.4.1, S11",
        "Sliding Patch is not more consistent on robust models over large changes of patch size",
        f"robust minus regular in SP-L, mean over three metrics and pairs; claimed below {_MARGIN}",
        _NO_NUMBER,
        "difference",
        _no_gain("SP-L"),
    ),
    _Claim(
        "D13",
        "SP's amplitude grows with the patch",
        "S11",
        "Attribution values of Sliding Patch grow with the patch size, on all models",
        "smallest step of the mean dynamic range (raw) from one size to the next, over models; "
        f"{_SMALLEST_TEXT}",
        _NO_NUMBER,
        "probability",
        _amplitude,
    ),
    _Claim(
        "D14",
        "SP is blank where the patch is small",
        "4.4.1, Fig. 6",
        "Where the patch is much smaller than the object the map is blank",
        "mean peak of the map / mean probability of the object alone, patches up to "
        f"{_SMALL_PATCH} of the largest object's side; claimed below {_BLANK}",
        _NO_NUMBER,
        _RATIO,
        _blank,
    ),
    _Claim(
        "D15",
        "SP is oversized where the patch is large",
        "4.4.1, Fig. 6",
        "Where the patch is much larger than the object the region exceeds the object",
        "mean area above half the maximum / mean area of the object, patches from "
        f"{_LARGE_PATCH} of the smallest object's side; claimed above 1",
        _NO_NUMBER,
        _RATIO,
        _oversized,
    ),
    _Claim(
        "D15b",
        "SP's region grows with the patch",
        "4.4.1, Fig. 6",
        "Around a small object the region grows with the patch size",
        "smallest step of the mean area above half the maximum from one size to the next",
        _NO_NUMBER,
        "px²",
        _growing,
    ),
    _Claim(
        "D16",
        "LIME gains nothing consistent on robust models",
        "4.4.2, S5, S6",
        "LIME is not consistently steadier on robust models under all three metrics",
        "smallest robust minus regular in LIME-seed and LIME-N over metrics and pairs; claimed "
        f"below {_MARGIN}",
        _NO_NUMBER,
        "difference",
        _no_consistent_gain(("LIME-seed", "LIME-N")),
    ),
    _Claim(
        "D16b",
        "LIME gains nothing at 150 superpixels either",
        "S4.2",
        "The same with 150 superpixels",
        "as D16, in LIME-seed-150",
        _NO_NUMBER,
        "difference",
        _no_consistent_gain(("LIME-seed-150",)),
    ),
    _Claim(
        "D17",
        "superpixels keep LIME's HOG high",
        "S4.2, S5a, S6a",
        "HOG correlation of LIME's maps is high, as superpixels impose their outlines",
        "smallest HOG correlation minus Spearman or SSIM in LIME-seed and LIME-N, over models; the "
        "cause is not tested",
        _NO_NUMBER,
        "difference",
        _structure,
    ),
    _Claim(
        "D18",
        "LIME is steadier on robust models under SSIM",
        "S5, S6",
        "Under SSIM, LIME's maps of robust models are more consistent",
        "smallest robust minus regular SSIM in LIME-seed and LIME-N, over pairs. Paper's value "
        "from Table S1 (seeds)",
        0.117,
        "difference",
        _more_consistent(("LIME-seed", "LIME-N"), ("ssim",)),
    ),
    _Claim(
        "D19",
        "SP-L's bars are shorter than SG's and MP's",
        "4.4.1, Fig. 5a",
        "Sliding Patch is more sensitive to patch size than SG to samples and MP to seeds",
        "lower of SG's and MP's mean SSIM (sam, over models) minus SP-L's. Paper's value from "
        "Table S1",
        0.1456,
        "difference",
        _shortest(("SG", "MP"), "sam"),
    ),
    _Claim(
        "D19b",
        "SP-L's bars are shorter, one convention for all",
        "4.4.1, Fig. 5a",
        "As D19, maps of all methods scaled alike",
        "as D19, SSIM in convention common",
        _NO_NUMBER,
        "difference",
        _shortest(("SG", "MP"), "common"),
    ),
    _Claim(
        "D19c",
        "SP-L's bars are the shortest of all",
        "Fig. 5a",
        "SP-L's bars are the shortest on average",
        "lowest mean SSIM (sam) of the four other rows minus SP-L's; Table S1 itself has LIME's "
        "shortest",
        -0.0649,
        "difference",
        _shortest(("SG", "SP-S", "LIME", "MP"), "sam"),
    ),
    _Claim(
        "D20",
        "robust maps are more consistent in every pair",
        "4.5, Fig. 5a",
        "Robust models' maps are more consistent pixel-wise, whatever the hyperparameter",
        "smallest robust minus regular mean SSIM (sam) over rows of Table S1 and pairs; the table "
        "itself has one exception, SP-L on ResNet",
        -0.1372,
        "difference",
        _all_pairs(("ssim",), "mean", 1),
    ),
    _Claim(
        "D21",
        "robust models' accuracy scores vary less in every pair",
        "4.5, Fig. 5b-d",
        "Robust models' accuracy scores have lower stds, whatever the hyperparameter and metric",
        "smallest regular minus robust RMS std over rows, pairs and metrics; the table itself has "
        "one exception, insertion of LIME on ResNet",
        -0.0003,
        "difference",
        _all_pairs(ACCURACY, "std_rms", -1),
    ),
    _Claim(
        "D22",
        "iterations matter most in MP",
        "4.6, Fig. 7",
        "Of MP's hyperparameters the number of iterations moves accuracy most, in three metrics",
        "smallest ratio of scaled global stds, MP-N / MP-blur and MP-N / MP-seed, over metrics",
        _NO_NUMBER,
        _RATIO,
        _most_varying("MP-N", ("MP-blur", "MP-seed")),
    ),
    _Claim(
        "D23",
        "superpixels matter more than the seed in LIME",
        "4.6, Fig. 7",
        "The number of superpixels moves LIME's accuracy more than the seed, in three metrics",
        "smallest ratio of scaled global stds, LIME-S / LIME-seed, over metrics",
        _NO_NUMBER,
        _RATIO,
        _most_varying("LIME-S", ("LIME-seed",)),
    ),
    _Claim(
        "D24",
        "SP-S is not perfectly steady",
        "4.4.1, Fig. 5a",
        "Even one pixel of patch size changes the map: SSIM below 1",
        "mean SSIM (sam) of SP-S over all models; claimed below 1. Paper's value from Table S1",
        0.966,
        "SSIM",
        _small_patch_inconsistent,
    ),
)
