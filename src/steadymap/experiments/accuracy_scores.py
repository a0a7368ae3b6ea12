"""Accuracy of every map of a study: insertion, deletion, localization, and their baselines."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from steadymap.engine import evaluation_set as evaluation
from steadymap.engine.runner import (
    RunContext,
    SharedFiles,
    collected,
    run_jobs,
    runner_for,
    trained_model,
)
from steadymap.engine.settings import Point, Setting, points, unique_settings
from steadymap.engine.tasks import device_part
from steadymap.experiments.localization import (
    EvaluationImages,
    evaluation_images,
    joined,
    located,
)
from steadymap.experiments.similarity_scores import COLUMNS, chunks
from steadymap.metrics import accuracy
from steadymap.metrics.similarity import degenerate
from steadymap.models import registry
from steadymap.params.methods import ALPHAS
from steadymap.params.schema import Accuracy, Params, Sweep
from steadymap.store import fingerprint
from steadymap.store.atomic import read_json
from steadymap.store.maps import Maps
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

AREAS = {"auc": False, "auc_over_max": True}

# Maps of an image that share one task, and with it the ends of their curves.
MAPS_AT_ONCE = 8


class Scored(NamedTuple):
    """Score rows, and how many maps' curves were computed and found in the cache."""

    rows: pd.DataFrame
    computed: int
    found: int

    def __str__(self) -> str:
        return (
            f"{len(self.rows)} scores; curves of {self.computed} maps computed, "
            f"of {self.found} found in the cache"
        )


@dataclass(frozen=True)
class _Task:
    """Curves of one block of images by one model, for several of its maps."""

    model: str
    block: slice
    keys: tuple[str, ...]
    settings: tuple[Setting, ...]


def plan_passes(method: str, params: Params) -> int:
    """Forward passes, at most, of all curves of a method's maps."""
    settings = unique_settings(points(method, params.sweeps[method]))
    side = params.data.image_size
    maps = len(settings) * len(params.models.names) * params.evaluation_set.n_images
    return maps * accuracy.passes_per_map(side * side, params.accuracy.pixels(side))


def plan_rows(method: str, params: Params) -> int:
    """Rows, at most, of a method's scores: as if every image had a box."""
    per_map = len(accuracy.KINDS) * len(AREAS) + 2 * len(ALPHAS)
    n_points = len(_groups(method, params.sweeps[method]))
    return n_points * per_map * len(params.models.names) * params.evaluation_set.n_images


def score(method: str, params: Params, *, cache: TaskCache, run_context: RunContext) -> Scored:
    """Score every map that a method's sweeps ask for, the reference's included.

    Curves come from the cache, where each stands under a hash of the map, the image, the class
    followed, the model and the options; those it lacks are computed and stored as they come.

    Parameters
    ----------
    method : str
        Name of the method, whose maps stand in the archive.
    params : Params
        The study.
    cache : TaskCache
        Where curves are kept, float32 (images, 2, points): insertion and deletion.
    run_context : RunContext
        Models, evaluation set, batch shape.

    Returns
    -------
    Scored
        Rows with the columns of `steadymap.scores.COLUMNS`. Metrics `insertion` and `deletion` by
        `auc` and `auc_over_max`; `localization_error` and `iou` by `alpha0.10` to `alpha0.50`,
        without the images that have no box. A sweep over a count has its variants twice: in the
        nested group, and beside the reference with draws of its own.

    Raises
    ------
    ValueError
        Where the maps are not those of this evaluation set.
    """
    seen = evaluation_images(run_context.evaluation_set, params)
    maps = Maps(params.results / "maps" / method)
    if maps.image_ids != seen.ids:
        raise ValueError(
            f"{maps.folder}: its {len(maps.image_ids)} images are not the {len(seen.ids)} of "
            f"{run_context.evaluation_set}; run `dvc repro`"
        )
    missing = len(seen.ids) - len(seen.boxed)
    if missing:
        logger.info(
            "%s: %d of %d images have no box and are left out of localization",
            method,
            missing,
            len(seen.ids),
        )
    sweeps = params.sweeps[method]
    curves, computed, found = _curves(method, params, maps, seen, cache, run_context)
    side = seen.pixels.shape[1]
    at = accuracy.fractions(side * side, params.accuracy.pixels(side))
    frames = []
    for model in params.models.names:
        by_setting = {
            made: _scores(curves[model, made], maps.read(model, made.hyperparameters), seen, at)
            for made in unique_settings(points(method, sweeps))
        }
        frames += [
            by_setting[point.setting].assign(
                sweep=point.sweep,
                method=method,
                model=model,
                hyperparameter=point.hyperparameter,
                value=point.value,
                draws=group,
            )
            for point, group in _groups(method, sweeps)
        ]
    rows = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    return Scored(rows, computed, found)


def _groups(method: str, sweeps: Mapping[str, Sweep]) -> list[tuple[Point, str]]:
    """Points in each group of draws that they belong to: a reference and its sweep's variants."""
    every = points(method, sweeps)
    return [
        (point, reference.draws)
        for reference in every
        if reference.is_reference
        for point in every
        if point.sweep == reference.sweep and (point is reference or not point.is_reference)
    ]


def _scores(
    curves: np.ndarray, maps: np.ndarray, seen: EvaluationImages, at: torch.Tensor
) -> pd.DataFrame:
    """Rows of one setting's maps, without what names the setting."""
    flagged = np.concatenate(
        [degenerate(torch.from_numpy(np.array(maps[some]))).numpy() for some in chunks(len(maps))]
    )
    ids, everywhere = np.array(seen.ids, dtype=object), np.arange(len(maps))
    parts: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for index, kind in enumerate(accuracy.KINDS):
        for convention, over_max in AREAS.items():
            areas = accuracy.auc(
                torch.from_numpy(curves[:, index]), fractions=at, over_max=over_max
            )
            parts.append((kind, convention, everywhere, areas.numpy()))
    localized = joined(
        [
            located(torch.from_numpy(np.array(maps[seen.boxed[some]])), seen, some)
            for some in chunks(len(seen.boxed))
        ]
    )
    parts += [(*key, seen.boxed, values) for key, values in localized.items()]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "image_id": ids[where],
                    "metric": metric,
                    "convention": convention,
                    "score": values,
                    "degenerate": flagged[where],
                    "inverted": False,
                }
            )
            for metric, convention, where, values in parts
        ],
        ignore_index=True,
    )


def _curves(
    method: str,
    params: Params,
    maps: Maps,
    seen: EvaluationImages,
    cache: TaskCache,
    run_context: RunContext,
) -> tuple[dict[tuple[str, Setting], np.ndarray], int, int]:
    """Curves of all maps by model and setting; how many were computed, how many found."""
    keys, blocks = _keys(method, params, maps, seen, run_context)
    held: dict[str, np.ndarray] = {}
    groups: dict[tuple[str, int], dict[str, Setting]] = {}
    for (model, made), names in keys.items():
        for index, key in enumerate(names):
            if key in held:
                continue
            entry = cache.read(key)
            if entry is not None:
                held[key] = entry[0]
            else:
                # Equal maps have equal keys and are measured once.
                groups.setdefault((model, index), {}).setdefault(key, made)
    tasks = [
        _Task(model, blocks[index], tuple(part), tuple(pending[key] for key in part))
        for (model, index), pending in groups.items()
        for part in _parts(list(pending), MAPS_AT_ONCE)
    ]
    sizes = {
        key: len(range(*block.indices(len(seen.ids))))
        for names in keys.values()
        for key, block in zip(names, blocks, strict=True)
    }
    found = sum(sizes[key] for key in held)
    _execute(tasks, method, params, maps, cache, run_context)
    for task in tasks:
        for key in task.keys:
            held[key] = collected([key], cache)[0]
    joined = {pair: np.concatenate([held[key] for key in names]) for pair, names in keys.items()}
    return joined, sum(sizes.values()) - found, found


def _parts(values: Sequence[str], size: int) -> list[Sequence[str]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _classes(params: Params, run_context: RunContext) -> dict[str, np.ndarray]:
    """Class that each model's curves follow, per image."""
    rows, targets, _ = evaluation.read(run_context.evaluation_set)
    return {
        model: part.set_index("image_id").loc[rows["image_id"], params.accuracy.tracked].to_numpy()
        for model, part in targets.groupby("model")
    }


def _keys(
    method: str, params: Params, maps: Maps, seen: EvaluationImages, run_context: RunContext
) -> tuple[dict[tuple[str, Setting], list[str]], list[slice]]:
    """Name of each block's curves: a hash of everything that they depend on."""
    attribution, options = run_context.attribution, params.accuracy
    size = attribution.block_size
    blocks = [slice(start, start + size) for start in range(0, len(seen.ids), size)]
    classes = _classes(params, run_context)
    shared = {
        "curves": list(accuracy.KINDS),
        "step": options.pixels(seen.pixels.shape[1]),
        "substrate": options.substrate,
        "output": options.output,
        "batch_size": attribution.batch_size,
        "dtype": "float32",
        "torch": torch.__version__,
        "libraries": {"scipy": version("scipy")} if options.substrate == "blur" else {},
        "source": fingerprint.digest("steadymap.metrics.accuracy", "steadymap.models.registry"),
        **device_part(run_context.attribution),
    }
    found: dict[tuple[str, Setting], list[str]] = {}
    for model in params.models.names:
        card = read_json(run_context.models / model / "card.json")
        for made in unique_settings(points(method, params.sweeps[method])):
            stack = maps.read(model, made.hyperparameters)
            for block in blocks:
                parts = {
                    **shared,
                    "weights": registry.identity(card),
                    "classes": [int(value) for value in classes[model][block]],
                    "images": _sha256(seen.pixels[block]),
                    "maps": _sha256(stack[block]),
                }
                text = json.dumps(parts, sort_keys=True).encode()
                found.setdefault((model, made), []).append(hashlib.sha256(text).hexdigest())
    return found, blocks


def _sha256(values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{values.dtype.str} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """A task and where a worker finds what it names."""

    task: _Task
    classes: tuple[int, ...]
    options: Accuracy
    maps: Path
    run_context: RunContext
    cache: TaskCache


def _measured(job: _Job) -> None:
    """Compute and store a task's curves, float32 (images, 2, points) per setting."""
    task, run_context = job.task, job.run_context
    every = np.load(run_context.evaluation_set / "images.npy", mmap_mode="r")
    pixels = np.array(every[task.block])
    network = trained_model(task.model, run_context)
    device = next(network.buffers()).device
    maps = Maps(job.maps)
    stack = np.stack(
        [maps.read(task.model, made.hyperparameters)[task.block] for made in task.settings]
    )
    curves = accuracy.both_curves(
        runner_for(network, run_context),
        evaluation.as_images(pixels).to(device),
        torch.from_numpy(stack).to(device),
        torch.tensor(job.classes, dtype=torch.int64, device=device),
        step=job.options.pixels(pixels.shape[1]),
        substrate=job.options.substrate,
        output=job.options.output,
    )
    for key, values in zip(task.keys, curves.cpu().numpy(), strict=True):
        job.cache.write(key, values, {})


def _execute(
    tasks: Sequence[_Task],
    method: str,
    params: Params,
    maps: Maps,
    cache: TaskCache,
    run_context: RunContext,
) -> None:
    """Compute and store each task's curves, here or on workers, and report."""
    classes = _classes(params, run_context)
    side = params.data.image_size
    per_map = accuracy.passes_per_map(side * side, params.accuracy.pixels(side))
    place, shared = run_context.resolved(), TaskCache(cache.folder.resolve())
    jobs = [
        _Job(
            task,
            tuple(int(value) for value in classes[task.model][task.block]),
            params.accuracy,
            maps.folder.resolve(),
            place,
            shared,
        )
        for task in tasks
    ]
    for _ in run_jobs(
        _measured,
        jobs,
        names=[
            f"curves of {method}, {len(task.keys)} maps, {task.model}, images {task.block.start} on"
            for task in tasks
        ],
        weights=[len(job.task.keys) * len(job.classes) * per_map for job in jobs],
        run_context=run_context,
        shared=SharedFiles(
            cache.folder,
            [
                *run_context.files(dict.fromkeys(task.model for task in tasks)),
                maps.folder / "index.json",
            ],
        ),
        title=f"accuracy {method}",
    ):
        pass
