"""From scores to statements: means, spreads and intervals of each sweep."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steadymap.engine.settings import Point, grids_of
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import column_interval, over_images, range_of
from steadymap.store.maps import Maps

_SWEEP = ["sweep", "method", "hyperparameter", "model", "metric", "convention", "draws"]


def by_setting(scores: pd.DataFrame, rows: pd.DataFrame, options: Statistics) -> pd.DataFrame:
    """Mean, interval and spread over images of each setting.

    Parameters
    ----------
    scores : DataFrame
        As `steadymap.scores.score` makes them.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence and resamples.

    Returns
    -------
    DataFrame
        Undefined scores are left out of the mean and counted as degenerate; inverted pairs are
        counted (`n_inverted`) and not left out.
    """
    return over_images(scores, [*_SWEEP[:4], "value", *_SWEEP[4:]], rows, options)


def by_image(scores: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over a sweep's variants, per image (docs/protocol.md)."""
    marked = scores.assign(flag=scores["degenerate"] | scores["score"].isna())
    found = (
        marked.groupby([*_SWEEP[:4], "image_id", *_SWEEP[4:]], sort=False)
        .agg(
            mean=("score", "mean"),
            std=("score", lambda values: values.std(ddof=0)),
            n_degenerate=("flag", "sum"),
            n_inverted=("inverted", "sum"),
        )
        .reset_index()
    )
    found = found.merge(rows[["image_id", "class_name", "photo"]], on="image_id")
    order = [*_SWEEP[:4], "image_id", "class_name", "photo", *_SWEEP[4:]]
    return found[[*order, "mean", "std", "n_degenerate", "n_inverted"]]


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
        Confidence and resamples.

    Returns
    -------
    DataFrame
        `std_rms` is the root of the mean variance over settings, as SAM's code has it; `std_mean`
        the mean of the standard deviations, as its text does.
    """
    found = []
    for names, part in images.groupby(_SWEEP, sort=False):
        name = dict(zip(_SWEEP, names, strict=True))
        low, high = column_interval(part, "mean", options, range_of(str(name["metric"])))
        found.append(
            {
                **name,
                "n_images": int(part["mean"].notna().sum()),
                "n_settings": n_settings[names[0]],
                "mean": part["mean"].mean(),
                "ci_low": low,
                "ci_high": high,
                "std_rms": float(np.sqrt((part["std"] ** 2).mean())),
                "std_mean": part["std"].mean(),
                "n_degenerate": int(part["n_degenerate"].sum()),
                "n_inverted": int(part["n_inverted"].sum()),
            }
        )
    return pd.DataFrame(found)


def task_table(points: Sequence[Point], models: Sequence[str], maps: Maps) -> pd.DataFrame:
    """Which maps each point of a method's sweeps rests on, and what they cost."""
    n_images = len(maps.image_ids)
    found: list[dict[str, Any]] = []
    for model in models:
        for point in points:
            index = maps.settings.index(point.setting.hyperparameters)
            forward, backward = maps.passes(point.setting.hyperparameters)
            found.append(
                {
                    "sweep": point.sweep,
                    "method": point.setting.method,
                    "model": model,
                    "hyperparameter": point.hyperparameter,
                    "value": point.value,
                    "draws": point.draws,
                    "is_reference": point.is_reference,
                    "task_id": maps.task_ids[index][model],
                    "hyperparameters": json.dumps(point.setting.hyperparameters, sort_keys=True),
                    "n_images": n_images,
                    "forward_passes": forward * n_images,
                    "backward_passes": backward * n_images,
                }
            )
    return pd.DataFrame(found)


def summary(
    scores: pd.DataFrame, points: Sequence[Point], rows: pd.DataFrame, options: Statistics
) -> dict[str, pd.DataFrame]:
    """Tables `settings`, `images` and `sensitivity` of the scores given.

    `sensitivity` has the values swept in its last column, separated by spaces.
    """
    grids = grids_of(points)
    references = {point.sweep: point.value for point in points if point.is_reference}
    settings = by_setting(scores, rows, options)
    settings.insert(5, "is_reference", settings["sweep"].map(references) == settings["value"])
    images = by_image(scores, rows)
    counts = {sweep: len(values) for sweep, values in grids.items()}
    sweeps = by_sweep(images, counts, options)
    values = {sweep: " ".join(swept) for sweep, swept in grids.items()}
    return {
        "settings": settings,
        "images": images,
        "sensitivity": sweeps.assign(values=sweeps["sweep"].map(values)),
    }


def headline(
    sensitivity: pd.DataFrame, metric: str = "ssim", convention: str = "common"
) -> pd.DataFrame:
    """Rows of the one number per sweep and model: SSIM, common convention, shared draws."""
    return sensitivity[
        (sensitivity["metric"] == metric)
        & (sensitivity["convention"] == convention)
        # A seed sweep has no shared draws; a count sweep's independent ones stand beside.
        & ((sensitivity["draws"] != "independent") | (sensitivity["hyperparameter"] == "seed"))
    ]


def metrics(
    sensitivity: pd.DataFrame,
    models: pd.DataFrame,
    *,
    alpha: float = 0.25,
    parameters: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Means and spreads of every sweep and model as nested keys: `all_metrics.json`.

    `parameters`, the table `ipr`, adds S_same by similarity, method and model.
    """
    found: dict[str, Any] = {"accuracy": {}}
    for row in models.itertuples():
        found["accuracy"][row.model] = {
            "clean": _rounded(row.clean_accuracy),
            "robust": _rounded(row.robust_accuracy),
        }
    readings = {
        "ssim": "common",
        "spearman": "signed",
        "insertion": "auc_over_max",
        "deletion": "auc_over_max",
        "localization_error": f"alpha{alpha:.2f}",
        "iou": f"alpha{alpha:.2f}",
    }
    for metric, convention in readings.items():
        for row in headline(sensitivity, metric, convention).itertuples():
            # Without images that have a box there is nothing to say.
            if row.n_images:
                found.setdefault(metric, {}).setdefault(row.sweep, {})[row.model] = {
                    "mean": _rounded(row.mean),
                    "std": _rounded(row.std_rms),
                }
    if parameters is not None:
        usual = parameters["order"] == "independent"
        usual &= (parameters["metric"] != "ssim") | (parameters["convention"] == "common")
        for row in parameters[usual & parameters["S_same"].notna()].itertuples():
            section = found.setdefault("parameters", {}).setdefault(row.metric, {})
            section.setdefault(row.method, {})[row.model] = _rounded(row.S_same)
    return found


def headline_metrics(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """At most five numbers per model of what `metrics` gives: `metrics/{model}.json`.

    Returns
    -------
    dict
        By model, accuracy (`clean`, `robust`, in [0, 1]) and, where measured, the least mean
        similarity of any sweep (`min_ssim`, `min_spearman`), which is that of its most dangerous
        hyperparameter, and the least S_same of any method (`min_S_same`, 1 - SSIM, in [0, 2]).
    """
    made = {}
    for model, accuracies in found["accuracy"].items():
        by_name = {
            name: [one[model]["mean"] for one in found.get(name, {}).values() if model in one]
            for name in ("ssim", "spearman")
        }
        randomized = found.get("parameters", {}).get("ssim", {}).values()
        by_name["S_same"] = [one[model] for one in randomized if model in one]
        least = {f"min_{name}": min(values) for name, values in by_name.items() if values}
        made[model] = {**accuracies, **least}
    return made


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def model_table(cards: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Accuracies and identity of each model, from its card."""
    found = []
    for model, card in cards.items():
        measured, recipe = card["accuracies"], card["recipe"]
        attack = measured["attack"]
        found.append(
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
                "init_from": recipe["init_from"] or "",
                "epochs": recipe["epochs"],
            }
        )
    return pd.DataFrame(found)
