"""Claims where nothing differs, and mutants of their rules: the studies' scripts."""

import importlib.util
import subprocess
import sys

import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "studies" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_no_claim_is_called_where_there_is_nothing_to_call():
    """Of 40 studies, wrong verdicts are as many as 2.5 % a side may leave."""
    table = script("claim_rules").rates(40, first=10_000).set_index("claim")
    claims = table[table["kind"] == "claim"]

    for name, right in (("holds", "on"), ("fails", "off")):
        wrong = claims.loc[claims["truth"] != right, name] * 40
        assert (stats.binom.sf(wrong - 1, 40, 0.025) > 1e-4).all(), wrong[wrong > 3]
    # By the ratio alone, 17 and 17b held in every study.
    ratios = ["16", "17", "17b", "18", "20", "D22", "D23"]
    assert (claims.loc[ratios, "holds"] <= 0.1).all()
    assert (claims.loc[ratios, "not_resolved"] >= 36).all()


def test_the_committed_rates_are_of_the_claims_as_they_are():
    table = pd.read_csv(ROOT / "reports" / "claim-rules" / "claim_rules.csv", dtype={"claim": str})
    module = script("claim_rules")
    listed = {
        c.claim: c.group for c in (*module.read_claims("sam.yaml"), *module.read_claims("ipr.yaml"))
    }

    assert set(table["claim"]) == set(listed) - {"21"}
    assert (table["group"] == table["claim"].map(listed)).all()
    assert table.loc[table["kind"] == "claim", "exceeds"].isna().all()


def test_every_committed_mutant_was_killed_and_none_is_missing():
    table = pd.read_csv(ROOT / "reports" / "claim-rules" / "mutants.csv", dtype=str)
    mutants = script("mutants").mutants()

    assert table["killed_by"].notna().all()
    expected = {(m.kind, m.place, m.change) for m in mutants}
    assert set(table[["kind", "place", "change"]].itertuples(index=False, name=None)) == expected


@pytest.mark.slow
def test_a_mutant_is_noticed_and_the_package_itself_is_not():
    """In a process that has not imported the package; the script begins with it as it is."""
    for only in ("recipe global_spread_ratio", "argument 17 metric"):
        command = [sys.executable, ROOT / "studies" / "mutants.py", "--only", only]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ran.stdout.endswith("1 of 1 mutants killed\n")
