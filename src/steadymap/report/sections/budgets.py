"""Stability budgets in the report."""

from collections.abc import Iterator
from typing import Any

from steadymap.report import words
from steadymap.report.document import Block, Cell, Text
from steadymap.report.figures import budgets
from steadymap.report.gallery import Gallery
from steadymap.report.study import Study, missing


def budget_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Stability budget: from which count on maps agree with a converged one."""
    rows, curves = study.table("budget"), study.table("budget_curves")
    if rows.empty:
        return
    share = study.budget_share
    reached, cases = rows["reached"].sum(), words.count_of(len(rows), "case")
    yield Text(words.sentence("budget", share=100 * share, reached=reached, cases=cases), lead=True)
    if len(curves):
        yield gallery.draw(
            "stability-budget", budgets.stability_budget(curves, rows, look=study.look, share=share)
        )
    yield words.table("budget", rows, study, cells={"enough": _budget, "passes": _passes})


def _passes(row: dict[str, Any]) -> str:
    if not row["reached"]:
        return "–"
    return f"{row['forward_passes']:,.0f} / {row['backward_passes']:,.0f}"


def _budget(row: dict[str, Any]) -> Cell:
    n_max = f"{row['n_max']:g}"
    if not row["reached"]:
        return Cell(f"not reached by {n_max}", tone=2)
    high = f"> {n_max}" if missing(row["high"]) else f"{row['high']:g}"
    return Cell(
        f"{row['budget']:g}" + ("" if missing(row["low"]) else f" [{row['low']:g}, {high}]")
    )
