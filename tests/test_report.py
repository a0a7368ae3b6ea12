"""The report holds the tables' numbers, needs nothing else, and is the same bytes every time."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from steadymap import document, figures, report
from steadymap.store import read_table, write_table
from synthetic_study import SWEEPS, Study, write_study

TINY = Study(n_images=4, sweeps=(SWEEPS[0],))
BARE = replace(TINY, maps=False, data=False)
WORDS = ("SP-F", "sliding_patch", "fill", ("mean", "black", "light grey"), "mean", "none")
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
    files = report.build(reports, results, study="toy", profile=PARAMS)
    return reports, results, files


@pytest.fixture
def coarse(monkeypatch):
    """Figures of few dots, for tests that look at words."""
    monkeypatch.setattr(figures, "DPI", 40)


def _built(folder, study, **options):
    reports, results = write_study(folder, study)
    files = report.build(reports, results, study="toy", **options)
    return files, " ".join(files.markdown.read_text().replace("\n>", " ").split())


def _headline(reports) -> pd.DataFrame:
    frame = figures.headline_draws(read_table(reports / "tables" / "sensitivity.csv"))
    return frame[(frame["metric"] == "ssim") & (frame["convention"] == "common")]


def test_building_twice_gives_the_same_bytes(whole, tmp_path):
    reports, results, files = whole
    copied = tmp_path / "reports"
    for path in (reports / "tables").iterdir():
        write_table(read_table(path), copied / "tables" / path.name)

    again = report.build(copied, results, study="toy", profile=PARAMS)

    assert again.html.read_bytes() == files.html.read_bytes()
    assert again.markdown.read_bytes() == files.markdown.read_bytes()
    assert [path.name for path in again.figures] == [path.name for path in files.figures]
    for first, second in zip(files.figures, again.figures, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_html_needs_no_network_and_stays_small(whole):
    html = whole[2].html.read_text()

    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', html) == []
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert "default-src 'none'" in html
    assert whole[2].html.stat().st_size < 4_000_000
    assert not re.search(r"20\d\d-\d\d-\d\d", html)


def test_every_navigation_entry_leads_to_a_section(whole):
    html = whole[2].html.read_text()

    targets = re.findall(r'href="#([^"]+)"', html)

    assert {"caveats", "answer", "headline", "sweep-SG-N", "sweep-SP-L"} <= set(targets)
    assert all(html.count(f'<section id="{target}">') == 1 for target in targets)


def test_sections_come_in_the_order_of_the_first_screen(whole):
    anchors = re.findall(r'<section id="([^"]+)">', whole[2].html.read_text())

    assert anchors == [
        *("top", "caveats", "answer", "headline", "knobs", "sweep-SG-N", "sweep-SP-L"),
        *("models", "evaluation-set", "data", "provenance"),
    ]


def test_both_formats_hold_every_headline_number(whole):
    reports, _, files = whole
    texts = [files.markdown.read_text(), files.html.read_text()]

    for row in _headline(reports).itertuples():
        numbers = f"{row.mean:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
        spread = f"{row.std_rms:.3f} / {row.std_mean:.3f}"
        assert all(numbers in text and spread in text for text in texts)


def test_answer_names_the_extreme_sweeps(whole):
    reports, _, files = whole
    means = _headline(reports).groupby("sweep")["mean"].mean()
    text = " ".join(files.markdown.read_text().split())

    most = re.search(r"moved the maps most was `\w+` of \w+ \(sweep ([\w-]+):", text)
    least = re.search(r"moved them least was `\w+` of \w+ \(sweep ([\w-]+):", text)

    assert most
    assert least
    assert (most[1], least[1]) == (means.idxmin(), means.idxmax())


def test_caveats_are_the_definitions_ones_with_the_detectable_difference(whole):
    reports, _, files = whole
    rows = _headline(reports)
    half = (rows["ci_high"] - rows["ci_low"]) / 2
    text = " ".join(files.markdown.read_text().replace("\n>", " ").split())

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
    ):
        assert words in text
    assert files.html.read_text().count('<div class="box">') == 1


def test_markdown_fits_a_terminal_and_its_pictures_exist(whole):
    reports, _, files = whole
    text = files.markdown.read_text()

    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)

    assert sorted(links) == sorted(f"figures/{path.name}" for path in files.figures)
    assert all((reports / link).is_file() for link in links)
    words = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert max(map(len, words)) <= 100
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 130


def test_figures_stay_small_and_carry_their_sweep_s_name(whole):
    _, _, files = whole
    names = {path.name for path in files.figures}

    assert {"sensitivity-bars.png", "SG-N-draws.png", "SP-L-measures.png", "data.png"} <= names
    assert "SP-L-draws.png" not in names
    assert {
        f"SG-N-pictures-{name}.png" for name in ("least-stable", "random", "most-stable")
    } <= names
    assert max(path.stat().st_size for path in files.figures) < 300_000


def test_runs_are_named_as_mlflow_names_them(whole):
    text = " ".join(whole[2].markdown.read_text().split())

    assert "experiment `steadymap/toy/smoothgrad`" in text
    assert "`sliding_patch SP-L googlenet-r`" in text
    assert "`make ui`" in text


def test_pictures_are_the_extremes_and_a_seeded_image_between(whole):
    reports, results, _ = whole
    rows = figures.headline_draws(read_table(reports / "tables" / "images.csv"))
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == "common")]
    means = rows[rows["sweep"] == "SP-L"].groupby("image_id")["mean"].mean()
    study = report._Study(reports, results, "toy", {})

    picks = report._picks(study, "SP-L")

    assert [name for name, _, _ in picks] == ["least-stable", "random", "most-stable"]
    assert picks[0][1] == means.idxmin()
    assert picks[2][1] == means.idxmax()
    assert picks[1][1] not in (picks[0][1], picks[2][1])
    assert ["an extreme" in rule for _, _, rule in picks] == [True, False, True]
    assert picks == report._picks(study, "SP-L")


def test_picture_rows_carry_the_scores_of_their_image(whole):
    reports, results, _ = whole
    study = report._Study(reports, results, "toy", {})
    image_id = "val-00003"
    scores = read_table(results / "scores.parquet")
    own = scores.query(
        "sweep == 'SG-N' and metric == 'ssim' and convention == 'common' and draws == 'nested' "
        f"and model == 'googlenet-r' and image_id == '{image_id}'"
    ).set_index("value")["score"]

    rows, left_out = report._picture_rows(
        study, "SG-N", image_id, report.Maps(results / "maps" / "smoothgrad")
    )

    cells = {cell.label: cell for cell in rows[1].cells}
    assert left_out == 0
    assert [cell.label for cell in rows[1].cells] == ["5", "10", "20", "50"]
    assert cells["5"].is_reference
    assert cells["5"].score is None
    assert cells["20"].score == own["20"]
    assert np.array_equal(rows[0].image, study.pixels[image_id])
    assert rows[1].image is None


def test_long_sweeps_show_both_ends_and_the_reference():
    values = [str(value) for value in range(30)]

    shown = report._thin(values, "7")

    assert len(shown) == 9
    assert {"0", "7", "29"} <= set(shown)
    assert report._thin(values[:9], "7") == values[:9]


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    ("study", "words"),
    [
        (replace(TINY, boxes=False), "no boxes are known"),
        (replace(BARE, photos=False), "No two images are known to share a photograph"),
        (replace(BARE, models=("googlenet", "resnet50")), "There is no robust model"),
        (replace(BARE, models=("googlenet",)), "this one network, googlenet"),
        (replace(BARE, n_images=1), "With 1 image there are no intervals"),
        (replace(TINY, sweeps=(WORDS,)), "`fill` = mean, black, light grey; reference mean"),
        (replace(TINY, sweeps=(SEEDS,)), "`seed` = 0, 1, 2; reference 0"),
        (replace(TINY, sweeps=()), "No sweep with a knob was scored"),
        (replace(BARE, sweeps=(), knobless=()), "No sweep with a knob was scored"),
        (replace(TINY, degenerate=True), "every compared pair of maps was degenerate"),
        (replace(TINY, maps=False), "No maps of smoothgrad at hand, hence no pictures"),
        (BARE, "The data set is not at hand"),
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
    assert "c\\|d" in files.markdown.read_text()


@pytest.mark.usefixtures("coarse")
def test_figures_of_an_earlier_report_are_deleted(tmp_path):
    reports, results = write_study(tmp_path, replace(TINY, sweeps=(), maps=False))
    stale = reports / "figures" / "SG-old-measures.png"
    stale.parent.mkdir()
    stale.write_bytes(b"old")

    files = report.build(reports, results, study="toy")

    assert not stale.exists()
    assert sorted(stale.parent.iterdir()) == sorted(files.figures)


def test_missing_table_and_missing_column_are_named_with_the_remedy(tmp_path):
    reports, results = write_study(tmp_path, replace(BARE, sweeps=()))
    tasks = reports / "tables" / "tasks.csv"
    write_table(read_table(tasks).drop(columns="draws"), tasks)
    with pytest.raises(ValueError, match=r"tasks\.csv: lacks draws; write it again by `dvc repro"):
        report.build(reports, results, study="toy")

    tasks.unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks\.csv: no such table; run the stage"):
        report.build(reports, results, study="toy")


def test_document_renders_the_same_blocks_in_both_formats(tmp_path):
    cells = [[document.Cell("a_b"), document.Cell("0.5", meter=0.5)]]
    blocks = [
        document.Text("Plain **bold** and `x < y`."),
        document.Items(["first", "second"], title="Box"),
        document.Table(["name", "number"], cells, note="A note.", meter_note="Shaded."),
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
    assert "> **Box**\n>\n> - first\n> - second" in markdown
    assert "## Of `x`" in markdown
    assert "```yaml\nkey: value\n```" in markdown
