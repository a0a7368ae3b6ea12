"""Rules for reading the result tables, each stated once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steadymap.params.methods import value_text
from steadymap.statistics.intervals import OF_ONE_MAP
from steadymap.store.tables import MISMATCH

# (metric, convention) in the order in which they are drawn; None stands for any convention.
MEASURES: dict[tuple[str, str | None], str] = {
    ("ssim", "common"): "SSIM (common)",
    ("ssim", "sam"): "SSIM (sam)",
    ("ssim", "wang"): "SSIM (wang)",
    ("ssim", "mass_weighted"): "SSIM (mass)",
    ("spearman", None): "Spearman",
    ("hog_pearson", None): "HOG-Pearson",
}

# Scores of a map by itself, not of a pair: (name, whether higher or lower is better).
ACCURACY = {
    "insertion": ("insertion", "higher"),
    "deletion": ("deletion", "lower"),
    "localization_error": ("localization error", "lower"),
    "iou": ("IoU", "higher"),
}

# Residual of a map's completeness that is too much, as a share of the score's change.
MOST_RESIDUAL = 0.05

# How far a map moved, in words: from which share of the distance between maps of different images
# on, by SSIM or Spearman, whichever is larger. A convention of ours.
DEGREES: tuple[tuple[float, str], ...] = (
    (0.0, "hardly moves"),
    (0.05, "moves a little"),
    (0.2, "moves much"),
    (0.5, "another map"),
)


def degree(*moved: float) -> int:
    """Place in `DEGREES` of the larger of two distances by `relative`; NaN is left out.

    Both must be small for maps that hardly move: SSIM alone may call an inverted map alike.
    """
    return max(
        place
        for place, (least, _) in enumerate(DEGREES)
        if place == 0 or any(value >= least for value in moved)
    )


def relative(frame: pd.DataFrame) -> pd.Series:
    """How far maps moved, 1 for as far as those of different images are apart.

    That is (1 - mean) / (1 - chance); 1 - mean itself where there is no chance level.

    Parameters
    ----------
    frame : DataFrame
        With column mean, and relative where the study measured it.
    """
    moved = 1 - frame["mean"].astype(float)
    return frame["relative"].astype(float).fillna(moved) if "relative" in frame else moved


def relative_s(rows: pd.DataFrame) -> pd.Series:
    """S of table `ipr` in units of how far maps of different images are apart.

    Tables of before S_rel had an interval have it of S less the floor, of which both follow.
    """
    if "rel_low" in rows:
        return rows["S_rel"]
    return rows["S_same"] / (rows["floor"] + rows["excess"] / rows["S_rel"])


def headline_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that say what another user with another value gets: those with independent draws.

    A sweep over a count has `nested` rows beside them, whose settings share draws with their
    reference. A sweep without independent rows is returned whole; so are scores of a map by itself,
    but for those of the second reference.

    Parameters
    ----------
    frame : DataFrame
        With columns sweep, draws and metric.
    """
    compares = ~frame["metric"].isin(OF_ONE_MAP)
    redrawn = frame.loc[compares & (frame["draws"] == "independent"), "sweep"]
    left_out = (frame["draws"] == "nested") & frame["sweep"].isin(redrawn)
    left_out |= frame["draws"] == MISMATCH
    return frame[np.where(compares, ~left_out, _is_nested(frame))]


def nested_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows whose settings share draws with their reference, as the SAM paper's, or have none.

    A sweep over the seed has independent draws alone, and is returned whole. Of tasks, the second
    reference of a sweep over a count is left out.

    Parameters
    ----------
    frame : DataFrame
        With columns sweep and draws.
    """
    return frame[_is_nested(frame)]


def beside_headline(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of pairs of maps that share draws, of sweeps whose headline has independent ones."""
    return nested_draws(frame).drop(index=headline_draws(frame).index, errors="ignore")


def _is_nested(frame: pd.DataFrame) -> pd.Series:
    counted = frame.loc[frame["draws"] == "nested", "sweep"]
    shared = (frame["draws"] != "independent") | ~frame["sweep"].isin(counted)
    return shared & (frame["draws"] != MISMATCH)


def main_conventions(alpha: float) -> dict[str, str]:
    """The one convention by which headlines read each metric that has several.

    Parameters
    ----------
    alpha : float
        Share of a map's maximum at which its box is drawn.
    """
    return {
        "ssim": "common",
        "spearman": "signed",
        "insertion": "auc_over_max",
        "deletion": "auc_over_max",
        "localization_error": f"alpha{alpha:.2f}",
        "iou": f"alpha{alpha:.2f}",
    }


def main_rows(frame: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Rows of the one convention per metric that headlines are made of."""
    main = frame["metric"].map(main_conventions(alpha))
    return frame[frame["convention"] == main.fillna(frame["convention"])]


def headline_rows(frame: pd.DataFrame, metric: str, convention: str | None = None) -> pd.DataFrame:
    """Rows of one measure with headline draws; of its first convention where none is given.

    Parameters
    ----------
    frame : DataFrame
        With columns sweep, draws, metric and convention.
    metric : str
        Name of the metric.
    convention : str, optional
        Convention of the metric.
    """
    rows = headline_draws(frame)
    rows = rows[rows["metric"] == metric]
    if convention is None and not rows.empty:
        convention = rows["convention"].iloc[0]
    return rows[rows["convention"] == convention]


def with_ranks(frame: pd.DataFrame, convention: str) -> pd.DataFrame:
    """SSIM's headline rows with those of rank correlation beside them.

    Parameters
    ----------
    frame : DataFrame
        With columns sweep, model, mean, ci_low and ci_high.
    convention : str
        Of SSIM.

    Returns
    -------
    DataFrame
        With relative, rank_mean, rank_ci_low, rank_ci_high and rank_relative.
    """
    keys, numbers = ["sweep", "model"], ["mean", "ci_low", "ci_high", "relative"]
    frame = frame.assign(relative=relative(frame))
    ranks = headline_rows(frame, "spearman").set_index(keys)[numbers].add_prefix("rank_")
    return headline_rows(frame, "ssim", convention).join(ranks, on=keys)


def headline(frame: pd.DataFrame, convention: str, models: Sequence[str]) -> pd.DataFrame:
    """Headline rows of table `sensitivity`; the sweep that moves any model's maps most first.

    Parameters
    ----------
    frame : DataFrame
    convention : str
        Of SSIM.
    models : sequence of str
        Order of the models in a sweep.

    Returns
    -------
    DataFrame
        Ordered by `degree`, the larger of what SSIM and rank correlation say (`relative`), and of
        equal ones by SSIM.
    """
    rows = with_ranks(frame, convention)
    moved = rows[["relative", "rank_relative"]].astype(float)
    rows = rows.assign(degree=[degree(*pair) for pair in moved.to_numpy()])
    groups = rows.groupby("sweep")
    order = {
        "by_degree": -groups["degree"].transform("max"),
        "by_mean": -groups["relative"].transform("max"),
        "by_model": rows["model"].map(list(models).index),
    }
    names = ["by_degree", "by_mean", "sweep", "by_model"]
    return rows.assign(**order).sort_values(names, ignore_index=True).drop(columns=[*order])


def by_measure(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str | None], str, pd.DataFrame]]:
    """Measure, its label and its rows, for each measure of `MEASURES` or of a plugin in a table."""
    plugins = frame.loc[frame["convention"] == "own", "metric"].unique()
    measures: dict[tuple[str, str | None], str] = {**MEASURES, ("pearson", None): "Pearson"}
    for (metric, convention), label in (measures | {(p, "own"): p for p in plugins}).items():
        rows = frame[frame["metric"] == metric]
        if convention is not None:
            rows = rows[rows["convention"] == convention]
        if len(rows):
            yield (metric, convention), label, rows


def one_randomization(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of one order (`independent` where there is), randomizer and preset."""
    for name in ("order", "randomizer", "preset"):
        if name in table and len(table):
            first = "independent" if (table[name] == "independent").any() else table[name].iloc[0]
            table = table[table[name] == first]
    return table


# Probability that a model gives an object alone, at its largest, where it sees the object.
SEEN = 0.5


def seen_objects(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of table `object_size` whose model sees the object alone, at its largest.

    A map of an object that the model does not see says nothing of the patch.
    """
    keys = ["model", "image_id"]
    largest = rows[rows["object_size"] == rows["object_size"].max()]
    seen = largest.groupby(keys)["score"].first().rename("largest") >= SEEN
    return rows[rows.join(seen, on=keys)["largest"].eq(True)]


# Behind a verdict that rests on empty maps.
BLANK = " (blank)"


def sweep_anchor(sweep: str) -> str:
    """Anchor of a sweep's section in the report."""
    return f"sweep-{sweep}"


def searched_names(rows: pd.DataFrame) -> list[str]:
    """Hyperparameters that the trials of a search differ in, in declared order."""
    settings = [
        json.loads(text) for text in rows.loc[rows["state"] != "reference", "hyperparameters"]
    ]
    if not settings:
        return []
    return [name for name in settings[0] if len({str(made[name]) for made in settings}) > 1]


def setting_name(effective: Mapping[str, Any], names: Sequence[str]) -> str:
    """Text of the searched hyperparameters, `n_samples=20 sigma=0.15`."""
    values = (effective[name] for name in names)
    shown = (f"{value:.4g}" if isinstance(value, float) else value_text(value) for value in values)
    return " ".join(f"{name}={text}" for name, text in zip(names, shown, strict=True))


def compared_pairs(rows: pd.DataFrame | Mapping[str, Any]) -> Any:
    """Pairs of maps behind each S of table `ipr`."""
    return rows["n_images"] * rows["n_units"] * rows["n_draws"]


def mostly_blank(rows: pd.DataFrame | Mapping[str, Any]) -> Any:
    """Whether over half of the pairs of maps behind each S of table `ipr` are degenerate."""
    return rows["n_degenerate"] > 0.5 * compared_pairs(rows)


def parameter_verdict(row: Mapping[str, Any]) -> str:
    """Whether a row of table `ipr` passes, '' where that is not judged.

    `yes (blank)` where an empty map's S makes it pass.
    """
    found = row.get("passes")
    if not isinstance(found, str):
        return ""
    return found + BLANK if found == "yes" and mostly_blank(row) else found
