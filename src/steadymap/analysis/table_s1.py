"""Table S1 and the global spreads of the SAM paper (Fig. 7), beside the paper's values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files

import pandas as pd

from steadymap.analysis.claims.scores import (
    FAMILIES,
    TABLE_COLUMNS,
    TABLE_ROWS,
    Spread,
    StudyScores,
    mean_spread,
    paper_grids,
)
from steadymap.analysis.claims.verdict import MissingError
from steadymap.params.methods import ROBUST
from steadymap.params.schema import Statistics

GLOBAL_COLUMNS = (
    *("sweep", "method", "hyperparameter", "model", "metric", "convention"),
    *("n_images", "n_settings", "std", "std_low", "std_high"),
    *("seed_sd", "std_scaled", "scaled_low", "scaled_high"),
    *("per_image", "times", "times_low", "times_high", "saturated", "values"),
)


def paper_table() -> pd.DataFrame:
    """The paper's Table S1 on ImageNet, in our names: row, model, metric, mean, std_rms."""
    table = pd.read_csv(str(files("steadymap.analysis.claims") / "table_s1.csv"))
    return pd.DataFrame(
        {
            "row": table["method"],
            "sweep": table["method"].map(TABLE_ROWS),
            "model": table["model"].str.lower(),
            "metric": table["metric"].str.lower().str.replace(" ", "_"),
            "mean": table["mean"],
            "std_rms": table["std"],
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
        Confidence.
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
    paper = paper_table().rename(columns={"model": "paper_key"}).drop(columns="sweep")
    records = []
    for row in study.table.to_dict("records"):
        ends = {
            f"{prefix}_{end}": value
            for column, prefix in (("mean", "mean"), ("std_rms", "rms"), ("std_mean", "std_mean"))
            for end, value in zip(
                ("low", "high"), study.resamples.interval(row[column]), strict=True
            )
        }
        points = {column: row[column].point for column in ("mean", "std_rms", "std_mean")}
        records.append({**row, **points, **ends, "n_images": row["mean"].seen})
    table = pd.DataFrame(records, columns=list(TABLE_COLUMNS))
    table["paper_model"] = table["model"].map(_paper_model)
    keys = table.assign(paper_key=table["paper_model"].str.lower())[["row", "paper_key", "metric"]]
    printed = keys.merge(paper, how="left", on=["row", "paper_key", "metric"])
    swept = table["sweep"].map(lambda sweep: " ".join(study.grids.get(sweep, ())))
    theirs = table["sweep"].map(lambda sweep: " ".join(paper_grids()[sweep]))
    return table.assign(
        paper_mean=printed["mean"], paper_std=printed["std_rms"], values=swept, paper_values=theirs
    )


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
    sweep. `per_image` is the root of the mean variance over settings per image, and `times` how
    many times `std` that is: what the averages do not show.

    Parameters
    ----------
    scores, rows, options, alpha, models, grids
        As for `table_s1`.

    Returns
    -------
    DataFrame
        Columns `GLOBAL_COLUMNS`.
    """
    study = StudyScores(scores, rows, options, alpha=alpha, models=models, grids=grids)
    measures = [(m, c) for m in ("insertion", "deletion") for c in ("auc", "auc_over_max")]
    measures += [("localization_error", study.conventions["localization_error"])]
    records = []
    for sweep, method, hyperparameter in study.sweeps.itertuples():
        for metric, convention in measures:
            spreads = {}
            for model in study.models:
                spread = _spread_or_none(study, sweep, model, metric, convention)
                if spread is not None:
                    seed_sd = _seed_sd(study, sweep, model, metric, convention)
                    spreads[model] = replace(spread, seed_sd=seed_sd)
            if spreads:
                spreads["mean"] = mean_spread(list(spreads.values()))
            for model, spread in spreads.items():
                low, high = study.resamples.interval(spread.std)
                scaled_low, scaled_high = study.resamples.interval(spread.scaled)
                names = (sweep, method, hyperparameter, model, metric, convention)
                sizes = (spread.n_images, spread.n_settings)
                ends = (spread.std.point, low, high, spread.seed_sd)
                scaled = (spread.scaled.point, scaled_low, scaled_high)
                times = spread.per_image / spread.std
                apart = (spread.per_image.point, times.point, *study.resamples.interval(times))
                values = " ".join(study.grids.get(sweep, ()))
                records.append((*names, *sizes, *ends, *scaled, *apart, spread.saturated, values))
    return pd.DataFrame(records, columns=list(GLOBAL_COLUMNS))


def _spread_or_none(
    study: StudyScores, sweep: str, model: str, metric: str, convention: str
) -> Spread | None:
    try:
        return study.spread(sweep, model, metric, convention)
    except MissingError:
        return None


def _seed_sd(study: StudyScores, sweep: str, model: str, metric: str, convention: str) -> float:
    """SD between seeds per image: of a seed sweep itself, else of the method's first one."""
    sweeps = study.sweeps
    seeds = sweeps.index[
        (sweeps["hyperparameter"] == "seed") & (sweeps["method"] == sweeps.loc[sweep, "method"])
    ]
    for candidate in [sweep] if sweep in seeds else seeds:
        spread = _spread_or_none(study, candidate, model, metric, convention)
        if spread is not None:
            return spread.seed_sd
    return math.nan
