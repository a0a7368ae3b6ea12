"""Searches in the report."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from steadymap.analysis.readings import searched_names, setting_name
from steadymap.report import words
from steadymap.report.document import Block, Columns, Items, Table, Text
from steadymap.report.figures import training
from steadymap.report.gallery import Gallery
from steadymap.report.study import Study, missing, records


def searches(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Searches over several hyperparameters."""
    yield Text(words.sentence("searches"))
    importances = study.table("importances")
    for (method, name), rows in study.table("search").groupby(["method", "search"], sort=False):
        yield from _search(study, str(method), str(name), rows, gallery)
        yield _importances(study, importances[importances["search"] == name])


def _search(
    study: Study, method: str, name: str, rows: pd.DataFrame, gallery: Gallery
) -> Iterator[Block]:
    tried, first = rows[rows["state"] != "reference"], records(rows)[0]
    reference = setting_name(json.loads(first["hyperparameters"]), searched_names(rows))
    question = words.sentence(f"search-{first['objective']}", reference=reference, tau=first["tau"])
    varied = words.and_list(f"`{hyperparameter}`" for hyperparameter in searched_names(rows))
    yield Text(
        words.sentence(
            "search",
            first=first,
            varied=varied,
            question=question,
            trials=words.count_of(len(tried), "trial"),
            study=study,
        )
    )
    yield _best_settings(study, rows, cheapest=first["objective"] == "cheapest")
    if faults := [text for text in dict.fromkeys(tried["message"]) if text]:
        yield Items([f"Failed: {text}" for text in faults[:3]])
    yield gallery.draw(
        f"{name}-trials",
        training.search_trials(rows, look=study.look),
        text="search-trials",
        name=name,
    )


def _best_settings(study: Study, rows: pd.DataFrame, *, cheapest: bool) -> Table:
    lines: list[dict[str, Any]] = []
    for model, group in rows[rows["state"] != "reference"].groupby("model", sort=False):
        counts = {
            "model": model,
            "converged": group["ssim_mean"].iloc[0],
            "tried": group["task_id"].nunique(),
            "failed": int((group["state"] == "failed").sum()),
        }
        best = next(iter(records(group[group["is_best"]])), dict.fromkeys(rows, math.nan))
        lines.append({**best, **counts})

    def setting(row: Mapping[str, Any]) -> str:
        if missing(row["hyperparameters"]):
            return "none holds" if cheapest else "none"
        return setting_name(json.loads(row["hyperparameters"]), searched_names(rows))

    def passes(row: Mapping[str, Any]) -> str:
        if missing(row["hyperparameters"]):
            return "–"
        return f"{(row['forward_passes'] + row['backward_passes']) / row['n_images']:,.0f}"

    shown = words.table(
        "search",
        lines,
        study,
        cells={"setting": setting, "passes": passes},
        without=[] if cheapest else ["two converged maps"],
        what="cheapest that holds" if cheapest else "worst setting found",
    )
    if cheapest:
        shown = replace(shown, note=f"{shown.note} {words.sentence('search-converged')}")
    return shown


def _importances(study: Study, rows: pd.DataFrame) -> Block:
    if rows.empty:
        return Text("Too few settings, or equal scores: no importances.")
    keys = ["model", "hyperparameters"]
    shares = rows.pivot_table("importance", keys, "evaluator", aggfunc="first", sort=False)
    columns: Columns = {
        _EVALUATORS[name]: f"{{{name}:.2f}}" for name in _EVALUATORS if name in shares
    }
    lines = rows[keys].drop_duplicates().join(shares, on=keys)
    return words.table("importances", lines, study, more=columns)


_EVALUATORS = {
    "fanova": "fANOVA",
    "ped_anova": "PED-ANOVA",
}
