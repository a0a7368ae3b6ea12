"""The report of a study, as one HTML file and as Markdown, from its tables and maps."""

import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from steadymap import document, figures, paper, viewer
from steadymap.data.dataset import read_dataset
from steadymap.document import Block, Cell, Code, Items, Picture, Section, Table, Text
from steadymap.draws import derived_seed
from steadymap.environment import versions
from steadymap.parameter_sensitivity import DISAGREE
from steadymap.runs import (
    mostly_blank,
    parameter_verdict,
    searched_names,
    setting_name,
    sweep_anchor,
)
from steadymap.similarity import INVERTED
from steadymap.store import Maps, atomic_file, read_table
from steadymap.study import (
    Study,
    by_key,
    choose,
    corners,
    missing,
    number,
    records,
    text_of,
    thin,
    true,
    words,
)

_METER = "Shaded: 1 − SSIM."
_EXTREMES = 3
_CLASSES_SHOWN, _IMAGES_PER_CLASS = 10, 8
# Reports go to git: many small pictures rather than few sharp ones.
_MAX_BYTES, _MAX_LEAD_BYTES, _MAX_PAPER_BYTES = 300_000, 120_000, 64_000
# Pictures and maps of the whole page; words, tables and scores come on top.
_MAX_PAGE_BYTES = 13_000_000
_BETTER = {
    name: f"{words} ({better} is better)" for name, (words, better) in figures.ACCURACY.items()
}
_ARROWS = {"ssim": "SSIM ↑", "spearman": "Spearman ↑", "hog_pearson": "HOG ↑"}
_VERDICTS = ("holds", "fails", "inconclusive", "not measurable here")


@dataclass(frozen=True)
class ReportFiles:
    """What `build` wrote, or of an earlier report `kept`, all but the page."""

    html: Path
    markdown: Path
    details: Path
    figures: tuple[Path, ...]
    kept: bool = False


def build(
    reports: Path, results: Path, *, study: str, profile: Mapping[str, Any] | None = None
) -> ReportFiles:
    """Write `figures/*.png`, `report.html`, `report.md` and `details.md` into `reports`.

    `report.md` has the report's first part, for pull requests and terminals; `details.md` the rest,
    as far as Markdown can show it; `report.html` everything, with a viewer of the maps. The same
    inputs give the same bytes. Figures that this call does not write are deleted.

    Where results are not here, as in a fresh clone, an earlier report's files stay as they are:
    `report.html` alone is written, from the tables and with the figures that it had.

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
    source = Study(reports, Path(results), study, dict(profile or {}))
    gallery = _Gallery(reports / "figures", {} if _measured(source) else _committed(reports))
    sections = _with_viewer(source, gallery, _folded(source, _sections(source, gallery)))
    gallery.delete_others()
    html, markdown, details = (
        reports / name for name in ("report.html", "report.md", "details.md")
    )
    title = f"steadymap: {study}"
    brief = [section for section in sections if section.brief]
    rest = [section for section in sections if not section.brief]
    contents = {
        html: document.html(title, sections),
        markdown: document.markdown(title, [*brief, _further(source, rest)], reports),
        details: document.markdown(
            f"{title}, details", [Section("papers", "", [_PAPERS]), *rest], reports
        ),
    }
    for path, content in contents.items():
        if path == html or not gallery.committed:
            with atomic_file(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return ReportFiles(html, markdown, details, tuple(gallery.paths), bool(gallery.committed))


def _measured(study: Study) -> bool:
    """Whether all that figures and sections are made of is here, not the tables alone."""
    needed = ["data/manifest.csv", "evaluation_set", "models"]
    needed += [f"maps/{method}/index.json" for method in dict.fromkeys(study.tasks["method"])]
    tables = {"comparisons": "comparisons", "ipr": "randomization"}
    needed += [folder for table, folder in tables.items() if len(study.optional(table))]
    return all((study.results / name).exists() for name in needed)


_PICTURE = re.compile(r"^!\[(.*)\]\(figures/(.+)\.png\)\n\n((?:.+\n)+)", re.MULTILINE)


def _committed(reports: Path) -> dict[str, tuple[str, str]]:
    """Alternative text and caption of each figure of an earlier report, by name."""
    found = {}
    for path in (reports / "report.md", reports / "details.md"):
        for alt, name, caption in _PICTURE.findall(path.read_text() if path.is_file() else ""):
            if (reports / "figures" / f"{name}.png").is_file():
                found[name] = alt, " ".join(caption.split())
    return found


_NOT_HERE = "not here: run `make repro`"


class _Gallery:
    """Figures written so far; those `committed` before, with their words, are kept."""

    def __init__(self, folder: Path, committed: Mapping[str, tuple[str, str]] | None = None):
        self.folder = folder
        self.committed = committed or {}
        self.paths: list[Path] = []

    def add(
        self,
        name: str,
        figure: figures.Figure,
        *,
        alt: str,
        caption: str,
        max_bytes: int = _MAX_BYTES,
        folds: bool = False,
    ) -> Picture:
        path = self.folder / f"{name}.png"
        if name not in self.committed:
            figures.save(figure, path, max_bytes=max_bytes)
        if path not in self.paths:
            self.paths.append(path)
        return Picture(path, alt, caption, folds)

    def earlier(self, *names: str) -> list[Picture]:
        """Show committed figures that can't be drawn anew."""
        found = [name for name in names if name in self.committed]
        self.paths += [self.folder / f"{name}.png" for name in found]
        return [Picture(self.folder / f"{name}.png", *self.committed[name]) for name in found]

    def delete_others(self) -> None:
        for path in self.folder.glob("*.png"):
            if path not in self.paths and path.stem not in self.committed:
                path.unlink()


def _sections(study: Study, gallery: _Gallery) -> Iterator[Section]:
    """All of the report, in order; a later study's parts are further sections."""
    yield Section("top", "", [*_opening(study), _PAPERS], brief=True)
    yield Section("caveats", "", [_caveats(study)], nav="Caveats", brief=True)
    if advice := [*_advice(study)]:
        yield Section("advice", "", advice, nav="What to do", brief=True)
    title = "Which knob is dangerous"
    yield Section("answer", title, [*_answer(study, gallery)], nav="Dangerous knobs", brief=True)
    if plane := [*_plane_picture(study, gallery)]:
        title = "Setting or model: what moves the maps more"
        yield Section("plane", title, plane, nav="Sensitivity plane", brief=True)
    if budget := [*_budget(study, gallery)]:
        title = "How many samples are enough"
        yield Section("budget", title, budget, nav="Stability budget", brief=True)
    yield from _paper(study, gallery)
    yield from _parameters(study, gallery)
    yield Section("headline", "All sweeps", [*_headline_table(study)], nav="All sweeps")
    yield Section("knobs", "Value by value", [*_overview(study, gallery)], nav="Figures", level=3)
    for sweep in study.sweeps:
        method, knob = study.about(sweep)
        title = f"Sweep {sweep}: `{knob}` of {method}"
        blocks = [*_sweep(study, sweep, gallery)]
        yield Section(sweep_anchor(sweep), title, blocks, nav=sweep, level=3)
    if not study.search.empty:
        yield Section("searches", "Searches", [*_searches(study, gallery)], nav="Searches")
    yield Section("models", "Models", [*_models(study, gallery)], nav="Models")
    yield Section("evaluation-set", "Evaluation set", [*_evaluation_set(study)], nav="Images")
    yield Section("data", "Data", [*_data(study, gallery)], nav="Data")
    yield Section("provenance", "Provenance", [*_provenance(study)], nav="Provenance")


def _folded(study: Study, sections: Iterable[Section]) -> list[Section]:
    """Sections with all but the answer folded away in HTML, each under what it found."""
    findings = dict(_findings(study))
    return [
        replace(section, fold=findings.get(section.anchor, ""))
        if section.level > 2 or section.anchor in findings
        else section
        for section in sections
    ]


def _findings(study: Study) -> Iterator[tuple[str, str]]:
    """Anchor and one-line finding of what is folded."""
    yield from _CONTENTS.items()
    for anchor, stem in (("paper", "claims"), ("claims", "claims"), ("ipr-claims", "ipr_claims")):
        if len(table := study.optional(stem)):
            counts = table["direction"].value_counts()
            listed = ", ".join(f"{int(counts.get(name, 0))} {name}" for name in _VERDICTS)
            yield anchor, f"{_count(len(table), 'claim')}: {listed}."
    if len(rows := _ranked_rows(study)):
        yield "parameters", _passes(rows)
    known = study.headline.dropna(subset=["mean"])
    yield "headline", f"{_count(len(study.sweeps), 'sweep')}, value by value, with maps."
    for sweep, own in known.groupby("sweep", sort=False):
        worst = records(own.sort_values(["degree", "mean"], ascending=[False, True]))[0]
        moved = (
            f"1 − SSIM {_short(1 - worst['mean'])}, 1 − Spearman {_short(1 - worst['rank_mean'])}"
        )
        name = figures.DEGREES[int(worst["degree"])][1]
        yield sweep_anchor(str(sweep)), f"{name}: {moved} on {worst['model']}."
    accuracies = [
        f"{row['model']} {_share(row['clean_accuracy'], None)}"
        for row in records(study.model_table)
        if not missing(row["clean_accuracy"])
    ]
    yield "models", f"Accuracy: {_list(accuracies)}." if accuracies else ""
    n_classes = study.evaluation_set["class_name"].nunique()
    counted = f"{_count(study.n_images, 'image')} of {_count(n_classes, 'class', 'classes')}."
    yield "evaluation-set", counted


# What is folded without a finding of its own.
_CONTENTS = {
    "parameters": "",
    "paper": "",
    "table-s1": "Mean similarity, and level and spread of accuracy, beside the paper's values.",
    "global-std": "Which hyperparameter moves mean accuracy most.",
    "comparisons": "Input noise, de-noising, distance of the maps, size of the object.",
    "localization": "Error and IoU of each method beside maps that know no model.",
    "paper-figures": "The paper's figures, drawn from this study.",
    "parameter-measures": "S by each convention and measure.",
    "units": "Which unit's loss the maps notice, from the input to the logits.",
    "plane-table": "Each point of the plane, with intervals and ranks.",
    "knobs": "All curves, and whether other measures agree.",
    "searches": "Several hyperparameters at once.",
    "data": "Where the images come from.",
    "provenance": "Hashes of inputs, and the params that made this.",
}


def _with_viewer(study: Study, gallery: "_Gallery", sections: list[Section]) -> list[Section]:
    """Sections with the map viewer before the papers' part, as large as the page has room for."""
    pictures = {
        block.path
        for section in sections
        for block in section.blocks
        if isinstance(block, Picture) and not block.folds
    }
    drawn = sum(4 * path.stat().st_size // 3 for path in pictures)
    maps = viewer.view(study, max_bytes=min(viewer.MAX_BYTES, _MAX_PAGE_BYTES - drawn))
    if maps is None and not gallery.committed:
        return sections
    block = maps or Text(f"The viewer of all maps is {_NOT_HERE}.")
    place = next(at for at, section in enumerate(sections) if section.anchor == "paper")
    section = Section("maps", "The maps, side by side", [block], nav="Map viewer")
    return [*sections[:place], section, *sections[place:]]


def _opening(study: Study) -> list[Block]:
    photos = f" from {_count(len(study.photos), 'photograph')}" if len(study.photos) else ""
    scope = (
        "How far attribution maps move when one hyperparameter of the method, a **knob**, changes: "
        f"{_count(len(study.sweeps), 'sweep')}, {_list(study.models)}, "
        f"{_count(study.n_images, 'image')}{photos}."
    )
    return [Text(scope, lead=True)]


_PAPERS = Text(
    "After [SAM: The Sensitivity of Attribution Methods to Hyperparameters]"
    "(https://arxiv.org/abs/2003.08754) (N. Bansal, C. Agarwal and A. Nguyen, CVPR 2020), and, for "
    "the model's parameters, [Evaluating the overall sensitivity of saliency-based explanation "
    "methods](https://arxiv.org/abs/2306.13682) (H. Sriram and C. Conati, IJCAI 2023 workshop on "
    "explainable AI), an extended test by independent parameter randomization (IPR)."
)


def _further(study: Study, rest: Iterable[Section]) -> Section:
    """Where the short document's reader finds the rest."""
    titles = [section.title.replace("`", "") for section in rest if section.title]
    few = [title for title in titles if not title.startswith("Sweep ")]
    items = [
        "`report.html`, which `make repro` writes: all of it on one page that needs no network, "
        "with a viewer of every map.",
        f"`details.md`: {'; '.join(few)}; each sweep.",
        "`tables/*.csv`: every number, with its interval.",
        f"{_MAKE_UI}: experiment `steadymap/{study.name}/METHOD`, parent runs `METHOD SWEEP "
        "MODEL`, a child run per setting.",
    ]
    return Section("further", "Where the rest is", [Items(items)])


_MAKE_UI = "MLflow (`make ui`)"


def _caveats(study: Study) -> Block:
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
    short = ["**One training per model**: nothing here is about robust models as such."]
    if n_models == 1:
        short = ["**One training, one network**: other networks may differ."]
    if len(study.yardstick):
        n = int(study.yardstick["n_trainings"].max())
        told = "the hatched band beside the knobs"
        if len(study.twins):
            told += " and the table of twins below it"
        items = [
            f"**One training per model, {n} where that is said.** {told[:1].upper()}{told[1:]} "
            f"rest on {n} trainings of each network from other seeds. All other intervals cover "
            f"images{clustered} and random draws, not trainings: {networks}."
        ]
        short = [f"**One training per model**; {n} trainings in {told}."]
    rule = study.param("evaluation_set", "rule") or "all_correct"
    if rule == "all_correct":
        models = "all models classify" if n_models > 1 else "the model classifies"
        items.append(
            f"**Easy images.** Only images that {models} correctly are used; hard ones are not."
        )
        short.append(f"**Easy images**: only those that {models} correctly.")
    else:
        items.append(
            f"**Chosen images.** The evaluation set follows the rule `{rule}`: it may hold images "
            "that a model misclassifies."
        )
        short.append(f"**Chosen images**: by the rule `{rule}`.")
    started = study.model_table.assign(init_from=words(study.model_table["init_from"]))
    if pairs := [
        f"{row['model']} was trained starting from {row['init_from']}"
        for row in records(started[started["init_from"] != ""])
    ]:
        items.append(
            f"**Twins of one start.** {'; '.join(pairs)}, not from random weights: what such a "
            "pair shares, and how little it differs, may come from that."
        )
        short.append(f"**Twins of one start**: {'; '.join(pairs)}.")
    if study.described("kind") == "embedded":
        if study.param("data", "pattern_amplitude") == 0:
            planted = "The images are generated, here without the planted non-robust feature"
        else:
            planted = "The images are generated and their non-robust feature was planted"
        items.append(
            f"**A demonstration of the instrument.** {planted}: no evidence for or against the "
            "paper."
        )
        short.append("**Generated images**: no evidence for or against the paper.")
    size = study.described("image_size")
    if isinstance(size, int) and size < 224:
        items.append(
            f"**Not the paper's grid.** Values are scaled to {size} px and few; neither they nor "
            "the numbers are comparable with the paper's. A mean depends on the values swept."
        )
        short.append(f"**{size} px, small grids**: not comparable with the paper's values.")
    else:
        items.append("**The grid decides.** A mean over a sweep depends on the values swept.")
        short.append("**The grid decides**: a mean depends on the values swept.")
    items += [
        "**High SSIM is not yet stability.** It may mean a small amplitude or one outlier pixel, "
        "and a map and its negative may score .6 or more: words, verdicts and rankings hold by "
        "Spearman's rank correlation too. Read it beside the counts of degenerate and inverted "
        "pairs.",
        "**Moving is a reaction, not a fault.** A large 1 − SSIM says that a map reacts to its "
        "knob; which of the maps is faithful to the model is not measured.",
    ]
    short += [
        "**High SSIM** may be a small amplitude, one outlier pixel or an inverted map: read it "
        "beside Spearman.",
        "**Moving is a reaction**: which map is faithful is not measured.",
    ]
    widths = study.headline.assign(
        half=(study.headline["ci_high"] - study.headline["ci_low"]).astype(float) / 2
    ).dropna(subset=["half"])
    if widths.empty:
        items.append(
            f"**Small n.** With {_count(study.n_images, 'image')} there are no intervals: no "
            "difference is detectable, and none is claimed."
        )
        short.append(f"**{_count(study.n_images, 'image')}**: no difference is detectable.")
    else:
        widest = records(widths.sort_values("half", kind="stable"))[-1]
        median, paired = _f(widths["half"].median()), _paired_reach(study)
        between, briefly = "", ""
        if paired is not None:
            between = (
                "; of a difference between two models, paired by image, they reach "
                f"±{_f(paired)} at the median"
            )
            briefly = f", a difference between models, paired by image, to about ±{_f(paired)}"
        items.append(
            f"**Small n.** With {_count(study.n_images, 'image')} the {study.percent} intervals of "
            f"a mean reach ±{median} at the median and ±{_f(widest['half'])} at most "
            f"({widest['sweep']}, {widest['model']}){between}. A difference smaller than the reach "
            "of its own interval is inconclusive by design, as many verdicts are."
        )
        short.append(
            f"**{_count(study.n_images, 'image')}**: a mean is known to about ±{median}{briefly}; "
            "many verdicts are inconclusive by design."
        )
    title = "Before you read a number"
    return Items(items, title=title, short=short, fold="What each of these means")


def _advice(study: Study) -> Iterator[Block]:
    """A line per method: what to report, how many samples, how many seeds."""
    table = study.optional("advice")
    if table.empty:
        return
    items = [_advised(method, own) for method, own in table.groupby("method", sort=False)]
    tau = f"{table['tau'].iloc[0]:g}"
    items.append(
        f"Enough is an SSIM (common) of {tau}: of {100 * _share_wanted(study):g} % of the images "
        "with a converged map for a count; and as a mean, of rank correlation too, of two averages "
        "of as many seeds. By model: `tables/advice.csv`."
    )
    yield Items(items, title="What to do, by this study's own numbers")


def _share_wanted(study: Study) -> float:
    return float(study.param("comparisons", "budget", "share") or 0.9)


def _advised(method: str, own: pd.DataFrame) -> str:
    """Advice that holds on all models: what moves maps on any, the largest count of any."""
    moving = dict.fromkeys(" ".join(words(own["report"])).split())
    steady = [n for n in dict.fromkeys(" ".join(words(own["steady"])).split()) if n not in moving]
    named, others = (_list(f"`{name}`" for name in names) for names in (moving, steady))
    told = [f"report {named}" if moving else "no value swept moves its maps"]
    if moving and steady:
        told.append(f"its maps hardly depend on {others}")
    counted = next(filter(None, words(own["counted"])), "")
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
                f"average more than {_count(int(most), 'seed')}, the most that could be tried (two "
                f"such averages: SSIM {_f(alike)}, rank correlation {_f(ranks)})"
            )
    elif "seed" in moving or counted:
        told.append("seeds to average: not measured here")
    return f"**{method}**: {'; '.join(told)}."


def _paired_reach(study: Study) -> float | None:
    """Median half-width of the intervals of differences between two models in one sweep."""
    halves = []
    for sweep in dict.fromkeys(study.headline["sweep"]):
        for pair in itertools.combinations(study.models, 2):
            _, low, high = study.difference((sweep, pair[0]), (sweep, pair[1]))
            halves.append((high - low) / 2)
    known = [half for half in halves if math.isfinite(half)]
    return float(np.median(known)) if known else None


def _answer(study: Study, gallery: _Gallery) -> Iterator[Block]:
    rows = study.headline
    if rows.empty:
        yield Text(
            "No sweep with a knob was scored, so there is nothing to compare. Add one under "
            "`sweeps` in `params.yaml` and run `make repro`.",
            lead=True,
        )
        return
    known = rows.dropna(subset=["mean"])
    pairs = study.settings[
        (study.settings["metric"] == "ssim") & (study.settings["convention"] == study.convention)
    ]
    pairs = figures.headline_draws(pairs)
    n_pairs, n_degenerate = int(pairs["n_images"].sum()), int(pairs["n_degenerate"].sum())
    n_inverted = pairs["n_inverted"].sum(min_count=1)
    if known.empty or (n_pairs and n_degenerate == n_pairs):
        yield Text(
            "No answer: every compared pair of maps was degenerate (constant, not finite, or "
            "one pixel carrying over half of the mass), so the scores below mean nothing.",
            lead=True,
        )
        return
    order = list(dict.fromkeys(known["sweep"]))
    yield Text(" ".join(_answer_sentences(study, known, order)), lead=True)
    yardstick = study.yardstick
    retrained = ""
    if len(yardstick):
        settings = list(dict.fromkeys(yardstick["method"] + " " + yardstick["setting"]))
        retrained = (
            " **Hatched**: how far the maps of networks trained from other seeds are apart, with "
            f"its interval ({'; '.join(settings)}). A knob left of it moves the maps less than "
            "training the network again does."
        )
    yield gallery.add(
        "dangerous-knobs",
        figures.dangerous_knobs(
            study.sensitivity,
            images=study.images,
            look=study.look,
            yardstick=yardstick if len(yardstick) else None,
        ),
        alt="How far each knob moved the maps of each model, the most dangerous knob first",
        caption="How far each knob moved the maps, the worst first. To the right: choose this knob "
        "with care, report its value, or average over it. Where a point lies depends on the values "
        f"swept.{retrained}",
        max_bytes=_MAX_LEAD_BYTES,
    )
    yield _danger_table(study, known)
    yield from _twins_table(study)
    first = study.about(order[0])
    noises = [
        _seed_noise(study, known, method)
        for method in dict.fromkeys(known["method"])
        if method != first[0] or first[1] == "seed"
    ]
    details = [*filter(None, noises), *_answer_by_method(study, known)]
    details += _answer_twins(study, known)
    if len(order) > 1:
        details.append(_answer_measures(study, order[0]))
    details += _answer_parameters(study)
    details.append(
        f"Of the sweeps' maps, {n_degenerate} of {n_pairs} compared pairs were degenerate "
        "(constant, not finite, or one pixel carrying over half of the mass)"
        + ("; their scores mean little." if n_degenerate else ".")
        + ("" if missing(n_inverted) else f" {int(n_inverted)} were inverted: {_INVERTED}.")
    )
    yield Items(details, fold="By method, by measure, and what the model's parameters do")


_INVERTED = f"a rank correlation below {INVERTED:g}, which SSIM may not show"


def _answer_sentences(study: Study, known: pd.DataFrame, order: list[str]) -> Iterator[str]:
    """Sweeps by how far they moved the maps, the worst first."""
    worst = known.groupby("sweep", sort=False)["degree"].max()
    method, knob = study.about(order[0])
    yield (
        f"**Most dangerous: `{knob}` of {method}** (sweep {order[0]}), mean 1 − SSIM "
        f"{_per_model(known, order[0], _moved)}; 1 − Spearman "
        f"{_per_model(known, order[0], _rank_moved)}."
    )
    if knob != "seed" and (noise := _seed_noise(study, known, method)):
        yield noise
    groups: dict[int, dict[str, list[str]]] = {}
    for sweep in order:
        method, knob = study.about(sweep)
        knobs = groups.setdefault(int(worst[sweep]), {}).setdefault(method, [])
        if f"`{knob}`" not in knobs:
            knobs.append(f"`{knob}`")
    for place, methods in groups.items():
        named = [f"{_list(knobs)} of {method}" for method, knobs in methods.items()]
        if place >= _TOLD:
            yield f"**{_sentence(figures.DEGREES[place][1])}**: {'; '.join(named)}."
    if few := [sweep for sweep in order if worst[sweep] < _TOLD]:
        others = "" if len(few) == len(order) else "other "
        yield (
            f"{_count(len(few), f'{others}sweep')} moved them little or hardly, by SSIM and by "
            "rank correlation."
        )
    if len(order) > 1:
        apart, n_both = _apart(study, known, order[0], order[1])
        if len(apart) < n_both:
            yield (
                "Of the first two, the difference, paired by image, excludes 0 by both measures "
                f"for {_list(apart)} only."
                if apart
                else "The difference of the first two, paired by image, does not exclude 0 by both "
                "measures: their order is not settled."
            )
    else:
        yield "It is the only sweep, so there is no other knob to compare it with."


# Degrees of which the first sentences name every knob.
_TOLD = 2


def _seed_noise(study: Study, known: pd.DataFrame, method: str) -> str:
    """How far another seed alone moves a method's maps, beside its most moving other knob.

    '' where no seed sweep with that knob's other settings moves them half as far on the same model,
    or where the knob does not move them much; the first sweep of all is told of in any case.
    """
    own = known[known["method"] == method]
    others = records(own[own["hyperparameter"] != "seed"].sort_values("mean", kind="stable"))
    if not others:
        return ""
    worst = others[0]
    knob, moved = worst["hyperparameter"], 1 - worst["mean"]
    if worst["degree"] < _TOLD and worst["sweep"] != known["sweep"].iloc[0]:
        return ""
    at = _settings(study, worst["sweep"])
    told = []
    seeds = own[(own["hyperparameter"] == "seed") & (own["model"] == worst["model"])]
    for row in records(seeds):
        held = _settings(study, row["sweep"])
        # Where another setting differs too, the noise is that of other maps, or of none.
        alike = knob in held and held | {knob: None} == at | {knob: None}
        if alike and 1 - row["mean"] >= moved / 2 > 0:
            told.append(f"{_f(1 - row['mean'])} at `{knob}` {held[knob]} ({row['sweep']})")
    if not told:
        return ""
    return (
        f"Another seed alone moves the maps of {method} on {worst['model']} by {_list(told)}: much "
        f"of the {_f(moved)} of `{knob}` ({worst['sweep']}) may be the method's own noise."
    )


def _settings(study: Study, sweep: str) -> dict[str, Any]:
    """Hyperparameters at a sweep's reference, or at its first setting; without the seed."""
    rows = study.shared_tasks(sweep)
    kept = rows[true(rows["is_reference"])]
    row = records(kept if len(kept) else rows)[0]
    found = json.loads(row["hyperparameters"])
    return {name: value for name, value in found.items() if name != "seed"}


def _danger_table(study: Study, known: pd.DataFrame) -> Table:
    """A line per sweep, on the model whose maps it moved most."""
    worst_images = (
        1
        - choose(study.images, "ssim", study.convention)
        .dropna(subset=["mean"])
        .groupby(["sweep", "model"])["mean"]
        .min()
    )
    retrained = by_key(study.yardstick, "sweep", "model")
    cells = []
    for sweep, own in known.groupby("sweep", sort=False):
        ordered = records(own.sort_values(["degree", "mean"], ascending=[False, True]))
        row, others = ordered[0], [1 - other["mean"] for other in ordered[1:]]
        moved, place = 1 - row["mean"], int(row["degree"])
        span = "–"
        if others:
            span = " to ".join(_short(end) for end in dict.fromkeys((min(others), max(others))))
        line = [
            Cell(str(sweep), anchor=sweep_anchor(str(sweep))),
            Cell(figures.DEGREES[place][1], tone=place),
            Cell(f"{row['method']}: {row['hyperparameter']}"),
            Cell(_moved(row), meter=_meter(row["mean"])),
            Cell(_f(1 - row["rank_mean"]) + _turned(row), meter=_meter(row["rank_mean"])),
            Cell(row["model"], anchor=_first_map(study, str(sweep), row["model"])),
            Cell(span),
            Cell(_short(worst_images.get((sweep, row["model"])))),
        ]
        if retrained:
            band = retrained.get((sweep, row["model"]))
            line.append(Cell(f"{moved / band['mean']:.1f}×" if band and band["mean"] > 0 else "–"))
        cells.append(line)
    columns = ["sweep", "in words", "knob", f"1 − SSIM [{study.percent}]"]
    columns += ["1 − Spearman", "on", "others", "worst"]
    columns += ["retraining"] if retrained else []
    starts = ", ".join(f"**{name}** from {least:g}" for least, name in figures.DEGREES[1:])
    note = (
        f"**1 − SSIM** ({study.convention}) of a setting's map and the reference map, mean over "
        "settings and images, on the model that the knob moved most; **others**: the other models. "
        "**1 − Spearman**: the same of rank correlation, ‡ where pairs are inverted. **worst**: "
        f"the image that moved most, mean over settings. **In words**: {starts}, by the larger of "
        "the two; thresholds are a convention."
        + (
            " **retraining**: in units of what training the network again does."
            if retrained
            else ""
        )
        + _grids_words(study, known["sweep"])
    )
    return Table(columns, cells, n_names=3, note=note, meter_note=_METER)


def _twins_table(study: Study) -> Iterator[Block]:
    """Robust less regular over several trainings, beside this one's."""
    cells = []
    for row in records(study.twins):
        mean, low, high = study.difference(
            (row["sweep"], row["model"]), (row["sweep"], row["twin"])
        )
        over, ranks = (
            {"mean": row[f"{name}difference"], "ci_low": row[low], "ci_high": row[f"{name}high"]}
            for name, low in (("", "low"), ("rank_", "rank_low"))
        )
        settled = _side(over) * _side(ranks) > 0
        cells.append(
            [
                Cell(str(row["sweep"]), anchor=sweep_anchor(str(row["sweep"]))),
                Cell(str(row["method"])),
                Cell(f"{row['twin']} − {row['model']}"),
                Cell(_interval(over), tone=1 if settled else None),
                Cell(_interval(ranks)),
                Cell(_interval({"mean": mean, "ci_low": low, "ci_high": high})),
            ]
        )
    if not cells:
        return
    n = int(study.twins["n_trainings"].max())
    yield Table(
        [
            *("sweep", "method", "twins", f"{n} trainings [{study.percent}]", "Spearman"),
            "this training",
        ],
        cells,
        n_names=3,
        note=f"**Twins**: SSIM (common) of the robust model less that of the regular one; above 0, "
        f"the robust model's maps moved less. Over {n} trainings, paired by training and image, "
        "the interval covers trainings and images; of this training, paired by image, images "
        f"alone. **Spearman**: the same of rank correlation. All measures: "
        f"`../retraining/{study.name}/twins.csv`.",
        meter_note="Shaded: the intervals exclude 0 by both measures, on the same side.",
    )


def _first_map(study: Study, sweep: str, model: str) -> str:
    """Fragment of the viewer at the image that a sweep moved most on a model."""
    rows = choose(study.images[study.images["sweep"] == sweep], "ssim", study.convention)
    rows = rows[rows["model"] == model].dropna(subset=["mean"])
    if rows.empty or study.maps(study.about(sweep)[0]) is None:
        return ""
    first = records(rows.sort_values(["mean", "image_id"], kind="stable"))[0]
    return viewer.fragment(model, sweep, str(first["image_id"]))


def _shown(study: Study, sweep: str, image_id: str) -> str:
    """Fragment of the viewer at an image; '' where it has no maps."""
    maps = study.maps(study.about(sweep)[0])
    models = [name for name in study.models if maps and name in maps.models]
    return viewer.fragment(models[0], sweep, image_id) if models else ""


def _rank(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rank correlation of a headline row, with its interval."""
    return {name: row[f"rank_{name}"] for name in ("mean", "ci_low", "ci_high")}


def _whole(value: Any) -> str:
    return "–" if missing(value) else str(int(value))


def _side(row: Mapping[str, Any]) -> int:
    """Side of 0 that an interval lies on; 0 where it holds 0 or is not known."""
    return int(row["ci_low"] > 0) - int(row["ci_high"] < 0)


def _turned(row: Mapping[str, Any]) -> str:
    """Mark of rows with inverted pairs."""
    return "" if missing(row["n_inverted"]) or not row["n_inverted"] else " ‡"


def _rank_moved(row: Mapping[str, Any]) -> str:
    """1 - Spearman with its interval."""
    return _moved(_rank(row))


def _moved(row: Mapping[str, Any]) -> str:
    """1 - SSIM with its interval."""
    turned = {"mean": 1 - row["mean"], "ci_low": None}
    if not missing(row.get("ci_low")):
        turned |= {"ci_low": 1 - row["ci_high"], "ci_high": 1 - row["ci_low"]}
    return _interval(turned)


def _answer_by_method(study: Study, known: pd.DataFrame) -> Iterator[str]:
    for method in dict.fromkeys(known["method"]):
        own = known[known["method"] == method]
        sweeps = list(dict.fromkeys(own["sweep"]))
        if len(sweeps) > 1:
            means = own.groupby("sweep")[["mean", "rank_mean"]].mean()
            listed = [
                f"{s} ({study.about(s)[1]}) {' / '.join(map(_f, means.loc[s]))}" for s in sweeps
            ]
            yield (
                f"Within {method}, mean SSIM / Spearman over models, most moving first: "
                f"{', '.join(listed)}."
            )


def _answer_twins(study: Study, known: pd.DataFrame) -> Iterator[str]:
    keys = set(by_key(known, "sweep", "model"))
    for robust in (name for name in study.models if name.endswith("-r")):
        regular = robust.removesuffix("-r")
        sweeps = [
            sweep
            for sweep in dict.fromkeys(known["sweep"])
            if {(sweep, regular), (sweep, robust)} <= keys
        ]
        if not sweeps:
            continue
        found = [
            [
                dict(
                    zip(("mean", "ci_low", "ci_high"), study.difference(*pair, metric), strict=True)
                )
                for metric in ("ssim", "spearman")
            ]
            for pair in (((sweep, regular), (sweep, robust)) for sweep in sweeps)
        ]
        less, more = (
            [pair for pair in found if all(sign * row["mean"] > 0 for row in pair)]
            for sign in (1, -1)
        )
        up, down = (sum(all(map(_side, pair)) for pair in some) for some in (less, more))
        apart = sum(pair[0]["mean"] * pair[1]["mean"] < 0 for pair in found)
        yield (
            f"Of {_count(len(found), 'sweep')}, maps of {robust} moved less than those of "
            f"{regular} in {len(less)} and more in {len(more)}, by SSIM and by rank correlation; "
            f"the {study.percent} intervals of both differences, paired by image, exclude 0 in "
            f"{up} and {down} of these."
            + (f" In {apart}, undecided: SSIM and rank correlation disagree." if apart else "")
        )


def _answer_measures(study: Study, most: str) -> str:
    """Whether other measures name the same sweep."""
    agree: list[str] = []
    differ: list[tuple[str, str]] = []
    rows = figures.headline_draws(study.sensitivity)
    measures = figures.MEASURES | {(name, "own"): name for name in _own_metrics(rows)}
    for (metric, convention), label in measures.items():
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


def _headline_table(study: Study) -> Iterator[Block]:
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
                Cell(_interval(row), meter=_meter(row["mean"])),
                Cell(_f(row["rank_mean"]), meter=_meter(row["rank_mean"])),
                Cell(f"{_f(row['std_rms'])} / {_f(row['std_mean'])}"),
                Cell(str(int(row["n_degenerate"]))),
                Cell(_whole(row["n_inverted"])),
                Cell(str(int(row["n_images"]))),
            ]
        )
    columns = ["sweep", "method", "knob", "model", f"SSIM [{study.percent}]"]
    columns += ["Spearman", "std rms/mean", "deg.", "inv.", "n"]
    note = (
        f"SSIM ({study.convention} convention) and Spearman's rank correlation of each setting's "
        "map with the reference map: mean over settings, then over images; 1 is no change. "
        "**std** of SSIM: the standard deviation over settings of one image, combined over images "
        "as root mean square (rms) and as mean. **deg.**: pairs with a degenerate map. **inv.**: "
        f"inverted pairs, {_INVERTED}. "
        "Sorted by how far the maps moved in words, then by the lowest SSIM of any model."
        f"{_grids_words(study, rows['sweep'])}"
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


def _overview(study: Study, gallery: _Gallery) -> Iterator[Block]:
    if study.headline.empty:
        yield Text("No sweep was scored, so there is nothing to draw.")
        return
    yield gallery.add(
        "sensitivity-curves",
        figures.sensitivity_curves(study.settings, look=study.look),
        alt="SSIM to the reference map against the swept value, a panel per sweep",
        caption="Mean SSIM to the reference map at each value. Thin lines lead to the reference, "
        "where a map is compared with itself.",
    )
    yield gallery.add(
        "measures",
        figures.measures_heatmap(study.sensitivity, look=study.look),
        alt="Mean similarity per sweep and model under each measure",
        caption="The same comparisons under other conventions and measures. A sweep that is light "
        "in one column and dark in another is stable in one sense only.",
        max_bytes=_MAX_LEAD_BYTES,
    )


def _sweep(study: Study, sweep: str, gallery: _Gallery) -> Iterator[Block]:
    method, knob = study.about(sweep)
    values, reference = study.values(sweep)
    runs = ", ".join(f"`{method} {sweep} {model}`" for model in study.models)
    yield Text(
        f"`{knob}` = {', '.join(values)}; reference {reference or 'none'}."
        f"{_fixed(study, sweep, knob)} In {_MAKE_UI}: experiment "
        f"`steadymap/{study.name}/{method}`, parent {'runs' if len(study.models) > 1 else 'run'} "
        f"{runs}; their tag `report` leads back here."
    )
    rows = study.settings[study.settings["sweep"] == sweep]
    if choose(rows, "ssim", study.convention).empty:
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
    whole = figures.headline_draws(study.sensitivity)
    whole = whole[whole["sweep"] == sweep]
    each = figures.headline_draws(study.settings)
    each = each[each["sweep"] == sweep]
    cells = []
    for metric, convention in _accuracies(study):
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
                    Cell(_BETTER[metric]),
                    Cell(model),
                    Cell(_interval(row)),
                    Cell(f"{_f(row['std_rms'])} / {_f(row['std_mean'])}"),
                    Cell(f"{_f(means.min())} to {_f(means.max())}"),
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
        f"{_accuracy_words(study)}"
    )
    if not any(cell[0].text == _BETTER["localization_error"] for cell in cells):
        note += " No localization: no image has a box."
    yield Table(columns, cells, n_names=2, note=note)


def _accuracies(study: Study) -> list[tuple[str, str]]:
    """Accuracy metrics, with the headline's convention."""
    return [
        ("insertion", "auc_over_max"),
        ("deletion", "auc_over_max"),
        ("localization_error", study.alpha),
        ("iou", study.alpha),
    ]


def _accuracy_words(study: Study) -> str:
    return (
        "Insertion and deletion: area under the curve over its maximum. Localization: box of what "
        f"exceeds {float(study.alpha.removeprefix('alpha')):g} of the map's maximum; other "
        "thresholds in `tables/sensitivity.csv`."
    )


def _paper(study: Study, gallery: _Gallery) -> Iterator[Section]:
    """The SAM paper's experiments: tables, claims, figures by name."""
    drawn = {one.name: one for one in paper.draw(study)}
    pictures = {
        name: gallery.add(
            name,
            one.figure,
            alt=f"{one.title}: {one.shows}",
            caption=f"**{one.title}: {one.shows}.** {one.caption}",
            max_bytes=_MAX_PAPER_BYTES,
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
        ("claims", "Claims", [*_claims(study)], "Claims"),
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
    table = study.optional("claims")
    if table.empty:
        counted = "Its claims were not judged."
    else:
        counts = table["direction"].value_counts()
        listed = [
            f"{name} {int(counts.get(name, 0))}"
            + _elsewhere(records(table[table["direction"] == name]))
            for name in _VERDICTS
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
    table = study.optional("table_s1")
    if table.empty:
        yield Text("No Table S1: none of its sweeps was scored.")
        return
    metrics = [name for name in _TABLE_S1 if (table["metric"] == name).any()]
    lines, long = [], []
    paper_names = words(table["paper_model"])
    for (row, model), own in table.groupby(["row", "model"], sort=False):
        found = by_key(own, "metric")
        line, theirs = [Cell(str(row)), Cell(str(model))], [Cell(""), Cell("")]
        for metric in metrics:
            cell = found.get((metric,))
            if cell is None:
                line.append(Cell("–"))
                theirs.append(Cell(""))
                continue
            spread = f"{_f(cell['std_rms'])} / {_f(cell['std_mean'])}"
            line.append(Cell(f"{_f(cell['mean'])} ± {spread}"))
            known = not missing(cell["paper_mean"])
            value = f"{_f(cell['paper_mean'])} ± {_f(cell['paper_std'])}" if known else "–"
            theirs.append(Cell(value))
            long.append(
                [
                    *(Cell(str(row)), Cell(str(cell["sweep"])), Cell(str(model))),
                    Cell(_TABLE_S1[metric]),
                    Cell(f"{_f(cell['mean'])} {_ends(cell, 'mean')}"),
                    Cell(f"{_f(cell['std_rms'])} {_ends(cell, 'rms')}"),
                    Cell(_f(cell["std_mean"])),
                    Cell(value),
                    Cell(str(int(cell["n_images"]))),
                ]
            )
        lines.append(line)
        name = paper_names[own.index[0]]
        if name:
            lines.append([Cell(""), Cell(f"paper: {name}"), *theirs[2:]])
    without = [] if "localization_error" in metrics else ["no image has a box"]
    if absent := [name for name in paper.TABLE_ROWS if name not in set(table["row"])]:
        without.append(f"not scored here: {', '.join(absent)}")
    note = (
        "Ours: mean ± std over settings as rms / mean over images. The paper's, on ImageNet: mean "
        "± std (rms). SSIM by convention sam; insertion and deletion as area over the curve's "
        f"maximum; localization error at {study.alpha.removeprefix('alpha')} of the maximum"
        f"{''.join(f'; {reason}' for reason in without)}. LIME and MP are their seed sweeps."
    )
    note += _grids_words(study, table["sweep"])
    if "paper_values" in table:
        theirs_of = {row["row"]: text_of(row, "paper_values").split() for row in records(table)}
        told = "; ".join(f"{row} {_swept(values)}" for row, values in theirs_of.items())
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


def _ends(row: Mapping[str, Any], prefix: str) -> str:
    low, high = row[f"{prefix}_low"], row[f"{prefix}_high"]
    return "" if missing(low) else f"[{_f(low)}, {_f(high)}]"


def _global_std(study: Study) -> Iterator[Block]:
    table = study.optional("global_std")
    table = table[table["convention"].isin(["auc_over_max", study.alpha])]
    if table.empty:
        yield Text("No spread of accuracy over a sweep's settings: no accuracy was scored.")
        return
    model = "mean" if (table["model"] == "mean").any() else study.models[0]
    table = table[table["model"] == model]
    metrics = [name for name in figures.ACCURACY if (table["metric"] == name).any()]
    found = by_key(table, "sweep", "metric")
    cells = []
    for sweep in dict.fromkeys(table["sweep"]):
        rows = {metric: found.get((sweep, metric)) for metric in metrics}
        first = next(row for row in rows.values() if row)
        line = [Cell(sweep), Cell(str(first["hyperparameter"]))]
        for row in rows.values():
            std, scaled = (_g(row[name]) if row else "–" for name in ("std", "std_scaled"))
            line.append(Cell(f"{std} → {scaled}"))
        line.append(Cell(f"{int(first['n_settings'])} / {int(first['n_images'])}"))
        cells.append(line)
    who = "Mean over models" if model == "mean" else model
    yield Table(
        ["sweep", "knob", *(figures.ACCURACY[name][0] for name in metrics), "settings / n"],
        cells,
        n_names=2,
        note=f"{who}: std over settings of the mean over images → what it would be on the paper's "
        "1,735 images. Per model and with intervals: `tables/global_std.csv`."
        f"{_grids_words(study, table['sweep'])}",
    )


def _claims(study: Study, stem: str = "claims") -> Iterator[Block]:
    """Claims of a paper by verdict, from its table."""
    table = study.optional(stem)
    if table.empty:
        yield Text("The paper's claims were not judged.")
        return
    # Tables have `value` as text, for that is what settings are.
    table = table.assign(value=pd.to_numeric(table["value"], errors="coerce"))
    counts = table["direction"].value_counts()
    sizes = words(table["size"]).value_counts()
    gridded = "papers_grid" in table
    reasons, shared, n_shared = _without_refrain(words(table["reason"]))
    table = table.assign(reason=reasons)
    yield Items(
        [
            *(f"**{name}**: {int(counts.get(name, 0))}" for name in _VERDICTS),
            f"of {len(table)}, none left out. Of their sizes, the paper's value lies inside our "
            f"interval in {int(sizes.get('inside', 0))}, outside in "
            f"{int(sizes.get('outside', 0))}; the others are not comparable"
            + (f", {sizes['another grid']} for their grid." if "another grid" in sizes else "."),
        ]
    )
    yield Text(_direction(table))
    others = [name for name in dict.fromkeys(table["direction"]) if name not in _VERDICTS]
    for verdict in (*_VERDICTS, *others):
        rows = records(table[table["direction"] == verdict])
        if not rows:
            continue
        measured = verdict != "not measurable here"
        cells = [
            [
                Cell(str(row["claim"])),
                Cell(str(row["name"])),
                Cell(_g(row["paper_value"])),
                *([Cell(_found(row)), Cell(_unit(row))] if measured else []),
                *([Cell(_size(row))] if measured else []),
                Cell(_sentence(text_of(row, "statement"))),
                Cell(_sentence(text_of(row, "reason"))),
            ]
            for row in rows
        ]
        columns = ["claim", "about", "paper"]
        columns += [f"ours [{study.percent}]", "unit", "size"] if measured else []
        columns += ["the paper's statement", "what goes with it" if measured else "reason"]
        title = f"{verdict.capitalize()}: {len(rows)}{_elsewhere(rows)}"
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


def _size(row: Mapping[str, Any]) -> str:
    return "another grid" if text_of(row, "papers_grid") == "no" else text_of(row, "size")


def _elsewhere(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of these claims were measured on another grid than the paper's."""
    n = sum(text_of(row, "papers_grid") == "no" for row in rows if "papers_grid" in row)
    return f", {n} of them on another grid than the paper's" if n else ""


def _direction(table: pd.DataFrame) -> str:
    """What `holds` means, and for how many claims that hold the paper's size is ours too."""
    told = "**Holds** means direction only: our interval lies on the claimed side, however far."
    sizes = words(table.loc[table["direction"] == "holds", "size"])
    if sizes.empty:
        return told
    n = [int((sizes == name).sum()) for name in ("inside", "outside")]
    verb = "holds" if len(sizes) == 1 else "hold"
    told += (
        f" Of {_count(len(sizes), 'claim')} that {verb}, the paper's size lies inside our interval "
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
        return _g(row["value"])
    return f"{_g(row['value'])} [{_g(row['ci_low'])}, {_g(row['ci_high'])}]"


def _unit(row: Mapping[str, Any]) -> str:
    n = row["n_images"]
    counted = "" if missing(n) or int(n) == 0 else f"n = {int(n)}"
    return ", ".join(filter(None, [text_of(row, "unit"), counted]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _comparisons(study: Study) -> Iterator[Block]:
    table = study.optional("comparisons")
    table = table.assign(
        **{name: words(table[name]) for name in ("other", "role", "value", "pairing", "method")}
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
        for metric in _ARROWS:
            line.append(Cell(_interval(_first(study, own, metric))))
        line.append(Cell(str(int(_first(study, own, "ssim").get("n_images", 0)))))
        cells.append(line)
    if cells:
        heads = [f"{name} [{study.percent}]" for name in _ARROWS.values()]
        yield Table(
            ["method", "variance", "model", *heads, "n"],
            cells,
            n_names=3,
            note="**Input noise** (paper 4.1, Figs. 3, S13): similarity of the maps of an image "
            "and of the image under Gaussian noise of that variance ([0, 1] units); ↑ less moved.",
        )


def _first(study: Study, rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Row of a metric, of SSIM by the headline's convention."""
    chosen = rows[rows["metric"] == metric]
    if metric == "ssim":
        chosen = chosen[chosen["convention"] == study.convention]
    return records(chosen.head(1))[0] if len(chosen) else {}


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
            line += [Cell(_f(mean)) for mean in means]
            if guided.any():
                line.append(Cell(_f(_mean(own[own["method"] == "guided_backprop"]))))
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
            Cell(_interval(row)),
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
    table = study.optional("object_size")
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
    trivial = study.optional("localization_baselines")
    if trivial.empty:
        yield Text("No image has a box, hence no localization.")
        return
    found = by_key(trivial, "name", "metric", "convention")
    metrics = ("localization_error", "iou")

    chosen = figures.headline_draws(study.optional("localization_chosen"))
    elsewhere = by_key(chosen[chosen["metric"] == "localization_error"], "sweep", "method", "model")

    def cells_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        return [Cell(_interval(rows[name])) for name in metrics]

    def n_of(rows: Mapping[str, Mapping[str, Any]]) -> Cell:
        return Cell(str(next((int(row["n_images"]) for row in rows.values() if row), 0)))

    cells = []
    for name in dict.fromkeys(trivial["name"]):
        rows = {metric: found.get((name, metric, study.alpha), {}) for metric in metrics}
        line = [Cell(f"trivial: {name.replace('_', ' ')}"), Cell("none"), *cells_of(rows)]
        cells.append([*line, *([Cell("–")] if elsewhere else []), n_of(rows)])
    each = figures.headline_draws(study.settings)
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
            cells.append([*line, *([Cell(_f(other.get("mean")))] if elsewhere else []), n_of(rows)])
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


def _figure_index(drawn: Mapping[str, paper.PaperFigure], shown: Collection[str]) -> Table:
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


def _one_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of one order (independent where there is), randomizer and preset."""
    for name in ("order", "randomizer", "preset"):
        if name in table and len(table):
            first = "independent" if (table[name] == "independent").any() else table[name].iloc[0]
            table = table[table[name] == first]
    return table


def _headline_ssim(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    return table[(table["metric"] == "ssim") & (table["convention"] == study.convention)]


def _ranked_rows(study: Study) -> pd.DataFrame:
    """Headline rows of the IPR test by model, the most sensitive method first."""
    rows = _one_kind(_headline_ssim(study.optional("ipr"), study))
    names = [*study.models, *dict.fromkeys(rows["model"])]
    rows = rows.assign(place=[names.index(model) for model in rows["model"]])
    return rows.sort_values(
        ["place", "S_same"], ascending=[True, False], kind="stable", ignore_index=True
    )


def _randomized_words(study: Study) -> str:
    """Images, units and weight draws behind the headline rows."""
    rows = _ranked_rows(study)

    def span(column: str, noun: str) -> str:
        low, high = int(rows[column].min()), int(rows[column].max())
        return f"{low} to {_count(high, noun)}" if low < high else _count(high, noun)

    parts = (("n_images", "image"), ("n_units", "unit"), ("n_draws", "draw"))
    return f"{', '.join(span(*part) for part in parts)} of the weights" if len(rows) else ""


def _answer_parameters(study: Study) -> Iterator[str]:
    rows = _ranked_rows(study).dropna(subset=["S_same"])
    if rows.empty:
        return
    ranks = _rank_rows(study)
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
            numbers = f"{_f(row['S_same'])}, 1 − Spearman {_f(row['rank_S'])}"
            told.append(f"those of {named[0]} moved {word} (mean 1 − SSIM {numbers})")
        else:
            told.append(
                f"which moved {word} is undecided: SSIM and rank correlation disagree "
                f"({' and '.join(named)})"
            )
    yield (
        f"When a unit of the model got random weights, of all maps {_list(told)}. {_passes(rows)}"
    )


def _rank_rows(study: Study) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of table `ipr` by rank correlation, by model and method."""
    table = _one_kind(study.optional("ipr"))
    return by_key(table[table["metric"] == "spearman"], "model", "method")


def _passes(rows: pd.DataFrame) -> str:
    verdicts, blank = words(rows["passes"]), mostly_blank(rows)
    counts, hollow = verdicts.value_counts(), verdicts[blank].value_counts()
    told = ", ".join(
        f"{name} {int(counts.get(name, 0))}"
        + (f" ({int(hollow[name])} of them by mostly blank maps)" if name in hollow else "")
        for name in _PASSES
    )
    return (
        f"Sensitive to the model's parameters, of {_count(len(rows), 'pair')} of method and model: "
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
            f"**Blank maps.** {method} on {_list(own['model'])}: {int(own['n_degenerate'].sum())} "
            f"of {int(own['n_compared'].sum())} maps are blank or otherwise degenerate. Its S is "
            "there what an empty map scores, whatever was randomised, and it passes by that."
        )


def _plane_picture(study: Study, gallery: _Gallery) -> Iterator[Block]:
    table = study.optional("plane")
    sweeps = [name for name in dict.fromkeys(words(table["sweep"])) if name]
    if not sweeps or table[["x", "y"]].isna().any(axis=1).all():
        return
    grids = [_grid_words(study, sweep) for sweep in sweeps if sweep in study.sweeps]
    ipr = _one_kind(study.optional("ipr"))
    keys = ["model", "method", "metric", "convention"]
    empty = set(ipr.loc[mostly_blank(ipr), keys].itertuples(index=False, name=None))
    blank = [key in empty for key in table[keys].itertuples(index=False, name=None)]
    crossed = (
        " **Crossed**: over half of the randomised models' maps are blank, and the height is what "
        "an empty map scores."
        if any(blank)
        else ""
    )
    yield gallery.add(
        "sensitivity-plane",
        figures.sensitivity_plane(table.assign(blank=blank), look=study.look),
        alt="Sensitivity to the model's parameters against sensitivity to hyperparameters",
        caption="**Sensitivity plane.** A point is one sweep of one method on one model. Upwards: "
        "how far the maps move when a unit of the model gets random weights "
        f"({_randomized_words(study)}); to the right: how far they move when the hyperparameter "
        "changes, over the same images. Higher is more sensitive, on both axes. **Above the "
        "diagonal** the maps react more to what the model learnt than to the setting; below it, "
        "the setting says more than the model; what holds in one panel alone is undecided, as SSIM "
        "and rank correlation disagree. The horizontal place **depends on the values "
        f"swept**: {'; '.join(grids)}. Ranked are sweeps whose reference is the setting that the "
        "randomised models were explained with; methods without a sweep stand hollow at 0. "
        f"Points of one method and model are joined.{crossed}",
        max_bytes=_MAX_LEAD_BYTES,
    )


def _budget(study: Study, gallery: _Gallery) -> Iterator[Block]:
    """Stability budget: from which count on maps agree with a converged one."""
    table = study.optional("budget")
    if table.empty:
        return
    table = table.assign(reached=true(table["reached"]))
    settled = int(table["reached"].sum())
    share = float(study.param("comparisons", "budget", "share") or 0.9)
    enough = f"at least {100 * share:g} % of the images"
    yield Text(
        f"The smallest number of samples, trials or steps from which on {enough} have a map as "
        "good as a **converged** one: that of the largest number, with another seed. "
        f"Reached in {settled} of {_count(len(table), 'case')}.",
        lead=True,
    )
    curves = study.optional("budget_curves")
    if len(curves):
        yield gallery.add(
            "stability-budget",
            figures.stability_budget(curves, table, look=study.look, share=share),
            alt="Share of images whose map is as good as converged, against the count, per method "
            "and model",
            caption="**Stability budget.** Upwards: more of the images have a map that reaches the "
            "SSIM with their converged one; to the right: more samples, trials or steps, hence "
            "passes. **Ringed**: the budget, the smallest count of the grid at which, and at every "
            f"larger one, {enough} do (shaded). What no count changes is told in words below.",
            max_bytes=_MAX_LEAD_BYTES,
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
                Cell(_whole_percent(row["share_at_max"])),
                Cell(_f(row["self_similarity"])),
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


def _grid_words(study: Study, sweep: str) -> str:
    return f"{sweep} `{study.about(sweep)[1]}` {_swept(study.values(sweep)[0])}"


def _swept(values: Sequence[str]) -> str:
    """Values of a sweep in few words."""
    if len(values) < 4 or any(number(value) is None for value in values):
        return ", ".join(values)
    return f"{values[0]} to {values[-1]} ({len(values)} values)"


def _grids_words(study: Study, sweeps: Iterable[str]) -> str:
    """Values of all these sweeps, as a sentence."""
    known = [sweep for sweep in dict.fromkeys(sweeps) if sweep in study.sweeps]
    return f" Values swept: {'; '.join(_grid_words(study, sweep) for sweep in known)}."


def _parameters(study: Study, gallery: _Gallery) -> Iterator[Section]:
    """Sensitivity to the model's parameters (extended IPR), or one sentence that it is unknown."""
    title = "Sensitivity to the model's parameters"
    rows = _ranked_rows(study)
    failures = [*_ipr_failures(study)]
    if rows.empty and not failures:
        sentence = (
            "Not measured: no model of this study was randomised (`randomization` in "
            "`params.yaml`)."
        )
        yield Section("parameters", title, [Text(sentence)], brief=True)
        return
    if rows.empty:
        blocks = [Text("No map of a randomised model could be scored."), *failures]
        yield Section("parameters", title, blocks, nav="Parameters", brief=True)
        return
    blocks = [*_parameters_opening(study, rows), *_parameters_table(study, rows, gallery)]
    yield Section("parameters", title, blocks, nav="Parameters (IPR)", brief=True)
    parts: list[tuple[str, str, list[Block], str]] = [
        ("parameter-measures", "By other similarities", [*_parameter_measures(study)], ""),
        ("units", "Unit by unit", [*_units(study, gallery)], "Units"),
        ("plane-table", "The sensitivity plane in numbers", [*_plane_table(study)], "Plane"),
        ("architectures", "Over architectures", [*_architectures(study)], ""),
        ("ipr-claims", "Claims on randomised models", [*_ipr_claims(study)], ""),
        ("ipr-failures", "What could not be computed", failures, ""),
    ]
    for anchor, name, found, nav in parts:
        if found:
            yield Section(anchor, name, found, nav=nav, level=3)


def _parameters_opening(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    yield Text(
        "One **unit** of the model, a block of layers, gets random weights; all others keep what "
        "they learnt. **S** is 1 − SSIM of the maps before and after. "
        f"**The map moves more when the model loses this unit: higher is more sensitive.** "
        f"{_passes(rows)}",
        lead=True,
    )
    yield Text(
        "After 'Evaluating the overall sensitivity of saliency-based explanation methods' (Sriram "
        f"& Conati), with intervals, floors and more draws. Here: {_randomized_words(study)}, "
        f"weights by `{rows['randomizer'].iloc[0]}`, units of the preset "
        f"`{rows['preset'].iloc[0]}`, order {rows['order'].iloc[0]}. In {_MAKE_UI}: experiment "
        f"`steadymap/{study.name}/parameter randomisation`, runs `METHOD MODEL`."
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
        of = "" if len(few) == len(rows) else f" of {_list(dict.fromkeys(few['method']))}"
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
    units = _one_kind(_headline_ssim(study.optional("ipr_units"), study))
    units = units.drop_duplicates(["model", "unit"]).dropna(subset=["kept_predictions"])
    lost = {
        model: (int((own["kept_predictions"] < 0.5).sum()), len(own))
        for model, own in units.groupby("model", sort=False)
    }
    parts = [f"{few} of {_count(n, 'unit')} of {model}" for model, (few, n) in lost.items()]
    if not any(few for few, _ in lost.values()):
        return ""
    return (
        "**Function saturates.** Randomising a unit lost over half of the predictions for "
        f"{_list(parts)}. Where nearly all units destroy the function alike, their order says "
        "little, and so does its correlation with S."
    )


def _parameters_table(study: Study, rows: pd.DataFrame, gallery: _Gallery) -> Iterator[Block]:
    cells = []
    ranks = _rank_rows(study)
    counts = zip(records(rows), _n_compared(rows), mostly_blank(rows), strict=True)
    for row, n_compared, blank in counts:
        # Deterministic methods have no noise to subtract.
        quiet = row["floor"] == 0 and row["S_fresh"] == row["S_same"]
        rank = ranks.get((row["model"], row["method"]), {})
        cells.append(
            [
                Cell(str(row["model"])),
                Cell(str(row["method"])),
                Cell(_span(row, "S_same", "same"), meter=_meter(1 - row["S_same"])),
                Cell(_f(rank.get("S_same")) + _turned(row)),
                Cell("= S" if quiet else _f(row["S_fresh"])),
                Cell("0" if quiet else _f(row["floor"])),
                Cell("= S" if quiet else _span(row, "excess", "excess")),
                Cell(_short(row["S_rel"])),
                Cell(_whole_percent(row["share_sensitive"])),
                Cell(f"{int(row['n_degenerate'])}/{int(n_compared)}", tone=2 if blank else None),
                Cell(parameter_verdict(row) or "–"),
            ]
        )
    columns = ["model", "method", f"S [{study.percent}]", "by rank"]
    columns += ["fresh", "floor", f"excess [{study.percent}]", "S_rel", "every", "blank", "passes"]
    thresholds = [f"{value:g}" for value in rows["threshold"].dropna().unique()]
    bound = f" of {_list(thresholds)}" if thresholds else ""
    yield Table(
        columns,
        cells,
        n_names=2,
        note=f"**S**: 1 − SSIM ({study.convention}) of the trained and the randomised model's map, "
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
        figures.parameter_bars(
            rows.assign(blank=mostly_blank(rows)),
            look=study.look,
        ),
        alt="Bars of S and of the excess over the floor, per method and model",
        caption="How far the maps move when the model loses a unit (the paper's Fig. 3): moves "
        "more, hence higher, is more sensitive. (a) S, with the floor that the method's own noise "
        "reaches; (b) what exceeds that floor. The dashed line is the threshold below which a "
        f"method does not react.{hollow} {_sentence(_randomized_words(study))}.",
        max_bytes=_MAX_PAPER_BYTES,
    )
    yield from _other_kinds(study, rows)


def _other_kinds(study: Study, rows: pd.DataFrame) -> Iterator[Block]:
    """Cascades, other randomizers and presets."""
    table = _headline_ssim(study.optional("ipr"), study)
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
            Cell(_span(row, "S_same", "same"), meter=_meter(1 - row["S_same"])),
            Cell(_span(row, "excess", "excess")),
            Cell(row["verdict"]),
        ]
        for row in others
    ]
    yield Table(
        [*keys, f"S [{study.percent}]", f"excess [{study.percent}]", "passes"],
        cells,
        n_names=5,
        note="Cascades randomise one unit after the other and keep what was randomised before: "
        "`top_down` from the logits, `bottom_up` from the input.",
        fold="Other orders, randomizers and units",
        file="tables/ipr.csv",
    )


def _own_metrics(table: pd.DataFrame) -> list[str]:
    """Similarity metrics of one's own that a table has."""
    return list(table.loc[table["convention"] == "own", "metric"].unique())


def _parameter_measures(study: Study) -> Iterator[Block]:
    table = _one_kind(study.optional("ipr"))
    measures = {**figures.MEASURES, ("pearson", None): "Pearson"}
    measures |= {(name, "own"): name for name in _own_metrics(table)}
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
                Cell(_f(rows.get((row["model"], row["method"]), {}).get("S_same")))
                for rows in found.values()
            ),
        ]
        for row in records(_ranked_rows(study))
    ]
    yield Table(
        ["model", "method", *found],
        cells,
        n_names=2,
        note="S, 1 − similarity, of the same pairs of maps by each convention and measure, ↑ more "
        "sensitive. A method that is high in one column and low in another is sensitive in one "
        "sense only; heights of different columns do not compare.",
    )


def _units(study: Study, gallery: _Gallery) -> Iterator[Block]:
    table = _headline_ssim(study.optional("ipr_units"), study)
    rows = _one_kind(table)
    if rows.empty:
        return
    for order in dict.fromkeys(table["order"]):
        own = _one_kind(table[table["order"] == order])
        how = "one unit at a time" if order == "independent" else f"cascading, {order}"
        yield gallery.add(
            "unit-curves" if order == rows["order"].iloc[0] else f"unit-curves-{order}",
            figures.unit_curves(own, look=study.look),
            alt=f"S by unit of the model, a panel per method, {how}",
            caption=f"S unit by unit ({how}), from the input (left) to the logits: moves more when "
            "the model loses this unit, so higher is more sensitive. "
            f"{_sentence(_randomized_words(study))}; bars are {study.percent} intervals.",
            max_bytes=_MAX_PAPER_BYTES,
        )
    yield from _unit_pictures(study, gallery)
    yield from _function(study, rows, gallery)
    yield _unit_table(rows)


_MOST_UNITS = (12, 10, 8, 7, 6, 5, 4)
_MOST_METHODS = 5


def _unit_pictures(study: Study, gallery: _Gallery) -> Iterator[Block]:
    """Maps of one image by the trained model, then without each unit; a line per method."""
    explained = False
    if not study.unit_index:
        pictures = (name for name in gallery.committed if name.startswith("unit-pictures-"))
        yield from gallery.earlier(*pictures)
    for model, units in study.unit_index.get("units", {}).items():
        methods = [*dict.fromkeys(_ranked_rows(study)["method"]), *study.unit_methods(model)]
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
    gallery: _Gallery,
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
        hopeless = per_map * (1 + len(shown)) > 1.1 * _MAX_PAPER_BYTES
        if hopeless and most != _MOST_UNITS[-1]:
            continue
        counted = f"{len(shown)} of {_count(len(units), 'unit')}, 1 image, 1 draw of the weights"
        caption = f"**{model}**, {_list(stacks)}, as above: {counted}."
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
            figures.tile_rows(
                _unit_tiles(study, model, units, shown, stacks),
                title=f"{model}: one unit with random weights",
                notes=[
                    f"below: SSIM ({study.convention}) to the trained model's map, framed; "
                    "‡ inverted map"
                ],
                levels=_FEW_LEVELS,
            ),
            alt=f"Maps of one image by {model}, trained and without each unit: {_list(stacks)}",
            caption=caption,
            max_bytes=_MAX_PAPER_BYTES,
        )
        size = picture.path.stat().st_size
        if size <= _MAX_PAPER_BYTES:
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
) -> list[figures.TileRow]:
    image_id = str(study.unit_index["image_id"])
    pixels = study.pixels.get(image_id)
    scores = study.unit_scores
    rows: list[figures.TileRow] = []
    for method, stack in stacks.items():
        first = not rows
        tiles: list[figures.Tile | None] = [None]
        if first and pixels is not None:
            tiles = [figures.Tile(np.asarray(pixels), box=study.box(image_id))]
        tiles.append(figures.Tile(stack[0], above="trained" if first else "", framed=True))
        for unit in shown:
            score, turned = scores.get((model, method, unit), (None, False))
            below = "" if score is None else f"{round(score, 2) + 0.0:.2f}{' ‡' * turned}"
            heatmap = stack[1 + units.index(unit)]
            tiles.append(figures.Tile(heatmap, above=unit if first else "", below=below))
        rows.append(figures.TileRow(method.replace("_", "\n", 1), tiles))
    return rows


def _function(study: Study, rows: pd.DataFrame, gallery: _Gallery) -> Iterator[Block]:
    """S beside what losing the unit did to the model's output."""
    if rows["target_change"].notna().any():
        yield gallery.add(
            "unit-function",
            figures.function_scatter(rows, look=study.look),
            alt="S against the drop of the target's probability, a dot per unit",
            caption="Do the maps move as much as the model did? A dot is a unit: to the right, the "
            "drop of the target's probability when it is randomised; upwards, S (higher is more "
            f"sensitive). {_sentence(_randomized_words(study))}.",
            max_bytes=_MAX_PAPER_BYTES,
        )
    table = _one_kind(_headline_ssim(study.optional("ipr_function"), study))
    found = by_key(table, "model", "method")
    ordered = _ranked_rows(study)[["model", "method"]].itertuples(index=False, name=None)
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
                    *(Cell(_whole_percent(row[n])) for n in ("accuracy", "kept_predictions")),
                    Cell("–" if missing(row["target_change"]) else f"{-row['target_change']:.2f}"),
                    *(
                        Cell(_f(s["S_same"]) + _turned(s), meter=_meter(1 - s["S_same"]))
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
        note="**accuracy** of the randomised model, **kept**: share of its predictions that stay, "
        "**drop** of the target's probability; means over draws. Then S by method, ‡ where pairs "
        f"are inverted: {_INVERTED}. With intervals, and by rank correlation: "
        "`tables/ipr_units.csv`.",
        meter_note="Shaded: S, up to 1.",
    )


def _plane_table(study: Study) -> Iterator[Block]:
    table = study.optional("plane")
    table = table.assign(sweep=words(table["sweep"]))
    rows = table[table["metric"] == "ssim"]
    swept = rows[rows["sweep"] != ""]
    if swept.empty:
        yield Text(
            "No method of the randomised models has a sweep, so its sensitivity to hyperparameters "
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
            place = " / ".join(_whole(found.get("rank")) for found in (row, other))
        cells.append(
            [
                *(Cell(str(row[name])) for name in ("model", "method", "sweep")),
                Cell(_f(row["x"])),
                Cell(_f(row["y"])),
                Cell(_span(row, "difference", "difference")),
                Cell(_whole_percent(row["share_below"])),
                Cell(_f(other.get("difference"))),
                Cell(place),
                Cell(text_of(row, "verdict").replace(DISAGREE, "disagree") or "–"),
            ]
        )
    without = [name for name in dict.fromkeys(rows["method"]) if name not in set(swept["method"])]
    alone = f" Without a sweep: {_list(without)}." if without else ""
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
    aside = swept[true(swept["ranked"]).eq(False)].assign(reason=words(swept["reason"]))
    reasons = aside.drop_duplicates(["sweep", "reason"])
    if len(reasons):
        yield Text(
            "Not ranked, as their reference is not the setting that the randomised models were "
            "explained with:"
        )
        yield Items([f"**{row['sweep']}**: {row['reason']}." for row in records(reasons)])


def _architectures(study: Study) -> Iterator[Block]:
    table = study.optional("ipr_correlations")
    if table.empty:
        return
    reasons = [text for text in dict.fromkeys(words(table["reason"])) if text]
    known = table[table["spearman"].notna()]
    subject = "Correlations of S between methods over architectures (the paper's Tables 2 and 3)"
    if known.empty:
        why = _sentence("; ".join(reasons) or "not measurable here")
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
        cells.append([*line, Cell(_sentence(text_of(row, "reason")))])
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
    values = ["<.001" if value < 0.001 else _g(value) for value in p]
    return f"{rho:+.2f} (p {' / '.join(values)})"


def _ipr_claims(study: Study) -> Iterator[Block]:
    if not study.optional("ipr_claims").empty:
        yield from _claims(study, "ipr_claims")


def _ipr_failures(study: Study) -> Iterator[Block]:
    """Each failure by name, with its reason; units of one reason together."""
    table = study.optional("ipr_failures")
    if table.empty:
        return
    table = table.assign(**{name: words(table[name]) for name in table})
    items = []
    for (model, method, reason), own in table.groupby(["model", "method", "reason"], sort=False):
        units = [name for name in dict.fromkeys(own["unit"]) if name]
        where = f" ({', '.join(units[:4])}{' and more' if len(units) > 4 else ''})" if units else ""
        what = f"{method} on {model}" if method else str(model)
        items.append(f"**{what}**{where}: {_sentence(str(reason))}.")
    yield Text("The others went on without these; means above are of what is left.")
    yield Items(items)


def _span(row: Mapping[str, Any], value: str, prefix: str) -> str:
    """Value with the interval of its columns `prefix`_low and _high."""
    return f"{_f(row[value])} {_ends(row, prefix)}".strip()


def _short(value: Any) -> str:
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.2f}"


def _whole_percent(value: Any) -> str:
    return "–" if missing(value) or not math.isfinite(value) else f"{100 * value:.0f} %"


def _fixed(study: Study, sweep: str, knob: str) -> str:
    """Hyperparameters that the sweep holds constant."""
    row = records(study.shared_tasks(sweep))[0]
    held = {k: v for k, v in json.loads(row["hyperparameters"]).items() if k != knob}
    return f" Held: {', '.join(f'{name} {value}' for name, value in held.items())}." if held else ""


def _draws(study: Study, sweep: str, rows: pd.DataFrame, gallery: _Gallery) -> Iterator[Block]:
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
    keyed = by_key(whole, "model", "draws")
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
            choose(rows, metric, study.convention if metric == "ssim" else None), "model", "value"
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
                        "–" if own and not ssim else _interval(ssim), meter=_meter(ssim.get("mean"))
                    ),
                    Cell(_f(ssim.get("std"))),
                    Cell(_f(found["spearman"].get("mean"))),
                    Cell(_f(found["hog_pearson"].get("mean"))),
                    Cell(_g(amplitude.get("mean"))),
                    Cell(_whole(flags.get("n_degenerate"))),
                    Cell(_whole(flags.get("n_inverted"))),
                    Cell(passes),
                ]
            )
    _, knob = study.about(sweep)
    columns = [
        knob,
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
        meter_note=_METER,
    )


def _pictures(study: Study, sweep: str, gallery: _Gallery) -> Iterator[Block]:
    """Show the maps of the least stable, a random and the most stable image."""
    method, knob = study.about(sweep)
    folder = study.results / "maps" / method
    if not (folder / "index.json").is_file():
        if earlier := gallery.earlier(f"{sweep}-pictures-least-stable"):
            yield Text(f"The maps are {_NOT_HERE}. The picture is as it was committed.")
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
        f"viewer: {_list(links)}."
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
            # The page has all maps in its viewer.
            folds=name != "least-stable",
        )


def _ranking(study: Study, sweep: str) -> pd.Series:
    """Mean SSIM per image, averaged over models, least stable first."""
    rows = choose(study.images[study.images["sweep"] == sweep], "ssim", study.convention)
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
) -> tuple[list[figures.PictureRow], int]:
    """Row per model, and how many settings were left out for want of room."""
    values, reference = study.values(sweep)
    shown = thin(values, reference)
    if image_id not in maps.image_ids:
        return [], 0
    position = maps.image_ids.index(image_id)
    tasks = by_key(study.shared_tasks(sweep), "model", "value")
    rows: list[figures.PictureRow] = []
    for model in (name for name in study.models if name in maps.models):
        cells = []
        for value in shown:
            if (model, value) not in tasks:
                continue
            hyperparameters = json.loads(tasks[model, value]["hyperparameters"])
            scored = study.score(sweep, image_id, model, value)
            own = value == reference
            cells.append(
                figures.MapCell(
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
        rows.append(figures.PictureRow(model, cells, image, study.box(image_id), str(class_name)))
    return rows, len(values) - len(shown)


def _searches(study: Study, gallery: _Gallery) -> Iterator[Block]:
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
    study: Study, method: str, name: str, rows: pd.DataFrame, gallery: _Gallery
) -> Iterator[Block]:
    asked = rows[rows["state"] != "reference"]
    varied = searched_names(rows)
    first = records(rows)[0]
    cheapest = first["objective"] == "cheapest"
    reference = setting_name(json.loads(first["hyperparameters"]), varied)
    knobs = _list(f"`{knob}`" for knob in varied)
    if cheapest:
        question = (
            f"the cheapest setting that holds: fewest model passes with a mean SSIM of at least "
            f"{first['tau']:g} to the converged map ({reference}, with another seed) and no map "
            "inverted"
        )
    else:
        question = f"the worst setting found: lowest mean SSIM to the map at {reference}"
    yield Text(
        f"**{name}**, {knobs} of {method}: {question}. {_count(len(asked), 'trial')} by "
        f"{first['sampler']}. In {_MAKE_UI}: experiment `steadymap/{study.name}/{method}`, parent "
        f"runs `{method} {name} MODEL`."
    )
    cells = []
    for model, own in rows.groupby("model", sort=False):
        tried = own[own["state"] != "reference"]
        line = [Cell(str(model))]
        best = records(tried[true(tried["is_best"])])
        if best:
            row = best[0]
            passes = (row["forward_passes"] + row["backward_passes"]) / row["n_images"]
            line.append(Cell(setting_name(json.loads(row["hyperparameters"]), varied)))
            mean = row["ssim_mean"]
            line.append(Cell(_interval({**row, "mean": mean}), meter=_meter(mean)))
            line.append(Cell(_f(row["spearman_mean"]) + _turned(row)))
            line.append(Cell(f"{passes:,.0f}"))
        else:
            line += [Cell("none holds" if cheapest else "none"), *[Cell("–")] * 3]
        if cheapest:
            line.append(Cell(_f(tried["ssim_mean"].iloc[0])))
        distinct = tried["task_id"].nunique()
        failed = int((tried["state"] == "failed").sum())
        line += [Cell(f"{distinct}"), Cell(f"{failed}")]
        cells.append(line)
    columns = ["model", "cheapest that holds" if cheapest else "worst setting found"]
    columns += [f"SSIM [{study.percent}]", "Spearman", "passes per image"]
    columns += ["two converged maps"] if cheapest else []
    note = (
        "Spearman: mean rank correlation, ‡ where maps are inverted. Tried: different settings; a "
        "failed one is tried again by the next run."
    )
    if cheapest:
        note += (
            " Two converged maps: SSIM of the largest setting with itself under another seed; "
            "where that is below the threshold, the search's range does not reach convergence."
        )
    yield Table([*columns, "tried", "failed"], cells, n_names=2, note=note, meter_note=_METER)
    faults = [text for text in dict.fromkeys(words(asked["message"])) if text]
    if faults:
        yield Items([f"Failed: {text}" for text in faults[:3]])
    yield gallery.add(
        f"{name}-trials",
        figures.search_trials(rows, look=study.look),
        alt=f"Trials of the search {name}",
        caption=f"Search {name}: every setting tried.",
    )


def _importances(rows: pd.DataFrame) -> Iterator[Block]:
    if rows.empty:
        yield Text("Too few settings, or equal scores: no importances.")
        return
    keyed = by_key(rows, "model", "hyperparameters", "evaluator")
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


def _extremes(study: Study, sweep: str) -> Iterator[Block]:
    """List the images that moved most and least."""
    means = _ranking(study, sweep)
    if means.empty:
        return
    ids = list(means.index)
    ends = ids if len(ids) <= 2 * _EXTREMES else [*ids[:_EXTREMES], *ids[-_EXTREMES:]]
    rows = choose(study.images[study.images["sweep"] == sweep], "ssim", study.convention)
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
        line += [
            Cell(image_id, anchor=_shown(study, sweep, image_id)),
            Cell(str(fact.get("class_name", ""))),
            Cell(text_of(fact, "photo")),
        ]
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


def _models(study: Study, gallery: _Gallery) -> Iterator[Block]:
    rows = study.model_table
    if rows.empty:
        yield Text("No model is listed.")
        return
    cells = []
    for row in records(rows):
        cells.append(
            [
                Cell(row["model"]),
                Cell("yes" if str(row["robust"]) == "True" else "no"),
                Cell(text_of(row, "init_from") or "–"),
                Cell(_share(row["clean_accuracy"], row["n_val"])),
                Cell(_share(row["robust_accuracy"], row["n_attacked"])),
                Cell("–" if missing(row["epochs"]) else f"{float(row['epochs']):g}"),
                Cell("–" if missing(row["n_parameters"]) else f"{row['n_parameters'] / 1e6:.1f} M"),
            ]
        )
    attacks = [text for text in dict.fromkeys(words(rows["attack"])) if text]
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
        earlier: Iterable[Block] = gallery.earlier("training-curves")
        yield from earlier or [Text(f"The training curves are {_NOT_HERE}.")]
        return
    yield gallery.add(
        "training-curves",
        figures.training_curves(curves, look=study.look),
        alt="Loss and accuracies against the epoch",
        caption="Training curves. The attack during training may be weaker than the one in the "
        "table.",
    )


def _evaluation_set(study: Study) -> Iterator[Block]:
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
            for row in records(table)
        ]
        columns = ["model", "candidates", "classified correctly", "dropped by the rule"]
        yield Table(columns, cells, note="What each model did to the candidates.")
    else:
        yield Text("How many candidates each model dropped was not recorded.")
    photos = study.photos
    if 0 < len(photos) < len(rows):
        # As `sensitivity.interval` has it (docs/protocol.md).
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


def _data(study: Study, gallery: _Gallery) -> Iterator[Block]:
    if not (study.results / "data" / "manifest.csv").is_file():
        yield Text(f"The data set is {_NOT_HERE}.")
        yield from gallery.earlier("data")
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
    if not study.shows_photos:
        yield Text("Its images are not shown: they are not ours to publish.")
        return
    images, labels, boxes = [], [], []
    # A part of ImageNet has images of few of its classes.
    there = set(rows["class_name"].astype(str))
    shown = [name for name in dataset.classes if name in there][:_CLASSES_SHOWN]
    for name in shown:
        own = rows[rows["class_name"].astype(str) == name].head(_IMAGES_PER_CLASS)
        images += [dataset.images[split][place] for place in own.index]
        labels += [name if place == 0 else "" for place in range(len(own))]
        boxes += [corners(row) for row in records(own)]
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


def _provenance(study: Study) -> Iterator[Block]:
    yield Text(
        f"Everything here is read from `tables/` and from the study's maps. `make repro` leaves "
        f"`dvc.lock` and `params.yaml` beside this report, in `reports/{study.name}/`: hashes of "
        "every input, and the params that made it."
    )
    yield Text(
        "What may differ between runs that compute the same stands in `provenance.json` beside "
        "them, which is not in git: the commit and whether the code differed from it, date, "
        "processor and threads of the last `make repro`. Libraries: "
        f"{', '.join(f'{name} {number}' for name, number in versions().items())}."
    )
    if digest := study.description.get("digest"):
        yield Text(f"Data: digest `{digest}`.")
    cells = [
        [Cell(str(row["model"])), Cell(text_of(row, "weights_sha256") or "–")]
        for row in records(study.model_table)
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


def _per_model(rows: pd.DataFrame, sweep: str, moved: Callable[[Mapping[str, Any]], str]) -> str:
    own = records(rows[rows["sweep"] == sweep])
    return _list([f"{moved(row)} for {row['model']}" for row in own])


def _apart(study: Study, rows: pd.DataFrame, first: str, second: str) -> tuple[list[str], int]:
    """Models whose maps `first` surely moves more than `second` by both measures; of how many."""
    keys = set(by_key(rows, "sweep", "model"))
    both = [m for m in dict.fromkeys(rows["model"]) if {(first, m), (second, m)} <= keys]
    lower = [
        m
        for m in both
        if all(
            study.difference((first, m), (second, m), metric)[1] > 0
            for metric in ("ssim", "spearman")
        )
    ]
    return lower, len(both)


def _f(value: Any) -> str:
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.3f}"


def _g(value: Any) -> str:
    return "–" if missing(value) or not math.isfinite(value) else f"{value:.3g}"


def _interval(row: Mapping[str, Any]) -> str:
    mean = _f(row.get("mean"))
    if mean == "–" or missing(row.get("ci_low")):
        return mean
    return f"{mean} [{_f(row['ci_low'])}, {_f(row['ci_high'])}]"


def _meter(mean: Any) -> float | None:
    return None if missing(mean) or not math.isfinite(mean) else min(max(1 - mean, 0.0), 1.0)


def _share(value: Any, n: Any) -> str:
    if missing(value):
        return "–"
    counted = "" if missing(n) else f" ({int(n)})"
    return f"{100 * float(value):.1f} %{counted}"


def _count(n: int, noun: str, plural: str = "") -> str:
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def _list(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
