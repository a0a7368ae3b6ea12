"""Rank and linear correlation over few units, with exact p values."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# All permutations of 9 take seconds; of 10, minutes.
_MOST_PERMUTED = 9

Side = Sequence[float] | np.ndarray


def rank_correlation(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of finite pairs, and its p value by Student's t.

    NaN with fewer than three pairs, or where a side is constant.
    """
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    result = stats.spearmanr(a, b)
    return float(result.statistic), float(result.pvalue)


def _standardized(side: Side, ranked: bool) -> np.ndarray:
    """Ranks or values, less their mean, over their standard deviation; NaN where constant."""
    values = stats.rankdata(side, axis=-1) if ranked else np.asarray(side, dtype=np.float64)
    varies = np.ptp(values, axis=-1, keepdims=True) > 0
    scale = np.where(varies, values.std(axis=-1, keepdims=True), np.nan)
    return (values - values.mean(axis=-1, keepdims=True)) / scale


def correlate(a: Side, b: Side, *, ranked: bool) -> np.ndarray:
    """Correlation along the last axis; NaN where a side is constant.

    Parameters
    ----------
    a, b : array_like
        Values, of equal shape.
    ranked : bool
        Spearman's correlation (else Pearson's).
    """
    return (_standardized(a, ranked) * _standardized(b, ranked)).mean(axis=-1)


def t_p(a: Side, b: Side, *, ranked: bool) -> float:
    """Two-sided p of a correlation by Student's t with n - 2 degrees of freedom.

    Parameters
    ----------
    a, b : sequence of float
        Pairs of values.
    ranked : bool
        Spearman's correlation (else Pearson's).
    """
    if math.isnan(correlate(a, b, ranked=ranked)):
        return math.nan
    return float((stats.spearmanr if ranked else stats.pearsonr)(a, b).pvalue)


def exact_p(a: Side, b: Side, *, ranked: bool = True) -> float:
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
    first, second = _standardized(a, ranked), _standardized(b, ranked)
    if len(first) > _MOST_PERMUTED or np.isnan([first, second]).any():
        return math.nan
    test = stats.permutation_test(
        (second,),
        lambda permuted, axis: (first * permuted).mean(axis=axis),
        permutation_type="pairings",
        n_resamples=math.inf,
        vectorized=True,
    )
    # scipy's p doubles the smaller tail; a test by magnitude counts both.
    return float((np.abs(test.null_distribution) >= abs(test.statistic) - 1e-9).mean())


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted after Holm (1979); NaN stays and doesn't count."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()
