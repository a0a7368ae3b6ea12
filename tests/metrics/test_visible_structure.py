"""Visible structure of maps against numpy, scipy and scikit-image on single maps."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.filters import sobel

from steadymap.metrics.structure import autocorrelation, edge_correlation, edges, mass_inside

SHAPE = 4, 9, 11


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def neighbors(a, b):
    """Correlation over pairs of neighbors, a loop over pixels."""
    here, there = [], []
    height, width = a.shape
    for y in range(height):
        for x in range(width):
            for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if 0 <= y + down < height and 0 <= x + across < width:
                    here.append(abs(a[y, x]))
                    there.append(abs(b[y + down, x + across]))
    return np.corrcoef(np.array(here, float), np.array(there, float))[0, 1]


def test_edges_are_sobels_of_the_gray_image():
    images = np.random.default_rng(1).random((2, 3, 9, 11)).astype(np.float32)

    found = edges(torch.from_numpy(images)).numpy()

    for image, ours in zip(images, found, strict=True):
        np.testing.assert_allclose(
            ours, sobel(rgb2gray(np.moveaxis(image.astype(float), 0, 2))), rtol=1e-5, atol=1e-7
        )


def test_edge_correlation_is_scipys_of_the_magnitudes(maps):
    others = np.random.default_rng(1).random(SHAPE).astype(np.float32)

    found = edge_correlation(torch.from_numpy(maps), torch.from_numpy(others)).numpy()

    expected = [
        stats.spearmanr(np.abs(a), b, axis=None).statistic
        for a, b in zip(maps, others, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_autocorrelation_is_numpys_over_pairs_of_neighbors(maps):
    other = maps[::-1].copy()

    alone = autocorrelation(torch.from_numpy(maps)).numpy()
    beside = autocorrelation(torch.from_numpy(maps), torch.from_numpy(other)).numpy()

    np.testing.assert_allclose(alone, [neighbors(one, one) for one in maps], atol=1e-12)
    np.testing.assert_allclose(beside, [*map(neighbors, maps, other)], atol=1e-12)


def test_smooth_maps_are_correlated_and_white_noise_is_not():
    noise = np.random.default_rng(2).normal(size=(1, 64, 64))
    smooth = gaussian_filter(noise, (0, 4, 4))

    (of_noise, of_smooth) = autocorrelation(torch.from_numpy(np.concatenate([noise, smooth])))

    assert abs(of_noise) < 0.05
    assert of_smooth > 0.9


def test_mass_inside_is_a_share_of_the_magnitudes(maps):
    masks = np.random.default_rng(3).random(SHAPE) > 0.7

    found = mass_inside(torch.from_numpy(maps), torch.from_numpy(masks)).numpy()

    magnitudes = np.abs(maps.astype(float))
    expected = (magnitudes * masks).sum((1, 2)) / magnitudes.sum((1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_scale_and_the_sign_of_a_map_do_not_matter(maps):
    masks = torch.from_numpy(np.random.default_rng(3).random(SHAPE) > 0.7)
    target = torch.from_numpy(np.random.default_rng(1).random(SHAPE))

    for factor in (-1.0, 1e150):
        ours, other = (torch.from_numpy(maps.astype(float) * f) for f in (1.0, factor))
        for measure in (
            lambda m: edge_correlation(m, target),
            autocorrelation,
            lambda m: mass_inside(m, masks),
        ):
            np.testing.assert_allclose(measure(ours), measure(other), rtol=1e-9)


def test_what_cannot_be_scored_is_nan_alone(maps):
    maps[1, 2, 3], maps[2], maps[3] = np.nan, 0.0, 0.5
    stack, masks = torch.from_numpy(maps), torch.ones(SHAPE, dtype=torch.bool)
    target = torch.from_numpy(np.random.default_rng(1).random(SHAPE).astype(np.float32))

    assert edge_correlation(stack, target).isnan().tolist() == [False, True, True, True]
    assert autocorrelation(stack).isnan().tolist() == [False, True, True, True]
    # A map of one magnitude has its mass where the image is.
    assert mass_inside(stack, masks).isnan().tolist() == [False, True, True, False]
