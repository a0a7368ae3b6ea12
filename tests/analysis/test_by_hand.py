"""Every recipe of the claims on inputs small enough to compute by hand."""

import math

import by_hand
import pytest
import yaml

from steadymap.analysis.claims import verdict

TABLE = yaml.safe_load((by_hand.HERE / "by_hand.yaml").read_text())


def test_the_package_finds_what_the_table_has():
    """Value, interval, verdict and p of every claim of both papers."""
    assert list(by_hand.mismatches()) == []
    listed = (*verdict.read_claims("sam.yaml"), *verdict.read_claims("ipr.yaml"))
    assert {claim.claim for claim in listed} == set(TABLE)


def test_the_table_is_what_plain_arithmetic_gives():
    for claim, expected in by_hand.expected().items():
        row = TABLE[claim]
        given = (row["value"], row.get("low", math.nan), row.get("high", math.nan))
        numbers = (expected.value, *expected.interval())
        assert numbers == pytest.approx(given, rel=1e-4, nan_ok=True), claim
        assert expected.direction() == row["verdict"], claim
        if "p" in row:
            assert expected.p == pytest.approx(row["p"], rel=1e-3), claim
        else:
            assert math.isnan(expected.p), claim
