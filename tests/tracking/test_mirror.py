"""The mirror is complete, readable, idempotent, and can be rebuilt."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow.store.db.utils
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_tables import (
    MODELS,
    RANDOMIZED,
    SETTINGS,
    STUDY,
    SWEEPS,
    finished,
    make_randomization,
    make_tables,
    make_training,
    mirror_randomization,
    mirror_sweeps,
)
from steadymap.store.atomic import read_json, write_json
from steadymap.store.tables import write_table
from steadymap.tracking import store, summary, ui
from steadymap.tracking.live import mirror_training
from steadymap.tracking.mirror import mirror_study
from steadymap.tracking.store import TrackingError
from steadymap.tracking.writer import Mirrored, Origin

ORIGIN = Origin(STUDY, git_commit="0123abc", dvc_stage="track")
N_PARENTS = len(SWEEPS) * len(MODELS)
N_CHILDREN = len(MODELS) * sum(max(len(values), 1) for _, values, _, _ in SWEEPS.values())
N_RANDOMIZED = len(MODELS) * (1 + sum(len(orders) for _, orders in RANDOMIZED.values()))
# The summary; claims of a paper, three of them.
N_OTHERS = 1 + 1 + 3
RANDOMIZATION = "parameter randomization"
GRADIENT = {("gradient", "default"): SWEEPS["gradient", "default"]}
CHANGED = {**SWEEPS, ("sliding_patch", "SP-L"): ("patch_size", ("5", "9", "13"), "9", "none")}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow's tables, whose making takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory, empty_database):
    """A store that holds the tables of `make_tables`."""
    folder = tmp_path_factory.mktemp("filled")
    shutil.copy(empty_database, folder / "mlflow.db")
    mirrored = mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri_in(folder))
    assert mirrored == Mirrored(created=N_PARENTS + N_CHILDREN)
    return folder


@pytest.fixture(scope="session")
def randomized_folder(tmp_path_factory, filled_folder):
    """The same with those of `make_randomization`."""
    folder = tmp_path_factory.mktemp("randomized")
    uri = copied(filled_folder, folder)
    assert randomize(uri) == Mirrored(created=N_RANDOMIZED)
    return folder


@pytest.fixture(scope="session")
def shared(randomized_folder):
    """The whole store, for tests that only read or whose mirroring writes nothing."""
    return uri_in(randomized_folder)


@pytest.fixture
def filled(tmp_path, filled_folder):
    """A copy of the store without randomization."""
    return copied(filled_folder, tmp_path)


@pytest.fixture
def randomized(tmp_path, randomized_folder):
    """A copy of the whole store."""
    return copied(randomized_folder, tmp_path)


def uri_in(folder):
    return f"sqlite:///{folder / 'mlflow.db'}"


def copied(folder, target):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    with store.open_store(uri_in(target)):
        pass
    return uri_in(target)


def randomize(uri, tables=None, settings=SETTINGS):
    tables = {**make_tables(), **(make_randomization() if tables is None else tables)}
    return mirror_randomization(tables, origin=ORIGIN, settings=settings, uri=uri)


def runs_of(uri, subject="", **tags):
    """Runs of the study's experiments by name, with these tags."""
    client = MlflowClient(uri)
    ids = [
        experiment.experiment_id
        for experiment in client.search_experiments()
        if experiment.name.startswith(f"steadymap/{STUDY}/{subject}")
    ]
    found = client.search_runs(ids) if ids else []
    return [run for run in found if tags.items() <= run.data.tags.items()]


def current(uri, subject=""):
    return runs_of(uri, subject, current="true")


def content(uri, subject=""):
    """What a reader can tell about current runs, ids and times aside."""
    entries = current(uri, subject)
    names = {run.info.run_id: run.info.run_name for run in entries}
    found = []
    for run in entries:
        tags = dict(run.data.tags)
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        inputs = [known.dataset.to_dictionary() for known in run.inputs.dataset_inputs]
        found.append([run.info.run_name, run.info.status, tags, run.data.params, run.data.metrics])
        found[-1].append(inputs)
    return sorted(found, key=lambda item: json.dumps(item, sort_keys=True))


def test_each_sweep_and_model_has_a_parent_and_each_setting_a_child(filled):
    entries = runs_of(filled)
    parents = [run for run in entries if "mlflow.parentRunId" not in run.data.tags]
    by_id = {run.info.run_id: run for run in parents}

    assert len(parents) == N_PARENTS
    assert len(entries) == N_PARENTS + N_CHILDREN
    assert {run.info.status for run in entries} == {"FINISHED"}
    assert "sliding_patch SP-L googlenet-r" in {run.info.run_name for run in parents}
    for run in entries:
        parent = by_id[run.data.tags.get("mlflow.parentRunId", run.info.run_id)]
        assert run.data.params["model"] == parent.data.params["model"]
        assert run.info.experiment_id == parent.info.experiment_id
    for run in parents:
        assert len(run.inputs.dataset_inputs[0].dataset.digest) == 32


def test_runs_can_be_filtered_and_sorted(shared):
    client = MlflowClient(shared)
    experiment = client.get_experiment_by_name(f"steadymap/{STUDY}/sliding_patch")
    found = client.search_runs(
        [experiment.experiment_id],
        "params.sweep = 'SP-L' and params.model = 'googlenet' and tags.task_id != ''",
        order_by=["metrics.value ASC"],
    )

    assert [run.info.run_name for run in found] == [
        "patch_size=5 googlenet",
        "patch_size=9 googlenet (reference)",
        "patch_size=11 googlenet",
    ]
    assert found[0].data.tags["git_commit"] == "0123abc"
    assert found[0].data.tags["dvc.stage"] == "track"


def test_experiments_have_a_note_that_is_renewed_and_keep_other_tags(filled):
    client = MlflowClient(filled)
    experiment = client.get_experiment_by_name(f"steadymap/{STUDY}/sliding_patch")
    note = experiment.tags["mlflow.note.content"]
    assert "How much sliding_patch maps move" in note
    assert experiment.tags["study"] == STUDY
    for key in ("mlflow.note.content", "mlflow.sharedViewState.mine"):
        client.set_experiment_tag(experiment.experiment_id, key, "by hand")

    mirror_sweeps(make_tables(), origin=ORIGIN, uri=filled)

    tags = client.get_experiment(experiment.experiment_id).tags
    assert tags["mlflow.note.content"] == note
    assert tags["mlflow.sharedViewState.mine"] == "by hand"


def test_the_same_tables_write_nothing(shared):
    path = Path(shared.removeprefix("sqlite:///"))
    before = path.read_bytes()
    elsewhere = Origin(STUDY, git_commit="another", dirty=True)
    tables = make_randomization()
    tables["ipr"]["S_same"] *= 1 + 1e-9

    again = mirror_sweeps(make_tables(), origin=elsewhere, uri=shared)

    assert again == Mirrored(unchanged=N_PARENTS + N_CHILDREN)
    # Neither takes the other's runs for runs of another time.
    assert randomize(shared, tables) == Mirrored(unchanged=N_RANDOMIZED)
    assert path.read_bytes() == before


def test_a_rounding_is_no_change_and_a_change_is_one(filled):
    tables = make_tables()
    tables["settings"]["mean"] *= 1 + 1e-9
    assert mirror_sweeps(tables, origin=ORIGIN, uri=filled).updated == 0

    rows = tables["settings"].query("sweep == 'SP-S' and metric == 'ssim'").index
    tables["settings"].loc[rows[0], "mean"] += 1e-3

    assert mirror_sweeps(tables, origin=ORIGIN, uri=filled).updated == 1


def test_a_changed_value_adds_one_child_per_model_and_refreshes_the_parents(filled):
    mirrored = mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=filled)
    old = runs_of(filled, current="false")

    assert mirrored == Mirrored(
        created=len(MODELS),
        updated=len(MODELS),
        unchanged=N_PARENTS + N_CHILDREN - 2 * len(MODELS),
        superseded=len(MODELS),
    )
    assert {run.info.run_name for run in old} == {
        f"superseded: patch_size=11 {model}" for model in MODELS
    }
    assert len(current(filled)) == N_PARENTS + N_CHILDREN
    for run in current(filled, "sliding_patch"):
        if run.info.run_name.startswith("sliding_patch SP-L"):
            assert "13" in run.data.tags["mlflow.note.content"]


def test_a_value_that_returns_brings_its_run_back(filled):
    before = content(filled)
    mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=filled)

    back = mirror_sweeps(make_tables(), origin=ORIGIN, uri=filled)

    assert (back.created, back.superseded) == (0, len(MODELS))
    assert content(filled) == before


def test_a_removed_sweep_is_superseded_with_its_children(filled):
    kept = {key: value for key, value in SWEEPS.items() if key[1] != "SP-S"}

    mirrored = mirror_sweeps(make_tables(kept), origin=ORIGIN, uri=filled)

    assert mirrored.superseded == len(MODELS) * 3
    assert not [run for run in current(filled) if run.data.params["sweep"] == "SP-S"]


def test_other_studies_are_left_alone(filled):
    origin = Origin("tiny_", git_commit="0123abc")
    mirrored = mirror_sweeps(make_tables(GRADIENT), origin=origin, uri=filled)

    assert mirrored.superseded == 0
    assert len(current(filled)) == N_PARENTS + N_CHILDREN


def test_a_number_that_is_no_more_leaves_no_old_one_behind(filled):
    """MLflow can't delete a metric: the run is written anew."""
    tables = make_tables()
    rows = tables["sensitivity"].query("sweep == 'SP-S' and metric == 'spearman'").index
    tables["sensitivity"].loc[rows[0], ["mean", "std_rms"]] = np.nan

    mirrored = mirror_sweeps(tables, origin=ORIGIN, uri=filled)
    parents = [
        run for run in current(filled) if run.info.run_name == "sliding_patch SP-S googlenet"
    ]

    assert (mirrored.created, mirrored.superseded) == (1, 1)
    assert "spearman/mean" not in parents[0].data.metrics
    assert parents[0].data.tags["dropped_metrics"] == "spearman/mean, spearman/std_settings"
    children = runs_of(filled, current="true", **{"mlflow.parentRunId": parents[0].info.run_id})
    assert len(children) == 2


def test_other_images_make_other_runs(uri):
    """A parent's numbers belong to one evaluation set."""
    mirror_sweeps(make_tables(GRADIENT), origin=ORIGIN, uri=uri)
    tables = make_tables(GRADIENT)
    tables["tasks"]["task_id"] = tables["tasks"]["task_id"].str[::-1]
    tables["evaluation_set"]["target"] += 1

    mirrored = mirror_sweeps(tables, origin=ORIGIN, uri=uri)

    assert mirrored == Mirrored(created=2 * len(MODELS), superseded=2 * len(MODELS))
    assert {len(run.inputs.dataset_inputs) for run in runs_of(uri)} == {0, 1}


def test_runs_left_open_are_closed(filled):
    client = MlflowClient(filled)
    experiment = client.get_experiment_by_name(f"steadymap/{STUDY}/gradient")
    stale = client.create_run(experiment.experiment_id, run_name="left open").info.run_id
    cut = current(filled, "gradient")[0].info.run_id
    client.update_run(cut, status="RUNNING")

    mirrored = mirror_sweeps(make_tables(), origin=ORIGIN, uri=filled)

    assert client.get_run(stale).info.status == "KILLED"
    assert client.get_run(cut).info.status == "FINISHED"
    assert mirrored.updated == 1


def test_a_lost_database_is_rebuilt(filled, tmp_path, empty_database):
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    shutil.copy(empty_database, tmp_path / "fresh.db")
    mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=filled)

    mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=fresh)

    assert content(fresh) == content(filled)


def test_a_deleted_experiment_comes_back(filled):
    client = MlflowClient(filled)
    client.delete_experiment(
        client.get_experiment_by_name(f"steadymap/{STUDY}/gradient").experiment_id
    )

    mirror_sweeps(make_tables(), origin=ORIGIN, uri=filled)

    assert len(current(filled)) == N_PARENTS + N_CHILDREN


def test_figures_are_logged_once_and_again_when_they_change_or_vanish(uri, tmp_path):
    sweeps = {("sliding_patch", "SP-S"): SWEEPS["sliding_patch", "SP-S"]}
    picture = tmp_path / "SP-S-draws.png"
    picture.write_bytes(b"one")
    figures = {("SP-S", "googlenet"): [picture]}

    def mirror():
        return mirror_sweeps(make_tables(sweeps), origin=ORIGIN, uri=uri, figures=figures)

    mirror()
    (run,) = [run for run in current(uri) if run.info.run_name == "sliding_patch SP-S googlenet"]
    logged = Path(run.info.artifact_uri.removeprefix("file://"))

    assert mirror().updated == 0
    assert (logged / "figures" / picture.name).read_bytes() == b"one"
    table = json.loads((logged / "per_image.json").read_text())
    assert len(table["data"]) == 3
    assert logged.is_relative_to(tmp_path / "mlartifacts")
    picture.write_bytes(b"two")
    assert mirror().updated == 1
    (logged / "figures" / picture.name).unlink()
    assert mirror().updated == 1
    assert (logged / "figures" / picture.name).read_bytes() == b"two"


@pytest.mark.parametrize("opened_by", ["mirror", "ui", "copy"])
def test_a_moved_store_keeps_its_artifacts_and_writes_inside(
    tmp_path, monkeypatch, opened_by, filled_folder
):
    old, new = tmp_path / "old place", tmp_path / "new"
    uri = copied(filled_folder, old)
    client = MlflowClient(uri, uri)
    elsewhere = (tmp_path / "elsewhere").as_uri()
    client.create_experiment("another's", artifact_location=elsewhere)
    experiment = client.get_experiment_by_name(f"steadymap/{STUDY}/sliding_patch")
    run = next(run for run in current(uri) if run.data.tags.get("artifacts"))
    client.create_registered_model("m")
    client.create_model_version("m", f"{run.info.artifact_uri}/figures", run.info.run_id)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names
    if opened_by == "copy":
        shutil.copytree(old, new)
    else:
        old.rename(new)
    uri = f"sqlite:///{new / 'mlflow.db'}"

    if opened_by == "ui":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        ui.ui_app()
    else:
        mirrored = mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri)
        assert mirrored == Mirrored(unchanged=N_PARENTS + N_CHILDREN)

    client = MlflowClient(uri, uri)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == names
    inside = (new / "mlartifacts").as_uri()
    for found in client.search_runs([experiment.experiment_id]):
        assert found.info.artifact_uri.startswith(inside)
    assert client.get_model_version("m", "1").source.startswith(inside)
    assert client.get_experiment_by_name("another's").artifact_location == elsewhere
    before = sorted(old.rglob("*"))
    changed = mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=uri)
    assert changed.created
    assert changed.updated
    assert sorted(old.rglob("*")) == before
    added = client.create_run(experiment.experiment_id)
    client.log_text(added.info.run_id, "words", "words.txt")
    assert (new / "mlartifacts" / experiment.name / added.info.run_id).is_dir()


def test_training_is_seen_live_and_closed_at_its_end(uri):
    client = MlflowClient(uri)
    for epochs in (1, 2, 3):
        card, curves = make_training(epochs=epochs)
        mirror_training(
            "googlenet-r", card=card, curves=curves, origin=ORIGIN, uri=uri, finished=False
        )
        (run,) = runs_of(uri, "training")
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in history] == list(range(1, epochs + 1))
        assert run.info.status == "RUNNING"
        assert f"epochs: {epochs}" in run.data.tags["mlflow.note.content"]

    mirror_training("googlenet-r", card=finished(card), curves=curves, origin=ORIGIN, uri=uri)
    again = mirror_training(
        "googlenet-r", card=finished(card), curves=curves, origin=ORIGIN, uri=uri
    )
    (run,) = runs_of(uri, "training")

    assert again == Mirrored(unchanged=1)
    assert (run.info.run_name, run.info.status) == ("googlenet-r", "FINISHED")
    assert run.data.metrics["final/robust_accuracy"] == 0.54
    assert run.info.end_time - run.info.start_time == 46_500
    assert run.data.tags["weights_sha256"] == "f" * 64


def test_a_resumed_training_goes_on_in_its_run_and_another_course_gets_another(uri):
    card, curves = make_training()
    mirror_training("googlenet-r", card=card, curves=curves, origin=ORIGIN, uri=uri, finished=False)
    resumed = mirror_training(
        "googlenet-r", card=card, curves=curves[:2], origin=ORIGIN, uri=uri, finished=False
    )
    assert (resumed.created, len(runs_of(uri))) == (0, 1)

    curves.loc[2, "train_loss"] *= 1.1
    other = mirror_training("googlenet-r", card=card, curves=curves, origin=ORIGIN, uri=uri)

    assert other == Mirrored(created=1, superseded=1)
    assert sorted((run.info.run_name, run.info.status) for run in runs_of(uri)) == [
        ("googlenet-r", "FINISHED"),
        ("superseded: googlenet-r", "KILLED"),
    ]


def test_another_recipe_supersedes_the_same_models_run_alone(uri):
    card, curves = make_training()
    for model in MODELS:
        mirror_training(model, card=finished(card), curves=curves, origin=ORIGIN, uri=uri)

    changed = finished(card) | {"recipe_digest": "f" * 16}
    mirrored = mirror_training("googlenet-r", card=changed, curves=curves, origin=ORIGIN, uri=uri)

    assert mirrored == Mirrored(created=1, superseded=1)
    assert sorted(run.info.run_name for run in current(uri)) == sorted(MODELS)


def test_randomization_is_mirrored_beside_the_sweeps(shared, filled_folder):
    runs = runs_of(shared, RANDOMIZATION)
    names = {run.info.run_id: run.info.run_name for run in runs}
    (child,) = [run for run in runs if run.info.run_name == "lime googlenet"]
    history = MlflowClient(shared).get_metric_history(child.info.run_id, "unit/S_same")

    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [point.step for point in history] == [0, 1, 2]
    assert names[child.data.tags["mlflow.parentRunId"]] == "googlenet: parameters randomized"
    for run in runs:
        assert ("mlflow.parentRunId" in run.data.tags) != bool(run.inputs.dataset_inputs)
    assert len(current(shared, RANDOMIZATION)) == N_RANDOMIZED
    swept = [row for row in content(shared) if "randomization_id" not in row[2]]
    assert swept == content(uri_in(filled_folder))


def test_children_of_randomization_can_be_filtered_and_sorted(shared):
    client = MlflowClient(shared)
    name = f"steadymap/{STUDY}/{RANDOMIZATION}"
    experiment = client.get_experiment_by_name(name).experiment_id
    found = client.search_runs(
        [experiment],
        "tags.current = 'true' and params.method != '' and params.model = 'googlenet' "
        "and tags.passes = 'inconclusive'",
        order_by=["metrics.`ssim/S_same` ASC"],
    )
    values = [run.data.metrics["ssim/S_same"] for run in found]

    assert values == sorted(values)
    assert len(values) == (N_RANDOMIZED - len(MODELS)) // len(MODELS)


def test_a_verdict_by_mostly_blank_maps_says_so_as_the_report_does(uri):
    tables = make_randomization()
    ipr = tables["ipr"]
    of_lime = ipr["method"].eq("lime") & ipr["metric"].eq("ssim")
    ipr.loc[of_lime, "passes"] = "yes"
    # Of 48 pairs each: half of them is not yet most.
    ipr.loc[of_lime & ipr["model"].eq("googlenet"), "n_degenerate"] = 25
    ipr.loc[of_lime & ipr["model"].eq("googlenet-r"), "n_degenerate"] = 24
    # What is not passed is not passed by blank maps.
    ipr.loc[ipr["method"].eq("gradient"), "n_degenerate"] = 48

    randomize(uri, tables)
    entries = {run.info.run_name: run.data for run in current(uri, RANDOMIZATION)}

    assert entries["lime googlenet"].tags["passes"] == "yes (blank)"
    assert entries["lime googlenet-r"].tags["passes"] == "yes"
    assert entries["gradient googlenet"].tags["passes"] == "inconclusive"
    for model, hollow in (("googlenet", True), ("googlenet-r", False)):
        parent = entries[f"{model}: parameters randomized"]
        assert parent.metrics["n_passing"] == 1
        for found in (parent, entries[f"lime {model}"]):
            told = "over half of the pairs of maps are degenerate"
            assert (told in found.tags["mlflow.note.content"]) is hollow


@pytest.mark.parametrize(("table", "place"), [("ipr", "S_same"), ("ipr_units", "S_fresh")])
def test_a_changed_number_of_randomization_makes_a_new_run(randomized, table, place):
    before = content(randomized, RANDOMIZATION)
    tables = make_randomization()
    rows = tables[table].query("method == 'lime' and model == 'googlenet' and metric == 'ssim'")
    tables[table].loc[rows.index, place] += 1e-3

    changed = randomize(randomized, tables)
    again = randomize(randomized, tables)
    names = sorted(run.info.run_name for run in runs_of(randomized, RANDOMIZATION, current="false"))

    # The parent shows S_same.
    parent = ["superseded: googlenet: parameters randomized"] if table == "ipr" else []
    assert names == sorted([*parent, "superseded: lime googlenet"])
    assert (changed.created, changed.superseded) == (len(names), len(names))
    assert again == Mirrored(unchanged=N_RANDOMIZED)
    assert len(current(randomized, RANDOMIZATION)) == N_RANDOMIZED
    randomize(randomized)
    assert content(randomized, RANDOMIZATION) == before


def test_another_setting_of_a_method_makes_a_new_run(randomized):
    settings = {**SETTINGS, "lime": {**SETTINGS["lime"], "n_samples": 200}}

    changed = randomize(randomized, settings=settings)

    assert (changed.created, changed.superseded) == (len(MODELS), len(MODELS))
    assert {run.data.params["hp.n_samples"] for run in runs_of(randomized, current="false")} == {
        "100"
    }


@pytest.mark.parametrize("tables", [{}, {"ipr": make_randomization()["ipr"][:0]}])
def test_a_study_that_randomizes_no_more_supersedes_its_runs(randomized, tables):
    assert randomize(randomized, tables) == Mirrored(superseded=N_RANDOMIZED)
    assert randomize(randomized, tables) == Mirrored()
    assert len(current(randomized)) == N_PARENTS + N_CHILDREN


def test_a_killed_mirror_of_randomization_is_completed(randomized):
    before = content(randomized, RANDOMIZATION)
    connection = sqlite3.connect(randomized.removeprefix("sqlite:///"))
    (run,) = [r for r in current(randomized, RANDOMIZATION) if r.info.run_name == "lime googlenet"]
    for table in ("metrics", "latest_metrics"):
        connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run.info.run_id,))
    connection.execute(
        "UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = ?",
        (run.info.run_id,),
    )
    connection.commit()
    connection.close()

    read_or_recompute = randomize(randomized)

    assert read_or_recompute == Mirrored(updated=1, unchanged=N_RANDOMIZED - 1)
    assert content(randomized, RANDOMIZATION) == before


PICTURES = {
    "sliding_patch SP-L googlenet": {"SP-L-measures"},
    "sliding_patch SP-L googlenet-r": {"SP-L-measures"},
    "sliding_patch SP-S googlenet-r": {"SP-S-pictures-googlenet-r"},
    "googlenet: parameters randomized": {
        *("ipr-bars", "ipr-function", "plane", "ipr-pictures-googlenet")
    },
    "googlenet-r: parameters randomized": {
        *("ipr-bars", "ipr-function", "plane", "ipr-units-googlenet-r")
    },
}


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory, empty_database):
    """Files of a study, and a store to which they were mirrored."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(empty_database, folder / "mlflow.db")
    reports, results = folder / "reports", folder / "results"
    claims = pd.DataFrame({"claim": ["1", "2", "3"], "direction": ["holds", "fails", "holds"]})
    claims[["name", "statement", "section", "recipe", "reason"]] = "words"
    tables = {**make_tables(), **make_randomization(), "claims": claims}
    for name, table in tables.items():
        write_table(table, reports / "tables" / f"{name}.csv")
    for name in ("report.html", "report.md"):
        (reports / name).write_text(name)
    (reports / "figures").mkdir()
    for name in {"other", *(name for names in PICTURES.values() for name in names)}:
        (reports / "figures" / f"{name}.png").write_bytes(name.encode())
    write_json(SETTINGS, results / "randomization" / "settings.json")
    for model in MODELS:
        write_json({"clean": 1.0, "min_ssim": 0.25}, reports / "metrics" / f"{model}.json")
        card, curves = make_training(model)
        card["robust"] = model.endswith("-r")
        write_json(finished(card), results / "models" / model / "card.json")
        write_table(curves, results / "models" / model / "curves.csv")
        (results / "models" / model / "weights.safetensors").write_bytes(model.encode())
    mirrored = mirror_files(folder)
    assert mirrored == Mirrored(
        created=N_PARENTS + N_CHILDREN + len(MODELS) + N_RANDOMIZED + N_OTHERS
    )
    return folder


def mirror_files(folder):
    return mirror_study(folder / "reports", folder / "results", origin=ORIGIN, uri=uri_in(folder))


def summary_of(uri):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(f"steadymap/{STUDY}").experiment_id
    (run,) = client.search_runs([experiment], "tags.current = 'true'")
    return run


def test_a_study_is_mirrored_from_its_files_once(study_folder):
    uri = uri_in(study_folder)

    assert mirror_files(study_folder) == Mirrored(
        unchanged=N_PARENTS + N_CHILDREN + len(MODELS) + N_RANDOMIZED + N_OTHERS
    )
    # From memory, before it was rounded on its way through a file, it is the same.
    assert mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri).updated == 0
    assert randomize(uri).updated == 0


def test_figures_belong_to_the_runs_in_their_names(study_folder):
    found = {}
    for run in current(uri_in(study_folder)):
        folder = Path(unquote(urlsplit(run.info.artifact_uri).path)) / "figures"
        if folder.is_dir():
            found[run.info.run_name] = {path.stem for path in folder.iterdir()}

    assert found == PICTURES


def test_notes_link_to_the_run_that_trained_the_model(study_folder):
    trained = {run.info.run_name: run for run in current(uri_in(study_folder), "training")}
    runs = {run.info.run_name: run for run in current(uri_in(study_folder))}

    for run in trained.values():
        (known,) = run.inputs.dataset_inputs
        assert known.dataset.digest == "d" * 32
        assert [tag.value for tag in known.tags] == ["training"]
    run = trained["googlenet"].info
    link = f"[`googlenet`](#/experiments/{run.experiment_id}/runs/{run.run_id})"
    note = runs["sliding_patch SP-L googlenet"].data.tags["mlflow.note.content"]
    assert f"Model: run {link} in" in note


def test_one_run_sums_a_study_up_with_its_report(study_folder):
    uri = uri_in(study_folder)

    run = summary_of(uri)

    assert run.info.run_name == f"{STUDY}: summary"
    assert run.data.metrics["googlenet-r/min_ssim"] == 0.25
    assert run.data.metrics["claims/holds"] == 2
    assert run.data.params["models"] == "googlenet, googlenet-r"
    assert "artifact `report.html`" in run.data.tags["mlflow.note.content"]
    files = MlflowClient(uri).list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["report.html"]


def test_robust_models_are_registered_with_weights_and_card(study_folder):
    uri = uri_in(study_folder)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    registered = {found.name for found in client.search_registered_models()}

    robust = [model for model in MODELS if model.endswith("-r")]
    assert registered == {f"steadymap.{STUDY}.{model}" for model in robust}
    for model in robust:
        version = client.get_model_version_by_alias(f"steadymap.{STUDY}.{model}", "current")
        folder = Path(unquote(urlsplit(version.source).path))
        assert (folder / "weights.safetensors").read_bytes() == model.encode()
        assert read_json(folder / "card.json") == finished(make_training(model)[0])
        assert str(version.version) == "1"
        assert client.get_run(version.run_id).info.run_name == model


def test_changed_files_change_their_runs(study_folder, tmp_path, monkeypatch):
    uri = copied(study_folder, tmp_path)
    reports, model = tmp_path / "reports", "googlenet-r"
    write_json({"clean": 1.0, "min_ssim": 0.5}, reports / "metrics" / "googlenet.json")
    monkeypatch.setattr(summary, "_MAX_PAGE_BYTES", 1)
    card = finished(make_training(model)[0]) | {"weights_sha256": "other"}
    write_json(card, tmp_path / "results" / "models" / model / "card.json")
    for name in ("ipr", "ipr_units"):
        (reports / "tables" / f"{name}.csv").unlink()

    mirrored = mirror_files(tmp_path)

    assert (mirrored.created, mirrored.superseded) == (0, N_RANDOMIZED)
    run = summary_of(uri)
    assert run.data.metrics["googlenet/min_ssim"] == 0.5
    assert "artifact `report.md`" in run.data.tags["mlflow.note.content"]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    name = f"steadymap.{STUDY}.{model}"
    assert str(client.get_model_version_by_alias(name, "current").version) == "2"


def test_randomization_without_its_settings_is_reported(uri, tmp_path):
    tables = {**make_tables(), **make_randomization()}
    for name, table in tables.items():
        write_table(table, tmp_path / "tables" / f"{name}.csv")

    with pytest.raises(FileNotFoundError, match=r"randomization/settings\.json: no such file"):
        mirror_study(tmp_path, tmp_path / "results", origin=ORIGIN, uri=uri)


def test_a_locked_database_is_reported(filled, monkeypatch):
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.1)
    other = sqlite3.connect(filled.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(TrackingError, match=r"mlflow\.db: database is locked; end the other"):
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=filled)
    other.close()


def test_a_broken_database_is_reported(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)

    with pytest.raises(TrackingError, match="file is not a database; move the file away"):
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("left", [None, b""])
def test_a_database_whose_making_was_cut_short_is_made_anew(tmp_path, monkeypatch, left):
    uri, path = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db"
    if left is not None:
        path.write_bytes(left)

    def killed(engine):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.store.db.utils, "_upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri)
    assert [each.name for each in tmp_path.iterdir()] == ([] if left is None else ["mlflow.db"])

    assert mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri).created
    assert not list(tmp_path.glob(".*"))


def test_half_made_tables_are_named(tmp_path, monkeypatch):
    """As MLflow alone leaves them when it is killed."""
    uri, path = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db"

    def killed(engine):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.store.db.utils, "_upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            SqlAlchemyStore(uri, str(tmp_path))
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE webhooks (id INTEGER)")

    with pytest.raises(TrackingError, match="webhooks already exists; move the file away"):
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri)


def test_a_read_only_database_is_reported(filled, tmp_path, monkeypatch):
    # MLflow takes the whole address for a path, and makes its folder where it stands.
    monkeypatch.chdir(tmp_path)
    path = filled.removeprefix("sqlite:///")
    client = f"sqlite:///file:{path}?mode=ro&uri=true"

    with pytest.raises(TrackingError, match="readonly database; make the file and its folder"):
        mirror_sweeps(make_tables(CHANGED), origin=ORIGIN, uri=client)


def test_a_folder_that_cannot_be_is_reported(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(TrackingError, match="writable, or set MLFLOW_TRACKING_URI"):
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=f"sqlite:///{tmp_path}/file/mlflow.db")


def test_an_absent_server_is_reported_without_its_password():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://somebody:secret@127.0.0.1:{port}"

    with pytest.raises(TrackingError, match=r"somebody:\*\*\*@.* refused; start that") as caught:
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=uri)

    assert "secret" not in str(caught.value)


def test_files_are_no_store_any_more(tmp_path):
    with pytest.raises(TrackingError, match="plain files; set MLFLOW_TRACKING_URI to sqlite"):
        mirror_sweeps(make_tables(), origin=ORIGIN, uri=str(tmp_path / "mlruns"))


def test_origin_knows_commit_and_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "score@smoothgrad")
    assert Origin.here(STUDY) == Origin(STUDY, "unknown", False, "score@smoothgrad")

    def git(*arguments):
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "reports").mkdir()
    for name in ("params.yaml", "reports/table.csv", "dvc.lock"):
        (tmp_path / name).write_text("1\n")
    git("add", "-A")
    git("commit", "-m", "all")
    (tmp_path / "reports" / "table.csv").write_text("2\n")
    (tmp_path / "dvc.lock").write_text("2\n")
    assert not Origin.here(STUDY).dirty

    (tmp_path / "params.yaml").write_text("2\n")

    assert Origin.here(STUDY).dirty
    assert len(Origin.here(STUDY).git_commit) == 40


def test_uri_comes_from_the_argument_the_environment_or_the_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert store.tracking_uri() == f"sqlite:///{tmp_path.resolve()}/mlflow.db"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")

    assert store.tracking_uri() == "sqlite:///elsewhere.db"
    assert store.tracking_uri("http://there") == "http://there"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////nowhere/mlflow.db", "no such file yet; fill it by `make repro`"),
        ("http://there", "a server with a UI of its own; open it in a browser"),
    ],
)
def test_ui_says_why_it_has_nothing_to_show(uri, message, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    with pytest.raises(SystemExit, match=message):
        ui.main(["ui"])


def test_ui_shows_the_runs_from_one_process_on_this_machine_alone(filled, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", filled)
    server = subprocess.Popen(
        [sys.executable, "-m", "steadymap.tracking", "ui", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        front = server.stdout.readline()
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
                break
            except OSError:
                time.sleep(0.1)
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=10"
        found = json.load(urllib.request.urlopen(url))
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        others = children.read_text() if children.exists() else ""
        with pytest.raises(SystemExit, match=f"port {port}: address already in use; choose"):
            ui.main(["ui", "--port", str(port)])
        server.send_signal(signal.SIGINT)
        code = server.wait(20)
    finally:
        server.kill()

    assert f"http://127.0.0.1:{port}/#/experiments" in front
    assert f"steadymap/{STUDY}/smoothgrad" in {row["name"] for row in found["experiments"]}
    assert others == ""
    assert code == 0
