"""Similarity against scikit-image and scipy, closed forms, traps and errors."""

import math
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from skimage.feature import hog
from skimage.metrics import structural_similarity

from steadymap.metrics import similarity
from steadymap.metrics.similarity import (
    CONVENTIONS,
    INVERTED,
    Convention,
    convention_of,
    custom_similarity,
    degenerate,
    dynamic_range,
    hog_pearson,
    inverted,
    normalize,
    pearson,
    similarities,
    spearman,
    ssim,
)

PAIRS = 3
SIZES = [(64, 64), (224, 224), (65, 97)]
SCORES = {
    "ssim": ssim,
    "spearman": spearman,
    "pearson": pearson,
    "hog_pearson": lambda a, b: hog_pearson(a, b, pixels_per_cell=4),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Waiting for a second thread costs more than these small maps do when cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(kind, size, seed, pairs=PAIRS):
    """Two related batches of maps of one kind, float32 values in float64."""
    rng = np.random.default_rng([seed, *size])
    shape = (pairs, *size)
    noise = rng.standard_normal(shape), rng.standard_normal(shape)
    a, b = np.zeros(shape), np.zeros(shape)
    if kind == "signed":
        a, b = noise[0], noise[0] + noise[1]
    elif kind == "offset":
        a, b = 100 + noise[0], 90 + noise[0] + noise[1]
    elif kind == "smooth":
        row, column = np.meshgrid(*map(np.arange, size), indexing="ij")
        a = np.sin(row / 9 + noise[0][:, :1, :1]) * np.cos(column / 7)
        b = np.sin(row / 9 + noise[1][:, :1, :1]) * np.cos(column / 8)
    elif kind == "lime":
        blocks = rng.integers(0, 30, (2, 9, 9))
        # The segments of the two maps coincide, as LIME's do at one number of superpixels.
        segment = blocks[0].repeat(-(-size[0] // 9), 0).repeat(-(-size[1] // 9), 1)
        segment = segment[: size[0], : size[1]]
        weights = rng.standard_normal((2, pairs, 30))
        weights[1] += weights[0]
        a, b = weights[0][:, segment], weights[1][:, segment]
    elif kind == "one_hot":
        a[:, size[0] // 2, size[1] // 2] = 1
        b[:, size[0] // 2 + 1, size[1] // 2 - 2] = -0.5
    elif kind == "sparse":
        kept = rng.random(shape) < 0.02, rng.random(shape) < 0.5
        a = noise[0] * kept[0]
        b = a * kept[1] + 0.1 * noise[1] * kept[0]
    elif kind == "levels":
        a, b = np.round(2 * noise[0]), np.round(noise[0] + noise[1])
    else:
        raise AssertionError(kind)
    return a.astype(np.float32).astype(float), b.astype(np.float32).astype(float)


KINDS = ["signed", "offset", "smooth", "lime", "one_hot", "sparse", "levels"]


def tensors(*arrays, dtype=torch.float32):
    return [torch.from_numpy(array).to(dtype) for array in arrays]


def reference_hog_pearson(x, y, cell):
    return scipy.stats.pearsonr(*(hog(m, pixels_per_cell=(cell, cell)) for m in (x, y)))[0]


def assert_equals(scores, expected):
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-6)


def same_bits(a, b):
    return torch.equal(a.nan_to_num(nan=9.0), b.nan_to_num(nan=9.0))


# Identity and closed forms


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_map_with_itself_scores_exactly_one(score, kind, dtype):
    (a,) = tensors(draw(kind, (48, 80), 0)[0], dtype=dtype)

    assert SCORES[score](a, a).tolist() == [1.0] * PAIRS


def test_ssim_of_constants_is_the_luminance_term():
    zero, half = torch.zeros(1, 9, 9), torch.full((1, 9, 9), 0.5)
    c1 = 0.02**2

    assert ssim(zero, zero).item() == 1
    assert ssim(half, half).item() == 1
    assert ssim(zero, half).item() == pytest.approx(c1 / (0.25 + c1), abs=1e-12)
    assert ssim(half, -half).item() == pytest.approx((c1 - 0.5) / (c1 + 0.5), abs=1e-12)


def test_ssim_of_one_window_by_hand():
    """One pixel of 25: mean 1/25, sample variance 1/25."""
    one_hot = torch.zeros(1, 5, 5)
    one_hot[0, 2, 2] = 1
    c1, c2 = 0.01**2, 0.03**2
    expected = c1 / (1 / 625 + c1) * c2 / (1 / 25 + c2)

    assert ssim(one_hot, 0 * one_hot, data_range=1).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_is_negative_for_inverted_structure():
    """Mean 0 and sample variance 1/12, so S = 1 - SSIM exceeds 1 and is not clipped."""
    dipole = torch.zeros(1, 5, 5)
    dipole[0, 1, 1], dipole[0, 3, 3] = 1, -1
    c2 = 0.06**2

    assert ssim(dipole, -dipole).item() == pytest.approx((c2 - 1 / 6) / (c2 + 1 / 6), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ties_share_their_average_rank(dtype):
    """The example of Xplique's tests: ranks 4, .5, 2.5, 2.5, .5, here around zero."""
    maps = torch.tensor([[[30, 10, 20, 20, 10]], [[0, 1, 2, 3, 4]]], dtype=dtype)

    ranks = similarity._ranks(maps) + 2

    assert ranks.tolist() == [[[4, 0.5, 2.5, 2.5, 0.5]], [[0, 1, 2, 3, 4]]]
    assert spearman(maps[:1], maps[1:]).item() == pytest.approx(-5 / 90**0.5, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_runs_of_equal_values_end_with_their_map(dtype):
    """The last of one map and the first of the next are equal and no tie."""
    values = [[1, 2, 2, 3, 3, 3], [3, 3, 4, 5, 6, 6], [6, 6, 6, 6, 6, 6], [1, 2, 3, 4, 5, 6]]

    ranks = similarity._ranks(torch.tensor(values, dtype=dtype)[:, None]) + 3.5

    assert ranks[:, 0].tolist() == [scipy.stats.rankdata(row).tolist() for row in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_order_negative_values_and_tie_the_two_zeros(dtype):
    values = [-0.0, -3.0, 0.0, 1e-30, -1e-30, 2.0, -2.0, 3e38, -3e38]

    ranks = similarity._ranks(torch.tensor([[values]], dtype=dtype)).flatten() + 5

    assert ranks.tolist() == scipy.stats.rankdata(values).tolist()


def test_pearson_by_hand():
    a = torch.tensor([[[1.0, 2.0, 3.0]]])
    b = torch.tensor([[[1.0, 3.0, 2.0]]])

    assert pearson(a, b).item() == pytest.approx(0.5, abs=1e-12)
    assert pearson(a, 2 - 3 * a).item() == pytest.approx(-1, abs=1e-12)


def test_hog_of_two_ramps_by_hand():
    """Each fills one of 9 bins in all 9 cells, clipped to equal values; disjoint: -p / (1 - p)."""
    ramp = torch.arange(12.0).expand(1, 12, 12)

    score = hog_pearson(ramp, ramp.mT, pixels_per_cell=4).item()

    assert score == pytest.approx(-(1 / 9) / (8 / 9), abs=1e-9)


# Independent values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_equal_scikit_image_and_scipy(kind, size, dtype):
    a, b = draw(kind, size, 1)
    ta, tb = tensors(a, b, dtype=dtype)
    pairs = list(zip(a, b, strict=True))

    assert_equals(
        ssim(ta, tb, data_range=2, win_size=5),
        [structural_similarity(x, y, data_range=2, win_size=5) for x, y in pairs],
    )
    assert_equals(
        ssim(ta, tb, data_range=1, win_size=11, gaussian_weights=True),
        [structural_similarity(x, y, data_range=1, gaussian_weights=True) for x, y in pairs],
    )
    assert_equals(
        spearman(ta, tb), [scipy.stats.spearmanr(x, y, axis=None).statistic for x, y in pairs]
    )
    assert_equals(
        pearson(ta, tb), [scipy.stats.pearsonr(x.ravel(), y.ravel())[0] for x, y in pairs]
    )
    assert_equals(
        hog_pearson(ta, tb, pixels_per_cell=16), [reference_hog_pearson(x, y, 16) for x, y in pairs]
    )


@pytest.mark.parametrize("kind", ["signed", "lime", "sparse"])
@pytest.mark.parametrize(
    "options",
    [
        {"win_size": 3, "data_range": 0.5},
        {"win_size": 7, "data_range": 1},
        {"win_size": 31, "data_range": 2},
        {"win_size": 11, "data_range": 1, "gaussian_weights": True, "sigma": 1.5},
        {"win_size": 5, "data_range": 2, "gaussian_weights": True, "sigma": 1.5},
        {"win_size": 15, "data_range": 2, "gaussian_weights": True, "sigma": 1.5},
        {"win_size": 7, "data_range": 1, "gaussian_weights": True, "sigma": 0.8},
    ],
    ids=str,
)
def test_ssim_options_equal_scikit_image(kind, options):
    """Gaussian windows wider or narrower than win_size mirror at the edge, or leave more out."""
    a, b = draw(kind, (31, 44), 2)

    expected = [structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)]

    assert_equals(ssim(*tensors(a, b), **options), expected)


def test_gaussian_wider_than_the_map_mirrors_repeatedly():
    a, b = draw("signed", (6, 7), 3)
    options = {"win_size": 5, "data_range": 2, "gaussian_weights": True, "sigma": 4.0}

    expected = [structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)]

    assert_equals(ssim(*tensors(a, b), **options), expected)


@pytest.mark.parametrize("cell", [2, 3, 4, 7, 8, 20])
@pytest.mark.parametrize("kind", ["signed", "lime", "smooth"])
def test_hog_equals_scikit_image_at_any_cell(kind, cell):
    """Odd cells too, and cells that do not divide the map."""
    a, b = draw(kind, (64, 75), 4)

    expected = [reference_hog_pearson(x, y, cell) for x, y in zip(a, b, strict=True)]

    assert_equals(hog_pearson(*tensors(a, b), pixels_per_cell=cell), expected)


@pytest.mark.parametrize("scale", [1, 1e-5])
@pytest.mark.parametrize("cell", [4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_hog_features_equal_scikit_image(kind, cell, scale):
    """Not their correlation alone, which would forgive a permutation or a scale."""
    a = scale * draw(kind, (64, 75), 5)[0]

    features = similarity._hog(torch.from_numpy(a), cell)

    # Blocks hold (orientation, row, column) here and (row, column, orientation) there.
    ours = features.unflatten(2, (9, 3, 3)).permute(0, 1, 3, 4, 2).flatten(1)
    theirs = np.stack([hog(x, pixels_per_cell=(cell, cell)) for x in a])
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-200, 1e200])
def test_correlations_at_extreme_scales(scale):
    a, b = draw("signed", (20, 20), 6)
    dtype = torch.float64 if scale in (1e-200, 1e200) else torch.float32
    ta, tb = tensors(a * scale, b * scale, dtype=dtype)

    assert_equals(pearson(ta, tb), pearson(*tensors(a, b)).numpy())
    assert_equals(spearman(ta, tb), spearman(*tensors(a, b)).numpy())
    assert_equals(ssim(normalize(ta), normalize(tb)), ssim(*map(normalize, tensors(a, b))).numpy())


# Traps


def test_one_outlier_makes_independent_maps_alike_to_ssim_alone():
    rng = np.random.default_rng(7)
    a, b = tensors(*rng.standard_normal((2, 2, 64, 64)))
    assert ssim(normalize(a), normalize(b)).max() < 0.1
    # 5,000 standard deviations are more than half of the mass of 4,096 pixels, 1,000 are not.
    for maps in (a, b):
        maps[0, 30, 30], maps[1, 30, 30] = 5000, 1000

    assert ssim(normalize(a), normalize(b)).min() > 0.999
    assert spearman(a, b).abs().max() < 0.05
    assert degenerate(a).tolist() == [True, False]


def test_small_maps_in_a_wide_range_are_alike_and_their_dynamic_range_tells():
    a, b = tensors(*(1e-4 * m for m in draw("signed", (64, 64), 8)))

    assert ssim(a, -b).min() > 0.9999
    assert dynamic_range(a).max() < 1e-3


def test_hog_is_blind_to_sign_and_the_rank_correlation_is_not():
    (a,) = tensors(draw("signed", (64, 64), 9)[0])

    np.testing.assert_allclose(hog_pearson(a, -a).numpy(), 1, atol=1e-9)
    assert spearman(a, -a).tolist() == [-1.0] * PAIRS


# Degenerate maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", SCORES)
def test_degenerate_maps_leave_their_neighbors_bitwise_unchanged(score, dtype):
    a, b = tensors(*draw("signed", (40, 40), 10, pairs=7), dtype=dtype)
    clean = SCORES[score](a, b)
    assert clean.isfinite().all()

    spoilt_a, spoilt_b = a.clone(), b.clone()
    spoilt_a[0, 3, 3] = torch.nan
    spoilt_b[1, 0, 0] = torch.inf
    spoilt_a[2] = -torch.inf
    spoilt_a[4] = spoilt_b[4] = 0.1
    spoilt_b[5] = 0
    scores = SCORES[score](spoilt_a, spoilt_b)

    assert torch.equal(scores[[3, 6]], clean[[3, 6]])
    assert scores[:3].isnan().all()
    if score == "ssim":
        assert scores[4] == 1
        assert scores[5].isfinite()
    else:
        assert scores[4:6].isnan().all()


@pytest.mark.parametrize("size", SIZES[1:])
def test_scores_depend_on_neither_batch_nor_threads(monkeypatch, size):
    a, b = tensors(*draw("signed", size, 11))
    scores = similarities("sliding_patch", a, b)

    monkeypatch.setattr(similarity, "_PIXELS_AT_ONCE", 2**30)
    at_once = similarities("sliding_patch", a, b)
    torch.set_num_threads(3)
    alone = [similarities("sliding_patch", a[i : i + 1], b[i : i + 1]) for i in range(PAIRS)]
    monkeypatch.setattr(similarity, "_LEAST_PIXELS", 1)
    shared = similarities("sliding_patch", a, b)

    assert torch.get_num_threads() == 3
    for key, values in scores.items():
        assert torch.equal(values, at_once[key])
        assert torch.equal(values, torch.cat([one[key] for one in alone]))
        assert torch.equal(values, shared[key])


def test_parts_are_shared_between_threads_unless_the_metric_is_ones_own(monkeypatch):
    """Each thread alone computes its part, and the caller keeps its number of them."""
    monkeypatch.setattr(similarity, "_LEAST_PIXELS", 1)
    torch.set_num_threads(2)
    a, b = tensors(*draw("signed", (16, 16), 15))
    seen = []

    def watched(x, y):
        seen.append((threading.get_ident(), torch.get_num_threads(), len(x)))
        return similarity._rank_correlation(x, y)

    scores = similarity._score(a, b, watched)
    ours, seen = seen, []
    custom_similarity("watched", watched, a, b)

    assert torch.equal(scores, spearman(a, b))
    assert {threads for _, threads, _ in ours} == {1}
    assert threading.get_ident() not in {thread for thread, _, _ in ours}
    assert sorted(pairs for *_, pairs in ours) == sorted(map(len, a.split(math.ceil(PAIRS / 2))))
    assert {(thread, threads) for thread, threads, _ in seen} == {(threading.get_ident(), 2)}
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_the_callers(monkeypatch):
    monkeypatch.setattr(similarity, "_LEAST_PIXELS", 1)
    torch.set_num_threads(2)
    a, b = tensors(*draw("signed", (16, 16), 16))

    def broken(x, y):
        raise MemoryError("4 GB too few")

    with pytest.raises(MemoryError, match="4 GB too few"):
        similarity._score(a, b, broken)
    assert torch.get_num_threads() == 2


def test_constant_map_is_constant_at_every_value_and_size():
    """.1 is no binary fraction: a mean that misses it would leave noise to correlate."""
    constant = torch.full((1, 37, 53), 0.1, dtype=torch.float64)
    (other,) = tensors(draw("signed", (37, 53), 12, pairs=1)[0], dtype=torch.float64)

    for score in ("spearman", "pearson", "hog_pearson"):
        assert SCORES[score](constant, other).isnan().all()
        assert SCORES[score](other, constant).isnan().all()


def test_hog_is_undefined_without_gradients():
    """A checkerboard is not constant, but its central differences are zero."""
    checks = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()[None]
    (other,) = tensors(draw("signed", (16, 16), 13, pairs=1)[0])

    assert hog_pearson(checks, other, pixels_per_cell=4).isnan().all()
    assert not degenerate(checks).any()


def test_degenerate_flags():
    maps = torch.ones(8, 4, 4)
    maps[1] = 0
    maps[2, 0, 0] = torch.nan
    maps[3, 0, 0] = -torch.inf
    maps[4] = torch.eye(4)
    maps[5] = 0
    maps[5, 1, 2] = -3
    maps[6] = 0.1
    maps[6, 0, 0], maps[6, 0, 1] = 1.0, -1.0  # less than half each
    maps[7] = 0.1
    maps[7, 0, 0] = -1.6  # of 3.1

    assert degenerate(maps).tolist() == [True, True, True, True, False, True, False, True]
    assert degenerate(maps).dtype == torch.bool


def test_half_of_the_mass_is_not_more_than_half():
    halves = torch.tensor([[[1.0, -0.5, 0.5]], [[1.0, -0.5, 0.25]]])

    assert degenerate(halves).tolist() == [False, True]


def test_dynamic_range():
    maps = torch.tensor([[[-1.0, 3.0]], [[2.0, 2.0]], [[torch.nan, 1.0]], [[-torch.inf, 1.0]]])

    ranges = dynamic_range(maps)

    assert ranges.dtype == torch.float64
    assert ranges[:2].tolist() == [4, 0]
    assert ranges[2:].isnan().all()


# Normalisation and conventions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize(dtype):
    maps = torch.tensor([[[-4.0, 2.0, 1.0]]], dtype=dtype)
    third = (torch.ones(1, dtype=dtype) / 3).item()

    assert normalize(maps).tolist() == [[[-1, 0.5, 0.25]]]
    assert normalize(maps, mode="abs_min_max").tolist() == [[[1, third, 0]]]
    assert normalize(maps, mode="none").tolist() == maps.tolist()
    assert {normalize(maps, mode=mode).dtype for mode in similarity._NORMALIZERS} == {dtype}


@pytest.mark.parametrize("mode", ["max_abs", "abs_min_max"])
def test_normalize_keeps_degenerate_maps_apart(mode):
    maps = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(14))
    clean = normalize(maps, mode=mode)
    maps[1], maps[2] = 0, -2
    maps[3, 0, 0], maps[4, 0, 0] = torch.nan, torch.inf

    scaled = normalize(maps, mode=mode)

    assert torch.equal(scaled[[0, 5]], clean[[0, 5]])
    assert (scaled[1] == 0).all()
    assert (scaled[2] == (-1 if mode == "max_abs" else 0)).all()
    assert scaled[3:5].isnan().all()


def test_conventions_are_data():
    assert CONVENTIONS["common"] == Convention("max_abs", 2.0, 5, False, 1.5)
    assert CONVENTIONS["wang"] == Convention("abs_min_max", 1.0, 11, True, 1.5)
    assert convention_of("lime", "sam") == CONVENTIONS["common"]
    assert convention_of("sliding_patch", "sam") == Convention("none", 2.0, 5, False, 1.5)
    assert convention_of("meaningful_perturbation", "sam") == Convention("none", 1.0, 5, False, 1.5)
    for method in ("sliding_patch", "meaningful_perturbation"):
        for name in ("common", "wang"):
            assert convention_of(method, name) == CONVENTIONS[name]


def test_win_size_leaves_wang_alone():
    sizes = [convention_of("sliding_patch", name, win_size=7).win_size for name in CONVENTIONS]

    expected = {"common": 7, "sam": 7, "wang": 11, "mass_weighted": 7}
    assert dict(zip(CONVENTIONS, sizes, strict=True)) == expected


@pytest.mark.parametrize("method", ["smoothgrad", "sliding_patch", "meaningful_perturbation"])
def test_similarities_equal_the_written_out_protocol(method):
    # The last pair is so small that HOG's block norm would see it only after scaling.
    scale = np.array([0.3, 0.3, 1e-6])[:, None, None]
    a, b = (scale * m for m in draw("smooth", (64, 64), 15))

    scores = similarities(method, *tensors(a, b), hog_cell=4, win_size=7)

    # Through float32, as the maps went in.
    a, b = (m.astype(np.float32).astype(float) for m in (a, b))
    expected = {key: [] for key in scores}
    for x, y in zip(a, b, strict=True):
        sx, sy = x / abs(x).max(), y / abs(y).max()
        mx, my = ((abs(m) - abs(m).min()) / np.ptp(abs(m)) for m in (x, y))
        sam = (sx, sy, 2) if method == "smoothgrad" else (x, y, 2 if "patch" in method else 1)
        for name, (p, q, span) in {"common": (sx, sy, 2), "sam": sam}.items():
            value = structural_similarity(p, q, data_range=span, win_size=7)
            expected["ssim", name].append(value)
        value = structural_similarity(mx, my, data_range=1, gaussian_weights=True, sigma=1.5)
        expected["ssim", "wang"].append(value)
        expected["spearman", "signed"].append(scipy.stats.spearmanr(x, y, axis=None).statistic)
        expected["pearson", "signed"].append(scipy.stats.pearsonr(x.ravel(), y.ravel())[0])
        expected["hog_pearson", "cells4"].append(reference_hog_pearson(sx, sy, 4))
    assert [*scores] == [
        ("ssim", "common"),
        ("ssim", "sam"),
        ("ssim", "wang"),
        ("spearman", "signed"),
        ("pearson", "signed"),
        ("hog_pearson", "cells4"),
    ]
    for key, values in expected.items():
        assert_equals(scores[key], values)
    same = torch.equal(scores["ssim", "sam"], scores["ssim", "common"])
    assert same == (method == "smoothgrad")


def mass_weighted(x, y, win_size):
    """SSIM's map by scikit-image, of maps shifted to [0, 1], weighted by both maps' mass."""
    x, y = x / abs(x).max(), y / abs(y).max()
    _, values = structural_similarity(
        (x + 1) / 2, (y + 1) / 2, data_range=1, win_size=win_size, full=True
    )
    mass = scipy.ndimage.uniform_filter(abs(x) + abs(y), win_size)
    margin = (win_size - 1) // 2
    inner = (slice(margin, -margin),) * 2
    return np.average(values[inner], weights=mass[inner])


@pytest.mark.parametrize("kind", ["smooth", "signed"])
@pytest.mark.parametrize("win_size", [5, 7])
def test_mass_weighted_ssim_equals_scikit_image_s_map_weighted(kind, win_size):
    a, b = draw(kind, (64, 64), 3)
    options = {"conventions": ("mass_weighted",), "hog_cell": 4, "win_size": win_size}

    for x, y in ((a, b), (a, -a), (a, a)):
        scores = similarities("gradient", *tensors(x, y), **options)["ssim", "mass_weighted"]

        x, y = (maps.astype(np.float32).astype(float) for maps in (x, y))
        expected = [mass_weighted(*pair, win_size) for pair in zip(x, y, strict=True)]
        assert_equals(scores, expected)
    assert (scores == 1).all()


def test_mass_weighted_ssim_sees_the_inverted_map_that_the_others_call_alike():
    generator = torch.Generator().manual_seed(0)
    maps = 0.01 * (torch.rand(1, 64, 64, generator=generator) - 0.5)
    maps[0, 24:32, 24:32] += torch.rand(8, 8, generator=generator) - 0.5
    mild = maps + 0.1 * maps.std() * torch.randn(maps.shape, generator=generator)
    blank = torch.zeros_like(maps)
    conventions = ("common", "mass_weighted")

    negative, changed, none = (
        similarities("gradient", x, y, conventions=conventions, hog_cell=4)
        for x, y in ((maps, -maps), (maps, mild), (blank, blank))
    )

    assert negative["ssim", "common"] > 0.8
    assert negative["ssim", "mass_weighted"] < -0.2
    assert changed["ssim", "mass_weighted"] > 0.9
    assert none["ssim", "mass_weighted"] == 1


def test_similarities_isolate_degenerate_pairs():
    a, b = tensors(*draw("signed", (64, 64), 16, pairs=80))
    clean = similarities("smoothgrad", a, b)
    a[5], b[7, 0, 0] = 0, torch.nan
    others = torch.ones(80, dtype=torch.bool)
    others[[5, 7]] = False

    scores = similarities("smoothgrad", a, b)

    for key, values in scores.items():
        assert torch.equal(values[others], clean[key][others])
        assert values[7].isnan()
        assert values[5].isnan() == (key[0] != "ssim")


def test_similarities_score_only_the_conventions_asked_for():
    a, b = tensors(*draw("signed", (12, 12), 17))

    scores = similarities("gradient", a, b, conventions=("common",), hog_cell=4)

    assert [key for key in scores if key[0] == "ssim"] == [("ssim", "common")]


# Inputs


@pytest.mark.parametrize("score", [*SCORES, "dynamic_range", "degenerate"])
def test_numpy_arrays_of_any_layout_are_accepted_and_left_alone(score):
    a, b = draw("signed", (20, 24), 18)
    read_only = a.copy()
    read_only.flags.writeable = False
    layouts = [read_only, a.astype(">f8"), a[::-1].copy()[::-1], np.asfortranarray(a)]
    function = SCORES.get(score) or (lambda x, _: getattr(similarity, score)(x))
    expected = function(*tensors(a, b, dtype=torch.float64))

    for layout in layouts:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(function(layout, b), expected)
        np.testing.assert_array_equal(layout, a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_are_not_modified_and_gradients_not_tracked(dtype):
    a, b = tensors(*draw("levels", (64, 64), 19), dtype=dtype)
    a[1, 0, 0] = torch.nan
    before = a.clone(), b.clone()
    a.requires_grad_()

    scores = similarities("sliding_patch", a, b)

    assert not any(values.requires_grad for values in scores.values())
    assert same_bits(a.detach(), before[0])
    assert same_bits(b, before[1])


def test_maps_may_be_views_and_of_mixed_precision():
    a, b = tensors(*draw("signed", (24, 32), 20), dtype=torch.float64)
    strided = a.mT.contiguous().mT
    expected = similarities("gradient", a, b, hog_cell=4)

    mixed = similarities("gradient", strided, b.float(), hog_cell=4)

    for key, values in expected.items():
        assert torch.equal(mixed[key], values)


def test_empty_batch_gives_no_scores():
    none = torch.zeros(0, 16, 16)

    assert {s.shape for s in similarities("lime", none, none, hog_cell=4).values()} == {(0,)}
    assert degenerate(none).shape == dynamic_range(none).shape == (0,)
    assert normalize(none).shape == (0, 16, 16)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: ssim(m[0], m), ValueError, r"a has shape \(12, 10\): .*maps\[None\]"),
        (lambda m: pearson(m, m[0]), ValueError, r"b has shape \(12, 10\)"),
        (lambda m: degenerate(m[0]), ValueError, r"maps has shape \(12, 10\)"),
        (lambda m: normalize(m[:, :0]), ValueError, r"maps has shape \(2, 0, 10\)"),
        (lambda m: spearman(m, m[:1]), ValueError, r"\(2, 12, 10\) but b \(1, 12, 10\): pair"),
        (lambda m: hog_pearson(m, m.mT), ValueError, r"\(2, 12, 10\) but b \(2, 10, 12\)"),
        (lambda m: pearson(m.long(), m), TypeError, r"a has dtype torch.int64: convert"),
        (lambda m: normalize(np.ones((1, 2, 2), bool)), TypeError, r"maps has dtype torch.bool"),
        (lambda m: normalize(m, mode="l2"), ValueError, r"mode 'l2' is unknown: .*abs_min_max"),
        (lambda m: ssim(m, m, win_size=4), ValueError, r"win_size is 4: use an odd number"),
        (lambda m: ssim(m, m, win_size=1), ValueError, r"win_size is 1: use an odd number"),
        (lambda m: ssim(m, m, win_size=11), ValueError, r"win_size 11 .*12 x 10.*up to 9"),
        (lambda m: ssim(m, m, data_range=0), ValueError, r"data_range is 0: use a positive"),
        (
            lambda m: ssim(m, m, gaussian_weights=True, sigma=0),
            ValueError,
            r"sigma is 0: use a positive",
        ),
        (
            lambda m: hog_pearson(m, m, pixels_per_cell=4),
            ValueError,
            r"pixels_per_cell 4 .*12 x 10.*use at most 3",
        ),
        (
            lambda m: hog_pearson(m, m, pixels_per_cell=0),
            ValueError,
            r"pixels_per_cell is 0: use a number from 1 on",
        ),
        (
            lambda m: similarities("lime", m, m, conventions=("wong",)),
            ValueError,
            r"convention 'wong' is unknown: use one of common, sam, wang",
        ),
        (
            lambda m: similarities("lime", m, m[:1]),
            ValueError,
            r"reference has shape \(2, 12, 10\) but variant \(1, 12, 10\)",
        ),
    ],
)
def test_errors_name_argument_value_and_remedy(call, error, match):
    with pytest.raises(error, match=match):
        call(torch.ones(2, 12, 10))


def test_largest_allowed_window_and_cell_pass():
    a, b = tensors(*draw("signed", (13, 12), 21))

    assert ssim(a, b, win_size=11).isfinite().all()
    assert hog_pearson(a, b, pixels_per_cell=4).isfinite().all()


def test_the_module_needs_no_scikit_image():
    code = "import sys, steadymap.metrics.similarity; sys.exit('skimage' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_map_against_its_negative_is_inverted_however_alike_ssim_calls_it():
    """Quiet windows score about 1, and two negative factors multiply to a positive."""
    generator = torch.Generator().manual_seed(0)
    maps = 0.01 * (torch.rand(1, 64, 64, generator=generator) - 0.5)
    maps[0, 24:32, 24:32] += torch.rand(8, 8, generator=generator) - 0.5

    ranks = spearman(maps, -maps)

    assert ssim(normalize(maps), normalize(-maps)) > 0.8
    assert inverted(ranks).tolist() == [True]
    edge = torch.tensor([INVERTED, INVERTED - 1e-9, 1, torch.nan], dtype=torch.float64)
    assert inverted(edge).tolist() == [False, True, False, False]
