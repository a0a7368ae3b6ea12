"""Blocks render alike as HTML and as Markdown, and the page needs nothing else."""

import re
from dataclasses import replace

import numpy as np

from steadymap.report import document
from steadymap.report.document import Cell, Code, Items, Section, Table, Text, table
from steadymap.report.figures import maps

PLAIN = Section("a", "A", [Text("words")])


def test_blocks_render_alike_in_both_formats(tmp_path):
    cells = [[Cell("a_b"), Cell("0.5", meter=0.5)]]
    blocks = [
        Text("Plain **bold** and `x < y`."),
        Items(["first", "second"], title="Box"),
        Items(["more"], fold="Details"),
        Table(["name", "number"], cells, note="A note.", meter_note="Shaded."),
        Table(["id", "why"], [[Cell("1"), Cell("So.")]], n_prose=1),
        Table(["name"], [cells[0][:1]], fold="More", file="t.csv"),
        Code("key: value", title="file.yaml"),
    ]
    sections = [Section("one", "Of `x`", blocks, nav="One")]

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
    assert "<summary>Details</summary>" in html
    assert re.search(r"</table></div>\s*</details>", html)
    assert "More: `t.csv`." in markdown
    assert "> **Box**\n>\n> - first\n> - second" in markdown
    assert "## Of `x`" in markdown
    assert "```yaml\nkey: value\n```" in markdown


def test_columns_are_keys_of_a_row_or_functions_of_it():
    columns = {"name": "id", "twice": lambda row: 2 * row["n"], "bar": lambda _: Cell("", meter=1)}

    made = table([{"id": "a", "n": 1}, {"id": "b", "n": 2}], columns, note="N.")

    assert made.columns == ["name", "twice", "bar"]
    assert [[cell.text for cell in row] for row in made.rows] == [["a", "2", ""], ["b", "4", ""]]
    assert made.rows[0][2].meter == 1
    assert made.note == "N."


def test_names_are_escaped(tmp_path):
    section = Section("a", "", [table([{"n": "<b>a&b"}, {"n": "c|d"}], {"n": "n"})])

    html = document.html("T", [section])

    assert "<b>a&b" not in html
    assert "&lt;b&gt;a&amp;b" in html
    assert "c\\|d" in document.markdown("T", [section], tmp_path)


def test_links_lead_to_addresses_and_within_the_page(tmp_path):
    text = "See [there](https://arxiv.org/abs/1) and [here](#sweep-A)."
    section = Section("a", "", [Text(text)])

    html = document.html("T", [section])

    assert '<a href="https://arxiv.org/abs/1">there</a> and <a href="#sweep-A">here</a>' in html
    markdown = document.markdown("T", [section], tmp_path)
    assert "[there](https://arxiv.org/abs/1) and here." in markdown


def test_a_picture_is_as_large_as_its_dots_ask(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(maps.thumbnail(np.zeros((30, 60, 3), np.uint8)))
    width, height = document.Picture(path, "", "").size

    html = document.html("T", [Section("a", "", [document.Picture(path, "alt", "A caption.")])])

    assert width == 2 * height
    assert f'width="{width}" height="{height}"' in html
    assert "data:image/png;base64," in html


def test_a_page_without_folds_runs_no_script_and_one_with_folds_shows_all_without_it():
    folded = replace(PLAIN, fold="It holds.")

    assert "script-src 'none'" in document.html("T", [PLAIN])
    page = document.html("T", [folded, replace(PLAIN, anchor="b", level=3)])
    assert page.index('<details class="part">') < page.index('<section id="b">')
    assert page.index('<section id="b">') < page.rindex("</details>")
    shown = "::details-content { content-visibility: visible; block-size: auto; }"
    assert f"<noscript><style>details.part{shown}" in page
    printed = page[page.index("@media print") :]
    assert f"details{shown}" in printed[: printed.index("</style>")]


def test_nothing_is_wider_than_a_phone_and_tables_fit_a_window_of_1300_px():
    page = document.html("Title", [Section("a", "", [Text(f"`{'4f' * 32}`")])])
    rules = dict(re.findall(r"^ *([^{}\n@]+?) \{([^{}]*)\}", page, re.M))

    # A digest in a text would make the page as wide as it is, and its sticky menu scroll away.
    assert "overflow-wrap: anywhere" in rules["code"]
    # Names may wrap, so that the last column stays in sight.
    names = "td:not(.number, :first-child), .told td:not(.number)"
    assert "white-space: normal" in rules[names]
    wide = page[page.index("@media (min-width: 76rem)") :]
    menu = float(re.search(r"nav\.side \{[^}]*width: ([\d.]+)rem", wide)[1])
    beside = float(re.search(r"main \{[^}]*padding: 0 ([\d.]+)rem", wide)[1])
    scrollbar = 15
    # The table of all sweeps, ten columns, takes 880 px and its padding.
    padding = float(re.search(r"padding: [.\d]+rem ([.\d]+)rem", rules["th, td"])[1])
    room = 1300 - scrollbar - 16 * (menu + 2 * beside)
    assert room >= 880 + 10 * 2 * 16 * padding
