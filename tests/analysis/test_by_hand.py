"""Every recipe of the claims on inputs small enough to compute by hand."""

import math

import by_hand
import pytest
import yaml

TABLE = yaml.safe_load((by_hand.HERE / "by_hand.yaml").read_text())


def test_the_package_finds_what_the_table_has():
    """Value, interval, verdict and p of every claim of both papers."""
    assert by_hand.mismatches() == []
    assert set(by_hand.found().index) == set(TABLE)


def test_the_table_is_what_plain_arithmetic_gives():
    for claim, expected in by_hand.expected().items():
        row = TABLE[claim]
        numbers = (expected.value, *expected.interval())
        assert numbers == pytest.approx((row["value"], row["low"], row["high"]), rel=1e-4), claim
        assert expected.direction() == row["verdict"], claim
        if "p" in row:
            assert expected.p == pytest.approx(row["p"], rel=1e-3), claim
        else:
            assert math.isnan(expected.p), claim
