"""The report of a study, as one HTML file and as Markdown, from its tables and maps."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from steadymap import document, figures
from steadymap.data.dataset import read_dataset
from steadymap.document import Block, Cell, Code, Items, Picture, Section, Table, Text
from steadymap.draws import derived_seed
from steadymap.runs import searched_names, setting_name
from steadymap.store import Maps, atomic_file, read_json, read_table

_METER = "Shaded: 1 − SSIM."
_MOST_SETTINGS = 9
_EXTREMES = 3
_CLASSES_SHOWN, _IMAGES_PER_CLASS = 10, 8
_COLUMNS = {
    "sensitivity": "sweep method hyperparameter model metric convention draws n_images n_settings "
    "mean ci_low ci_high std_rms std_mean n_degenerate",
    "settings": "sweep method hyperparameter model value is_reference metric convention draws "
    "n_images mean ci_low ci_high std n_degenerate",
    "images": "sweep method hyperparameter model image_id class_name photo metric convention draws "
    "mean std n_degenerate",
    "tasks": "sweep method model hyperparameter value draws is_reference task_id hyperparameters "
    "n_images forward_passes backward_passes",
    "models": "model robust n_val clean_accuracy attack n_attacked robust_accuracy n_parameters "
    "weights_sha256 init_from epochs",
    "evaluation_set": "image_id class_name photo",
    "search": "search method model objective tau sampler trial hyperparameters task_id n_images "
    "ssim_mean ci_low ci_high forward_passes backward_passes state is_best message",
    "importances": "search method model evaluator hyperparameters importance",
}


@dataclass(frozen=True)
class ReportFiles:
    """What `build` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def build(
    reports: Path, results: Path, *, study: str, profile: Mapping[str, Any] | None = None
) -> ReportFiles:
    """Write `figures/*.png`, `report.md` and `report.html` into `reports`.

    The same inputs give the same bytes. Figures that this call does not write are deleted.

    Parameters
    ----------
    reports : Path
        The study's folder with `tables/`.
    results : Path
        The study's folder with maps, scores, data and curves; what is absent is left out, in
        words.
    study : str
        Name of the study.
    profile : mapping, optional
        Params that the study ran with, shown and used for the caveats.

    Returns
    -------
    ReportFiles

    Raises
    ------
    FileNotFoundError
        A table is missing.
    ValueError
        A table lacks columns.
    """
    reports = Path(reports)
    source = _Study(reports, Path(results), study, dict(profile or {}))
    gallery = _Gallery(reports / "figures")
    sections = list(_sections(source, gallery))
    gallery.delete_others()
    html, markdown = reports / "report.html", reports / "report.md"
    title = f"steadymap: {study}"
    page, text = document.html(title, sections), document.markdown(title, sections, reports)
    for path, content in ((html, page), (markdown, text)):
        with atomic_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return ReportFiles(html, markdown, tuple(gallery.paths))


class _Gallery:
    """Figures written so far."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths: list[Path] = []

    def add(self, name: str, figure: figures.Figure, *, alt: str, caption: str) -> Picture:
        path = self.folder / f"{name}.png"
        figures.save(figure, path)
        self.paths.append(path)
        return Picture(path, alt, caption)

    def delete_others(self) -> None:
        for path in self.folder.glob("*.png"):
            if path not in self.paths:
                path.unlink()


@dataclass(frozen=True)
class _Study:
    """The inputs, read when first needed."""

    reports: Path
    results: Path
    name: str
    params: dict[str, Any] = field(repr=False)

    def table(self, name: str) -> pd.DataFrame:
        path = self.reports / "tables" / f"{name}.csv"
        frame = read_table(path)
        missing = [column for column in _COLUMNS[name].split() if column not in frame]
        if missing:
            raise ValueError(
                f"{path}: lacks {', '.join(missing)}; write it again by `dvc repro --force analyze`"
            )
        return frame

    def param(self, *keys: str) -> Any:
        """Value of the params; None where absent."""
        value: Any = self.params
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def described(self, name: str) -> Any:
        """Fact on the data: as recorded, else as params have it."""
        return self.description.get(name, self.param("data", name))

    @cached_property
    def sensitivity(self) -> pd.DataFrame:
        return self.table("sensitivity")

    @cached_property
    def settings(self) -> pd.DataFrame:
        return self.table("settings")

    @cached_property
    def images(self) -> pd.DataFrame:
        return self.table("images")

    @cached_property
    def tasks(self) -> pd.DataFrame:
        return self.table("tasks")

    @cached_property
    def model_table(self) -> pd.DataFrame:
        return self.table("models")

    @cached_property
    def evaluation_set(self) -> pd.DataFrame:
        return self.table("evaluation_set")

    @cached_property
    def search(self) -> pd.DataFrame:
        """Trials of searches; empty where there are none."""
        known = (self.reports / "tables" / "search.csv").is_file()
        return self.table("search") if known else pd.DataFrame()

    @cached_property
    def convention(self) -> str:
        """The headline's, or the first there is."""
        found = self.sensitivity.loc[self.sensitivity["metric"] == "ssim", "convention"]
        return "common" if found.empty or "common" in set(found) else str(found.iloc[0])

    @cached_property
    def headline(self) -> pd.DataFrame:
        """Headline rows of the sensitivity table, the most moving sweep first."""
        rows = _choose(self.sensitivity, "ssim", self.convention)
        means = rows.groupby("sweep", sort=False)["mean"].mean()
        order = sorted(means.index, key=lambda name: (_last(means[name]), name))
        rows = rows.assign(
            place=[order.index(sweep) for sweep in rows["sweep"]],
            who=[self.models.index(model) for model in rows["model"]],
        )
        return rows.sort_values(["place", "who"], kind="stable").reset_index(drop=True)

    @cached_property
    def sweeps(self) -> list[str]:
        """Sweeps with a knob, in the order of the tasks."""
        return list(dict.fromkeys(self.tasks.loc[self.tasks["hyperparameter"] != "", "sweep"]))

    @cached_property
    def models(self) -> list[str]:
        known = [*self.model_table["model"], *self.tasks["model"], *self.sensitivity["model"]]
        return list(dict.fromkeys(known))

    @cached_property
    def confidence(self) -> float:
        return float(self.param("statistics", "confidence") or 0.95)

    @cached_property
    def percent(self) -> str:
        return f"{100 * self.confidence:g} %"

    @cached_property
    def n_images(self) -> int:
        return len(self.evaluation_set)

    @cached_property
    def photos(self) -> pd.Series:
        """Number of images per photograph; empty where photographs are not known."""
        photos = self.evaluation_set["photo"].astype(str)
        return photos[photos != ""].value_counts().sort_index()

    @cached_property
    def description(self) -> dict[str, Any]:
        path = self.results / "data" / "dataset.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """Image by id, where the images are at hand."""
        folder = self.results / "evaluation_set"
        if not (folder / "images.npy").is_file():
            return {}
        rows = read_table(folder / "evaluation_set.csv")
        images = np.load(folder / "images.npy", mmap_mode="r")
        return dict(zip(rows["image_id"], images, strict=True))

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Row of the evaluation set by image id."""
        return {str(row["image_id"]): row for row in _records(self.evaluation_set)}

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """Per-image scores of the headline measure, and the maps' own flags."""
        path = self.results / "scores.parquet"
        if not path.is_file():
            return None
        frame = figures.headline_draws(read_table(path))
        headline = (frame["metric"] == "ssim") & (frame["convention"] == self.convention)
        return frame[headline | (frame["metric"] == "dynamic_range")]

    def box(self, image_id: str) -> tuple[int, int, int, int] | None:
        return _box(self.facts.get(image_id, {}))

    def about(self, sweep: str) -> tuple[str, str]:
        """Return method and hyperparameter of a sweep."""
        row = _records(self.tasks[self.tasks["sweep"] == sweep])[0]
        return row["method"], row["hyperparameter"]

    def values(self, sweep: str) -> tuple[list[str], str | None]:
        """Values of a sweep in order, and the reference."""
        rows = self.tasks[self.tasks["sweep"] == sweep]
        values = list(dict.fromkeys(rows["value"].astype(str)))
        reference = rows.loc[_true(rows["is_reference"]), "value"].astype(str)
        numbers = [_number(value) for value in values]
        if all(number is not None for number in numbers):
            values = [v for _, v in sorted(zip(numbers, values, strict=True))]
        return values, None if reference.empty else reference.iloc[0]


def _sections(study: _Study, gallery: _Gallery) -> Iterator[Section]:
    """All of the report, in order; a later study's parts are further sections."""
    yield Section("top", "", _opening(study))
    yield Section("caveats", "", [_caveats(study)], nav="Caveats")
    yield Section("answer", "What moved the maps", _answer(study), nav="Answer")
    yield Section("headline", "All sweeps", [*_headline_table(study)], nav="Table")
    yield Section("knobs", "Which knob, which model", [*_overview(study, gallery)], nav="Figures")
    for sweep in study.sweeps:
        method, knob = study.about(sweep)
        title = f"Sweep {sweep}: `{knob}` of {method}"
        yield Section(f"sweep-{sweep}", title, [*_sweep(study, sweep, gallery)], nav=sweep)
    if not study.search.empty:
        yield Section("searches", "Searches", [*_searches(study, gallery)], nav="Searches")
    yield Section("models", "Models", [*_models(study, gallery)], nav="Models")
    yield Section("evaluation-set", "Evaluation set", [*_evaluation_set(study)], nav="Images")
    yield Section("data", "Data", [*_data(study, gallery)], nav="Data")
    yield Section("provenance", "Provenance", [*_provenance(study)], nav="Provenance")


def _opening(study: _Study) -> list[Block]:
    photos = f" from {_count(len(study.photos), 'photograph')}" if len(study.photos) else ""
    scope = (
        f"How far attribution maps move when one hyperparameter of the method, a *knob*, changes: "
        f"{_count(len(study.sweeps), 'sweep')}, {_list(study.models)}, "
        f"{_count(study.n_images, 'image')}{photos}."
    ).replace("*knob*", "**knob**")
    where = (
        f"The same numbers in MLflow: `make ui`, experiment `steadymap/{study.name}/METHOD`, "
        "parent run `METHOD SWEEP MODEL`, a child run per setting."
    )
    return [Text(scope, lead=True), Text(where)]


def _caveats(study: _Study) -> Block:
    n_models = len(study.models)
    if n_models == 1:
        networks = f"they say something about this one network, {study.models[0]}"
    else:
        networks = (
            f"differences are between these {n_models} networks, not between robust and regular "
            "models as such"
        )
    clustered = " (clustered by photograph)" if len(study.photos) else ""
    items = [
        f"**One training per model.** Intervals cover images{clustered} and random draws, not "
        f"trainings: {networks}."
    ]
    rule = study.param("evaluation_set", "rule") or "all_correct"
    if rule == "all_correct":
        models = "all models classify" if n_models > 1 else "the model classifies"
        items.append(
            f"**Easy images.** Only images that {models} correctly are used; hard ones are not."
        )
    else:
        items.append(
            f"**Chosen images.** The evaluation set follows the rule `{rule}`: it may hold images "
            "that a model misclassifies."
        )
    if study.described("kind") == "embedded":
        if study.param("data", "pattern_amplitude") == 0:
            planted = "The images are generated, here without the planted non-robust feature"
        else:
            planted = "The images are generated and their non-robust feature was planted"
        parents = study.model_table.assign(init_from=_words(study.model_table["init_from"]))
        for row in _records(parents[parents["init_from"] != ""]):
            planted += f"; {row['model']} was trained starting from {row['init_from']}"
        items.append(
            f"**A demonstration of the instrument.** {planted}: no evidence for or against the "
            "paper."
        )
    size = study.described("image_size")
    if isinstance(size, int) and size < 224:
        items.append(
            f"**Not the paper's grid.** Values are scaled to {size} px and few; neither they nor "
            "the numbers are comparable with the paper's. A mean depends on the values swept."
        )
    else:
        items.append("**The grid decides.** A mean over a sweep depends on the values swept.")
    items += [
        "**High SSIM is not yet stability.** It may mean a small amplitude or one outlier pixel: "
        "read it beside Spearman, HOG-Pearson and the count of degenerate maps.",
        "**Moving is a reaction, not a fault.** A large 1 − SSIM says that a map reacts to its "
        "knob; which of the maps is faithful to the model is not measured.",
    ]
    widths = study.headline.assign(
        half=(study.headline["ci_high"] - study.headline["ci_low"]).astype(float) / 2
    ).dropna(subset=["half"])
    if widths.empty:
        items.append(
            f"**Small n.** With {_count(study.n_images, 'image')} there are no intervals: no "
            "difference is detectable, and none is claimed."
        )
    else:
        widest = _records(widths.sort_values("half", kind="stable"))[-1]
        items.append(
            f"**Small n.** With {_count(study.n_images, 'image')} the {study.percent} intervals "
            f"reach ±{_f(widths['half'].median())} at the median and ±{_f(widest['half'])} at most "
            f"({widest['sweep']}, {widest['model']}): smaller differences are inconclusive by "
            "design."
        )
    return Items(items, title="Before you read a number")


def _answer(study: _Study) -> list[Block]:
    rows = study.headline
    if rows.empty:
        return [
            Text(
                "No sweep with a knob was scored, so there is nothing to compare. Add one under "
                "`sweeps` in `params.yaml` and run `make repro`.",
                lead=True,
            )
        ]
    known = rows.dropna(subset=["mean"])
    pairs = study.settings[
        (study.settings["metric"] == "ssim") & (study.settings["convention"] == study.convention)
    ]
    pairs = figures.headline_draws(pairs)
    n_pairs, n_degenerate = int(pairs["n_images"].sum()), int(pairs["n_degenerate"].sum())
    if known.empty or (n_pairs and n_degenerate == n_pairs):
        return [
            Text(
                "No answer: every compared pair of maps was degenerate (constant, not finite, or "
                "one pixel carrying over half of the mass), so the scores below mean nothing.",
                lead=True,
            )
        ]
    order = list(dict.fromkeys(known["sweep"]))
    most = order[0]
    sentences = [
        f"The knob that moved the maps most was {_name_knob(study, most)}: mean SSIM to the "
        f"reference map {_per_model(known, most)}."
    ]
    if len(order) > 1:
        least = order[-1]
        sentences.append(
            f"The one that moved them least was {_name_knob(study, least)}: "
            f"{_per_model(known, least)}."
        )
        apart, n_both = _apart(known, most, order[1])
        if len(apart) < n_both:
            sentences.append(
                f"Compared with {order[1]}, the next, {most} moved more with intervals apart for "
                + (f"{_list(apart)} only." if apart else "no model: their order is not settled.")
            )
    else:
        sentences.append("It is the only sweep, so there is no other knob to compare it with.")
    blocks: list[Block] = [Text(" ".join(sentences), lead=True)]
    details = [*_answer_by_method(study, known), *_answer_twins(study, known)]
    if len(order) > 1:
        details.append(_answer_measures(study, most))
    details.append(
        f"{n_degenerate} of {n_pairs} compared pairs of maps were degenerate (constant, not "
        "finite, or one pixel carrying over half of the mass)"
        + ("; their scores mean little." if n_degenerate else ".")
    )
    blocks.append(Items(details))
    return blocks


def _answer_by_method(study: _Study, known: pd.DataFrame) -> Iterator[str]:
    for method in dict.fromkeys(known["method"]):
        own = known[known["method"] == method]
        sweeps = list(dict.fromkeys(own["sweep"]))
        if len(sweeps) > 1:
            means = own.groupby("sweep")["mean"].mean()
            listed = [f"{s} ({study.about(s)[1]}) {_f(means[s])}" for s in sweeps]
            yield f"Within {method}, mean SSIM over models, most moving first: {', '.join(listed)}."


def _answer_twins(study: _Study, known: pd.DataFrame) -> Iterator[str]:
    keyed = _keyed(known, "sweep", "model")
    for robust in (name for name in study.models if name.endswith("-r")):
        regular = robust.removesuffix("-r")
        pairs = [
            (keyed[sweep, regular], keyed[sweep, robust])
            for sweep in dict.fromkeys(known["sweep"])
            if (sweep, regular) in keyed and (sweep, robust) in keyed
        ]
        if not pairs:
            continue
        steadier = [(one, other) for one, other in pairs if other["mean"] > one["mean"]]
        shakier = [(one, other) for one, other in pairs if other["mean"] < one["mean"]]
        up = sum(other["ci_low"] > one["ci_high"] for one, other in steadier)
        down = sum(other["ci_high"] < one["ci_low"] for one, other in shakier)
        yield (
            f"Of {_count(len(pairs), 'sweep')}, maps of {robust} moved less than those of "
            f"{regular} in {len(steadier)} (intervals apart in {up}) and more in {len(shakier)} "
            f"(apart in {down})."
        )


def _answer_measures(study: _Study, most: str) -> str:
    """Whether other measures name the same sweep."""
    agree: list[str] = []
    differ: list[tuple[str, str]] = []
    rows = figures.headline_draws(study.sensitivity)
    for (metric, convention), label in figures.MEASURES.items():
        if (metric, convention) == ("ssim", study.convention):
            continue
        chosen = rows[rows["metric"] == metric]
        if convention is not None:
            chosen = chosen[chosen["convention"] == convention]
        means = chosen.groupby("sweep")["mean"].mean().dropna()
        if means.empty:
            continue
        first = str(means.idxmin())
        if first == most:
            agree.append(label)
        else:
            differ.append((label, first))
    parts = []
    if agree:
        verb = "names" if len(agree) == 1 else "name"
        parts.append(f"{_list(agree)} {verb} {most} as the most moving sweep too")
    parts += [f"{label} names {first} instead" for label, first in differ]
    return ("; ".join(parts) or "No other measure was computed") + "."


def _headline_table(study: _Study) -> Iterator[Block]:
    rows = study.headline
    if rows.empty:
        yield Text("No similarity was scored.")
        return
    extra = {
        name: _choose(study.sensitivity, name, None).set_index(["sweep", "model"])["mean"]
        for name in ("spearman", "hog_pearson")
    }
    cells = []
    for row in _records(rows):
        key = row["sweep"], row["model"]
        cells.append(
            [
                Cell(row["sweep"]),
                Cell(row["method"]),
                Cell(row["hyperparameter"]),
                Cell(row["model"]),
                Cell(_interval(row), meter=_meter(row["mean"])),
                Cell(f"{_f(row['std_rms'])} / {_f(row['std_mean'])}"),
                *(Cell(_f(means.get(key))) for means in extra.values()),
                Cell(str(int(row["n_degenerate"]))),
                Cell(str(int(row["n_images"]))),
            ]
        )
    columns = ["sweep", "method", "knob", "model", f"SSIM [{study.percent}]"]
    columns += ["std rms/mean", "Spearman", "HOG", "deg.", "n"]
    note = (
        f"SSIM ({study.convention} convention) of each setting's map with the reference map: mean "
        "over settings, then over images; 1 is no change. **std**: "
        "the standard deviation over settings of one image, combined over images as root mean "
        "square (rms) and as mean. **Spearman** and **HOG** (Pearson correlation of HOG features) "
        "of the same pairs. **deg.**: pairs with a degenerate map. Sorted by SSIM averaged over "
        "models."
    )
    yield Table(columns, cells, n_names=4, note=note, meter_note=_METER)
    silent = [sweep for sweep in study.sweeps if sweep not in set(rows["sweep"])]
    if silent:
        yield Text(f"Without a scored pair of maps: {_list(silent)}.")
    fixed = study.tasks.loc[study.tasks["hyperparameter"] == "", "method"]
    if len(fixed):
        yield Text(
            f"Computed without a sweep, hence without a similarity: {_list(dict.fromkeys(fixed))}."
        )


def _overview(study: _Study, gallery: _Gallery) -> Iterator[Block]:
    if study.headline.empty:
        yield Text("No sweep was scored, so there is nothing to draw.")
        return
    look: dict[str, Any] = {"models": study.models}
    common = look | {"convention": study.convention, "confidence": study.confidence}
    yield gallery.add(
        "sensitivity-bars",
        figures.sensitivity_bars(study.sensitivity, images=study.images, **common),
        alt="Bars of 1 minus SSIM per sweep and model",
        caption="How far each knob moved the maps, most moving sweep (averaged over models) first. "
        "A long bar: choose this knob with care, and report its value. Bars of different sweeps "
        "depend on the values swept.",
    )
    yield gallery.add(
        "sensitivity-curves",
        figures.sensitivity_curves(study.settings, **common),
        alt="SSIM to the reference map against the swept value, a panel per sweep",
        caption="Mean SSIM to the reference map at each value. Thin lines lead to the reference, "
        "where a map is compared with itself.",
    )
    yield gallery.add(
        "measures",
        figures.measures_heatmap(study.sensitivity),
        alt="Mean similarity per sweep and model under each measure",
        caption="The same comparisons under other conventions and measures. A sweep that is light "
        "in one column and dark in another is stable in one sense only.",
    )


def _sweep(study: _Study, sweep: str, gallery: _Gallery) -> Iterator[Block]:
    method, knob = study.about(sweep)
    values, reference = study.values(sweep)
    runs = ", ".join(f"`{method} {sweep} {model}`" for model in study.models)
    yield Text(
        f"`{knob}` = {', '.join(values)}; reference {reference or 'none'}."
        f"{_fixed(study, sweep, knob)} In MLflow: experiment `steadymap/{study.name}/{method}`, "
        f"parent {'runs' if len(study.models) > 1 else 'run'} {runs}."
    )
    rows = study.settings[study.settings["sweep"] == sweep]
    if _choose(rows, "ssim", study.convention).empty:
        yield Text("No pair of maps was scored in this sweep.")
        return
    look: dict[str, Any] = {"models": study.models, "confidence": study.confidence}
    yield gallery.add(
        f"{sweep}-measures",
        figures.metric_agreement(rows, sweep=sweep, **look),
        alt=f"{sweep} under each convention and measure",
        caption="One sweep, read by each measure. SSIM conventions differ in scaling and window "
        "(common: max-abs, window 5; sam: the paper's, per method; wang: absolute value, min-max, "
        "Gaussian window); compare shapes, not heights, across panels.",
    )
    yield from _draws(study, sweep, rows, gallery)
    yield _settings_table(study, sweep, rows)
    yield from _pictures(study, sweep, gallery)
    yield from _extremes(study, sweep)


def _fixed(study: _Study, sweep: str, knob: str) -> str:
    """Hyperparameters that the sweep holds constant."""
    row = _records(_shared_tasks(study, sweep))[0]
    held = {k: v for k, v in json.loads(row["hyperparameters"]).items() if k != knob}
    return f" Held: {', '.join(f'{name} {value}' for name, value in held.items())}." if held else ""


def _draws(study: _Study, sweep: str, rows: pd.DataFrame, gallery: _Gallery) -> Iterator[Block]:
    """Nested against independent draws, where the sweep has both."""
    chosen = rows[(rows["metric"] == "ssim") & (rows["convention"] == study.convention)]
    if not {"nested", "independent"} <= set(chosen["draws"]):
        return
    whole = study.sensitivity
    whole = whole[
        (whole["sweep"] == sweep)
        & (whole["metric"] == "ssim")
        & (whole["convention"] == study.convention)
    ]
    keyed = _keyed(whole, "model", "draws")
    parts = [
        f"{model} {_interval(keyed[model, 'nested'])} nested, "
        f"{_interval(keyed[model, 'independent'])} independent"
        for model in study.models
        if (model, "nested") in keyed and (model, "independent") in keyed
    ]
    yield gallery.add(
        f"{sweep}-draws",
        figures.draws_comparison(
            rows,
            sweep=sweep,
            convention=study.convention,
            models=study.models,
            confidence=study.confidence,
        ),
        alt=f"{sweep} with nested and with independent draws",
        caption="Nested draws: a smaller sample is part of the larger one, so the maps share noise "
        "and look steadier. Independent: the reference has draws of its own, as two separate runs "
        f"would. Mean SSIM: {'; '.join(parts)}.",
    )


def _settings_table(study: _Study, sweep: str, rows: pd.DataFrame) -> Table:
    values, reference = study.values(sweep)
    tables = {
        metric: _keyed(
            _choose(rows, metric, study.convention if metric == "ssim" else None), "model", "value"
        )
        for metric in ("ssim", "spearman", "hog_pearson", "dynamic_range")
    }
    costs = _keyed(_shared_tasks(study, sweep), "model", "value")
    cells = []
    for value in values:
        for model in study.models:
            found = {name: table.get((model, value), {}) for name, table in tables.items()}
            ssim, amplitude = found["ssim"], found["dynamic_range"]
            own = value == reference
            label = f"{value} (reference)" if own else value
            degenerate = (ssim or amplitude).get("n_degenerate")
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
                        "–" if own and not ssim else _interval(ssim), meter=_meter(ssim.get("mean"))
                    ),
                    Cell(_f(ssim.get("std"))),
                    Cell(_f(found["spearman"].get("mean"))),
                    Cell(_f(found["hog_pearson"].get("mean"))),
                    Cell(_g(amplitude.get("mean"))),
                    Cell("–" if degenerate is None else str(int(degenerate))),
                    Cell(passes),
                ]
            )
    _, knob = study.about(sweep)
    columns = [knob, "model", f"SSIM [{study.percent}]", "std", "Spearman", "HOG"]
    note = (
        "Mean over images; **std** over images; **range**: largest minus smallest value of the "
        "unscaled map, mean over images; **passes**: forward / backward per image."
    )
    return Table(
        [*columns, "range", "deg.", "passes"], cells, n_names=2, note=note, meter_note=_METER
    )


def _pictures(study: _Study, sweep: str, gallery: _Gallery) -> Iterator[Block]:
    """Show the maps of the least stable, a random and the most stable image."""
    method, knob = study.about(sweep)
    folder = study.results / "maps" / method
    if not (folder / "index.json").is_file():
        yield Text(f"No maps of {method} at hand, hence no pictures.")
        return
    picks = _picks(study, sweep)
    if not picks:
        yield Text("No image has a defined score, hence no pictures.")
        return
    maps = Maps(folder)
    yield Text(
        "Maps, each divided by its largest absolute value: red speaks for the class, blue against "
        f"it, white is 0. Below each, SSIM ({study.convention}) to the framed reference."
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
            figures.picture_rows(
                rows,
                hyperparameter=knob,
                title=f"{sweep}: {adjective} image",
                note=f"{image_id}: {rule}",
            ),
            alt=f"Maps of the {adjective} image under {sweep}",
            caption=f"**{adjective.capitalize()} image**, `{image_id}`: {rule}.{few}",
        )


def _ranking(study: _Study, sweep: str) -> pd.Series:
    """Mean SSIM per image, averaged over models, least stable first."""
    rows = _choose(study.images[study.images["sweep"] == sweep], "ssim", study.convention)
    means = rows.dropna(subset=["mean"]).groupby("image_id")["mean"].mean()
    order = sorted(means.index, key=lambda image_id: (means[image_id], image_id))
    return means.reindex(order)


def _picks(study: _Study, sweep: str) -> list[tuple[str, str, str]]:
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
    study: _Study, sweep: str, image_id: str, maps: Maps
) -> tuple[list[figures.PictureRow], int]:
    """Row per model, and how many settings were left out for want of room."""
    values, reference = study.values(sweep)
    shown = _thin(values, reference)
    if image_id not in maps.image_ids:
        return [], 0
    position = maps.image_ids.index(image_id)
    tasks = _keyed(_shared_tasks(study, sweep), "model", "value")
    scores = study.scores
    if scores is not None:
        scores = scores[(scores["sweep"] == sweep) & (scores["image_id"] == image_id)]
    rows: list[figures.PictureRow] = []
    for model in (name for name in study.models if name in maps.models):
        cells = []
        for value in shown:
            if (model, value) not in tasks:
                continue
            hyperparameters = json.loads(tasks[model, value]["hyperparameters"])
            score, degenerate = _score_of(scores, model, value)
            cells.append(
                figures.MapCell(
                    value,
                    maps.read(model, hyperparameters)[position],
                    score=None if value == reference else score,
                    is_reference=value == reference,
                    degenerate=degenerate,
                )
            )
        if not cells:
            continue
        image = study.pixels.get(image_id) if not rows else None
        class_name = study.facts.get(image_id, {}).get("class_name", "")
        rows.append(figures.PictureRow(model, cells, image, study.box(image_id), str(class_name)))
    return rows, len(values) - len(shown)


def _searches(study: _Study, gallery: _Gallery) -> Iterator[Block]:
    yield Text(
        "Sweeps vary one knob; a search varies several at once, and Optuna chooses which settings "
        "are tried. **It finds what it has tried**: the worst setting found is not the worst there "
        "is, and another budget or seed may find another. Means and intervals of a best setting "
        "are picked from many, hence extreme by choice."
    )
    importances = study.table("importances")
    for (method, name), rows in study.search.groupby(["method", "search"], sort=False):
        yield from _search(study, str(method), str(name), rows, gallery)
        yield from _importances(importances[importances["search"] == name])


def _search(
    study: _Study, method: str, name: str, rows: pd.DataFrame, gallery: _Gallery
) -> Iterator[Block]:
    asked = rows[rows["state"] != "reference"]
    varied = searched_names(rows)
    first = _records(rows)[0]
    cheapest = first["objective"] == "cheapest"
    reference = setting_name(json.loads(first["hyperparameters"]), varied)
    knobs = _list(f"`{knob}`" for knob in varied)
    if cheapest:
        question = (
            f"the cheapest setting that holds: fewest model passes with a mean SSIM of at least "
            f"{first['tau']:g} to the converged map ({reference}, with another seed)"
        )
    else:
        question = f"the worst setting found: lowest mean SSIM to the map at {reference}"
    yield Text(
        f"**{name}**, {knobs} of {method}: {question}. {_count(len(asked), 'trial')} by "
        f"{first['sampler']}. In MLflow: experiment `steadymap/{study.name}/{method}`, parent runs "
        f"`{method} {name} MODEL`."
    )
    cells = []
    for model, own in rows.groupby("model", sort=False):
        tried = own[own["state"] != "reference"]
        line = [Cell(str(model))]
        best = _records(tried[_true(tried["is_best"])])
        if best:
            row = best[0]
            passes = (row["forward_passes"] + row["backward_passes"]) / row["n_images"]
            line.append(Cell(setting_name(json.loads(row["hyperparameters"]), varied)))
            mean = row["ssim_mean"]
            line.append(Cell(_interval({**row, "mean": mean}), meter=_meter(mean)))
            line.append(Cell(f"{passes:,.0f}"))
        else:
            line += [Cell("none holds" if cheapest else "none"), Cell("–"), Cell("–")]
        if cheapest:
            line.append(Cell(_f(tried["ssim_mean"].iloc[0])))
        distinct = tried["task_id"].nunique()
        failed = int((tried["state"] == "failed").sum())
        line += [Cell(f"{distinct}"), Cell(f"{failed}")]
        cells.append(line)
    columns = ["model", "cheapest that holds" if cheapest else "worst setting found"]
    columns += [f"SSIM [{study.percent}]", "passes per image"]
    columns += ["two converged maps"] if cheapest else []
    note = "Tried: different settings; a failed one is tried again by the next run."
    if cheapest:
        note += (
            " Two converged maps: SSIM of the largest setting with itself under another seed; "
            "where that is below the threshold, the search's range does not reach convergence."
        )
    yield Table([*columns, "tried", "failed"], cells, n_names=2, note=note, meter_note=_METER)
    faults = [text for text in dict.fromkeys(_words(asked["message"])) if text]
    if faults:
        yield Items([f"Failed: {text}" for text in faults[:3]])
    yield gallery.add(
        f"{name}-trials",
        figures.search_trials(rows, models=study.models),
        alt=f"Trials of the search {name}",
        caption=f"Search {name}: every setting tried.",
    )


def _importances(rows: pd.DataFrame) -> Iterator[Block]:
    if rows.empty:
        yield Text("Too few settings, or equal scores: no importances.")
        return
    keyed = _keyed(rows, "model", "hyperparameters", "evaluator")
    evaluators = [name for name in _EVALUATORS if name in set(rows["evaluator"])]
    cells = []
    for model in dict.fromkeys(rows["model"]):
        own = rows[rows["model"] == model]
        for name in dict.fromkeys(own["hyperparameters"]):
            line = [Cell(str(model)), Cell(str(name))]
            for evaluator in evaluators:
                row = keyed.get((model, name, evaluator))
                line.append(Cell("–" if row is None else f"{row['importance']:.2f}"))
            cells.append(line)
    yield Table(
        ["model", "importance for SSIM", *(_EVALUATORS[name] for name in evaluators)],
        cells,
        n_names=2,
        note="Shares of how much SSIM varies. fANOVA and PED-ANOVA are Optuna's and know single "
        "knobs, scaled to sum 1: over the whole space, and for what sets the best tenth of the "
        "trials apart. Forest ANOVA is ours: a random forest is fitted to the trials and its "
        "variance split into single knobs and, `a x b`, what two do together beyond each alone. "
        "With a few dozen trials all three are rough.",
    )


_EVALUATORS = {
    "forest_anova": "forest ANOVA (with pairs)",
    "fanova": "fANOVA",
    "ped_anova": "PED-ANOVA",
}


def _shared_tasks(study: _Study, sweep: str) -> pd.DataFrame:
    """Tasks of a sweep without the second reference that independent draws need."""
    return figures.headline_draws(study.tasks[study.tasks["sweep"] == sweep])


def _thin(values: list[str], reference: str | None) -> list[str]:
    """At most so many values as fit: both ends, the reference, and an even choice between."""
    if len(values) <= _MOST_SETTINGS:
        return values
    kept = {round(place) for place in np.linspace(0, len(values) - 1, _MOST_SETTINGS)}
    if reference in values:
        place = values.index(reference)
        nearest = min(kept - {0, len(values) - 1}, key=lambda other: abs(other - place))
        if place not in kept:
            kept = kept - {nearest} | {place}
    return [values[place] for place in sorted(kept)]


def _score_of(scores: pd.DataFrame | None, model: str, value: str) -> tuple[float | None, bool]:
    """Score of one map to its reference, and whether the map is degenerate."""
    if scores is None:
        return None, False
    own = scores[(scores["model"] == model) & (scores["value"] == value)]
    similarity = own.loc[own["metric"] == "ssim", "score"]
    flags = own.loc[own["metric"] == "dynamic_range", "degenerate"]
    score = None if similarity.empty else float(similarity.iloc[0])
    return score, bool(_true(flags).any())


def _extremes(study: _Study, sweep: str) -> Iterator[Block]:
    """List the images that moved most and least."""
    means = _ranking(study, sweep)
    if means.empty:
        return
    ids = list(means.index)
    ends = ids if len(ids) <= 2 * _EXTREMES else [*ids[:_EXTREMES], *ids[-_EXTREMES:]]
    rows = _choose(study.images[study.images["sweep"] == sweep], "ssim", study.convention)
    keyed = rows.set_index(["image_id", "model"])["mean"]
    thumbnails = bool(study.pixels)
    cells = []
    for image_id in ends:
        fact = study.facts.get(image_id, {})
        line = [Cell(f"{ids.index(image_id) + 1}")]
        if thumbnails:
            pixels = study.pixels.get(image_id)
            box = study.box(image_id)
            png = None if pixels is None else figures.thumbnail(pixels, box=box)
            line.append(Cell("", image=png))
        line += [Cell(image_id), Cell(str(fact.get("class_name", ""))), Cell(_text(fact, "photo"))]
        line.append(Cell(_f(means[image_id]), meter=_meter(means[image_id])))
        line += [Cell(_f(keyed.get((image_id, model)))) for model in study.models]
        cells.append(line)
    columns = ["rank", *(["image"] if thumbnails else []), "id", "class", "photograph"]
    columns += ["SSIM", *study.models]
    which = f"All {len(ids)}" if len(ends) == len(ids) else f"{len(ends)} of {len(ids)}"
    note = (
        f"{which} images, least stable first: mean SSIM over settings, averaged over models and "
        "for each."
    )
    yield Table(
        columns, cells, n_names=len(columns) - 1 - len(study.models), note=note, meter_note=_METER
    )


def _models(study: _Study, gallery: _Gallery) -> Iterator[Block]:
    rows = study.model_table
    if rows.empty:
        yield Text("No model is listed.")
        return
    cells = []
    for row in _records(rows):
        cells.append(
            [
                Cell(row["model"]),
                Cell("yes" if str(row["robust"]) == "True" else "no"),
                Cell(_text(row, "init_from") or "–"),
                Cell(_share(row["clean_accuracy"], row["n_val"])),
                Cell(_share(row["robust_accuracy"], row["n_attacked"])),
                Cell("–" if _missing(row["epochs"]) else f"{float(row['epochs']):g}"),
                Cell(
                    "–" if _missing(row["n_parameters"]) else f"{row['n_parameters'] / 1e6:.1f} M"
                ),
            ]
        )
    attacks = [text for text in dict.fromkeys(_words(rows["attack"])) if text]
    attack = f"Attack: {'; '.join(attacks)}." if attacks else "No attack was run."
    if not any(str(robust) == "True" for robust in rows["robust"]):
        attack += " There is no robust model in this study."
    yield Table(
        ["model", "robust", "starts from", "accuracy", "under attack", "epochs", "parameters"],
        cells,
        n_names=3,
        note=f"Accuracy on validation images, n in brackets. {attack}",
    )
    curves = {}
    for model in study.models:
        path = study.results / "models" / model / "curves.csv"
        if path.is_file() and not (frame := read_table(path)).empty:
            curves[model] = frame
    if not curves:
        yield Text("No training curves: the models were not trained here.")
        return
    yield gallery.add(
        "training-curves",
        figures.training_curves(curves, models=study.models),
        alt="Loss and accuracies against the epoch",
        caption="Training curves. The attack during training may be weaker than the one in the "
        "table.",
    )


def _evaluation_set(study: _Study) -> Iterator[Block]:
    rows = study.evaluation_set
    classes = rows["class_name"].astype(str).value_counts().sort_index()
    rule = study.param("evaluation_set", "rule")
    drawn = f" Rule: `{rule}`." if rule else ""
    yield Text(
        f"{_count(len(rows), 'image')} of {_count(len(classes), 'class', 'classes')}.{drawn}"
    )
    path = study.reports / "tables" / "evaluation_models.csv"
    if path.is_file() and not (table := read_table(path)).empty:
        cells = [
            [Cell(str(row["model"]))]
            + [Cell(str(int(row[name]))) for name in ("n_candidates", "n_correct", "n_dropped")]
            for row in _records(table)
        ]
        columns = ["model", "candidates", "classified correctly", "dropped by the rule"]
        yield Table(columns, cells, note="What each model did to the candidates.")
    else:
        yield Text("How many candidates each model dropped was not recorded.")
    photos = study.photos
    if 0 < len(photos) < len(rows):
        # As `sensitivity.interval` has it (definitions 3.5).
        few = len(photos) < 10
        how = "t-interval over means of fewer than 10" if few else "bootstrap over clusters"
        counts = ", ".join(f"{photo} {count}" for photo, count in photos.items())
        yield Text(
            f"Images that share a background photograph count as one cluster ({how}). "
            f"{_count(len(photos), 'photograph')}, with numbers of images: {counts}."
        )
    else:
        yield Text("No two images are known to share a photograph: each counts by itself.")
    if len(classes) <= 20:
        listed = ", ".join(f"{name} {count}" for name, count in classes.items())
        yield Text(f"Images per class: {listed}.")


def _data(study: _Study, gallery: _Gallery) -> Iterator[Block]:
    if not (study.results / "data" / "manifest.csv").is_file():
        yield Text("The data set is not at hand.")
        return
    dataset = read_dataset(study.results / "data")
    kind = study.description.get("kind", "unknown")
    size = study.description.get("image_size")
    pixels = f", {size} × {size} pixels" if size else ""
    counts = ", ".join(f"{len(dataset.rows(split))} {split}" for split in dataset.images)
    yield Text(f"Kind `{kind}`: {len(dataset.classes)} classes{pixels}; images: {counts}.")
    split = "train" if "train" in dataset.images else next(iter(dataset.images), None)
    if split is None:
        return
    rows = dataset.rows(split)
    images, labels, boxes = [], [], []
    shown = dataset.classes[:_CLASSES_SHOWN]
    for name in shown:
        own = rows[rows["class_name"].astype(str) == name].head(_IMAGES_PER_CLASS)
        images += [dataset.images[split][place] for place in own.index]
        labels += [name if place == 0 else "" for place in range(len(own))]
        boxes += [_box(row) for row in _records(own)]
        # Blank places keep a class on a line of its own.
        for _ in range(_IMAGES_PER_CLASS - len(own)):
            images.append(np.full_like(dataset.images[split][0], 255))
            labels.append("")
            boxes.append(None)
    few = (
        f" the first {len(shown)} classes of {len(dataset.classes)},"
        if (len(shown) < len(dataset.classes))
        else ""
    )
    outlined = ", the object's box outlined" if any(boxes) else "; no boxes are known"
    yield gallery.add(
        "data",
        figures.contact_sheet(images, labels, columns=_IMAGES_PER_CLASS, boxes=boxes),
        alt="Images of each class",
        caption=f"The data set:{few} the first images of each in the {split} split, in the order "
        f"of the manifest{outlined}.",
    )


def _provenance(study: _Study) -> Iterator[Block]:
    yield Text(
        f"Everything here is read from `tables/` and from the study's maps. `make repro` leaves "
        f"`dvc.lock` and `params.yaml` beside this report, in `reports/{study.name}/`: hashes of "
        "every input, and the params that made it."
    )
    if digest := study.description.get("digest"):
        yield Text(f"Data: digest `{digest}`.")
    cells = [
        [Cell(str(row["model"])), Cell(_text(row, "weights_sha256") or "–")]
        for row in _records(study.model_table)
    ]
    if cells:
        yield Table(["model", "sha256 of the weights"], cells, n_names=2)
    unique = study.tasks.drop_duplicates("task_id")
    passes = [int(unique[f"{kind}_passes"].sum()) for kind in ("forward", "backward")]
    yield Text(
        f"Maps: {len(unique)} settings times models ({passes[0]:,} forward and {passes[1]:,} "
        "backward passes if each were computed alone); `tables/tasks.csv` has the task id and all "
        "hyperparameters of each."
    )
    if study.params:
        text = yaml.safe_dump(study.params, sort_keys=False, default_flow_style=None, width=96)
        yield Code(text.rstrip(), title="params.yaml")
    else:
        yield Text("The params were not handed to the report.")


def _choose(frame: pd.DataFrame, metric: str, convention: str | None) -> pd.DataFrame:
    """Rows of one measure with headline draws, one per sweep, model and whatever else."""
    chosen = figures.headline_draws(frame)
    chosen = chosen[chosen["metric"] == metric]
    if convention is None and not chosen.empty:
        convention = chosen["convention"].iloc[0]
    return chosen[chosen["convention"] == convention]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _keyed(frame: pd.DataFrame, *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """First row by its values in columns `names`."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in _records(frame):
        found.setdefault(tuple(row[name] for name in names), row)
    return found


def _name_knob(study: _Study, sweep: str) -> str:
    method, knob = study.about(sweep)
    values, reference = study.values(sweep)
    grid = f"{', '.join(values)}; reference {reference or 'none'}"
    return f"`{knob}` of {method} (sweep {sweep}: {grid})"


def _per_model(rows: pd.DataFrame, sweep: str) -> str:
    own = _records(rows[rows["sweep"] == sweep])
    return _list([f"{_interval(row)} for {row['model']}" for row in own])


def _apart(rows: pd.DataFrame, first: str, second: str) -> tuple[list[str], int]:
    """Models for which `first`'s interval lies wholly below `second`'s; of how many."""
    keyed = _keyed(rows, "sweep", "model")
    both = [m for m in dict.fromkeys(rows["model"]) if {(first, m), (second, m)} <= set(keyed)]
    lower = [m for m in both if keyed[first, m]["ci_high"] < keyed[second, m]["ci_low"]]
    return lower, len(both)


def _box(row: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    corners = [row.get(name) for name in ("x0", "y0", "x1", "y1")]
    if any(_missing(corner) for corner in corners):
        return None
    x0, y0, x1, y1 = (int(float(corner)) for corner in corners)  # type: ignore[arg-type]
    return (x0, y0, x1, y1) if 0 <= x0 < x1 and 0 <= y0 < y1 else None


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _words(column: pd.Series) -> pd.Series:
    """Column as text, '' where empty: an all-empty column of a CSV is read as NaN."""
    return column.astype(object).where(column.notna(), "").astype(str)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if _missing(value) else str(value)


def _true(column: pd.Series) -> pd.Series:
    return column.astype(str) == "True"


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _last(value: Any) -> float:
    """Sort key that puts NaN last."""
    return math.inf if _missing(float(value)) else float(value)


def _f(value: Any) -> str:
    return "–" if _missing(value) or not math.isfinite(value) else f"{value:.3f}"


def _g(value: Any) -> str:
    return "–" if _missing(value) or not math.isfinite(value) else f"{value:.3g}"


def _interval(row: Mapping[str, Any]) -> str:
    mean = _f(row.get("mean"))
    if mean == "–" or _missing(row.get("ci_low")):
        return mean
    return f"{mean} [{_f(row['ci_low'])}, {_f(row['ci_high'])}]"


def _meter(mean: Any) -> float | None:
    return None if _missing(mean) or not math.isfinite(mean) else min(max(1 - mean, 0.0), 1.0)


def _share(value: Any, n: Any) -> str:
    if _missing(value):
        return "–"
    counted = "" if _missing(n) else f" ({int(n)})"
    return f"{100 * float(value):.1f} %{counted}"


def _count(n: int, noun: str, plural: str = "") -> str:
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def _list(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
