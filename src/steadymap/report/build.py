"""The report of a study, assembled from its sections."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steadymap.analysis import readings
from steadymap.analysis.readings import sweep_anchor
from steadymap.report import document, viewer
from steadymap.report.document import Block, Items, Picture, Section, Text
from steadymap.report.gallery import NOT_HERE, Gallery, committed_captions
from steadymap.report.sections.answer import advice_block, answer
from steadymap.report.sections.budgets import budget_section
from steadymap.report.sections.caveats import caveats
from steadymap.report.sections.data import (
    data_section,
    evaluation_set_section,
    models_section,
    provenance,
)
from steadymap.report.sections.parameters import (
    parameters,
    passes_sentence,
    plane_picture,
    ranked_rows,
)
from steadymap.report.sections.sam import sam_sections
from steadymap.report.sections.searches import searches
from steadymap.report.sections.sweeps import PAPERS, headline_table, overview, sweep_section
from steadymap.report.study import Study, missing, records
from steadymap.report.words import MAKE_UI, VERDICTS, and_list, count_of, share_of, two_digits
from steadymap.store.atomic import atomic_file

# Pictures and maps of the whole page; words, tables and scores come on top.
_MAX_PAGE_BYTES = 13_000_000


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
    gallery = Gallery(reports / "figures", {} if _measured(source) else committed_captions(reports))
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
            f"{title}, details", [Section("papers", "", [PAPERS]), *rest], reports
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
    needed += [
        f"maps/{method}/index.json" for method in dict.fromkeys(study.table("tasks")["method"])
    ]
    tables = {"comparisons": "comparisons", "ipr": "randomization"}
    needed += [folder for table, folder in tables.items() if len(study.table(table))]
    return all((study.results / name).exists() for name in needed)


def _sections(study: Study, gallery: Gallery) -> Iterator[Section]:
    """All of the report, in order; a later study's parts are further sections."""
    yield Section("top", "", [*_opening(study), PAPERS], brief=True)
    yield Section("caveats", "", [caveats(study)], nav="Caveats", brief=True)
    if advice := [*advice_block(study)]:
        yield Section("advice", "", advice, nav="What to do", brief=True)
    title = "Which hyperparameter is dangerous"
    yield Section(
        "answer", title, [*answer(study, gallery)], nav="Dangerous hyperparameters", brief=True
    )
    if plane := [*plane_picture(study, gallery)]:
        title = "Setting or model: what moves the maps more"
        yield Section("plane", title, plane, nav="Sensitivity plane", brief=True)
    if budget := [*budget_section(study, gallery)]:
        title = "How many samples are enough"
        yield Section("budget", title, budget, nav="Stability budget", brief=True)
    yield from sam_sections(study, gallery)
    yield from parameters(study, gallery)
    yield Section("headline", "All sweeps", [*headline_table(study)], nav="All sweeps")
    yield Section(
        "hyperparameters", "Value by value", [*overview(study, gallery)], nav="Figures", level=3
    )
    for sweep in study.sweeps:
        method, hyperparameter = study.about(sweep)
        title = f"Sweep {sweep}: `{hyperparameter}` of {method}"
        blocks = [*sweep_section(study, sweep, gallery)]
        yield Section(sweep_anchor(sweep), title, blocks, nav=sweep, level=3)
    if not study.table("search").empty:
        yield Section("searches", "Searches", [*searches(study, gallery)], nav="Searches")
    yield Section("models", "Models", [*models_section(study, gallery)], nav="Models")
    yield Section(
        "evaluation-set", "Evaluation set", [*evaluation_set_section(study)], nav="Images"
    )
    yield Section("data", "Data", [*data_section(study, gallery)], nav="Data")
    yield Section("provenance", "Provenance", [*provenance(study)], nav="Provenance")


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
        if len(table := study.table(stem)):
            counts = table["direction"].value_counts()
            listed = ", ".join(f"{int(counts.get(name, 0))} {name}" for name in VERDICTS)
            yield anchor, f"{count_of(len(table), 'claim')}: {listed}."
    if len(rows := ranked_rows(study)):
        yield "parameters", passes_sentence(rows)
    known = study.headline.dropna(subset=["mean"])
    yield "headline", f"{count_of(len(study.sweeps), 'sweep')}, value by value, with maps."
    for sweep, own in known.groupby("sweep", sort=False):
        worst = records(own.sort_values(["degree", "mean"], ascending=[False, True]))[0]
        ssim, rank = (two_digits(1 - worst[key]) for key in ("mean", "rank_mean"))
        moved = f"1 − SSIM {ssim}, 1 − Spearman {rank}"
        name = readings.DEGREES[int(worst["degree"])][1]
        yield sweep_anchor(str(sweep)), f"{name}: {moved} on {worst['model']}."
    accuracies = [
        f"{row['model']} {share_of(row['clean_accuracy'], None)}"
        for row in records(study.table("models"))
        if not missing(row["clean_accuracy"])
    ]
    yield "models", f"Accuracy: {and_list(accuracies)}." if accuracies else ""
    n_classes = study.table("evaluation_set")["class_name"].nunique()
    counted = f"{count_of(study.n_images, 'image')} of {count_of(n_classes, 'class', 'classes')}."
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
    "hyperparameters": "All curves, and whether other measures agree.",
    "searches": "Several hyperparameters at once.",
    "data": "Where the images come from.",
    "provenance": "Hashes of inputs, and the params that made this.",
}


def _with_viewer(study: Study, gallery: "Gallery", sections: list[Section]) -> list[Section]:
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
    block = maps or Text(f"The viewer of all maps is {NOT_HERE}.")
    place = next(at for at, section in enumerate(sections) if section.anchor == "paper")
    section = Section("maps", "The maps, side by side", [block], nav="Map viewer")
    return [*sections[:place], section, *sections[place:]]


def _opening(study: Study) -> list[Block]:
    photos = f" from {count_of(len(study.photos), 'photograph')}" if len(study.photos) else ""
    scope = (
        "How far attribution maps move when one hyperparameter of the method, a "
        "**hyperparameter**, changes: "
        f"{count_of(len(study.sweeps), 'sweep')}, {and_list(study.models)}, "
        f"{count_of(study.n_images, 'image')}{photos}."
    )
    return [Text(scope, lead=True)]


def _further(study: Study, rest: Iterable[Section]) -> Section:
    """Where the short document's reader finds the rest."""
    titles = [section.title.replace("`", "") for section in rest if section.title]
    few = [title for title in titles if not title.startswith("Sweep ")]
    items = [
        "`report.html`, which `make repro` writes: all of it on one page that needs no network, "
        "with a viewer of every map.",
        f"`details.md`: {'; '.join(few)}; each sweep.",
        "`tables/*.csv`: every number, with its interval.",
        f"{MAKE_UI}: experiment `steadymap/{study.name}/METHOD`, parent runs `METHOD SWEEP "
        "MODEL`, a child run per setting.",
    ]
    return Section("further", "Where the rest is", [Items(items)])
