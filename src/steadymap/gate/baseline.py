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
from steadymap.store.atomic import atomic_folder, refuse_other_files, write_json
from steadymap.store.tables import read_table, rounded, write_table

KEYS = ["sweep", "method", "model", "metric", "convention", "draws", "statistic"]

# No cell is held to less than this; of a dynamic range, compared by its logarithm, one percent.
LEAST_MARGIN = 0.01

# Standard errors of a rerun with other seeds within which a cell that did not move is called same:
# with 16 images. Fewer have a wider interval, and a margin that is wider by as much.
MARGIN_ERRORS, MARGIN_IMAGES = 5.3, 16

SAME_CONFIDENCE = 0.9

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
        cells, margins = (
            frame[frame.index.isin(list(methods), level="method")]
            for frame in (self.cells, self.margins)
        )
        return replace(self, cells=cells, margins=margins)


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
    long = pd.concat(parts, ignore_index=True)
    _check_unique(long, [*KEYS, "image_id"], tables, _REPRO)
    wide = long.pivot(index=KEYS, columns="image_id", values="value")
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
        wide.map(rounded),
        rows[["image_id", "sha256"]],
        dict(zip(models["model"], models["weights_sha256"], strict=True)),
        pd.DataFrame(index=wide.index[:0], columns=_KEPT, dtype=np.float64),
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


def _check_unique(frame: pd.DataFrame, keys: Sequence[str], path: Path, remedy: str) -> None:
    repeated = frame[frame.duplicated(list(keys))]
    if len(repeated):
        row = repeated.iloc[0]
        image = f" of image {row['image_id']}" if "image_id" in keys else ""
        raise ValueError(f"{path}: {cell_name(row)}{image} stands there twice; {remedy}")


def _numbers(frame: pd.DataFrame, columns: Sequence[str], path: Path, remedy: str) -> pd.DataFrame:
    numbers = frame[list(columns)].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    wrong = numbers.isna() & frame[list(columns)].notna()
    if wrong.any(axis=None):
        row, name = wrong.stack().idxmax()
        raise ValueError(
            f"{path}: column {name!r} has {frame.loc[row, name]!r}, no number; {remedy}"
        )
    return numbers


def _sweep_cells(path: Path) -> pd.DataFrame:
    frame = _table(path, (*KEYS[:-1], "hyperparameter", "image_id", "mean", "std"))
    # Errors are 0 or 1: eight images can't tell .01 apart by them; the IoU below them can.
    cells = sweep_statistics(frame[frame["metric"] != "localization_error"])
    kept = (cells["statistic"] == "mean") | cells["metric"].isin(_SPREADS)
    return cells.loc[kept, [*KEYS, "image_id", "value"]]


def sweep_statistics(images: pd.DataFrame) -> pd.DataFrame:
    """Rows with a `value` each: a sweep's mean per image and its spread over settings.

    A dynamic range is compared by factors: its mean is the logarithm's, and it has no spread.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(images["mean"].astype(np.float64))
    logs = logs.where(np.isfinite(logs))
    is_range = images["metric"] == "dynamic_range"
    means = images.assign(statistic="mean", value=images["mean"].where(~is_range, logs))
    spread = images[~is_range & (images["hyperparameter"] != "")]
    return pd.concat([means, spread.assign(statistic="std", value=spread["std"])])


def _parameter_cells(path: Path) -> pd.DataFrame:
    names = ("order", "randomizer", "preset")
    columns = ("model", "method", "metric", "convention", *names, "image_id", "S_same", "excess")
    frame = _table(path, columns)
    way = frame[list(names)].agg(" ".join, axis=1)
    frame = frame.assign(sweep=("IPR " + way).where(way != _USUAL, "IPR"), draws="")
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
    _check_unique(frame, KEYS, path, _RESTORE)
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
        cause = " ".join(str(error).split())
        raise ValueError(f"{path}: not what --accept writes ({cause}); {_RESTORE}") from None
    if not history:
        raise ValueError(f"{path}: empty; {_RESTORE}")
    return Measured(folder, numbers[ids], images, history[-1].weights, numbers[_KEPT], history)


def borrowed(baseline: Measured, other: Measured) -> Measured:
    """Reports with the margins of a baseline; a baseline keeps its own."""
    if baseline.history:
        return baseline
    return replace(baseline, margins=other.margins)


def differences(baseline: Measured, current: Measured) -> tuple[dict[str, str], list[str]]:
    """Models whose weights differ, in words; and what else forbids a comparison."""
    weights = {
        model: f"weights of {model}: {old[:12]} in {baseline.source}, "
        f"{current.weights[model][:12]} in {current.source}"
        for model, old in baseline.weights.items()
        if model in current.weights and current.weights[model] != old
    }
    old, new = (side.images.set_index("image_id")["sha256"] for side in (baseline, current))
    sides = ((old.index.difference(new.index, sort=False), baseline.source),
             (new.index.difference(old.index, sort=False), current.source))  # fmt: skip
    only = [f"{name} only in {source}" for names, source in sides for name in names]
    if only:
        return weights, [f"images: {len(only)} differ ({', '.join(only[:2])})"]
    changed = old.index[old != new[old.index]]
    if len(changed):
        return weights, [f"images: {len(changed)} have other pixels ({changed[0]})"]
    return weights, []


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
    measured = []
    for rerun in reruns:
        weights, others = differences(current, rerun)
        if weights or others:
            text = "; ".join([*weights.values(), *others])
            raise IncomparableError(f"{rerun.source} is no rerun of {current.source}: {text}")
        shared = current.cells.index.intersection(rerun.cells.index)
        new, old = (side.cells.loc[shared, order] for side in (rerun, current))
        d = new - old
        n = d.notna().sum(axis=1)
        measured.append(
            pd.DataFrame(
                {
                    "se": d.std(axis=1, ddof=1) / np.sqrt(n),
                    "freedom": (n - 1).where(n > 1, 0),
                    "jump": d.abs().max(axis=1).fillna(0),
                    "lost": (np.isfinite(old) != np.isfinite(new)).sum(axis=1),
                }
            )
        )
    by_rerun = pd.concat(measured, axis=1, join="inner", keys=range(len(measured)))
    se, freedom, jump, lost = (
        by_rerun.xs(name, axis=1, level=1) for name in ("se", "freedom", "jump", "lost")
    )
    se, freedom = se.max(axis=1, skipna=False), freedom.min(axis=1)
    jump, lost = (
        per_cell.max(axis=1).groupby(_FAMILY).transform("max") for per_cell in (jump, lost)
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
    refuse_other_files(folder, [_CELLS, _IMAGES, _HISTORY], "name another folder with --baseline")
    old = _baseline(folder) if (folder / _CELLS).is_file() else None
    index = current.cells.index
    margin_of = pd.DataFrame(
        {"margin": LEAST_MARGIN, "se": math.nan, "jump": 0.0, "lost": 0}, index=index
    )
    source = pd.Series(f"{LEAST_MARGIN:g}", index=index)
    if old is not None:
        kept = index.intersection(old.margins.index)
        margin_of.loc[kept] = old.margins.loc[kept, _KEPT]
        source.loc[kept] = f"kept from {old.history[-1].day}"
    if reruns:
        by_rerun = margins(current, reruns).dropna(subset="se")
        margin_of.loc[by_rerun.index] = by_rerun
        source.loc[by_rerun.index] = f"measured on {len(reruns)} rerun{'s' * (len(reruns) > 1)}"
    commit, dirty = environment.commit()
    entry = Acceptance(
        reason=reason,
        day=day or date.today().isoformat(),
        weights=current.weights,
        n_cells=len(index),
        n_images=len(current.images),
        n_reruns=len(reruns),
        margins=", ".join(
            f"{text} for {n} of {len(index)} cells" for text, n in source.value_counts().items()
        ),
        commit=commit,
        dirty=dirty,
    )
    history = [*(old.history if old else ()), entry]
    with atomic_folder(folder) as temporary:
        table = pd.concat([margin_of, current.cells], axis=1).reset_index()
        write_table(table, temporary / _CELLS)
        write_table(current.images, temporary / _IMAGES)
        write_json([acceptance.model_dump() for acceptance in history], temporary / _HISTORY)
    return entry


def cell_name(row: Mapping[str, Any]) -> str:
    """Name of a cell: `SG-N googlenet ssim/common mean`, what is usual left out."""
    sweep = str(row["sweep"])
    if sweep == "default":
        sweep = str(row["method"])
    elif sweep.startswith("IPR"):
        sweep = f"{sweep} {row['method']}"
    draws = f" ({row['draws']} draws)" if row["draws"] == "independent" else ""
    return f"{sweep} {row['model']} {row['metric']}/{row['convention']}{draws} {row['statistic']}"
