"""Saved views of MLflow experiments."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from steadymap.tracking.entries import (
    ACCURACY,
    HEADLINE,
    LABELS,
    RANDOMIZATION,
    RANK,
    SUMMARY,
    TRAINING,
)

# Begins the tag of an experiment that is a saved view of the UI.
VIEW = "mlflow.sharedViewState."

_CURRENT_SETTINGS = "tags.current = 'true' and tags.task_id != ''"

# A line chart as MLflow 3.17 itself writes one.
_LINE = {
    "scaleType": "linear",
    "xAxisKey": "step",
    "xAxisScaleType": "linear",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "range": {},
    "lineSmoothness": 0,
    "displayPoints": True,
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def experiment_tags(
    name: str, sweeps: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Tags of an experiment: those to keep up, and the saved views that people may change.

    Parameters
    ----------
    name : str
        As `experiment_name` gives it.
    sweeps : mapping of str to str, optional
        Of a method's experiment, the hyperparameter that each sweep varies: a view per sweep.
    """
    _, study, subject = f"{name}/".split("/", 2)
    subject = subject.rstrip("/")
    # Otherwise the UI guesses whether this is about language models.
    tags = {"study": study, "mlflow.experimentKind": "custom_model_development"}
    if subject == SUMMARY:
        tags["mlflow.note.content"] = (
            f"Study {study} in one run: its headline, and the report as artifact. The numbers are "
            f"in `steadymap/{study}/METHOD`."
        )
        return tags, {}
    if subject == TRAINING:
        tags["mlflow.note.content"] = f"Study {study}: a run per trained network, epochs as steps."
        trained = _view(
            "Models: final accuracies",
            "tags.current = 'true'",
            params=["architecture", "robust", "epochs"],
            metrics=["final/clean_accuracy", "final/robust_accuracy"],
            order="attributes.start_time",
        )
        tags["first_view"] = "models"
        return tags, {f"{VIEW}models": trained}
    if subject == RANDOMIZATION:
        tags["mlflow.note.content"] = (
            "How much maps move when the model's parameters are randomized: a run per model, below "
            "it one per method. Views, top right, has more. Mirrored from tables: edits here "
            "change no result."
        )
        main = ("S_same", "same_low", "same_high", "S_fresh", "floor", "excess", "S_rel")
        methods = _view(
            "Methods: how sensitive to parameters",
            "tags.current = 'true' and params.method != ''",
            params=["model", "method", "order"],
            tags=["passes"],
            metrics=[
                *(f"{metric}/S_same" for metric in (HEADLINE, RANK)),
                *(f"{HEADLINE}/{name}" for name in main[1:]),
                *(f"{metric}/S_same" for metric in LABELS if metric not in (HEADLINE, RANK)),
                *("n_inverted", "n_images", "n_units", "n_draws"),
            ],
            order=f"metrics.`{HEADLINE}/S_same`",
            charts=[
                ("BAR", {"metricKey": f"{HEADLINE}/S_same"}),
                ("BAR", {"metricKey": f"{RANK}/S_same"}),
                ("BAR", {"metricKey": f"{HEADLINE}/excess"}),
                *(
                    ("LINE", {**_LINE, "metricKey": name, "selectedMetricKeys": [name]})
                    for name in ("unit/S_same", "unit/target_change")
                ),
            ],
        )
        tags["first_view"] = "methods"
        return tags, {f"{VIEW}methods": methods}
    tags["mlflow.note.content"] = (
        f"How much {subject} maps move: a run per sweep and model, below it one per setting. "
        "Views, top right, has more. Mirrored from tables: edits here change no result."
    )
    means = [f"{metric}/mean" for metric in LABELS]
    scores = [f"{metric}/{statistic}" for metric in LABELS for statistic in ("mean", "std")]
    sweeps_view = _view(
        "Sweeps: how sensitive",
        "tags.current = 'true'",
        params=["model", "robust", "sweep", "hyperparameter"],
        # What fits on a screen first: the rest is to be scrolled to.
        metrics=[
            *scores[:4],
            "n_inverted",
            *(f"{metric}/std" for metric in ACCURACY),
            *scores[4:],
            "n_images",
        ],
        order="attributes.start_time",
        charts=[
            ("BAR", {"metricKey": name})
            for name in (f"{HEADLINE}/std", f"{HEADLINE}/mean", f"{RANK}/mean")
        ],
        when=3,
    )
    # One axis per hyperparameter: a number of samples and a sigma share no scale.
    hyperparameters = [f"hp.{name}" for name in dict.fromkeys((sweeps or {}).values())]
    settings = _view(
        "Settings: one by one",
        f"{_CURRENT_SETTINGS} and params.sweep != ''",
        params=["model", "robust", "sweep"],
        metrics=["value", *scores, "n_inverted", *(f"{metric}/mean" for metric in ACCURACY)],
        order="metrics.`value`",
        charts=[_parallel(["sweep", "model", *hyperparameters], means[1::-1])],
    )
    tags["first_view"] = "sweeps"
    views = {
        f"{VIEW}sweeps": sweeps_view,
        f"{VIEW}settings": settings,
    }
    for sweep, hyperparameter in (sweeps or {}).items():
        views[f"{VIEW}sweep-{sweep}"] = _sweep_view(subject, sweep, hyperparameter)
    return tags, views


def _sweep_view(method: str, sweep: str, hyperparameter: str) -> str:
    """Saved view of the settings of one sweep, on the scale of what it varies."""
    param = f"hp.{hyperparameter}"
    names = [f"{metric}/mean" for metric in (*LABELS, *ACCURACY)]
    return _view(
        f"{sweep}: {hyperparameter} of {method}",
        f"{_CURRENT_SETTINGS} and params.sweep = '{sweep}'",
        params=["model", param],
        metrics=[name for mean in names for name in (mean, mean.replace("mean", "std"))],
        order="metrics.`value`",
        charts=[
            _parallel(["model", param], ["insertion/mean", "deletion/mean", names[0]]),
            *(
                (
                    "SCATTER",
                    {
                        "xaxis": {"key": param, "type": "PARAM"},
                        "yaxis": {"key": name, "type": "METRIC"},
                    },
                )
                for name in names
            ),
        ],
        when=2,
    )


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Parallel coordinates; the last metric gives the lines their colors."""
    return "PARALLEL", {
        "selectedParams": list(params),
        "selectedMetrics": list(metrics),
        "showAllRuns": True,
    }


def _view(
    name: str,
    search: str,
    *,
    params: Sequence[str],
    metrics: Sequence[str],
    order: str,
    tags: Sequence[str] = (),
    charts: Sequence[tuple[str, Mapping[str, Any]]] = (),
    when: int = 1,
) -> str:
    """Make a saved view of the UI's runs page, as MLflow 3.17 itself writes one."""
    section = "steadymap"
    columns = [
        f"{kind}.`{name}`"
        for kind, names in (("params", params), ("tags", tags), ("metrics", metrics))
        for name in names
    ]
    widths = {"attributes.`Run Name`": 300, "runDateAndNestInfo": 150}
    state = {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": order != "attributes.start_time",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*widths, *columns],
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }
    if charts:
        state |= {
            "compareRunSections": [
                {
                    "uuid": section,
                    "name": name.split(":")[0],
                    "display": True,
                    "isReordered": False,
                    "deleted": False,
                    "isGenerated": False,
                    # Axes side by side need more than a third of the page.
                    "columns": min(len(charts), 2 if charts[0][0] == "PARALLEL" else 3),
                }
            ],
            "compareRunCharts": [
                {
                    "uuid": f"{section}{number}",
                    "type": kind,
                    "runsCountToCompare": 100,
                    "metricSectionId": section,
                    "deleted": False,
                    "isGenerated": False,
                    **options,
                }
                for number, (kind, options) in enumerate(charts)
            ],
        }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    # The UI lists later ones first, and gives a view that is saved anew another time of update.
    view = {"name": name, "createdAt": when, "updatedAt": when, "state": f"deflate;{packed}"}
    return json.dumps(view)
