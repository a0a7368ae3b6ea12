"""Stability budgets in closed form, and which sweeps have one."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steadymap.analysis.budgets import BUDGET_COLUMNS, CURVE_COLUMNS, budgets, curves, lasting
from steadymap.engine.tasks import cost_of
from steadymap.experiments.convergence import COLUMNS, convergences
from steadymap.params.checks import overlay, validate
from steadymap.params.schema import Budget, ParamsError, Statistics

OPTIONS = Statistics(confidence=0.95)
MP = {"n_iterations": 60, "blur_radius": 3, "mask_size": 8, "jitter": 1}


def params_of(values, **changes):
    return validate(overlay(values, changes))


def sweep(values, name="SG-N", **changes):
    """Convergence of one sweep of the committed params."""
    return next(one for one in convergences(params_of(values, **changes)) if one.sweep == name)


def scores_of(table, *, sweep="SG-N", method="smoothgrad", degenerate=False, inverted=False):
    """Rows from SSIMs by value, one per image; the rank correlation is a half of it."""
    rows = [
        {
            "sweep": sweep,
            "method": method,
            "model": "googlenet",
            "hyperparameter": "n_samples",
            "value": str(value),
            "image_id": f"i{image}",
            "metric": metric,
            "convention": convention,
            "score": score / (1 if metric == "ssim" else 2),
            "degenerate": degenerate,
            "inverted": inverted,
        }
        for value, found in table.items()
        for image, score in enumerate(found)
        for metric, convention in [("ssim", "common"), ("ssim", "wang"), ("spearman", "signed")]
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    # Another convention of SSIM must not be taken for the common one.
    frame.loc[frame["convention"] == "wang", "score"] = 0.0
    return frame


def images(n, photos=None):
    return pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "photo": photos or [""] * n})


def passes_of(sweeps):
    return {made: cost_of([made], 64) for sweep in sweeps for made in sweep.settings}


def both(values, table, *, budget=None, photos=None, **changes):
    budget = budget or Budget(tau=[0.95], share=0.9)
    n = len(next(iter(table.values())))
    grid = {"values": list(table), "reference": next(iter(table))}
    wanted = [sweep(values, sweeps={"smoothgrad": {"SG-N": grid}}, **changes)]
    found = curves(
        scores_of(table), wanted, images(n, photos), budget, OPTIONS, passes=passes_of(wanted)
    )
    return found, budgets(found, budget)


# Which sweeps


def test_sweeps_over_samples_and_steps_have_a_converged_map(values):
    found = convergences(validate(values))

    assert [one.sweep for one in found] == ["SG-N", "IG-N", "LIME-N", "MP-N"]
    assert [one.values for one in found] == [
        [5, 10, 20, 50, 100],
        [2, 5, 10],
        [200, 400],
        [10, 30, 60, 90],
    ]
    for one in found:
        largest = one.settings[-1].hyperparameters
        # Nothing but the seed differs: of MP, which starts from a disc, the jitter alone.
        assert one.converged.hyperparameters == {**largest, "seed": largest["seed"] + 1}
        assert all(made.hyperparameters["seed"] == largest["seed"] for made in one.settings)
    assert found[-1].converged.hyperparameters["init"] == "circular"


def test_a_count_of_an_own_method_has_one_too(own_values):
    found = convergences(validate(own_values))[-1]

    assert (found.sweep, found.values) == ("C-n", [2, 4])
    assert found.converged.hyperparameters == {"n": 4, "seed": 4}


def test_a_grid_in_any_order_ends_in_its_largest_value(values):
    grid = {"values": [20, 100, 5], "reference": 20}

    found = sweep(values, sweeps={"smoothgrad": {"SG-N": grid}})

    assert found.values == [5, 20, 100]
    assert found.converged.hyperparameters["n_samples"] == 100


def test_a_seed_of_the_sweep_is_followed_by_the_next(values):
    fixed = {"sigma": 0.15, "seed": 7}

    found = sweep(values, sweeps={"smoothgrad": {"SG-N": {"fixed": fixed}}})

    assert found.converged.hyperparameters["seed"] == 8


def test_a_random_start_has_no_other_jitter_alone(values):
    start = {"MP-N": {"fixed": {"init": "random"}}}

    found = convergences(params_of(values, sweeps={"meaningful_perturbation": start}))

    assert "MP-N" not in [one.sweep for one in found]


def test_integrated_gradients_have_one_only_with_a_random_baseline(values):
    """Another baseline is refused, so that no sweep over its trials can exist."""
    fixed = {"IG-N": {"fixed": {"baseline": "zero"}}}

    with pytest.raises(ParamsError, match="with baseline zero all trials are equal"):
        params_of(values, sweeps={"integrated_gradients": fixed})


def test_no_budget_no_sweep(values):
    assert convergences(params_of(values, comparisons={"budget": None})) == []


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"tau": [0.9, 0.9]}, r"comparisons.budget.tau: 0.9 stands twice; name it once"),
        ({"tau": []}, r"comparisons.budget.tau: \[\]"),
        ({"tau": [1.5]}, r"comparisons.budget.tau.0: 1.5"),
        ({"share": 0}, r"comparisons.budget.share: 0"),
        ({"taus": [0.9]}, r"comparisons.budget.taus: .* is not a known key"),
    ],
)
def test_a_spoiled_budget_is_refused(values, budget, message):
    with pytest.raises(ParamsError, match=message):
        params_of(values, comparisons={"budget": budget})


# From which value on


@pytest.mark.parametrize(
    ("reached", "place"),
    [
        ([False, False, True, True], 2),
        ([True, True], 0),
        # A value that reaches it by luck, and the next does not.
        ([True, False, True], 2),
        ([True, True, False], None),
        ([False], None),
        ([], None),
    ],
)
def test_lasting_is_the_first_from_which_all_hold(reached, place):
    assert lasting(reached) == place


def test_the_budget_is_the_first_value_from_which_enough_images_stay(values):
    table = {
        5: [0.99] * 9 + [0.5],  # nine of ten: enough, for once
        10: [0.99] * 8 + [0.5] * 2,
        20: [0.951] * 9 + [0.949],
        50: [0.99] * 10,
    }

    curve, found = both(values, table)

    assert list(curve.columns) == list(CURVE_COLUMNS)
    assert list(found.columns) == list(BUDGET_COLUMNS)
    assert curve["share"].tolist() == pytest.approx([0.9, 0.8, 0.9, 1])
    assert curve["value"].tolist() == ["5", "10", "20", "50"]
    assert curve["ssim"].tolist() == pytest.approx([np.mean(row) for row in table.values()])
    assert curve["spearman"].tolist() == pytest.approx((curve["ssim"] / 2).tolist())
    row = found.iloc[0]
    assert (row["budget"], row["n_max"], row["reached"]) == (20, 50, True)
    assert row["self_similarity"] == pytest.approx(0.99)
    assert row["share_at_max"] == 1
    assert row["n_images"] == 10


def test_passes_are_those_of_an_image_at_the_budget(values):
    curve, found = both(values, {5: [0.0] * 4, 10: [1.0] * 4, 20: [1.0] * 4})

    # A gradient needs its forward pass.
    assert curve["forward_passes"].tolist() == [5, 10, 20]
    assert curve["backward_passes"].tolist() == [5, 10, 20]
    assert found[["forward_passes", "backward_passes"]].iloc[0].tolist() == [10, 10]


def test_forward_and_backward_passes_are_counted_apart(values):
    wanted = [sweep(values, "LIME-N")]
    scores = scores_of({200: [1.0], 400: [1.0]}, sweep="LIME-N", method="lime")

    found = curves(scores, wanted, images(1), Budget(), OPTIONS, passes=passes_of(wanted))

    assert (found["backward_passes"] == 0).all()
    assert found["forward_passes"].tolist() == [200, 200, 400, 400]


def test_a_budget_that_is_not_reached_says_by_which_value(values):
    _, found = both(values, {5: [1.0] * 4, 10: [0.9] * 4})

    row = found.iloc[0]
    assert not row["reached"]
    assert row[["budget", "low", "high", "forward_passes", "backward_passes"]].isna().all()
    assert (row["n_max"], row["share_at_max"]) == (10, 0)
    assert row["self_similarity"] == pytest.approx(0.9)


def test_each_tau_has_its_own_budget(values):
    table = {5: [0.96] * 4, 10: [0.98] * 4, 20: [0.992] * 4}

    curve, found = both(values, table, budget=Budget(tau=[0.95, 0.99], share=0.9))

    assert found["tau"].tolist() == [0.95, 0.99]
    assert found["budget"].tolist() == [5, 20]
    assert len(curve) == 6


def test_the_interval_of_a_share_gives_that_of_the_budget(values):
    """Half, then nearly all, then all of forty images: the middle may or may not be enough."""
    table = {5: [1.0] * 20 + [0.0] * 20, 10: [1.0] * 37 + [0.0] * 3, 20: [1.0] * 40}

    curve, found = both(values, table)

    middle = curve[curve["value"] == "10"].iloc[0]
    assert middle["low"] < 0.9 < middle["share"] < middle["high"]
    wilson = stats.binomtest(37, 40).proportion_ci(method="wilson")
    assert middle["low"] == pytest.approx(wilson.low, abs=0.01)
    assert found[["low", "budget", "high"]].iloc[0].tolist() == [10, 10, 20]


def test_images_of_one_photograph_count_together(values):
    """Ten images of two photographs are two, not ten: no budget is beyond doubt."""
    table = {5: [1.0] * 9 + [0.0], 10: [1.0] * 9 + [0.0]}
    photos = ["a"] * 5 + ["b"] * 5

    alone, _ = both(values, table)
    together, found = both(values, table, photos=photos)

    # Student's quantile of two photographs is 12.7.
    assert 0 <= together["low"][0] < 0.06
    assert alone["low"][0] > 0.5
    assert 0.99 < together["high"][0] <= 1
    assert found["budget"][0] == 5
    assert np.isnan(found["high"][0])


def test_images_that_all_agree_leave_their_share_uncertain(values):
    """Sixteen of sixteen don't tell that nine of ten would; forty of forty do."""
    few, found = both(values, {5: [0.0] * 16, 10: [1.0] * 16})
    many, sure = both(values, {5: [0.0] * 40, 10: [1.0] * 40})

    for curve, n in ((few, 16), (many, 40)):
        # Wilson's bound of none, or all, of n - 1 trials.
        reach = stats.t.ppf(0.975, n - 1) ** 2
        bound = reach / (n - 1 + reach)
        assert curve["low"].tolist() == pytest.approx([0, 1 - bound])
        assert curve["high"].tolist() == pytest.approx([bound, 1])
    assert found["budget"][0] == sure["budget"][0] == 10
    assert np.isnan(found["high"][0])
    assert sure["high"][0] == 10


def test_an_undefined_ssim_reaches_nothing(values):
    curve, _ = both(values, {5: [1.0, np.nan], 10: [1.0, 1.0]})

    assert curve["share"].tolist() == [0.5, 1]
    assert curve["n_images"].tolist() == [2, 2]


def test_degenerate_pairs_are_counted(values):
    wanted = [sweep(values, sweeps={"smoothgrad": {"SG-N": {"values": [5, 10]}}})]
    scores = scores_of({5: [1.0, 1.0], 10: [1.0, 1.0]}, degenerate=True)

    found = curves(scores, wanted, images(2), Budget(), OPTIONS, passes=passes_of(wanted))

    assert (found["n_degenerate"] == 2).all()


def test_an_inverted_map_is_no_converged_one(values):
    wanted = [sweep(values, sweeps={"smoothgrad": {"SG-N": {"values": [5, 10]}}})]
    scores = scores_of({5: [1.0, 1.0], 10: [1.0, 1.0]}, inverted=True)

    found = curves(scores, wanted, images(2), Budget(), OPTIONS, passes=passes_of(wanted))

    assert (found["n_inverted"] == 2).all()
    assert (found["share"] == 0).all()
    assert not budgets(found, Budget())["reached"].any()
