"""Stability budgets."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from steadymap.report.figures import theme
from steadymap.report.figures.theme import PLAIN, QUIET, Look, Style

_RED = "#c2185b"

_RING: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none"}
_RING |= {"markeredgecolor": _RED, "markeredgewidth": 1.6, "linestyle": "none"}


@theme.themed
def stability_budget(
    curves: pd.DataFrame, budgets: pd.DataFrame, look: Look = PLAIN, *, share: float = 0.9
) -> Figure:
    """How many images have a map as good as converged, against the count; a ring marks a budget.

    A panel per sweep and threshold where that changes with the count; a line of words where no
    image reaches the threshold, or enough images always do.

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
    theme.require(curves, "No stability budget was measured.")
    rows = curves.astype({"value": float})
    shares = rows.groupby(["sweep", "tau"])["share"]
    changes = (shares.transform("max") > 0) & (shares.transform("min") < share)
    sentences = list(_flat_words(rows[~changes]))
    reached = budgets[budgets["reached"].astype(str) == "True"]
    title = _budget_words(reached, len(budgets))
    panels = [
        panel
        for _, sweep in rows[changes].groupby("sweep", sort=False)
        for _, panel in sweep.groupby("tau")
    ]
    theme.require(panels, "\n".join([title, *sentences]))
    extra = 1.15 + 0.16 * len(sentences)
    figure, axes = theme.small_multiples(len(panels), height=1.9, extra=extra)
    styles = look.styles(rows["model"])
    for axis, group in zip(axes, panels, strict=True):
        _share_panel(axis, group, styles, share)
        points = group.merge(reached, on=["sweep", "model", "tau"], suffixes=("", "_reached"))
        for row in points[points["value"] == points["budget"].astype(float)].itertuples():
            place = (row.budget, 100 * row.share)
            axis.plot(*place, **_RING, zorder=6)
            beside: dict[str, Any] = {"textcoords": "offset points", "color": _RED}
            beside |= {"ha": "right", "va": "center", "weight": "bold"}
            axis.annotate(f"{row.budget:g}", place, (-10, 0), **beside)
    axes[0].set_ylim(-4, 106)
    axes[0].set_yticks([0, 50, 100 * share], ["0 %", "50 %", f"{100 * share:g} %"])
    figure.supylabel("images as good as converged", fontsize=9)
    ring = theme.mark("budget: from here on enough images", **_RING)
    theme.headed(figure, title, [*theme.lines(styles), ring])
    note = f"across: samples, trials or steps; {look.sample_note(rows)}"
    figure.supxlabel("\n".join([*sentences, note]), x=0.008, ha="left", fontsize=8, color=QUIET)
    return figure


def _flat_words(rows: pd.DataFrame) -> Iterator[str]:
    """Sentences on sweeps without a curve, thresholds of one kind together."""
    for (method, sweep), group in rows.groupby(["method", "sweep"], sort=False):
        always = group.groupby("tau")["share"].transform("min") > 0
        for enough, flat in group.groupby(always):
            thresholds = " or ".join(f"{tau:g}" for tau in sorted(flat["tau"].unique()))
            if enough:
                images, least = f"enough images reach SSIM {thresholds}", flat["value"].min()
                yield f"{method} ({sweep}): {images} from {least:g} on."
                continue
            best = flat.groupby("model")["ssim"].max()
            ends = dict.fromkeys(f"{value:.2f}" for value in (best.min(), best.max()))
            yield (
                f"{method} ({sweep}): no image reaches SSIM {thresholds} by "
                f"{flat['value'].max():g}; the mean there is {' to '.join(ends)}."
            )


def _budget_words(reached: pd.DataFrame, n: int) -> str:
    """Title: how many cases have a budget, and which ones where they are few."""
    if reached.empty:
        return f"No count is enough: {n} of {n} cases need more than this grid has"
    cases = f"Enough samples in {len(reached)} of {theme.plural(n, 'case')}"
    if len(reached) > 3:
        return cases
    budgets = [
        f"{row.budget:g} for {row.method} on {row.model} (SSIM ≥ {row.tau:g})"
        for row in reached.itertuples()
    ]
    return f"{cases}: {', '.join(budgets)}"


def _share_panel(axis: Axes, rows: pd.DataFrame, styles: Mapping[str, Style], share: float) -> None:
    """Share of images that reach a threshold, a line per model, with intervals."""
    method, sweep, tau = rows[["method", "sweep", "tau"]].iloc[0]
    axis.set_title(f"{method} ({sweep})\nSSIM ≥ {tau:g}", loc="left", fontsize=8.5)
    axis.axhspan(100 * share, 106, color="#eaf3ea", zorder=0, linewidth=0)
    axis.axhline(100 * share, color=QUIET, linewidth=1.1, zorder=1)
    n_models = rows["model"].nunique()
    for index, (name, group) in enumerate(theme.by_model(rows.sort_values("value"))):
        # Beside each other, as shares of few images are often equal; in steps of a log axis.
        positions = group["value"] * (1.0 + 0.05 * (index - (n_models - 1) / 2))
        line, columns = styles[name].line, ("share", "low", "high")
        theme.error_bars(axis, positions, group, columns, scale=100, elinewidth=0.8, **line)
    axis.grid(False, axis="x")
    values = sorted(rows["value"].unique())
    axis.set_xscale("log")
    axis.set_xlim(values[0] / 1.3, values[-1] * 1.25)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)
