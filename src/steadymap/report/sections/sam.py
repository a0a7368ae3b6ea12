"""The SAM paper's tables, claims and comparisons in the report."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from steadymap.analysis import readings, structure
from steadymap.analysis.claims.verdict import (
    NOT_MEASURABLE,
    NOT_RESOLVED,
    counted,
    verdict_counts,
)
from steadymap.report import paper_figures, words
from steadymap.report.document import Block, Columns, Section, Table, Text
from steadymap.report.figures import paper
from steadymap.report.gallery import Gallery
from steadymap.report.study import Study, beside, by_key, missing, records, text_of
from steadymap.report.words import VERDICTS, decimal, digits

_TABLE_S1 = {
    "ssim": "SSIM ↑",
    "localization_error": "localization ↓",
    "insertion": "insertion ↑",
    "deletion": "deletion ↓",
}

_SIMILARITIES = ("ssim", "spearman", "hog_pearson")

# A reason that at least so many claims share is stated once, below them.
_SHARED_BY = 6


def sam_sections(study: Study, gallery: Gallery) -> Iterator[Section]:
    """The SAM paper's experiments: tables, claims, figures by name."""
    drawn = {figure.name: figure for figure in paper_figures.draw(study)}
    pictures = {
        name: gallery.draw(name, figure.figure, text="paper-figure", figure=figure)
        for name, figure in drawn.items()
        if figure.figure is not None
    }
    earlier = gallery.earlier(*(name for name in drawn if name not in pictures))
    pictures |= {picture.path.stem: picture for picture in earlier}

    def show(*names: str) -> list[Block]:
        return [pictures[name] for name in names if name in pictures]

    yield words.section("paper", _paper_opening(study))
    yield words.section("table-s1", [*_table_s1(study), *show("fig5")])
    yield words.section("global-std", [*show("fig7"), _global_std(study)])
    yield words.section("claims", claims(study))
    yield words.section("comparisons", _comparisons(study))
    if len(study.table("structure")):
        yield words.section("structure", _structure(study, gallery))
    yield words.section("localization", [_localization(study)])
    others = [name for name in drawn if name in pictures and name not in ("fig5", "fig7")]
    yield words.section("paper-figures", [_figure_index(study, drawn, pictures), *show(*others)])


def _paper_opening(study: Study) -> Iterator[Block]:
    rows = study.claims()
    text = f"Of its {len(rows)} [claims](#claims), by the fact that they state:"
    text = text if len(rows) else "Its claims were not judged."
    yield Text(f"What SAM measured on ImageNet, measured here. {text}", lead=True)
    if len(rows):
        yield _verdict_counts(study, rows)
    yield Text(words.sentence("orientation"))


def _verdict_counts(study: Study, rows: pd.DataFrame) -> Table:
    """Facts by verdict, and how often the paper's size is ours too."""
    grids = rows.get("papers_grid", pd.Series("", rows.index))
    leads = counted(rows)
    counts = verdict_counts(rows)
    holm = leads["after_holm"].replace(NOT_RESOLVED, "inconclusive").value_counts()
    rows = leads.assign(direction=leads["direction"].replace(NOT_RESOLVED, "inconclusive"))
    lines = [
        {
            "verdict": verdict,
            "facts": counts[verdict],
            "after Holm": int(holm.get(verdict, 0)),
            "other grid": int((judged & grids.eq("no")).sum()),
            "size inside": int((judged & rows["size"].eq("inside")).sum()),
            "size outside": int((judged & rows["size"].eq("outside")).sum()),
            "size not compared": int((judged & rows["size"].eq("another grid")).sum()),
        }
        for verdict in VERDICTS
        for judged in [rows["direction"].eq(verdict)]
    ]
    side = (1 - study.confidence) / 2
    n_judged = len(leads) - counts[NOT_MEASURABLE]
    return words.table(
        "verdicts",
        lines,
        study,
        n_judged=n_judged,
        side=f"{100 * side:.3g} %",
        by_chance=f"{n_judged * side:.1f}",
        n_unresolved=counts[NOT_RESOLVED],
    )


def _table_s1(study: Study) -> Iterator[Block]:
    rows = study.table("table_s1")
    if rows.empty:
        yield Text("No Table S1: none of its sweeps was scored.")
        return
    metrics = {name: _TABLE_S1[name] for name in _TABLE_S1 if (rows["metric"] == name).any()}
    lines: list[dict[str, str]] = []
    for (name, model), group in rows.groupby(["row", "model"], sort=False):
        cells = by_key(group, "metric")
        ours = {
            m: f"{decimal(cell['mean'])} ± {decimal(cell['std_rms'])} / {decimal(cell['std_mean'])}"
            + _saturated(cell)
            for (m,), cell in cells.items()
        }
        lines.append({"row": str(name), "model": str(model), **dict.fromkeys(metrics, "–"), **ours})
        if paper_model := group["paper_model"].iloc[0]:
            theirs = {m: _paper_value(cell) for (m,), cell in cells.items()}
            blank = dict.fromkeys(("row", *metrics), "")
            lines.append({**blank, "model": f"paper: {paper_model}", **theirs})
    without = [] if "localization_error" in metrics else ["no image has a box"]
    if absent := [name for name in paper_figures.TABLE_ROWS if name not in set(rows["row"])]:
        without.append(f"not scored here: {', '.join(absent)}")
    papers_grids = ""
    if "paper_values" in rows:
        grids = {row["row"]: text_of(row, "paper_values").split() for row in records(rows)}
        listed = "; ".join(f"{row} {words.swept_values(grid)}" for row, grid in grids.items())
        papers_grids = f" The paper's: {listed}."
    yield words.table(
        "table-s1",
        lines,
        study,
        more={head: metric for metric, head in metrics.items()},
        alpha=study.alpha.removeprefix("alpha"),
        without_scores="".join(f"; {reason}" for reason in without),
        grids=words.grids(study, rows["sweep"]),
        papers_grids=papers_grids,
    )
    functions = {"score": lambda r: metrics[r["metric"]], "paper": _paper_value}
    scored = rows[rows["metric"].isin(metrics)]
    yield words.table("table-s1-intervals", scored, study, cells=functions)


def _saturated(row: Mapping[str, Any]) -> str:
    """Mark of a cell whose scores have no room to vary."""
    return " §" * (str(row.get("saturated")) == "True")


def _paper_value(row: Mapping[str, Any]) -> str:
    if missing(row["paper_mean"]):
        return "–"
    return f"{decimal(row['paper_mean'])} ± {decimal(row['paper_std'])}"


def _global_std(study: Study) -> Block:
    model, rows = study.accuracy_spread
    if rows.empty:
        return Text("No spread of accuracy over a sweep's settings: no accuracy was scored.")
    keyed = by_key(rows, "sweep", "metric")

    def spread(row: Mapping[str, Any], metric: str) -> str:
        cell = keyed.get((row["sweep"], metric), {})
        shown = " → ".join(digits(cell.get(name)) for name in ("std", "std_scaled"))
        return shown + _saturated(cell)

    columns: Columns = {
        name: partial(spread, metric=metric)
        for metric, (name, _) in readings.ACCURACY.items()
        if (rows["metric"] == metric).any()
    }
    who = "Mean over models" if model == "mean" else model
    grids = words.grids(study, rows["sweep"])
    lines = rows.drop_duplicates("sweep")
    return words.table("global-std", lines, study, more=columns, who=who, grids=grids)


def claims(study: Study, stem: str = "claims") -> Iterator[Block]:
    """Claims of a paper by verdict, from its table.

    Parameters
    ----------
    study : Study
    stem : str
        Name of the table.
    """
    rows = study.claims(stem)
    if rows.empty:
        yield Text("The paper's claims were not judged.")
        return
    reasons, shared, n_shared = without_shared(rows["reason"])
    yield _verdict_counts(study, rows)
    yield from _trainings_sentence(rows)
    # Tables have `value` as text, for that is what settings are.
    rows = rows.assign(value=pd.to_numeric(rows["value"], errors="coerce"), reason=reasons)
    checks = rows["kind"].eq("check")
    for verdict in dict.fromkeys([*VERDICTS, *rows["direction"]]):
        if (judged := rows["direction"].eq(verdict) & ~checks).any():
            yield from _claims_table(study, verdict, rows[judged])
    if checks.any():
        yield from _claims_table(study, "checks, which can't fail and aren't counted", rows[checks])
    repeated = f" Of {n_shared} claims, and left out above: {shared}." if shared else ""
    grids = " Both grids: column `grid`." if "papers_grid" in rows else ""
    yield Text(f"Computation: column `recipe` of `tables/{stem}.csv`.{grids}{repeated}")


def _trainings_sentence(rows: pd.DataFrame) -> Iterator[Block]:
    """What claims on robust against regular models rest on."""
    paired = rows[rows["rests_on"] != ""]
    again = paired[paired["alone"] != ""]
    alone = paired[paired["alone"] == ""]
    if len(again):
        verdicts = again["alone"].str.split(", ")
        moved = int((verdicts.map(lambda found: len(set(found))) > 1).sum())
        yield Text(
            words.sentence(
                "claims-over-trainings",
                n=len(again),
                trainings=again["rests_on"].iloc[0],
                moved=moved,
            )
        )
    if len(alone):
        pairs = alone["rests_on"].iloc[0]
        yield Text(words.sentence("claims-on-this-pair", n=len(alone), pairs=pairs))


def _claims_table(study: Study, verdict: str, rows: pd.DataFrame) -> Iterator[Block]:
    def unit(row: Mapping[str, Any]) -> str:
        n = row["n_images"]
        seen = "" if missing(n) or int(n) == 0 else f"n = {int(n)}"
        more: Any = row.get("images_to_decide")
        needed = "" if missing(more) else f"{int(more)} would decide"
        return ", ".join(filter(None, [row["unit"], seen, needed, row["rests_on"]]))

    cells = {
        "unit": unit,
        "size": lambda r: "another grid" if r.get("papers_grid") == "no" else r["size"],
        "statement": lambda r: words.as_sentence(r["statement"]),
        "reason": lambda r: words.as_sentence(r["reason"]),
        "after_holm": lambda r: r["after_holm"] or "–",
    }
    ours = ("unit", "size", "ours [{study.percent}]", "after Holm")
    without = ours if verdict == NOT_MEASURABLE else ()
    shown = words.table("claims", rows, study, cells=cells, without=without)
    title = f"{verdict.capitalize()}: {len(rows)}"
    folds = verdict not in ("holds", "fails")
    if not folds:
        yield Text(f"**{title}**")
    yield replace(shown, fold=title if folds else "")


def without_shared(reasons: pd.Series) -> tuple[pd.Series, str, int]:
    """Reasons without the last part that many of them share, the part, and how many do."""
    parts = reasons.str.split("; ")
    counts = parts.str[-1][reasons != ""].value_counts()
    if counts.empty or counts.iloc[0] < _SHARED_BY:
        return reasons, "", 0
    shared = str(counts.index[0])
    kept = ["; ".join(part[:-1] if part[-1] == shared else part) for part in parts]
    return pd.Series(kept, reasons.index), shared, int(counts.iloc[0])


def _comparisons(study: Study) -> Iterator[Block]:
    rows = study.table("comparisons")
    if rows.empty:
        yield Text("Nothing but sweeps was compared (`comparisons` in `params.yaml`).")
    else:
        yield from _noise(study, rows)
        yield from _denoising(study, rows)
        yield from _distance(study, rows)
    yield _object_size(study)


def _noise(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    rows = rows[rows["comparison"].str.endswith("-noise")]
    rows = rows[(rows["metric"] != "ssim") | (rows["convention"] == study.papers_convention)]
    keys = ["method", "value", "model"]
    lines = rows[keys].drop_duplicates()
    for metric in _SIMILARITIES:
        lines = beside(lines, rows[rows["metric"] == metric], keys, f"{metric}_")
    if len(lines):
        yield words.table("noise", lines, study)


def _denoising(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == study.papers_convention)]
    rows = rows[rows["comparison"].str.startswith("denoising-")]
    for comparison, group in rows.groupby("comparison", sort=False):
        yield _denoising_table(study, str(comparison).removeprefix("denoising-"), group)


def _denoising_table(study: Study, towards: str, rows: pd.DataFrame) -> Table:
    guided = rows["method"] == "guided_backprop"
    counts = list(dict.fromkeys(rows.loc[~guided, "value"]))
    keys = ["model", "other", "role", "pairing"]
    means = rows.assign(count=rows["value"].mask(guided, "GB"))
    means = means.pivot_table(index=keys, columns="count", values="mean", sort=False)

    def rise(row: Mapping[str, Any]) -> str:
        known = [row[count] for count in counts if not missing(row[count])]
        return f"{known[-1] - known[0]:+.3f}" if len(known) > 1 else "–"

    shown = [*counts, *means.columns.intersection(["GB"])]
    return words.table(
        "denoising",
        means.reset_index(),
        study,
        cells={"rise": rise},
        more={n: f"{{{n}:.3f}}" for n in shown},
        source="4.2, Figs. 2, S3" if towards == "gradient" else "S3",
        towards=towards,
    )


def _distance(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    rows = rows[(rows["comparison"] == "distance") & (rows["metric"] == "l1")]
    if len(rows):
        yield words.table("distance", rows, study)


def _structure(study: Study, gallery: Gallery) -> Iterator[Block]:
    rows = study.table("structure")
    alone = rows.groupby("method")["sweep"].transform("nunique") == 1
    maps = rows["method"] + (" (" + rows["sweep"] + ")").mask(alone, "")
    measure = rows["metric"].map(structure.MEASURES)
    rows = rows.assign(maps=maps, measure=pd.Categorical(measure, structure.MEASURES.values()))
    rows = rows.sort_values("measure", kind="stable").astype({"measure": str})
    yield gallery.draw("structure", paper.visible_structure(rows, look=study.look))

    def counted(row: Mapping[str, Any]) -> str:
        blank = f" (+ {row['n_degenerate']:.0f} blank)" if row["n_degenerate"] else ""
        return f"{row['n_images']:.0f}{blank}"

    yield words.table("structure", rows, study, cells={"n": counted})


def _object_size(study: Study) -> Block:
    rows = study.table("object_size")
    if rows.empty:
        return Text(words.sentence("no-objects"))
    explained = rows.groupby("model")["image_id"].nunique()
    rows = readings.seen_objects(rows)
    if rows.empty:
        return Text(words.sentence("no-seen-objects", n=int(explained.max()), least=readings.SEEN))
    rows = rows.assign(ratio=rows["area_above_half"] / rows["object_area"].where(lambda a: a > 0))
    keys = ["model", "object_size"]
    means = rows.groupby([*keys, "patch_size"])[["ratio", "peak"]].mean()

    def cell(row: Mapping[str, Any], patch: float) -> str:
        if (key := (row["model"], row["object_size"], patch)) not in means.index:
            return "–"
        return f"{means.loc[key, 'ratio']:.2f}×, {means.loc[key, 'peak']:.2g}"

    columns: Columns = {
        f"patch {patch:g} px": partial(cell, patch=patch)
        for patch in sorted(rows["patch_size"].unique())
    }
    counts = rows.groupby(keys, sort=False)["image_id"].nunique().reset_index()
    counts = counts.assign(explained=counts["model"].map(explained))
    return words.table("objects", counts, study, more=columns, least=readings.SEEN)


def _localization(study: Study) -> Block:
    trivial = study.table("localization_baselines")
    if trivial.empty:
        return Text("No image has a box, hence no localization.")
    trivial = trivial[trivial["convention"] == study.alpha]
    trivial = trivial.assign(maps="trivial: " + trivial["name"].str.replace("_", " "), model="none")
    settings = readings.nested_draws(study.table("settings"))
    settings = settings[settings["is_reference"] & (settings["convention"] == study.alpha)]
    # The first sweep of each method.
    first = settings["method"].map(settings.drop_duplicates("method").set_index("method")["sweep"])
    methods = settings[settings["sweep"] == first].assign(maps=settings["method"])
    rows = pd.concat([trivial, methods])
    rows = rows.assign(by_maps=pd.factorize(rows["maps"])[0], by_model=study.model_order(rows))
    lines = rows[rows["metric"] == "localization_error"].drop_duplicates(["maps", "model"])
    lines = beside(lines, rows[rows["metric"] == "iou"], ["maps", "model"], "iou_")
    tuned = readings.nested_draws(study.table("localization_chosen"))
    tuned = tuned[tuned["metric"] == "localization_error"]
    columns: Columns = {}
    if len(tuned):
        heading = f"error at {tuned['alpha'].iloc[0]:g}"
        columns[f"{heading} ↓"] = lambda r: decimal(r["tuned_mean"])
        lines = beside(lines, tuned, ["sweep", "method", "model"], "tuned_")
    shown = words.table(
        "localization",
        lines.sort_values(["by_maps", "by_model"]),
        study,
        more=columns,
        alpha=study.alpha.removeprefix("alpha"),
    )
    if columns:
        n = int(tuned["n_chosen_on"].iloc[0])
        tuned_note = words.sentence("tuned-note", heading=heading, n=n)
        shown = replace(shown, note=f"{shown.note} {tuned_note}")
    return shown


def _figure_index(
    study: Study, drawn: Mapping[str, paper_figures.PaperFigure], shown: Collection[str]
) -> Table:
    lines = [
        {
            "title": figure.title,
            "shows": figure.shows,
            "here": f"figures/{name}.png" if name in shown else "not drawn",
            "reason": "" if name in shown else figure.reason,
        }
        for name, figure in drawn.items()
    ]
    return words.table("figures", lines, study, n_shown=len(shown), n=len(drawn))
