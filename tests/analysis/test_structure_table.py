"""Table of visible structure, on scores from which it can be computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from steadymap.analysis.structure import COLUMNS, structure
from steadymap.params.schema import Statistics

OPTIONS = Statistics(confidence=0.95)
IDS = ["a", "b", "c", "d", "e"]


def scores(own, others, degenerate=(False,) * 5, metric="edge_correlation"):
    named = {"sweep": "default", "method": "gradient", "model": "net", "value": ""}
    partners = [*IDS[1:], IDS[0]]
    return pd.concat(
        pd.DataFrame(
            named
            | {"image_id": IDS, "other": other, "metric": metric, "pairing": pairing}
            | {"score": values, "degenerate": degenerate}
        )
        for pairing, other, values in (("same", IDS, own), ("mismatched", partners, others))
    )


def rows(photos=("",) * 5):
    return pd.DataFrame({"image_id": IDS, "photo": photos})


def test_beyond_is_the_mean_less_that_of_other_photographs():
    own, others = [0.4, 0.5, 0.3, 0.6, 0.2], [0.1, 0.0, 0.2, 0.1, -0.1]

    found = structure(scores(own, others), rows(), OPTIONS)

    assert list(found.columns) == list(COLUMNS)
    (row,) = found.to_dict("records")
    assert row["mean"] == pytest.approx(0.4)
    assert row["floor"] == pytest.approx(0.06)
    assert row["beyond"] == pytest.approx(0.34)
    assert (row["n_images"], row["n_degenerate"]) == (5, 0)


def test_intervals_leave_out_both_photographs_of_a_pair():
    own, others = np.array([0.4, 0.5, 0.3, 0.6, 0.2]), np.array([0.1, 0.0, 0.2, 0.1, -0.1])

    (row,) = structure(scores(own, others), rows(), OPTIONS).to_dict("records")

    without = []
    for out in range(5):
        kept = np.arange(5) != out
        # Image i is held against the next: a pair goes with either.
        pairs = kept & (np.arange(1, 6) % 5 != out)
        without.append(own[kept].mean() - others[pairs].mean())
    error = np.sqrt(4 / 5 * ((np.array(without) - row["beyond"]) ** 2).sum())
    width = row["beyond_high"] - row["beyond_low"]
    # On a scale that ends at -2 and 2 the interval is not quite the plain one.
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 4) * error, rel=0.05)


def test_images_of_one_photograph_are_left_out_together():
    values = [0.1, 0.1, 0.5, 0.5, 0.9]
    table = scores(values, [0.0] * 5)

    (own,), (shared,) = (
        structure(table, rows(photos), OPTIONS).to_dict("records")
        for photos in (("",) * 5, ("x", "x", "y", "y", "z"))
    )

    assert shared["mean_high"] - shared["mean_low"] > own["mean_high"] - own["mean_low"]


def test_blank_maps_are_left_out_and_counted():
    own, blank = [0.4, 0.5, 0.3, 0.6, 0.9], [False] * 4 + [True]

    (row,) = structure(scores(own, [0.1] * 5, blank), rows(), OPTIONS).to_dict("records")

    assert row["mean"] == pytest.approx(0.45)
    assert (row["n_images"], row["n_degenerate"]) == (4, 1)


def test_one_photograph_has_no_floor_and_no_interval():
    table = scores([0.4] * 5, [0.1] * 5)
    table = table[(table["pairing"] == "same") & (table["image_id"] == "a")]

    (row,) = structure(table, rows()[:1], OPTIONS).to_dict("records")

    assert row["mean"] == pytest.approx(0.4)
    assert np.isnan([row["floor"], row["beyond"], row["mean_low"]]).all()
