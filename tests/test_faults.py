"""A fault at any write leaves nothing half written, and the next run ends in the same bytes."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from conftest import ROOT, Tiny, write_model
from mlflow_tables import SWEEPS as MIRRORED_SWEEPS
from mlflow_tables import make_tables, mirror_sweeps
from steadymap.engine import runner, selection
from steadymap.models import registry
from steadymap.params.checks import overlay, validate
from steadymap.params.files import read_yaml
from steadymap.params.schema import EvaluationSet, Recipe, RobustAccuracy
from steadymap.report import build
from steadymap.store import atomic
from steadymap.store import tables as store_tables
from steadymap.store.atomic import StorageError
from steadymap.store.tables import write_table
from steadymap.store.task_cache import TaskCache
from steadymap.tracking import store
from steadymap.tracking.writer import Origin
from steadymap.training import loop
from synthetic_study import SWEEPS, write_study
from synthetic_study import Study as Made

NAMES = ("googlenet", "googlenet-r")
FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
FAULTS = [FULL, READ_ONLY, KeyboardInterrupt(), SystemExit(143)]


def content(folder):
    """Bytes of every file by name; nothing temporary may be among them."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
    assert not [name for name in found if ".tmp" in name]
    return found


class Faulty:
    """A function that raises at one of its calls, before or halfway through what it does."""

    def __init__(self, function, fault, at=1):
        self.function, self.fault, self.at, self.calls = function, fault, at, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.fault
        return self.function(*arguments, **options)

    def __get__(self, owner, kind=None):
        return self if owner is None else partial(self, owner)


@pytest.fixture(scope="module")
def values():
    return overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    ) | {"engine": {"kind": "in_process"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, embedded, values):
    """Models, evaluation set and data where a study keeps them; tests copy them or only read."""
    root = tmp_path_factory.mktemp("place")
    # Where stages of their own look for it.
    shutil.copy(ROOT / "tests" / "small_network.py", root)
    results = root / "results" / "tiny"
    for seed, name in enumerate(NAMES):
        classes = list(embedded.classes)
        write_model(results / "models" / name, model=name, classes=classes, seed=seed)
    rule = EvaluationSet(rule="any", target="label", n_images=9, seed=0)
    labels = embedded.rows("val")["label"].to_numpy()
    embedded.write(results / "data")
    chosen = selection.choose(rule, embedded, dict.fromkeys(NAMES, labels))
    selection.write(chosen, embedded, results / "evaluation_set")
    return root


def attributed(place, values, out, monkeypatch, method="gradient"):
    """What the attribute stage does, in-process."""
    monkeypatch.chdir(place)
    params = validate(values)
    plan = runner.study_plan(method, params)
    cache, run_context = TaskCache(out / "cache"), runner.RunContext.of(params)
    ran = runner.run(plan.tasks, cache=cache, run_context=run_context, title=method)
    runner.assemble(method, plan, cache=cache, run_context=run_context, folder=out / "maps")
    return ran


@pytest.fixture(scope="module")
def undisturbed(place, values, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        ran = attributed(place, values, out, patch)
    return content(out), ran.executed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("at", ["before", "halfway", "rename"])
def test_a_fault_in_a_cache_write(place, values, undisturbed, tmp_path, monkeypatch, fault, at):
    expected, n_tasks = undisturbed
    with monkeypatch.context() as patch:
        if at == "rename":
            patch.setattr(os, "replace", Faulty(os.replace, fault, 3))
        else:
            savez = np.savez

            def broken(file, **arrays):
                if at == "halfway":
                    file.write(b"PK half of an entry")
                raise fault

            calls = []

            def third(file, **arrays):
                calls.append(file)
                return (broken if len(calls) == 3 else savez)(file, **arrays)

            patch.setattr(np, "savez", third)
        with pytest.raises((StorageError, KeyboardInterrupt, SystemExit)) as caught:
            attributed(place, values, tmp_path, monkeypatch)
    if isinstance(fault, OSError):
        assert "/cache/" in str(caught.value)
        assert f"{fault.strerror}; nothing of it was written" in str(caught.value)
        assert ("make clean-cache" if fault is FULL else "mount its folder") in str(caught.value)
    stored = content(tmp_path)
    assert stored == {name: expected[name] for name in stored}
    assert len(stored) == 2

    ran = attributed(place, values, tmp_path, monkeypatch)

    assert (ran.executed, ran.cached) == (n_tasks - 2, 2)
    assert content(tmp_path) == expected


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_in_the_archive_of_maps(place, values, undisturbed, tmp_path, monkeypatch, fault):
    """At each rename in turn; an archive that is there stays until another replaces it."""
    expected, _ = undisturbed
    attributed(place, values, tmp_path, monkeypatch)
    for at in range(1, 6):
        faulty = Faulty(os.replace, fault, at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", faulty)
            try:
                attributed(place, values, tmp_path, monkeypatch)
            except (StorageError, KeyboardInterrupt, SystemExit):
                assert faulty.calls >= at
            else:
                assert faulty.calls < at
                assert at > 3
        assert content(tmp_path) == expected


def test_a_damaged_entry_is_named_and_computed_again(
    place, values, undisturbed, tmp_path, monkeypatch, caplog
):
    attributed(place, values, tmp_path, monkeypatch)
    for size, path in zip(
        (0, 100, 4000), sorted((tmp_path / "cache").rglob("*.npz")), strict=False
    ):
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(FileNotFoundError, match=f"{path.stem}.npz: gone or damaged since"):
            attributed(place, values, tmp_path, monkeypatch)
        assert f"{path.stem}.npz: damaged (" in caplog.text

        ran = attributed(place, values, tmp_path, monkeypatch)

        assert ran.executed == 1
        assert content(tmp_path) == undisturbed[0]


def test_any_number_of_damaged_entries_takes_one_run(place, values, tmp_path, monkeypatch, caplog):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    params, cache = validate(values), TaskCache(tmp_path / "cache")
    first = runner.attribute("smoothgrad", params, cache=cache)
    expected = content(tmp_path)
    damaged = sorted((tmp_path / "cache").rglob("*.npz"))[::3]
    for path in damaged:
        path.write_bytes(b"PK")

    again = runner.attribute("smoothgrad", params, cache=cache)

    assert len(damaged) > 2
    assert all(f"{path.stem}.npz: damaged (" in caplog.text for path in damaged)
    assert again.executed + again.cached == first.executed
    assert 0 < again.executed <= len(damaged)
    assert content(tmp_path) == expected


def test_an_entry_that_is_lost_again_is_named(place, values, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    params, cache = validate(values), TaskCache(tmp_path / "cache")
    monkeypatch.setattr(TaskCache, "read", lambda self, key: None)

    with pytest.raises(runner.EntryLostError, match=r"npz: gone or damaged since it was computed"):
        runner.attribute("gradient", params, cache=cache)


def test_a_cache_that_became_read_only_is_still_read(
    place, values, undisturbed, tmp_path, monkeypatch
):
    attributed(place, values, tmp_path, monkeypatch)
    monkeypatch.setattr(TaskCache, "write", Faulty(TaskCache.write, READ_ONLY))

    assert attributed(place, values, tmp_path, monkeypatch).executed == 0
    assert content(tmp_path) == undisturbed[0]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize("at", ["halfway", "rename"])
def test_a_fault_in_a_table(tmp_path, monkeypatch, fault, name, at):
    old, new = pd.DataFrame({"a": [1.0, 2.0]}), pd.DataFrame({"a": [3.0, 4.0]})
    path = tmp_path / name
    write_table(old, path)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        if at == "rename":
            patch.setattr(os, "replace", Faulty(os.replace, fault))
        else:

            def half(frame, path, **options):
                Path(path).write_bytes(b"a\n3")
                raise fault

            patch.setattr(pd.DataFrame, f"to_{path.suffix[1:]}", half)
        with pytest.raises((StorageError, KeyboardInterrupt, SystemExit)) as caught:
            write_table(new, path)
    assert content(tmp_path) == before
    if isinstance(fault, OSError):
        assert str(caught.value).startswith(f"{path}: {fault.strerror}; nothing of it was written")

    write_table(new, path)

    assert store_tables.read_table(path)["a"].tolist() == [3.0, 4.0]


@pytest.fixture(scope="module", params=["limit", "disk"])
def full(request, tmp_path_factory):
    """What every writer says of a real limit: on the size of files, or a disk of a megabyte."""
    folder = tmp_path_factory.mktemp("full")
    command = [sys.executable, str(ROOT / "tests" / "full_disk.py"), str(folder)]
    if request.param == "limit":
        command.append("1000000")
    else:
        mounting = f"mount -t tmpfs -o size=1m none {folder}"
        if subprocess.run(["unshare", "-rm", "sh", "-c", mounting], check=False).returncode:
            pytest.skip("mounting a file system is not permitted here")
        command = ["unshare", "-rm", "sh", "-c", f'{mounting} && "$@"', "sh", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # Not killed by a signal either, as who writes to a mapping is.
    assert found.returncode == 0, found.stderr
    return request.param, folder, json.loads(found.stdout)


@pytest.mark.parametrize(
    ("writer", "name", "tells"),
    [
        ("cache", "ab/abab", True),
        ("csv", "t.csv", True),
        ("parquet", "t.parquet", True),
        ("text", "j.json", True),
        ("maps", "lime", True),
        ("weights", "model", True),
        # NumPy and PyTorch do not say why a write was cut short.
        ("evaluation_set", "evaluation_set", False),
        ("dataset", "data", False),
        ("inputs", "noise", False),
        ("checkpoint", "checkpoint.pt", False),
    ],
)
def test_a_disk_that_is_full_is_named_by_every_writer(full, writer, name, tells):
    kind, folder, found = full
    reason, remedy = {
        "limit": ("File too large", "raise the limit on the size of files"),
        "disk": ("No space left on device", "free some space (`make clean-cache`"),
    }[kind]
    if not tells:
        reason, remedy = "it could not be written to its end (", "free some space (`make clean-"

    error, text = found["said"][writer]

    assert error == "StorageError"
    assert text.startswith(f"{folder / name}")
    assert reason in text
    assert "nothing of it was written and finished tasks are kept: " + remedy in text
    assert found["left"] == []


def test_another_fault_while_writing_stays_what_it_is(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"^shapes differ$"),
        atomic.atomic_file(tmp_path / "a"),
    ):
        raise RuntimeError("shapes differ")


THREAT = RobustAccuracy(norm="l2", eps=0.5, step_size=0.2, steps=2, n_images=16)


def trained(embedded, folder):
    loop.train(
        loop.TrainingSpec(
            "googlenet", Recipe(epochs=2, batch_size=16, learning_rate=0.05), embedded, THREAT
        ),
        folder / "googlenet",
        cache=folder / "cache",
        device="cpu",
    )
    return content(folder)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_in_a_checkpoint(embedded, tmp_path, monkeypatch, fault):
    """In the second epoch's, halfway: the first one's is kept and training goes on from there."""
    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Tiny)
    expected = trained(embedded, tmp_path / "undisturbed")
    save, epochs = torch.save, []

    def half(state, path):
        epochs.append(len(state["rows"]))
        save(state, path)
        if len(epochs) == 2:
            os.truncate(path, 1000)
            raise fault

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises((StorageError, KeyboardInterrupt, SystemExit)):
        trained(embedded, tmp_path / "disturbed")
    left = content(tmp_path / "disturbed")
    assert [name.split(".", 1)[1] for name in left] == ["checkpoint.pt"]

    assert trained(embedded, tmp_path / "disturbed") == expected
    assert epochs == [1, 2, 2]


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied"])
def test_a_damaged_checkpoint_is_named_and_training_begins_anew(
    embedded, tmp_path, monkeypatch, caplog, damage
):
    monkeypatch.setitem(registry.CONSTRUCTORS, "googlenet", Tiny)
    expected = trained(embedded, tmp_path / "undisturbed")
    save, epochs = torch.save, []

    def stopped(state, path):
        epochs.append(len(state["rows"]))
        save(state, path)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(embedded, tmp_path / "disturbed")
    (path,) = (tmp_path / "disturbed").rglob("*.checkpoint.pt")
    written = path.read_bytes()
    middle = len(written) // 2
    flipped = written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :]
    path.write_bytes({"changed": flipped, "cut": written[:middle], "emptied": b""}[damage])

    with caplog.at_level("WARNING", logger="steadymap.training.loop"):
        assert trained(embedded, tmp_path / "disturbed") == expected
    assert f"{path}: damaged" in caplog.text
    assert "training begins anew" in caplog.text
    assert epochs == [1, 2, 1, 2]


def test_a_fault_in_the_report(tmp_path, monkeypatch):
    made = Made(models=("googlenet",), sweeps=SWEEPS[2:3], n_images=3)
    reports, results = write_study(tmp_path / "study", made)
    before = content(reports)
    # What writes a figure is tried, not what renders it.
    dot = Image.new("RGB", (1, 1))
    monkeypatch.setattr(Figure, "savefig", lambda self, raw, **options: dot.save(raw, "PNG"))

    def built():
        build.build(reports, results, study="toy", profile={})
        return content(reports)

    whole = Faulty(os.replace, None, at=-1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", whole)
        expected = built()
    for name in expected.keys() - before.keys():
        (reports / name).unlink()
    # The first figure, the last file, and one between.
    for at, fault in ((1, READ_ONLY), (whole.calls, SystemExit(143)), (3, KeyboardInterrupt())):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Faulty(os.replace, fault, at))
            with pytest.raises((StorageError, KeyboardInterrupt, SystemExit)):
                built()
        left = content(reports)
        assert left == {name: expected[name] for name in left}
        assert left != expected

    assert built() == expected


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def mirrored(path):
    """Runs that the database holds, ids and times aside."""
    query = """
        select runs.name, runs.status, metrics.key, metrics.value from runs
        left join latest_metrics metrics on metrics.run_uuid = runs.run_uuid
    """
    with sqlite3.connect(path) as database:
        # Runs of different models have equal names.
        return sorted(database.execute(query).fetchall(), key=str)


@pytest.mark.parametrize(
    ("at", "fault"),
    [
        (1, OSError("disk")),
        (5, sqlite3.OperationalError("database or disk is full")),
        (8, KeyboardInterrupt()),
    ],
    ids=["first", "fifth", "eighth"],
)
def test_a_fault_in_mlflow(empty_database, tmp_path, monkeypatch, at, fault):
    sweep = ("smoothgrad", "SG-N")
    tables, origin = make_tables({sweep: MIRRORED_SWEEPS[sweep]}), Origin("toy")
    whole, path = tmp_path / "whole.db", tmp_path / "mlflow.db"
    for target in (whole, path):
        shutil.copy(empty_database, target)
    mirror_sweeps(tables, origin=origin, uri=f"sqlite:///{whole}")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", Faulty(MlflowClient.log_batch, fault, at))
        with pytest.raises((store.TrackingError, KeyboardInterrupt)) as caught:
            mirror_sweeps(tables, origin=origin, uri=f"sqlite:///{path}")
    if "full" in str(fault):
        assert f"MLflow store sqlite:///{path}: database or disk is full; free" in str(caught.value)

    mirror_sweeps(tables, origin=origin, uri=f"sqlite:///{path}")

    assert mirrored(path) == mirrored(whole)


def stage(root, script, *arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "stages" / f"{script}.py"), *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    line = next(line for line in output.splitlines() if " tasks executed, " in line)
    words = line.split(": ", 1)[1].split()
    return int(words[0]), int(words[3])


def killed(root, script, *arguments, after):
    """Kill a stage once its cache holds some entries; how many it held at last."""
    process, cache = stage(root, script, *arguments), root / ".cache" / "tasks"
    while len(list(cache.rglob("*.npz"))) < after and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return len(list(cache.rglob("*.npz")))


@pytest.mark.parametrize(
    ("script", "arguments", "out"),
    [
        ("attribute", ["sliding_patch"], "maps/sliding_patch"),
        pytest.param("randomize", [], "randomization", marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_is_killed_goes_on_from_what_it_finished(
    place, values, tmp_path, script, arguments, out
):
    values = overlay(
        values,
        {
            "sweeps": {"sliding_patch": {"SP-L": {"values": [3, 5, 7, 9, 11], "reference": 9}}},
            "randomization": {
                "methods": dict.fromkeys(["smoothgrad", "lime", "deeplift"]),
                "models": ["googlenet"],
                "n_draws": 4,
            },
        },
    )
    roots = [tmp_path / "whole", tmp_path / "killed"]
    for root in roots:
        shutil.copytree(place, root)
        (root / "params.yaml").write_text(yaml.safe_dump(values))

    held = killed(roots[1], script, *arguments, after=4)
    assert not (roots[1] / "results" / "tiny" / out).exists()
    again = finished(stage(roots[1], script, *arguments))
    whole = finished(stage(roots[0], script, *arguments))

    total = sum(whole)
    assert 4 <= held < total
    assert again == (total - held, held)
    expected, found = (content(root / "results" / "tiny" / out) for root in roots)
    assert found == expected
