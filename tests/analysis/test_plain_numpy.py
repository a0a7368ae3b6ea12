"""Three claims, and spreads and intervals of one sweep, recomputed from scores in plain numpy.

Nothing of the package but the two functions under test: the rules are written out here again.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from steadymap.analysis.claims.sam import claims
from steadymap.analysis.table_s1 import table_s1
from steadymap.params.schema import Statistics

OPTIONS = Statistics(confidence=0.95)
MODELS = ("resnet50", "resnet50-r")
# Twelve photographs, of which the first two have two images each.
PHOTOS = ["p0", "p0", "p1", "p1", *(f"p{n}" for n in range(2, 12))]
IDS = [f"val-{n:05d}" for n in range(len(PHOTOS))]
VALUES = ("5", "10", "20")


@pytest.fixture(scope="module")
def scores():
    """Scores per image of one sweep on two models: images, settings."""
    rng = np.random.default_rng(3)
    images = rng.normal(size=(len(IDS), 1))
    made = {}
    for model, level, spread in zip(MODELS, (0.55, 0.8), (0.2, 0.08), strict=True):
        noise = rng.normal(size=(len(IDS), 3))
        made[model, "ssim"] = special.expit(4 * (level - 0.5) + 0.4 * images + spread * noise)
        made[model, "spearman"] = made[model, "ssim"] ** 2
        made[model, "hog_pearson"] = made[model, "ssim"] ** 0.5
        made[model, "insertion"] = 0.5 + 0.05 * images + spread * 0.3 * noise
        made[model, "deletion"] = 0.2 + 0.02 * images + spread * 0.1 * noise
        made[model, "localization_error"] = (noise + images > 1 - spread).astype(float)
    return made


@pytest.fixture(scope="module")
def frame(scores):
    conventions = {"ssim": "sam", "spearman": "signed", "hog_pearson": "cells4"}
    conventions |= {"localization_error": "alpha0.25"}
    named = {"sweep": "SP-L", "method": "sliding_patch", "hyperparameter": "patch_size"}
    return pd.concat(
        pd.DataFrame(
            named
            | {"model": model, "metric": metric, "draws": "none", "value": value}
            | {"convention": conventions.get(metric, "auc_over_max"), "image_id": IDS}
            | {"score": cells[:, place], "degenerate": False, "inverted": False}
        )
        for (model, metric), cells in scores.items()
        for place, value in enumerate(VALUES)
    )


def evaluation_set():
    return pd.DataFrame({"image_id": IDS, "photo": PHOTOS, "class_name": "fence"})


def jackknife(statistic):
    """Point and standard error, a photograph left out at a time."""
    everyone = np.ones(len(IDS), bool)
    photos = list(dict.fromkeys(PHOTOS))
    without = np.array([statistic(np.array(PHOTOS) != photo) for photo in photos])
    point, n = statistic(everyone), len(photos)
    return point, np.sqrt((n - 1) / n * ((without - point) ** 2).sum()), n


def interval(statistic, low=-np.inf, high=np.inf):
    """Student's t interval, formed on the log odds of the range's two ends, or the log of one."""
    point, error, n = jackknife(statistic)
    reach = stats.t.ppf(0.975, n - 1) * error
    if np.isinf(low):
        return point, point - reach, point + reach
    if np.isinf(high):
        ratio = np.exp(reach / (point - low))
        return point, low + (point - low) / ratio, low + (point - low) * ratio
    step = reach * (1 / (point - low) + 1 / (high - point))
    odds = np.log((point - low) / (high - point))
    ends = low + (high - low) * special.expit(odds + np.array([-step, step]))
    return point, *ends


def test_spreads_and_intervals_of_a_sweep(scores, frame):
    found = table_s1(frame, evaluation_set(), OPTIONS, models=MODELS)
    found = found.set_index(["model", "metric"])

    for (model, metric), cells in scores.items():
        if metric not in ("ssim", "insertion", "deletion"):
            continue
        variances = cells.var(axis=1)
        lowest = -1.0 if metric == "ssim" else 0.0
        # Of values in a range, a standard deviation is at most half of it.
        most = (1.0 - lowest) / 2
        row = found.loc[model, metric]
        expected = interval(lambda kept, c=cells: c[kept].mean(), lowest, 1.0)
        assert row[["mean", "mean_low", "mean_high"]].tolist() == pytest.approx(expected)
        expected = interval(lambda kept, v=variances: np.sqrt(v[kept].mean()), 0.0, most)
        assert row[["std_rms", "rms_low", "rms_high"]].tolist() == pytest.approx(expected)
        assert row["std_mean"] == pytest.approx(np.sqrt(variances).mean())


def test_three_claims(scores, frame):
    models = pd.DataFrame({"model": MODELS, "n_val": 500, "clean_accuracy": [0.8, 0.7]})
    found = claims(frame, evaluation_set(), models, OPTIONS).set_index("claim")

    def gain(metric):
        regular, robust = (scores[model, metric].mean(axis=1) for model in MODELS)
        return lambda kept: (robust - regular)[kept].mean()

    # D12: mean gain over three similarities in SP-L, claimed below .05.
    metrics = ("spearman", "hog_pearson", "ssim")
    expected = interval(lambda kept: np.mean([gain(m)(kept) for m in metrics]), -2.0, 2.0)
    row = found.loc["D12"]
    assert row[["value", "ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    assert row["direction"] == ("fails" if expected[1] > 0.05 else "holds")

    # D20: the smallest gain in SSIM over rows of Table S1 and pairs, here of one.
    expected = interval(gain("ssim"), -2.0, 2.0)
    row = found.loc["D20"]
    assert row[["value", "ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    assert row["direction"] == "holds"

    # 2: std over settings of regular over that of robust models, mean over three metrics.
    def ratio(kept):
        spreads = {key: np.sqrt(cells.var(axis=1)[kept].mean()) for key, cells in scores.items()}
        metrics = ("insertion", "deletion", "localization_error")
        return np.mean([spreads[MODELS[0], m] / spreads[MODELS[1], m] for m in metrics])

    expected = interval(ratio, 0.0)
    row = found.loc["2"]
    assert row[["value", "ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    assert row["direction"] == "holds"
