import numpy as np
import pandas as pd
import pytest
import torch

from steadymap.engine.evaluation_set import as_images, read
from steadymap.engine.selection import choose, write
from steadymap.params.schema import EvaluationSet


def rule(**changes):
    return EvaluationSet(
        **{"rule": "all_correct", "target": "label", "n_images": 8, "seed": 0} | changes
    )


def predictions(embedded, wrong=()):
    labels = embedded.rows("val")["label"].to_numpy().copy()
    labels[list(wrong)] = (labels[list(wrong)] + 1) % 8
    return labels


def test_only_images_that_all_models_get_right(embedded):
    predicted = {"a": predictions(embedded, range(10)), "b": predictions(embedded, range(5, 20))}

    chosen = choose(rule(n_images=28), embedded, predicted)

    assert sorted(chosen.positions) == list(range(20, 48))
    assert chosen.models.to_dict("list") == {
        "model": ["a", "b"],
        "n_candidates": [48, 48],
        "n_correct": [38, 33],
        "n_dropped": [10, 15],
    }


def test_any_keeps_the_wrong_ones(embedded):
    chosen = choose(
        rule(rule="any", n_images=48), embedded, {"a": predictions(embedded, range(48))}
    )

    assert sorted(chosen.positions) == list(range(48))
    assert chosen.models["n_dropped"].tolist() == [0]


def test_a_larger_set_begins_with_the_smaller_one(embedded):
    predicted = {"a": predictions(embedded)}

    few, many = (choose(rule(n_images=n), embedded, predicted).positions for n in (8, 24))

    assert (many[:8] == few).all()


def test_it_is_spread_evenly_over_photographs(embedded):
    chosen = choose(rule(n_images=16), embedded, {"a": predictions(embedded)})

    counts = chosen.images["photo"].value_counts()
    assert len(counts) == embedded.rows("val")["photo"].nunique()
    assert counts.max() - counts.min() <= 1


def test_the_set_holds_the_largest_number_of_any_method(embedded):
    predicted = {"a": predictions(embedded)}
    some = rule(n_images=4, of_methods={"gradient": 24, "lime": 2})

    chosen = choose(some, embedded, predicted).positions

    assert (some.of("gradient"), some.of("lime"), some.of("smoothgrad")) == (24, 2, 4)
    assert list(chosen) == list(choose(rule(n_images=24), embedded, predicted).positions)


def test_the_seed_decides_the_draw(embedded):
    predicted = {"a": predictions(embedded)}

    draws = [list(choose(rule(seed=seed), embedded, predicted).positions) for seed in (0, 0, 1)]

    assert draws[0] == draws[1] != draws[2]


def test_a_list_is_taken_in_its_order(embedded):
    names = embedded.rows("val")["id"].tolist()
    wanted = [names[7], names[3]]

    chosen = choose(
        rule(rule="list", images=wanted, n_images=2), embedded, {"a": predictions(embedded)}
    )

    assert chosen.images["image_id"].tolist() == wanted


def test_targets_are_labels_or_each_model_s_predictions(embedded):
    predicted = {"a": predictions(embedded), "b": predictions(embedded, range(48))}

    by_label = choose(rule(rule="any"), embedded, predicted).targets
    by_prediction = choose(rule(rule="any", target="prediction"), embedded, predicted).targets

    a, b = (by_label[by_label["model"] == model] for model in "ab")
    assert a["target"].tolist() == b["target"].tolist() == a["prediction"].tolist()
    assert (by_prediction["target"] == by_prediction["prediction"]).all()
    assert (b["prediction"].to_numpy() != b["target"].to_numpy()).all()


def test_too_few_images_name_the_counts_per_model(embedded):
    predicted = {"a": predictions(embedded, range(40)), "b": predictions(embedded, range(48))}

    message = (
        r"evaluation_set.n_images: 8 wanted, 0 left under rule all_correct of 48 validation "
        r"images \(correct: a 8, b 0\); ask for fewer"
    )
    with pytest.raises(ValueError, match=message):
        choose(rule(), embedded, predicted)


def test_an_unknown_name_in_the_list_is_told(embedded):
    with pytest.raises(ValueError, match="'val-x' is no image of the validation split"):
        choose(rule(rule="list", images=["val-x"]), embedded, {"a": predictions(embedded)})


def test_what_is_written_is_read(embedded, tmp_path):
    chosen = choose(rule(), embedded, {"a": predictions(embedded)})
    write(chosen, embedded, tmp_path / "set")

    rows, targets, pixels = read(tmp_path / "set")

    pd.testing.assert_frame_equal(rows, chosen.images)
    assert targets["target"].tolist() == rows["label"].tolist()
    assert (pixels == embedded.images["val"][chosen.positions]).all()
    masks = np.load(tmp_path / "set" / "masks.npy")
    assert (masks == embedded.masks["val"][chosen.positions]).all()


def test_pixels_become_images_in_unit_range():
    images = as_images(np.array([[[[0, 51, 255]]]], dtype=np.uint8))

    assert images.shape == (1, 3, 1, 1)
    assert torch.allclose(images.flatten(), torch.tensor([0, 0.2, 1]))
