"""Figures in the form of the SAM paper."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steadymap.analysis.readings import ACCURACY
from steadymap.report.figures.parameters import bar_with_interval
from steadymap.report.figures.sweeps import hyperparameter_labels
from steadymap.report.figures.theme import (
    BARS,
    INK,
    NOTHING,
    PLAIN,
    Look,
    as_number,
    footnote,
    headed,
    legend,
    model_order,
    n_images,
    placeholder,
    select,
    theme,
)

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
    measures = [("ssim", look.convention, f"SSIM ({look.convention})"), *BARS]
    measures = [m for m in measures if select(rows, m[0], m[1])["mean"].notna().any()]
    if not measures:
        return placeholder(NOTHING)
    guided = rows["method"] == "guided_backprop"
    values = sorted(dict.fromkeys(rows.loc[~guided, "value"]), key=lambda v: (as_number(v), v))
    names = model_order(rows["model"])
    styles = look.styles(names)
    with theme():
        figure = Figure(figsize=(3.1 * len(measures) + 0.4, 3.7), layout="constrained")
        axes = figure.subplots(1, len(measures), squeeze=False)[0]
        for axis, (metric, kind, label) in zip(axes, measures, strict=True):
            chosen = select(rows, metric, kind)
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
            Line2D([], [], color=INK, linestyle=dash, marker=marker, ms=4.5, label=label)
            for kind, (dash, marker, label) in _TOWARDS.items()
            if kind in kinds
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 3))
        footnote(figure, f"{n_images(rows)}; bars: {look.percent} intervals")
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
        return placeholder(NOTHING)
    lines = list(dict.fromkeys(table["row"]))
    names = model_order(table["model"])
    thickness = 0.8 / len(names)
    with theme():
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
                    bar_with_interval(axis, bar, [float(cell[end]) for end in ends], shade)
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
        legend(figure, look, names, lines=False)
        footnote(
            figure,
            f"{n_images(table)}; rings: mean level; dark lines: {look.percent} intervals "
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
        return placeholder("No spread of accuracy: nothing to draw.")
    first = table.drop_duplicates("sweep").set_index("sweep")
    first = first.assign(last=first["hyperparameter"] == "seed")
    sweeps = list(first.sort_values(["method", "last", "sweep"], kind="stable").index)
    low, n = float(positive.min()) / 2, int(table["n_images"].max())
    best: tuple[float, str] = (0.0, "")
    bases = {sweep: _base_of(sweep, first) for sweep in sweeps}
    beside: dict[str, Any] = {"fontsize": 8, "xycoords": "axes fraction", "annotation_clip": False}
    with theme():
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
                    hyperparameter = first.loc[sweep, "hyperparameter"]
                    method = first.loc[sweep, "method"]
                    what = f"{hyperparameter} of {method} moves {title} {ratio:.3g} times"
                    best = max(best, (ratio, f"{what} as much as {base}"))
            axis.set_title(title, loc="left")
            if any(bases.values()):
                axis.annotate("ratio", (1, 1), (2, 6), textcoords="offset points", **beside)
            axis.set_xlabel("std over settings of the mean")
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(sweeps)), hyperparameter_labels(first, sweeps))
        axes[0].set_ylim(len(sweeps) - 0.4, -0.6)
        told = f"Largest ratio on {scaled_to:,} images: {best[1]}"
        kinds = ((_SPREAD[0], f"on {n:,} images"), (_SPREAD[1], f"scaled to {scaled_to:,} images"))
        handles = [Patch(facecolor=color, label=label) for color, label in kinds]
        headed(figure, told if best[0] else "No ratio of two spreads can be formed", handles)
        pairs = "; ".join(f"{sweep} ÷ {base}" for sweep, base in bases.items() if base)
        note = f"{n_images(table)}; dark lines: {look.percent} intervals"
        if pairs:
            note += (
                f"; ratio, on {n:,} → on {scaled_to:,} images (–: not formed, the interval of the "
                f"denominator holds 0):\n{textwrap.fill(pairs, 150)}"
            )
        footnote(figure, note)
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
                axis.plot([max(ends[0], low), ends[1]], [line + place] * 2, color=INK, lw=1)


def _base_of(sweep: str, first: pd.DataFrame) -> str:
    """Sweep to compare another with: its method's seed, else one of the same hyperparameter."""
    own = first.loc[sweep]
    others = first[(first["method"] == own["method"]) & (first.index != sweep)]
    seeds = others[others["hyperparameter"] == "seed"]
    if own["hyperparameter"] == "seed":
        return ""
    alike = others[others["hyperparameter"] == own["hyperparameter"]]
    # Of two over one hyperparameter the later is the base, so that one of them has a ratio.
    alike = alike[alike.index > sweep]
    return str(next(iter([*seeds.index, *alike.index]), ""))


def _ratio_words(row: pd.Series, base: pd.Series) -> tuple[str, float]:
    """Ratio at the study's n and scaled, in words; the scaled one, 0 where it can't be formed."""
    raw = f"{row['std'] / base['std']:.2g}" if base["std"] > 0 else "–"
    if not float(base.get("scaled_low", np.nan)) > 0:
        return f"{raw} → –", 0.0
    ratio = float(row["std_scaled"] / base["std_scaled"])
    return f"{raw} → {ratio:.2g}", ratio
