"""Intervals against theory, and within what a number can be."""

import math

import numpy as np
import pytest
from scipy import stats

from steadymap.statistics.intervals import (
    ANY,
    POSITIVE,
    SHARE,
    SIMILARITY_RANGE,
    Range,
    range_of,
    share_interval,
    stands_out,
    t_interval,
)
from steadymap.statistics.resampling import interval, jackknife

UNIT = Range(0.0, 1.0)


class TestInterval:
    @pytest.mark.parametrize("n_photos", [4, 16, 64])
    def test_any_number_of_photographs_gives_a_t_interval_over_their_means(self, rng, n_photos):
        values, photos = rng.exponential(size=3 * n_photos), np.repeat(np.arange(n_photos), 3)
        means = values.reshape(n_photos, 3).mean(1)
        expected = stats.t.interval(0.95, n_photos - 1, means.mean(), stats.sem(means))

        assert interval(values, photos) == pytest.approx(expected)

    def test_images_that_share_a_photograph_count_as_one(self, rng):
        """Ten copies of each value carry no more than one."""
        values = rng.normal(size=30)
        once = interval(values)

        repeated = interval(np.repeat(values, 10), np.repeat(np.arange(30), 10))
        blind = interval(np.repeat(values, 10))

        assert repeated == pytest.approx(once)
        assert blind[1] - blind[0] < 0.5 * (once[1] - once[0])

    def test_coverage(self, rng):
        hits = 0
        for _ in range(300):
            effect = np.repeat(rng.normal(size=6), 4)
            values = effect + rng.normal(size=24)
            low, high = interval(values, np.repeat(np.arange(6), 4).astype(str))
            hits += low <= 0 <= high
        assert 0.91 <= hits / 300 <= 0.985

    def test_one_photograph_gives_none(self):
        assert np.isnan(interval(np.array([1.0, 2.0]), ["a", "a"])).all()

    def test_higher_confidence_is_wider(self, rng):
        values = rng.normal(size=50)

        narrow, wide = (interval(values, confidence=c) for c in (0.5, 0.99))

        assert wide[0] < narrow[0] < narrow[1] < wide[1]


class TestRange:
    @pytest.mark.parametrize(
        ("values", "within", "scale", "back"),
        [
            ([0.9, 0.2, 0.4, 0.8], SIMILARITY_RANGE, np.arctanh, np.tanh),
            ([0.9, 0.2, 0.4, 0.8], POSITIVE, np.log, np.exp),
            (
                [0.9, 0.2, 0.4, 0.8],
                UNIT,
                lambda p: np.log(p / (1 - p)),
                lambda z: 1 / (1 + np.exp(-z)),
            ),
            ([0.9, 0.2, 0.4, -3.0], Range(high=1.0), lambda p: -np.log(1 - p), None),
        ],
    )
    def test_it_is_student_s_on_the_measure_s_own_scale(self, values, within, scale, back):
        """The delta method by a numerical derivative."""
        values = np.array(values)
        mean, step = values.mean(), 1e-6
        slope = (scale(mean + step) - scale(mean - step)) / (2 * step)
        reach = stats.t.ppf(0.975, 3) * stats.sem(values) * slope
        back = back or (lambda z: 1 - np.exp(-z))

        found = interval(values, within=within)

        expected = [back(scale(mean) - reach), back(scale(mean) + reach)]
        assert found == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("n", [2, 3, 6, 9, 12])
    @pytest.mark.parametrize("within", [UNIT, SHARE, SIMILARITY_RANGE, POSITIVE])
    def test_no_interval_leaves_the_range(self, rng, n, within):
        top = min(within.high, 5.0)
        for sharpness in (0.1, 1, 10):
            for _ in range(30):
                values = within.low + (top - within.low) * rng.beta(sharpness, 1 / sharpness, n)
                values = np.round(values) if within.share else values
                low, high = interval(values, within=within)
                assert within.low <= low <= values.mean() <= high <= within.high

    def test_one_photograph_that_fails_of_seven(self):
        """The plain interval reaches from -.10 to .24."""
        values = np.array([0, 0, 0, 0, 0, 0, 0.5])

        low, high = interval(values, within=UNIT)

        assert stats.t.interval(0.95, 6, values.mean(), stats.sem(values))[0] < -0.1
        assert 0 < low < values.mean() < high < 0.6

    def test_an_error_beyond_the_end_of_the_range_cuts_the_plain_interval(self):
        """A spread whose noise was taken off may lie at 0 with an error of its own."""
        assert t_interval(0.001, [(0.01, 6)], within=UNIT) == pytest.approx(
            (0, 0.001 + stats.t.ppf(0.975, 6) * 0.1)
        )
        assert t_interval(1.0, [(0.01, 6)], within=UNIT)[1] == 1

    @pytest.mark.parametrize("n_right", [0, 2, 40])
    def test_shares_have_wilson_s_interval_with_student_s_t(self, n_right):
        """Of 40 images, 39 trials, as the variance of a mean of 40 has it."""
        values = np.arange(40) < n_right
        as_normal = 2 * stats.norm.cdf(stats.t.ppf(0.975, 39)) - 1
        wilson = stats.binomtest(n_right, 40).proportion_ci(as_normal, method="wilson")

        found = interval(values, within=SHARE)

        assert found == pytest.approx((wilson.low, wilson.high), abs=0.004)
        assert interval(np.zeros(7), within=UNIT) == (0, 0)

    def test_shares_of_shared_photographs_count_fewer_trials(self):
        """Four photographs that fail or succeed as a whole are four trials, not forty."""
        values = np.repeat([0.0, 0.0, 0.0, 1.0], 10)

        found = interval(values, np.repeat(np.arange(4), 10), within=SHARE)

        assert found == pytest.approx(interval(np.array([0.0, 0, 0, 1]), within=SHARE))

    def test_differences_and_spreads_have_their_own_range(self):
        assert SIMILARITY_RANGE.minus(SIMILARITY_RANGE)[:2] == (-2, 2)
        assert SIMILARITY_RANGE.turned[:2] == (0, 2)
        assert range_of("localization_error").spread[:2] == (0, 0.5)
        assert range_of("dynamic_range").spread[:2] == (0, math.inf)
        assert range_of("a metric of one's own")[:2] == (-math.inf, 1)

    def test_what_stands_out_is_what_a_plain_interval_would_exclude(self):
        for error in (0.02, 0.07, 0.09, 0.3):
            for within in (UNIT, Range(0.0, 2.0), POSITIVE):
                low, _ = t_interval(0.2, [(error**2, 6)], within=within)
                plain, _ = t_interval(0.2, [(error**2, 6)], within=ANY)
                assert stands_out(0.2, low, within) == (plain > 0)

    def test_parts_of_the_variance_join_as_welch_has_it(self, rng):
        a, b = rng.normal(size=5), rng.normal(1, 3, 8)
        parts = [(sample.var(ddof=1) / len(sample), len(sample) - 1) for sample in (a, b)]
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()

        found = t_interval(a.mean() - b.mean(), parts)

        assert found == pytest.approx((expected.low, expected.high))

    def test_the_jackknife_of_a_mean_is_its_standard_error(self, rng):
        values = rng.normal(size=6)
        without = (values.sum() - values) / 5

        assert jackknife(without) == (pytest.approx(stats.sem(values) ** 2), 5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 7, 9])
@pytest.mark.parametrize("kind", ["errors", "rare errors", "similarity", "high similarity", "S"])
def test_coverage_is_no_worse_than_that_of_the_plain_interval(n, kind):
    """Few photographs, skewed measures: 4,000 simulated studies each."""
    rng = np.random.default_rng(7)
    shape, within, draw, truth = {
        "errors": ((n, 5), SHARE, lambda s: rng.binomial(5, rng.beta(1, 4, s[0])) / 5, 0.2),
        "rare errors": (
            (n, 5),
            SHARE,
            lambda s: rng.binomial(5, rng.beta(0.25, 4.75, s[0])) / 5,
            0.05,
        ),
        "similarity": ((n,), SIMILARITY_RANGE, lambda s: 2 * rng.beta(9, 1, s[0]) - 1, 0.8),
        "high similarity": (
            (n,),
            SIMILARITY_RANGE,
            lambda s: 2 * rng.beta(29, 1, s[0]) - 1,
            28 / 30,
        ),
        "S": ((n,), Range(0.0, 2.0), lambda s: 2 * rng.beta(0.8, 7.2, s[0]), 0.2),
    }[kind]
    hits = np.zeros(2)
    for _ in range(4000):
        values = draw(shape)
        for place, rule in enumerate((within, ANY)):
            low, high = interval(values, within=rule)
            hits[place] += low <= truth <= high
    ours, plain = hits / 4000
    assert ours >= plain - 0.01
    assert ours >= 0.85


def test_an_accuracy_has_wilson_s_interval():
    wilson = stats.binomtest(796, 800).proportion_ci(method="wilson")

    assert share_interval(796 / 800, 800) == pytest.approx((wilson.low, wilson.high), abs=1e-4)
