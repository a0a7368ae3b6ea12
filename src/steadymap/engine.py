"""Running tasks: those that the cache lacks, each stored as it ends."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steadymap import evaluation, models
from steadymap.attribution import explainer
from steadymap.attribution.fusion import fused
from steadymap.attribution.passes import Passes
from steadymap.grid import (
    Plan,
    Setting,
    Task,
    passes_of,
    plan_settings,
    points,
    unique_settings,
)
from steadymap.params import Attribution, Params
from steadymap.store import TaskCache, read_json, write_maps

logger = logging.getLogger(__name__)

_LOG_SECONDS = 15.0
# Made once per model in use; gone with it.
_FAST: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()


@dataclass(frozen=True)
class Workplace:
    """Where a worker finds what tasks name.

    Attributes
    ----------
    models : Path
        Folder with a folder per model.
    evaluation_set : Path
        Folder of the evaluation set.
    attribution : Attribution
        Batch shape and device.
    """

    models: Path
    evaluation_set: Path
    attribution: Attribution


@dataclass(frozen=True)
class Ran:
    """What a run did: tasks executed, tasks found in the cache, wall seconds."""

    executed: int
    cached: int
    seconds: float

    def __str__(self) -> str:
        tasks = "1 task" if self.executed == 1 else f"{self.executed} tasks"
        return f"{tasks} executed, {self.cached} found in the cache, {self.seconds:.0f} s"


@lru_cache(maxsize=2)
def _model(folder: Path, device: str) -> models.Explainable:
    return models.load(folder).to(models.choose_device(device))


def _fast(model: models.Explainable) -> torch.nn.Module:
    """The model in fewer kernels; nobody changes a model between tasks."""
    found = _FAST.get(model)
    if found is None:
        found = fused(model)
        # Held by itself, a model that can't be fused would never go.
        if found is not model:
            _FAST[model] = found
    return found


@lru_cache(maxsize=1)
def _evaluation_set(folder: Path) -> tuple[list[str], torch.Tensor, dict[str, list[int]]]:
    rows, targets, pixels = evaluation.read(folder)
    per_model = {model: list(part["target"]) for model, part in targets.groupby("model")}
    return list(rows["image_id"]), evaluation.as_images(pixels), per_model


def execute(
    task: Task, workplace: Workplace, *, model: models.Explainable | None = None
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Compute one task; maps and diagnostics of each of its settings.

    `model` takes the place of the trained one that the task names.

    Raises
    ------
    FloatingPointError
        Where a map is not finite: with its method, model and image.
    """
    attribution = workplace.attribution
    if model is None:
        model = _model(workplace.models / task.model, attribution.device)
    ids, images, targets = _evaluation_set(workplace.evaluation_set)
    block = list(task.block)
    device = next(model.buffers()).device
    names = [ids[position] for position in block]
    method = task.settings[0].method
    explained = explainer(method).explain(
        Passes(model, attribution.batch_size, fast=_fast(model)),
        images[block].to(device),
        torch.tensor([targets[task.model][position] for position in block], device=device),
        image_ids=names,
        settings=[made.hyperparameters for made in task.settings],
    )
    results = []
    for made, (maps, extra) in zip(task.settings, explained, strict=True):
        finite = torch.isfinite(maps).all(dim=(1, 2))
        if not finite.all():
            name = names[int((~finite).nonzero()[0])]
            raise FloatingPointError(
                f"{method} {made.text} on {task.model}: the map of image {name} is not finite; "
                "check the weights, or leave the image out (evaluation_set.rule: list)"
            )
        arrays = {key: value.cpu().numpy() for key, value in extra.items()}
        results.append((maps.cpu().numpy(), arrays))
    return results


def missing(tasks: Sequence[Task], cache: TaskCache) -> list[Task]:
    """Tasks that the cache lacks, narrowed to the settings that it lacks."""
    found = []
    for task in tasks:
        absent = [i for i, key in enumerate(task.keys) if key not in cache]
        if absent:
            settings = tuple(task.settings[i] for i in absent)
            keys = tuple(task.keys[i] for i in absent)
            found.append(replace(task, settings=settings, keys=keys))
    return found


def weight(task: Task, image_size: int) -> int:
    """Passes of a task, backward ones counted twice: what its time goes with."""
    forward, backward = passes_of(task.settings, image_size)
    return len(task.block) * (forward + 2 * backward)


def run(
    tasks: Sequence[Task], *, cache: TaskCache, workplace: Workplace, image_size: int, title: str
) -> Ran:
    """Execute what the cache lacks; each result is stored as it comes."""
    began = time.monotonic()
    pending = missing(tasks, cache)
    weights = [weight(task, image_size) for task in pending]
    for task, _ in zip(pending, reported(weights, title), strict=True):
        for key, (maps, diagnostics) in zip(task.keys, execute(task, workplace), strict=True):
            cache.write(key, maps, diagnostics)
    return Ran(len(pending), len(tasks) - len(pending), time.monotonic() - began)


def reported(weights: Sequence[int], title: str) -> Iterator[int]:
    """Yield a number per weight and report: a bar in a terminal, else a line now and then."""
    if not weights:
        return
    console = Console(stderr=True)
    began = last = time.monotonic()
    done, total = 0, sum(weights)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(weights))
        for index, passes in enumerate(weights):
            yield index
            done += passes
            progress.update(bar, completed=index + 1)
            now = time.monotonic()
            if not console.is_terminal and (now - last > _LOG_SECONDS or done == total):
                last = now
                left = (now - began) * (total - done) / done
                logger.info("%s: %d/%d tasks, %.0f s left", title, index + 1, len(weights), left)


def study_plan(method: str, params: Params) -> Plan:
    """Tasks of a method over a study's trained models and evaluation set."""
    settings = unique_settings(points(method, params.sweeps[method]))
    return settings_plan(settings, params, params.models.names)


def settings_plan(settings: list[Setting], params: Params, names: Sequence[str]) -> Plan:
    """Tasks of settings of one method over models of a study and its evaluation set."""
    rows, targets, _ = evaluation.read(params.results / "evaluation_set")
    cards = {name: read_json(params.results / "models" / name / "card.json") for name in names}
    return plan_settings(
        settings,
        weights={name: models.identity(card) for name, card in cards.items()},
        rows=rows,
        targets=targets,
        preprocessing=params.data.pixel_recipe,
        attribution=params.attribution,
    )


def assemble(
    method: str, made: Plan, *, cache: TaskCache, workplace: Workplace, folder: Path
) -> None:
    """Collect a method's maps from the cache into its archive."""
    rows, _, _ = evaluation.read(workplace.evaluation_set)
    models_named = list(dict.fromkeys(model for model, _ in made.keys))
    notes: list[pd.DataFrame] = []
    arrays: dict[tuple[str, int], dict[str, np.ndarray]] = {}

    def stack(model: str) -> Iterator[np.ndarray]:
        for index, setting in enumerate(made.settings):
            maps, extra = collected(made.keys[model, setting], cache)
            for name, values in extra.items():
                if values.ndim > 1:
                    arrays.setdefault((model, index), {})[name] = values
                    continue
                columns = {"model": model, "setting": index, "image_id": rows["image_id"]}
                notes.append(pd.DataFrame({**columns, "name": name, "value": values}))
            yield maps

    write_maps(
        folder,
        method=method,
        image_ids=list(rows["image_id"]),
        settings=[
            {
                "hyperparameters": setting.hyperparameters,
                "task_ids": {model: made.task_id(model, setting) for model in models_named},
            }
            for setting in made.settings
        ],
        maps={model: stack(model) for model in models_named},
        diagnostics=notes,
        arrays=arrays,
    )


def collected(keys: Sequence[str], cache: TaskCache) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Maps and diagnostics of one setting over all its blocks.

    Raises
    ------
    FileNotFoundError
        Where the cache lost one.
    """
    found: list[np.ndarray] = []
    extra: list[Mapping[str, np.ndarray]] = []
    for key in keys:
        entry = cache.read(key)
        if entry is None:
            raise FileNotFoundError(
                f"{cache.path(key)}: gone or damaged since it was computed; run `dvc repro` again"
            )
        found.append(entry[0])
        extra.append(entry[1])
    joined = {name: np.concatenate([part[name] for part in extra]) for name in extra[0]}
    return np.concatenate(found), joined
