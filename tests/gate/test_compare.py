"""Verdicts on made-up studies whose answers are known."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from baseline_tables import IDS, WEIGHTS, N, write_reports
from conftest import ROOT
from steadymap.gate import baseline as gate_baseline
from steadymap.gate import compare, words
from steadymap.store import environment
from steadymap.store.atomic import read_json
from steadymap.store.tables import write_table


@pytest.fixture
def old(tmp_path):
    """The study as it was."""
    return write_reports(tmp_path / "old")


def verdicts(table):
    return {gate_baseline.cell_name(row): row["verdict"] for row in table.to_dict("records")}


def test_a_study_is_the_same_as_itself(old):
    table = compare.compare(old, old)

    assert set(table["verdict"]) == {"same"}
    assert set(table["note"]) == {"equal"}
    assert compare.exit_code(table) == 0
    # Errors of 0 and 1 are left out; the spread of a setting that nothing varies is none.
    assert set(verdicts(table)) == {
        f"{cell} {statistic}"
        for model in WEIGHTS
        for cell, statistic in (
            (f"SG-N {model} ssim/common", "mean"),
            (f"SG-N {model} ssim/common", "std"),
            (f"gradient {model} ssim/common", "mean"),
            (f"IPR gradient {model} ssim/common", "S_same"),
        )
    }


def test_a_shift_of_every_image_moves_its_cell_alone(old, tmp_path):
    new = write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.05})

    table = compare.compare(old, new)

    assert compare.exit_code(table) == 1
    found = verdicts(table)
    assert found.pop("SG-N net ssim/common mean") == "moved"
    assert set(found.values()) == {"same"}
    # Worst first.
    assert table.loc[0, "d"] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(("sweep", "statistics"), [("SG-N", ("mean", "std")), ("IPR", ("S_same",))])
def test_maps_that_turn_over_moved_though_ssim_is_the_same(tmp_path, sweep, statistics):
    """A refactoring that negates maps may leave SSIM as it was; its cells are not *same*."""
    old = write_reports(tmp_path / "old", ranks=True)
    new = write_reports(tmp_path / "new", ranks=True, shift={(sweep, "net", "spearman"): -1.5})

    table = compare.compare(old, new)

    moved = table[table["verdict"] == "moved"]
    assert set(zip(moved["metric"], moved["statistic"], strict=True)) == {
        ("spearman", "S_same" if sweep == "IPR" else "mean"),
        *(("ssim", name) for name in statistics),
    }
    assert set(moved["model"]) == {"net"}
    assert set(moved.loc[moved["metric"] == "ssim", "note"]) == {"its rank correlation moved"}
    assert (moved.loc[moved["metric"] == "ssim", "d"] == 0).all()
    assert set(table.loc[~table.index.isin(moved.index), "verdict"]) == {"same"}


def test_ssim_is_not_the_same_where_its_rank_correlation_is_not_known(tmp_path):
    new = write_reports(tmp_path / "new", ranks=True)
    known = new.cells.index.get_level_values("metric") != "spearman"

    table = compare.compare(replace(new, cells=new.cells[known]), new)

    rows = table[table["metric"] == "ssim"]
    assert set(rows["verdict"]) == {"inconclusive"}
    assert set(rows["note"]) == {"its rank correlation is missing"}


def test_a_shift_within_the_margin_is_no_move_however_sure(old, tmp_path):
    new = write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.009})

    table = compare.compare(old, new)

    assert compare.exit_code(table) == 0


def test_noise_is_inconclusive_and_no_move(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.1)

    table = compare.compare(old, new)

    assert "moved" not in set(table["verdict"])
    assert compare.exit_code(table) == 2
    assert "the interval reaches beyond the margin" in set(table["note"])


def test_intervals_are_students_and_bonferronis(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.02)

    table = compare.compare(old, new)

    row = table[(table["sweep"] == "SG-N") & (table["model"] == "net")]
    row = row[row["statistic"] == "mean"].iloc[0]
    key = tuple(row[name] for name in gate_baseline.KEYS)
    d = new.cells.loc[key].to_numpy() - old.cells.loc[key].to_numpy()
    n_open = int((table["note"] != "equal").sum())
    assert n_open == 4
    expected = stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / n_open)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), rel=1e-6)
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert (row["same_low"], row["same_high"]) == pytest.approx(tuple(expected), rel=1e-6)


def test_false_alarms_stay_below_their_rate(tmp_path):
    """Cells of noise alone: simultaneous 95 % intervals all hold 0 in about 95 % of studies."""
    random = np.random.default_rng(3)
    index = pd.MultiIndex.from_tuples(
        [(f"S{i}", "m", "net", "ssim", "common", "none", "mean") for i in range(20)],
        names=gate_baseline.KEYS,
    )
    images = pd.DataFrame({"image_id": IDS, "sha256": IDS})
    alarms = 0
    for _ in range(200):
        sides = [
            gate_baseline.Measured(
                tmp_path, pd.DataFrame(values, index, IDS), images, WEIGHTS, pd.DataFrame()
            )
            for values in random.normal(size=(2, 20, N))
        ]
        alarms += "moved" in set(compare.compare(*sides)["verdict"])

    # 10 expected; more than 20 has probability .001.
    assert alarms <= 20


def test_what_is_on_one_side_alone_is_missing(old, tmp_path):
    new = write_reports(tmp_path / "new", drop=[("SG-N", "net")])

    table = compare.compare(old, new)
    other_way = compare.compare(new, old)

    assert compare.exit_code(table) == compare.exit_code(other_way) == 2
    assert verdicts(table)["SG-N net ssim/common mean"] == "missing"
    assert "not measured now" in set(table["note"])
    assert "not in the baseline: accept it" in set(other_way["note"])
    assert verdicts(other_way)["SG-N net ssim/common std"] == "missing"


def test_a_move_outranks_what_is_missing(old, tmp_path):
    new = write_reports(
        tmp_path / "new", drop=[("SG-N", "net")], shift={("SG-N", "net-r", "ssim"): 0.3}
    )

    assert compare.exit_code(compare.compare(old, new)) == 1


def test_images_undefined_on_one_side_alone_are_not_the_same(old):
    cells = old.cells.copy()
    cells.iloc[0, 3] = np.nan
    new = gate_baseline.Measured(old.source, cells, old.images, old.weights, old.margins)

    table = compare.compare(old, new)

    assert table["verdict"].tolist().count("inconclusive") == 1
    assert table.loc[0, "note"] == "1 image is undefined on one side alone"


def test_as_many_images_may_be_undefined_on_one_side_alone_as_reruns_left(old, tmp_path):
    def without(*columns):
        cells = old.cells.copy()
        cells.iloc[0, list(columns)] = np.nan
        return gate_baseline.Measured(old.source, cells, old.images, old.weights, old.margins)

    gate_baseline.accept(
        old, tmp_path / "b", reason="masks come out constant", reruns=[without(0), old]
    )
    baseline = gate_baseline.read(tmp_path / "b")

    one = compare.compare(baseline, without(1)).set_index(gate_baseline.KEYS)
    two = compare.compare(baseline, without(2, 3))

    # Both models' cells of the family, and no others.
    assert baseline.margins["lost"].tolist() == [1, 1] + [0] * (len(old.cells) - 2)
    assert set(one["verdict"]) == {"same"}
    assert one.loc[old.cells.index[0], "note"] == "1 image is undefined on one side alone"
    assert compare.exit_code(two) == 2
    assert two.loc[0, "note"] == "2 images are undefined on one side alone, reruns left 1"


def test_an_image_that_jumped_in_one_cell_may_jump_in_others_of_its_family(old, tmp_path):
    def jumping(model, size, image=5):
        cells = old.cells.copy()
        cells.loc[("SG-N", "smoothgrad", model, "ssim", "common", "none", "mean"), IDS[image]] += (
            size
        )
        return gate_baseline.Measured(old.source, cells, old.images, old.weights, old.margins)

    gate_baseline.accept(old, tmp_path / "b", reason="x", reruns=[jumping("net", 0.4), old])
    baseline = gate_baseline.read(tmp_path / "b")

    key = ("SG-N", "smoothgrad", "net-r", "ssim", "common", "none", "mean")
    found = baseline.margins.loc[key]
    assert found["se"] == 0
    assert found["jump"] == pytest.approx(0.4)
    # One of 16 images by .4: mean .025, standard error .025; Student's 95 % quantile at 15.
    assert found["margin"] == pytest.approx(0.025 * (1 + 1.753050), rel=1e-5)
    assert compare.exit_code(compare.compare(baseline, jumping("net-r", 0.39, image=9))) == 0
    assert compare.exit_code(compare.compare(baseline, jumping("net-r", 0.45))) == 2
    other = ("default", "gradient", "net-r", "ssim", "common", "none", "mean")
    assert baseline.margins.loc[other, "margin"] == 0.01


def test_a_baseline_from_before_such_images_were_counted_allows_none(old, tmp_path):
    gate_baseline.accept(old, tmp_path / "b", reason="first")
    path = tmp_path / "b" / "cells.csv"
    pd.read_csv(path).drop(columns=["jump", "lost"]).to_csv(path, index=False)

    assert set(gate_baseline.read(tmp_path / "b").margins["lost"]) == {0}


def test_one_image_decides_nothing(tmp_path):
    ids = ["a", "b", "c", "d"]
    old = write_reports(tmp_path / "old", ids=ids)
    cells = old.cells.copy()
    cells.iloc[:, 1:] = np.nan
    one = gate_baseline.Measured(old.source, cells, old.images, old.weights, old.margins)
    other = gate_baseline.Measured(old.source, cells + 0.5, old.images, old.weights, old.margins)

    table = compare.compare(one, other)

    assert set(table["verdict"]) == {"inconclusive"}
    assert compare.exit_code(table) == 2


def test_dynamic_ranges_are_compared_by_their_logarithm(tmp_path):
    folder = tmp_path / "old"
    write_reports(folder)
    table = pd.read_csv(folder / "tables" / "images.csv", keep_default_na=False)
    table = table[table["metric"] == "ssim"].assign(metric="dynamic_range", convention="raw")
    for name, factor in (("old", 1e-4), ("new", 1.03e-4)):
        write_table(
            table.assign(mean=table["mean"].astype(float) * factor),
            (tmp_path / name / "tables" / "images.csv"),
        )
    for name in ("ipr_images", "models", "evaluation_set"):
        (tmp_path / "new" / "tables" / f"{name}.csv").write_bytes(
            (folder / "tables" / f"{name}.csv").read_bytes()
        )

    found = compare.compare(gate_baseline.read(folder), gate_baseline.read(tmp_path / "new"))

    ranges = found[(found["metric"] == "dynamic_range")]
    assert set(ranges["verdict"]) == {"moved"}
    assert ranges["d"].to_numpy() == pytest.approx(np.log(1.03), abs=1e-5)


# Comparable or not


def test_other_weights_are_refused_by_name(old, tmp_path):
    new = write_reports(tmp_path / "new", weights=WEIGHTS | {"net-r": "c" * 64})

    with pytest.raises(
        gate_baseline.IncomparableError, match=r"weights of net-r: bbbb.*cccc.*same weights"
    ):
        compare.compare(old, new)


def test_other_images_are_refused_by_name(old, tmp_path):
    other = [*IDS[:-1], "val-99"]
    new = write_reports(tmp_path / "new", ids=other)

    with pytest.raises(
        gate_baseline.IncomparableError, match=r"2 differ \(val-15 only in .*val-99 only"
    ):
        compare.compare(old, new)


def test_other_pixels_are_refused(old, tmp_path):
    new = write_reports(tmp_path / "new")
    new.images.loc[2, "sha256"] = "other"

    with pytest.raises(gate_baseline.IncomparableError, match=r"1 have other pixels \(val-02\)"):
        compare.compare(old, new)


def test_order_of_images_is_no_difference(old, tmp_path):
    new = write_reports(tmp_path / "new")
    turned = gate_baseline.Measured(
        new.source,
        new.cells[IDS[::-1]],
        new.images.iloc[::-1].reset_index(drop=True),
        new.weights,
        new.margins,
    )

    assert compare.exit_code(compare.compare(old, turned)) == 0


def test_retrained_models_are_held_to_the_retraining_margin_and_never_moved(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    shift = {("SG-N", "net", "ssim"): 0.1, ("default", "net", "ssim"): 0.1}
    new = write_reports(tmp_path / "new", weights=weights, shift=shift)
    path = tmp_path / "retraining.csv"
    assert gate_baseline.retraining_table(path) is None
    yardstick = [
        {"model": "net", "sweep": "SG-N", "metric": "ssim", "sd": 0.05},
        {"model": "net", "sweep": "default", "metric": "ssim", "sd": 0.001},
    ]
    write_table(pd.DataFrame(yardstick), path)

    table = compare.compare(old, new, retraining=gate_baseline.retraining_table(path))

    found = verdicts(table)
    assert found["SG-N net ssim/common mean"] == "same"
    assert found["gradient net ssim/common mean"] == "inconclusive"
    assert found["SG-N net-r ssim/common mean"] == "same"
    noted = table.set_index(["sweep", "model", "statistic"])
    held, beyond = noted.loc[("SG-N", "net", "mean")], noted.loc[("default", "net", "mean")]
    assert held["note"] == "retraining margin"
    assert held["margin"] == pytest.approx(1.959964 * 2**0.5 * 0.05)
    assert beyond["note"] == "beyond what other trainings do; retraining margin"
    assert compare.exit_code(table) == 2
    text = words.markdown(table, old, new)
    assert "**Other weights** (weights of net: aaaaaaaaaaaa" in text
    assert "stages/measure.py" in text
    assert "Other weights" not in words.markdown(compare.compare(old, old), old, old)


def test_a_retraining_margin_is_that_of_the_same_method(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    new = write_reports(tmp_path / "new", weights=weights, shift={("default", "net", "ssim"): 0.1})
    rows = [
        {"method": "gradient", "sd": 0.01, "n_trainings": 4},
        {"method": "guided_backprop", "sd": 5.0, "n_trainings": 4},
    ]
    yardstick = pd.DataFrame(rows).assign(model="net", sweep="default", metric="ssim")

    table = compare.compare(old, new, retraining=yardstick)

    cell = table[(table["method"] == "gradient") & (table["sweep"] == "default")].iloc[0]
    # Student's t with 3 degrees of freedom, of a difference of two trainings.
    assert cell["margin"] == pytest.approx(3.182446 * 2**0.5 * 0.01)
    assert cell["verdict"] == "inconclusive"


def test_a_cell_without_a_retraining_margin_is_inconclusive_where_weights_differ(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    new = write_reports(tmp_path / "new", weights=weights, shift={("SG-N", "net", "ssim"): 0.1})
    yardstick = pd.DataFrame(columns=["model", "sweep", "metric", "sd"])

    table = compare.compare(old, new, retraining=yardstick)

    moved = table[(table["sweep"] == "SG-N") & (table["model"] == "net")].iloc[0]
    assert moved["verdict"] == "inconclusive"
    assert "no retraining margin of this cell" in moved["note"]


def test_cells_without_a_retraining_margin_are_one_line_with_a_remedy_of_their_own(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    shift = {(sweep, "net", "ssim"): 0.1 for sweep in ("SG-N", "default", "IPR")}
    new = write_reports(tmp_path / "new", weights=weights, shift=shift)
    known = pd.DataFrame([{"model": "net", "sweep": "default", "metric": "ssim", "sd": 0.001}])
    rows = {"default": known, "SG-N": known.assign(sweep="SG-N"), "IPR": known.assign(sweep="IPR")}

    def told(*sweeps):
        table = compare.compare(old, new, retraining=pd.concat(rows[name] for name in sweeps))
        assert compare.exit_code(table) == 2
        return words.markdown(table, old, new)

    text = told("default")
    assert "0 moved, 3 inconclusive, 0 missing, 5 same, of 8 cells" in text
    assert (
        "**No retraining margin**: 2 cells of other weights can only be inconclusive, left out "
        "below: IPR 1, SG-N 1."
    ) in text
    listed = [line for line in text.splitlines() if line.startswith("| inconclusive |")]
    assert len(listed) == 1
    assert "gradient net ssim/common mean" in listed[0]
    # That one is held to a margin, so that more images may tell.
    assert "Measure more images" in text
    assert 'at these weights, accepted before the change (`make accept REASON="why"`)' in text
    assert "makes margins for the 1 cell of sweeps, none for `IPR`." in text
    # With a margin for all but the randomized parameters, retraining helps no further.
    text = told("default", "SG-N")
    assert "**No retraining margin**: 1 cell of other weights" in text
    assert "make accept" in text
    assert "stages/retraining.py" not in text
    assert "makes margins for the 1 cell of sweeps.\n" in told("default", "IPR")
    # Where nothing else is open, only what helps is advised, and no empty table is shown.
    table = compare.compare(old, old)
    assert "No retraining margin" not in words.markdown(table, old, old)
    text = words.markdown(
        compare.compare(old, new, retraining=known.iloc[:0]).query("margin.isna()"), old, new
    )
    assert "3 cells of other weights" in text
    assert "Measure more images" not in text
    assert "Worst first" not in text


def test_a_retraining_table_without_a_column_says_so(tmp_path):
    write_table(pd.DataFrame({"model": ["a"]}), tmp_path / "r.csv")

    with pytest.raises(ValueError, match=r"r\.csv: column 'sweep' is missing"):
        gate_baseline.retraining_table(tmp_path / "r.csv")


def test_a_folder_that_is_neither_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a baseline"):
        gate_baseline.read(tmp_path)


def test_tables_of_two_runs_are_refused(tmp_path):
    write_reports(tmp_path)
    rows = pd.DataFrame({"image_id": ["x"], "sha256": ["x"], "photo": [""]})
    write_table(rows, tmp_path / "tables" / "evaluation_set.csv")

    with pytest.raises(ValueError, match="val-00 has values and is not in evaluation_set"):
        gate_baseline.read(tmp_path)


# Acceptance


def test_a_baseline_holds_what_was_accepted_to_the_last_digit(old, tmp_path):
    entry = gate_baseline.accept(old, tmp_path / "base", reason="  as  it is ", day="2026-01-02")
    base = gate_baseline.read(tmp_path / "base")

    assert entry.reason == "as it is"
    assert (entry.commit, entry.dirty) == environment.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", entry.commit)
    assert base.history == (entry,)
    assert base.weights == WEIGHTS
    pd.testing.assert_frame_equal(base.cells, old.cells, check_exact=True)
    assert set(base.margins["margin"]) == {0.01}
    assert set(compare.compare(base, old)["note"]) == {"equal"}
    assert {path.name for path in (tmp_path / "base").iterdir()} == {
        "cells.csv",
        "images.csv",
        "history.json",
    }


def test_accepting_turns_red_green_and_keeps_both_reasons(old, tmp_path):
    base = tmp_path / "base"
    gate_baseline.accept(old, base, reason="first", day="2026-01-02")
    new = write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.05})
    assert compare.exit_code(compare.compare(gate_baseline.read(base), new)) == 1

    gate_baseline.accept(new, base, reason="second", day="2026-01-03")

    found = gate_baseline.read(base)
    assert compare.exit_code(compare.compare(found, new)) == 0
    assert [entry.reason for entry in found.history] == ["first", "second"]
    assert "kept from 2026-01-02 for 8 of 8 cells" in found.history[-1].margins


def test_margins_are_measured_on_reruns_and_kept_until_measured_again(old, tmp_path):
    base = tmp_path / "base"
    reruns = [write_reports(tmp_path / f"r{i}", noise=0.02, seed=i) for i in range(1, 4)]
    gate_baseline.accept(old, base, reason="first", reruns=reruns)
    key = ("SG-N", "smoothgrad", "net", "ssim", "common", "none", "mean")
    d = [rerun.cells.loc[key] - old.cells.loc[key] for rerun in reruns]
    expected = 5.3 * max(one.std(ddof=1) / N**0.5 for one in d)

    found = gate_baseline.read(base).margins

    assert expected > 0.02
    assert found.loc[key, "margin"] == pytest.approx(expected, rel=1e-5)
    # Four images, all equal: nothing to measure but the least.
    parameters = ("IPR", "gradient", "net", "ssim", "common", "", "S_same")
    assert found.loc[parameters, "margin"] == 0.01
    gate_baseline.accept(old, base, reason="again")
    pd.testing.assert_frame_equal(gate_baseline.read(base).margins, found)
    rerun = write_reports(tmp_path / "other", noise=0.02, seed=9)
    assert compare.exit_code(compare.compare(gate_baseline.read(base), rerun)) == 0


def test_few_images_widen_the_margin_by_students_quantile():
    made = gate_baseline._errors(pd.Series([15, 40, 3]))

    assert made[:2].tolist() == [5.3, 5.3]
    assert made[2] == pytest.approx(5.3 * stats.t.ppf(0.95, 3) / stats.t.ppf(0.95, 15))


def test_a_rerun_of_other_weights_measures_no_margin(old, tmp_path):
    other = write_reports(tmp_path / "new", weights=WEIGHTS | {"net": "c" * 64})

    with pytest.raises(gate_baseline.IncomparableError, match="is no rerun of"):
        gate_baseline.accept(old, tmp_path / "base", reason="x", reruns=[other])
    assert not (tmp_path / "base").exists()


def test_a_reason_is_required(old, tmp_path):
    with pytest.raises(ValueError, match="reason is empty"):
        gate_baseline.accept(old, tmp_path / "base", reason=" ")


def damaged(path, change):
    text = path.read_text()
    path.write_text(change(text))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("history.json", lambda text: '[{"reason": "x"}]', "not what --accept writes"),
        ("history.json", lambda text: text[:-5], "not what --accept writes"),
        ("history.json", lambda text: "[]", "empty"),
        ("cells.csv", lambda text: "", "no table"),
        ("cells.csv", lambda text: text.splitlines()[0] + "\n", "no rows"),
        ("cells.csv", lambda text: text + text.splitlines()[1] + "\n", "IPR .*stands there twice"),
        ("cells.csv", lambda text: text.replace("0.01", "abc", 1), "'margin' has 'abc', no number"),
        ("images.csv", lambda text: text.replace("sha256", "sha"), "column 'sha256' is missing"),
    ],
)
def test_a_damaged_baseline_is_named(name, change, told, old, tmp_path):
    gate_baseline.accept(old, tmp_path / "b", reason="x")
    damaged(tmp_path / "b" / name, change)

    with pytest.raises(ValueError, match=rf"b.{name}: .*{told}.*; restore it from git") as caught:
        gate_baseline.read(tmp_path / "b")
    assert "dvc repro" not in str(caught.value)


def test_a_baseline_without_its_history_is_named(old, tmp_path):
    gate_baseline.accept(old, tmp_path / "b", reason="x")
    (tmp_path / "b" / "history.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"history\.json: no such file; restore it"):
        gate_baseline.read(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", r"images\.csv: no table"),
        (lambda text: text.splitlines()[0] + "\n", r"images\.csv: no rows"),
        (lambda text: text + text.splitlines()[1] + "\n", "of image val-00 stands there twice"),
    ],
)
def test_damaged_reports_are_named(change, told, old, tmp_path):
    damaged(tmp_path / "old" / "tables" / "images.csv", change)

    with pytest.raises(ValueError, match=told + ".*dvc repro"):
        gate_baseline.read(tmp_path / "old")


def test_reports_borrow_margins_and_a_baseline_keeps_its_own(old, tmp_path):
    reruns = [write_reports(tmp_path / f"r{i}", noise=0.02, seed=i) for i in range(1, 4)]
    gate_baseline.accept(old, tmp_path / "base", reason="x", reruns=reruns)
    base = gate_baseline.read(tmp_path / "base")
    rerun = write_reports(tmp_path / "other", noise=0.02, seed=9)

    made = gate_baseline.borrowed(old, base)

    assert compare.exit_code(compare.compare(old, rerun)) == 2
    table = compare.compare(made, rerun)
    assert compare.exit_code(table) == 0
    assert "margins borrowed" in words.markdown(table, made, rerun)
    assert gate_baseline.borrowed(base, old) is base


def test_methods_can_be_looked_at_alone(old, tmp_path):
    gate_baseline.accept(old, tmp_path / "base", reason="x")
    base = gate_baseline.read(tmp_path / "base").of_methods(["gradient"])

    table = compare.compare(base, old.of_methods(["gradient"]))

    assert set(table["method"]) == {"gradient"}
    assert compare.exit_code(table) == 0


# Words and the script


def test_the_table_says_what_moved_and_what_to_do(old, tmp_path):
    new = write_reports(tmp_path / "new", shift={("IPR", "net", "ssim"): 0.2})
    gate_baseline.accept(old, tmp_path / "base", reason="because", day="2026-01-02")
    base = gate_baseline.read(tmp_path / "base")

    text = words.markdown(compare.compare(base, new), base, new)

    assert text.startswith("## Regression gate: red\n\n1 moved, 0 inconclusive, 0 missing, 7 same")
    assert '"because"' in text
    assert "| moved | IPR gradient net ssim/common S_same |" in text
    assert "| gradient | 1 | 0 | 0 | 3 |" in text
    assert "make accept REASON=" in text
    green = words.markdown(compare.compare(base, old), base, old)
    assert green.rstrip().endswith("Nothing to do.")


def test_a_long_table_is_cut(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.1)

    text = words.markdown(compare.compare(old, new), old, new, most=1)

    assert "... and 3 more." in text
    assert text.count("| inconclusive | ") == 2  # a row and the head of the counts


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """Runs the script, here: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.syspath_prepend(ROOT / "stages")
    spec = importlib.util.spec_from_file_location("gate", ROOT / "stages" / "check.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["check.py", *arguments])
        return script.main(), capsys.readouterr().out

    return run


def test_no_failure_of_the_script_reads_as_moved(tmp_path, gate, monkeypatch):
    write_reports(tmp_path / "old")
    folders = ["--baseline", "old", "--current", "old"]

    assert gate(*folders, "--summary", "no/such/folder")[0] == 0
    code, told = gate("--baseline", "base", "--current", "none", "--accept", "--reason", "x")
    assert (code, told.startswith("## Baseline: nothing accepted")) == (2, True)

    def broken(*_, **__):
        raise TypeError("a slip of our own")

    monkeypatch.setattr(compare, "compare", broken)
    monkeypatch.setattr(words, "compare", broken)
    assert gate(*folders)[0] == 2


def test_who_reads_the_first_line_alone_gets_the_exit_code(tmp_path):
    write_reports(tmp_path / "old")
    write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.05})
    script = f"{sys.executable} {ROOT / 'stages' / 'check.py'} --baseline old --current new"

    found = subprocess.run(
        ["bash", "-c", f"{script} | true; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout == "1\n"
    assert "Traceback" not in found.stderr


def test_the_script_goes_from_nothing_to_green_to_red_to_green(tmp_path, gate):
    write_reports(tmp_path / "old")
    write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.05})
    folders = ["--baseline", "base", "--retraining", "none.csv", "--summary", "summary.md"]

    code, told = gate(*folders, "--current", "old")
    assert (code, "neither a baseline" in told) == (2, True)
    assert gate(*folders, "--current", "old", "--accept", "--reason", "first")[0] == 0
    assert gate(*folders, "--current", "old")[0] == 0
    code, told = gate(*folders, "--current", "new")
    assert code == 1
    assert "| moved | SG-N net ssim/common mean |" in told
    code, told = gate(*folders, "--current", "new", "--accept")
    assert (code, "reason is empty" in told) == (2, True)
    assert gate(*folders, "--current", "new", "--reason", "why")[0] == 2
    assert read_json(tmp_path / "base" / "history.json")[-1]["reason"] == "first"
    assert gate(*folders, "--current", "new", "--accept", "--reason", "second")[0] == 0
    assert gate(*folders, "--current", "new")[0] == 0
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count("## Regression gate: green") == 2
    assert summary.count("## Regression gate: red") == 1


def test_the_summary_goes_where_ci_reads_it(tmp_path, gate, monkeypatch):
    write_reports(tmp_path / "old")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "ci.md"))

    gate("--baseline", "old", "--current", "old", "--retraining", "none.csv")

    assert "green" in (tmp_path / "ci.md").read_text()


def test_the_process_ends_with_2_where_weights_differ(tmp_path):
    write_reports(tmp_path / "old")
    write_reports(tmp_path / "new", weights=WEIGHTS | {"net": "c" * 64})
    arguments = ["--baseline", "old", "--current", "new", "--retraining", "none.csv"]

    found = subprocess.run(
        [sys.executable, str(ROOT / "stages" / "check.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert found.returncode == 2
    assert "weights of net: aaaa" in found.stdout
