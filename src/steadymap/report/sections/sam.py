"""The SAM paper's tables, claims and comparisons in the report."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pandas as pd

from steadymap.analysis import readings
from steadymap.report import paper_figures
from steadymap.report.document import Block, Cell, Items, Section, Table, Text
from steadymap.report.gallery import MAX_PAPER_BYTES, Gallery
from steadymap.report.sections.sweeps import grids_words, size_word, values_elsewhere
from steadymap.report.study import Study, as_text, by_key, missing, records, text_of, true
from steadymap.report.words import (
    ARROWS,
    VERDICTS,
    as_sentence,
    bounds,
    count_of,
    decimal,
    digits,
    metric_row,
    swept_values,
    with_interval,
)


def sam_sections(study: Study, gallery: Gallery) -> Iterator[Section]:
    """The SAM paper's experiments: tables, claims, figures by name."""
    drawn = {one.name: one for one in paper_figures.draw(study)}
    pictures = {
        name: gallery.add(
            name,
            one.figure,
            alt=f"{one.title}: {one.shows}",
            caption=f"**{one.title}: {one.shows}.** {one.caption}",
            max_bytes=MAX_PAPER_BYTES,
        )
        for name, one in drawn.items()
        if one.figure is not None
    }
    pictures |= {
        picture.path.stem: picture
        for picture in gallery.earlier(*(name for name in drawn if name not in pictures))
    }

    def show(*names: str) -> list[Block]:
        return [pictures[name] for name in names if name in pictures]

    opening = [*_paper_opening(study)]
    yield Section("paper", "The SAM paper's experiments", opening, nav="SAM paper", brief=True)
    parts: list[tuple[str, str, list[Block], str]] = [
        ("table-s1", "Table S1 and Fig. 5", [*_table_s1(study), *show("fig5")], "Table S1"),
        ("global-std", "Fig. 7", [*show("fig7"), *_global_std(study)], "Fig. 7"),
        ("claims", "Claims", [*claims(study)], "Claims"),
        ("comparisons", "Comparisons", [*_comparisons(study)], ""),
        ("localization", "Localization beside trivial maps", [*_localization(study)], ""),
    ]
    for anchor, title, blocks, nav in parts:
        if blocks:
            yield Section(anchor, title, blocks, nav=nav, level=3, brief=anchor in _BRIEF)
    others = [name for name in drawn if name in pictures and name not in ("fig5", "fig7")]
    blocks = [_figure_index(drawn, pictures), *show(*others)]
    yield Section("paper-figures", "Figures by the paper's names", blocks, "Figs.", level=3)


def _paper_opening(study: Study) -> Iterator[Block]:
    table = study.table("claims")
    if table.empty:
        counted = "Its claims were not judged."
    else:
        counts = table["direction"].value_counts()
        listed = [
            f"{name} {int(counts.get(name, 0))}"
            + values_elsewhere(records(table[table["direction"] == name]))
            for name in VERDICTS
        ]
        counted = f"Of its {len(table)} [claims](#claims): {', '.join(listed)}. {_direction(table)}"
    yield Text(
        f"What SAM measured on ImageNet, measured here. {counted}",
        lead=True,
    )
    yield Text(
        "Its values are of other data, larger images and other networks: they stand beside ours "
        "for orientation. ↑: higher is better (of similarities: steadier); ↓: lower is better."
    )


_BRIEF = ("table-s1",)

_TABLE_S1 = {
    "ssim": "SSIM ↑",
    "localization_error": "localization ↓",
    "insertion": "insertion ↑",
    "deletion": "deletion ↓",
}


def _table_s1(study: Study) -> Iterator[Block]:
    table = study.table("table_s1")
    if table.empty:
        yield Text("No Table S1: none of its sweeps was scored.")
        return
    metrics = [name for name in _TABLE_S1 if (table["metric"] == name).any()]
    lines, long = [], []
    paper_names = as_text(table["paper_model"])
    for (row, model), own in table.groupby(["row", "model"], sort=False):
        found = by_key(own, "metric")
        line, theirs = [Cell(str(row)), Cell(str(model))], [Cell(""), Cell("")]
        for metric in metrics:
            cell = found.get((metric,))
            if cell is None:
                line.append(Cell("–"))
                theirs.append(Cell(""))
                continue
            spread = f"{decimal(cell['std_rms'])} / {decimal(cell['std_mean'])}"
            line.append(Cell(f"{decimal(cell['mean'])} ± {spread}"))
            known = not missing(cell["paper_mean"])
            value = (
                f"{decimal(cell['paper_mean'])} ± {decimal(cell['paper_std'])}" if known else "–"
            )
            theirs.append(Cell(value))
            long.append(
                [
                    *(Cell(str(row)), Cell(str(cell["sweep"])), Cell(str(model))),
                    Cell(_TABLE_S1[metric]),
                    Cell(f"{decimal(cell['mean'])} {bounds(cell, 'mean')}"),
                    Cell(f"{decimal(cell['std_rms'])} {bounds(cell, 'rms')}"),
                    Cell(decimal(cell["std_mean"])),
                    Cell(value),
                    Cell(str(int(cell["n_images"]))),
                ]
            )
        lines.append(line)
        name = paper_names[own.index[0]]
        if name:
            lines.append([Cell(""), Cell(f"paper: {name}"), *theirs[2:]])
    without = [] if "localization_error" in metrics else ["no image has a box"]
    if absent := [name for name in paper_figures.TABLE_ROWS if name not in set(table["row"])]:
        without.append(f"not scored here: {', '.join(absent)}")
    note = (
        "Ours: mean ± std over settings as rms / mean over images. The paper's, on ImageNet: mean "
        "± std (rms). SSIM by convention sam; insertion and deletion as area over the curve's "
        f"maximum; localization error at {study.alpha.removeprefix('alpha')} of the maximum"
        f"{''.join(f'; {reason}' for reason in without)}. LIME and MP are their seed sweeps."
    )
    note += grids_words(study, table["sweep"])
    if "paper_values" in table:
        theirs_of = {row["row"]: text_of(row, "paper_values").split() for row in records(table)}
        told = "; ".join(f"{row} {swept_values(values)}" for row, values in theirs_of.items())
        note += f" The paper's: {told}."
    columns = ["row", "model", *(_TABLE_S1[name] for name in metrics)]
    yield Table(columns, lines, n_names=2, note=note)
    columns = ["row", "sweep", "model", "score", f"mean [{study.percent}]"]
    columns += [f"std rms [{study.percent}]", "std mean", "paper", "n"]
    yield Table(
        columns,
        long,
        n_names=4,
        fold="Table S1 with intervals and numbers of images",
        file="tables/table_s1.csv",
    )


def _global_std(study: Study) -> Iterator[Block]:
    table = study.table("global_std")
    table = table[table["convention"].isin(["auc_over_max", study.alpha])]
    if table.empty:
        yield Text("No spread of accuracy over a sweep's settings: no accuracy was scored.")
        return
    model = "mean" if (table["model"] == "mean").any() else study.models[0]
    table = table[table["model"] == model]
    metrics = [name for name in readings.ACCURACY if (table["metric"] == name).any()]
    found = by_key(table, "sweep", "metric")
    cells = []
    for sweep in dict.fromkeys(table["sweep"]):
        rows = {metric: found.get((sweep, metric)) for metric in metrics}
        first = next(row for row in rows.values() if row)
        line = [Cell(sweep), Cell(str(first["hyperparameter"]))]
        for row in rows.values():
            std, scaled = (digits(row[name]) if row else "–" for name in ("std", "std_scaled"))
            line.append(Cell(f"{std} → {scaled}"))
        line.append(Cell(f"{int(first['n_settings'])} / {int(first['n_images'])}"))
        cells.append(line)
    who = "Mean over models" if model == "mean" else model
    yield Table(
        [
            "sweep",
            "hyperparameter",
            *(readings.ACCURACY[name][0] for name in metrics),
            "settings / n",
        ],
        cells,
        n_names=2,
        note=f"{who}: std over settings of the mean over images → what it would be on the paper's "
        "1,735 images. Per model and with intervals: `tables/global_std.csv`."
        f"{grids_words(study, table['sweep'])}",
    )


def claims(study: Study, stem: str = "claims") -> Iterator[Block]:
    """Claims of a paper by verdict, from its table."""
    table = study.table(stem)
    if table.empty:
        yield Text("The paper's claims were not judged.")
        return
    # Tables have `value` as text, for that is what settings are.
    table = table.assign(value=pd.to_numeric(table["value"], errors="coerce"))
    counts = table["direction"].value_counts()
    sizes = as_text(table["size"]).value_counts()
    gridded = "papers_grid" in table
    reasons, shared, n_shared = _without_refrain(as_text(table["reason"]))
    table = table.assign(reason=reasons)
    yield Items(
        [
            *(f"**{name}**: {int(counts.get(name, 0))}" for name in VERDICTS),
            f"of {len(table)}, none left out. Of their sizes, the paper's value lies inside our "
            f"interval in {int(sizes.get('inside', 0))}, outside in "
            f"{int(sizes.get('outside', 0))}; the others are not comparable"
            + (f", {sizes['another grid']} for their grid." if "another grid" in sizes else "."),
        ]
    )
    yield Text(_direction(table))
    others = [name for name in dict.fromkeys(table["direction"]) if name not in VERDICTS]
    for verdict in (*VERDICTS, *others):
        rows = records(table[table["direction"] == verdict])
        if not rows:
            continue
        measured = verdict != "not measurable here"
        cells = [
            [
                Cell(str(row["claim"])),
                Cell(str(row["name"])),
                Cell(digits(row["paper_value"])),
                *([Cell(_found(row)), Cell(_unit(row))] if measured else []),
                *([Cell(size_word(row))] if measured else []),
                Cell(as_sentence(text_of(row, "statement"))),
                Cell(as_sentence(text_of(row, "reason"))),
            ]
            for row in rows
        ]
        columns = ["claim", "about", "paper"]
        columns += [f"ours [{study.percent}]", "unit", "size"] if measured else []
        columns += ["the paper's statement", "what goes with it" if measured else "reason"]
        title = f"{verdict.capitalize()}: {len(rows)}{values_elsewhere(rows)}"
        fold = title if verdict not in ("holds", "fails") else ""
        if not fold:
            yield Text(f"**{title}**")
        yield Table(columns, cells, n_names=2, n_prose=2, fold=fold)
    refrain = f" Said of {n_shared} and left out above: {shared}." if shared else ""
    yield Text(
        f"**holds** or **fails**: the {study.percent} interval lies wholly on or off the claimed "
        "side. **size**: whether it holds the paper's value. How each is computed: column `recipe` "
        f"of `tables/{stem}.csv`.{refrain}"
        + (
            " **another grid**: other values were swept than the paper's, which is another "
            "question; no size is compared. Both grids: column `grid`."
            if gridded
            else ""
        )
    )


def _direction(table: pd.DataFrame) -> str:
    """What `holds` means, and for how many claims that hold the paper's size is ours too."""
    told = "**Holds** means direction only: our interval lies on the claimed side, however far."
    sizes = as_text(table.loc[table["direction"] == "holds", "size"])
    if sizes.empty:
        return told
    n = [int((sizes == name).sum()) for name in ("inside", "outside")]
    verb = "holds" if len(sizes) == 1 else "hold"
    told += (
        f" Of {count_of(len(sizes), 'claim')} that {verb}, the paper's size lies inside our "
        "interval "
        f"for {n[0]} and outside for {n[1]}"
    )
    others = int((sizes == "another grid").sum())
    rest = len(sizes) - sum(n) - others
    told += f"; {others} were measured on another grid" if others else ""
    return f"{told}; for {rest} the sizes are not comparable." if rest else f"{told}."


def _without_refrain(reasons: pd.Series) -> tuple[pd.Series, str, int]:
    """Reasons without the last part that many of them share, the part, and how many do."""
    parts = reasons.str.split("; ")
    counts = parts.str[-1][reasons != ""].value_counts()
    if counts.empty or counts.iloc[0] < 6:
        return reasons, "", 0
    shared = str(counts.index[0])
    kept = ["; ".join(said[:-1]) if said[-1] == shared else "; ".join(said) for said in parts]
    return pd.Series(kept, reasons.index), shared, int(counts.iloc[0])


def _found(row: Mapping[str, Any]) -> str:
    if missing(row["ci_low"]):
        return digits(row["value"])
    return f"{digits(row['value'])} [{digits(row['ci_low'])}, {digits(row['ci_high'])}]"


def _unit(row: Mapping[str, Any]) -> str:
    n = row["n_images"]
    counted = "" if missing(n) or int(n) == 0 else f"n = {int(n)}"
    return ", ".join(filter(None, [text_of(row, "unit"), counted]))


def _comparisons(study: Study) -> Iterator[Block]:
    table = study.table("comparisons")
    table = table.assign(
        **{name: as_text(table[name]) for name in ("other", "role", "value", "pairing", "method")}
    )
    if table.empty:
        yield Text("Nothing but sweeps was compared (`comparisons` in `params.yaml`).")
    else:
        yield from _noise(study, table)
        yield from _denoising(study, table)
        yield from _distance(study, table)
    yield from _object_size(study)


def _noise(study: Study, table: pd.DataFrame) -> Iterator[Block]:
    rows = table[table["comparison"].str.endswith("-noise")]
    cells = []
    for (method, value, model), own in rows.groupby(["method", "value", "model"], sort=False):
        line = [Cell(str(method)), Cell(str(value)), Cell(str(model))]
        for metric in ARROWS:
            line.append(Cell(with_interval(metric_row(study, own, metric))))
        line.append(Cell(str(int(metric_row(study, own, "ssim").get("n_images", 0)))))
        cells.append(line)
    if cells:
        heads = [f"{name} [{study.percent}]" for name in ARROWS.values()]
        yield Table(
            ["method", "variance", "model", *heads, "n"],
            cells,
            n_names=3,
            note="**Input noise** (paper 4.1, Figs. 3, S13): similarity of the maps of an image "
            "and of the image under Gaussian noise of that variance ([0, 1] units); ↑ less moved.",
        )


def _denoising(study: Study, table: pd.DataFrame) -> Iterator[Block]:
    for comparison in dict.fromkeys(table["comparison"]):
        if not comparison.startswith("denoising-"):
            continue
        rows = table[(table["comparison"] == comparison) & (table["metric"] == "ssim")]
        rows = rows[rows["convention"] == study.convention]
        guided = rows["method"] == "guided_backprop"
        values = list(dict.fromkeys(rows.loc[~guided, "value"]))
        cells = []
        groups = rows.groupby(["model", "other", "role", "pairing"], sort=False)
        for (model, other, role, pairing), own in groups:
            swept = by_key(own[own["method"] != "guided_backprop"], "value")
            means = [swept.get((value,), {}).get("mean") for value in values]
            line = [Cell(str(model)), Cell(f"{other} ({role})"), Cell(str(pairing))]
            line += [Cell(decimal(mean)) for mean in means]
            if guided.any():
                line.append(Cell(decimal(_mean(own[own["method"] == "guided_backprop"]))))
            known = [mean for mean in means if mean is not None and not missing(mean)]
            line.append(Cell(f"{known[-1] - known[0]:+.3f}" if len(known) > 1 else "–"))
            cells.append(line)
        towards = comparison.removeprefix("denoising-")
        columns = ["model", "towards", "images", *values, *(["GB"] if guided.any() else [])]
        yield Table(
            [*columns, "rise"],
            cells,
            n_names=3,
            note=f"**De-noising** (paper {'4.2, Figs. 2, S3' if towards == 'gradient' else 'S3'}): "
            f"SSIM ({study.convention}) of a regular model's maps and a robust model's plain "
            f"{towards}, by number of samples (0: the plain method); ↑ closer. A rise says "
            "something only beyond that of **mismatched** images (map of another image); a "
            "**control** is a robust model that is not the twin.",
        )


def _mean(rows: pd.DataFrame) -> Any:
    return rows["mean"].iloc[0] if len(rows) else None


def _distance(study: Study, table: pd.DataFrame) -> Iterator[Block]:
    rows = table[(table["comparison"] == "distance") & (table["metric"] == "l1")]
    cells = [
        [
            *(Cell(str(row[name])) for name in ("method", "value", "model")),
            Cell(with_interval(row)),
            Cell(str(int(row["n_images"]))),
        ]
        for row in records(rows)
    ]
    if cells:
        yield Table(
            ["method", "settings", "model", f"L1 ↓ [{study.percent}]", "n"],
            cells,
            n_names=3,
            note="**Distance** (paper 4.3.1, Fig. S12): mean absolute difference of the maps at "
            "the smallest and the largest setting, each map divided by its largest absolute value; "
            "↓ steadier.",
        )


def _object_size(study: Study) -> Iterator[Block]:
    table = study.table("object_size")
    if table.empty:
        yield Text(
            "**Object size** (paper Fig. 6): not compared; it needs `comparisons.object_size` and "
            "images whose object is known."
        )
        return
    table = table.assign(
        ratio=table["area_above_half"] / table["object_area"].where(lambda a: a > 0)
    )
    patches = sorted(table["patch_size"].unique())
    cells = []
    for (model, size), own in table.groupby(["model", "object_size"], sort=False):
        line = [Cell(str(model)), Cell(f"{size:g} px")]
        for patch in patches:
            part = own[own["patch_size"] == patch]
            ratio, peak = part["ratio"].mean(), part["peak"].mean()
            line.append(Cell("–" if part.empty else f"{ratio:.2f}×, {peak:.2g}"))
        line.append(Cell(str(own["image_id"].nunique())))
        cells.append(line)
    yield Table(
        ["model", "object", *(f"patch {patch:g} px" for patch in patches), "n"],
        cells,
        n_names=2,
        note="**Object size** (paper Fig. 6): objects on black under patches. Mean area above half "
        "of the map's maximum over the object's area (1: as large as the object), and mean maximum "
        "(drop of the target's probability; near 0: a blank map).",
    )


def _localization(study: Study) -> Iterator[Block]:
    trivial = study.table("localization_baselines")
    if trivial.empty:
        yield Text("No image has a box, hence no localization.")
        return
    found = by_key(trivial, "name", "metric", "convention")
    metrics = ("localization_error", "iou")

    chosen = readings.headline_draws(study.table("localization_chosen"))
    elsewhere = by_key(chosen[chosen["metric"] == "localization_error"], "sweep", "method", "model")

    def cells_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        return [Cell(with_interval(rows[name])) for name in metrics]

    def n_of(rows: Mapping[str, Mapping[str, Any]]) -> Cell:
        return Cell(str(next((int(row["n_images"]) for row in rows.values() if row), 0)))

    cells = []
    for name in dict.fromkeys(trivial["name"]):
        rows = {metric: found.get((name, metric, study.alpha), {}) for metric in metrics}
        line = [Cell(f"trivial: {name.replace('_', ' ')}"), Cell("none"), *cells_of(rows)]
        cells.append([*line, *([Cell("–")] if elsewhere else []), n_of(rows)])
    each = readings.headline_draws(study.table("settings"))
    each = each[true(each["is_reference"]) & (each["convention"] == study.alpha)]
    for method in dict.fromkeys(each["method"]):
        own = each[each["method"] == method]
        sweep = own["sweep"].iloc[0]
        made = by_key(own[own["sweep"] == sweep], "model", "metric")
        for model in study.models:
            if (model, "localization_error") not in made:
                continue
            rows = {metric: made.get((model, metric), {}) for metric in metrics}
            line = [Cell(method), Cell(model), *cells_of(rows)]
            other = elsewhere.get((sweep, method, model), {})
            cells.append(
                [*line, *([Cell(decimal(other.get("mean")))] if elsewhere else []), n_of(rows)]
            )
    columns = ["maps", "model", "localization error ↓", "IoU ↑"]
    note = (
        "Maps that know no model, then methods at the reference setting of their first sweep. "
        f"Means over images with {study.percent} intervals, box of what exceeds "
        f"{study.alpha.removeprefix('alpha')} of the map's maximum; the error is the share of "
        "images with an IoU of at most .5."
    )
    if elsewhere:
        one = next(iter(elsewhere.values()))
        columns.append(f"error at {one['alpha']:g} ↓")
        note += (
            f" **error at {one['alpha']:g}**: at the threshold that served best on "
            f"{int(one['n_chosen_on'])} images, over the others and all settings of that sweep."
        )
    yield Table([*columns, "n"], cells, n_names=2, note=note)


def _figure_index(drawn: Mapping[str, paper_figures.PaperFigure], shown: Collection[str]) -> Table:
    cells = [
        [
            Cell(one.title),
            Cell(one.shows),
            Cell(f"figures/{name}.png" if name in shown else "not drawn"),
            Cell("" if name in shown else one.reason),
        ]
        for name, one in drawn.items()
    ]
    n_drawn = len(shown)
    return Table(
        ["figure", "what the paper's shows", "here", "why not"],
        cells,
        n_names=3,
        n_prose=1,
        note=f"{n_drawn} of {len(drawn)} are drawn.",
    )
