"""Pictures of the tables and maps; drawing needs no display and leaves no global state."""

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from steadymap.store import atomic_file

DPI = 144
_MAX_BYTES = 300_000
_INK, _QUIET, _FRAME = "#22272e", "#6a737d", "#111111"

# (metric, convention) in the order in which they are drawn; None stands for any convention.
MEASURES: dict[tuple[str, str | None], str] = {
    ("ssim", "common"): "SSIM (common)",
    ("ssim", "sam"): "SSIM (sam)",
    ("ssim", "wang"): "SSIM (wang)",
    ("ssim", "mass_weighted"): "SSIM (mass)",
    ("spearman", None): "Spearman",
    ("hog_pearson", None): "HOG-Pearson",
}
_NOT_DRAWN = ("dynamic_range", "pearson")
# Scores of a map by itself, not of a pair: (name, whether higher or lower is better).
ACCURACY = {
    "insertion": ("insertion", "higher"),
    "deletion": ("deletion", "lower"),
    "localization_error": ("localization error", "lower"),
    "iou": ("IoU", "higher"),
}
# What the paper's bar charts show, and with which convention.
_BARS = (("spearman", None, "Spearman"), ("hog_pearson", None, "HOG-Pearson"))

_UNITS = {
    "n_samples": "noise samples",
    "n_trials": "baselines",
    "n_steps": "steps",
    "n_iterations": "steps",
    "n_superpixels": "superpixels",
    "patch_size": "pixels",
    "stride": "pixels",
    "blur_radius": "pixels",
    "sigma": "share of the image's value range",
}

# Dark for a regular model, light of the same hue for its robust twin.
_HUES = (
    ("#175a94", "#7db4e0"),
    ("#b3470a", "#f2a65e"),
    ("#1f7a5c", "#7fcfae"),
    ("#6d4390", "#bf9fd8"),
    ("#6b5d15", "#cdbb55"),
    ("#8f1d4d", "#dd8fb2"),
)

# Few colours make small files: 65 of them in pictures of many maps.
_COARSE = 4
# Exactly white at 0, which an even number of colours can't be.
HEAT = LinearSegmentedColormap.from_list(
    "blue-white-red",
    ["#053061", "#2166ac", "#74add1", "#ffffff", "#f08a62", "#b2182b", "#67001f"],
    N=257,
).with_extremes(bad="#b9bdc2")


@dataclass(frozen=True)
class MapCell:
    """One map of a picture row.

    Attributes
    ----------
    label : str
        The setting's value.
    heatmap : ndarray
        Signed, (height, width), at any scale.
    score, rank : float or None
        SSIM and rank correlation with the reference map, printed below.
    is_reference, degenerate, inverted : bool
        Framed; marked; marked.
    """

    label: str
    heatmap: NDArray[Any]
    score: float | None = None
    rank: float | None = None
    is_reference: bool = False
    degenerate: bool = False
    inverted: bool = False


@dataclass(frozen=True)
class PictureRow:
    """One line of maps; without an image of its own it shares the one above.

    Attributes
    ----------
    label : str
        Name of the model, say.
    cells : sequence of MapCell
    image : ndarray or None
        uint8, (height, width, 3).
    box : tuple of int or None
        Half-open x0, y0, x1, y1, outlined on the image.
    caption : str
        Printed below the image.
    """

    label: str
    cells: Sequence[MapCell]
    image: NDArray[Any] | None = None
    box: tuple[int, int, int, int] | None = None
    caption: str = ""


@dataclass(frozen=True)
class _Style:
    color: str
    linestyle: Any
    marker: str
    hatch: str

    @property
    def line(self) -> dict[str, Any]:
        """A line with its markers, as matplotlib takes it."""
        look = {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}
        return {**look, "markersize": 4.5, "linewidth": 1.6, "zorder": 3}


@dataclass(frozen=True)
class Look:
    """What the figures of a study have in common.

    Attributes
    ----------
    models : sequence of str
        All models of the study, so that colors agree between figures; those drawn where empty.
    confidence : float
        Level of the tables' intervals, in (0, 1).
    convention : str
        Of SSIM.
    """

    models: Sequence[str] = ()
    confidence: float = 0.95
    convention: str = "common"

    @property
    def percent(self) -> str:
        """Level of intervals in words."""
        return f"{100 * self.confidence:g} %"

    def styles(self, names: Iterable[str]) -> dict[str, _Style]:
        """Colors, lines and markers of the models named, robust twins behind regular models."""
        names = _order(names)
        found = _styles(self.models or names)
        return {name: found[name] for name in names}


PLAIN = Look()


def sensitivity_curves(
    settings: pd.DataFrame,
    *,
    look: Look = PLAIN,
) -> Figure:
    """Mean similarity to the reference map against the varied value, a panel per sweep.

    Parameters
    ----------
    settings : DataFrame
        The table `settings.csv`.
    look : Look, optional
    """
    rows = _select(headline_draws(settings), "ssim", look.convention)
    sweeps = list(dict.fromkeys(rows["sweep"]))
    if rows["mean"].isna().all():
        return _words(_NOTHING)
    label = _measure_label("ssim", look.convention)
    with _theme():
        n_columns = 2 if len(sweeps) == 4 else min(len(sweeps), 3)
        n_lines = -(-len(sweeps) // n_columns)
        width = {1: 4.8, 2: 8.4}.get(n_columns, 10.2)
        layout = ConstrainedLayoutEngine(h_pad=0.08)
        figure = Figure(figsize=(width, 2.75 * n_lines + 0.55), layout=layout)
        axes = figure.subplots(n_lines, n_columns, squeeze=False, sharey=True)
        styles = look.styles(rows["model"])
        for axis, sweep in zip(axes.flat, sweeps, strict=False):
            method = rows.loc[rows["sweep"] == sweep, "method"].iloc[0]
            axis.set_title(f"{sweep}  ·  {method}", loc="left")
            _curve(axis, rows[rows["sweep"] == sweep], _reference(settings, sweep), styles)
            axis.set_xlabel(_value_label(rows, sweep))
        for axis in list(axes.flat)[len(sweeps) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{label}\nto the reference map")
        _limit(axes.flat[0], rows)
        _legend(figure, look, _order(rows["model"]), lines=True)
        _foot(figure, _counted(rows, look) + _STAR)
    return figure


# How far a map moved, in words: from which mean 1 - SSIM or 1 - Spearman on, whichever is larger. A
# convention of ours.
DEGREES: tuple[tuple[float, str], ...] = (
    (0.0, "hardly moves"),
    (0.05, "moves a little"),
    (0.2, "moves much"),
    (0.5, "another map"),
)
_ZONES = ("#ffffff", "#fdf6ec", "#fbe9d7", "#f6d3bf")


def degree(*moved: float) -> int:
    """Place in `DEGREES` of the larger of a mean 1 - SSIM and 1 - Spearman; NaN is left out.

    Both must be small for maps that hardly move: SSIM alone may call an inverted map alike.
    """
    return max(
        place
        for place, (least, _) in enumerate(DEGREES)
        if place == 0 or any(value >= least for value in moved)
    )


def dangerous_knobs(
    sensitivity: pd.DataFrame,
    *,
    images: pd.DataFrame | None = None,
    look: Look = PLAIN,
    yardstick: pd.DataFrame | None = None,
) -> Figure:
    """How far each knob moves the maps of each model, the sweep whose worst model is worst first.

    Worst by `degree`, then by 1 - SSIM (filled, with intervals); 1 - Spearman stands hollow beside
    it, as SSIM may call an inverted map alike.

    Parameters
    ----------
    sensitivity : DataFrame
        The table `sensitivity.csv`.
    images : DataFrame, optional
        The table `images.csv`: adds a dot per image.
    look : Look, optional
    yardstick : DataFrame, optional
        By sweep and model, `low` to `high`: how far retraining moves the same maps (1 - SSIM), a
        band. `n_trainings` is told in the legend.
    """
    rows = _select(headline_draws(sensitivity), "ssim", look.convention)
    rows = rows[np.isfinite(rows["mean"].astype(float))]
    if rows.empty:
        return _words(_NOTHING)
    ranks = _select(headline_draws(sensitivity), "spearman", None).set_index(["sweep", "model"])
    keys = pd.MultiIndex.from_frame(rows[["sweep", "model"]])
    rows = rows.assign(
        moved=1 - rows["mean"].astype(float),
        turned=1 - ranks["mean"].astype(float).reindex(keys).to_numpy(),
    )
    rows["degree"] = [degree(*pair) for pair in rows[["moved", "turned"]].to_numpy()]
    worst = rows.groupby("sweep", sort=False)[["degree", "moved"]].max()
    sweeps = sorted(worst.index, key=lambda name: (*-worst.loc[name], name))
    names = _order(rows["model"])
    dots = None
    if images is not None:
        dots = _select(headline_draws(images), "ssim", look.convention)
        dots = dots if len(dots) <= 200 * len(rows) else None
    first = rows.drop_duplicates("sweep").set_index("sweep")
    styles = look.styles(names)
    with _theme():
        thickness = 0.13 + 0.02 * (len(names) == 1)
        line_height = max(0.27, thickness * len(names) + 0.08)
        figure = Figure(figsize=(10, 1.5 + line_height * len(sweeps)), layout="constrained")
        axis = figure.subplots()
        step, bands = thickness / line_height, 0
        for row in rows.to_dict("records"):
            place = names.index(row["model"]) - (len(names) - 1) / 2
            here, style = sweeps.index(row["sweep"]) + place * step, styles[row["model"]]
            _knob(axis, row, dots, here, style)
            bands += _band(axis, yardstick, row, here, step, style.color)
        axis.set_yticks(range(len(sweeps)), _knob_labels(first, sweeps))
        axis.set_ylim(len(sweeps) - 0.45, -0.55)
        right = max(axis.get_xlim()[1], 1.02 * float(worst["moved"].max()), 0.06)
        _zones(axis, min(0, axis.get_xlim()[0]), right)
        for line in range(1, len(sweeps)):
            axis.axhline(line - 0.5, color="white", linewidth=1.4, zorder=1)
        axis.grid(False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel(
            f"mean 1 − SSIM ({look.convention}; filled) and 1 − Spearman (hollow) to the reference "
            "map   (0: did not move)"
        )
        extra: list[Any] = []
        if bands and yardstick is not None:
            n = sorted({int(count) for count in yardstick["n_trainings"]})
            counted = f"{n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "")
            words = f"as far as retraining moves them ({counted} trainings)"
            hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": _QUIET, "hatch": "/////"}
            extra.append(Patch(**hatched, linewidth=0.8, label=words))
        top = first.loc[sweeps[0]]
        moved = f"{top['hyperparameter']} of {top['method']} moves the maps most"
        far = int((worst["degree"] >= _FAR).sum())
        title = f"{moved}; {far} of {_plural(len(sweeps), 'sweep')} move them much or more"
        _legend(figure, look, names, lines=True, title=title, extra=extra)
        each = "; pale dots: single images" if dots is not None else ""
        _foot(figure, f"{_n_images(rows)}; lines: {look.percent} intervals of the mean{each}")
    return figure


# Degree from which on a sweep is said to move maps much.
_FAR = 2


def _knob(
    axis: Axes, row: Mapping[str, Any], dots: pd.DataFrame | None, here: float, style: _Style
) -> None:
    """One sweep on one model: its mean, interval and single images."""
    if dots is not None:
        own = dots[(dots["sweep"] == row["sweep"]) & (dots["model"] == row["model"])]
        dot: dict[str, Any] = {"s": 7, "alpha": 0.45, "linewidth": 0, "zorder": 2}
        moved = 1 - own["mean"].astype(float)
        axis.scatter(moved, np.full(len(own), here), color=style.color, **dot)
    ends = [1 - float(row["ci_high"]), 1 - float(row["ci_low"])]
    if np.isfinite(ends).all():
        axis.plot(ends, [here, here], color=style.color, lw=2.2, zorder=3)
    mark = style.line | {"linestyle": "none", "markersize": 7, "zorder": 4}
    axis.plot(row["moved"], here, **mark, markeredgecolor="white", markeredgewidth=0.9)
    hollow = {"markerfacecolor": "white", "markeredgecolor": style.color, "markersize": 5.5}
    axis.plot(row["turned"], here, **mark | hollow | {"zorder": 3.5})


def _zones(axis: Axes, left: float, right: float) -> None:
    """Shade and name the degrees that the axis reaches."""
    starts = [least for least, _ in DEGREES] + [math.inf]
    for place, (_, words) in enumerate(DEGREES):
        low, high = max(left, starts[place] if place else left), min(starts[place + 1], right)
        if low >= right:
            break
        axis.axvspan(low, high, color=_ZONES[place], zorder=0, linewidth=0)
        # Too narrow a zone shares its neighbour's line of words.
        if (high - low) / (right - left) > 0.04:
            text = words if (high - low) / (right - left) > 0.12 else words.replace(" ", "\n", 1)
            axis.text(
                (low + high) / 2,
                1.008,
                text,
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=8.5,
                linespacing=0.95,
                color=_INK if place == len(DEGREES) - 1 else _QUIET,
                weight="bold" if place == len(DEGREES) - 1 else "normal",
            )
    axis.set_xlim(left, right)


def _band(
    axis: Axes,
    yardstick: pd.DataFrame | None,
    row: Mapping[str, Any],
    here: float,
    step: float,
    color: str,
) -> int:
    """Draw how far retraining moves a sweep's maps; number of bands drawn."""
    if yardstick is None:
        return 0
    own = yardstick[(yardstick["sweep"] == row["sweep"]) & (yardstick["model"] == row["model"])]
    ends = own[["low", "high"]].to_numpy(float)
    ends = ends[np.isfinite(ends).all(axis=1)][:1]
    hatched: dict[str, Any] = {"facecolor": "none", "hatch": "/////", "linewidth": 0.6}
    for low, high in ends:
        corner = (low, here - 0.5 * step)
        band = Rectangle(
            corner, high - low, step, edgecolor=color, alpha=0.7, zorder=1.5, **hatched
        )
        axis.add_patch(band)
    return len(ends)


def measures_heatmap(sensitivity: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """Mean similarity of each sweep under every measure, a block of columns per measure.

    Parameters
    ----------
    sensitivity : DataFrame
        The table `sensitivity.csv`.
    look : Look, optional
    """
    rows = headline_draws(sensitivity)
    measures, names = _measures(rows), _order(rows["model"])
    blocks = {}
    for measure in measures:
        own = _select(rows, *measure).drop_duplicates(["sweep", "model"])
        own = own.assign(mean=own["mean"].astype(float)).dropna(subset=["mean"])
        if len(own):
            blocks[_measure_label(*measure)] = own.pivot(
                index="sweep", columns="model", values="mean"
            ).reindex(index=rows["sweep"].unique(), columns=names)
    if not blocks:
        return _words(_NOTHING)
    sweeps = [
        s for s in rows["sweep"].unique() if any(t.loc[s].notna().any() for t in blocks.values())
    ]
    low = min(0.0, *(float(np.nanmin(table.to_numpy())) for table in blocks.values()))
    least = [str(table.min(axis=1).idxmin()) for table in blocks.values()]
    title = (
        f"{least.count(least[0])} of {_plural(len(least), 'measure')} find {least[0]} the least "
        "stable sweep"
    )
    with _theme():
        size = 1.5 + 0.44 * len(names) * len(blocks) + 0.1 * len(blocks), 1.75 + 0.27 * len(sweeps)
        figure = Figure(figsize=(max(size[0], 5.4), size[1]), layout="constrained")
        axes = figure.subplots(1, len(blocks), squeeze=False, sharey=True)[0]
        for axis, (label, table) in zip(axes, blocks.items(), strict=True):
            sns.heatmap(
                table.loc[sweeps],
                ax=axis,
                annot=True,
                fmt=".2f",
                cmap=sns.light_palette("#175a94", reverse=True, as_cmap=True),
                vmin=low,
                vmax=1,
                linewidths=1,
                cbar=False,
                annot_kws={"size": 7.5},
            )
            axis.set_title(label.replace(" (", "\n("), loc="left")
            axis.tick_params(axis="x", length=0, rotation=90, labelsize=7.5)
            axis.tick_params(axis="y", length=0, rotation=0)
            axis.set(xlabel="", ylabel="")
        figure.suptitle(title, x=0.008, ha="left", fontsize=10.5, weight="bold")
        _foot(figure, f"{_n_images(rows)}; mean over images and variants; dark: moved more")
    return figure


def metric_agreement(
    settings: pd.DataFrame,
    *,
    sweep: str,
    look: Look = PLAIN,
) -> Figure:
    """One sweep under every convention and metric, side by side.

    Parameters
    ----------
    settings : DataFrame
        The table `settings.csv`.
    sweep : str
    look : Look, optional
    """
    rows = headline_draws(settings)
    rows = rows[rows["sweep"] == sweep]
    measures = _measures(rows)
    drawn = pd.concat([rows.head(0), *(_select(rows, *measure) for measure in measures)])
    if drawn["mean"].isna().all():
        return _words(_NOTHING)
    with _theme():
        figure = Figure(figsize=(2.1 * len(measures) + 0.2, 2.75), layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        styles = look.styles(rows["model"])
        for axis, measure in zip(axes, measures, strict=True):
            _curve(axis, _select(rows, *measure), _reference(settings, sweep), styles, few=True)
            axis.set_title(_measure_label(*measure), loc="left")
        _limit(axes[0], drawn)
        axes[0].set_ylabel("similarity to\nthe reference map")
        axes[0].set_xlabel(_value_label(rows, sweep), loc="left")
        _legend(figure, look, _order(drawn["model"]), lines=True)
        _foot(figure, _counted(drawn, look) + _STAR)
    return figure


def draws_comparison(
    settings: pd.DataFrame,
    *,
    sweep: str,
    look: Look = PLAIN,
) -> Figure:
    """Curves with nested and with independent draws, a panel per model.

    Parameters
    ----------
    settings : DataFrame
        The table `settings.csv`.
    sweep : str
    look : Look, optional
    """
    rows = _select(settings[settings["sweep"] == sweep], "ssim", look.convention)
    names = _order(rows["model"])
    if rows["mean"].isna().all():
        return _words(_NOTHING)
    with _theme():
        figure = Figure(figsize=(min(max(3.3 * len(names), 5), 10.4), 2.9), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        styles = look.styles(rows["model"])
        reference = _reference(settings, sweep)
        values = _values(rows, reference)
        for axis, name in zip(axes, names, strict=True):
            own = rows[rows["model"] == name]
            color = styles[name].color
            for draws, shade in (("nested", "-"), ("independent", ":")):
                drawn = own[own["draws"] == draws]
                through = reference if draws == "nested" else None
                _errorbars(axis, drawn, values, _Style(color, shade, "o", ""), reference=through)
            _value_axis(axis, values, reference)
            axis.set_title(name, loc="left")
            axis.set_xlabel(_value_label(rows, sweep))
        axes[0].set_ylabel(f"SSIM ({look.convention})\nto the reference map")
        _limit(axes[0], rows)
        figure.legend(
            handles=[
                Line2D([], [], color=_INK, linestyle="-", label="nested draws"),
                Line2D([], [], color=_INK, linestyle=":", label="independent draws"),
            ],
            loc="outside upper left",
            ncols=2,
        )
        _foot(figure, _counted(rows, look))
    return figure


def picture_rows(
    rows: Sequence[PictureRow],
    *,
    hyperparameter: str = "",
    score_name: str = "SSIM",
    title: str = "",
    note: str = "",
) -> Figure:
    """Image with its box, then the map of each setting with its score below.

    Each map is divided by its largest absolute value: blue speaks against, red for the class,
    white is 0.

    Parameters
    ----------
    rows : sequence of PictureRow
        All with the same settings in the same order.
    hyperparameter : str
        What the columns vary.
    score_name : str
        What the numbers below the maps are.
    title, note : str
        Printed above and below.
    """
    if not rows or not any(row.cells for row in rows):
        return _words("No maps: nothing to draw.")
    n_cells = max(len(row.cells) for row in rows)
    with _theme():
        # 192 or 128 dots: whole multiples of a 64 px map, whose pixels then stay sharp.
        tile = next((t for t in (192 / DPI, 128 / DPI) if t * (n_cells + 1) <= 9.4), 8.6 / n_cells)
        gap, foot, top, left, label = 0.09, 0.24, 0.62, 0.05, 0.3
        first = left + tile + label
        width = max(first + n_cells * (tile + gap), 6.3)
        head = 0.24 + (0.3 if title else 0.0)
        height = head + len(rows) * (tile + foot + gap) + top
        figure = Figure(figsize=(width, height))
        axis = _canvas(figure, width, height)
        if title:
            axis.text(left, 0.2, title, size=10.5, weight="bold", va="center")
        if hyperparameter:
            across = first - 0.1
            axis.text(across, head - 0.11, f"{hyperparameter} =", ha="right", size=8.5)
        down = head
        for index, row in enumerate(rows):
            if row.image is not None:
                span = 1
                while index + span < len(rows) and rows[index + span].image is None:
                    span += 1
                middle = down + (span - 1) * (tile + foot + gap) / 2
                _tile(axis, row.image, left, middle, tile)
                if row.box is not None:
                    _outline(axis, row.box, row.image.shape, left, middle, tile)
                axis.text(left + tile / 2, middle + tile + 0.12, row.caption, ha="center", size=8)
            axis.text(
                first - 0.1,
                down + tile / 2,
                row.label,
                rotation=90,
                va="center",
                ha="right",
                size=9,
            )
            scores = [c.score for c in row.cells if c.score is not None and np.isfinite(c.score)]
            for column, cell in enumerate(row.cells):
                across = first + column * (tile + gap)
                _tile(axis, _heat(cell.heatmap), across, down, tile)
                frame = {"ec": _FRAME, "lw": 2.2} if cell.is_reference else {"ec": "#c3c8ce"}
                axis.add_patch(Rectangle((across, down), tile, tile, fill=False, **frame))
                if index == 0:
                    axis.text(across + tile / 2, down - 0.11, cell.label, ha="center", size=8.5)
                lowest = cell.score is not None and scores and cell.score == min(scores)
                axis.text(
                    across + tile / 2,
                    down + tile + 0.12,
                    _under(cell),
                    ha="center",
                    size=8.5,
                    weight="bold" if lowest and len(scores) > 1 else "normal",
                    color=_INK,
                )
            down += tile + foot + gap
        _key(axis, left, down + 0.12)
        every = [cell for row in rows for cell in row.cells]
        if any(cell.rank is not None for cell in every):
            score_name += " / Spearman"
        marks = [f"below: {score_name} to the framed reference map, lowest in bold"]
        marks += ["† degenerate map"] if any(cell.degenerate for cell in every) else []
        marks += ["‡ inverted map"] if any(cell.inverted for cell in every) else []
        axis.text(left + 1.95, down + 0.12, "; ".join(marks), size=7.5, va="center", color=_QUIET)
        if note:
            axis.text(left, down + 0.34, note, size=7.5, va="center", color=_QUIET)
    return figure


def search_trials(rows: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Scores of one search in the order asked, with the best so far, and against model passes.

    Parameters
    ----------
    rows : DataFrame
        Rows of `search.csv` of one search, all models.
    look : Look, optional
    """
    done = rows[rows["state"] == "complete"]
    if done.empty:
        return _words("No setting of this search could be computed.")
    tau = done["tau"].iloc[0]
    cheapest = pd.notna(tau)
    with _theme():
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        own = _order(done["model"])
        styles = look.styles(own)
        for name in own:
            shade = styles[name]
            part = done[done["model"] == name].sort_values("trial")
            passes = (part["forward_passes"] + part["backward_passes"]) / part["n_images"]
            dots: dict[str, Any] = {
                "color": shade.color,
                "marker": shade.marker,
                "linestyle": "none",
                "markersize": 4.5,
            }
            score = part["ssim_mean"]
            if cheapest:
                so_far = passes.where(score >= tau).cummin().ffill()
                left.plot(part["trial"], passes, alpha=0.45, **dots)
            else:
                so_far = score.cummin()
                left.plot(part["trial"], score, alpha=0.45, **dots)
            left.step(
                part["trial"], so_far, where="post", color=shade.color, linestyle=shade.linestyle
            )
            right.plot(passes, score, alpha=0.7, **dots)
            best = part["is_best"].astype(bool)
            right.plot(
                passes[best],
                score[best],
                linestyle="none",
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=shade.color,
            )
        answer = "cheapest that holds" if cheapest else "lowest"
        left.set_title(f"line: {answer} so far", loc="left")
        left.set_xlabel("trial")
        left.set_ylabel("passes per image" if cheapest else "mean SSIM to the reference")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set_title("cost and similarity; circle: the answer", loc="left")
        right.set_xlabel("model passes per image, forward and backward")
        right.set_ylabel(f"mean SSIM to the {'converged map' if cheapest else 'reference'}")
        if cheapest:
            right.axhline(tau, color=_QUIET, linewidth=0.9, linestyle=":")
        _legend(figure, look, own, lines=True)
        failed = int((rows["state"] == "failed").sum())
        _foot(figure, f"{failed} failed, not drawn" if failed else "a dot is a setting")
    return figure


def training_curves(curves: Mapping[str, pd.DataFrame], *, look: Look = PLAIN) -> Figure:
    """Loss and accuracies against the epoch, a line per model.

    Parameters
    ----------
    curves : mapping of str to DataFrame
        Per model, its `curves.csv`; columns that are absent or empty are left out.
    look : Look, optional
    """
    panels = [
        ("train_loss", "training loss (cross-entropy)", None),
        ("val_accuracy", "validation accuracy (%)", "train_accuracy"),
        ("val_robust_accuracy", "accuracy under attack (%)", None),
    ]

    def has(column: str) -> bool:
        return any(column in frame and frame[column].notna().any() for frame in curves.values())

    panels = [panel for panel in panels if has(panel[0])]
    if not panels:
        return _words("No training curves: the weights were not trained here.")
    with _theme():
        figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        styles = look.styles(list(curves))
        for axis, (column, label, faint) in zip(axes, panels, strict=True):
            scale = 100 if "accuracy" in column else 1
            for name, frame in curves.items():
                shade = styles[name]
                for drawn, alpha in ((faint, 0.4), (column, 1.0)):
                    if drawn is None or drawn not in frame or frame[drawn].isna().all():
                        continue
                    axis.plot(
                        frame["epoch"],
                        scale * frame[drawn].astype(float),
                        color=shade.color,
                        linestyle=shade.linestyle,
                        marker=shade.marker if alpha == 1 else None,
                        alpha=alpha,
                        markersize=4,
                    )
            axis.set_title(label, loc="left")
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_ylim(0, 102 if scale == 100 else None)
        faint_note = "faint: on training images; " if has("train_accuracy") else ""
        _legend(figure, look, _order(curves), lines=True)
        _foot(figure, f"{faint_note}one training per model")
    return figure


def contact_sheet(
    images: Sequence[NDArray[Any]],
    labels: Sequence[str],
    *,
    columns: int = 8,
    boxes: Sequence[tuple[int, int, int, int] | None] | None = None,
    note: str = "",
) -> Figure:
    """Images in lines, each with its label above.

    Parameters
    ----------
    images : sequence of ndarray
        uint8, (height, width, 3) each.
    labels : sequence of str
        An empty one leaves its place blank.
    columns : int
        Images per line.
    boxes : sequence, optional
        Half-open x0, y0, x1, y1 or None per image, outlined.
    note : str
        Printed below.
    """
    if len(images) == 0:
        return _words("No images: nothing to draw.")
    with _theme():
        columns = min(columns, len(images))
        lines = -(-len(images) // columns)
        tile = 128 / DPI if columns * 128 / DPI <= 9.6 else 9.6 / columns
        gap, head, left = 0.06, 0.2, 0.05
        width = max(left + columns * (tile + gap), 4.0)
        height = lines * (tile + head + gap) + 0.3
        figure = Figure(figsize=(width, height))
        axis = _canvas(figure, width, height)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            across = left + index % columns * (tile + gap)
            down = head + index // columns * (tile + head + gap)
            _tile(axis, image, across, down, tile)
            if boxes is not None and (box := boxes[index]) is not None:
                _outline(axis, box, image.shape, across, down, tile)
            axis.text(across, down - 0.09, label, size=8, va="center")
        axis.text(left, height - 0.14, note, size=7.5, color=_QUIET)
    return figure


@dataclass(frozen=True)
class Tile:
    """One square of a picture.

    Attributes
    ----------
    pixels : ndarray
        An image, uint8 (height, width, 3), or a map, (height, width).
    above, below : str
        Printed there.
    scale : float or None
        Value of a map that gets the full colour; its own largest absolute one where None.
    framed : bool
        Marked as what others are compared with.
    box : tuple of int or None
        Half-open x0, y0, x1, y1, outlined.
    """

    pixels: NDArray[Any]
    above: str = ""
    below: str = ""
    scale: float | None = None
    framed: bool = False
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class TileRow:
    """One line of squares; None leaves a place blank."""

    label: str
    tiles: Sequence[Tile | None]


def tile_rows(
    rows: Sequence[TileRow],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    key: str = "against, for",
    bars: pd.DataFrame | None = None,
    look: Look = PLAIN,
    levels: int | None = None,
) -> Figure:
    """Lines of images and maps, each with its own words; beside them, bars of average similarity.

    Parameters
    ----------
    rows : sequence of TileRow
    title : str
        Printed above.
    notes : sequence of str
        Printed below, a line each.
    key : str
        Words at the ends of the colour key, with a comma between; none where empty.
    bars : DataFrame, optional
        As `similarity_bars` takes; drawn to the left.
    look : Look, optional
    levels : int, optional
        Colours on either side of white: fewer make smaller files.
    """
    step = _COARSE if levels is None else 128 // levels
    if not any(row.tiles for row in rows):
        return _words("No maps: nothing to draw.")
    n_tiles = max(len(row.tiles) for row in rows)
    with _theme():
        gap, pad = 0.09, 0.08
        label = 0.27 + 0.14 * max(row.label.count("\n") for row in rows)
        beside = 3.3 if bars is not None else 0.0
        # 128 dots: a whole multiple of a 64 px map, whose pixels then stay sharp.
        tile = min(128 / DPI, (10.2 - beside - label - pad) / n_tiles - gap)
        marked = [any(t and t.above for t in row.tiles) for row in rows]
        heights = [
            (0.2 if above else 0.02) + tile + (0.2 if any(t and t.below for t in row.tiles) else 0)
            for row, above in zip(rows, marked, strict=True)
        ]
        head = 0.34 if title else 0.08
        foot = 0.12 + 0.17 * len(notes) + (0.2 if key else 0.0)
        body = sum(heights) + gap * (len(rows) - 1)
        height = max(head + body + foot, 2.9 if bars is not None else 0.0)
        longest = max((len(note) for note in notes), default=0)
        width = max(beside + label + n_tiles * (tile + gap) + pad, beside + 0.2 + 0.062 * longest)
        figure = Figure(figsize=(width, height))
        axis = _canvas(figure, width, height)
        if title:
            axis.text(0.06, 0.17, title, size=10, weight="bold", va="center")
        down = head
        for row, has_words, tall in zip(rows, marked, heights, strict=True):
            top = down + (0.2 if has_words else 0.02)
            axis.text(
                beside + label - 0.06,
                top + tile / 2,
                row.label,
                rotation=90,
                va="center",
                ha="right",
                ma="center",
                size=8 if max(map(len, row.label.split("\n"))) * 0.075 < tile + 0.3 else 6.5,
            )
            for place, square in enumerate(row.tiles):
                if square is not None:
                    _square(axis, square, beside + label + place * (tile + gap), top, tile, step)
            down += tall + gap
        low = height - foot + 0.1
        if key:
            ends = [word.strip() for word in key.split(",")]
            _key(axis, beside + 0.06, low, *ends)
            low += 0.2
        for line, note in enumerate(notes):
            axis.text(beside + 0.06, low + 0.17 * line, note, size=7.5, va="center", color=_QUIET)
        if bars is not None:
            own = figure.add_axes(
                (0.55 / width, 0.62 / height, 2.55 / width, (height - 1.42) / height)
            )
            _metric_bars(own, bars, look)
            own.set_ylabel("average similarity", fontsize=8)
            own.set_xlabel(
                f"{_n_images(bars)}; lines: {look.percent} intervals",
                fontsize=7,
                color=_QUIET,
                loc="right",
            )
            names = _order(bars["model"])
            looks = look.styles(names)
            own.legend(
                handles=_patches({name: looks[name] for name in names}),
                loc="lower left",
                bbox_to_anchor=(-0.03, 1.0),
                ncols=2,
                fontsize=7.5,
                handlelength=1.6,
                borderpad=0,
            )
    return figure


def _square(axis: Axes, square: Tile, x: float, y: float, side: float, step: int) -> None:
    values = square.pixels
    colours = values if values.ndim == 3 else _heat(values, square.scale, step=step)
    _tile(axis, colours, x, y, side)
    if square.box is not None:
        _outline(axis, square.box, values.shape, x, y, side)
    frame: dict[str, Any] = {"ec": "#c3c8ce", "lw": 0.8}
    if square.framed:
        frame = {"ec": _FRAME, "lw": 2.2}
    axis.add_patch(Rectangle((x, y), side, side, fill=False, **frame))
    for words, place in ((square.above, y - 0.09), (square.below, y + side + 0.11)):
        size = 8 if len(words) * 0.062 < side + 0.1 else 6.5
        axis.text(x + side / 2, place, words, ha="center", va="center", size=size)


def _patches(styles: Mapping[str, _Style]) -> list[Patch]:
    return [
        Patch(facecolor=s.color, hatch=s.hatch, edgecolor="white", linewidth=0, label=name)
        for name, s in styles.items()
    ]


def _metric_bars(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Spearman, HOG-Pearson and SSIM of each model, with intervals of the mean."""
    measures = [*_BARS, ("ssim", look.convention, f"SSIM ({look.convention})")]
    measures = [m for m in measures if not _select(rows, m[0], m[1]).empty]
    names = _order(rows["model"])
    styles = look.styles(names)
    thickness = 0.8 / max(len(names), 1)
    for place, (metric, kind, _) in enumerate(measures):
        keyed = _select(rows, metric, kind).drop_duplicates("model").set_index("model")
        for index, name in enumerate(names):
            if name not in keyed.index:
                continue
            row = keyed.loc[name]
            here = place + (index - (len(names) - 1) / 2) * thickness
            shade = styles[name]
            axis.bar(
                here,
                float(row["mean"]),
                0.9 * thickness,
                color=shade.color,
                hatch=shade.hatch,
                edgecolor="white",
                linewidth=0,
            )
            ends = [float(row["ci_low"]), float(row["ci_high"])]
            if np.isfinite(ends).all():
                axis.plot([here, here], ends, color=_INK, lw=1.3)
    axis.set_xticks(range(len(measures)), [label.replace(" (", "\n(") for *_, label in measures])
    axis.set_ylim(min(0.0, axis.get_ylim()[0]), max(1.03, axis.get_ylim()[1]))
    axis.axhline(0, color=_INK, linewidth=0.6)
    axis.tick_params(axis="x", length=0)
    axis.grid(False, axis="x")


def similarity_bars(
    panels: Mapping[str, pd.DataFrame],
    *,
    look: Look = PLAIN,
) -> Figure:
    """Average similarity by three measures, a panel per comparison.

    Parameters
    ----------
    panels : mapping of str to DataFrame
        Per title, rows with columns model, metric, convention, n_images, mean, ci_low, ci_high.
    look : Look, optional
    """
    panels = {name: rows for name, rows in panels.items() if rows["mean"].notna().any()}
    if not panels:
        return _words(_NOTHING)
    everything = pd.concat(panels.values())
    with _theme():
        figure = Figure(figsize=(max(3.6 * len(panels), 5), 3.1), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (name, rows) in zip(axes, panels.items(), strict=True):
            _metric_bars(axis, rows, look)
            axis.set_title(name, loc="left")
        axes[0].set_ylabel("similarity (higher: closer)")
        names = _order(everything["model"])
        _legend(figure, look, names, lines=False)
        _foot(figure, f"{_n_images(everything)}; lines: {look.percent} intervals")
    return figure


# How the four kinds of comparison with a robust model's map are told apart.
_TOWARDS: dict[tuple[str, str], tuple[Any, str, str]] = {
    ("twin", "same"): ("-", "o", "its twin's map of the image"),
    ("twin", "mismatched"): (":", "o", "its twin's map of another image"),
    ("control", "same"): ("-", "x", "the other robust model's map"),
    ("control", "mismatched"): (":", "x", "the other's map of another image"),
}


def towards_curves(
    rows: pd.DataFrame,
    *,
    look: Look = PLAIN,
) -> Figure:
    """Similarity of regular models' maps to robust models' plain ones, by number of samples.

    Guided backprop stands behind the last value.

    Parameters
    ----------
    rows : DataFrame
        Rows of `comparisons.csv` of one comparison.
    look : Look, optional
    """
    measures = [("ssim", look.convention, f"SSIM ({look.convention})"), *_BARS]
    measures = [m for m in measures if _select(rows, m[0], m[1])["mean"].notna().any()]
    if not measures:
        return _words(_NOTHING)
    guided = rows["method"] == "guided_backprop"
    values = sorted(dict.fromkeys(rows.loc[~guided, "value"]), key=lambda v: (_number(v), v))
    names = _order(rows["model"])
    styles = look.styles(names)
    with _theme():
        figure = Figure(figsize=(3.1 * len(measures) + 0.4, 3.7), layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False)[0]
        for axis, (metric, kind, label) in zip(axes, measures, strict=True):
            chosen = _select(rows, metric, kind)
            lines = chosen.groupby(["model", "other", "role", "pairing"], sort=False)
            for (model, _, role, pairing), own in lines:
                dash, marker, _ = _TOWARDS.get((role, pairing), ("-.", "s", ""))
                backprop = own[own["method"] == "guided_backprop"]
                swept = own[own["method"] != "guided_backprop"].drop_duplicates("value")
                swept = swept.assign(place=[values.index(value) for value in swept["value"]])
                swept = swept.sort_values("place")
                for part, places, joined in (
                    (swept, swept["place"].to_numpy(float), True),
                    (backprop, np.full(len(backprop), float(len(values))), False),
                ):
                    mean = part["mean"].to_numpy(float)
                    ends = part[["ci_low", "ci_high"]].to_numpy(float).T
                    bars = np.nan_to_num(np.clip(np.abs(ends - mean), 0, None))
                    axis.errorbar(
                        places,
                        mean,
                        yerr=bars if pairing == "same" else None,
                        color=styles[model].color,
                        linestyle=dash if joined else "none",
                        marker=marker,
                        markersize=4.5,
                        markerfacecolor=None if pairing == "same" else "white",
                        linewidth=1.5 if role == "twin" else 0.9,
                        elinewidth=1.0,
                        capsize=2,
                    )
            ticks = [*values, *(["GB"] if guided.any() else [])]
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set_title(label, loc="left")
            axis.grid(False, axis="x")
        axes[0].set_ylabel("similarity to the robust map")
        axes[0].set_xlabel("samples (0: the plain map); GB: guided backprop", loc="left")
        kinds = set(zip(rows["role"], rows["pairing"], strict=True))
        handles: list[Any] = [
            Line2D([], [], color=styles[name].color, linewidth=3, label=name) for name in names
        ]
        handles += [
            Line2D([], [], color=_INK, linestyle=dash, marker=marker, ms=4.5, label=label)
            for kind, (dash, marker, label) in _TOWARDS.items()
            if kind in kinds
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 3))
        _foot(figure, f"{_n_images(rows)}; bars: {look.percent} intervals")
    return figure


def level_and_spread(table: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Table S1 as bars: mean similarity, then spread (bar) and level (ring) of three accuracies.

    Parameters
    ----------
    table : DataFrame
        The table `table_s1.csv`.
    look : Look, optional
    """
    panels = [
        ("ssim", "mean", "SSIM, mean\n(higher: steadier)"),
        ("localization_error", "std_rms", "localization error, std\n(level: lower is better)"),
        ("deletion", "std_rms", "deletion, std\n(level: lower is better)"),
        ("insertion", "std_rms", "insertion, std\n(level: higher is better)"),
    ]
    panels = [panel for panel in panels if (table["metric"] == panel[0]).any()]
    if not panels:
        return _words(_NOTHING)
    lines = list(dict.fromkeys(table["row"]))
    names = _order(table["model"])
    thickness = 0.8 / len(names)
    with _theme():
        styles = look.styles(names)
        height = 1.25 + len(lines) * max(0.5, 0.2 * len(names) + 0.1)
        figure = Figure(figsize=(2.45 * len(panels) + 0.5, height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for letter, axis, (metric, column, title) in zip("abcd", axes, panels, strict=False):
            keyed = table[table["metric"] == metric].set_index(["row", "model"])
            ends = ("mean_low", "mean_high") if column == "mean" else ("rms_low", "rms_high")
            for line, row in enumerate(lines):
                for index, name in enumerate(names):
                    if (row, name) not in keyed.index:
                        continue
                    cell, shade = keyed.loc[(row, name)], styles[name]
                    here = line + (index - (len(names) - 1) / 2) * thickness
                    bar = (here, float(cell[column]), 0.9 * thickness)
                    _bar_with_interval(axis, bar, [float(cell[end]) for end in ends], shade)
                    if column != "mean":
                        ring = {"markerfacecolor": "white", "markeredgecolor": shade.color}
                        level = float(cell["mean"])
                        axis.plot(level, here, "o", ms=4.5, markeredgewidth=1.4, **ring)
            axis.set_title(f"({letter}) {title}", loc="left", fontsize=8.5)
            axis.set_xlim(min(0.0, axis.get_xlim()[0]), None)
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(lines)), lines)
        axes[0].set_ylim(len(lines) - 0.45, -0.55)
        _legend(figure, look, names, lines=False)
        _foot(
            figure,
            f"{_n_images(table)}; rings: mean level; dark lines: {look.percent} intervals "
            "of the bar",
        )
    return figure


def global_spread(table: pd.DataFrame, look: Look = PLAIN, *, scaled_to: int = 1735) -> Figure:
    """How far a hyperparameter moves dataset means of accuracy, on a logarithmic axis.

    Two bars per sweep: at the study's number of images, pale, and scaled to the paper's, dark.
    Beside them the ratio to the method's seed, or to its other sweep over the same hyperparameter,
    at both; only what is scaled is judged.

    Parameters
    ----------
    table : DataFrame
        Rows of `global_std.csv` of one model, or of the mean over models, with one convention per
        metric.
    look : Look, optional
    scaled_to : int
        Number of images that dark bars are scaled to.
    """
    panels = [(m, f"{ACCURACY[m][0]}") for m in ("localization_error", "deletion", "insertion")]
    panels = [panel for panel in panels if (table["metric"] == panel[0]).any()]
    positive = table[["std", "std_scaled"]].to_numpy(float)
    positive = positive[positive > 0]
    if not panels or not positive.size:
        return _words("No spread of accuracy: nothing to draw.")
    first = table.drop_duplicates("sweep").set_index("sweep")
    first = first.assign(last=first["hyperparameter"] == "seed")
    sweeps = list(first.sort_values(["method", "last", "sweep"], kind="stable").index)
    low, n = float(positive.min()) / 2, int(table["n_images"].max())
    best: tuple[float, str] = (0.0, "")
    bases = {sweep: _base_of(sweep, first) for sweep in sweeps}
    beside: dict[str, Any] = {"fontsize": 8, "xycoords": "axes fraction", "annotation_clip": False}
    with _theme():
        size = (2.7 * len(panels) + 2.7, 1.8 + 0.36 * len(sweeps))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, sharex=True)[0]
        axes[0].set_xscale("log")
        axes[0].set_xlim(low, float(positive.max()) * 2)
        for axis, (metric, title) in zip(axes, panels, strict=True):
            keyed = table[table["metric"] == metric].drop_duplicates("sweep").set_index("sweep")
            for line, sweep in enumerate(sweeps):
                if sweep not in keyed.index:
                    continue
                _spread_bars(axis, line, keyed.loc[sweep], low)
                base = bases[sweep]
                if base in keyed.index:
                    text, ratio = _ratio_words(keyed.loc[sweep], keyed.loc[base])
                    place = {**beside, "xycoords": axis.get_yaxis_transform(), "va": "center"}
                    axis.annotate(text, (1, line), (2, 0), textcoords="offset points", **place)
                    knob = first.loc[sweep, "hyperparameter"]
                    what = f"{knob} of {first.loc[sweep, 'method']} moves {title} {ratio:.3g} times"
                    best = max(best, (ratio, f"{what} as much as {base}"))
            axis.set_title(title, loc="left")
            if any(bases.values()):
                axis.annotate("ratio", (1, 1), (2, 6), textcoords="offset points", **beside)
            axis.set_xlabel("std over settings of the mean")
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(sweeps)), _knob_labels(first, sweeps))
        axes[0].set_ylim(len(sweeps) - 0.4, -0.6)
        told = f"Largest ratio on {scaled_to:,} images: {best[1]}"
        kinds = ((_SPREAD[0], f"on {n:,} images"), (_SPREAD[1], f"scaled to {scaled_to:,} images"))
        handles = [Patch(facecolor=color, label=label) for color, label in kinds]
        _head(figure, told if best[0] else "No ratio of two spreads can be formed", handles)
        pairs = "; ".join(f"{sweep} ÷ {base}" for sweep, base in bases.items() if base)
        note = f"{_n_images(table)}; dark lines: {look.percent} intervals"
        if pairs:
            note += (
                f"; ratio, on {n:,} → on {scaled_to:,} images (–: not formed, the interval of the "
                f"denominator holds 0):\n{textwrap.fill(pairs, 150)}"
            )
        _foot(figure, note)
    return figure


_SPREAD = ("#c9ced5", "#48525d")


def _spread_bars(axis: Axes, line: int, row: pd.Series, low: float) -> None:
    """Spread of one sweep at both numbers of images, with intervals."""
    names = (("std", "std_low", "std_high"), ("std_scaled", "scaled_low", "scaled_high"))
    for place, color, columns in zip((-0.18, 0.18), _SPREAD, names, strict=True):
        value, *ends = (float(row.get(name, np.nan)) for name in columns)
        if value > low:
            axis.barh(line + place, value - low, 0.34, left=low, color=color, linewidth=0)
            if np.isfinite(ends).all():
                axis.plot([max(ends[0], low), ends[1]], [line + place] * 2, color=_INK, lw=1)


def _base_of(sweep: str, first: pd.DataFrame) -> str:
    """Sweep that another is a multiple of: its method's seed, else one over the same knob."""
    own = first.loc[sweep]
    others = first[(first["method"] == own["method"]) & (first.index != sweep)]
    seeds = others[others["hyperparameter"] == "seed"]
    if own["hyperparameter"] == "seed":
        return ""
    alike = others[others["hyperparameter"] == own["hyperparameter"]]
    # Of two over one knob the later is the base, so that one of them has a ratio.
    alike = alike[alike.index > sweep]
    return str(next(iter([*seeds.index, *alike.index]), ""))


def _ratio_words(row: pd.Series, base: pd.Series) -> tuple[str, float]:
    """Ratio at the study's n and scaled, in words; the scaled one, 0 where it can't be formed."""
    raw = f"{row['std'] / base['std']:.2g}" if base["std"] > 0 else "–"
    if not float(base.get("scaled_low", np.nan)) > 0:
        return f"{raw} → –", 0.0
    ratio = float(row["std_scaled"] / base["std_scaled"])
    return f"{raw} → {ratio:.2g}", ratio


def loss_curves(
    panels: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    converged: Mapping[str, float] | None = None,
) -> Figure:
    """Terms of a loss against the step, a panel per model.

    Parameters
    ----------
    panels : mapping of str to mapping
        Per model, each term's name and its values, one per step.
    converged : mapping of str to float, optional
        Per model, a step that is marked.
    """
    if not panels:
        return _words("No losses: nothing to draw.")
    with _theme():
        size = min(max(2.9 * len(panels), 5.2), 10.4), 2.9
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        looks = (("-", 1.7), ("--", 1.1), (":", 1.1), ("-.", 1.1))
        for axis, (name, terms) in zip(axes, panels.items(), strict=True):
            for index, (term, values) in enumerate(terms.items()):
                dash, width = looks[index % len(looks)]
                color = _INK if index == 0 else _HUES[(index - 1) % len(_HUES)][0]
                steps = np.arange(len(values))
                axis.plot(steps, values, dash, color=color, linewidth=width, label=term)
            step = (converged or {}).get(name)
            if step is not None and np.isfinite(step):
                axis.axvline(step, color=_QUIET, linestyle=":", linewidth=1.3)
            axis.set_title(name, loc="left")
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("loss")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles))
        _foot(figure, "n = 1 image; dotted upright: converged")
    return figure


def _n_parameters(rows: pd.DataFrame, n_units: Sequence[int]) -> str:
    """Images, units and weight draws behind the rows, in words."""

    def span(numbers: Any, noun: str) -> str:
        low, high = min(numbers), max(numbers)
        counted = f"{low}" if low == high else f"{low} to {high}"
        return f"{counted} {noun}{'' if high == 1 else 's'}"

    images = [int(n) for n in rows["n_images"]]
    draws = [int(n) for n in rows["n_draws"]]
    units = [int(n) for n in n_units]
    return f"n = {span(images, 'image')}, {span(units, 'unit')}, {span(draws, 'weight draw')}"


def _methods_by(rows: pd.DataFrame, column: str) -> list[str]:
    """Methods by their mean over models, largest first."""
    means = rows.groupby("method", sort=False)[column].mean()
    return sorted(means.index, key=lambda name: (-means[name], name))


def parameter_bars(table: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """How far maps move when the model loses a unit, and how far beyond their own noise.

    Figure 3 of Sriram & Conati with intervals and floors.

    Parameters
    ----------
    table : DataFrame
        Rows of `ipr.csv` of one similarity, order, randomizer and preset; with `blank`, where that
        is true, the bar is hollow.
    look : Look, optional
    """
    rows = table[np.isfinite(table["S_same"].astype(float))]
    if rows.empty:
        return _words(_NOTHING)
    rows = rows.assign(blank=rows.get("blank", False))
    methods, names = _methods_by(rows, "S_same"), _order(rows["model"])
    label = _measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    thresholds = rows["threshold"].dropna().unique()
    thickness = 0.78 / len(names)
    styles = look.styles(names)
    floor: dict[str, Any] = {"marker": "D", "ms": 4.5, "markerfacecolor": "white"}
    floor |= {"markeredgecolor": _INK, "linestyle": "none"}
    dashed: dict[str, Any] = {"color": "#c2185b", "ls": "--", "lw": 1.3}
    panels = (
        ("S_same", "same", "(a) S: same draws in both maps"),
        ("excess", "excess", "(b) excess: fresh draws, less the floor"),
    )
    with _theme():
        height = 1.5 + len(methods) * max(0.4, 0.19 * len(names) + 0.12)
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True, sharex=True)
        for axis, (column, prefix, title) in zip(axes, panels, strict=True):
            for row in rows.drop_duplicates(["method", "model"]).to_dict("records"):
                place = names.index(row["model"]) - (len(names) - 1) / 2
                here = methods.index(row["method"]) + place * thickness
                ends = [float(row[f"{prefix}_{end}"]) for end in ("low", "high")]
                bar = (here, float(row[column]), 0.88 * thickness)
                _bar_with_interval(axis, bar, ends, styles[row["model"]], hollow=row["blank"])
                if column == "S_same" and np.isfinite(float(row["floor"])):
                    axis.plot(float(row["floor"]), here, clip_on=False, zorder=5, **floor)
            for threshold in thresholds:
                axis.axvline(float(threshold), zorder=3, **dashed)
            axis.set_title(title, loc="left")
            axis.set_xlabel(f"1 − {label}")
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].set_ylim(len(methods) - 0.45, -0.55)
        axes[0].set_xlim(min(0, axes[0].get_xlim()[0]), None)
        marks: list[Any] = [Line2D([], [], label="floor: the trained model twice", **floor)]
        marks += [Line2D([], [], label=f"threshold {value:g}", **dashed) for value in thresholds]
        if rows["blank"].any():
            hollow: dict[str, Any] = {"facecolor": "white", "edgecolor": _QUIET, "linewidth": 1.2}
            marks.append(Patch(label="hollow: mostly blank maps", **hollow))
        most = f"The model's parameters move the maps of {methods[0]} most"
        title = f"{most}, of {methods[-1]} least" if len(methods) > 1 else most
        _legend(figure, look, names, lines=False, title=title, extra=marks)
        _foot(
            figure,
            f"{_n_parameters(rows, rows['n_units'])}; dark lines: {look.percent} intervals",
        )
    return figure


def _bar_with_interval(
    axis: Axes,
    bar: tuple[float, float, float],
    ends: Sequence[float],
    style: _Style,
    *,
    hollow: bool = False,
) -> None:
    """Horizontal bar at (place, length, thickness) and its interval; none where undefined."""
    here, value, thickness = bar
    if not np.isfinite(value):
        return
    face: dict[str, Any] = {"color": style.color, "edgecolor": "white", "linewidth": 0}
    if hollow:
        face = {"color": "white", "edgecolor": style.color, "linewidth": 1.2}
    axis.barh(here, value, thickness, hatch=style.hatch, **face)
    if np.isfinite(ends).all():
        axis.plot(ends, [here, here], color=_INK, lw=1.6, zorder=4)


def unit_curves(units: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """How far maps move by the unit that the model loses, from the input to the logits.

    A line of panels per method, a column per architecture: models with the same units share one.

    Parameters
    ----------
    units : DataFrame
        Rows of `ipr_units.csv` of one similarity, order and randomizer.
    look : Look, optional
    """
    rows = units[np.isfinite(units["S_same"].astype(float))]
    if rows.empty:
        return _words(_NOTHING)
    methods, columns = _methods_by(rows, "S_same"), _architectures(rows)
    label = _measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    keyed = dict(list(rows.sort_values("unit_index", kind="stable").groupby(["method", "model"])))
    styles = look.styles(rows["model"])
    with _theme():
        widths = [max(0.17 * len(names), 2.2) for _, names in columns]
        size = 1.9 + sum(widths), 1.9 + 0.62 * len(methods) + 0.35 * (len(methods) == 1)
        figure = Figure(figsize=(max(size[0], 5.6), size[1]), layout="constrained")
        shared: dict[str, Any] = {"squeeze": False, "sharex": "col", "sharey": True}
        axes = figure.subplots(len(methods), len(columns), width_ratios=widths, **shared)
        for line, method in zip(axes, methods, strict=True):
            line[0].set_ylabel(method, rotation=0, ha="right", va="center")
            for axis, (models, names) in zip(line, columns, strict=True):
                for model in (name for name in models if (method, name) in keyed):
                    own = keyed[method, model]
                    across = [names.index(unit) for unit in own["unit"].astype(str)]
                    ends = own[["low", "high"]].to_numpy(float).T
                    color = styles[model].color
                    axis.fill_between(across, *ends, color=color, alpha=0.2, linewidth=0)
                    drawn = styles[model].line | {"markersize": 3, "linewidth": 1.3}
                    axis.plot(across, own["S_same"].astype(float), **drawn)
                axis.grid(False, axis="x")
        for axis, (models, names) in zip(axes[-1], columns, strict=True):
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
            axis.set_xlim(-0.4, len(names) - 0.6)
            axes[0, list(axes[-1]).index(axis)].set_title(", ".join(models), loc="left")
        means = rows["S_same"].astype(float)
        axes[0, 0].set_ylim(min(0.0, 1.1 * means.min()), max(1.12 * means.max(), 0.01))
        axes[0, 0].yaxis.get_major_locator().set_params(nbins=3)
        axes[0, 0].tick_params(axis="y", labelsize=7.5)
        _legend(figure, look, rows["model"], lines=True, title=_depth_words(keyed.values()))
        _foot(
            figure,
            f"upwards: 1 − {label} when a unit gets random weights; from the input (left) to the "
            "logits; deeper, less: by the sign of their rank correlation\n"
            f"{_n_parameters(rows, rows.groupby('model')['unit'].nunique())}; bands: "
            f"{look.percent} intervals",
        )
    return figure


def _architectures(rows: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Models that share their units, and the units from the input to the logits."""
    found: list[tuple[list[str], list[str]]] = []
    ordered = rows.sort_values("unit_index", kind="stable")
    units = {
        name: list(dict.fromkeys(ordered.loc[ordered["model"] == name, "unit"].astype(str)))
        for name in _order(rows["model"])
    }
    for name in sorted(units, key=lambda name: -len(units[name])):
        for models, names in found:
            if set(units[name]) <= set(names):
                models.append(name)
                break
        else:
            found.append(([name], units[name]))
    return [(_order(name for name in units if name in models), names) for models, names in found]


def _depth_words(groups: Iterable[pd.DataFrame]) -> str:
    """In how many pairs of method and model the maps move less, the deeper the unit."""
    by_depth = [
        np.corrcoef(rankdata(own["unit_index"]), rankdata(own["S_same"].astype(float)))[0, 1]
        for own in groups
        if own["S_same"].nunique() > 1
    ]
    less, n = sum(value < 0 for value in by_depth), len(by_depth)
    if not n:
        return "Maps move alike, whichever unit the model loses"
    how, count = ("less", less) if 2 * less >= n else ("more", n - less)
    return (
        f"Maps move {how}, the deeper the unit that the model loses: {count} of "
        f"{_plural(n, 'pair')} of method and model"
    )


def function_scatter(units: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """How far maps move against how far the model's output does, a dot per unit.

    Parameters
    ----------
    units : DataFrame
        Rows of `ipr_units.csv` of one similarity, order and randomizer.
    look : Look, optional
    """
    rows = units[np.isfinite(units[["S_same", "target_change"]].astype(float)).all(axis=1)]
    if rows.empty:
        return _words("No change of the model's output is known: nothing to draw.")
    methods = _methods_by(rows, "S_same")
    label = _measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    styles = look.styles(rows["model"])
    dot = {"linestyle": "none", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    lost = rows.drop_duplicates(["model", "unit"])["target_change"].astype(float) < -0.5
    with _theme():
        figure, axes = _panels(len(methods), height=1.7, extra=1.2)
        for axis, method in zip(axes, methods, strict=True):
            for name in _order(rows["model"]):
                own = rows[(rows["method"] == method) & (rows["model"] == name)]
                across, up = -own["target_change"].astype(float), own["S_same"].astype(float)
                axis.plot(across, up, **(styles[name].line | dot))
            axis.set_title(method, loc="left")
        axes[0].set_ylim(min(0.0, axes[0].get_ylim()[0]), None)
        figure.supylabel(f"1 − {label}: the maps move", fontsize=9)
        title = (
            f"Losing {lost.sum()} of {_plural(len(lost), 'unit')} costs over half of the target's "
            "probability; how far the maps move then"
        )
        _legend(figure, look, rows["model"], lines=True, title=title)
        _foot(
            figure,
            "across: drop of the target's probability when the unit gets random weights; "
            f"{_n_parameters(rows, rows.groupby('model')['unit'].nunique())}",
        )
    return figure


def _panels(
    n: int, *, height: float, extra: float, sharex: bool = True, width: float = 2.45
) -> tuple[Figure, list[Axes]]:
    """Small multiples with a shared vertical axis; `extra` inches are for what stands around."""
    columns = 3 if n in (5, 6, 9) else min(n, 4)
    lines = -(-n // columns)
    size = max(width * columns + 0.5, 5.4), height * lines + extra
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.06))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=True)
    for axis in list(axes.flat)[n:]:
        axis.set_axis_off()
    # The lowest of each column has the labels, whatever is switched off below it.
    for axis in list(axes.flat)[max(n - columns, 0) : n]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes.flat)[:n]


def sensitivity_plane(plane: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """Sensitivity to the model's parameters against sensitivity to a hyperparameter.

    A line of panels per model, a column per similarity. Every method is labelled at its height,
    which its sweeps share; filled: its worst ranked sweep, small: its others, hollow: not ranked.

    Parameters
    ----------
    plane : DataFrame
        The table `plane.csv`; with `blank`, points where that is true are crossed. Squares mark
        the worst sweeps of which SSIM and rank correlation say different things (`verdict`).
    look : Look, optional
    """
    known = plane[np.isfinite(plane[["x", "y"]].astype(float)).all(axis=1)]
    panels = [("ssim", "1 − SSIM (common)"), ("spearman", "1 − Spearman")]
    panels = [panel for panel in panels if (known["metric"] == panel[0]).any()]
    if not panels:
        return _words(_NOTHING)
    known = known.assign(
        blank=known.get("blank", False),
        sweep=known["sweep"].fillna("").astype(str),
        filled=known["filled"].astype(str) == "True",
        ranked=known["ranked"].astype(str) == "True",
        verdict=known.get("verdict", pd.Series("", known.index)).fillna("").astype(str),
    )
    names = _order(known["model"])
    limit = 1.08 * max(float(known[["x", "y"]].to_numpy(float).max()), 0.05)
    most = int(known.groupby(["model", "metric"])["method"].nunique().max())
    with _theme():
        styles = look.styles(names)
        height = max(1.75, 0.14 * most + 0.2)
        size = 0.7 + 4.6 * len(panels), 1.55 + (height + 0.3) * len(names)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(names), len(panels), squeeze=False, sharex=True, sharey=True)
        axes[0, 0].set(xlim=(-0.03 * limit, limit), ylim=(-0.03 * limit, limit))
        for line, name in zip(axes, names, strict=True):
            for axis, (metric, label) in zip(line, panels, strict=True):
                own = known[(known["model"] == name) & (known["metric"] == metric)]
                _plane_panel(axis, own, styles[name], height)
                axis.set_title(f"{name}: {label}", loc="left")
            line[0].set_ylabel("moves with\nthe model →")
        for axis in axes[-1]:
            axis.set_xlabel("moves with the hyperparameter →")
        faces = [("a method's worst sweep", 6.5, _QUIET), ("its other sweeps", 3.5, _QUIET)]
        dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": _QUIET}
        handles: list[Any] = [
            Line2D([], [], label=words, markersize=side, markerfacecolor=face, **dot)
            for words, side, face in [*faces, ("not ranked, or without a sweep", 5, "white")]
        ]
        handles.append(Patch(facecolor=_SHADE, label="below the diagonal: the setting moves more"))
        if known["blank"].any():
            handles.append(Line2D([], [], color=_QUIET, label="mostly blank maps", **_CROSS))
        if (known["filled"] & known["verdict"].map(_disagree)).any():
            words = "undecided: SSIM and Spearman disagree"
            handles.append(Line2D([], [], markeredgecolor=_QUIET, label=words, **_DOUBT))
        _head(figure, _plane_words(known, panels), handles)
        counts = sorted({int(n) for n in known["n_variants"] if n > 0})
        span = " to ".join(str(n) for n in dict.fromkeys([*counts[:1], *counts[-1:]]))
        variants = f", {span} settings per sweep beside its reference" if counts else ""
        _foot(figure, f"{_n_images(known)}{variants}; pale bars: {look.percent} intervals")
    return figure


_CROSS: dict[str, Any] = {
    **{"marker": "x", "markersize": 9, "markeredgewidth": 1.3, "linestyle": "none"}
}

_DOUBT: dict[str, Any] = {
    **{"marker": "s", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
}

_SHADE = "#eceff3"


def _disagree(verdict: str) -> bool:
    """Whether a verdict of the plane is open because its two similarities disagree."""
    return verdict.endswith("disagree")


def _plane_panel(axis: Axes, rows: pd.DataFrame, style: _Style, height: float) -> None:
    """One model by one similarity: a line of points per method, labelled on the right."""
    end = axis.get_xlim()[1]
    axis.fill([0, end, end], [0, 0, end], color=_SHADE, zorder=0, linewidth=0)
    axis.plot([0, end], [0, end], color=_QUIET, linewidth=1.0, zorder=1)
    axis.grid(False)
    labels = []
    for method, own in rows.groupby("method", sort=False):
        ordered = own.sort_values(["filled", "x"]).to_dict("records")
        axis.plot(own["x"], own["y"], color=style.color, linewidth=1.2, zorder=3)
        for row in ordered:
            x, y, strong = float(row["x"]), float(row["y"]), row["filled"]
            spans = ([row["x_low"], row["x_high"]], [y, y]), ([x, x], [row["y_low"], row["y_high"]])
            for span in spans if strong else ():
                if np.isfinite(np.asarray(span, float)).all():
                    axis.plot(*span, color=style.color, linewidth=3, alpha=0.22, zorder=2)
            shape: dict[str, Any] = {"markeredgecolor": style.color, "linestyle": "none"}
            shape |= {"markerfacecolor": style.color if row["ranked"] else "white"}
            side = 6.5 if strong else 3.5 if row["ranked"] else 4.5
            axis.plot(x, y, marker="o", markersize=side, clip_on=False, zorder=5, **shape)
            if row["blank"]:
                axis.plot(x, y, color=style.color, clip_on=False, zorder=6, **_CROSS)
            if strong and _disagree(row["verdict"]):
                axis.plot(x, y, markeredgecolor=style.color, clip_on=False, zorder=6, **_DOUBT)
        last = ordered[-1]
        text = f"{method} ({last['sweep']})" if last["filled"] else str(method)
        color = _INK if last["filled"] else _QUIET
        labels.append((float(own["x"].max()), float(last["y"]), text, color))
    _ladder(axis, labels, height)


def _ladder(
    axis: Axes, labels: Sequence[tuple[float, float, str, str]], height: float, size: float = 7.5
) -> None:
    """Write labels beside a panel that is `height` inches high, each led to its point (x, y)."""
    labels = sorted(labels, key=lambda label: label[1])
    low, high = axis.get_ylim()
    wanted = np.array([(y - low) / (high - low) for _, y, *_ in labels])
    # Nearest to the points, in squares, of all places that are a line of text apart.
    steps = 1.22 * size / 72 / height * np.arange(len(labels))
    places = isotonic_regression(wanted - steps).x
    places = np.clip(places, 0, max(0.0, 1 - steps[-1])) + steps
    for (x, y, text, color), place, start in zip(labels, places, wanted, strict=True):
        axis.plot([x, axis.get_xlim()[1]], [y, y], color="#c3c8ce", linewidth=0.6, zorder=1.5)
        axis.annotate(
            text,
            (1, start),
            (1.045, place),
            xycoords="axes fraction",
            va="center",
            fontsize=size,
            color=color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "lw": 0.6,
                "color": "#c3c8ce",
                "shrinkA": 0,
                "shrinkB": 0,
            }
            | {"relpos": (0, 0.5)},
        )


def _plane_words(known: pd.DataFrame, panels: Sequence[tuple[str, str]]) -> str:
    """Of how many methods' worst sweeps the model moves the maps surely more, by each measure."""
    if not known["filled"].any():
        return "No sweep can be ranked beside the randomized models"
    worst, told = known[known["filled"]], []
    for metric, label in panels:
        own = worst[worst["metric"] == metric]
        n_more = int((own["difference_low"].astype(float) > 0).sum())
        measure = label.removeprefix("1 − ").split(" (")[0]
        told.append(f"{n_more} of {_plural(len(own), 'case')} by {measure}")
    less = worst.loc[worst["verdict"] == "hyperparameter", "method"].unique()
    but = f"; less by both for {', '.join(less)}" if len(less) else ""
    n_open = int(worst.loc[worst["metric"] == "ssim", "verdict"].map(_disagree).sum())
    but += f"; undecided in {n_open}, where the two disagree" if n_open else ""
    return (
        "Losing a unit of the model moves the maps more than a method's worst sweep in "
        f"{' and '.join(told)}{but}"
    )


def stability_budget(
    curves: pd.DataFrame, budgets: pd.DataFrame, look: Look = PLAIN, *, share: float = 0.9
) -> Figure:
    """How many images have a map as good as converged, against the count; a ring marks a budget.

    A panel per sweep and threshold where that changes with the count; where no image gets there, or
    always enough do, a line of words tells it.

    Parameters
    ----------
    curves : DataFrame
        The table `budget_curves.csv`.
    budgets : DataFrame
        The table `budget.csv`.
    look : Look, optional
    share : float
        Share of images that a budget asks for, in [0, 1].
    """
    rows = curves.assign(value=curves["value"].astype(float))
    if rows.empty:
        return _words("No stability budget was measured.")
    panels: list[tuple[str, pd.DataFrame]] = []
    told: list[str] = []
    for (method, sweep), here in rows.groupby(["method", "sweep"], sort=False):
        flat = []
        for tau, own in here.groupby("tau"):
            if own["share"].max() > 0 and own["share"].min() < share:
                panels.append((f"{method} ({sweep})\nSSIM ≥ {tau:g}", own))
            else:
                flat.append((tau, own))
        told += _flat_words(f"{method} ({sweep})", flat)
    reached = budgets[budgets["reached"].astype(str) == "True"]
    title = _budget_words(reached, len(budgets))
    if not panels:
        return _words("\n".join([title, *told]))
    with _theme():
        extra = 1.15 + 0.16 * len(told)
        figure, axes = _panels(len(panels), height=1.9, extra=extra, sharex=False)
        styles = look.styles(rows["model"])
        for axis, (name, own) in zip(axes, panels, strict=True):
            axis.set_title(name, loc="left", fontsize=8.5)
            _share_panel(axis, own, styles, share)
            sweep, tau = own["sweep"].iloc[0], own["tau"].iloc[0]
            for row in reached[(reached["sweep"] == sweep) & (reached["tau"] == tau)].itertuples():
                found = own[(own["model"] == row.model) & (own["value"] == float(row.budget))]
                place = (row.budget, 100 * found["share"].iloc[0])
                axis.plot(*place, **_RING, zorder=6)
                beside: dict[str, Any] = {"textcoords": "offset points", "color": "#c2185b"}
                beside |= {"ha": "right", "va": "center", "weight": "bold"}
                axis.annotate(f"{row.budget:g}", place, (-10, 0), **beside)
        axes[0].set_ylim(-4, 106)
        axes[0].set_yticks([0, 50, 100 * share], ["0 %", "50 %", f"{100 * share:g} %"])
        figure.supylabel("images as good as converged", fontsize=9)
        ring = Line2D([], [], label="budget: from here on enough images", **_RING)
        _legend(figure, look, rows["model"], lines=True, title=title, extra=[ring])
        note = (
            f"across: samples, trials or steps; {_n_images(rows)}; bars: {look.percent} intervals"
        )
        figure.supxlabel("\n".join([*told, note]), x=0.008, ha="left", fontsize=8, color=_QUIET)
    return figure


_RING: dict[str, Any] = {
    **{"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": "#c2185b"},
    **{"markeredgewidth": 1.6, "linestyle": "none"},
}


def _flat_words(name: str, flat: Sequence[tuple[float, pd.DataFrame]]) -> Iterator[str]:
    """What panels without a curve would say, thresholds of one kind together."""
    for kind in (False, True):
        own = [(tau, rows) for tau, rows in flat if (rows["share"].min() > 0) == kind]
        if not own:
            continue
        taus, rows = " or ".join(f"{tau:g}" for tau, _ in own), own[0][1]
        if kind:
            yield f"{name}: enough images reach SSIM {taus} from {rows['value'].min():g} on."
            continue
        best = rows.groupby("model")["ssim"].max()
        ends = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (best.min(), best.max())))
        yield (
            f"{name}: no image reaches SSIM {taus} by {rows['value'].max():g}; the mean there is "
            f"{ends}."
        )


def _budget_words(reached: pd.DataFrame, n: int) -> str:
    """Where a count is enough."""
    if reached.empty:
        return f"No count is enough: {n} of {n} cases need more than this grid has"
    told = [
        f"{row.budget:g} for {row.method} on {row.model} (SSIM ≥ {row.tau:g})"
        for row in reached.itertuples()
    ]
    cases = f"{len(reached)} of {_plural(n, 'case')}"
    return f"Enough samples in {cases}" + (f": {', '.join(told)}" if len(told) <= 3 else "")


def _share_panel(
    axis: Axes, rows: pd.DataFrame, styles: Mapping[str, _Style], share: float
) -> None:
    """Share of images that reach a threshold, a line per model, with intervals."""
    axis.axhspan(100 * share, 106, color="#eaf3ea", zorder=0, linewidth=0)
    axis.axhline(100 * share, color=_QUIET, linewidth=1.1, zorder=1)
    names = _order(rows["model"])
    for index, name in enumerate(names):
        own = rows[rows["model"] == name].sort_values("value")
        mean = 100 * own["share"].to_numpy(float)
        ends = 100 * own[["low", "high"]].to_numpy(float).T
        # Beside each other, as shares of few images are often equal; in steps of a log axis.
        shift = 1.0 + 0.05 * (index - (len(names) - 1) / 2)
        axis.errorbar(
            own["value"] * shift,
            mean,
            yerr=np.nan_to_num(np.clip([mean - ends[0], ends[1] - mean], 0, None)),
            elinewidth=0.8,
            **styles[name].line,
        )
    axis.grid(False, axis="x")
    values = sorted(rows["value"].unique())
    axis.set_xscale("log")
    axis.set_xlim(values[0] / 1.3, values[-1] * 1.25)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)


def save(figure: Figure, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
    """Write a figure as PNG whose bytes depend on the drawing alone.

    Parameters
    ----------
    figure : Figure
    path : Path
    max_bytes : int
        Above that, colours are reduced, to 64 at least.
    """
    raw = io.BytesIO()
    with _theme():
        figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    with Image.open(raw) as image:
        pixels = image.convert("RGB")
    data = _png(pixels, dpi=(DPI, DPI))
    for n_colours in (256, 128, 64):
        if len(data) <= max_bytes:
            break
        # Median cut, the default, drops rare colours, which are the strong ends of maps.
        reduced = pixels.quantize(
            n_colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
        data = _png(reduced, dpi=(DPI, DPI))
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def thumbnail(
    image: NDArray[Any], *, box: tuple[int, int, int, int] | None = None, size: int = 96
) -> bytes:
    """Small PNG of one uint8 image (height, width, 3), its box outlined, never enlarged."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(1.0, size / max(picture.size))
    if box is not None and box[2] > box[0]:
        pixels = np.array(picture)
        x0, y0, x1, y1 = box
        thick = max(1, round(1 / scale))
        inner = np.zeros(pixels.shape[:2], bool)
        inner[y0:y1, x0:x1] = True
        inner[y0 + thick : y1 - thick, x0 + thick : x1 - thick] = False
        pixels[inner] = (255, 214, 10)
        picture = Image.fromarray(pixels)
    if scale < 1:
        shape = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
    return _png(picture)


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, **options)
    return buffer.getvalue()


@contextmanager
def _theme() -> Iterator[None]:
    """One look, whatever the user's matplotlibrc says; the font is the one matplotlib ships."""
    rc = {
        **sns.plotting_context("paper"),
        **sns.axes_style("whitegrid"),
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 9.0,
        "axes.edgecolor": "#9aa1a9",
        "axes.labelcolor": _INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e7eaee",
        "grid.linewidth": 0.8,
        "hatch.linewidth": 0.9,
        "legend.frameon": False,
        "legend.fontsize": 9.0,
        "text.color": _INK,
        "xtick.color": _INK,
        "xtick.labelsize": 8.5,
        "ytick.color": _INK,
        "ytick.labelsize": 8.5,
    }
    with style.context(["default", rc]):
        yield


def _order(models: Any) -> list[str]:
    """Models as given, each once, every robust twin behind its regular one."""
    names = list(dict.fromkeys(models))
    families = list(dict.fromkeys(name.removesuffix("-r") for name in names))
    return [name for family in families for name in (family, f"{family}-r") if name in names]


def _styles(models: Any) -> dict[str, _Style]:
    families = list(dict.fromkeys(name.removesuffix("-r") for name in models))
    markers = "oDs^vP"
    found = {}
    for index, family in enumerate(families):
        dark, light = _HUES[index % len(_HUES)]
        marker = markers[index % len(markers)]
        found[family] = _Style(dark, "-", marker, "")
        found[f"{family}-r"] = _Style(light, "--", marker, "////")
    return found


def _select(frame: pd.DataFrame, metric: str, convention: str | None) -> pd.DataFrame:
    chosen = frame["metric"] == metric
    if convention is not None:
        chosen &= frame["convention"] == convention
    return frame[chosen]


def headline_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows whose settings share draws, or have none; all rows of a sweep that has no such."""
    shared = frame["draws"].isin(["nested", "none"])
    alone = ["dynamic_range", *ACCURACY]
    compared = ~frame["metric"].isin(alone) if "metric" in frame else True
    # A sweep over the seed can't share draws.
    without = ~frame["sweep"].isin(frame.loc[shared & compared, "sweep"])
    return frame[shared | without]


def _measures(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Measures present, the known ones first."""
    present = list(dict.fromkeys(zip(rows["metric"], rows["convention"], strict=True)))
    known = [key for key in MEASURES if not _select(rows, *key).empty]
    other: list[tuple[str, str | None]] = [
        (metric, convention)
        for metric, convention in present
        if metric not in (*_NOT_DRAWN, *ACCURACY)
        and (metric, convention) not in MEASURES
        and (metric, None) not in MEASURES
    ]
    return known + other


def _measure_label(metric: str, convention: str | None) -> str:
    for key in ((metric, convention), (metric, None)):
        if key in MEASURES:
            return MEASURES[key]
    return f"{metric} ({convention})" if convention else metric


_NOTHING = "No map pair with a defined score: nothing to draw."
_STAR = "; star: the reference, 1 by definition"


def _counted(rows: pd.DataFrame, look: Look) -> str:
    return f"{_n_images(rows)}; bars: {look.percent} intervals"


def _n_images(rows: pd.DataFrame) -> str:
    counts = sorted({int(count) for count in rows["n_images"]})
    if not counts:
        return "n = 0 images"
    return f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " images"


def _value_label(rows: pd.DataFrame, sweep: str) -> str:
    name = rows.loc[rows["sweep"] == sweep, "hyperparameter"].iloc[0]
    return f"{name} ({_UNITS[name]})" if name in _UNITS else name


def _reference(settings: pd.DataFrame, sweep: str) -> str | None:
    """Value of the reference, which only the dynamic range has a row for."""
    chosen = settings[(settings["sweep"] == sweep) & settings["is_reference"].astype(bool)]
    return None if chosen.empty else str(chosen["value"].iloc[0])


def _number(value: str) -> float:
    """Value as a finite number, else NaN."""
    try:
        number = float(value)
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


@dataclass(frozen=True)
class _Values:
    """Where each value of a sweep is drawn; words, and numbers too close, at equal steps."""

    places: dict[str, float]
    log: bool = False
    joined: bool = True


def _values(rows: pd.DataFrame, reference: str | None) -> _Values:
    names = list(dict.fromkeys([*rows["value"], *([] if reference is None else [reference])]))
    numbers = [_number(name) for name in names]
    numeric = bool(np.isfinite(numbers).all())
    if numeric:
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
        numbers = sorted(numbers)
        log = numbers[0] > 0 and numbers[-1] / numbers[0] >= 8
        scale = np.log10(numbers) if log else np.asarray(numbers)
        if len(names) > 1 and np.diff(scale).min() > 0.03 * (scale[-1] - scale[0]):
            joined = rows["hyperparameter"].iloc[0] != "seed"
            return _Values(dict(zip(names, numbers, strict=True)), log, joined)
    return _Values({name: float(place) for place, name in enumerate(names)}, joined=numeric)


def _curve(
    axis: Axes,
    rows: pd.DataFrame,
    reference: str | None,
    styles: Mapping[str, _Style],
    *,
    few: bool = False,
) -> None:
    values = _values(rows, reference)
    names = _order(rows["model"])
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * 0.014
        own = rows[rows["model"] == name]
        _errorbars(axis, own, values, styles[name], offset=offset, reference=reference)
    _value_axis(axis, values, reference, few=few)


def _errorbars(
    axis: Axes,
    rows: pd.DataFrame,
    values: _Values,
    shade: _Style,
    *,
    offset: float = 0.0,
    reference: str | None = None,
) -> None:
    """Points with intervals, joined by a line that runs through (reference, 1) where given."""
    if rows.empty:
        return
    rows = rows.assign(place=[values.places[value] for value in rows["value"]])
    rows = rows.sort_values("place", kind="stable")
    places = rows["place"].to_numpy(float)
    mean = rows["mean"].to_numpy(float)
    low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
    peak = None if reference is None else values.places[reference]
    # Models are set apart sideways by a share of the axis, so that their bars don't cover.
    span = np.asarray(list(values.places.values()))
    if values.log:
        places = places * (span.max() / span.min()) ** offset
    else:
        places = places + offset * max(span.max() - span.min(), 1e-9)
    bars = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
    axis.errorbar(
        places,
        mean,
        yerr=bars,
        color=shade.color,
        linestyle="none",
        marker=shade.marker,
        markersize=5,
        elinewidth=1.2,
        capsize=2.5,
    )
    if not values.joined:
        return
    if peak is None or peak in rows["place"].to_numpy():
        axis.plot(places, mean, color=shade.color, linestyle=shade.linestyle, linewidth=1.6)
        return
    # Towards the reference, where a map is compared with itself, the line only leads the eye.
    before = rows["place"].to_numpy() < peak
    for side in (before, ~before):
        axis.plot(
            places[side], mean[side], color=shade.color, linestyle=shade.linestyle, linewidth=1.6
        )
    for side, nearest in ((before, -1), (~before, 0)):
        if side.any():
            axis.plot(
                [places[side][nearest], peak],
                [mean[side][nearest], 1],
                color=shade.color,
                linestyle=shade.linestyle,
                linewidth=0.9,
                alpha=0.55,
            )


def _value_axis(axis: Axes, values: _Values, reference: str | None, *, few: bool = False) -> None:
    if values.log:
        axis.set_xscale("log")
    if reference is not None:
        axis.axvline(values.places[reference], color=_QUIET, linestyle=":", linewidth=1.2, zorder=0)
        axis.plot(
            values.places[reference],
            1,
            marker="*",
            color=_QUIET,
            markersize=8,
            clip_on=False,
            linestyle="none",
        )
    shown = _apart(values, room=4 if few else 8, always=reference)
    axis.set_xticks([values.places[name] for name in shown], shown)
    axis.minorticks_off()
    places = np.asarray(list(values.places.values()))
    if values.log:
        reach = (places.max() / places.min()) ** 0.09
        axis.set_xlim(places.min() / reach, places.max() * reach)
    else:
        reach = 0.09 * (places.max() - places.min()) or 0.5
        axis.set_xlim(places.min() - reach, places.max() + reach)
    if any(len(name) > 7 for name in shown):
        axis.tick_params(axis="x", rotation=30)
    axis.grid(False, axis="x")


def _apart(values: _Values, *, room: int, always: str | None) -> list[str]:
    """Values whose labels have room beside each other, the reference among them."""
    names = list(values.places)
    places = np.asarray(list(values.places.values()))
    places = np.log(places) if values.log else places
    span = (places.max() - places.min()) or 1.0
    wanted = [names.index(always)] if always in names else []
    shown: list[int] = []
    for place in [*wanted, 0, len(names) - 1, *range(len(names))]:
        if all(abs(places[place] - places[other]) > 0.8 * span / room for other in shown):
            shown.append(place)
    return [names[place] for place in sorted(shown)]


def _limit(axis: Axes, rows: pd.DataFrame) -> None:
    """Upper end just above 1, where identical maps are; lower end below every interval."""
    values = rows[["mean", "ci_low"]].to_numpy(float)
    lowest = float(np.nanmin(values)) - 0.02
    step = 0.1 if lowest > 0.5 else 0.2
    axis.set_ylim(min(0.8, np.floor(lowest / step) * step), 1.03)


def _legend(
    figure: Figure,
    look: Look,
    models: Iterable[str],
    *,
    lines: bool,
    title: str = "",
    extra: Sequence[Any] = (),
) -> None:
    """Say above a figure what it shows, which models, and what else is to be told apart."""
    styles = look.styles(models)
    handles: list[Any] = _patches(styles)
    if lines:
        handles = [
            Line2D([], [], color=s.color, linestyle=s.linestyle, marker=s.marker, ms=5, label=name)
            for name, s in styles.items()
        ]
    _head(figure, title, [*handles, *extra])


def _head(figure: Figure, title: str, handles: Sequence[Any]) -> None:
    """Title and legend above a figure, in as many columns as it has room for."""
    inches = [0.65 + 0.08 * len(str(handle.get_label())) for handle in handles]
    fits = [
        n
        for n in range(1, len(handles) + 1)
        if sum(max(part, default=0.0) for part in map(list, np.array_split(inches, n)))
        < figure.get_figwidth()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(fits, default=1),
        handlelength=2.4,
        title=textwrap.fill(title, int(11.5 * figure.get_figwidth())) or None,
        title_fontproperties={"size": 10.5, "weight": "bold"},
        alignment="left",
    )


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _knob_labels(first: pd.DataFrame, sweeps: Sequence[str]) -> list[str]:
    """Method, hyperparameter and name of each sweep."""
    return [
        f"{first.loc[sweep, 'method']}: {first.loc[sweep, 'hyperparameter']}  ·  {sweep}"
        for sweep in sweeps
    ]


def _foot(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7.5, color=_QUIET)


def _words(text: str) -> Figure:
    """Stand in for a figure that can't be drawn."""
    with _theme():
        figure = Figure(figsize=(8, 0.8 + 0.2 * text.count("\n")))
        figure.text(0.5, 0.5, text, ha="center", va="center", color=_QUIET)
    return figure


def _canvas(figure: Figure, width: float, height: float) -> Axes:
    """Axes measured in inches from the upper left corner."""
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    return axis


def _tile(axis: Axes, pixels: NDArray[Any], x: float, y: float, side: float) -> None:
    axis.imshow(
        pixels,
        extent=(x, x + side, y + side, y),
        aspect="auto",
        interpolation="nearest" if max(pixels.shape[:2]) <= side * DPI else "antialiased",
        zorder=1,
    )


def _outline(
    axis: Axes,
    box: tuple[int, int, int, int],
    shape: tuple[int, ...],
    x: float,
    y: float,
    side: float,
) -> None:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    across, down = side / shape[1], side / shape[0]
    corner = x + x0 * across, y + y0 * down
    size = (x1 - x0) * across, (y1 - y0) * down
    axis.add_patch(Rectangle(corner, *size, fill=False, ec="black", lw=2.4, zorder=2))
    axis.add_patch(Rectangle(corner, *size, fill=False, ec="#ffd60a", lw=1.2, zorder=3))


def _heat(heatmap: NDArray[Any], scale: float | None = None, *, step: int = 1) -> NDArray[Any]:
    """Colours of a map divided by `scale`, its largest absolute value; grey where not finite.

    Of the 257 colours every `step`-th is used.
    """
    values = np.asarray(heatmap, np.float64)
    finite = np.isfinite(values)
    largest = np.abs(values[finite]).max(initial=0.0) if scale is None else scale
    scaled = np.where(finite, values, np.nan) / (largest or 1.0)
    levels = 128 // step
    scaled = np.round(scaled * levels) / levels if step > 1 else scaled
    colours = HEAT(Normalize(-1, 1)(np.ma.masked_invalid(scaled)))
    return np.asarray(np.round(255 * colours[..., :3]), np.uint8)


def _under(cell: MapCell) -> str:
    mark = f" {'†' * cell.degenerate}{'‡' * cell.inverted}".rstrip()
    if cell.is_reference:
        return "reference" + mark
    if cell.score is None:
        return mark.strip()
    if not np.isfinite(cell.score):
        return "no score" + mark
    rank = "" if cell.rank is None else f" / {cell.rank:.2f}".replace("nan", "–")
    return f"{cell.score:.2f}{rank}{mark}"


def _key(axis: Axes, x: float, y: float, low: str = "against", high: str = "for") -> None:
    """Colour key of the maps."""
    ramp = HEAT(np.linspace(0, 1, 256))[None, :, :3]
    axis.imshow(ramp, extent=(x + 0.5, x + 1.5, y + 0.06, y - 0.06), aspect="auto")
    axis.text(x, y, low, size=7.5, va="center", color=_QUIET)
    axis.text(x + 1.57, y, high, size=7.5, va="center", color=_QUIET)


def speed_bars(rows: pd.DataFrame) -> Figure:
    """How many times longer peers take than steadymap, a group of bars per method.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/speed.py`: case, method, fp32_ratio, channels_last_ratio.
    """
    cases = list(dict.fromkeys(rows["case"]))
    kinds = {"fp32_ratio": "as documented", "channels_last_ratio": "channels_last"}
    with _theme():
        figure = Figure(figsize=(3.3 * max(2, len(cases)), 3.2), layout="constrained")
        axes = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, cases, strict=True):
            part = rows[rows["case"] == name].reset_index(drop=True)
            for offset, (column, label) in enumerate(kinds.items()):
                places = np.arange(len(part)) + 0.38 * (offset - 0.5)
                axis.bar(places, part[column], 0.36, color=_HUES[0][offset], label=label)
            axis.axhline(1, color=_INK, linewidth=1)
            axis.set_title(name, loc="left")
            labels = part["method"].str.replace("_", "\n").tolist()
            axis.set_xticks(range(len(part)), labels, rotation=90)
            axis.grid(False, axis="x")
        axes[0].set_ylabel("peers' seconds / ours")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="peers", loc="outside right upper")
    return figure


def growth_curves(rows: pd.DataFrame) -> Figure:
    """Seconds and peak memory against each size that was varied, both axes logarithmic.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/growth.py`: axis, value, seconds, megabytes.
    """
    axes_named = list(dict.fromkeys(rows["axis"]))
    with _theme():
        figure = Figure(figsize=(3.0 * max(2, len(axes_named)), 4.6), layout="constrained")
        grid = figure.subplots(2, len(axes_named), squeeze=False, sharey="row")
        labels = {"seconds": "seconds", "megabytes": "peak memory (MB)"}
        for column, name in enumerate(axes_named):
            part = rows[rows["axis"] == name].sort_values("value")
            for axis, (measure, label) in zip(grid[:, column], labels.items(), strict=True):
                axis.plot(part["value"], part[measure], marker="o", color=_HUES[0][0], markersize=4)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log", base=2)
                axis.set_xticks(part["value"].tolist(), [f"{v:g}" for v in part["value"]])
                for scale in (axis.yaxis,):
                    scale.set_major_formatter("{x:g}")
                if column == 0:
                    axis.set_ylabel(label)
            grid[1, column].set_xlabel(name)
    return figure
