"""Similarity of attribution maps: SSIM, rank correlation, linear correlation, HOG correlation.

Every score takes two batches of maps of shape (batch, height, width), pairs them by position and
returns one float64 score per pair, computed in float64 on the first batch's device.
Each equals what scikit-image or scipy gives for the pair in float64.
A pair's score is the same to the last bit in any batch and with any number of threads.

What cannot be scored is NaN for that pair and never for its neighbors:

=============  =====================================  ==================================
score          a constant map in the pair             a NaN or infinity in the pair
=============  =====================================  ==================================
`ssim`         defined; two equal constants score 1   NaN
`spearman`     NaN, two equal constants too           NaN
`pearson`      NaN, two equal constants too           NaN
`hog_pearson`  NaN, as for any map without gradients  NaN
=============  =====================================  ==================================

`degenerate` flags those maps, and maps of which one pixel carries over half.
Such an outlier is a trap: max-abs scaling presses all other pixels to zero, where SSIM sees no
difference, and two independent maps score .999. At an SSIM window of 5 and range 2 some 900
standard deviations suffice, which in a large map is not yet half of its mass: read a high SSIM
beside `spearman` and `dynamic_range`, not beside the flag alone.

`inverted` flags the pairs whose maps are ordered the other way round, which SSIM may call alike.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Maps = Float[Tensor, "batch height width"] | Float[np.ndarray, "batch height width"]

Scores = Float64[Tensor, " batch"]

Metric = Callable[[Tensor, Tensor], Tensor]

# A pair is inverted where the rank correlation of its signed maps lies below this.
INVERTED = -0.3

# Pixels scored at a time by one thread, five maps of 224 px: with more the temporaries fall out of
# the processor's cache, with fewer than the least another thread costs more than it brings.
_PIXELS_AT_ONCE = 2**18

_LEAST_PIXELS = 2**16

_ORIENTATIONS = 9

_CELLS_PER_BLOCK = 3

# How far from 1 rounding may take a custom metric for equal maps.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Convention:
    """Parameters of SSIM; stored with every score.

    `normalize` is a mode of `normalize`, the rest are arguments of `ssim`. With `mass_weighted` the
    mean over windows is weighted by their mass: the sum of both maps' distances from the middle of
    the range, which is 0 for `max_abs_shifted` maps. Windows where both maps are near 0 then have
    no weight; in a plain mean they score about 1.
    """

    normalize: str
    data_range: float
    win_size: int
    gaussian_weights: bool
    sigma: float
    mass_weighted: bool = False


_COMMON = Convention("max_abs", 2.0, 5, gaussian_weights=False, sigma=1.5)

CONVENTIONS: dict[str, Convention] = {
    # One treatment for every method: the one to compare methods by.
    "common": _COMMON,
    # Bansal et al. (CVPR 2020) as coded; see _METHOD_CONVENTIONS for two methods.
    "sam": _COMMON,
    # Wang et al. (2004) for images in [0, 1], applied to the maps' magnitudes.
    "wang": Convention("abs_min_max", 1.0, 11, gaussian_weights=True, sigma=1.5),
    # Sees inverted maps, which the others may call alike: a window's mean has one sign only, and
    # quiet windows do not count.
    "mass_weighted": Convention("max_abs_shifted", 1.0, 5, False, 1.5, mass_weighted=True),
}

# Bansal et al. leave these two as they are, as probability differences and masks are bounded.
_METHOD_CONVENTIONS: dict[tuple[str, str], Convention] = {
    ("sam", "sliding_patch"): replace(_COMMON, normalize="none"),
    ("sam", "meaningful_perturbation"): replace(_COMMON, normalize="none", data_range=1.0),
}


def convention_of(method: str, name: str, *, win_size: int = 5) -> Convention:
    """Return the named SSIM convention as it applies to maps of `method`.

    Parameters
    ----------
    method : str
        Name of the attribution method: `sam` treats some differently.
    name : str
        Name in `CONVENTIONS`.
    win_size : int
        Window of the uniform conventions, px. `wang`, which is Gaussian by definition, keeps its
        own.

    Raises
    ------
    ValueError
        If the name is not in `CONVENTIONS`.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"convention {name!r} is unknown: use one of {', '.join(CONVENTIONS)}")
    convention = _METHOD_CONVENTIONS.get((name, method), CONVENTIONS[name])
    if convention.gaussian_weights:
        return convention
    return replace(convention, win_size=win_size)


def normalize(maps: Maps, *, mode: str = "max_abs") -> Float[Tensor, "batch height width"]:
    """Scale each map by its own extremes; the dtype stays.

    Parameters
    ----------
    maps : Tensor or ndarray
        Signed maps.
    mode : str
        `max_abs` divides by the largest magnitude: values in [-1, 1], signs kept.
        `max_abs_shifted` is the same in [0, 1], with .5 for 0.
        `abs_min_max` takes magnitudes and stretches them to [0, 1].
        `none` returns the maps as they are.

    Returns
    -------
    Tensor
        A zero map stays zero (`max_abs`) or becomes .5 (`max_abs_shifted`), a map of constant
        magnitude becomes zero (`abs_min_max`), and a map with a NaN or infinity becomes NaN
        throughout (all three).

    Raises
    ------
    TypeError, ValueError
        If the maps are not floating point or not 3-D, or the mode is unknown.
    """
    if mode not in _NORMALIZERS:
        raise ValueError(f"mode {mode!r} is unknown: use one of {', '.join(_NORMALIZERS)}")
    return _NORMALIZERS[mode](_as_maps("maps", maps))


def _max_abs(maps: Tensor) -> Tensor:
    low, high = _extremes(maps)
    return maps / _divisor(torch.maximum(-low, high))


def _abs_min_max(maps: Tensor) -> Tensor:
    magnitudes = maps.abs()
    low, high = _extremes(magnitudes)
    return magnitudes.sub_(low[:, None, None]).div_(_divisor(high - low))


def _divisor(span: Tensor) -> Tensor:
    """Shape a (batch,) span to divide maps by: 0 gives 1, NaN and infinity give NaN."""
    return torch.where(span.isfinite(), span.where(span != 0, 1), torch.nan)[:, None, None]


_NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_abs": _max_abs,
    "max_abs_shifted": lambda maps: _max_abs(maps).add_(1).div_(2),
    "abs_min_max": _abs_min_max,
    "none": lambda maps: maps,
}


def degenerate(maps: Maps) -> Bool[Tensor, " batch"]:
    """Flag the maps whose similarity to another means little or nothing.

    A map is degenerate if it is constant, holds a NaN or infinity, or if a single pixel carries
    more than half of the sum of magnitudes.
    """
    maps = _as_maps("maps", maps).double()
    low, high = _extremes(maps)
    # Scaled so that the largest magnitude is 1 and the sum cannot overflow.
    mass = _total(_max_abs(maps).abs())
    return ~_finite(maps) | (low == high) | (mass < 2)


def inverted(rank_correlation: Scores) -> Bool[Tensor, " batch"]:
    """Flag the pairs of maps whose `spearman` lies below `INVERTED`; an undefined one is not."""
    return rank_correlation < INVERTED


def dynamic_range(maps: Maps) -> Scores:
    """Return each map's maximum minus its minimum; NaN for a map with a NaN or infinity."""
    maps = _as_maps("maps", maps).double()
    low, high = _extremes(maps)
    return torch.where(_finite(maps), high - low, torch.nan)


def ssim(
    a: Maps,
    b: Maps,
    *,
    data_range: float = 2.0,
    win_size: int = 5,
    gaussian_weights: bool = False,
    sigma: float = 1.5,
) -> Scores:
    """Return the mean structural similarity of each pair.

    Parameters
    ----------
    a, b : Tensor or ndarray
        Signed maps, already normalized as the convention asks: nothing is rescaled here.
    data_range : float
        Span of the values that the maps could take: 2 for [-1, 1], 1 for [0, 1].
        Far above the span that they do take, every pair scores near 1.
    win_size : int
        Odd side of the window; also the border that is left out, (win_size - 1) / 2 wide.
    gaussian_weights : bool
        Weigh the window by a Gaussian of `sigma` pixels, cut at 3.5 sigma.
        Then `win_size` sets the border and the sample-covariance factor alone.

    Returns
    -------
    Tensor
        Scores in [-1, 1], so that S = 1 - SSIM lies in [0, 2] and must not be clipped. Identical
        maps score exactly 1, constant ones included.

    Raises
    ------
    TypeError, ValueError
        If the maps are not floating point, not 3-D or differ in shape, or if an option is out of
        range.

    Notes
    -----
    Equals `skimage.metrics.structural_similarity` with K1 = .01, K2 = .03 and sample covariance.
    One outlier pixel and max-abs scaling make two independent maps score .999: read the score
    beside `spearman`, `dynamic_range` and `degenerate`.

    A high score does not rule out an inverted map. Of signed maps, the score of a window with its
    negative is (c1 - 2 u**2)(c2 - 2 v) / ((c1 + 2 u**2)(c2 + 2 v)), u its mean and v its variance:
    near 1 where the window is quiet, and positive too where both factors are negative, which is
    where the map has most of its mass. On average over images, maps of gradients and of Sliding
    Patch score .3 to .8 against their own negatives (docs/protocol.md). `inverted` flags such
    pairs; the convention `mass_weighted` scores them far lower.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, IEEE TIP 13(4), 2004.
    """
    a, b = _as_pair(a, b)
    setting = Convention("none", data_range, win_size, gaussian_weights, sigma)
    return _score(a, b, _ssim_metric(a.shape, setting))


def spearman(a: Maps, b: Maps) -> Scores:
    """Return Spearman's rank correlation of each pair of signed maps, ties at average ranks.

    In [-1, 1]; NaN if a map of the pair is constant or not finite.
    Equals `scipy.stats.spearmanr(a, b, axis=None)` per pair; errors as for `ssim`.
    """
    a, b = _as_pair(a, b)
    return _score(a, b, _rank_correlation)


def pearson(a: Maps, b: Maps) -> Scores:
    """Return Pearson's correlation of each pair of signed maps.

    In [-1, 1]; NaN if a map of the pair is constant or not finite.
    Equals `scipy.stats.pearsonr` per pair; errors as for `ssim`.
    """
    a, b = _as_pair(a, b)
    return _score(a, b, _linear_correlation)


def hog_pearson(a: Maps, b: Maps, *, pixels_per_cell: int = 16) -> Scores:
    """Return Pearson's correlation between the pair's histograms of oriented gradients.

    Parameters
    ----------
    a, b : Tensor or ndarray
        Signed maps.
    pixels_per_cell : int
        Side of a cell, px.

    Returns
    -------
    Tensor
        In [-1, 1], blind to sign: a map and its negative score 1. NaN if a map of the pair is not
        finite or has no gradient in its cells, as constant maps have.

    Raises
    ------
    TypeError, ValueError
        As for `ssim`; and if the map holds fewer than 3 x 3 cells.

    Notes
    -----
    The histograms equal those of `skimage.feature.hog(map, pixels_per_cell=(c, c))`: 9 unsigned
    orientations, blocks of 3 x 3 cells, L2-Hys. Its block norm adds 1e-5, so maps that peak far
    below 1 are better scaled first.

    References
    ----------
    Dalal, Triggs: Histograms of oriented gradients for human detection, CVPR 2005.
    """
    a, b = _as_pair(a, b)
    return _score(a, b, _hog_metric(a.shape, pixels_per_cell))


def similarities(
    method: str,
    reference: Maps,
    variant: Maps,
    *,
    conventions: Sequence[str] = ("common", "sam", "wang"),
    hog_cell: int = 16,
    win_size: int = 5,
) -> dict[tuple[str, str], Scores]:
    """Score each pair by every similarity, each under a named convention.

    Parameters
    ----------
    method : str
        Name of the attribution method that made the maps: `sam` treats some differently.
    reference, variant : Tensor or ndarray
        Raw signed maps, as the method returns them.
    conventions : sequence of str
        Names in `CONVENTIONS` under which SSIM is computed.
    hog_cell : int
        Pixels per HOG cell: 16 at 224 px, 4 at 64 px.
    win_size : int
        Window of all conventions but `wang`.

    Returns
    -------
    dict
        Scores by (metric, convention): `ssim` by each of `conventions`, `spearman` and `pearson`
        by `signed` (they ignore scale), `hog_pearson` by `cells{hog_cell}` (on max-abs maps).
    """
    reference, variant = _as_pair(reference, variant, ("reference", "variant"))
    shape = reference.shape
    settings = {name: convention_of(method, name, win_size=win_size) for name in conventions}
    modes = {"max_abs"} | {setting.normalize for setting in settings.values()}
    # `common` and `sam` are the same for most methods: each distinct setting is scored once.
    ssim_by_setting = {setting: _ssim_metric(shape, setting) for setting in settings.values()}
    hog_metric = _hog_metric(shape, hog_cell)

    def every_metric(x: Tensor, y: Tensor) -> Tensor:
        raw = x.double(), y.double()
        scaled = {mode: [_NORMALIZERS[mode](maps) for maps in raw] for mode in modes}
        by_setting = {
            setting: metric(*scaled[setting.normalize])
            for setting, metric in ssim_by_setting.items()
        }
        return torch.stack(
            [
                *(by_setting[setting] for setting in settings.values()),
                _rank_correlation(x, y),  # faster in float32
                _cosine(*map(_centered, scaled["max_abs"])),
                hog_metric(*scaled["max_abs"]),
            ]
        )

    keys = [("ssim", name) for name in settings]
    keys += [("spearman", "signed"), ("pearson", "signed"), ("hog_pearson", f"cells{hog_cell}")]
    return dict(zip(keys, _score(reference, variant, every_metric), strict=True))


def custom_similarity(
    name: str, metric: Callable[[Tensor, Tensor], Any], reference: Maps, variant: Maps
) -> Scores:
    """Score each pair by a custom metric, whose values are checked.

    Parameters
    ----------
    name : str
        What the metric is called, for errors.
    metric : callable
        From two float64 batches of raw signed maps (batch, height, width), all finite, to a score
        per pair: 1 for equal maps, less for others, NaN where it is not defined.
    reference, variant : Tensor or ndarray
        Raw signed maps, as the method returns them.

    Returns
    -------
    Tensor
        Also NaN where a map of the pair holds a NaN or infinity.

    Raises
    ------
    ValueError
        Where the metric fails, gives anything but a number per pair, an infinite one, one above 1,
        or other than 1 for a map with itself.
    """
    reference, variant = _as_pair(reference, variant, ("reference", "variant"))

    def checked(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.double(), y.double()
        values = _custom_scores(name, metric, x, y)
        # One pair of a call is enough to tell a distance from a similarity.
        same = float(_custom_scores(name, metric, x[:1], x[:1])[0])
        if not degenerate(x[:1])[0] and not abs(same - 1) <= _TOLERANCE:
            raise ValueError(
                f"{name} of a map with itself is {same:g}; a similarity is 1 there and less for "
                "other pairs: for a distance d return 1 / (1 + d)"
            )
        if (values > 1 + _TOLERANCE).any() or values.isinf().any():
            worst = float(values[~values.isnan()].abs().max())
            raise ValueError(
                f"{name} scores {worst:g} in magnitude; a similarity is finite and at most 1, its "
                "value for equal maps: scale it"
            )
        return values

    if not len(reference):
        return torch.zeros(0).double()
    return _score(reference, variant, checked, threads=1)  # it may not stand more


def _custom_scores(
    name: str, metric: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor
) -> Tensor:
    try:
        scores = metric(x.clone(), y.clone())
        values = torch.as_tensor(scores).detach().to(x.device)
    except Exception as error:
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    if values.shape != (len(x),) or not values.is_floating_point():
        raise ValueError(
            f"{name} gives {values.dtype} of shape {tuple(values.shape)} for {len(x)} pairs of "
            "maps; return one float per pair, reducing over dim=(1, 2)"
        )
    return values.double()


def _as_maps(name: str, maps: Maps) -> Tensor:
    if not isinstance(maps, Tensor):
        # A copy in native order: torch takes neither foreign byte order nor negative strides,
        # and warns about read-only memory such as a memory-mapped archive.
        array = np.asarray(maps)
        maps = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    if not maps.is_floating_point():
        raise TypeError(f"{name} has dtype {maps.dtype}: convert the maps to floating point")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(
            f"{name} has shape {tuple(maps.shape)}: use (batch, height, width), "
            "for a single map maps[None]"
        )
    maps = maps.detach().contiguous()
    return maps.cpu() if maps.device.type == "mps" else maps  # Apple's GPUs have no float64


def _as_pair(a: Maps, b: Maps, names: tuple[str, str] = ("a", "b")) -> tuple[Tensor, Tensor]:
    first, second = _as_maps(names[0], a), _as_maps(names[1], b)
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} has shape {tuple(first.shape)} but {names[1]} {tuple(second.shape)}: "
            "pair maps of one shape, one to one"
        )
    return first, second.to(first.device)


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each item of a batch; NaN where it holds a NaN."""
    values = values.flatten(1)
    return values.amin(1), values.amax(1)  # each vectorized on CPU, unlike aminmax


def _finite(maps: Tensor) -> Tensor:
    low, high = _extremes(maps)
    return low.isfinite() & high.isfinite()


def _score(a: Tensor, b: Tensor, metric: Metric, *, threads: int | None = None) -> Tensor:
    """Score a few pairs at a time; one that is not finite is NaN and computed as zeros.

    On the CPU as many parts at once as torch has threads, each by one: most steps are too short to
    be shared, and sorting is not.
    """

    def part(pair: tuple[Tensor, Tensor]) -> Tensor:
        x, y = pair
        valid = _finite(x) & _finite(y)
        if not valid.all():
            x, y = (torch.where(valid[:, None, None], maps, 0) for maps in (x, y))
        return torch.where(valid, metric(x, y), torch.nan)

    available = torch.get_num_threads()
    threads = threads or (available if a.device.type == "cpu" else 1)
    least, most = (pixels // a.shape[1:].numel() for pixels in (_LEAST_PIXELS, _PIXELS_AT_ONCE))
    # An empty batch is one empty part.
    pairs = max(1, min(most, max(least, math.ceil(len(a) / threads))))
    parts = list(zip(a.split(pairs), b.split(pairs), strict=True))
    if threads == 1 or len(parts) == 1:
        return torch.cat([part(pair) for pair in parts], dim=-1)
    one_each = partial(torch.set_num_threads, 1)
    try:
        with ThreadPoolExecutor(min(threads, len(parts)), initializer=one_each) as pool:
            return torch.cat(list(pool.map(part, parts)), dim=-1)
    finally:
        torch.set_num_threads(available)  # what threads to come begin with


def _ssim_metric(shape: torch.Size, setting: Convention) -> Metric:
    """Return the metric for maps that are normalized already, checking that it suits them."""
    win_size, data_range, sigma = setting.win_size, setting.data_range, setting.sigma
    rows, columns = shape[1:]
    shortest = min(rows, columns)
    if win_size < 3 or win_size % 2 != 1:
        raise ValueError(f"win_size is {win_size}: use an odd number from 3 on")
    if win_size > shortest:
        raise ValueError(
            f"win_size {win_size} is larger than the map ({rows} x {columns}): "
            f"use an odd number up to {shortest - 1 + shortest % 2}, or larger maps"
        )
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range is {data_range}: use a positive number, 2 for [-1, 1]")
    if setting.gaussian_weights and not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}: use a positive number of pixels")

    middle = data_range / 2
    if setting.gaussian_weights:
        radius = int(3.5 * sigma + 0.5)
        bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        windows = partial(_weighted_mean, taps=(bell / bell.sum()).tolist())
        weight = 1  # of a window
    else:
        radius = win_size // 2
        windows = partial(_window_sum, width=win_size)
        weight = win_size**2
    margin = radius - (win_size - 1) // 2
    # Numerators and denominators of SSIM, times the squared weight and over the covariance factor:
    # sums of windows then stand for means.
    covariance_factor = win_size**2 / (win_size**2 - 1)
    c1 = torch.tensor((0.01 * data_range * weight) ** 2, dtype=torch.float64)
    c2 = torch.tensor((0.03 * data_range * weight) ** 2 / covariance_factor, dtype=torch.float64)

    def mean_ssim(x: Tensor, y: Tensor) -> Tensor:
        x, y = (_reach(maps.double(), margin) for maps in (x, y))
        # One after the other, as a stack of the four falls out of the processor's cache.
        ux, uy, uxx_uyy, uxy = map(windows, (x, y, (x * x).add_(y * y), x * y))
        if setting.mass_weighted:
            mass = windows((x - middle).abs_().add_((y - middle).abs_()))
        ux_uy, ux2_uy2 = ux * uy, ux.square_().add_(uy.square_())
        if weight != 1:
            uxx_uyy.mul_(weight)
            uxy.mul_(weight)
        values = torch.add(c2, uxy.sub_(ux_uy), alpha=2).mul_(torch.add(c1, ux_uy, alpha=2))
        values.div_(uxx_uyy.sub_(ux2_uy2).add_(c2).mul_(ux2_uy2.add_(c1)))
        plain = _mean(values)
        if not setting.mass_weighted:
            return plain
        total = _total(mass)
        # Two maps of zeros have no mass anywhere, and are equal.
        return torch.where(total > 0, _total(values.mul_(mass)) / total, plain)

    return mean_ssim


def _reach(maps: Tensor, margin: int) -> Tensor:
    """Grow maps by `margin` pixels mirrored at the edge (d c b a | a b c d), or crop by -margin."""
    if margin == 0:
        return maps
    for dim in (1, 2):
        size = maps.shape[dim]
        position = torch.arange(-margin, size + margin, device=maps.device) % (2 * size)
        maps = maps.index_select(dim, torch.minimum(position, 2 * size - 1 - position))
    return maps


def _weighted_mean(maps: Tensor, taps: list[float]) -> Tensor:
    """Filter rows and columns by `taps`, where the window lies inside; shorter by len(taps) - 1.

    Plain shifted sums: pooling and convolution are slower here.
    """
    for dim in (1, 2):
        size = maps.shape[dim] - len(taps) + 1
        mean = maps.narrow(dim, 0, size) * taps[0]
        for offset, weight in enumerate(taps[1:], start=1):
            mean.add_(maps.narrow(dim, offset, size), alpha=weight)
        maps = mean
    return maps


def _window_sum(maps: Tensor, width: int) -> Tensor:
    """Sum every window of `width` x `width` pixels; shorter by width - 1.

    By sums of 1, 2, 4, ... neighbors: running sums would cancel.
    """
    for dim in (1, 2):
        size = maps.shape[dim] - width + 1
        run, length, reached = maps, 1, 0
        total: Tensor | None = None
        while True:
            if width & length:
                part = run.narrow(dim, reached, size)
                total = part if total is None else total + part
                reached += length
            if 2 * length > width:
                break
            kept = run.shape[dim] - length
            run = run.narrow(dim, 0, kept) + run.narrow(dim, length, kept)
            length *= 2
        assert total is not None
        maps = total
    return maps


def _total(values: Tensor) -> Tensor:
    # Rows, then columns: torch sums one long row by as many threads as it has, and then a score's
    # last bits would depend on their number and on the batch.
    return values.sum(2).sum(1)


def _mean(values: Tensor) -> Tensor:
    return _total(values) / values.shape[1:].numel()


def _rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    return _cosine(_ranks(x), _ranks(y))


def _linear_correlation(x: Tensor, y: Tensor) -> Tensor:
    return _cosine(_centered(_max_abs(x.double())), _centered(_max_abs(y.double())))


def _centered(values: Tensor) -> Tensor:
    """Subtract its mean from each item of (batch, rows, columns), whose largest magnitude is 1.

    So scaled, squares stay inside float64's range, and a constant item is exactly 1 or -1 and
    centered to exact zeros.
    """
    return values - _mean(values)[:, None, None]


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    """Correlate the items of two centered batches; 0/0 = NaN for an item of zeros."""
    squares = _total(x * x) * _total(y * y)
    return (_total(x * y) / squares.sqrt()).clamp(-1, 1)


def _ranks(maps: Tensor) -> Tensor:
    """Rank the pixels of each map around zero, equal values sharing their average rank."""
    values = maps.flatten(1)
    batch, size = values.shape
    position = torch.arange(size, device=values.device)
    if values.dtype == torch.float64:
        order = _argsort(values)
        ordered = values.gather(1, order)
    else:
        # Sorting integers that hold the value (as an integer of the same order) above its place
        # is several times faster than an argsort. Adding 0 turns -0 into 0.
        bits = (values.float() + 0.0).view(torch.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        ordered = _sorted(bits.long().bitwise_left_shift_(32).bitwise_or_(position))
        order = ordered & 0xFFFFFFFF
        ordered >>= 32
    # Halves of so many pixels are exact in float32, half as much memory to scatter over.
    exact = torch.float32 if size < 2**23 else torch.float64
    ranks = (position.to(exact) - (size - 1) / 2).repeat(batch, 1)
    # Places whose value the next one has too, in all maps at once. A run of equal values, the last
    # of which is not among them, has the mean of its ends; float32 maps have few and short ones.
    equal = torch.zeros_like(ordered, dtype=torch.bool)
    torch.eq(ordered[:, 1:], ordered[:, :-1], out=equal[:, :-1])
    tied = equal.flatten().nonzero().squeeze(1)
    if len(tied):
        starts = torch.ones_like(tied, dtype=torch.bool)
        torch.ne(tied[1:], tied[:-1] + 1, out=starts[1:])
        at = starts.nonzero().squeeze(1)
        first, last = tied[at], torch.cat([tied[at[1:] - 1], tied[-1:]]) + 1
        flat = ranks.view(-1)
        means = (flat[first] + flat[last]) / 2
        flat.scatter_(0, tied, means.index_select(0, starts.cumsum(0) - 1))
        flat.scatter_(0, last, means)
    return torch.empty_like(ranks).scatter_(1, order, ranks).double().view(maps.shape)


def _argsort(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), axis=1))  # vectorized, unlike torch's
    return values.argsort(dim=1)


def _sorted(keys: Tensor) -> Tensor:
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
        return keys
    return keys.sort(dim=1).values


def _hog_metric(shape: torch.Size, cell: int) -> Metric:
    rows, columns = shape[1:]
    most = min(rows, columns) // _CELLS_PER_BLOCK
    if cell < 1:
        raise ValueError(f"pixels_per_cell is {cell}: use a number from 1 on")
    if cell > most:
        raise ValueError(
            f"pixels_per_cell {cell} leaves a map of {rows} x {columns} fewer than the 3 x 3 "
            f"cells of a block: use at most {most}, or larger maps"
        )
    return lambda x, y: _linear_correlation(_hog(x.double(), cell), _hog(y.double(), cell))


def _hog(maps: Tensor, cell: int) -> Tensor:
    """Return histograms of oriented gradients: (batch, blocks, values of a block)."""
    rows, columns = maps.shape[1] // cell, maps.shape[2] // cell
    gradient_row, gradient_column = torch.zeros_like(maps), torch.zeros_like(maps)
    torch.sub(maps[:, 2:], maps[:, :-2], out=gradient_row[:, 1:-1])
    torch.sub(maps[:, :, 2:], maps[:, :, :-2], out=gradient_column[:, :, 1:-1])
    # Gradients look across the edge of the outermost cells, so the remainder is cut only now.
    gradient_row = gradient_row[:, : rows * cell, : columns * cell]
    gradient_column = gradient_column[:, : rows * cell, : columns * cell]

    magnitude = torch.hypot(gradient_column, gradient_row)
    degrees = torch.atan2(gradient_row, gradient_column).mul_(180 / math.pi)
    # Modulo 180, for which `remainder` takes three times as long.
    degrees.sub_((degrees / 180).floor_(), alpha=180)
    # A negative angle too small for float64 gives 180 itself: bin 9, in no histogram there either.
    orientation = degrees.div_(180 / _ORIENTATIONS).long()
    bins = _ORIENTATIONS + 1
    row = torch.arange(rows * cell, device=maps.device)[:, None] // cell
    column = torch.arange(columns * cell, device=maps.device) // cell
    slot = orientation.add_((row * columns + column) * bins)
    histograms = maps.new_zeros(len(maps), rows * columns * bins)
    histograms.scatter_add_(1, slot.flatten(1), magnitude.flatten(1))
    histograms = histograms.view(len(maps), rows, columns, bins)[..., :_ORIENTATIONS] / cell**2

    blocks = histograms.unfold(1, _CELLS_PER_BLOCK, 1).unfold(2, _CELLS_PER_BLOCK, 1)
    blocks = blocks.flatten(3).flatten(1, 2)
    blocks = (blocks / _block_norm(blocks)).clamp(max=0.2)
    return blocks / _block_norm(blocks)


def _block_norm(blocks: Tensor) -> Tensor:
    return (blocks.square().sum(-1, keepdim=True) + 1e-5**2).sqrt()
