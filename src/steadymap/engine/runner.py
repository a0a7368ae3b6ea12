"""Running tasks: those that the cache lacks, each stored as it ends."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch

from steadymap.attribution import explainer
from steadymap.attribution.fusion import fused
from steadymap.attribution.model_runner import ModelRunner
from steadymap.engine import evaluation_set as evaluation
from steadymap.engine.settings import Setting, points, unique_settings
from steadymap.engine.tasks import Plan, Task, cost_of, plan_settings
from steadymap.models import adoption, registry
from steadymap.params.schema import Attribution, Engine, Params
from steadymap.progress import reporting
from steadymap.store.atomic import StorageError, read_json
from steadymap.store.maps import write_maps
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Fused copies, each as long as its model is in use.
_FUSED: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()

# A run ends after this many failures without a success: the rest would fail alike.
_MOST_FAILURES = 20

_ANYWHERE = Engine()


class EntryLostError(FileNotFoundError):
    """A cache entry is missing, or was damaged and has been deleted."""


class TasksFailedError(ValueError):
    """Tasks that could not be computed, by name; others are stored. The first is the cause.

    Attributes
    ----------
    errors : list of Exception
        What each raised, in the order of the tasks.
    """

    def __init__(self, message: str, errors: list[Exception]):
        super().__init__(message)
        self.errors = errors


@dataclass(frozen=True)
class RunContext:
    """Where a worker finds what tasks name.

    Attributes
    ----------
    models : Path
        Folder with a folder per model.
    evaluation_set : Path
        Folder of the evaluation set.
    attribution : Attribution
        Batch shape and device.
    engine : Engine
        Where the workers are.
    """

    models: Path
    evaluation_set: Path
    attribution: Attribution
    engine: Engine = _ANYWHERE

    @classmethod
    def of(cls, params: Params, *, evaluation_set: Path | None = None) -> "RunContext":
        """RunContext of a study; `evaluation_set` stands for other images than its own."""
        folder = evaluation_set or params.results / "evaluation_set"
        return cls(params.results / "models", folder, params.attribution, params.engine)

    @property
    def data(self) -> Path:
        """Folder of the dataset, beside that of the models."""
        return self.models.parent / "data"

    def resolved(self) -> "RunContext":
        """The same by absolute paths and kind of device, for workers that began elsewhere.

        `auto` means what it does here, where keys are made.
        """
        kind = registry.device_kind(self.attribution.device)
        return replace(
            self,
            models=self.models.resolve(),
            evaluation_set=self.evaluation_set.resolve(),
            attribution=self.attribution.model_copy(update={"device": kind}),
        )

    def files(self, names: Iterable[str]) -> list[Path]:
        """Files that tell, by their content, which models and images these are."""
        rows = [self.evaluation_set / name for name in ("evaluation_set.csv", "targets.csv")]
        return rows + [self.models / name / "card.json" for name in names]


@dataclass(frozen=True)
class RunSummary:
    """What a run did: tasks executed, tasks found in the cache, wall seconds."""

    executed: int
    cached: int
    seconds: float

    def __str__(self) -> str:
        tasks = "1 task" if self.executed == 1 else f"{self.executed} tasks"
        return f"{tasks} executed, {self.cached} found in the cache, {self.seconds:.0f} s"


def device_of(name: str) -> torch.device:
    """Device of a params value, with float32 arithmetic that repeats itself.

    By default cuDNN rounds the factors of convolutions to 10 bits (TF32), and chooses kernels that
    add up in another order each time.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return registry.choose_device(name)


@lru_cache(maxsize=2)
def _model(folder: Path, device: str) -> registry.Explainable:
    model = registry.load(folder).to(device_of(device))
    card = read_json(folder / "card.json")
    if size := card.get("image_size"):
        n_classes = len(card["classes"])
        adoption.check_classifier(model, key=str(folder), n_classes=n_classes, image_size=size)
    return model


def fused_copy(model: registry.Explainable) -> torch.nn.Module:
    """Fused copy of the model, cached; models are not modified between tasks."""
    copy = _FUSED.get(model)
    if copy is None:
        copy = fused(model)
        # A model that can't be fused is its own copy, and would hold itself for ever.
        if copy is not model:
            _FUSED[model] = copy
    return copy


def runner_for(model: registry.Explainable, run_context: RunContext) -> ModelRunner:
    """Model runner at the batch shape of `run_context`, with the model's fused copy."""
    return ModelRunner(model, run_context.attribution.batch_size, fast=fused_copy(model))


@lru_cache(maxsize=1)
def _evaluation_set(folder: Path) -> tuple[list[str], dict[str, list[int]]]:
    rows, targets, _ = evaluation.read(folder)
    per_model = {model: list(part["target"]) for model, part in targets.groupby("model")}
    return list(rows["image_id"]), per_model


def execute(
    task: Task, run_context: RunContext, *, model: registry.Explainable | None = None
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Compute one task; maps and diagnostics of each of its settings.

    `model` takes the place of the trained one that the task names.

    Parameters
    ----------
    task
        Settings of one method, a model and a block of images.
    run_context
        Where models and images lie, batch shape and device.
    model
        Takes the place of the trained one that the task names.

    Raises
    ------
    FloatingPointError
        Where a map is not finite: with its method, model and image.
    """
    if model is None:
        model = trained_model(task.model, run_context)
    ids, targets = _evaluation_set(run_context.evaluation_set)
    block = list(task.block)
    device = next(model.buffers()).device
    names = [ids[position] for position in block]
    method = task.settings[0].method
    explained = explainer(method).explain(
        runner_for(model, run_context),
        evaluation.as_images(evaluation.pixels_of(run_context.evaluation_set, block)).to(device),
        torch.tensor([targets[task.model][position] for position in block], device=device),
        image_ids=names,
        settings=[setting.hyperparameters for setting in task.settings],
    )
    results = []
    for setting, (maps, extra) in zip(task.settings, explained, strict=True):
        finite = torch.isfinite(maps).all(dim=(1, 2))
        if not finite.all():
            name = names[int((~finite).nonzero()[0])]
            raise FloatingPointError(
                f"{method} {setting.text} on {task.model}: the map of image {name} is not finite; "
                "check the weights, or leave the image out (evaluation_set.rule: list)"
            )
        arrays = {key: value.cpu().numpy() for key, value in extra.items()}
        results.append((maps.cpu().numpy(), arrays))
    return results


def trained_model(name: str, run_context: RunContext) -> registry.Explainable:
    """Trained model on the device, kept for the next task."""
    return _model(run_context.models / name, run_context.attribution.device)


def missing(tasks: Sequence[Task], cache: TaskCache) -> list[Task]:
    """Tasks that the cache lacks, narrowed to the settings that it lacks."""
    narrowed = []
    for task in tasks:
        absent = [i for i, key in enumerate(task.keys) if key not in cache]
        if absent:
            settings = tuple(task.settings[i] for i in absent)
            keys = tuple(task.keys[i] for i in absent)
            narrowed.append(replace(task, settings=settings, keys=keys))
    return narrowed


@dataclass(frozen=True)
class _Job:
    task: Task
    run_context: RunContext
    cache: TaskCache


def _compute_and_store(job: _Job) -> None:
    results = execute(job.task, job.run_context)
    for key, (maps, diagnostics) in zip(job.task.keys, results, strict=True):
        job.cache.write(key, maps, diagnostics)


def run(
    tasks: Sequence[Task], *, cache: TaskCache, run_context: RunContext, title: str
) -> RunSummary:
    """Execute what the cache lacks; each result is stored as it comes, by whoever computed it.

    Parameters
    ----------
    tasks
        Tasks, in the order of their plan.
    cache
        Where results are looked up and stored.
    run_context
        Where models and images lie, and where tasks run.
    title
        What the progress bar says.

    Raises
    ------
    TasksFailedError
        Where some could not be computed, once the others are.
    StorageError, MemoryError
        At once where the disk is full or can't be written, or memory does not suffice.
    """
    began = time.monotonic()
    pending = missing(tasks, cache)
    place = run_context, cache
    if uses_workers(run_context):
        place = run_context.resolved(), TaskCache(cache.folder.resolve())
    models = dict.fromkeys(task.model for task in pending)
    for _ in run_jobs(
        _compute_and_store,
        [_Job(task, *place) for task in pending],
        names=[_name(task) for task in pending],
        weights=_weights(pending, run_context),
        run_context=run_context,
        shared=SharedFiles(cache.folder, run_context.files(models)),
        title=title,
    ):
        pass
    return RunSummary(len(pending), len(tasks) - len(pending), time.monotonic() - began)


def _weights(tasks: Sequence[Task], run_context: RunContext) -> list[int]:
    """Passes of each task, backward ones counted twice: proportional to its time."""
    if not tasks:
        return []
    side = evaluation.read(run_context.evaluation_set)[2].shape[1]
    costs = (cost_of(task.settings, side) for task in tasks)
    passes = [forward + 2 * backward for forward, backward in costs]
    return [len(task.block) * each for task, each in zip(tasks, passes, strict=True)]


def _name(task: Task) -> str:
    first, *others = task.settings
    more = f" and {len(others)} more" if others else ""
    images = f"images {task.block[0]} to {task.block[-1]}"
    return f"{first.method} {first.text}{more}, {task.model}, {images}"


def uses_workers(run_context: RunContext) -> bool:
    """Whether tasks go to workers: as params say; else where a machine has several GPUs."""
    options = run_context.engine
    if options.kind != "auto":
        return options.kind != "in_process"
    several = run_context.attribution.device in ("auto", "cuda") and torch.cuda.device_count() > 1
    return options.scheduler is not None or several


def clear_caches() -> None:
    """Drop the model and the list of images that are kept for the next task."""
    _model.cache_clear()
    _evaluation_set.cache_clear()


@dataclass(frozen=True)
class SharedFiles:
    """Files that jobs read and write, which all workers see under the same paths.

    Attributes
    ----------
    folder : Path
        Where jobs leave results.
    inputs : sequence of Path
        Files that jobs open, or that tell by their content what they open.
    clear_caches : callable
        Drops what a worker keeps of `inputs`; called where they changed.
    """

    folder: Path
    inputs: Sequence[Path]
    clear_caches: Callable[[], None] = clear_caches


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    names: Sequence[str],
    weights: Sequence[int],
    run_context: RunContext,
    shared: SharedFiles,
    title: str,
    unit: str = "passes",
) -> Iterator[tuple[int, Any]]:
    """Yield position and result of each job as it ends, here or on workers, and report.

    Parameters
    ----------
    function : callable
        Of one job; a function of a module.
    jobs : sequence
        What to hand to it, small: workers open what it names by absolute path.
    names, weights : sequence
        Per job, its name in errors, and a number that its time is proportional to, in `unit`.
    run_context : RunContext
        Says where to run.
    shared : SharedFiles
        What jobs open, and where they leave results.
    title : str
        What is done, in progress reports and errors.
    unit : str
        Unit of the weights.

    Raises
    ------
    TasksFailedError
        At the end, if jobs failed; before it, if the first ones all did.
    StorageError, MemoryError
        At once: every other job would meet it.
    """
    if not jobs:
        return
    failures: list[tuple[int, Exception]] = []
    ended = 0
    results = _results(function, jobs, run_context, shared)
    # Closed at once: an error holds on to what raised it, and workers would go on.
    reported = reporting(sum(weights), title, unit, n_tasks=len(weights))
    with reported as done, closing(results):
        for index, result, error, ends in results:
            if ends:
                assert error is not None
                if isinstance(error, StorageError):
                    raise error
                raise MemoryError(f"{title}: {names[index]}: {error}") from error
            ended += 1
            done(weights[index])
            if error is None:
                yield index, result
                continue
            logger.warning("%s: %s: %s", title, names[index], error)
            failures.append((index, error))
            if ended == len(failures) == _MOST_FAILURES:
                break
    if failures:
        failed = _tasks_failed(failures, names, title, n_left=len(jobs) - ended)
        raise failed from failed.errors[0]


def _tasks_failed(
    failures: list[tuple[int, Exception]], names: Sequence[str], title: str, *, n_left: int
) -> TasksFailedError:
    """Error that names each failed job in the order of the jobs; `n_left` were not tried."""
    failures = sorted(failures, key=lambda failure: failure[0])
    errors = [error for _, error in failures]
    lines = [
        f"{names[index]}: {type(error).__name__}: {' '.join(str(error).split())}"
        for index, error in failures
    ]
    others = (
        f"nothing else was done and {n_left} were not tried" if n_left else "the others are kept"
    )
    head = f"{title}: {len(failures)} of {len(names)} tasks failed; {others}; run again:"
    text = "\n  ".join([head, *lines]) if len(names) > 1 else f"{title}: {lines[0]}"
    return TasksFailedError(text, errors)


def _results(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    run_context: RunContext,
    shared: SharedFiles,
) -> Generator[tuple[int, Any, Exception | None, bool]]:
    """Yield position, result, error and whether the error ends the run."""
    if not uses_workers(run_context):
        for index, job in enumerate(jobs):
            try:
                result = function(job)
            except Exception as error:
                yield index, None, error, _ends_the_run(error)
            else:
                yield index, result, None, False
        return
    # Here: half a second of imports that a run without workers does not need.
    from steadymap.engine import cluster

    outcomes = cluster.unordered(
        function,
        jobs,
        options=run_context.engine,
        folder=shared.folder,
        files=shared.inputs,
        clear_caches=shared.clear_caches,
        ends=_ends_the_run,
        methods=run_context.attribution.own,
    )
    with closing(outcomes):
        yield from outcomes


def _ends_the_run(error: Exception) -> bool:
    """Whether every other task would fail alike: a full disk, or memory that does not suffice."""
    memory = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, StorageError) or any(
        isinstance(link, memory) for link in (error, error.__cause__)
    )


def weights_of(models: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash of the weights of each model, whose folders stand in `models`."""
    return {name: registry.identity(read_json(models / name / "card.json")) for name in names}


def study_plan(method: str, params: Params) -> Plan:
    """Tasks of a method over a study's trained models and evaluation set."""
    settings = unique_settings(points(method, params.sweeps[method]))
    return settings_plan(settings, params, params.models.names)


def settings_plan(settings: list[Setting], params: Params, names: Sequence[str]) -> Plan:
    """Tasks of settings of one method over models of a study and the method's images.

    Parameters
    ----------
    settings
        Settings of one method.
    params
        The study.
    names
        Models of the study.
    """
    rows, targets, _ = evaluation.read(params.results / "evaluation_set")
    return plan_settings(
        settings,
        weights=weights_of(params.results / "models", names),
        rows=rows.head(params.evaluation_set.of(settings[0].method)),
        targets=targets,
        preprocessing=params.data.pixel_recipe,
        attribution=params.attribution,
    )


def attribute(method: str, params: Params, *, cache: TaskCache) -> RunSummary:
    """Compute a method's maps as params want them: `results/{study}/maps/{method}`.

    Parameters
    ----------
    method
        A method of the study.
    params
        The study.
    cache
        Finished tasks.

    Raises
    ------
    TasksFailedError
        As `run`; then no map is written.
    """
    plan, run_context = study_plan(method, params), RunContext.of(params)
    folder = params.results / "maps" / method
    return computed(
        [PlannedRun([plan], run_context, f"attribute {method}")],
        lambda: assemble(method, plan, cache=cache, run_context=run_context, folder=folder),
        cache=cache,
    )


class PlannedRun(NamedTuple):
    """Plans whose tasks are computed together, on the images of `run_context`."""

    plans: list[Plan]
    run_context: RunContext
    title: str


def computed(
    runs: Sequence[PlannedRun], read: Callable[[], Any], *, cache: TaskCache
) -> RunSummary:
    """Compute what the cache lacks of some runs, then `read` their entries.

    Parameters
    ----------
    runs
        What is computed, in order.
    read
        Reads the entries of all of them; called again where one was damaged.
    cache
        Finished tasks.

    Raises
    ------
    TasksFailedError
        As `run`; then nothing is read.
    """
    summaries: list[RunSummary] = []

    def compute() -> None:
        for plans, run_context, title in runs:
            tasks = [task for plan in plans for task in plan.tasks]
            summaries.append(run(tasks, cache=cache, run_context=run_context, title=title))

    compute()
    plans = [plan for one in runs for plan in one.plans]
    read_or_recompute(read, compute, plans=plans, cache=cache)
    executed = sum(summary.executed for summary in summaries)
    seconds = sum(summary.seconds for summary in summaries)
    return RunSummary(executed, sum(len(plan.tasks) for plan in plans) - executed, seconds)


def read_or_recompute(
    read: Callable[[], T], compute: Callable[[], Any], *, plans: Iterable[Plan], cache: TaskCache
) -> T:
    """What `read` makes of entries; if one was damaged, once more after `compute`.

    All entries of the plans are looked at before, so that any number of damaged ones costs one
    more turn.

    Parameters
    ----------
    read
        Reads entries of the cache; raises `EntryLostError` for a damaged one.
    compute
        Computes what the cache lacks.
    plans
        Plans whose entries `read` needs.
    cache
        Finished tasks.

    Raises
    ------
    EntryLostError
        Where entries went in the second turn too.
    """
    try:
        return read()
    except EntryLostError:
        for plan in plans:
            for key in dict.fromkeys(key for keys in plan.keys.values() for key in keys):
                cache.read(key)
        compute()
        return read()


def assemble(
    method: str, plan: Plan, *, cache: TaskCache, run_context: RunContext, folder: Path
) -> None:
    """Collect a method's maps from the cache into its archive.

    Parameters
    ----------
    method
        Method of the maps.
    plan
        Its tasks, all of them finished.
    cache
        Where their results lie.
    run_context
        Names the evaluation set.
    folder
        Archive to write: `results/{study}/maps/{method}`.
    """
    rows, _, pixels = evaluation.read(run_context.evaluation_set)
    rows = rows.head(1 + max(task.block[-1] for task in plan.tasks))
    models_named = list(dict.fromkeys(model for model, _ in plan.keys))
    notes: list[pd.DataFrame] = []
    arrays: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def stack(model: str) -> Iterator[np.ndarray]:
        for index, setting in enumerate(plan.settings):
            extras: list[Mapping[str, np.ndarray]] = []
            for key in plan.keys[model, setting]:
                maps, extra = entry(key, cache)
                extras.append(extra)
                yield maps
            for name, values in _joined(extras).items():
                if values.ndim > 1:
                    arrays.setdefault((model, index), {})[name] = values
                    continue
                columns = {"model": model, "setting": index, "image_id": rows["image_id"]}
                notes.append(pd.DataFrame({**columns, "name": name, "value": values}))

    write_maps(
        folder,
        method=method,
        image_ids=list(rows["image_id"]),
        settings=[
            {
                "hyperparameters": setting.hyperparameters,
                "task_ids": {model: plan.task_id(model, setting) for model in models_named},
                "passes": cost_of([setting], pixels.shape[1]),
            }
            for setting in plan.settings
        ],
        maps={model: stack(model) for model in models_named},
        diagnostics=notes,
        arrays=arrays,
    )


def collected(keys: Sequence[str], cache: TaskCache) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Maps and diagnostics of one setting over all its blocks.

    Raises
    ------
    EntryLostError
        Where the cache lost one.
    """
    maps, extras = zip(*(entry(key, cache) for key in keys), strict=True)
    return np.concatenate(maps), _joined(extras)


def _joined(extras: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Diagnostics of a setting's blocks, one after the other."""
    return {name: np.concatenate([part[name] for part in extras]) for name in extras[0]}


def entry(key: str, cache: TaskCache) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Maps and diagnostics of one block.

    Raises
    ------
    EntryLostError
        Where the cache lost it.
    """
    maps_and_diagnostics = cache.read(key)
    if maps_and_diagnostics is None:
        raise EntryLostError(
            f"{cache.path(key)}: gone or damaged since it was computed; run `dvc repro` again"
        )
    return maps_and_diagnostics
