"""Figures of sensitivity to the model's parameters."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import rankdata

from steadymap.report.figures.theme import (
    INK,
    NOTHING,
    PLAIN,
    QUIET,
    Look,
    Style,
    footnote,
    legend,
    measure_label,
    model_order,
    panel_grid,
    placeholder,
    plural,
    theme,
)


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
        return placeholder(NOTHING)
    rows = rows.assign(blank=rows.get("blank", False))
    methods, names = _methods_by(rows, "S_same"), model_order(rows["model"])
    label = measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    thresholds = rows["threshold"].dropna().unique()
    thickness = 0.78 / len(names)
    styles = look.styles(names)
    floor: dict[str, Any] = {"marker": "D", "ms": 4.5, "markerfacecolor": "white"}
    floor |= {"markeredgecolor": INK, "linestyle": "none"}
    dashed: dict[str, Any] = {"color": "#c2185b", "ls": "--", "lw": 1.3}
    panels = (
        ("S_same", "same", "(a) S: same draws in both maps"),
        ("excess", "excess", "(b) excess: fresh draws, less the floor"),
    )
    with theme():
        height = 1.5 + len(methods) * max(0.4, 0.19 * len(names) + 0.12)
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True, sharex=True)
        for axis, (column, prefix, title) in zip(axes, panels, strict=True):
            for row in rows.drop_duplicates(["method", "model"]).to_dict("records"):
                place = names.index(row["model"]) - (len(names) - 1) / 2
                here = methods.index(row["method"]) + place * thickness
                ends = [float(row[f"{prefix}_{end}"]) for end in ("low", "high")]
                bar = (here, float(row[column]), 0.88 * thickness)
                bar_with_interval(axis, bar, ends, styles[row["model"]], hollow=row["blank"])
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
            hollow: dict[str, Any] = {"facecolor": "white", "edgecolor": QUIET, "linewidth": 1.2}
            marks.append(Patch(label="hollow: mostly blank maps", **hollow))
        most = f"The model's parameters move the maps of {methods[0]} most"
        title = f"{most}, of {methods[-1]} least" if len(methods) > 1 else most
        legend(figure, look, names, lines=False, title=title, extra=marks)
        footnote(
            figure,
            f"{_n_parameters(rows, rows['n_units'])}; dark lines: {look.percent} intervals",
        )
    return figure


def bar_with_interval(
    axis: Axes,
    bar: tuple[float, float, float],
    ends: Sequence[float],
    style: Style,
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
        axis.plot(ends, [here, here], color=INK, lw=1.6, zorder=4)


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
        return placeholder(NOTHING)
    methods, columns = _methods_by(rows, "S_same"), _architectures(rows)
    label = measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    keyed = dict(list(rows.sort_values("unit_index", kind="stable").groupby(["method", "model"])))
    styles = look.styles(rows["model"])
    with theme():
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
        legend(figure, look, rows["model"], lines=True, title=_depth_words(keyed.values()))
        footnote(
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
        for name in model_order(rows["model"])
    }
    for name in sorted(units, key=lambda name: -len(units[name])):
        for models, names in found:
            if set(units[name]) <= set(names):
                models.append(name)
                break
        else:
            found.append(([name], units[name]))
    return [
        (model_order(name for name in units if name in models), names) for models, names in found
    ]


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
        f"{plural(n, 'pair')} of method and model"
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
        return placeholder("No change of the model's output is known: nothing to draw.")
    methods = _methods_by(rows, "S_same")
    label = measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])
    styles = look.styles(rows["model"])
    dot = {"linestyle": "none", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    lost = rows.drop_duplicates(["model", "unit"])["target_change"].astype(float) < -0.5
    with theme():
        figure, axes = panel_grid(len(methods), height=1.7, extra=1.2)
        for axis, method in zip(axes, methods, strict=True):
            for name in model_order(rows["model"]):
                own = rows[(rows["method"] == method) & (rows["model"] == name)]
                across, up = -own["target_change"].astype(float), own["S_same"].astype(float)
                axis.plot(across, up, **(styles[name].line | dot))
            axis.set_title(method, loc="left")
        axes[0].set_ylim(min(0.0, axes[0].get_ylim()[0]), None)
        figure.supylabel(f"1 − {label}: the maps move", fontsize=9)
        title = (
            f"Losing {lost.sum()} of {plural(len(lost), 'unit')} costs over half of the target's "
            "probability; how far the maps move then"
        )
        legend(figure, look, rows["model"], lines=True, title=title)
        footnote(
            figure,
            "across: drop of the target's probability when the unit gets random weights; "
            f"{_n_parameters(rows, rows.groupby('model')['unit'].nunique())}",
        )
    return figure
