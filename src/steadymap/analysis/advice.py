"""What to do with each method, from a study's own numbers (docs/protocol.md)."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from steadymap.analysis.budgets import lasting
from steadymap.analysis.readings import DEGREES, headline_rows, relative
from steadymap.engine.settings import Point, points
from steadymap.metrics.similarity import normalize, spearman, ssim
from steadymap.params.schema import Params
from steadymap.store.maps import Maps

AVERAGE_COLUMNS = (
    *("method", "sweep", "model", "n_averaged", "ssim", "spearman", "n_pairs", "n_images"),
)

COLUMNS = (
    *("method", "model", "tau", "report", "steady", "counted", "at_least", "n_max"),
    *("seed_sweep", "n_seeds", "most_seeds", "seeds_ssim", "seeds_spearman"),
)

# A hyperparameter moves maps from this `relative` distance on, the report's "a little".
MOVES = DEGREES[1][0]


def seed_averages(params: Params) -> pd.DataFrame:
    """How alike two averages of as many seeds are: `tables/seed_averages.csv`.

    Returns
    -------
    DataFrame
        Columns `AVERAGE_COLUMNS`, for each sweep over seeds and each number of seeds of which it
        has two: mean SSIM (`common`) and Spearman of the maps averaged over disjoint sets of seeds,
        over pairs of sets and images. An undefined correlation counts as 0.
    """
    records = []
    for method in params.methods:
        seeds: dict[str, list[Point]] = {}
        for point in points(method, params.sweeps[method]):
            if point.hyperparameter == "seed":
                seeds.setdefault(point.sweep, []).append(point)
        for sweep, model in itertools.product(seeds, params.models.names):
            maps = Maps(params.results / "maps" / method)
            records += [
                {"method": method, "sweep": sweep, "model": model, **row}
                for row in _averages(maps, model, seeds[sweep], params.similarity.win_size)
            ]
    return pd.DataFrame(records, columns=list(AVERAGE_COLUMNS))


def _averages(
    maps: Maps, model: str, seeds: Sequence[Point], win_size: int
) -> Iterator[dict[str, float]]:
    stack = np.stack([maps.read(model, point.setting.hyperparameters) for point in seeds])
    for n in range(1, len(seeds) // 2 + 1):
        sets = [
            torch.from_numpy(stack[first : first + n].mean(axis=0))
            for first in range(0, len(seeds) - n + 1, n)
        ]
        scores = [
            (
                ssim(normalize(a), normalize(b), win_size=win_size),
                torch.nan_to_num(spearman(a, b)),
            )
            for a, b in itertools.combinations(sets, 2)
        ]
        alike, ranks = (float(torch.stack(part).mean()) for part in zip(*scores, strict=True))
        yield {
            "n_averaged": n,
            "ssim": alike,
            "spearman": ranks,
            "n_pairs": len(scores),
            "n_images": stack.shape[1],
        }


def advice(
    sensitivity: pd.DataFrame,
    budget: pd.DataFrame | None,
    averages: pd.DataFrame | None,
    *,
    tau: float,
) -> pd.DataFrame:
    """What to report, how many samples to take and how many seeds to average.

    Parameters
    ----------
    sensitivity : DataFrame
        As `steadymap.analysis.sweeps.summary` makes it.
    budget : DataFrame, optional
        As `steadymap.analysis.budgets.budgets` makes it.
    averages : DataFrame, optional
        As `seed_averages` makes it.
    tau : float
        SSIM and rank correlation that are enough.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, a row per method and model. `report` has the hyperparameters whose sweep
        moves the maps, by `MOVES` or more by SSIM or rank correlation, and `steady` the others,
        each separated by spaces; `at_least` the budget of `counted` at tau, NaN where it is not
        reached by `n_max`; `n_seeds` the smallest number of seeds from which on two averages of as
        many have a mean SSIM and Spearman of tau or more, NaN where up to `most_seeds`, whose two
        values follow, do not. What was not measured is NaN or ''.
    """
    measures = (("ssim", "common"), ("spearman", "signed"))
    means = pd.concat([headline_rows(sensitivity, *measure) for measure in measures])
    keys = ["method", "model", "hyperparameter"]
    furthest = means.assign(moved=relative(means)).groupby(keys, sort=False)["moved"].max()
    records = []
    for (method, model), group in furthest.groupby(level=[0, 1], sort=False):
        moved = {str(key[2]): value for key, value in group.items() if key[2]}
        if not moved:
            continue
        row = dict.fromkeys(COLUMNS, np.nan) | {"method": method, "model": model, "tau": tau}
        row |= {"counted": "", "seed_sweep": ""}
        row["report"] = " ".join(name for name, by in moved.items() if by >= MOVES)
        row["steady"] = " ".join(name for name, by in moved.items() if by < MOVES)
        row |= _count(_of(budget, method, model), sensitivity, tau)
        row |= _seeds(_of(averages, method, model), tau)
        records.append(row)
    return pd.DataFrame(records, columns=list(COLUMNS))


def _of(table: pd.DataFrame | None, method: str, model: str) -> pd.DataFrame:
    if table is None or table.empty:
        return pd.DataFrame()
    return table[(table["method"] == method) & (table["model"] == model)]


def _count(budget: pd.DataFrame, sensitivity: pd.DataFrame, tau: float) -> dict[str, object]:
    rows = budget[budget["tau"] == tau] if len(budget) else budget
    if rows.empty:
        return {}
    first = rows.iloc[0]
    hyperparameters = sensitivity.loc[sensitivity["sweep"] == first["sweep"], "hyperparameter"]
    return {
        "counted": hyperparameters.iloc[0] if len(hyperparameters) else "",
        "at_least": first["budget"],
        "n_max": first["n_max"],
    }


def _seeds(averages: pd.DataFrame, tau: float) -> dict[str, object]:
    """Of the method's first sweep over seeds."""
    if averages.empty:
        return {}
    sweep = averages["sweep"].iloc[0]
    rows = averages[averages["sweep"] == sweep].sort_values("n_averaged")
    # From there on, as a single number may reach it by luck.
    position = lasting(list(rows[["ssim", "spearman"]].min(axis=1) >= tau))
    last = rows.iloc[-1]
    return {
        "seed_sweep": sweep,
        "n_seeds": np.nan if position is None else rows["n_averaged"].iloc[position],
        "most_seeds": last["n_averaged"],
        "seeds_ssim": last["ssim"],
        "seeds_spearman": last["spearman"],
    }
