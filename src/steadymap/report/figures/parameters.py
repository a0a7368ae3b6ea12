"""Figures of sensitivity to the model's parameters."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import spearmanr

from steadymap.report.figures import theme
from steadymap.report.figures.theme import INK, PLAIN, QUIET, Look

_FLOOR: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
_FLOOR |= {"markeredgecolor": INK, "linestyle": "none"}

_THRESHOLD: dict[str, Any] = {"color": "#c2185b", "linestyle": "--", "linewidth": 1.3}


def _sample_size(rows: pd.DataFrame, n_units: Iterable[int]) -> str:
    """Images, units and weight draws behind the rows, in words."""
    numbers = {"image": rows["n_images"], "unit": n_units, "weight draw": rows["n_draws"]}
    return "n = " + ", ".join(theme.counted(counts, noun) for noun, counts in numbers.items())


def _methods(rows: pd.DataFrame) -> list[str]:
    """Methods by the mean of their S over models, largest first."""
    means = rows.groupby("method", sort=False)["S_same"].mean()
    return sorted(means.index, key=lambda name: (-means[name], name))


def _measure(rows: pd.DataFrame) -> str:
    return theme.measure_label(rows["metric"].iloc[0], rows["convention"].iloc[0])


@theme.themed
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
    rows = theme.finite_rows(table, "S_same").rename(columns={"method": "group"})
    methods, styles = _methods(rows.assign(method=rows["group"])), look.styles(rows["model"])
    thresholds = rows["threshold"].dropna().unique()
    height = 1.5 + len(methods) * max(0.4, 0.19 * len(styles) + 0.12)
    figure, axes = theme.panels(2, (10, height), sharex=True)
    positions = theme.model_bars(
        axes[0], rows, methods, styles, ("S_same", "same_low", "same_high")
    )
    theme.model_bars(axes[1], rows, methods, styles, ("excess", "excess_low", "excess_high"))
    floors = rows.pivot_table(index="group", columns="model", values="floor").reindex(methods)
    for (name, _), position in zip(styles.items(), positions, strict=True):
        if name in floors:
            axes[0].plot(floors[name], position, clip_on=False, zorder=5, **_FLOOR)
    titles = "(a) S: same draws in both maps", "(b) excess: fresh draws, less the floor"
    for axis, title in zip(axes, titles, strict=True):
        for threshold in thresholds:
            axis.axvline(float(threshold), zorder=3, **_THRESHOLD)
        axis.set_title(title, loc="left")
        axis.set_xlabel(f"1 − {_measure(rows)}")
    theme.label_lines(axes, methods)
    axes[0].set_xlim(min(0, axes[0].get_xlim()[0]), None)
    handles: list[Any] = [theme.mark("floor: the trained model twice", **_FLOOR)]
    handles += [theme.mark(f"threshold {value:g}", **_THRESHOLD) for value in thresholds]
    if "blank" in rows and rows["blank"].any():
        hollow: dict[str, Any] = {"facecolor": "white", "edgecolor": QUIET, "linewidth": 1.2}
        handles.append(Patch(label="hollow: mostly blank maps", **hollow))
    title = f"The model's parameters move the maps of {methods[0]} most"
    title += f", of {methods[-1]} least" if len(methods) > 1 else ""
    theme.headed(figure, title, [*theme.patches(styles), *handles])
    sample = _sample_size(rows, rows["n_units"])
    theme.footnote(figure, f"{sample}; dark lines: {look.percent} intervals")
    return figure


@theme.themed
def unit_curves(units: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """How far maps move by the unit that the model loses, from the input to the logits.

    A line of panels per method, a column per architecture: models with the same units share one.

    Parameters
    ----------
    units : DataFrame
        Rows of `ipr_units.csv` of one similarity, order and randomizer.
    look : Look, optional
    """
    rows = theme.finite_rows(units, "S_same").sort_values("unit_index", kind="stable")
    rows = rows.astype({"S_same": float, "unit": str})
    methods, columns = _methods(rows), _architectures(rows)
    styles = look.styles(rows["model"])
    widths = [max(0.17 * len(names), 2.2) for _, names in columns]
    height = 1.9 + 0.62 * len(methods) + 0.35 * (len(methods) == 1)
    n, size = len(methods) * len(columns), (max(1.9 + sum(widths), 5.6), height)
    shared: dict[str, Any] = {"sharex": "col", "width_ratios": widths}
    figure, panels = theme.panels(n, size, columns=len(columns), **shared)
    axes = np.array(panels).reshape(len(methods), len(columns))
    for (line, column), axis in np.ndenumerate(axes):
        models, names = columns[column]
        group = rows[(rows["method"] == methods[line]) & rows["model"].isin(models)]
        for model, curve in theme.by_model(group):
            position = curve["unit"].map(names.index)
            band = {"color": styles[model].color, "alpha": 0.2, "linewidth": 0}
            axis.fill_between(position, *curve[["low", "high"]].to_numpy(float).T, **band)
            style = styles[model].line | {"markersize": 3, "linewidth": 1.3}
            axis.plot(position, curve["S_same"], **style)
        axis.grid(False, axis="x")
    for method, axis in zip(methods, axes[:, 0], strict=True):
        axis.set_ylabel(method, rotation=0, ha="right", va="center")
    for (models, names), column in zip(columns, axes.T, strict=True):
        column[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
        column[-1].set_xlim(-0.4, len(names) - 0.6)
        column[0].set_title(", ".join(models), loc="left")
    ends = min(0.0, 1.1 * rows["S_same"].min()), max(1.12 * rows["S_same"].max(), 0.01)
    axes[0, 0].set_ylim(*ends)
    axes[0, 0].yaxis.get_major_locator().set_params(nbins=3)
    axes[0, 0].tick_params(axis="y", labelsize=7.5)
    theme.headed(figure, _depth_words(rows), theme.lines(styles))
    theme.footnote(
        figure,
        f"upwards: 1 − {_measure(rows)} when a unit gets random weights; from the input (left) to "
        "the logits; deeper, less: by the sign of their rank correlation\n"
        f"{_sample_size(rows, rows.groupby('model')['unit'].nunique())}; bands: {look.percent} "
        "intervals",
    )
    return figure


def _architectures(rows: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Models that share their units, and the units from the input to the logits."""
    units = {name: list(dict.fromkeys(group["unit"])) for name, group in theme.by_model(rows)}
    columns: dict[str, list[str]] = {}
    for name in sorted(units, key=lambda name: -len(units[name])):
        # Models of which fewer units are known stand with those that have the same ones and more.
        alike = [other for other in columns if set(units[name]) <= set(units[other])]
        columns.setdefault(alike[0] if alike else name, []).append(name)
    shared = [[name for name in units if name in models] for models in columns.values()]
    return [(models, units[first]) for first, models in zip(columns, shared, strict=True)]


def _depth_words(rows: pd.DataFrame) -> str:
    """In how many pairs of method and model the maps move less, the deeper the unit."""
    correlations = [
        spearmanr(curve["unit_index"], curve["S_same"]).statistic
        for _, curve in rows.groupby(["method", "model"])
        if curve["S_same"].nunique() > 1
    ]
    less, n = sum(value < 0 for value in correlations), len(correlations)
    if not n:
        return "Maps move alike, whichever unit the model loses"
    how, count = ("less", less) if 2 * less >= n else ("more", n - less)
    return (
        f"Maps move {how}, the deeper the unit that the model loses: {count} of "
        f"{theme.plural(n, 'pair')} of method and model"
    )


@theme.themed
def function_scatter(units: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """How far maps move against how far the model's output does, a dot per unit.

    Parameters
    ----------
    units : DataFrame
        Rows of `ipr_units.csv` of one similarity, order and randomizer.
    look : Look, optional
    """
    unknown = "No change of the model's output is known: nothing to draw."
    rows = theme.finite_rows(units, "S_same", "target_change", words=unknown)
    rows = rows.astype({"S_same": float, "target_change": float})
    methods, styles = _methods(rows), look.styles(rows["model"])
    dot = {"linestyle": "none", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    figure, axes = theme.small_multiples(len(methods), height=1.7, extra=1.2, sharex=True)
    for axis, method in zip(axes, methods, strict=True):
        for name, group in theme.by_model(rows[rows["method"] == method]):
            axis.plot(-group["target_change"], group["S_same"], **styles[name].line | dot)
        axis.set_title(method, loc="left")
    axes[0].set_ylim(min(0.0, axes[0].get_ylim()[0]), None)
    figure.supylabel(f"1 − {_measure(rows)}: the maps move", fontsize=9)
    costly = rows.drop_duplicates(["model", "unit"])["target_change"] < -0.5
    title = (
        f"Losing {costly.sum()} of {theme.plural(len(costly), 'unit')} costs over half of the "
        "target's probability; how far the maps move then"
    )
    theme.headed(figure, title, theme.lines(styles))
    theme.footnote(
        figure,
        "across: drop of the target's probability when the unit gets random weights; "
        f"{_sample_size(rows, rows.groupby('model')['unit'].nunique())}",
    )
    return figure
