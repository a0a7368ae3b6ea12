"""The regression gate: which of a study's numbers moved against a baseline (docs/gate.md).

A cell is one number of one model: a sweep's mean over variants, its spread over settings, or a
method's sensitivity to randomized parameters, with a value per image. Images are paired,
d = current - baseline, and what is claimed holds for all cells at once.

A baseline folder holds `cells.csv` (a row per cell: margin and what of reruns it rests on, a column
per image), `images.csv` (id, content) and `history.json` (every acceptance with its reason, the
last one in force). A folder of reports (`tables/`) serves as a baseline too, with the smallest
margin for every cell.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from steadymap.gate.baseline import (
    INCONCLUSIVE,
    KEYS,
    LEAST_MARGIN,
    MISSING,
    MOVED,
    MOVED_CONFIDENCE,
    SAME,
    SAME_CONFIDENCE,
    VERDICTS,
    IncomparableError,
    Measured,
    differences,
    finite_mean,
    standard_error,
)


def compare(
    baseline: Measured, current: Measured, *, retraining: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Verdict of every cell.

    Parameters
    ----------
    baseline, current : Measured
        As `read` gives them.
    retraining : DataFrame, optional
        As `retraining_table` gives it: the margin of models whose weights differ. Their cells are
        same or inconclusive, never moved.

    Returns
    -------
    DataFrame
        A row per cell, worst first: `KEYS`, n_images, baseline and current (means over images), d,
        low and high (simultaneous 95 %), same_low and same_high (90 %), margin, verdict, note.

        Intervals are Student's over images, which are the same on both sides: what is left to
        chance are draws, and those are keyed by image, so that images of one photograph count as
        one each. The simultaneous ones are Bonferroni's over the cells that are not equal to the
        last digit, as equal ones can't be mistaken for moved. (A bootstrap of the largest t needs
        many images: with eight, some resamples have next to no spread and their t no bound.)

        A cell of SSIM is no better than the rank correlation of the same maps (`_paired`).

    Raises
    ------
    IncomparableError
        Where images differ, or weights do and no retraining margin is known.
    """
    weights, others = differences(baseline, current)
    if others or (weights and retraining is None):
        found = "; ".join([*weights.values(), *others])
        remedy = "measure both with the same weights and images (`stages/measure.py`), or accept"
        raise IncomparableError(f"not comparable: {found}; {remedy}")
    if not len(baseline.cells) and not len(current.cells):
        raise IncomparableError(f"{baseline.source}, {current.source}: no cells in either")
    order = list(baseline.images["image_id"])
    every = baseline.cells.index.union(current.cells.index, sort=False)
    old = baseline.cells.reindex(every)[order].to_numpy(np.float64)
    new = current.cells.reindex(every)[order].to_numpy(np.float64)
    known = [every.isin(side.cells.index) for side in (baseline, current)]
    equal = np.array([np.array_equal(a, b, equal_nan=True) for a, b in zip(old, new, strict=True)])
    n_open = max(1, int((known[0] & known[1] & ~equal).sum()))
    rows = []
    for place, key in enumerate(every):
        names = dict(zip(KEYS, key, strict=True))
        margin, note = _margin(names, key, baseline, weights, retraining)
        row: dict[str, Any] = {
            **names,
            "n_images": 0,
            "baseline": finite_mean(old[place]),
            "current": finite_mean(new[place]),
            "d": math.nan,
            **dict.fromkeys(("low", "high", "same_low", "same_high"), math.nan),
            "margin": margin,
        }
        if not (known[0][place] and known[1][place]):
            gone = "not measured now" if known[0][place] else "not in the baseline: accept it"
            rows.append(row | {"verdict": MISSING, "note": gone})
            continue
        d = new[place] - old[place]
        both = np.isfinite(d)
        row |= {"n_images": int(both.sum()), "d": finite_mean(d)}
        if equal[place]:
            zero = dict.fromkeys(("d", "low", "high", "same_low", "same_high"), 0.0)
            rows.append(row | zero | {"verdict": SAME, "note": "equal"})
            continue
        error, freedom = standard_error(d[both])
        for name, tail in (
            ("same_", (1 - SAME_CONFIDENCE) / 2),
            ("", (1 - MOVED_CONFIDENCE) / 2 / n_open),
        ):
            reach = error * stats.t.ppf(1 - tail, freedom) if freedom else math.inf
            row |= {f"{name}low": row["d"] - reach, f"{name}high": row["d"] + reach}
        lost = int((np.isfinite(old[place]) != np.isfinite(new[place])).sum())
        verdict, why = _verdict(row, lost, allowed=_allowed(key, baseline))
        if verdict == MOVED and names["model"] in weights:
            # Of hundreds of cells some lie beyond it by chance: two trainings show no change.
            verdict, why = INCONCLUSIVE, "beyond what other trainings do"
        rows.append(row | {"verdict": verdict, "note": "; ".join(filter(None, (why, note)))})
    table = _paired(pd.DataFrame(rows))
    size = (table["d"].abs() / table["margin"]).fillna(math.inf)
    table = table.assign(_rank=table["verdict"].map(VERDICTS.index), _size=-size)
    table = table.sort_values(["_rank", "_size"], kind="stable", ignore_index=True)
    return table.drop(columns=["_rank", "_size"])


def _paired(table: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of SSIM's cells held to those of rank correlation: moved in either is moved.

    SSIM may call a map and its negative alike. A spread has the mean's rank correlation beside it.
    """
    names = [name for name in KEYS if name not in ("metric", "convention")]
    ranks = table[table["metric"] == "spearman"].set_index(names)["verdict"]
    cells = table.loc[table["metric"] == "ssim", names].replace({"statistic": {"std": "mean"}})
    beside = pd.Series(
        [ranks.get(key, SAME) for key in cells.itertuples(index=False, name=None)], cells.index
    )
    own = table.loc[cells.index, "verdict"]
    worse = (beside.map(VERDICTS.index) < own.map(VERDICTS.index)) & (own != MISSING)
    for place in worse.index[worse]:
        verdict = MOVED if beside[place] == MOVED else INCONCLUSIVE
        table.loc[place, "verdict"] = verdict
        note = f"its rank correlation {'moved' if verdict == MOVED else f'is {beside[place]}'}"
        told = table.loc[place, "note"]
        table.loc[place, "note"] = "; ".join(filter(None, (note, "" if told == "equal" else told)))
    return table


def _allowed(key: tuple[str, ...], baseline: Measured) -> int:
    """Images that reruns left undefined on one side alone, at most."""
    if key not in baseline.margins.index:
        return 0
    return int(baseline.margins.loc[key, "lost"])


def _verdict(row: Mapping[str, Any], lost: int, *, allowed: int) -> tuple[str, str]:
    margin = row["margin"]
    if math.isnan(margin):
        return INCONCLUSIVE, "no margin"
    if not row["n_images"]:
        return INCONCLUSIVE, "defined for no image on both sides"
    if (row["low"] > 0 or row["high"] < 0) and abs(row["d"]) > margin:
        return MOVED, ""
    undefined = ""
    if lost:
        undefined = (
            f"{lost} {'image is' if lost == 1 else 'images are'} undefined on one side alone"
        )
    if lost > allowed:
        return INCONCLUSIVE, undefined + (f", reruns left {allowed}" if allowed else "")
    if -margin < row["same_low"] and row["same_high"] < margin:
        return SAME, undefined
    return INCONCLUSIVE, "the interval reaches beyond the margin"


def _margin(
    names: Mapping[str, str],
    key: tuple[str, ...],
    baseline: Measured,
    weights: Mapping[str, str],
    retraining: pd.DataFrame | None,
) -> tuple[float, str]:
    margin = LEAST_MARGIN
    if key in baseline.margins.index:
        margin = float(baseline.margins.loc[key, "margin"])
    if names["model"] not in weights:
        return margin, ""
    assert retraining is not None
    rows = retraining
    for name in KEYS:
        if name in rows:
            rows = rows[rows[name].fillna("") == names[name]]
    if "statistic" not in rows and names["statistic"] not in ("mean", "S_same"):
        rows = rows.iloc[:0]
    if rows["sd"].notna().any():
        row = rows.loc[rows["sd"].idxmax()]
        reach = retraining_sds(row.get("n_trainings", math.nan)) * float(row["sd"])
        return max(margin, reach), "retraining margin"
    return math.nan, "other weights, and no retraining margin of this cell"


def retraining_sds(n_trainings: float) -> float:
    """Standard deviations within which two trainings' difference lies with 95 % confidence.

    The standard deviation is one of `n_trainings` trainings (t distribution), or known where that
    is NaN: 1.96 * 2**.5.
    """
    quantile = (1 + MOVED_CONFIDENCE) / 2
    if math.isnan(n_trainings):
        return float(stats.norm.ppf(quantile)) * 2**0.5
    return float(stats.t.ppf(quantile, n_trainings - 1)) * 2**0.5


def exit_code(table: pd.DataFrame) -> int:
    """1 where a cell moved, else 2 where one is inconclusive or missing, else 0."""
    found = set(table["verdict"])
    return 1 if MOVED in found else 2 if found - {SAME} else 0
