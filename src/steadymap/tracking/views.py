"""Notes on MLflow experiments, and saved views of their pages of runs.

A saved view is the private state of MLflow's UI, packed into a tag: `views.yaml.jinja` describes
it, and the package requires one minor version of MLflow for it.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from steadymap.tracking.entries import RANDOMIZATION, SUMMARY, TEMPLATES, TRAINING

# Begins the tag of an experiment that is a saved view of the UI.
VIEW = "mlflow.sharedViewState."

_KINDS = {SUMMARY: "summary", TRAINING: "training", RANDOMIZATION: "randomization"}

_TEMPLATE = TEMPLATES.get_template("views.yaml.jinja")


def experiment_tags(
    name: str, sweeps: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Tags of an experiment: those to keep up to date, and saved views, which people may change.

    Parameters
    ----------
    name : str
        As `experiment_name` gives it.
    sweeps : mapping of str to str, optional
        Of a method's experiment, the hyperparameter that each sweep varies: a view per sweep.
    """
    _, study, subject = f"{name}/".split("/", 2)
    subject = subject.rstrip("/")
    sweeps = sweeps or {}
    text = _TEMPLATE.render(
        kind=_KINDS.get(subject, "method"),
        study=study,
        subject=subject,
        sweeps=sweeps,
        hyperparameters=[f"hp.{name}" for name in dict.fromkeys(sweeps.values())],
    )
    experiment = yaml.safe_load(text)
    tags = {
        "study": study,
        # Otherwise the UI guesses whether this is about language models.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": experiment["note"],
    }
    views = experiment["views"].items()
    return tags, {f"{VIEW}{key}": _view(view, experiment) for key, view in views}


def _view(view: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Value of a saved view's tag."""
    columns = [f"{kind}.`{name}`" for kind, names in view["columns"].items() for name in names]
    state = {
        **defaults["state"],
        "searchFilter": view["search"],
        "orderByKey": view["order"],
        "orderByAsc": view["order"] != "attributes.start_time",
        "selectedColumns": columns,
        "columnOrder": [*defaults["state"]["columnWidths"], *columns],
        **_charts(view["name"].split(":")[0], view.get("charts", []), defaults),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    # The UI lists later views first; one that is saved anew has another time of update.
    when = view.get("when", 1)
    times = {"createdAt": when, "updatedAt": when}
    return json.dumps({"name": view["name"], **times, "state": f"deflate;{packed}"})


def _charts(
    title: str, charts: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    if not charts:
        return {}
    # Axes side by side need more than a third of the page.
    columns = min(len(charts), 2 if charts[0]["type"] == "PARALLEL" else 3)
    section = {**defaults["section"], "name": title, "columns": columns}
    numbered = [
        {"uuid": f"{section['uuid']}{number}", **defaults["chart"], **chart}
        for number, chart in enumerate(charts)
    ]
    return {"compareRunSections": [section], "compareRunCharts": numbered}
