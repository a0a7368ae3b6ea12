"""Curves of trainings and searches."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steadymap.report.figures import theme
from steadymap.report.figures.theme import HUES, INK, PLAIN, QUIET, Look


def _whole_steps(axis: Axes, label: str) -> None:
    axis.set_xlabel(label)
    axis.locator_params(axis="x", integer=True)


@theme.themed
def search_trials(rows: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Scores of one search in the order asked, with the best so far, and against model passes.

    Parameters
    ----------
    rows : DataFrame
        Rows of `search.csv` of one search, all models.
    look : Look, optional
    """
    done = rows[rows["state"] == "complete"].sort_values("trial")
    theme.require(done, "No setting of this search could be computed.")
    threshold = done["tau"].iloc[0]
    cheapest = pd.notna(threshold)
    figure, (left, right) = theme.panels(2, (8.4, 3.3), sharey=False)
    styles = look.styles(done["model"])
    for name, group in theme.by_model(done):
        dots = styles[name].line | {"linestyle": "none"}
        score = group["ssim_mean"]
        passes = (group["forward_passes"] + group["backward_passes"]) / group["n_images"]
        asked = passes if cheapest else score
        so_far = passes.where(score >= threshold).cummin().ffill() if cheapest else score.cummin()
        left.plot(group["trial"], asked, alpha=0.45, **dots)
        line: dict[str, Any] = {"color": styles[name].color, "linestyle": styles[name].linestyle}
        left.step(group["trial"], so_far, where="post", **line)
        right.plot(passes, score, alpha=0.7, **dots)
        ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none"}
        best = group["is_best"].astype(bool)
        right.plot(passes[best], score[best], **dots | ring)
    left.set_title(f"line: {'cheapest that holds' if cheapest else 'lowest'} so far", loc="left")
    _whole_steps(left, "trial")
    left.set_ylabel("passes per image" if cheapest else "mean SSIM to the reference")
    right.set_title("cost and similarity; circle: the answer", loc="left")
    right.set_xlabel("model passes per image, forward and backward")
    right.set_ylabel(f"mean SSIM to the {'converged map' if cheapest else 'reference'}")
    if cheapest:
        right.axhline(threshold, color=QUIET, linewidth=0.9, linestyle=":")
    theme.headed(figure, "", theme.lines(styles))
    n_failed = int((rows["state"] == "failed").sum())
    theme.footnote(figure, f"{n_failed} failed, not drawn" if n_failed else "a dot is a setting")
    return figure


@theme.themed
def training_curves(curves: Mapping[str, pd.DataFrame], *, look: Look = PLAIN) -> Figure:
    """Loss and accuracies against the epoch, a line per model.

    Parameters
    ----------
    curves : mapping of str to DataFrame
        Per model, its `curves.csv`; columns that are absent or empty are left out.
    look : Look, optional
    """
    shown = theme.panel_titles("train_loss", "val_accuracy", "val_robust_accuracy")
    frames = {name: frame.dropna(axis="columns", how="all") for name, frame in curves.items()}
    measured = {column for frame in frames.values() for column in frame}
    columns = [column for column in shown if column in measured]
    theme.require(columns, "No training curves: the weights were not trained here.")
    figure, axes = theme.panels(len(columns), (3.4 * len(columns), 3.0), sharey=False)
    styles = look.styles(curves)
    for axis, column in zip(axes, columns, strict=True):
        scale = 100 if "accuracy" in column else 1
        for name, frame in frames.items():
            line = styles[name].line | {"markersize": 4, "linewidth": 1.2}
            if column in frame:
                axis.plot(frame["epoch"], scale * frame[column], **line)
            if column == "val_accuracy" and "train_accuracy" in frame:
                faint = line | {"marker": "", "alpha": 0.4}
                axis.plot(frame["epoch"], scale * frame["train_accuracy"], **faint)
        axis.set_title(shown[column], loc="left")
        _whole_steps(axis, "epoch")
        axis.set_ylim(0, 102 if scale == 100 else None)
    theme.headed(figure, "", theme.lines(styles))
    faint_note = "faint: on training images; " if "train_accuracy" in measured else ""
    theme.footnote(figure, f"{faint_note}one training per model")
    return figure


@theme.themed
def loss_curves(
    panels: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    converged: Mapping[str, float] | None = None,
) -> Figure:
    """Terms of a loss against the step, a panel per model.

    Parameters
    ----------
    panels : mapping of str to mapping
        Per model, each term's name and its values, one per step.
    converged : mapping of str to float, optional
        Per model, a step that is marked.
    """
    theme.require(panels, "No losses: nothing to draw.")
    figure, axes = theme.panels(len(panels), (min(max(2.9 * len(panels), 5.2), 10.4), 2.9))
    colors = [INK, *(dark for dark, _ in HUES)]
    looks = (("-", 1.7), ("--", 1.1), (":", 1.1), ("-.", 1.1))
    for axis, (name, terms) in zip(axes, panels.items(), strict=True):
        for index, (term, values) in enumerate(terms.items()):
            dash, width = looks[index % len(looks)]
            line: dict[str, Any] = {
                "color": colors[index % len(colors)],
                "linestyle": dash,
                "linewidth": width,
            }
            axis.plot(values, label=term, **line)
        step = (converged or {}).get(name, np.nan)
        if np.isfinite(step):
            axis.axvline(step, color=QUIET, linestyle=":", linewidth=1.3)
        axis.set_title(name, loc="left")
        _whole_steps(axis, "step")
    axes[0].set_ylabel("loss")
    theme.headed(figure, "", axes[0].get_legend_handles_labels()[0])
    theme.footnote(figure, "n = 1 image; dotted upright: converged")
    return figure
