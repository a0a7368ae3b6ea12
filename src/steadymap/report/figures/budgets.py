"""Stability budgets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from steadymap.report.figures.theme import (
    PLAIN,
    QUIET,
    Look,
    Style,
    legend,
    model_order,
    n_images,
    panel_grid,
    placeholder,
    plural,
    theme,
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
        return placeholder("No stability budget was measured.")
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
        return placeholder("\n".join([title, *told]))
    with theme():
        extra = 1.15 + 0.16 * len(told)
        figure, axes = panel_grid(len(panels), height=1.9, extra=extra, sharex=False)
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
        legend(figure, look, rows["model"], lines=True, title=title, extra=[ring])
        note = f"across: samples, trials or steps; {n_images(rows)}; bars: {look.percent} intervals"
        figure.supxlabel("\n".join([*told, note]), x=0.008, ha="left", fontsize=8, color=QUIET)
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
    cases = f"{len(reached)} of {plural(n, 'case')}"
    return f"Enough samples in {cases}" + (f": {', '.join(told)}" if len(told) <= 3 else "")


def _share_panel(axis: Axes, rows: pd.DataFrame, styles: Mapping[str, Style], share: float) -> None:
    """Share of images that reach a threshold, a line per model, with intervals."""
    axis.axhspan(100 * share, 106, color="#eaf3ea", zorder=0, linewidth=0)
    axis.axhline(100 * share, color=QUIET, linewidth=1.1, zorder=1)
    names = model_order(rows["model"])
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
