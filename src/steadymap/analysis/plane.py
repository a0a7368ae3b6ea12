"""Sensitivity plane: hyperparameter sensitivity against parameter sensitivity."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steadymap.analysis.parameters import PLANE_METRICS, Group, Study, plane_verdicts
from steadymap.params.schema import Statistics
from steadymap.statistics.resampling import minus

PLANE_COLUMNS = (
    *("method", "sweep", "hyperparameter", "model", "metric", "convention"),
    *("n_images", "n_variants", "x", "x_low", "x_high", "y", "y_low", "y_high"),
    *("difference", "difference_low", "difference_high", "share_below", "filled", "ranked"),
    *("rank", "reason", "x_inverted", "y_inverted", "verdict"),
)

# The sensitivity plane


def plane(
    ipr_scores: pd.DataFrame,
    sweep_scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    references: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
    randomizer: str = "init",
    preset: str = "paper",
) -> pd.DataFrame:
    """Sensitivity to hyperparameters (x) against sensitivity to parameters (y).

    Parameters
    ----------
    ipr_scores : DataFrame
        As the module's docstring has them; independent order.
    sweep_scores : DataFrame
        As `steadymap.scores.score` makes them: variants against their sweep's reference.
    rows, options, randomizer, preset
        As for `ipr`.
    references : mapping
        Per sweep, all hyperparameters of its reference.
    settings : mapping
        Per method, all hyperparameters that `ipr_scores` used.

    Returns
    -------
    DataFrame
        Columns `PLANE_COLUMNS`, one row per method, sweep and model, for SSIM (`common`) and
        Spearman (docs/protocol.md); both axes in [0, 2], on the images that both have. x: mean of
        1 - similarity over images and variants; y: over images, units and weight draws;
        difference = y - x with the interval paired by image; share_below: share of images with
        x < y. ranked: the sweep's reference is the setting of `ipr_scores`; filled: the largest x
        of the method's ranked sweeps on that model; rank: of the filled points, by difference, per
        model and similarity. x_inverted and y_inverted: pairs of maps behind x and y that are
        inverted. verdict: `parameters` or `hyperparameter`, whichever the maps react to more, where
        the intervals of both similarities' differences lie on that side of 0; `undecided` where
        both hold 0, and `DISAGREE` otherwise. Methods without a sweep stand at x = 0, are not
        ranked and have no verdict.
    """
    study = Study(ipr_scores, rows, options, randomizer=randomizer, preset=preset)
    wanted = PLANE_METRICS
    part = study.scores[
        (study.scores["order"] == "independent")
        & (study.scores["kind"] == "same")
        & (study.scores["convention"] == study.scores["metric"].map(wanted))
    ]
    if len(part[["randomizer", "preset"]].drop_duplicates()) > 1:
        raise ValueError(
            "scores hold several randomizers or presets; draw one plane for each of them"
        )
    # A seed sweep has no shared draws; a count sweep's independent ones stand beside.
    sweeps = sweep_scores[
        ((sweep_scores["draws"] != "independent") | (sweep_scores["hyperparameter"] == "seed"))
        & (sweep_scores["convention"] == sweep_scores["metric"].map(wanted))
    ]
    found: list[dict[str, Any]] = []
    for names, mine in part.groupby(["model", "method", "metric", "convention"], sort=False):
        model, method, metric, convention = map(str, names)
        label = {"method": method, "model": model, "metric": metric, "convention": convention}
        theirs = sweeps[
            (sweeps["model"] == model) & (sweeps["method"] == method) & (sweeps["metric"] == metric)
        ]
        if theirs.empty:
            group = Group(mine, study.resamples(mine["image_id"].unique()), stochastic=False)
            reason = "the method has no sweep"
            empty = {"sweep": "", "hyperparameter": "", "reason": reason}
            found.append({**label, **empty, **_place(None, group)})
        for sweep, variants in theirs.groupby("sweep", sort=False):
            if sweep not in references:
                raise ValueError(
                    f"sweep {sweep!r} has no reference; give the hyperparameters of its reference"
                )
            shared = mine["image_id"][mine["image_id"].isin(variants["image_id"])].unique()
            if not len(shared):
                raise ValueError(
                    f"{sweep} and the IPR test of {method} on {model} have no image in common; "
                    "run both on the same evaluation set"
                )
            own = study.resamples(shared)
            group = Group(mine[mine["image_id"].isin(shared)], own, stochastic=False)
            x = _variant_cells(variants[variants["image_id"].isin(shared)], own.image_ids)
            differs = _differing(references[str(sweep)], settings.get(method))
            found.append(
                {
                    **label,
                    "sweep": sweep,
                    "hyperparameter": variants["hyperparameter"].iloc[0],
                    **_place(x, group),
                    "ranked": not differs,
                    "reason": differs,
                    "x_inverted": int(
                        variants.loc[variants["image_id"].isin(shared), "inverted"].sum()
                    ),
                }
            )
    table = pd.DataFrame(found, columns=list(PLANE_COLUMNS))
    table["ranked"] = table["ranked"].eq(True)
    keys = ["model", "metric", "convention"]
    ranked = table[table["ranked"]]
    worst = ranked.loc[ranked.groupby([*keys, "method"])["x"].idxmax().dropna()]
    table["filled"] = table.index.isin(worst.index)
    table["rank"] = worst.groupby(keys)["difference"].rank(ascending=False, method="min")
    return table.assign(verdict=plane_verdicts(table))


def _variant_cells(
    variants: pd.DataFrame, image_ids: pd.Index
) -> Float[np.ndarray, "variants images"]:
    values = pd.Index(variants["value"].unique())
    found = np.full((len(values), len(image_ids)), np.nan)
    found[
        values.get_indexer(pd.Index(variants["value"])),
        image_ids.get_indexer(pd.Index(variants["image_id"])),
    ] = 1 - variants["score"].to_numpy(np.float64)
    return found


def _place(x: np.ndarray | None, group: Group) -> dict[str, Any]:
    """Coordinates of a point, and their paired difference."""
    resamples, y = group.resamples, group.same
    low, high = resamples.interval(y)
    found: dict[str, Any] = {
        "n_images": y.seen,
        "n_variants": 0 if x is None else len(x),
        "x": 0.0,
        "y": y.point,
        "y_low": low,
        "y_high": high,
        "x_inverted": 0,
        "y_inverted": group.n_inverted,
    }
    if x is None:
        return found
    across = resamples.mean(x[:, None], within=group.within)
    # Settings of a sweep are chosen, not drawn: they are not resampled.
    difference = minus(y, across)
    known = np.isfinite(group.cells["same"])
    with np.errstate(invalid="ignore", divide="ignore"):
        of_y = np.where(known, group.cells["same"], 0.0).sum((0, 1)) / known.sum((0, 1))
        of_x = np.nansum(x, axis=0) / np.isfinite(x).sum(0)
    both = np.isfinite(of_x) & np.isfinite(of_y)
    found["x"] = across.point
    found["x_low"], found["x_high"] = resamples.interval(across)
    found["difference"] = difference.point
    found["difference_low"], found["difference_high"] = resamples.interval(difference)
    found["share_below"] = float((of_x < of_y)[both].mean()) if both.any() else math.nan
    return found


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
