"""The report holds the tables' numbers, needs nothing else, and is the same bytes every time."""

import base64
import hashlib
import inspect
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from steadymap.analysis import readings
from steadymap.analysis.claims.verdict import verdict_counts
from steadymap.report import build
from steadymap.report.document import Items, Picture, Table
from steadymap.report.figures import budgets, maps, paper, plane, sweeps, theme, training
from steadymap.report.figures import parameters as figures_parameters
from steadymap.report.gallery import Gallery
from steadymap.report.sections import answer, caveats, parameters, sam
from steadymap.report.sections.sweeps import headline_table, sweep_section
from steadymap.report.study import Study as StudyFiles
from steadymap.report.study import thin
from steadymap.statistics.resampling import interval
from steadymap.store.tables import read_table, write_table
from steadymap.tracking.entries import Study as TrackedStudy
from steadymap.tracking.randomizations import randomization_entries
from steadymap.tracking.sweeps import sweep_entries
from synthetic_study import PLAIN, SAM_SWEEPS, SWEEPS, UNITS, Study, write_study

TINY = Study(n_images=4, sweeps=(SWEEPS[0],))
BARE = replace(TINY, maps=False, data=False)
PAPER = Study(n_images=4, without_sweeps=PLAIN, accuracy=True, comparisons=True)
RANDOMIZED = replace(TINY, sweeps=SWEEPS, randomization=True, orders=("independent", "top_down"))
LESSER = replace(BARE, randomization=True, units=UNITS[:2], n_draws=1)
FILLS = ("SP-F", "sliding_patch", "fill", ("mean", "black", "light gray"), "mean", "none")
SEEDS = ("SG-R", "smoothgrad", "seed", ("0", "1", "2"), "0", "independent")
PARAMS = {
    "study": "toy",
    "data": {"kind": "embedded", "pattern_amplitude": 0.04},
    "evaluation_set": {"rule": "all_correct"},
    "statistics": {"confidence": 0.95},
}


def _unrendered(figure, path, *, max_bytes=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    color = hashlib.sha256(path.stem.encode()).digest()[:3]
    path.write_bytes(maps.thumbnail(np.full((2, 2, 3), list(color), np.uint8)))


def _leave_out_figures(patch):
    """Neither draw nor render: figures have tests of their own."""
    for module in (budgets, maps, paper, figures_parameters, plane, sweeps, training):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            drawn = inspect.signature(function).return_annotation is Figure
            if drawn and function.__module__ == module.__name__:
                patch.setattr(module, name, lambda *_, **__: Figure())
    patch.setattr(theme, "save", _unrendered)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports whose figures are a dot."""
    _leave_out_figures(monkeypatch)


def _words(path) -> str:
    return " ".join(path.read_text().replace("\n>", " ").split())


def _report(reports, results, **options):
    """Files of a report, its Markdown in one line, and the same without the tables' padding."""
    files = build.build(reports, results, study="toy", **options)
    text = f"{_words(files.markdown)} {_words(files.details)}"
    squeezed = re.sub(r" *\| *", "|", text)
    return SimpleNamespace(reports=reports, results=results, files=files, text=text, rows=squeezed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study with sweeps, maps and data, and its report with every figure."""
    study = Study(n_images=8, sweeps=(SWEEPS[0], SWEEPS[2]))
    return _report(*write_study(tmp_path_factory.mktemp("whole"), study), profile=PARAMS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A study with what the paper's part is made of, and its report."""
    study = replace(PAPER, sweeps=SAM_SWEEPS)
    params = PARAMS | {"accuracy": {"alpha": 0.25}}
    with pytest.MonkeyPatch.context() as patch:
        _leave_out_figures(patch)
        return _report(*write_study(tmp_path_factory.mktemp("paper"), study), profile=params)


@pytest.fixture(scope="module")
def randomized(tmp_path_factory):
    """A study whose models were randomized, and its report."""
    with pytest.MonkeyPatch.context() as patch:
        _leave_out_figures(patch)
        folder = tmp_path_factory.mktemp("randomized")
        return _report(*write_study(folder, RANDOMIZED), profile=PARAMS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Files of a study of one sweep without maps; copy before writing."""
    return write_study(tmp_path_factory.mktemp("bare"), BARE)


@pytest.fixture(scope="module")
def lesser(tmp_path_factory):
    """Files of a study with two units randomized; copy before writing."""
    return write_study(tmp_path_factory.mktemp("lesser"), LESSER)


def _copied(written, folder):
    reports, results = written
    shutil.copytree(reports, folder / "reports" / "toy")
    shutil.copytree(results, folder / "results" / "toy")
    return folder / "reports" / "toy", folder / "results" / "toy"


def _study(written) -> StudyFiles:
    return StudyFiles(*written, "toy", {})


def _headline(reports) -> pd.DataFrame:
    frame = readings.headline_draws(read_table(reports / "tables" / "sensitivity.csv"))
    return frame[(frame["metric"] == "ssim") & (frame["convention"] == "common")]


def _with_interval(row, name="mean", prefix="ci") -> str:
    low, high = getattr(row, f"{prefix}_low"), getattr(row, f"{prefix}_high")
    value = f"{getattr(row, name):.3f}"
    return value if np.isnan(low) else f"{value} [{low:.3f}, {high:.3f}]"


# Files


def test_building_twice_gives_the_same_bytes(whole, tmp_path):
    copied = tmp_path / "reports"
    shutil.copytree(whole.reports / "tables", copied / "tables")

    again = build.build(copied, whole.results, study="toy", profile=PARAMS)

    for name in ("html", "details", "markdown"):
        assert getattr(again, name).read_bytes() == getattr(whole.files, name).read_bytes()
    figures = [
        {path.name: path.read_bytes() for path in files.figures} for files in (whole.files, again)
    ]
    assert figures[0] == figures[1]


def test_html_needs_no_network_and_stays_small(whole):
    html = whole.files.html.read_text()

    # Papers are cited with their addresses, which the page itself does not ask for.
    cited = re.compile(r'<a href="https://arxiv\.org/abs/[\d.]+">')
    assert len(cited.findall(html)) == 2
    html = cited.sub("<a>", html)
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', html) == []
    assert not re.search(r"https?://|<link|@import|url\(", html)
    assert "default-src 'none'" in html
    # The two scripts that run, of folds and of the viewer, are those that the page names by hash.
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(digests) == 2
    assert "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) in html
    others = re.findall(r"<script type=\"([^\"]+)\"", html)
    assert set(others) == {"application/json", "text/plain"}
    assert whole.files.html.stat().st_size < 4_000_000
    assert not re.search(r"20\d\d-\d\d-\d\d", html)


@pytest.mark.parametrize("name", ["whole", "everything", "randomized"])
def test_markdown_fits_a_terminal_and_its_pictures_exist(name, request):
    report = request.getfixturevalue(name)
    lines = [
        line
        for path in (report.files.markdown, report.files.details)
        for line in path.read_text().splitlines()
    ]

    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", "\n".join(lines))

    assert sorted(links) == sorted({f"figures/{path.name}" for path in report.files.figures})
    assert all((report.reports / link).is_file() for link in links)
    assert max(len(line) for line in lines if not line.startswith(("|", "!["))) <= 100
    assert max(len(line) for line in lines if line.startswith("|")) <= 140
    assert "<details" not in "\n".join(lines)
    assert "nan" not in report.text.lower().split()


def test_figures_stay_small_and_carry_their_sweep_s_name(whole):
    names = {path.stem for path in whole.files.figures}

    pictures = {f"SG-N-pictures-{name}" for name in ("least-stable", "random", "most-stable")}
    assert {"dangerous-hyperparameters", "SG-N-draws", "SP-L-measures", "data"} <= names
    assert "SP-L-draws" not in names
    assert pictures <= names
    assert max(path.stat().st_size for path in whole.files.figures) < 300_000


@pytest.mark.usefixtures("undrawn")
def test_figures_of_an_earlier_report_are_deleted(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    stale = reports / "figures" / "SG-old-measures.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")

    files = build.build(reports, results, study="toy")

    assert not stale.exists()
    assert sorted(stale.parent.iterdir()) == sorted(files.figures)


@pytest.mark.usefixtures("undrawn")
def test_without_results_the_page_alone_is_written_and_has_the_committed_figures(tmp_path):
    reports, results = write_study(tmp_path, TINY)
    first = build.build(reports, results, study="toy").html.read_text()
    (reports / "report.html").unlink()
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    assert any("pictures" in path.name for path in before)

    # Half of the results deletes no figure.
    shutil.rmtree(results / "maps")
    build.build(reports, results, study="toy")
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(results)
    files = build.build(reports, results, study="toy")

    assert files.kept
    assert {path: path.read_bytes() for path in before} == before
    page = files.html.read_text()
    assert page.count("not here: run <code>make repro</code>") >= 3
    for name in ("data", "training-curves", "SG-N-pictures-least-stable"):
        if (reports / "figures" / f"{name}.png") in before:
            source = Picture(reports / "figures" / f"{name}.png", "", "").source
            assert (source in page) == (source in first), name


@pytest.mark.usefixtures("undrawn")
def test_missing_table_and_missing_column_are_named_with_the_remedy(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    tasks = reports / "tables" / "tasks.csv"
    write_table(read_table(tasks).drop(columns="draws"), tasks)
    with pytest.raises(ValueError, match=r"tasks\.csv: lacks draws; write it again by `dvc repro"):
        build.build(reports, results, study="toy")

    tasks.unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks\.csv: no such table; run the stage"):
        build.build(reports, results, study="toy")


@pytest.mark.usefixtures("undrawn")
def test_empty_tables_are_as_good_as_none(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    for name in ("claims", "table_s1", "comparisons", "object_size", "global_std"):
        (reports / "tables" / f"{name}.csv").write_text("\n")

    assert "0 of 24 are drawn" in _report(reports, results).text


def test_tables_from_before_inverted_pairs_were_counted_can_be_read(lesser, tmp_path):
    reports, results = _copied(lesser, tmp_path)
    for name in ("sensitivity", "settings", "images", "ipr", "ipr_units", "plane"):
        path = reports / "tables" / f"{name}.csv"
        gone = ["n_inverted", "x_inverted", "y_inverted", "verdict"]
        write_table(read_table(path).drop(columns=gone, errors="ignore"), path)

    study = _study((reports, results))

    assert study.headline["n_inverted"].isna().all()
    assert set(study.table("plane")["verdict"]) <= {
        *("", "parameters", "hyperparameter", "undecided"),
        "undecided: SSIM and rank correlation disagree",
    }


def test_every_text_and_caption_has_a_place_in_the_report():
    folder = resources.files("steadymap.report")
    texts = yaml.safe_load(folder.joinpath("texts.yaml").read_text("utf-8"))
    files = [*Path(str(folder)).glob("*.py"), *Path(str(folder)).glob("sections/*.py")]
    code = "".join(path.read_text("utf-8") for path in files)

    keys = {*texts, *texts["figures"]} - {"figures"}
    unused = {key for key in keys if f'"{key}"' not in code}

    # Others are put together: `search-` and the objective, a table's name and `-note`.
    made = ("search-", "parameters-")
    rest = {key for key in unused if not key.startswith(made) and not key.endswith("-note")}
    assert rest == set()


# Order, folds and links


class _Folds(HTMLParser):
    """Which folds each section lies in, and the words of each fold's summary."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.around: dict[str, list[str]] = {}
        self.summaries: dict[str, str] = {}
        self.in_summary = False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self.last = attrs["id"]
            self.around[self.last] = [name for name in self.open if name]
        elif tag == "details":
            assert "open" not in attrs
            self.open.append(self.last if attrs.get("class") == "part" else "")
        elif tag == "summary":
            self.in_summary = bool(self.open and self.open[-1])

    def handle_endtag(self, tag):
        if tag == "details":
            self.open.pop()
        elif tag == "summary":
            self.in_summary = False

    def handle_data(self, data):
        if self.in_summary:
            self.summaries[self.open[-1]] = self.summaries.get(self.open[-1], "") + data


def test_all_but_the_answer_is_folded_under_what_it_found(randomized):
    folds = _Folds()
    folds.feed(randomized.files.html.read_text())

    answers = {"top", "caveats", "answer", "plane", "budget", "maps"}
    assert folds.open == []
    assert set(folds.around) - set(folds.summaries) <= answers
    assert not answers & set(folds.summaries)
    assert folds.around["sweep-SP-L"] == ["headline"]
    assert folds.around["units"] == ["parameters"]
    worst = _headline(randomized.reports).query("sweep == 'SP-L'").sort_values("mean").iloc[0]
    summary = " ".join(folds.summaries["sweep-SP-L"].split())
    assert f"1 − SSIM {1 - worst['mean']:.2f}, 1 − Spearman" in summary
    assert f"on {worst['model']}" in summary
    claims = read_table(randomized.reports / "tables" / "ipr_claims.csv")
    n = verdict_counts(claims)["fails"]
    assert f"{len(claims)} claims:" in folds.summaries["ipr-claims"]
    assert f"{n} fails" in folds.summaries["ipr-claims"]
    for anchor in folds.summaries:
        assert len(" ".join(folds.summaries[anchor].split())) <= 160, anchor


def _anchors(report) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', report.files.html.read_text())


def test_sections_come_in_the_order_of_the_first_screen(whole, randomized):
    assert _anchors(whole) == [
        *("top", "caveats", "answer", "maps"),
        *("paper", "table-s1", "global-std", "claims", "comparisons", "localization"),
        *("paper-figures", "parameters", "headline", "hyperparameters", "sweep-SG-N", "sweep-SP-L"),
        *("models", "evaluation-set", "data", "provenance"),
    ]
    anchors = _anchors(randomized)
    at = anchors.index("parameters")
    assert anchors[at : at + 7] == [
        *("parameters", "parameter-measures", "units", "plane-table"),
        *("architectures", "ipr-claims", "ipr-failures"),
    ]
    assert anchors[at - 1] == "paper-figures"
    assert anchors[at + 7] == "headline"
    assert anchors.index("plane") == anchors.index("answer") + 1


def test_every_navigation_entry_leads_to_a_section(whole):
    anchors = _anchors(whole)

    targets = re.findall(r'href="#([^"]+)"', whole.files.html.read_text())

    assert {"caveats", "answer", "headline", "sweep-SG-N", "sweep-SP-L"} <= set(targets)
    shown = [target for target in targets if target.startswith("viewer=")]
    assert "viewer=googlenet/SP-L/val-00003" in shown
    assert all(anchors.count(target) == 1 for target in targets if target not in shown)


def test_every_run_s_tag_leads_to_a_section_of_its_report(randomized):
    anchors = _anchors(randomized)
    tables = {p.stem: read_table(p) for p in (randomized.reports / "tables").glob("*.csv")}
    tracked = TrackedStudy("toy", tables)
    swept = sweep_entries(tracked)
    settings = {method: {} for method in tables["ipr"]["method"]}
    entries = [*swept, *randomization_entries(tracked, settings)]

    for entry in entries:
        path, anchor = entry.tags["report"].split("#")
        assert path == "reports/toy/report.html"
        assert anchor in anchors
    tags = {entry.name: entry.tags["report"] for entry in swept}
    assert tags["sliding_patch SP-L googlenet-r"] == "reports/toy/report.html#sweep-SP-L"
    assert tags["gradient default googlenet"] == "reports/toy/report.html#headline"
    for name in ("`steadymap/toy/smoothgrad`", "`sliding_patch SP-L googlenet-r`", "`make ui`"):
        assert name in randomized.text


def test_papers_are_spelled_out_before_their_abbreviations(everything, randomized):
    for files in (everything.files, randomized.files):
        for path in (files.html, files.markdown, files.details):
            text = _words(path)
            text = text[text.find("<main") + 1 :]
            sam_at, ipr_at = (re.search(rf"\b{name}\b", text).start() for name in ("SAM", "IPR"))
            assert text[sam_at:].startswith("SAM: The Sensitivity of Attribution Methods to")
            assert text[:ipr_at].endswith("independent parameter randomization (")
            assert "N. Bansal" in text
            assert "H. Sriram" in text


def test_short_document_has_the_answer_and_the_counts_and_is_short(randomized):
    text = _words(randomized.files.markdown)

    assert len(randomized.files.markdown.read_text().splitlines()) < 250
    for key in (
        *("Before you read a number", "Most dangerous", "Sensitivity plane", "SAM paper"),
        *("Table S1", "of 10 pairs of method and model", "`details.md`"),
    ):
        assert key in text
    assert "## Sweep " not in text
    assert "## Sweep SP-L" in randomized.files.details.read_text()


# The answer and its caveats


def test_both_formats_hold_every_headline_number(whole):
    texts = [whole.text, whole.files.html.read_text()]

    for row in _headline(whole.reports).itertuples():
        spread = f"{row.std_rms:.3f} / {row.std_mean:.3f}"
        assert all(_with_interval(row) in text and spread in text for text in texts)


def test_answer_names_the_most_dangerous_hyperparameter_and_every_sweep_worst_first(whole):
    rows = _headline(whole.reports)
    frame = readings.headline_draws(read_table(whole.reports / "tables" / "sensitivity.csv"))
    ranks = frame[frame["metric"] == "spearman"].set_index(["sweep", "model"])["mean"]
    worst = rows.loc[rows.groupby("sweep")["mean"].idxmin()].sort_values("mean")
    text = whole.files.markdown.read_text()

    first = worst.iloc[0]
    assert f"**Most dangerous: `{first['hyperparameter']}` of {first['method']}**" in whole.text
    part = text[text.index("## Which hyperparameter is dangerous") :]
    lines = [line for line in part.splitlines() if re.match(r"\| S[GP]-", line)]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(worst["sweep"])
    for line, row in zip(lines, worst.itertuples(), strict=True):
        moved, by_rank = 1 - row.mean, 1 - ranks[row.sweep, row.model]
        assert f"{moved:.3f} [{1 - row.ci_high:.3f}, {1 - row.ci_low:.3f}]" in line
        name = [name for least, name in readings.DEGREES if max(moved, by_rank) >= least][-1]
        assert f"| {name} " in line
        assert f" {by_rank:.3f} |" in line
        assert f" {row.model} |" in line


def test_caveats_open_the_report_with_the_detectable_difference(whole):
    rows = _headline(whole.reports)
    half = (rows["ci_high"] - rows["ci_low"]) / 2

    for key in (
        *("One training per model", "Easy images", "Generated images", "with a planted"),
        *("googlenet-r was trained from googlenet", "32 px", "one outlier pixel", "8 images"),
        *("faithful", f"±{half.median():.3f}", f"±{half.max():.3f}", "paired difference"),
    ):
        assert key in whole.text
    assert whole.files.html.read_text().count('<div class="box">') == 1


def _hard_and_easy(written, folder) -> StudyFiles:
    """A study whose images differ far more than its two models do on each of them."""
    reports, results = _copied(written, folder)
    path = reports / "tables" / "images.csv"
    images = read_table(path)
    ids = sorted(images["image_id"].unique())
    hard = images["image_id"].map(dict(zip(ids, (0.2, 0.5, 0.7, 0.9), strict=True)))
    gain = 0.02 + 0.001 * images["image_id"].map(ids.index)
    # In the second sweep, which the first one moves further, only the images' own sign changes.
    turned = gain.where(images["image_id"].isin(ids[::2]), -gain)
    gain = gain.where(images["sweep"] == "SG-N", turned)
    images["mean"] = hard + gain * (images["model"] == "googlenet-r")
    images["mean"] += 0.05 * (images["sweep"] == "SG-sigma")
    write_table(images, path)
    return _study((reports, results))


@pytest.fixture(scope="module")
def two_sweeps(tmp_path_factory):
    """Files of a study of two sweeps; copy before writing."""
    return write_study(tmp_path_factory.mktemp("two"), replace(BARE, sweeps=SWEEPS[:2]))


def test_differences_between_models_are_paired_by_image(two_sweeps, tmp_path):
    study = _hard_and_easy(two_sweeps, tmp_path)

    found = study.difference(("SG-N", "googlenet"), ("SG-N", "googlenet-r"))
    images = study.headline_rows("images", "ssim", "SG-N").query("model == 'googlenet'")
    unpaired = interval(images["mean"].to_numpy(), images["photo"].to_list())

    assert found["mean"] == pytest.approx(0.0215)
    assert 0.01 < found["ci_low"] < found["mean"] < found["ci_high"] < 0.03
    assert unpaired[1] - unpaired[0] > 10 * (found["ci_high"] - found["ci_low"])
    absent = study.difference(("SG-N", "googlenet"), ("SG-N", "vgg16"))
    assert np.isnan([*absent.values()]).all()


def _answer(study, folder) -> tuple[str, list[str], list[Table]]:
    """First sentences of the answer, its details, and its tables."""
    lead, *blocks = answer.answer(study, Gallery(folder))
    (details,) = [block.items for block in blocks if isinstance(block, Items)]
    return lead.text, list(details), [block for block in blocks if isinstance(block, Table)]


@pytest.mark.usefixtures("undrawn")
def test_degenerate_pairs_stand_in_the_cell_of_the_mean_that_leaves_them_out(two_sweeps, tmp_path):
    reports, results = _copied(two_sweeps, tmp_path)
    for name in ("sensitivity", "settings"):
        path = reports / "tables" / f"{name}.csv"
        table = read_table(path).assign(mean_all=0.25)
        chosen = (table["sweep"] == "SG-sigma") & (table["metric"] == "ssim")
        table.loc[chosen, "n_degenerate"] = 3
        write_table(table, path)
    study = _study((reports, results))

    _, _, (danger, *_) = _answer(study, tmp_path / "figures")
    (whole,) = [b for b in headline_table(study) if isinstance(b, Table)]

    for table, cell in ((danger, "(3 blank: 0.750)"), (whole, "(3 blank: 0.250)")):
        texts = [[getattr(c, "text", str(c)) for c in row] for row in table.rows]
        marked = [row for row in texts if any(cell in text for text in row)]
        assert marked
        assert all("SG-sigma" in " ".join(row) for row in marked)


@pytest.mark.usefixtures("undrawn")
def test_twins_and_the_first_two_sweeps_are_told_apart_by_paired_differences(two_sweeps, tmp_path):
    study = _hard_and_easy(two_sweeps, tmp_path)
    order = list(dict.fromkeys(study.headline["sweep"]))

    lead, details, _ = _answer(study, tmp_path)

    (twins,) = [item for item in details if "moved less than" in item]
    assert [int(n) for n in re.findall(r"\d+", twins)][:3] == [2, 1, 1]
    assert [int(n) for n in re.findall(r"\b\d\b", twins)][:5] == [2, 1, 1, 1, 0]
    both = [
        study.difference((order[0], model), (order[1], model), metric)["ci_low"] > 0
        for model in study.models
        for metric in ("ssim", "spearman")
    ]
    assert ("not settled" in lead) == (not all(both))
    pairs = [((sweep, "googlenet"), (sweep, "googlenet-r")) for sweep in order]
    ends = [study.difference(*pair) for pair in pairs]
    paired = np.median([(end["ci_high"] - end["ci_low"]) / 2 for end in ends])
    assert f"±{paired:.3f}" in caveats.caveats(study).items[-1]


NOISY = (
    ("A", "lime", "n_superpixels", ("50", "150"), "50", "nested"),
    ("A-seed", "lime", "seed", ("0", "1"), "0", "independent"),
    ("A-seed-150", "lime", "seed", ("0", "1"), "0", "independent"),
    ("A-seed-far", "lime", "seed", ("0", "1"), "0", "independent"),
    ("B", "smoothgrad", "sigma", ("0.1", "0.2"), "0.1", "nested"),
    ("B-seed", "smoothgrad", "seed", ("0", "1"), "0", "independent"),
)
HELD = {
    "A-seed": {"n_superpixels": 50, "fill": "black"},
    "A-seed-150": {"n_superpixels": 150, "fill": "black"},
    "A-seed-far": {"n_superpixels": 150, "fill": "mean"},
    "B-seed": {"sigma": 0.3},
}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Files of a study of `NOISY`; copy before writing."""
    reports, results = write_study(tmp_path_factory.mktemp("noisy"), replace(BARE, sweeps=NOISY))
    path = reports / "tables" / "tasks.csv"
    tasks = read_table(path)
    for index, row in tasks[tasks["hyperparameter"] != ""].iterrows():
        held = HELD.get(row["sweep"], {"fill": "black"} if row["method"] == "lime" else {})
        given = json.loads(row["hyperparameters"]) | held
        tasks.loc[index, "hyperparameters"] = json.dumps(given)
    write_table(tasks, path)
    return reports, results


def _moving(written, folder, moved) -> tuple[str, list[str]]:
    """Lead and details where sweeps move the maps of googlenet that far; the other's less."""
    reports, results = _copied(written, folder)
    path = reports / "tables" / "sensitivity.csv"
    rows = read_table(path)
    means = 1 - rows["sweep"].map(moved) + 0.01 * rows["model"].eq("googlenet-r")
    write_table(rows.assign(mean=means), path)
    return _answer(_study((reports, results)), folder)[:2]


@pytest.mark.usefixtures("undrawn")
def test_another_seed_alone_stands_beside_the_most_dangerous_hyperparameter(noisy, tmp_path):
    moved = {"A": 0.9, "A-seed": 0.46, "A-seed-150": 0.8, "A-seed-far": 0.85}
    lead, details = _moving(noisy, tmp_path, moved | {"B": 0.3, "B-seed": 0.2})

    assert "0.800 at `n_superpixels` 150 (A-seed-150) and 0.460 at `n_superpixels` 50" in lead
    assert "0.900 of `n_superpixels` (A)" in lead
    # Of seeds at another fill nothing follows for these maps.
    assert "A-seed-far" not in lead
    # Other methods' hyperparameters that move much are told of below.
    assert "smoothgrad on" not in lead
    assert "by 0.200 at `sigma` 0.3" in details[0]
    assert not any("lime on" in item for item in details)


@pytest.mark.usefixtures("undrawn")
def test_a_seed_that_moves_maps_less_than_half_as_far_is_no_caveat(noisy, tmp_path):
    moved = {"A": 0.9, "A-seed": 0.44, "A-seed-150": 0.2, "A-seed-far": 0.95}
    lead, details = _moving(noisy, tmp_path, moved | {"B": 0.1, "B-seed": 0.09})

    # The seed is the most dangerous hyperparameter itself; those that move maps a little need no
    # excuse.
    assert "Most dangerous: `seed` of lime" in lead
    assert not any("Another seed" in text for text in [lead, *details])


YARDSTICK = {"model": "googlenet", "method": "smoothgrad", "sweep_setting": "SG-N n_samples=5"} | {
    **{"metric": "ssim", "mean": 0.4, "low": 0.3, "high": 0.5, "n_trainings": 4},
    **{"sweep": "SG-N", "is_reference": True, "convention": "common"},
}
TWINS = {"model": "googlenet", "twin": "googlenet-r", "method": "smoothgrad", "sweep": "SG-N"} | {
    **{"metric": "ssim", "difference": 0.321, "low": 0.123, "high": 0.519, "n_trainings": 4},
    **{"convention": "common", "draws": "independent", "n_images": 4},
}


@pytest.mark.usefixtures("undrawn")
def test_several_trainings_stand_beside_this_one_and_change_the_caveat(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    alone = caveats.caveats(_study((reports, results)))
    folder = reports.parent / "retraining" / "toy"
    others = [YARDSTICK | {"is_reference": False}, YARDSTICK | {"convention": "wang"}]
    write_table(pd.DataFrame([*others, YARDSTICK]), folder / "yardstick.csv")
    others = [{"draws": "nested"}, {"metric": "iou"}, {"convention": "wang"}, {"sweep": "X"}]
    rows = [TWINS | {"difference": 0.9} | other for other in others]
    by_rank = {"metric": "spearman", "convention": "signed", "difference": 0.2, "low": 0.1}
    rows += [TWINS | by_rank | {"high": 0.3}, TWINS]
    write_table(pd.DataFrame(rows), folder / "twins.csv")
    study = _study((reports, results))

    _, _, (danger, twins) = _answer(study, tmp_path)

    band = study.training_variability
    assert band[["low", "mean", "high"]].to_numpy().tolist() == [pytest.approx([0.3, 0.4, 0.5])]
    mean = _headline(reports).query("sweep == 'SG-N' and model == 'googlenet'")["mean"].iloc[0]
    assert danger.columns[-1] == "retraining"
    assert danger.rows[0][-1].text in (f"{(1 - mean) / 0.4:.1f}×", "–")
    found = study.difference(("SG-N", "googlenet"), ("SG-N", "googlenet-r"))
    ((sweep, method, models, several, ranks, one),) = twins.rows
    assert [cell.text for cell in (sweep, method, models)] == [
        *("SG-N", "smoothgrad", "googlenet-r − googlenet")
    ]
    assert several.text == "0.321 [0.123, 0.519]"
    assert several.tone == 1
    assert ranks.text == "0.200 [0.100, 0.300]"
    assert one.text == _with_interval(SimpleNamespace(**found))
    assert "4 trainings [95 %]" in twins.columns
    assert "4 in the hatched band and the table of twins" in caveats.caveats(study).items[0]
    assert "trainings and" not in alone.items[0]
    # Another study's says nothing of this one.
    elsewhere = StudyFiles(reports, results, "embedded", {})
    assert elsewhere.training_variability.empty
    assert elsewhere.robust_minus_regular.empty


@pytest.mark.parametrize(("median", "warned"), [(0.058, True), (0.049, False)])
def test_integrated_gradients_that_miss_a_twentieth_are_a_caveat(bare, tmp_path, median, warned):
    reports, results = _copied(bare, tmp_path)
    row = {"method": "integrated_gradients", "model": "googlenet", "hyperparameters": "{}"}
    rows = pd.DataFrame([row | {"n_images": 4, "median": median, "n_above": 3}])
    write_table(rows, reports / "tables" / "completeness.csv")

    items = caveats.caveats(_study((reports, results))).items

    found = [item for item in items if "integrated_gradients" in item and "5.8%" in item]
    assert len(found) == warned


BUDGET = {"model": "googlenet", "method": "smoothgrad", "sweep": "SG-N", "tau": 0.95} | {
    **{"budget": 20.0, "low": 10.0, "high": 50.0, "n_max": 50, "share_at_max": 1.0},
    **{"self_similarity": 0.971, "forward_passes": 0.0, "backward_passes": 20.0},
    **{"n_images": 4, "reached": True},
}
UNREACHED = {"tau": 0.99, "budget": np.nan, "low": 20.0, "high": np.nan, "reached": False} | {
    **{"share_at_max": 0.25, "forward_passes": np.nan, "backward_passes": np.nan},
}


@pytest.mark.usefixtures("undrawn")
def test_stability_budget_is_told_where_it_was_measured(bare, tmp_path):
    without = _report(*_copied(bare, tmp_path / "without"))
    reports, results = _copied(bare, tmp_path / "with")
    write_table(pd.DataFrame([BUDGET, BUDGET | UNREACHED]), reports / "tables" / "budget.csv")
    curves = [
        BUDGET
        | {"value": value, "tau": tau, "share": share, "low": 0.0, "high": 1.0, "ssim": 0.9}
        | {"spearman": 0.9, "n_degenerate": 0, "n_inverted": 0}
        for tau, best in ((0.95, 1.0), (0.99, 0.25))
        for value, share in (("10", 0.0), ("20", best), ("50", best))
    ]
    write_table(pd.DataFrame(curves), reports / "tables" / "budget_curves.csv")

    report = _report(reports, results)

    assert "Reached in 1 of 2 cases." in report.text
    assert "|0.95|20 [10, 50]|100 %|0.971|0 / 20|4|" in report.rows
    assert "|0.99|not reached by 50|25 %|0.971|–|4|" in report.rows
    assert "stability-budget" in {path.stem for path in report.files.figures}
    assert "budget" in _anchors(report)
    assert "budget" not in without.text.lower()
    assert "retraining" not in without.text


@pytest.mark.usefixtures("undrawn")
def test_inverted_maps_are_never_called_alike(tmp_path):
    """SSIM of .98, Spearman of -.9: in words another map, and counted."""
    sweep = SWEEPS[0][0]
    study = replace(LESSER, inverted=(sweep, "gradient"))

    report = _report(*write_study(tmp_path, study))

    headline = _study((report.reports, report.results)).headline
    assert set(headline["degree"]) == {3}
    assert f"(sweep {sweep}), mean 1 − SSIM 0.020" in report.text
    assert "1 − Spearman 1.900" in report.text
    assert re.search(r"\|another map\|smoothgrad: n_samples\|0.020 [^|]*\|1.900 ‡", report.rows)
    assert f"{int(headline['n_inverted'].sum())} inverted (" in report.text
    assert "moved most is undecided" in report.text


@pytest.mark.usefixtures("undrawn")
def test_the_difference_of_twins_holds_by_both_measures(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    path = reports / "tables" / "images.csv"
    images = read_table(path)
    turned = images["metric"].eq("spearman") & images["model"].eq("googlenet-r")
    images.loc[turned, "mean"] -= 1.5
    write_table(images, path)
    study = _study((reports, results))

    _, details, _ = _answer(study, tmp_path)

    by_ssim = study.difference((SWEEPS[0][0], "googlenet"), (SWEEPS[0][0], "googlenet-r"))
    assert by_ssim["mean"] > 0
    (twins,) = [item for item in details if "moved less than" in item]
    assert "in 0 and more in 0" in twins
    assert any(item.startswith("In 1 of these sweeps, SSIM and rank") for item in details)


# Sweeps, models and data


def test_pictures_are_the_extremes_and_a_seeded_image_between(whole, monkeypatch, tmp_path):
    _leave_out_figures(monkeypatch)
    drawn = []
    monkeypatch.setattr(
        maps, "picture_rows", lambda rows, **words: drawn.append((rows, words)) or Figure()
    )
    study = _study((whole.reports, whole.results))
    rows = study.headline_rows("images", "ssim", "SG-N")
    means = rows.groupby("image_id")["mean"].mean()

    for _ in range(2):
        list(sweep_section(study, "SG-N", Gallery(tmp_path)))

    notes = [words["note"] for _, words in drawn]
    ids = [note.split(":")[0] for note in notes]
    assert notes[:3] == notes[3:]
    assert ["extreme" in note and "an extreme" in note for note in notes[:3]] == [True, False, True]
    assert ids[0] == means.idxmin()
    assert ids[2] == means.idxmax()
    assert len(set(ids[:3])) == 3
    # Each picture has a row per model, whose tiles carry the scores of its image.
    scores = read_table(whole.results / "scores.parquet").query(
        "sweep == 'SG-N' and metric == 'ssim' and convention == 'common' and draws == 'nested' "
        f"and model == 'googlenet-r' and image_id == '{ids[1]}'"
    )
    first, second = drawn[1][0]
    tiles = {tile.above: tile for tile in second.tiles[1:]}
    assert list(tiles) == ["5", "10", "20", "50"]
    assert tiles["5"].framed
    assert tiles["5"].below == "reference"
    assert tiles["20"].below.startswith(f"{scores.set_index('value')['score']['20']:.2f} / ")
    assert np.array_equal(first.tiles[0].pixels, study.pixels[ids[1]])
    assert second.tiles[0] is None


def test_long_sweeps_show_both_ends_and_the_reference():
    values = [str(value) for value in range(30)]

    shown = thin(values, "7")

    assert len(shown) == 9
    assert {"0", "7", "29"} <= set(shown)
    assert thin(values[:9], "7") == values[:9]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("study", "key"),
    [
        (replace(TINY, boxes=False), "no boxes are known"),
        (replace(BARE, photos=False), "No two images are known to share a photograph"),
        (replace(BARE, models=("googlenet", "resnet50")), "no robust model"),
        (replace(BARE, models=("googlenet",)), "one network, googlenet"),
        (replace(BARE, n_images=1), "no difference is detectable"),
        (replace(TINY, sweeps=(FILLS,)), "`fill` = mean, black, light gray; reference mean"),
        (replace(TINY, sweeps=(SEEDS,)), "`seed` = 0, 1, 2; reference 0"),
        (replace(TINY, sweeps=()), "No sweep with a hyperparameter was scored"),
        (replace(BARE, sweeps=(), without_sweeps=()), "No sweep with a hyperparameter was scored"),
        (replace(TINY, degenerate=True), "every compared pair of maps was degenerate"),
        (replace(TINY, maps=False), "No maps of smoothgrad at hand"),
        (BARE, "The data set is not here: run `make repro`"),
    ],
    ids=[
        *("no-boxes", "no-photos", "no-robust", "one-model", "one-image", "words", "seeds"),
        *("no-sweeps", "no-methods", "degenerate", "no-maps", "no-data"),
    ],
)
def test_what_is_absent_is_said_in_words(study, key, tmp_path):
    report = _report(*write_study(tmp_path, study))

    assert key in report.text
    assert "nan" not in report.text.lower().split()
    assert report.files.html.is_file()


@pytest.mark.usefixtures("undrawn")
def test_caveats_follow_the_params(bare, tmp_path):
    params = {
        "data": {"kind": "embedded", "image_size": 64, "pattern_amplitude": 0},
        "evaluation_set": {"rule": "any"},
        "statistics": {"confidence": 0.9},
    }

    text = _report(*_copied(bare, tmp_path), profile=params).text

    assert "without a planted" in text
    assert "64 px" in text
    assert "rule `any`" in text
    assert "SSIM [90 %]" in text
    assert "Easy images" not in text


# The SAM paper's part


def test_table_s1_stands_beside_the_paper_s_values(everything):
    rows = read_table(everything.reports / "tables" / "table_s1.csv")

    for row in rows.itertuples():
        assert f"{row.mean:.3f} ± {row.std_rms:.3f} / {row.std_mean:.3f}" in everything.text
        assert _with_interval(row, "mean", "mean") in everything.files.html.read_text()
    assert everything.text.count("paper: GoogLeNet-R") == 5
    assert everything.text.count("0.642 ± 0.320") == len(rows)
    assert "|row|model|SSIM ↑|localization ↓|insertion ↑|deletion ↓|" in everything.rows


def test_claims_are_counted_first_and_those_not_measurable_listed(everything):
    text, html = everything.text, everything.files.html.read_text()
    counts = ("|holds|2|", "|fails|1|", "|not measurable here|1|")

    # Beside the paper in the short document, and above the claims.
    for path in (everything.files.markdown, everything.files.details):
        squeezed = re.sub(r" *\| *", "|", _words(path))
        order = [squeezed.index(key) for key in counts]
        assert order == sorted(order)
    assert order[-1] < squeezed.index("**Holds: 2**")
    assert "**5**: Robust models are 6 times steadier. The study has no ResNet pair" in text
    for row in read_table(everything.reports / "tables" / "claims.csv").itertuples():
        assert f"|{row.claim}|{row.name}|" in everything.rows
        if row.direction != "not measurable here":
            assert f"{float(row.value):.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]" in text
    assert "<summary>Not measurable here: 1</summary>" in html
    assert "<summary>Holds" not in html


CLAIM = {"name": "n", "section": "4", "statement": "s.", "recipe": "r", "paper_value": 1.0} | {
    **{"value": 1.0, "ci_low": 0.5, "ci_high": 1.5, "unit": "", "n_images": 4, "reason": ""},
}


def test_sizes_are_counted_of_the_claims_that_hold_alone_and_shared_reasons_once(bare, tmp_path):
    sizes = ["inside", "outside", "outside", "not comparable", "inside", "", "another grid"]
    verdicts = ["holds"] * 4 + ["fails", "not measurable here", "holds"]
    reasons = [*(f"note {n}; t-interval" for n in range(6)), ""]
    rows = [
        CLAIM
        | {"claim": str(n), "direction": verdict, "size": size, "reason": reason}
        | {"papers_grid": "no" if size == "another grid" else "yes"}
        for n, (verdict, size, reason) in enumerate(zip(verdicts, sizes, reasons, strict=True))
    ]
    reports, results = _copied(bare, tmp_path)
    write_table(pd.DataFrame(rows), reports / "tables" / "claims.csv")

    blocks = list(sam.claims(_study((reports, results))))

    texts = " ".join(block.text for block in blocks if hasattr(block, "text"))
    assert texts.count("t-interval") == 1
    assert "Of 6 claims" in texts
    counts, holds, *_ = [block for block in blocks if isinstance(block, Table)]
    # Five facts, of which none was judged beside the others.
    assert [cell.text for cell in counts.rows[0]] == ["holds", "5", "0", "1", "1", "2", "1"]
    assert [row[-1].text for row in holds.rows] == ["Note 0", "Note 1", "Note 2", "Note 3", ""]


def test_what_few_claims_share_stays_with_them():
    reasons = pd.Series(["note; t-interval"] * 5 + ["other", ""])

    assert list(sam.without_shared(reasons)[0]) == list(reasons)


def test_comparisons_and_trivial_maps_hold_the_tables_numbers(everything):
    tables = everything.reports / "tables"
    comparisons = read_table(tables / "comparisons.csv")
    shown = comparisons[comparisons["convention"].isin(["common", "max_abs"])]

    for row in shown[shown["comparison"].str.endswith(("noise", "distance"))].itertuples():
        if row.metric == ("l1" if row.comparison == "distance" else "ssim"):
            assert _with_interval(row) in everything.text
    rises = shown[shown["comparison"].eq("denoising-gradient") & shown["metric"].eq("ssim")]
    for pairing in ("same", "mismatched"):
        means = rises[rises["pairing"] == pairing].set_index("value")["mean"]
        line = f"|{means['50']:.3f}|{means['']:.3f}|{means['50'] - means['0']:+.3f}|"
        assert line in everything.rows
    for row in read_table(tables / "localization_baselines.csv").itertuples():
        assert _with_interval(row) in everything.text
    assert "|error at 0.5 ↓|" in everything.rows
    assert "|0.777|4|" in everything.rows
    objects = read_table(tables / "object_size.csv")
    one = objects[objects["model"].eq("googlenet") & objects["patch_size"].eq(9)].iloc[0]
    ratio = one["area_above_half"] / one["object_area"]
    assert f"{ratio:.2f}×, {one['peak']:.2f}" in everything.text


def test_accuracy_of_a_sweep_is_told_with_its_direction_and_both_stds(everything):
    rows = readings.headline_draws(read_table(everything.reports / "tables" / "sensitivity.csv"))
    rows = rows[(rows["sweep"] == "SP-L") & (rows["convention"] == "auc_over_max")]
    part = everything.rows[everything.rows.index("## Sweep SP-L") :]

    assert len(rows) == 4
    for row in rows.itertuples():
        better = "higher" if row.metric == "insertion" else "lower"
        spread = f"{row.std_rms:.3f} / {row.std_mean:.3f}"
        line = f"|{row.metric} ({better} is better)|{row.model}|{_with_interval(row)}|{spread}|"
        assert line in part
    assert "localization error (lower is better)" in part
    assert "IoU (higher is better)" in part


def test_accuracy_does_not_enter_similarity(everything):
    table = read_table(everything.reports / "tables" / "sensitivity.csv")

    labels = [label for _, label, _ in readings.by_measure(readings.headline_draws(table))]

    assert {"insertion", "localization_error"} <= set(table["metric"])
    assert [label for label in labels if label != "Pearson"] == list(readings.MEASURES.values())
    assert "Most moving sweep: " in everything.text


def test_figures_by_name_are_all_there_in_both_formats(everything):
    names = [*(f"fig{n}" for n in range(1, 8)), *(f"s{n}" for n in range(1, 18))]

    assert set(names) <= {path.stem for path in everything.files.figures}
    assert "24 of 24 are drawn" in everything.text
    for name in names:
        assert f"![Fig. {name.removeprefix('fig').upper()}: " in everything.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("study", "key"),
    [
        (replace(PAPER, sweeps=(), boxes=False), "No image has a box, hence no localization"),
        (replace(PAPER, sweeps=(SWEEPS[0],), comparisons=False), "Nothing but sweeps was compared"),
        (replace(TINY, accuracy=False), "claims were not judged"),
        (replace(PAPER, sweeps=(SWEEPS[0],), models=("net",)), "not scored here: SP-S, SP-L"),
    ],
    ids=["no-boxes", "no-comparisons", "no-tables", "unknown-model"],
)
def test_parts_of_the_paper_s_section_that_lack_their_table_say_so(study, key, tmp_path):
    report = _report(*write_study(tmp_path, replace(study, maps=False, data=False)))

    assert key in report.text
    assert "nan" not in report.text.lower().split()
    assert report.text.count("not drawn") >= 10
    assert "no sweep MP-N" in report.text


# Sensitivity to the model's parameters


def _ipr_rows(reports, name, order="independent"):
    rows = read_table(reports / "tables" / f"{name}.csv")
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == "common")]
    return rows[rows["order"] == order] if "order" in rows else rows


def test_without_randomized_models_one_sentence_says_so(whole):
    html = whole.files.html.read_text()

    section = html[html.index('<section id="parameters">') :]
    section = section[: section.index("</section>")]
    assert section.count("<p") == 1
    assert "<table" not in section
    assert "Not measured: no model of this study was randomized" in whole.text
    assert 'href="#parameters"' not in html
    assert "ensitivity plane" not in whole.text
    names = [path.stem for path in whole.files.figures]
    assert not any(name.startswith(("unit-", "sensitivity-plane")) for name in names)


def test_parameter_table_holds_the_table_s_numbers_most_sensitive_first(randomized):
    rows = _ipr_rows(randomized.reports, "ipr")
    html, text = randomized.files.html.read_text(), randomized.rows

    for row in rows.itertuples():
        s = _with_interval(row, "S_same", "same")
        assert s in html
        line = re.search(rf"\|{row.model}\|{row.method}\|{re.escape(s)}\|.*?\|\|", text)[0]
        noise = "|= S|"
        if row.method in ("smoothgrad", "lime"):
            excess = _with_interval(row, "excess", "excess")
            noise = f"|{excess}|"
        assert noise in line
        assert f"|{row.S_rel:.2f}" in line
    verdicts = rows["passes"].value_counts()
    counted = ", ".join(f"{n} {verdicts.get(n, 0)}" for n in ("yes", "no", "inconclusive"))
    assert f"of 10 pairs of method and model: {counted}" in text
    part = text[text.index("## Sensitivity to the model's parameters") :]
    for model, group in rows.groupby("model"):
        order = list(group.sort_values("S_same", ascending=False)["method"])
        assert re.findall(rf"\|{model}\|(\w+)\|", part[: part.index("### By other")]) == order


@pytest.mark.usefixtures("undrawn")
def test_blank_maps_stand_beside_the_s_that_they_make(randomized, tmp_path, monkeypatch):
    drawn = {}
    for module, name in ((figures_parameters, "parameter_bars"), (plane, "sensitivity_plane")):
        monkeypatch.setattr(
            module, name, lambda table, name=name, **_: drawn.update({name: table}) or Figure()
        )
    reports, results = _copied((randomized.reports, randomized.results), tmp_path)
    path = reports / "tables" / "ipr.csv"
    table = read_table(path)
    one = table["method"].eq("gradient") & table["model"].eq("googlenet")
    table.loc[one, "n_degenerate"] = 31
    table.loc[table["method"].eq("lime"), "n_degenerate"] = 20
    write_table(table, path)

    report = _report(reports, results)

    assert "(1 of them by mostly blank maps)" in report.text
    assert "|31/40|yes (blank)|" in report.rows
    assert report.rows.count("|20/40|yes|") == 2
    assert report.files.html.read_text().count("yes (blank)") == 2, "in the folded orders too"
    for key in ("31 of 40 maps are blank", "**Crossed**", "**Hollow**"):
        assert key in report.text
    for name, rows in drawn.items():
        flagged = rows[rows["blank"]]
        assert set(flagged["method"]) == {"gradient"}, name
        assert set(flagged["model"]) == {"googlenet"}, name
    assert len(drawn) == 2


def test_conventions_stand_side_by_side(randomized):
    table = read_table(randomized.reports / "tables" / "ipr.csv")
    rows = table.query("order == 'independent' and model == 'googlenet' and method == 'lime'")
    found = rows.set_index(["metric", "convention"])["S_same"]
    keys = [("ssim", name) for name in ("common", "sam", "wang", "mass_weighted")]
    keys += [("spearman", "signed"), ("hog_pearson", "cells4"), ("pearson", "signed")]

    headings = "SSIM (common)|SSIM (sam)|SSIM (wang)|SSIM (mass)|Spearman|HOG-Pearson|Pearson"
    assert headings in randomized.rows
    assert "|".join(f"{found[key]:.3f}" for key in keys) in randomized.rows


def test_caveats_of_s_follow_from_the_tables(randomized):
    for key in (
        *("Moving is a reaction", "The mean passes", "Units are inferred", "Function saturates"),
        *("3 of 5 units of googlenet", "4 images, 5 units, 2 draws of the weights"),
    ):
        assert key in randomized.text
    assert "One draw of the weights" not in randomized.text


def test_plane_follows_the_answer_and_its_table_has_its_numbers(randomized):
    html, text = randomized.files.html.read_text(), randomized.text
    part = html[html.index('<section id="plane">') : html.index('<section id="maps">')]
    rows = _ipr_rows(randomized.reports, "plane")

    assert part.count("<figure>") == 1
    assert "depends on the values swept" in text
    assert "SG-N `n_samples` 5 to 50 (4 values)" in text
    assert "SG-sigma `sigma` 0.1, 0.2, 0.3" in text
    for row in rows[rows["sweep"].fillna("") != ""].itertuples():
        place = "not ranked"
        if row.ranked:
            place = "–" if np.isnan(row.rank) else f"{row.rank:.0f}"
        difference = _with_interval(row, "difference", "difference")
        line = f"|{row.model}|{row.method}|{row.sweep}|{row.x:.3f}|{row.y:.3f}|{difference}|"
        line += f"{100 * row.share_below:.0f} %|"
        assert line in randomized.rows
        after = randomized.rows[randomized.rows.index(line) + len(line) :]
        assert after.split("|")[1].startswith(place)
    assert "**SP-S**: the reference has patch_size 15, the IPR test patch_size 9." in text
    assert "Without a sweep: gradient, guided_backprop and lime" in text


def test_units_are_told_by_curves_maps_and_a_folded_table(randomized):
    html, text = randomized.files.html.read_text(), randomized.text
    names = {path.stem for path in randomized.files.figures}

    assert {"unit-curves", "unit-curves-top_down", "unit-function"} <= names
    assert {"unit-pictures-googlenet", "unit-pictures-googlenet-r"} <= names
    assert "5 of 5 units, 1 image, 1 draw of the weights" in text
    folded = html[html.index("<summary>S of each unit") :]
    folded = folded[: folded.index("</details>")]
    for row in _ipr_rows(randomized.reports, "ipr_units").itertuples():
        assert f">{row.S_same:.3f}</td>" in re.sub(r">\s+|\s+<", lambda m: m[0].strip(), folded)
        assert f"{-row.target_change:.2f}" in folded
    assert "`tables/ipr_units.csv`" in text
    for row in _ipr_rows(randomized.reports, "ipr_function").itertuples():
        assert f"{row.rho_target_drop:+.2f} (p " in text


def test_other_orders_are_folded_away(randomized):
    html = randomized.files.html.read_text()
    folded = html[html.index("<summary>Other orders") :]
    folded = folded[: folded.index("</details>")]

    rows = _ipr_rows(randomized.reports, "ipr", "top_down")
    assert len(rows) == 10
    assert all(_with_interval(row, "S_same", "same") in folded for row in rows.itertuples())


def test_ipr_claims_correlations_and_failures_are_told_with_their_reasons(randomized):
    claims = read_table(randomized.reports / "tables" / "ipr_claims.csv")

    part = randomized.rows[randomized.rows.index("### Claims on randomized models") :]
    for verdict in ("holds", "fails", "inconclusive", "not measurable here"):
        assert f"|{verdict}|{verdict_counts(claims)[verdict]}|" in part
    assert "Checks, which can't fail and aren't counted: 1" in part
    assert all(f"|{claim}|" in part for claim in claims["claim"])
    assert "column `recipe` of `tables/ipr_claims.csv`" in part
    assert re.search(r"both methods are measured on \d trained architectures?, 5", part)
    assert "**guided_gradcam on googlenet** (conv1, conv2): No layer|to weigh." in part


def test_unit_pictures_hold_the_maps_and_scores_of_their_units(randomized):
    study = _study((randomized.reports, randomized.results))
    units, shown = list(UNITS), ["conv2", "inception5b"]
    stack = study.unit_maps("googlenet", "lime")

    (row,) = parameters.unit_tiles(study, "googlenet", shown, {"lime": stack})

    _, trained, *others = row.tiles
    assert trained.framed
    assert np.array_equal(trained.pixels, stack[0])
    scores = read_table(randomized.results / "randomization" / "scores.parquet").query(
        "model == 'googlenet' and method == 'lime' and kind == 'same' and draw == 0 and "
        "metric == 'ssim' and convention == 'common' and order == 'independent' and "
        "image_id == 'val-00000'"
    )
    scores = scores.set_index("unit")["score"]
    for unit, tile in zip(shown, others, strict=True):
        assert tile.above == unit
        assert tile.below == f"{round(scores[unit], 2) + 0.0:.2f}"
        assert np.array_equal(tile.pixels, stack[1 + units.index(unit)])


def test_pictures_have_as_few_units_as_their_size_asks(bare, tmp_path):
    reports, results = _copied(bare, tmp_path)
    folder = results / "randomization" / "pictures" / "googlenet"
    folder.mkdir(parents=True)
    units = [f"block{n}" for n in range(12)]
    index = {"image_id": "val-00000", "order": "independent", "draw": 0}
    (folder.parent / "index.json").write_text(json.dumps(index | {"units": {"googlenet": units}}))
    noise = np.random.default_rng(0).normal(size=(13, 64, 64)).astype(np.float32)
    for name in ("gradient", "guided_backprop", "lime", "sliding_patch", "smoothgrad"):
        np.save(folder / f"{name}.npy", noise)
    gallery = Gallery(tmp_path / "figures")

    (picture,) = parameters.unit_pictures(_study((reports, results)), gallery)

    assert "4 of 12 units" in picture.caption
    assert gallery.paths == [picture.path]


def test_figures_of_randomized_models_stay_small(lesser, tmp_path):
    gallery = Gallery(tmp_path / "figures")
    study = _study(lesser)

    list(parameters.parameters(study, gallery))
    list(parameters.plane_picture(study, gallery))

    assert {"parameter-sensitivity", "sensitivity-plane"} <= {p.stem for p in gallery.paths}
    assert max(path.stat().st_size for path in gallery.paths) <= 64_000


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("study", "key", "absent"),
    [
        (LESSER, "**One draw of the weights.**", "Maps as"),
        (replace(LESSER, sweeps=()), "sensitivity to hyperparameters is not known", "plane.**"),
        (replace(LESSER, models=("net",), n_images=1), "inconclusive 5", "Maps as"),
    ],
    ids=["one-draw", "no-sweeps", "one-image"],
)
def test_lesser_randomizations_are_told_as_such(study, key, absent, tmp_path):
    report = _report(*write_study(tmp_path, study))

    assert key in report.text
    assert absent not in report.text
    assert "nan" not in report.text.lower().split()


@pytest.mark.usefixtures("undrawn")
def test_failures_alone_are_still_told(lesser, tmp_path):
    reports, results = _copied(lesser, tmp_path)
    for name in ("ipr", "ipr_units", "ipr_function", "plane"):
        path = reports / "tables" / f"{name}.csv"
        write_table(read_table(path).head(0), path)

    text = _report(reports, results).text

    assert "No map of a randomized model could be scored" in text
    assert "**guided_gradcam on googlenet**" in text
    assert "pairs of method and model" not in text
