"""Figures of sweeps: how far maps move when a hyperparameter changes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from steadymap.analysis.readings import DEGREES, by_measure, degree, headline_draws, relative
from steadymap.report.figures import theme
from steadymap.report.figures.theme import INK, PLAIN, QUIET, Look, Style

_ZONES = ("#ffffff", "#fdf6ec", "#fbe9d7", "#f6d3bf")

_MOVED = LinearSegmentedColormap.from_list("moved", ["#175a94", "#f0f1f3"])

# Degree from which on a sweep is said to move maps much.
_MUCH = 2

_HATCHED: dict[str, Any] = {"facecolor": "none", "hatch": "/////"}


def _similarities(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Measures of similarity that are drawn, with their rows."""
    return [(label, group) for (name, _), label, group in by_measure(rows) if name != "pearson"]


@theme.themed
def sensitivity_curves(settings: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Mean similarity to the reference map against the varied value, a panel per sweep.

    Parameters
    ----------
    settings : DataFrame
        The table `settings.csv`.
    look : Look, optional
    """
    rows = theme.select(headline_draws(settings), "ssim", look.convention)
    theme.require(rows["mean"].dropna())
    n = rows["sweep"].nunique()
    columns = 2 if n == 4 else min(n, 3)
    size = {1: 4.8, 2: 8.4}.get(columns, 10.2), 2.75 * -(-n // columns) + 0.55
    figure, axes = theme.panels(n, size, columns=columns)
    for axis, (sweep, group) in zip(axes, rows.groupby("sweep", sort=False), strict=True):
        axis.set_title(f"{sweep}  ·  {group['method'].iloc[0]}", loc="left")
        theme.value_curves(axis, group, theme.reference_value(settings, sweep), look)
        axis.set_xlabel(theme.value_label(group, sweep))
    for axis in axes[::columns]:
        axis.set_ylabel(f"{theme.measure_label('ssim', look.convention)}\nto the reference map")
    theme.limit_similarity(axes[0], rows)
    theme.headed(figure, "", theme.lines(look.styles(rows["model"])))
    theme.footnote(figure, look.sample_note(rows) + theme.STAR)
    return figure


@theme.themed
def hyperparameters_by_effect(
    sensitivity: pd.DataFrame,
    *,
    images: pd.DataFrame | None = None,
    look: Look = PLAIN,
    retraining: pd.DataFrame | None = None,
) -> Figure:
    """How far each hyperparameter moves the maps of each model.

    In units of the distance between maps of different images (`relative`). The sweep whose worst
    model is worst comes first: worst by `degree`, then by SSIM (filled, with intervals); Spearman
    stands hollow beside it, as SSIM may call an inverted map alike.

    Parameters
    ----------
    sensitivity : DataFrame
        The table `sensitivity.csv`.
    images : DataFrame, optional
        The table `images.csv`: adds a dot per image, up to 200 on average.
    look : Look, optional
    retraining : DataFrame, optional
        By sweep and model, `low` to `high`: how far retraining moves the same maps, a band. The
        legend gives `n_trainings`.
    """
    rows = _moved(theme.select(headline_draws(sensitivity), "ssim", look.convention))
    ranks = theme.select(headline_draws(sensitivity), "spearman", None)
    ranks = ranks[["sweep", "model"]].assign(turned=relative(ranks))
    rows = rows.merge(ranks.drop_duplicates(["sweep", "model"]), "left", on=["sweep", "model"])
    rows["degree"] = [degree(*pair) for pair in rows[["moved", "turned"]].to_numpy()]
    worst = rows.groupby("sweep", sort=False)[["degree", "moved"]].max()
    sweeps = sorted(worst.index, key=lambda name: (*-worst.loc[name], name))
    styles = look.styles(rows["model"])
    thickness = 0.13 + 0.02 * (len(styles) == 1)
    line_height = max(0.27, thickness * len(styles) + 0.08)
    figure, (axis,) = theme.panels(1, (10, 1.5 + line_height * len(sweeps)))
    step = thickness / line_height
    position = rows["model"].map(list(styles).index) - (len(styles) - 1) / 2
    rows["line"] = rows["sweep"].map(sweeps.index) + position * step
    for row in rows.to_dict("records"):
        _draw_mean(axis, row, styles[row["model"]])
    dots = None
    if images is not None:
        dots = theme.finite_rows(
            theme.select(headline_draws(images), "ssim", look.convention), "mean"
        )
        dots = dots.merge(rows[["sweep", "model", "line", "unit"]], on=["sweep", "model"])
        dots = dots.assign(moved=(1 - dots["mean"].astype(float)) / dots["unit"])
        dots = dots if len(dots) <= 200 * len(rows) else None
    if dots is not None:
        dot: dict[str, Any] = {"s": 7, "alpha": 0.45, "linewidth": 0, "zorder": 2}
        axis.scatter(dots["moved"], dots["line"], c=[styles[m].color for m in dots["model"]], **dot)
    handles = [] if retraining is None else _bands(axis, retraining, rows, step, styles)
    labels = hyperparameter_labels(rows.drop_duplicates("sweep").set_index("sweep").loc[sweeps])
    theme.label_lines([axis], labels)
    _zones(axis, max(axis.get_xlim()[1], 1.02 * float(worst["moved"].max()), 0.06))
    for line in range(1, len(sweeps)):
        axis.axhline(line - 0.5, color="white", linewidth=1.4, zorder=1)
    axis.grid(False)
    axis.set_xlabel(
        f"distance to the reference map by SSIM ({look.convention}; filled) and Spearman (hollow) "
        "(0: did not move, 1: maps of different images)"
    )
    first = rows[rows["sweep"] == sweeps[0]].iloc[0]
    title = (
        f"{first['hyperparameter']} of {first['method']} moves the maps most; "
        f"{(worst['degree'] >= _MUCH).sum()} of {theme.plural(len(sweeps), 'sweep')} move them "
        "much or more"
    )
    theme.headed(figure, title, [*theme.lines(styles), *handles])
    each = "; pale dots: single images" if dots is not None else ""
    theme.footnote(figure, f"{look.sample_note(rows, 'lines')} of the mean{each}")
    return figure


def _moved(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a mean, how far it says that maps moved, the ends of that, and its unit."""
    rows = theme.finite_rows(rows, "mean")
    moved = relative(rows)
    unit = ((1 - rows["mean"].astype(float)) / moved).where(moved > 0, 1.0)
    plain = {"moved_low": 1 - rows["ci_high"], "moved_high": 1 - rows["ci_low"]}
    if "relative" in rows:
        plain = {
            name: rows[name.replace("moved", "relative")].fillna(end) for name, end in plain.items()
        }
    return rows.assign(moved=moved, unit=unit, **plain)


def _draw_mean(axis: Axes, row: Mapping[str, Any], style: Style) -> None:
    """One sweep on one model: by SSIM with its interval, and by Spearman."""
    ends = [float(row["moved_low"]), float(row["moved_high"])]
    axis.plot(ends, [row["line"]] * 2, color=style.color, lw=2.2, zorder=3)
    mark = style.line | {"linestyle": "none", "markersize": 7, "zorder": 4}
    axis.plot(row["moved"], row["line"], **mark, markeredgecolor="white", markeredgewidth=0.9)
    hollow = {"markerfacecolor": "white", "markeredgecolor": style.color, "markersize": 5.5}
    axis.plot(row["turned"], row["line"], **mark | hollow | {"zorder": 3.5})


def _zones(axis: Axes, right: float) -> None:
    """Shade and name the degrees that the axis, up to `right`, reaches."""
    left = min(0, axis.get_xlim()[0])
    starts = [left, *(least for least, _ in DEGREES[1:]), math.inf]
    for index, (_, words) in enumerate(DEGREES):
        low, high = max(left, starts[index]), min(starts[index + 1], right)
        if low >= right:
            break
        axis.axvspan(low, high, color=_ZONES[index], zorder=0, linewidth=0)
        share = (high - low) / (right - left)
        # Too narrow a zone shares its neighbor's line of words.
        if share > 0.04:
            last = index == len(DEGREES) - 1
            look: dict[str, Any] = {"color": INK, "weight": "bold"} if last else {"color": QUIET}
            place: dict[str, Any] = {
                "transform": axis.get_xaxis_transform(),
                "ha": "center",
                "va": "bottom",
            }
            text = words if share > 0.12 else words.replace(" ", "\n", 1)
            axis.text(
                (low + high) / 2, 1.008, text, fontsize=8.5, linespacing=0.95, **place, **look
            )
    axis.set_xlim(left, right)


def _bands(
    axis: Axes, retraining: pd.DataFrame, rows: pd.DataFrame, step: float, styles: dict[str, Style]
) -> list[Patch]:
    """Draw how far retraining moves a sweep's maps; the legend's handle, if there is a band."""
    bounded = np.isfinite(retraining[["low", "high"]].astype(float)).all(axis=1)
    bands = retraining[bounded].drop_duplicates(["sweep", "model"])
    bands = bands.merge(rows[["sweep", "model", "line", "unit"]], on=["sweep", "model"])
    for row in bands.itertuples():
        low, high = row.low / row.unit, row.high / row.unit
        corner, width = (low, row.line - 0.5 * step), high - low
        edge: dict[str, Any] = {
            "edgecolor": styles[row.model].color,
            "linewidth": 0.6,
            "alpha": 0.7,
        }
        axis.add_patch(Rectangle(corner, width, step, zorder=1.5, **edge, **_HATCHED))
    words = f"as far as retraining moves them ({theme.span(retraining['n_trainings'])} trainings)"
    handle = Patch(**_HATCHED, edgecolor=QUIET, linewidth=0.8, label=words)
    return [handle] if len(bands) else []


@theme.themed
def measures_heatmap(sensitivity: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """Mean similarity of each sweep under every measure, a block of columns per measure.

    Parameters
    ----------
    sensitivity : DataFrame
        The table `sensitivity.csv`.
    look : Look, optional
    """
    rows = headline_draws(sensitivity)
    theme.require(rows["mean"].dropna())
    names, blocks = theme.model_order(rows["model"]), {}
    for label, group in _similarities(rows):
        table = group.pivot_table(index="sweep", columns="model", values="mean", aggfunc="first")
        if len(table):
            blocks[label] = table.astype(float).reindex(columns=names)
    theme.require(blocks)
    sweeps = [
        s for s in rows["sweep"].unique() if any(s in table.index for table in blocks.values())
    ]
    low = min(0.0, *(float(np.nanmin(table.to_numpy())) for table in blocks.values()))
    least = [str(table.reindex(sweeps).min(axis=1).idxmin()) for table in blocks.values()]
    width = 1.5 + 0.44 * len(names) * len(blocks) + 0.1 * len(blocks)
    figure, axes = theme.panels(len(blocks), (max(width, 5.4), 1.75 + 0.27 * len(sweeps)))
    for axis, (label, table) in zip(axes, blocks.items(), strict=True):
        _annotated(axis, table.reindex(sweeps), low)
        axis.set_title(label.replace(" (", "\n("), loc="left")
    axes[0].set_yticks(np.arange(len(sweeps)) + 0.5, sweeps)
    axes[0].invert_yaxis()
    title = (
        f"{least.count(least[0])} of {theme.plural(len(least), 'measure')} find {least[0]} the "
        "least stable sweep"
    )
    figure.suptitle(title, x=0.008, ha="left", fontsize=10.5, weight="bold")
    note = "mean over images and variants; dark: moved more"
    theme.footnote(figure, f"{theme.n_images(rows)}; {note}")
    return figure


def _annotated(axis: Axes, table: pd.DataFrame, low: float) -> None:
    """Cells of a table colored from `low` to 1, with their numbers; undefined ones blank."""
    values = np.ma.masked_invalid(table.to_numpy(float))
    axis.pcolormesh(values, cmap=_MOVED, vmin=low, vmax=1, edgecolors="white", linewidth=1)
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value - low < 0.5 * (1 - low) else ".15"
            place: dict[str, Any] = {"ha": "center", "va": "center", "size": 7.5}
            axis.text(column + 0.5, line + 0.5, f"{value:.2f}", color=color, **place)
    axis.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns, rotation=90, fontsize=7.5)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.grid(False)


@theme.themed
def metric_agreement(settings: pd.DataFrame, *, sweep: str, look: Look = PLAIN) -> Figure:
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
    groups = _similarities(rows)
    drawn = pd.concat([rows.head(0), *(group for _, group in groups)])
    theme.require(drawn["mean"].dropna())
    figure, axes = theme.panels(len(groups), (2.1 * len(groups) + 0.2, 2.75))
    for axis, (label, group) in zip(axes, groups, strict=True):
        theme.value_curves(axis, group, theme.reference_value(settings, sweep), look, room=4)
        axis.set_title(label, loc="left")
    axes[0].set_xlabel(theme.value_label(rows, sweep), loc="left")
    axes[0].set_ylabel("similarity to\nthe reference map")
    theme.limit_similarity(axes[0], drawn)
    theme.headed(figure, "", theme.lines(look.styles(rows["model"])))
    theme.footnote(figure, look.sample_note(drawn) + theme.STAR)
    return figure


@theme.themed
def draws_comparison(settings: pd.DataFrame, *, sweep: str, look: Look = PLAIN) -> Figure:
    """Curves with nested and with independent draws, a panel per model.

    Parameters
    ----------
    settings : DataFrame
        The table `settings.csv`.
    sweep : str
    look : Look, optional
    """
    rows = theme.select(settings[settings["sweep"] == sweep], "ssim", look.convention)
    theme.require(rows["mean"].dropna())
    styles = look.styles(rows["model"])
    size = min(max(3.3 * len(styles), 5), 10.4), 2.9
    figure, axes = theme.panels(len(styles), size)
    values = theme.ValueAxis.of(rows, theme.reference_value(settings, sweep))
    dashes = {"nested": "-", "independent": ":"}
    for axis, (name, group) in zip(axes, theme.by_model(rows), strict=True):
        for draws, dash in dashes.items():
            line = values if draws == "nested" else replace(values, reference=None)
            style = Style(styles[name].color, dash, "o")
            theme.value_curve(axis, group[group["draws"] == draws], line, style)
        values.draw(axis)
        axis.set_title(name, loc="left")
        axis.set_xlabel(theme.value_label(rows, sweep))
    axes[0].set_ylabel(f"SSIM ({look.convention})\nto the reference map")
    theme.limit_similarity(axes[0], rows)
    handles = [theme.mark(f"{n} draws", color=INK, linestyle=dash) for n, dash in dashes.items()]
    theme.headed(figure, "", handles)
    theme.footnote(figure, look.sample_note(rows))
    return figure


def hyperparameter_labels(sweeps: pd.DataFrame) -> list[str]:
    """Method, hyperparameter and name of each sweep, a row by its name."""
    return [f"{row.method}: {row.hyperparameter}  ·  {row.Index}" for row in sweeps.itertuples()]
