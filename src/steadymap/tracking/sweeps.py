"""Runs of sweeps and searches in MLflow, and of the settings in them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from steadymap.analysis.readings import (
    headline_draws,
    searched_names,
    setting_name,
    sweep_anchor,
)
from steadymap.params.methods import value_text
from steadymap.tracking import entries
from steadymap.tracking.entries import Entry, Points, Study

PER_IMAGE = "per_image.json"

# Measured at several thresholds; runs show the one that params name.
LOCALIZATION = ("localization_error", "iou")

_SWEEP = ("method", "sweep", "model")

_SEARCH = ("method", "search", "model")


def sweep_entries(study: Study, alpha: float = 0.25) -> list[Entry]:
    """Parent runs of all sweeps, with their children, in the order of the table `tasks`.

    Parameters
    ----------
    study : Study
        With the tables `tasks`, `settings`, `sensitivity`; `images` where it exists.
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
        if name not in study.tables:
            raise ValueError(f"tables: {name!r} is missing; mirror a study that was analyzed")
    settings, sensitivity, images = (
        entries.groups(_at_threshold(study.tables.get(name), alpha), _SWEEP)
        for name in ("settings", "sensitivity", "images")
    )
    return [
        _sweep_entry(
            study, entries.records(tasks), settings.get(key), sensitivity.get(key), images.get(key)
        )
        for key, tasks in study.groups("tasks", _SWEEP).items()
    ]


def _sweep_entry(
    study: Study,
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
    experiment = entries.experiment_name(study.name, method)
    tags = study.tags(model, sweep_anchor(sweep) if hyperparameter else "headline")
    # With the method: those without a hyperparameter all have a sweep of the same name.
    tags["sweep_id"] = f"{study.name}/{method}/{sweep}/{model}"
    params = {
        **{"model": model, "method": method, "sweep": sweep},
        **{"hyperparameter": hyperparameter, "robust": tags["robust"]},
    }

    by_value = entries.groups(settings, ["value"])
    children = []
    for task in shown:
        metrics, dropped = _statistics(by_value.get((task["value"],)), {"std": "std"})
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
        hyperparameters = entries.flat(json.loads(task["hyperparameters"]), "hp.")
        children.append(
            Entry(
                experiment,
                f"{name} {model}{' (reference)' if is_reference else ''}",
                params={**params, "value": task["value"], **hyperparameters},
                metrics=metrics | entries.counts(numbers),
                tags={**tags, **identity},
            )
        )

    columns = {"std_settings": "std_rms", "std_settings_mean": "std_mean"}
    metrics, dropped = _statistics(sensitivity, columns)
    metrics |= entries.counts({"n_images": reference["n_images"], "n_settings": len(shown)})
    tags |= {
        # A tag, for MLflow can't change a param where the sweep gets another value.
        "values": ", ".join(str(task["value"]) for task in shown),
        "dropped_metrics": dropped,
        "independent_task_id": "".join(t["task_id"] for t in tasks if t["draws"] != draws),
        "mlflow.note.content": entries.NOTES.sweep(study.name, shown, metrics, PER_IMAGE),
    }
    artifacts = study.figures(model, sweep, method)
    if images is not None:
        rows = _per_image(images)
        table, tags["mlflow.loggedArtifacts"] = entries.logged_table(rows, PER_IMAGE)
        artifacts |= table
    return Entry(
        experiment,
        f"{method} {sweep} {model}",
        params=params,
        metrics=metrics,
        tags=tags,
        artifacts=artifacts,
        images=study.evaluation_set,
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


def _statistics(frame: pd.DataFrame | None, columns: Mapping[str, str]) -> tuple[Points, str]:
    """Means and `columns` of rows of scores as metrics; the names of those not finite.

    All metrics have the first of the columns, the headline all of them.
    """
    points: Points = {}
    spread = next(iter(columns))
    for row in _with_other_draws(frame):
        metric, convention, other = row["metric"], row["convention"], row["other_draws"]
        statistics = {"mean": "mean", spread: columns[spread]}
        if metric == entries.HEADLINE and entries.is_main(metric, convention) and not other:
            flags = ("n_degenerate", "n_inverted")
            points |= entries.counts({name: row.get(name) for name in flags})
            statistics |= {"ci_low": "ci_low", "ci_high": "ci_high", **columns}
        for statistic, column in statistics.items():
            entries.add_metric(points, row, statistic, column, other)
    return entries.finite(points)


def _with_other_draws(frame: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of scores with their kind of draws as `other_draws`, '' for the headline's."""
    if frame is None or frame.empty:
        return []
    headline = frame.index.isin(headline_draws(frame).index)
    return entries.records(frame.assign(other_draws=frame["draws"].where(~headline, "")))


def _per_image(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """An image per row, least stable first."""
    images: dict[str, dict[str, Any]] = {}
    for row in _with_other_draws(frame):
        about = {name: row[name] for name in ("image_id", "class_name", "photo")}
        image = images.setdefault(row["image_id"], about)
        for statistic, column in (("mean", "mean"), ("std_settings", "std")):
            reading = (row["metric"], row["convention"], statistic)
            image[entries.metric_name(*reading, draws=row["other_draws"])] = row[column]

    def stability(image: Mapping[str, Any]) -> float:
        value = image.get(f"{entries.HEADLINE}/mean", math.nan)
        return entries.rounded(value) if math.isfinite(value) else math.inf

    return sorted(images.values(), key=stability)


def search_entries(study: Study) -> list[Entry]:
    """Parent runs of all searches, each with a child per distinct setting that was tried.

    From the tables `search` and `importances`, each where it exists.
    """
    shares = study.groups("importances", _SEARCH)
    return [
        _search_entry(study, rows, shares.get(key))
        for key, rows in study.groups("search", _SEARCH).items()
    ]


def _search_entry(study: Study, group: pd.DataFrame, shares: pd.DataFrame | None) -> Entry:
    names = searched_names(group)
    rows = entries.records(group)
    reference = next(row for row in rows if row["state"] == "reference")
    trials = [row for row in rows if row["state"] != "reference"]
    best = next((row for row in trials if row["is_best"]), None)
    method, search, model = (str(reference[name]) for name in _SEARCH)
    experiment = entries.experiment_name(study.name, method)
    tags = study.tags(model, "searches") | {
        "search": search,
        "sweep_id": f"{study.name}/{method}/{search}/{model}",
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
        identity = {name: row[name] for name in ("task_id", "state")}
        identity["reference_task_id"] = reference["task_id"]
        child = Entry(
            experiment,
            f"{setting_name(effective, names)} {model}{mark and f' ({mark})'}",
            params={**params, **entries.flat(effective, "hp.")},
            metrics=_search_scores(row) | entries.counts({"trial": row["trial"]}),
            tags={**tags, **identity},
        )
        # A setting that is tried again has the same maps.
        children.setdefault(row["task_id"], child)

    n_failed = sum(row["state"] == "failed" for row in trials)
    sizes = {"n_trials": len(trials), "n_settings": len(children), "n_failed": n_failed}
    metrics = entries.counts(sizes)
    if best is not None:
        metrics |= _search_scores(best)
    importances = {
        (f"importance.{row['evaluator']}/{row['hyperparameters']}", 0): row["importance"]
        for row in entries.records(shares)
    }
    metrics |= entries.finite(importances)[0]
    setting = "" if best is None else setting_name(json.loads(best["hyperparameters"]), names)
    note = entries.NOTES.search(study.name, reference, best, setting, len(trials))
    return Entry(
        experiment,
        f"{method} {search} {model}",
        params=params,
        metrics=metrics,
        tags=tags | {"mlflow.note.content": note},
        artifacts=study.figures(model, search),
        images=study.evaluation_set,
        children=tuple(children.values()),
    )


def _search_scores(row: Mapping[str, Any]) -> Points:
    columns = {f"{entries.HEADLINE}/mean": "ssim_mean", f"{entries.RANK}/mean": "spearman_mean"}
    columns |= {f"{entries.HEADLINE}/{name}": name for name in ("ci_low", "ci_high")}
    plain = ("n_images", "forward_passes", "backward_passes", "n_inverted")
    columns |= {name: name for name in plain}
    # Tables from before there were rank correlations lack some columns.
    points = {(name, 0): row.get(column, math.nan) for name, column in columns.items()}
    return entries.finite(points)[0]
