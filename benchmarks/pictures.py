"""Pictures of what the benchmarks measured."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from steadymap.report.figures import theme
from steadymap.report.figures.theme import HUES, INK


@theme.themed
def speed_bars(rows: pd.DataFrame) -> Figure:
    """How many times longer peers take than steadymap, a group of bars per method.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/speed.py`: case, method, fp32_ratio, channels_last_ratio.
    """
    kinds = {"fp32_ratio": "as documented", "channels_last_ratio": "channels_last"}
    n = rows["case"].nunique()
    figure, axes = theme.panels(n, (3.3 * max(2, n), 3.2))
    for axis, (name, case) in zip(axes, rows.groupby("case", sort=False), strict=True):
        positions = np.arange(len(case))
        for offset, (column, label), color in zip(
            (-0.19, 0.19), kinds.items(), HUES[0], strict=True
        ):
            axis.bar(positions + offset, case[column], 0.36, color=color, label=label)
        axis.axhline(1, color=INK, linewidth=1)
        axis.set_title(name, loc="left")
        axis.set_xticks(positions, case["method"].str.replace("_", "\n"), rotation=90)
        axis.grid(False, axis="x")
    axes[0].set_ylabel("peers' seconds / ours")
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles=handles, title="peers", loc="outside right upper")
    return figure


@theme.themed
def growth_curves(rows: pd.DataFrame) -> Figure:
    """Seconds and peak memory against each size that was varied, both axes logarithmic.

    Parameters
    ----------
    rows : DataFrame
        Of `benchmarks/growth.py`: axis, value, seconds, megabytes.
    """
    labels = {"seconds": "seconds", "megabytes": "peak memory (MB)"}
    n = rows["axis"].nunique()
    figure, axes = theme.panels(2 * n, (3.0 * max(2, n), 4.6), columns=n, sharey="row")
    for column, (name, group) in enumerate(rows.groupby("axis", sort=False)):
        group = group.sort_values("value")
        for axis, (measure, label) in zip(axes[column::n], labels.items(), strict=True):
            axis.plot(group["value"], group[measure], marker="o", color=HUES[0][0], markersize=4)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(group["value"].tolist(), [f"{value:g}" for value in group["value"]])
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_ylabel(label if column == 0 else "")
        axis.set_xlabel(name)
    return figure
