"""Claims of a paper as data, their outcomes, and the table of their verdicts.

A claim stands in a YAML file beside this module: its texts, the paper's value, and the name of the
recipe that measures it, with arguments. A recipe is a function of the evidence and the arguments;
it returns a `Finding` or raises `MissingError`.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml

from steadymap.statistics.intervals import ANY
from steadymap.statistics.resampling import Replicates, Resamples

CLAIM_COLUMNS = (
    *("claim", "name", "section", "statement", "recipe", "paper_value", "value"),
    *("ci_low", "ci_high", "unit", "n_images", "direction", "size", "reason"),
)

DIRECTIONS = ("holds", "fails", "inconclusive")

NOT_MEASURABLE = "not measurable here"

OTHER_GRID = "another grid"

# Failed parts of an extreme are named up to this many.
_MOST_NAMED = 6


class MissingError(LookupError):
    """A claim needs what the study lacks."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and how it is measured.

    Attributes
    ----------
    claim, name, section, statement : str
        Number, short name, place in the paper, and what the paper says.
    recipe, unit : str
        What is measured, in words, and its unit.
    function : str
        Name of the recipe.
    arguments : mapping
        Its arguments beside the evidence.
    paper_value : float
        NaN where the paper prints no number.
    """

    claim: str
    name: str
    section: str
    statement: str
    recipe: str
    unit: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper_value: float = math.nan


@cache
def read_claims(file: str) -> tuple[Claim, ...]:
    """Claims of a YAML file of this folder, in order."""
    text = (files("steadymap.analysis.claims") / file).read_text()
    return tuple(Claim(**row) for row in yaml.safe_load(text))


@dataclass(frozen=True)
class Finding:
    """Outcome of one claim on a study.

    Attributes
    ----------
    value, interval
        The statistic and its interval.
    n_images : int
        Fewest images behind any part of it.
    bound, above
        The claim holds where the interval lies wholly above (or below) the bound.
    judged : tuple of float, optional
        The interval that the claim is judged on, where it is not that of the value.
    verdict : str
        Direction, of a claim that is not judged by an interval.
    unit : str
        Unit of the value, where it is not the claim's.
    comparable : bool
        Whether the value is of the kind that the paper prints.
    notes : tuple of str
        What goes with the value.
    method : str
        How the interval was formed.
    grid, papers_grid : str
        Values swept, and whether they are the paper's: yes, no or ''.
    """

    value: float
    interval: tuple[float, float]
    n_images: int
    bound: float = 0.0
    above: bool = True
    judged: tuple[float, float] | None = None
    verdict: str = ""
    unit: str = ""
    comparable: bool = True
    notes: tuple[str, ...] = ()
    method: str = ""
    grid: str = ""
    papers_grid: str = ""

    @property
    def direction(self) -> str:
        """Verdict: holds, fails or inconclusive."""
        if self.verdict:
            return self.verdict
        low, high = self.interval if self.judged is None else self.judged
        if low > self.bound:
            return "holds" if self.above else "fails"
        if self.above:
            return "fails" if high <= self.bound else "inconclusive"
        return "holds" if high < self.bound else "inconclusive"

    def size(self, paper: float) -> str:
        """Whether the paper's value lies inside the interval."""
        low, high = self.interval
        if not self.comparable or not np.isfinite([paper, low, high]).all():
            return "not comparable"
        if self.papers_grid == "no":
            return OTHER_GRID
        return "inside" if low <= paper <= high else "outside"

    def noted(self, *notes: str, **changes: Any) -> "Finding":
        """Copy with more notes, and other changes."""
        return replace(self, notes=(*self.notes, *notes), **changes)


class Evidence(Protocol):
    """What a paper's claims are measured on."""

    def conclude(self, recipe: Callable[..., Finding], arguments: Mapping[str, Any]) -> Finding:
        """Outcome of a recipe."""


class Recipes(dict[str, Callable[..., Finding]]):
    """Recipes of a paper's claims by name; a decorator that adds one."""

    def __call__(self, recipe: Callable[..., Finding]) -> Callable[..., Finding]:
        """Add a recipe under its own name."""
        self[recipe.__name__] = recipe
        return recipe


def claim_table(
    claims: Sequence[Claim],
    recipes: Mapping[str, Callable[..., Finding]],
    evidence: Evidence,
    *,
    columns: Sequence[str] = CLAIM_COLUMNS,
    size_if_missing: str = "",
) -> pd.DataFrame:
    """Every claim with our value, its interval and a verdict; always the same rows.

    Parameters
    ----------
    claims : sequence of Claim
        The claims.
    recipes : mapping of str to callable
        Recipes by the name that claims give.
    evidence : Evidence
        What the recipes are given.
    columns : sequence of str
        Columns of the table.
    size_if_missing : str
        `size` of a claim that is not measurable.
    """
    rows = []
    for claim in claims:
        row = {key: getattr(claim, key) for key in ("paper_value", "unit", *CLAIM_COLUMNS[:5])}
        try:
            finding = evidence.conclude(recipes[claim.function], claim.arguments)
        except MissingError as missing:
            row |= {"n_images": 0, "direction": NOT_MEASURABLE, "size": size_if_missing}
            row |= {"reason": str(missing), "grid": "", "papers_grid": ""}
        else:
            row |= {"value": finding.value, "unit": finding.unit or claim.unit}
            row |= dict(zip(("ci_low", "ci_high"), finding.interval, strict=True))
            row |= {key: getattr(finding, key) for key in ("n_images", "grid", "papers_grid")}
            row |= {"direction": finding.direction, "size": finding.size(claim.paper_value)}
            row |= {"reason": "; ".join(finding.notes)}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(columns))


@dataclass(frozen=True)
class Judge:
    """Forms findings from statistics that share their resamples.

    Attributes
    ----------
    resamples : Resamples
        The resamples.
    clusters : str
        What they resample, in words.
    """

    resamples: Resamples
    clusters: str

    @property
    def method(self) -> str:
        """How intervals are formed."""
        return f"t-interval of the jackknife over {self.resamples.n_clusters} {self.clusters}"

    def finding(
        self, value: Replicates, *, judged: Replicates | None = None, **options: Any
    ) -> Finding:
        """Outcome of a statistic.

        Parameters
        ----------
        value : Replicates
            The statistic.
        judged : Replicates, optional
            What the claim is judged on, where it is another statistic.
        options
            Further attributes of the `Finding`.
        """
        interval, seen = self.resamples.interval(value), value.seen
        if judged is not None:
            options["judged"] = self.resamples.interval(judged)
            seen = min(seen, judged.seen)
        return Finding(value.point, interval, seen, method=self.method, **options)

    def smallest(self, parts: Mapping[str, Replicates], **options: Any) -> Finding:
        """Smallest of several statistics, by label.

        Its lower end is the smallest lower end, its upper end the smallest upper end with the error
        shared among the parts (Bonferroni): a 95 % interval of the true minimum, which a jackknife
        of a minimum, not being smooth, is not.
        """
        extreme = self._extreme(parts, 1, **options)
        if len(parts) == 1:
            return extreme
        verdicts = {name: self.finding(part, **options).direction for name, part in parts.items()}
        counts = Counter(verdicts.values())
        listed = ", ".join(f"{counts[direction]} {direction}" for direction in DIRECTIONS)
        notes = (f"of {len(parts)}: {listed}", *extreme.notes)
        if 0 < counts["fails"] <= _MOST_NAMED:
            failed = [name for name, verdict in verdicts.items() if verdict == "fails"]
            notes += (f"fails: {', '.join(failed)}",)
        return replace(extreme, notes=notes)

    def largest(self, parts: Mapping[str, Replicates], **options: Any) -> Finding:
        """Largest of several statistics, by label; the mirror image of `smallest`."""
        return self._extreme(parts, -1, **options)

    def _extreme(self, parts: Mapping[str, Replicates], sign: int, **options: Any) -> Finding:
        signed = [part if sign > 0 else -part for part in parts.values()]
        strict = 1 - (1 - self.resamples.options.confidence) / len(parts)
        lows = [self.resamples.interval(part)[0] for part in signed]
        highs = [self.resamples.interval(part, strict)[1] for part in signed]
        low, high = sorted((sign * float(np.min(lows)), sign * float(np.min(highs))))
        label = list(parts)[int(np.argmin([part.point for part in signed]))]
        notes = (f"{'smallest' if sign > 0 else 'largest'}: {label}",) if len(parts) > 1 else ()
        seen = min(part.seen for part in signed)
        options |= {"notes": notes, "method": self.method}
        return Finding(parts[label].point, (low, high), seen, **options)

    def formed(self, denominator: Replicates) -> bool:
        """Whether a ratio may be formed: its denominator stands out from 0.

        Judged without regard to the range: on a scale that ends at 0 every interval lies above it.
        """
        return self.resamples.interval(replace(denominator, within=ANY))[0] > 0

    def ratio(self, numerator: Replicates, denominator: Replicates, **options: Any) -> Finding:
        """Ratio against 1, or the difference against 0 where none can be formed."""
        if self.formed(denominator):
            return self.finding(numerator / denominator, **{"bound": 1.0, **options})
        note = (
            f"ratio not formed: its denominator, {denominator.point:.3g}, does not stand out from 0"
        )
        notes = (note, *options.pop("notes", ()))
        options |= {"bound": 0.0, "unit": "difference", "comparable": False, "notes": notes}
        return self.finding(numerator - denominator, **options)
