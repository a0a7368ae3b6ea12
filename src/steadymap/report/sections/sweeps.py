"""Sweeps in the report: all of them in one table, then each by itself."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from steadymap.analysis import readings
from steadymap.draws import derived_seed
from steadymap.report import viewer, words
from steadymap.report.document import Block, Cell, Table, Text
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import sweeps as figures
from steadymap.report.gallery import NOT_HERE, Gallery
from steadymap.report.study import Study, beside, by_key, text_of, thin
from steadymap.store.maps import Maps

# Images at either end of the list of extremes.
_EXTREMES = 3


def headline_table(study: Study) -> Iterator[Block]:
    """Table of the headline number of each sweep and model."""
    rows = study.headline
    if rows.empty:
        yield Text("No similarity was scored.")
        return
    nested = readings.with_ranks(
        readings.beside_headline(study.table("sensitivity")), study.convention
    )
    nested = nested.assign(hyperparameter="nested draws")
    grids = words.grids(study, rows["sweep"])
    yield words.table("headline", pd.concat([rows, nested]), study, grids=grids)
    if silent := [sweep for sweep in study.sweeps if sweep not in set(rows["sweep"])]:
        yield Text(f"Without a scored pair of maps: {words.and_list(silent)}.")
    fixed = study.table("tasks").query("hyperparameter == ''")["method"]
    if len(fixed):
        yield Text(f"Computed without a sweep: {words.and_list(dict.fromkeys(fixed))}.")


def overview(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Figures over all sweeps."""
    if study.headline.empty:
        yield Text("No sweep was scored, so there is nothing to draw.")
        return
    yield gallery.draw(
        "sensitivity-curves", figures.sensitivity_curves(study.table("settings"), look=study.look)
    )
    yield gallery.draw(
        "measures", figures.measures_heatmap(study.table("sensitivity"), look=study.look)
    )


def sweep_section(study: Study, sweep: str, gallery: Gallery) -> Iterator[Block]:
    """One sweep: settings, figures and maps.

    Parameters
    ----------
    study
        Tables of the study.
    sweep
        Name of the sweep.
    gallery
        Where figures go.
    """
    method, hyperparameter = study.about(sweep)
    values, reference = study.values(sweep)
    held = json.loads(study.shared_tasks(sweep)["hyperparameters"].iloc[0])
    held = ", ".join(f"{name} {held[name]}" for name in held if name != hyperparameter)
    yield Text(
        words.sentence(
            "sweep",
            task=study.shared_tasks(sweep).iloc[0],
            values=", ".join(values),
            reference=reference or "none",
            held=f" Held: {held}." if held else "",
            study=study,
            runs=", ".join(f"`{method} {sweep} {model}`" for model in study.models),
        )
    )
    settings = study.table("settings")
    rows = settings[settings["sweep"] == sweep]
    if study.headline_rows("settings", sweep=sweep).empty:
        yield Text("No pair of maps was scored in this sweep.")
        return
    yield gallery.draw(
        f"{sweep}-measures",
        figures.metric_agreement(rows, sweep=sweep, look=study.look),
        text="sweep-measures",
        sweep=sweep,
    )
    yield from _draws(study, sweep, rows, gallery)
    yield _settings_table(study, sweep)
    yield from _accuracy(study, sweep)
    yield from _pictures(study, sweep, gallery)
    yield from _extremes(study, sweep)


def _draws(study: Study, sweep: str, rows: pd.DataFrame, gallery: Gallery) -> Iterator[Block]:
    """Nested against independent draws, where the sweep has both."""
    whole = study.table("sensitivity").query("sweep == @sweep and metric == 'ssim'")
    keyed = by_key(whole[whole["convention"] == study.convention], "model", "draws")
    kinds = ("nested", "independent")
    if not set(kinds) <= {kind for _, kind in keyed}:
        return
    means = [
        f"{model} "
        + ", ".join(f"{words.with_interval(keyed[model, kind])} {kind}" for kind in kinds)
        for model in study.models
        if all((model, kind) in keyed for kind in kinds)
    ]
    yield gallery.draw(
        f"{sweep}-draws",
        figures.draws_comparison(rows, sweep=sweep, look=study.look),
        text="sweep-draws",
        sweep=sweep,
        means="; ".join(means),
    )


def _settings_table(study: Study, sweep: str) -> Table:
    values, reference = study.values(sweep)
    keys = ["value", "model"]
    rows = pd.MultiIndex.from_product([values, study.models], names=keys).to_frame(index=False)
    rows = beside(rows, study.shared_tasks(sweep), keys, "task_")
    for metric in ("ssim", "spearman", "hog_pearson", "dynamic_range"):
        rows = beside(rows, study.headline_rows("settings", metric, sweep), keys, f"{metric}_")
    scored = rows["ssim_n_images"].notna()
    for flag in ("n_degenerate", "n_inverted"):
        rows[flag] = rows[f"ssim_{flag}"].where(scored, rows[f"dynamic_range_{flag}"])

    def passes(line: dict[str, Any]) -> str:
        if not (n := line["task_n_images"]) > 0:
            return "–"
        return " / ".join(f"{line[f'task_{k}_passes'] / n:g}" for k in ("forward", "backward"))

    cells = {
        "setting": lambda line: line["value"] + " (reference)" * (line["value"] == reference),
        "passes": passes,
    }
    return words.table("settings", rows, study, cells=cells, hyperparameter=study.about(sweep)[1])


def _accuracy(study: Study, sweep: str) -> Iterator[Block]:
    """Level and spread of accuracy scores over the sweep's settings."""
    means = study.table("settings").query("sweep == @sweep")
    keys = ["metric", "convention", "model"]
    ends = readings.headline_draws(means).groupby(keys)["mean"].agg(least="min", most="max")
    whole = readings.headline_draws(study.table("sensitivity").query("sweep == @sweep"))
    keyed = by_key(whole.join(ends, on=keys), *keys)
    lines = [
        keyed[key] | {"name": name, "better": better}
        for metric, (name, better) in readings.ACCURACY.items()
        for model in study.models
        if (key := (metric, study.accuracy_convention(metric), model)) in keyed
    ]
    if not lines:
        return
    boxed = any(line["metric"] == "localization_error" for line in lines)
    boxes = "" if boxed else " No localization: no image has a box."
    alpha = float(study.alpha.removeprefix("alpha"))
    yield words.table("accuracy", lines, study, alpha=alpha, boxes=boxes)


def _pictures(study: Study, sweep: str, gallery: Gallery) -> Iterator[Block]:
    """Show the maps of the least stable, a random and the most stable image."""
    method, hyperparameter = study.about(sweep)
    maps = study.maps(method)
    if maps is None:
        earlier = gallery.earlier(f"{sweep}-pictures-least-stable")
        why = f"The maps are {NOT_HERE}; the picture is as it was committed."
        yield Text(why if earlier else f"No maps of {method} at hand, hence no pictures.")
        yield from earlier
        return
    picks = _picks(study, sweep)
    if not picks:
        yield Text("No image has a defined score, hence no pictures.")
        return
    links = [
        f"[{name} image](#{viewer.fragment(maps.models[0], sweep, image_id)})"
        for name, image_id, _ in picks
    ]
    yield Text(words.sentence("maps", study=study, links=words.and_list(links)))
    for name, image_id, rule in picks:
        rows, left_out = _picture_rows(study, sweep, image_id, maps)
        if not rows:
            yield Text(f"No maps of image {image_id} under {sweep}, hence no picture.")
            continue
        few = f" {left_out} of the settings are left out." if left_out else ""
        yield gallery.draw(
            f"{sweep}-pictures-{name.replace(' ', '-')}",
            figures_maps.picture_rows(
                rows,
                hyperparameter=hyperparameter,
                title=f"{sweep}: {name} image",
                note=f"{image_id}: {rule}",
            ),
            text="sweep-pictures",
            name=name,
            title=name.capitalize(),
            sweep=sweep,
            image_id=image_id,
            rule=rule,
            few=few,
            # The page has all maps in its viewer.
            folds=name != "least stable",
        )


def _ranking(study: Study, sweep: str) -> pd.Series:
    """Mean SSIM per image without a degenerate pair, averaged over models, least stable first."""
    rows = study.headline_rows("images", sweep=sweep).dropna(subset=["mean"])
    blank = rows.loc[rows["n_degenerate"] > 0, "image_id"]
    rows = rows[~rows["image_id"].isin(blank)]
    means = rows.groupby("image_id")["mean"].mean()
    return means.sort_index().sort_values(kind="stable")


def _picks(study: Study, sweep: str) -> list[tuple[str, str, str]]:
    """Name, image and rule of what is shown; no image twice."""
    means = _ranking(study, sweep)
    if means.empty:
        return []
    rule = f"{{}} mean SSIM, averaged over models, of {len(means)} images: an extreme"
    picks = [("least stable", means.index[0], rule.format("lowest"))]
    if middle := sorted(means.index[1:-1]):
        drawn = middle[derived_seed("report", study.name, sweep) % len(middle)]
        between = f"drawn by a seed from the {len(middle)} between the extremes"
        picks.append(("random", drawn, between))
    if len(means) > 1:
        picks.append(("most stable", means.index[-1], rule.format("highest")))
    return picks


def _picture_rows(
    study: Study, sweep: str, image_id: str, maps: Maps
) -> tuple[list[figures_maps.TileRow], int]:
    """Row per model, and how many settings were left out for want of room."""
    values, reference = study.values(sweep)
    shown = thin(values, reference)
    if image_id not in maps.image_ids:
        return [], 0
    position = maps.image_ids.index(image_id)
    tasks = by_key(study.shared_tasks(sweep), "model", "value")
    rows: list[figures_maps.TileRow] = []
    for model in (name for name in study.models if name in maps.models):
        settings = {
            value: json.loads(tasks[model, value]["hyperparameters"])
            for value in shown
            if (model, value) in tasks
        }
        if settings:
            heatmaps = {v: maps.read(model, setting)[position] for v, setting in settings.items()}
            scores = {value: study.score(sweep, image_id, model, value) for value in settings}
            image = None if rows else study.photo(image_id)
            name = text_of(study.facts.get(image_id, {}), "class_name")
            image = image and replace(image, below=name)
            rows.append(figures_maps.scored_row(model, image, heatmaps, scores, reference))
    return rows, len(values) - len(shown)


def _extremes(study: Study, sweep: str) -> Iterator[Block]:
    """List the images that moved most and least."""
    means = _ranking(study, sweep)
    if means.empty:
        return
    lines = pd.DataFrame({"mean": means, "rank": range(1, len(means) + 1)})
    by_model = study.headline_rows("images", sweep=sweep).pivot(
        index="image_id", columns="model", values="mean"
    )
    lines = lines.join(by_model.reindex(columns=study.models))
    if len(lines) > 2 * _EXTREMES:
        lines = pd.concat([lines.head(_EXTREMES), lines.tail(_EXTREMES)])
    maps = study.maps(study.about(sweep)[0])
    viewed = [name for name in study.models if maps and name in maps.models]

    def thumbnail(line: dict[str, Any]) -> Cell:
        pixels, box = study.pixels.get(line["image_id"]), study.box(line["image_id"])
        return Cell("", image=None if pixels is None else figures_maps.thumbnail(pixels, box=box))

    def link(line: dict[str, Any]) -> Cell:
        image_id = line["image_id"]
        anchor = viewer.fragment(viewed[0], sweep, image_id) if viewed else ""
        return Cell(image_id, anchor=anchor)

    facts = study.facts
    lines["class_name"], lines["photo"] = (
        [text_of(facts.get(image_id, {}), name) for image_id in lines.index]
        for name in ("class_name", "photo")
    )
    yield words.table(
        "extremes",
        lines.reset_index(),
        study,
        cells={"thumbnail": thumbnail, "link": link},
        more={model: f"{{{model}:.3f}}" for model in study.models},
        without=[] if study.pixels else ["image"],
        shown=len(lines),
        n=len(means),
    )
