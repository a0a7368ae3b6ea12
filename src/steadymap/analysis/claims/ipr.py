"""Claims of the extended IPR paper (Sriram and Conati), recomputed from scores per image."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steadymap.analysis.parameters import (
    CLAIM_COLUMNS,
    FEWEST_ARCHITECTURES,
    MOVED,
    MOVED_RANGE,
    NOT_MEASURABLE,
    PAIRS,
    PAPER_ARCHITECTURES,
    PAPER_METHODS,
    PAPER_PEARSON,
    PAPER_SPEARMAN,
    THRESHOLD,
    Group,
    Study,
    chosen_models,
    too_few_architectures,
)
from steadymap.params.schema import Statistics
from steadymap.statistics.correlation import correlate, exact_p, holm, ranks
from steadymap.statistics.intervals import SIMILARITY_RANGE
from steadymap.statistics.resampling import Replicates, combined, minus

# Claims


class _MissingError(LookupError):
    """What a claim needs and the study lacks."""


@dataclass(frozen=True)
class _Finding:
    value: float
    interval: tuple[float, float]
    direction: str
    n_images: int
    notes: tuple[str, ...] = ()

    def size(self, paper: float) -> str:
        low, high = self.interval
        if not np.isfinite([paper, low, high]).all():
            return "not comparable"
        return "inside" if low <= paper <= high else "outside"


def _direction(interval: tuple[float, float]) -> str:
    """Verdict on 'above 0' (docs/protocol.md)."""
    low, high = interval
    if low > 0:
        return "holds"
    return "fails" if high <= 0 else "inconclusive"


class _Evidence:
    """S^I of every model and method on images that all of them have."""

    def __init__(
        self,
        scores: pd.DataFrame,
        rows: pd.DataFrame,
        options: Statistics,
        architectures: Mapping[str, str],
        *,
        convention: str,
        randomizer: str,
        preset: str,
        stochastic: Collection[str] | None,
    ):
        self.study = Study(
            scores, rows, options, randomizer=randomizer, preset=preset, stochastic=stochastic
        )
        frame = self.study.scores
        frame = frame[
            (frame["metric"] == "ssim")
            & (frame["convention"] == convention)
            & (frame["order"] == "independent")
            & (frame["randomizer"] == randomizer)
            & (frame["preset"] == preset)
            & frame["model"].isin(list(architectures))
            & frame["kind"].isin(MOVED)
        ]
        self.frame = frame
        # Groups keep their own images (some methods run on fewer); resamples span all of them.
        images = frame["image_id"].unique()
        self.resamples = self.study.resamples(images) if len(images) else None
        self.groups = {
            (labels["model"], labels["method"]): group
            for labels, group in self.study.groups(self.resamples, frame)
        }
        self.models = chosen_models(architectures)
        self.stochastic = self.study.stochastic

    def group(self, architecture: str, method: str) -> Group:
        model = self.models.get(architecture)
        if model is None:
            raise _MissingError(f"the study has no trained {architecture}")
        if (model, method) not in self.groups:
            raise _MissingError(f"the study has no IPR test of {method} on {model}")
        return self.groups[model, method]

    def all_groups(self, architectures: Sequence[str], methods: Sequence[str]) -> list[Group]:
        """Groups of all networks and methods; the reason names all networks that lack."""
        absent = [name for name in architectures if name not in self.models]
        if absent:
            raise _MissingError(f"the study has no trained {', '.join(absent)}")
        return [self.group(a, m) for a in architectures for m in methods]

    def interval(self, found: Replicates, confidence: float | None = None) -> tuple[float, float]:
        assert self.resamples is not None
        return self.resamples.interval(found, confidence)

    def finding(self, found: Replicates, *notes: str) -> _Finding:
        interval = self.interval(found)
        return _Finding(found.point, interval, _direction(interval), found.seen, notes)

    def smallest(self, parts: Mapping[str, Replicates]) -> _Finding:
        """Smallest of several statistics, claimed to be above 0.

        Lower end: the smallest lower end; upper end: the smallest upper end with the error shared
        (Bonferroni). A bootstrap of the minimum would be biased downwards.
        """
        strict = 1 - (1 - self.study.options.confidence) / len(parts)
        lows = [self.interval(part)[0] for part in parts.values()]
        highs = [self.interval(part, strict)[1] for part in parts.values()]
        points = [part.point for part in parts.values()]
        least = int(np.argmin(points))
        interval = float(np.min(lows)), float(np.min(highs))
        notes = (f"smallest: {list(parts)[least]}",) if len(parts) > 1 else ()
        seen = min(part.seen for part in parts.values())
        return _Finding(points[least], interval, _direction(interval), seen, notes)


@dataclass(frozen=True)
class _Claim:
    claim: str
    name: str
    section: str
    statement: str
    recipe: str
    paper_value: float
    unit: str
    judge: Callable[[_Evidence], _Finding]


def ipr_claims(
    scores: pd.DataFrame,
    rows: pd.DataFrame,
    options: Statistics,
    *,
    architectures: Mapping[str, str],
    convention: str = "common",
    randomizer: str = "init",
    preset: str = "paper",
    stochastic: Collection[str] | None = None,
) -> pd.DataFrame:
    """The extended-IPR paper's claims, recomputed: `tables/ipr_claims.csv`.

    Parameters
    ----------
    scores, rows, options, stochastic
        As for `ipr`.
    architectures : mapping of str to str
        From *trained* models to their architectures; each architecture's first model counts.
    convention, randomizer, preset : str
        Which SSIM and which randomizing; independent order always.

    Returns
    -------
    DataFrame
        Columns `CLAIM_COLUMNS`, always the same rows. direction: `holds`, `fails`, `inconclusive`
        or `not measurable here`, with the reason; size: the paper's value `inside` or `outside`
        the interval, or `not comparable`. Intervals cover images and weight draws of these very
        networks. Where the paper prints no number, paper_value is NaN.
    """
    evidence = _Evidence(
        scores,
        rows,
        options,
        architectures,
        convention=convention,
        randomizer=randomizer,
        preset=preset,
        stochastic=stochastic,
    )
    found = []
    for claim in _CLAIMS:
        row: dict[str, Any] = {
            "claim": claim.claim,
            "name": claim.name,
            "section": claim.section,
            "statement": claim.statement,
            "recipe": claim.recipe,
            "paper_value": claim.paper_value,
            "value": math.nan,
            "ci_low": math.nan,
            "ci_high": math.nan,
            "unit": claim.unit,
            "n_images": 0,
            "direction": NOT_MEASURABLE,
            "size": "not comparable",
        }
        try:
            finding = claim.judge(evidence)
        except _MissingError as missing:
            row["reason"] = str(missing)
        else:
            row |= {
                "value": finding.value,
                "ci_low": finding.interval[0],
                "ci_high": finding.interval[1],
                "n_images": finding.n_images,
                "direction": finding.direction,
                "size": finding.size(claim.paper_value),
                "reason": "; ".join(finding.notes),
            }
        found.append(row)
    return pd.DataFrame(found, columns=list(CLAIM_COLUMNS))


_GUIDED = ("guided_backprop", "guided_gradcam")

_OTHERS = tuple(name for name in PAPER_METHODS if name not in _GUIDED)

_LINEAR = ("deeplift", "input_x_gradient", "integrated_gradients")

_LOW, _HIGH = ("vgg16", "resnet18", "resnet50"), ("inception_v3", "mobilenet_v2")


def _all_pass(evidence: _Evidence, groups: Mapping[str, Group]) -> _Finding:
    parts: dict[str, Replicates] = {}
    verdicts: dict[str, list[str]] = {"yes": [], "no": [], "inconclusive": []}
    for name, group in groups.items():
        verdicts[group.verdict(THRESHOLD)].append(name)
        parts[name] = group.same
        if group.stochastic and group.excess is not None:
            parts[f"{name} (excess)"] = group.excess
    found = evidence.smallest(parts)
    counted = ", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts.items())
    notes = (f"of {len(groups)}: {counted}", *found.notes)
    if verdicts["no"]:
        notes += (f"no: {', '.join(verdicts['no'])}",)
    everyone = len(verdicts["yes"]) == len(groups)
    direction = "holds" if everyone else "fails" if verdicts["no"] else "inconclusive"
    return _Finding(found.value, found.interval, direction, found.n_images, notes)


def _pass_on_papers(evidence: _Evidence) -> _Finding:
    groups = evidence.all_groups(PAPER_ARCHITECTURES, PAPER_METHODS)
    names = [f"{m} on {a}" for a in PAPER_ARCHITECTURES for m in PAPER_METHODS]
    return _all_pass(evidence, dict(zip(names, groups, strict=True)))


def _pass_here(evidence: _Evidence) -> _Finding:
    groups = {f"{method} on {model}": group for (model, method), group in evidence.groups.items()}
    if not groups:
        raise _MissingError("the study has no IPR test of a trained model")
    found = _all_pass(evidence, groups)
    absent = [m for m in PAPER_METHODS if m not in {method for _, method in evidence.groups}]
    notes = (*found.notes, f"not tested: {', '.join(absent)}") if absent else found.notes
    return _Finding(found.value, found.interval, found.direction, found.n_images, notes)


def _lowest(method: str) -> Callable[[_Evidence], _Finding]:
    def judge(evidence: _Evidence) -> _Finding:
        evidence.all_groups(PAPER_ARCHITECTURES, (method,))
        return evidence.smallest(
            {
                f"{high} minus {low}": minus(
                    evidence.group(high, method).same, evidence.group(low, method).same
                )
                for high in _HIGH
                for low in _LOW
            }
        )

    return judge


def _spread(*values: np.ndarray) -> np.ndarray:
    return np.std(np.stack(values), axis=0, ddof=1)


def _average(*values: np.ndarray) -> np.ndarray:
    return np.mean(np.stack(values), axis=0)


def _guided_against_others(
    statistic: Callable[..., np.ndarray], sign: int
) -> Callable[[_Evidence], _Finding]:
    """Smallest sign * (guided - other) of a statistic over the five networks."""

    def judge(evidence: _Evidence) -> _Finding:
        evidence.all_groups(PAPER_ARCHITECTURES, PAPER_METHODS)
        over = {
            method: combined(
                statistic,
                *(evidence.group(a, method).same for a in PAPER_ARCHITECTURES),
                within=MOVED_RANGE,
            )
            for method in PAPER_METHODS
        }
        return evidence.smallest(
            {
                f"{guided} against {other}": combined(
                    lambda a, b: sign * (a - b),
                    over[guided],
                    over[other],
                    within=MOVED_RANGE.minus(MOVED_RANGE),
                )
                for guided in _GUIDED
                for other in _OTHERS
            }
        )

    return judge


def _lime_resnet50(evidence: _Evidence) -> _Finding:
    group = evidence.group("resnet50", "lime")
    others = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.all_groups(others, ("lime",))
    above = evidence.smallest(
        {f"above {a}": minus(group.same, evidence.group(a, "lime").same) for a in others}
    )
    count = group.cells["same"].size
    note = f"degenerate or undefined: {group.n_degenerate} of {count} comparisons"
    found = evidence.finding(group.same)
    return _Finding(found.value, found.interval, above.direction, found.n_images, (note,))


def _like_gradients(evidence: _Evidence) -> _Finding:
    architectures = [name for name in PAPER_ARCHITECTURES if name != "resnet50"]
    evidence.all_groups(architectures, ("lime", "gradient"))
    means = {
        method: combined(
            _average,
            *(evidence.group(a, method).same for a in architectures),
            within=MOVED_RANGE,
        )
        for method in ("lime", "gradient")
    }
    difference = minus(means["lime"], means["gradient"])
    found = evidence.finding(difference)
    low, high = found.interval
    inside = low > -_COMPARABLE and high < _COMPARABLE
    outside = high < -_COMPARABLE or low > _COMPARABLE
    direction = "holds" if inside else "fails" if outside else "inconclusive"
    return _Finding(found.value, found.interval, direction, found.n_images)


# "Comparable": the paper gives no bound.
_COMPARABLE = 0.1


def _correlated(
    pairs: Sequence[tuple[str, str]], *, ranked: bool, claimed: bool = True
) -> Callable[[_Evidence], _Finding]:
    """Weakest of the correlations claimed, or strongest of those claimed absent."""

    def judge(evidence: _Evidence) -> _Finding:
        per_pair: dict[tuple[str, str], Replicates] = {}
        p: list[float] = []
        numbers: dict[tuple[str, str], int] = {}
        for pair in PAIRS:
            architectures = [
                a
                for a, m in evidence.models.items()
                if all((m, x) in evidence.groups for x in pair)
            ]
            if len(architectures) < FEWEST_ARCHITECTURES:
                if pair in pairs:
                    reason = too_few_architectures(len(architectures)).removeprefix(
                        f"{NOT_MEASURABLE}: "
                    )
                    raise _MissingError(f"{' and '.join(pair)}: {reason}")
                p.append(math.nan)
                continue
            numbers[pair] = len(architectures)
            sides = [[evidence.group(a, m).same for a in architectures] for m in pair]
            points = [np.array([part.point for part in side]) for side in sides]
            p.append(exact_p(points[0], points[1], ranked=ranked))
            if pair in pairs:
                per_pair[pair] = combined(
                    lambda *values: _over_architectures(values, ranked),
                    *sides[0],
                    *sides[1],
                    within=SIMILARITY_RANGE,
                )
        constant = [pair for pair in pairs if math.isnan(per_pair[pair].point)]
        if constant:
            raise _MissingError(f"{' or '.join(constant[0])} has the same S on all architectures")
        adjusted = dict(zip(PAIRS, holm(p), strict=True))
        chosen = (min if claimed else max)(pairs, key=lambda pair: per_pair[pair].point)
        found = per_pair[chosen]
        interval = evidence.interval(found)
        shown = [pair for pair in pairs if adjusted[pair] <= 0.05]
        if claimed:
            holds = len(shown) == len(pairs) and found.point > 0
            direction = "holds" if holds else "fails" if interval[1] <= 0 else "inconclusive"
        else:
            direction = "fails" if shown else "inconclusive"
        notes = [f"exact p {p[PAIRS.index(chosen)]:.3g}, after Holm {adjusted[chosen]:.3g}"]
        if len(pairs) > 1:
            notes.insert(0, f"{'weakest' if claimed else 'largest'}: {' and '.join(chosen)}")
        n = numbers[chosen]
        least = min(2 / math.factorial(n) * sum(map(math.isfinite, p)), 1.0)
        if least > 0.05:
            notes.append(
                f"{n} architectures can't show one: the smallest p after Holm is {least:.2g}"
            )
        return _Finding(found.point, interval, direction, found.seen, tuple(notes))

    return judge


def _over_architectures(values: Sequence[np.ndarray], ranked: bool) -> np.ndarray:
    half = len(values) // 2
    a, b = np.stack(values[:half], axis=-1), np.stack(values[half:], axis=-1)
    found = np.full(len(a), np.nan)
    whole = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    a, b = a[whole], b[whole]
    found[whole] = correlate(ranks(a), ranks(b)) if ranked else correlate(a, b)
    return found


def _within_unit_interval(evidence: _Evidence) -> _Finding:
    same = evidence.frame[evidence.frame["kind"] == "same"]
    if same["score"].notna().sum() == 0:
        raise _MissingError("the study has no IPR test of a trained model")
    largest = max(
        (group.same.point, f"{method} on {model}")
        for (model, method), group in evidence.groups.items()
        if math.isfinite(group.same.point)
    )
    below = same["score"] < 0
    cells = (1 - same["score"]).groupby([same["model"], same["method"], same["image_id"]]).mean()
    notes = (
        f"largest: {largest[1]}",
        f"SSIM is negative in {int(below.sum())} of {int(same['score'].notna().sum())} "
        f"comparisons; S^i exceeds 1 for {int((cells > 1).sum())} of {len(cells)} images and "
        "methods",
    )
    direction = "holds" if largest[0] <= 1 else "fails"
    seen = same["image_id"].nunique()
    return _Finding(largest[0], (math.nan, math.nan), direction, seen, notes)


_NO_NUMBER = math.nan

_DIFFERENCE = "difference of S"

_CLAIMS = (
    _Claim(
        "I1",
        "all seven methods pass on the paper's five networks",
        "7, Fig. 3",
        "S^I of all seven methods on all five networks is at least .01",
        "smallest S_same, and excess of stochastic methods, over methods and networks; holds where "
        "all pass (docs/protocol.md, Randomized parameters)",
        _NO_NUMBER,
        "S",
        _pass_on_papers,
    ),
    _Claim(
        "I1b",
        "all methods pass on the networks here",
        "7, Fig. 3",
        "The same for the methods and networks of this study, whatever they are",
        "as I1, over what was tested",
        _NO_NUMBER,
        "S",
        _pass_here,
    ),
    _Claim(
        "I2",
        "guided backprop is lowest on VGG16 and ResNets",
        "7, Fig. 3",
        "Guided backprop's S^I is lowest on VGG16, ResNet-18 and ResNet-50, higher on InceptionV3 "
        "and MobileNetV2",
        "smallest S_same of a network said to be high minus one said to be low",
        _NO_NUMBER,
        _DIFFERENCE,
        _lowest("guided_backprop"),
    ),
    _Claim(
        "I3",
        "Guided GradCAM is lowest on VGG16 and ResNets",
        "7, Fig. 3",
        "Guided GradCAM's S^I is lowest on VGG16, ResNet-18 and ResNet-50, higher on InceptionV3 "
        "and MobileNetV2",
        "as I2",
        _NO_NUMBER,
        _DIFFERENCE,
        _lowest("guided_gradcam"),
    ),
    _Claim(
        "I4",
        "the other methods' S is high",
        "7, Fig. 3",
        "S^I of DeepLIFT, InputXGradient, IG, Gradients and LIME is consistently high",
        "smallest mean over the five networks of one of them minus that of guided backprop or "
        "Guided GradCAM; the paper names no level",
        _NO_NUMBER,
        _DIFFERENCE,
        _guided_against_others(_average, -1),
    ),
    _Claim(
        "I5",
        "the other methods' S varies little",
        "7, Fig. 3",
        "S^I of guided backprop and Guided GradCAM varies much between networks, that of the "
        "others little",
        "smallest standard deviation over the five networks of guided backprop or Guided GradCAM "
        "minus that of another method",
        _NO_NUMBER,
        "difference of standard deviations",
        _guided_against_others(_spread, 1),
    ),
    _Claim(
        "I6",
        "LIME reaches 1.0 on ResNet-50",
        "7",
        "LIME's S^I on ResNet-50 is 1.0, above that on the other networks",
        "S_same of LIME on ResNet-50; direction: above LIME's S_same on each other network",
        1.0,
        "S",
        _lime_resnet50,
    ),
    _Claim(
        "I7",
        "LIME is comparable to Gradients elsewhere",
        "7",
        "But for ResNet-50, LIME's S^I is comparable to that of Gradients",
        f"mean S_same of LIME minus Gradients over the other four networks; comparable: within "
        f"{_COMPARABLE:g}, a bound of our own",
        _NO_NUMBER,
        _DIFFERENCE,
        _like_gradients,
    ),
    _Claim(
        "I8",
        "guided backprop and Guided GradCAM go together",
        "7, Table 2",
        "Their S^I are significantly correlated over networks (Spearman)",
        "Spearman's correlation of S_same over architectures; holds at exact p <= .05 after Holm "
        "over the 21 pairs",
        PAPER_SPEARMAN["guided_backprop", "guided_gradcam"],
        "correlation",
        _correlated([("guided_backprop", "guided_gradcam")], ranked=True),
    ),
    _Claim(
        "I8b",
        "guided backprop and Guided GradCAM go together linearly",
        "7, Table 3",
        "Their S^I are significantly correlated over networks (Pearson)",
        "as I8, Pearson",
        PAPER_PEARSON["guided_backprop", "guided_gradcam"],
        "correlation",
        _correlated([("guided_backprop", "guided_gradcam")], ranked=False),
    ),
    _Claim(
        "I9",
        "DeepLIFT, InputXGradient and IG go together",
        "7, Table 2",
        "Their S^I are significantly correlated over networks (Spearman)",
        "as I8, weakest of the three correlations; the paper's own weakest, .7, is not significant",
        min(PAPER_SPEARMAN[pair] for pair in itertools.combinations(_LINEAR, 2)),
        "correlation",
        _correlated(list(itertools.combinations(_LINEAR, 2)), ranked=True),
    ),
    _Claim(
        "I9b",
        "DeepLIFT, InputXGradient and IG go together linearly",
        "7, Table 3",
        "Their S^I are significantly correlated over networks (Pearson)",
        "as I9, Pearson",
        min(PAPER_PEARSON[pair] for pair in itertools.combinations(_LINEAR, 2)),
        "correlation",
        _correlated(list(itertools.combinations(_LINEAR, 2)), ranked=False),
    ),
    _Claim(
        "I10",
        "Gradients stand apart",
        "7, Table 2",
        "S^I of Gradients is not significantly correlated with DeepLIFT, InputXGradient and IG "
        "(Spearman)",
        "largest of the three correlations; fails where one has exact p <= .05 after Holm; a "
        "correlation not shown is no correlation shown absent, so this can't hold",
        max(PAPER_SPEARMAN[method, "gradient"] for method in _LINEAR),
        "correlation",
        _correlated([(name, "gradient") for name in _LINEAR], ranked=True, claimed=False),
    ),
    _Claim(
        "I10b",
        "Gradients stand apart linearly",
        "7, Table 3",
        "S^I of Gradients is not significantly correlated with DeepLIFT, InputXGradient and IG "
        "(Pearson)",
        "as I10, Pearson",
        max(PAPER_PEARSON[method, "gradient"] for method in _LINEAR),
        "correlation",
        _correlated([(name, "gradient") for name in _LINEAR], ranked=False, claimed=False),
    ),
    _Claim(
        "I11",
        "S lies between 0 and 1",
        "4, definition 3",
        "As SSIM is in [0, 1], S^I is in [0, 1] for any method",
        "largest S_same over methods and networks, at most 1; SSIM of signed maps can be negative",
        _NO_NUMBER,
        "S",
        _within_unit_interval,
    ),
)
