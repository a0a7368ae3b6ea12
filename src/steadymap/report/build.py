"""The report of a study, assembled from its sections."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steadymap.analysis import readings
from steadymap.analysis.claims.verdict import counted, verdict_counts
from steadymap.report import document, viewer, words
from steadymap.report.document import Items, Picture, Section, Text
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
from steadymap.report.sections.sweeps import headline_table, overview, sweep_section
from steadymap.report.study import Study, missing, records
from steadymap.report.words import VERDICTS, and_list, count_of, decimal, percentage
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
    findings = dict(_findings(source))
    sections = [
        replace(section, fold=findings.get(section.anchor, ""))
        if section.level > 2 or section.anchor in findings
        else section
        for section in _sections(source, gallery)
    ]
    sections = _with_viewer(source, gallery, sections)
    gallery.delete_others()
    html, markdown, details = (
        reports / name for name in ("report.html", "report.md", "details.md")
    )
    title = f"steadymap: {study}"
    brief = [section for section in sections if section.brief]
    rest = [section for section in sections if not section.brief]
    papers = Section("papers", "", [Text(words.sentence("papers"))])
    contents = {
        html: document.html(title, sections),
        markdown: document.markdown(title, [*brief, _further(source, rest)], reports),
        details: document.markdown(f"{title}, details", [papers, *rest], reports),
    }
    for path, content in contents.items():
        if path == html or not gallery.committed:
            with atomic_file(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return ReportFiles(html, markdown, details, tuple(gallery.paths), bool(gallery.committed))


def _measured(study: Study) -> bool:
    """Whether all that figures and sections are made of is here, not the tables alone."""
    methods = dict.fromkeys(study.table("tasks")["method"])
    needed = ["data/manifest.csv", "evaluation_set", "models"]
    needed += [f"maps/{method}/index.json" for method in methods]
    folders = {"comparisons": "comparisons", "ipr": "randomization"}
    needed += [folder for name, folder in folders.items() if len(study.table(name))]
    return all((study.results / name).exists() for name in needed)


def _sections(study: Study, gallery: Gallery) -> Iterator[Section]:
    """All of the report, in order; a later study's parts are further sections."""
    photos = f" from {count_of(len(study.photos), 'photograph')}" if len(study.photos) else ""
    papers = Text(words.sentence("papers"))
    scope = words.sentence(
        "scope",
        sweeps=count_of(len(study.sweeps), "sweep"),
        models=and_list(study.models),
        images=count_of(study.n_images, "image"),
        photos=photos,
    )
    brief = [
        words.section("top", [Text(scope, lead=True), papers]),
        words.section("caveats", [caveats(study)]),
        words.section("advice", advice_block(study)),
        words.section("answer", answer(study, gallery)),
        words.section("plane", plane_picture(study, gallery)),
        words.section("budget", budget_section(study, gallery)),
    ]
    yield from (section for section in brief if section.blocks)
    yield from sam_sections(study, gallery)
    yield from parameters(study, gallery)
    yield words.section("headline", headline_table(study))
    yield words.section("hyperparameters", overview(study, gallery))
    for sweep in study.sweeps:
        method, hyperparameter = study.about(sweep)
        title = f"Sweep {sweep}: `{hyperparameter}` of {method}"
        blocks = [*sweep_section(study, sweep, gallery)]
        yield Section(readings.sweep_anchor(sweep), title, blocks, nav=sweep, level=3)
    if len(study.table("search")):
        yield words.section("searches", searches(study, gallery))
    yield words.section("models", models_section(study, gallery))
    yield words.section("evaluation-set", evaluation_set_section(study))
    yield words.section("data", data_section(study, gallery))
    yield words.section("provenance", provenance(study))


def _findings(study: Study) -> Iterator[tuple[str, str]]:
    """Anchor and one-line finding of what HTML folds away: all but the answer."""
    yield from words.FINDINGS.items()
    for anchor, stem in (("paper", "claims"), ("claims", "claims"), ("ipr-claims", "ipr_claims")):
        if len(claims := study.claims(stem)):
            counts = verdict_counts(claims)
            listed = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
            n_groups = len(counted(claims))
            yield anchor, f"{n_groups} facts of {count_of(len(claims), 'claim')}: {listed}."
    if len(rows := ranked_rows(study)):
        yield "parameters", passes_sentence(rows)
    yield "headline", f"{count_of(len(study.sweeps), 'sweep')}, value by value, with maps."
    rows = study.headline.dropna(subset=["mean"])
    rows = rows.sort_values(["degree", "mean"], ascending=[False, True], kind="stable")
    for row in records(rows.drop_duplicates("sweep")):
        ssim, rank = (decimal(1 - row[name], 2) for name in ("mean", "rank_mean"))
        moved = f"1 − SSIM {ssim}, 1 − Spearman {rank} on {row['model']}"
        name = readings.DEGREES[row["degree"]][1]
        yield readings.sweep_anchor(row["sweep"]), f"{name}: {moved}."
    accuracies = [
        f"{row['model']} {percentage(row['clean_accuracy'], 1)}"
        for row in records(study.table("models"))
        if not missing(row["clean_accuracy"])
    ]
    yield "models", f"Accuracy: {and_list(accuracies)}." if accuracies else ""
    classes = count_of(study.table("evaluation_set")["class_name"].nunique(), "class", "classes")
    yield "evaluation-set", f"{count_of(study.n_images, 'image')} of {classes}."


def _with_viewer(study: Study, gallery: Gallery, sections: list[Section]) -> list[Section]:
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
    at = [section.anchor for section in sections].index("paper")
    section = Section("maps", "The maps, side by side", [block], nav="Map viewer")
    return [*sections[:at], section, *sections[at:]]


def _further(study: Study, rest: Iterable[Section]) -> Section:
    """Where the short document's reader finds the rest."""
    titles = [section.title.replace("`", "") for section in rest if section.title]
    few = [title for title in titles if not title.startswith("Sweep ")]
    items = [
        words.sentence("further-html"),
        f"`details.md`: {'; '.join(few)}; each sweep.",
        "`tables/*.csv`: every number, with its interval.",
        words.sentence("further-mlflow", study=study),
    ]
    return Section("further", "Where the rest is", [Items(items)])
