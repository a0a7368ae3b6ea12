"""A document of sections, rendered as one HTML file and as GitHub Markdown.

Text is Markdown of four kinds: `code`, **bold**, [links](https://address) to elsewhere, and
[links](#anchor) within the page, of which Markdown keeps the words. Sections that are `brief` make
a short document of their own.
"""

import base64
import hashlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

# Dots per CSS pixel of figures: sharp on dense screens, and their text as large as the page's.
_DENSITY = 1.5

_ANCHOR = re.compile(r"\[([^\]]+)\]\((#[\w./=%~-]+)\)")

_ADDRESS = re.compile(r"\[([^\]]+)\]\((https://[\w./:-]+)\)")


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` makes it large."""

    text: str
    lead: bool = False

    def markdown(self, folder: Path) -> str:
        """Return the wrapped paragraph."""
        return _wrap(self.text)


@dataclass(frozen=True)
class Items:
    """A list; with a title it is a box, with a `fold` HTML folds it away under these words."""

    items: Sequence[str]
    title: str = ""
    fold: str = ""

    def markdown(self, folder: Path) -> str:
        """Return a list, quoted under its title where it has one."""
        quote = "> " if self.title else ""
        lines = [_wrap(item, first=f"{quote}- ", then=f"{quote}  ") for item in self.items]
        return "\n".join([f"> **{self.title}**", ">", *lines] if self.title else lines)


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
        return data_uri(self.image or b"")


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

    def markdown(self, folder: Path) -> str:
        """Return an aligned table with its sentences and note, or the name of its file."""
        if self.file:
            return _wrap(f"{self.fold}: `{self.file}`.")
        n_columns = len(self.columns) - self.n_prose
        kept = [at for at in range(n_columns) if all(row[at].image is None for row in self.rows)]
        lines = [[self.columns[at] for at in kept]]
        lines += [[row[at].text.replace("|", "\\|") for at in kept] for row in self.rows]
        # The delimiter row needs a dash and a colon.
        widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<" if at < self.n_names else ">" for at in kept]
        rule = [
            "-" * width if side == "<" else "-" * (width - 1) + ":"
            for side, width in zip(sides, widths, strict=True)
        ]
        rendered = []
        for line in [lines[0], rule, *lines[1:]]:
            cells = zip(line, sides, widths, strict=True)
            rendered.append(f"| {' | '.join(f'{text:{side}{n}}' for text, side, n in cells)} |")
        prose = [
            _wrap(f"**{row[0].text}**: {'. '.join(sentences)}", first="- ", then="  ")
            for row in self.rows
            if (sentences := [cell.text for cell in row[n_columns:] if cell.text])
        ]
        title = f"**{self.fold}**" if self.fold else ""
        parts = [title, "\n".join(rendered), "\n".join(prose), _wrap(self.note)]
        return "\n\n".join(filter(None, parts))


# By heading, the key of a row's value, or a function from a row to its cell or value.
Columns = dict[str, str | Callable[[Any], object]]


def table(rows: Iterable[Mapping[str, Any]], columns: Columns, **options: Any) -> Table:
    """Table with a column per heading.

    Parameters
    ----------
    rows : iterable of mapping
        A line of the table each.
    columns : dict
        By heading, the key of a row's value, or a function from a row to its cell or value.
    **options
        Of `Table`.
    """
    lines = []
    for row in rows:
        cells = (row[what] if isinstance(what, str) else what(row) for what in columns.values())
        lines.append([cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in cells])
    return Table([*columns], lines, **options)


@dataclass(frozen=True)
class Picture:
    """A figure that was written to `path`; one that `folds` is left to Markdown."""

    path: Path
    alt: str
    caption: str
    folds: bool = False

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return data_uri(self.path.read_bytes())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels, from the PNG's header."""
        head = self.path.read_bytes()[16:24]
        width, height = (int.from_bytes(part) / _DENSITY for part in (head[:4], head[4:]))
        return round(width), round(height)

    def markdown(self, folder: Path) -> str:
        """Return a link to the file, relative to `folder`, with the caption below."""
        path = self.path.relative_to(folder).as_posix()
        return f"![{self.alt}]({path})\n\n{_wrap(self.caption)}"


@dataclass(frozen=True)
class Code:
    """Text as it is; folded away in HTML under its title."""

    text: str
    title: str

    def markdown(self, folder: Path) -> str:
        """Return a fenced block under its title."""
        return f"`{self.title}`:\n\n```yaml\n{self.text}\n```"


@dataclass(frozen=True)
class Live:
    """Part of a page that a script runs: trusted HTML, script and style; Markdown has `text`."""

    markup: str
    script: str
    style: str
    text: str

    def markdown(self, folder: Path) -> str:
        """Return the text that stands for the script."""
        return _wrap(self.text)


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


def html(title: str, sections: Sequence[Section]) -> str:
    """Page with style and pictures inside, which needs no network."""
    live = [block for section in sections for block in section.blocks if isinstance(block, Live)]
    folds = any(section.fold is not None for section in sections)
    scripts = [text_file("report.js").strip()] * folds
    scripts += [block.script for block in live]
    # The page runs these scripts and no other.
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    parts: list[tuple[Section, list[Section]]] = []
    for section in sections:
        if section.level > 2 and parts:
            parts[-1][1].append(section)
        else:
            parts.append((section, []))
    return render(
        "report.html.jinja",
        title=title,
        sections=sections,
        parts=parts,
        live=live,
        scripts=scripts,
        hashes=" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'",
    )


def text_file(name: str) -> str:
    """Text of a file of this package."""
    return resources.files("steadymap.report").joinpath(name).read_text("utf-8")


def render(template: str, **values: Any) -> str:
    """Template of this package, filled in."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"inline": _inline, "kind": lambda block: type(block).__name__}
    return environment.from_string(text_file(template)).render(**values) + "\n"


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """GitHub Markdown to lie in `folder`, lines short enough for a terminal.

    Parameters
    ----------
    title
        Heading of the page.
    sections
        Sections in order.
    folder
        Where the page will lie; links are relative to it.
    """
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"{'#' * section.level} {section.title}"] * bool(section.title)
        parts += [block.markdown(folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def data_uri(png: bytes) -> str:
    """PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _inline(text: str) -> markupsafe.Markup:
    """Turn `code`, **bold** and links into HTML, everything else into text."""
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    for link in (_ANCHOR, _ADDRESS):
        escaped = link.sub(r'<a href="\2">\1</a>', escaped)
    return markupsafe.Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))


def _wrap(text: str, *, first: str = "", then: str = "") -> str:
    return textwrap.fill(
        _ANCHOR.sub(r"\1", text),
        96,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )
