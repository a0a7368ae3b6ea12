import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steadymap.analysis.readings import headline, headline_rows
from steadymap.analysis.sweeps import by_image, by_setting, metrics, summary
from steadymap.engine.settings import points
from steadymap.params.schema import Statistics, Sweep
from steadymap.statistics.pairing import mismatched
from steadymap.statistics.resampling import Resamples

OPTIONS = Statistics(confidence=0.95)
SWEEPS = {"SP": Sweep(vary="patch_size", values=[3, 5, 7], reference=5)}


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
                "degenerate": False,
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
    assert found["n_inverted"].tolist() == [0, 0, 0, 2]
    assert found["photo"].tolist() == ["p", "p", "q", "r"]


def test_sweep_row_has_both_spreads(scores, rows):
    tables = summary(scores, points("sliding_patch", SWEEPS), rows, OPTIONS)

    (row,) = tables["sensitivity"].to_dict("records")
    assert row["mean"] == pytest.approx(0.525)
    assert row["std_rms"] == pytest.approx(np.sqrt((0.01 + 0 + 0.04 + 0.04) / 4))
    assert row["std_mean"] == pytest.approx(0.125)
    assert (row["n_images"], row["n_settings"], row["n_degenerate"]) == (4, 3, 0)
    assert row["values"] == "3 5 7"
    # Inverted pairs are counted, and not left out of the mean.
    assert (row["n_inverted"], tables["settings"]["n_inverted"].tolist()) == (2, [1, 1])
    # Without each photograph in turn; a similarity's interval is formed as Fisher's z.
    without = np.array([(0.7 + 0.3) / 2, (0.4 + 0.7 + 0.3) / 3, (0.4 + 0.7 + 0.7) / 3])
    error = np.sqrt(2 / 3 * ((without - 0.525) ** 2).sum())
    reach = stats.t.ppf(0.975, 2) * error / (1 - 0.525**2)
    expected = np.tanh(np.arctanh(0.525) + np.array([-reach, reach]))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(expected))


def test_pairs_with_a_blank_map_are_left_out_and_counted(scores, rows):
    # A blank map scores 1 to itself and 0 to another.
    blank = (scores["image_id"] == "x") | ((scores["image_id"] == "w") & (scores["value"] == "7"))
    scores = scores.assign(degenerate=blank, score=scores["score"].mask(blank, 1.0))
    accuracy = scores.assign(metric="localization_error", convention="alpha0.25")

    tables = summary(pd.concat([scores, accuracy]), points("sliding_patch", SWEEPS), rows, OPTIONS)

    images = tables["images"].query("metric == 'ssim'").set_index("image_id")
    assert images["mean"].tolist() == pytest.approx([0.4, 0.7, 0.9, np.nan], nan_ok=True)
    assert images["mean_all"].tolist() == pytest.approx([0.4, 0.7, 0.95, 1.0])
    sensitivity = tables["sensitivity"].set_index("metric")
    row = sensitivity.loc["ssim"]
    assert (row["n_images"], row["n_degenerate"]) == (3, 3)
    assert row["mean"] == pytest.approx((0.4 + 0.7 + 0.9) / 3)
    assert row["mean_all"] == pytest.approx((0.4 + 0.7 + 0.95 + 1.0) / 4)
    settings = tables["settings"].query("metric == 'ssim'").set_index("value")
    assert settings["n_images"].to_dict() == {"3": 3, "7": 2}
    # A blank map lies beside the object: that is its score.
    assert sensitivity.loc["localization_error", "n_images"] == 4
    assert sensitivity.loc["localization_error", "mean"] == row["mean_all"]


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

    assert (setting["n_images"], setting["n_degenerate"]) == (3, 1)
    assert setting["mean"] == pytest.approx((0.7 + 0.9 + 0.1) / 3)
    assert tables["sensitivity"].iloc[0]["n_images"] == 3
    assert np.isfinite(tables["sensitivity"].iloc[0]["mean"])


def test_the_headline_is_one_row_per_sweep_and_model(scores, rows):
    other = [scores.assign(convention="sam"), scores.assign(metric="spearman", convention="signed")]
    scores, nested = scores.assign(draws="independent"), scores.assign(draws="nested")

    tables = summary(
        pd.concat([scores, *other, nested]), points("sliding_patch", SWEEPS), rows, OPTIONS
    )
    found = headline_rows(tables["sensitivity"], "ssim", "common")

    assert len(tables["sensitivity"]) == 4
    assert found[["metric", "convention", "draws"]].to_numpy().tolist() == [
        ["ssim", "common", "independent"]
    ]


def test_a_sweep_is_measured_in_units_of_maps_of_different_images(scores, rows):
    """Reference maps of different images have SSIM .1 or .3: the sweep moved 1 - .525 of 1 - .2."""
    chance = scores[scores["value"] == "3"].assign(value="5", draws="mismatch")
    chance = chance.assign(score=[0.1, 0.1, 0.3, 0.3])
    rows = rows.assign(photo="")

    tables = summary(pd.concat([scores, chance]), points("sliding_patch", SWEEPS), rows, OPTIONS)

    (row,) = tables["sensitivity"].to_dict("records")
    assert (row["mean"], row["chance"]) == (pytest.approx(0.525), pytest.approx(0.2))
    assert row["relative"] == pytest.approx((1 - 0.525) / (1 - 0.2))
    assert row["relative_low"] < row["relative"] < row["relative_high"]
    assert row["chance_low"] < 0.2 < row["chance_high"]
    assert set(tables["settings"]["draws"]) == set(tables["images"]["draws"]) == {"none"}
    (found,) = headline(tables["sensitivity"], "common", ["googlenet"]).to_dict("records")
    assert found["relative"] == row["relative"]
    # Without a chance level, its word is that of the distance itself.
    plain = tables["sensitivity"].drop(columns=["chance", "relative"])
    (found,) = headline(plain, "common", ["googlenet"]).to_dict("records")
    assert (found["relative"], found["degree"]) == (pytest.approx(0.475), 2)
    (found,) = headline(tables["sensitivity"], "common", ["googlenet"]).to_dict("records")
    assert found["degree"] == 3


def test_both_photographs_of_a_mismatched_pair_are_left_out():
    """By hand: each photograph in turn, with the pair in which it is the other image."""
    rows = pd.DataFrame({"image_id": list("abcd"), "photo": "", "class_name": list("wxyz")})
    values, others = np.array([0.1, 0.2, 0.4, 0.3]), mismatched(rows)
    resamples = Resamples(rows["image_id"], list("abcd"), OPTIONS)

    mean = resamples.paired(others).mean(values)

    kept = [[i for i in range(4) if out not in (i, others[i])] for out in range(4)]
    assert mean.images == pytest.approx([values[part].mean() for part in kept])


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
