"""The retraining yardstick: how far maps move when the same network is trained again.

A study's models are trained anew from other seeds, all else equal, and explained on the very images
of the study, those that a retrained model gets wrong included. What a hyperparameter does to a map
can then
be said in units of what retraining does to it, and differences between a model and its robust twin
get intervals over trainings. Nothing here belongs to the pipeline: `stages/retraining.py` runs it
on demand.

Training 0 is the study's own. Training k adds k to the seed of every recipe and leaves its results
in `results/{study}-retrained-{k}`.
"""

import itertools
import math
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from steadymap.analysis.sweeps import by_image
from steadymap.analysis.tables import main_readings
from steadymap.data.dataset import Dataset, read_dataset
from steadymap.data.originals import Originals
from steadymap.engine import evaluation_set, runner, selection
from steadymap.engine.settings import Point, points, unique_settings
from steadymap.experiments import cost, similarity_scores
from steadymap.gate.reruns import measure_method
from steadymap.models import registry
from steadymap.params.checks import check_recipe
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Comparisons, Params, Randomization, Sweep
from steadymap.statistics.intervals import (
    ANY,
    Range,
    cluster_names,
    jackknife,
    range_of,
    stands_out,
    t_interval,
)
from steadymap.store.atomic import atomic_folder, read_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache
from steadymap.training.loop import TrainingSpec
from steadymap.training.verified import train_verified

TRAINING_COLUMNS = (
    *("model", "seed", "training", "clean_accuracy", "n_clean", "robust_accuracy", "n_robust"),
    *("weights_sha256", "n_images", "n_wrong", "agree"),
)

YARDSTICK_COLUMNS = (
    *("model", "method", "sweep_setting", "metric", "mean", "low", "high", "n_trainings"),
    *("sweep", "hyperparameter", "value", "is_reference", "convention", "n_images"),
    *("n_degenerate", "n_inverted"),
)

MARGIN_COLUMNS = (
    *("model", "sweep", "metric", "sd", "n_trainings", "method", "convention", "draws"),
    *("statistic", "mean"),
)

TWIN_COLUMNS = (
    *("model", "twin", "method", "sweep", "metric", "difference", "low", "high", "n_trainings"),
    *("convention", "draws", "n_images"),
)

# Fewer trainings say nothing about the spread between trainings of a mean over pairs of them.
FEWEST_TRAININGS = 3

_CELL = ["model", "sweep", "method", "metric", "convention", "draws"]

_SIMILARITIES = {"ssim": "common", "spearman": "signed", "pearson": "signed"}

Estimate = Callable[[Bool[np.ndarray, " trainings"], Bool[np.ndarray, " images"]], float]

# What is run


def chosen_sweeps(params: Params, names: Sequence[str] | None) -> dict[str, dict[str, Sweep]]:
    """Sweeps by method, of those that are named: a sweep, or a method for all that it has.

    Raises
    ------
    ValueError
        Where a name is neither.
    """
    if names is None:
        return {method: dict(params.sweeps[method]) for method in params.methods}
    found: dict[str, dict[str, Sweep]] = {}
    known = [*params.methods, *(name for made in params.sweeps.values() for name in made)]
    for name in names:
        if name not in known:
            raise ValueError(
                f"--sweeps: {name!r} is neither a method nor a sweep of study {params.study}; "
                f"known are {', '.join(known)}"
            )
    for method in params.methods:
        made = params.sweeps[method]
        if method in names:
            found[method] = dict(made)
        elif any(name in made for name in names):
            found[method] = {name: sweep for name, sweep in made.items() if name in names}
    return found


def retrained(
    params: Params, training: int, sweeps: Mapping[str, Mapping[str, Sweep]], rows: pd.DataFrame
) -> Params:
    """Params of a training: other seeds, the study's images, the sweeps given and nothing else.

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
    only = {
        "methods": list(sweeps),
        "sweeps": {method: dict(made) for method, made in sweeps.items()},
        "search": {},
        "comparisons": Comparisons(),
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
    same = {"rule": "list", "images": list(rows["image_id"]), "n_images": len(rows)}
    return params.model_copy(
        update={
            **only,
            "study": f"{params.study}-retrained-{training}",
            "training": recipes,
            "evaluation_set": params.evaluation_set.model_copy(update=same),
        }
    )


def studies(params: Params, *, trainings: int, sweeps: Sequence[str] | None) -> list[Params]:
    """Params of the study itself and of so many other trainings."""
    if trainings < 1:
        raise ValueError(f"--trainings: {trainings}; train again at least once")
    rows, _, _ = evaluation_set.read(params.results / "evaluation_set")
    chosen = chosen_sweeps(params, sweeps)
    return [retrained(params, k, chosen, rows) for k in range(trainings + 1)]


def plan(made: Sequence[Params], cache: Path) -> str:
    """Table of the passes and the time that the other trainings take."""
    own, *others = made
    dataset = read_dataset(own.results / "data")
    named = {f"training {k}": one for k, one in enumerate(others, 1)}
    return cost.estimate_trainings(named, cache, dataset=dataset)


def run(made: Sequence[Params], *, cache: Path) -> dict[str, pd.DataFrame]:
    """Train, explain and score what the caches lack; the tables of all trainings.

    Parameters
    ----------
    made : sequence of Params
        As `studies` makes them, the study itself first, whose results are there.
    cache : Path
        Where trainings and tasks are kept: a run that was killed goes on from them.

    Returns
    -------
    dict of str to DataFrame
        `trainings`, `yardstick`, `margins`, `twins`.

    Raises
    ------
    FileNotFoundError, ValueError
        Where the study's own results are missing or no longer what its params say.
    """
    own, *others = made
    dataset = read_dataset(own.results / "data")
    rows, _, _ = evaluation_set.read(own.results / "evaluation_set")
    check_study(own)
    for params in others:
        measure(params, dataset, cache=cache)
    cells = cell_values([_images(params, rows) for params in made])
    clusters = cluster_names(rows)
    return {
        "trainings": training_table(made),
        "yardstick": yardstick(made, clusters),
        "margins": margins(cells),
        "twins": twins(cells, clusters, confidence=own.statistics.confidence),
    }


def check_study(params: Params) -> None:
    """Check that a study's own maps are those that its params ask for.

    Raises
    ------
    ValueError
        Where a map is missing or stale: with its archive.
    """
    for method in params.methods:
        wanted, maps = runner.study_plan(method, params), Maps(params.results / "maps" / method)
        known = dict(zip(map(repr, maps.settings), maps.task_ids, strict=True))
        for model, made in wanted.keys:
            found = known.get(repr(made.hyperparameters), {}).get(model)
            if found != wanted.task_id(model, made):
                raise ValueError(
                    f"{maps.folder}: no maps of {model} with {made.text} as params and code have "
                    "it now; run `dvc repro` first"
                )


def measure(params: Params, dataset: Dataset, *, cache: Path) -> None:
    """Train, choose images, explain and score, each as the stage of that name does."""
    folder = params.results / "models"
    for name in params.models.names:
        recipe = params.recipe(name)
        n_train = len(dataset.rows("train"))
        check_recipe(name, recipe, classes=dataset.classes, n_train=n_train)
        init_folder = folder / recipe.init_from if recipe.init_from else None
        train_verified(
            TrainingSpec(name, recipe, dataset, params.robust_accuracy, init_folder),
            folder / name,
            cache=cache / "training",
            device=params.attribution.device,
        )
    predicted = _predictions(params, dataset.images["val"])
    chosen = selection.choose(params.evaluation_set, dataset, predicted)
    selection.write(chosen, dataset, params.results / "evaluation_set")
    for method in params.methods:
        measure_method(method, params, cache=TaskCache(cache / "tasks"))


def _predictions(params: Params, pixels: np.ndarray | Originals) -> dict[str, np.ndarray]:
    return {
        name: selection.predictions(registry.load(params.results / "models" / name), pixels)
        for name in params.models.names
    }


# Tables


def training_table(made: Sequence[Params]) -> pd.DataFrame:
    """Accuracies of each training, and what it makes of the evaluation images.

    Returns
    -------
    DataFrame
        With the columns `TRAINING_COLUMNS`. `n_wrong` counts images that the model classifies
        wrongly, which are kept; `agree` is the share on which it predicts what the study's own
        model does.
    """
    found = []
    first: dict[str, np.ndarray] = {}
    for training, params in enumerate(made):
        rows, _, pixels = evaluation_set.read(params.results / "evaluation_set")
        for name, predicted in _predictions(params, pixels).items():
            card = read_json(params.results / "models" / name / "card.json")
            measured, reference = card["accuracies"], first.setdefault(name, predicted)
            found.append(
                {
                    "model": name,
                    "seed": params.training[name].seed,
                    "training": training,
                    "clean_accuracy": measured["clean"],
                    "n_clean": measured["n_clean"],
                    "robust_accuracy": measured["robust"],
                    "n_robust": measured["n_robust"],
                    "weights_sha256": card["weights_sha256"],
                    "n_images": len(rows),
                    "n_wrong": int((predicted != rows["label"]).sum()),
                    "agree": float((predicted == reference).mean()),
                }
            )
    return pd.DataFrame(found, columns=list(TRAINING_COLUMNS))


def yardstick(made: Sequence[Params], clusters: Sequence[str]) -> pd.DataFrame:
    """How far the maps of two trainings lie apart at the same setting.

    Parameters
    ----------
    made : sequence of Params
        The trainings; their maps stand in their archives.
    clusters : sequence of str
        Photograph of each image.

    Returns
    -------
    DataFrame
        With the columns `YARDSTICK_COLUMNS`: 1 - similarity, mean over pairs of trainings and over
        images, a row per setting of a sweep and metric. Intervals as `crossed_interval` has them.
    """
    own = made[0]
    conventions = {**_SIMILARITIES, "hog_pearson": f"cells{own.similarity.hog_cell}"}
    found = []
    for method in own.methods:
        archives = [Maps(params.results / "maps" / method) for params in made]
        wanted = _single(points(method, own.sweeps[method]))
        for model in own.models.names:
            for setting in unique_settings(wanted):
                apart = _apart(method, model, setting.hyperparameters, archives, own)
                for point in (one for one in wanted if one.setting == setting):
                    named = point.sweep
                    if point.hyperparameter:
                        named += f" {point.hyperparameter}={point.value}"
                    for metric, convention in conventions.items():
                        distances, counts = apart[metric, convention]
                        mean, low, high = crossed_interval(
                            pair_mean(distances, len(made)),
                            len(made),
                            clusters,
                            confidence=own.statistics.confidence,
                            within=range_of(metric).turned,
                        )
                        found.append(
                            {
                                "model": model,
                                "method": method,
                                "sweep_setting": named,
                                "metric": metric,
                                "mean": mean,
                                "low": low,
                                "high": high,
                                "n_trainings": len(made),
                                "sweep": point.sweep,
                                "hyperparameter": point.hyperparameter,
                                "value": point.value,
                                "is_reference": point.is_reference,
                                "convention": convention,
                                "n_images": len(clusters),
                                **counts,
                            }
                        )
    frame = pd.DataFrame(found, columns=list(YARDSTICK_COLUMNS))
    order = list(dict.fromkeys(_named(own)))
    return frame.sort_values(
        ["method", "sweep"],
        key=lambda names: names.map({name: place for place, name in enumerate(order)}),
        kind="stable",
    ).reset_index(drop=True)


def _named(params: Params) -> list[str]:
    """Methods and sweeps in the order of params."""
    every = [point.sweep for m in params.methods for point in points(m, params.sweeps[m])]
    return [*params.methods, *every]


def _single(found: Sequence[Point]) -> list[Point]:
    """Points without the second reference of a sweep over a count."""
    return [one for one in found if one.draws != "independent" or one.hyperparameter == "seed"]


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
            same={},
            options=params.similarity,
        )
    ]
    merged = pd.concat(frames, ignore_index=True)
    found = {}
    for key, part in merged.groupby(["metric", "convention"]):
        wide = part.pivot(index="pair", columns="image_id", values="score")
        distances = 1 - wide[archives[0].image_ids].to_numpy(np.float64)
        flagged = part["degenerate"] | part["score"].isna()
        counts = {"n_degenerate": int(flagged.sum()), "n_inverted": int(part["inverted"].sum())}
        found[str(key[0]), str(key[1])] = distances, counts
    return found


def pair_mean(distances: Float[np.ndarray, "pairs images"], n_trainings: int) -> Estimate:
    """Mean over pairs of trainings, in the order of `itertools.combinations`, and images."""
    pairs = np.array(list(itertools.combinations(range(n_trainings), 2))).reshape(-1, 2)

    def estimate(
        trainings: Bool[np.ndarray, " trainings"], images: Bool[np.ndarray, " images"]
    ) -> float:
        part = distances[trainings[pairs].all(axis=1)][:, images]
        known = np.isfinite(part)
        return float(part[known].mean()) if known.any() else math.nan

    return estimate


def training_mean(values: Float[np.ndarray, "trainings images"]) -> Estimate:
    """Mean over trainings and images."""

    def estimate(
        trainings: Bool[np.ndarray, " trainings"], images: Bool[np.ndarray, " images"]
    ) -> float:
        part = values[trainings][:, images]
        known = np.isfinite(part)
        return float(part[known].mean()) if known.any() else math.nan

    return estimate


def crossed_interval(
    estimate: Estimate,
    n_trainings: int,
    clusters: Sequence[str],
    *,
    confidence: float = 0.95,
    within: Range = ANY,
) -> tuple[float, float, float]:
    """Estimate, and its interval over trainings and images.

    Every training explains every image, so that either is left out in turn, a training or a
    photograph, and the two jackknife variances add up (Owen 2007: slightly too wide, as what both
    share counts twice), in `steadymap.intervals.t_interval`.

    Parameters
    ----------
    estimate : callable
        From which trainings and which images take part to the number.
    n_trainings : int
        Number of trainings.
    clusters : sequence of str
        Photograph of each image.
    confidence : float
        Coverage.
    within : Range
        What the number can be.

    Returns
    -------
    tuple of float
        Estimate, lower and upper end. Ends are NaN with fewer than `FEWEST_TRAININGS` trainings or
        two photographs.
    """
    names, cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    trainings, images = np.ones(n_trainings, bool), np.ones(len(cluster), bool)
    point = estimate(trainings, images)
    if n_trainings < FEWEST_TRAININGS or len(names) < 2:
        return point, math.nan, math.nan
    without = (
        [estimate(np.arange(n_trainings) != out, images) for out in range(n_trainings)],
        [estimate(trainings, cluster != out) for out in range(len(names))],
    )
    ends = t_interval(
        point, [jackknife(left) for left in without], confidence=confidence, within=within
    )
    return point, *ends


def _images(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """Headline readings of a training, per image; of its chosen sweeps alone."""
    frames = []
    for method in params.methods:
        sweeps = [point.sweep for point in points(method, params.sweeps[method])]
        for part in ("scores", "accuracy"):
            found = read_table(params.results / part / f"{method}.parquet")
            frames.append(found[found["sweep"].isin(sweeps)])
    return main_readings(by_image(pd.concat(frames, ignore_index=True), rows), params)


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
        settings) and
        training, a column per image. A dynamic range is its logarithm: it is compared by factors.
    """
    frames = []
    for training, frame in enumerate(images):
        ranges = frame["metric"] == "dynamic_range"
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(frame["mean"].to_numpy(np.float64))
        logs[~np.isfinite(logs)] = np.nan
        means = frame.assign(statistic="mean", number=frame["mean"].where(~ranges, logs))
        hyperparameters = frame[(frame["hyperparameter"] != "") & ~ranges]
        stds = hyperparameters.assign(statistic="std", number=hyperparameters["std"])
        frames.append(pd.concat([means, stds]).assign(training=training))
    merged = pd.concat(frames, ignore_index=True)
    keys = [*_CELL, "statistic", "training"]
    wide = merged.pivot(index=keys, columns="image_id", values="number")
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
    found = (
        per_training.groupby([*_CELL, "statistic"], sort=False)["number"]
        .agg(["std", "count", "mean"])
        .reset_index()
        .rename(columns={"std": "sd", "count": "n_trainings"})
    )
    return found[list(MARGIN_COLUMNS)]


def twins(cells: pd.DataFrame, clusters: Sequence[str], *, confidence: float) -> pd.DataFrame:
    """Difference between robust twins and regular models, over trainings as well as images.

    A training's twins share the seed, and all share the images: differences are paired by both.

    Returns
    -------
    DataFrame
        With the columns `TWIN_COLUMNS`: robust minus regular of each cell's `mean`.
    """
    means = cells.xs("mean", level="statistic")
    names = list(dict.fromkeys(means.index.get_level_values("model")))
    found = []
    for model in (name for name in names if name + ROBUST in names):
        regular, robust = means.loc[model], means.loc[model + ROBUST]
        for key, part in regular.groupby(level=_CELL[1:], sort=False):
            other = robust.xs(key, level=_CELL[1:])
            values = other.to_numpy(np.float64) - part.to_numpy(np.float64)
            difference, low, high = crossed_interval(
                training_mean(values),
                len(values),
                clusters,
                confidence=confidence,
                within=_differences(str(dict(zip(_CELL[1:], key, strict=True))["metric"])),
            )
            found.append(
                {
                    **dict(zip(_CELL[1:], key, strict=True)),
                    "model": model,
                    "twin": model + ROBUST,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "n_trainings": len(values),
                    "n_images": values.shape[1],
                }
            )
    return pd.DataFrame(found, columns=list(TWIN_COLUMNS))


def _differences(metric: str) -> Range:
    # A dynamic range is its logarithm.
    return ANY if metric == "dynamic_range" else range_of(metric).minus(range_of(metric))


def hyperparameters(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each hyperparameter's mean 1 - SSIM in units of the retraining's at the sweep's reference.

    Returns
    -------
    DataFrame
        Columns model, method, sweep, hyperparameter (mean over trainings), hyperparameter_sd
        (between them), retraining
        with low and high, ratio: NaN where the retraining's mean does not stand out from 0, or has
        no interval.
    """
    rows = tables["yardstick"]
    rows = rows[(rows["metric"] == "ssim") & rows["is_reference"] & (rows["hyperparameter"] != "")]
    cells = tables["margins"]
    cells = cells[(cells["metric"] == "ssim") & (cells["statistic"] == "mean")]
    cells = _shared_draws(cells).set_index(["model", "sweep"])
    found, apart = [], range_of("ssim").turned
    for row in rows.itertuples():
        cell = cells.loc[(row.model, row.sweep)]
        moved = 1 - cell["mean"]
        found.append(
            {
                "model": row.model,
                "method": row.method,
                "sweep": row.sweep,
                "hyperparameter": moved,
                "hyperparameter_sd": cell["sd"],
                "retraining": row.mean,
                "low": row.low,
                "high": row.high,
                "ratio": moved / row.mean if stands_out(row.mean, row.low, apart) else math.nan,
            }
        )
    return pd.DataFrame(found)


def _shared_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one kind of draws per sweep; a sweep over seeds has none but independent ones."""
    shared = rows["draws"] != "independent"
    return rows[shared | ~shared.groupby([rows["model"], rows["sweep"]]).transform("any")]


# What is kept


def write(
    tables: Mapping[str, pd.DataFrame], made: Sequence[Params], folder: Path, *, command: str
) -> None:
    """Write the tables and a page that is made of them, the folder as a whole."""
    with atomic_folder(folder) as temporary:
        for name, table in tables.items():
            write_table(table, temporary / f"{name}.csv")
        (temporary / "README.md").write_text(rendered(tables, made, command=command))


def rendered(tables: Mapping[str, pd.DataFrame], made: Sequence[Params], *, command: str) -> str:
    """The page: what was trained, how far maps move by it, and how it was made."""
    own, trained = made[0], tables["trainings"]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(trained["seed"]))
    n, n_images = len(made), int(trained["n_images"].iloc[0])
    percent = f"{100 * own.statistics.confidence:g} %"
    accuracies = [
        [
            row.model,
            f"{row.training}",
            f"{row.seed}",
            f"{row.clean_accuracy:.3f}",
            f"{row.robust_accuracy:.3f}",
            f"{row.n_wrong}",
            f"{row.agree:.2f}",
            row.weights_sha256[:12],
        ]
        for row in trained.itertuples()
    ]
    units = [
        [
            row.sweep,
            row.method,
            row.model,
            f"{row.hyperparameter:.3f} ± {row.hyperparameter_sd:.3f}",
            _ended(row.retraining, row.low, row.high),
            "not formed" if math.isnan(row.ratio) else f"{row.ratio:.2f}",
        ]
        for row in hyperparameters(tables).itertuples()
    ]
    plain = tables["yardstick"]
    plain = plain[(plain["metric"] == "ssim") & (plain["hyperparameter"] == "")]
    lone = [
        [row.method, row.model, _ended(row.mean, row.low, row.high)] for row in plain.itertuples()
    ]
    differences = tables["twins"]
    differences = _shared_draws(differences[differences["metric"] == "ssim"])
    pairs = [
        [row.sweep, row.method, row.twin, _ended(row.difference, row.low, row.high)]
        for row in differences.itertuples()
    ]
    libraries = ("torch", "torchvision", "numpy", "scikit-image")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    few = "" if n >= FEWEST_TRAININGS else f"An interval takes {FEWEST_TRAININGS} trainings.\n"
    return "\n".join(
        [
            "# Retraining yardstick",
            "",
            f"Study `{own.study}`: its models were trained {n} times (training 0 is the study's "
            f"own) and explained on the same {n_images} images.",
            "A hyperparameter that moves maps less than retraining does changes them less than "
            "the choice of "
            "the training seed.",
            f"Ends are {percent} intervals over trainings and images (by photograph): jackknife "
            "over both, Student's t within the measure's range.",
            few,
            "## Trainings",
            "",
            f"`wrong` of the {n_images} images are misclassified, and kept; `agree` is the share "
            "on which the prediction is the study's own.",
            "",
            *_lines(
                ["model", "training", "seed", "clean", "attacked", "wrong", "agree", "weights"],
                accuracies,
            ),
            "",
            "## Hyperparameters in units of retraining",
            "",
            "Mean 1 - SSIM (`common`): of a sweep's variants to its reference (± SD between "
            "trainings), of two trainings at that reference, and their ratio.",
            "",
            *_lines(["sweep", "method", "model", "hyperparameter", "retraining", "ratio"], units),
            "",
            *(
                [
                    "Without a hyperparameter:",
                    "",
                    *_lines(["method", "model", "retraining"], lone),
                    "",
                ]
                if lone
                else []
            ),
            *(
                [
                    "## Robust minus regular",
                    "",
                    "Difference in mean SSIM of a sweep between twins, paired by seed and image.",
                    "",
                    *_lines(["sweep", "method", "twin", "difference"], pairs),
                    "",
                ]
                if pairs
                else []
            ),
            "## How it was made",
            "",
            f"```sh\n{command}\n```",
            "",
            f"Seeds {seeds}; steadymap {version('steadymap')}, Python "
            f"{platform.python_version()}, {versions}.",
            "",
            "`trainings.csv`, `yardstick.csv` (every setting and metric), `margins.csv` (SD "
            "between trainings of every cell's mean; logarithms of dynamic ranges), `twins.csv`.",
            "",
        ]
    )


def command_of(*, trainings: int, sweeps: Sequence[str] | None) -> str:
    """The command that makes a page with these options."""
    found = ["python", "stages/retraining.py", "--trainings", str(trainings)]
    return shlex.join([*found, *(["--sweeps", *sweeps] if sweeps else [])])


def _ended(mean: float, low: float, high: float) -> str:
    if math.isnan(low):
        return f"{mean:.3f}"
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]
