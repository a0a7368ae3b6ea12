"""Pictures of the tables and maps; drawing needs no display and leaves no global state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from steadymap.analysis.readings import ACCURACY, DEGREES, MEASURES, degree, headline_draws
from steadymap.report.figures.theme import (
    INK,
    NOT_DRAWN,
    NOTHING,
    PLAIN,
    QUIET,
    STAR,
    Look,
    Style,
    axis_values,
    curve,
    errorbars,
    footnote,
    legend,
    limit_similarity,
    measure_label,
    model_order,
    n_images,
    placeholder,
    plural,
    reference_value,
    sample_note,
    select,
    theme,
    value_axis,
    value_label,
)


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
    rows = select(headline_draws(settings), "ssim", look.convention)
    sweeps = list(dict.fromkeys(rows["sweep"]))
    if rows["mean"].isna().all():
        return placeholder(NOTHING)
    label = measure_label("ssim", look.convention)
    with theme():
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
            curve(axis, rows[rows["sweep"] == sweep], reference_value(settings, sweep), styles)
            axis.set_xlabel(value_label(rows, sweep))
        for axis in list(axes.flat)[len(sweeps) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set_ylabel(f"{label}\nto the reference map")
        limit_similarity(axes.flat[0], rows)
        legend(figure, look, model_order(rows["model"]), lines=True)
        footnote(figure, sample_note(rows, look) + STAR)
    return figure


_ZONES = ("#ffffff", "#fdf6ec", "#fbe9d7", "#f6d3bf")


def hyperparameters_by_effect(
    sensitivity: pd.DataFrame,
    *,
    images: pd.DataFrame | None = None,
    look: Look = PLAIN,
    yardstick: pd.DataFrame | None = None,
) -> Figure:
    """How far each hyperparameter moves the maps of each model.

    The sweep whose worst model is worst comes first.

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
    rows = select(headline_draws(sensitivity), "ssim", look.convention)
    rows = rows[np.isfinite(rows["mean"].astype(float))]
    if rows.empty:
        return placeholder(NOTHING)
    ranks = select(headline_draws(sensitivity), "spearman", None).set_index(["sweep", "model"])
    keys = pd.MultiIndex.from_frame(rows[["sweep", "model"]])
    rows = rows.assign(
        moved=1 - rows["mean"].astype(float),
        turned=1 - ranks["mean"].astype(float).reindex(keys).to_numpy(),
    )
    rows["degree"] = [degree(*pair) for pair in rows[["moved", "turned"]].to_numpy()]
    worst = rows.groupby("sweep", sort=False)[["degree", "moved"]].max()
    sweeps = sorted(worst.index, key=lambda name: (*-worst.loc[name], name))
    names = model_order(rows["model"])
    dots = None
    if images is not None:
        dots = select(headline_draws(images), "ssim", look.convention)
        dots = dots if len(dots) <= 200 * len(rows) else None
    first = rows.drop_duplicates("sweep").set_index("sweep")
    styles = look.styles(names)
    with theme():
        thickness = 0.13 + 0.02 * (len(names) == 1)
        line_height = max(0.27, thickness * len(names) + 0.08)
        figure = Figure(figsize=(10, 1.5 + line_height * len(sweeps)), layout="constrained")
        axis = figure.subplots()
        step, bands = thickness / line_height, 0
        for row in rows.to_dict("records"):
            place = names.index(row["model"]) - (len(names) - 1) / 2
            here, style = sweeps.index(row["sweep"]) + place * step, styles[row["model"]]
            _hyperparameter(axis, row, dots, here, style)
            bands += _band(axis, yardstick, row, here, step, style.color)
        axis.set_yticks(range(len(sweeps)), hyperparameter_labels(first, sweeps))
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
            hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": QUIET, "hatch": "/////"}
            extra.append(Patch(**hatched, linewidth=0.8, label=words))
        top = first.loc[sweeps[0]]
        moved = f"{top['hyperparameter']} of {top['method']} moves the maps most"
        far = int((worst["degree"] >= _FAR).sum())
        title = f"{moved}; {far} of {plural(len(sweeps), 'sweep')} move them much or more"
        legend(figure, look, names, lines=True, title=title, extra=extra)
        each = "; pale dots: single images" if dots is not None else ""
        footnote(figure, f"{n_images(rows)}; lines: {look.percent} intervals of the mean{each}")
    return figure


# Degree from which on a sweep is said to move maps much.
_FAR = 2


def _hyperparameter(
    axis: Axes, row: Mapping[str, Any], dots: pd.DataFrame | None, here: float, style: Style
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
        # Too narrow a zone shares its neighbor's line of words.
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
                color=INK if place == len(DEGREES) - 1 else QUIET,
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
    measures, names = _measures(rows), model_order(rows["model"])
    blocks = {}
    for measure in measures:
        own = select(rows, *measure).drop_duplicates(["sweep", "model"])
        own = own.assign(mean=own["mean"].astype(float)).dropna(subset=["mean"])
        if len(own):
            blocks[measure_label(*measure)] = own.pivot(
                index="sweep", columns="model", values="mean"
            ).reindex(index=rows["sweep"].unique(), columns=names)
    if not blocks:
        return placeholder(NOTHING)
    sweeps = [
        s for s in rows["sweep"].unique() if any(t.loc[s].notna().any() for t in blocks.values())
    ]
    low = min(0.0, *(float(np.nanmin(table.to_numpy())) for table in blocks.values()))
    least = [str(table.min(axis=1).idxmin()) for table in blocks.values()]
    title = (
        f"{least.count(least[0])} of {plural(len(least), 'measure')} find {least[0]} the least "
        "stable sweep"
    )
    with theme():
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
        footnote(figure, f"{n_images(rows)}; mean over images and variants; dark: moved more")
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
    drawn = pd.concat([rows.head(0), *(select(rows, *measure) for measure in measures)])
    if drawn["mean"].isna().all():
        return placeholder(NOTHING)
    with theme():
        figure = Figure(figsize=(2.1 * len(measures) + 0.2, 2.75), layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        styles = look.styles(rows["model"])
        for axis, measure in zip(axes, measures, strict=True):
            curve(axis, select(rows, *measure), reference_value(settings, sweep), styles, few=True)
            axis.set_title(measure_label(*measure), loc="left")
        limit_similarity(axes[0], drawn)
        axes[0].set_ylabel("similarity to\nthe reference map")
        axes[0].set_xlabel(value_label(rows, sweep), loc="left")
        legend(figure, look, model_order(drawn["model"]), lines=True)
        footnote(figure, sample_note(drawn, look) + STAR)
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
    rows = select(settings[settings["sweep"] == sweep], "ssim", look.convention)
    names = model_order(rows["model"])
    if rows["mean"].isna().all():
        return placeholder(NOTHING)
    with theme():
        figure = Figure(figsize=(min(max(3.3 * len(names), 5), 10.4), 2.9), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        styles = look.styles(rows["model"])
        reference = reference_value(settings, sweep)
        values = axis_values(rows, reference)
        for axis, name in zip(axes, names, strict=True):
            own = rows[rows["model"] == name]
            color = styles[name].color
            for draws, shade in (("nested", "-"), ("independent", ":")):
                drawn = own[own["draws"] == draws]
                through = reference if draws == "nested" else None
                errorbars(axis, drawn, values, Style(color, shade, "o", ""), reference=through)
            value_axis(axis, values, reference)
            axis.set_title(name, loc="left")
            axis.set_xlabel(value_label(rows, sweep))
        axes[0].set_ylabel(f"SSIM ({look.convention})\nto the reference map")
        limit_similarity(axes[0], rows)
        figure.legend(
            handles=[
                Line2D([], [], color=INK, linestyle="-", label="nested draws"),
                Line2D([], [], color=INK, linestyle=":", label="independent draws"),
            ],
            loc="outside upper left",
            ncols=2,
        )
        footnote(figure, sample_note(rows, look))
    return figure


def _measures(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Measures present, the known ones first."""
    present = list(dict.fromkeys(zip(rows["metric"], rows["convention"], strict=True)))
    known = [key for key in MEASURES if not select(rows, *key).empty]
    other: list[tuple[str, str | None]] = [
        (metric, convention)
        for metric, convention in present
        if metric not in (*NOT_DRAWN, *ACCURACY)
        and (metric, convention) not in MEASURES
        and (metric, None) not in MEASURES
    ]
    return known + other


def hyperparameter_labels(first: pd.DataFrame, sweeps: Sequence[str]) -> list[str]:
    """Method, hyperparameter and name of each sweep."""
    return [
        f"{first.loc[sweep, 'method']}: {first.loc[sweep, 'hyperparameter']}  ·  {sweep}"
        for sweep in sweeps
    ]
