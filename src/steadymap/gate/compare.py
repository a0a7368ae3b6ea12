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
    KEYS,
    LEAST_MARGIN,
    SAME_CONFIDENCE,
    IncomparableError,
    Measured,
    differences,
)

MOVED, INCONCLUSIVE, MISSING, SAME = VERDICTS = ("moved", "inconclusive", "missing", "same")

MOVED_CONFIDENCE = 0.95


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
        text = "; ".join([*weights.values(), *others])
        remedy = "measure both with the same weights and images (`stages/measure.py`), or accept"
        raise IncomparableError(f"not comparable: {text}; {remedy}")
    cells = baseline.cells.index.union(current.cells.index, sort=False)
    if not len(cells):
        raise IncomparableError(f"{baseline.source}, {current.source}: no cells in either")
    order = list(baseline.images["image_id"])
    old, new = (
        side.cells.reindex(cells)[order].astype(np.float64).reset_index(drop=True)
        for side in (baseline, current)
    )
    gone, added = (~cells.isin(side.cells.index) for side in (current, baseline))
    equal = (old.eq(new) | (old.isna() & new.isna())).all(axis=1) & ~gone & ~added
    table = cells.to_frame(index=False).assign(**_intervals(old, new, ~equal & ~gone & ~added))
    table.loc[equal, ["d", "low", "high", "same_low", "same_high"]] = 0.0
    known = baseline.margins.reindex(index=cells, columns=["margin", "lost"])
    table["margin"] = known["margin"].fillna(LEAST_MARGIN).to_numpy(np.float64)
    allowed = known["lost"].fillna(0).to_numpy(int)
    lost = (np.isfinite(old) != np.isfinite(new)).sum(axis=1)
    verdicts = []
    for place, row in enumerate(table.to_dict("records")):
        notes = [""]
        if row["model"] in weights:
            assert retraining is not None
            row["margin"], notes = _retraining_margin(row, retraining)
            table.loc[place, "margin"] = row["margin"]
        if gone[place] or added[place]:
            text = "not measured now" if gone[place] else "not in the baseline: accept it"
            verdicts.append((MISSING, text))
        elif equal[place]:
            verdicts.append((SAME, "equal"))
        else:
            verdict, reason = _verdict(row, int(lost[place]), allowed=int(allowed[place]))
            if verdict == MOVED and row["model"] in weights:
                # Of hundreds of cells some lie beyond it by chance: two trainings show no change.
                verdict, reason = INCONCLUSIVE, "beyond what other trainings do"
            verdicts.append((verdict, "; ".join(filter(None, (reason, *notes)))))
    table[["verdict", "note"]] = verdicts
    table = _paired(table)
    size = (table["d"].abs() / table["margin"]).fillna(math.inf)
    table = table.assign(_rank=table["verdict"].map(VERDICTS.index), _size=-size)
    table = table.sort_values(["_rank", "_size"], kind="stable", ignore_index=True)
    return table.drop(columns=["_rank", "_size"])


def _intervals(old: pd.DataFrame, new: pd.DataFrame, is_open: pd.Series) -> dict[str, pd.Series]:
    """Means over images, their difference and its intervals, Bonferroni's over the open cells."""
    d = new - old
    n, mean = d.notna().sum(axis=1), d.mean(axis=1)
    error, freedom = d.std(axis=1, ddof=1) / np.sqrt(n), (n - 1).clip(1)
    columns = {
        "n_images": n,
        "baseline": old.mean(axis=1),
        "current": new.mean(axis=1),
        "d": mean,
    }
    for name, tail in (
        ("", (1 - MOVED_CONFIDENCE) / 2 / max(1, is_open.sum())),
        ("same_", (1 - SAME_CONFIDENCE) / 2),
    ):
        # One image has no standard error, and bounds nothing.
        reach = (error * stats.t.ppf(1 - tail, freedom)).where(n > 1, math.inf)
        columns |= {f"{name}low": mean - reach, f"{name}high": mean + reach}
    return columns


def _paired(table: pd.DataFrame) -> pd.DataFrame:
    """Verdicts of SSIM's cells held to those of rank correlation: moved in either is moved.

    SSIM may call a map and its negative alike. A spread has the mean's rank correlation beside it.
    """
    names = [name for name in KEYS if name not in ("metric", "convention")]
    ranks = table[table["metric"] == "spearman"].set_index(names)["verdict"]
    cells = table.loc[table["metric"] == "ssim", names].replace({"statistic": {"std": "mean"}})
    for place, key in zip(cells.index, cells.itertuples(index=False, name=None), strict=True):
        by_rank, by_ssim = ranks.get(key, SAME), table.loc[place, "verdict"]
        if by_ssim == MISSING or VERDICTS.index(by_rank) >= VERDICTS.index(by_ssim):
            continue
        moved = by_rank == MOVED
        notes = [f"its rank correlation {'moved' if moved else f'is {by_rank}'}"]
        if table.loc[place, "note"] not in ("", "equal"):
            notes.append(table.loc[place, "note"])
        table.loc[place, ["verdict", "note"]] = MOVED if moved else INCONCLUSIVE, "; ".join(notes)
    return table


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


def _retraining_margin(row: Mapping[str, Any], retraining: pd.DataFrame) -> tuple[float, list[str]]:
    """Margin of a cell of a model with other weights, and a note on it."""
    names = [name for name in KEYS if name in retraining]
    of_cell = (retraining[names].fillna("") == [row[name] for name in names]).all(axis=1)
    rows = retraining[of_cell].dropna(subset="sd")
    # Without a column of statistics, the table is about means alone.
    if rows.empty or ("statistic" not in names and row["statistic"] not in ("mean", "S_same")):
        return math.nan, ["other weights, and no retraining margin of this cell"]
    widest = rows.loc[rows["sd"].idxmax()]
    reach = retraining_sds(widest.get("n_trainings", math.nan)) * float(widest["sd"])
    return max(row["margin"], reach), ["retraining margin"]


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
    verdicts = set(table["verdict"])
    return 1 if MOVED in verdicts else 2 if verdicts - {SAME} else 0
