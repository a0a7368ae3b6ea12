"""Claims of a paper as data, their outcomes, and the table of their verdicts.

A claim stands in a YAML file beside this module: its texts, the paper's value, and the name of the
recipe that measures it, with arguments. A recipe is a function of the evidence and the arguments;
it returns a `Finding` or raises `MissingError`.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from steadymap.statistics.correlation import holm
from steadymap.statistics.intervals import ANY
from steadymap.statistics.resampling import Replicates, Resamples

# What `Claim` says of a claim, and what a study does.
_FACTS = ("claim", "group", "kind", "name", "section", "statement", "recipe", "paper_value")

CLAIM_COLUMNS = (
    *(*_FACTS, "value", "ci_low", "ci_high", "unit", "n_images", "rests_on"),
    *("direction", "p", "after_holm", "images_to_decide", "size", "reason"),
)

DIRECTIONS = ("holds", "fails", "inconclusive")

NOT_MEASURABLE = "not measurable here"

# Counted as inconclusive: a hyperparameter's own spread does not exceed the noise of the images.
NOT_RESOLVED = "not resolved"

OTHER_GRID = "another grid"

# Failed parts of an extreme are named up to this many.
_MOST_NAMED = 6

# An interval narrower than this share of its ends comes from rounding alone.
_NO_WIDTH = 1e-12

# More images than any study would explain.
_MOST_IMAGES = 10**7

# Halvings of the interval of log p: to one part in a thousand.
_HALVINGS = 16

Interval = tuple[float, float]


class MissingError(LookupError):
    """A claim needs what the study lacks."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and how it is measured.

    Attributes
    ----------
    claim, name, section, statement : str
        Number, short name, place in the paper, and what the paper says.
    group : str
        The fact that it is a reading of; of a group, its first measurable claim is counted.
    kind : {'claim', 'check'}
        Whether it can fail; what can't is a check, and not counted.
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
    group: str
    kind: str = "claim"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper_value: float = math.nan


@cache
def read_claims(file: str) -> tuple[Claim, ...]:
    """Claims of a YAML file of this folder, in order."""
    text = (files("steadymap.analysis.claims") / file).read_text()
    return tuple(Claim(**row) for row in yaml.safe_load(text))


def informative(interval: Interval) -> bool:
    """Whether an interval has a width: one without says that no photograph differs."""
    low, high = interval
    return not high - low <= _NO_WIDTH * max(1.0, abs(low), abs(high))


def side(interval: Interval, bound: float, above: bool) -> str:
    """Direction: holds where an interval lies wholly on the claimed side of a bound.

    Parameters
    ----------
    interval : tuple of float
        Lower and upper end.
    bound : float
        What the claim holds the statistic against.
    above : bool
        Whether the claimed side is above the bound.
    """
    low, high = interval
    if informative(interval) and (low > bound or high < bound):
        return "holds" if (low > bound) == above else "fails"
    return "inconclusive"


def least_number(start: int, suffices: Callable[[int], bool]) -> float:
    """Smallest number from `start` on that suffices, if all larger ones do; NaN of too large ones.

    Parameters
    ----------
    start : int
        Where to begin.
    suffices : callable
        Whether a number does.
    """
    high = start
    while not suffices(high):
        high *= 2
        if high > _MOST_IMAGES:
            return math.nan
    return float(bisect_left(range(high), True, lo=min(start, high), key=suffices))


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
    at : callable, optional
        From a confidence to the interval that the claim is judged on.
    judged : tuple of float, optional
        That interval, where it is not that of the value.
    verdict, p : str, float
        Direction and two-sided p, of a claim that is not judged by an interval.
    unit : str
        Unit of the value, where it is not the claim's.
    comparable : bool
        Whether the value is of the kind that the paper prints.
    notes : tuple of str
        What goes with the value.
    resolved_by : float
        Images that would resolve a hyperparameter's own spread, where it is not resolved.
    rests_on : str
        Trainings that a comparison of robust with regular models rests on.
    grid, papers_grid : str
        Values swept, and whether they are the paper's: yes, no or ''.
    """

    value: float
    interval: Interval
    n_images: int
    bound: float = 0.0
    above: bool = True
    at: Callable[[float], Interval] | None = None
    judged: Interval | None = None
    verdict: str = ""
    p: float = math.nan
    resolved_by: float = math.nan
    unit: str = ""
    comparable: bool = True
    notes: tuple[str, ...] = ()
    rests_on: str = ""
    grid: str = ""
    papers_grid: str = ""

    @property
    def direction(self) -> str:
        """Verdict: holds, fails, inconclusive or `NOT_RESOLVED`."""
        seen = self.interval if self.judged is None else self.judged
        return self.verdict or side(seen, self.bound, self.above)

    @property
    def p_value(self) -> float:
        """Two-sided p of a decided claim: 1 less the largest confidence that decides it too."""
        if self.verdict or self.at is None or self.direction == "inconclusive":
            return self.p
        return self._least_error

    @property
    def _least_error(self) -> float:
        """1 less the largest confidence at which the claim is decided, one way or the other."""
        assert self.at is not None
        low, high = -12.0, 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            decided = side(self.at(1 - 10**middle), self.bound, self.above) in ("holds", "fails")
            low, high = (low, middle) if decided else (middle, high)
        return 10**high

    def images_to_decide(self, confidence: float) -> float:
        """Images that would decide an undecided claim by the present estimate and spread.

        The standard error shrinks with the root of their number. NaN of a claim that is decided, or
        that no number of images would decide, and where trainings vary too.
        """
        if self.direction == NOT_RESOLVED:
            return self.resolved_by
        judged = self.interval if self.judged is None else self.judged
        varied = self.rests_on.endswith("trainings") or not informative(judged)
        if self.direction != "inconclusive" or self.at is None or varied or self.n_images < 2:
            return math.nan
        reached = stats.t.ppf(1 - self._least_error / 2, self.n_images - 1)

        def decides(n: int) -> bool:
            needed = stats.t.ppf(0.5 + confidence / 2, n - 1)
            return bool(reached * math.sqrt(n / self.n_images) >= needed)

        return least_number(self.n_images, decides)

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

    def judged_by(self, other: "Finding") -> "Finding":
        """Copy that is judged on another statistic."""
        judged = other.interval if other.judged is None else other.judged
        seen = min(self.n_images, other.n_images)
        changes: dict[str, Any] = {"at": other.at, "bound": other.bound, "above": other.above}
        return replace(self, judged=judged, n_images=seen, **changes)


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
    confidence: float,
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
    confidence : float
        Coverage of the intervals.
    columns : sequence of str
        Columns of the table.
    size_if_missing : str
        `size` of a claim that is not measurable.
    """
    rows = []
    for claim in claims:
        row = {key: getattr(claim, key) for key in ("unit", *_FACTS)}
        try:
            finding = evidence.conclude(recipes[claim.function], claim.arguments)
        except MissingError as missing:
            row |= {"n_images": 0, "direction": NOT_MEASURABLE, "size": size_if_missing}
            row |= {"reason": str(missing), "rests_on": "", "grid": "", "papers_grid": ""}
        else:
            if finding.unit and finding.unit != claim.unit:
                # The data chose this statistic in place of the claim's own.
                row |= {"unit": finding.unit, "name": f"{claim.name} ({finding.unit})"}
            row |= {"value": finding.value, "p": finding.p_value}
            row["images_to_decide"] = finding.images_to_decide(confidence)
            row |= dict(zip(("ci_low", "ci_high"), finding.interval, strict=True))
            row |= {key: getattr(finding, key) for key in ("n_images", "rests_on", "direction")}
            row |= {"grid": finding.grid, "papers_grid": finding.papers_grid}
            row |= {"size": finding.size(claim.paper_value), "reason": "; ".join(finding.notes)}
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(columns))
    return table.assign(after_holm=after_holm(table, confidence))


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table of claims that are counted: of each group the first measurable claim.

    Where none is measurable, the group's first; checks are not counted.
    """
    # Tables from before there were groups have claims alone.
    table = table.assign(**{"kind": "claim", "group": table["claim"]} | dict(table.items()))
    claims = table[table["kind"] != "check"]
    missing = claims["direction"].eq(NOT_MEASURABLE)
    leads = claims.iloc[np.argsort(missing, kind="stable")].drop_duplicates("group")
    return leads.sort_index()


def verdict_counts(table: pd.DataFrame) -> dict[str, int]:
    """Groups of claims by verdict; what is not resolved is counted as inconclusive too."""
    counts = Counter(counted(table)["direction"])
    counts["inconclusive"] += counts[NOT_RESOLVED]
    return {name: counts[name] for name in (*DIRECTIONS, NOT_RESOLVED, NOT_MEASURABLE)}


def over_trainings(table: pd.DataFrame, retrained: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Table of a study's claims with those on robust against regular models over trainings.

    Parameters
    ----------
    table : DataFrame
        The study's claims.
    retrained : DataFrame
        Claims over several trainings; with the column `alone`, the verdicts of each of them.
    confidence : float
        As for `after_holm`.
    """
    if retrained.empty or table.empty:
        return table.assign(alone="")
    merged = table.set_index("claim").assign(alone="")
    rows = retrained.set_index("claim")
    merged.loc[rows.index, [name for name in rows if name in merged]] = rows
    merged = merged.reset_index()
    return merged.assign(after_holm=after_holm(merged, confidence))


def after_holm(table: pd.DataFrame, confidence: float) -> pd.Series:
    """Verdicts of the claims that are counted where all groups share one error; else ''.

    Parameters
    ----------
    table : DataFrame
        Claims, with their p.
    confidence : float
        Of which 1 - confidence is the two-sided error that is shared (Holm 1979).
    """
    leads = counted(table)
    leads = leads[leads["direction"] != NOT_MEASURABLE]
    # What is undecided is a test too.
    adjusted = np.array(holm(leads["p"].fillna(1.0).to_list()))
    lost = leads["direction"].isin(["holds", "fails"]) & (adjusted > 1 - confidence)
    return leads["direction"].mask(lost, "inconclusive").reindex(table.index).fillna("")


@dataclass(frozen=True)
class Judge:
    """Forms findings from statistics of the same images.

    Attributes
    ----------
    resamples : Resamples
        The images.
    """

    resamples: Resamples

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
        interval = self.resamples.interval
        if judged is not None:
            return self.finding(value, **options).judged_by(self.finding(judged, **options))
        at = partial(interval, value)
        return Finding(value.point, interval(value), value.seen, at=at, **options)

    def smallest(self, parts: Mapping[str, Replicates], **options: Any) -> Finding:
        """Smallest of several statistics, by label.

        Its lower end is the smallest lower end, its upper end the smallest upper end with the error
        shared among the parts (Bonferroni): a 95 % interval of the true minimum, which a jackknife
        of a minimum, not being smooth, is not. A part whose interval has no width is left out.
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
        interval = self.resamples.interval
        telling = {name: part for name, part in parts.items() if informative(interval(part))}
        kept = telling or parts
        signed = [part if sign > 0 else -part for part in kept.values()]

        def at(confidence: float) -> Interval:
            strict = 1 - (1 - confidence) / len(signed)
            low = float(np.min([interval(part, confidence)[0] for part in signed]))
            high = float(np.min([interval(part, strict)[1] for part in signed]))
            return (low, high) if sign > 0 else (-high, -low)

        label = list(kept)[int(np.argmin([part.point for part in signed]))]
        place = f"{'smallest' if sign > 0 else 'largest'}: {label}"
        notes: tuple[str, ...] = (place,) if len(parts) > 1 else ()
        if flat := len(parts) - len(telling):
            notes += (f"left out: {flat} of {len(parts)} that no photograph changes",)
        options |= {"notes": notes, "at": at}
        seen = min(part.seen for part in signed)
        ends = at(self.resamples.options.confidence)
        return Finding(parts[label].point, ends, seen, **options)

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
