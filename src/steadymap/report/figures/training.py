"""Curves of trainings, searches and benchmarks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steadymap.report.figures.theme import (
    HUES,
    INK,
    PLAIN,
    QUIET,
    Look,
    footnote,
    legend,
    model_order,
    placeholder,
    theme,
)


def search_trials(rows: pd.DataFrame, *, look: Look = PLAIN) -> Figure:
    """Scores of one search in the order asked, with the best so far, and against model passes.

    Parameters
    ----------
    rows : DataFrame
        Rows of `search.csv` of one search, all models.
    look : Look, optional
    """
    done = rows[rows["state"] == "complete"]
    if done.empty:
        return placeholder("No setting of this search could be computed.")
    tau = done["tau"].iloc[0]
    cheapest = pd.notna(tau)
    with theme():
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        own = model_order(done["model"])
        styles = look.styles(own)
        for name in own:
            shade = styles[name]
            part = done[done["model"] == name].sort_values("trial")
            passes = (part["forward_passes"] + part["backward_passes"]) / part["n_images"]
            dots: dict[str, Any] = {
                "color": shade.color,
                "marker": shade.marker,
                "linestyle": "none",
                "markersize": 4.5,
            }
            score = part["ssim_mean"]
            if cheapest:
                so_far = passes.where(score >= tau).cummin().ffill()
                left.plot(part["trial"], passes, alpha=0.45, **dots)
            else:
                so_far = score.cummin()
                left.plot(part["trial"], score, alpha=0.45, **dots)
            left.step(
                part["trial"], so_far, where="post", color=shade.color, linestyle=shade.linestyle
            )
            right.plot(passes, score, alpha=0.7, **dots)
            best = part["is_best"].astype(bool)
            right.plot(
                passes[best],
                score[best],
                linestyle="none",
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=shade.color,
            )
        answer = "cheapest that holds" if cheapest else "lowest"
        left.set_title(f"line: {answer} so far", loc="left")
        left.set_xlabel("trial")
        left.set_ylabel("passes per image" if cheapest else "mean SSIM to the reference")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set_title("cost and similarity; circle: the answer", loc="left")
        right.set_xlabel("model passes per image, forward and backward")
        right.set_ylabel(f"mean SSIM to the {'converged map' if cheapest else 'reference'}")
        if cheapest:
            right.axhline(tau, color=QUIET, linewidth=0.9, linestyle=":")
        legend(figure, look, own, lines=True)
        failed = int((rows["state"] == "failed").sum())
        footnote(figure, f"{failed} failed, not drawn" if failed else "a dot is a setting")
    return figure


def training_curves(curves: Mapping[str, pd.DataFrame], *, look: Look = PLAIN) -> Figure:
    """Loss and accuracies against the epoch, a line per model.

    Parameters
    ----------
    curves : mapping of str to DataFrame
        Per model, its `curves.csv`; columns that are absent or empty are left out.
    look : Look, optional
    """
    panels = [
        ("train_loss", "training loss (cross-entropy)", None),
        ("val_accuracy", "validation accuracy (%)", "train_accuracy"),
        ("val_robust_accuracy", "accuracy under attack (%)", None),
    ]

    def has(column: str) -> bool:
        return any(column in frame and frame[column].notna().any() for frame in curves.values())

    panels = [panel for panel in panels if has(panel[0])]
    if not panels:
        return placeholder("No training curves: the weights were not trained here.")
    with theme():
        figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        styles = look.styles(list(curves))
        for axis, (column, label, faint) in zip(axes, panels, strict=True):
            scale = 100 if "accuracy" in column else 1
            for name, frame in curves.items():
                shade = styles[name]
                for drawn, alpha in ((faint, 0.4), (column, 1.0)):
                    if drawn is None or drawn not in frame or frame[drawn].isna().all():
                        continue
                    axis.plot(
                        frame["epoch"],
                        scale * frame[drawn].astype(float),
                        color=shade.color,
                        linestyle=shade.linestyle,
                        marker=shade.marker if alpha == 1 else None,
                        alpha=alpha,
                        markersize=4,
                    )
            axis.set_title(label, loc="left")
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_ylim(0, 102 if scale == 100 else None)
        faint_note = "faint: on training images; " if has("train_accuracy") else ""
        legend(figure, look, model_order(curves), lines=True)
        footnote(figure, f"{faint_note}one training per model")
    return figure


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
    if not panels:
        return placeholder("No losses: nothing to draw.")
    with theme():
        size = min(max(2.9 * len(panels), 5.2), 10.4), 2.9
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        looks = (("-", 1.7), ("--", 1.1), (":", 1.1), ("-.", 1.1))
        for axis, (name, terms) in zip(axes, panels.items(), strict=True):
            for index, (term, values) in enumerate(terms.items()):
                dash, width = looks[index % len(looks)]
                color = INK if index == 0 else HUES[(index - 1) % len(HUES)][0]
                steps = np.arange(len(values))
                axis.plot(steps, values, dash, color=color, linewidth=width, label=term)
            step = (converged or {}).get(name)
            if step is not None and np.isfinite(step):
                axis.axvline(step, color=QUIET, linestyle=":", linewidth=1.3)
            axis.set_title(name, loc="left")
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("loss")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles))
        footnote(figure, "n = 1 image; dotted upright: converged")
    return figure


def speed_bars(rows: pd.DataFrame) -> Figure:
    """How many times longer peers take than steadymap, a group of bars per method.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/speed.py`: case, method, fp32_ratio, channels_last_ratio.
    """
    cases = list(dict.fromkeys(rows["case"]))
    kinds = {"fp32_ratio": "as documented", "channels_last_ratio": "channels_last"}
    with theme():
        figure = Figure(figsize=(3.3 * max(2, len(cases)), 3.2), layout="constrained")
        axes = figure.subplots(1, len(cases), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, cases, strict=True):
            part = rows[rows["case"] == name].reset_index(drop=True)
            for offset, (column, label) in enumerate(kinds.items()):
                places = np.arange(len(part)) + 0.38 * (offset - 0.5)
                axis.bar(places, part[column], 0.36, color=HUES[0][offset], label=label)
            axis.axhline(1, color=INK, linewidth=1)
            axis.set_title(name, loc="left")
            labels = part["method"].str.replace("_", "\n").tolist()
            axis.set_xticks(range(len(part)), labels, rotation=90)
            axis.grid(False, axis="x")
        axes[0].set_ylabel("peers' seconds / ours")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title="peers", loc="outside right upper")
    return figure


def growth_curves(rows: pd.DataFrame) -> Figure:
    """Seconds and peak memory against each size that was varied, both axes logarithmic.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/growth.py`: axis, value, seconds, megabytes.
    """
    axes_named = list(dict.fromkeys(rows["axis"]))
    with theme():
        figure = Figure(figsize=(3.0 * max(2, len(axes_named)), 4.6), layout="constrained")
        grid = figure.subplots(2, len(axes_named), squeeze=False, sharey="row")
        labels = {"seconds": "seconds", "megabytes": "peak memory (MB)"}
        for column, name in enumerate(axes_named):
            part = rows[rows["axis"] == name].sort_values("value")
            for axis, (measure, label) in zip(grid[:, column], labels.items(), strict=True):
                axis.plot(part["value"], part[measure], marker="o", color=HUES[0][0], markersize=4)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log", base=2)
                axis.set_xticks(part["value"].tolist(), [f"{v:g}" for v in part["value"]])
                for scale in (axis.yaxis,):
                    scale.set_major_formatter("{x:g}")
                if column == 0:
                    axis.set_ylabel(label)
            grid[1, column].set_xlabel(name)
    return figure
