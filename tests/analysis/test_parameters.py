"""Statistics of the extended IPR test."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT
from steadymap.analysis.claims import sam
from steadymap.analysis.claims.ipr import ipr_claims
from steadymap.analysis.claims.verdict import CLAIM_COLUMNS, NOT_MEASURABLE, read_claims
from steadymap.analysis.parameters import (
    CORRELATION_COLUMNS,
    FUNCTION_COLUMNS,
    IPR_COLUMNS,
    PAIRS,
    PAPER_ARCHITECTURES,
    PAPER_METHODS,
    UNIT_COLUMNS,
    by_image,
    correlations,
    function_correlation,
    ipr,
    ipr_units,
    paper_correlations,
)
from steadymap.analysis.plane import DISAGREE, PLANE_COLUMNS, plane
from steadymap.metrics.similarity import ssim
from steadymap.params.schema import Statistics
from steadymap.statistics.correlation import exact_p, holm
from steadymap.statistics.intervals import SIMILARITY_RANGE
from steadymap.statistics.resampling import interval

OPTIONS = Statistics(confidence=0.95)
METRICS = [("ssim", "common")]


def frame(
    cells,
    *,
    model="googlenet",
    method="gradient",
    kind="same",
    order="independent",
    metric="ssim",
    convention="common",
    degenerate=False,
    inverted=False,
):
    """Scores from S of shape (units, draws, images)."""
    cells = np.asarray(cells, dtype=float)
    found = [
        {
            "model": model,
            "method": method,
            "order": order,
            "unit": f"unit{unit}" if kind in ("same", "fresh") else "",
            "unit_index": unit if kind in ("same", "fresh") else -1,
            "draw": draw,
            "image_id": f"image{image}",
            "kind": kind,
            "metric": metric,
            "convention": convention,
            "score": 1 - cells[unit, draw, image],
            "degenerate": degenerate,
            "inverted": inverted,
            "randomizer": "init",
            "preset": "paper",
        }
        for unit, draw, image in np.ndindex(cells.shape)
    ]
    return pd.DataFrame(found)


def with_unit(scores, unit=1.0):
    """Scores with maps of different images that lie `unit` apart."""
    keys = ["model", "method", "metric", "convention", "image_id"]
    apart = scores.drop_duplicates(keys).assign(kind="mismatch", unit="", unit_index=-1, draw=0)
    return pd.concat([scores, apart.assign(score=1 - unit)])


def evaluation_set(n_images, n_photos=0):
    photos = [f"photo{i % n_photos}" if n_photos else "" for i in range(n_images)]
    images = [f"image{i}" for i in range(n_images)]
    return pd.DataFrame({"image_id": images, "photo": photos, "class_name": "disc"})


def one(scores, rows, **options):
    table = ipr(scores, rows, OPTIONS, **options)
    assert tuple(table.columns) == IPR_COLUMNS
    assert len(table) == 1
    return table.iloc[0]


# Equations and definitions


def test_sensitivity_is_the_mean_over_layers_then_images():
    """Equations 2, 4 and 6 on two units and three images."""
    cells = [[[0.1, 0.2, 0.3]], [[0.5, 0.4, 1.5]]]

    images = by_image(frame(cells), [])
    row = one(frame(cells), evaluation_set(3))

    assert images["S_same"].to_list() == pytest.approx([0.3, 0.3, 0.9])
    assert row["S_same"] == pytest.approx(0.5)
    assert (row["n_images"], row["n_units"], row["n_draws"]) == (3, 2, 1)
    assert (row["randomizer"], row["preset"]) == ("init", "paper")


def test_an_image_needs_every_layer_to_move():
    """Definition 2: image 1 has S^i = .1 and yet a layer that moves nothing."""
    cells = [[[0.01, 0.0, 0.3]], [[0.01, 0.2, 0.0099]]]

    row = one(frame(cells), evaluation_set(3))
    critical = one(frame(cells), evaluation_set(3), critical_units={"googlenet": ["unit1"]})

    assert row["share_sensitive"] == pytest.approx(1 / 3)
    assert critical["share_sensitive"] == pytest.approx(2 / 3)


def test_undefined_scores_are_counted_and_left_out():
    cells = np.array([[[0.2, np.nan, 0.4]], [[0.2, 0.3, 0.4]], [[0.2, 0.0, 0.4]]])
    row = one(frame(cells), evaluation_set(3))

    assert row["S_same"] == pytest.approx(np.nanmean(cells))
    assert row["n_degenerate"] == 1
    # The layer that moves nothing settles image 1, whatever the undefined one would have said.
    assert row["share_sensitive"] == pytest.approx(2 / 3)
    # Without that layer image 1 is undecided, and left out.
    assert one(frame(cells[:2]), evaluation_set(3))["share_sensitive"] == 1
    flagged = one(frame(cells, degenerate=True), evaluation_set(3))
    assert flagged["n_degenerate"] == 9


def test_a_method_without_any_score_is_not_judged():
    row = one(frame(np.full((2, 2, 12), np.nan)), evaluation_set(12))

    assert row["passes"] == "inconclusive"
    assert row["n_images"] == 0
    assert row["n_degenerate"] == 48
    assert np.isnan(row[["S_same", "same_low", "share_sensitive", "draw_sd"]].astype(float)).all()


def test_floor_excess_and_relative_scale(rng):
    """S_rel is 1 for a map that moves as far as those of different images are apart."""
    noise = rng.normal(0, 0.001, (3, 1, 1, 12))
    parts = [
        frame(np.full((2, 2, 12), 0.3), kind="same"),
        frame(np.full((2, 2, 12), 0.5) + noise[0], kind="fresh"),
        frame(np.full((1, 3, 12), 0.2) + noise[1], kind="floor"),
        frame(np.full((1, 2, 12), 0.8) + noise[2], kind="mismatch", order="any"),
    ]

    row = one(pd.concat(parts), evaluation_set(12))

    assert row["S_same"] == pytest.approx(0.3)
    assert row["S_fresh"] == pytest.approx(0.5, abs=0.001)
    assert row["floor"] == pytest.approx(0.2, abs=0.001)
    assert row["excess"] == pytest.approx(0.3, abs=0.002)
    assert row["excess_low"] < row["excess"] < row["excess_high"]
    assert row["floor_low"] < row["floor"] < row["floor_high"]
    assert row["S_rel"] == pytest.approx(0.3 / 0.8, abs=0.005)
    assert row["rel_low"] < row["S_rel"] < row["rel_high"]
    no_reach = [*parts[:3], frame(noise[1] + noise[2], kind="mismatch")]
    assert np.isnan(one(pd.concat(no_reach), evaluation_set(12))["S_rel"])


def test_deterministic_methods_have_no_floor(rng):
    cells = rng.uniform(0.2, 0.4, (3, 2, 12))
    mismatch = frame(np.full((1, 1, 12), 0.6), kind="mismatch")

    row = one(pd.concat([frame(cells), mismatch]), evaluation_set(12))

    assert row["floor"] == 0
    assert row["S_fresh"] == row["excess"] == row["S_same"]
    assert (row["excess_low"], row["excess_high"]) == (row["same_low"], row["same_high"])
    assert row["S_rel"] == pytest.approx(cells.mean() / 0.6)


def test_floor_serves_every_order():
    parts = [
        frame(np.full((1, 1, 12), 0.4), kind=kind, order=order)
        for kind in ("same", "fresh")
        for order in ("independent", "top_down")
    ]
    floor = frame(np.full((1, 1, 12), 0.1), kind="floor", order="")

    table = ipr(pd.concat([*parts, floor, floor]), evaluation_set(12), OPTIONS)

    assert table["order"].to_list() == ["independent", "top_down"]
    assert table["excess"].to_list() == pytest.approx([0.3, 0.3])


# Verdicts and controls


def noisy_maps(rng, n=12):
    return rng.uniform(-1, 1, (n, 24, 24)).astype(np.float32)


def distance(a, b):
    return 1 - ssim(a, b).numpy()


def test_control_identity(rng):
    """Randomising nothing: S is exactly 0 and the method fails."""
    maps = noisy_maps(rng)
    row = one(frame(np.tile(distance(maps, maps), (3, 2, 1))), evaluation_set(12))

    assert row["S_same"] == row["same_low"] == row["same_high"] == 0
    assert row["passes"] == "no"
    assert row["share_sensitive"] == 0


def test_control_model_blind_explainer(rng):
    """Edges of the image, whatever the model."""
    images = noisy_maps(rng)

    def edges(_model):
        return np.diff(images, axis=2)

    cells = [[distance(edges("trained"), edges(f"unit {u}"))] for u in range(4)]

    table = ipr_units(frame(cells), None, evaluation_set(12), OPTIONS)

    assert (table["S_same"] == 0).all()
    assert one(frame(cells), evaluation_set(12))["passes"] == "no"


def test_control_fresh_random_map():
    """A map of noise earns nothing: S_fresh is large and so is the floor."""

    def explain(draw):
        return noisy_maps(np.random.default_rng(draw))

    trained = explain(0)
    parts = [
        frame([[distance(trained, explain(0))] * 3] * 2, kind="same"),
        frame(
            [[distance(trained, explain(10 + 3 * u + d)) for d in range(3)] for u in range(2)],
            kind="fresh",
        ),
        frame([[distance(trained, explain(100 + d)) for d in range(3)]], kind="floor"),
        frame([[distance(trained, np.roll(trained, 1, axis=0))]], kind="mismatch"),
    ]

    row = one(pd.concat(parts), evaluation_set(12))

    assert row["S_same"] == 0
    assert row["S_fresh"] > 0.9
    assert abs(row["excess"]) < 0.01
    assert row["passes"] == "no"
    assert row["S_rel"] == 0


def test_verdicts(rng):
    rows = evaluation_set(12)
    spread = rng.normal(0, 1, (2, 3, 12))

    def verdict(same, fresh=None, floor=None, scale=0.002):
        parts = [frame(same + scale * spread)]
        if fresh is not None:
            parts.append(frame(fresh + scale * spread, kind="fresh"))
        if floor is not None:
            parts.append(frame(floor + scale * rng.normal(0, 1, (1, 3, 12)), kind="floor"))
        return one(pd.concat(parts), rows)["passes"]

    assert verdict(0.05) == "yes"
    assert verdict(0.005) == "no"
    assert verdict(0.0101) == "inconclusive"
    assert verdict(0.05, 0.3, 0.1) == "yes"
    # Noise moves the map as much as the parameters do.
    assert verdict(0.05, 0.3, 0.3) == "no"
    assert verdict(0.05, 0.3, 0.29) == "inconclusive"
    # A stochastic method without its floor can fail, not pass.
    assert verdict(0.05, 0.3) == "inconclusive"
    assert verdict(0.001, 0.3) == "no"


def test_a_stochastic_method_is_not_taken_for_a_deterministic_one():
    scores = frame(np.full((1, 2, 12), 0.3), method="lime")

    assert one(scores, evaluation_set(12))["passes"] == "yes"
    row = one(scores, evaluation_set(12), stochastic={"lime"})
    assert row["passes"] == "inconclusive"
    assert np.isnan(row["excess"])


def test_the_threshold_belongs_to_ssim():
    scores = frame(np.full((1, 1, 12), 0.3), metric="spearman", convention="signed")

    row = one(scores, evaluation_set(12))
    assert row["passes"] == ""
    assert np.isnan(row["threshold"])
    assert np.isnan(row["share_sensitive"])


# Intervals


def test_one_draw_gives_the_project_s_interval_over_images(rng):
    cells = rng.uniform(0, 1, (3, 1, 20))
    rows = evaluation_set(20, 12)

    row = one(frame(cells), rows)

    within = SIMILARITY_RANGE.turned
    expected = interval(cells.mean((0, 1)), rows["photo"], within=within)
    narrow = interval(cells.mean((0, 1)), rows["photo"], confidence=0.9, within=within)
    assert (row["same_low"], row["same_high"]) == pytest.approx(expected)
    assert (row["same_low90"], row["same_high90"]) == pytest.approx(narrow)


def t_of_s(values, confidence=0.95, low=0.0, high=2.0):
    """Student's interval of a mean between two bounds, in Fisher's z."""
    half, center = (high - low) / 2, (high + low) / 2
    mean = (values.mean() - center) / half
    quantile = stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
    reach = quantile * stats.sem(values) / half / (1 - mean**2)
    return tuple(center + half * np.tanh(np.arctanh(mean) + np.array([-reach, reach])))


@pytest.mark.parametrize("n_photos", [4, 0])
def test_few_photographs_give_a_t_interval(rng, n_photos):
    cells = rng.uniform(0, 1, (3, 1, 8))
    rows = evaluation_set(8, n_photos)
    means = cells.mean((0, 1))
    if n_photos:
        means = means.reshape(2, 4).mean(0)

    row = one(frame(cells), rows)

    assert (row["same_low"], row["same_high"]) == pytest.approx(t_of_s(means))


@pytest.mark.parametrize("n_photos", [2, 4, 12])
def test_no_interval_leaves_the_range_of_its_measure(rng, n_photos):
    """Maps that hardly move, but for one photograph's."""
    cells = 0.01 * rng.uniform(0, 1, (3, 2, 12))
    cells[..., 0] = rng.uniform(0, 2, (3, 2))
    floor = np.where(np.arange(12) == 1, rng.uniform(0, 2, (1, 1, 12)), 0.001)
    rows = evaluation_set(12, n_photos)
    moved = [frame(cells, method="lime", kind=kind) for kind in ("same", "fresh")]
    scores = pd.concat([*moved, frame(floor, method="lime", kind="floor")])
    sweep = frame(cells[:1, :1], method="lime").assign(
        sweep="S", value="1", hyperparameter="seed", draws="independent"
    )

    tables = [
        ipr(scores, rows, OPTIONS),
        ipr_units(scores, None, rows, OPTIONS),
        plane(
            with_unit(scores),
            sweep,
            rows,
            OPTIONS,
            references={"S": {"seed": 0}},
            settings={"lime": {}},
        ),
    ]

    checked = 0
    for table in tables:
        for low in [name for name in table if name.endswith(("_low", "low90")) or name == "low"]:
            least = -2 if low.startswith(("excess", "difference")) else 0
            most = np.inf if low.startswith(("x_", "y_", "difference", "rel_")) else 2
            ends = table[[low, low.replace("low", "high")]].dropna().to_numpy(float)
            checked += len(ends)
            assert ((least <= ends) & (ends <= most + 1e-9)).all(), low
    assert checked >= 8


@pytest.mark.parametrize("n_images", [8, 40])
def test_draws_widen_the_interval_by_their_own_variance(rng, n_images):
    """Images all alike: what is left is the error of a mean over 3 units' 4 draws each.

    Units differ widely, which no interval must count: they are not drawn.
    """
    effects = rng.normal(0, 0.01, (3, 4, 1)) + np.array([0.5, 1, 1.5])[:, None, None]
    cells = np.broadcast_to(effects, (3, 4, n_images))
    variances = effects[:, :, 0].var(axis=1, ddof=1) / 4 / 3**2
    error = math.sqrt(sum(variances))
    df = sum(variances) ** 2 / sum(variances**2 / 3)

    row = one(frame(cells), evaluation_set(n_images))

    half = (row["same_high"] - row["same_low"]) / 2
    # Around 1, the middle of what S can be, its scale is all but straight.
    assert half == pytest.approx(stats.t.ppf(0.975, df) * error, rel=1e-3)
    assert row["same_high90"] - row["same_low90"] == pytest.approx(0, abs=1e-9)
    assert row["draw_sd"] == pytest.approx(effects[:, :, 0].mean(0).std(ddof=1))


@pytest.mark.parametrize("n_images", [8, 40])
def test_draws_of_a_cascade_are_resampled_together(rng, n_images):
    """Steps of a cascade share weights: their errors do not average out."""
    shared = np.broadcast_to(1 + rng.normal(0, 0.1, (1, 5, 1)), (6, 5, n_images))
    error = shared[0, :, 0].std(ddof=1) / math.sqrt(5)
    rows = evaluation_set(n_images)

    cascade = one(frame(shared, order="top_down"), rows)
    independent = one(frame(shared), rows)

    for row, scale, df in ((cascade, 1, 4), (independent, math.sqrt(1 / 6), 24)):
        half = (row["same_high"] - row["same_low"]) / 2
        assert half == pytest.approx(stats.t.ppf(0.975, df) * error * scale, rel=0.15)


@pytest.mark.parametrize(("n_images", "n_draws"), [(8, 2), (8, 5), (24, 3)])
def test_intervals_cover(n_images, n_draws):
    """Images and draws both random: near 95 % of intervals hold the true mean."""
    rng = np.random.default_rng(5)
    options = Statistics(confidence=0.95)
    rows = evaluation_set(n_images)
    template = frame(np.zeros((2, n_draws, n_images)))
    covered, images_only = 0, 0
    repeats = 60
    for _ in range(repeats):
        cells = (
            1
            + rng.normal(0, 0.1, (1, 1, n_images))
            + rng.normal(0, 0.1, (2, n_draws, 1))
            + rng.normal(0, 0.05, (2, n_draws, n_images))
        )
        row = ipr(template.assign(score=1 - cells.ravel()), rows, options).iloc[0]
        covered += row["same_low"] <= 1 <= row["same_high"]
        images_only += row["same_low90"] <= 1 <= row["same_high90"]

    assert covered / repeats >= 0.88
    # The paper's interval leaves the draws out.
    assert images_only < covered


@pytest.mark.parametrize("n_images", [1, 2])
def test_the_smallest_studies(n_images):
    row = one(frame(np.full((2, 1, n_images), 0.3)), evaluation_set(n_images))

    assert row["S_same"] == pytest.approx(0.3)
    assert np.isnan(row["draw_sd"])
    assert row["passes"] == ("inconclusive" if n_images == 1 else "yes")


def test_images_of_one_photograph_have_no_interval():
    row = one(frame(np.full((2, 2, 6), 0.3)), evaluation_set(6, 1))

    assert np.isnan(row["same_low"])
    assert row["passes"] == "inconclusive"


# Bad frames


def test_frames_that_do_not_fit_are_refused():
    scores, rows = frame(np.full((1, 1, 3), 0.1)), evaluation_set(3)

    with pytest.raises(ValueError, match="scores lack column 'unit_index'; give model, method"):
        ipr(scores.drop(columns="unit_index"), rows, OPTIONS)
    with pytest.raises(ValueError, match="kind 'other' is unknown; choose one of same, fresh"):
        ipr(scores.assign(kind="other"), rows, OPTIONS)
    with pytest.raises(ValueError, match=r"unit 'unit0', draw 0, image 'image0' is scored twice"):
        ipr(pd.concat([scores, scores]), rows, OPTIONS)
    with pytest.raises(ValueError, match="image 'image2' has scores and is not in the evaluation"):
        ipr(scores, rows[:2], OPTIONS)
    with pytest.raises(ValueError, match=r"googlenet, gradient, .* have no kind 'same'; compare"):
        ipr(scores.assign(kind="fresh"), rows, OPTIONS)
    with pytest.raises(ValueError, match="critical unit 'fc' was not randomized; choose among uni"):
        ipr(scores, rows, OPTIONS, critical_units={"googlenet": ["fc"]})


def test_rows_that_are_no_similarity_are_left_out():
    scores = frame(np.full((1, 1, 3), 0.1))
    other = scores.assign(metric="dynamic_range", convention="raw", score=7.0)

    assert len(ipr(pd.concat([scores, other]), evaluation_set(3), OPTIONS)) == 1


# Units


def test_units_beside_what_randomizing_them_did(rng):
    cells = rng.uniform(0, 1, (3, 2, 12))
    cells[1, 0, 3] = np.nan
    scores = frame(cells).iloc[::-1]
    changes = pd.DataFrame(
        [
            {
                "model": "googlenet",
                "order": "independent",
                "randomizer": "init",
                "unit": f"unit{unit}",
                "draw": draw,
                "accuracy": 0.1 * unit,
                "kept_predictions": 0.5 + 0.1 * draw,
                "target_change": -0.2,
            }
            for unit in range(2)
            for draw in range(2)
        ]
    )

    table = ipr_units(scores, changes, evaluation_set(12), OPTIONS)

    assert tuple(table.columns) == UNIT_COLUMNS
    assert table["unit"].to_list() == ["unit0", "unit1", "unit2"]
    assert table["S_same"].to_list() == pytest.approx(np.nanmean(cells, axis=(1, 2)))
    assert table["draw_sd"][0] == pytest.approx(cells[0].mean(1).std(ddof=1))
    assert (table["low"] < table["S_same"]).all()
    assert (table["high"] > table["S_same"]).all()
    assert table["n_degenerate"].to_list() == [0, 1, 0]
    assert table["accuracy"].to_list()[:2] == pytest.approx([0, 0.1])
    assert table["kept_predictions"].to_list()[:2] == pytest.approx([0.55, 0.55])
    assert table.loc[2, ["accuracy", "target_change"]].isna().all()


def test_maps_that_move_as_the_model_did():
    cells = np.array([0.1, 0.4, 0.2, 0.8])[:, None, None] * np.ones((1, 1, 4))
    changes = pd.DataFrame(
        {
            "model": "googlenet",
            "order": "independent",
            "randomizer": "init",
            "unit": [f"unit{i}" for i in range(4)],
            "draw": 0,
            "accuracy": 0.5,
            "kept_predictions": [0.0, 0.1, 0.2, 0.3],
            "target_change": [-0.1, -0.3, -0.2, -0.9],
        }
    )
    units = ipr_units(frame(cells), changes, evaluation_set(4), OPTIONS)

    found = function_correlation(units).iloc[0]

    assert tuple(found.index) == FUNCTION_COLUMNS
    assert found["n_units"] == 4
    assert found["rho_target_drop"] == pytest.approx(1)
    assert found["rho_lost_predictions"] == pytest.approx(
        stats.spearmanr([0.1, 0.4, 0.2, 0.8], [4, 3, 2, 1]).statistic
    )
    constant = function_correlation(units.assign(target_change=0.0)).iloc[0]
    assert np.isnan(constant["rho_target_drop"])
    without = function_correlation(ipr_units(frame(cells), None, evaluation_set(4), OPTIONS))
    assert without["n_units"].to_list() == [0]


# Correlations


def test_the_papers_tables_are_consistent_with_its_stars():
    """The t-approximation at n = 5 gives the stars printed; the exact p does not."""
    stars = {("guided_backprop", "guided_gradcam"), ("input_x_gradient", "integrated_gradients")}
    for pair, rho in paper_correlations()["spearman"].items():
        t_p = 0 if rho == 1 else 2 * stats.t.sf(abs(rho) * math.sqrt(3 / (1 - rho**2)), 3)
        if pair == ("guided_gradcam", "deeplift"):
            # Printed without a star, though its rho is that of the pair with one.
            assert rho == 0.9
            continue
        assert (t_p <= 0.05) == (pair in stars)
    linear = {pair for pair, r in paper_correlations()["pearson"].items() if r > 0.9}
    assert linear == {
        ("guided_backprop", "guided_gradcam"),
        *itertools.combinations(("deeplift", "input_x_gradient", "integrated_gradients"), 2),
    }
    assert list(paper_correlations().index) == list(PAIRS)
    assert len(PAIRS) == 21


def test_claims_on_correlations_have_the_papers_numbers():
    """The weakest of those claimed, the largest of those denied."""
    for claim in read_claims("ipr.yaml"):
        if claim.function == "correlation_of_methods":
            pairs = [tuple(pair) for pair in claim.arguments["pairs"]]
            column = "spearman" if claim.arguments["ranked"] else "pearson"
            printed = paper_correlations().loc[pairs, column]
            claimed = claim.arguments.get("claimed", True)
            assert claim.paper_value == (printed.min() if claimed else printed.max())


def test_exact_p_of_the_papers_starred_correlation():
    assert exact_p([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]) == pytest.approx(10 / 120)
    assert stats.spearmanr([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]).statistic == pytest.approx(0.9)
    assert exact_p([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == pytest.approx(2 / 120)
    assert np.isnan(exact_p([1, 1, 1, 1, 1], [5, 4, 3, 2, 1]))
    assert np.isnan(exact_p(range(10), range(10)))


@pytest.mark.parametrize("ranked", [True, False])
def test_exact_p_equals_scipys_permutation_test(rng, ranked):
    a, b = rng.normal(size=(2, 6))
    a[1] = a[2]
    correlation = stats.spearmanr if ranked else stats.pearsonr

    expected = stats.permutation_test(
        (b,),
        lambda b: correlation(a, b).statistic,
        permutation_type="pairings",
        vectorized=False,
        n_resamples=np.inf,
    )

    # scipy doubles the smaller tail, ours counts both.
    statistic = np.abs(expected.null_distribution)
    observed = abs(correlation(a, b).statistic)
    assert exact_p(a, b, ranked=ranked) == pytest.approx((statistic >= observed - 1e-9).mean())


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    found = holm([0.02, math.nan, 0.01])
    assert found[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert holm([]) == []


def ipr_table(values):
    """S per (architecture, method) as `ipr` has it."""
    found = [
        {"model": a, "method": m, "metric": "ssim", "convention": "common", "S_same": s}
        for (a, m), s in values.items()
    ]
    return pd.DataFrame(found).assign(order="independent")


def test_correlations_over_architectures(rng):
    values = {(a, m): rng.uniform() for a in PAPER_ARCHITECTURES for m in PAPER_METHODS}
    table = ipr_table(values)
    architectures = {a: a for a in PAPER_ARCHITECTURES} | {"vgg16-r": "vgg16"}

    found = correlations(table, architectures)

    assert tuple(found.columns) == CORRELATION_COLUMNS
    assert len(found) == 21
    row = found[(found["method"] == "deeplift") & (found["other"] == "lime")].iloc[0]
    a, b = ([values[x, m] for x in PAPER_ARCHITECTURES] for m in ("deeplift", "lime"))
    assert row["n_architectures"] == 5
    assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert row["spearman_p_t"] == pytest.approx(stats.spearmanr(a, b).pvalue)
    assert row["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert row["pearson_p_t"] == pytest.approx(stats.pearsonr(a, b).pvalue)
    assert (found["spearman_p_holm"] >= found["spearman_p_exact"]).all()
    assert found["spearman_p_holm"].to_list() == pytest.approx(holm(found["spearman_p_exact"]))
    assert (found["reason"] == "").all()
    assert row["paper_pearson"] == -0.3175


def test_too_few_architectures_are_not_measurable():
    few = {(a, m): 0.5 for a in PAPER_ARCHITECTURES[:4] for m in PAPER_METHODS}

    found = correlations(ipr_table(few), {a: a for a in PAPER_ARCHITECTURES})

    assert len(found) == 21
    assert found["spearman"].isna().all()
    assert found["reason"].str.startswith(f"{NOT_MEASURABLE}: both methods").all()
    assert found["reason"].str.contains("on 4 trained architectures, 5 are needed").all()
    constant = {(a, m): 0.5 for a in PAPER_ARCHITECTURES for m in PAPER_METHODS}
    found = correlations(ipr_table(constant), {a: a for a in PAPER_ARCHITECTURES})
    assert (found["reason"] == "S is the same on all architectures").all()
    with pytest.raises(ValueError, match="more than once; give one randomizer and preset"):
        correlations(pd.concat([ipr_table(few)] * 2), {})


# Plane


def sweep_scores(
    x, *, sweep="SG-N", method="smoothgrad", hyperparameter="n_samples", draws="nested"
):
    """Scores from 1 - SSIM of shape (variants, images)."""
    x = np.asarray(x, dtype=float)
    return pd.DataFrame(
        [
            {
                "sweep": sweep,
                "method": method,
                "model": "googlenet",
                "hyperparameter": hyperparameter,
                "value": str(variant),
                "image_id": f"image{image}",
                "metric": "ssim",
                "convention": "common",
                "draws": draws,
                "score": 1 - x[variant, image],
                "degenerate": False,
                "inverted": False,
            }
            for variant, image in np.ndindex(x.shape)
        ]
    )


SETTING = {"n_samples": 50, "sigma": 0.15}


def test_plane_is_paired_by_image(rng):
    """y is x plus .1 for every image: however images differ, the difference is certain."""
    x = rng.uniform(0, 1, (3, 12))
    y = x.mean(0) + 0.1
    scores = frame(np.broadcast_to(y, (2, 2, 12)), method="smoothgrad")

    found = plane(
        with_unit(scores, 0.5),
        sweep_scores(x),
        evaluation_set(12),
        OPTIONS,
        references={"SG-N": SETTING},
        settings={"smoothgrad": SETTING},
    )

    assert tuple(found.columns) == PLANE_COLUMNS
    row = found.iloc[0]
    assert (row["n_images"], row["n_variants"]) == (12, 3)
    # In units of what another image's map does.
    assert row["x"] == pytest.approx(x.mean() / 0.5)
    assert row["y"] == pytest.approx(y.mean() / 0.5)
    assert row["x_low"] < row["x"] < row["x_high"]
    assert row["y_high"] - row["y_low"] > 0.1
    assert row["difference"] == pytest.approx(0.2)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.2, 0.2))
    assert row["share_below"] == 1
    assert row["ranked"]
    assert row["filled"]
    assert row["rank"] == 1


def test_only_sweeps_from_the_iprs_setting_are_ranked(rng):
    gentle, worse = np.full((2, 4), 0.1), np.full((2, 4), 0.3)
    sweeps = [
        sweep_scores(gentle, draws="independent"),
        sweep_scores(worse, sweep="SG-sigma", hyperparameter="sigma"),
        sweep_scores(np.full((2, 4), 0.9), sweep="SG-other"),
        # What shares draws is no headline.
        sweep_scores(np.full((1, 4), 0.8), draws="nested"),
        sweep_scores(np.full((1, 4), 0.6), sweep="L", method="lime", draws="independent").assign(
            hyperparameter="seed"
        ),
    ]
    scores = [
        frame(np.full((1, 1, 4), 0.5), method=method)
        for method in ("smoothgrad", "lime", "gradient")
    ]

    found = plane(
        with_unit(pd.concat(scores)),
        pd.concat(sweeps),
        evaluation_set(4),
        OPTIONS,
        references={"SG-N": SETTING, "SG-sigma": SETTING, "SG-other": {"n_samples": 9}, "L": {}},
        settings={"smoothgrad": SETTING, "lime": {}},
    ).set_index("sweep")

    assert found["x"].to_dict() == pytest.approx(
        {"SG-N": 0.1, "SG-sigma": 0.3, "SG-other": 0.9, "L": 0.6, "": 0}
    )
    assert found["ranked"].to_dict() == {
        "SG-N": True,
        "SG-sigma": True,
        "SG-other": False,
        "L": True,
        "": False,
    }
    assert found.index[found["filled"]].to_list() == ["SG-sigma", "L"]
    assert found["rank"].dropna().to_dict() == {"SG-sigma": 1, "L": 2}
    assert found["reason"]["SG-other"] == "the reference has n_samples 9, the IPR test n_samples 50"
    assert found["reason"][""] == "the method has no sweep"
    assert found["share_below"]["L"] == 0
    # As far as the parameters move it is not less far.
    tied = plane(
        with_unit(scores[0]),
        sweep_scores([[0.5, 0.5, 0.4, 0.6]]),
        evaluation_set(4),
        OPTIONS,
        references={"SG-N": SETTING},
        settings={"smoothgrad": SETTING},
    )
    assert tied["share_below"].to_list() == [0.25]


def test_plane_without_a_ranked_sweep():
    found = plane(
        frame(np.full((1, 1, 4), 0.5)),
        sweep_scores(np.zeros((1, 4))),
        evaluation_set(4),
        OPTIONS,
        references={},
        settings={},
    )

    assert found["filled"].to_list() == [False]
    assert found["rank"].isna().all()


def test_plane_uses_the_images_that_ipr_used():
    x = np.array([[0.1, 0.1, 0.9, 0.9]])
    found = plane(
        with_unit(frame(np.full((1, 1, 2), 0.5), method="smoothgrad")),
        sweep_scores(x),
        evaluation_set(4),
        OPTIONS,
        references={"SG-N": SETTING},
        settings={"smoothgrad": SETTING},
    ).iloc[0]

    assert found["n_images"] == 2
    assert found["x"] == pytest.approx(0.1)


def test_planes_that_cannot_be_drawn_are_refused():
    scores, rows = frame(np.full((1, 1, 4), 0.5), method="smoothgrad"), evaluation_set(4)
    sweeps = sweep_scores(np.zeros((1, 4)))

    with pytest.raises(ValueError, match="sweep 'SG-N' has no reference; give the hyper"):
        plane(scores, sweeps, rows, OPTIONS, references={}, settings={})
    with pytest.raises(ValueError, match="have no image in common; run both on the same"):
        plane(
            scores,
            sweeps.assign(image_id="other"),
            rows,
            OPTIONS,
            references={"SG-N": {}},
            settings={},
        )
    both = pd.concat([scores.assign(randomizer="init"), scores.assign(randomizer="stale")])
    with pytest.raises(ValueError, match="several randomizers or presets; draw one plane"):
        plane(both, sweeps, rows, OPTIONS, references={"SG-N": {}}, settings={})


# Claims

FIVE = {name: name for name in PAPER_ARCHITECTURES}


def study(levels, *, n_images=12, scale=0.01, units=2):
    """Scores whose S is levels[architecture, method] and a little noise."""
    rng = np.random.default_rng(3)
    parts = [
        frame(level + scale * rng.normal(0, 1, (units, 2, n_images)), model=a, method=m)
        for (a, m), level in levels.items()
    ]
    return pd.concat(parts, ignore_index=True)


def paper_like():
    """A study in which the paper's claims on levels are true."""
    found = {}
    for a, m in itertools.product(PAPER_ARCHITECTURES, PAPER_METHODS):
        high = a in ("inception_v3", "mobilenet_v2")
        found[a, m] = (0.6 if high else 0.2) if m.startswith("guided") else 0.8
    found["resnet50", "lime"] = 1.0
    return found


def judged(scores, architectures=FIVE, n_images=12):
    table = ipr_claims(scores, evaluation_set(n_images), OPTIONS, architectures=architectures)
    # As those of SAM's claims, less their grids.
    assert tuple(table.columns) == CLAIM_COLUMNS == sam.CLAIM_COLUMNS[:-2]
    return table.set_index("claim")


def test_claims_hold_where_they_are_true():
    found = judged(study(paper_like()))

    for claim in ("I1", "I1b", "I2", "I3", "I4", "I5", "I6", "I7"):
        assert found["direction"][claim] == "holds", claim
    assert found["value"]["I2"] == pytest.approx(0.4, abs=0.02)
    assert found["size"]["I6"] == "inside"
    assert "of 35: 35 yes" in found["reason"]["I1"]
    assert found["size"]["I1"] == "not comparable"
    assert found["n_images"]["I1"] == 12


def test_recipes_name_no_document_that_a_reader_does_not_have():
    recipes = judged(study(paper_like()))["recipe"]

    assert not recipes.str.contains("definitions").any()
    (named,) = re.findall(r"\((docs/\S+\.md), ([^)]+)\)", recipes["I1"])
    assert f"## {named[1]}" in (ROOT / named[0]).read_text().splitlines()


def test_claims_fail_where_they_are_false():
    levels = {key: 0.8 for key in paper_like()}
    levels["vgg16", "deeplift"] = 0.001
    levels["resnet18", "guided_backprop"] = 0.95
    levels["inception_v3", "lime"] = 0.3
    found = judged(study(levels, scale=0.0005))

    assert found["direction"]["I1"] == "fails"
    assert "no: deeplift on vgg16" in found["reason"]["I1"]
    assert found["direction"]["I2"] == "fails"
    assert "resnet18" in found["reason"]["I2"]
    assert found["direction"]["I5"] == "fails"
    assert found["direction"]["I6"] in ("fails", "inconclusive")
    assert found["size"]["I6"] == "outside"
    assert found["direction"]["I7"] == "fails"


def test_claims_are_inconclusive_where_noise_covers_them():
    found = judged(study(paper_like(), scale=2.0))

    assert found["direction"]["I2"] == "inconclusive"
    assert found["ci_low"]["I2"] < 0 < found["ci_high"]["I2"]


def test_correlations_are_judged_by_permutation():
    """Five networks can't show a correlation, however strong."""
    levels = {
        (a, m): 0.1 * (i + 1) + 0.01 * j
        for i, a in enumerate(PAPER_ARCHITECTURES)
        for j, m in enumerate(PAPER_METHODS)
    }
    found = judged(study(levels, scale=0.0001))

    for claim in ("I8", "I8b", "I9", "I9b", "I10", "I10b"):
        assert found["value"][claim] == pytest.approx(1, abs=1e-3)
        assert found["direction"][claim] == "inconclusive"
        assert (
            "5 architectures can't show one: the smallest p after Holm is 0.35"
            in (found["reason"][claim])
        )
    assert found["paper_value"]["I8"] == 0.9
    assert found["paper_value"]["I9b"] == 0.949
    assert found["paper_value"]["I10"] == -0.7
    reversed_levels = {
        key: 1 - level if key[1] == "guided_gradcam" else level for key, level in levels.items()
    }
    assert judged(study(reversed_levels, scale=0.0001))["direction"]["I8"] == "fails"


def test_seven_architectures_can_show_a_correlation():
    names = [*PAPER_ARCHITECTURES, "googlenet", "own"]
    levels = {
        (a, m): 0.1 * (i + 1) + 0.01 * j
        for i, a in enumerate(names)
        for j, m in enumerate(PAPER_METHODS)
    }

    found = judged(study(levels, scale=0.0001), {name: name for name in names})

    assert found["direction"]["I8"] == "holds"
    assert found["direction"]["I9"] == "holds"
    assert found["direction"]["I10"] == "fails"


def test_claims_about_absent_networks_are_not_measurable():
    scores = study({("googlenet", m): 0.5 for m in PAPER_METHODS[:4]}, n_images=8)

    found = judged(scores, {"googlenet": "googlenet"}, n_images=8)
    nothing = judged(scores, {}, n_images=8)

    assert found.index.to_list() == nothing.index.to_list()
    measurable = found.index[found["direction"] != NOT_MEASURABLE].to_list()
    assert measurable == ["I1b", "I11"]
    assert "not tested: integrated_gradients, gradient, lime" in found["reason"]["I1b"]
    assert "no trained inception_v3, vgg16, mobilenet_v2" in found["reason"]["I1"]
    assert "are measured on 1 trained architecture, 5 are needed" in found["reason"]["I8"]
    assert (nothing["direction"] == NOT_MEASURABLE).all()
    assert (nothing["reason"] != "").all()


def test_s_may_exceed_one():
    scores = study({("googlenet", "gradient"): 0.5, ("googlenet", "lime"): 1.3})

    found = judged(scores, {"googlenet": "googlenet"}).loc["I11"]

    assert found["direction"] == "fails"
    assert found["value"] == pytest.approx(1.3, abs=0.01)
    assert "SSIM is negative in 48 of 96 comparisons; S^i exceeds 1 for 12 of 24" in found["reason"]
    assert judged(study(paper_like()))["direction"]["I11"] == "fails"


def test_methods_on_fewer_images_keep_their_own_degrees_of_freedom():
    """Images that a method never saw must not narrow its interval."""
    rng = np.random.default_rng(0)
    cells = rng.uniform(0.3, 0.7, (1, 1, 4))
    scores = pd.concat(
        [
            frame(rng.uniform(0.88, 0.92, (1, 1, 8)), model="googlenet"),
            frame(cells, model="googlenet", method="lime"),
        ]
    )

    found = judged(scores, {"googlenet": "googlenet"}, n_images=8).loc["I1b"]

    values = cells[0, 0]
    low, _ = t_of_s(values)
    # Two methods: the upper end of the smallest shares the error between them.
    _, high = t_of_s(values, 0.975)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((low, high))
    assert found["n_images"] == 4


def test_differences_have_the_degrees_of_freedom_of_the_smaller_sample(rng):
    floor = rng.uniform(0, 0.2, (1, 1, 4))
    parts = [frame(np.full((1, 1, 8), 0.5), kind=kind) for kind in ("same", "fresh")]

    row = one(pd.concat([*parts, frame(floor, kind="floor")]), evaluation_set(8))

    values = 0.5 - floor[0, 0]
    expected = t_of_s(values, low=-2.0, high=2.0)
    assert (row["excess_low"], row["excess_high"]) == pytest.approx(expected)


# Inverted maps


@pytest.mark.parametrize(("inverted", "passes"), [(False, "no"), (True, "inconclusive")])
def test_inverted_maps_are_counted_and_never_called_insensitive(inverted, passes):
    """SSIM of .995 with maps that turned over: they did react."""
    row = one(frame(np.full((2, 3, 6), 0.005), inverted=inverted), evaluation_set(6))

    assert row["n_inverted"] == 36 * inverted
    assert row["passes"] == passes
    assert row["S_same"] == pytest.approx(0.005)


def both_measures(y, x, *, ranks_y, ranks_x):
    """Scores of the IPR test and a sweep by SSIM and by rank correlation."""
    rank = {"metric": "spearman", "convention": "signed"}
    ipr_scores = pd.concat(
        [
            frame(y, method="smoothgrad"),
            frame(ranks_y, method="smoothgrad", inverted=np.mean(ranks_y) > 1.3, **rank),
        ]
    )
    return with_unit(ipr_scores), pd.concat([sweep_scores(x), sweep_scores(ranks_x).assign(**rank)])


@pytest.mark.parametrize(
    ("ranks_y", "ranks_x", "verdict"),
    [
        (1.9, 0.1, "parameters"),
        (0.2, 1.9, DISAGREE),
        (0.5, 0.5, DISAGREE),
    ],
)
def test_the_plane_s_verdict_holds_by_both_measures(rng, ranks_y, ranks_x, verdict):
    noise = 0.02 * rng.normal(size=8)
    scores = both_measures(
        np.broadcast_to(0.5 + noise, (3, 2, 8)),
        np.broadcast_to(0.1 + noise / 2, (2, 8)),
        ranks_y=np.broadcast_to(ranks_y + noise, (3, 2, 8)),
        ranks_x=np.broadcast_to(ranks_x - noise, (2, 8)),
    )

    table = plane(
        *scores,
        evaluation_set(8),
        OPTIONS,
        references={"SG-N": SETTING},
        settings={"smoothgrad": SETTING},
    )

    assert table["verdict"].to_list() == [verdict] * 2
    by_rank = table[table["metric"] == "spearman"].iloc[0]
    assert by_rank["y_inverted"] == 48 * (ranks_y > 1.3)


def test_without_a_rank_correlation_the_plane_is_undecided(rng):
    y = np.broadcast_to(0.5 + 0.02 * rng.normal(size=8), (3, 2, 8))

    table = plane(
        with_unit(frame(y, method="smoothgrad")),
        sweep_scores(np.full((2, 8), 0.1)),
        evaluation_set(8),
        OPTIONS,
        references={"SG-N": SETTING},
        settings={"smoothgrad": SETTING},
    )

    assert table["verdict"].to_list() == ["undecided"]
