"""A study's tables: everything that reports, claims and mirrors are made of."""

import json
import shutil
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from steadymap.analysis import advice, budgets, parameters, plane, table_s1
from steadymap.analysis.claims import ipr, sam
from steadymap.analysis.readings import MOST_RESIDUAL, headline_rows, main_rows
from steadymap.analysis.structure import structure
from steadymap.analysis.sweeps import (
    headline_metrics,
    metrics,
    model_table,
    summary,
    task_table,
)
from steadymap.engine.settings import Point, grids_of, headline_points, points
from steadymap.experiments import convergence as experiments_convergence
from steadymap.experiments import localization, randomized_methods
from steadymap.params.schema import Params, Statistics
from steadymap.statistics.resampling import over_images, telling
from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table

_MASKS = "meaningful_perturbation"

COMPLETENESS = ("method", "model", "hyperparameters", "n_images", "median", "n_above")

_COMPARISON = [
    *("comparison", "model", "other", "role", "method", "value", "pairing"),
    *("metric", "convention"),
]


def study_summary(
    params: Params, methods: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Tables of a study's methods from their scores on disk, and all scores."""
    rows = read_table(params.results / "evaluation_set" / "evaluation_set.csv")
    scores, every_point, tasks = [], [], []
    for method in methods:
        for part in ("scores", "accuracy"):
            scores.append(read_table(params.results / part / f"{method}.parquet"))
        method_points = points(method, params.sweeps[method])
        every_point += method_points
        maps = Maps(params.results / "maps" / method)
        tasks.append(task_table(method_points, params.models.names, maps))
    merged = pd.concat(scores, ignore_index=True)
    tables = summary(merged, every_point, rows, params.statistics)
    # All of them, per image, would be megabytes in git.
    tables["images"] = main_rows(tables["images"], params.accuracy.alpha)
    cards = {
        name: read_json(params.results / "models" / name / "card.json")
        for name in params.models.names
    }
    tables["tasks"] = pd.concat(tasks, ignore_index=True)
    tables["completeness"] = completeness(params, methods)
    tables["models"] = model_table(cards)
    tables["evaluation_set"] = rows
    tables["evaluation_models"] = read_table(params.results / "evaluation_set" / "models.csv")
    return tables, merged


def completeness(params: Params, methods: Sequence[str]) -> pd.DataFrame:
    """How far maps of Integrated Gradients miss the change of the score that they share out.

    Parameters
    ----------
    params : Params
    methods : sequence of str
        Methods whose maps are read.

    Returns
    -------
    DataFrame
        A row per method, model and setting: `median` over images of the absolute residual as a
        share of |f(x) - f(baseline)|, and `n_above`, images where it exceeds `MOST_RESIDUAL`.
    """
    frames = [pd.DataFrame(columns=list(COMPLETENESS))]
    for method in methods:
        maps = Maps(params.results / "maps" / method)
        notes = read_table(maps.folder / "diagnostics.parquet")
        wide = notes.pivot_table("value", ["model", "setting", "image_id"], "name", sort=False)
        if {"completeness", "function_change"} <= {*wide}:
            share = wide["completeness"] / wide["function_change"].abs()
            groups = share.groupby(["model", "setting"], sort=False)
            counts = groups.agg(
                n_images="size", median="median", n_above=lambda part: (part > MOST_RESIDUAL).sum()
            ).reset_index()
            texts = [json.dumps(setting, sort_keys=True) for setting in maps.settings]
            counts["hyperparameters"] = [texts[index] for index in counts["setting"].astype(int)]
            frames.append(counts.assign(method=method)[list(COMPLETENESS)])
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _mask_points(params: Params, hyperparameter: str) -> list[Point]:
    """Points of the sweeps over a hyperparameter of meaningful perturbation."""
    swept = points(_MASKS, params.sweeps[_MASKS]) if params.sweeps.get(_MASKS) else []
    return [point for point in swept if point.hyperparameter == hyperparameter]


def _longest_run(params: Params) -> dict[str, Any] | None:
    """Hyperparameters of the longest circular run of meaningful perturbation."""
    runs = [point.setting.hyperparameters for point in _mask_points(params, "n_iterations")]
    return max(runs, key=lambda run: run["n_iterations"], default=None)


def convergence(params: Params) -> pd.DataFrame:
    """Steps that meaningful perturbation took to converge, in its longest circular run.

    Returns
    -------
    DataFrame
        Columns model, image_id, converged_step, n_iterations; empty without the method.
    """
    columns = ["model", "image_id", "converged_step", "n_iterations"]
    longest = _longest_run(params)
    if longest is None:
        return pd.DataFrame(columns=columns)
    maps = Maps(params.results / "maps" / _MASKS)
    notes = read_table(maps.folder / "diagnostics.parquet")
    steps = notes[
        (notes["setting"] == maps.settings.index(longest)) & (notes["name"] == "converged_step")
    ]
    steps = steps.rename(columns={"value": "converged_step"})
    return steps.assign(n_iterations=longest["n_iterations"])[columns]


def fluctuation(params: Params) -> pd.DataFrame:
    """How much masks of meaningful perturbation still change late in its longest circular run.

    Returns
    -------
    DataFrame
        Columns model, image_id, fluctuation; empty without the method, or without its masks.
    """
    frames = [pd.DataFrame(columns=["model", "image_id", "fluctuation"])]
    if (longest := _longest_run(params)) is not None:
        maps = Maps(params.results / "maps" / _MASKS)
        for model in params.models.names:
            kept = maps.arrays(model, longest)
            if "snapshots" in kept:
                changes = sam.fluctuation(kept["snapshots"], kept["snapshot_steps"][0])
                named = {"model": model, "image_id": maps.image_ids}
                frames.append(pd.DataFrame({**named, "fluctuation": changes}))
    return pd.concat(frames, ignore_index=True)


def scatter(params: Params) -> pd.DataFrame:
    """How scattered the masks of meaningful perturbation are at each blur radius.

    Returns
    -------
    DataFrame
        Columns model, value, image_id, scatter; empty without a sweep of `blur_radius`.
    """
    frames = [pd.DataFrame(columns=["model", "value", "image_id", "scatter"])]
    if swept := _mask_points(params, "blur_radius"):
        maps = Maps(params.results / "maps" / _MASKS)
        frames = [
            pd.DataFrame(
                {
                    "model": model,
                    "value": point.value,
                    "image_id": maps.image_ids,
                    "scatter": sam.scatter(maps.read(model, point.setting.hyperparameters)),
                }
            )
            for model in params.models.names
            for point in swept
        ]
    return pd.concat(frames, ignore_index=True)


def _accuracy_tables(
    tables: dict[str, pd.DataFrame], scores: pd.DataFrame, params: Params
) -> dict[str, pd.DataFrame]:
    """Baselines of localization, and errors at a threshold chosen on other images."""
    baselines = localization.baseline_scores(
        params, evaluation_set=params.results / "evaluation_set"
    ).assign(degenerate=False, inverted=False)
    keys, rows = ["name", "metric", "convention"], tables["evaluation_set"]
    means = over_images(baselines, keys, rows, params.statistics)
    columns = [*keys, "n_images", "mean", "ci_low", "ci_high"]
    made = {"localization_baselines": means[columns]}
    errors = scores[(scores["metric"] == "localization_error") & scores["score"].notna()]
    # Half of the images that have a box choose, the other half is measured.
    if errors["image_id"].nunique() > 1:
        chosen = localization.choose_threshold(scores)
        by = ["sweep", "method", "model", "metric", "convention", "draws"]
        means = chosen.rows.groupby(by, sort=False)["score"].agg(["size", "mean"]).reset_index()
        made["localization_chosen"] = means.rename(columns={"size": "n_scores"}).assign(
            alpha=chosen.alpha, n_chosen_on=chosen.n_images
        )
    return made


def _comparison_tables(
    tables: dict[str, pd.DataFrame], scores: pd.DataFrame, params: Params
) -> dict[str, pd.DataFrame]:
    """Comparisons, and the paper's tables and claims, which rest on them and on all scores."""
    folder, rows = params.results / "comparisons", tables["evaluation_set"]
    compared = read_table(folder / "comparisons.parquet")
    sizes = read_table(folder / "object_size.parquet")
    structures = read_table(folder / "structure.parquet")
    study = (scores, rows, params.statistics)
    grids = grids_of(
        [point for method in params.methods for point in points(method, params.sweeps[method])]
    )
    shared: dict[str, Any] = {"alpha": params.accuracy.alpha, "grids": grids}
    models = params.models.names
    return {
        "comparisons": comparison_summary(compared, rows, params.statistics),
        "object_size": sizes,
        "structure": structure(structures, rows, params.statistics),
        "table_s1": table_s1.table_s1(*study, models=models, **shared),
        "global_std": table_s1.global_std(*study, models=models, **shared),
        "claims": sam.claims(
            scores,
            rows,
            tables["models"],
            params.statistics,
            comparisons=compared,
            object_size=sizes,
            convergence=convergence(params),
            scatter=scatter(params),
            structure=structures,
            fluctuation=fluctuation(params),
            image_size=params.data.image_size,
            **shared,
        ),
    }


def comparison_summary(
    comparisons: pd.DataFrame, rows: pd.DataFrame, options: Statistics
) -> pd.DataFrame:
    """Mean, interval and spread over images of each comparison's scores.

    Parameters
    ----------
    comparisons : DataFrame
        As in `results/{study}/comparisons/comparisons.parquet`.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence.

    Returns
    -------
    DataFrame
        Columns comparison, model, other, role, method, value, pairing, metric, convention,
        n_images, mean, ci_low, ci_high, std (ddof 0), mean_all, n_degenerate, n_inverted, as
        `over_images` makes them.
    """
    return over_images(comparisons, _COMPARISON, rows, options)


def budget_tables(params: Params, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Stability budgets, and the curves that they are read from; none where params ask for none.

    `rows` are the evaluation set's.
    """
    sweeps, options = experiments_convergence.convergences(params), params.comparisons.budget
    if options is None or not sweeps:
        return {}
    curves = budgets.curves(
        read_table(params.results / "comparisons" / "stability.parquet"),
        sweeps,
        rows,
        options,
        params.statistics,
        passes={
            setting: Maps(params.results / "maps" / sweep.method).passes(setting.hyperparameters)
            for sweep in sweeps
            for setting in sweep.settings
        },
    )
    return {"budget": budgets.budgets(curves, options), "budget_curves": curves}


def _advice_tables(tables: dict[str, pd.DataFrame], params: Params) -> dict[str, pd.DataFrame]:
    """What to do with each method; tau is the least strict of the budgets'."""
    budget = params.comparisons.budget
    averages = advice.seed_averages(params)
    tau = min(budget.tau) if budget else 0.95
    table = advice.advice(tables["sensitivity"], tables.get("budget"), averages, tau=tau)
    return {"advice": table, "seed_averages": averages}


def _randomization_tables(
    tables: dict[str, pd.DataFrame], scores: pd.DataFrame, params: Params
) -> dict[str, pd.DataFrame]:
    """Sensitivity to the model's parameters, beside that to hyperparameters; or nothing."""
    moved, changes, failures = randomized_methods.read(params)
    if moved.empty:
        return {}
    rows, options, section = tables["evaluation_set"], params.statistics, params.randomization
    specs = randomized_methods.randomized_methods(params)
    stochastic = [method for method, spec in specs.items() if spec.fresh is not None]
    architectures = {model: params.architecture(model) for model in params.models.names}
    table = parameters.ipr(
        moved, rows, options, critical_units=section.critical_units, stochastic=stochastic
    )
    units = parameters.ipr_units(moved, changes, rows, options, stochastic=stochastic)
    references = {
        point.sweep: point.setting.hyperparameters
        for method in params.methods
        for point in headline_points(points(method, params.sweeps[method]))
        if point.is_reference
    }
    return {
        "ipr": table,
        "ipr_images": parameters.by_image(moved, stochastic),
        "ipr_units": units,
        "ipr_function": parameters.function_correlation(units),
        "ipr_correlations": parameters.correlations(table, architectures),
        "ipr_claims": ipr.ipr_claims(
            moved, rows, options, architectures=architectures, stochastic=stochastic
        ),
        "ipr_failures": failures,
        "plane": plane.plane(
            moved,
            scores.assign(score=telling(scores)),
            rows,
            options,
            references=references,
            settings={method: spec.setting.hyperparameters for method, spec in specs.items()},
        ),
    }


def analyze(params: Params) -> dict[str, pd.DataFrame]:
    """Write a study's tables, metrics and plot data; return the tables."""
    # Tables are small: more threads cost more than they bring.
    torch.set_num_threads(1)
    tables, scores = study_summary(params, params.methods)
    tables |= _accuracy_tables(tables, scores, params)
    tables |= _comparison_tables(tables, scores, params)
    tables |= budget_tables(params, tables["evaluation_set"])
    tables |= _advice_tables(tables, params)
    tables |= _randomization_tables(tables, scores, params)
    write_table(scores, params.results / "scores.parquet")
    searches = params.results / "search"
    trials = searches / "search.csv"
    with atomic_folder(params.reports / "tables") as temporary:
        for name, table in tables.items():
            write_table(table, temporary / f"{name}.csv")
        if trials.is_file() and not read_table(trials).empty:
            for name in ("search", "importances"):
                shutil.copyfile(searches / f"{name}.csv", temporary / f"{name}.csv")
    with atomic_folder(params.reports / "plots") as temporary:
        curves = headline_rows(tables["settings"], "ssim", "common")
        for (sweep, model), part in curves.groupby(["sweep", "model"], sort=False):
            curve = part[["value", "mean", "ci_low", "ci_high"]].rename(columns={"mean": "ssim"})
            write_table(curve, temporary / f"{sweep}_{model}.csv")
    numbers = metrics(
        tables["sensitivity"],
        tables["models"],
        alpha=params.accuracy.alpha,
        parameters=tables.get("ipr"),
    )
    write_json(numbers, params.reports / "all_metrics.json")
    with atomic_folder(params.reports / "metrics") as temporary:
        for model, few in headline_metrics(numbers).items():
            write_json(few, temporary / f"{model}.json")
    return tables
