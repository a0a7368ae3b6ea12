"""Sensitivity plane: hyperparameter sensitivity against parameter sensitivity."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis.parameters import Group, Study
from steadymap.analysis.readings import headline_draws
from steadymap.params.schema import Statistics
from steadymap.statistics.resampling import defined_mean

PLANE_COLUMNS = (
    *("method", "sweep", "hyperparameter", "model", "metric", "convention"),
    *("n_images", "n_variants", "x", "x_low", "x_high", "y", "y_low", "y_high"),
    *("difference", "difference_low", "difference_high", "share_below", "filled", "ranked"),
    *("rank", "reason", "x_inverted", "y_inverted", "verdict"),
)

# Convention of each similarity that the plane is drawn by.
PLANE_METRICS = {"ssim": "common", "spearman": "signed"}

# What the maps react to more, by both similarities; or why that is undecided.
PARAMETERS, HYPERPARAMETER, UNDECIDED = "parameters", "hyperparameter", "undecided"

DISAGREE = "undecided: SSIM and rank correlation disagree"


def plane(
    ipr_scores: pd.DataFrame,
    sweep_scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    references: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """Sensitivity to hyperparameters (x) against sensitivity to parameters (y).

    Parameters
    ----------
    ipr_scores : DataFrame
        As `steadymap.analysis.parameters` has them, of one randomizer and preset; independent order
        is read.
    sweep_scores : DataFrame
        As in scores.parquet: variants against their sweep's reference.
    rows : DataFrame
        The evaluation set, with columns image_id, photo and class_name.
    options : Statistics
        Confidence.
    references : mapping
        Per sweep, all hyperparameters of its reference.
    settings : mapping
        Per method, all hyperparameters that `ipr_scores` used.

    Returns
    -------
    DataFrame
        Columns `PLANE_COLUMNS`, one row per method, sweep and model, for SSIM (`common`) and
        Spearman (docs/protocol.md), on the images that both have. x: mean of 1 - similarity over
        images and variants; y: S over images, units and weight draws; both in units of the same
        distance, that of maps of different images by the model as trained; difference = y - x with
        the interval paired by image; share_below: share of images with x < y. ranked: the sweep's
        reference is the setting of `ipr_scores`; filled: the largest x of the method's ranked
        sweeps on that model; rank: of the filled points, by difference, per model and similarity.
        x_inverted and y_inverted: pairs of maps behind x and y that are inverted. verdict:
        `parameters` or `hyperparameter`, whichever the maps react to more, where the intervals of
        both similarities' differences lie on that side of 0; `undecided` where both hold 0, and
        `DISAGREE` otherwise. Methods without a sweep stand at x = 0, are not ranked and have no
        verdict. Without rows `mismatch` coordinates are NaN.

    Raises
    ------
    ValueError
        Where `ipr_scores` hold several randomizers or presets, a sweep has no reference, or it has
        no image in common with the IPR test.
    """
    study = Study(ipr_scores, rows, options)
    moved = study.scores[
        (study.scores["order"] == "independent")
        & (study.scores["kind"] == "same")
        & (study.scores["convention"] == study.scores["metric"].map(PLANE_METRICS))
    ]
    if len(moved[["randomizer", "preset"]].drop_duplicates()) > 1:
        raise ValueError(
            "scores hold several randomizers or presets; draw one plane for each of them"
        )
    variants = headline_draws(sweep_scores)
    variants = variants[variants["convention"] == variants["metric"].map(PLANE_METRICS)]
    keys = ["model", "method", "metric", "convention"]
    sweeps = dict(list(variants.groupby([*keys, "sweep"], sort=False)))
    records: list[dict[str, Any]] = []
    for names, part in moved.groupby(keys, sort=False):
        label = dict(zip(keys, map(str, names), strict=True))
        own_sweeps = {key[-1]: frame for key, frame in sweeps.items() if key[:-1] == names}
        if not own_sweeps:
            group = study.group(part, study.resamples(part["image_id"].unique()))
            empty = {"sweep": "", "hyperparameter": "", "reason": "the method has no sweep"}
            records.append({**label, **empty, **_coordinates(None, group)})
        for sweep, frame in own_sweeps.items():
            if sweep not in references:
                raise ValueError(
                    f"sweep {sweep!r} has no reference; give the hyperparameters of its reference"
                )
            image_ids = part["image_id"][part["image_id"].isin(frame["image_id"])].unique()
            if not len(image_ids):
                raise ValueError(
                    f"{sweep} and the IPR test of {label['method']} on {label['model']} have no "
                    "image in common; run both on the same evaluation set"
                )
            resamples = study.resamples(image_ids)
            group = study.group(part[part["image_id"].isin(image_ids)], resamples)
            frame = frame[frame["image_id"].isin(image_ids)]
            differs = _differing(references[str(sweep)], settings.get(label["method"]))
            records.append(
                {
                    **label,
                    "sweep": sweep,
                    "hyperparameter": frame["hyperparameter"].iloc[0],
                    **_coordinates(frame, group),
                    "ranked": not differs,
                    "reason": differs,
                }
            )
    table = pd.DataFrame(records, columns=list(PLANE_COLUMNS))
    table["ranked"] = table["ranked"].eq(True)
    similarity = ["model", "metric", "convention"]
    ranked = table[table["ranked"]].dropna(subset=["x"])
    worst = ranked.loc[ranked.groupby([*similarity, "method"])["x"].idxmax().dropna()]
    table["filled"] = table.index.isin(worst.index)
    table["rank"] = worst.groupby(similarity)["difference"].rank(ascending=False, method="min")
    return table.assign(verdict=plane_verdicts(table))


def _coordinates(variants: pd.DataFrame | None, group: Group) -> dict[str, Any]:
    """Coordinates of a point, and their paired difference; x is 0 without a sweep's variants."""
    resamples = group.resamples
    point: dict[str, Any] = {"n_images": group.same.seen, "y_inverted": group.n_inverted}
    point |= dict(zip(("y", "y_low", "y_high"), group.relative, strict=True))
    if variants is None:
        return point | {"n_variants": 0, "x": 0.0, "x_inverted": 0}
    wide = variants.pivot(index="value", columns="image_id", values="score")
    cells = 1 - wide.reindex(columns=resamples.image_ids).to_numpy(np.float64)
    # Settings of a sweep are chosen, not drawn: they are not resampled.
    x = resamples.mean(cells[:, None], within=group.within)
    unit = group.mismatch
    by_image_x, by_image_y = defined_mean(cells, 0), defined_mean(group.cells["same"], (0, 1))
    both = np.isfinite(by_image_x) & np.isfinite(by_image_y)
    point |= {"n_variants": len(cells), "x_inverted": int(variants["inverted"].sum())}
    for name, value in (("x", x), ("difference", group.same - x)):
        ends = (math.nan,) * 3 if unit is None else resamples.ratio(value, unit)
        point |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    below = (by_image_x < by_image_y)[both]
    return point | {"share_below": float(below.mean()) if both.any() else math.nan}


def _differing(reference: Mapping[str, Any], setting: Mapping[str, Any] | None) -> str:
    """Why a sweep's reference is not the setting of the IPR test; "" where it is."""
    if setting is None:
        return "the IPR test's setting is not given"
    for name in dict.fromkeys([*reference, *setting]):
        if reference.get(name) != setting.get(name):
            here, there = (
                f"{name} {values[name]}" if name in values else f"no {name}"
                for values in (reference, setting)
            )
            return f"the reference has {here}, the IPR test {there}"
    return ""


def plane_verdicts(table: pd.DataFrame) -> pd.Series:
    """What the maps of each point of table `plane` react to more, by both similarities."""
    low, high = (table[f"difference_{end}"].astype(float) for end in ("low", "high"))
    side = (low > 0).astype(int) - (high < 0).astype(int)
    sweeps = table["sweep"].fillna("")
    points = side.groupby([table["method"], sweeps, table["model"]])
    least, most = points.transform("min"), points.transform("max")
    both = points.transform("size") == len(PLANE_METRICS)
    verdicts = side.map({1: PARAMETERS, -1: HYPERPARAMETER, 0: UNDECIDED})
    verdicts = verdicts.where(both, UNDECIDED).where(least == most, DISAGREE)
    return verdicts.where(sweeps != "", "")
