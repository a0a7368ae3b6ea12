import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steadymap.grid import points
from steadymap.params import Statistics, Sweep
from steadymap.sensitivity import by_image, by_setting, headline, interval, metrics, summary

OPTIONS = Statistics(confidence=0.95, n_bootstrap=4000, seed=0)
SWEEPS = {"SP": Sweep(vary="patch_size", values=[3, 5, 7], reference=5)}


class TestInterval:
    def test_bootstrap_meets_the_normal_interval(self, rng):
        values = rng.normal(3, 2, 400)

        low, high = interval(values)

        reach = 1.96 * values.std() / 20
        assert low == pytest.approx(values.mean() - reach, abs=0.05)
        assert high == pytest.approx(values.mean() + reach, abs=0.05)

    def test_few_photographs_give_a_t_interval_over_their_means(self, rng):
        values, photos = rng.normal(size=12), list("aaabbbcccddd")
        means = values.reshape(4, 3).mean(1)
        expected = stats.t.interval(0.95, 3, means.mean(), means.std(ddof=1) / 2)

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


@pytest.fixture
def rows():
    return pd.DataFrame(
        {"image_id": list("uvwx"), "class_name": "disc", "photo": ["p", "p", "q", "r"]}
    )


@pytest.fixture
def scores():
    """SSIM of two variants, four images, one model."""
    values = {"3": [0.5, 0.7, 0.9, 0.1], "7": [0.3, 0.7, 0.5, 0.5]}
    return pd.DataFrame(
        [
            {
                "sweep": "SP",
                "method": "sliding_patch",
                "model": "googlenet",
                "hyperparameter": "patch_size",
                "value": value,
                "image_id": image,
                "metric": "ssim",
                "convention": "common",
                "draws": "none",
                "score": score,
                "degenerate": image == "x",
                "inverted": image == "x",
            }
            for value, column in values.items()
            for image, score in zip("uvwx", column, strict=True)
        ]
    )


def test_per_image_means_and_population_spreads(scores, rows):
    found = by_image(scores, rows).set_index("image_id")

    assert found["mean"].tolist() == pytest.approx([0.4, 0.7, 0.7, 0.3])
    assert found["std"].tolist() == pytest.approx([0.1, 0.0, 0.2, 0.2])
    assert found["n_degenerate"].tolist() == found["n_inverted"].tolist() == [0, 0, 0, 2]
    assert found["photo"].tolist() == ["p", "p", "q", "r"]


def test_sweep_row_has_both_spreads(scores, rows):
    tables = summary(scores, points("sliding_patch", SWEEPS), rows, OPTIONS)

    (row,) = tables["sensitivity"].to_dict("records")
    assert row["mean"] == pytest.approx(0.525)
    assert row["std_rms"] == pytest.approx(np.sqrt((0.01 + 0 + 0.04 + 0.04) / 4))
    assert row["std_mean"] == pytest.approx(0.125)
    assert (row["n_images"], row["n_settings"], row["n_degenerate"]) == (4, 3, 2)
    # Inverted pairs are counted, and not left out of the mean.
    assert (row["n_inverted"], tables["settings"]["n_inverted"].tolist()) == (2, [1, 1])
    photo_means = np.array([0.55, 0.7, 0.3])
    expected = stats.t.interval(0.95, 2, photo_means.mean(), photo_means.std(ddof=1) / np.sqrt(3))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected)


def test_setting_rows_mark_the_reference(scores, rows):
    reference = scores[scores["value"] == "3"].assign(
        value="5", metric="dynamic_range", convention="raw", score=2.0
    )

    tables = summary(pd.concat([scores, reference]), points("sliding_patch", SWEEPS), rows, OPTIONS)

    found = tables["settings"].set_index(["metric", "value"])["is_reference"]
    assert found.to_dict() == {
        ("ssim", "3"): False,
        ("ssim", "7"): False,
        ("dynamic_range", "5"): True,
    }


def test_undefined_scores_are_left_out_and_counted(scores, rows):
    scores.loc[(scores["image_id"] == "u"), "score"] = np.nan

    setting = by_setting(scores, rows, OPTIONS).iloc[0]
    tables = summary(scores, points("sliding_patch", SWEEPS), rows, OPTIONS)

    assert (setting["n_images"], setting["n_degenerate"]) == (3, 2)
    assert setting["mean"] == pytest.approx((0.7 + 0.9 + 0.1) / 3)
    assert tables["sensitivity"].iloc[0]["n_images"] == 3
    assert np.isfinite(tables["sensitivity"].iloc[0]["mean"])


def test_the_headline_is_one_row_per_sweep_and_model(scores, rows):
    other = [scores.assign(convention="sam"), scores.assign(metric="spearman", convention="signed")]
    independent = scores.assign(draws="independent")

    tables = summary(
        pd.concat([scores, *other, independent]), points("sliding_patch", SWEEPS), rows, OPTIONS
    )
    found = headline(tables["sensitivity"])

    assert len(tables["sensitivity"]) == 4
    assert found[["metric", "convention", "draws"]].to_numpy().tolist() == [
        ["ssim", "common", "none"]
    ]


def test_metrics_nest_sweep_and_model(scores, rows):
    tables = summary(scores, points("sliding_patch", SWEEPS), rows, OPTIONS)
    models = pd.DataFrame(
        [{"model": "googlenet", "clean_accuracy": 0.91, "robust_accuracy": 0.0425}]
    )

    assert metrics(tables["sensitivity"], models) == {
        "accuracy": {"googlenet": {"clean": 0.91, "robust": 0.0425}},
        "ssim": {"SP": {"googlenet": {"mean": 0.525, "std": 0.15}}},
    }


def test_metrics_hold_the_sensitivity_to_parameters(scores, rows):
    tables = summary(scores, points("sliding_patch", SWEEPS), rows, OPTIONS)
    models = pd.DataFrame(columns=["model", "clean_accuracy", "robust_accuracy"])
    made = {"model": "googlenet", "method": "gradient", "order": "independent"}
    parameters = pd.DataFrame(
        [
            made | {"metric": "ssim", "convention": "common", "S_same": 0.5},
            made | {"metric": "ssim", "convention": "wang", "S_same": 0.7},
            made | {"metric": "spearman", "convention": "signed", "S_same": np.nan},
        ]
    )

    found = metrics(tables["sensitivity"], models, parameters=parameters)

    assert found["parameters"] == {"ssim": {"gradient": {"googlenet": 0.5}}}
