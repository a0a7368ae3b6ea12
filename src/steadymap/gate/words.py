"""The gate's outcome in words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from steadymap.gate.baseline import (
    INCONCLUSIVE,
    LEAST_MARGIN,
    MISSING,
    MOVED,
    SAME,
    VERDICTS,
    Measured,
    borrowed,
    cell_name,
    differences,
    read,
    retraining_table,
)
from steadymap.gate.compare import compare, exit_code


def verdict(
    baseline: Path, current: Path, *, margins_of: Path | None = None, retraining: Path
) -> tuple[str, int]:
    """Compare two folders: what was found, as Markdown, and the exit code.

    Parameters
    ----------
    baseline, current : Path
        As `read` takes them.
    margins_of : Path, optional
        A baseline whose margins count where `baseline` has none of its own.
    retraining : Path
        As `retraining_table` takes it.
    """
    old, new = read(baseline), read(current)
    # Without a committed baseline there are none to borrow, and the table says so.
    if margins_of and margins_of.is_dir():
        old = borrowed(old, read(margins_of))
    table = compare(old, new, retraining=retraining_table(retraining))
    return markdown(table, old, new), exit_code(table)


def markdown(table: pd.DataFrame, baseline: Measured, current: Measured, *, most: int = 30) -> str:
    """What `compare` found, as Markdown: counts, the worst cells, what to do next."""
    counts = table["verdict"].value_counts().reindex(list(VERDICTS), fill_value=0)
    titles = {0: "green", 1: "red", 2: "undecided"}
    told = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    lines = [
        f"## Regression gate: {titles[exit_code(table)]}",
        "",
        f"{told}, of {len(table)} cells.",
    ]
    lines += ["", f"`{current.source}` against `{baseline.source}`{_accepted(baseline)}.", ""]
    weights, _ = differences(baseline, current)
    if weights:
        lines += [
            f"**Other weights** ({'; '.join(weights.values())}): these cells are held to what "
            "other trainings do, and none can be called moved. Measure both sides with the same "
            "weights (`stages/measure.py`) to tell.",
            "",
        ]
    groups = table.assign(verdict=pd.Categorical(table["verdict"], VERDICTS))
    by_method = pd.crosstab(groups["method"], groups["verdict"], dropna=False)
    lines += _grid(
        ["method", *VERDICTS],
        ([str(row.Index), *map(str, row[1:])] for row in by_method.itertuples()),
    )
    unheld = _unheld(table)
    if unheld.any():
        by_sweep = [
            f"{name} {n}" for name, n in table[unheld].groupby("sweep", sort=False).size().items()
        ]
        lines += [
            "",
            f"**No retraining margin**: {_cells(unheld.sum())} of other weights can only be "
            f"inconclusive, left out below: {', '.join(by_sweep)}.",
        ]
    worst = table[(table["verdict"] != SAME) & ~unheld]
    if len(worst):
        lines += ["", "Worst first; d = current - baseline, its mean over images:", ""]
        head = ["verdict", "cell", "baseline", "current", "d", "95 %, all at once", "margin"]
        lines += _grid([*head, "note"], (_row(row) for row in worst.head(most).to_dict("records")))
        if len(worst) > most:
            lines += ["", f"... and {len(worst) - most} more."]
    lines += ["", *_next(table, unheld)]
    return "\n".join(lines) + "\n"


def _unheld(table: pd.DataFrame) -> pd.Series:
    """Cells of other weights that no retraining margin is known for."""
    return (table["verdict"] == INCONCLUSIVE) & table["margin"].isna()


def _cells(n: int) -> str:
    return "1 cell" if n == 1 else f"{n} cells"


def _accepted(baseline: Measured) -> str:
    if not baseline.history and len(baseline.margins):
        return ", with margins borrowed from a committed baseline"
    if not baseline.history:
        return f", which has no margins of its own: {LEAST_MARGIN:g} for every cell"
    last = baseline.history[-1]
    return f', accepted on {last.day}: "{last.reason}"; margins {last.margins}'


def _grid(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    found = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in found]


def _row(row: Mapping[str, Any]) -> list[str]:
    interval = "" if math.isnan(row["low"]) else f"[{row['low']:.3g}, {row['high']:.3g}]"
    numbers = ["" if math.isnan(row[n]) else f"{row[n]:.4g}" for n in ("baseline", "current")]
    d = "" if math.isnan(row["d"]) else f"{row['d']:+.3g}"
    margin = "" if math.isnan(row["margin"]) else f"{row['margin']:.3g}"
    return [row["verdict"], cell_name(row), *numbers, d, interval, margin, row["note"]]


def _next(table: pd.DataFrame, unheld: pd.Series) -> list[str]:
    counts = table.loc[~unheld, "verdict"].value_counts().reindex(list(VERDICTS), fill_value=0)
    found = []
    if counts[MOVED]:
        found.append(
            "- **moved**: the change altered these numbers by more than other seeds would. If it "
            "should not have, the method and metric named say where to look, and `make test` names "
            "the first number that differs. If it should: "
            '`make accept REASON="why"`, and commit the baseline with the change.'
        )
    if counts[INCONCLUSIVE]:
        found.append(
            "- **inconclusive**: neither shown to be unmoved nor to have moved. Measure more "
            "images, or margins on reruns with other seeds (`--accept --margins`); look at the "
            "cells before accepting them."
        )
    if unheld.any():
        remedy = (
            "- **no retraining margin**: a baseline of your own at these weights, accepted before "
            'the change (`make accept REASON="why"`), holds all of them.'
        )
        # Retraining explains sweeps and randomizes no parameters.
        of_sweeps = int((~table.loc[unheld, "sweep"].str.startswith("IPR")).sum())
        if of_sweeps:
            remedy += (
                f" `python stages/retraining.py` (`--plan` says what it costs) makes margins for "
                f"the {_cells(of_sweeps)} of sweeps"
            )
            remedy += ", none for `IPR`." if of_sweeps < unheld.sum() else "."
        found.append(remedy)
    if counts[MISSING]:
        found.append(
            "- **missing**: on one side only. Run what is absent (`make repro`), or accept what "
            "was added or left out on purpose."
        )
    return found or ["Nothing to do."]
