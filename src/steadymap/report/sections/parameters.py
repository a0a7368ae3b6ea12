"""Sensitivity to the model's parameters in the report."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis import readings
from steadymap.analysis.plane import DISAGREE
from steadymap.analysis.readings import (
    compared_pairs,
    mostly_blank,
    one_randomization,
    parameter_verdict,
)
from steadymap.report import words
from steadymap.report.document import (
    Block,
    Cell,
    Columns,
    Items,
    Picture,
    Section,
    Table,
    Text,
)
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import parameters as figures_parameters
from steadymap.report.figures import plane as figures_plane
from steadymap.report.figures import theme
from steadymap.report.figures.maps import score_text
from steadymap.report.gallery import LIMITS, Gallery
from steadymap.report.sections.sam import claims
from steadymap.report.study import Study, beside, by_key, missing, records, thin
from steadymap.report.words import and_list, count_of, decimal

# Numbers of units that a picture is tried with, methods in a picture, and colors of its maps.
_MOST_UNITS = (12, 10, 8, 7, 6, 5, 4)
_MOST_METHODS = 5
_FEW_LEVELS = 8


def _headline_ssim(study: Study, name: str) -> pd.DataFrame:
    rows = study.table(name)
    return rows[(rows["metric"] == "ssim") & (rows["convention"] == study.convention)]


def ranked_rows(study: Study) -> pd.DataFrame:
    """Headline rows of the IPR test by model, the most sensitive method first.

    With S by rank correlation, `rank_S`, and whether the maps are mostly `blank`.
    """
    rows = one_randomization(_headline_ssim(study, "ipr"))
    ranks = one_randomization(study.table("ipr").query("metric == 'spearman'"))
    ranks = ranks.drop_duplicates(["model", "method"]).set_index(["model", "method"])["S_same"]
    rows = rows.join(ranks.rename("rank_S"), on=["model", "method"])
    rows = rows.assign(by_model=study.model_order(rows), blank=mostly_blank(rows))
    rows["S_rel"] = readings.relative_s(rows)
    return rows.sort_values(
        ["by_model", "S_same"], ascending=[True, False], kind="stable", ignore_index=True
    )


def _sample(rows: pd.DataFrame) -> str:
    """Images, units and weight draws behind the headline rows."""
    if rows.empty:
        return "no scored map"
    counts = (theme.counted(rows[f"n_{noun}s"], noun) for noun in ("image", "unit", "draw"))
    return f"{', '.join(counts)} of the weights"


def parameter_sentences(study: Study) -> Iterator[str]:
    """Sentences on the sensitivity to parameters."""
    rows = ranked_rows(study).dropna(subset=["S_same"])
    if rows.empty:
        return
    parts = []
    for ascending, word in ((False, "most"), (True, "least")):
        columns = ("S_same", "rank_S")
        ends = [rows.sort_values(name, ascending=ascending).iloc[0] for name in columns]
        names = [f"{row['method']} on {row['model']}" for row in ends]
        if names[0] == names[1]:
            ssim, rank = (decimal(row[name]) for row, name in zip(ends, columns, strict=True))
            parts.append(f"{names[0]} moved {word} (1 − SSIM {ssim}, 1 − Spearman {rank})")
        else:
            parts.append(
                f"which moved {word} is undecided: SSIM and rank correlation disagree "
                f"({' and '.join(names)})"
            )
    yield f"With random weights in one unit of the model: {'; '.join(parts)}."
    yield passes_sentence(rows)


def passes_sentence(rows: pd.DataFrame) -> str:
    """How many methods pass the IPR test, as a sentence."""
    counts, hollow = rows["passes"].value_counts(), rows["passes"][rows["blank"]].value_counts()
    parts = ", ".join(
        f"{name} {int(counts.get(name, 0))}"
        + (f" ({int(hollow[name])} of them by mostly blank maps)" if name in hollow else "")
        for name in ("yes", "no", "inconclusive")
    )
    pairs = count_of(len(rows), "pair")
    return f"Sensitive to the model's parameters, of {pairs} of method and model: {parts}."


def plane_picture(study: Study, gallery: Gallery) -> Iterator[Block]:
    """The sensitivity plane with its caption."""
    rows = study.table("plane")
    if not rows["sweep"].any() or rows[["x", "y"]].isna().any(axis=1).all():
        return
    ipr = one_randomization(study.table("ipr"))
    keys = ["model", "method", "metric", "convention"]
    blank = rows.set_index(keys).index.isin(ipr[mostly_blank(ipr)].set_index(keys).index)
    crossed = (
        "**Crossed**: over half of the randomized models' maps are blank." if blank.any() else ""
    )
    sample = _sample(ranked_rows(study))
    yield gallery.draw(
        "sensitivity-plane",
        figures_plane.sensitivity_plane(rows.assign(blank=blank), look=study.look),
        sample=sample,
        crossed=crossed,
    )


def parameters(study: Study, gallery: Gallery) -> Iterator[Section]:
    """Sensitivity to the model's parameters (extended IPR), or one sentence that it is unknown."""
    rows = ranked_rows(study)
    failures = [*_ipr_failures(study)]
    if rows.empty:
        sentence = words.sentence("unscored" if failures else "not-randomized")
        nav = "Parameters" if failures else ""
        yield replace(words.section("parameters", [Text(sentence), *failures]), nav=nav)
        return
    blocks = [*_opening(study, rows), _parameters_table(study, rows)]
    blocks += [_parameter_bars(study, rows, gallery), *_other_kinds(study, rows)]
    yield words.section("parameters", blocks)
    ipr_claims = [] if study.table("ipr_claims").empty else claims(study, "ipr_claims")
    parts: dict[str, Iterable[Block]] = {
        "parameter-measures": [_parameter_measures(study, rows)],
        "units": _units(study, gallery),
        "plane-table": _plane_table(study),
        "architectures": _architectures(study),
        "ipr-claims": ipr_claims,
        "ipr-failures": failures,
    }
    lower = (words.section(anchor, part) for anchor, part in parts.items())
    yield from (section for section in lower if section.blocks)


def _opening(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    yield Text(words.sentence("parameters", passes=passes_sentence(rows)), lead=True)
    sample, first = _sample(rows), rows.iloc[0]
    yield Text(words.sentence("parameters-sample", sample=sample, first=first, study=study))
    items = [words.sentence(f"parameters-{key}") for key in ("reaction", "mean", "units")]
    few = rows[rows["n_draws"] == 1]
    if len(few):
        of = "" if len(few) == len(rows) else f" of {and_list(dict.fromkeys(few['method']))}"
        items.append(words.sentence("parameters-draws", methods=of))
    for method, group in rows[rows["blank"]].groupby("method", sort=False):
        blank = {"models": and_list(group["model"]), "n_degenerate": group["n_degenerate"].sum()}
        blank["n"] = compared_pairs(group).sum()
        items.append(words.sentence("parameters-blank", method=method, **blank))
    items += _saturated(study)
    yield Items(items, title="Before you read an S")


def _saturated(study: Study) -> Iterator[str]:
    """How many units the model can't do without; past that, S can't follow its function."""
    units = one_randomization(_headline_ssim(study, "ipr_units"))
    units = units.drop_duplicates(["model", "unit"]).dropna(subset=["kept_predictions"])
    lost = (
        units["kept_predictions"].lt(0.5).groupby(units["model"], sort=False).agg(["sum", "size"])
    )
    if lost["sum"].any():
        parts = [f"{n} of {count_of(size, 'unit')} of {m}" for m, n, size in lost.itertuples()]
        yield words.sentence("parameters-saturated", parts=and_list(parts))


def _parameters_table(study: Study, rows: pd.DataFrame) -> Table:
    def quiet(row: Mapping[str, Any]) -> bool:
        # Deterministic methods have no noise to subtract.
        return row["floor"] == 0 and row["S_fresh"] == row["S_same"]

    cells = {
        "excess": lambda r: "= S" if quiet(r) else words.with_interval(r, "excess", "excess"),
        "blank": lambda r: Cell(
            f"{int(r['n_degenerate'])}/{int(compared_pairs(r))}", tone=2 if r["blank"] else None
        ),
        "passes": _passes,
    }
    thresholds = [f"{value:g}" for value in rows["threshold"].dropna().unique()]
    bound = f" of {and_list(thresholds)}" if thresholds else ""
    return words.table("parameters", rows, study, cells=cells, bound=bound)


def _passes(row: Mapping[str, Any]) -> str:
    return parameter_verdict(row) or "–"


def _parameter_bars(study: Study, rows: pd.DataFrame, gallery: Gallery) -> Picture:
    hollow = "**Hollow**: over half of the maps are blank." if rows["blank"].any() else ""
    sample = words.as_sentence(_sample(rows))
    return gallery.draw(
        "parameter-sensitivity",
        figures_parameters.parameter_bars(rows, look=study.look),
        sample=sample,
        hollow=hollow,
    )


def _other_kinds(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    """Cascades, other randomizers and presets."""
    keys = ["order", "randomizer", "preset", "model", "method"]
    everything = _headline_ssim(study, "ipr").set_index(keys, drop=False)
    others = everything[~everything.index.isin(rows.set_index(keys).index)]
    if len(others):
        yield words.table("cascades", others, study, cells={"passes": _passes})


def _parameter_measures(study: Study, rows: pd.DataFrame) -> Table:
    columns: Columns = {}
    for _, label, measured in readings.by_measure(one_randomization(study.table("ipr"))):
        rows = beside(rows, measured, ["model", "method"], f"{label}_")
        columns[label] = f"{{{label}_S_same:.3f}}"
    return words.table("measures", rows, study, more=columns)


def _units(study: Study, gallery: Gallery) -> Iterator[Block]:
    units = _headline_ssim(study, "ipr_units")
    rows = one_randomization(units)
    if rows.empty:
        return
    sample = words.as_sentence(_sample(ranked_rows(study)))
    for order in dict.fromkeys(units["order"]):
        how = "one unit at a time" if order == "independent" else f"cascading, {order}"
        yield gallery.draw(
            "unit-curves" if order == rows["order"].iloc[0] else f"unit-curves-{order}",
            figures_parameters.unit_curves(
                one_randomization(units[units["order"] == order]), look=study.look
            ),
            text="unit-curves",
            how=how,
            study=study,
            sample=sample,
        )
    yield from unit_pictures(study, gallery)
    yield from _function(study, rows, gallery)
    yield _unit_table(study, rows)


def unit_pictures(study: Study, gallery: Gallery) -> Iterator[Picture]:
    """Maps of one image by the trained model, then without each unit; a line per method."""
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
            ends = [len(stacks) * end // n_parts for end in (part, part + 1)]
            shown = dict(list(stacks.items())[slice(*ends)])
            name = f"unit-pictures-{model}" + (f"-{part + 1}" if n_parts > 1 else "")
            yield _unit_picture(study, gallery, name, model, shown)


def _unit_picture(
    study: Study, gallery: Gallery, name: str, model: str, stacks: Mapping[str, np.ndarray]
) -> Picture:
    units = study.unit_index["units"][model]
    below = f"below: SSIM ({study.convention}) to the trained model's map, framed; ‡ inverted map"
    # Maps are noise to a compressor: as many units as the limit on the file leaves room for. What
    # would miss it by far, judged by the last try, is not tried.
    per_map = 0.0
    for most in _MOST_UNITS:
        shown = thin(units, None, most)
        hopeless = per_map * (1 + len(shown)) > 1.1 * LIMITS["paper"]
        if hopeless and most != _MOST_UNITS[-1]:
            continue
        picture = gallery.draw(
            name,
            figures_maps.tile_rows(
                unit_tiles(study, model, shown, stacks),
                title=f"{model}: one unit with random weights",
                notes=[below],
                levels=_FEW_LEVELS,
            ),
            text="unit-pictures",
            model=model,
            methods=and_list(stacks),
            study=study,
            n=len(shown),
            units=count_of(len(units), "unit"),
        )
        size = picture.path.stat().st_size
        if size <= LIMITS["paper"]:
            break
        per_map = size / (1 + len(shown))
    return picture


def unit_tiles(
    study: Study, model: str, shown: list[str], stacks: Mapping[str, np.ndarray]
) -> list[figures_maps.TileRow]:
    """Line of tiles per method: the image, the trained model's map, then without each unit.

    Parameters
    ----------
    study : Study
    model : str
    shown : list of str
        Units, of those of the study's unit index.
    stacks : mapping
        By method, maps (1 + units, height, width).
    """
    image_id, units = str(study.unit_index["image_id"]), study.unit_index["units"][model]
    rows: list[figures_maps.TileRow] = []
    for method, stack in stacks.items():
        first = not rows
        tiles = [study.photo(image_id) if first else None]
        tiles.append(figures_maps.Tile(stack[0], above="trained" if first else "", framed=True))
        for unit in shown:
            score, inverted = study.unit_scores.get((model, method, unit), (None, False))
            below = score_text(score) + " ‡" * inverted
            heatmap = stack[1 + units.index(unit)]
            tiles.append(figures_maps.Tile(heatmap, above=unit if first else "", below=below))
        rows.append(figures_maps.TileRow(method.replace("_", "\n", 1), tiles))
    return rows


def _function(study: Study, rows: pd.DataFrame, gallery: Gallery) -> Iterator[Block]:
    """S beside what losing the unit did to the model's output."""
    ranked = ranked_rows(study)
    if rows["target_change"].notna().any():
        yield gallery.draw(
            "unit-function",
            figures_parameters.function_scatter(rows, look=study.look),
            sample=words.as_sentence(_sample(ranked)),
        )
    function = one_randomization(_headline_ssim(study, "ipr_function"))
    rows = ranked[["model", "method"]].merge(function, on=["model", "method"])
    cells = {
        name: lambda r, name=name: _correlation(r[f"rho_{name}"], r[f"p_{name}"])
        for name in ("target_drop", "lost_predictions")
    }
    if len(rows):
        yield words.table("function", rows, study, cells=cells)


def _unit_table(study: Study, rows: pd.DataFrame) -> Table:
    keyed = by_key(rows, "model", "unit", "method")

    def s_of(row: Mapping[str, Any], method: str) -> Cell:
        unit = keyed.get((row["model"], row["unit"], method))
        if unit is None:
            return Cell("–")
        return words.bar(decimal(unit["S_same"]) + words.inverted_mark(unit), unit["S_same"])

    ordered = rows.assign(by_model=pd.factorize(rows["model"])[0], drop=-rows["target_change"])
    ordered = ordered.sort_values(["by_model", "unit_index"])
    columns: Columns = {m: partial(s_of, method=m) for m in dict.fromkeys(rows["method"])}
    lines = ordered.drop_duplicates(["model", "unit"])
    return words.table("units", lines, study, more=columns)


def _plane_table(study: Study) -> Iterator[Block]:
    rows = study.table("plane")
    by_rank = rows[rows["metric"] == "spearman"]
    rows = rows[rows["metric"] == "ssim"]
    swept = rows[rows["sweep"] != ""]
    if swept.empty:
        yield Text(words.sentence("no-plane"))
        return

    def ranks(row: Mapping[str, Any]) -> str:
        if not row["ranked"]:
            return "not ranked"
        return " / ".join(words.whole_number(row[name]) for name in ("rank", "spearman_rank"))

    cells = {
        "ranks": ranks,
        "reacts_to": lambda r: r["verdict"].replace(DISAGREE, "disagree") or "–",
    }
    without = [name for name in dict.fromkeys(rows["method"]) if name not in set(swept["method"])]
    alone = f" Without a sweep: {and_list(without)}." if without else ""
    swept = beside(swept, by_rank, ["method", "sweep", "model"], "spearman_")
    swept = swept.assign(by_model=study.model_order(swept))
    swept = swept.sort_values(["by_model", "rank", "difference"], kind="stable")
    yield words.table("plane", swept, study, cells=cells, disagree=DISAGREE, alone=alone)
    aside = swept[~swept["ranked"]].drop_duplicates(["sweep", "reason"])
    if len(aside):
        yield Text(words.sentence("not-ranked"))
        yield Items([f"**{row['sweep']}**: {row['reason']}." for row in records(aside)])


def _architectures(study: Study) -> Iterator[Block]:
    rows = study.table("ipr_correlations")
    if rows.empty:
        return
    if rows["spearman"].isna().all():
        reasons = "; ".join(filter(None, dict.fromkeys(rows["reason"])))
        why = words.as_sentence(reasons or "not measurable here")
        subject = words.sentence("architectures")
        yield Text(f"{subject} {why}. The paper's values: `tables/ipr_correlations.csv`.")
        return
    yield Text(words.sentence("architectures"))

    def correlation(row: Mapping[str, Any], name: str) -> str:
        return _correlation(row[name], *(row[f"{name}_p_{how}"] for how in ("exact", "holm", "t")))

    cells = {
        "spearman": lambda r: correlation(r, "spearman"),
        "pearson": lambda r: correlation(r, "pearson"),
        "why_not": lambda r: words.as_sentence(r["reason"]),
    }
    yield words.table("architectures", rows, study, cells=cells)


def _correlation(rho: Any, *p: Any) -> str:
    if missing(rho):
        return "–"
    values = ["<.001" if value < 0.001 else words.digits(value) for value in p]
    return f"{rho:+.2f} (p {' / '.join(values)})"


def _ipr_failures(study: Study) -> Iterator[Block]:
    """Each failure by name, with its reason; units of one reason together."""
    rows = study.table("ipr_failures")
    if rows.empty:
        return
    items = []
    for (model, method, reason), group in rows.groupby(["model", "method", "reason"], sort=False):
        units = [name for name in dict.fromkeys(group["unit"]) if name]
        where = f" ({', '.join(units[:4])}{' and more' if len(units) > 4 else ''})" if units else ""
        what = f"{method} on {model}" if method else str(model)
        items.append(f"**{what}**{where}: {words.as_sentence(str(reason))}.")
    yield Text("Means above are of what is left.")
    yield Items(items)
