"""Rank and linear correlation over few units, with exact p values."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# Permutations of 9 take a second; of 10, minutes.
_MOST_PERMUTED = 9


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of finite pairs, and its p value."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    rho, p = stats.spearmanr(a, b)
    return float(rho), float(p)


# Correlations over architectures


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, ties at their mean."""
    return stats.rankdata(values, axis=-1)


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where a side is constant."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    constant = norm <= 1e-300
    return np.where(constant, np.nan, (a * b).sum(-1) / np.where(constant, 1.0, norm))


def exact_p(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, ranked: bool = True
) -> float:
    """Exact two-sided permutation p of a correlation.

    Parameters
    ----------
    a, b : sequence of float
        Up to nine pairs of values.
    ranked : bool
        Spearman's correlation (else Pearson's).

    Returns
    -------
    float
        Share of permutations with a correlation at least as large in magnitude; NaN where a side is
        constant, or with more than nine values.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if ranked:
        first, second = ranks(first), ranks(second)
    observed = float(correlate(first, second))
    if math.isnan(observed) or len(first) > _MOST_PERMUTED:
        return math.nan
    permuted = np.array(list(itertools.permutations(second)))
    found = correlate(first, permuted)
    return float((np.abs(found) >= abs(observed) - 1e-9).mean())


def t_p(rho: float, n: int) -> float:
    """Two-sided p of a correlation by Student's t with n - 2 degrees of freedom."""
    if math.isnan(rho):
        return math.nan
    if abs(rho) >= 1 - 1e-12:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * math.sqrt((n - 2) / (1 - rho**2)), n - 2))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted after Holm (1979); NaN stays and doesn't count."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1) if len(order) else []
    return adjusted.tolist()
