"""Claims of the extended IPR paper (Sriram and Conati, 2023), recomputed from scores per image.

The claims stand in `ipr.yaml`, each with the name of its recipe, one of the functions below.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis.claims.verdict import (
    Finding,
    Interval,
    Judge,
    MissingError,
    Recipes,
    claim_table,
    read_claims,
)
from steadymap.analysis.parameters import (
    FEWEST_ARCHITECTURES,
    MOVED,
    PAIRS,
    PAPER_ARCHITECTURES,
    PAPER_METHODS,
    THRESHOLD,
    Group,
    Study,
    first_models,
    too_few_architectures,
)
from steadymap.params.schema import Statistics
from steadymap.statistics.correlation import correlate, exact_p, holm
from steadymap.statistics.intervals import SIMILARITY_RANGE
from steadymap.statistics.resampling import Replicates, combined, mean_of

_SIGNIFICANT = 0.05

_GUIDED = ("guided_backprop", "guided_gradcam")

_OTHERS = tuple(name for name in PAPER_METHODS if name not in _GUIDED)

# Networks on which the paper has the guided methods' S low, and high.
_LOW, _HIGH = ("vgg16", "resnet18", "resnet50"), ("inception_v3", "mobilenet_v2")

recipe = Recipes()


class Evidence:
    """S^I by SSIM of every model and method, on resamples of images that all of them share.

    Parameters
    ----------
    scores, rows, options, stochastic
        As for `steadymap.analysis.parameters.ipr`.
    architectures : mapping of str to str
        From trained models to their architectures.
    """

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        *,
        architectures: Mapping[str, str],
        stochastic: Collection[str] | None,
    ):
        study = Study(scores, rows, options, stochastic)
        frame = study.scores
        self.frame = frame[
            (frame["metric"] == "ssim")
            & (frame["convention"] == "common")
            & (frame["order"] == "independent")
            & (frame["randomizer"] == "init")
            & (frame["preset"] == "paper")
            & frame["model"].isin(list(architectures))
            & frame["kind"].isin(MOVED)
        ]
        self.models = first_models(architectures)
        self.groups: dict[tuple[str, str], Group] = {}
        if not self.frame.empty:
            # Groups keep their own images (some methods run on fewer); resamples span all of them.
            resamples = study.resamples(self.frame["image_id"].unique())
            self.judge = Judge(resamples)
            for labels, group in study.groups(resamples, self.frame):
                self.groups[labels["model"], labels["method"]] = group
        self.p_values = cache(self._p_values)

    def conclude(self, recipe: Callable[..., Finding], arguments: Mapping[str, Any]) -> Finding:
        """Outcome of a recipe."""
        return recipe(self, **arguments)

    def same(self, architecture: str, method: str) -> Replicates:
        """S of a method on an architecture."""
        return self.group(architecture, method).same

    def group(self, architecture: str, method: str) -> Group:
        """Scores of a method on an architecture."""
        model = self.models.get(architecture)
        if model is None:
            raise MissingError(f"the study has no trained {architecture}")
        if (model, method) not in self.groups:
            raise MissingError(f"the study has no IPR test of {method} on {model}")
        return self.groups[model, method]

    def need(self, architectures: Sequence[str], methods: Sequence[str]) -> dict[str, Group]:
        """Groups of all networks and methods by name; the reason names all networks that lack."""
        absent = [name for name in architectures if name not in self.models]
        if absent:
            raise MissingError(f"the study has no trained {', '.join(absent)}")
        return {f"{m} on {a}": self.group(a, m) for a in architectures for m in methods}

    def architectures_with(self, methods: Sequence[str]) -> list[str]:
        """Architectures on which all these methods were tested."""
        return [
            architecture
            for architecture, model in self.models.items()
            if all((model, method) in self.groups for method in methods)
        ]

    def _p_values(self, ranked: bool) -> pd.DataFrame:
        """Exact p of S's correlation between each pair of methods, and that after Holm."""
        p = []
        for pair in PAIRS:
            architectures = self.architectures_with(pair)
            if len(architectures) < FEWEST_ARCHITECTURES:
                p.append(math.nan)
                continue
            a, b = ([self.same(name, method).point for name in architectures] for method in pair)
            p.append(exact_p(a, b, ranked=ranked))
        return pd.DataFrame({"exact": p, "holm": holm(p)}, index=pd.MultiIndex.from_tuples(PAIRS))


def ipr_claims(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    architectures: Mapping[str, str],
    stochastic: Collection[str] | None = None,
) -> pd.DataFrame:
    """The extended-IPR paper's claims, recomputed: `tables/ipr_claims.csv`.

    Parameters
    ----------
    scores, rows, options, stochastic
        As for `steadymap.analysis.parameters.ipr`; SSIM (`common`) in independent order, of weights
        drawn anew, is read.
    architectures : mapping of str to str
        From *trained* models to their architectures; each architecture's first model counts.

    Returns
    -------
    DataFrame
        Columns `CLAIM_COLUMNS`, always the same rows. direction: `holds`, `fails`, `inconclusive`
        or `not measurable here`, with the reason; size: the paper's value `inside` or `outside`
        the interval, or `not comparable`. Intervals cover images and weight draws of these very
        networks. Where the paper prints no number, paper_value is NaN.
    """
    evidence = Evidence(scores, rows, options, architectures=architectures, stochastic=stochastic)
    claims = read_claims("ipr.yaml")
    return claim_table(
        claims,
        recipe,
        evidence,
        confidence=options.confidence,
        size_if_missing="not comparable",
    )


@recipe
def all_pass_on_papers_networks(evidence: Evidence) -> Finding:
    """Smallest S, and excess of stochastic methods, over the paper's methods and networks."""
    return _all_pass(evidence, evidence.need(PAPER_ARCHITECTURES, PAPER_METHODS))


@recipe
def all_pass_here(evidence: Evidence) -> Finding:
    """Smallest S, and excess of stochastic methods, over what was tested."""
    if not evidence.groups:
        raise MissingError("the study has no IPR test of a trained model")
    groups = {f"{method} on {model}": group for (model, method), group in evidence.groups.items()}
    finding = _all_pass(evidence, groups)
    tested = {method for _, method in evidence.groups}
    absent = [method for method in PAPER_METHODS if method not in tested]
    return finding.noted(f"not tested: {', '.join(absent)}") if absent else finding


def _all_pass(evidence: Evidence, groups: Mapping[str, Group]) -> Finding:
    """Holds where all groups pass, fails where one does not."""
    parts: dict[str, Replicates] = {}
    verdicts: dict[str, list[str]] = {"yes": [], "no": [], "inconclusive": []}
    for name, group in groups.items():
        verdicts[group.verdict(THRESHOLD)].append(name)
        parts[name] = group.same
        if group.stochastic and group.excess is not None:
            parts[f"{name} (excess)"] = group.excess
    finding = evidence.judge.smallest(parts, bound=THRESHOLD)
    listed = ", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts.items())
    # Of the minimum's notes its place alone: verdicts are of groups, not of its parts.
    notes = (f"of {len(groups)}: {listed}", *finding.notes[1:2])
    if verdicts["no"]:
        notes += (f"no: {', '.join(verdicts['no'])}",)
    # A method without fresh draws can't pass, one with inverted maps is not insensitive.
    everyone = len(verdicts["yes"]) == len(groups)
    decided = {"holds": everyone, "fails": bool(verdicts["no"])}.get(finding.direction)
    return replace(finding, verdict="" if decided else "inconclusive", notes=notes)


@recipe
def smallest_difference_of_networks(evidence: Evidence, method: str) -> Finding:
    """Smallest S on a network said to be high minus that on one said to be low."""
    evidence.need(PAPER_ARCHITECTURES, (method,))
    parts = {
        f"{high} minus {low}": evidence.same(high, method) - evidence.same(low, method)
        for high in _HIGH
        for low in _LOW
    }
    return evidence.judge.smallest(parts)


@recipe
def smallest_level_above_guided(evidence: Evidence) -> Finding:
    """Smallest mean S over networks of another method minus that of a guided one."""
    levels = {method: mean_of(_over_networks(evidence, method)) for method in PAPER_METHODS}
    parts = {f"{g} against {o}": levels[o] - levels[g] for g in _GUIDED for o in _OTHERS}
    return evidence.judge.smallest(parts)


@recipe
def smallest_spread_above_others(evidence: Evidence) -> Finding:
    """Smallest standard deviation of S over networks of a guided method minus another's."""
    spreads = {}
    for method in PAPER_METHODS:
        values = _over_networks(evidence, method)
        within = values[0].within
        spreads[method] = combined(lambda *s: np.std(s, axis=0, ddof=1), *values, within=within)
    parts = {f"{g} against {o}": spreads[g] - spreads[o] for g in _GUIDED for o in _OTHERS}
    return evidence.judge.smallest(parts)


def _over_networks(evidence: Evidence, method: str) -> list[Replicates]:
    evidence.need(PAPER_ARCHITECTURES, PAPER_METHODS)
    return [evidence.same(architecture, method) for architecture in PAPER_ARCHITECTURES]


@recipe
def lime_on_resnet50(evidence: Evidence) -> Finding:
    """S of LIME on ResNet-50; judged on whether it is above that on each other network."""
    group = evidence.group("resnet50", "lime")
    others = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.need(others, ("lime",))
    above = {f"above {name}": group.same - evidence.same(name, "lime") for name in others}
    note = (
        f"degenerate or undefined: {group.n_degenerate} of {group.cells['same'].size} comparisons"
    )
    finding = evidence.judge.finding(group.same, notes=(note,))
    return finding.judged_by(evidence.judge.smallest(above))


@recipe
def lime_minus_gradient(evidence: Evidence, bound: float) -> Finding:
    """Mean S of LIME minus that of Gradients over the networks but ResNet-50, within a bound."""
    architectures = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.need(architectures, ("lime", "gradient"))
    lime, gradient = (
        mean_of([evidence.same(architecture, method) for architecture in architectures])
        for method in ("lime", "gradient")
    )
    finding = evidence.judge.finding(lime - gradient)

    def apart(confidence: float) -> Interval:
        """Interval of the difference without its sign."""
        low, high = evidence.judge.resamples.interval(lime - gradient, confidence)
        return max(low, -high, 0.0), max(-low, high)

    judged = apart(evidence.judge.resamples.options.confidence)
    return replace(finding, judged=judged, at=apart, bound=bound, above=False)


@recipe
def correlation_of_methods(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], ranked: bool, claimed: bool = True
) -> Finding:
    """Weakest of the correlations of S over networks that are claimed, or largest of those denied.

    Judged by exact p values after Holm over the paper's 21 pairs of methods.

    Parameters
    ----------
    evidence : Evidence
        S of every model and method.
    pairs : sequence of tuple of str
        Pairs of methods.
    ranked : bool
        Spearman's correlation (else Pearson's).
    claimed : bool
        Whether the paper claims the correlations; else it denies them.
    """
    pairs = [(first, second) for first, second in pairs]
    values = {pair: _correlation(evidence, pair, ranked) for pair in pairs}
    constant = [pair for pair in pairs if math.isnan(values[pair].point)]
    if constant:
        raise MissingError(f"{' or '.join(constant[0])} has the same S on all architectures")
    p = evidence.p_values(ranked)
    pair = (min if claimed else max)(pairs, key=lambda pair: values[pair].point)
    finding = evidence.judge.finding(values[pair])
    shown = p.loc[pairs, "holm"] <= _SIGNIFICANT
    adjusted = p.loc[pairs, "holm"]
    decisive = adjusted.max() if claimed else adjusted.min()
    if claimed and shown.all() and finding.value > 0:
        direction = "holds"
    elif claimed:
        direction = "fails" if finding.interval[1] < 0 else "inconclusive"
        decisive = finding.p_value
    else:
        direction = "fails" if shown.any() else "inconclusive"
    notes = [f"exact p {p.loc[pair, 'exact']:.3g}, after Holm {p.loc[pair, 'holm']:.3g}"]
    if len(pairs) > 1:
        notes.insert(0, f"{'weakest' if claimed else 'largest'}: {' and '.join(pair)}")
    n = len(evidence.architectures_with(pair))
    least = min(2 / math.factorial(n) * p["exact"].count(), 1.0)
    if least > _SIGNIFICANT:
        notes.append(f"{n} architectures can't show one: the smallest p after Holm is {least:.2g}")
    return replace(finding, verdict=direction, p=decisive, notes=tuple(notes))


def _correlation(evidence: Evidence, pair: tuple[str, str], ranked: bool) -> Replicates:
    """Correlation of S between two methods over the architectures that have both."""
    architectures = evidence.architectures_with(pair)
    if len(architectures) < FEWEST_ARCHITECTURES:
        raise MissingError(f"{' and '.join(pair)}: {too_few_architectures(len(architectures))}")
    sides = [evidence.same(name, method) for method in pair for name in architectures]

    def over_architectures(*values: np.ndarray) -> np.ndarray:
        both = np.stack(values, axis=-1)
        defined = np.isfinite(both).all(axis=-1)
        correlations = np.full(len(both), np.nan)
        a, b = np.split(both[defined], 2, axis=-1)
        correlations[defined] = correlate(a, b, ranked=ranked)
        return correlations

    return combined(over_architectures, *sides, within=SIMILARITY_RANGE)


@recipe
def largest_s(evidence: Evidence) -> Finding:
    """Largest S over methods and networks, at most 1; a statement on a range, without interval."""
    same = evidence.frame[evidence.frame["kind"] == "same"]
    if same["score"].notna().sum() == 0:
        raise MissingError("the study has no IPR test of a trained model")
    largest, name = max(
        (group.same.point, f"{method} on {model}")
        for (model, method), group in evidence.groups.items()
        if math.isfinite(group.same.point)
    )
    by_image = (1 - same["score"]).groupby([same["model"], same["method"], same["image_id"]]).mean()
    notes = (
        f"largest: {name}",
        f"SSIM is negative in {int((same['score'] < 0).sum())} of {same['score'].count()} "
        f"comparisons; S^i exceeds 1 for {int((by_image > 1).sum())} of {len(by_image)} images and "
        "methods",
    )
    direction = "holds" if largest <= 1 else "fails"
    n_images = same["image_id"].nunique()
    return Finding(largest, (math.nan, math.nan), n_images, verdict=direction, notes=notes)
