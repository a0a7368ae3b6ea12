"""Table S1 and the global spreads of the SAM paper (Fig. 7), beside the paper's values."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
import pandas as pd

from steadymap.analysis.claims.scores import (
    FAMILIES,
    TABLE_COLUMNS,
    TABLE_ROWS,
    Spread,
    StudyScores,
    mean_of,
    paper_grids,
)
from steadymap.analysis.claims.verdict import MissingError
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import range_of

GLOBAL_COLUMNS = (
    *("sweep", "method", "hyperparameter", "model", "metric", "convention"),
    *("n_images", "n_settings", "std", "std_low", "std_high"),
    *("seed_sd", "std_scaled", "scaled_low", "scaled_high", "values"),
)

# Recipes on tables shaped as Table S1; cells are numbers, or arrays of draws.


def paper_table() -> pd.DataFrame:
    """The paper's Table S1 on ImageNet, in our names: row, model, metric, mean, std_rms."""
    found = pd.read_csv(str(files("steadymap.analysis.claims") / "table_s1.csv"))
    return pd.DataFrame(
        {
            "row": found["method"],
            "sweep": found["method"].map(TABLE_ROWS),
            "model": found["model"].str.lower(),
            "metric": found["metric"].str.lower().str.replace(" ", "_"),
            "mean": found["mean"],
            "std_rms": found["std"],
        }
    )


def _paper_model(model: str) -> str:
    for family, name in FAMILIES.items():
        if model.startswith(family):
            return name + ("-R" if model.endswith(ROBUST) else "")
    return ""


def table_s1(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    alpha: float = 0.25,
    models: Sequence[str] = (),
    grids: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Table S1: level and spread of five sweeps, beside the paper's values on ImageNet.

    SSIM is in convention `sam`, over pairs of reference and variant; the localization error at
    `alpha`; insertion and deletion `auc_over_max`. Spreads are over all settings.

    Parameters
    ----------
    scores : DataFrame
        Similarity and accuracy rows, as in scores.parquet.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    options : Statistics
        Confidence, resamples and their seed.
    alpha : float
        Share of the map's maximum that the box is drawn at.
    models : sequence of str
        Order of the models; by default that of the scores.
    grids : mapping of str to sequence of str, optional
        Values of each sweep, its reference among them.

    Returns
    -------
    DataFrame
        Columns `TABLE_COLUMNS`, no row where a sweep or a metric is missing. `std_rms` is the root
        of the mean over images of the variance over settings (the code), `std_mean` the mean of the
        standard deviations (the text).
    """
    study = StudyScores(scores, rows, options, alpha=alpha, models=models, grids=grids)
    paper = paper_table().set_index(["row", "model", "metric"])
    found = []
    for row in study.table.to_dict("records"):
        line = {key: row[key] for key in ("row", "sweep", "model", "metric", "n_images")}
        for column, prefix in (("mean", "mean"), ("std_rms", "rms"), ("std_mean", "std_mean")):
            line[column] = float(row[column][0])
            measure = range_of(row["metric"])
            within = measure if column == "mean" else measure.spread
            low, high = study.resamples.interval(row[column], within=within)
            line |= {f"{prefix}_low": low, f"{prefix}_high": high}
        name = _paper_model(row["model"])
        key = (row["row"], name.lower(), row["metric"])
        line |= {"paper_model": name, "paper_mean": math.nan, "paper_std": math.nan}
        if name:
            line |= {"paper_mean": paper.loc[key, "mean"], "paper_std": paper.loc[key, "std_rms"]}
        line["values"] = " ".join(study.grids.get(row["sweep"], ()))
        line["paper_values"] = " ".join(paper_grids()[row["sweep"]])
        found.append(line)
    return pd.DataFrame(found, columns=list(TABLE_COLUMNS))


def global_std(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    alpha: float = 0.25,
    models: Sequence[str] = (),
    grids: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Standard deviation over a sweep's dataset means (Fig. 7, docs/protocol.md).

    Per model, and with model `mean` the mean over models. `std` is over this study's images and
    grows as they get fewer; `std_scaled` is what it would be on the paper's 1,735. For a seed that
    is the root of the mean variance between seeds per image over 1,735; for any other
    hyperparameter the noise of n images is taken from the variance and that of 1,735 put in.
    `seed_sd` is the SD between seeds per image, of the sweep itself or the method's first seed
    sweep. The parameters are as in `table_s1`.

    Returns
    -------
    DataFrame
        Columns `GLOBAL_COLUMNS`.
    """
    study = StudyScores(scores, rows, options, alpha=alpha, models=models, grids=grids)
    conventions = [("insertion", "auc"), ("insertion", "auc_over_max")]
    conventions += [("deletion", "auc"), ("deletion", "auc_over_max")]
    conventions += [("localization_error", study.conventions["localization_error"])]
    seeds = study.sweeps[study.sweeps["hyperparameter"] == "seed"]
    found = []
    for sweep, method, hyperparameter in study.sweeps.itertuples():
        candidates = (
            [sweep] if hyperparameter == "seed" else list(seeds.index[seeds["method"] == method])
        )
        for metric, convention in conventions:
            spreads: dict[str, tuple[Spread, float]] = {}
            for model in study.models:
                try:
                    spread = study.spread(sweep, model, metric, convention)
                except MissingError:
                    continue
                seed_sd = math.nan
                for candidate in candidates:
                    try:
                        seed_sd = study.spread(candidate, model, metric, convention).between
                    except MissingError:
                        continue
                    break
                spreads[model] = spread, seed_sd
            if not spreads:
                continue
            within = range_of(metric).spread
            parts = [spread for spread, _ in spreads.values()]
            mean = Spread(
                mean_of([part.std for part in parts]),
                mean_of([part.scaled for part in parts]),
                math.nan,
                min(part.n_images for part in parts),
                parts[0].n_settings,
            )
            spreads["mean"] = mean, float(np.mean([sd for _, sd in spreads.values()]))
            for model, (spread, seed_sd) in spreads.items():
                low, high = study.resamples.interval(spread.std, within=within)
                scaled_low, scaled_high = study.resamples.interval(spread.scaled, within=within)
                names = (sweep, method, hyperparameter, model, metric, convention)
                sizes = (spread.n_images, spread.n_settings)
                ends = (float(spread.std[0]), low, high, seed_sd)
                scaled = (float(spread.scaled[0]), scaled_low, scaled_high)
                line = (*names, *sizes, *ends, *scaled, " ".join(study.grids.get(sweep, ())))
                found.append(dict(zip(GLOBAL_COLUMNS, line, strict=True)))
    return pd.DataFrame(found, columns=list(GLOBAL_COLUMNS))
