"""The regression gate: which of a study's numbers moved against a baseline (docs/gate.md).

A cell is one number of one model: a sweep's mean over variants, its spread over settings, or a
method's sensitivity to randomised parameters, with a value per image. Images are paired,
d = current - baseline, and what is claimed holds for all cells at once.

A baseline folder holds `cells.csv` (a row per cell: margin and what of reruns it rests on, a column
per image), `images.csv` (id, content) and `history.json` (every acceptance with its reason, the
last one in force). A folder of reports (`tables/`) serves as a baseline too, with the smallest
margin for every cell.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from steadymap import environment
from steadymap.store import atomic_folder, read_table, write_json, write_table

MOVED, INCONCLUSIVE, MISSING, SAME = VERDICTS = ("moved", "inconclusive", "missing", "same")
KEYS = ["sweep", "method", "model", "metric", "convention", "draws", "statistic"]
# No cell is held to less than this; of a dynamic range, compared by its logarithm, one percent.
LEAST_MARGIN = 0.01
# Standard errors of a rerun with other seeds within which a cell that did not move is called same:
# with 16 images. Fewer have a wider interval, and a margin that is wider by as much.
MARGIN_ERRORS, MARGIN_IMAGES = 5.3, 16
SAME_CONFIDENCE, MOVED_CONFIDENCE = 0.9, 0.95
# Whose spread over settings is a headline too (SAM's Table S1).
_SPREADS = ("ssim", "insertion", "deletion", "iou")
_CELLS, _IMAGES, _HISTORY = "cells.csv", "images.csv", "history.json"
_KEPT = ["margin", "se", "jump", "lost"]
# Cells that draws move in one way: over sweeps, models and kinds of draws.
_FAMILY = ["method", "metric", "convention", "statistic"]
# Order, randomiser and units that a cell's name leaves out.
_USUAL = "independent init paper"
_RETRAINING = ("model", "sweep", "metric", "sd")
_REPRO = "write it anew with `dvc repro`"
_RESTORE = "restore it from git, or accept a baseline anew"


class IncomparableError(ValueError):
    """Two folders whose numbers can't be held against each other: with what differs."""


class Acceptance(BaseModel):
    """Why a baseline is what it is.

    Attributes
    ----------
    reason : str
        What was said when it was accepted.
    day : str
        ISO date.
    weights : dict of str to str
        Per model, the sha256 of its weights.
    n_cells, n_images : int
    n_reruns : int
        Reruns with other method seeds that the margins were measured on; 0 where they were kept
        from the acceptance before, or are the smallest.
    margins : str
        What the margins rest on, in words.
    commit : str
        Hash of the commit that was checked out; '' where it is not known.
    dirty : bool
        Whether the code differed from it.
    """

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1)
    day: str
    weights: dict[str, str]
    n_cells: int
    n_images: int
    n_reruns: int = 0
    margins: str
    commit: str = ""
    dirty: bool = False


@dataclass(frozen=True)
class Measured:
    """A study's numbers per image, and what they were measured on.

    Attributes
    ----------
    source : Path
        Folder that they were read from.
    cells : DataFrame
        A row per cell, indexed by `KEYS`; a column per image, NaN where undefined.
    images : DataFrame
        image_id and sha256.
    weights : dict of str to str
        Per model, the sha256 of its weights.
    margins : DataFrame
        Per cell of a baseline, `margin`, `se`, `jump` and `lost`; empty for reports.
    history : tuple of Acceptance
        Of a baseline, oldest first.
    """

    source: Path
    cells: pd.DataFrame
    images: pd.DataFrame
    weights: dict[str, str]
    margins: pd.DataFrame
    history: tuple[Acceptance, ...] = ()

    def of_methods(self, methods: Collection[str]) -> "Measured":
        """The cells of these methods alone."""
        kept = self.cells.index.get_level_values("method").isin(list(methods))
        margins = self.margins
        if len(margins):
            margins = margins[margins.index.get_level_values("method").isin(list(methods))]
        return replace(self, cells=self.cells[kept], margins=margins)


def read(folder: Path) -> Measured:
    """Open a baseline, or the tables of a study's reports.

    Raises
    ------
    FileNotFoundError, ValueError
        Where there is neither, or a file is not what it should be: with its name.
    """
    folder = Path(folder)
    if (folder / _CELLS).is_file():
        return _baseline(folder)
    if not (folder / "tables").is_dir():
        raise FileNotFoundError(
            f"{folder}: neither a baseline ({_CELLS}) nor reports (tables/); run `make repro` for "
            'reports, and `make accept REASON="..."` for a baseline'
        )
    tables = folder / "tables"
    rows = _table(tables / "evaluation_set.csv", ("image_id", "sha256"))
    models = _table(tables / "models.csv", ("model", "weights_sha256"))
    parts = [_sweep_cells(tables / "images.csv")]
    # A study without randomised parameters has no such table.
    if (tables / "ipr_images.csv").is_file():
        parts.append(_parameter_cells(tables / "ipr_images.csv"))
    found = pd.concat(parts, ignore_index=True)
    twice = found.duplicated([*KEYS, "image_id"])
    if twice.any():
        row = found[twice].iloc[0]
        raise ValueError(
            f"{tables}: {cell_name(row)} of image {row['image_id']} stands there twice; write the "
            "tables anew with `dvc repro`"
        )
    wide = found.pivot(index=KEYS, columns="image_id", values="value")
    unknown = set(wide.columns) - set(rows["image_id"])
    if unknown:
        raise ValueError(
            f"{tables}: image {min(unknown)} has values and is not in evaluation_set.csv; run "
            "`dvc repro`, so that the tables are of one run"
        )
    wide = wide.reindex(columns=list(rows["image_id"]))
    wide.columns.name = None
    return Measured(
        folder,
        # As a baseline stores them, so that what is equal is equal to the last digit.
        wide.map(lambda value: float(f"{value:.6g}")),
        rows[["image_id", "sha256"]],
        dict(zip(models["model"], models["weights_sha256"], strict=True)),
        pd.DataFrame(),
    )


def _table(path: Path, columns: Sequence[str], *, remedy: str = _REPRO) -> pd.DataFrame:
    try:
        frame = read_table(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such table; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path}: no table ({error}); {remedy}") from None
    absent = [name for name in columns if name not in frame]
    if absent:
        raise ValueError(f"{path}: column {absent[0]!r} is missing; {remedy}")
    if frame.empty:
        raise ValueError(f"{path}: no rows; {remedy}")
    return frame


def _numbers(frame: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> pd.DataFrame:
    made = frame[list(columns)].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    wrong = made.isna() & frame[list(columns)].notna()
    if wrong.any(axis=None):
        row, name = next((row, name) for name in columns for row in wrong.index[wrong[name]])
        raise ValueError(
            f"{path}: column {name!r} has {frame.loc[row, name]!r}, no number; {remedy}"
        )
    return made


def _sweep_cells(path: Path) -> pd.DataFrame:
    frame = _table(path, (*KEYS[:-1], "hyperparameter", "image_id", "mean", "std"))
    # Errors are 0 or 1: eight images can't tell .01 apart by them; the IoU below them can.
    frame = frame[frame["metric"] != "localization_error"]
    ranges = frame["metric"] == "dynamic_range"
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(frame["mean"].to_numpy(np.float64))
    logs[~np.isfinite(logs)] = np.nan
    means = frame.assign(statistic="mean", value=frame["mean"].where(~ranges, logs))
    spread = frame["metric"].isin(_SPREADS) & (frame["hyperparameter"] != "")
    stds = frame[spread].assign(statistic="std", value=frame.loc[spread, "std"])
    return pd.concat([means, stds])[[*KEYS, "image_id", "value"]]


def _parameter_cells(path: Path) -> pd.DataFrame:
    names = ("order", "randomizer", "preset")
    columns = ("model", "method", "metric", "convention", *names, "image_id", "S_same", "excess")
    frame = _table(path, columns)
    made = frame[list(names)].agg(" ".join, axis=1)
    sweep = ("IPR " + made).where(made != _USUAL, "IPR")
    frame = frame.assign(sweep=sweep, draws="")
    parts = [
        frame.assign(statistic=name, value=frame[name]).dropna(subset="value")
        for name in ("S_same", "excess")
    ]
    return pd.concat(parts)[[*KEYS, "image_id", "value"]]


def _baseline(folder: Path) -> Measured:
    path = folder / _CELLS
    images = _table(folder / _IMAGES, ("image_id", "sha256"), remedy=_RESTORE)
    ids = list(images["image_id"])
    frame = _table(path, (*KEYS, "margin", "se", *ids), remedy=_RESTORE)
    for name in ("jump", "lost"):  # of a baseline from before reruns were asked for them
        if name not in frame:
            frame[name] = 0
    # `read_table` takes '' for missing where it can't know that a column is text.
    frame = frame.fillna({name: "" for name in KEYS})
    twice = frame.duplicated(KEYS)
    if twice.any():
        raise ValueError(
            f"{path}: {cell_name(frame[twice].iloc[0])} stands there twice; {_RESTORE}"
        )
    numbers = _numbers(frame, [*_KEPT, *ids], path, _RESTORE)
    if numbers[["margin", "lost"]].isna().any(axis=None):
        raise ValueError(f"{path}: a cell has no margin; {_RESTORE}")
    numbers.index = pd.MultiIndex.from_frame(frame[KEYS])
    path = folder / _HISTORY
    try:
        history = tuple(Acceptance(**entry) for entry in json.loads(path.read_text()))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {_RESTORE}") from None
    except (ValueError, TypeError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"{path}: not what --accept writes ({found}); {_RESTORE}") from None
    if not history:
        raise ValueError(f"{path}: empty; {_RESTORE}")
    return Measured(folder, numbers[ids], images, history[-1].weights, numbers[_KEPT], history)


def borrowed(baseline: Measured, other: Measured) -> Measured:
    """Reports with the margins of a baseline; a baseline keeps its own."""
    if baseline.history:
        return baseline
    return replace(baseline, margins=other.margins)


# Comparison


def differences(baseline: Measured, current: Measured) -> tuple[dict[str, str], list[str]]:
    """Models whose weights differ, in words; and what else forbids a comparison."""
    weights = {
        model: f"weights of {model}: {old[:12]} in {baseline.source}, "
        f"{current.weights[model][:12]} in {current.source}"
        for model, old in baseline.weights.items()
        if model in current.weights and current.weights[model] != old
    }
    others = []
    old, new = (list(side.images["image_id"]) for side in (baseline, current))
    if set(old) != set(new):
        only = [f"{name} only in {baseline.source}" for name in old if name not in set(new)]
        only += [f"{name} only in {current.source}" for name in new if name not in set(old)]
        others.append(f"images: {len(only)} differ ({', '.join(only[:2])})")
    else:
        content = current.images.set_index("image_id")["sha256"]
        changed = [
            row.image_id
            for row in baseline.images.itertuples()
            if row.sha256 != content[row.image_id]
        ]
        if changed:
            others.append(f"images: {len(changed)} have other pixels ({changed[0]})")
    return weights, others


def retraining_table(path: Path) -> pd.DataFrame | None:
    """Spread of numbers over retrained networks (docs/protocol.md); None where there is no file.

    Returns
    -------
    DataFrame
        Columns model, sweep, metric and sd, the standard deviation over trainings of a cell's mean
        over images; n_trainings and others of `KEYS` where it has them. A cell's rows are those
        that agree with it in all of them; of several the largest sd counts.

    Raises
    ------
    ValueError
        Where a column is missing.
    """
    if not Path(path).is_file():
        return None
    return _table(Path(path), _RETRAINING)


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
            "baseline": _mean(old[place]),
            "current": _mean(new[place]),
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
        row |= {"n_images": int(both.sum()), "d": _mean(d)}
        if equal[place]:
            zero = dict.fromkeys(("d", "low", "high", "same_low", "same_high"), 0.0)
            rows.append(row | zero | {"verdict": SAME, "note": "equal"})
            continue
        error, freedom = _error(d[both])
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


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _error(d: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean over images; degrees of freedom."""
    if len(d) < 2:
        return math.nan, 0
    return float(d.std(ddof=1) / math.sqrt(len(d))), len(d) - 1


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


def verdict(
    baseline: Path, current: Path, *, margins_of: Path | None = None, retraining: Path
) -> tuple[str, int]:
    """Compare two folders: what was found, as Markdown, and the exit code.

    Parameters
    ----------
    baseline, current : Path
        As `read` takes them.
    margins_of : Path, optional
        A baseline whose margins count where `baseline` has none of its own.
    retraining : Path
        As `retraining_table` takes it.
    """
    old, new = read(baseline), read(current)
    # Without a committed baseline there are none to borrow, and the table says so.
    if margins_of and margins_of.is_dir():
        old = borrowed(old, read(margins_of))
    table = compare(old, new, retraining=retraining_table(retraining))
    return markdown(table, old, new), exit_code(table)


def exit_code(table: pd.DataFrame) -> int:
    """1 where a cell moved, else 2 where one is inconclusive or missing, else 0."""
    found = set(table["verdict"])
    return 1 if MOVED in found else 2 if found - {SAME} else 0


# Acceptance


def margins(current: Measured, reruns: Sequence[Measured]) -> pd.DataFrame:
    """Margins from reruns at the same weights with other method seeds.

    Returns
    -------
    DataFrame
        Per cell that all reruns have, `se`, the largest over reruns of the paired standard error of
        d (one over few images is uncertain); `jump`, the most that one image moved by in any rerun
        and any cell of the family (method, metric, convention and statistic), as an image that
        jumped in one sweep or model may do so in another; `lost`, the most images of a cell of the
        family that a rerun left undefined on one side alone; and `margin`, the largest of .01, 5.3
        se (with fewer than 16 images more by the ratio of Student's 95 % quantiles), and the end
        of the 90 % interval where one image alone jumps.

    Raises
    ------
    IncomparableError
        Where a rerun has other weights or images.
    """
    order = list(current.images["image_id"])
    found, images, jumps, undefined = [], [], [], []
    for rerun in reruns:
        weights, others = differences(current, rerun)
        if weights or others:
            text = "; ".join([*weights.values(), *others])
            raise IncomparableError(f"{rerun.source} is no rerun of {current.source}: {text}")
        shared = current.cells.index.intersection(rerun.cells.index)
        new, old = (side.cells.loc[shared, order] for side in (rerun, current))
        errors = [_error(row[np.isfinite(row)]) for row in (new - old).to_numpy()]
        found.append(pd.Series([error for error, _ in errors], index=shared))
        images.append(pd.Series([freedom for _, freedom in errors], index=shared))
        jumps.append((new - old).abs().max(axis=1).fillna(0))
        undefined.append((np.isfinite(new) != np.isfinite(old)).sum(axis=1))
    se = pd.concat(found, axis=1, join="inner").max(axis=1, skipna=False)
    freedom = pd.concat(images, axis=1, join="inner").min(axis=1)
    jump, lost = (
        pd.concat(parts, axis=1, join="inner").max(axis=1).groupby(_FAMILY).transform("max")
        for parts in (jumps, undefined)
    )
    margin = np.maximum(LEAST_MARGIN, np.maximum(_errors(freedom) * se, _reach(freedom) * jump))
    return pd.DataFrame({"margin": margin, "se": se, "jump": jump, "lost": lost})


def _reach(freedom: pd.Series) -> np.ndarray:
    """End of the interval of the mean d where one image moves by 1 and the others by nothing."""
    return (1 + stats.t.ppf((1 + SAME_CONFIDENCE) / 2, freedom.clip(1))) / (freedom + 1)


def _errors(freedom: pd.Series) -> np.ndarray:
    """Standard errors that make a margin."""
    tails = stats.t.ppf((1 + SAME_CONFIDENCE) / 2, [*freedom.clip(1), MARGIN_IMAGES - 1])
    return MARGIN_ERRORS * np.maximum(1, tails[:-1] / tails[-1])


def accept(
    current: Measured,
    folder: Path,
    *,
    reason: str,
    reruns: Sequence[Measured] = (),
    day: str | None = None,
) -> Acceptance:
    """Write a study's numbers as the new baseline; the folder is replaced as a whole.

    Parameters
    ----------
    current : Measured
        From reports.
    folder : Path
        The baseline.
    reason : str
        Why, for whoever reads the history.
    reruns : sequence of Measured
        Measure margins anew on these; without them a baseline's margins stay what they are, and
        cells that are new to it get the smallest.
    day : str, optional
        ISO date; today by default.

    Raises
    ------
    ValueError
        Where the reason is empty, a rerun is none, the old baseline is damaged, or the folder
        holds something else.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise ValueError('reason is empty; say why the numbers may change: --accept --reason "..."')
    folder = Path(folder)
    foreign = {path.name for path in folder.glob("[!.]*")} - {_CELLS, _IMAGES, _HISTORY}
    if foreign:
        raise ValueError(
            f"{folder}: holds {min(foreign)}, which no baseline does and which would be deleted; "
            "name another folder with --baseline"
        )
    old = _baseline(folder) if (folder / _CELLS).is_file() else None
    index = current.cells.index
    known = pd.DataFrame(
        {"margin": LEAST_MARGIN, "se": math.nan, "jump": 0.0, "lost": 0}, index=index
    )
    words = f"{LEAST_MARGIN:g} for every cell"
    if old is not None:
        kept = index.intersection(old.margins.index)
        known.loc[kept] = old.margins.loc[kept, _KEPT]
        words = _kept_words(len(kept), len(index), old.history[-1].day)
    if reruns:
        made = margins(current, reruns)
        measured = made.index[made["se"].notna()]
        known.loc[measured] = made.loc[measured]
        if old is not None:
            others = len(index.difference(measured))
            words = _kept_words(len(kept.difference(measured)), others, old.history[-1].day)
        more = "1 rerun" if len(reruns) == 1 else f"{len(reruns)} reruns"
        others_words = f"; others {words}" if len(measured) < len(index) else ""
        words = f"measured on {more} for {len(measured)} of {len(index)} cells{others_words}"
    commit, dirty = environment.commit()
    entry = Acceptance(
        reason=reason,
        day=day or date.today().isoformat(),
        weights=current.weights,
        n_cells=len(index),
        n_images=len(current.images),
        n_reruns=len(reruns),
        margins=words,
        commit=commit,
        dirty=dirty,
    )
    history = [*(old.history if old else ()), entry]
    with atomic_folder(folder) as temporary:
        table = pd.concat([known, current.cells], axis=1).reset_index()
        write_table(table, temporary / _CELLS)
        write_table(current.images, temporary / _IMAGES)
        write_json([one.model_dump() for one in history], temporary / _HISTORY)
    return entry


# Words


def _kept_words(kept: int, of: int, day: str) -> str:
    rest = f", {LEAST_MARGIN:g} for {of - kept} new ones" if of > kept else ""
    return f"kept from {day} for {kept} of {of} cells{rest}"


def cell_name(row: Mapping[str, Any]) -> str:
    """Name of a cell: `SG-N googlenet ssim/common mean`, what is usual left out."""
    sweep = str(row["sweep"])
    if sweep == "default":
        sweep = str(row["method"])
    elif sweep.startswith("IPR"):
        sweep = f"{sweep} {row['method']}"
    draws = f" ({row['draws']} draws)" if row["draws"] == "independent" else ""
    return f"{sweep} {row['model']} {row['metric']}/{row['convention']}{draws} {row['statistic']}"


def markdown(table: pd.DataFrame, baseline: Measured, current: Measured, *, most: int = 30) -> str:
    """What `compare` found, as Markdown: counts, the worst cells, what to do next."""
    counts = table["verdict"].value_counts().reindex(list(VERDICTS), fill_value=0)
    titles = {0: "green", 1: "red", 2: "undecided"}
    told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    lines = [
        f"## Regression gate: {titles[exit_code(table)]}",
        "",
        f"{told}, of {len(table)} cells.",
    ]
    lines += ["", f"`{current.source}` against `{baseline.source}`{_accepted(baseline)}.", ""]
    weights, _ = differences(baseline, current)
    if weights:
        lines += [
            f"**Other weights** ({'; '.join(weights.values())}): these cells are held to what "
            "other trainings do, and none can be called moved. Measure both sides with the same "
            "weights (`stages/measure.py`) to tell.",
            "",
        ]
    groups = table.assign(verdict=pd.Categorical(table["verdict"], VERDICTS))
    by_method = pd.crosstab(groups["method"], groups["verdict"], dropna=False)
    lines += _grid(
        ["method", *VERDICTS],
        ([str(row.Index), *map(str, row[1:])] for row in by_method.itertuples()),
    )
    unheld = _unheld(table)
    if unheld.any():
        by_sweep = [
            f"{name} {n}" for name, n in table[unheld].groupby("sweep", sort=False).size().items()
        ]
        lines += [
            "",
            f"**No retraining margin**: {_cells(unheld.sum())} of other weights can only be "
            f"inconclusive, left out below: {', '.join(by_sweep)}.",
        ]
    worst = table[(table["verdict"] != SAME) & ~unheld]
    if len(worst):
        lines += ["", "Worst first; d = current - baseline, its mean over images:", ""]
        head = ["verdict", "cell", "baseline", "current", "d", "95 %, all at once", "margin"]
        lines += _grid([*head, "note"], (_row(row) for row in worst.head(most).to_dict("records")))
        if len(worst) > most:
            lines += ["", f"... and {len(worst) - most} more."]
    lines += ["", *_next(table, unheld)]
    return "\n".join(lines) + "\n"


def _unheld(table: pd.DataFrame) -> pd.Series:
    """Cells of other weights that no retraining margin is known for."""
    return (table["verdict"] == INCONCLUSIVE) & table["margin"].isna()


def _cells(n: int) -> str:
    return "1 cell" if n == 1 else f"{n} cells"


def _accepted(baseline: Measured) -> str:
    if not baseline.history and len(baseline.margins):
        return ", with margins borrowed from a committed baseline"
    if not baseline.history:
        return f", which has no margins of its own: {LEAST_MARGIN:g} for every cell"
    last = baseline.history[-1]
    return f', accepted on {last.day}: "{last.reason}"; margins {last.margins}'


def _grid(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    found = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in found]


def _row(row: Mapping[str, Any]) -> list[str]:
    interval = "" if math.isnan(row["low"]) else f"[{row['low']:.3g}, {row['high']:.3g}]"
    numbers = ["" if math.isnan(row[n]) else f"{row[n]:.4g}" for n in ("baseline", "current")]
    d = "" if math.isnan(row["d"]) else f"{row['d']:+.3g}"
    margin = "" if math.isnan(row["margin"]) else f"{row['margin']:.3g}"
    return [row["verdict"], cell_name(row), *numbers, d, interval, margin, row["note"]]


def _next(table: pd.DataFrame, unheld: pd.Series) -> list[str]:
    counts = table.loc[~unheld, "verdict"].value_counts().reindex(list(VERDICTS), fill_value=0)
    found = []
    if counts[MOVED]:
        found.append(
            "- **moved**: the change altered these numbers by more than other seeds would. If it "
            "should not have, the method and metric named say where to look, and `make test` names "
            "the first number that differs. If it should: "
            '`make accept REASON="why"`, and commit the baseline with the change.'
        )
    if counts[INCONCLUSIVE]:
        found.append(
            "- **inconclusive**: neither shown to be unmoved nor to have moved. Measure more "
            "images, or margins on reruns with other seeds (`--accept --margins`); look at the "
            "cells before accepting them."
        )
    if unheld.any():
        remedy = (
            "- **no retraining margin**: a baseline of your own at these weights, accepted before "
            'the change (`make accept REASON="why"`), holds all of them.'
        )
        # Retraining explains sweeps and randomises no parameters.
        of_sweeps = int((~table.loc[unheld, "sweep"].str.startswith("IPR")).sum())
        if of_sweeps:
            remedy += (
                f" `python stages/retraining.py` (`--plan` says what it costs) makes margins for "
                f"the {_cells(of_sweeps)} of sweeps"
            )
            remedy += ", none for `IPR`." if of_sweeps < unheld.sum() else "."
        found.append(remedy)
    if counts[MISSING]:
        found.append(
            "- **missing**: on one side only. Run what is absent (`make repro`), or accept what "
            "was added or left out on purpose."
        )
    return found or ["Nothing to do."]
