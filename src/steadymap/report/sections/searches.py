"""Searches in the report."""

import json
from collections.abc import Iterator

import pandas as pd

from steadymap.analysis.readings import searched_names, setting_name
from steadymap.report.document import Block, Cell, Items, Table, Text
from steadymap.report.figures import training
from steadymap.report.gallery import Gallery
from steadymap.report.study import Study, as_text, by_key, records, true
from steadymap.report.words import (
    MAKE_UI,
    METER,
    and_list,
    count_of,
    decimal,
    inverted_mark,
    meter,
    with_interval,
)


def searches(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Searches over several hyperparameters."""
    yield Text(
        "Sweeps vary one hyperparameter; a search varies several at once, and Optuna chooses "
        "which settings "
        "are tried. **It finds what it has tried**: the worst setting found is not the worst there "
        "is, and another budget or seed may find another. Means and intervals of a best setting "
        "are picked from many, hence extreme by choice."
    )
    importances = study.table("importances")
    for (method, name), rows in study.table("search").groupby(["method", "search"], sort=False):
        yield from _search(study, str(method), str(name), rows, gallery)
        yield from _importances(importances[importances["search"] == name])


def _search(
    study: Study, method: str, name: str, rows: pd.DataFrame, gallery: Gallery
) -> Iterator[Block]:
    asked = rows[rows["state"] != "reference"]
    varied = searched_names(rows)
    first = records(rows)[0]
    cheapest = first["objective"] == "cheapest"
    reference = setting_name(json.loads(first["hyperparameters"]), varied)
    hyperparameters = and_list(f"`{hyperparameter}`" for hyperparameter in varied)
    if cheapest:
        question = (
            f"the cheapest setting that holds: fewest model passes with a mean SSIM of at least "
            f"{first['tau']:g} to the converged map ({reference}, with another seed) and no map "
            "inverted"
        )
    else:
        question = f"the worst setting found: lowest mean SSIM to the map at {reference}"
    yield Text(
        f"**{name}**, {hyperparameters} of {method}: {question}. {count_of(len(asked), 'trial')} "
        "by "
        f"{first['sampler']}. In {MAKE_UI}: experiment `steadymap/{study.name}/{method}`, parent "
        f"runs `{method} {name} MODEL`."
    )
    cells = []
    for model, own in rows.groupby("model", sort=False):
        tried = own[own["state"] != "reference"]
        line = [Cell(str(model))]
        best = records(tried[true(tried["is_best"])])
        if best:
            row = best[0]
            passes = (row["forward_passes"] + row["backward_passes"]) / row["n_images"]
            line.append(Cell(setting_name(json.loads(row["hyperparameters"]), varied)))
            mean = row["ssim_mean"]
            line.append(Cell(with_interval({**row, "mean": mean}), meter=meter(mean)))
            line.append(Cell(decimal(row["spearman_mean"]) + inverted_mark(row)))
            line.append(Cell(f"{passes:,.0f}"))
        else:
            line += [Cell("none holds" if cheapest else "none"), *[Cell("–")] * 3]
        if cheapest:
            line.append(Cell(decimal(tried["ssim_mean"].iloc[0])))
        distinct = tried["task_id"].nunique()
        failed = int((tried["state"] == "failed").sum())
        line += [Cell(f"{distinct}"), Cell(f"{failed}")]
        cells.append(line)
    columns = ["model", "cheapest that holds" if cheapest else "worst setting found"]
    columns += [f"SSIM [{study.percent}]", "Spearman", "passes per image"]
    columns += ["two converged maps"] if cheapest else []
    note = (
        "Spearman: mean rank correlation, ‡ where maps are inverted. Tried: different settings; a "
        "failed one is tried again by the next run."
    )
    if cheapest:
        note += (
            " Two converged maps: SSIM of the largest setting with itself under another seed; "
            "where that is below the threshold, the search's range does not reach convergence."
        )
    yield Table([*columns, "tried", "failed"], cells, n_names=2, note=note, meter_note=METER)
    faults = [text for text in dict.fromkeys(as_text(asked["message"])) if text]
    if faults:
        yield Items([f"Failed: {text}" for text in faults[:3]])
    yield gallery.add(
        f"{name}-trials",
        training.search_trials(rows, look=study.look),
        alt=f"Trials of the search {name}",
        caption=f"Search {name}: every setting tried.",
    )


def _importances(rows: pd.DataFrame) -> Iterator[Block]:
    if rows.empty:
        yield Text("Too few settings, or equal scores: no importances.")
        return
    keyed = by_key(rows, "model", "hyperparameters", "evaluator")
    evaluators = [name for name in _EVALUATORS if name in set(rows["evaluator"])]
    cells = []
    for model in dict.fromkeys(rows["model"]):
        own = rows[rows["model"] == model]
        for name in dict.fromkeys(own["hyperparameters"]):
            line = [Cell(str(model)), Cell(str(name))]
            for evaluator in evaluators:
                row = keyed.get((model, name, evaluator))
                line.append(Cell("–" if row is None else f"{row['importance']:.2f}"))
            cells.append(line)
    yield Table(
        ["model", "importance for SSIM", *(_EVALUATORS[name] for name in evaluators)],
        cells,
        n_names=2,
        note="Shares of how much SSIM varies. fANOVA and PED-ANOVA are Optuna's and know single "
        "hyperparameters, scaled to sum 1: over the whole space, and for what sets the best "
        "tenth of the "
        "trials apart. Forest ANOVA is ours: a random forest is fitted to the trials and its "
        "variance split into single hyperparameters and, `a x b`, what two do together beyond "
        "each alone. "
        "With a few dozen trials all three are rough.",
    )


_EVALUATORS = {
    "forest_anova": "forest ANOVA (with pairs)",
    "fanova": "fANOVA",
    "ped_anova": "PED-ANOVA",
}
