"""Stability budgets in the report."""

from collections.abc import Iterator

from steadymap.report.document import Block, Cell, Table, Text
from steadymap.report.figures import budgets
from steadymap.report.gallery import MAX_LEAD_BYTES, Gallery
from steadymap.report.study import Study, missing, records, true
from steadymap.report.words import count_of, decimal, whole_percent


def budget_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Stability budget: from which count on maps agree with a converged one."""
    table = study.table("budget")
    if table.empty:
        return
    table = table.assign(reached=true(table["reached"]))
    settled = int(table["reached"].sum())
    share = float(study.param("comparisons", "budget", "share") or 0.9)
    enough = f"at least {100 * share:g} % of the images"
    yield Text(
        f"The smallest number of samples, trials or steps from which on {enough} have a map as "
        "good as a **converged** one: that of the largest number, with another seed. "
        f"Reached in {settled} of {count_of(len(table), 'case')}.",
        lead=True,
    )
    curves = study.table("budget_curves")
    if len(curves):
        yield gallery.add(
            "stability-budget",
            budgets.stability_budget(curves, table, look=study.look, share=share),
            alt="Share of images whose map is as good as converged, against the count, per method "
            "and model",
            caption="**Stability budget.** Upwards: more of the images have a map that reaches the "
            "SSIM with their converged one; to the right: more samples, trials or steps, hence "
            "passes. **Ringed**: the budget, the smallest count of the grid at which, and at every "
            f"larger one, {enough} do (shaded). What no count changes is told in words below.",
            max_bytes=MAX_LEAD_BYTES,
        )
    cells = []
    for row in records(table):
        n_max = f"{row['n_max']:g}"
        passes = "–"
        if row["reached"]:
            found = f"{row['budget']:g}"
            if not missing(row["low"]):
                high = f"> {n_max}" if missing(row["high"]) else f"{row['high']:g}"
                found += f" [{row['low']:g}, {high}]"
            passes = f"{row['forward_passes']:,.0f} / {row['backward_passes']:,.0f}"
        else:
            found = f"not reached by {n_max}"
        cells.append(
            [
                *(Cell(str(row[name])) for name in ("sweep", "method", "model")),
                Cell(f"{row['tau']:g}"),
                Cell(found, tone=None if row["reached"] else 2),
                Cell(whole_percent(row["share_at_max"])),
                Cell(decimal(row["self_similarity"])),
                Cell(passes),
                Cell(f"{int(row['n_images'])}"),
            ]
        )
    columns = ["sweep", "method", "model", "SSIM ≥", f"enough [{study.percent}]", "at the largest"]
    yield Table(
        [*columns, "two converged", "passes", "n"],
        cells,
        n_names=3,
        note="**enough**: the budget, with the interval of its bootstrap over images. **at the "
        "largest**: share of images that reach the SSIM at the largest count. **two converged**: "
        "mean SSIM of two converged maps; where it misses the threshold, no count of this grid can "
        "reach it. **passes**: forward / backward per image, at the budget.",
    )
