"""The runs that people are to find in MLflow, made from tables and cards; `tracking` writes them.

One experiment per (study, method), `steadymap/{study}/{method}`, and `steadymap/{study}/training`.
In it a parent run per (sweep, model), `sliding_patch SP-L googlenet-r`, with a child per setting,
`patch_size=17 googlenet-r` or `patch_size=29 googlenet-r (reference)`, and one per (search, model),
with a child per setting tried, `n_samples=20 sigma=0.15 googlenet-r (best)`; in the training
experiment a run per model. `steadymap/{study}` has one run, which sums the study up. In
`steadymap/{study}/parameter randomization` a parent run per model, `googlenet-r: parameters
randomized`, with a child per method, `lime googlenet-r`, or `lime googlenet-r top_down`.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from steadymap.analysis.readings import (
    BLANK,
    parameter_verdict,
    searched_names,
    setting_name,
    sweep_anchor,
    word,
)

TRAINING = "training"

# Of the run that sums a study up.
SUMMARY = ""

_MAX_PAGE_BYTES = 25_000_000

RANDOMIZATION = "parameter randomization"

PER_IMAGE = "per_image.json"

PER_UNIT = "per_unit.json"

# Of a metric with several conventions, the one that has the short name.
MAIN_CONVENTIONS = {"ssim": "common", "insertion": "auc_over_max", "deletion": "auc_over_max"}

# Measured at several thresholds, of which params name the one that runs show.
LOCALIZATION = ("localization_error", "iou")

HEADLINE = "ssim"

# Stands beside the headline: SSIM may call an inverted map alike.
RANK = "spearman"

# Values by (name, step).
Points = dict[tuple[str, int], float]

_SWEEP = ("method", "sweep", "model")

_SEARCH = ("method", "search", "model")

LABELS = {HEADLINE: "SSIM", RANK: "Spearman", "hog_pearson": "HOG-Pearson"}

ACCURACY = ("insertion", "deletion", "localization_error")

# One child of the experiment on randomization: a method on a model, randomized in one way.
_RANDOMIZED = ("model", "method", "order", "randomizer", "preset")

_UNUSUAL = {"order": "independent", "randomizer": "init", "preset": "paper"}

# Columns of `ipr` that the main reading shows, and those that every reading does.
_IPR_MAIN = (
    *("S_same", "same_low", "same_high", "same_low90", "same_high90", "S_fresh", "floor"),
    *("excess", "excess_low", "excess_high", "S_rel", "share_sensitive", "draw_sd", "threshold"),
)

_IPR_OTHER = ("S_same", "S_fresh", "floor", "excess", "S_rel")

_FUNCTION = ("accuracy", "kept_predictions", "target_change")

_COURSES = {
    "independent": "one unit at a time",
    "top_down": "unit after unit from the logits down",
    "bottom_up": "unit after unit from the input up",
}

# A tag holds 8000 characters.
_NOTED_UNITS = 40

_NOTED_FAILURES = 10

_BLANK_WORDS = (
    " (blank): over half of the pairs of maps are degenerate, and S is mostly what an empty map "
    "scores."
)

_INVERTED_WORDS = "their order turned over, which SSIM may not show (docs/protocol.md)."

_CURVES = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_accuracy": "val/accuracy",
    "val_robust_accuracy": "val/robust_accuracy",
    "learning_rate": "learning_rate",
}


@dataclass(frozen=True)
class Images:
    """The images that a sweep was measured on, or a network trained.

    Attributes
    ----------
    name, uri : str
        What they are called, and the table or folder that has them.
    digest : str
        Hash of them and their targets, 32 hex digits.
    n_images : int
        Number of images.
    context : str
        `evaluation` or `training`.
    """

    name: str
    uri: str
    digest: str
    n_images: int
    context: str = "evaluation"


@dataclass(frozen=True)
class Entry:
    """One run, as the tables want it.

    Attributes
    ----------
    experiment, name : str
        Where it is found.
    params : dict
        Immutable in MLflow.
    metrics : dict
        By name and step; finite.
    tags : dict
        Those that the tables determine, identity included.
    artifacts : dict
        Content by path.
    images : Images, optional
        Its input.
    finished : bool
        Whether the run is to be closed, and nothing that it lacks is still to come.
    seconds : float
        Duration, where one was measured.
    children : tuple of Entry
        Runs below it.
    """

    experiment: str
    name: str
    params: dict[str, str]
    metrics: Points
    tags: dict[str, str]
    artifacts: dict[str, bytes] = field(default_factory=dict)
    images: Images | None = None
    finished: bool = True
    seconds: float = 0.0
    children: tuple["Entry", ...] = ()


def experiment_name(study: str, subject: str) -> str:
    """Name of the experiment of a method, TRAINING, RANDOMIZATION or SUMMARY."""
    return f"steadymap/{study}/{subject}".rstrip("/")


def report_link(study: str, anchor: str) -> str:
    """Where the report tells of a run, as its tag `report` has it."""
    return f"reports/{study}/report.html#{anchor}"


def metric_name(metric: str, convention: str, statistic: str, *, independent: bool = False) -> str:
    """Name of a statistic of scores in MLflow.

    The main reading of a metric is short: `ssim/mean`, `spearman/std`. It has the convention
    `common` (SSIM) or the metric's only one, and the sweep's own draws. Any other reading spells
    its convention out, and `independent` draws where they stand beside nested ones:
    `ssim.sam/mean`, `ssim.common.independent/mean`, `spearman.signed.independent/mean`.

    On a child, `mean` and `std` are over images, of the similarity to the reference. On a parent,
    `mean` is over images of each image's mean over settings, but `std` is the sweep's sensitivity:
    the RMS over images of each image's std over settings. SSIM's main reading has `ci_low` and
    `ci_high` of the mean too, and on a parent `std_mean`, the mean of the stds.

    Under parameter randomization, statistics are called as the columns of `tables/ipr.csv` are:
    `ssim/S_same`, `ssim/same_low`, `ssim/excess`, `ssim.sam/S_same`, `spearman/S_fresh`. SSIM's
    main reading has all of them, others S_same, S_fresh, floor, excess and S_rel.
    """
    if MAIN_CONVENTIONS.get(metric, convention) == convention and not independent:
        return f"{metric}/{statistic}"
    spelt = f"{metric}.{convention}" if convention else metric
    return f"{spelt}{'.independent' if independent else ''}/{statistic}"


def sweep_entries(
    tables: Mapping[str, pd.DataFrame],
    *,
    study: str,
    figures: Mapping[tuple[str, str], Sequence[Path]] | None = None,
    methods: Collection[str] | None = None,
    alpha: float = 0.25,
) -> list[Entry]:
    """Parent runs of all sweeps, with their children, in the order of the table `tasks`.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `tasks`, `settings`, `sensitivity`, and what there is of `models`, `images`,
        `evaluation_set`.
    study : str
        Name of the study.
    figures : mapping of (sweep or method, model) to paths, optional
        PNG files of a parent run.
    methods : collection of str, optional
        These alone.
    alpha : float
        Threshold whose localization is shown; the tables have all.

    Returns
    -------
    list of Entry
        A method without a hyperparameter has a parent with one child.
    """
    for name in ("tasks", "settings", "sensitivity"):
        if name not in tables:
            raise ValueError(f"tables: {name!r} is missing; mirror a study that was analyzed")
    tasks, figures = tables["tasks"], figures or {}
    if methods is not None:
        tasks = tasks[tasks["method"].isin(list(methods))]
    models = {str(row["model"]): row for row in _rows(tables.get("models"))}
    by_setting = _groups(_shown(tables["settings"], alpha), (*_SWEEP, "value"))
    by_sweep = _groups(_shown(tables["sensitivity"], alpha), _SWEEP)
    by_image = _groups(_shown(tables.get("images"), alpha), _SWEEP)
    evaluation_set = _evaluation_set(tables.get("evaluation_set"), study)
    entries = []
    for key, group in _groups(tasks, _SWEEP).items():
        method, sweep, model = key
        rows = _rows(group)
        entries.append(
            _sweep_entry(
                rows,
                by_sweep.get(key),
                {row["value"]: by_setting.get((*key, row["value"])) for row in rows},
                by_image.get(key),
                study=study,
                about=models.get(model, {}),
                evaluation_set=evaluation_set,
                figures=[*figures.get((sweep, model), ()), *figures.get((method, model), ())],
            )
        )
    return entries


def _sweep_entry(
    rows: Sequence[Mapping[str, Any]],
    statistics: pd.DataFrame | None,
    by_value: Mapping[str, pd.DataFrame | None],
    images: pd.DataFrame | None,
    *,
    study: str,
    about: Mapping[str, Any],
    evaluation_set: Images | None,
    figures: Sequence[Path],
) -> Entry:
    # A count sweep has one more reference, with draws of its own: a tag, not a setting.
    own = next((row["draws"] for row in rows if not row["is_reference"]), rows[0]["draws"])
    settings = [row for row in rows if row["draws"] == own]
    reference = next((row for row in settings if row["is_reference"]), settings[0])
    method, sweep, model = (str(reference[name]) for name in _SWEEP)
    experiment = experiment_name(study, method)
    robust = word(about.get("robust", model.endswith("-r")))
    params = {
        "model": model,
        "method": method,
        "sweep": sweep,
        "hyperparameter": str(reference["hyperparameter"]),
        "robust": robust,
    }
    values = ", ".join(str(row["value"]) for row in settings)
    tags = {
        "study": study,
        # Methods without a hyperparameter all have a sweep of the same name.
        "sweep_id": f"{study}/{method}/{sweep}/{model}",
        "report": report_link(
            study, sweep_anchor(sweep) if reference["hyperparameter"] else "headline"
        ),
        "robust": robust,
        "weights_sha256": str(about.get("weights_sha256", "")),
    }

    children = []
    for row in settings:
        metrics, dropped = _statistics(by_value[row["value"]], own, {"std": "std"})
        counts = {name: row[name] for name in ("n_images", "forward_passes", "backward_passes")}
        # As a metric too: as a param the UI sorts 17 before 9.
        counts["value"] = _number(row["value"])
        effective = json.loads(row["hyperparameters"])
        child = {
            "task_id": row["task_id"],
            "reference_task_id": reference["task_id"],
            "reference": word(row["is_reference"]),
            "dropped_metrics": dropped,
        }
        name = f"{row['hyperparameter']}={row['value']}" if row["value"] else "the only setting"
        name += f" {model}"
        hyperparameters = {f"hp.{name}": word(value) for name, value in effective.items()}
        children.append(
            Entry(
                experiment=experiment,
                name=f"{name} (reference)" if row["value"] and row["is_reference"] else name,
                params=_filled({**params, "value": row["value"], **hyperparameters}),
                metrics=metrics | _counts(counts),
                tags=_filled({**tags, **child}),
            )
        )

    metrics, dropped = _statistics(statistics, own, {"std": "std_rms", "std_mean": "std_mean"})
    metrics |= _counts({"n_images": reference["n_images"], "n_settings": len(settings)})
    tags |= {
        # A tag, for MLflow can't change a param where the sweep gets another value.
        "values": values,
        "dropped_metrics": dropped,
        "independent_task_id": "".join(row["task_id"] for row in rows if row["draws"] != own),
        "mlflow.note.content": _sweep_note(study, settings, metrics),
    }
    artifacts = {f"figures/{path.name}": path.read_bytes() for path in figures}
    if images is not None:
        artifacts[PER_IMAGE] = _per_image(images, own)
        # This tag makes the UI show the file as a table.
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": PER_IMAGE, "type": "table"}])
    return Entry(
        experiment=experiment,
        name=f"{method} {sweep} {model}",
        params=_filled(params),
        metrics=metrics,
        tags=_filled(tags),
        artifacts=artifacts,
        images=evaluation_set,
        children=tuple(children),
    )


def search_entries(
    tables: Mapping[str, pd.DataFrame],
    *,
    study: str,
    figures: Mapping[tuple[str, str], Sequence[Path]] | None = None,
) -> list[Entry]:
    """Parent runs of all searches, each with a child per distinct setting that was tried.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `search`, and what there is of `importances`, `models`, `evaluation_set`.
    study : str
        Name of the study.
    figures : mapping of (search, model) to paths, optional
        PNG files of a parent run.
    """
    figures = figures or {}
    models = {str(row["model"]): row for row in _rows(tables.get("models"))}
    shares = _groups(tables.get("importances"), _SEARCH)
    evaluation_set = _evaluation_set(tables.get("evaluation_set"), study)
    return [
        _search_entry(
            group,
            shares.get(key),
            study=study,
            about=models.get(key[2], {}),
            evaluation_set=evaluation_set,
            figures=figures.get((key[1], key[2]), ()),
        )
        for key, group in _groups(tables["search"], _SEARCH).items()
    ]


def _search_entry(
    group: pd.DataFrame,
    shares: pd.DataFrame | None,
    *,
    study: str,
    about: Mapping[str, Any],
    evaluation_set: Images | None,
    figures: Sequence[Path],
) -> Entry:
    names = searched_names(group)
    rows = _rows(group)
    reference = next(row for row in rows if row["state"] == "reference")
    asked = [row for row in rows if row["state"] != "reference"]
    method, search, model = (str(reference[name]) for name in _SEARCH)
    experiment = experiment_name(study, method)
    robust = word(about.get("robust", model.endswith("-r")))
    params = {
        "model": model,
        "method": method,
        "search": search,
        "objective": reference["objective"],
        "sampler": reference["sampler"],
        "robust": robust,
    }
    if math.isfinite(reference["tau"]):
        params["tau"] = word(reference["tau"])
    tags = {
        "study": study,
        "search": search,
        "sweep_id": f"{study}/{method}/{search}/{model}",
        "report": report_link(study, "searches"),
        "robust": robust,
        "weights_sha256": str(about.get("weights_sha256", "")),
    }
    children: dict[str, Entry] = {}
    for row in asked:
        # A setting that is asked again is the same maps.
        if row["task_id"] in children:
            continue
        effective = json.loads(row["hyperparameters"])
        name = f"{setting_name(effective, names)} {model}"
        child = {
            "task_id": row["task_id"],
            "reference_task_id": reference["task_id"],
            "state": row["state"],
        }
        children[row["task_id"]] = Entry(
            experiment=experiment,
            name=f"{name} ({'best' if row['is_best'] else 'failed'})"
            if row["is_best"] or row["state"] == "failed"
            else name,
            params=_filled(
                {**params, **{f"hp.{key}": word(value) for key, value in effective.items()}}
            ),
            metrics=_search_scores(row) | _counts({"trial": row["trial"]}),
            tags=_filled({**tags, **child}),
        )
    best = next((row for row in asked if row["is_best"]), None)
    metrics = _counts(
        {
            "n_trials": len(asked),
            "n_settings": len(children),
            "n_failed": sum(row["state"] == "failed" for row in asked),
        }
    )
    if best is not None:
        metrics |= _search_scores(best)
    for row in _rows(shares):
        if math.isfinite(row["importance"]):
            name = f"importance.{row['evaluator']}/{row['hyperparameters']}"
            metrics[name, 0] = rounded(row["importance"])
    answer = "no setting holds" if best is None else ""
    if best is not None:
        answer = f"**{setting_name(json.loads(best['hyperparameters']), names)}**, "
        answer += f"mean SSIM {best['ssim_mean']:.3f}"
        if math.isfinite(best.get("spearman_mean", math.nan)):
            answer += f", mean Spearman {best['spearman_mean']:.3f}"
            answer += f", {int(best['n_inverted'])} of {best['n_images']} maps inverted"
    kind = (
        "worst setting found" if reference["objective"] == "worst_case" else "cheapest that holds"
    )
    note = (
        f"`{method}` on **{model}**, search {search} by {reference['sampler']}: the {kind}: "
        f"{answer}. {len(asked)} points were asked; a child run per setting."
        f"\n\n{model_words(study, model)}\n\nAll numbers: "
        f"`reports/{study}/tables/search.csv`; pictures: `reports/{study}/report.html`."
    )
    return Entry(
        experiment=experiment,
        name=f"{method} {search} {model}",
        params=_filled(params),
        metrics=metrics,
        tags=_filled({**tags, "mlflow.note.content": note}),
        artifacts={f"figures/{path.name}": path.read_bytes() for path in figures},
        images=evaluation_set,
        children=tuple(children.values()),
    )


def _search_scores(row: Mapping[str, Any]) -> Points:
    found = {f"{HEADLINE}/mean": row["ssim_mean"]}
    found |= {f"{HEADLINE}/{name}": row[name] for name in ("ci_low", "ci_high")}
    found |= {name: row[name] for name in ("n_images", "forward_passes", "backward_passes")}
    found[f"{RANK}/mean"] = row.get("spearman_mean", math.nan)
    found["n_inverted"] = row.get("n_inverted", math.nan)
    return {(name, 0): rounded(value) for name, value in found.items() if math.isfinite(value)}


def randomization_entries(
    tables: Mapping[str, pd.DataFrame],
    *,
    study: str,
    settings: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, Sequence[Path]] | None = None,
) -> list[Entry]:
    """Parent runs of all models whose parameters were randomized, with a child per method.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        By file stem: `ipr`, and what there is of `ipr_units`, `ipr_failures`, `models`,
        `evaluation_set`.
    study : str
        Name of the study.
    settings : mapping of str to mapping
        Hyperparameters of each method.
    figures : mapping of str to paths, optional
        PNG files of each model's parent run.

    Returns
    -------
    list of Entry
        A child has the statistics of S, named by `metric_name`, and its course over units in the
        main reading as curves: `unit/S_same`, `unit/S_fresh` and what randomizing the unit did to
        the model, `unit/accuracy`, `unit/kept_predictions`, `unit/target_change`. Their step is the
        unit's index; names are in the note and in the artifact `per_unit.json`. A parent has each
        method's headline, `S_same/lime` by SSIM and `S_same.spearman/lime` by rank correlation, and
        the last three curves. Orders, randomizers and presets
        other than the paper's are children of their own, whose names say so.

    Raises
    ------
    ValueError
        Where a method has no settings, or two conventions would have one name.
    """
    units = _groups(tables.get("ipr_units"), _RANDOMIZED[:-1])
    failures = _groups(tables.get("ipr_failures"), ["model"])
    models = {str(row["model"]): row for row in _rows(tables.get("models"))}
    evaluation_set = _evaluation_set(tables.get("evaluation_set"), study)
    entries = []
    for (model,), of_model in _groups(tables["ipr"], ["model"]).items():
        about = models.get(model, {})
        common = {
            "study": study,
            "report": report_link(study, "parameters"),
            "robust": word(about.get("robust", model.endswith("-r"))),
            "weights_sha256": str(about.get("weights_sha256", "")),
        }
        children = []
        for key, group in _groups(of_model, _RANDOMIZED).items():
            if key[1] not in settings:
                raise ValueError(
                    f"settings of method {key[1]!r} are missing, which table ipr has; run the "
                    "stage that randomizes parameters again (`dvc repro`)"
                )
            course = _rows(units.get(key[:-1]))
            children.append(_randomized_child(key, _rows(group), course, common, settings[key[1]]))
        entries.append(
            _randomized_parent(
                children,
                _rows(failures.get((model,))),
                common,
                architecture=str(about.get("architecture", "")),
                evaluation_set=evaluation_set,
                figures=(figures or {}).get(model, ()),
            )
        )
    return entries


def _randomized_child(
    key: tuple[str, ...],
    rows: Sequence[Mapping[str, Any]],
    units: Sequence[Mapping[str, Any]],
    common: Mapping[str, str],
    hyperparameters: Mapping[str, Any],
) -> Entry:
    named = dict(zip(_RANDOMIZED, key, strict=True))
    found: dict[tuple[str, int], float] = {}
    headline: Mapping[str, Any] = {}
    for row in rows:
        reading = (row["metric"], row["convention"])
        main = metric_name(*reading, "S_same") == f"{HEADLINE}/S_same"
        for statistic in _IPR_MAIN if main else _IPR_OTHER:
            name = metric_name(*reading, statistic)
            if (name, 0) in found:
                raise _ambiguous(name, row)
            found[name, 0] = row[statistic]
        if main:
            headline = row
    course = [row for row in units if _is_headline(row)]
    found |= _course(course, ("S_same", "S_fresh", *_FUNCTION))
    counted = headline or rows[0]
    names = ("n_images", "n_units", "n_draws", "n_degenerate", "n_inverted")
    counts = {name: counted[name] for name in names if name in counted}
    metrics, dropped = _finite(found)
    metrics |= _counts(counts)
    params = {**named, "robust": common["robust"], **_flat(hyperparameters, "hp.")}
    tags = {
        **common,
        "randomization_id": "/".join((common["study"], *key)),
        "table_digest": _content_digest(params, metrics),
        "passes": parameter_verdict(headline),
        "dropped_metrics": dropped,
        **{name: str(int(counts[name])) for name in ("n_images", "n_units", "n_draws")},
    }
    tags["mlflow.note.content"] = _randomized_note(named, tags, metrics, course)
    artifacts = {}
    if units:
        artifacts[PER_UNIT] = _per_unit(units)
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": PER_UNIT, "type": "table"}])
    unusual = (named[name] for name, usual in _UNUSUAL.items() if named[name] != usual)
    return Entry(
        experiment=experiment_name(common["study"], RANDOMIZATION),
        name=" ".join((named["method"], named["model"], *unusual)),
        params=_filled(params),
        metrics=metrics,
        tags=_filled(tags),
        artifacts=artifacts,
    )


def _randomized_parent(
    children: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
    common: Mapping[str, str],
    *,
    architecture: str,
    evaluation_set: Images | None,
    figures: Sequence[Path],
) -> Entry:
    study, model = common["study"], children[0].params["model"]
    # The paper's order where it was measured: cascades have children of their own.
    orders = [child.params["order"] for child in children]
    order = _UNUSUAL["order"] if _UNUSUAL["order"] in orders else orders[0]
    by_method: dict[str, Entry] = {}
    for child in children:
        if child.params["order"] == order:
            by_method.setdefault(child.params["method"], child)
    shown = list(by_method.values())
    metrics = {
        (f"{name}/{method}", 0): child.metrics[f"{metric}/S_same", 0]
        for name, metric in (("S_same", HEADLINE), (f"S_same.{RANK}", RANK))
        for method, child in by_method.items()
        if (f"{metric}/S_same", 0) in child.metrics
    }
    for child in shown:
        function = {name: value for name, value in child.metrics.items() if _is_function(name[0])}
        metrics = function | metrics
    metrics |= _counts(
        {
            "n_methods": len(shown),
            "n_passing": sum(child.tags.get("passes", "").startswith("yes") for child in shown),
            **{
                name: max(child.metrics[name, 0] for child in shown)
                for name in ("n_images", "n_units", "n_draws")
            },
        }
    )
    params = {"model": model, "architecture": architecture, "robust": common["robust"]}
    for name in ("order", "randomizer", "preset"):
        params[name] = shown[0].params[name]
    tags = {
        **common,
        "randomization_id": f"{study}/{model}",
        "table_digest": _content_digest(params, metrics),
        "mlflow.note.content": _randomized_parent_note(study, params, shown, failures),
    }
    return Entry(
        experiment=children[0].experiment,
        name=f"{model}: parameters randomized",
        params=_filled(params),
        metrics=metrics,
        tags=_filled(tags),
        artifacts={f"figures/{path.name}": path.read_bytes() for path in figures},
        images=evaluation_set,
        children=tuple(children),
    )


def _is_headline(row: Mapping[str, Any]) -> bool:
    return metric_name(row["metric"], row["convention"], "mean") == f"{HEADLINE}/mean"


def _is_function(name: str) -> bool:
    return name in {f"unit/{measure}" for measure in _FUNCTION}


def _course(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Points:
    return {
        (f"unit/{column}", int(row["unit_index"])): row[column]
        for row in rows
        for column in columns
    }


def _finite(found: Points) -> tuple[Points, str]:
    """Metrics that are finite, rounded; the names of those that are not."""
    metrics = {key: rounded(value) for key, value in found.items() if math.isfinite(value)}
    dropped = dict.fromkeys(name for name, step in found if (name, step) not in metrics)
    return metrics, ", ".join(dropped)


def _per_unit(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Table of a unit per row, from the input on, in the format of `mlflow.log_table`."""
    units: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["unit_index"]):
        about = {"step": int(row["unit_index"]), "unit": row["unit"]}
        unit = units.setdefault(about["step"], about)
        found = {name: row[name] for name in _FUNCTION}
        statistics = ("S_same", "low", "high", "S_fresh", "draw_sd")
        for statistic in statistics if _is_headline(row) else ("S_same", "S_fresh"):
            found[metric_name(row["metric"], row["convention"], statistic)] = row[statistic]
        unit |= {
            name: rounded(value) if math.isfinite(value) else None for name, value in found.items()
        }
    names = list(dict.fromkeys(name for unit in units.values() for name in unit))
    data = [[unit.get(name) for name in names] for unit in units.values()]
    # As in `_per_image`.
    return json.dumps(
        {"columns": [name.replace(".", " ") for name in names], "data": data}
    ).encode()


def _randomized_note(
    named: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Points,
    course: Sequence[Mapping[str, Any]],
) -> str:
    def cell(name: str) -> str:
        value = metrics.get((f"{HEADLINE}/{name}", 0))
        return "" if value is None else f"{value:.3f}"

    text = (
        f"`{named['method']}` on **{named['model']}**, {_how(named)}: {tags['n_units']} units, "
        f"{tags['n_draws']} draws, {tags['n_images']} images."
    )
    if tags["passes"]:
        text += f" Moves with the parameters: **{tags['passes']}**."
        text += _BLANK_WORDS if tags["passes"].endswith(BLANK) else ""
    text += "\n\n| 1 - SSIM | mean | low | high |\n|---|---|---|---|\n"
    text += "\n".join(
        f"| {name} | {cell(name)} | {cell(low)} | {cell(high)} |"
        for name, low, high in (
            ("S_same", "same_low", "same_high"),
            ("S_fresh", "", ""),
            ("floor", "", ""),
            ("excess", "excess_low", "excess_high"),
        )
    )
    rank = metrics.get((f"{RANK}/S_same", 0))
    if rank is not None:
        text += f"\n| S_same by rank correlation (1 - Spearman) | {rank:.3f} | | |"
    if turned := metrics.get(("n_inverted", 0)):
        text += f"\n\n**{turned:.0f} inverted pairs of maps**: {_INVERTED_WORDS}"
    text += (
        "\n\nS_same: trained against randomized model, same draws of the method in both; S_fresh: "
        "fresh draws; floor: the trained model with fresh draws; excess: S_fresh - floor."
    )
    if course:
        text += f"\n\nUnits, steps of the curves: artifact `{PER_UNIT}`"
    if 0 < len(course) <= _NOTED_UNITS:
        ordered = sorted(course, key=lambda row: row["unit_index"])
        text += ": " + ", ".join(f"{row['unit_index']} {row['unit']}" for row in ordered)
    return (
        f"{text}\n\nAll numbers: `reports/{tags['study']}/tables/ipr.csv` and `ipr_units.csv`; "
        f"pictures: the parent run and `reports/{tags['study']}/report.html`."
    )


def _randomized_parent_note(
    study: str,
    params: Mapping[str, str],
    children: Sequence[Entry],
    failures: Sequence[Mapping[str, Any]],
) -> str:
    text = (
        f"How much the maps of **{params['model']}** move when its parameters are randomized, "
        f"{_how(params)}.\n\n| method | S_same | low | high | excess | by rank correlation | moves "
        "|\n|---|---|---|---|---|---|---|\n"
    )
    for child in children:
        names = (f"{HEADLINE}/{name}" for name in ("S_same", "same_low", "same_high", "excess"))
        found = (child.metrics.get((name, 0)) for name in (*names, f"{RANK}/S_same"))
        cells = ("" if value is None else f"{value:.3f}" for value in found)
        verdict = child.tags.get("passes", "")
        text += f"| {child.params['method']} | {' | '.join(cells)} | {verdict} |\n"
    if any(child.tags.get("passes", "").endswith(BLANK) for child in children):
        text += f"\n{_BLANK_WORDS.strip()}\n"
    # A unit that can't be randomized fails for all methods, and names none.
    reasons = dict.fromkeys(
        (
            f"`{row['method']}`"
            if isinstance(row["method"], str) and row["method"]
            else f"all methods at unit `{row['unit']}`",
            " ".join(row["reason"].split()),
        )
        for row in failures
    )
    for what, reason in list(reasons)[:_NOTED_FAILURES]:
        text += f"\nIncomplete: {what}: {reason[:200]}\n"
    return (
        f"{text}\n{model_words(study, params['model'])}\n\n"
        "Means of 1 - SSIM, and of 1 - Spearman's rank correlation. A child run per method has all "
        f"numbers and their course over units; tables: `reports/{study}/tables/ipr.csv`, "
        "`ipr_failures.csv`; pictures: "
        f"`reports/{study}/report.html`."
    )


def _how(named: Mapping[str, str]) -> str:
    course = _COURSES.get(named["order"], named["order"])
    return f"{course} (randomizer `{named['randomizer']}`, units `{named['preset']}`)"


def _content_digest(params: Mapping[str, str], metrics: Points) -> str:
    """Hash of what a run can't take back, or would show beside its correction."""
    points = sorted((name, step, value) for (name, step), value in metrics.items())
    return _digest(json.dumps([dict(sorted(params.items())), points]))


def training_entry(
    model: str, card: Mapping[str, Any], curves: pd.DataFrame, *, study: str, finished: bool
) -> Entry:
    """Run of a training, with the epochs as steps.

    Parameters
    ----------
    model : str
        Name of the model.
    card : mapping
        Its card, during training as far as known.
    curves : DataFrame
        A row per epoch so far.
    study : str
        Name of the study.
    finished : bool
        Whether training has ended.

    Returns
    -------
    Entry
        Another `recipe_digest` of the card is another run.
    """
    recipe = card.get("recipe") or {}
    robust = word(card.get("robust", model.endswith("-r")))
    params = {"model": model, "architecture": str(card.get("architecture", "")), "robust": robust}
    metrics: Points = {}
    dropped = set()
    for column, name in _CURVES.items():
        if column not in curves or curves[column].isna().all():
            continue
        for epoch, value in zip(curves["epoch"], curves[column], strict=True):
            if math.isfinite(value):
                metrics[name, int(epoch)] = rounded(value)
            else:
                dropped.add(name)
    for name, value in _accuracies(card).items():
        metrics[f"final/{name}_accuracy", 0] = rounded(value)
    tags = {
        "study": study,
        "training_id": f"{study}/{model}",
        "report": report_link(study, "models"),
        "recipe_digest": str(card.get("recipe_digest") or _digest(json.dumps(recipe))),
        "robust": robust,
        "weights_sha256": str(card.get("weights_sha256", "")),
        "data_digest": str((card.get("data") or {}).get("digest", "")),
        "dropped_metrics": ", ".join(sorted(dropped)),
        "mlflow.note.content": _training_note(study, model, card, len(curves)),
    }
    text = json.dumps(dict(card), indent=2, ensure_ascii=False) + "\n"
    return Entry(
        experiment=experiment_name(study, TRAINING),
        name=model,
        params=_filled({**_flat(recipe), **params}),
        metrics=metrics,
        tags=_filled(tags),
        artifacts={"card.json": text.encode()} if finished else {},
        images=_training_images(card, study) if len(curves) else None,
        finished=finished,
        seconds=float(curves["seconds"].sum()) if "seconds" in curves else 0.0,
    )


def summary_entry(
    study: str,
    tables: Mapping[str, pd.DataFrame],
    headlines: Mapping[str, Mapping[str, float]],
    report: Path | None,
) -> Entry:
    """Run that sums a study up.

    Parameters
    ----------
    study : str
        Name of the study.
    tables : mapping of str to DataFrame
        By file stem: `tasks`, and what there is of `evaluation_set`, `claims`.
    headlines : mapping of str to mapping
        By model, what `metrics/{model}.json` holds.
    report : Path, optional
        The report's page. Where it is too large to be shown, its Markdown beside it is logged.

    Returns
    -------
    Entry
        Metrics `{model}/min_ssim`, ...; how many claims have which verdict; the report as artifact.
    """
    tasks = tables["tasks"]
    metrics = {
        (f"{model}/{name}", 0): rounded(value)
        for model, few in headlines.items()
        for name, value in few.items()
        if math.isfinite(value)
    }
    claims = tables.get("claims", pd.DataFrame())
    if len(claims):
        verdicts = claims["direction"].value_counts()
        metrics |= _counts({f"claims/{name}": n for name, n in verdicts.items()})
    images = _evaluation_set(tables.get("evaluation_set"), study)
    counts = {"n_sweeps": tasks["sweep"].nunique(), "n_settings": tasks["task_id"].nunique()}
    metrics |= _counts({**counts, "n_images": images.n_images if images else None})
    if report is not None and report.is_file() and report.stat().st_size > _MAX_PAGE_BYTES:
        report = report.with_suffix(".md")
    artifacts = {report.name: report.read_bytes()} if report and report.is_file() else {}
    rows = [f"| {model} | {name} | {value:.3g} |" for (key, _), value in metrics.items()
            if "/" in key for model, name in [key.rsplit("/", 1)]]  # fmt: skip
    note = [
        f"**{study}**: how far attribution maps move. Report: "
        + (f"artifact `{next(iter(artifacts))}`." if artifacts else "run `make repro`."),
        "| of | number | value |\n|---|---|---|\n" + "\n".join(rows),
        "min_ssim, min_spearman: least mean similarity of any sweep. min_S_same: least 1 - SSIM "
        f"under randomized parameters of any method. All numbers: `reports/{study}/tables/`.",
    ]
    params = {"models": sorted(headlines), "methods": [*dict.fromkeys(tasks["method"])]}
    return Entry(
        experiment=experiment_name(study, SUMMARY),
        name=f"{study}: summary",
        params={name: ", ".join(values)[:6000] for name, values in params.items() if values},
        metrics=metrics,
        tags={
            "study": study,
            "sweep_id": f"{study}/summary",
            "report": f"reports/{study}/report.html",
            "mlflow.note.content": "\n\n".join(note),
        },
        artifacts=artifacts,
        images=images,
    )


def _training_images(card: Mapping[str, Any], study: str) -> Images | None:
    known = card.get("data") or {}
    if not known.get("n_train"):
        return None
    # MLflow takes at most 36 characters.
    digest = str(known["digest"])[:32]
    place = f"results/{study}/data"
    return Images(f"{study} training images", place, digest, int(known["n_train"]), "training")


def model_words(study: str, model: str) -> str:
    """Where a model's run and card are, as notes say it; `tracking` makes its name a link."""
    place = experiment_name(study, TRAINING)
    return f"Model: run `{model}` in `{place}`, artifact `card.json`."


def _shown(frame: pd.DataFrame | None, alpha: float) -> pd.DataFrame | None:
    """Rows without localization at other thresholds; that at this one under its short name."""
    if frame is None or frame.empty:
        return frame
    measured = frame["metric"].isin(LOCALIZATION).to_numpy()
    here = (frame["convention"] == f"alpha{alpha:.2f}").to_numpy()
    shown = frame.assign(convention=frame["convention"].where(~(measured & here), ""))
    return shown[~measured | here]


def _statistics(
    frame: pd.DataFrame | None, own: str, columns: Mapping[str, str]
) -> tuple[Points, str]:
    """Means and `columns` of rows of scores as metrics; the names of those not finite."""
    metrics: Points = {}
    dropped: list[str] = []
    for row in _rows(frame):
        reading = (row["metric"], row["convention"])
        independent = row["draws"] != own
        found = {"mean": row["mean"], "std": row[columns["std"]]}
        if metric_name(*reading, "mean", independent=independent) == f"{HEADLINE}/mean":
            metrics["n_degenerate", 0] = float(row["n_degenerate"])
            if not math.isnan(row.get("n_inverted", math.nan)):
                metrics["n_inverted", 0] = float(row["n_inverted"])
            more = {"ci_low": "ci_low", "ci_high": "ci_high", **columns}
            found |= {name: row[column] for name, column in more.items()}
        for statistic, value in found.items():
            name = metric_name(*reading, statistic, independent=independent)
            if (name, 0) in metrics or name in dropped:
                raise _ambiguous(name, row)
            if math.isfinite(value):
                metrics[name, 0] = rounded(value)
            else:
                dropped.append(name)
    return metrics, ", ".join(dropped)


def _ambiguous(name: str, row: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"{name}: two conventions of {row['metric']} would have this name, one is "
        f"{row['convention']!r}; name the main one in runs.MAIN_CONVENTIONS"
    )


def _per_image(frame: pd.DataFrame, own: str) -> bytes:
    """Table of an image per row, least stable first, in the format of `mlflow.log_table`."""
    images: dict[str, dict[str, Any]] = {}
    for row in _rows(frame):
        about = {name: row[name] for name in ("image_id", "class_name", "photo")}
        image = images.setdefault(row["image_id"], about)
        reading = (row["metric"], row["convention"])
        for statistic in ("mean", "std"):
            name = metric_name(*reading, statistic, independent=row["draws"] != own)
            image[name] = rounded(row[statistic]) if math.isfinite(row[statistic]) else None
    names = list(dict.fromkeys(name for image in images.values() for name in image))
    # The UI takes a dot for a level of nesting, and leaves the column empty.
    columns = [name.replace(".", " ") for name in names]

    def stability(image: Mapping[str, Any]) -> float:
        value = image.get(f"{HEADLINE}/mean")
        return math.inf if value is None else value

    rows = [[image.get(name) for name in names] for image in sorted(images.values(), key=stability)]
    return json.dumps({"columns": columns, "data": rows}).encode()


def _evaluation_set(frame: pd.DataFrame | None, study: str) -> Images | None:
    if frame is None:
        return None
    names = ("image_id", "sha256", "label", "target", "x0", "y0", "x1", "y1")
    columns = frame[[name for name in names if name in frame]]
    text = columns.sort_values("image_id").to_csv(index=False, lineterminator="\n")
    uri = f"reports/{study}/tables/evaluation_set.csv"
    return Images(f"{study} evaluation set", uri, _digest(text), len(frame))


def _sweep_note(study: str, settings: Sequence[Mapping[str, Any]], metrics: Points) -> str:
    first = settings[0]
    text = f"`{first['method']}` on **{first['model']}**, {first['n_images']} images. "
    text += model_words(study, first["model"])
    if first["value"]:
        values = ", ".join(
            f"**{row['value']}** (reference)" if row["is_reference"] else row["value"]
            for row in settings
        )
        text += f" Sweep {first['sweep']}: `{first['hyperparameter']}` = {values}."
    cells = {}
    for name, label in LABELS.items():
        mean, std = metrics.get((f"{name}/mean", 0)), metrics.get((f"{name}/std", 0))
        if mean is not None and std is not None:
            cells[label] = f"{mean:.3f} | {std:.3f}"
    if cells:
        text += "\n\n| similarity to the reference | mean | std over settings |\n|---|---|---|\n"
        text += "\n".join(f"| {label} | {numbers} |" for label, numbers in cells.items())
        text += (
            "\n\nstd: RMS over images of each image's std over settings. In the child runs, one "
            "per setting, it is over images."
        )
    if turned := metrics.get(("n_inverted", 0)):
        text += f"\n\n**{turned:.0f} inverted pairs of maps**: {_INVERTED_WORDS}"
    return (
        f"{text}\n\nLeast stable images: artifact `{PER_IMAGE}`. All numbers: "
        f"`reports/{study}/tables/`; pictures: `reports/{study}/report.html`."
    )


def _training_note(study: str, model: str, card: Mapping[str, Any], n_epochs: int) -> str:
    kind = "attacked" if card.get("robust") else "clean"
    text = f"**{model}**, trained on {kind} images; epochs: {n_epochs}."
    for name, value in _accuracies(card).items():
        text += f" Final {name} accuracy {value:.3f} (n = {card['accuracies'].get(f'n_{name}')})."
    return f"{text}\n\nCard: artifact `card.json`. Weights: `results/{study}/models/{model}/`."


def _accuracies(card: Mapping[str, Any]) -> dict[str, float]:
    found = card.get("accuracies") or {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, float) and math.isfinite(value)
    }


def rounded(value: float) -> float:
    """Round to 6 significant digits as tables are, lest a live run and its table differ."""
    return float(f"{value:.6g}")


def _digest(text: str) -> str:
    # MLflow takes at most 36 characters.
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = word(item)
    return flat


def _filled(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value != ""}


def _counts(values: Mapping[str, Any]) -> Points:
    return {(name, 0): float(value) for name, value in values.items() if value is not None}


def _groups(
    frame: pd.DataFrame | None, columns: Sequence[str]
) -> dict[tuple[str, ...], pd.DataFrame]:
    if frame is None:
        return {}
    groups = frame.groupby(list(columns), sort=False, observed=True)
    return {tuple(str(part) for part in key): group for key, group in groups}


def _rows(frame: pd.DataFrame | None) -> list[dict[str, Any]]:
    if frame is None:
        return []
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
