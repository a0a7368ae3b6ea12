"""The sensitivity plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.optimize import isotonic_regression

from steadymap.report.figures.theme import (
    INK,
    NOTHING,
    PLAIN,
    QUIET,
    Look,
    Style,
    footnote,
    headed,
    model_order,
    n_images,
    placeholder,
    plural,
    theme,
)


def sensitivity_plane(plane: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """Sensitivity to the model's parameters against sensitivity to a hyperparameter.

    A line of panels per model, a column per similarity. Every method is labeled at its height,
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
        return placeholder(NOTHING)
    known = known.assign(
        blank=known.get("blank", False),
        sweep=known["sweep"].fillna("").astype(str),
        filled=known["filled"].astype(str) == "True",
        ranked=known["ranked"].astype(str) == "True",
        verdict=known.get("verdict", pd.Series("", known.index)).fillna("").astype(str),
    )
    names = model_order(known["model"])
    limit = 1.08 * max(float(known[["x", "y"]].to_numpy(float).max()), 0.05)
    most = int(known.groupby(["model", "metric"])["method"].nunique().max())
    with theme():
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
        faces = [("a method's worst sweep", 6.5, QUIET), ("its other sweeps", 3.5, QUIET)]
        dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": QUIET}
        handles: list[Any] = [
            Line2D([], [], label=words, markersize=side, markerfacecolor=face, **dot)
            for words, side, face in [*faces, ("not ranked, or without a sweep", 5, "white")]
        ]
        handles.append(Patch(facecolor=_SHADE, label="below the diagonal: the setting moves more"))
        if known["blank"].any():
            handles.append(Line2D([], [], color=QUIET, label="mostly blank maps", **_CROSS))
        if (known["filled"] & known["verdict"].map(_disagree)).any():
            words = "undecided: SSIM and Spearman disagree"
            handles.append(Line2D([], [], markeredgecolor=QUIET, label=words, **_DOUBT))
        headed(figure, _plane_words(known, panels), handles)
        counts = sorted({int(n) for n in known["n_variants"] if n > 0})
        span = " to ".join(str(n) for n in dict.fromkeys([*counts[:1], *counts[-1:]]))
        variants = f", {span} settings per sweep beside its reference" if counts else ""
        footnote(figure, f"{n_images(known)}{variants}; pale bars: {look.percent} intervals")
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


def _plane_panel(axis: Axes, rows: pd.DataFrame, style: Style, height: float) -> None:
    """One model by one similarity: a line of points per method, labeled on the right."""
    end = axis.get_xlim()[1]
    axis.fill([0, end, end], [0, 0, end], color=_SHADE, zorder=0, linewidth=0)
    axis.plot([0, end], [0, end], color=QUIET, linewidth=1.0, zorder=1)
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
        color = INK if last["filled"] else QUIET
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
        told.append(f"{n_more} of {plural(len(own), 'case')} by {measure}")
    less = worst.loc[worst["verdict"] == "hyperparameter", "method"].unique()
    but = f"; less by both for {', '.join(less)}" if len(less) else ""
    n_open = int(worst.loc[worst["metric"] == "ssim", "verdict"].map(_disagree).sum())
    but += f"; undecided in {n_open}, where the two disagree" if n_open else ""
    return (
        "Losing a unit of the model moves the maps more than a method's worst sweep in "
        f"{' and '.join(told)}{but}"
    )
