"""The report of a study, as one HTML file and as Markdown, from its tables and maps."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from steadymap.analysis import readings
from steadymap.draws import derived_seed
from steadymap.report import viewer
from steadymap.report.document import Block, Cell, Table, Text
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import sweeps as figures
from steadymap.report.gallery import MAX_LEAD_BYTES, NOT_HERE, Gallery
from steadymap.report.study import Study, as_text, by_key, records, text_of, thin
from steadymap.report.words import (
    BETTER,
    INVERTED_WORDS,
    MAKE_UI,
    METER,
    accuracy_pairs,
    accuracy_words,
    and_list,
    count_of,
    decimal,
    digits,
    grid_words,
    held_constant,
    meter,
    viewer_link,
    whole_number,
    with_interval,
)
from steadymap.store.maps import Maps

_EXTREMES = 3

PAPERS = Text(
    "After [SAM: The Sensitivity of Attribution Methods to Hyperparameters]"
    "(https://arxiv.org/abs/2003.08754) (N. Bansal, C. Agarwal and A. Nguyen, CVPR 2020), and, for "
    "the model's parameters, [Evaluating the overall sensitivity of saliency-based explanation "
    "methods](https://arxiv.org/abs/2306.13682) (H. Sriram and C. Conati, IJCAI 2023 workshop on "
    "explainable AI), an extended test by independent parameter randomization (IPR)."
)


def _share_wanted(study: Study) -> float:
    return float(study.param("comparisons", "budget", "share") or 0.9)


def advised(method: str, own: pd.DataFrame) -> str:
    """Advice that holds on all models: what moves maps on any, the largest count of any."""
    moving = dict.fromkeys(" ".join(as_text(own["report"])).split())
    steady = [n for n in dict.fromkeys(" ".join(as_text(own["steady"])).split()) if n not in moving]
    named, others = (and_list(f"`{name}`" for name in names) for names in (moving, steady))
    told = [f"report {named}" if moving else "no value swept moves its maps"]
    if moving and steady:
        told.append(f"its maps hardly depend on {others}")
    counted = next(filter(None, as_text(own["counted"])), "")
    if counted:
        most = own["n_max"].max()
        told.append(
            f"`{counted}` of {own['at_least'].max():g} or more"
            if own["at_least"].notna().all()
            else f"more `{counted}` than {most:g}, the most tried"
        )
    if own["most_seeds"].notna().any():
        most = own["most_seeds"].max()
        alike, ranks = own["seeds_ssim"].min(), own["seeds_spearman"].min()
        reached = own["n_seeds"].notna().all()
        n = own["n_seeds"].max()
        if reached and n == 1:
            told.append("one seed is enough")
        elif reached:
            told.append(f"average {n:g} seeds")
        else:
            told.append(
                f"average more than {count_of(int(most), 'seed')}, the most that could be tried "
                "(two "
                f"such averages: SSIM {decimal(alike)}, rank correlation {decimal(ranks)})"
            )
    elif "seed" in moving or counted:
        told.append("seeds to average: not measured here")
    return f"**{method}**: {'; '.join(told)}."


def headline_table(study: Study) -> Iterator[Block]:
    """Table of the headline number of each sweep and model."""
    rows = study.headline
    if rows.empty:
        yield Text("No similarity was scored.")
        return
    cells = []
    for row in records(rows):
        cells.append(
            [
                Cell(row["sweep"]),
                Cell(row["method"]),
                Cell(row["hyperparameter"]),
                Cell(row["model"]),
                Cell(with_interval(row), meter=meter(row["mean"])),
                Cell(decimal(row["rank_mean"]), meter=meter(row["rank_mean"])),
                Cell(f"{decimal(row['std_rms'])} / {decimal(row['std_mean'])}"),
                Cell(str(int(row["n_degenerate"]))),
                Cell(whole_number(row["n_inverted"])),
                Cell(str(int(row["n_images"]))),
            ]
        )
    columns = ["sweep", "method", "hyperparameter", "model", f"SSIM [{study.percent}]"]
    columns += ["Spearman", "std rms/mean", "deg.", "inv.", "n"]
    note = (
        f"SSIM ({study.convention} convention) and Spearman's rank correlation of each setting's "
        "map with the reference map: mean over settings, then over images; 1 is no change. "
        "**std** of SSIM: the standard deviation over settings of one image, combined over images "
        "as root mean square (rms) and as mean. **deg.**: pairs with a degenerate map. **inv.**: "
        f"inverted pairs, {INVERTED_WORDS}. "
        "Sorted by how far the maps moved in words, then by the lowest SSIM of any model."
        f"{grids_words(study, rows['sweep'])}"
    )
    yield Table(columns, cells, n_names=4, note=note, meter_note=METER)
    silent = [sweep for sweep in study.sweeps if sweep not in set(rows["sweep"])]
    if silent:
        yield Text(f"Without a scored pair of maps: {and_list(silent)}.")
    fixed = study.table("tasks").loc[study.table("tasks")["hyperparameter"] == "", "method"]
    if len(fixed):
        yield Text(
            f"Computed without a sweep, hence without a similarity: "
            f"{and_list(dict.fromkeys(fixed))}."
        )


def overview(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Figures over all sweeps."""
    if study.headline.empty:
        yield Text("No sweep was scored, so there is nothing to draw.")
        return
    yield gallery.add(
        "sensitivity-curves",
        figures.sensitivity_curves(study.table("settings"), look=study.look),
        alt="SSIM to the reference map against the swept value, a panel per sweep",
        caption="Mean SSIM to the reference map at each value. Thin lines lead to the reference, "
        "where a map is compared with itself.",
    )
    yield gallery.add(
        "measures",
        figures.measures_heatmap(study.table("sensitivity"), look=study.look),
        alt="Mean similarity per sweep and model under each measure",
        caption="The same comparisons under other conventions and measures. A sweep that is light "
        "in one column and dark in another is stable in one sense only.",
        max_bytes=MAX_LEAD_BYTES,
    )


def sweep_section(study: Study, sweep: str, gallery: Gallery) -> Iterator[Block]:
    """One sweep: settings, figures and maps."""
    method, hyperparameter = study.about(sweep)
    values, reference = study.values(sweep)
    runs = ", ".join(f"`{method} {sweep} {model}`" for model in study.models)
    yield Text(
        f"`{hyperparameter}` = {', '.join(values)}; reference {reference or 'none'}."
        f"{held_constant(study, sweep, hyperparameter)} In {MAKE_UI}: experiment "
        f"`steadymap/{study.name}/{method}`, parent {'runs' if len(study.models) > 1 else 'run'} "
        f"{runs}; their tag `report` leads back here."
    )
    rows = study.table("settings")[study.table("settings")["sweep"] == sweep]
    if readings.headline_rows(rows, "ssim", study.convention).empty:
        yield Text("No pair of maps was scored in this sweep.")
        return
    yield gallery.add(
        f"{sweep}-measures",
        figures.metric_agreement(rows, sweep=sweep, look=study.look),
        alt=f"{sweep} under each convention and measure",
        caption="One sweep, read by each measure. SSIM conventions differ in scaling and window "
        "(common: max-abs, window 5; sam: the paper's, per method; wang: absolute value, min-max, "
        "Gaussian window; mass: max-abs in [0, 1], windows weighted by their mass); compare "
        "shapes, not heights, across panels.",
    )
    yield from _draws(study, sweep, rows, gallery)
    yield _settings_table(study, sweep, rows)
    yield from _accuracy(study, sweep)
    yield from _pictures(study, sweep, gallery)
    yield from _extremes(study, sweep)


def _accuracy(study: Study, sweep: str) -> Iterator[Block]:
    """Level and spread of accuracy scores over the sweep's settings."""
    whole = readings.headline_draws(study.table("sensitivity"))
    whole = whole[whole["sweep"] == sweep]
    each = readings.headline_draws(study.table("settings"))
    each = each[each["sweep"] == sweep]
    cells = []
    for metric, convention in accuracy_pairs(study):
        rows = whole[(whole["metric"] == metric) & (whole["convention"] == convention)]
        rows_each = each[(each["metric"] == metric) & (each["convention"] == convention)]
        for model in study.models:
            found = records(rows[rows["model"] == model])
            if not found:
                continue
            row = found[0]
            means = rows_each.loc[rows_each["model"] == model, "mean"].astype(float)
            cells.append(
                [
                    Cell(BETTER[metric]),
                    Cell(model),
                    Cell(with_interval(row)),
                    Cell(f"{decimal(row['std_rms'])} / {decimal(row['std_mean'])}"),
                    Cell(f"{decimal(means.min())} to {decimal(means.max())}"),
                    Cell(str(int(row["n_settings"]))),
                    Cell(str(int(row["n_images"]))),
                ]
            )
    if not cells:
        return
    columns = ["accuracy of the maps", "model", f"mean [{study.percent}]", "std rms/mean"]
    columns += ["means of settings", "settings", "n"]
    note = (
        "Over all settings, the reference included. **std**: over settings of one image, combined "
        "over images as root mean square (rms; the paper's code) and as mean (its text). "
        f"{accuracy_words(study)}"
    )
    if not any(cell[0].text == BETTER["localization_error"] for cell in cells):
        note += " No localization: no image has a box."
    yield Table(columns, cells, n_names=2, note=note)


def size_word(row: Mapping[str, Any]) -> str:
    """Verdict on the size of an effect, as a word."""
    return "another grid" if text_of(row, "papers_grid") == "no" else text_of(row, "size")


def values_elsewhere(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of these claims were measured on another grid than the paper's."""
    n = sum(text_of(row, "papers_grid") == "no" for row in rows if "papers_grid" in row)
    return f", {n} of them on another grid than the paper's" if n else ""


def grids_words(study: Study, sweeps: Iterable[str]) -> str:
    """Values of all these sweeps, as a sentence."""
    known = [sweep for sweep in dict.fromkeys(sweeps) if sweep in study.sweeps]
    return f" Values swept: {'; '.join(grid_words(study, sweep) for sweep in known)}."


def _draws(study: Study, sweep: str, rows: pd.DataFrame, gallery: Gallery) -> Iterator[Block]:
    """Nested against independent draws, where the sweep has both."""
    chosen = rows[(rows["metric"] == "ssim") & (rows["convention"] == study.convention)]
    if not {"nested", "independent"} <= set(chosen["draws"]):
        return
    whole = study.table("sensitivity")
    whole = whole[
        (whole["sweep"] == sweep)
        & (whole["metric"] == "ssim")
        & (whole["convention"] == study.convention)
    ]
    keyed = by_key(whole, "model", "draws")
    parts = [
        f"{model} {with_interval(keyed[model, 'nested'])} nested, "
        f"{with_interval(keyed[model, 'independent'])} independent"
        for model in study.models
        if (model, "nested") in keyed and (model, "independent") in keyed
    ]
    yield gallery.add(
        f"{sweep}-draws",
        figures.draws_comparison(
            rows,
            sweep=sweep,
            look=study.look,
        ),
        alt=f"{sweep} with nested and with independent draws",
        caption="Nested draws: a smaller sample is part of the larger one, so the maps share noise "
        "and look steadier. Independent: the reference has draws of its own, as two separate runs "
        f"would. Mean SSIM: {'; '.join(parts)}.",
    )


def _settings_table(study: Study, sweep: str, rows: pd.DataFrame) -> Table:
    values, reference = study.values(sweep)
    tables = {
        metric: by_key(
            study.headline_rows("settings", metric, sweep),
            "model",
            "value",
        )
        for metric in ("ssim", "spearman", "hog_pearson", "dynamic_range")
    }
    costs = by_key(study.shared_tasks(sweep), "model", "value")
    cells = []
    for value in values:
        for model in study.models:
            found = {name: table.get((model, value), {}) for name, table in tables.items()}
            ssim, amplitude = found["ssim"], found["dynamic_range"]
            own = value == reference
            label = f"{value} (reference)" if own else value
            flags = ssim or amplitude
            cost = costs.get((model, value))
            passes = "–"
            if cost and cost["n_images"]:
                forward, backward = (
                    cost[f"{kind}_passes"] / cost["n_images"] for kind in ("forward", "backward")
                )
                passes = f"{forward:g} / {backward:g}"
            cells.append(
                [
                    Cell(label),
                    Cell(model),
                    Cell(
                        "–" if own and not ssim else with_interval(ssim),
                        meter=meter(ssim.get("mean")),
                    ),
                    Cell(decimal(ssim.get("std"))),
                    Cell(decimal(found["spearman"].get("mean"))),
                    Cell(decimal(found["hog_pearson"].get("mean"))),
                    Cell(digits(amplitude.get("mean"))),
                    Cell(whole_number(flags.get("n_degenerate"))),
                    Cell(whole_number(flags.get("n_inverted"))),
                    Cell(passes),
                ]
            )
    _, hyperparameter = study.about(sweep)
    columns = [
        hyperparameter,
        "model",
        f"SSIM [{study.percent}]",
        "std",
        "Spearman",
        "HOG",
    ]
    note = (
        "Mean over images; **std** over images; **range**: largest minus smallest value of the "
        "unscaled map, mean over images; **deg.**, **inv.**: degenerate and inverted pairs; "
        "**passes**: forward / backward per image."
    )
    return Table(
        [*columns, "range", "deg.", "inv.", "passes"],
        cells,
        n_names=2,
        note=note,
        meter_note=METER,
    )


def _pictures(study: Study, sweep: str, gallery: Gallery) -> Iterator[Block]:
    """Show the maps of the least stable, a random and the most stable image."""
    method, hyperparameter = study.about(sweep)
    folder = study.results / "maps" / method
    if not (folder / "index.json").is_file():
        if earlier := gallery.earlier(f"{sweep}-pictures-least-stable"):
            yield Text(f"The maps are {NOT_HERE}. The picture is as it was committed.")
            yield from earlier
        else:
            yield Text(f"No maps of {method} at hand, hence no pictures.")
        return
    picks = _picks(study, sweep)
    if not picks:
        yield Text("No image has a defined score, hence no pictures.")
        return
    maps = Maps(folder)
    links = [
        f"[{name.replace('-', ' ')} image](#{viewer.fragment(maps.models[0], sweep, image_id)})"
        for name, image_id, _ in picks
    ]
    yield Text(
        "Maps, each divided by its largest absolute value: red speaks for the class, blue against "
        f"it, white is 0. Below each, SSIM ({study.convention}) and Spearman's rank correlation "
        "with the framed reference, ‡ where the map is inverted. In the "
        f"viewer: {and_list(links)}."
    )
    for name, image_id, rule in picks:
        rows, left_out = _picture_rows(study, sweep, image_id, maps)
        if not rows:
            yield Text(f"No maps of image {image_id} under {sweep}, hence no picture.")
            continue
        adjective = name.replace("-", " ")
        few = f" {left_out} of the settings are left out." if left_out else ""
        yield gallery.add(
            f"{sweep}-pictures-{name}",
            figures_maps.picture_rows(
                rows,
                hyperparameter=hyperparameter,
                title=f"{sweep}: {adjective} image",
                note=f"{image_id}: {rule}",
            ),
            alt=f"Maps of the {adjective} image under {sweep}",
            caption=f"**{adjective.capitalize()} image**, `{image_id}`: {rule}.{few}",
            # The page has all maps in its viewer.
            folds=name != "least-stable",
        )


def _ranking(study: Study, sweep: str) -> pd.Series:
    """Mean SSIM per image, averaged over models, least stable first."""
    rows = study.headline_rows("images", sweep=sweep)
    means = rows.dropna(subset=["mean"]).groupby("image_id")["mean"].mean()
    order = sorted(means.index, key=lambda image_id: (means[image_id], image_id))
    return means.reindex(order)


def _picks(study: Study, sweep: str) -> list[tuple[str, str, str]]:
    """Name, image and rule of what is shown; no image twice."""
    means = _ranking(study, sweep)
    if means.empty:
        return []
    n = len(means)
    over = "mean SSIM, averaged over models"
    first = ("least-stable", means.index[0], f"lowest {over}, of {n} images: an extreme")
    picks = [first]
    middle = list(means.index[1:-1])
    if middle:
        seed = derived_seed("report", study.name, sweep)
        chosen = sorted(middle)[seed % len(middle)]
        picks.append(
            ("random", chosen, f"drawn by a seed from the {len(middle)} between the extremes")
        )
    if n > 1:
        rule = f"highest {over}, of {n} images: an extreme"
        picks.append(("most-stable", means.index[-1], rule))
    return picks


def _picture_rows(
    study: Study, sweep: str, image_id: str, maps: Maps
) -> tuple[list[figures_maps.PictureRow], int]:
    """Row per model, and how many settings were left out for want of room."""
    values, reference = study.values(sweep)
    shown = thin(values, reference)
    if image_id not in maps.image_ids:
        return [], 0
    position = maps.image_ids.index(image_id)
    tasks = by_key(study.shared_tasks(sweep), "model", "value")
    rows: list[figures_maps.PictureRow] = []
    for model in (name for name in study.models if name in maps.models):
        cells = []
        for value in shown:
            if (model, value) not in tasks:
                continue
            hyperparameters = json.loads(tasks[model, value]["hyperparameters"])
            scored = study.score(sweep, image_id, model, value)
            own = value == reference
            cells.append(
                figures_maps.MapCell(
                    value,
                    maps.read(model, hyperparameters)[position],
                    score=None if own else scored.score,
                    rank=None if own else scored.rank,
                    is_reference=own,
                    degenerate=scored.degenerate,
                    inverted=scored.inverted,
                )
            )
        if not cells:
            continue
        image = study.pixels.get(image_id) if not rows else None
        class_name = study.facts.get(image_id, {}).get("class_name", "")
        rows.append(
            figures_maps.PictureRow(model, cells, image, study.box(image_id), str(class_name))
        )
    return rows, len(values) - len(shown)


def _extremes(study: Study, sweep: str) -> Iterator[Block]:
    """List the images that moved most and least."""
    means = _ranking(study, sweep)
    if means.empty:
        return
    ids = list(means.index)
    ends = ids if len(ids) <= 2 * _EXTREMES else [*ids[:_EXTREMES], *ids[-_EXTREMES:]]
    rows = study.headline_rows("images", sweep=sweep)
    keyed = rows.set_index(["image_id", "model"])["mean"]
    thumbnails = bool(study.pixels)
    cells = []
    for image_id in ends:
        fact = study.facts.get(image_id, {})
        line = [Cell(f"{ids.index(image_id) + 1}")]
        if thumbnails:
            pixels = study.pixels.get(image_id)
            box = study.box(image_id)
            png = None if pixels is None else figures_maps.thumbnail(pixels, box=box)
            line.append(Cell("", image=png))
        line += [
            Cell(image_id, anchor=viewer_link(study, sweep, image_id)),
            Cell(str(fact.get("class_name", ""))),
            Cell(text_of(fact, "photo")),
        ]
        line.append(Cell(decimal(means[image_id]), meter=meter(means[image_id])))
        line += [Cell(decimal(keyed.get((image_id, model)))) for model in study.models]
        cells.append(line)
    columns = ["rank", *(["image"] if thumbnails else []), "id", "class", "photograph"]
    columns += ["SSIM", *study.models]
    which = f"All {len(ids)}" if len(ends) == len(ids) else f"{len(ends)} of {len(ids)}"
    note = (
        f"{which} images, least stable first: mean SSIM over settings, averaged over models and "
        "for each."
    )
    yield Table(
        columns, cells, n_names=len(columns) - 1 - len(study.models), note=note, meter_note=METER
    )
