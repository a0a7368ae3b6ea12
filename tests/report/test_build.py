"""The report holds the tables' numbers, needs nothing else, and is the same bytes every time."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from steadymap.analysis import readings
from steadymap.report import build, document, paper_figures
from steadymap.report import gallery as report_gallery
from steadymap.report.document import Picture
from steadymap.report.figures import maps, plane, sweeps, theme
from steadymap.report.figures import parameters as figures_parameters
from steadymap.report.sections import answer as sections_answer
from steadymap.report.sections import caveats as sections_caveats
from steadymap.report.sections import parameters
from steadymap.report.sections import sam as sections_sam
from steadymap.report.sections import sweeps as report
from steadymap.report.study import Study as StudyFiles
from steadymap.report.study import thin
from steadymap.statistics.intervals import interval
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from steadymap.tracking.randomizations import randomization_entries
from steadymap.tracking.sweeps import sweep_entries
from synthetic_study import PLAIN, SAM_SWEEPS, SWEEPS, Study, write_study

TINY = Study(n_images=4, sweeps=(SWEEPS[0],))
BARE = replace(TINY, maps=False, data=False)
PAPER = Study(n_images=4, knobless=PLAIN, accuracy=True, comparisons=True)
RANDOMIZED = replace(TINY, sweeps=SWEEPS, randomization=True, orders=("independent", "top_down"))
LESSER = replace(BARE, randomization=True)
WORDS = ("SP-F", "sliding_patch", "fill", ("mean", "black", "light gray"), "mean", "none")
SEEDS = ("SG-R", "smoothgrad", "seed", ("0", "1", "2"), "0", "independent")
PARAMS = {
    "study": "toy",
    "data": {"kind": "embedded", "pattern_amplitude": 0.04},
    "evaluation_set": {"rule": "all_correct"},
    "statistics": {"confidence": 0.95},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study with everything, and its report."""
    study = Study(n_images=8, sweeps=(SWEEPS[0], SWEEPS[2]))
    reports, results = write_study(tmp_path_factory.mktemp("whole"), study)
    files = build.build(reports, results, study="toy", profile=PARAMS)
    return reports, results, files


@pytest.fixture
def coarse(monkeypatch):
    """Figures of few dots, for tests that look at words."""
    monkeypatch.setattr(maps, "DPI", 40)
    monkeypatch.setattr(theme, "DPI", 40)


def _unrendered(figure, path, *, max_bytes=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(maps.thumbnail(np.zeros((2, 2, 3), np.uint8)))


def _markdown(files) -> str:
    """Words of both Markdown files."""
    return files.markdown.read_text() + "\n" + files.details.read_text()


def _built(folder, study, **options):
    reports, results = write_study(folder, study)
    files = build.build(reports, results, study="toy", **options)
    return files, " ".join(_markdown(files).replace("\n>", " ").split())


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A study with what the paper's part is made of, and its report."""
    patch = pytest.MonkeyPatch()
    # Figures are built and not rendered, which tests/test_paper.py does.
    patch.setattr(theme, "save", _unrendered)
    # What this fixture is not for, and what would take most of its time.
    patch.setattr(report, "_pictures", lambda *_: iter(()))
    for name in ("metric_agreement", "draws_comparison", "sensitivity_curves"):
        patch.setattr(sweeps, name, lambda *_, **__: maps.contact_sheet([], []))
    folder = tmp_path_factory.mktemp("everything")
    params = PARAMS | {"accuracy": {"alpha": 0.25}}
    reports, results = write_study(folder, replace(PAPER, sweeps=SAM_SWEEPS))
    files = build.build(reports, results, study="toy", profile=params)
    patch.undo()
    return reports, files, " ".join(_markdown(files).replace("\n>", " ").split())


def _headline(reports) -> pd.DataFrame:
    frame = readings.headline_draws(read_table(reports / "tables" / "sensitivity.csv"))
    return frame[(frame["metric"] == "ssim") & (frame["convention"] == "common")]


def test_building_twice_gives_the_same_bytes(whole, tmp_path):
    reports, results, files = whole
    copied = tmp_path / "reports"
    for path in (reports / "tables").iterdir():
        write_table(read_table(path), copied / "tables" / path.name)

    again = build.build(copied, results, study="toy", profile=PARAMS)

    assert again.html.read_bytes() == files.html.read_bytes()
    assert again.details.read_bytes() == files.details.read_bytes()
    assert again.markdown.read_bytes() == files.markdown.read_bytes()
    assert [path.name for path in again.figures] == [path.name for path in files.figures]
    for first, second in zip(files.figures, again.figures, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_html_needs_no_network_and_stays_small(whole):
    html = whole[2].html.read_text()

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
    assert whole[2].html.stat().st_size < 4_000_000
    assert not re.search(r"20\d\d-\d\d-\d\d", html)


def test_papers_are_spelled_out_before_their_abbreviations(everything, randomized):
    for files in (everything[1], randomized[1]):
        for path in (files.html, files.markdown, files.details):
            text = " ".join(path.read_text().split())
            text = text[text.find("<main") + 1 :]
            sam, ipr = (re.search(rf"\b{name}\b", text).start() for name in ("SAM", "IPR"))
            assert text[sam:].startswith("SAM: The Sensitivity of Attribution Methods to")
            assert text[:ipr].endswith("independent parameter randomization (")
            assert "N. Bansal" in text
            assert "H. Sriram" in text


def test_nothing_is_wider_than_a_phone_and_tables_fit_a_window_of_1300_px():
    page = document.html("Title", [document.Section("a", "", [document.Text(f"`{'4f' * 32}`")])])
    rules = dict(re.findall(r"^ *([^{}\n@]+?) \{([^{}]*)\}", page, re.M))

    # A digest in a text would make the page as wide as it is, and its sticky menu scroll away.
    assert "overflow-wrap: anywhere" in rules["code"]
    # Names may wrap where a sentence stands below them, so that the last column stays in sight.
    assert "white-space: normal" in rules[".told td:not(.number)"]
    wide = page[page.index("@media (min-width: 76rem)") :]
    menu = float(re.search(r"nav\.side \{[^}]*width: ([\d.]+)rem", wide)[1])
    beside = float(re.search(r"main \{[^}]*padding: 0 ([\d.]+)rem", wide)[1])
    scrollbar = 15
    # The table of all sweeps, ten columns, takes 880 px and its padding.
    padding = float(re.search(r"padding: [.\d]+rem ([.\d]+)rem", rules["th, td"])[1])
    room = 1300 - scrollbar - 16 * (menu + 2 * beside)
    assert room >= 880 + 10 * 2 * 16 * padding


def test_every_navigation_entry_leads_to_a_section(whole):
    html = whole[2].html.read_text()

    targets = re.findall(r'href="#([^"]+)"', html)

    assert {"caveats", "answer", "headline", "sweep-SG-N", "sweep-SP-L"} <= set(targets)
    shown = [target for target in targets if target.startswith("viewer=")]
    assert "viewer=googlenet/SP-L/val-00003" in shown
    assert all(
        html.count(f'<section id="{target}">') == 1 for target in targets if target not in shown
    )


def test_every_run_s_tag_leads_to_a_section_of_its_report(randomized):
    reports, files, _ = randomized
    anchors = set(re.findall(r'<section id="([^"]+)">', files.html.read_text()))
    tables = {path.stem: read_table(path) for path in (reports / "tables").glob("*.csv")}
    swept = sweep_entries(tables, study="toy")
    settings = {method: {} for method in tables["ipr"]["method"]}
    entries = [*swept, *randomization_entries(tables, study="toy", settings=settings)]

    for entry in entries:
        path, anchor = entry.tags["report"].split("#")
        assert path == "reports/toy/report.html"
        assert anchor in anchors
    tags = {entry.name: entry.tags["report"] for entry in swept}
    assert tags["sliding_patch SP-L googlenet-r"] == "reports/toy/report.html#sweep-SP-L"
    assert tags["gradient default googlenet"] == "reports/toy/report.html#headline"


def test_sections_come_in_the_order_of_the_first_screen(whole):
    anchors = re.findall(r'<section id="([^"]+)">', whole[2].html.read_text())

    assert anchors == [
        *("top", "caveats", "answer", "maps"),
        *("paper", "table-s1", "global-std", "claims", "comparisons", "localization"),
        *("paper-figures", "parameters", "headline", "hyperparameters", "sweep-SG-N", "sweep-SP-L"),
        *("models", "evaluation-set", "data", "provenance"),
    ]


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


def _folds(html) -> _Folds:
    parser = _Folds()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_all_but_the_answer_is_folded_under_what_it_found(randomized):
    reports, files, _ = randomized

    folds = _folds(files.html.read_text())

    answer = {"top", "caveats", "answer", "plane", "budget", "maps"}
    assert set(folds.around) - set(folds.summaries) <= answer
    assert not answer & set(folds.summaries)
    assert folds.around["sweep-SP-L"] == ["headline"]
    assert folds.around["units"] == ["parameters"]
    worst = _headline(reports).query("sweep == 'SP-L'").sort_values("mean").iloc[0]
    told = " ".join(folds.summaries["sweep-SP-L"].split())
    assert re.search(
        rf"1 − SSIM {1 - worst['mean']:.2f}, 1 − Spearman [\d.]+ on {worst['model']}", told
    )
    assert "Sensitive to the model's parameters, of" in folds.summaries["parameters"]
    claims = read_table(reports / "tables" / "ipr_claims.csv")
    n = int((claims["direction"] == "fails").sum())
    assert f"{len(claims)} claims:" in folds.summaries["ipr-claims"]
    assert f"{n} fails" in folds.summaries["ipr-claims"]
    for anchor in folds.summaries:
        assert len(" ".join(folds.summaries[anchor].split())) <= 160, anchor


def test_short_document_is_not_folded(randomized):
    assert "<details" not in _markdown(randomized[1])


def test_a_page_without_folds_runs_no_script_and_one_with_folds_shows_all_without_it():
    plain = document.Section("a", "A", [document.Text("words")])
    folded = replace(plain, fold="It holds.")

    assert "script-src 'none'" in document.html("T", [plain])
    page = document.html("T", [folded, replace(plain, anchor="b", level=3)])
    assert _folds(page).around["b"] == ["a"]
    shown = "::details-content { content-visibility: visible; block-size: auto; }"
    assert f"<noscript><style>details.part{shown}" in page
    printed = page[page.index("@media print") :]
    assert f"details{shown}" in printed[: printed.index("</style>")]


def test_both_formats_hold_every_headline_number(whole):
    reports, _, files = whole
    texts = [_markdown(files), files.html.read_text()]

    for row in _headline(reports).itertuples():
        numbers = f"{row.mean:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
        spread = f"{row.std_rms:.3f} / {row.std_mean:.3f}"
        assert all(numbers in text and spread in text for text in texts)


def test_answer_names_the_most_dangerous_hyperparameter_and_every_sweep_worst_first(whole):
    reports, _, files = whole
    rows = _headline(reports)
    frame = readings.headline_draws(read_table(reports / "tables" / "sensitivity.csv"))
    ranks = frame[frame["metric"] == "spearman"].set_index(["sweep", "model"])["mean"]
    worst = rows.loc[rows.groupby("sweep")["mean"].idxmin()].sort_values("mean")
    text = files.markdown.read_text()

    first = worst.iloc[0]
    assert (
        f"**Most dangerous: `{first['hyperparameter']}` of {first['method']}** (sweep "
        f"{first['sweep']})"
    ) in " ".join(text.split())
    part = text[text.index("## Which hyperparameter is dangerous") :]
    lines = [line for line in part.splitlines() if re.match(r"\| S[GP]-", line)]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(worst["sweep"])
    for line, row in zip(lines, worst.itertuples(), strict=True):
        moved = 1 - row.mean
        assert f"{moved:.3f} [{1 - row.ci_high:.3f}, {1 - row.ci_low:.3f}]" in line
        by_rank = 1 - ranks[row.sweep, row.model]
        words = [name for least, name in readings.DEGREES if max(moved, by_rank) >= least][-1]
        assert f"| {words} " in line
        assert f" {by_rank:.3f} |" in line
        assert f" {row.model} |" in line


def test_short_document_has_the_answer_and_the_counts_and_is_short(randomized):
    files = randomized[1]
    text = files.markdown.read_text()

    assert len(text.splitlines()) < 250
    for words in (
        *("Before you read a number", "Most dangerous", "Sensitivity plane", "SAM paper"),
        *("Table S1", "Sensitive to the model's parameters, of 10 pairs", "`details.md`"),
    ):
        assert words in text
    assert "## Sweep " not in text
    assert "## Sweep SP-L" in files.details.read_text()


def test_caveats_open_the_report_with_the_detectable_difference(whole):
    reports, _, files = whole
    rows = _headline(reports)
    half = (rows["ci_high"] - rows["ci_low"]) / 2
    text = " ".join(_markdown(files).replace("\n>", " ").split())

    for words in (
        "One training per model",
        "not between robust and regular models as such",
        "that all models classify correctly",
        "non-robust feature was planted",
        "googlenet-r was trained starting from googlenet",
        "no evidence for or against the paper",
        "scaled to 32 px",
        "one outlier pixel",
        "which of the maps is faithful to the model is not measured",
        f"±{half.median():.3f} at the median and ±{half.max():.3f} at most",
        "of a difference between two models, paired by image",
        "Of the sweeps' maps, 0 of ",
    ):
        assert words in text
    assert files.html.read_text().count('<div class="box">') == 1


def _hard_and_easy(folder):
    """A study whose images differ far more than its two models do on each of them."""
    reports, results = write_study(folder, replace(BARE, sweeps=SWEEPS[:2]))
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
    return StudyFiles(reports, results, "toy", {})


def test_differences_between_models_are_paired_by_image(tmp_path):
    study = _hard_and_easy(tmp_path)

    mean, low, high = study.difference(("SG-N", "googlenet"), ("SG-N", "googlenet-r")).values()
    own = readings.headline_draws(study.table("images")).query(
        "sweep == 'SG-N' and model == 'googlenet' and metric == 'ssim' and convention == 'common'"
    )
    unpaired = interval(own["mean"].to_numpy(), own["photo"].to_list())

    assert mean == pytest.approx(0.0215)
    assert 0.01 < low < mean < high < 0.03
    assert unpaired[1] - unpaired[0] > 10 * (high - low)
    assert np.isnan([*study.difference(("SG-N", "googlenet"), ("SG-N", "vgg16")).values()]).all()


def test_twins_and_the_first_two_sweeps_are_told_apart_by_paired_differences(tmp_path):
    study = _hard_and_easy(tmp_path)
    known = study.headline

    (told,) = sections_answer._answer_twins(study, known)
    sentences = " ".join(sections_answer._answer_sentences(study, known, ["SG-N", "SG-sigma"]))
    turned = " ".join(sections_answer._answer_sentences(study, known, ["SG-sigma", "SG-N"]))

    assert told == (
        "Of 2 sweeps, maps of googlenet-r moved less than those of googlenet in 1 and more in 1, "
        "by SSIM and by rank correlation; the 95 % intervals of both differences, paired by image, "
        "exclude 0 in 1 and 0 of these."
    )
    assert "not settled" not in sentences
    assert "their order is not settled" in turned


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


def _noisy(folder, moved):
    """A study of `NOISY` whose sweeps move the maps of googlenet that far; the other's less."""
    reports, results = write_study(folder, replace(BARE, sweeps=NOISY))
    path = reports / "tables" / "tasks.csv"
    tasks = read_table(path)
    for index, row in tasks[tasks["hyperparameter"] != ""].iterrows():
        held = HELD.get(row["sweep"], {"fill": "black"} if row["method"] == "lime" else {})
        given = json.loads(row["hyperparameters"]) | held
        tasks.loc[index, "hyperparameters"] = json.dumps(given)
    write_table(tasks, path)
    path = reports / "tables" / "sensitivity.csv"
    rows = read_table(path)
    means = 1 - rows["sweep"].map(moved) + 0.01 * rows["model"].eq("googlenet-r")
    write_table(rows.assign(mean=means), path)
    study = StudyFiles(reports, results, "toy", {})
    known = study.headline
    lead = " ".join(
        sections_answer._answer_sentences(study, known, list(dict.fromkeys(known["sweep"])))
    )
    return study, known, lead


def test_another_seed_alone_stands_beside_the_most_dangerous_hyperparameter(tmp_path):
    moved = {"A": 0.9, "A-seed": 0.46, "A-seed-150": 0.8, "A-seed-far": 0.85}
    study, _, lead = _noisy(tmp_path, moved | {"B": 0.3, "B-seed": 0.2})

    told = (
        "Another seed alone moves the maps of lime on googlenet by 0.800 at `n_superpixels` 150 "
        "(A-seed-150) and 0.460 at `n_superpixels` 50 (A-seed): much of the 0.900 of "
        "`n_superpixels` (A) may be the method's own noise."
    )
    assert f"for googlenet-r. {told} **Another map**" in lead
    # Of seeds at another fill nothing follows for these maps.
    assert "A-seed-far" not in lead
    # Other methods' hyperparameters that move much are told of below.
    assert "smoothgrad on" not in lead
    (block,) = [
        block
        for block in sections_answer.answer(study, report_gallery.Gallery(tmp_path))
        if isinstance(block, document.Items)
    ]
    assert block.items[0].startswith(
        "Another seed alone moves the maps of smoothgrad on googlenet by 0.200 at `sigma` 0.3"
    )
    assert not any("lime on" in item for item in block.items)


def test_a_seed_that_moves_maps_less_than_half_as_far_is_no_caveat(tmp_path):
    moved = {"A": 0.9, "A-seed": 0.44, "A-seed-150": 0.2, "A-seed-far": 0.95}
    study, known, lead = _noisy(tmp_path, moved | {"B": 0.1, "B-seed": 0.09})

    # The seed is the most dangerous hyperparameter itself.
    assert "Most dangerous: `seed` of lime" in lead
    assert "Another seed alone" not in lead
    assert sections_answer._seed_noise(study, known, "lime") == ""
    # Hyperparameters that move maps a little need no excuse.
    assert sections_answer._seed_noise(study, known, "smoothgrad") == ""
    assert sections_answer._seed_noise(study, known, "gradient") == ""


def test_what_small_n_hides_is_said_of_means_and_of_paired_differences(tmp_path):
    study = _hard_and_easy(tmp_path)
    pairs = [((sweep, "googlenet"), (sweep, "googlenet-r")) for sweep in ("SG-N", "SG-sigma")]
    ends = [[*study.difference(*pair).values()][1:] for pair in pairs]
    paired = np.median([(high - low) / 2 for low, high in ends])
    rows = study.headline
    mean = ((rows["ci_high"] - rows["ci_low"]) / 2).median()

    caveats = sections_caveats.caveats(study)

    assert caveats.short[-1] == (
        f"**4 images**: a mean is known to about ±{mean:.3f}, a difference between models, paired "
        f"by image, to about ±{paired:.3f}; many verdicts are inconclusive by design."
    )
    assert f"paired by image, they reach ±{paired:.3f} at the median" in caveats.items[-1]
    # Whatever the kind of data, which nothing tells here.
    (twins,) = [item for item in caveats.items if "Twins of one start" in item]
    assert "googlenet-r was trained starting from googlenet, not from random weights" in twins
    assert "**Twins of one start**: googlenet-r was trained starting from googlenet." in (
        caveats.short
    )
    assert "smaller than the reach of its own interval is inconclusive" in caveats.items[-1]


def test_markdown_fits_a_terminal_and_its_pictures_exist(whole):
    reports, _, files = whole
    text = _markdown(files)

    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)

    assert sorted(links) == sorted(f"figures/{path.name}" for path in files.figures)
    assert all((reports / link).is_file() for link in links)
    words = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert max(map(len, words)) <= 100
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 130


def test_figures_stay_small_and_carry_their_sweep_s_name(whole):
    _, _, files = whole
    names = {path.name for path in files.figures}

    assert {
        "dangerous-hyperparameters.png",
        "SG-N-draws.png",
        "SP-L-measures.png",
        "data.png",
    } <= names
    assert "SP-L-draws.png" not in names
    assert {
        f"SG-N-pictures-{name}.png" for name in ("least-stable", "random", "most-stable")
    } <= names
    assert max(path.stat().st_size for path in files.figures) < 300_000


def test_runs_are_named_as_mlflow_names_them(whole):
    text = " ".join(_markdown(whole[2]).split())

    assert "experiment `steadymap/toy/smoothgrad`" in text
    assert "`sliding_patch SP-L googlenet-r`" in text
    assert "`make ui`" in text


def test_pictures_are_the_extremes_and_a_seeded_image_between(whole):
    reports, results, _ = whole
    rows = readings.headline_draws(read_table(reports / "tables" / "images.csv"))
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == "common")]
    means = rows[rows["sweep"] == "SP-L"].groupby("image_id")["mean"].mean()
    read = StudyFiles(reports, results, "toy", {})

    picks = report._picks(read, "SP-L")

    assert [name for name, _, _ in picks] == ["least-stable", "random", "most-stable"]
    assert picks[0][1] == means.idxmin()
    assert picks[2][1] == means.idxmax()
    assert picks[1][1] not in (picks[0][1], picks[2][1])
    assert ["an extreme" in rule for _, _, rule in picks] == [True, False, True]
    assert picks == report._picks(read, "SP-L")


def test_picture_rows_carry_the_scores_of_their_image(whole):
    reports, results, _ = whole
    read = StudyFiles(reports, results, "toy", {})
    image_id = "val-00003"
    scores = read_table(results / "scores.parquet")
    own = scores.query(
        "sweep == 'SG-N' and metric == 'ssim' and convention == 'common' and draws == 'nested' "
        f"and model == 'googlenet-r' and image_id == '{image_id}'"
    ).set_index("value")["score"]

    rows, left_out = report._picture_rows(
        read, "SG-N", image_id, Maps(results / "maps" / "smoothgrad")
    )

    cells = {cell.label: cell for cell in rows[1].cells}
    assert left_out == 0
    assert [cell.label for cell in rows[1].cells] == ["5", "10", "20", "50"]
    assert cells["5"].is_reference
    assert cells["5"].score is None
    assert cells["20"].score == own["20"]
    assert np.array_equal(rows[0].image, read.pixels[image_id])
    assert rows[1].image is None


def test_long_sweeps_show_both_ends_and_the_reference():
    values = [str(value) for value in range(30)]

    shown = thin(values, "7")

    assert len(shown) == 9
    assert {"0", "7", "29"} <= set(shown)
    assert thin(values[:9], "7") == values[:9]


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("study", "words"),
    [
        (replace(TINY, boxes=False), "no boxes are known"),
        (replace(BARE, photos=False), "No two images are known to share a photograph"),
        (replace(BARE, models=("googlenet", "resnet50")), "There is no robust model"),
        (replace(BARE, models=("googlenet",)), "this one network, googlenet"),
        (replace(BARE, n_images=1), "With 1 image there are no intervals"),
        (replace(TINY, sweeps=(WORDS,)), "`fill` = mean, black, light gray; reference mean"),
        (replace(TINY, sweeps=(SEEDS,)), "`seed` = 0, 1, 2; reference 0"),
        (replace(TINY, sweeps=()), "No sweep with a hyperparameter was scored"),
        (replace(BARE, sweeps=(), knobless=()), "No sweep with a hyperparameter was scored"),
        (replace(TINY, degenerate=True), "every compared pair of maps was degenerate"),
        (replace(TINY, maps=False), "No maps of smoothgrad at hand, hence no pictures"),
        (BARE, "The data set is not here: run `make repro`"),
    ],
    ids=[
        *("no-boxes", "no-photos", "no-robust", "one-model", "one-image", "words", "seeds"),
        *("no-sweeps", "no-methods", "degenerate", "no-maps", "no-data"),
    ],
)
def test_what_is_absent_is_said_in_words(study, words, tmp_path):
    files, text = _built(tmp_path, study)

    assert words in text
    assert "nan" not in text.lower().split()
    assert files.html.is_file()


@pytest.mark.usefixtures("coarse")
def test_caveats_follow_the_params(tmp_path):
    params = {
        "data": {"kind": "embedded", "image_size": 64, "pattern_amplitude": 0},
        "evaluation_set": {"rule": "any"},
        "statistics": {"confidence": 0.9},
    }

    _, text = _built(tmp_path, BARE, profile=params)

    assert "without the planted non-robust feature" in text
    assert "scaled to 64 px" in text
    assert "rule `any`: it may hold images" in text
    assert "SSIM [90 %]" in text
    assert "classify correctly are used" not in text


@pytest.mark.usefixtures("coarse")
def test_names_are_escaped(tmp_path):
    files, _ = _built(tmp_path, replace(BARE, classes=("<b>a&b", "c|d")))

    html = files.html.read_text()
    assert "<b>a&b" not in html
    assert "&lt;b&gt;a&amp;b" in html
    assert "c\\|d" in _markdown(files)


@pytest.mark.usefixtures("coarse")
def test_figures_of_an_earlier_report_are_deleted(tmp_path):
    reports, results = write_study(tmp_path, replace(TINY, sweeps=(), maps=False))
    stale = reports / "figures" / "SG-old-measures.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")

    files = build.build(reports, results, study="toy")

    assert not stale.exists()
    assert sorted(stale.parent.iterdir()) == sorted(files.figures)


@pytest.mark.usefixtures("coarse")
def test_without_results_the_page_alone_is_written_and_has_the_committed_figures(tmp_path):
    reports, results = write_study(tmp_path, TINY)
    build.build(reports, results, study="toy")
    whole = (reports / "report.html").read_text()
    (reports / "report.html").unlink()
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    assert any("pictures" in path.name for path in before)
    shutil.rmtree(results)

    files = build.build(reports, results, study="toy")

    assert files.kept
    assert {path: path.read_bytes() for path in before} == before
    page = files.html.read_text()
    for told in ("The maps are not here: run", "The data set is not here", "viewer of all maps is"):
        assert told in page
    assert "were not trained here" not in page
    for name in ("data", "training-curves", "SG-N-pictures-least-stable"):
        if (reports / "figures" / f"{name}.png") in before:
            source = Picture(reports / "figures" / f"{name}.png", "", "").source
            assert (source in page) == (source in whole), name


@pytest.mark.usefixtures("coarse")
def test_half_of_the_results_deletes_no_figure(tmp_path):
    reports, results = write_study(tmp_path, TINY)
    build.build(reports, results, study="toy")
    before = {path: path.read_bytes() for path in reports.rglob("*.png")}
    shutil.rmtree(results / "maps")

    build.build(reports, results, study="toy")

    assert {path: path.read_bytes() for path in reports.rglob("*.png")} == before


def test_missing_table_and_missing_column_are_named_with_the_remedy(tmp_path):
    reports, results = write_study(tmp_path, replace(BARE, sweeps=()))
    tasks = reports / "tables" / "tasks.csv"
    write_table(read_table(tasks).drop(columns="draws"), tasks)
    with pytest.raises(ValueError, match=r"tasks\.csv: lacks draws; write it again by `dvc repro"):
        build.build(reports, results, study="toy")

    tasks.unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks\.csv: no such table; run the stage"):
        build.build(reports, results, study="toy")


def test_table_s1_stands_beside_the_paper_s_values(everything):
    reports, files, text = everything
    table = read_table(reports / "tables" / "table_s1.csv")

    for row in table.itertuples():
        ours = f"{row.mean:.3f} ± {row.std_rms:.3f} / {row.std_mean:.3f}"
        assert ours in text
        assert f"{row.mean:.3f} [{row.mean_low:.3f}, {row.mean_high:.3f}]" in files.html.read_text()
    assert text.count("paper: GoogLeNet-R") == 5
    assert text.count("0.642 ± 0.320") == len(table)
    assert "| row | model | SSIM ↑ | localization ↓ | insertion ↑ | deletion ↓ |" in text


def test_claims_are_counted_first_and_those_not_measurable_listed(everything):
    reports, files, text = everything
    html = files.html.read_text()

    order = [text.index(words) for words in ("- **holds**: 2", "- **fails**: 1", "**Holds: 2**")]
    assert order == sorted(order)
    assert "- **not measurable here**: 1" in text
    told = (
        "**Holds** means direction only: our interval lies on the claimed side, however far. Of 2 "
        "claims that hold, the paper's size lies inside our interval for 2 and outside for 0."
    )
    # Beside the counts in the short document, and above the table.
    assert " ".join(files.markdown.read_text().split()).count(told) == 1
    details = " ".join(files.details.read_text().split())
    assert details.index(told) < details.index("**Holds: 2**")
    assert "**5**: Robust models are 6 times steadier. The study has no ResNet pair" in text
    for row in read_table(reports / "tables" / "claims.csv").itertuples():
        assert f"| {row.claim} | {row.name} " in text.replace("  ", " ")
        if row.direction != "not measurable here":
            assert f"{float(row.value):.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]" in text
    assert "<summary>Not measurable here: 1</summary>" in html
    assert "<summary>Holds" not in html


def test_sizes_are_counted_of_the_claims_that_hold_alone():
    sizes = ["inside", "outside", "outside", "not comparable", "inside", ""]
    verdicts = ["holds"] * 4 + ["fails", "not measurable here"]
    table = pd.DataFrame({"direction": verdicts, "size": sizes})

    told = "Of 4 claims that hold, the paper's size lies inside our interval for 1 and outside for "
    assert sections_sam._direction(table).endswith(f"{told}2; for 1 the sizes are not comparable.")
    assert "Of 1 claim that holds, " in sections_sam._direction(table[:1])
    assert sections_sam._direction(table[4:]).endswith("on the claimed side, however far.")


def test_what_most_claims_share_is_said_once():
    reasons = pd.Series([*(f"note {n}; t-interval" for n in range(6)), "t-interval", "other", ""])

    kept, shared, n = sections_sam._without_refrain(reasons)

    assert list(kept) == [*(f"note {n}" for n in range(6)), "", "other", ""]
    assert (shared, n) == ("t-interval", 7)
    assert list(sections_sam._without_refrain(reasons[6:])[0]) == ["t-interval", "other", ""]


def test_comparisons_and_trivial_maps_hold_the_tables_numbers(everything):
    reports, _, text = everything
    comparisons = read_table(reports / "tables" / "comparisons.csv")
    trivial = read_table(reports / "tables" / "localization_baselines.csv")
    objects = read_table(reports / "tables" / "object_size.csv")

    shown = comparisons[comparisons["convention"].isin(["common", "max_abs"])]
    for row in shown[shown["comparison"].str.endswith(("noise", "distance"))].itertuples():
        wanted = "l1" if row.comparison == "distance" else "ssim"
        if row.metric == wanted:
            assert f"{row.mean:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]" in text
    rises = shown[shown["comparison"].eq("denoising-gradient") & shown["metric"].eq("ssim")]
    for pairing in ("same", "mismatched"):
        means = rises[rises["pairing"] == pairing].set_index("value")["mean"]
        assert f"| {means['50']:.3f} | {means['']:.3f} | {means['50'] - means['0']:+.3f} |" in text
    for row in trivial.itertuples():
        assert f"{row.mean:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]" in text
    assert "| error at 0.5 ↓ |" in text
    assert "| 0.777 | 4 |" in text
    one = objects[objects["model"].eq("googlenet") & objects["patch_size"].eq(9)].iloc[0]
    assert f"{one['area_above_half'] / one['object_area']:.2f}×, {one['peak']:.2f}" in text


def test_accuracy_of_a_sweep_is_told_with_its_direction_and_both_stds(everything):
    reports, _, text = everything
    rows = readings.headline_draws(read_table(reports / "tables" / "sensitivity.csv"))
    rows = rows[(rows["sweep"] == "SP-L") & (rows["convention"] == "auc_over_max")]

    assert len(rows) == 4
    for row in rows.itertuples():
        better = "higher" if row.metric == "insertion" else "lower"
        line = text[text.index("## Sweep SP-L") :]
        line = line[line.index(f"| {row.metric} ({better} is better)") :]
        line = line[line.index(f"| {row.model} ") :]
        assert line.index(f"{row.mean:.3f} [{row.ci_low:.3f}") < 60
        assert line.index(f"{row.std_rms:.3f} / {row.std_mean:.3f}") < 90
    assert "localization error (lower is better)" in text
    assert "IoU (higher is better)" in text


def test_accuracy_does_not_enter_similarity(everything):
    reports, _, text = everything
    sensitivity = read_table(reports / "tables" / "sensitivity.csv")

    assert {"insertion", "localization_error"} <= set(sensitivity["metric"])
    drawn = sweeps._similarities(readings.headline_draws(sensitivity))
    labels = [label for label, _ in drawn]
    assert labels == list(readings.MEASURES.values())
    assert "name SG-N as the most moving sweep too" in text or "instead" in text


def test_figures_by_name_are_all_there_in_both_formats(everything):
    _, files, text = everything
    names = {path.stem for path in files.figures}

    wanted = [*(f"fig{n}" for n in range(1, 8)), *(f"s{n}" for n in range(1, 18))]
    assert set(wanted) <= names
    assert "24 of 24 are drawn" in text
    assert all(f"![Fig. {name.removeprefix('fig').upper()}: " in text for name in wanted)


def test_markdown_of_the_paper_s_part_fits_a_terminal(everything):
    lines = _markdown(everything[1]).splitlines()

    assert max(len(line) for line in lines if not line.startswith(("|", "!["))) <= 100
    assert max(len(line) for line in lines if line.startswith("|")) <= 140
    assert everything[1].html.stat().st_size < 15_000_000


@pytest.fixture(scope="module")
def randomized(tmp_path_factory):
    """A study whose models were randomized, and its report."""
    patch = pytest.MonkeyPatch()
    # What this fixture is not for, and what would take most of its time.
    patch.setattr(report, "_pictures", lambda *_: iter(()))
    patch.setattr(paper_figures, "draw", lambda _: iter(()))
    for name in ("metric_agreement", "draws_comparison", "sensitivity_curves", "measures_heatmap"):
        patch.setattr(sweeps, name, lambda *_, **__: maps.contact_sheet([], []))
    folder = tmp_path_factory.mktemp("randomized")
    reports, results = write_study(folder, RANDOMIZED)
    files = build.build(reports, results, study="toy", profile=PARAMS)
    patch.undo()
    return reports, files, " ".join(_markdown(files).replace("\n>", " ").split())


def _ipr_rows(reports, name, order="independent"):
    rows = read_table(reports / "tables" / f"{name}.csv")
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == "common")]
    return rows[rows["order"] == order] if "order" in rows else rows


def test_without_randomized_models_one_sentence_says_so(whole):
    files = whole[2]
    html, text = files.html.read_text(), " ".join(_markdown(files).split())

    section = html[html.index('<section id="parameters">') :]
    section = section[: section.index("</section>")]
    assert section.count("<p") == 1
    assert "<table" not in section
    assert "Not measured: no model of this study was randomized" in text
    assert 'href="#parameters"' not in html
    assert "ensitivity plane" not in text
    assert not any(p.stem.startswith(("unit-", "sensitivity-plane")) for p in files.figures)


def test_parameter_section_stands_behind_the_paper_s_and_before_the_sweeps(randomized):
    anchors = re.findall(r'<section id="([^"]+)">', randomized[1].html.read_text())

    own = ["parameters", "parameter-measures", "units", "plane-table"]
    own += ["architectures", "ipr-claims", "ipr-failures"]
    first = anchors.index("parameters")
    assert anchors[first : first + len(own)] == own
    assert anchors[first - 1] == "paper-figures"
    assert anchors[first + len(own)] == "headline"
    assert anchors.index("plane") == anchors.index("answer") + 1


def test_parameter_table_holds_the_table_s_numbers_in_both_formats(randomized):
    reports, files, text = randomized
    html = files.html.read_text()

    for row in _ipr_rows(reports, "ipr").itertuples():
        s = f"{row.S_same:.3f} [{row.same_low:.3f}, {row.same_high:.3f}]"
        assert s in text
        assert s in html
        line = re.search(rf"\| {row.model} +\| {row.method} .*?{re.escape(s)}[^\n]*", text)[0]
        if row.method in ("smoothgrad", "lime"):
            assert f"| {row.S_fresh:.3f} | {row.floor:.3f} |" in line
            assert f"{row.excess:.3f} [{row.excess_low:.3f}, {row.excess_high:.3f}]" in line
        else:
            assert "| = S | 0 | = S |" in " ".join(line[:180].split())
        assert f"| {row.S_rel:.2f} |" in line
    verdicts = _ipr_rows(reports, "ipr")["passes"].value_counts()
    counted = ", ".join(f"{n} {verdicts.get(n, 0)}" for n in ("yes", "no", "inconclusive"))
    assert f"of 10 pairs of method and model: {counted}" in text


@pytest.mark.usefixtures("coarse")
def test_blank_maps_stand_beside_the_s_that_they_make(tmp_path, monkeypatch):
    drawn = {}
    for module, name in ((figures_parameters, "parameter_bars"), (plane, "sensitivity_plane")):
        own = getattr(module, name)

        def draw(table, *, own=own, name=name, **options):
            drawn[name] = table
            return own(table, **options)

        monkeypatch.setattr(module, name, draw)
    study = replace(LESSER, sweeps=SWEEPS[:1], orders=("independent", "top_down"))
    reports, results = write_study(tmp_path, study)
    path = reports / "tables" / "ipr.csv"
    table = read_table(path)
    one = table["method"].eq("gradient") & table["model"].eq("googlenet")
    table.loc[one, "n_degenerate"] = 31
    table.loc[table["method"].eq("lime"), "n_degenerate"] = 20
    write_table(table, path)

    files = build.build(reports, results, study="toy")

    squeezed = re.sub(r" *\| *", "|", " ".join(_markdown(files).split())).replace("> ", "")
    assert "of 10 pairs of method and model: yes 10 (1 of them by mostly blank maps)" in squeezed
    assert "|31/40|yes (blank)|" in squeezed
    assert squeezed.count("|20/40|yes|") == 2
    assert files.html.read_text().count("yes (blank)") == 2, "in the folded orders too"
    assert "**Blank maps.** gradient on googlenet: 31 of 40 maps are blank" in squeezed
    assert "**Crossed**" in squeezed
    assert "**Hollow**" in squeezed
    for name, rows in drawn.items():
        flagged = rows[rows["blank"]]
        assert set(flagged["method"]) == {"gradient"}, name
        assert set(flagged["model"]) == {"googlenet"}, name


def test_parameter_table_has_the_most_sensitive_method_first_in_each_model(randomized):
    reports, _, text = randomized
    rows = _ipr_rows(reports, "ipr")
    part = text[text.index("## Sensitivity to the model's parameters") :]
    part = part[: part.index("### By other")]

    for model in ("googlenet", "googlenet-r"):
        own = rows[rows["model"] == model].sort_values("S_same", ascending=False)
        assert re.findall(rf"\| {model} \| (\w+) ", " ".join(part.split())) == list(own["method"])


def test_conventions_stand_side_by_side(randomized):
    reports, _, text = randomized
    table = read_table(reports / "tables" / "ipr.csv")
    table = table[table["order"] == "independent"]

    own = table[(table["model"] == "googlenet") & (table["method"] == "lime")]
    found = own.set_index(["metric", "convention"])["S_same"]
    keys = [("ssim", name) for name in ("common", "sam", "wang", "mass_weighted")]
    keys += [("spearman", "signed"), ("hog_pearson", "cells4"), ("pearson", "signed")]
    numbers = " | ".join(f"{found[key]:.3f}" for key in keys)
    headings = "SSIM (common) | SSIM (sam) | SSIM (wang) | SSIM (mass) | Spearman"
    assert f"{headings} | HOG-Pearson | Pearson" in text
    assert numbers in re.sub(r" +", " ", text)


def test_caveats_of_s_follow_from_the_tables(randomized):
    text = randomized[2]

    for words in (
        "Moving is a reaction, not faithfulness",
        "The mean passes, not each image",
        "not maps",
        "Units are inferred",
        "lost over half of the predictions for 3 of 5 units of googlenet",
        "4 images, 5 units, 2 draws of the weights",
        "Function saturates",
    ):
        assert words in text
    assert "One draw of the weights" not in text


def test_plane_follows_the_answer_and_its_table_has_its_numbers(randomized):
    reports, files, text = randomized
    html = files.html.read_text()
    answer = html[html.index('<section id="plane">') : html.index('<section id="maps">')]
    rows = _ipr_rows(reports, "plane")

    assert answer.count("<figure>") == 1
    assert "depends on the values swept" in text
    assert "SG-N `n_samples` 5 to 50 (4 values); SG-sigma `sigma` 0.1, 0.2, 0.3" in text
    squeezed = re.sub(r" +", " ", text)
    for row in rows[rows["sweep"].fillna("") != ""].itertuples():
        place = "not ranked"
        if row.ranked:
            place = "–" if np.isnan(row.rank) else f"{row.rank:.0f}"
        assert (
            f"| {row.model} | {row.method} | {row.sweep} | {row.x:.3f} | {row.y:.3f} | "
            f"{row.difference:.3f} [{row.difference_low:.3f}, {row.difference_high:.3f}] | "
            f"{100 * row.share_below:.0f} % |"
        ) in squeezed
        assert f"| {place} |" in squeezed
    assert "**SP-S**: the reference has patch_size 15, the IPR test patch_size 9." in text
    assert "Without a sweep: gradient, guided_backprop and lime" in text


def test_units_are_told_by_curves_maps_and_a_folded_table(randomized):
    reports, files, text = randomized
    html = files.html.read_text()
    names = {path.stem for path in files.figures}

    assert {"unit-curves", "unit-curves-top_down", "unit-function"} <= names
    assert {"unit-pictures-googlenet", "unit-pictures-googlenet-r"} <= names
    assert "**Maps as googlenet loses one unit**" in text
    assert "5 of 5 units, 1 image, 1 draw of the weights" in text
    folded = html[html.index("<summary>S of each unit") :]
    folded = folded[: folded.index("</details>")]
    for row in _ipr_rows(reports, "ipr_units").itertuples():
        assert f">{row.S_same:.3f}</td>" in folded
        assert f">{-row.target_change:.2f}</td>" in folded
    assert "S of each unit, beside what losing it did to the model: `tables/ipr_units.csv`" in text
    for row in _ipr_rows(reports, "ipr_function").itertuples():
        assert f"{row.rho_target_drop:+.2f} (p " in text


def test_other_orders_are_folded_away(randomized):
    reports, files, _ = randomized
    html = files.html.read_text()
    folded = html[html.index("<summary>Other orders") :]
    folded = folded[: folded.index("</details>")]

    rows = _ipr_rows(reports, "ipr", "top_down")
    assert len(rows) == 10
    for row in rows.itertuples():
        assert f"{row.S_same:.3f} [{row.same_low:.3f}, {row.same_high:.3f}]" in folded


def test_ipr_claims_correlations_and_failures_are_told_with_their_reasons(randomized):
    reports, _, text = randomized
    claims = read_table(reports / "tables" / "ipr_claims.csv")

    part = text[text.index("### Claims on randomized models") :]
    for verdict, n in claims["direction"].value_counts().items():
        assert f"**{verdict}**: {n}" in part
    assert all(f"| {claim} |" in re.sub(r" +", " ", part) for claim in claims["claim"])
    assert "column `recipe` of `tables/ipr_claims.csv`" in part
    assert re.search(
        r"Not measurable here: both methods are measured on \d trained architectures?, 5", text
    )
    assert "**guided_gradcam on googlenet** (conv1, conv2): No layer | to weigh." in text


def test_report_of_randomized_models_is_small_and_needs_nothing(randomized):
    _, files, _ = randomized
    html, lines = files.html.read_text(), _markdown(files).splitlines()

    assert files.html.stat().st_size < 15_000_000
    cited = r"https://arxiv\.org/abs/"
    assert re.findall(rf'(?:src|href)="(?!data:image/png;base64,|#|{cited})', html) == []
    own = [p for p in files.figures if p.stem.startswith(("unit-", "parameter-", "sensitivity-p"))]
    assert len(own) == 7
    assert len(set(files.figures)) == len(files.figures)
    assert max(path.stat().st_size for path in own) <= 64_000
    assert max(len(line) for line in lines if not line.startswith(("|", "!["))) <= 100
    assert max(len(line) for line in lines if line.startswith("|")) <= 140


def test_unit_pictures_hold_the_maps_and_scores_of_their_units(tmp_path):
    reports, results = write_study(tmp_path, replace(RANDOMIZED, sweeps=(), data=False))
    read = StudyFiles(reports, results, "toy", {})
    units, shown = list(RANDOMIZED.units), ["conv2", "inception5b"]
    stack = read.unit_maps("googlenet", "lime")

    (row,) = parameters._unit_tiles(read, "googlenet", units, shown, {"lime": stack})

    image, trained, *others = row.tiles
    assert image is None
    assert trained.framed
    assert np.array_equal(trained.pixels, stack[0])
    scores = read_table(results / "randomization" / "scores.parquet")
    own = scores.query(
        "model == 'googlenet' and method == 'lime' and kind == 'same' and draw == 0 and "
        "metric == 'ssim' and convention == 'common' and order == 'independent' and "
        "image_id == 'val-00000'"
    ).set_index("unit")["score"]
    for unit, tile in zip(shown, others, strict=True):
        assert tile.above == unit
        assert tile.below == f"{round(own[unit], 2) + 0.0:.2f}"
        assert np.array_equal(tile.pixels, stack[1 + units.index(unit)])


def test_pictures_have_as_few_units_as_their_size_asks(tmp_path):
    units = tuple(f"block{place}" for place in range(12))
    study = replace(RANDOMIZED, sweeps=(), units=units, size=64, models=("googlenet",), n_draws=1)
    reports, results = write_study(tmp_path, study)
    noise = np.random.default_rng(0).normal(size=(13, 64, 64)).astype(np.float32)
    for path in (results / "randomization" / "pictures" / "googlenet").glob("*.npy"):
        np.save(path, noise)
    read = StudyFiles(reports, results, "toy", {})
    gallery = report_gallery.Gallery(tmp_path / "figures")

    (picture,) = parameters._unit_pictures(read, gallery)

    assert "4 of 12 units" in picture.caption
    assert gallery.paths == [picture.path]


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("study", "words", "absent"),
    [
        (replace(LESSER, n_draws=1), "**One draw of the weights.**", "Maps as"),
        (replace(LESSER, sweeps=()), "has a sweep, so its sensitivity", "Sensitivity plane."),
        (replace(LESSER, models=("net",), n_images=1), "inconclusive 5", "Maps as"),
    ],
    ids=["one-draw", "no-sweeps", "one-image"],
)
def test_lesser_randomizations_are_told_as_such(study, words, absent, tmp_path):
    _, text = _built(tmp_path, study)

    assert words in text
    assert absent not in text
    assert "nan" not in text.lower().split()


@pytest.mark.usefixtures("coarse")
def test_failures_alone_are_still_told(tmp_path):
    reports, results = write_study(tmp_path, replace(LESSER, sweeps=()))
    for name in ("ipr", "ipr_units", "ipr_function", "plane"):
        path = reports / "tables" / f"{name}.csv"
        write_table(read_table(path).head(0), path)

    text = _markdown(build.build(reports, results, study="toy"))

    assert "No map of a randomized model could be scored." in text
    assert "**guided_gradcam on googlenet**" in text
    assert "Sensitive to the model's parameters" not in text


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("study", "words"),
    [
        (replace(PAPER, sweeps=(), boxes=False), "No image has a box, hence no localization"),
        (replace(PAPER, sweeps=(SWEEPS[0],), comparisons=False), "Nothing but sweeps was compared"),
        (replace(TINY, accuracy=False), "The paper's claims were not judged"),
        (replace(PAPER, sweeps=(SWEEPS[0],), models=("net",)), "not scored here: SP-S, SP-L"),
    ],
    ids=["no-boxes", "no-comparisons", "no-tables", "unknown-model"],
)
def test_parts_of_the_paper_s_section_that_lack_their_table_say_so(study, words, tmp_path):
    files, text = _built(tmp_path, replace(study, maps=False, data=False))

    assert words in text
    assert "nan" not in text.lower().split()
    index = _markdown(files)
    assert index.count("not drawn") >= 10
    assert "**Fig. S9**: The study has no sweep MP-N" in index.replace("the study", "The study")


def test_empty_tables_are_as_good_as_none(tmp_path):
    reports, results = write_study(tmp_path, replace(BARE, sweeps=()))
    for name in ("claims", "table_s1", "comparisons", "object_size", "global_std"):
        (reports / "tables" / f"{name}.csv").write_text("\n")

    files = build.build(reports, results, study="toy")

    assert "0 of 24 are drawn" in _markdown(files)


def test_document_renders_the_same_blocks_in_both_formats(tmp_path):
    cells = [[document.Cell("a_b"), document.Cell("0.5", meter=0.5)]]
    blocks = [
        document.Text("Plain **bold** and `x < y`."),
        document.Items(["first", "second"], title="Box"),
        document.Table(["name", "number"], cells, note="A note.", meter_note="Shaded."),
        document.Table(["id", "why"], [[document.Cell("1"), document.Cell("So.")]], n_prose=1),
        document.Table(["name"], [cells[0][:1]], fold="More", file="t.csv"),
        document.Code("key: value", title="file.yaml"),
    ]
    sections = [document.Section("one", "Of `x`", blocks, nav="One")]

    html = document.html("Title", sections)
    markdown = document.markdown("Title", sections, tmp_path)

    assert "<strong>bold</strong> and <code>x &lt; y</code>" in html
    assert "<h2>Of <code>x</code></h2>" in html
    assert 'style="--meter:50.0%"' in html
    assert "A note. Shaded." in html
    assert "Shaded" not in markdown
    assert "| name | number |\n| ---- | -----: |\n| a_b  |    0.5 |\n\nA note." in markdown
    assert "| id |\n| -- |\n| 1  |\n\n- **1**: So." in markdown
    assert "<summary>More</summary>" in html
    assert re.search(r"</table></div>\s*</details>", html)
    assert "More: `t.csv`." in markdown
    assert "> **Box**\n>\n> - first\n> - second" in markdown
    assert "## Of `x`" in markdown
    assert "```yaml\nkey: value\n```" in markdown


BUDGET = {"model": "googlenet", "method": "smoothgrad", "sweep": "SG-N", "tau": 0.95} | {
    **{"budget": 20.0, "low": 10.0, "high": 50.0, "n_max": 50, "share_at_max": 1.0},
    **{"self_similarity": 0.971, "forward_passes": 0.0, "backward_passes": 20.0},
    **{"n_images": 4, "reached": True},
}
UNREACHED = {"tau": 0.99, "budget": np.nan, "low": 20.0, "high": np.nan, "reached": False} | {
    **{"share_at_max": 0.25, "forward_passes": np.nan, "backward_passes": np.nan},
}
YARDSTICK = {"model": "googlenet", "method": "smoothgrad", "sweep_setting": "SG-N n_samples=5"} | {
    **{"metric": "ssim", "mean": 0.4, "low": 0.3, "high": 0.5, "n_trainings": 4},
    **{"sweep": "SG-N", "is_reference": True, "convention": "common"},
}


@pytest.mark.usefixtures("coarse")
def test_stability_budget_is_told_where_it_was_measured(tmp_path):
    reports, results = write_study(tmp_path, replace(BARE, maps=False))
    write_table(pd.DataFrame([BUDGET, BUDGET | UNREACHED]), reports / "tables" / "budget.csv")
    curves = [
        BUDGET | {"value": value, "tau": tau, "share": share, "low": 0.0, "high": 1.0, "ssim": 0.9}
        for tau, best in ((0.95, 1.0), (0.99, 0.25))
        for value, share in (("10", 0.0), ("20", best), ("50", best))
    ]
    write_table(pd.DataFrame(curves), reports / "tables" / "budget_curves.csv")

    files = build.build(reports, results, study="toy")

    text = " ".join(files.markdown.read_text().split())
    squeezed = re.sub(r" *\| *", "|", text)
    assert "Reached in 1 of 2 cases." in text
    assert "|0.95|20 [10, 50]|100 %|0.971|0 / 20|4|" in squeezed
    assert "|0.99|not reached by 50|25 %|0.971|–|4|" in squeezed
    assert "stability-budget.png" in {path.name for path in files.figures}
    assert "**Ringed**: the budget" in text
    assert '<section id="budget">' in files.html.read_text()


@pytest.mark.usefixtures("coarse")
def test_retraining_stands_beside_the_hyperparameters_of_the_study_it_was_measured_on(tmp_path):
    reports, results = write_study(tmp_path, BARE)
    path = reports.parent / "retraining" / "toy" / "yardstick.csv"
    others = [YARDSTICK | {"is_reference": False}, YARDSTICK | {"convention": "wang"}]
    write_table(pd.DataFrame([*others, YARDSTICK]), path)

    text = " ".join(_markdown(build.build(reports, results, study="toy")).split())

    band = StudyFiles(reports, results, "toy", {}).training_variability
    assert list(band["sweep"]) == ["SG-N"]
    assert band[["low", "mean", "high"]].iloc[0].tolist() == pytest.approx([0.3, 0.4, 0.5])
    mean = _headline(reports).query("sweep == 'SG-N' and model == 'googlenet'")["mean"].iloc[0]
    assert "(smoothgrad SG-N n_samples=5)" in text
    assert f"{(1 - mean) / 0.4:.1f}× |" in text
    # Another study's says nothing of this one.
    assert StudyFiles(reports, results, "embedded", {}).training_variability.empty


TWINS = {"model": "googlenet", "twin": "googlenet-r", "method": "smoothgrad", "sweep": "SG-N"} | {
    **{"metric": "ssim", "difference": 0.321, "low": 0.123, "high": 0.519, "n_trainings": 4},
    **{"convention": "common", "draws": "nested", "n_images": 4},
}


def test_twins_over_trainings_stand_in_a_table_and_change_the_caveat(tmp_path):
    reports, results = write_study(tmp_path, BARE)
    study = StudyFiles(reports, results, "toy", {})
    alone = sections_caveats.caveats(study)
    folder = reports.parent / "retraining" / "toy"
    others = [{"draws": "independent"}, {"metric": "iou"}, {"convention": "wang"}, {"sweep": "X"}]
    rows = [TWINS | {"difference": 0.9} | other for other in others]
    by_rank = {"metric": "spearman", "convention": "signed", "difference": 0.2, "low": 0.1}
    rows += [TWINS | by_rank | {"high": 0.3}]
    write_table(pd.DataFrame([*rows, TWINS]), folder / "twins.csv")
    write_table(pd.DataFrame([YARDSTICK]), folder / "yardstick.csv")
    study = StudyFiles(reports, results, "toy", {})

    (table,) = sections_answer._twins_table(study)
    caveats = sections_caveats.caveats(study)

    mean, low, high = study.difference(("SG-N", "googlenet"), ("SG-N", "googlenet-r")).values()
    ((sweep, method, twins, several, ranks, one),) = table.rows
    assert [cell.text for cell in (sweep, method, twins)] == [
        *("SG-N", "smoothgrad", "googlenet-r − googlenet")
    ]
    assert several.text == "0.321 [0.123, 0.519]"
    assert several.tone == 1
    assert ranks.text == "0.200 [0.100, 0.300]"
    assert one.text == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    assert "4 trainings [95 %]" in table.columns
    assert caveats.short[0] == (
        "**One training per model**; 4 trainings in the hatched band beside the hyperparameters "
        "and the "
        "table of twins below it."
    )
    assert "rest on 4 trainings of each network" in caveats.items[0]
    assert "nothing here is about robust models as such" in alone.short[0]
    assert list(sections_answer._twins_table(StudyFiles(reports, results, "other", {}))) == []


@pytest.mark.usefixtures("coarse")
def test_neither_budget_nor_retraining_is_told_where_neither_was_measured(tmp_path):
    files, text = _built(tmp_path, BARE)

    assert "budget" not in text.lower()
    assert "retraining" not in text
    assert 'id="budget"' not in files.html.read_text()


@pytest.mark.usefixtures("coarse")
def test_inverted_maps_are_never_called_alike(tmp_path):
    """SSIM of .98, Spearman of -.9: in words another map, and counted."""
    sweep = SWEEPS[0][0]
    study = replace(TINY, randomization=True, inverted=(sweep, "gradient"))

    files, text = _built(tmp_path, study)

    found = StudyFiles(files.html.parent, tmp_path / "results" / "toy", "toy", {})
    assert set(found.headline["degree"]) == {3}
    assert f"(sweep {sweep}), mean 1 − SSIM 0.020" in text
    assert "1 − Spearman 1.900" in text
    row = r"\| another map \| smoothgrad: n_samples \| 0.020 [^|]*\| +1.900 ‡"
    assert re.search(row, text)
    inverted = int(found.headline["n_inverted"].sum())
    assert f"{inverted} were inverted: a rank correlation below -0.3" in text
    assert "which moved most is undecided: SSIM and rank correlation disagree" in text


def test_the_difference_of_twins_holds_by_both_measures(tmp_path):
    reports, results = write_study(tmp_path, BARE)
    path = reports / "tables" / "images.csv"
    images = read_table(path)
    turned = images["metric"].eq("spearman") & images["model"].eq("googlenet-r")
    images.loc[turned, "mean"] -= 1.5
    write_table(images, path)
    study = StudyFiles(reports, results, "toy", {})

    (text,) = sections_answer._answer_twins(study, study.headline.dropna(subset=["mean"]))

    by_ssim = study.difference((SWEEPS[0][0], "googlenet"), (SWEEPS[0][0], "googlenet-r"))
    assert by_ssim["mean"] > 0
    assert "moved less than those of googlenet in 0 and more in 0" in text
    assert "In 1, undecided: SSIM and rank correlation disagree." in text


def test_tables_from_before_inverted_pairs_were_counted_can_be_read(tmp_path):
    reports, results = write_study(tmp_path, replace(LESSER))
    for name in ("sensitivity", "settings", "images", "ipr", "ipr_units", "plane"):
        path = reports / "tables" / f"{name}.csv"
        frame = read_table(path)
        gone = ["n_inverted", "x_inverted", "y_inverted", "verdict"]
        write_table(frame.drop(columns=gone, errors="ignore"), path)

    study = StudyFiles(reports, results, "toy", {})

    assert study.headline["n_inverted"].isna().all()
    assert set(study.table("plane")["verdict"].dropna()) <= {
        *("", "parameters", "hyperparameter", "undecided"),
        "undecided: SSIM and rank correlation disagree",
    }
