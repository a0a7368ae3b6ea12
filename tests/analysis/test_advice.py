"""Advice from tables and maps whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from steadymap.analysis.advice import AVERAGE_COLUMNS, COLUMNS, _averages, advice
from steadymap.engine.settings import points
from steadymap.metrics.similarity import normalize, spearman, ssim
from steadymap.params.schema import Sweep
from steadymap.report.sections.answer import advice_line


def sensitivity(**moved):
    """Rows of both headline measures; `moved` maps method__hyperparameter to 1 - SSIM and 1 - "
    "Spearman."""
    rows = []
    for name, values in moved.items():
        method, hyperparameter = name.split("__")
        for (metric, convention), value in zip(
            [("ssim", "common"), ("spearman", "signed")], values, strict=True
        ):
            rows.append(
                {
                    **{"sweep": f"{method}-{hyperparameter}", "method": method, "model": "net"},
                    **{
                        "hyperparameter": hyperparameter,
                        "metric": metric,
                        "convention": convention,
                    },
                    **{
                        "draws": "independent" if hyperparameter == "seed" else "none",
                        "mean": 1 - value,
                    },
                }
            )
    return pd.DataFrame(rows)


def averages(*scores, method="lime"):
    rows = [
        (method, f"{method}-seed", "net", n + 1, alike, ranks, 1, 4)
        for n, (alike, ranks) in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=list(AVERAGE_COLUMNS))


def budget(at_least, tau=0.95):
    row = {"model": "net", "method": "lime", "sweep": "lime-n_samples", "tau": tau}
    return pd.DataFrame([row | {"budget": at_least, "n_max": 400}])


def test_what_moves_maps_by_either_measure_is_to_be_reported():
    """SSIM alone hardly sees that the sign of a map turns."""
    table = sensitivity(
        lime__n_samples=(0.04, 0.3), lime__sigma=(0.06, 0.0), lime__compactness=(0.04, 0.04)
    )

    (row,) = advice(table, None, None, tau=0.95).to_dict("records")

    assert tuple(row) == COLUMNS
    assert (row["report"], row["steady"]) == ("n_samples sigma", "compactness")
    assert np.isnan([row["at_least"], row["n_seeds"]]).all()


def test_the_count_is_the_budget_at_tau():
    table = sensitivity(lime__n_samples=(0.3, 0.3))
    both = pd.concat([budget(200.0), budget(np.nan, tau=0.99)])

    (least,) = advice(table, both, None, tau=0.95).to_dict("records")
    (strict,) = advice(table, both, None, tau=0.99).to_dict("records")

    assert (least["counted"], least["at_least"]) == ("n_samples", 200)
    assert np.isnan(strict["at_least"])
    assert strict["n_max"] == 400


@pytest.mark.parametrize(
    ("scores", "n_seeds"),
    [
        ([(0.9, 0.99), (0.96, 0.97)], 2),
        ([(0.96, 0.97), (0.97, 0.98)], 1),
        # Both must hold, and from there on.
        ([(0.99, 0.9), (0.99, 0.94)], np.nan),
        ([(0.96, 0.97), (0.94, 0.98)], np.nan),
    ],
)
def test_seeds_are_enough_where_both_measures_are_from_there_on(scores, n_seeds):
    table = sensitivity(lime__seed=(0.5, 0.5))

    (row,) = advice(table, None, averages(*scores), tau=0.95).to_dict("records")

    assert row["n_seeds"] == pytest.approx(n_seeds, nan_ok=True)
    assert (row["most_seeds"], row["seeds_ssim"], row["seeds_spearman"]) == (2, *scores[-1])


class Archive:
    """Maps of two images by seed."""

    def __init__(self, n):
        self.stack = np.random.default_rng(0).normal(size=(n, 2, 8, 8)).astype(np.float32)

    def read(self, model, hyperparameters):
        return self.stack[hyperparameters["seed"]]


def test_averages_are_compared_over_disjoint_sets_of_seeds():
    archive = Archive(5)
    own = points("lime", {"S": Sweep(vary="seed", values=[0, 1, 2, 3, 4], reference=0)})

    one, two = _averages(archive, "net", own, 5)

    means = [torch.from_numpy(archive.stack[i : i + 2].mean(0)) for i in (0, 2)]
    assert (one["n_averaged"], one["n_pairs"], two["n_averaged"], two["n_pairs"]) == (1, 10, 2, 1)
    assert two["ssim"] == pytest.approx(float(ssim(*map(normalize, means)).mean()))
    assert two["spearman"] == pytest.approx(float(spearman(*means).mean()))
    assert two["n_images"] == 2


def test_words_hold_on_all_models():
    table = pd.concat(
        advice(
            sensitivity(lime__n_samples=(0.3, 0.3), lime__seed=by).assign(model=model),
            budget(n).assign(model=model),
            averages((0.5, 0.5), (0.96, high)).assign(model=model),
            tau=0.95,
        )
        for model, by, n, high in (("a", (0, 0), 100.0, 0.96), ("b", (0.2, 0.2), 200.0, 0.5))
    )

    told = advice_line("lime", table)
    first = advice_line("lime", table[table["model"] == "a"])

    assert told.startswith("**lime**: report `n_samples` and `seed`; `n_samples` of 200 or more; ")
    assert "more than 2 seeds" in told
    assert "rank correlation 0.500" in told
    assert "its maps hardly depend on `seed`" in first
    assert first.endswith("`n_samples` of 100 or more; average 2 seeds.")


def test_what_is_not_measured_is_said():
    table = advice(sensitivity(lime__n_samples=(0.3, 0.3)), budget(np.nan), None, tau=0.95)

    told = advice_line("lime", table)

    assert "more `n_samples` than 400, the most tried" in told
    assert told.endswith("seeds to average: not measured here.")
