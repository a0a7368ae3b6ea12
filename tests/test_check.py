"""Verdicts on made-up studies whose answers are known."""

import importlib.util
import itertools
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT
from steadymap import check, environment
from steadymap.store import read_json, write_json, write_table

N = 16
WEIGHTS = {"net": "a" * 64, "net-r": "b" * 64}
IDS = [f"val-{index:02d}" for index in range(N)]


def write_reports(
    folder, *, shift=None, noise=0.0, seed=0, weights=WEIGHTS, drop=(), ids=IDS, ranks=False
):
    """A study's tables: two sweeps, two metrics, two models, and randomised parameters.

    `shift` maps (sweep, model, metric) to what is added to every image; `noise` is the standard
    deviation of what is added to each; `ranks` adds rank correlations.
    """
    measures = [("ssim", "common"), ("localization_error", "alpha0.25")]
    measures += [("spearman", "signed")] if ranks else []
    base, random = np.random.default_rng(0), np.random.default_rng(seed)
    rows, moved = [], []
    for sweep, method, knob in (("SG-N", "smoothgrad", "n_samples"), ("default", "gradient", "")):
        for model in weights:
            for metric, convention in measures:
                if (sweep, model) in drop:
                    continue
                values = base.uniform(0.2, 0.8, len(ids)) + noise * random.normal(size=len(ids))
                values += (shift or {}).get((sweep, model, metric), 0.0)
                for name, value in zip(ids, values, strict=True):
                    row = {"sweep": sweep, "method": method, "hyperparameter": knob}
                    row |= {"model": model, "image_id": name, "class_name": "disc", "photo": ""}
                    row |= {"metric": metric, "convention": convention, "draws": "none"}
                    rows.append(
                        row | {"mean": value, "std": 0.1, "n_degenerate": 0, "n_inverted": 0}
                    )
    for model, (metric, convention) in itertools.product(weights, measures[::2]):
        row = {"model": model, "method": "gradient", "metric": metric, "convention": convention}
        row |= {"order": "independent", "randomizer": "init", "preset": "paper"}
        values = base.uniform(0.2, 0.8, 4) + (shift or {}).get(("IPR", model, metric), 0.0)
        moved += [
            row | {"image_id": name, "S_same": value, "excess": np.nan}
            for name, value in zip(ids[:4], values, strict=True)
        ]
    tables = folder / "tables"
    write_table(pd.DataFrame(rows), tables / "images.csv")
    write_table(pd.DataFrame(moved), tables / "ipr_images.csv")
    sets = [{"image_id": name, "sha256": name * 2, "photo": ""} for name in ids]
    write_table(pd.DataFrame(sets), tables / "evaluation_set.csv")
    models = [{"model": name, "weights_sha256": sha} for name, sha in weights.items()]
    write_table(pd.DataFrame(models), tables / "models.csv")
    # What `stages/measure.py` leaves: which code made it.
    write_json({}, folder / "sources.json")
    return check.read(folder)


@pytest.fixture
def old(tmp_path):
    """The study as it was."""
    return write_reports(tmp_path / "old")


def verdicts(table):
    return {check.cell_name(row): row["verdict"] for row in table.to_dict("records")}


def test_a_study_is_the_same_as_itself(old):
    table = check.compare(old, old)

    assert set(table["verdict"]) == {"same"}
    assert set(table["note"]) == {"equal"}
    assert check.exit_code(table) == 0
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

    table = check.compare(old, new)

    assert check.exit_code(table) == 1
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

    table = check.compare(old, new)

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

    table = check.compare(replace(new, cells=new.cells[known]), new)

    rows = table[table["metric"] == "ssim"]
    assert set(rows["verdict"]) == {"inconclusive"}
    assert set(rows["note"]) == {"its rank correlation is missing"}


def test_a_shift_within_the_margin_is_no_move_however_sure(old, tmp_path):
    new = write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.009})

    table = check.compare(old, new)

    assert check.exit_code(table) == 0


def test_noise_is_inconclusive_and_no_move(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.1)

    table = check.compare(old, new)

    assert "moved" not in set(table["verdict"])
    assert check.exit_code(table) == 2
    assert "the interval reaches beyond the margin" in set(table["note"])


def test_intervals_are_students_and_bonferronis(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.02)

    table = check.compare(old, new)

    row = table[(table["sweep"] == "SG-N") & (table["model"] == "net")]
    row = row[row["statistic"] == "mean"].iloc[0]
    key = tuple(row[name] for name in check.KEYS)
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
        names=check.KEYS,
    )
    images = pd.DataFrame({"image_id": IDS, "sha256": IDS})
    alarms = 0
    for _ in range(200):
        sides = [
            check.Measured(
                tmp_path, pd.DataFrame(values, index, IDS), images, WEIGHTS, pd.DataFrame()
            )
            for values in random.normal(size=(2, 20, N))
        ]
        alarms += "moved" in set(check.compare(*sides)["verdict"])

    # 10 expected; more than 20 has probability .001.
    assert alarms <= 20


def test_what_is_on_one_side_alone_is_missing(old, tmp_path):
    new = write_reports(tmp_path / "new", drop=[("SG-N", "net")])

    table = check.compare(old, new)
    other_way = check.compare(new, old)

    assert check.exit_code(table) == check.exit_code(other_way) == 2
    assert verdicts(table)["SG-N net ssim/common mean"] == "missing"
    assert "not measured now" in set(table["note"])
    assert "not in the baseline: accept it" in set(other_way["note"])
    assert verdicts(other_way)["SG-N net ssim/common std"] == "missing"


def test_a_move_outranks_what_is_missing(old, tmp_path):
    new = write_reports(
        tmp_path / "new", drop=[("SG-N", "net")], shift={("SG-N", "net-r", "ssim"): 0.3}
    )

    assert check.exit_code(check.compare(old, new)) == 1


def test_images_undefined_on_one_side_alone_are_not_the_same(old):
    cells = old.cells.copy()
    cells.iloc[0, 3] = np.nan
    new = check.Measured(old.source, cells, old.images, old.weights, old.margins)

    table = check.compare(old, new)

    assert table["verdict"].tolist().count("inconclusive") == 1
    assert table.loc[0, "note"] == "1 image is undefined on one side alone"


def test_as_many_images_may_be_undefined_on_one_side_alone_as_reruns_left(old, tmp_path):
    def without(*columns):
        cells = old.cells.copy()
        cells.iloc[0, list(columns)] = np.nan
        return check.Measured(old.source, cells, old.images, old.weights, old.margins)

    check.accept(old, tmp_path / "b", reason="masks come out constant", reruns=[without(0), old])
    baseline = check.read(tmp_path / "b")

    one = check.compare(baseline, without(1)).set_index(check.KEYS)
    two = check.compare(baseline, without(2, 3))

    # Both models' cells of the family, and no others.
    assert baseline.margins["lost"].tolist() == [1, 1] + [0] * (len(old.cells) - 2)
    assert set(one["verdict"]) == {"same"}
    assert one.loc[old.cells.index[0], "note"] == "1 image is undefined on one side alone"
    assert check.exit_code(two) == 2
    assert two.loc[0, "note"] == "2 images are undefined on one side alone, reruns left 1"


def test_an_image_that_jumped_in_one_cell_may_jump_in_others_of_its_family(old, tmp_path):
    def jumping(model, size, image=5):
        cells = old.cells.copy()
        cells.loc[("SG-N", "smoothgrad", model, "ssim", "common", "none", "mean"), IDS[image]] += (
            size
        )
        return check.Measured(old.source, cells, old.images, old.weights, old.margins)

    check.accept(old, tmp_path / "b", reason="x", reruns=[jumping("net", 0.4), old])
    baseline = check.read(tmp_path / "b")

    key = ("SG-N", "smoothgrad", "net-r", "ssim", "common", "none", "mean")
    found = baseline.margins.loc[key]
    assert found["se"] == 0
    assert found["jump"] == pytest.approx(0.4)
    # One of 16 images by .4: mean .025, standard error .025; Student's 95 % quantile at 15.
    assert found["margin"] == pytest.approx(0.025 * (1 + 1.753050), rel=1e-5)
    assert check.exit_code(check.compare(baseline, jumping("net-r", 0.39, image=9))) == 0
    assert check.exit_code(check.compare(baseline, jumping("net-r", 0.45))) == 2
    other = ("default", "gradient", "net-r", "ssim", "common", "none", "mean")
    assert baseline.margins.loc[other, "margin"] == 0.01


def test_a_baseline_from_before_such_images_were_counted_allows_none(old, tmp_path):
    check.accept(old, tmp_path / "b", reason="first")
    path = tmp_path / "b" / "cells.csv"
    pd.read_csv(path).drop(columns=["jump", "lost"]).to_csv(path, index=False)

    assert set(check.read(tmp_path / "b").margins["lost"]) == {0}


def test_one_image_decides_nothing(tmp_path):
    ids = ["a", "b", "c", "d"]
    old = write_reports(tmp_path / "old", ids=ids)
    cells = old.cells.copy()
    cells.iloc[:, 1:] = np.nan
    one = check.Measured(old.source, cells, old.images, old.weights, old.margins)
    other = check.Measured(old.source, cells + 0.5, old.images, old.weights, old.margins)

    table = check.compare(one, other)

    assert set(table["verdict"]) == {"inconclusive"}
    assert check.exit_code(table) == 2


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

    found = check.compare(check.read(folder), check.read(tmp_path / "new"))

    ranges = found[(found["metric"] == "dynamic_range")]
    assert set(ranges["verdict"]) == {"moved"}
    assert ranges["d"].to_numpy() == pytest.approx(np.log(1.03), abs=1e-5)


# Comparable or not


def test_other_weights_are_refused_by_name(old, tmp_path):
    new = write_reports(tmp_path / "new", weights=WEIGHTS | {"net-r": "c" * 64})

    with pytest.raises(
        check.IncomparableError, match=r"weights of net-r: bbbb.*cccc.*same weights"
    ):
        check.compare(old, new)


def test_other_images_are_refused_by_name(old, tmp_path):
    other = [*IDS[:-1], "val-99"]
    new = write_reports(tmp_path / "new", ids=other)

    with pytest.raises(check.IncomparableError, match=r"2 differ \(val-15 only in .*val-99 only"):
        check.compare(old, new)


def test_other_pixels_are_refused(old, tmp_path):
    new = write_reports(tmp_path / "new")
    new.images.loc[2, "sha256"] = "other"

    with pytest.raises(check.IncomparableError, match=r"1 have other pixels \(val-02\)"):
        check.compare(old, new)


def test_order_of_images_is_no_difference(old, tmp_path):
    new = write_reports(tmp_path / "new")
    turned = check.Measured(
        new.source,
        new.cells[IDS[::-1]],
        new.images.iloc[::-1].reset_index(drop=True),
        new.weights,
        new.margins,
    )

    assert check.exit_code(check.compare(old, turned)) == 0


def test_retrained_models_are_held_to_the_retraining_margin_and_never_moved(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    shift = {("SG-N", "net", "ssim"): 0.1, ("default", "net", "ssim"): 0.1}
    new = write_reports(tmp_path / "new", weights=weights, shift=shift)
    path = tmp_path / "retraining.csv"
    assert check.retraining_table(path) is None
    yardstick = [
        {"model": "net", "sweep": "SG-N", "metric": "ssim", "sd": 0.05},
        {"model": "net", "sweep": "default", "metric": "ssim", "sd": 0.001},
    ]
    write_table(pd.DataFrame(yardstick), path)

    table = check.compare(old, new, retraining=check.retraining_table(path))

    found = verdicts(table)
    assert found["SG-N net ssim/common mean"] == "same"
    assert found["gradient net ssim/common mean"] == "inconclusive"
    assert found["SG-N net-r ssim/common mean"] == "same"
    noted = table.set_index(["sweep", "model", "statistic"])
    held, beyond = noted.loc[("SG-N", "net", "mean")], noted.loc[("default", "net", "mean")]
    assert held["note"] == "retraining margin"
    assert held["margin"] == pytest.approx(1.959964 * 2**0.5 * 0.05)
    assert beyond["note"] == "beyond what other trainings do; retraining margin"
    assert check.exit_code(table) == 2
    text = check.markdown(table, old, new)
    assert "**Other weights** (weights of net: aaaaaaaaaaaa" in text
    assert "stages/measure.py" in text
    assert "Other weights" not in check.markdown(check.compare(old, old), old, old)


def test_a_retraining_margin_is_that_of_the_same_method(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    new = write_reports(tmp_path / "new", weights=weights, shift={("default", "net", "ssim"): 0.1})
    rows = [
        {"method": "gradient", "sd": 0.01, "n_trainings": 4},
        {"method": "guided_backprop", "sd": 5.0, "n_trainings": 4},
    ]
    yardstick = pd.DataFrame(rows).assign(model="net", sweep="default", metric="ssim")

    table = check.compare(old, new, retraining=yardstick)

    cell = table[(table["method"] == "gradient") & (table["sweep"] == "default")].iloc[0]
    # Student's t with 3 degrees of freedom, of a difference of two trainings.
    assert cell["margin"] == pytest.approx(3.182446 * 2**0.5 * 0.01)
    assert cell["verdict"] == "inconclusive"


def test_a_cell_without_a_retraining_margin_is_inconclusive_where_weights_differ(old, tmp_path):
    weights = WEIGHTS | {"net": "c" * 64}
    new = write_reports(tmp_path / "new", weights=weights, shift={("SG-N", "net", "ssim"): 0.1})
    yardstick = pd.DataFrame(columns=["model", "sweep", "metric", "sd"])

    table = check.compare(old, new, retraining=yardstick)

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
        table = check.compare(old, new, retraining=pd.concat(rows[name] for name in sweeps))
        assert check.exit_code(table) == 2
        return check.markdown(table, old, new)

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
    # With a margin for all but the randomised parameters, retraining helps no further.
    text = told("default", "SG-N")
    assert "**No retraining margin**: 1 cell of other weights" in text
    assert "make accept" in text
    assert "stages/retraining.py" not in text
    assert "makes margins for the 1 cell of sweeps.\n" in told("default", "IPR")
    # Where nothing else is open, only what helps is advised, and no empty table is shown.
    table = check.compare(old, old)
    assert "No retraining margin" not in check.markdown(table, old, old)
    text = check.markdown(
        check.compare(old, new, retraining=known.iloc[:0]).query("margin.isna()"), old, new
    )
    assert "3 cells of other weights" in text
    assert "Measure more images" not in text
    assert "Worst first" not in text


def test_a_retraining_table_without_a_column_says_so(tmp_path):
    write_table(pd.DataFrame({"model": ["a"]}), tmp_path / "r.csv")

    with pytest.raises(ValueError, match=r"r\.csv: column 'sweep' is missing"):
        check.retraining_table(tmp_path / "r.csv")


def test_a_folder_that_is_neither_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a baseline"):
        check.read(tmp_path)


def test_tables_of_two_runs_are_refused(tmp_path):
    write_reports(tmp_path)
    rows = pd.DataFrame({"image_id": ["x"], "sha256": ["x"], "photo": [""]})
    write_table(rows, tmp_path / "tables" / "evaluation_set.csv")

    with pytest.raises(ValueError, match="val-00 has values and is not in evaluation_set"):
        check.read(tmp_path)


# Acceptance


def test_a_baseline_holds_what_was_accepted_to_the_last_digit(old, tmp_path):
    entry = check.accept(old, tmp_path / "base", reason="  as  it is ", day="2026-01-02")
    base = check.read(tmp_path / "base")

    assert entry.reason == "as it is"
    assert (entry.commit, entry.dirty) == environment.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", entry.commit)
    assert base.history == (entry,)
    assert base.weights == WEIGHTS
    pd.testing.assert_frame_equal(base.cells, old.cells, check_exact=True)
    assert set(base.margins["margin"]) == {0.01}
    assert set(check.compare(base, old)["note"]) == {"equal"}
    assert {path.name for path in (tmp_path / "base").iterdir()} == {
        "cells.csv",
        "images.csv",
        "history.json",
    }


def test_accepting_turns_red_green_and_keeps_both_reasons(old, tmp_path):
    base = tmp_path / "base"
    check.accept(old, base, reason="first", day="2026-01-02")
    new = write_reports(tmp_path / "new", shift={("SG-N", "net", "ssim"): 0.05})
    assert check.exit_code(check.compare(check.read(base), new)) == 1

    check.accept(new, base, reason="second", day="2026-01-03")

    found = check.read(base)
    assert check.exit_code(check.compare(found, new)) == 0
    assert [entry.reason for entry in found.history] == ["first", "second"]
    assert "kept from 2026-01-02 for 8 of 8 cells" in found.history[-1].margins


def test_margins_are_measured_on_reruns_and_kept_until_measured_again(old, tmp_path):
    base = tmp_path / "base"
    reruns = [write_reports(tmp_path / f"r{i}", noise=0.02, seed=i) for i in range(1, 4)]
    check.accept(old, base, reason="first", reruns=reruns)
    key = ("SG-N", "smoothgrad", "net", "ssim", "common", "none", "mean")
    d = [rerun.cells.loc[key] - old.cells.loc[key] for rerun in reruns]
    expected = 5.3 * max(one.std(ddof=1) / N**0.5 for one in d)

    found = check.read(base).margins

    assert expected > 0.02
    assert found.loc[key, "margin"] == pytest.approx(expected, rel=1e-5)
    # Four images, all equal: nothing to measure but the least.
    parameters = ("IPR", "gradient", "net", "ssim", "common", "", "S_same")
    assert found.loc[parameters, "margin"] == 0.01
    check.accept(old, base, reason="again")
    pd.testing.assert_frame_equal(check.read(base).margins, found)
    rerun = write_reports(tmp_path / "other", noise=0.02, seed=9)
    assert check.exit_code(check.compare(check.read(base), rerun)) == 0


def test_few_images_widen_the_margin_by_students_quantile():
    made = check._errors(pd.Series([15, 40, 3]))

    assert made[:2].tolist() == [5.3, 5.3]
    assert made[2] == pytest.approx(5.3 * stats.t.ppf(0.95, 3) / stats.t.ppf(0.95, 15))


def test_a_rerun_of_other_weights_measures_no_margin(old, tmp_path):
    other = write_reports(tmp_path / "new", weights=WEIGHTS | {"net": "c" * 64})

    with pytest.raises(check.IncomparableError, match="is no rerun of"):
        check.accept(old, tmp_path / "base", reason="x", reruns=[other])
    assert not (tmp_path / "base").exists()


def test_a_reason_is_required(old, tmp_path):
    with pytest.raises(ValueError, match="reason is empty"):
        check.accept(old, tmp_path / "base", reason=" ")


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
    check.accept(old, tmp_path / "b", reason="x")
    damaged(tmp_path / "b" / name, change)

    with pytest.raises(ValueError, match=rf"b.{name}: .*{told}.*; restore it from git") as caught:
        check.read(tmp_path / "b")
    assert "dvc repro" not in str(caught.value)


def test_a_baseline_without_its_history_is_named(old, tmp_path):
    check.accept(old, tmp_path / "b", reason="x")
    (tmp_path / "b" / "history.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"history\.json: no such file; restore it"):
        check.read(tmp_path / "b")


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
        check.read(tmp_path / "old")


def test_reports_borrow_margins_and_a_baseline_keeps_its_own(old, tmp_path):
    reruns = [write_reports(tmp_path / f"r{i}", noise=0.02, seed=i) for i in range(1, 4)]
    check.accept(old, tmp_path / "base", reason="x", reruns=reruns)
    base = check.read(tmp_path / "base")
    rerun = write_reports(tmp_path / "other", noise=0.02, seed=9)

    made = check.borrowed(old, base)

    assert check.exit_code(check.compare(old, rerun)) == 2
    table = check.compare(made, rerun)
    assert check.exit_code(table) == 0
    assert "margins borrowed" in check.markdown(table, made, rerun)
    assert check.borrowed(base, old) is base


def test_methods_can_be_looked_at_alone(old, tmp_path):
    check.accept(old, tmp_path / "base", reason="x")
    base = check.read(tmp_path / "base").of_methods(["gradient"])

    table = check.compare(base, old.of_methods(["gradient"]))

    assert set(table["method"]) == {"gradient"}
    assert check.exit_code(table) == 0


# Words and the script


def test_the_table_says_what_moved_and_what_to_do(old, tmp_path):
    new = write_reports(tmp_path / "new", shift={("IPR", "net", "ssim"): 0.2})
    check.accept(old, tmp_path / "base", reason="because", day="2026-01-02")
    base = check.read(tmp_path / "base")

    text = check.markdown(check.compare(base, new), base, new)

    assert text.startswith("## Regression gate: red\n\n1 moved, 0 inconclusive, 0 missing, 7 same")
    assert '"because"' in text
    assert "| moved | IPR gradient net ssim/common S_same |" in text
    assert "| gradient | 1 | 0 | 0 | 3 |" in text
    assert "make accept REASON=" in text
    green = check.markdown(check.compare(base, old), base, old)
    assert green.rstrip().endswith("Nothing to do.")


def test_a_long_table_is_cut(old, tmp_path):
    new = write_reports(tmp_path / "new", noise=0.1)

    text = check.markdown(check.compare(old, new), old, new, most=1)

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

    monkeypatch.setattr(check, "compare", broken)
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
