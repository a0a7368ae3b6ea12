"""From scores to statements: means, spreads and intervals of each sweep."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis.readings import headline_rows, main_conventions, main_rows
from steadymap.engine.settings import Point, grids_of
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import range_of
from steadymap.statistics.pairing import mismatched
from steadymap.statistics.resampling import (
    Replicates,
    Resamples,
    cluster_names,
    column_interval,
    degenerate_pairs,
    distance,
    over_images,
    telling,
)
from steadymap.store.maps import Maps
from steadymap.store.tables import MISMATCH, rounded

_SWEEP = ["sweep", "method", "hyperparameter", "model", "metric", "convention", "draws"]


def by_setting(scores: pd.DataFrame, rows: pd.DataFrame, options: Statistics) -> pd.DataFrame:
    """Mean, interval and spread over images of each setting.

    Parameters
    ----------
    scores : DataFrame
        As in scores.parquet.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.

    Returns
    -------
    DataFrame
        As `over_images` makes it; inverted pairs are counted (`n_inverted`) and not left out.
    """
    pairs = scores[scores["draws"] != MISMATCH]
    return over_images(pairs, [*_SWEEP[:4], "value", *_SWEEP[4:]], rows, options)


def by_image(scores: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over a sweep's variants, per image (docs/protocol.md).

    Pairs with a degenerate map are left out and counted; `mean_all` has them too.
    """
    scores = scores[scores["draws"] != MISMATCH]
    flagged = scores.assign(
        flag=degenerate_pairs(scores), every=scores["score"], score=telling(scores)
    )
    table = (
        flagged.groupby([*_SWEEP[:4], "image_id", *_SWEEP[4:]], sort=False)
        .agg(
            mean=("score", "mean"),
            std=("score", lambda values: values.std(ddof=0)),
            mean_all=("every", "mean"),
            n_degenerate=("flag", "sum"),
            n_inverted=("inverted", "sum"),
        )
        .reset_index()
        .merge(rows[["image_id", "class_name", "photo"]], on="image_id")
    )
    order = [*_SWEEP[:4], "image_id", "class_name", "photo", *_SWEEP[4:]]
    return table[[*order, "mean", "std", "mean_all", "n_degenerate", "n_inverted"]]


def by_sweep(
    images: pd.DataFrame, n_settings: Mapping[str, int], options: Statistics
) -> pd.DataFrame:
    """Sensitivity of each sweep: mean over images of the mean over variants, and spreads.

    Parameters
    ----------
    images : DataFrame
        As `by_image` makes it.
    n_settings : mapping of str to int
        Per sweep, its settings, the reference among them.
    options : Statistics
        Confidence.

    Returns
    -------
    DataFrame
        `std_rms` is the root of the mean variance over settings, as SAM's code has it; `std_mean`
        the mean of the standard deviations, as its text does.
    """
    records = []
    for names, part in images.groupby(_SWEEP, sort=False):
        name = dict(zip(_SWEEP, names, strict=True))
        low, high = column_interval(part, "mean", options, range_of(str(name["metric"])))
        records.append(
            {
                **name,
                "n_images": int(part["mean"].notna().sum()),
                "n_settings": n_settings[names[0]],
                "mean": part["mean"].mean(),
                "ci_low": low,
                "ci_high": high,
                "std_rms": float(np.sqrt((part["std"] ** 2).mean())),
                "std_mean": part["std"].mean(),
                "mean_all": part["mean_all"].mean(),
                "n_degenerate": int(part["n_degenerate"].sum()),
                "n_inverted": int(part["n_inverted"].sum()),
            }
        )
    return pd.DataFrame(records)


def against_chance(
    sweeps: pd.DataFrame,
    images: pd.DataFrame,
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
) -> pd.DataFrame:
    """Sensitivity of sweeps in units of the distance between maps of different images.

    Parameters
    ----------
    sweeps, images : DataFrame
        As `by_sweep` and `by_image` make them.
    scores : DataFrame
        As in scores.parquet; rows with draws `mismatch` are read.
    rows : DataFrame
        The evaluation set, with columns image_id, class_name and photo.
    options : Statistics
        Confidence.

    Returns
    -------
    DataFrame
        `sweeps` with chance, the mean similarity of a reference's maps of different images, and
        relative, (1 - mean) / (1 - chance), both with the ends of their intervals (`_low` and
        `_high`), for which both photographs of a pair are left out; NaN where not measured, or
        where 1 - chance may be 0.
    """
    keys = ["sweep", "model", "metric", "convention"]
    others = scores[scores["draws"] == MISMATCH]
    mismatches = dict(list(others.assign(score=telling(others)).groupby(keys)))
    names = [f"{name}{end}" for name in ("chance", "relative") for end in ("", "_low", "_high")]
    if not mismatches:
        return sweeps.assign(**dict.fromkeys(names, np.nan))
    by_image = dict(list(images.groupby([*keys, "draws"])))

    def mean(part: pd.DataFrame, column: str, metric: str, of: Resamples) -> Replicates:
        values = part.set_index("image_id")[column].reindex(of.image_ids)
        return of.mean(values.to_numpy(float), within=range_of(metric))

    records = []
    for key in sweeps[[*keys, "draws"]].itertuples(index=False, name=None):
        record = dict.fromkeys(names, np.nan)
        if key[:4] in mismatches:
            scored = rows[rows["image_id"].isin(mismatches[key[:4]]["image_id"])]
            resamples = Resamples(scored["image_id"], cluster_names(scored), options)
            pairs = resamples.paired(mismatched(scored))
            chance = mean(mismatches[key[:4]], "score", key[2], pairs)
            moved = distance(mean(by_image[key], "mean", key[2], resamples))
            ratio = resamples.ratio(moved, distance(chance))
            numbers = (chance.point, *resamples.interval(chance), *ratio)
            record = dict(zip(names, numbers, strict=True))
        records.append(record)
    return sweeps.assign(**pd.DataFrame(records, index=sweeps.index))


def task_table(points: Sequence[Point], models: Sequence[str], maps: Maps) -> pd.DataFrame:
    """Which maps each point of a method's sweeps rests on, and what they cost.

    Parameters
    ----------
    points : sequence of Point
        Points of one method's sweeps.
    models : sequence of str
        Names of the models.
    maps : Maps
        The method's maps.

    Returns
    -------
    DataFrame
        A row per model and point; passes are over all images.
    """
    n_images, records = len(maps.image_ids), []
    for model, point in itertools.product(models, points):
        hyperparameters = point.setting.hyperparameters
        forward, backward = maps.passes(hyperparameters)
        records.append(
            {
                "sweep": point.sweep,
                "method": point.setting.method,
                "model": model,
                "hyperparameter": point.hyperparameter,
                "value": point.value,
                "draws": point.draws,
                "is_reference": point.is_reference,
                "task_id": maps.task_ids[maps.settings.index(hyperparameters)][model],
                "hyperparameters": json.dumps(hyperparameters, sort_keys=True),
                "n_images": n_images,
                "forward_passes": forward * n_images,
                "backward_passes": backward * n_images,
            }
        )
    return pd.DataFrame(records)


def summary(
    scores: pd.DataFrame, points: Sequence[Point], rows: pd.DataFrame, options: Statistics
) -> dict[str, pd.DataFrame]:
    """Tables `settings`, `images` and `sensitivity` of the scores given.

    Parameters
    ----------
    scores : DataFrame
        Similarity and accuracy rows, as in scores.parquet.
    points : sequence of Point
        Points of all sweeps.
    rows : DataFrame
        The evaluation set, with columns image_id, class_name and photo.
    options : Statistics
        Confidence.

    Returns
    -------
    dict of str to DataFrame
        `sensitivity` has the values swept in its last column, separated by spaces.
    """
    grids = grids_of(points)
    references = {point.sweep: point.value for point in points if point.is_reference}
    settings = by_setting(scores, rows, options)
    settings.insert(5, "is_reference", settings["sweep"].map(references) == settings["value"])
    images = by_image(scores, rows)
    sweeps = by_sweep(images, {sweep: len(values) for sweep, values in grids.items()}, options)
    sweeps = against_chance(sweeps, images, scores, rows, options)
    values = sweeps["sweep"].map({sweep: " ".join(swept) for sweep, swept in grids.items()})
    return {"settings": settings, "images": images, "sensitivity": sweeps.assign(values=values)}


def metrics(
    sensitivity: pd.DataFrame,
    models: pd.DataFrame,
    *,
    alpha: float = 0.25,
    parameters: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Means and spreads of every sweep and model as nested keys: `all_metrics.json`.

    Parameters
    ----------
    sensitivity, models : DataFrame
        Tables of these names.
    alpha : float
        Threshold of the localization error.
    parameters : DataFrame, optional
        Table `ipr`: adds S_same by similarity, method and model.
    """
    nested: dict[str, Any] = {
        "accuracy": {
            row.model: {
                "clean": rounded(row.clean_accuracy),
                "robust": rounded(row.robust_accuracy),
            }
            for row in models.itertuples()
        }
    }
    for metric, convention in main_conventions(alpha).items():
        rows = headline_rows(sensitivity, metric, convention)
        # Without images that have a box there is nothing to say.
        for row in rows[rows["n_images"] > 0].itertuples():
            numbers = {"mean": rounded(row.mean), "std": rounded(row.std_rms)}
            nested.setdefault(metric, {}).setdefault(row.sweep, {})[row.model] = numbers
    if parameters is not None:
        usual = main_rows(parameters[parameters["order"] == "independent"], alpha)
        for row in usual[usual["S_same"].notna()].itertuples():
            section = nested.setdefault("parameters", {}).setdefault(row.metric, {})
            section.setdefault(row.method, {})[row.model] = rounded(row.S_same)
    return nested


def headline_metrics(numbers: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """At most five numbers per model of what `metrics` gives: `metrics/{model}.json`.

    Returns
    -------
    dict
        By model, accuracy (`clean`, `robust`, in [0, 1]) and, where measured, the least mean
        similarity of any sweep (`min_ssim`, `min_spearman`), which is that of its most dangerous
        hyperparameter, and the least S_same of any method (`min_S_same`, 1 - SSIM, in [0, 2]).
    """
    few = {}
    for model, accuracies in numbers["accuracy"].items():
        values = {
            name: [row[model]["mean"] for row in numbers.get(name, {}).values() if model in row]
            for name in ("ssim", "spearman")
        }
        randomized = numbers.get("parameters", {}).get("ssim", {}).values()
        values["S_same"] = [row[model] for row in randomized if model in row]
        few[model] = accuracies | {f"min_{name}": min(v) for name, v in values.items() if v}
    return few


def model_table(cards: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Accuracies and identity of each model, from its card."""
    records = []
    for model, card in cards.items():
        measured, attack = card["accuracies"], card["accuracies"]["attack"]
        records.append(
            {
                "model": model,
                "architecture": card["architecture"],
                "robust": card["robust"],
                "n_val": measured["n_clean"],
                "clean_accuracy": measured["clean"],
                "attack": f"{attack['norm']} eps {attack['eps']:g}, {attack['steps']} steps",
                "n_attacked": measured["n_robust"],
                "robust_accuracy": measured["robust"],
                "n_parameters": card["n_parameters"],
                "weights_sha256": card["weights_sha256"],
                "init_from": card["recipe"]["init_from"] or "",
                "epochs": card["recipe"]["epochs"],
            }
        )
    return pd.DataFrame(records)
