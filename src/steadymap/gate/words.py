"""The gate's verdict as a page."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from steadymap.gate.baseline import (
    LEAST_MARGIN,
    Measured,
    borrowed,
    cell_name,
    differences,
    read,
    retraining_table,
)
from steadymap.gate.compare import INCONCLUSIVE, SAME, VERDICTS, compare, exit_code


def verdict(
    baseline: Path, current: Path, *, margins_of: Path | None = None, retraining: Path
) -> tuple[str, int]:
    """Compare two folders: the verdict as Markdown, and the exit code.

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
    # Without a committed baseline there are none to borrow, and the page says so.
    if margins_of and margins_of.is_dir():
        old = borrowed(old, read(margins_of))
    table = compare(old, new, retraining=retraining_table(retraining))
    return markdown(table, old, new), exit_code(table)


def markdown(table: pd.DataFrame, baseline: Measured, current: Measured, *, most: int = 30) -> str:
    """Verdict as Markdown: counts, the worst cells, what to do next.

    Parameters
    ----------
    table : DataFrame
        As `compare` gives it.
    baseline, current : Measured
        What was compared.
    most : int
        Number of cells to list.
    """
    # Of other weights, without a known spread between trainings: listed by number alone.
    unheld = (table["verdict"] == INCONCLUSIVE) & table["margin"].isna()
    groups = table.assign(verdict=pd.Categorical(table["verdict"], VERDICTS))
    by_method = pd.crosstab(groups["method"], groups["verdict"], dropna=False)
    worst = table[(table["verdict"] != SAME) & ~unheld].to_dict("records")
    return page(
        "verdict.md.jinja",
        code=exit_code(table),
        verdicts=VERDICTS,
        counts=groups["verdict"].value_counts().to_dict(),
        n_cells=len(table),
        baseline=baseline.source,
        current=current.source,
        last=baseline.history[-1] if baseline.history else None,
        borrowed=len(baseline.margins) > 0,
        least_margin=LEAST_MARGIN,
        weights=list(differences(baseline, current)[0].values()),
        by_method=by_method.reset_index().to_numpy().tolist(),
        unheld=table[unheld].groupby("sweep", sort=False).size().to_dict(),
        # Retraining explains sweeps and randomizes no parameters.
        n_sweep_cells=int((~table.loc[unheld, "sweep"].str.startswith("IPR")).sum()),
        held=groups.loc[~unheld, "verdict"].value_counts().to_dict(),
        worst=[{**row, "cell": cell_name(row)} for row in worst],
        most=most,
    )


def page(template: str, **values: Any) -> str:
    """Markdown page by a template of this folder."""
    text = resources.files("steadymap.gate").joinpath(template).read_text("utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text).render(values).rstrip("\n") + "\n"
