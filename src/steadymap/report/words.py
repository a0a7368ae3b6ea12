"""Numbers, intervals, settings and tables as text."""

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from steadymap.metrics.similarity import INVERTED
from steadymap.report import document
from steadymap.report.document import Block, Cell, Columns, Section, Table
from steadymap.report.study import Study, missing, number, records

_TEXTS, _TABLES = (
    yaml.safe_load(resources.files("steadymap.report").joinpath(name).read_text("utf-8"))
    for name in ("texts.yaml", "tables.yaml")
)

FINDINGS: dict[str, str] = _TEXTS["findings"]

VERDICTS = ("holds", "fails", "inconclusive", "not measurable here")

INVERTED_PAIRS = f"pairs with a rank correlation below {INVERTED:g}"


def sentence(key: str, **values: Any) -> str:
    """Text of `texts.yaml`, its names in braces replaced by values."""
    return _TEXTS[key].format(inverted_pairs=INVERTED_PAIRS, **values)


def section(anchor: str, blocks: Iterable[Block]) -> Section:
    """Section with heading, entry in the navigation and level of `texts.yaml`."""
    return Section(anchor, blocks=[*blocks], **{"title": ""} | _TEXTS["sections"][anchor])


def captions(key: str, /, **values: Any) -> dict[str, str]:
    """Alternative text, caption and limit of a figure in `texts.yaml`."""
    figure = _TEXTS["figures"][key].items()
    return {name: text.format(**values).strip() for name, text in figure}


class _CellText(string.Formatter):
    """Text of a row as `tables.yaml` writes it: `{mean:.3f}`, `{mean~ci}`, `{mark}`, `{blank}`."""

    def get_field(self, field_name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Value of a row, whose name may have dots; with `~`, what its interval is made of too."""
        name, interval, prefix = field_name.partition("~")
        if name == "mark":
            return inverted_mark(kwargs), name
        if name.endswith("blank"):
            return blank_note(kwargs, name.removesuffix("blank")), name
        return (kwargs, name, prefix) if interval else kwargs[name], name

    def format_field(self, value: Any, format_spec: str) -> str:
        """Value as text; a dash for a number that is undefined."""
        if isinstance(value, tuple):
            row, name, prefix = value
            form = partial(self.format_field, format_spec=format_spec or ".3f")
            return with_interval(row, name, prefix, form)
        if not format_spec:
            return str(value)
        return format(value, format_spec).replace("%", " %") if _defined(value) else "–"


_CELL_TEXT = _CellText()


def _cell(row: Mapping[str, Any], text: str, meter: str = "") -> str | Cell:
    filled = _CELL_TEXT.vformat(text, (), row)
    if not meter:
        return filled
    share = row[meter.removeprefix("1 - ")]
    return bar(filled, 1 - share if meter.startswith("1 - ") else share)


def _column(content: Any, cells: Mapping[str, Callable[[Any], object]]) -> Any:
    """Content of a column as `document.table` takes it."""
    if callable(content):
        return content
    text, *meter = [content] if isinstance(content, str) else content
    if "{" in text:
        return partial(_cell, text=text, meter="".join(meter))
    return cells.get(text, text)


def table(
    name: str,
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    study: Study,
    *,
    cells: Mapping[str, Callable[[Any], object]] | None = None,
    more: Columns | None = None,
    without: Iterable[str] = (),
    **values: Any,
) -> Table:
    """Table of `tables.yaml`.

    Parameters
    ----------
    name : str
    rows : DataFrame or iterable of mapping
        A line of the table each.
    study : Study
    cells : mapping, optional
        Functions from a row to a cell, by the names that the table's columns have for them.
    more : dict, optional
        Columns that depend on the rows, in place of the table's `...`, as `tables.yaml` has them or
        as functions.
    without : iterable of str
        Headings of columns that are left out.
    **values
        What headings and the note have in braces, besides the study.
    """
    contents: dict[str, Any] = {}
    options = dict(_TABLES[name])
    for heading, content in options.pop("columns").items():
        if heading in without:
            options["n_names"] -= len(contents) < options["n_names"]
        else:
            titled = {heading.format(study=study, **values): content}
            contents |= (more or {}) if heading == "..." else titled
    columns = {title: _column(content, cells or {}) for title, content in contents.items()}
    if f"{name}-note" in _TEXTS:
        options["note"] = sentence(f"{name}-note", study=study, **values)
    lines = records(rows) if isinstance(rows, pd.DataFrame) else rows
    return document.table(lines, columns, **options)


def decimal(value: Any, places: int = 3) -> str:
    """Number with so many decimals; a dash where undefined."""
    return f"{value:.{places}f}" if _defined(value) else "–"


def digits(value: Any) -> str:
    """Number with three significant digits; a dash where undefined."""
    return f"{value:.3g}" if _defined(value) else "–"


def percentage(value: Any, places: int = 0) -> str:
    """Share as a percentage; a dash where undefined."""
    return f"{100 * value:.{places}f} %" if _defined(value) else "–"


def whole_number(value: Any) -> str:
    """Whole number as text; a dash where undefined."""
    return str(int(value)) if _defined(value) else "–"


def _defined(value: Any) -> bool:
    return not missing(value) and math.isfinite(value)


def with_interval(
    row: Mapping[str, Any],
    name: str = "mean",
    prefix: str = "ci",
    form: Callable[[Any], str] = decimal,
) -> str:
    """Value of a row with its interval; the value alone where there is none.

    Parameters
    ----------
    row : mapping
    name : str
        Column of the value.
    prefix : str
        The interval's columns are `prefix`_low and `prefix`_high.
    form : callable
        Number as text.
    """
    value = form(row.get(name))
    if value == "–" or missing(row.get(f"{prefix}_low")):
        return value
    return f"{value} [{form(row[f'{prefix}_low'])}, {form(row[f'{prefix}_high'])}]"


def moved(row: Mapping[str, Any], prefix: str = "") -> str:
    """1 - similarity with its interval; `prefix` is `rank_` for rank correlation."""
    low, high = (row.get(f"{prefix}ci_{end}") for end in ("low", "high"))
    ends = {} if missing(low) else {"ci_low": 1 - high, "ci_high": 1 - low}  # type: ignore[operator]
    text = with_interval({"mean": 1 - row[f"{prefix}mean"], **ends})
    return text if prefix else text + blank_note(row, turned=True)


def bar(text: str, share: Any) -> Cell:
    """Cell with a bar behind its text, as long as the share of 1."""
    return Cell(text, meter=min(max(share, 0.0), 1.0) if _defined(share) else None)


def blank_note(row: Mapping[str, Any], prefix: str = "", *, turned: bool = False) -> str:
    """How many pairs a mean leaves out as degenerate, and the mean with them; '' of none.

    Parameters
    ----------
    row : mapping
    prefix : str
        Of the columns' names.
    turned : bool
        Whether 1 - similarity is shown.
    """
    n: Any = row.get(f"{prefix}n_degenerate")
    every: Any = row.get(f"{prefix}mean_all")
    if not (_defined(n) and n and _defined(every)):
        return ""
    return f" ({int(n)} blank: {decimal(1 - every if turned else every)})"


def inverted_mark(row: Mapping[str, Any]) -> str:
    """Mark of rows with inverted pairs."""
    return " ‡" if _defined(n := row.get("n_inverted")) and n else ""


def as_sentence(text: str) -> str:
    """Text with a capital and without its full stop."""
    return text[:1].upper() + text[1:].rstrip(".")


def swept_values(values: Sequence[str]) -> str:
    """Values of a sweep; the ends and the count of many numbers."""
    if len(values) < 4 or any(number(value) is None for value in values):
        return ", ".join(values)
    return f"{values[0]} to {values[-1]} ({len(values)} values)"


def grids(study: Study, sweeps: Iterable[str]) -> str:
    """Values of these sweeps, as a sentence."""
    shown = [
        f"{sweep} `{study.about(sweep)[1]}` {swept_values(study.values(sweep)[0])}"
        for sweep in dict.fromkeys(sweeps)
        if sweep in study.sweeps
    ]
    return f" Values swept: {'; '.join(shown)}."


def count_of(n: int, noun: str, plural: str = "") -> str:
    """Number with its noun in singular or plural.

    Parameters
    ----------
    n
        The number.
    noun
        Its noun in the singular.
    plural
        The plural where it is not the noun with an s.
    """
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def and_list(names: Iterable[Any]) -> str:
    """Names joined by commas and an 'and'."""
    names = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
