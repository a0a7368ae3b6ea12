"""README and docs: numbers are those of `reports/`, links and commands exist."""

import re

import pytest
import yaml

import pages
import steadymap
from conftest import ROOT
from steadymap.store.tables import read_table

DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
ABBREVIATIONS = {
    "SAM": "Sensitivity of Attribution Methods",
    "IPR": "independent parameter randomization",
}


@pytest.mark.parametrize("page", pages.BLOCKS)
def test_the_script_that_writes_numbers_changes_nothing(page):
    assert pages.rendered(page) == (ROOT / page).read_text()


def test_a_page_without_its_block_is_named(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("<!-- results: x -->\n<!-- /results -->\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)

    with pytest.raises(ValueError, match=r"README\.md: block 'repro'"):
        pages.rendered("README.md")


def test_a_block_is_replaced_and_the_rest_stays(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("above\n<!-- x: y -->\nold\n<!-- /x -->\nbelow\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "BLOCKS", {"a.md": {"x": lambda: r"new \1"}})

    text = pages.rendered("a.md")

    assert text == "above\n<!-- x: y -->\nnew \\1\n<!-- /x -->\nbelow\n"


def test_headline_holds_the_table_s_numbers():
    scores = read_table(ROOT / "reports" / "reference" / "tables" / "sensitivity.csv")
    row = scores[
        (scores["sweep"] == "SP-S")
        & (scores["model"] == "googlenet")
        & (scores["metric"] == "ssim")
        & (scores["convention"] == "common")
    ].iloc[0]

    line = next(
        line for line in pages.headline_table("reference").split("\n") if line.startswith("| SP-S")
    )

    assert f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in line


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


REPORTS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("reports/*/*.md"))]


@pytest.mark.parametrize("page", [*PAGES, *REPORTS])
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^):#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (folder / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_links_to_sections_lead_to_a_heading(page):
    for name, anchor in re.findall(r"\]\(([^):#\s]*)#([^)]+)\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / name if name else ROOT / page
        if target.suffix != ".md":
            continue
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
        slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in slugs, f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()

    for target in re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_pages_name_exist(page):
    text = (ROOT / page).read_text()
    scripts = re.findall(r"\b((?:stages|studies|benchmarks|tests|src)/[\w/]+\.py)\b", text)

    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", ["README.md", *DOCS])
def test_abbreviations_are_spelled_out_where_they_first_stand(page):
    text = " ".join((ROOT / page).read_text().split())
    for short, long in ABBREVIATIONS.items():
        if first := re.search(rf"\b{short}\b", text):
            assert long in text[max(0, first.start() - 300) : first.end() + 100], short


def test_the_slurm_recipe_keeps_its_form():
    recipe = (ROOT / "docs" / "scale.md").read_text()

    assert re.search(r"#SBATCH.*?dask scheduler .*?srun .*?make repro", recipe, re.S)


def test_papers_are_cited_with_their_addresses():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]

    assert [(paper["year"], len(paper["authors"])) for paper in cited] == [
        (2020, 3),
        (2023, 2),
        (2018, 6),
    ]
    for page in ("README.md", "docs/protocol.md"):
        assert all(paper["url"] in (ROOT / page).read_text() for paper in cited)
    assert all(long in steadymap.__doc__.replace("\n", " ") for long in ABBREVIATIONS.values())
