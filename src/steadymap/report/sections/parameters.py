"""Sensitivity to the model's parameters in the report."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis import readings
from steadymap.analysis.parameters import DISAGREE
from steadymap.analysis.readings import mostly_blank, parameter_verdict
from steadymap.report.document import Block, Cell, Items, Picture, Section, Table, Text
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import parameters as figures_parameters
from steadymap.report.figures import plane as figures_plane
from steadymap.report.gallery import MAX_LEAD_BYTES, MAX_PAPER_BYTES, Gallery
from steadymap.report.sections.sam import claims
from steadymap.report.study import Study, as_text, by_key, missing, records, text_of, thin, true
from steadymap.report.words import (
    INVERTED_WORDS,
    MAKE_UI,
    and_list,
    as_sentence,
    count_of,
    decimal,
    digits,
    grid_words,
    inverted_mark,
    meter,
    one_kind,
    own_metrics,
    rank_rows,
    two_digits,
    whole_number,
    whole_percent,
    with_bounds,
)


def _headline_ssim(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    return table[(table["metric"] == "ssim") & (table["convention"] == study.convention)]


def ranked_rows(study: Study) -> pd.DataFrame:
    """Headline rows of the IPR test by model, the most sensitive method first."""
    rows = one_kind(_headline_ssim(study.table("ipr"), study))
    names = [*study.models, *dict.fromkeys(rows["model"])]
    rows = rows.assign(place=[names.index(model) for model in rows["model"]])
    return rows.sort_values(
        ["place", "S_same"], ascending=[True, False], kind="stable", ignore_index=True
    )


def _randomized_words(study: Study) -> str:
    """Images, units and weight draws behind the headline rows."""
    rows = ranked_rows(study)

    def span(column: str, noun: str) -> str:
        low, high = int(rows[column].min()), int(rows[column].max())
        return f"{low} to {count_of(high, noun)}" if low < high else count_of(high, noun)

    parts = (("n_images", "image"), ("n_units", "unit"), ("n_draws", "draw"))
    return f"{', '.join(span(*part) for part in parts)} of the weights" if len(rows) else ""


def parameter_sentences(study: Study) -> Iterator[str]:
    """Sentences on the sensitivity to parameters."""
    rows = ranked_rows(study).dropna(subset=["S_same"])
    if rows.empty:
        return
    ranks = rank_rows(study)
    keys = rows[["model", "method"]].itertuples(index=False, name=None)
    rows = rows.assign(rank_S=[ranks.get(key, {}).get("S_same", math.nan) for key in keys])
    ends = {}
    for name in ("S_same", "rank_S"):
        ordered = records(rows.dropna(subset=[name]).sort_values(name, kind="stable"))
        ends[name] = [(row["method"], row["model"]) for row in (ordered[-1:] + ordered[:1])]
    told = []
    for place, word in enumerate(("most", "least")):
        named = [f"{found[place][0]} on {found[place][1]}" for found in ends.values() if found]
        if len(set(named)) == 1 and len(named) == len(ends):
            row = by_key(rows, "method", "model")[ends["S_same"][place]]
            numbers = f"{decimal(row['S_same'])}, 1 − Spearman {decimal(row['rank_S'])}"
            told.append(f"those of {named[0]} moved {word} (mean 1 − SSIM {numbers})")
        else:
            told.append(
                f"which moved {word} is undecided: SSIM and rank correlation disagree "
                f"({' and '.join(named)})"
            )
    yield (
        f"When a unit of the model got random weights, of all maps {and_list(told)}. "
        f"{passes_sentence(rows)}"
    )


def passes_sentence(rows: pd.DataFrame) -> str:
    """How many methods pass the IPR test, as a sentence."""
    verdicts, blank = as_text(rows["passes"]), mostly_blank(rows)
    counts, hollow = verdicts.value_counts(), verdicts[blank].value_counts()
    told = ", ".join(
        f"{name} {int(counts.get(name, 0))}"
        + (f" ({int(hollow[name])} of them by mostly blank maps)" if name in hollow else "")
        for name in _PASSES
    )
    return (
        f"Sensitive to the model's parameters, of {count_of(len(rows), 'pair')} of method and "
        "model: "
        f"{told}."
    )


_PASSES = ("yes", "no", "inconclusive")


def _n_compared(rows: pd.DataFrame) -> pd.Series:
    """Pairs of maps behind each S of `ipr.csv`."""
    return rows["n_images"] * rows["n_units"] * rows["n_draws"]


def _blank_words(rows: pd.DataFrame) -> Iterator[str]:
    """Methods whose S is mostly that of empty maps."""
    rows = rows.assign(n_compared=_n_compared(rows))[mostly_blank(rows)]
    for method, own in rows.groupby("method", sort=False):
        yield (
            f"**Blank maps.** {method} on {and_list(own['model'])}: "
            f"{int(own['n_degenerate'].sum())} "
            f"of {int(own['n_compared'].sum())} maps are blank or otherwise degenerate. Its S is "
            "there what an empty map scores, whatever was randomized, and it passes by that."
        )


def plane_picture(study: Study, gallery: Gallery) -> Iterator[Block]:
    """The sensitivity plane with its caption."""
    table = study.table("plane")
    sweeps = [name for name in dict.fromkeys(as_text(table["sweep"])) if name]
    if not sweeps or table[["x", "y"]].isna().any(axis=1).all():
        return
    grids = [grid_words(study, sweep) for sweep in sweeps if sweep in study.sweeps]
    ipr = one_kind(study.table("ipr"))
    keys = ["model", "method", "metric", "convention"]
    empty = set(ipr.loc[mostly_blank(ipr), keys].itertuples(index=False, name=None))
    blank = [key in empty for key in table[keys].itertuples(index=False, name=None)]
    crossed = (
        " **Crossed**: over half of the randomized models' maps are blank, and the height is what "
        "an empty map scores."
        if any(blank)
        else ""
    )
    yield gallery.add(
        "sensitivity-plane",
        figures_plane.sensitivity_plane(table.assign(blank=blank), look=study.look),
        alt="Sensitivity to the model's parameters against sensitivity to hyperparameters",
        caption="**Sensitivity plane.** A point is one sweep of one method on one model. Upwards: "
        "how far the maps move when a unit of the model gets random weights "
        f"({_randomized_words(study)}); to the right: how far they move when the hyperparameter "
        "changes, over the same images. Higher is more sensitive, on both axes. **Above the "
        "diagonal** the maps react more to what the model learned than to the setting; below it, "
        "the setting says more than the model; what holds in one panel alone is undecided, as SSIM "
        "and rank correlation disagree. The horizontal place **depends on the values "
        f"swept**: {'; '.join(grids)}. Ranked are sweeps whose reference is the setting that the "
        "randomized models were explained with; methods without a sweep stand hollow at 0. "
        f"Points of one method and model are joined.{crossed}",
        max_bytes=MAX_LEAD_BYTES,
    )


def parameters(study: Study, gallery: Gallery) -> Iterator[Section]:
    """Sensitivity to the model's parameters (extended IPR), or one sentence that it is unknown."""
    title = "Sensitivity to the model's parameters"
    rows = ranked_rows(study)
    failures = [*_ipr_failures(study)]
    if rows.empty and not failures:
        sentence = (
            "Not measured: no model of this study was randomized (`randomization` in "
            "`params.yaml`)."
        )
        yield Section("parameters", title, [Text(sentence)], brief=True)
        return
    if rows.empty:
        blocks = [Text("No map of a randomized model could be scored."), *failures]
        yield Section("parameters", title, blocks, nav="Parameters", brief=True)
        return
    blocks = [*_parameters_opening(study, rows), *_parameters_table(study, rows, gallery)]
    yield Section("parameters", title, blocks, nav="Parameters (IPR)", brief=True)
    parts: list[tuple[str, str, list[Block], str]] = [
        ("parameter-measures", "By other similarities", [*_parameter_measures(study)], ""),
        ("units", "Unit by unit", [*_units(study, gallery)], "Units"),
        ("plane-table", "The sensitivity plane in numbers", [*_plane_table(study)], "Plane"),
        ("architectures", "Over architectures", [*_architectures(study)], ""),
        ("ipr-claims", "Claims on randomized models", [*_ipr_claims(study)], ""),
        ("ipr-failures", "What could not be computed", failures, ""),
    ]
    for anchor, name, found, nav in parts:
        if found:
            yield Section(anchor, name, found, nav=nav, level=3)


def _parameters_opening(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    yield Text(
        "One **unit** of the model, a block of layers, gets random weights; all others keep what "
        "they learned. **S** is 1 − SSIM of the maps before and after. "
        f"**The map moves more when the model loses this unit: higher is more sensitive.** "
        f"{passes_sentence(rows)}",
        lead=True,
    )
    yield Text(
        "After 'Evaluating the overall sensitivity of saliency-based explanation methods' (Sriram "
        f"& Conati), with intervals, floors and more draws. Here: {_randomized_words(study)}, "
        f"weights by `{rows['randomizer'].iloc[0]}`, units of the preset "
        f"`{rows['preset'].iloc[0]}`, order {rows['order'].iloc[0]}. In {MAKE_UI}: experiment "
        f"`steadymap/{study.name}/parameter randomization`, runs `METHOD MODEL`."
    )
    items = [
        "**Moving is a reaction, not faithfulness.** A large S says that the maps notice a change "
        "of the model. A method that draws noise moves too, hence the excess over its floor.",
        "**The mean passes, not each image.** Column `every`: the share of images (and draws) for "
        "which every unit moved the map by the threshold, the paper's stricter definition 2. The "
        "threshold comes from how people judge compressed photographs, not maps.",
        "**Units are inferred.** The paper gives their number, not their names; a mean over units "
        "depends on which are chosen.",
    ]
    if (rows["n_draws"] == 1).any():
        few = rows[rows["n_draws"] == 1]
        of = "" if len(few) == len(rows) else f" of {and_list(dict.fromkeys(few['method']))}"
        items.append(
            f"**One draw of the weights.** Intervals{of} cover images only: other random weights "
            "may give another S."
        )
    items += _blank_words(rows)
    if saturated := _saturated(study):
        items.append(saturated)
    yield Items(items, title="Before you read an S")


def _saturated(study: Study) -> str:
    """How many units the model can't do without; past that, S can't follow its function."""
    units = one_kind(_headline_ssim(study.table("ipr_units"), study))
    units = units.drop_duplicates(["model", "unit"]).dropna(subset=["kept_predictions"])
    lost = {
        model: (int((own["kept_predictions"] < 0.5).sum()), len(own))
        for model, own in units.groupby("model", sort=False)
    }
    parts = [f"{few} of {count_of(n, 'unit')} of {model}" for model, (few, n) in lost.items()]
    if not any(few for few, _ in lost.values()):
        return ""
    return (
        "**Function saturates.** Randomising a unit lost over half of the predictions for "
        f"{and_list(parts)}. Where nearly all units destroy the function alike, their order says "
        "little, and so does its correlation with S."
    )


def _parameters_table(study: Study, rows: pd.DataFrame, gallery: Gallery) -> Iterator[Block]:
    cells = []
    ranks = rank_rows(study)
    counts = zip(records(rows), _n_compared(rows), mostly_blank(rows), strict=True)
    for row, n_compared, blank in counts:
        # Deterministic methods have no noise to subtract.
        quiet = row["floor"] == 0 and row["S_fresh"] == row["S_same"]
        rank = ranks.get((row["model"], row["method"]), {})
        cells.append(
            [
                Cell(str(row["model"])),
                Cell(str(row["method"])),
                Cell(with_bounds(row, "S_same", "same"), meter=meter(1 - row["S_same"])),
                Cell(decimal(rank.get("S_same")) + inverted_mark(row)),
                Cell("= S" if quiet else decimal(row["S_fresh"])),
                Cell("0" if quiet else decimal(row["floor"])),
                Cell("= S" if quiet else with_bounds(row, "excess", "excess")),
                Cell(two_digits(row["S_rel"])),
                Cell(whole_percent(row["share_sensitive"])),
                Cell(f"{int(row['n_degenerate'])}/{int(n_compared)}", tone=2 if blank else None),
                Cell(parameter_verdict(row) or "–"),
            ]
        )
    columns = ["model", "method", f"S [{study.percent}]", "by rank"]
    columns += ["fresh", "floor", f"excess [{study.percent}]", "S_rel", "every", "blank", "passes"]
    thresholds = [f"{value:g}" for value in rows["threshold"].dropna().unique()]
    bound = f" of {and_list(thresholds)}" if thresholds else ""
    yield Table(
        columns,
        cells,
        n_names=2,
        note=f"**S**: 1 − SSIM ({study.convention}) of the trained and the randomized model's map, "
        "with the same draws of the method in both; mean over units, images and draws of the "
        "weights. **by rank**: the same as 1 − Spearman, ‡ where pairs are inverted. **fresh**: S "
        "with fresh draws of the method. **floor**: two maps of the trained model with fresh draws "
        "(0 where the method draws nothing). **excess**: fresh − floor. **S_rel**: the excess over "
        "what maps of two different images differ by beyond the floor; 1 is as much as another "
        "image. **every**: share of images and draws for which every unit moved the map. "
        "**blank**: pairs, of all that were compared, that are undefined or have a degenerate map: "
        "constant, as one of zeros is, not finite, or a single pixel. **passes**: yes where S and "
        f"excess lie above the threshold{bound} with their intervals, no where one lies below and "
        "no pair is inverted; **(blank)** where over half of the pairs are, so that S is mostly "
        "what an empty map scores. More, with the paper's 90 % intervals, the counts of inverted "
        "pairs and the standard deviation over draws: `tables/ipr.csv`.",
        meter_note="Shaded: S, up to 1.",
    )
    hollow = mostly_blank(rows).any()
    hollow = " **Hollow**: over half of the maps are blank." if hollow else ""
    yield gallery.add(
        "parameter-sensitivity",
        figures_parameters.parameter_bars(
            rows.assign(blank=mostly_blank(rows)),
            look=study.look,
        ),
        alt="Bars of S and of the excess over the floor, per method and model",
        caption="How far the maps move when the model loses a unit (the paper's Fig. 3): moves "
        "more, hence higher, is more sensitive. (a) S, with the floor that the method's own noise "
        "reaches; (b) what exceeds that floor. The dashed line is the threshold below which a "
        f"method does not react.{hollow} {as_sentence(_randomized_words(study))}.",
        max_bytes=MAX_PAPER_BYTES,
    )
    yield from _other_kinds(study, rows)


def _other_kinds(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    """Cascades, other randomizers and presets."""
    table = _headline_ssim(study.table("ipr"), study)
    keys = ["order", "randomizer", "preset", "model", "method"]
    shown = set(rows[keys].itertuples(index=False, name=None))
    others = [
        row | {"verdict": parameter_verdict(row) or "–"}
        for row in records(table)
        if tuple(row[key] for key in keys) not in shown
    ]
    if not others:
        return
    cells = [
        [
            *(Cell(str(row[key])) for key in keys),
            Cell(with_bounds(row, "S_same", "same"), meter=meter(1 - row["S_same"])),
            Cell(with_bounds(row, "excess", "excess")),
            Cell(row["verdict"]),
        ]
        for row in others
    ]
    yield Table(
        [*keys, f"S [{study.percent}]", f"excess [{study.percent}]", "passes"],
        cells,
        n_names=5,
        note="Cascades randomize one unit after the other and keep what was randomized before: "
        "`top_down` from the logits, `bottom_up` from the input.",
        fold="Other orders, randomizers and units",
        file="tables/ipr.csv",
    )


def _parameter_measures(study: Study) -> Iterator[Block]:
    table = one_kind(study.table("ipr"))
    measures = {**readings.MEASURES, ("pearson", None): "Pearson"}
    measures |= {(name, "own"): name for name in own_metrics(table)}
    found = {}
    for (metric, convention), label in measures.items():
        chosen = table[table["metric"] == metric]
        if convention is not None:
            chosen = chosen[chosen["convention"] == convention]
        if len(chosen):
            found[label] = by_key(chosen, "model", "method")
    cells = [
        [
            Cell(str(row["model"])),
            Cell(str(row["method"])),
            *(
                Cell(decimal(rows.get((row["model"], row["method"]), {}).get("S_same")))
                for rows in found.values()
            ),
        ]
        for row in records(ranked_rows(study))
    ]
    yield Table(
        ["model", "method", *found],
        cells,
        n_names=2,
        note="S, 1 − similarity, of the same pairs of maps by each convention and measure, ↑ more "
        "sensitive. A method that is high in one column and low in another is sensitive in one "
        "sense only; heights of different columns do not compare.",
    )


def _units(study: Study, gallery: Gallery) -> Iterator[Block]:
    table = _headline_ssim(study.table("ipr_units"), study)
    rows = one_kind(table)
    if rows.empty:
        return
    for order in dict.fromkeys(table["order"]):
        own = one_kind(table[table["order"] == order])
        how = "one unit at a time" if order == "independent" else f"cascading, {order}"
        yield gallery.add(
            "unit-curves" if order == rows["order"].iloc[0] else f"unit-curves-{order}",
            figures_parameters.unit_curves(own, look=study.look),
            alt=f"S by unit of the model, a panel per method, {how}",
            caption=f"S unit by unit ({how}), from the input (left) to the logits: moves more when "
            "the model loses this unit, so higher is more sensitive. "
            f"{as_sentence(_randomized_words(study))}; bars are {study.percent} intervals.",
            max_bytes=MAX_PAPER_BYTES,
        )
    yield from _unit_pictures(study, gallery)
    yield from _function(study, rows, gallery)
    yield _unit_table(rows)


_MOST_UNITS = (12, 10, 8, 7, 6, 5, 4)

_MOST_METHODS = 5


def _unit_pictures(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Maps of one image by the trained model, then without each unit; a line per method."""
    explained = False
    if not study.unit_index:
        pictures = (name for name in gallery.committed if name.startswith("unit-pictures-"))
        yield from gallery.earlier(*pictures)
    for model, units in study.unit_index.get("units", {}).items():
        methods = [*dict.fromkeys(ranked_rows(study)["method"]), *study.unit_methods(model)]
        stacks = {
            method: stack
            for method in dict.fromkeys(methods)
            if len(stack := study.unit_maps(model, method)) == len(units) + 1
        }
        n_parts = -(-len(stacks) // _MOST_METHODS)
        for part in range(n_parts):
            ends = [len(stacks) * place // n_parts for place in (part, part + 1)]
            chosen = dict(list(stacks.items())[slice(*ends)])
            name = f"unit-pictures-{model}" + (f"-{part + 1}" if n_parts > 1 else "")
            yield _unit_picture(study, gallery, name, model, units, chosen, explained=explained)
            explained = True


def _unit_picture(
    study: Study,
    gallery: Gallery,
    name: str,
    model: str,
    units: list[str],
    stacks: Mapping[str, np.ndarray],
    *,
    explained: bool,
) -> Picture:
    image_id = str(study.unit_index["image_id"])
    # Maps are noise to a compressor: as many units as the limit on the file leaves room for. What
    # would miss it by far, judged by the last try, is not tried.
    per_map = 0.0
    for most in _MOST_UNITS:
        shown = thin(units, None, most)
        hopeless = per_map * (1 + len(shown)) > 1.1 * MAX_PAPER_BYTES
        if hopeless and most != _MOST_UNITS[-1]:
            continue
        counted = f"{len(shown)} of {count_of(len(units), 'unit')}, 1 image, 1 draw of the weights"
        caption = f"**{model}**, {and_list(stacks)}, as above: {counted}."
        if not explained:
            caption = (
                f"**Maps as {model} loses one unit** (the paper's Fig. 1): `{image_id}`, the first "
                "image of the evaluation set, not an extreme. Framed: the trained model's map; "
                f"then with random weights in one unit; {counted}. Lower SSIM: the map moves more "
                "when the model loses this unit, so the method is more sensitive. Each map is "
                "divided by its largest absolute value."
            )
        picture = gallery.add(
            name,
            figures_maps.tile_rows(
                _unit_tiles(study, model, units, shown, stacks),
                title=f"{model}: one unit with random weights",
                notes=[
                    f"below: SSIM ({study.convention}) to the trained model's map, framed; "
                    "‡ inverted map"
                ],
                levels=_FEW_LEVELS,
            ),
            alt=f"Maps of one image by {model}, trained and without each unit: {and_list(stacks)}",
            caption=caption,
            max_bytes=MAX_PAPER_BYTES,
        )
        size = picture.path.stat().st_size
        if size <= MAX_PAPER_BYTES:
            break
        per_map = size / (1 + len(shown))
    return picture


_FEW_LEVELS = 8


def _unit_tiles(
    study: Study,
    model: str,
    units: list[str],
    shown: list[str],
    stacks: Mapping[str, np.ndarray],
) -> list[figures_maps.TileRow]:
    image_id = str(study.unit_index["image_id"])
    pixels = study.pixels.get(image_id)
    scores = study.unit_scores
    rows: list[figures_maps.TileRow] = []
    for method, stack in stacks.items():
        first = not rows
        tiles: list[figures_maps.Tile | None] = [None]
        if first and pixels is not None:
            tiles = [figures_maps.Tile(np.asarray(pixels), box=study.box(image_id))]
        tiles.append(figures_maps.Tile(stack[0], above="trained" if first else "", framed=True))
        for unit in shown:
            score, turned = scores.get((model, method, unit), (None, False))
            below = "" if score is None else f"{round(score, 2) + 0.0:.2f}{' ‡' * turned}"
            heatmap = stack[1 + units.index(unit)]
            tiles.append(figures_maps.Tile(heatmap, above=unit if first else "", below=below))
        rows.append(figures_maps.TileRow(method.replace("_", "\n", 1), tiles))
    return rows


def _function(study: Study, rows: pd.DataFrame, gallery: Gallery) -> Iterator[Block]:
    """S beside what losing the unit did to the model's output."""
    if rows["target_change"].notna().any():
        yield gallery.add(
            "unit-function",
            figures_parameters.function_scatter(rows, look=study.look),
            alt="S against the drop of the target's probability, a dot per unit",
            caption="Do the maps move as much as the model did? A dot is a unit: to the right, the "
            "drop of the target's probability when it is randomized; upwards, S (higher is more "
            f"sensitive). {as_sentence(_randomized_words(study))}.",
            max_bytes=MAX_PAPER_BYTES,
        )
    table = one_kind(_headline_ssim(study.table("ipr_function"), study))
    found = by_key(table, "model", "method")
    ordered = ranked_rows(study)[["model", "method"]].itertuples(index=False, name=None)
    cells = [
        [
            *(Cell(str(name)) for name in key),
            *(
                Cell(_correlation(found[key][f"rho_{name}"], found[key][f"p_{name}"]))
                for name in ("target_drop", "lost_predictions")
            ),
            Cell(str(int(found[key]["n_units"]))),
        ]
        for key in ordered
        if key in found
    ]
    if cells:
        yield Table(
            ["model", "method", "drop of the target", "lost predictions", "units"],
            cells,
            n_names=2,
            note="Spearman's correlation over units of S with what losing the unit did to the "
            "model; p by the t-approximation, not corrected. Near 1: the maps move most where the "
            "model does. Few units, and where all of them destroy the model, prove little.",
        )


def _unit_table(rows: pd.DataFrame) -> Table:
    methods = list(dict.fromkeys(rows["method"]))
    keyed = by_key(rows, "model", "unit", "method")
    cells = []
    for model, own in rows.groupby("model", sort=False):
        ordered = own.sort_values("unit_index", kind="stable").drop_duplicates("unit")
        for row in records(ordered):
            found = [keyed.get((model, row["unit"], name)) for name in methods]
            cells.append(
                [
                    Cell(str(model)),
                    Cell(str(row["unit"])),
                    *(Cell(whole_percent(row[n])) for n in ("accuracy", "kept_predictions")),
                    Cell("–" if missing(row["target_change"]) else f"{-row['target_change']:.2f}"),
                    *(
                        Cell(decimal(s["S_same"]) + inverted_mark(s), meter=meter(1 - s["S_same"]))
                        if s
                        else Cell("–")
                        for s in found
                    ),
                ]
            )
    columns = ["model", "unit", "accuracy", "kept", "drop", *methods]
    return Table(
        columns,
        cells,
        n_names=2,
        fold="S of each unit, beside what losing it did to the model",
        file="tables/ipr_units.csv",
        note="**accuracy** of the randomized model, **kept**: share of its predictions that stay, "
        "**drop** of the target's probability; means over draws. Then S by method, ‡ where pairs "
        f"are inverted: {INVERTED_WORDS}. With intervals, and by rank correlation: "
        "`tables/ipr_units.csv`.",
        meter_note="Shaded: S, up to 1.",
    )


def _plane_table(study: Study) -> Iterator[Block]:
    table = study.table("plane")
    table = table.assign(sweep=as_text(table["sweep"]))
    rows = table[table["metric"] == "ssim"]
    swept = rows[rows["sweep"] != ""]
    if swept.empty:
        yield Text(
            "No method of the randomized models has a sweep, so its sensitivity to hyperparameters "
            "is not known here."
        )
        return
    others = by_key(table[table["metric"] == "spearman"], "method", "sweep", "model")
    swept = swept.assign(last=swept["rank"].fillna(math.inf))
    names = [*study.models, *dict.fromkeys(swept["model"])]
    swept = swept.assign(place=[names.index(model) for model in swept["model"]])
    swept = swept.sort_values(["place", "last", "difference"], kind="stable")
    cells = []
    for row in records(swept):
        other = others.get((row["method"], row["sweep"], row["model"]), {})
        ranked = str(row["ranked"]) == "True"
        place = "not ranked"
        if ranked:
            place = " / ".join(whole_number(found.get("rank")) for found in (row, other))
        cells.append(
            [
                *(Cell(str(row[name])) for name in ("model", "method", "sweep")),
                Cell(decimal(row["x"])),
                Cell(decimal(row["y"])),
                Cell(with_bounds(row, "difference", "difference")),
                Cell(whole_percent(row["share_below"])),
                Cell(decimal(other.get("difference"))),
                Cell(place),
                Cell(text_of(row, "verdict").replace(DISAGREE, "disagree") or "–"),
            ]
        )
    without = [name for name in dict.fromkeys(rows["method"]) if name not in set(swept["method"])]
    alone = f" Without a sweep: {and_list(without)}." if without else ""
    columns = ["model", "method", "sweep", "x", "y", f"y − x [{study.percent}]", "x < y"]
    yield Table(
        [*columns, "y − x Spearman", "rank", "reacts more to"],
        cells,
        n_names=3,
        note="**x**: mean 1 − SSIM when the hyperparameter changes, over images and settings; it "
        "depends on the values swept. **y**: S, over images, units and draws of the weights. Both "
        "lie in [0, 2]. **y − x** with its interval paired by image: above 0 the maps react more "
        "to the model than to the setting. **x < y**: share of images. **rank**: of each method's "
        "worst ranked sweep (–: not the worst), by y − x; the second number by rank correlation. "
        "**reacts more to**: the model's parameters or the hyperparameter, where the intervals of "
        "y − x by SSIM and by rank correlation lie on one side of 0; **disagree**: "
        f"{DISAGREE}.{alone}",
    )
    aside = swept[true(swept["ranked"]).eq(False)].assign(reason=as_text(swept["reason"]))
    reasons = aside.drop_duplicates(["sweep", "reason"])
    if len(reasons):
        yield Text(
            "Not ranked, as their reference is not the setting that the randomized models were "
            "explained with:"
        )
        yield Items([f"**{row['sweep']}**: {row['reason']}." for row in records(reasons)])


def _architectures(study: Study) -> Iterator[Block]:
    table = study.table("ipr_correlations")
    if table.empty:
        return
    reasons = [text for text in dict.fromkeys(as_text(table["reason"])) if text]
    known = table[table["spearman"].notna()]
    subject = "Correlations of S between methods over architectures (the paper's Tables 2 and 3)"
    if known.empty:
        why = as_sentence("; ".join(reasons) or "not measurable here")
        yield Text(f"{subject}. {why}. The paper's values: `tables/ipr_correlations.csv`.")
        return
    cells = []
    for row in records(table):
        line = [Cell(f"{row['method']}, {row['other']}"), Cell(str(int(row["n_architectures"])))]
        for name in ("spearman", "pearson"):
            line.append(
                Cell(_correlation(row[name], *(row[f"{name}_p_{how}"] for how in _P_VALUES)))
            )
            line.append(Cell(f"{row[f'paper_{name}']:+.2f}"))
        cells.append([*line, Cell(as_sentence(text_of(row, "reason")))])
    yield Text(f"{subject}.")
    yield Table(
        ["methods", "n", "Spearman (p)", "paper", "Pearson (p)", "paper", "why not"],
        cells,
        n_names=1,
        n_prose=1,
        note="n: trained architectures. p in brackets: over all permutations / the same after Holm "
        "over the pairs / by the t-approximation, on which the paper's stars rest. With five "
        "architectures no exact p is below .017.",
    )


_P_VALUES = ("exact", "holm", "t")


def _correlation(rho: Any, *p: Any) -> str:
    if missing(rho):
        return "–"
    values = ["<.001" if value < 0.001 else digits(value) for value in p]
    return f"{rho:+.2f} (p {' / '.join(values)})"


def _ipr_claims(study: Study) -> Iterator[Block]:
    if not study.table("ipr_claims").empty:
        yield from claims(study, "ipr_claims")


def _ipr_failures(study: Study) -> Iterator[Block]:
    """Each failure by name, with its reason; units of one reason together."""
    table = study.table("ipr_failures")
    if table.empty:
        return
    table = table.assign(**{name: as_text(table[name]) for name in table})
    items = []
    for (model, method, reason), own in table.groupby(["model", "method", "reason"], sort=False):
        units = [name for name in dict.fromkeys(own["unit"]) if name]
        where = f" ({', '.join(units[:4])}{' and more' if len(units) > 4 else ''})" if units else ""
        what = f"{method} on {model}" if method else str(model)
        items.append(f"**{what}**{where}: {as_sentence(str(reason))}.")
    yield Text("The others went on without these; means above are of what is left.")
    yield Items(items)
