"""Figures in the form of the SAM paper."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from steadymap.analysis.readings import ACCURACY
from steadymap.report.figures import theme
from steadymap.report.figures.sweeps import hyperparameter_labels
from steadymap.report.figures.theme import INK, PLAIN, Look, Style

# How the four kinds of comparison with a robust model's map are told apart: by role and pairing.
_TOWARDS = {
    ("twin", "same"): ("-", "o", "its twin's map of the image"),
    ("twin", "mismatched"): (":", "o", "its twin's map of another image"),
    ("control", "same"): ("-", "x", "the other robust model's map"),
    ("control", "mismatched"): (":", "x", "the other's map of another image"),
}

_SPREAD = ("#c9ced5", "#48525d")

_RING: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markeredgewidth": 1.4}
_RING |= {"markerfacecolor": "white"}


@theme.themed
def towards_curves(rows: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Similarity of regular models' maps to robust models' plain ones, by number of samples.

    Guided backprop stands behind the last value.

    Parameters
    ----------
    rows : DataFrame
        Rows of `comparisons.csv` of one comparison.
    look : Look, optional
    """
    *bars, ssim = look.measures
    measures = [m for m in (ssim, *bars) if theme.select(rows, *m[:2])["mean"].notna().any()]
    theme.require(measures)
    guided = rows["method"] == "guided_backprop"
    values = theme.in_order(rows.loc[~guided, "value"])
    rows = rows.assign(position=rows["value"].where(~guided).map(values.index, "ignore"))
    rows = rows.fillna({"position": len(values)}).sort_values("position", kind="stable")
    styles = look.styles(rows["model"])
    figure, axes = theme.panels(len(measures), (3.1 * len(measures) + 0.4, 3.7), sharey=False)
    for axis, (metric, convention, label) in zip(axes, measures, strict=True):
        lines = theme.select(rows, metric, convention).groupby(
            ["model", "other", "role", "pairing", guided], sort=False
        )
        for (model, _, role, pairing, behind), group in lines:
            dash, marker, _ = _TOWARDS.get((role, pairing), ("-.", "s", ""))
            line: dict[str, Any] = {"color": styles[model].color, "marker": marker, "capsize": 2}
            line |= {"linestyle": "none" if behind else dash, "markersize": 4.5}
            line |= {"linewidth": 1.5 if role == "twin" else 0.9, "elinewidth": 1.0}
            if pairing != "same":
                line["markerfacecolor"] = "white"
                group = group.assign(ci_low=np.nan, ci_high=np.nan)
            theme.error_bars(axis, group["position"], group, **line)
        ticks = [*values, *(["GB"] if guided.any() else [])]
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_title(label, loc="left")
        axis.grid(False, axis="x")
    axes[0].set_ylabel("similarity to the robust map")
    axes[0].set_xlabel("samples (0: the plain map); GB: guided backprop", loc="left")
    present = set(zip(rows["role"], rows["pairing"], strict=True))
    handles = [theme.mark(name, color=s.color, linewidth=3) for name, s in styles.items()]
    handles += [
        theme.mark(label, color=INK, linestyle=dash, marker=marker, markersize=4.5)
        for kind, (dash, marker, label) in _TOWARDS.items()
        if kind in present
    ]
    theme.headed(figure, "", handles)
    theme.footnote(figure, look.sample_note(rows))
    return figure


@theme.themed
def level_and_spread(table: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Table S1 as bars: mean similarity, then spread (bar) and level (ring) of three accuracies.

    Parameters
    ----------
    table : DataFrame
        The table `table_s1.csv`.
    look : Look, optional
    """
    titles = theme.panel_titles("ssim", "localization_error", "deletion", "insertion")
    metrics = [metric for metric in titles if (table["metric"] == metric).any()]
    theme.require(metrics)
    lines, styles = list(dict.fromkeys(table["row"])), look.styles(table["model"])
    height = 1.25 + len(lines) * max(0.5, 0.2 * len(styles) + 0.1)
    figure, axes = theme.panels(len(metrics), (2.45 * len(metrics) + 0.5, height))
    for letter, axis, metric in zip("abcd", axes, metrics, strict=False):
        cells = table[table["metric"] == metric].rename(columns={"row": "group"})
        level, spread = ("mean", "mean_low", "mean_high"), ("std_rms", "rms_low", "rms_high")
        columns = level if metric == "ssim" else spread
        positions = theme.model_bars(axis, cells, lines, styles, columns)
        if metric != "ssim":
            levels = cells.pivot(index="group", columns="model", values="mean").reindex(lines)
            _rings(axis, levels, styles, positions)
        axis.set_title(f"({letter}) {titles[metric]}", loc="left", fontsize=8.5)
        axis.set_xlim(min(0.0, axis.get_xlim()[0]), None)
    theme.label_lines(axes, lines)
    theme.headed(figure, "", theme.patches(styles))
    note = look.sample_note(table, "rings: mean level; dark lines")
    theme.footnote(figure, f"{note} of the bar")
    return figure


@theme.themed
def visible_structure(rows: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Visible structure of each method's maps as bars, and its floor as rings, a panel per measure.

    Of several sweeps of a method, the first.

    Parameters
    ----------
    rows : DataFrame
        The table `structure.csv` with a column `measure`, names of the panels.
    look : Look, optional
    """
    rows = theme.finite_rows(rows, "mean").rename(columns={"method": "group"})
    measures, lines = (list(dict.fromkeys(rows[name])) for name in ("measure", "group"))
    rows = rows.drop_duplicates(["group", "measure", "model"])
    styles = look.styles(rows["model"])
    height = 1.25 + len(lines) * max(0.4, 0.16 * len(styles) + 0.1)
    figure, axes = theme.panels(len(measures), (2.6 * len(measures) + 1.6, height))
    for axis, measure in zip(axes, measures, strict=True):
        cells = rows[rows["measure"] == measure]
        columns = ("mean", "mean_low", "mean_high")
        positions = theme.model_bars(axis, cells, lines, styles, columns)
        floors = cells.pivot(index="group", columns="model", values="floor").reindex(lines)
        _rings(axis, floors, styles, positions, INK)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_title(f"{measure}: maps, and floor", loc="left", fontsize=8.5)
    theme.label_lines(axes, lines)
    ring = theme.mark("floor", **_RING, markeredgecolor=INK, linestyle="none")
    theme.headed(figure, "", [*theme.patches(styles), ring])
    theme.footnote(figure, f"{look.sample_note(rows, 'dark lines')} of the bar")
    return figure


def _rings(
    axis: Axes,
    levels: pd.DataFrame,
    styles: Mapping[str, Style],
    positions: Sequence[np.ndarray],
    color: str = "",
) -> None:
    """Rings on the lines of each model's bars.

    Parameters
    ----------
    axis : Axes
    levels : DataFrame
        A column per model, a line per group of bars.
    styles : mapping of str to Style
    positions : sequence of ndarray
        Of each model's bars.
    color : str
        Of all rings; each model's where empty.
    """
    for (name, style), position in zip(styles.items(), positions, strict=True):
        if name in levels:
            axis.plot(
                levels[name], position, **_RING, linestyle="", markeredgecolor=color or style.color
            )


@theme.themed
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
    metrics = [
        metric
        for metric in ("localization_error", "deletion", "insertion")
        if (table["metric"] == metric).any()
    ]
    spreads = table[["std", "std_scaled"]].to_numpy(float)
    spreads = spreads[spreads > 0]
    if not metrics or not spreads.size:
        raise theme.NothingToDrawError("No spread of accuracy: nothing to draw.")
    sweeps = table.drop_duplicates("sweep").set_index("sweep")
    sweeps = sweeps.assign(is_seed=sweeps["hyperparameter"] == "seed")
    sweeps = sweeps.sort_index().sort_values(["method", "is_seed"], kind="stable")
    bases = {str(sweep): _base_of(sweep, sweeps) for sweep in sweeps.index}
    low, n = spreads.min() / 2, int(table["n_images"].max())
    size = (2.7 * len(metrics) + 2.7, 1.8 + 0.36 * len(sweeps))
    figure, axes = theme.panels(len(metrics), size, sharex=True)
    axes[0].set(xscale="log", xlim=(low, spreads.max() * 2))
    ratios = []
    for axis, metric in zip(axes, metrics, strict=True):
        name = ACCURACY[metric][0]
        cells = table[table["metric"] == metric].drop_duplicates("sweep").set_index("sweep")
        _spread_bars(axis, cells.reindex(sweeps.index), low)
        beside: dict[str, Any] = {"fontsize": 8, "textcoords": "offset points"}
        beside |= {"xycoords": axis.get_yaxis_transform(), "annotation_clip": False}
        for line, (sweep, base) in enumerate(bases.items()):
            if sweep in cells.index and base in cells.index:
                words, ratio = _ratio(cells.loc[sweep], cells.loc[base])
                axis.annotate(words, (1, line), (2, 0), va="center", **beside)
                moved = "{0.hyperparameter} of {0.method}".format(sweeps.loc[sweep])
                ratios.append((ratio, f"{moved} moves {name} {ratio:.3g} times as much as {base}"))
        axis.set_title(name, loc="left")
        if any(bases.values()):
            axis.annotate("ratio", (1, -0.6), (2, 6), **beside)
        axis.set_xlabel("std over settings of the mean")
    theme.label_lines(axes, hyperparameter_labels(sweeps))
    largest, words = max(ratios, default=(0.0, ""))
    title = f"Largest ratio on {scaled_to:,} images: {words}"
    labels = f"on {n:,} images", f"scaled to {scaled_to:,} images"
    handles = [Patch(facecolor=c, label=label) for c, label in zip(_SPREAD, labels, strict=True)]
    theme.headed(figure, title if largest else "No ratio of two spreads can be formed", handles)
    note = look.sample_note(table, "dark lines")
    if any(bases.values()):
        pairs = "; ".join(f"{sweep} ÷ {base}" for sweep, base in bases.items() if base)
        note += (
            f"; ratio, on {n:,} → on {scaled_to:,} images (–: not formed, the interval of the "
            f"denominator holds 0):\n{textwrap.fill(pairs, 150)}"
        )
    theme.footnote(figure, note)
    return figure


def _spread_bars(axis: Axes, cells: pd.DataFrame, low: float) -> None:
    """Spread of each sweep, a line each, at both numbers of images, with intervals."""
    names = (("std", "std_low", "std_high"), ("std_scaled", "scaled_low", "scaled_high"))
    for offset, color, columns in zip((-0.18, 0.18), _SPREAD, names, strict=True):
        spread, least, most = cells.reindex(columns=list(columns)).to_numpy(float).T
        lines, drawn = np.arange(len(cells)) + offset, spread > low
        axis.barh(lines[drawn], spread[drawn] - low, 0.34, left=low, color=color, linewidth=0)
        ends = np.array([np.maximum(least, low), most])[:, drawn]
        axis.plot(ends, np.tile(lines[drawn], (2, 1)), color=INK, linewidth=1)


def _base_of(sweep: Any, sweeps: pd.DataFrame) -> str:
    """Sweep to compare another with: its method's seed, else one of the same hyperparameter."""
    row = sweeps.loc[sweep]
    others = sweeps[(sweeps["method"] == row["method"]) & (sweeps.index != sweep)]
    if row["is_seed"]:
        return ""
    # Of two over one hyperparameter the later is the base, so that one of them has a ratio.
    later = (others["hyperparameter"] == row["hyperparameter"]) & (others.index > sweep)
    return str(next(iter([*others.index[others["is_seed"]], *others.index[later]]), ""))


def _ratio(row: pd.Series, base: pd.Series) -> tuple[str, float]:
    """Ratio at the study's n and scaled, in words; the scaled one, 0 where it can't be formed."""
    if any(str(part.get("saturated")) == "True" for part in (row, base)):
        return "saturated", 0.0
    raw = f"{row['std'] / base['std']:.2g}" if base["std"] > 0 else "–"
    if not float(base.get("scaled_low", np.nan)) > 0:
        return f"{raw} → –", 0.0
    ratio = float(row["std_scaled"] / base["std_scaled"])
    return f"{raw} → {ratio:.2g}", ratio
