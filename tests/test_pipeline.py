"""The pipeline as a user runs it: DVC, stages in processes of their own, a study from params."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from steadymap.params.files import profile
from steadymap.store.atomic import atomic_file, write_json
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table

KEPT = (
    "src",
    "stages",
    "profiles",
    "dvc.yaml",
    "pyproject.toml",
    ".dvc",
    ".dvcignore",
    ".gitignore",
)


def environment(checkout):
    """Variables in which stages see the checkout's own package, and little else of the caller's."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("DVC", "MLFLOW"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout / "src"),
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }


def call(checkout, *command):
    return subprocess.run(
        command,
        cwd=checkout,
        env=environment(checkout),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def repro(checkout):
    found = call(checkout, "dvc", "repro")
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout + found.stderr


def executed(output):
    """Tasks executed by each attribute stage that ran, by `search`, `compare`, `randomize`."""
    lines = [line for line in output.splitlines() if " executed, " in line]
    return {line.split(":")[0].split()[-1]: int(line.split(": ")[1].split()[0]) for line in lines}


# Each takes three stages, and a stage takes seconds to start; their code runs in tests of its own.
LEFT_OUT = ("input_x_gradient", "integrated_gradients", "guided_backprop")


def write_params(checkout):
    """The tiny study's params, with fewer methods."""
    values = yaml.safe_load(profile("tiny", ROOT / "profiles"))
    values["methods"] = [name for name in values["methods"] if name not in LEFT_OUT]
    for name in LEFT_OUT:
        del values["sweeps"][name]
    values["comparisons"]["denoising"] = values["comparisons"]["denoising"][:1]
    (checkout / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def checked_out(folder):
    """A git checkout of the product with params."""
    folder.mkdir()
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp", "*.local")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    write_params(folder)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "start"]):
        assert call(folder, "git", *command).returncode == 0
    return folder


def change(checkout, edit):
    path = checkout / "params.yaml"
    values = yaml.safe_load(path.read_text())
    edit(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def children(checkout):
    """(parent, name, current) of the sweep runs that MLflow holds."""
    query = """
        select parent.name, child.name, current.value from runs child
        join tags link on link.run_uuid = child.run_uuid and link.key = 'mlflow.parentRunId'
        join runs parent on parent.run_uuid = link.value
        join tags current on current.run_uuid = child.run_uuid and current.key = 'current'
    """
    with sqlite3.connect(checkout / "mlflow.db") as database:
        return set(database.execute(query).fetchall())


def tables(checkout, study="tiny"):
    folder = checkout / "reports" / study
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_dvc_runs_what_a_change_asks_for_and_no_more(tmp_path):
    """One model and one sweep up to its scores: first, again, and after a change of a value."""
    checkout = checked_out(tmp_path / "checkout")

    def little(values):
        values["models"] = {"regular": ["googlenet"], "robust": []}
        del values["training"]["googlenet-r"]
        values["methods"] = ["sliding_patch"]
        values["sweeps"] = {"sliding_patch": values["sweeps"]["sliding_patch"]}
        values |= {"search": {}, "comparisons": {}, "randomization": {}}

    def scored():
        found = call(checkout, "dvc", "repro", "score")
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
        return executed(found.stdout), set(re.findall(r"Running stage '(\w+)", found.stdout))

    change(checkout, little)
    computed, started = scored()
    # Two settings that share no pass, of two blocks.
    assert computed == {"sliding_patch": 4}
    assert started == {"fetch", "train", "evaluation_set", "own", "attribute", "score"}
    table = checkout / "results" / "tiny" / "scores" / "sliding_patch.parquet"
    before = read_table(table)
    assert set(before["value"]) == {"5", "9"}

    assert scored() == ({}, {"own"})

    def other_patch(values):
        values["sweeps"]["sliding_patch"]["SP-L"]["values"] = [7, 9]

    change(checkout, other_patch)
    assert scored() == ({"sliding_patch": 2}, {"own", "attribute", "score"})
    assert set(read_table(table)["value"]) == {"7", "9"}
    assert {path.name for path in (checkout / "results" / "tiny").iterdir()} == {
        *("data", "models", "evaluation_set", "own", "maps", "scores")
    }


@pytest.mark.slow
def test_the_pipeline_end_to_end(tmp_path):
    """Run, run again, change one value, come back: each computes what it must and no more."""
    checkout = checked_out(tmp_path / "checkout")

    first = repro(checkout)

    reports, results = checkout / "reports" / "tiny", checkout / "results" / "tiny"
    assert executed(first) == {
        "gradient": 4,
        "smoothgrad": 20,
        "sliding_patch": 8,
        "lime": 12,
        "meaningful_perturbation": 12,
        "search": 10,
        # Noise, objects, the teaser; converged maps of SmoothGrad and MP; LIME's is in its sweep.
        "compare": 8 + 8,
        "randomize": 42,
    }
    sensitivity = read_table(reports / "tables" / "sensitivity.csv")
    assert " ".join(sensitivity) == (
        "sweep method hyperparameter model metric convention draws n_images n_settings mean "
        "ci_low ci_high std_rms std_mean mean_all n_degenerate n_inverted chance chance_low "
        "chance_high relative relative_low relative_high values"
    )
    assert set(sensitivity["sweep"]) == {
        *("default", "SG-N", "SG-sigma", "SP-L", "LIME-N", "LIME-S", "MP-N", "MP-seed")
    }
    assert {"insertion", "deletion", "localization_error"} <= set(sensitivity["metric"])
    claims = read_table(reports / "tables" / "claims.csv")
    assert {str(number) for number in range(1, 24)} <= set(claims["claim"])
    table = read_table(reports / "tables" / "ipr.csv")
    assert set(table["method"]) == {"gradient", "guided_backprop", "deeplift", "lime", "smoothgrad"}
    assert set(table["passes"]) <= {"yes", "no", "inconclusive", ""}
    assert set(table.loc[table["method"] == "gradient", "floor"]) == {0}
    assert set(sensitivity["draws"]) == {"none", "nested", "independent"}
    structure = read_table(reports / "tables" / "structure.csv")
    assert set(structure["metric"]) == {"edge_correlation", "autocorrelation", "mass_inside"}
    scores = read_table(results / "scores.parquet")
    assert " ".join(scores) == (
        "sweep method model hyperparameter value image_id metric convention draws score degenerate "
        "inverted"
    )
    maps = Maps(results / "maps" / "smoothgrad")
    assert maps.read("googlenet-r", maps.settings[0]).shape == (9, 32, 32)
    trials = read_table(reports / "tables" / "search.csv")
    assert list(trials["state"]) == ["reference", *["complete"] * 4]
    importances = read_table(reports / "tables" / "importances.csv")
    assert set(importances["evaluator"]) == {"fanova", "ped_anova"}
    assert set(read_table(reports / "tables" / "claims.csv")["direction"]) <= {
        *("holds", "fails", "inconclusive", "not resolved", "not measurable here")
    }
    assert "Optuna studies: 15 written, 0 unchanged, 0 deleted" in first
    page = (reports / "report.html").read_text()
    assert "SG-sigma" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "SG-sigma" in (reports / "report.md").read_text()
    metrics = json.loads((reports / "all_metrics.json").read_text())
    assert set(metrics["ssim"]["SP-L"]) == {"googlenet", "googlenet-r"}
    shown = json.loads(call(checkout, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert set(shown) == {f"reports/tiny/metrics/{name}.json" for name in metrics["accuracy"]}
    runs = children(checkout)
    assert ("sliding_patch SP-L googlenet-r", "patch_size=5 googlenet-r", "true") in runs
    assert {current for *_, current in runs} == {"true"}
    found = {name for parent, name, _ in runs if parent == "smoothgrad SG-worst googlenet"}
    assert len(found) == 4
    assert sum(name.endswith(" (best)") for name in found) == 1
    # Nothing but what git is meant to keep is new to git.
    status = call(checkout, "git", "status", "--short", "-uall").stdout.split("\n")
    new = {line[3:] for line in status if line}
    assert all(name == "dvc.lock" or name.startswith("reports/tiny/") for name in new)
    assert "reports/tiny/report.html" not in new

    assert call(checkout, sys.executable, "stages/provenance.py").returncode == 0
    assert (reports / "dvc.lock").read_bytes() == (checkout / "dvc.lock").read_bytes()
    gate = [sys.executable, "stages/check.py", "--baseline", "reports/tiny"]
    assert call(checkout, *gate).returncode == 0
    before = tables(checkout)
    plan = call(checkout, sys.executable, "stages/plan.py")
    (planned,) = re.findall(r"^(\d+) of \d+ tasks to run", plan.stdout, re.MULTILINE)
    assert planned == "0", plan.stdout
    again = repro(checkout)
    assert executed(again) == {}
    assert "Running stage 'track'" in again
    assert "0 created, 0 updated" in again
    assert "Optuna studies: 0 written, 15 unchanged, 0 deleted" in again
    assert tables(checkout) == before

    def other_patch(values):
        values["sweeps"]["sliding_patch"]["SP-L"]["values"] = [7, 9]

    change(checkout, other_patch)
    trials.loc[trials["trial"] == 2, "state"] = "failed"
    write_table(trials, results / "search" / "search.csv")
    stale = call(checkout, *gate)
    assert stale.returncode == 2
    found = re.findall(r"^- `params.yaml: sweeps.*", stale.stdout, re.MULTILINE)
    assert "- `params.yaml: sweeps.sliding_patch` (accuracy, attribute, score)" in found
    changed = repro(checkout)
    # One model has two blocks; the other methods do not even start. DVC would restore the search
    # that it knows; the count of attempts makes it look again.
    assert executed(changed) == {"sliding_patch": 4, "search": 0, "compare": 0}
    assert tables(checkout)["tables/search.csv"] == before["tables/search.csv"]
    added = {
        (parent, name) for parent, name, current in children(checkout) - runs if current == "true"
    }
    assert added == {
        ("sliding_patch SP-L googlenet", "patch_size=7 googlenet"),
        ("sliding_patch SP-L googlenet-r", "patch_size=7 googlenet-r"),
    }

    (checkout / "mlflow.db").unlink()
    shutil.rmtree(checkout / "mlartifacts")
    write_params(checkout)
    back = repro(checkout)
    assert sum(executed(back).values()) == 0
    assert children(checkout) == runs
    (reports / "dvc.lock").write_bytes(before["dvc.lock"])
    assert tables(checkout) == before


@pytest.mark.parametrize("held_by", ["cut off", "a dead process", "a zombie", "us"])
def test_a_lock_file_that_a_kill_left_behind_is_removed(tmp_path, held_by):
    (tmp_path / "src").symlink_to(ROOT / "src")
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    if held_by == "a dead process":
        dead.wait()
    else:
        time.sleep(0.5)  # ended, and not collected while we run
    pid = os.getpid() if held_by == "us" else dead.pid
    text = json.dumps({"results/data": {"write": {"pid": pid, "cmd": "dvc repro"}, "read": []}})
    lock.write_text(text[:20] if held_by == "cut off" else text)

    found = call(tmp_path, sys.executable, str(ROOT / "stages" / "unlock.py"))

    dead.wait()
    assert found.returncode == 0
    assert lock.exists() == (held_by == "us")
    assert ("rwlock: left behind by a kill, removed" in found.stdout) == (held_by != "us")


@pytest.mark.parametrize("dvc", ["none", "living"])
def test_half_written_files_that_a_kill_left_are_removed(tmp_path, dvc):
    (tmp_path / "src").symlink_to(ROOT / "src")
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    folder, cache = tmp_path / "results" / "s" / "models", tmp_path / ".cache" / "tasks" / "ab"
    half = folder / f".m.{dead.pid}-0123abcd.tmp"
    half.mkdir(parents=True)
    (half / "weights").touch()
    cache.mkdir(parents=True)
    tables = tmp_path / "reports" / "s" / "tables"
    tables.mkdir(parents=True)
    others = [
        cache / f".ab.npz.{dead.pid}-0123abcd.tmp",
        cache / f".{dead.pid}-{'0' * 16}.shared",
        tables / f".claims.csv.{dead.pid}-0123abcd.tmp",
        tmp_path / f".mlflow.db.{dead.pid}-0123abcd.tmp",
        tmp_path / f".mlflow.db.{dead.pid}-0123abcd.tmp-journal",
    ]
    kept = [
        tmp_path / f".mlflow.db.{os.getpid()}-0123abcd.tmp",
        tmp_path / "notes" / f".kept.{dead.pid}-0123abcd.tmp",
        *(cache / f".ab.npz.{os.getpid()}-0123abcd.tmp", cache / "ab.npz"),
        *(folder / "card.json", tables / "claims.csv"),
    ]
    (tmp_path / "notes").mkdir()
    for path in [*others, *kept]:
        path.touch()
    if dvc == "living":
        lock = tmp_path / ".dvc" / "tmp" / "rwlock"
        lock.parent.mkdir(parents=True)
        lock.write_text(json.dumps({"out": {"write": {"pid": os.getpid(), "cmd": "x"}}}))

    found = call(tmp_path, sys.executable, str(ROOT / "stages" / "unlock.py"))

    assert found.returncode == 0, found.stderr
    assert all(path.exists() for path in kept)
    for path in (half, *others):
        assert path.exists() == (dvc == "living")
        line = f"{path.relative_to(tmp_path)}: left behind by a kill, removed"
        assert (line in found.stdout) == (dvc == "none")


def test_git_ignores_half_written_files(tmp_path):
    """A kill leaves them below reports/, which is committed, until the next run."""
    with atomic_file(tmp_path / "claims.csv") as temporary:
        half = f"reports/s/tables/{temporary.name}"
        temporary.touch()
    shutil.copy(ROOT / ".gitignore", tmp_path)
    call(tmp_path, "git", "init", "-q")

    assert call(tmp_path, "git", "check-ignore", half).stdout == f"{half}\n"
    assert call(tmp_path, "git", "check-ignore", f"{half}-journal").returncode == 0
    assert call(tmp_path, "git", "check-ignore", "reports/s/tables/claims.csv").returncode == 1


def test_wrong_params_stop_before_anything_runs(tmp_path):
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    text = profile("tiny", ROOT / "profiles").replace("win_size: 5", "win_size: 4")
    (tmp_path / "params.yaml").write_text(text)

    found = call(tmp_path, sys.executable, str(tmp_path / "stages" / "plan.py"))

    assert found.returncode == 1
    assert "params.yaml: 1 problem\n  similarity.win_size: 4 is even; choose an odd window" in (
        found.stderr
    )
    assert "Traceback" not in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "stages"]


# How often each kind of stage is killed while it runs: twenty times and more in all.
KILLS = {
    **{"fetch": 1, "train": 2, "train_robust": 2, "evaluation_set": 1, "own": 1, "attribute": 3},
    **{"retry": 1, "search": 2, "score": 1, "accuracy": 2, "compare": 1, "randomize": 2},
    **{"analyze": 1, "report": 1, "track": 1},
}
# Those that store tasks as they go, killed when they have stored something new.
STORING = {"attribute", "search", "accuracy", "randomize"}
RUNNING = re.compile(r"Running stage '(\w+)")


class Repro:
    """`make repro` in a process group of its own; its lines with the moment at which they came.

    `forced` names a kind of stage that runs before all others, though nothing asks for it.
    """

    def __init__(self, checkout, forced=None):
        self.forced = forced
        before = f"dvc repro -f -s {forced} && " if forced else ""
        self.process = subprocess.Popen(
            # As `make repro` does, for DVC can't read a lock file of its own that a kill cut off.
            ["sh", "-c", f"{sys.executable} stages/unlock.py && {before}exec dvc repro"],
            cwd=checkout,
            env=environment(checkout) | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Whoever was started in the background may ignore it, and hands that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    @property
    def output(self):
        return "".join(line for _, line in list(self.lines))

    @property
    def stages(self):
        """Kinds of the stages that were started, each with its moment."""
        found = [(moment, RUNNING.search(line)) for moment, line in list(self.lines)]
        return [(moment, match[1]) for moment, match in found if match]

    def ended(self, timeout):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        # It ends when the last of the group is gone.
        self.reader.join(timeout)
        return not self.reader.is_alive()

    def kill(self, how):
        """Name of the signal that ended it; None where it got through all the same."""
        os.killpg(self.process.pid, how)
        if not self.ended(20):
            how = signal.SIGKILL
            os.killpg(self.process.pid, how)
            self.ended(20)
        return how.name if self.process.returncode else None


def seconds_by_kind(whole, ended):
    """Shortest time that a stage of each kind took."""
    moments = [*whole.stages, (ended, "")]
    found = {}
    for (began, kind), (after, _) in pairwise(moments):
        found[kind] = min(found.get(kind, after - began), after - began)
    return found


def entries(checkout):
    """Stored tasks and finished trainings; a file that is written anew is another one."""
    folder = checkout / ".cache"
    paths = [*folder.glob("tasks/*/*.npz"), *folder.glob("training/*/card.json")]
    facts = {str(path.relative_to(folder)): path.stat() for path in paths}
    return {name: (fact.st_ino, fact.st_mtime_ns) for name, fact in facts.items()}


def stored_more(run, checkout, before):
    """Wait until the stage that runs stores something; whether it did before it ended."""
    begun = len(run.stages)
    while not run.ended(0.01) and len(run.stages) == begun:
        if len(entries(checkout)) > before:
            return True
    return False


def lasts(run, seconds):
    """Wait in the stage that runs; whether it takes longer than that."""
    begun, until = len(run.stages), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if run.ended(min(0.01, left)) or len(run.stages) > begun:
            return False
    return True


def killed_once(run, checkout, due, lengths, *, dice, missed):
    """Kill a run in the first stage that is due and lasts long enough; None where it gets through.

    What is missed is counted: its next kill comes earlier.
    """
    seen = 0
    while not run.ended(0.05):
        if len(run.stages) == seen:
            continue
        seen = len(run.stages)
        kind = run.stages[-1][1]
        if due.get(kind, 0) <= 0:
            continue
        before = len(entries(checkout))
        # Not to the end of it: machines are slower at times, and faster.
        moment = dice.uniform(0.05, 0.6) * lengths[kind] / 2 ** missed[kind]
        # One that is forced finds all its tasks stored.
        if kind in STORING and kind != run.forced:
            if not stored_more(run, checkout, before):
                missed[kind] += 1
                continue
            moment /= 10  # starting and importing took the most of it
        if not lasts(run, moment):
            missed[kind] += 1
            continue
        how = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        hit, same = run.stages[-1][1], len(run.stages) == seen
        if (ended_by := run.kill(how)) is None:
            break
        due[hit] = due.get(hit, 0) - 1
        stored = len(entries(checkout)) - before if same else 0
        return {"stage": hit, "signal": ended_by, "stored_by_the_stage": stored}
    return None


def killed_until_through(checkout, due, lengths):
    """Run and kill until each kind of stage was hit as often as is due and a run gets through.

    A stage that was over before its kill came is made to run again.

    Returns
    -------
    runs : list of Repro
    kills : list of dict
    held : list of dict
        The entries at each kill.
    """
    dice, due, missed, forced = random.Random(0), dict(due), Counter(), None
    runs, kills, held, enough = [], [], [], 3 * sum(due.values())
    while True:
        run = Repro(checkout, forced)
        runs.append(run)
        if kill := killed_once(run, checkout, due, lengths, dice=dice, missed=missed):
            kills.append(kill)
            held.append(entries(checkout))
            forced = None
            continue
        assert run.process.returncode == 0, run.output[-3000:]
        forced = next((kind for kind, left in due.items() if left > 0), None)
        if forced is None:
            return runs, kills, held
        assert len(runs) < enough, f"{forced} was over before its kill, in run after run"


def test_each_kind_of_stage_is_killed():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

    assert set(KILLS) == set(stages)
    assert sum(KILLS.values()) >= 20


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_tables(tmp_path):
    """Kill the whole process group at random moments of each stage until a run gets through.

    Files of the cache tell that nothing stored was computed again: whoever computes it writes it.
    `STEADYMAP_KILLS=FILE` writes what happened.
    """
    whole = checked_out(tmp_path / "whole")
    undisturbed = Repro(whole)
    assert undisturbed.ended(3600)
    assert undisturbed.process.returncode == 0, undisturbed.output[-3000:]
    lengths = seconds_by_kind(undisturbed, time.monotonic())
    counts = executed(undisturbed.output)
    killed = checked_out(tmp_path / "killed")
    runs, kills, held = killed_until_through(killed, KILLS, lengths)

    hit = {kill["stage"] for kill in kills}
    assert len(kills) >= 20
    assert hit == set(KILLS)
    expected, found = tables(whole), tables(killed)
    assert found == expected
    assert {current for *_, current in children(killed)} == {"true"}
    assert children(killed) == children(whole)
    # What a killed stage had stored, in each kind of stage that stores tasks.
    storing = [kill for kill in kills if kill["stored_by_the_stage"]]
    assert len(storing) >= 6
    assert {kill["stage"] for kill in storing} >= STORING
    stored = entries(killed)
    trainings = {name for name in stored if name.startswith("training/")}
    assert len(trainings) == 2
    assert trainings <= set(held[-1])
    assert set(stored) == set(entries(whole))
    rewritten = {name for at in held for name, fact in at.items() if stored.get(name) != fact}
    assert not rewritten
    # Stages that were not killed found the others': they count what they executed themselves.
    finished = sum(sum(executed(run.output).values()) for run in runs)
    assert finished < sum(counts.values())
    if os.environ.get("STEADYMAP_KILLS"):
        outcome = {
            "kills": kills,
            "stages_hit": sorted(hit),
            "runs": len(runs),
            "entries": len(stored),
            "trainings_among_them": len(trainings),
            "entries_held_at_kills": [len(at) for at in held],
            "entries_of_killed_stages": sum(kill["stored_by_the_stage"] for kill in kills),
            "entries_rewritten": len(rewritten),
            "tasks": sum(counts.values()),
            "tasks_counted_by_finished_stages": finished,
            "tables_compared_byte_by_byte": len(expected),
            "tables_different": sum(found[name] != data for name, data in expected.items()),
            "mlflow_runs_compared": len(children(whole)),
        }
        write_json(outcome, Path(os.environ["STEADYMAP_KILLS"]))
