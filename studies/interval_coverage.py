"""Measure how often 95 % intervals of a mean hold it: `reports/interval_coverage/`.

Usage: python studies/interval_coverage.py

Scores of images are drawn, normal or skewed, for 4 to 64 photographs of one image, or of three that
share it: then each image has its photograph's own score with a probability of one half. The
interval of steadymap's tables is `steadymap.statistics.resampling.interval`; three bootstraps over
photographs stand beside it.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from steadymap.statistics.intervals import ANY, POSITIVE, Range
from steadymap.statistics.resampling import interval
from steadymap.store.atomic import atomic_folder
from steadymap.store.tables import write_table

FOLDER = Path(__file__).resolve().parents[1] / "reports" / "interval_coverage"
PHOTOGRAPHS = (4, 8, 12, 16, 32, 64)
CONFIDENCE, IMAGES_SHARING, STUDIES, RESAMPLES = 0.95, 3, 4000, 1000
# Nominal coverage within what skewed scores of few photographs allow.
BAND = (0.93, 0.97)

# Distribution of an image's score, and the range that its interval knows of.
SCORES: dict[str, tuple[stats.rv_continuous, Range]] = {
    "normal": (stats.norm(), ANY),
    "beta(8, 2)": (stats.beta(8, 2), Range(0.0, 1.0)),
    "exponential": (stats.expon(), POSITIVE),
    "lognormal, sigma .5": (stats.lognorm(0.5), POSITIVE),
    "lognormal, sigma 1": (stats.lognorm(1.0), POSITIVE),
}

Ends = tuple[np.ndarray, np.ndarray]


def draw(scores: str, n: int, shared: bool, studies: int, rng: np.random.Generator) -> np.ndarray:
    """Scores (studies, photographs, images) of simulated studies.

    Parameters
    ----------
    scores : str
        Name in `SCORES`.
    n : int
        Number of photographs.
    shared : bool
        Whether photographs have several images.
    studies : int
        Number of studies.
    rng : Generator
        Where numbers come from.
    """
    shape = (studies, n, IMAGES_SHARING if shared else 1)
    own = SCORES[scores][0].rvs(shape, random_state=rng)
    return np.where(rng.random(shape) < 0.5, own[..., :1], own) if shared else own


def ours(values: np.ndarray, within: Range) -> Ends:
    """Intervals by the rule of steadymap's tables."""
    photographs = np.repeat(np.arange(values.shape[1]), values.shape[2]).astype(str).tolist()
    ends = [
        interval(study.ravel(), photographs, confidence=CONFIDENCE, within=within)
        for study in values
    ]
    low, high = np.transpose(ends)
    return low, high


def bootstraps(values: np.ndarray, rng: np.random.Generator) -> dict[str, Ends]:
    """Percentile, BCa (Efron 1987) and studentized intervals over photographs."""
    means = values.mean(axis=2)
    n = means.shape[1]
    point, error = means.mean(1), stats.sem(means, axis=1)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    resampled = counts @ means.T
    spread = np.sqrt(np.maximum(counts @ (means**2).T - resampled**2, 0) / (n - 1))
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    bias = stats.norm.ppf(np.clip((resampled < point).mean(0), 1e-3, 1 - 1e-3))
    deviations = means - point[:, None]
    skew = (deviations**3).sum(1) / (6 * (deviations**2).sum(1) ** 1.5)
    shifted = bias + stats.norm.ppf(tails)[:, None]
    corrected = stats.norm.cdf(bias + shifted / (1 - skew * shifted))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(spread > 0, (resampled - point) / spread, np.sign(resampled - point) * np.inf)
    t_low, t_high = np.quantile(t, tails, axis=0, method="closest_observation")
    in_order, studies = np.sort(resampled, axis=0), np.arange(len(means))
    places = np.rint(corrected * (RESAMPLES - 1)).astype(int)
    low, high = np.quantile(resampled, tails, axis=0)
    return {
        "percentile bootstrap": (low, high),
        "BCa bootstrap": (in_order[places[0], studies], in_order[places[1], studies]),
        "studentized bootstrap": (point - t_high * error, point - t_low * error),
    }


def coverages(
    scores: str, n: int, shared: bool, *, studies: int = STUDIES, others: bool = True
) -> Iterator[dict[str, object]]:
    """Coverage of each kind of interval in one cell of the table.

    Parameters
    ----------
    scores : str
        Name in `SCORES`.
    n : int
        Number of photographs.
    shared : bool
        Whether photographs have several images.
    studies : int
        Number of simulated studies.
    others : bool
        Whether to measure the bootstraps too.
    """
    distribution, within = SCORES[scores]
    rng = np.random.default_rng([n, shared, *scores.encode()])
    values = draw(scores, n, shared, studies, rng)
    found = {"jackknife t (steadymap)": ours(values, within)}
    found |= bootstraps(values, rng) if others else {}
    for method, (low, high) in found.items():
        covered = float(((low <= distribution.mean()) & (distribution.mean() <= high)).mean())
        cell = {"scores": scores, "photographs": n, "shared": shared, "method": method}
        yield cell | {"coverage": covered, "studies": studies}


def page(table: pd.DataFrame) -> str:
    """What the table says, in Markdown."""
    ends = table.groupby("method", sort=False)["coverage"].agg(["min", "max"])
    mine = table[table["method"] == table["method"].iloc[0]]
    wide = mine.pivot(index=["scores", "shared"], columns="photographs", values="coverage")
    names = {False: "one image each", True: f"{IMAGES_SHARING} images each"}
    outside = mine[~mine["coverage"].between(*BAND)]
    cells = [
        f"- {row.scores}, {row.photographs} photographs, {names[row.shared]}: {row.coverage:.3f}"
        for row in outside.itertuples()
    ]
    lines = [
        "# Coverage of intervals",
        "",
        f"Share of {STUDIES:,} simulated studies whose {CONFIDENCE:.0%} interval of a mean holds "
        "the true mean; `coverage.csv` has every cell.",
        "Made by `python studies/interval_coverage.py`, whose docstring says how scores are drawn.",
        "",
        "| method | lowest | highest coverage |",
        "|---|---|---|",
        *(f"| {row.Index} | {row.min:.3f} | {row.max:.3f} |" for row in ends.itertuples()),
        "",
        f"## {mine['method'].iloc[0]}",
        "",
        "| scores | photographs have | " + " | ".join(map(str, wide.columns)) + " |",
        "|---" * (2 + wide.shape[1]) + "|",
        *(
            f"| {scores} | {names[shared]} | " + " | ".join(f"{c:.3f}" for c in row) + " |"
            for (scores, shared), row in zip(wide.index, wide.to_numpy(), strict=True)
        ),
        "",
        f"Of {len(mine)} cells, {len(outside)} lie outside of {BAND[0]:g} to {BAND[1]:g}"
        + (":" if cells else "."),
        *(["", *cells] if cells else []),
    ]
    return "\n".join(lines) + "\n"


def main(folder: Path = FOLDER) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    cells = itertools.product(SCORES, PHOTOGRAPHS, (False, True))
    table = pd.DataFrame([row for cell in cells for row in coverages(*cell)])
    with atomic_folder(folder) as temporary:
        write_table(table, temporary / "coverage.csv")
        (temporary / "README.md").write_text(page(table))


if __name__ == "__main__":
    main()
