"""Runs of comparisons, spreads of dataset means and claims say what the tables say."""

import math

import pandas as pd
import pytest

from mlflow_tables import STUDY, make_tables
from steadymap.tracking.comparisons import claim_entries, comparison_entries
from steadymap.tracking.entries import Study
from steadymap.tracking.mirror import write_comparisons
from steadymap.tracking.writer import Mirrored, Origin, open_writer

SAME = {"comparison": "gradient-noise", "model": "googlenet", "other": "", "role": "self"}


def compared(**changes):
    row = {**SAME, "method": "gradient", "value": "0.1", "pairing": "same", "metric": "ssim"}
    row |= {"convention": "common", "n_images": 3, "mean": 0.4, "ci_low": 0.3, "ci_high": 0.5}
    return row | {"std": 0.1, "mean_all": 0.4, "n_degenerate": 1, "n_inverted": 0} | changes


@pytest.fixture
def tables():
    towards = {"comparison": "denoising-gradient", "other": "googlenet-r", "role": "twin"}
    claim = {"claim": "2", "group": "spread", "kind": "claim", "name": "robust vary less"}
    claim |= {"section": "4.5", "statement": "They vary less", "recipe": "a ratio", "unit": "ratio"}
    claim |= {"paper_value": 2.4, "value": 1.9, "ci_low": 1.2, "ci_high": 3.0, "n_images": 3}
    claim |= {"rests_on": "this pair", "direction": "holds", "p": 0.01, "after_holm": "holds"}
    claim |= {"images_to_decide": math.nan, "size": "inside", "reason": ""}
    undecided = {"claim": "7", "group": "rise", "name": "rises", "direction": "inconclusive"}
    undecided |= {"images_to_decide": 80.0, "paper_value": math.nan, "size": "not comparable"}
    spread = {"sweep": "SP-L", "method": "sliding_patch", "hyperparameter": "patch_size"}
    spread |= {"model": "googlenet", "metric": "insertion", "convention": "auc_over_max"}
    spread |= {"n_images": 3, "n_settings": 3, "std": 0.02, "std_low": 0.01, "std_high": 0.03}
    spread |= {"std_scaled": 0.015, "per_image": 0.1, "times": 5.0, "saturated": False}
    objects = [
        {"model": "googlenet", "image_id": name, "object_size": size, "patch_size": 5}
        | {"object_area": 36, "area_above_half": 72, "peak": peak, "score": score}
        for name, score, peak in (("a", 0.9, 0.2), ("b", 0.8, 0.4), ("c", 0.1, 0.9))
        for size in (6, 24)
    ]
    return make_tables() | {
        "comparisons": pd.DataFrame(
            [
                compared(),
                compared(metric="spearman", convention="signed", mean=0.2),
                compared(value="0.01", mean=0.7),
                compared(**towards, value="0", mean=0.3),
                compared(**towards, value="0", pairing="mismatched", mean=0.25),
                compared(**towards, value="", method="guided_backprop", mean=0.5),
            ]
        ),
        "global_std": pd.DataFrame([spread]),
        "object_size": pd.DataFrame(objects),
        "claims": pd.DataFrame([claim, claim | undecided]),
    }


def runs(tables):
    return {entry.name: entry for entry in comparison_entries(Study(STUDY, tables))}


def test_comparisons_have_a_run_and_each_of_their_settings_one(tables):
    found = runs(tables)

    assert list(found) == [
        "gradient-noise googlenet",
        "denoising-gradient googlenet towards googlenet-r",
        "object size googlenet",
        "spread of means googlenet",
    ]
    assert {entry.experiment for entry in found.values()} == {f"steadymap/{STUDY}/comparisons"}
    noise = found["gradient-noise googlenet"]
    assert [child.name for child in noise.children] == [
        "gradient 0.1 googlenet",
        "gradient 0.01 googlenet",
    ]
    strong = noise.children[0]
    assert strong.metrics["ssim/mean", 0] == 0.4
    assert strong.metrics["ssim/ci_high", 0] == 0.5
    assert strong.metrics["spearman/mean", 0] == 0.2
    assert strong.metrics["value", 0] == 0.1
    assert strong.metrics["n_degenerate", 0] == 1
    assert strong.params["comparison"] == "gradient-noise"
    assert strong.params["robust"] == "false"
    rise = found["denoising-gradient googlenet towards googlenet-r"]
    assert [child.params["pairing"] for child in rise.children] == ["same", "mismatched", "same"]
    assert rise.children[2].params["method"] == "guided_backprop"
    assert ("value", 0) not in rise.children[2].metrics


def test_objects_that_the_network_does_not_see_are_left_out(tables):
    children = runs(tables)["object size googlenet"].children

    assert [child.params["object_size"] for child in children] == ["6", "24"]
    assert children[0].metrics["n_images", 0] == 2
    assert children[0].metrics["peak/mean", 0] == pytest.approx(0.3)
    assert children[0].metrics["area_ratio/mean", 0] == 2


def test_spreads_of_means_stand_beside_those_per_image(tables):
    (child,) = runs(tables)["spread of means googlenet"].children

    assert child.metrics["insertion/std_of_means", 0] == 0.02
    assert child.metrics["insertion/std_settings", 0] == 0.1
    assert child.metrics["insertion/times", 0] == 5
    assert child.metrics["n_settings", 0] == 3


def test_each_claim_is_a_run_with_its_verdict_as_a_tag(tables):
    (paper,) = claim_entries(Study(STUDY, tables))
    holds, undecided = paper.children

    assert paper.metrics == {("claims/holds", 0): 1, ("claims/inconclusive", 0): 1}
    assert holds.name == "2 robust vary less"
    assert holds.metrics["value", 0] == 1.9
    assert holds.metrics["paper_value", 0] == 2.4
    assert (holds.tags["direction"], undecided.tags["direction"]) == ("holds", "inconclusive")
    assert undecided.metrics["images_to_decide", 0] == 80
    assert ("paper_value", 0) not in undecided.metrics
    assert "They vary less" in holds.tags["mlflow.note.content"]


def test_no_tables_no_runs():
    assert comparison_entries(Study(STUDY, make_tables())) == []
    assert claim_entries(Study(STUDY, make_tables())) == []


def test_the_same_tables_write_nothing_and_a_new_verdict_updates_its_run(tables, tmp_path):
    uri, origin = f"sqlite:///{tmp_path / 'mlflow.db'}", Origin(STUDY)

    def mirrored():
        with open_writer(origin, uri) as writer:
            write_comparisons(writer, Study(STUDY, tables))
            return writer.mirrored

    first = mirrored()
    assert first == Mirrored(created=4 + 2 + 3 + 2 + 1 + 1 + 2)
    assert mirrored() == Mirrored(unchanged=first.created)
    # The data choose another statistic, and with it name, unit and verdict.
    changed = {"name": "robust vary less (difference)", "unit": "difference", "direction": "fails"}
    tables["claims"].loc[0, list(changed)] = list(changed.values())
    again = mirrored()
    # The paper's run has another count, which MLflow can't take back: both claims go below the new.
    assert (again.updated, again.created, again.superseded) == (2, 1, 1)
