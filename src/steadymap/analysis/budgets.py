"""Stability budgets: from how many samples or steps on a map stays what it is (docs/protocol.md).

A sweep over a count of samples or a number of steps is held against a *converged* map, that of its
largest value with the next seed. The budget is the smallest value from which on, it and every
larger one of the sweep, enough images reach an SSIM of tau with their converged maps.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from steadymap.engine.settings import Setting
from steadymap.experiments.convergence import CONVENTION, Convergence
from steadymap.params.schema import Budget, Statistics
from steadymap.statistics.intervals import SHARE
from steadymap.statistics.resampling import cluster_names, degenerate_pairs, interval

CURVE_COLUMNS = (
    *("model", "sweep", "value", "tau", "share", "low", "high", "forward_passes"),
    *("backward_passes", "method", "ssim", "spearman", "n_images", "n_degenerate"),
    "n_inverted",
)

BUDGET_COLUMNS = (
    *("model", "method", "sweep", "tau", "budget", "low", "high", "n_max", "share_at_max"),
    *("self_similarity", "forward_passes", "backward_passes", "n_images", "reached"),
)


def lasting(reached: Sequence[bool]) -> int | None:
    """Position from which on everything is true; None where the last is not."""
    position = None
    for index in reversed(range(len(reached))):
        if not reached[index]:
            break
        position = index
    return position


def curves(
    scores: pd.DataFrame,
    sweeps: Sequence[Convergence],
    rows: pd.DataFrame,
    budget: Budget,
    options: Statistics,
    *,
    passes: Mapping[Setting, tuple[int, int]],
) -> pd.DataFrame:
    """Share of images whose map is as good as converged, by sweep, value and tau.

    Parameters
    ----------
    scores : DataFrame
        With the columns `steadymap.experiments.convergence.COLUMNS`.
    sweeps : sequence of Convergence
        The sweeps.
    rows : DataFrame
        The evaluation set, with columns image_id and photo.
    budget : Budget
        The taus.
    options : Statistics
        Confidence.
    passes : mapping of Setting to tuple of int
        Forward and backward passes that one map takes.

    Returns
    -------
    DataFrame
        With the columns `CURVE_COLUMNS`. `low` and `high` are the share's interval,
        clustered by photograph; passes are per image; `ssim` and `spearman` are means over images.
        An undefined SSIM reaches no tau, nor does an inverted map, whatever its SSIM.
        `n_degenerate` counts the pairs with a degenerate map, as two constant maps have an SSIM of
        1; `n_inverted` the inverted ones.
    """
    groups = dict(list(scores.groupby(["model", "sweep", "value", "metric", "convention"])))
    clusters = dict(zip(rows["image_id"], cluster_names(rows), strict=True))
    records = []
    for sweep, model in itertools.product(sweeps, dict.fromkeys(scores["model"])):
        for setting, value in zip(sweep.settings, map(str, sweep.values), strict=True):
            ssim = groups[model, sweep.sweep, value, "ssim", CONVENTION]
            ranks = groups.get((model, sweep.sweep, value, "spearman", "signed"))
            forward, backward = passes[setting]
            row = {
                "model": model,
                "sweep": sweep.sweep,
                "value": value,
                "forward_passes": forward,
                "backward_passes": backward,
                "method": sweep.method,
                "ssim": ssim["score"].mean(),
                "spearman": np.nan if ranks is None else ranks["score"].mean(),
                "n_images": len(ssim),
                "n_degenerate": int(degenerate_pairs(ssim).sum()),
                "n_inverted": int(ssim["inverted"].sum()),
            }
            photos = list(ssim["image_id"].map(clusters))
            for tau in budget.tau:
                stays = ((ssim["score"] >= tau) & ~ssim["inverted"]).to_numpy(float)
                low, high = interval(stays, photos, **options.model_dump(), within=SHARE)
                records.append(row | {"tau": tau, "share": stays.mean(), "low": low, "high": high})
    return pd.DataFrame(records, columns=list(CURVE_COLUMNS))


def budgets(curves: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """Smallest value from which on the share of images is large enough, by sweep and tau.

    Parameters
    ----------
    curves : DataFrame
        As `curves` makes them: values ascending within a model, sweep and tau.
    budget : Budget
        The share.

    Returns
    -------
    DataFrame
        With the columns `BUDGET_COLUMNS`. `low` and `high` are the budgets that the upper and the
        lower ends of the shares' intervals would have. Each of `budget`, `low`, `high` is NaN where
        the largest value, `n_max`, misses the share: not reached by `n_max`. `self_similarity` is
        the mean SSIM of two converged maps, the largest value's with two seeds; `share_at_max` the
        share of images there. Passes are per image, at the budget.
    """
    records = []
    keys = ["model", "method", "sweep", "tau"]
    for names, part in curves.groupby(keys, sort=False):
        values, last = part["value"].astype(int).to_list(), part.iloc[-1]
        # Shares are fractions of few images: a sum of binary fractions may miss by the last bit.
        positions = {
            name: lasting(list(part[column] >= budget.share - 1e-9))
            for name, column in (("budget", "share"), ("low", "high"), ("high", "low"))
        }
        position = positions["budget"]
        passes = dict.fromkeys(("forward_passes", "backward_passes"), np.nan)
        if position is not None:
            passes = part[list(passes)].iloc[position].to_dict()
        records.append(
            {
                **dict(zip(keys, names, strict=True)),
                **{name: np.nan if p is None else values[p] for name, p in positions.items()},
                "n_max": values[-1],
                "share_at_max": last["share"],
                "self_similarity": last["ssim"],
                **passes,
                "n_images": last["n_images"],
                "reached": position is not None,
            }
        )
    return pd.DataFrame(records, columns=list(BUDGET_COLUMNS))
