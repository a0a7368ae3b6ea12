"""Runs in MLflow of what is no sweep: comparisons, spreads of dataset means, claims."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from steadymap.analysis.claims.verdict import verdict_counts
from steadymap.analysis.readings import seen_objects
from steadymap.params.methods import ROBUST, value_text
from steadymap.tracking import entries
from steadymap.tracking.entries import Entry, Points, Study

# Statistics of dataset means by their columns in table `global_std`; `std_settings` is, as in the
# runs of sweeps, the RMS over images of each image's std over settings.
_SPREADS = {
    "std_of_means": "std",
    "std_of_means_low": "std_low",
    "std_of_means_high": "std_high",
    "std_of_means_scaled": "std_scaled",
    "std_settings": "per_image",
    "times": "times",
}

_CLAIM_NUMBERS = (
    *("value", "ci_low", "ci_high", "paper_value", "p", "n_images", "images_to_decide"),
)

_PAPERS = {"claims": "SAM", "ipr_claims": "extended IPR"}


def comparison_entries(study: Study) -> list[Entry]:
    """Parent runs of comparisons, object sizes and spreads of dataset means, with their children.

    Parameters
    ----------
    study : Study
        With the tables `comparisons`, `object_size` and `global_std`, each where it exists.

    Returns
    -------
    list of Entry
        In the experiment `comparisons`: `gradient-noise googlenet` with a child per variance,
        `denoising-gradient googlenet towards googlenet-r` with one per value and pairing,
        `object size googlenet` with one per object and patch, and `spread of means googlenet` with
        one per sweep.
    """
    return [*_compared(study), *_object_sizes(study), *_global_spreads(study)]


def _compared(study: Study) -> list[Entry]:
    keys = ["comparison", "model", "other"]
    table = study.tables.get("comparisons")
    if table is not None:
        table = table.fillna({name: "" for name in (*keys, "value", "role", "pairing", "method")})
    runs = []
    for (comparison, model, other), rows in entries.groups(table, keys).items():
        names = {"comparison": comparison, "model": model, "other": other}
        name = f"{comparison} {model}" + (f" towards {other}" if other else "")
        parts = entries.groups(rows, ["method", "value", "pairing"])
        children = []
        for (method, value, pairing), part in parts.items():
            found = entries.records(part)
            points: Points = {}
            for row in found:
                for statistic in ("mean", "std", "ci_low", "ci_high"):
                    entries.add_metric(points, row, statistic, statistic)
            sizes = {key: found[0].get(key) for key in ("n_images", "n_degenerate", "n_inverted")}
            sizes["value"] = pd.to_numeric(value, errors="coerce")
            about = {"method": method, "value": value, "pairing": pairing, "role": found[0]["role"]}
            setting = " ".join(filter(None, (method, value, pairing if other else "")))
            children.append((f"{setting} {model}", about, points, sizes))
        runs.append(_run(study, name, names, "comparisons", children))
    return runs


def _object_sizes(study: Study) -> list[Entry]:
    table = study.tables.get("object_size")
    rows = None if table is None or table.empty else seen_objects(table)
    runs = []
    for (model,), of_model in entries.groups(rows, ["model"]).items():
        children = []
        for key, part in entries.groups(of_model, ["object_size", "patch_size"]).items():
            area = part["area_above_half"] / part["object_area"]
            means = {"area_ratio": area, "peak": part["peak"], "probability": part["score"]}
            points = {(f"{name}/mean", 0): values.mean() for name, values in means.items()}
            sizes = {"n_images": part["image_id"].nunique()}
            about = dict(zip(("object_size", "patch_size"), key, strict=True))
            name = "object {} px, patch {} px {}".format(*key, model)
            children.append((name, about, points, sizes))
        names = {"comparison": "object size", "model": model, "method": "sliding_patch"}
        runs.append(_run(study, f"object size {model}", names, "comparisons", children))
    return runs


def _global_spreads(study: Study) -> list[Entry]:
    runs = []
    for (model,), of_model in study.groups("global_std", ["model"]).items():
        children = []
        for (sweep,), part in entries.groups(of_model, ["sweep"]).items():
            found = entries.records(part)
            points: Points = {}
            for row in found:
                for statistic, column in _SPREADS.items():
                    # Tables from before spreads per image stood beside lack some columns.
                    entries.add_metric(points, {column: float("nan")} | row, statistic, column)
            sizes = {key: found[0][key] for key in ("n_images", "n_settings")}
            about = {key: str(found[0][key]) for key in ("sweep", "method", "hyperparameter")}
            children.append((f"{sweep} {model}", about, points, sizes))
        names = {"comparison": "spread of means", "model": model}
        runs.append(_run(study, f"spread of means {model}", names, "global-std", children))
    return runs


_Child = tuple[str, Mapping[str, str], Points, Mapping[str, Any]]


def _run(
    study: Study, name: str, names: Mapping[str, str], anchor: str, children: Sequence[_Child]
) -> Entry:
    """Run of a comparison with a child per setting.

    Parameters
    ----------
    study : Study
    name : str
        Of the run.
    names : mapping of str to str
        Params of the run and of its children, among them `model`.
    anchor : str
        Of the section in the report.
    children : sequence of tuple
        Name, params, points and counts of each.
    """
    experiment = entries.experiment_name(study.name, entries.COMPARISONS)
    tags = study.tags(names["model"], anchor)
    params = {**names, "robust": value_text(names["model"].endswith(ROBUST))}
    made = []
    for child, about, points, sizes in children:
        metrics, dropped = entries.finite(points)
        identity = {"sweep_id": f"{study.name}/{name}/{child}", "dropped_metrics": dropped}
        made.append(
            Entry(
                experiment,
                child,
                params={**params, **about},
                metrics=metrics | entries.counts(sizes),
                tags={**tags, **identity},
            )
        )
    seen = max((child.metrics.get(("n_images", 0), 0.0) for child in made), default=0.0)
    note = entries.NOTES.comparison(study.name, name, [child.name for child in made])
    return Entry(
        experiment,
        name,
        params=params,
        metrics=entries.counts({"n_settings": len(made), "n_images": seen}),
        tags={**tags, "sweep_id": f"{study.name}/{name}", "mlflow.note.content": note},
        images=study.evaluation_set,
        children=tuple(made),
    )


def claim_entries(study: Study) -> list[Entry]:
    """A parent run per paper with its claims by verdict, and a child per claim.

    Parameters
    ----------
    study : Study
        With the tables `claims` and `ipr_claims`, each where it exists.
    """
    experiment = entries.experiment_name(study.name, entries.CLAIMS)
    runs = []
    for stem, paper in _PAPERS.items():
        table = study.tables.get(stem)
        if table is None or table.empty:
            continue
        link = entries.report_link(study.name, stem.replace("_", "-"))
        shared = {"study": study.name, "report": link}
        children = [
            _claim(experiment, paper, row, shared, entries.NOTES.claim)
            for row in entries.records(table)
        ]
        found = {name: n for name, n in verdict_counts(table).items() if n}
        note = entries.NOTES.claims(study.name, paper, stem, found)
        runs.append(
            Entry(
                experiment,
                f"{paper}: claims",
                params={"paper": paper},
                metrics=entries.counts({f"claims/{name}": n for name, n in found.items()}),
                tags=shared | {"sweep_id": f"{study.name}/{stem}", "mlflow.note.content": note},
                children=tuple(children),
            )
        )
    return runs


def _claim(
    experiment: str,
    paper: str,
    row: Mapping[str, Any],
    shared: Mapping[str, str],
    note: Callable[..., str],
) -> Entry:
    """Run of one claim."""
    texts = {name: "" if pd.isna(value) else str(value) for name, value in row.items()}
    numbers = {
        (name, 0): float(pd.to_numeric(row.get(name), errors="coerce")) for name in _CLAIM_NUMBERS
    }
    metrics, dropped = entries.finite(numbers)
    facts = ("claim", "group", "kind", "section")
    # What other data may change is a tag, for MLflow can't change a param; so is the unit, which
    # the data choose where no ratio can be formed.
    verdict = ("direction", "after_holm", "size", "rests_on", "unit")
    name = texts["name"].removesuffix(f" ({texts.get('unit', '')})")
    return Entry(
        experiment,
        f"{texts['claim']} {name}",
        params={"paper": paper} | {name: texts.get(name, "") for name in facts},
        metrics=metrics,
        tags={
            **shared,
            **{name: texts.get(name, "") for name in verdict},
            "sweep_id": f"{shared['study']}/{paper}/{texts['claim']}",
            "dropped_metrics": dropped,
            "mlflow.note.content": note(texts),
        },
    )
