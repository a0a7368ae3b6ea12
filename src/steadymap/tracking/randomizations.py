"""Runs in MLflow of models whose parameters were randomized, and of their methods."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from steadymap.analysis.readings import BLANK, parameter_verdict
from steadymap.tracking import entries
from steadymap.tracking.entries import Entry, Points, Study

# Kinds of figures of a model's parent run.
FIGURES = ("ipr", "plane")

PER_UNIT = "per_unit.json"

# A child is a method on a model, randomized in one way.
_CHILD = ("model", "method", "order", "randomizer", "preset")

_PAPERS_WAY = {"order": "independent", "randomizer": "init", "preset": "paper"}

# Columns of `ipr` that the main reading shows, and those that every reading does.
_IPR_MAIN = (
    *("S_same", "same_low", "same_high", "same_low90", "same_high90", "S_fresh", "floor"),
    *("excess", "excess_low", "excess_high", "S_rel", "rel_low", "rel_high", "share_sensitive"),
    *("draw_sd", "threshold"),
)

_IPR_OTHER = ("S_same", "S_fresh", "floor", "excess", "S_rel")

# What randomizing a unit does to the model, the same for all methods.
_FUNCTION = ("accuracy", "kept_predictions", "target_change")

_SIZES = ("n_images", "n_units", "n_draws")

# A tag holds 8000 characters.
_NOTED_UNITS = 40

_NOTED_FAILURES = 10


def randomization_entries(study: Study, settings: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """Parent runs of all models whose parameters were randomized, with a child per method.

    Parameters
    ----------
    study : Study
        With the tables `ipr`, `ipr_units` and `ipr_failures`, each where it exists; figures by
        (kind of figure, model), kinds as in `FIGURES`.
    settings : mapping of str to mapping
        Hyperparameters of each method.

    Returns
    -------
    list of Entry
        A child has the statistics of S, named by `metric_name`, and its course over units in the
        main reading as curves: `unit/S_same`, `unit/S_fresh` and what randomizing the unit did to
        the model, `unit/accuracy`, `unit/kept_predictions`, `unit/target_change`. Their step is the
        unit's index; names are in the note and in the artifact `per_unit.json`. A parent has each
        method's headline, `S_same/lime` by SSIM and `S_same.spearman/lime` by rank correlation, and
        the last three curves. Orders, randomizers and presets other than the paper's are children
        of their own, whose names say so.

    Raises
    ------
    ValueError
        Where a method has no settings, or two conventions would have one name.
    """
    units = study.groups("ipr_units", _CHILD[:-1])
    failures = study.groups("ipr_failures", ["model"])
    parents = []
    for (model,), of_model in study.groups("ipr", ["model"]).items():
        tags = study.tags(model, "parameters")
        children = []
        for key, rows in entries.groups(of_model, _CHILD).items():
            if key[1] not in settings:
                raise ValueError(
                    f"settings of method {key[1]!r} are missing, which table ipr has; run the "
                    "stage that randomizes parameters again (`dvc repro`)"
                )
            course = entries.records(units.get(key[:-1]))
            children.append(_child(key, entries.records(rows), course, tags, settings[key[1]]))
        parents.append(_parent(study, children, entries.records(failures.get((model,))), tags))
    return parents


def _child(
    key: tuple[str, ...],
    rows: Sequence[Mapping[str, Any]],
    units: Sequence[Mapping[str, Any]],
    tags: Mapping[str, str],
    hyperparameters: Mapping[str, Any],
) -> Entry:
    names = dict(zip(_CHILD, key, strict=True))
    points: Points = {}
    for row in rows:
        for column in _IPR_MAIN if _is_headline(row) else _IPR_OTHER:
            entries.add_metric(points, row, column, column)
    headline: Mapping[str, Any] = next((row for row in rows if _is_headline(row)), {})
    course = sorted(filter(_is_headline, units), key=lambda row: row["unit_index"])
    points |= {
        (f"unit/{column}", int(row["unit_index"])): row[column]
        for row in course
        for column in ("S_same", "S_fresh", *_FUNCTION)
    }
    metrics, dropped = entries.finite(points)
    sizes = headline or rows[0]
    counted = (*_SIZES, "n_degenerate", "n_inverted")
    metrics |= entries.counts({name: sizes.get(name) for name in counted})
    params = {**names, "robust": tags["robust"], **entries.flat(hyperparameters, "hp.")}
    verdict = parameter_verdict(headline)
    artifacts: dict[str, Any] = {}
    table = ""
    if units:
        artifacts, table = entries.logged_table(_per_unit(units), PER_UNIT)
    # A verdict that rests on empty maps is marked.
    blank = verdict.endswith(BLANK)
    noted = course if len(course) <= _NOTED_UNITS else []
    note = entries.NOTES.randomized(
        names, tags["study"], metrics, verdict, blank, PER_UNIT if course else "", noted
    )
    unusual = (names[name] for name, usual in _PAPERS_WAY.items() if names[name] != usual)
    return Entry(
        entries.experiment_name(tags["study"], entries.RANDOMIZATION),
        " ".join((names["method"], names["model"], *unusual)),
        params=params,
        metrics=metrics,
        tags={
            **tags,
            "randomization_id": "/".join((tags["study"], *key)),
            "table_digest": _content_digest(params, metrics),
            "passes": verdict,
            "dropped_metrics": dropped,
            **{name: str(int(sizes[name])) for name in _SIZES},
            "mlflow.note.content": note,
            "mlflow.loggedArtifacts": table,
        },
        artifacts=artifacts,
    )


def _parent(
    study: Study,
    children: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
    tags: Mapping[str, str],
) -> Entry:
    model = children[0].params["model"]
    # The paper's order where it was measured: cascades have children of their own.
    orders = [child.params["order"] for child in children]
    order = _PAPERS_WAY["order"] if _PAPERS_WAY["order"] in orders else orders[0]
    by_method: dict[str, Entry] = {}
    for child in children:
        if child.params["order"] == order:
            by_method.setdefault(child.params["method"], child)
    shown = list(by_method.values())
    metrics = {
        (f"{name}/{method}", 0): child.metrics[f"{metric}/S_same", 0]
        for name, metric in (("S_same", entries.HEADLINE), (f"S_same.{entries.RANK}", entries.RANK))
        for method, child in by_method.items()
        if (f"{metric}/S_same", 0) in child.metrics
    }
    curves = {f"unit/{name}" for name in _FUNCTION}
    for child in shown:
        metrics = {key: v for key, v in child.metrics.items() if key[0] in curves} | metrics
    passing = sum(child.tags.get("passes", "").startswith("yes") for child in shown)
    sizes = {name: max(child.metrics[name, 0] for child in shown) for name in _SIZES}
    metrics |= entries.counts({"n_methods": len(shown), "n_passing": passing, **sizes})
    params = {
        **{"model": model, "robust": tags["robust"]},
        "architecture": str(study.models.get(model, {}).get("architecture", "")),
        **{name: shown[0].params[name] for name in _PAPERS_WAY},
    }
    # A unit that can't be randomized fails for all methods, and names none.
    reasons = dict.fromkeys(
        (
            f"`{row['method']}`"
            if isinstance(row["method"], str) and row["method"]
            else f"all methods at unit `{row['unit']}`",
            " ".join(row["reason"].split())[:200],
        )
        for row in failures
    )
    blank = any(child.tags.get("passes", "").endswith(BLANK) for child in shown)
    note = entries.NOTES.randomized_model(
        study.name, params, shown, blank, list(reasons)[:_NOTED_FAILURES]
    )
    return Entry(
        children[0].experiment,
        f"{model}: parameters randomized",
        params=params,
        metrics=metrics,
        tags={
            **tags,
            "randomization_id": f"{study.name}/{model}",
            "table_digest": _content_digest(params, metrics),
            "mlflow.note.content": note,
        },
        artifacts=study.figures(model, *FIGURES),
        images=study.evaluation_set,
        children=tuple(children),
    )


def _is_headline(row: Mapping[str, Any]) -> bool:
    return row["metric"] == entries.HEADLINE and entries.is_main(row["metric"], row["convention"])


def _per_unit(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A unit per row, from the input on."""
    units: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["unit_index"]):
        step = int(row["unit_index"])
        unit = units.setdefault(step, {"step": step, "unit": row["unit"]})
        unit |= {name: row[name] for name in _FUNCTION}
        statistics = ("S_same", "low", "high", "S_fresh", "draw_sd")
        for statistic in statistics if _is_headline(row) else ("S_same", "S_fresh"):
            unit[entries.metric_name(row["metric"], row["convention"], statistic)] = row[statistic]
    return list(units.values())


def _content_digest(params: Mapping[str, str], metrics: Points) -> str:
    """Hash of params and metrics, which MLflow can't change or take back once logged."""
    points = sorted((name, step, value) for (name, step), value in metrics.items())
    return entries.digest(json.dumps([dict(sorted(params.items())), points]))
