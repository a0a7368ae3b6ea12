"""Randomized copies of a study's models, explained through the task cache."""

import copy
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from conftest import SMALL, write_model
from steadymap import attribute
from steadymap.analysis import parameters
from steadymap.data.dataset import read_dataset
from steadymap.engine import evaluation_set, runner
from steadymap.engine.selection import choose, write
from steadymap.experiments import cost, randomized_maps, randomized_methods
from steadymap.models import randomization, registry
from steadymap.params.checks import validate
from steadymap.params.schema import RandomizedMethod, Statistics
from steadymap.store.atomic import read_json
from steadymap.store.tables import RANDOMIZATION_COLUMNS, read_table
from steadymap.store.task_cache import TaskCache

UNITS = ["conv1", "inception5b"]


@pytest.fixture
def study(values, tmp_path, monkeypatch, embedded):
    """A study with two models whose maps can move, and what its randomize stage needs."""
    monkeypatch.chdir(tmp_path)
    values["data"] |= {"image_size": 32, "n_train": 64, "n_val": 48}
    values["robust_accuracy"]["n_images"] = 16
    values["evaluation_set"] |= {"rule": "any", "n_images": 9}
    values["attribution"] |= {"batch_size": 16, "block_size": 8}
    values["sweeps"]["sliding_patch"] = {}
    values["methods"].remove("sliding_patch")
    del values["sweeps"]["sliding_patch"]
    values["comparisons"]["object_size"] = None
    values["randomization"] = {
        "methods": {
            "gradient": {},
            "guided_backprop": {},
            "smoothgrad": {
                "hyperparameters": {"n_samples": 2},
                "n_images": 3,
                "n_draws": 1,
            },
        },
        "units": dict.fromkeys(["googlenet", "googlenet-r"], UNITS),
        "n_images": 4,
        "n_draws": 2,
        "n_function_images": 16,
    }
    for recipe in values["training"].values():
        recipe["architecture"] = SMALL
    params = validate(values)
    classes = list(embedded.classes)
    for seed, name in enumerate(params.models.names):
        write_model(params.results / "models" / name, model=name, classes=classes, seed=seed)
    embedded.write(params.results / "data")
    dataset = read_dataset(params.results / "data")
    predicted = {
        name: np.zeros(len(dataset.images["val"]), dtype=int) for name in params.models.names
    }
    write(
        choose(params.evaluation_set, dataset, predicted),
        dataset,
        params.results / "evaluation_set",
    )
    return params


def ran(params, cache="cache"):
    run_context = runner.RunContext(
        params.results / "models", params.results / "evaluation_set", params.attribution
    )
    return randomized_maps.run(
        params,
        cache=TaskCache(params.results / cache),
        changes=params.results / "changes",
        run_context=run_context,
    )


def test_every_comparison_is_there_and_a_rerun_computes_none(study):
    first = ran(study)
    scores, changes, failures = randomized_methods.read(study)

    assert failures.empty
    assert first.copies == 2 * len(UNITS) * 2
    counts = scores.query("metric == 'ssim' and convention == 'common' and model == 'googlenet'")
    counts = counts.groupby(["method", "kind"]).size().to_dict()
    assert counts == {
        ("gradient", "same"): 2 * 2 * 4,
        ("gradient", "mismatch"): 4,
        ("guided_backprop", "same"): 2 * 2 * 4,
        ("guided_backprop", "mismatch"): 4,
        ("smoothgrad", "same"): 2 * 3,
        ("smoothgrad", "fresh"): 2 * 3,
        ("smoothgrad", "floor"): 3,
        ("smoothgrad", "mismatch"): 3,
    }
    assert len(changes) == 2 * len(UNITS) * 2
    assert set(changes["n_images"]) == {16}
    assert (changes["kept_predictions"] <= 1).all()

    again = ran(study)

    assert (again.executed, again.copies) == (0, 0)
    pd.testing.assert_frame_equal(randomized_methods.read(study)[0], scores)


def test_any_number_of_damaged_entries_takes_one_run(study, caplog):
    first = ran(study)
    scores, changes, _ = randomized_methods.read(study)
    entries = sorted((study.results / "cache").rglob("*.npz"))
    damaged = entries[::5]
    for path in damaged:
        path.write_bytes(b"PK")

    again = ran(study)

    assert len(damaged) > 5
    assert all(f"{path.stem}.npz: damaged (" in caplog.text for path in damaged)
    assert 0 < again.executed <= len(damaged)
    assert again.executed + again.cached == first.executed + first.cached
    assert 0 < again.copies < first.copies
    assert sorted((study.results / "cache").rglob("*.npz")) == entries
    assert min(path.stat().st_size for path in entries) > 2
    pd.testing.assert_frame_equal(randomized_methods.read(study)[0], scores)
    pd.testing.assert_frame_equal(randomized_methods.read(study)[1], changes)


def test_an_entry_that_is_lost_again_is_named(study, monkeypatch):
    ran(study)
    monkeypatch.setattr(TaskCache, "read", lambda self, key: None)

    with pytest.raises(runner.EntryLostError, match=r"npz: gone or damaged since it was computed"):
        ran(study)


def test_a_copy_s_maps_are_those_of_the_randomized_network(study):
    """The archived map equals one made by hand from the pieces."""
    ran(study)
    folder = study.results / "randomization" / "pictures"
    shown = np.load(folder / "googlenet" / "gradient.npy")
    index = read_json(folder / "index.json")
    assert index["units"]["googlenet"] == UNITS
    assert shown.shape == (3, 32, 32)
    assert np.isfinite(shown).all()

    run_context = runner.RunContext(
        study.results / "models", study.results / "evaluation_set", study.attribution
    )
    trained_model = randomized_maps.TrainedModel("googlenet", study, run_context)
    made = randomization.randomized(
        trained_model.network,
        "inception5b",
        draw=0,
        seed=study.randomization.seed,
        calibration_images=trained_model.calibration,
        constructor=partial(registry.build, SMALL, len(trained_model.card["classes"])),
    )
    _, targets, pixels = evaluation_set.read(study.results / "evaluation_set")
    target = int(targets.query("model == 'googlenet'")["target"].iloc[0])
    expected = attribute(
        "gradient",
        trained_model.explainable(made),
        evaluation_set.as_images(pixels[:1]),
        [target],
        batch_size=study.attribution.batch_size,
    )

    np.testing.assert_array_equal(expected[0].numpy(), shown[2])
    assert not np.array_equal(shown[2], shown[0])
    trained = registry.load(study.results / "models" / "googlenet")
    origin = attribute(
        "gradient", trained, evaluation_set.as_images(pixels[:1]), [target], batch_size=16
    )
    np.testing.assert_array_equal(origin[0].numpy(), shown[0])


def test_randomizing_nothing_moves_nothing(study, monkeypatch):
    """The identity control: an exact copy has an S of exactly 0 (docs/protocol.md)."""
    monkeypatch.setattr(
        randomized_maps.randomization,
        "randomized",
        lambda network, units, **_: copy.deepcopy(network),
    )
    ran(study)
    scores, changes, _ = randomized_methods.read(study)

    same = scores.query("kind == 'same' and metric == 'ssim'")
    np.testing.assert_array_equal(same["score"], 1.0)
    assert (changes["kept_predictions"] == 1).all()
    np.testing.assert_allclose(changes["target_change"], 0, atol=1e-7)
    rows = read_table(study.results / "evaluation_set" / "evaluation_set.csv")
    table = parameters.ipr(scores, rows, Statistics(confidence=0.95))
    smooth = table.query("method == 'smoothgrad' and metric == 'ssim' and convention == 'common'")
    # Noise earns no points: fresh draws differ, and so does the floor.
    np.testing.assert_allclose(smooth["S_same"], 0, atol=1e-12)
    assert (smooth["floor"] > 0.001).all()
    np.testing.assert_allclose(smooth["excess"], 0, atol=1e-12)


def test_a_method_that_cannot_run_is_named_and_the_others_go_on(study, monkeypatch):
    real = runner.execute

    def failing(task, run_context, *, model=None):
        if task.settings[0].method == "guided_backprop":
            raise ValueError("Net has no ReLU; use the method gradient")
        if task.settings[0].method == "smoothgrad" and model is not None:
            raise FloatingPointError("the map of image x is not finite")
        return real(task, run_context, model=model)

    monkeypatch.setattr(runner, "execute", failing)

    found = ran(study)
    scores, _, failures = randomized_methods.read(study)

    assert found.failed == len(failures) == 2 + 2 * len(UNITS)
    whole = failures[failures["method"] == "guided_backprop"]
    assert set(whole["reason"]) == {"Net has no ReLU; use the method gradient"}
    assert set(failures.loc[failures["method"] == "smoothgrad", "unit"]) == set(UNITS)
    assert set(scores["method"]) == {"gradient", "smoothgrad"}
    assert set(scores.query("kind == 'same'")["method"]) == {"gradient"}


@pytest.mark.parametrize(
    "errors",
    [
        [RuntimeError("CUDA error: device-side assert triggered")],
        [ValueError("Net has no ReLU; use the method gradient"), KeyError("sigma")],
    ],
)
def test_what_is_no_fault_of_the_method_fails_the_run(study, monkeypatch, errors):
    """Of several errors the first alone says nothing: `errors` come in the order of the tasks."""
    real = runner.execute

    def failing(task, run_context, *, model=None):
        if task.settings[0].method == "guided_backprop" and model is None:
            # Blocks of the first images and of the others.
            raise errors[min(task.block[0], len(errors) - 1)]
        return real(task, run_context, model=model)

    monkeypatch.setattr(runner, "execute", failing)
    whole = study.model_copy(
        update={"randomization": study.randomization.model_copy(update={"n_images": 9})}
    )

    with pytest.raises(runner.TasksFailedError, match=r"(CUDA error|KeyError: 'sigma')") as caught:
        ran(whole)

    assert {type(error) for error in caught.value.errors} == {type(error) for error in errors}
    assert not (study.results / "randomization").exists()


def test_a_copy_whose_output_is_not_finite_is_named(study, monkeypatch):
    real = randomization.randomized

    def broken(network, units, **options):
        if units == ["conv1"] and options["draw"] == 1:
            raise FloatingPointError("unit 'conv1', draw 1: output is not finite")
        return real(network, units, **options)

    monkeypatch.setattr(randomized_maps.randomization, "randomized", broken)

    ran(study)
    scores, changes, failures = randomized_methods.read(study)

    assert failures["unit"].tolist() == ["conv1", "conv1"]
    assert len(changes) == 2 * (2 * len(UNITS) - 1)
    gone = scores.query("unit == 'conv1' and draw == 1")
    assert gone.empty


def test_a_study_without_the_section_has_empty_tables(study):
    params = study.model_copy(
        update={"randomization": study.randomization.model_copy(update={"methods": {}})}
    )

    found = ran(params)

    assert tuple(found) == (0, 0, 0, 0)
    scores, changes, failures = randomized_methods.read(params)
    assert list(scores) == list(RANDOMIZATION_COLUMNS)
    assert scores.empty
    assert changes.empty
    assert failures.empty
    assert json.loads((params.results / "randomization" / "settings.json").read_text()) == {}


def test_settings_that_draw_nothing_have_no_fresh_draws(study):
    made = {
        "integrated_gradients": {"hyperparameters": {"baseline": "zero"}},
        "lime": {},
        "gradient": {},
    }
    section = study.randomization.model_copy(
        update={"methods": {name: RandomizedMethod(**given) for name, given in made.items()}}
    )

    specs = randomized_methods.randomized_methods(
        study.model_copy(update={"randomization": section})
    )

    assert {method: spec.fresh is not None for method, spec in specs.items()} == {
        "integrated_gradients": False,
        "lime": True,
        "gradient": False,
    }
    assert specs["lime"].fresh.hyperparameters["seed"] == 1


def test_an_unknown_unit_is_named(study):
    section = study.randomization.model_copy(update={"units": {"googlenet": ["conv9"]}})

    with pytest.raises(ValueError, match=r"conv9"):
        ran(study.model_copy(update={"randomization": section}))

    assert not (study.results / "randomization").exists()


def planned(params):
    speeds = {SMALL: cost.Throughput(forward=100, gradient=50, training=40)}
    planner = cost._Planner(params, speeds, TaskCache(params.results / "cache"))
    return list(planner.randomizations(8))


def test_the_plan_counts_what_runs_and_then_nothing(study):
    before = planned(study)
    found = ran(study)
    after = planned(study)

    assert sum(line.pending for line in before) == found.executed
    # Besides the passes, four copies of each model are made.
    making = 4 * (randomization.CALIBRATION_IMAGES + 16) / 100 + 4 * 0.5
    ahead = before[0].backward / 50 + (before[0].forward - before[0].backward) / 100
    assert before[0].seconds == pytest.approx(ahead + making)
    assert [(line.pending, line.seconds) for line in after] == [(0, 0)] * 2
    passes = [[(line.forward, line.backward) for line in lines] for lines in (before, after)]
    assert passes[0] == passes[1]


def test_a_plan_before_there_are_models_is_as_large(study, tmp_path, monkeypatch):
    known = planned(study)
    monkeypatch.chdir(tmp_path.parent)

    guessed = planned(study)

    assert [(line.forward, line.backward) for line in guessed] == [
        (line.forward, line.backward) for line in known
    ]
    assert [line.seconds for line in guessed] == [line.seconds for line in known]
