"""Numbers, intervals and settings as text."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from steadymap.metrics.similarity import INVERTED
from steadymap.report.document import Cell
from steadymap.report.study import Study, missing, number

_TEXTS = yaml.safe_load(
    resources.files("steadymap.report").joinpath("texts.yaml").read_text("utf-8")
)

FINDINGS: dict[str, str] = _TEXTS["findings"]

METER = "Shaded: 1 − SSIM."

VERDICTS = ("holds", "fails", "inconclusive", "not measurable here")

INVERTED_PAIRS = f"pairs with a rank correlation below {INVERTED:g}"


def sentence(key: str, **values: Any) -> str:
    """Text of `texts.yaml`, its names in braces replaced by values."""
    return _TEXTS[key].format(inverted_pairs=INVERTED_PAIRS, **values)


def captions(key: str, **values: Any) -> dict[str, str]:
    """Alternative text and caption of a figure in `texts.yaml`, as `Gallery.add` takes them."""
    figure = _TEXTS["figures"][key].items()
    return {name: text.format(**values).strip() for name, text in figure}


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
    return with_interval({"mean": 1 - row[f"{prefix}mean"], **ends})


def bar(text: str, share: Any) -> Cell:
    """Cell with a bar behind its text, as long as the share of 1."""
    return Cell(text, meter=min(max(share, 0.0), 1.0) if _defined(share) else None)


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
    """Number with its noun in singular or plural."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def and_list(names: Iterable[Any]) -> str:
    """Names joined by commas and an 'and'."""
    names = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
