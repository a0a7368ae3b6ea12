import pandas as pd
import pytest
import torch

from steadymap import Hyperparameter, attribute, attribution_method, normalize, show, ssim, sweep

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])


def headline(found):
    return found[(found["metric"] == "ssim") & (found["convention"] == "common")]


def test_scores_are_those_of_the_maps(tiny, images):
    options = {"n_samples": 4, "batch_size": 16}

    found = sweep(
        "smoothgrad", tiny, images, TARGETS, vary={"sigma": [0.1, 0.2]}, reference=0.2, **options
    )

    a, b = (attribute("smoothgrad", tiny, images, TARGETS, sigma=s, **options) for s in (0.2, 0.1))
    rows = headline(found)
    assert rows["value"].tolist() == [0.1] * 6
    assert rows["score"].tolist() == pytest.approx(ssim(normalize(a), normalize(b)).tolist())
    assert rows["image_id"].tolist() == list("012345")
    assert set(found["metric"]) == {"ssim", "spearman", "pearson", "hog_pearson"}
    assert set(found["convention"]) == {"common", "sam", "wang", "signed", "cells1"}


def test_counts_are_scored_with_both_kinds_of_draws(tiny, images):
    found = headline(
        sweep("smoothgrad", tiny, images, TARGETS, vary={"n_samples": [2, 4]}, sigma=0.3)
    )

    means = found.groupby("draws")["score"].mean()
    assert set(means.index) == {"nested", "independent"}
    assert means["nested"] > means["independent"]


def test_the_first_value_is_the_reference_by_default(tiny, images):
    found = sweep("sliding_patch", tiny, images, 0, vary={"patch_size": [4, 8]}, stride=4)

    assert set(found["value"]) == {8}
    assert set(found["draws"]) == {"none"}


def test_image_names_key_the_draws_and_stand_in_the_table(tiny, images):
    names = [f"photo-{i}" for i in range(6)]
    call = {"vary": {"sigma": [0.1, 0.2]}, "n_samples": 2}

    named = sweep("smoothgrad", tiny, images, 0, image_ids=names, **call)
    plain = sweep("smoothgrad", tiny, images, 0, **call)

    assert named["image_id"].unique().tolist() == names
    assert not (named["score"] == plain["score"]).all()


def test_it_is_the_same_twice_and_leaves_the_model(tiny, images):
    with torch.no_grad():
        before = tiny(images)
    call = ("smoothgrad", tiny, images, 0)

    first, second = (sweep(*call, vary={"seed": [0, 1]}, n_samples=2) for _ in range(2))

    pd.testing.assert_frame_equal(first, second)
    with torch.no_grad():
        assert torch.equal(before, tiny(images))
    assert set(first["draws"]) == {"independent"}


def test_show_draws_every_setting_with_its_score(tiny, images):
    figure = show("sliding_patch", tiny, images[:2], 0, vary={"patch_size": [4, 8, 12]}, stride=4)

    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    found = headline(
        sweep("sliding_patch", tiny, images[:2], 0, vary={"patch_size": [4, 8, 12]}, stride=4)
    )
    for score in found["score"]:
        assert any(f"{score:.2f} / " in text for text in texts)
    assert {"4", "8", "12"} <= set(texts)


def test_maps_against_their_negatives_are_inverted(tiny, images):
    """A method whose second setting is the first's negative."""

    @attribution_method(cost=(1, 1), sign=Hyperparameter(int, 1))
    def turned(passes, images, targets, *, sign):
        return sign * passes.gradients(images, targets, output="logit").mean(1)

    call = (turned, tiny, images, 0)
    found = sweep(*call, vary={"sign": [1, -1]})
    texts = [t.get_text() for a in show(*call, vary={"sign": [1, -1]}).axes for t in a.texts]

    assert found["inverted"].all()
    assert sum(text.endswith("/ -1.00 ‡") for text in texts) == len(images)
    assert any("‡ inverted map" in text for text in texts)


def test_all_settings_of_a_sweep_have_one_batch_size(tiny, images):
    """What the largest needs; equal settings of other sweeps may differ by a rounding."""
    call = ("sliding_patch", tiny, images[:1], 0)

    found = headline(sweep(*call, vary={"patch_size": [8, 4]}, stride=4))
    fixed = headline(sweep(*call, vary={"patch_size": [8, 4]}, stride=4, batch_size=37))
    other = headline(sweep(*call, vary={"patch_size": [8, 4]}, stride=4, batch_size=64))

    assert found["score"].tolist() == fixed["score"].tolist()
    assert found["score"].tolist() == pytest.approx(other["score"].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": {}}, r"vary names 0 hyperparameters \(none\); name one"),
        ({"vary": {"sigma": [1], "n_samples": [1]}}, "vary names 2 hyperparameters"),
        ({"vary": {"sigma": [0.1]}}, r"sigma has the values \[0.1\] .* give at least two"),
        ({"vary": {"sigma": [0.1, 0.1]}}, "give at least two different values"),
        ({"vary": {"sigma": [0.1, 0.2]}, "reference": 0.3}, "the reference 0.3; give at least"),
        ({"vary": {"sigma": [0.1, 0.2]}, "sigma": 0.1}, "sigma is varied and given as 0.1"),
        ({"vary": {"width": [1, 2]}}, "smoothgrad has no such hyperparameter; known are n_samples"),
        ({"vary": {"n_samples": [1, 0]}}, "n_samples is 0; choose at least 1"),
    ],
)
def test_wrong_sweeps_are_told(tiny, images, options, message):
    with pytest.raises(ValueError, match=message):
        sweep("smoothgrad", tiny, images, 0, **options)
