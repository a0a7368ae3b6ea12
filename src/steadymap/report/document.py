"""A document of sections, rendered as one HTML file and as GitHub Markdown.

Text is Markdown of four kinds: `code`, **bold**, [links](https://address) to elsewhere, and
[links](#anchor) within the page, of which Markdown keeps the words. Sections that are `brief` make
a short document of their own.
"""

import base64
import hashlib
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import markupsafe

# Dots per CSS pixel of figures: sharp on dense screens, and their text as large as the page's.
_DENSITY = 1.5


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` makes it large."""

    text: str
    lead: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Items:
    """A list; with a title it is a box.

    With a `fold`, HTML folds the items away under these words, behind those that are `short`;
    Markdown has the items alone.
    """

    items: Sequence[str]
    title: str = ""
    short: Sequence[str] = ()
    fold: str = ""
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Cell:
    """A table's cell; `meter` in [0, 1] draws a bar behind it, `image` is PNG.

    A `tone` from 0 to 3 colors it, an `anchor` makes it a link within the page.
    """

    text: str
    meter: float | None = None
    image: bytes | None = None
    tone: int | None = None
    anchor: str = ""

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return _data_uri(self.image or b"")


@dataclass(frozen=True)
class Table:
    """A table; the first `n_names` columns are words, the others numbers.

    `meter_note` explains the bars, and appears where they do. A table with a `fold` is folded away
    in HTML under these words; in Markdown, which can't fold, a `file` that has the same numbers is
    named in its place. The last `n_prose` columns hold sentences, without full stop: HTML puts them
    below their row, Markdown below the table, behind the row's first cell.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    n_names: int = 1
    note: str = ""
    meter_note: str = ""
    fold: str = ""
    file: str = ""
    n_prose: int = 0
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A figure that was written to `path`; one that `folds` is left to Markdown."""

    path: Path
    alt: str
    caption: str
    folds: bool = False
    kind: ClassVar[str] = "picture"

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return _data_uri(self.path.read_bytes())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, from the PNG's header."""
        head = self.path.read_bytes()[16:24]
        width, height = (int.from_bytes(part) / _DENSITY for part in (head[:4], head[4:]))
        return round(width), round(height)


@dataclass(frozen=True)
class Code:
    """Text as it is; folded away in HTML under its title."""

    text: str
    title: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Live:
    """Part of a page that a script runs: trusted HTML, script and style; Markdown has `text`."""

    markup: str
    script: str
    style: str
    text: str
    kind: ClassVar[str] = "live"


Block = Text | Items | Table | Picture | Code | Live


@dataclass(frozen=True)
class Section:
    """A heading, its entry in the navigation (none where empty) and what follows.

    A `brief` section belongs to the short document too. With a `fold`, HTML folds the section away,
    with the lower ones that follow it, under its title and this one-line finding ('' for none).
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    nav: str = ""
    level: int = 2
    brief: bool = False
    fold: str | None = None


# Opens what a link leads into: browsers do so for what is inside a fold, not for the fold itself.
_UNFOLD = """(() => {
  const folds = () => document.querySelectorAll("details.part");
  function reveal() {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    const own = place.querySelector(":scope > details.part");
    for (let at = own || place; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    place.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  let printed = [];
  window.addEventListener("beforeprint", () => {
    printed = [...folds()].filter((one) => !one.open);
    for (const one of printed) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of printed) one.open = false;
  });
  reveal();
})();"""


def html(title: str, sections: Sequence[Section]) -> str:
    """Page with style and pictures inside, which needs no network."""
    template = resources.files("steadymap.report").joinpath("report.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = _inline
    live = [block for section in sections for block in section.blocks if isinstance(block, Live)]
    scripts = [_UNFOLD] * any(section.fold is not None for section in sections)
    scripts += [block.script for block in live]
    # The page runs these scripts and no other.
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in scripts
    ]
    parts: list[tuple[Section, list[Section]]] = []
    for section in sections:
        if section.level > 2 and parts:
            parts[-1][1].append(section)
        else:
            parts.append((section, []))
    page = environment.from_string(template).render(
        title=title,
        sections=sections,
        parts=parts,
        live=live,
        scripts=scripts,
        hashes=" ".join(hashes) or "'none'",
    )
    return page + "\n"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_LINK = re.compile(r"\[([^\]]+)\]\(#([\w./=%~-]+)\)")

_ADDRESS = re.compile(r"\[([^\]]+)\]\((https://[\w./:-]+)\)")


def _inline(text: str) -> markupsafe.Markup:
    """Turn `code`, **bold** and links into HTML, everything else into text."""
    escaped = str(markupsafe.escape(text))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = _LINK.sub(r'<a href="#\2">\1</a>', escaped)
    escaped = _ADDRESS.sub(r'<a href="\2">\1</a>', escaped)
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """GitHub Markdown to lie in `folder`, lines short enough for a terminal."""
    parts = [f"# {title}"]
    for section in sections:
        if section.title:
            parts.append(f"{'#' * section.level} {section.title}")
        parts += [_MARKDOWN[block.kind](block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _wrap(text: str, *, first: str = "", then: str = "") -> str:
    return textwrap.fill(
        _LINK.sub(r"\1", text),
        96,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _markdown_items(block: Items, folder: Path) -> str:
    if not block.title:
        return "\n".join(_wrap(item, first="- ", then="  ") for item in block.items)
    lines = [f"> **{block.title}**", ">"]
    lines += [_wrap(item, first="> - ", then=">   ") for item in block.items]
    return "\n".join(lines)


def _markdown_table(block: Table, folder: Path) -> str:
    if block.file:
        return _wrap(f"{block.fold}: `{block.file}`.")
    n_columns = len(block.columns) - block.n_prose
    kept = [
        place for place in range(n_columns) if all(row[place].image is None for row in block.rows)
    ]
    lines = [[block.columns[place] for place in kept]]
    lines += [[row[place].text.replace("|", "\\|") for place in kept] for row in block.rows]
    # The delimiter row needs a dash and a colon.
    widths = [max(2, *(len(line[place]) for line in lines)) for place in range(len(kept))]
    left = [place < block.n_names for place in kept]

    def render(line: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if is_left else text.rjust(width)
            for text, width, is_left in zip(line, widths, left, strict=True)
        ]
        return "| " + " | ".join(cells) + " |"

    rule = [
        "-" * width if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    ]
    text = "\n".join([render(lines[0]), render(rule), *map(render, lines[1:])])
    prose = [
        _wrap(f"**{row[0].text}**: {'. '.join(said)}", first="- ", then="  ")
        for row in block.rows
        if (said := [cell.text for cell in row[n_columns:] if cell.text])
    ]
    parts = [f"**{block.fold}**"] if block.fold else []
    parts += [text, *(["\n".join(prose)] if prose else [])]
    return "\n\n".join([*parts, *([_wrap(block.note)] if block.note else [])])


def _markdown_picture(block: Picture, folder: Path) -> str:
    path = block.path.relative_to(folder).as_posix()
    return f"![{block.alt}]({path})\n\n{_wrap(block.caption)}"


_MARKDOWN: dict[str, Callable[[Any, Path], str]] = {
    "text": lambda block, _: _wrap(block.text),
    "items": _markdown_items,
    "table": _markdown_table,
    "picture": _markdown_picture,
    "code": lambda block, _: f"`{block.title}`:\n\n```yaml\n{block.text}\n```",
    "live": lambda block, _: _wrap(block.text),
}
