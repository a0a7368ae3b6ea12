"""The sensitivity plane."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from steadymap.report.figures import theme
from steadymap.report.figures.theme import INK, PLAIN, QUIET, Look, Style

_PANELS = {"ssim": "SSIM (common)", "spearman": "Spearman"}

# Inches of a panel; the room of a number in it, as shares of both axes.
_WIDTH, _HEIGHT = 3.7, 2.1
_NUMBER = 0.05, 0.042

_CROSS: dict[str, Any] = {"marker": "x", "markersize": 9, "markeredgewidth": 1.3}

_SQUARE: dict[str, Any] = {"marker": "s", "markersize": 11, "markerfacecolor": "none"}

_SHADE = "#eceff3"


@theme.themed
def sensitivity_plane(plane: pd.DataFrame, look: Look = PLAIN) -> Figure:
    """Sensitivity to the model's parameters against sensitivity to a hyperparameter.

    Both in units of how far maps of different images are apart.

    A line of panels per model, a column per similarity. Methods have a number each, the same in all
    panels; a method's sweeps share their height. Filled: its worst ranked sweep, small: its other
    sweeps, hollow: not ranked.

    Parameters
    ----------
    plane : DataFrame
        The table `plane.csv`; with `blank`, points where that is true are crossed. Squares mark
        the worst sweeps of which SSIM and rank correlation say different things (`verdict`).
    look : Look, optional
    """
    rows = theme.finite_rows(plane[plane["metric"].isin(_PANELS)], "x", "y")
    rows = rows.astype({"x": float, "y": float}).assign(
        blank=rows.get("blank", False),
        filled=rows["filled"].astype(str) == "True",
        ranked=rows["ranked"].astype(str) == "True",
        verdict=rows.get("verdict", pd.Series("", rows.index)).fillna("").astype(str),
    )
    rows["disagree"] = rows["filled"] & rows["verdict"].str.endswith("disagree")
    heights = rows.groupby("method")["y"].mean().sort_values(ascending=False, kind="stable")
    numbers = {str(method): number for number, method in enumerate(heights.index, 1)}
    metrics = [metric for metric in _PANELS if (rows["metric"] == metric).any()]
    styles = look.styles(rows["model"])
    size = 3.4 + _WIDTH * len(metrics), 1.6 + (_HEIGHT + 0.35) * len(styles)
    shared = {"columns": len(metrics), "sharex": True}
    figure, axes = theme.panels(len(styles) * len(metrics), size, **shared)
    limit = 1.08 * max(float(rows[["x", "y"]].to_numpy().max()), 0.05)
    axes[0].set(xlim=(-0.03 * limit, limit), ylim=(-0.03 * limit, limit))
    panels = [(model, metric) for model in styles for metric in metrics]
    for axis, (model, metric) in zip(axes, panels, strict=True):
        group = rows[(rows["model"] == model) & (rows["metric"] == metric)]
        _panel(axis, group, styles[model], numbers, limit)
        axis.set_title(f"{model}: {_PANELS[metric]}", loc="left")
    for axis in axes[:: len(metrics)]:
        axis.set_ylabel("moves with\nthe model →")
    for axis in axes[-len(metrics) :]:
        axis.set_xlabel("moves with the hyperparameter →\n(1: maps of different images)")
    theme.headed(figure, _title(rows), _marks(rows))
    _key(figure, rows, numbers)
    counts = rows.loc[rows["n_variants"] > 0, "n_variants"]
    variants = f", {theme.span(counts)} settings per sweep beside its reference"
    note = f"{theme.n_images(rows)}{variants if len(counts) else ''}"
    theme.footnote(figure, f"{note}; pale bars: {look.percent} intervals")
    return figure


def _marks(rows: pd.DataFrame) -> list[Any]:
    """Legend handles of what is drawn."""
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": QUIET}
    handles: list[Any] = [
        theme.mark("a method's worst sweep", markersize=6.5, markerfacecolor=QUIET, **dot),
        theme.mark("its other sweeps", markersize=3.5, markerfacecolor=QUIET, **dot),
        theme.mark("not ranked, or without a sweep", markersize=5, markerfacecolor="white", **dot),
        Patch(facecolor=_SHADE, label="below the diagonal: the setting moves more"),
    ]
    if rows["blank"].any():
        handles.append(theme.mark("mostly blank maps", **dot | _CROSS))
    if rows["disagree"].any():
        handles.append(theme.mark("undecided: SSIM and Spearman disagree", **dot | _SQUARE))
    return handles


def _key(figure: Figure, rows: pd.DataFrame, numbers: Mapping[str, int]) -> None:
    """Table of the methods' numbers, with their worst sweeps, beside the panels."""
    worst = rows[rows["filled"]].groupby("method")["sweep"].unique()
    handles = []
    for method, number in numbers.items():
        sweeps = f" ({', '.join(sorted(worst[method]))})" if method in worst else ""
        handles.append(theme.mark(f"{number:>2}  {method}{sweeps}", linestyle="none"))
    key = {"handlelength": 0, "handletextpad": 0, "alignment": "left", "fontsize": 8}
    figure.legend(handles=handles, loc="outside right center", title="methods", **key)


def _panel(
    axis: Axes, rows: pd.DataFrame, style: Style, numbers: Mapping[str, int], limit: float
) -> None:
    """One model by one similarity: a line of points per method, with the method's number."""
    axis.fill([0, limit, limit], [0, 0, limit], color=_SHADE, zorder=0, linewidth=0)
    axis.plot([0, limit], [0, limit], color=QUIET, linewidth=1.0, zorder=1)
    axis.grid(False)
    for _, sweeps in rows.groupby("method", sort=False):
        axis.plot(sweeps["x"], sweeps["y"], color=style.color, linewidth=1.2, zorder=3)
    bars: dict[str, Any] = {"color": style.color, "linewidth": 3, "alpha": 0.22, "zorder": 2}
    for row in rows[rows["filled"]].itertuples():
        axis.plot([row.x_low, row.x_high], [row.y, row.y], **bars)
        axis.plot([row.x, row.x], [row.y_low, row.y_high], **bars)
    for row in rows.sort_values(["filled", "x"]).itertuples():
        dot: dict[str, Any] = {"markeredgecolor": style.color, "linestyle": "none", "zorder": 5}
        face = style.color if row.ranked else "white"
        side = 6.5 if row.filled else 3.5 if row.ranked else 4.5
        axis.plot(row.x, row.y, "o", markersize=side, markerfacecolor=face, clip_on=False, **dot)
        if row.blank:
            axis.plot(row.x, row.y, clip_on=False, **dot | _CROSS)
        if row.disagree:
            axis.plot(row.x, row.y, clip_on=False, **dot | _SQUARE)
    halo = [withStroke(linewidth=2, foreground="white")]
    places = _number_places(rows, limit)
    left = min(x for x, _, _ in places.values()) - 0.07 * limit
    axis.set_xlim(min(left, axis.get_xlim()[0]), limit)
    for method, (x, y, side) in places.items():
        text: dict[str, Any] = {
            "va": "center",
            "ha": "left" if side > 0 else "right",
            "fontsize": 7.5,
        }
        offset: dict[str, Any] = {"xytext": (7.5 * side, 0), "textcoords": "offset points"}
        look: dict[str, Any] = {"color": INK, "zorder": 7, "path_effects": halo}
        axis.annotate(str(numbers[method]), (x, y), annotation_clip=False, **text, **offset, **look)


def _number_places(rows: pd.DataFrame, limit: float) -> dict[str, tuple[float, float, int]]:
    """Where methods' numbers stand: x, y, and the side of it, 1 right and -1 left.

    Right of a method's last sweep, left of a method without one; where another number is, one
    number further out.
    """
    width, height = _NUMBER[0] * limit, _NUMBER[1] * limit
    places: dict[str, tuple[float, float, int]] = {}
    for method, sweeps in rows.sort_values("y").groupby("method", sort=False):
        x, y = float(sweeps["x"].max()), float(sweeps["y"].iloc[0])
        side = 1 if sweeps["n_variants"].max() > 0 else -1
        near = [
            at
            for at, height_at, of in places.values()
            if of == side and abs(y - height_at) < height
        ]
        while any(abs(x - at) < 0.99 * width for at in near):
            x += side * width
        places[str(method)] = (x, y, side)
    return places


def _title(rows: pd.DataFrame) -> str:
    """Of how many methods' worst sweeps the model moves the maps surely more, by each measure."""
    worst = rows[rows["filled"]]
    if worst.empty:
        return "No sweep can be ranked beside the randomized models"
    cases = []
    for metric, measure in (("ssim", "SSIM"), ("spearman", "Spearman")):
        lows = worst.loc[worst["metric"] == metric, "difference_low"].astype(float)
        if (rows["metric"] == metric).any():
            cases.append(f"{(lows > 0).sum()} of {theme.plural(len(lows), 'case')} by {measure}")
    less = worst.loc[worst["verdict"] == "hyperparameter", "method"].unique()
    but = f"; less by both for {', '.join(less)}" if len(less) else ""
    n_open = int(worst.loc[worst["metric"] == "ssim", "disagree"].sum())
    but += f"; undecided in {n_open}, where the two disagree" if n_open else ""
    return (
        "Losing a unit of the model moves the maps more than a method's worst sweep in "
        f"{' and '.join(cases)}{but}"
    )
