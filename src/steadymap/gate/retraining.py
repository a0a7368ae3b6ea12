"""Training-seed variability: how far maps move when the same network is trained again.

A study's models are trained anew from other seeds, all else equal, and explained on the very images
of the study, those that a retrained model gets wrong included. The effect of a hyperparameter on
maps can then be stated in units of that of retraining, and differences between a model and its
robust twin get intervals over trainings. The pipeline does without: `stages/retraining.py` runs it
on demand.

Training 0 is the study's own. Training k adds k to the seed of every recipe and leaves its results
in `results/{study}-retrained-{k}`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.analysis.claims import sam
from steadymap.analysis.readings import headline_draws, main_rows
from steadymap.analysis.sweeps import by_image, model_table
from steadymap.analysis.tables import convergence, scatter
from steadymap.data.dataset import Dataset, read_dataset
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.settings import grids_of, headline_points, points, unique_settings
from steadymap.experiments import comparisons, cost, similarity_scores
from steadymap.gate.baseline import sweep_statistics
from steadymap.gate.reruns import measure_method
from steadymap.gate.words import page
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Comparisons, Params, Randomization, Sweep
from steadymap.statistics.intervals import ANY, Range, range_of, stands_out
from steadymap.statistics.resampling import (
    FEWEST_UNITS,
    Estimate,
    cluster_names,
    crossed_interval,
    degenerate_pairs,
)
from steadymap.store import environment
from steadymap.store.atomic import atomic_folder, read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache
from steadymap.training.verified import train_model

TRAINING_COLUMNS = (
    *("model", "seed", "training", "clean_accuracy", "n_clean", "robust_accuracy", "n_robust"),
    *("weights_sha256", "n_images", "n_wrong", "agree"),
)

VARIABILITY_COLUMNS = (
    *("model", "method", "sweep_setting", "metric", "mean", "low", "high", "n_trainings"),
    *("sweep", "hyperparameter", "value", "is_reference", "convention", "n_images"),
    *("n_degenerate", "n_inverted", "difference", "difference_low", "difference_high"),
)

MARGIN_COLUMNS = (
    *("model", "sweep", "metric", "sd", "n_trainings", "method", "convention", "draws"),
    *("statistic", "mean"),
)

ROBUST_VS_REGULAR_COLUMNS = (
    *("model", "twin", "method", "sweep", "metric", "difference", "low", "high", "n_trainings"),
    *("convention", "draws", "n_images"),
)

_CELL = ["model", "sweep", "method", "metric", "convention", "draws"]

_SIMILARITIES = {"ssim": "common", "spearman": "signed", "pearson": "signed"}


def chosen_sweeps(params: Params, names: Sequence[str] | None) -> dict[str, dict[str, Sweep]]:
    """Sweeps by method, of those that are named: a sweep, or a method for all that it has.

    Raises
    ------
    ValueError
        Where a name is neither.
    """
    names = params.methods if names is None else names
    known = [*params.methods, *(name for sweeps in params.sweeps.values() for name in sweeps)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"--sweeps: {unknown[0]!r} is neither a method nor a sweep of study {params.study}; "
            f"known are {', '.join(known)}"
        )
    chosen = {
        method: {
            name: sweep
            for name, sweep in params.sweeps[method].items()
            if method in names or name in names
        }
        for method in params.methods
    }
    return {method: sweeps for method, sweeps in chosen.items() if sweeps or method in names}


def retrained(
    params: Params, training: int, sweeps: Mapping[str, Mapping[str, Sweep]], rows: pd.DataFrame
) -> Params:
    """Params of a training: other seeds, the study's images, the sweeps given.

    With all of the study's sweeps, its comparisons of inputs and models too.

    Parameters
    ----------
    params : Params
        The study.
    training : int
        0 for the study's own models, under its own name.
    sweeps : mapping
        Sweeps by method.
    rows : DataFrame
        The study's evaluation set.

    Raises
    ------
    ValueError
        Where a model is not trained here, but taken from finished weights.
    """
    compared = Comparisons(
        **{name: getattr(params.comparisons, name) for name in ("noise", "denoising", "distance")}
    )
    # Comparisons read the maps of sweeps.
    complete = all(sweeps.get(name) == params.sweeps[name] for name in params.methods)
    only = {
        "methods": list(sweeps),
        "sweeps": {method: dict(by_name) for method, by_name in sweeps.items()},
        "search": {},
        "comparisons": compared if complete else Comparisons(),
        "randomization": Randomization(),
    }
    if training == 0:
        return params.model_copy(update=only)
    recipes = {}
    for name in params.models.names:
        recipe = params.training[name]
        if recipe.weights is not None:
            raise ValueError(
                f"training.{name}.weights: {recipe.weights!r}; finished weights can't be trained "
                "again: take a study whose models are trained here (weights: null)"
            )
        recipes[name] = recipe.model_copy(update={"seed": recipe.seed + training})
    same = {"rule": "list", "images": list(rows["image_id"])}
    return params.model_copy(
        update={
            **only,
            "study": f"{params.study}-retrained-{training}",
            "training": recipes,
            "evaluation_set": params.evaluation_set.model_copy(update=same),
        }
    )


def studies(params: Params, *, trainings: int, sweeps: Sequence[str] | None) -> list[Params]:
    """Params of the study itself and of other trainings of it.

    Parameters
    ----------
    params : Params
        The study.
    trainings : int
        Number of other trainings, at least 1.
    sweeps : sequence of str, optional
        As `chosen_sweeps` takes them.
    """
    if trainings < 1:
        raise ValueError(f"--trainings: {trainings}; train again at least once")
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")
    chosen = chosen_sweeps(params, sweeps)
    return [retrained(params, k, chosen, rows) for k in range(trainings + 1)]


def plan(trainings: Sequence[Params], cache: Path) -> str:
    """Table of the passes and the time that the other trainings take."""
    study, *others = trainings
    dataset = read_dataset(study.results / "data")
    by_name = {f"training {k}": params for k, params in enumerate(others, 1)}
    return cost.estimate_trainings(by_name, cache, dataset=dataset)


def run(trainings: Sequence[Params], *, cache: Path) -> dict[str, pd.DataFrame]:
    """Train, explain and score what the caches lack; the tables of all trainings.

    Parameters
    ----------
    trainings : sequence of Params
        As `studies` makes them, the study itself first, whose results exist.
    cache : Path
        Where trainings and tasks are kept: a run that was killed goes on from them.

    Returns
    -------
    dict of str to DataFrame
        `trainings`, `yardstick` (training-seed variability), `margins`, `twins`,
        `training_claims`.

    Raises
    ------
    FileNotFoundError, ValueError
        Where the study's own results are missing or no longer what its params say.
    """
    study, *others = trainings
    dataset = read_dataset(study.results / "data")
    rows, _, _ = evaluation_set.read(study.results / "evaluation_set")
    check_study(study)
    for params in others:
        measure(params, dataset, cache=cache)
    cells = cell_values([_images(params, rows) for params in trainings])
    clusters = cluster_names(rows)
    confidence = study.statistics.confidence
    return {
        "trainings": training_table(trainings),
        "yardstick": training_seed_variability(trainings, clusters, cells),
        "margins": margins(cells),
        "twins": robust_vs_regular(cells, clusters, confidence=confidence),
        "training_claims": training_claims(trainings, rows),
    }


def check_study(params: Params) -> None:
    """Check that a study's own maps are those that its params ask for.

    Raises
    ------
    ValueError
        Where a map is missing or stale: with its archive.
    """
    for method in params.methods:
        tasks, maps = runner.study_plan(method, params), Maps(params.results / "maps" / method)
        task_ids = dict(zip(map(repr, maps.settings), maps.task_ids, strict=True))
        for model, setting in tasks.keys:
            task_id = task_ids.get(repr(setting.hyperparameters), {}).get(model)
            if task_id != tasks.task_id(model, setting):
                raise ValueError(
                    f"{maps.folder}: no maps of {model} with {setting.text} as params and code "
                    "have it now; run `dvc repro` first"
                )


def measure(params: Params, dataset: Dataset, *, cache: Path) -> None:
    """Train, choose images, explain and score, each as the stage of that name does.

    Parameters
    ----------
    params : Params
        A training of the study.
    dataset : Dataset
        Data that its models are trained on.
    cache : Path
        Where trainings and tasks are kept.
    """
    for name in params.models.names:
        train_model(name, params, dataset, cache=cache / "training")
    selection.select(params, dataset)
    for method in params.methods:
        measure_method(method, params, cache=TaskCache(cache / "tasks"))
    if params.comparisons != Comparisons():
        comparisons.run(params, cache=TaskCache(cache / "tasks"), inputs=cache / "inputs")


def training_table(trainings: Sequence[Params]) -> pd.DataFrame:
    """Accuracies of each training, and what it makes of the evaluation images.

    Returns
    -------
    DataFrame
        With the columns `TRAINING_COLUMNS`. `n_wrong` counts images that the model classifies
        wrongly, which are kept; `agree` is the share on which it predicts what the study's own
        model does.
    """
    records = []
    first: dict[str, np.ndarray] = {}
    for training, params in enumerate(trainings):
        rows, _, pixels = evaluation_set.read(params.results / "evaluation_set")
        for name, predicted in selection.study_predictions(params, pixels).items():
            card = read_json(params.results / "models" / name / "card.json")
            reference = first.setdefault(name, predicted)
            measured = card["accuracies"]
            n_wrong, agree = (predicted != rows["label"]).sum(), (predicted == reference).mean()
            records.append(
                (
                    *(name, params.training[name].seed, training),
                    *(measured[key] for key in ("clean", "n_clean", "robust", "n_robust")),
                    *(card["weights_sha256"], len(rows), int(n_wrong), float(agree)),
                )
            )
    return pd.DataFrame(records, columns=list(TRAINING_COLUMNS))


def training_seed_variability(
    trainings: Sequence[Params], clusters: Sequence[str], cells: pd.DataFrame
) -> pd.DataFrame:
    """Distance between the maps of two trainings at the same setting.

    Parameters
    ----------
    trainings : sequence of Params
        The study and its other trainings; maps are read from their archives.
    clusters : sequence of str
        Photograph of each image.
    cells : DataFrame
        As `cell_values` makes it.

    Returns
    -------
    DataFrame
        With the columns `VARIABILITY_COLUMNS`: 1 - similarity, mean over pairs of trainings and
        over images, a row per setting of a sweep and metric; of a sweep's reference, `difference`
        is how much further than that the sweep moves maps, paired by training and image. Intervals
        as `crossed_interval` has them.
    """
    study, n = trainings[0], len(trainings)
    moved = _moved(cells)
    conventions = {**_SIMILARITIES, "hog_pearson": f"cells{study.similarity.hog_cell}"}
    records: list[dict[str, Any]] = []
    for method in study.methods:
        archives = [Maps(params.results / "maps" / method) for params in trainings]
        shown = headline_points(points(method, study.sweeps[method]))
        for model, setting in itertools.product(study.models.names, unique_settings(shown)):
            apart = _apart(method, model, setting.hyperparameters, archives, study)
            measured = []
            for metric, convention in conventions.items():
                distances, counts = apart[metric, convention]
                interval = crossed_interval(
                    pair_mean(distances, n),
                    n,
                    clusters[: distances.shape[1]],
                    confidence=study.statistics.confidence,
                    within=range_of(metric).turned,
                )
                numbers = dict(zip(("mean", "low", "high"), interval, strict=True))
                named = {"metric": metric, "convention": convention, **numbers, **counts}
                measured.append((named, distances))
            for point in (point for point in shown if point.setting == setting):
                varied = f" {point.hyperparameter}={point.value}" if point.hyperparameter else ""
                about = {
                    **{"model": model, "method": method, "sweep": point.sweep},
                    "sweep_setting": f"{point.sweep}{varied}",
                    **{"hyperparameter": point.hyperparameter, "value": point.value},
                    "is_reference": point.is_reference,
                    **{"n_trainings": n, "n_images": study.evaluation_set.of(method)},
                }
                for named, distances in measured:
                    metric = str(named["metric"])
                    key = (model, point.sweep, metric, str(named["convention"]))
                    further: dict[str, float] = {}
                    if point.is_reference and key in moved:
                        of = moved[key][archives[0].image_ids].to_numpy(np.float64)
                        ends = _further(of, distances, clusters, study, metric)
                        further = dict(zip(VARIABILITY_COLUMNS[-3:], ends, strict=True))
                    records.append({**about, **named, **further})
    frame = pd.DataFrame(records, columns=list(VARIABILITY_COLUMNS))
    # Methods and sweeps in the order of params.
    every = [point.sweep for m in study.methods for point in points(m, study.sweeps[m])]
    ranks = {name: place for place, name in enumerate(dict.fromkeys([*study.methods, *every]))}
    return frame.sort_values(
        ["method", "sweep"], key=lambda names: names.map(ranks), kind="stable", ignore_index=True
    )


def _moved(cells: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """1 - mean similarity by model, sweep, metric and convention, a row per training."""
    means = cells.xs("mean", level="statistic").reset_index()
    keys = ["model", "sweep", "metric", "convention"]
    images = list(cells.columns)
    return {key: 1 - rows[images] for key, rows in headline_draws(means).groupby(keys)}


def _further(
    moved: Float[np.ndarray, "trainings images"],
    apart: Float[np.ndarray, "pairs images"],
    clusters: Sequence[str],
    study: Params,
    metric: str,
) -> tuple[float, float, float]:
    """How much further a sweep moves maps than training again, and its interval."""
    n, sweep = len(moved), training_mean(moved)
    again = pair_mean(apart, n)
    return crossed_interval(
        lambda trainings, images: sweep(trainings, images) - again(trainings, images),
        n,
        clusters[: moved.shape[1]],
        confidence=study.statistics.confidence,
        within=_differences(metric),
    )


def judged(rows: pd.DataFrame) -> pd.Series:
    """Whether each sweep lies below or above training again, by the interval of the difference."""
    low, high = rows["difference_low"].astype(float), rows["difference_high"].astype(float)
    return pd.Series(np.select([low > 0, high < 0], ["above", "below"], "undecided"), rows.index)


def _apart(
    method: str,
    model: str,
    hyperparameters: Mapping[str, Any],
    archives: Sequence[Maps],
    params: Params,
) -> dict[tuple[str, str], tuple[Float[np.ndarray, "pairs images"], dict[str, int]]]:
    """1 - similarity of one setting's maps by metric and convention; counts of flagged pairs."""
    maps = [archive.read(model, hyperparameters) for archive in archives]
    frames = [
        frame.assign(pair=pair)
        for pair, (a, b) in enumerate(itertools.combinations(maps, 2))
        for frame in similarity_scores.pair_scores(
            method,
            a,
            b,
            image_ids=archives[0].image_ids,
            columns={},
            options=params.similarity,
        )
    ]
    merged = pd.concat(frames, ignore_index=True)
    by_metric = {}
    for key, scores in merged.groupby(["metric", "convention"]):
        wide = scores.pivot(index="pair", columns="image_id", values="score")
        distances = 1 - wide[archives[0].image_ids].to_numpy(np.float64)
        flagged = int(degenerate_pairs(scores).sum())
        counts = {"n_degenerate": flagged, "n_inverted": int(scores["inverted"].sum())}
        by_metric[str(key[0]), str(key[1])] = distances, counts
    return by_metric


def pair_mean(distances: Float[np.ndarray, "pairs images"], n_trainings: int) -> Estimate:
    """Mean over pairs of trainings, in the order of `itertools.combinations`, and images."""
    pairs = np.array(list(itertools.combinations(range(n_trainings), 2))).reshape(-1, 2)
    return lambda trainings, images: _mean(distances[trainings[pairs].all(axis=1)][:, images])


def training_mean(values: Float[np.ndarray, "trainings images"]) -> Estimate:
    """Mean over trainings and images."""
    return lambda trainings, images: _mean(values[trainings][:, images])


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def training_claims(trainings: Sequence[Params], rows: pd.DataFrame) -> pd.DataFrame:
    """SAM's claims on robust against regular models over trainings and images.

    Every statistic is that of the means over trainings; its variance is that of a jackknife over
    trainings and of one over photographs, added as `crossed_interval` has it.

    Parameters
    ----------
    trainings : sequence of Params
        The study and its other trainings.
    rows : DataFrame
        The study's evaluation set.

    Returns
    -------
    DataFrame
        As `steadymap.analysis.claims.sam.claims` makes it; `alone` has the verdicts of single
        trainings, the study's own first.
    """
    study = trainings[0]
    names, folder = study.models.names, study.results / "models"
    cards = {name: read_json(folder / name / "card.json") for name in names}
    grids = grids_of([point for m in study.methods for point in points(m, study.sweeps[m])])

    def judged(evidence: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        rest: dict[str, Any] = {name: frame for name, frame in evidence.items() if name != "scores"}
        rest |= {"alpha": study.accuracy.alpha, "grids": grids}
        models = model_table(cards)
        return sam.claims(evidence["scores"], rows, models, study.statistics, **rest)

    single = [_evidence(params) for params in trainings]
    together = {
        name: pd.concat([part[name].assign(training=k) for k, part in enumerate(single)])
        for name in single[0]
    }
    found = judged(together)
    alone = pd.DataFrame([judged(part)["direction"] for part in single]).agg(", ".join)
    return found.assign(alone=alone.to_numpy())[found["rests_on"] != ""]


def _evidence(params: Params) -> dict[str, pd.DataFrame]:
    """What the claims of one training are judged on."""
    evidence = {
        "scores": _scores(params),
        "convergence": convergence(params),
        "scatter": scatter(params),
    }
    if params.comparisons != Comparisons():
        compared = read_table(params.results / "comparisons" / "comparisons.parquet")
        evidence["comparisons"] = compared
    return evidence


def _scores(params: Params) -> pd.DataFrame:
    """Similarity and accuracy rows of a training's chosen sweeps."""
    frames = []
    for method in params.methods:
        sweeps = [point.sweep for point in points(method, params.sweeps[method])]
        for part in ("scores", "accuracy"):
            scores = read_table(params.results / part / f"{method}.parquet")
            frames.append(scores[scores["sweep"].isin(sweeps)])
    return pd.concat(frames, ignore_index=True)


def _images(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """Headline readings of a training, per image; of its chosen sweeps alone."""
    return main_rows(by_image(_scores(params), rows), params.accuracy.alpha)


def cell_values(images: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Numbers per cell, training and image.

    Parameters
    ----------
    images : sequence of DataFrame
        Per training, as `steadymap.sensitivity.by_image` makes it, one convention per metric.

    Returns
    -------
    DataFrame
        A row per cell, statistic (`mean` and, of sweeps with a hyperparameter, `std` over its
        settings) and training, a column per image. A dynamic range is its logarithm: it is
        compared by factors.
    """
    frames = [sweep_statistics(frame).assign(training=k) for k, frame in enumerate(images)]
    merged = pd.concat(frames, ignore_index=True)
    keys = [*_CELL, "statistic", "training"]
    wide = merged.pivot(index=keys, columns="image_id", values="value")
    # As they first came, not by the alphabet.
    order = pd.MultiIndex.from_frame(merged[keys].drop_duplicates())
    return wide.reindex(order)[list(dict.fromkeys(merged["image_id"]))]


def margins(cells: pd.DataFrame) -> pd.DataFrame:
    """Spread between trainings of each cell's mean over images.

    Parameters
    ----------
    cells : DataFrame
        As `cell_values` makes it.

    Returns
    -------
    DataFrame
        With the columns `MARGIN_COLUMNS`. `sd` has ddof 1; `mean` is the mean over trainings. Of
        `dynamic_range` both are of logarithms.
    """
    per_training = cells.mean(axis=1, skipna=True).rename("number").reset_index()
    by_cell = per_training.groupby([*_CELL, "statistic"], sort=False)["number"]
    columns = {"std": "sd", "count": "n_trainings"}
    spread = by_cell.agg(["std", "count", "mean"]).reset_index().rename(columns=columns)
    return spread[list(MARGIN_COLUMNS)]


def robust_vs_regular(
    cells: pd.DataFrame, clusters: Sequence[str], *, confidence: float
) -> pd.DataFrame:
    """Difference between robust twins and regular models, over trainings as well as images.

    A training's twins share the seed, and all share the images: differences are paired by both.

    Parameters
    ----------
    cells : DataFrame
        As `cell_values` makes it.
    clusters : sequence of str
        Photograph of each image.
    confidence : float
        Coverage of the intervals.

    Returns
    -------
    DataFrame
        With the columns `ROBUST_VS_REGULAR_COLUMNS`: robust minus regular of each cell's `mean`.
    """
    means = cells.xs("mean", level="statistic")
    names = list(dict.fromkeys(means.index.get_level_values("model")))
    records = []
    for model in (name for name in names if name + ROBUST in names):
        regular, robust = means.loc[model], means.loc[model + ROBUST]
        for key, values in regular.groupby(level=_CELL[1:], sort=False):
            cell = dict(zip(_CELL[1:], key, strict=True))
            d = robust.xs(key, level=_CELL[1:]).to_numpy(np.float64) - values.to_numpy(np.float64)
            interval = crossed_interval(
                training_mean(d),
                len(d),
                clusters,
                confidence=confidence,
                within=_differences(str(cell["metric"])),
            )
            sizes = {"n_trainings": len(d), "n_images": int(np.isfinite(d).any(0).sum())}
            numbers = dict(zip(("difference", "low", "high"), interval, strict=True))
            records.append({**cell, "model": model, "twin": model + ROBUST, **numbers, **sizes})
    return pd.DataFrame(records, columns=list(ROBUST_VS_REGULAR_COLUMNS))


def _differences(metric: str) -> Range:
    # A dynamic range is its logarithm.
    return ANY if metric == "dynamic_range" else range_of(metric).minus(range_of(metric))


def hyperparameters(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each hyperparameter's mean 1 - SSIM in units of retraining's at the sweep's reference.

    Returns
    -------
    DataFrame
        Columns model, method, sweep, hyperparameter (mean over trainings), hyperparameter_sd
        (between them), retraining with low and high, ratio: NaN where the mean of retraining does
        not stand out from 0, or has no interval; difference of the two with its interval, and
        verdict (`judged`), where the table has them.
    """
    rows = tables["yardstick"]
    rows = rows[(rows["metric"] == "ssim") & rows["is_reference"] & (rows["hyperparameter"] != "")]
    cells = tables["margins"]
    cells = cells[(cells["metric"] == "ssim") & (cells["statistic"] == "mean")]
    keys = ["model", "sweep"]
    effects = headline_draws(cells).assign(hyperparameter=1 - cells["mean"])
    effects = effects[[*keys, "hyperparameter", "sd"]].rename(columns={"sd": "hyperparameter_sd"})
    paired = [name for name in VARIABILITY_COLUMNS[-3:] if name in rows]
    units = rows[["model", "method", "sweep", "mean", "low", "high", *paired]]
    table = units.rename(columns={"mean": "retraining"}).merge(effects, on=keys, validate="m:1")
    apart = range_of("ssim").turned
    clear = [
        stands_out(mean, low, apart)
        for mean, low in zip(table["retraining"], table["low"], strict=True)
    ]
    table["ratio"] = (table["hyperparameter"] / table["retraining"]).where(clear)
    effect = ["hyperparameter", "hyperparameter_sd"]
    if paired:
        table["verdict"], paired = judged(table), [*paired, "verdict"]
    columns = ["model", "method", "sweep", *effect, "retraining", "low", "high", "ratio"]
    return table[[*columns, *paired]]


def write(
    tables: Mapping[str, pd.DataFrame], trainings: Sequence[Params], folder: Path, *, command: str
) -> None:
    """Write the tables and a page that is made of them, the folder as a whole.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        As `run` gives them.
    trainings : sequence of Params
        The study and its other trainings.
    folder : Path
        Replaced.
    command : str
        Command that makes the page, shown on it.
    """
    variability, differences = tables["yardstick"], tables["twins"]
    without = (variability["metric"] == "ssim") & (variability["hyperparameter"] == "")
    text = page(
        "retraining.md.jinja",
        study=trainings[0].study,
        n_trainings=len(trainings),
        fewest_trainings=FEWEST_UNITS,
        percent=100 * trainings[0].statistics.confidence,
        n_images=int(tables["trainings"]["n_images"].iloc[0]),
        trainings=tables["trainings"].to_dict("records"),
        hyperparameters=hyperparameters(tables).to_dict("records"),
        without_hyperparameter=variability[without].to_dict("records"),
        robust_vs_regular=headline_draws(differences[differences["metric"] == "ssim"]).to_dict(
            "records"
        ),
        claims=tables["training_claims"].to_dict("records"),
        command=command,
        seeds=list(dict.fromkeys(tables["trainings"]["seed"])),
        versions=[f"{name} {number}" for name, number in environment.versions().items()],
    )
    with atomic_folder(folder) as temporary:
        for name, table in tables.items():
            write_table(table, temporary / f"{name}.csv")
        (temporary / "README.md").write_text(text)
