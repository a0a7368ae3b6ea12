"""Resamples that statistics share: pairing, draws beside images, degrees of freedom."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steadymap.params.schema import Statistics
from steadymap.statistics.intervals import SIMILARITY_RANGE, range_of
from steadymap.statistics.resampling import (
    Resamples,
    crossed_interval,
    interval,
    mean_of,
    over_images,
)

OPTIONS = Statistics(confidence=0.95)


def resamples(n_images, n_photos):
    photos = [f"p{i % n_photos}" for i in range(n_images)]
    return Resamples([f"i{i}" for i in range(n_images)], photos, OPTIONS), photos


@pytest.mark.parametrize("n_photos", [4, 12])
def test_the_interval_of_a_mean_is_that_of_the_values(rng, n_photos):
    shared, photos = resamples(24, n_photos)
    values = rng.uniform(-1, 1, 24)

    mean = shared.mean(values, within=SIMILARITY_RANGE)

    expected = interval(values, photos, within=SIMILARITY_RANGE)
    assert mean.point == pytest.approx(values.mean())
    assert shared.interval(mean) == pytest.approx(expected)
    assert (mean.seen, mean.clusters) == (24, n_photos)


@pytest.mark.parametrize("n_photos", [4, 12])
def test_differences_and_ratios_are_paired_by_image(rng, n_photos):
    """However images differ, what all of them share is certain."""
    shared, _ = resamples(24, n_photos)
    values = rng.uniform(1, 2, 24)
    one, more = shared.mean(values), shared.mean(values + 0.2)

    assert shared.interval(more - one) == pytest.approx((0.2, 0.2))
    assert shared.interval(shared.mean(3 * values) / one) == pytest.approx((3, 3))
    assert shared.interval(mean_of([one, -one])) == pytest.approx((0, 0))


def test_images_without_a_value_are_left_out_and_bear_no_degree_of_freedom(rng):
    shared, _ = resamples(8, 8)
    values = rng.normal(size=8)
    values[5:] = np.nan

    mean = shared.mean(values)

    assert (mean.seen, mean.clusters) == (5, 5)
    expected = stats.t.interval(0.95, 4, values[:5].mean(), stats.sem(values[:5]))
    assert shared.interval(mean) == pytest.approx(expected)
    values[1:] = np.nan
    assert np.isnan(shared.interval(shared.mean(values))).all()


def test_draws_add_their_variance_to_that_of_images(rng):
    """Welch's sum of the two jackknives; without draws the interval of the images alone."""
    shared, _ = resamples(6, 6)
    images, draws = rng.normal(size=6), rng.normal(size=4)

    mean = shared.mean((images + draws[:, None])[None])

    only = stats.t.interval(0.95, 5, mean.point, stats.sem(images))
    assert shared.interval(mean, images_only=True) == pytest.approx(only)
    parts = stats.sem(images) ** 2, stats.sem(draws) ** 2
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 3)
    both = stats.t.interval(0.95, freedom, mean.point, np.sqrt(sum(parts)))
    assert shared.interval(mean) == pytest.approx(both)

    def estimate(units, kept):
        return (images[kept] + draws[units, None]).mean()

    crossed = crossed_interval(estimate, 4, [f"i{i}" for i in range(6)])
    assert crossed == pytest.approx((mean.point, *both))


def test_means_over_images_are_clustered_by_photograph():
    scores = pd.DataFrame({"metric": "iou", "image_id": list("abc"), "score": [0.1, 0.2, np.nan]})
    rows = pd.DataFrame({"image_id": list("abc"), "photo": ["cat", "", "cat"]})
    scores = scores.assign(degenerate=[True, False, False], inverted=False)

    (row,) = over_images(scores, ["metric"], rows, OPTIONS).to_dict("records")

    expected = interval(np.array([0.1, 0.2]), ["cat", "b"], within=range_of("iou"))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected)
    assert (row["n_images"], row["mean"], row["n_degenerate"]) == (2, pytest.approx(0.15), 2)
