"""Coverage of intervals: the committed table, and a part of it measured again."""

import pytest

import interval_coverage as study
from conftest import ROOT
from steadymap.store.tables import read_table

TABLE = read_table(ROOT / "reports" / "interval_coverage" / "coverage.csv")
MINE = TABLE[TABLE["method"] == "jackknife t (steadymap)"]


@pytest.mark.parametrize(
    ("scores", "n", "shared"), [("exponential", 8, False), ("normal", 16, True)]
)
def test_the_product_s_intervals_cover_as_the_table_says(scores, n, shared):
    (measured,) = study.coverages(scores, n, shared, studies=600, others=False)

    cell = MINE[
        (MINE["scores"] == scores) & (MINE["photographs"] == n) & (MINE["shared"] == shared)
    ]
    # Four standard errors of a share near .95 of 600.
    assert measured["coverage"] == pytest.approx(cell["coverage"].item(), abs=0.036)
    assert measured["coverage"] >= 0.91


def test_every_cell_is_near_nominal_but_those_of_heavy_tails():
    usual = MINE[MINE["scores"] != "lognormal, sigma 1"]["coverage"]

    assert usual.between(0.925, study.BAND[1]).all()
    assert usual.between(*study.BAND).mean() > 0.95
    percentile = TABLE[TABLE["method"] == "percentile bootstrap"]["coverage"]
    assert percentile.min() < 0.8 < MINE["coverage"].min()


def test_the_page_is_that_of_the_table():
    assert study.page(TABLE) == (ROOT / "reports" / "interval_coverage" / "README.md").read_text()
