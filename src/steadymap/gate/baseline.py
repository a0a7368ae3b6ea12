"""Accepted baseline of a study: cells, margins, provenance."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from steadymap.store import environment
from steadymap.store.atomic import atomic_folder, write_json
from steadymap.store.tables import read_table, write_table

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

# Order, randomizer and units that a cell's name leaves out.
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
    # A study without randomized parameters has no such table.
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


def finite_mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN where there is none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def standard_error(d: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean over images; degrees of freedom."""
    if len(d) < 2:
        return math.nan, 0
    return float(d.std(ddof=1) / math.sqrt(len(d))), len(d) - 1


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
        errors = [standard_error(row[np.isfinite(row)]) for row in (new - old).to_numpy()]
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
