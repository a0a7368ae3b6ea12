"""Jobs on the workers of a Dask scheduler, in other processes or on other machines.

Jobs name their inputs by path: workers open weights and images and keep them for the next job, and
leave results in a folder that client and workers share. The scheduler sees a few kilobytes per job.
"""

import atexit
import functools
import itertools
import json
import logging
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, get_worker

from steadymap.params import plugins
from steadymap.params.schema import Engine
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, file_sha256, mark_of

Outcome = tuple[int, Any, Exception | None, bool]

# Jobs that the scheduler has at a time, so that its memory does not grow with the sweep.
_MOST_SUBMITTED = 1000

# Without a job that ends, before the scheduler is asked which workers are connected.
_PULSE_SECONDS = 2.0

_CONNECT_SECONDS = 15.0

_ANSWER_SECONDS = 10.0

# For workers to appear: they may wait in a cluster's queue.
PATIENCE_SECONDS = 600.0

# Libraries that results depend on: a worker must have the client's versions.
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "scikit-learn")


class ClusterError(OSError):
    """The workers can't be used; names the address, the cause and the remedy."""


class WorkerLostError(RuntimeError):
    """A job ended the process of every worker that ran it."""


@dataclass(frozen=True)
class Site:
    """What a worker must see as the client does; compared at a worker's first job.

    Attributes
    ----------
    folder : Path
        Where results go, absolute.
    mark : str
        Name of a file that the client keeps in `folder`.
    files : tuple of (Path, str)
        Files that jobs open, absolute, with the sha256 of each.
    build : str
        The client's sources and libraries.
    threads : int, optional
        Threads of one worker's model passes.
    clear_caches : callable, optional
        Called where files changed, to drop what a worker keeps of them.
    root : Path
        Folder that the client imports custom modules from, absolute.
    methods : tuple of (str, str, str)
        Custom attribution methods: name, `module:function`, and hash of the source on the client.
    """

    folder: Path
    mark: str
    files: tuple[tuple[Path, str], ...]
    build: str
    threads: int | None
    clear_caches: Callable[[], None] | None = None
    root: Path = Path()
    methods: tuple[tuple[str, str, str], ...] = ()


@functools.cache
def build() -> str:
    """Versions of the libraries, and a hash of the package's code, that this process runs."""
    versions = {name: version(name) for name in _LIBRARIES}
    # Cached per process: a worker that outlives a change of the code still runs the old code.
    versions["steadymap"] = fingerprint.digest(
        "steadymap.experiments.randomized_maps", "steadymap.experiments.accuracy_scores"
    )[:16]
    return json.dumps(versions, sort_keys=True)


_ONE_AT_A_TIME = threading.Lock()

_checked_site: Site | None = None


def _check(site: Site) -> None:
    """Check, in a worker, that it sees what the client sees.

    Raises
    ------
    ClusterError
        With the worker, the path or library, and the remedy.
    """
    global _checked_site
    import torch

    name = get_worker().name
    if isinstance(name, int) and torch.cuda.device_count() > 1:
        # The device belongs to a thread, so it is set at every job; local workers are numbered.
        torch.cuda.set_device(name % torch.cuda.device_count())
    if site == _checked_site:
        return
    who = f"worker {get_worker().address} ({os.uname().nodename})"
    if not (site.folder / site.mark).is_file():
        raise ClusterError(
            f"{who} does not see the client's {site.folder}: results go to a folder that client "
            "and workers share; mount it there under the same path, or start the worker where it is"
        )
    if build() != site.build:
        raise ClusterError(
            f"{who} runs {build()}, the client {site.build}: bring both to one commit and one "
            "requirements.lock, and restart the worker"
        )
    for path, expected in site.files:
        if not path.is_file() or file_sha256(path) != expected:
            raise ClusterError(
                f"{who} sees another {path} than the client, or none: share the folder of the "
                "checkout under the same path"
            )
    _register_methods(site, who)
    if site.threads is not None:
        torch.set_num_threads(site.threads)
    if site.clear_caches is not None and (
        _checked_site is None or _checked_site.files != site.files
    ):
        site.clear_caches()
    _checked_site = site


def _register_methods(site: Site, who: str) -> None:
    """Import the client's custom methods, which on the client reading params does."""
    for name, path, source in site.methods:
        try:
            plugins.register(name, path, folder=site.root)
        except plugins.OwnError as error:
            raise ClusterError(
                f"{who} can't take attribution.own.{name}: {path} from {site.root}: {error}"
            ) from error
        method = plugins.find(name)
        if method is None or method.code.source != source:
            raise ClusterError(
                f"{who} imports another {path} than the client did (attribution.own.{name}): leave "
                f"{site.root}, shared under the same path, as it is while a stage runs, and run it "
                "again; of a package, install the client's version"
            )


def _portable(error: Exception) -> Exception:
    """Error that can be pickled: one that can't be rebuilt from its arguments becomes its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _attempt(payload: bytes, site: bytes) -> tuple[Any, Exception | None]:
    """Run a job in a worker: its result, or an error that every other job would meet.

    Payloads are bytes, which the scheduler does not unpickle: it needs neither torch nor time.
    Any other error is raised, and Dask tries the job again.
    """
    # Also where a worker has several threads: explainers hook into the one model that is kept.
    with _ONE_AT_A_TIME:
        _check(pickle.loads(site))
        function, job, ends = pickle.loads(payload)
        try:
            return function(job), None
        except Exception as error:
            # Judged here, as pickling drops the error's cause.
            if ends(error):
                return None, _portable(error)
            raise _portable(error) from None


def local_workers(options: Engine, *, cores: int, gpus: int) -> tuple[int, int]:
    """Workers of a local cluster and threads of each, so that their product fits the cores.

    One worker per GPU; without one, as many as there are cores for their threads.

    Parameters
    ----------
    options
        Workers and threads that params ask for.
    cores, gpus
        What the machine has.
    """
    workers = options.workers or gpus or max(1, cores // (options.threads or 1))
    return workers, options.threads or max(1, cores // workers)


def _local(options: Engine) -> Client:
    import torch

    workers, threads = local_workers(options, cores=CPU_COUNT, gpus=torch.cuda.device_count())
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings: dict[str, Any] = {
        f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names
    }
    # A job that ends its worker is tried `retries` times more, here as everywhere.
    settings["distributed.scheduler.allowed-failures"] = options.retries
    # One job per worker: a job that ends its worker takes no other along.
    settings["distributed.scheduler.worker-saturation"] = 1.0
    with dask.config.set(settings):
        # Workers are given no share of the memory: the model and the images may well need more.
        # Dask closes it when the process ends.
        local = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            host="127.0.0.1",
            # Any free port, seen from here alone: the usual one may be another cluster's.
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        )
        return Client(local, set_as_default=False)


@functools.cache
def _client(options: Engine) -> Client:
    """Client of a scheduler, the same as long as the process runs: stages have many sweeps."""
    client = _local(options) if options.scheduler is None else _connected(options.scheduler)
    atexit.register(client.close, timeout=5)
    return client


def _connected(address: str) -> Client:
    file = None if "://" in address else Path(address)
    if file is not None and not file.is_file():
        raise ClusterError(
            f"engine.scheduler: {address}: no such file; start the scheduler with "
            f"`dask scheduler --scheduler-file {address}`, or write its address, tcp://host:port"
        )
    where = {"address": address} if file is None else {"scheduler_file": str(file)}
    try:
        return Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(
            f"engine.scheduler: {address}: nobody answers there ({cause}); start it with "
            "`dask scheduler`, or correct the address"
        ) from error


def unordered(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    options: Engine,
    folder: Path,
    files: Sequence[Path],
    ends: Callable[[Exception], bool],
    clear_caches: Callable[[], None] | None = None,
    methods: Mapping[str, str] | None = None,
) -> Generator[Outcome]:
    """Yield position, result and error of each job as it ends, and whether the error ends the run.

    Dask tries a job that fails again `options.retries` times, and one whose worker died as often as
    the scheduler's `allowed-failures` says.

    Parameters
    ----------
    function : callable
        Takes a job; defined in a module, so that it can be pickled.
    jobs : sequence
        Arguments of `function`, a few kilobytes each when pickled.
    options : Engine
        Scheduler or size of the local cluster.
    folder : Path
        Where jobs leave results; client and workers share it.
    files : sequence of Path
        Files that jobs open; workers must see the same.
    ends : callable
        Whether an error is one that every other try would meet; a function of a module.
    clear_caches : callable, optional
        Drops what a worker keeps of `files`; called where they changed.
    methods : mapping of str to str, optional
        Custom attribution methods that jobs may name, `module:function` by name. Workers import
        them from the client's working folder, and refuse where that gives another source.

    Raises
    ------
    ClusterError
        Where nobody answers, workers stay away, or the scheduler is lost.
    """
    client = _client(options)
    with _marked(folder.resolve()) as mark:
        site = Site(
            mark.parent,
            mark.name,
            tuple((path.resolve(), file_sha256(path)) for path in files),
            build(),
            options.threads,
            clear_caches,
            Path.cwd(),
            _custom_methods(methods or {}),
        )

        def submit(index: int) -> Future:
            payload = pickle.dumps((function, jobs[index], ends))
            return client.submit(
                _attempt, payload, site=site_bytes, pure=False, retries=options.retries
            )

        site_bytes = pickle.dumps(site)
        where = options.scheduler or "local cluster"
        yield from _outcomes(client, where, submit, len(jobs))


def _custom_methods(paths: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Custom methods registered in this process, with the hash of their source."""
    return tuple(
        (name, path, method.code.source)
        for name, path in paths.items()
        if (method := plugins.find(name))
    )


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """Keep a marker file in a folder, by which workers recognize it."""
    mark = mark_of(folder)
    with atomic_file(mark) as temporary:
        temporary.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _outcomes(
    client: Client, where: str, submit: Callable[[int], Future], n_jobs: int
) -> Generator[Outcome]:
    """Submit jobs by their positions and yield the outcome of each as it ends."""
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    positions = iter(range(n_jobs))
    running: dict[Future, int] = {}

    def submit_next(n: int) -> None:
        for position in itertools.islice(positions, n):
            future = submit(position)
            running[future] = position
            future.add_done_callback(finished.put)

    submit_next(_MOST_SUBMITTED)
    heard = time.monotonic()
    try:
        while running:
            try:
                future = finished.get(timeout=_PULSE_SECONDS)
            except queue.Empty:
                heard = _last_sign_of_workers(client, where, heard)
                continue
            submit_next(1)
            yield running.pop(future), *_result(future, where)
            future.release()
    finally:
        if running and client.status == "running":
            client.cancel(list(running))


def _last_sign_of_workers(client: Client, where: str, before: float) -> float:
    """When workers were connected last, in seconds of the monotonic clock: now, or `before`.

    Raises
    ------
    ClusterError
        Where the scheduler is gone, or has had no workers for `PATIENCE_SECONDS`.
    """
    if client.status not in ("running", "connecting"):
        raise _lost(where)
    try:
        # With a timeout: a stopped scheduler never answers.
        if client.status == "running" and client.nthreads(callback_timeout=_ANSWER_SECONDS):
            return time.monotonic()
    except TimeoutError:
        pass
    except OSError as error:
        raise _lost(where) from error
    silence = time.monotonic() - before
    if silence > PATIENCE_SECONDS:
        raise ClusterError(
            f"engine.scheduler: {where} has had no workers, or has not answered, for "
            f"{silence:.0f} s; start some (`dask worker {where}`); finished tasks are kept"
        )
    return before


def _result(future: Future, where: str) -> tuple[Any, Exception | None, bool]:
    """Result and error of a job that ended, and whether the error ends the run."""
    if future.status in ("cancelled", "lost"):
        raise _lost(where)
    try:
        # Raises even where the future has finished, if its result went with a worker.
        result, error = future.result()
    except KilledWorker:
        lost = WorkerLostError(
            "ended the process of every worker that ran it; its log, or the system's (out of "
            "memory?), says why"
        )
        return None, lost, False
    except Exception as failure:
        return None, failure, False
    return result, error, error is not None


def _lost(where: str) -> ClusterError:
    return ClusterError(
        f"engine.scheduler: {where} is gone; start it again and run again: finished tasks are kept"
    )
