"""Workers started by hand on this machine: the same bits as in-process, whatever dies."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

import cluster_jobs
from conftest import ROOT, write_model
from steadymap.engine import cluster, evaluation_set, runner, selection
from steadymap.experiments import randomized_maps
from steadymap.params import plugins
from steadymap.params.checks import validate
from steadymap.params.schema import Attribution, Engine, EvaluationSet
from steadymap.progress import reporting
from steadymap.store.atomic import StorageError
from steadymap.store.task_cache import TaskCache

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Machines:
    """A scheduler and workers, each a process of its own, found by a scheduler file."""

    def __init__(self, folder):
        self.folder, self.file = folder, folder / "scheduler.json"
        self.workers = {}
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        deadline = time.monotonic() + 60
        while not self.file.is_file():
            assert self.scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.options = Engine(kind="cluster", scheduler=str(self.file), retries=2)

    def _start(self, kind, *arguments):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
            # The second death is enough to give a job up; the default, the fourth, takes longer.
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "dask", kind, "--scheduler-file", str(self.file)),
                *("--no-dashboard", *arguments),
            ],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ready(self, n):
        """Wait until exactly n workers are there."""
        self.workers = {k: v for k, v in self.workers.items() if v.poll() is None}
        while len(self.workers) < n:
            name = f"w{len(self.workers)}-{time.monotonic_ns()}"
            arguments = ["--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0"]
            self.workers[name] = self._start("worker", *arguments, "--name", name)
        while len(self.workers) > n:
            self.kill()
        client = cluster._client(self.options)
        deadline = time.monotonic() + 60
        while len(client.nthreads()) != n:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def kill(self):
        """Kill a worker and its nanny, as when a machine goes away."""
        _, process = self.workers.popitem()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        cluster._client(self.options).close()
        cluster._client.cache_clear()
        for process in [*self.workers.values(), self.scheduler]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    made = Machines(tmp_path_factory.mktemp("machines"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory, embedded):
    """Two models, an evaluation set of 24 images, and the params that go with them."""
    from steadymap.params.checks import overlay
    from steadymap.params.files import read_yaml

    root = tmp_path_factory.mktemp("study")
    base = overlay(
        read_yaml(ROOT / "profiles" / "embedded.yaml"), read_yaml(ROOT / "profiles" / "tiny.yaml")
    )
    classes = base["data"]["classes"]
    for seed, model in enumerate(("googlenet", "googlenet-r")):
        write_model(root / "models" / model, model=model, classes=classes, seed=seed)
    labels = embedded.rows("val")["label"].to_numpy()
    rule = EvaluationSet(rule="any", target="label", n_images=24, seed=0)
    chosen = selection.choose(rule, embedded, dict.fromkeys(["googlenet", "googlenet-r"], labels))
    selection.write(chosen, embedded, root / "set")
    return root, validate(base)


def planned(study, method="smoothgrad"):
    from steadymap.engine.settings import points, unique_settings
    from steadymap.engine.tasks import plan_settings
    from steadymap.store.atomic import read_json

    root, params = study
    rows, targets, _ = evaluation_set.read(root / "set")
    weights = {
        name: read_json(root / "models" / name / "card.json")["weights_sha256"]
        for name in params.models.names
    }
    return plan_settings(
        unique_settings(points(method, params.sweeps[method])),
        weights=weights,
        rows=rows,
        targets=targets,
        preprocessing="p",
        attribution=params.attribution,
    ).tasks


def run(study, tasks, folder, options=None):
    root, params = study
    place = runner.RunContext(
        root / "models", root / "set", params.attribution, options or Engine(kind="in_process")
    )
    return runner.run(tasks, cache=TaskCache(folder), run_context=place, title="attribute")


def entries(folder):
    """Cache entries by name, as bytes of their arrays."""
    cache = TaskCache(folder)
    found = {}
    for path in folder.rglob("*.npz"):
        maps, extra = cache.read(path.stem)
        found[path.stem] = maps.tobytes(), {name: v.tobytes() for name, v in extra.items()}
    return found


def stream(function, jobs, options, folder, files=()):
    """Positions and results, through the engine as stages use it."""
    attribution = Attribution(batch_size=8, block_size=8, device="cpu")
    yield from runner.run_jobs(
        function,
        jobs,
        names=[f"job {job}" for job in jobs],
        weights=[1] * len(jobs),
        run_context=runner.RunContext(folder, folder, attribution, options),
        shared=runner.SharedFiles(folder, files),
        title="double",
    )


def run_jobs(function, jobs, options, folder, files=()):
    return dict(stream(function, jobs, options, folder, files))


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_job_that_raises_is_named_and_the_others_are_done(machines, tmp_path, where):
    """The same on workers as in-process; the exception's own type comes back in the list."""
    options = machines.ready(2).options if where == "there" else Engine(kind="in_process")
    done = []

    with pytest.raises(runner.TasksFailedError) as caught:
        done.extend(stream(cluster_jobs.double_or_refuse, list(range(12)), options, tmp_path))

    assert sorted(done) == [(n, 2 * n) for n in range(12) if n % 5 != 3]
    lines = str(caught.value).splitlines()
    assert lines[0] == "double: 2 of 12 tasks failed; the others are kept; run again:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["job 3", "job 8"]
    assert "number is 3; choose another" in lines[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_fault_in_the_code_is_named_and_the_others_are_done(machines, tmp_path, where):
    options = machines.ready(2).options if where == "there" else Engine(kind="in_process")
    done = []

    with pytest.raises(runner.TasksFailedError, match="2 of 6 tasks failed; the others") as caught:
        done.extend(stream(cluster_jobs.mistake, list(range(6)), options, tmp_path))

    assert sorted(done) == [(n, 2 * n) for n in (0, 1, 3, 5)]
    assert "job 2: TypeError: unsupported operand" in str(caught.value)
    assert "job 4: KeyError: 'sigma'" in str(caught.value)


@pytest.mark.parametrize("where", ["here", "there"])
def test_the_only_job_is_named_too(machines, tmp_path, where):
    options = machines.ready(2).options if where == "there" else Engine(kind="in_process")
    with pytest.raises(runner.TasksFailedError) as caught:
        run_jobs(cluster_jobs.double_or_refuse, [3], options, tmp_path)

    assert re.match(
        r"double: job 3: .*HyperparameterError: number is 3; choose another$", str(caught.value)
    )
    assert len(caught.value.errors) == 1


def test_a_run_in_which_everything_fails_ends_early(tmp_path):
    with pytest.raises(
        runner.TasksFailedError, match=r"20 of 50 .* nothing else was done and 30 were not tried"
    ):
        run_jobs(cluster_jobs.double_or_refuse, [3] * 50, Engine(kind="in_process"), tmp_path)


def test_a_hopeless_run_ends_as_early_on_workers(machines, tmp_path):
    machines.ready(2)
    log = tmp_path / "log"

    with pytest.raises(runner.TasksFailedError, match=r"20 of 120 .* 100 were not tried"):
        run_jobs(
            cluster_jobs.refuse_and_count,
            [(number, str(log)) for number in range(120)],
            machines.options,
            tmp_path,
        )

    # Jobs that workers began before the client withdrew the others.
    assert len(set(log.read_text().split())) < 60


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize(
    ("function", "kind", "message", "at"),
    [
        ("fill_the_disk", StorageError, r"npz: No space left on device; free some space", 3),
        ("exhaust_memory", MemoryError, r"^double: job .*: number is .*; choose another", 0),
    ],
)
def test_what_every_job_would_meet_ends_the_run_at_once(
    machines, tmp_path, where, function, kind, message, at
):
    options = machines.ready(2).options if where == "there" else Engine(kind="in_process")
    log = tmp_path / "log"
    jobs = [(number, str(log)) for number in range(60)]

    with pytest.raises(kind, match=message):
        run_jobs(getattr(cluster_jobs, function), jobs, options, tmp_path)

    tried = log.read_text().split()
    assert len(set(tried)) == len(tried)
    assert len(tried) <= at + 1 + (30 if where == "there" else 0)
    # The client's mark went with the run, though the error is still held.
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_failed_job_is_tried_again(machines, tmp_path):
    machines.ready(2)
    tried = tmp_path / "tried"
    tried.mkdir()
    jobs = [(number, str(tried)) for number in range(6)]

    found = run_jobs(cluster_jobs.double_at_the_second_try, jobs, machines.options, tmp_path)

    assert found == {number: 2 * number for number in range(6)}


def test_weights_that_changed_are_loaded_again(machines, study, tmp_path):
    """A worker outlives stages: what it keeps must not outlive its files."""
    from steadymap.engine.settings import points, unique_settings
    from steadymap.engine.tasks import plan_settings

    machines.ready(2)
    root, params = study
    place = tmp_path / "place"
    rows, targets, _ = evaluation_set.read(root / "set")
    stacks = {}
    for seed in (5, 6):
        folder = place / "models" / "googlenet"
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        sha256 = write_model(folder, model="googlenet", classes=list(range(8)), seed=seed)
        tasks = plan_settings(
            unique_settings(points("gradient", {})),
            weights={"googlenet": sha256},
            rows=rows.head(8),
            targets=targets,
            preprocessing="p",
            attribution=params.attribution,
        ).tasks
        for where, options in (("there", machines.options), ("here", Engine(kind="in_process"))):
            runner.clear_caches()
            cache = TaskCache(tmp_path / where)
            run_context = runner.RunContext(
                place / "models", root / "set", params.attribution, options
            )
            runner.run(tasks, cache=cache, run_context=run_context, title="t")
            stacks[seed, where] = cache.read(tasks[0].keys[0])[0]
    runner.clear_caches()

    for seed in (5, 6):
        assert (stacks[seed, "here"] == stacks[seed, "there"]).all()
    assert (stacks[5, "here"] != stacks[6, "here"]).any()


def test_a_worker_that_sees_other_files_says_so(machines, tmp_path, monkeypatch):
    machines.ready(2)
    monkeypatch.setattr(cluster, "build", lambda: json.dumps({"torch": "0.1"}))
    with pytest.raises(
        runner.TasksFailedError, match=r'runs .*, the client \{"torch": "0.1"\}: bring both to one'
    ):
        run_jobs(cluster_jobs.double, [1], machines.options, tmp_path)
    monkeypatch.undo()

    monkeypatch.setattr(cluster, "_marked", lambda folder: nullcontext(folder / "unseen"))
    with pytest.raises(
        runner.TasksFailedError, match=r"does not see the client's .*: results go to a"
    ):
        run_jobs(cluster_jobs.double, [1], machines.options, tmp_path)
    monkeypatch.undo()

    monkeypatch.setattr(cluster, "file_sha256", lambda path: "another")
    (tmp_path / "file").write_text("text")
    with pytest.raises(
        runner.TasksFailedError, match=r"sees another .*file than the client, or none"
    ):
        run_jobs(cluster_jobs.double, [1], machines.options, tmp_path, [tmp_path / "file"])


def write_own(folder, factor):
    """A method of one's own that imports a neighbor, in a folder where no worker began."""
    folder.mkdir(exist_ok=True)
    (folder / "my_scale.py").write_text(f"FACTOR = {factor}\n")
    (folder / "my_detail.py").write_text(
        "from steadymap import attribution_method\n"
        "from my_scale import FACTOR\n\n\n"
        "@attribution_method(cost=(1, 1))\n"
        "def detail(runner, images, targets):\n"
        '    return FACTOR * runner.gradients(images, targets, output="logit").mean(1)\n'
    )


@pytest.fixture
def own_study(study, tmp_path, monkeypatch):
    """The study with a method of its own, `detail`, in a folder of its own."""
    root, params = study
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_METHODS", {})
    write_own(tmp_path, 2)
    plugins.register("detail", "my_detail:detail")
    attribution = params.attribution.model_copy(update={"own": {"detail": "my_detail:detail"}})
    return root, params.model_copy(
        update={"attribution": attribution, "sweeps": {**params.sweeps, "detail": {}}}
    )


def test_workers_take_methods_of_one_s_own_as_the_client_has_them(machines, own_study, tmp_path):
    """Workers read no params; one that outlives an edit takes the edited one."""
    machines.ready(1)
    stacks = []
    for factor in (2, 30):
        write_own(tmp_path, factor)
        plugins.register("detail", "my_detail:detail")
        run(own_study, planned(own_study, "detail"), tmp_path / "here")
        run(own_study, planned(own_study, "detail"), tmp_path / "there", machines.options)
        stacks.append(entries(tmp_path / "there"))

    assert entries(tmp_path / "there") == entries(tmp_path / "here")
    assert [len(stack) for stack in stacks] == [6, 12]


def test_a_worker_that_imports_another_own_method_refuses(machines, own_study, tmp_path):
    machines.ready(1)
    tasks = planned(own_study, "detail")
    write_own(tmp_path, 30)  # in mid-stage: the client made its keys of the other

    with pytest.raises(
        runner.TasksFailedError,
        match=r"imports another my_detail:detail than the client did \(attribution.own.detail\): ",
    ) as caught:
        run(own_study, tasks, tmp_path / "there", machines.options)
    assert isinstance(caught.value.errors[0], OSError)  # no fault of the method
    (tmp_path / "my_detail.py").unlink()
    with pytest.raises(
        runner.TasksFailedError,
        match=r"can't take attribution.own.detail: .* there is no module my_d",
    ):
        run(own_study, tasks, tmp_path / "there", machines.options)

    assert not list((tmp_path / "there").rglob("*.npz"))


def test_workers_randomize_for_methods_of_one_s_own(machines, own_study, embedded, tmp_path):
    from steadymap.params.schema import Randomization

    machines.ready(1)
    root, params = own_study
    section = Randomization(
        methods={"detail": {}},
        models=["googlenet"],
        units={"googlenet": ["conv1"]},
        orders=["independent"],
        n_images=2,
        n_draws=1,
        n_function_images=4,
    )
    results = tmp_path / "results" / "tiny"
    shutil.copytree(root / "models", results / "models")
    shutil.copytree(root / "set", results / "evaluation_set")
    embedded.write(results / "data")
    changed = params.model_copy(update={"randomization": section, "engine": machines.options})
    ran = randomized_maps.run(
        changed,
        cache=TaskCache(tmp_path / "cache"),
        changes=tmp_path / "changes",
        run_context=runner.RunContext.of(changed),
    )

    assert (ran.executed, ran.copies, ran.failed) == (2, 1, 0)


def test_a_worker_killed_in_mid_sweep_changes_no_bit(machines, study, tmp_path, monkeypatch):
    machines.ready(2)
    tasks = planned(study)
    random.Random(0).shuffle(tasks)
    result, ended = cluster._result, []

    def kills(future, where):
        ended.append(future)
        if len(ended) == 3:
            machines.kill()
        return result(future, where)

    monkeypatch.setattr(cluster, "_result", kills)
    ran = run(study, tasks, tmp_path / "there", machines.options)
    again = run(study, tasks, tmp_path / "there", machines.options)
    run(study, planned(study), tmp_path / "here")

    assert (ran.executed, again.executed) == (len(tasks), 0)
    assert len(machines.workers) == 1
    assert entries(tmp_path / "there") == entries(tmp_path / "here")
    assert not list((tmp_path / "there").glob(".*"))


def test_a_job_that_ends_its_workers_is_named_and_the_others_are_done(machines, tmp_path):
    machines.ready(1)

    with pytest.raises(runner.TasksFailedError) as caught:
        run_jobs(cluster_jobs.double_or_die, list(range(12)), machines.options, tmp_path)

    assert "double: 1 of 12 tasks failed; the others are kept" in str(caught.value)
    assert "job 7: WorkerLostError: ended the process of every worker" in str(caught.value)


def test_a_scheduler_that_is_stopped_is_waited_for(machines, tmp_path, monkeypatch):
    machines.ready(1)
    monkeypatch.setattr(cluster, "_PULSE_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.3)
    last_sign, silent = cluster._last_sign_of_workers, []

    def goes_on(client, where, before):
        found = last_sign(client, where, before)
        silent.append(found == before)
        if silent.count(True) == 2:
            machines.scheduler.send_signal(signal.SIGCONT)
        return found

    monkeypatch.setattr(cluster, "_last_sign_of_workers", goes_on)
    found = {}
    try:
        for index, result in stream(cluster_jobs.nap, list(range(40)), machines.options, tmp_path):
            found[index] = result
            if len(found) == 2:
                machines.scheduler.send_signal(signal.SIGSTOP)
    finally:
        machines.scheduler.send_signal(signal.SIGCONT)

    assert found == {number: 2 * number for number in range(40)}
    assert silent.count(True) >= 2


def test_an_absent_scheduler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.5)
    options = Engine(kind="cluster", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(cluster.ClusterError, match=r"tcp://127.0.0.1:9: nobody answers there .*"):
        run_jobs(cluster_jobs.double, [1], options, tmp_path)

    options = Engine(kind="cluster", scheduler=str(tmp_path / "none.json"))
    with pytest.raises(cluster.ClusterError, match=r"none.json: no such file; .* --scheduler-file"):
        run_jobs(cluster_jobs.double, [1], options, tmp_path)


def test_a_cluster_whose_workers_stay_away_is_named(machines, tmp_path, monkeypatch):
    machines.ready(0)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "_PULSE_SECONDS", 0.2)

    with pytest.raises(cluster.ClusterError, match=r"has had no workers, .*; start some"):
        run_jobs(cluster_jobs.double, [1], machines.options, tmp_path)


@pytest.mark.parametrize(
    ("options", "cores", "gpus", "expected"),
    [
        ({}, 8, 0, (8, 1)),
        ({"threads": 4}, 8, 0, (2, 4)),
        ({"workers": 3}, 8, 0, (3, 2)),
        ({}, 8, 4, (4, 2)),
        ({}, 2, 4, (4, 1)),
        ({"workers": 2, "threads": 3}, 8, 4, (2, 3)),
    ],
)
def test_workers_times_threads_fit_the_cores(options, cores, gpus, expected):
    assert cluster.local_workers(Engine(**options), cores=cores, gpus=gpus) == expected


@pytest.mark.parametrize(
    ("options", "device", "gpus", "expected"),
    [
        ({}, "auto", 0, False),
        ({}, "auto", 1, False),
        ({}, "auto", 2, True),
        ({}, "cpu", 2, False),
        ({"scheduler": "tcp://a:1"}, "cpu", 0, True),
        ({"kind": "in_process"}, "auto", 2, False),
        ({"kind": "local"}, "cpu", 0, True),
    ],
)
def test_auto_stays_in_process_without_several_gpus(monkeypatch, options, device, gpus, expected):
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: gpus)
    attribution = Attribution(batch_size=8, block_size=8, device=device)
    place = runner.RunContext(Path("m"), Path("e"), attribution, Engine(**options))

    assert runner.uses_workers(place) == expected


def test_progress_counts_in_any_order_and_says_how_fast(caplog):
    caplog.set_level(logging.INFO)

    with reporting(10, "sweep", n_tasks=3) as done:
        for amount in (5, 4, 1):
            done(amount)

    assert "sweep: 3/3 tasks, " in caplog.text
    assert " passes/s, 0 s left" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothgrad", "lime", "meaningful_perturbation"])
def test_any_number_of_workers_gives_the_same_bits(machines, study, tmp_path, method):
    run(study, planned(study, method), tmp_path / "here")
    expected = entries(tmp_path / "here")

    for n in (1, 2, 4):
        machines.ready(n)
        tasks = planned(study, method)
        random.Random(n).shuffle(tasks)
        run(study, tasks, tmp_path / str(n), machines.options)
        assert entries(tmp_path / str(n)) == expected


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_bits(study, tmp_path):
    run(study, planned(study), tmp_path / "here")

    run(study, planned(study), tmp_path / "there", Engine(kind="local", workers=2))

    assert entries(tmp_path / "there") == entries(tmp_path / "here")


@pytest.mark.slow
def test_curves_and_randomized_copies_are_the_same_on_workers(
    machines, study, embedded, tmp_path, monkeypatch
):
    from steadymap.experiments import accuracy_scores, randomized_maps

    machines.ready(2)
    root, params = study
    found = {}
    for where, options in (("here", Engine(kind="in_process")), ("there", machines.options)):
        results = tmp_path / where / "results" / "tiny"
        shutil.copytree(root / "models", results / "models")
        shutil.copytree(root / "set", results / "evaluation_set")
        embedded.write(results / "data")
        monkeypatch.chdir(tmp_path / where)
        changed = params.model_copy(update={"engine": options})
        cache, place = TaskCache(Path(".cache/tasks")), runner.RunContext.of(changed)
        plan = runner.study_plan("smoothgrad", changed)
        runner.run(plan.tasks, cache=cache, run_context=place, title="attribute")
        runner.assemble(
            "smoothgrad",
            plan,
            cache=cache,
            run_context=place,
            folder=results / "maps" / "smoothgrad",
        )
        scored = accuracy_scores.score("smoothgrad", changed, cache=cache, run_context=place)
        changes = Path(".cache/randomization")
        ran = [
            randomized_maps.run(changed, cache=cache, changes=changes, run_context=place)
            for _ in range(2)
        ]
        files = {
            path.name: path.read_bytes()
            for path in (results / "randomization").rglob("*")
            if path.is_file()
        }
        found[where] = scored.rows.to_csv(), scored[1:], ran, files, entries(Path(".cache/tasks"))

    assert found["here"] == found["there"]
    first, second = found["there"][2]
    assert first.executed > 20
    assert (second.executed, second.cached) == (0, first.executed + first.cached)
