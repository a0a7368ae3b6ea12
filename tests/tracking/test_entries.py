"""Runs read well, and say what the tables say."""

import json

import numpy as np
import pandas as pd
import pytest

from mlflow_tables import (
    SETTINGS,
    STUDY,
    UNITS,
    finished,
    make_randomization,
    make_tables,
    make_training,
)
from steadymap.tracking.entries import Study, metric_name, training_entry
from steadymap.tracking.randomizations import randomization_entries
from steadymap.tracking.sweeps import sweep_entries


def randomized(tables: dict | None = None):
    """Runs of the first model: parent and children."""
    tables = {**make_tables(), **(tables or make_randomization())}
    parent = randomization_entries(Study(STUDY, tables), settings=SETTINGS)[0]
    return parent, {child.name: child for child in parent.children}


def entry_of(sweep: str, model: str, tables: dict | None = None):
    entries = sweep_entries(Study(STUDY, tables or make_tables()))
    return next(e for e in entries if e.params["sweep"] == sweep and e.params["model"] == model)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (("ssim", "common", ""), "ssim/mean"),
        (("ssim", "sam", ""), "ssim.sam/mean"),
        (("ssim", "common", "nested"), "ssim.common.nested/mean"),
        (("spearman", "signed", ""), "spearman/mean"),
        (("spearman", "signed", "nested"), "spearman.signed.nested/mean"),
        (("hog_pearson", "cells4", ""), "hog_pearson/mean"),
    ],
)
def test_only_the_main_reading_has_a_short_name(reading, expected):
    metric, convention, draws = reading

    assert metric_name(metric, convention, "mean", draws=draws) == expected


def test_no_two_runs_of_an_experiment_have_one_name():
    """Lists and charts show names alone."""
    tables = make_tables()
    found = sweep_entries(Study(STUDY, tables))
    names = [
        (entry.experiment, child.name, entry.params["sweep"])
        for entry in found
        for child in entry.children
    ]

    assert len(names) == len(set(names))


def test_names_say_method_sweep_model_and_setting():
    entries = sweep_entries(Study(STUDY, make_tables()))

    assert [entry.name for entry in entries[:4]] == [
        "gradient default googlenet",
        "gradient default googlenet-r",
        "smoothgrad SG-N googlenet",
        "smoothgrad SG-N googlenet-r",
    ]
    assert [child.name for child in entries[0].children] == ["the only setting googlenet"]
    assert [child.name for child in entries[2].children] == [
        "n_samples=5 googlenet (reference)",
        "n_samples=10 googlenet",
        "n_samples=20 googlenet",
    ]
    assert entries[2].experiment == "steadymap/tiny/smoothgrad"


def test_numbers_are_those_of_the_tables():
    """The parent has the sweep's sensitivity, a child the spread over images, each by its name."""
    tables = make_tables()
    parent = entry_of("SP-L", "googlenet", tables)
    child = next(child for child in parent.children if child.params["value"] == "11")
    headline = "metric == 'ssim' and convention == 'common' and sweep == 'SP-L'"
    of_sweep = tables["sensitivity"].query(f"{headline} and model == 'googlenet'").iloc[0]
    of_setting = tables["settings"].query(f"{headline} and model == 'googlenet' and value == '11'")

    assert parent.metrics["ssim/mean", 0] == of_sweep["mean"]
    assert parent.metrics["ssim/std_settings", 0] == float(f"{of_sweep['std_rms']:.6g}")
    assert parent.metrics["n_settings", 0] == 3
    assert child.metrics["ssim/std", 0] == float(f"{of_setting.iloc[0]['std']:.6g}")
    assert child.metrics["value", 0] == 11


def test_a_child_has_its_hyperparameters_and_those_of_its_parent_as_params():
    """The UI's filter sees a run's own fields alone."""
    parent = entry_of("SP-L", "googlenet-r")

    assert parent.tags["values"] == "5, 9, 11"
    assert parent.children[0].params == {
        **parent.params,
        "value": "5",
        "hp.output": "logit",
        "hp.patch_size": "5",
    }
    assert parent.params["robust"] == "true"


def test_the_independent_reference_is_a_tag_and_not_a_setting():
    tables = make_tables()
    parent = entry_of("SG-N", "googlenet", tables)
    rows = tables["tasks"].query("sweep == 'SG-N' and model == 'googlenet'")
    other = rows.loc[rows["draws"] == "independent", "task_id"].item()

    assert parent.tags["independent_task_id"] == other
    assert other not in [child.tags["task_id"] for child in parent.children]
    assert ("ssim.common.nested/mean", 0) in parent.metrics


def test_a_seed_sweep_has_short_names_though_its_draws_are_independent():
    sweeps = {("smoothgrad", "SG-seed"): ("seed", ("0", "1", "2"), "0", "independent")}
    parent = entry_of("SG-seed", "googlenet", make_tables(sweeps))

    assert len(parent.children) == 3
    assert ("ssim/mean", 0) in parent.metrics
    assert "independent_task_id" not in parent.tags


def test_what_is_not_finite_is_left_out_and_said():
    tables = make_tables()
    settings = tables["settings"]
    row = settings.query("sweep == 'SP-S' and metric == 'spearman'").index[0]
    settings.loc[row, ["mean", "std"]] = [np.nan, np.inf]
    child = entry_of("SP-S", "googlenet", tables).children[0]

    assert child.tags["dropped_metrics"] == "spearman/mean, spearman/std"
    assert all(np.isfinite(value) for value in child.metrics.values())


def test_two_conventions_never_share_a_name():
    tables = make_tables()
    more = tables["settings"].query("metric == 'hog_pearson'").assign(convention="cells8")
    tables["settings"] = pd.concat([tables["settings"], more])

    with pytest.raises(ValueError, match=r"hog_pearson/mean: two conventions .*MAIN_CONVENTIONS"):
        sweep_entries(Study(STUDY, tables))


def test_missing_tables_are_named():
    with pytest.raises(ValueError, match="tables: 'settings' is missing"):
        sweep_entries(Study(STUDY, {"tasks": pd.DataFrame()}))


def test_least_stable_images_come_first():
    table = json.loads(entry_of("SP-L", "googlenet").artifacts["per_image.json"])
    place = table["columns"].index("ssim/mean")
    means = [row[place] for row in table["data"]]

    assert means == sorted(means)
    assert table["columns"][:3] == ["image_id", "class_name", "photo"]
    assert not any("." in name for name in table["columns"])


def test_training_has_epochs_as_steps_and_its_recipe_as_params():
    card, curves = make_training()
    entry = training_entry("googlenet-r", finished(card), curves, study=STUDY, finished=True)

    assert entry.metrics["train/loss", 2] == 1.0
    assert entry.metrics["final/robust_accuracy", 0] == 0.54
    assert not any(name == "val/robust_accuracy" for name, _ in entry.metrics)
    assert entry.params["attack.eps"] == "1.5"
    assert entry.params["init_from"] == "none"
    assert entry.seconds == pytest.approx(46.5)
    assert "n = 400" in entry.tags["mlflow.note.content"]
    assert entry.images.context == "training"
    assert (entry.images.digest, entry.images.n_images) == ("d" * 32, 4000)


def test_a_network_that_was_taken_in_has_no_training_images():
    card, curves = make_training()
    card["data"]["n_train"] = 0

    assert training_entry("mine", card, curves, study=STUDY, finished=True).images is None


def test_notes_say_where_the_models_run_and_card_are():
    words = "Model: run `googlenet` in `steadymap/tiny/training`, artifact `card.json`."
    parent, _ = randomized()

    for entry in (entry_of("SP-L", "googlenet"), parent):
        assert words in entry.tags["mlflow.note.content"]


def test_randomized_models_have_a_run_and_each_of_their_methods_one():
    tables = {**make_tables(), **make_randomization()}
    parents = randomization_entries(Study(STUDY, tables), settings=SETTINGS)

    assert [parent.name for parent in parents] == [
        "googlenet: parameters randomized",
        "googlenet-r: parameters randomized",
    ]
    assert [child.name for child in parents[1].children] == [
        "gradient googlenet-r",
        "gradient googlenet-r top_down",
        "lime googlenet-r",
    ]
    entries = [*parents, *parents[0].children, *parents[1].children]
    assert {entry.experiment for entry in entries} == {"steadymap/tiny/parameter randomization"}
    assert len({(e.tags["randomization_id"], e.tags["table_digest"]) for e in entries}) == 8


def test_randomizers_and_presets_are_in_the_name_where_they_are_not_the_papers():
    tables = make_randomization()
    more = {"randomizer": "permute", "preset": "all"}
    tables["ipr"] = pd.concat([tables["ipr"], tables["ipr"].assign(**more)])
    parent, children = randomized(tables)

    assert len(children) == 6
    assert "lime googlenet permute all" in children
    # The headline stays that of the paper's way.
    shown = children["lime googlenet"].metrics["ssim/S_same", 0]
    assert parent.metrics["S_same/lime", 0] == shown


def test_statistics_of_randomization_are_those_of_the_table():
    tables = make_randomization()
    parent, children = randomized(tables)
    lime = children["lime googlenet"]
    of_lime = tables["ipr"].query("model == 'googlenet' and method == 'lime'").set_index("metric")
    headline = of_lime.query("convention == 'common'").loc["ssim"]

    assert lime.params == {
        "model": "googlenet",
        "method": "lime",
        "order": "independent",
        "randomizer": "init",
        "preset": "paper",
        "robust": "false",
        "hp.n_samples": "100",
        "hp.baseline": "none",
    }
    for name in ("S_same", "same_low", "same_high90", "S_fresh", "floor", "excess_high", "S_rel"):
        assert lime.metrics[f"ssim/{name}", 0] == headline[name]
    assert lime.metrics["spearman/floor", 0] == of_lime.loc["spearman", "floor"]
    assert ("ssim.sam/S_same", 0) in lime.metrics
    assert ("ssim.sam/same_low", 0) not in lime.metrics
    assert lime.metrics["n_degenerate", 0] == 1
    assert {name: lime.tags[name] for name in ("passes", "n_images", "n_units", "n_draws")} == {
        "passes": "inconclusive",
        "n_images": "8",
        "n_units": "3",
        "n_draws": "2",
    }
    assert parent.metrics["S_same/lime", 0] == headline["S_same"]
    assert (parent.metrics["n_methods", 0], parent.metrics["n_passing", 0]) == (2, 0)


def test_units_are_steps_of_curves_and_rows_of_a_table():
    tables = make_randomization()
    # In whatever order they come.
    tables["ipr_units"] = tables["ipr_units"][::-1]
    parent, children = randomized(tables)
    child = children["gradient googlenet top_down"]
    rows = tables["ipr_units"].query(
        "model == 'googlenet' and method == 'gradient' and order == 'top_down' and "
        "metric == 'ssim' and convention == 'common'"
    )
    table = json.loads(child.artifacts["per_unit.json"])
    shown = pd.DataFrame(table["data"], columns=table["columns"])

    for row in rows.to_dict("records"):
        step = row["unit_index"]
        assert child.metrics["unit/S_same", step] == row["S_same"]
        assert child.metrics["unit/target_change", step] == float(f"{row['target_change']:.6g}")
        assert shown.loc[step, "ssim/high"] == row["high"]
    assert shown["unit"].tolist() == list(UNITS)
    assert shown["step"].tolist() == [0, 1, 2]
    assert not any("." in name for name in shown)
    assert "0 conv1, 1 inception3a, 2 fc" in child.tags["mlflow.note.content"]
    # What randomizing does to the model is the same for all methods.
    other = children["gradient googlenet"].metrics
    for name in ("accuracy", "kept_predictions", "target_change"):
        assert parent.metrics[f"unit/{name}", 2] == other[f"unit/{name}", 2]


def test_very_many_units_fit_into_a_note():
    tables = make_randomization()
    units = tables["ipr_units"]
    many = [
        units.assign(unit=units["unit"] + f".{i}" * 20, unit_index=units["unit_index"] + 3 * i)
        for i in range(100)
    ]
    tables["ipr_units"] = pd.concat(many)
    _, children = randomized(tables)
    child = children["lime googlenet"]

    assert len(child.tags["mlflow.note.content"]) < 8000
    assert len(json.loads(child.artifacts["per_unit.json"])["data"]) == 300


def test_of_randomization_what_is_not_finite_is_left_out_and_said():
    tables = make_randomization()
    units = tables["ipr_units"]
    units["accuracy"] = np.nan
    units.loc[units["unit"] == "conv1", "S_fresh"] = np.inf
    parent, children = randomized(tables)
    child = children["gradient googlenet"]

    dropped = child.tags["dropped_metrics"].split(", ")
    assert {"ssim/S_rel", "unit/accuracy", "unit/S_fresh"} <= set(dropped)
    assert [step for name, step in child.metrics if name == "unit/S_fresh"] == [1, 2]
    for entry in (parent, *children.values()):
        assert all(np.isfinite(value) for value in entry.metrics.values())


def test_randomization_without_units_or_verdict_has_a_run():
    tables = make_randomization()
    tables["ipr"] = tables["ipr"].query("metric == 'spearman'").assign(passes=np.nan)
    del tables["ipr_units"]
    parent, children = randomized(tables)
    child = children["lime googlenet"]

    assert "passes" not in child.tags
    assert child.artifacts == {}
    assert ("spearman/S_same", 0) in child.metrics
    assert not any(name.startswith("S_same/") for name, _ in parent.metrics)


def test_what_failed_is_named_in_the_models_note():
    failure = {"model": "googlenet", "method": "deeplift", "order": "independent", "unit": "conv1"}
    failures = [failure | {"draw": draw, "reason": "no rule for\nHardswish"} for draw in (0, 1)]
    failures.append(failure | {"method": np.nan, "draw": 0, "reason": "output is NaN"})
    parent, _ = randomized({**make_randomization(), "ipr_failures": pd.DataFrame(failures)})
    note = parent.tags["mlflow.note.content"]

    assert note.count("`deeplift`: no rule for Hardswish") == 1
    assert "all methods at unit `conv1`: output is NaN" in note


def test_settings_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"settings of method 'lime' are missing.*dvc repro"):
        randomization_entries(Study(STUDY, make_randomization()), settings={"gradient": {}})


def test_of_randomization_two_conventions_never_share_a_name():
    tables = make_randomization()
    more = tables["ipr"].query("metric == 'hog_pearson'").assign(convention="cells8")
    tables["ipr"] = pd.concat([tables["ipr"], more])

    with pytest.raises(ValueError, match=r"hog_pearson/S_same: two conventions .*MAIN_CONV"):
        randomized(tables)


def test_inverted_pairs_are_counted_beside_a_rank_correlation():
    tables = make_tables()
    tables["sensitivity"]["n_inverted"] = 3

    entries = sweep_entries(Study("toy", tables))
    entry = next(one for one in entries if ("ssim/mean", 0) in one.metrics)

    assert entry.metrics["n_inverted", 0] == 3
    assert ("spearman/mean", 0) in entry.metrics
    assert "**3 inverted pairs of maps**" in entry.tags["mlflow.note.content"]


def test_randomized_models_say_rank_correlation_and_inverted_pairs():
    (entry, *_) = entries = randomization_entries(Study("toy", make_randomization()), SETTINGS)

    child = entry.children[0]
    assert entries
    assert child.metrics["n_inverted", 0] == 2
    assert "**2 inverted pairs of maps**" in child.tags["mlflow.note.content"]
    rank = child.metrics["spearman/S_same", 0]
    assert f"by rank correlation (1 - Spearman) | {rank:.3f} |" in child.tags["mlflow.note.content"]
    assert entry.metrics[f"S_same.spearman/{child.params['method']}", 0] == rank
