"""Workers in other processes and on other machines: Dask, behind `unordered`.

Jobs name what they need by path: weights and images are opened by the workers, which keep them, and
results go to a folder that client and workers share. The scheduler sees a few kilobytes per job.
"""

import atexit
import functools
import json
import logging
import os
import pickle
import queue
import threading
import time
from collections import deque
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

logger = logging.getLogger(__name__)

# Per worker: one that runs, and what lets it go on at once. A worker that dies takes few along.
_JOBS_PER_WORKER = 3

_PULSE = 2.0

_CONNECT_SECONDS = 15.0

_ANSWER_SECONDS = 10.0

# After so long without a word, and every so long again, it is said.
_SILENCE = 60.0

# A cluster's queue may take its time.
PATIENCE = 600.0

# What results depend on and keys are made of on the client alone.
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "scikit-learn")


class ClusterError(OSError):
    """The workers can't be used; names the address, the cause and the remedy."""


class WorkerLostError(RuntimeError):
    """A job that ended the process of every worker that ran it."""


@dataclass(frozen=True)
class Site:
    """What a worker must find as the client has it; compared when it first meets the site.

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
    forget : callable, optional
        Called where files changed, to drop what a worker keeps of them.
    root : Path
        Where the client imports modules of one's own from, absolute.
    methods : tuple of (str, str, str)
        Own attribution methods: name, `module:function` and hash of the source, as the client
        makes keys of it.
    """

    folder: Path
    mark: str
    files: tuple[tuple[Path, str], ...]
    build: str
    threads: int | None
    forget: Callable[[], None] | None = None
    root: Path = Path()
    methods: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its result, or the error of its last try and whether it ends all."""

    index: int
    result: Any
    error: Exception | None
    attempts: int
    ends: bool = False


@dataclass(frozen=True)
class _Reply:
    result: Any
    error: Exception | None
    worker: str
    ends: bool = False


@dataclass(frozen=True)
class _Entry:
    """A job on its way: on which workers it failed, how often it was tried, whether alone."""

    index: int
    failed_on: frozenset[str] = frozenset()
    attempts: int = 1
    alone: bool = False


@functools.cache
def build() -> str:
    """Say which libraries and which sources of the package this process runs."""
    known = {name: version(name) for name in _LIBRARIES}
    # Once per process: a worker that outlives a change of the sources still runs the old ones.
    known["steadymap"] = fingerprint.digest(
        "steadymap.experiments.randomized_maps", "steadymap.experiments.accuracy_scores"
    )[:16]
    return json.dumps(known, sort_keys=True)


@functools.cache
def _digest(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def digest(path: Path) -> str:
    """Sha256 of a file, read again only when its size or time changed."""
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


_ALONE = threading.Lock()

_settled: Site | None = None


def _settle(site: Site) -> None:
    """Check, in a worker, that it sees what the client sees.

    Raises
    ------
    ClusterError
        With the worker, the path or library, and the remedy.
    """
    global _settled
    import torch

    name = get_worker().name
    if isinstance(name, int) and torch.cuda.device_count() > 1:
        # Of a thread, so at every job: those of a local cluster are numbered.
        torch.cuda.set_device(name % torch.cuda.device_count())
    if site == _settled:
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
        if not path.is_file() or digest(path) != expected:
            raise ClusterError(
                f"{who} sees another {path} than the client, or none: share the folder of the "
                "checkout under the same path"
            )
    _learn(site, who)
    if site.threads is not None:
        torch.set_num_threads(site.threads)
    if site.forget is not None and (_settled is None or _settled.files != site.files):
        site.forget()
    _settled = site


def _learn(site: Site, who: str) -> None:
    """Import the client's own methods: a worker reads no params, which would."""
    for name, path, source in site.methods:
        try:
            plugins.register(name, path, folder=site.root)
        except plugins.OwnError as error:
            raise ClusterError(
                f"{who} can't take attribution.own.{name}: {path} from {site.root}: {error}"
            ) from error
        found = plugins.find(name)
        if found is None or found.code.source != source:
            raise ClusterError(
                f"{who} imports another {path} than the client did (attribution.own.{name}): leave "
                f"{site.root}, shared under the same path, as it is while a stage runs, and run it "
                "again; of a package, install the client's version"
            )


def _portable(error: Exception) -> Exception:
    """Error as it can travel: one that can't be rebuilt from its arguments becomes its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _attempt(payload: bytes, site: bytes) -> _Reply:
    """Run a job in a worker; what it raises is returned.

    Payloads are bytes so that the scheduler, which unpacks what it is sent, needs neither torch
    nor time for them.
    """
    address = get_worker().address
    ends = _never
    # One at a time, whatever --nthreads says: explainers hook into the one model that is kept.
    with _ALONE:
        try:
            _settle(pickle.loads(site))
            function, job, ends = pickle.loads(payload)
            return _Reply(function(job), None, address)
        except Exception as error:
            # Asked here: what an error was raised from does not travel.
            return _Reply(None, _portable(error), address, ends(error))


def _never(error: Exception) -> bool:
    return False


def shares(options: Engine, *, cores: int, gpus: int) -> tuple[int, int]:
    """Workers of a local cluster and threads of each, so that their product fits the cores.

    One worker per GPU; without one, as many as there are cores for their threads.
    """
    workers = options.workers or gpus or max(1, cores // (options.threads or 1))
    return workers, options.threads or max(1, cores // workers)


def _local(options: Engine) -> Client:
    import torch

    workers, threads = shares(options, cores=CPU_COUNT, gpus=torch.cuda.device_count())
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings: dict[str, Any] = {
        f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names
    }
    # A job that ends its worker is tried `retries` times more, here as everywhere.
    settings["distributed.scheduler.allowed-failures"] = options.retries
    with dask.config.set(settings):
        # Workers are given no share of the memory: the model and the images may well need more.
        made = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            host="127.0.0.1",
            # Any free port, seen from here alone: the usual one may be another cluster's.
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        )
        return Client(made, set_as_default=False)


_clients: dict[Engine, Client] = {}


def _client(options: Engine) -> Client:
    """Client of a scheduler, the same as long as the process runs: stages have many sweeps."""
    if options not in _clients:
        _clients[options] = _connected(options)
    return _clients[options]


def _connected(options: Engine) -> Client:
    if options.scheduler is None:
        client = _local(options)
    else:
        address = options.scheduler
        file = None if "://" in address else Path(address)
        if file is not None and not file.is_file():
            raise ClusterError(
                f"engine.scheduler: {address}: no such file; start the scheduler with "
                f"`dask scheduler --scheduler-file {address}`, or write its address, tcp://host:port"
            )
        where = {"address": address} if file is None else {"scheduler_file": str(file)}
        try:
            client = Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(
                f"engine.scheduler: {address}: nobody answers there ({cause}); start it with "
                "`dask scheduler`, or correct the address"
            ) from error
    return client


@atexit.register
def disconnect() -> None:
    """Close what `unordered` keeps open until the process ends."""
    while _clients:
        _, client = _clients.popitem()
        made = client.cluster
        client.close(timeout=5)
        if made is not None:
            made.close(timeout=5)


def unordered(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    options: Engine,
    folder: Path,
    files: Sequence[Path],
    forget: Callable[[], None] | None = None,
    ends: Callable[[Exception], bool] = _never,
    methods: Mapping[str, str] | None = None,
) -> Generator[Outcome]:
    """Yield what came of each job as it ends, wherever it ran.

    A job that fails is tried on another worker, where there is one, `options.retries` times, before
    jobs that were not tried yet. Jobs whose workers died are tried once more, each alone at the
    end, since one of them took the others along. Only few jobs are with the scheduler at any time.

    Parameters
    ----------
    function : callable
        Of one job; a function of a module, as is everything in a job.
    jobs : sequence
        What to hand to it, a few kilobytes each.
    options : Engine
        Scheduler or size of the local cluster.
    folder : Path
        Where jobs leave results, shared by all.
    files : sequence of Path
        What jobs open; workers must see the same.
    forget : callable, optional
        Drops what a worker keeps of `files`; called where they changed.
    ends : callable
        Whether an error is one that every other try would meet; a function of a module.
    methods : mapping of str to str, optional
        Own attribution methods that jobs may name, `module:function` by name. Workers import them
        from the client's working folder, and refuse where that gives another source.

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
            tuple((path.resolve(), digest(path.resolve())) for path in files),
            build(),
            options.threads,
            forget,
            Path.cwd(),
            _own_methods(methods or {}),
        )
        yield from _Run(client, (function, ends), jobs, options, pickle.dumps(site)).outcomes()


def _own_methods(paths: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """Own methods that this process knows, with the source that it makes keys of."""
    known = [(name, path, plugins.find(name)) for name, path in paths.items()]
    return tuple((name, path, found.code.source) for name, path, found in known if found)


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """Keep a file in a folder, by which workers know the folder."""
    mark = mark_of(folder)
    with atomic_file(mark) as temporary:
        temporary.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


class _Run:
    """One call of `unordered`."""

    def __init__(
        self,
        client: Client,
        functions: tuple[Callable[[Any], Any], Callable[[Exception], bool]],
        jobs: Sequence[Any],
        options: Engine,
        site: bytes,
    ):
        self.client, self.functions, self.jobs, self.options = client, functions, jobs, options
        self.site = site
        self.where = options.scheduler or "local cluster"
        self.finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.waiting = deque(_Entry(index) for index in range(len(jobs)))
        self.running: dict[str, tuple[_Entry, Future]] = {}
        self.suspects: list[_Entry] = []
        self.workers: tuple[str, ...] = ()
        self.asked = self.seen = self.answered = time.monotonic()
        self.warned = 0.0

    def outcomes(self) -> Generator[Outcome]:
        self._ask()
        try:
            while self.waiting or self.running or self.suspects:
                self._submit()
                try:
                    future = self.finished.get(timeout=_PULSE)
                except queue.Empty:
                    self._ask()
                    continue
                if time.monotonic() - self.asked > _PULSE:
                    self._ask()
                entry, _ = self.running.pop(str(future.key))
                outcome = self._outcome(entry, future)
                future.release()
                if outcome is not None:
                    yield outcome
        finally:
            left = [future for _, future in self.running.values()]
            if left and self.client.status == "running":
                self.client.cancel(left)

    def _ask(self) -> None:
        """Which workers there are; an end to waiting for nobody."""
        if self.client.status not in ("running", "connecting"):
            raise self._lost()
        now = self.asked = time.monotonic()
        if self.client.status == "running":
            try:
                # A scheduler that is stopped would be waited for without end.
                self.workers = tuple(self.client.nthreads(callback_timeout=_ANSWER_SECONDS))
                self.answered = time.monotonic()
            except TimeoutError:
                self._tell_silence()
                return
            except OSError as error:
                raise self._lost() from error
            if self.workers:
                self.seen = now
        if now - self.seen > PATIENCE:
            raise ClusterError(
                f"engine.scheduler: {self.where} has had no workers for {PATIENCE:.0f} s; start "
                f"some (`dask worker {self.where}`); finished tasks are kept"
            )
        if now - self.seen > 10 and now - self.warned > _SILENCE:
            self.warned = now
            logger.warning("%s has no workers; waiting for some", self.where)

    def _tell_silence(self) -> None:
        """Say that nothing is heard of a scheduler that is still connected; it may go on."""
        now = time.monotonic()
        if now - self.answered > _SILENCE and now - self.warned > _SILENCE:
            self.warned = now
            logger.warning(
                "engine.scheduler: %s has not answered for %.0f s: look whether it is stopped or "
                "its machine hangs; waiting, and finished tasks are kept if you interrupt",
                self.where,
                now - self.answered,
            )

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"engine.scheduler: {self.where} is gone; start it again and run again: finished tasks "
            "are kept"
        )

    def _submit(self) -> None:
        room = max(_JOBS_PER_WORKER * len(self.workers), 1) - len(self.running)
        entries = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        if not (entries or self.running or self.waiting):
            entries = [_Entry(self.suspects.pop(0).index, alone=True)]
        fresh = [entry for entry in entries if not entry.failed_on]
        if fresh:
            payloads = [self._payload(entry) for entry in fresh]
            futures = self.client.map(_attempt, payloads, site=self.site, pure=False)
            for entry, future in zip(fresh, futures, strict=True):
                self._watch(entry, future)
        for entry in entries:
            if entry.failed_on:
                others = [worker for worker in self.workers if worker not in entry.failed_on]
                future = self.client.submit(
                    _attempt,
                    self._payload(entry),
                    site=self.site,
                    pure=False,
                    workers=others or None,
                    allow_other_workers=bool(others),
                )
                self._watch(entry, future)

    def _payload(self, entry: _Entry) -> bytes:
        function, ends = self.functions
        return pickle.dumps((function, self.jobs[entry.index], ends))

    def _watch(self, entry: _Entry, future: Future) -> None:
        self.running[str(future.key)] = entry, future
        future.add_done_callback(self.finished.put)

    def _outcome(self, entry: _Entry, future: Future) -> Outcome | None:
        """What came of a try; None where there will be another."""
        if future.status in ("canceled", "lost"):
            raise self._lost()
        if future.status == "error":
            error = future.exception()
            if not isinstance(error, KilledWorker):
                # Raised around the job, as where a worker lacks the package.
                raise ClusterError(
                    f"engine.scheduler: {self.where}: {type(error).__name__}: {error}; workers and "
                    "scheduler need this environment and this checkout"
                ) from error
            if not entry.alone:
                self.suspects.append(entry)
                return None
            lost = WorkerLostError(
                "ended the process of every worker that ran it; its log, or the system's (out of "
                "memory?), says why"
            )
            return Outcome(entry.index, None, lost, entry.attempts)
        reply: _Reply = future.result()
        if reply.error is None:
            return Outcome(entry.index, reply.result, None, entry.attempts)
        if reply.ends or entry.attempts > self.options.retries:
            return Outcome(entry.index, None, reply.error, entry.attempts, reply.ends)
        failed_on = entry.failed_on | {reply.worker}
        # Before the others: where all fail alike, the first ones say so and the rest is spared.
        self.waiting.appendleft(_Entry(entry.index, failed_on, entry.attempts + 1, entry.alone))
        return None
