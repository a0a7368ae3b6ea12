"""Runs of sweeps and searches in MLflow, and of the settings in them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from steadymap.analysis.readings import searched_names, setting_name, sweep_anchor
from steadymap.params.methods import value_text
from steadymap.tracking.entries import (
    HEADLINE,
    NOTES,
    RANK,
    Entry,
    Figures,
    Points,
    Study,
    add_metric,
    counts,
    experiment_name,
    finite,
    flat,
    groups,
    is_main,
    logged_table,
    metric_name,
    records,
    rounded,
)

PER_IMAGE = "per_image.json"

# Measured at several thresholds; runs show the one that params name.
LOCALIZATION = ("localization_error", "iou")

_SWEEP = ("method", "sweep", "model")

_SEARCH = ("method", "search", "model")


def sweep_entries(
    tables: Mapping[str, pd.DataFrame],
    *,
    study: str,
    figures: Figures | None = None,
    alpha: float = 0.25,
) -> list[Entry]:
    """Parent runs of all sweeps, with their children, in the order of the table `tasks`.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `tasks`, `settings`, `sensitivity`; `models`, `images` and `evaluation_set`
        where they exist.
    study : str
        Name of the study.
    figures : mapping of (sweep or method, model) to paths, optional
        PNG files of a parent run.
    alpha : float
        Threshold whose localization is shown; the tables have all.

    Returns
    -------
    list of Entry
        A method without a hyperparameter has a parent with one child.

    Raises
    ------
    ValueError
        Where a table is missing, or two conventions would have one name.
    """
    for name in ("tasks", "settings", "sensitivity"):
        if name not in tables:
            raise ValueError(f"tables: {name!r} is missing; mirror a study that was analyzed")
    common = Study(study, tables, figures)
    settings, sensitivity, images = (
        groups(_at_threshold(tables.get(name), alpha), _SWEEP)
        for name in ("settings", "sensitivity", "images")
    )
    return [
        _sweep_entry(
            common, records(tasks), settings.get(key), sensitivity.get(key), images.get(key)
        )
        for key, tasks in groups(tables["tasks"], _SWEEP).items()
    ]


def _sweep_entry(
    common: Study,
    tasks: Sequence[Mapping[str, Any]],
    settings: pd.DataFrame | None,
    sensitivity: pd.DataFrame | None,
    images: pd.DataFrame | None,
) -> Entry:
    # A count sweep has one more reference, with draws of its own: a tag, not a setting.
    draws = next((task["draws"] for task in tasks if not task["is_reference"]), tasks[0]["draws"])
    shown = [task for task in tasks if task["draws"] == draws]
    reference = next((task for task in shown if task["is_reference"]), shown[0])
    method, sweep, model = (str(reference[name]) for name in _SWEEP)
    hyperparameter = str(reference["hyperparameter"])
    experiment = experiment_name(common.name, method)
    tags = common.tags(model, sweep_anchor(sweep) if hyperparameter else "headline")
    # With the method: those without a hyperparameter all have a sweep of the same name.
    tags["sweep_id"] = f"{common.name}/{method}/{sweep}/{model}"
    params = {
        **{"model": model, "method": method, "sweep": sweep},
        **{"hyperparameter": hyperparameter, "robust": tags["robust"]},
    }

    by_value = groups(settings, ["value"])
    children = []
    for task in shown:
        metrics, dropped = _statistics(by_value.get((task["value"],)), draws, {"std": "std"})
        numbers = {name: task[name] for name in ("n_images", "forward_passes", "backward_passes")}
        # As a metric too: as a param the UI sorts 17 before 9.
        numbers["value"] = pd.to_numeric(task["value"], errors="coerce")
        name = f"{hyperparameter}={task['value']}" if task["value"] else "the only setting"
        is_reference = task["value"] and task["is_reference"]
        identity = {
            "task_id": task["task_id"],
            "reference_task_id": reference["task_id"],
            "reference": value_text(task["is_reference"]),
            "dropped_metrics": dropped,
        }
        hyperparameters = flat(json.loads(task["hyperparameters"]), "hp.")
        children.append(
            Entry(
                experiment,
                f"{name} {model}{' (reference)' if is_reference else ''}",
                params={**params, "value": task["value"], **hyperparameters},
                metrics=metrics | counts(numbers),
                tags={**tags, **identity},
            )
        )

    columns = {"std": "std_rms", "std_mean": "std_mean"}
    metrics, dropped = _statistics(sensitivity, draws, columns)
    metrics |= counts({"n_images": reference["n_images"], "n_settings": len(shown)})
    tags |= {
        # A tag, for MLflow can't change a param where the sweep gets another value.
        "values": ", ".join(str(task["value"]) for task in shown),
        "dropped_metrics": dropped,
        "independent_task_id": "".join(t["task_id"] for t in tasks if t["draws"] != draws),
        "mlflow.note.content": NOTES.sweep(common.name, shown, metrics, PER_IMAGE),
    }
    artifacts = common.figures(model, sweep, method)
    if images is not None:
        table, tags["mlflow.loggedArtifacts"] = logged_table(_per_image(images, draws), PER_IMAGE)
        artifacts |= table
    return Entry(
        experiment,
        f"{method} {sweep} {model}",
        params=params,
        metrics=metrics,
        tags=tags,
        artifacts=artifacts,
        images=common.evaluation_set,
        children=tuple(children),
    )


def _at_threshold(frame: pd.DataFrame | None, alpha: float) -> pd.DataFrame | None:
    """Rows without localization at other thresholds; that at this one under its short name."""
    if frame is None or frame.empty:
        return frame
    localization = frame["metric"].isin(LOCALIZATION).to_numpy()
    here = (frame["convention"] == f"alpha{alpha:.2f}").to_numpy()
    shown = frame.assign(convention=frame["convention"].where(~(localization & here), ""))
    return shown[~localization | here]


def _statistics(
    frame: pd.DataFrame | None, draws: str, columns: Mapping[str, str]
) -> tuple[Points, str]:
    """Means and `columns` of rows of scores as metrics; the names of those not finite."""
    points: Points = {}
    for row in records(frame):
        metric, convention, independent = row["metric"], row["convention"], row["draws"] != draws
        statistics = {"mean": "mean", "std": columns["std"]}
        if metric == HEADLINE and is_main(metric, convention) and not independent:
            points |= counts({name: row.get(name) for name in ("n_degenerate", "n_inverted")})
            statistics |= {"ci_low": "ci_low", "ci_high": "ci_high", **columns}
        for statistic, column in statistics.items():
            name = metric_name(metric, convention, statistic, independent=independent)
            add_metric(points, name, row, column)
    return finite(points)


def _per_image(frame: pd.DataFrame, draws: str) -> list[dict[str, Any]]:
    """An image per row, least stable first."""
    images: dict[str, dict[str, Any]] = {}
    for row in records(frame):
        about = {name: row[name] for name in ("image_id", "class_name", "photo")}
        image = images.setdefault(row["image_id"], about)
        for statistic in ("mean", "std"):
            reading = (row["metric"], row["convention"], statistic)
            image[metric_name(*reading, independent=row["draws"] != draws)] = row[statistic]

    def stability(image: Mapping[str, Any]) -> float:
        value = image.get(f"{HEADLINE}/mean", math.nan)
        return rounded(value) if math.isfinite(value) else math.inf

    return sorted(images.values(), key=stability)


def search_entries(
    tables: Mapping[str, pd.DataFrame], *, study: str, figures: Figures | None = None
) -> list[Entry]:
    """Parent runs of all searches, each with a child per distinct setting that was tried.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `search`, `importances`, `models`, `evaluation_set`, each where it exists.
    study : str
        Name of the study.
    figures : mapping of (search, model) to paths, optional
        PNG files of a parent run.
    """
    common = Study(study, tables, figures)
    shares = groups(tables.get("importances"), _SEARCH)
    return [
        _search_entry(common, rows, shares.get(key))
        for key, rows in groups(tables.get("search"), _SEARCH).items()
    ]


def _search_entry(common: Study, group: pd.DataFrame, shares: pd.DataFrame | None) -> Entry:
    names = searched_names(group)
    rows = records(group)
    reference = next(row for row in rows if row["state"] == "reference")
    trials = [row for row in rows if row["state"] != "reference"]
    best = next((row for row in trials if row["is_best"]), None)
    method, search, model = (str(reference[name]) for name in _SEARCH)
    experiment = experiment_name(common.name, method)
    tags = common.tags(model, "searches") | {
        "search": search,
        "sweep_id": f"{common.name}/{method}/{search}/{model}",
    }
    params = {
        **{"model": model, "method": method, "search": search, "robust": tags["robust"]},
        **{name: reference[name] for name in ("objective", "sampler")},
        "tau": value_text(reference["tau"]) if math.isfinite(reference["tau"]) else "",
    }

    children: dict[str, Entry] = {}
    for row in trials:
        effective = json.loads(row["hyperparameters"])
        mark = "best" if row["is_best"] else "failed" if row["state"] == "failed" else ""
        identity = {
            "task_id": row["task_id"],
            "reference_task_id": reference["task_id"],
            "state": row["state"],
        }
        child = Entry(
            experiment,
            f"{setting_name(effective, names)} {model}{mark and f' ({mark})'}",
            params={**params, **flat(effective, "hp.")},
            metrics=_search_scores(row) | counts({"trial": row["trial"]}),
            tags={**tags, **identity},
        )
        # A setting that is tried again has the same maps.
        children.setdefault(row["task_id"], child)

    metrics = counts(
        {
            "n_trials": len(trials),
            "n_settings": len(children),
            "n_failed": sum(row["state"] == "failed" for row in trials),
        }
    )
    if best is not None:
        metrics |= _search_scores(best)
    metrics |= finite(
        {
            (f"importance.{row['evaluator']}/{row['hyperparameters']}", 0): row["importance"]
            for row in records(shares)
        }
    )[0]
    setting = "" if best is None else setting_name(json.loads(best["hyperparameters"]), names)
    tags["mlflow.note.content"] = NOTES.search(common.name, reference, best, setting, len(trials))
    return Entry(
        experiment,
        f"{method} {search} {model}",
        params=params,
        metrics=metrics,
        tags=tags,
        artifacts=common.figures(model, search),
        images=common.evaluation_set,
        children=tuple(children.values()),
    )


def _search_scores(row: Mapping[str, Any]) -> Points:
    columns = {f"{HEADLINE}/mean": "ssim_mean", f"{RANK}/mean": "spearman_mean"}
    columns |= {f"{HEADLINE}/{name}": name for name in ("ci_low", "ci_high")}
    plain = ("n_images", "forward_passes", "backward_passes", "n_inverted")
    columns |= {name: name for name in plain}
    # Tables from before there were rank correlations lack some columns.
    return finite({(name, 0): row.get(column, math.nan) for name, column in columns.items()})[0]
