"""Accuracy of every map of a study: insertion, deletion, localization."""

import hashlib
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from steadymap.engine import evaluation_set as evaluation
from steadymap.engine import runner
from steadymap.engine.runner import RunContext
from steadymap.engine.settings import Point, Setting, points, unique_settings
from steadymap.engine.tasks import key_of
from steadymap.experiments.localization import (
    EvaluationImages,
    evaluation_images,
    joined,
    located,
    score_rows,
)
from steadymap.experiments.similarity_scores import COLUMNS, chunks, point_columns
from steadymap.metrics import accuracy
from steadymap.metrics.similarity import degenerate
from steadymap.params.schema import Accuracy, Params, Sweep
from steadymap.store import fingerprint
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
    cached: int

    def __str__(self) -> str:
        return (
            f"{len(self.rows)} scores; curves of {self.computed} maps computed, "
            f"of {self.cached} found in the cache"
        )


@dataclass(frozen=True)
class _Study:
    """A method's maps and what their curves depend on."""

    params: Params
    maps: Maps
    images: EvaluationImages
    cache: TaskCache
    run_context: RunContext

    @cached_property
    def blocks(self) -> list[slice]:
        """Images whose curves stand in one entry of the cache."""
        n, size = len(self.images.ids), self.run_context.attribution.block_size
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @cached_property
    def targets(self) -> dict[str, np.ndarray]:
        """Class that each model's curves follow, per image."""
        rows, targets, _ = evaluation.read(self.run_context.evaluation_set)
        tracked, ids = self.params.accuracy.tracked, rows["image_id"]
        return {
            model: part.set_index("image_id").loc[ids, tracked].to_numpy()
            for model, part in targets.groupby("model")
        }


@dataclass(frozen=True)
class _Job:
    """Curves of one block of images by one model, for several of its maps.

    `curve_keys` holds, per setting, the entry of the cache that takes its curves; `targets` is the
    class that the curves follow, per image of the block.
    """

    model: str
    block: slice
    curve_keys: dict[str, Setting]
    targets: list[int]
    options: Accuracy
    maps: Path
    run_context: RunContext
    cache: TaskCache


def score(method: str, params: Params, *, cache: TaskCache, run_context: RunContext) -> Scored:
    """Score every map that a method's sweeps ask for, the reference's included.

    Curves come from the cache, where each stands under a hash of the map, the image, the class
    followed, the model and the options. Those that it lacks are computed and stored one by one.

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
        Rows with the columns of `similarity_scores.COLUMNS`. Metrics `insertion` and `deletion` by
        `auc` and `auc_over_max`; `localization_error` and `iou` by `alpha0.10` to `alpha0.50`,
        without the images that have no box. A sweep over a count has its variants twice: in the
        nested group, and in that of the reference with independent draws.

    Raises
    ------
    ValueError
        Where the maps are not those of this evaluation set.
    """
    images = evaluation_images(run_context.evaluation_set, params)
    images = images.first(params.evaluation_set.of(method))
    maps = Maps(params.results / "maps" / method)
    if maps.image_ids != images.ids:
        raise ValueError(
            f"{maps.folder}: its {len(maps.image_ids)} images are not the {len(images.ids)} of "
            f"{run_context.evaluation_set}; run `dvc repro`"
        )
    if n_missing := len(images.ids) - len(images.boxed):
        told = "%s: %d of %d images have no box and are left out of localization"
        logger.info(told, method, n_missing, len(images.ids))
    sweeps = params.sweeps[method]
    settings = unique_settings(points(method, sweeps))
    study = _Study(params, maps, images, cache, run_context)
    curves, computed, cached = _curves(settings, study)
    side = images.pixels.shape[1]
    fractions = accuracy.fractions(side * side, params.accuracy.pixels(side))
    frames = []
    for model in params.models.names:
        stacks = {setting: maps.read(model, setting.hyperparameters) for setting in settings}
        by_setting = {
            setting: _map_scores(curves[model, setting], stack, images, fractions)
            for setting, stack in stacks.items()
        }
        frames += [
            by_setting[point.setting].assign(
                **point_columns(point, method=method, model=model, draws=draws)
            )
            for point, draws in _points_by_draws(method, sweeps)
        ]
    return Scored(pd.concat(frames, ignore_index=True)[list(COLUMNS)], computed, cached)


def _points_by_draws(method: str, sweeps: Mapping[str, Sweep]) -> list[tuple[Point, str]]:
    """Points in each group of draws that they belong to: a reference and its sweep's variants."""
    every = points(method, sweeps)
    return [
        (point, reference.draws)
        for reference in every
        if reference.is_reference
        for point in every
        if point.sweep == reference.sweep and (point is reference or not point.is_reference)
    ]


def _map_scores(
    curves: np.ndarray, maps: np.ndarray, images: EvaluationImages, fractions: torch.Tensor
) -> pd.DataFrame:
    """Score rows of one setting's maps, without the columns that name the setting."""
    stacks = (torch.from_numpy(np.array(maps[chunk])) for chunk in chunks(len(maps)))
    flags = pd.Series(np.concatenate([degenerate(stack).numpy() for stack in stacks]), images.ids)
    areas = {
        (kind, convention): accuracy.auc(
            torch.from_numpy(curves[:, index]), fractions=fractions, over_max=over_max
        ).numpy()
        for index, kind in enumerate(accuracy.KINDS)
        for convention, over_max in AREAS.items()
    }
    boxed = [images.boxed[chunk] for chunk in chunks(len(images.boxed))]
    localized = joined(
        [located(torch.from_numpy(np.array(maps[some])), images, some) for some in boxed]
    )
    tables = [score_rows(areas, images.ids)]
    if localized:
        tables.append(score_rows(localized, images.boxed_ids))
    rows = pd.concat(tables, ignore_index=True)
    return rows.assign(degenerate=flags[rows["image_id"]].to_numpy(), inverted=False)


def _curves(
    settings: list[Setting], study: _Study
) -> tuple[dict[tuple[str, Setting], np.ndarray], int, int]:
    """Curves of all maps by model and setting; how many were computed, how many cached."""
    blocks, cache = study.blocks, study.cache
    keys = _curve_keys(settings, study)
    sizes = {
        key: block.stop - block.start
        for names in keys.values()
        for key, block in zip(names, blocks, strict=True)
    }
    curves = {key: entry[0] for key in sizes if (entry := cache.read(key)) is not None}
    cached = sum(sizes[key] for key in curves)
    # Equal maps have equal keys and are measured once.
    pending: dict[tuple[str, int], dict[str, Setting]] = {}
    for (model, setting), names in keys.items():
        for index, key in enumerate(names):
            if key not in curves:
                pending.setdefault((model, index), {}).setdefault(key, setting)
    resolved, shared_cache = study.run_context.resolved(), TaskCache(cache.folder.resolve())
    jobs = [
        _Job(
            model,
            blocks[index],
            dict(list(lacking.items())[start : start + MAPS_AT_ONCE]),
            study.targets[model][blocks[index]].tolist(),
            study.params.accuracy,
            study.maps.folder.resolve(),
            resolved,
            shared_cache,
        )
        for (model, index), lacking in pending.items()
        for start in range(0, len(lacking), MAPS_AT_ONCE)
    ]
    _execute(jobs, study)
    curves |= {key: runner.collected([key], cache)[0] for job in jobs for key in job.curve_keys}
    joined = {pair: np.concatenate([curves[key] for key in names]) for pair, names in keys.items()}
    return joined, sum(sizes.values()) - cached, cached


def _curve_keys(settings: list[Setting], study: _Study) -> dict[tuple[str, Setting], list[str]]:
    """Key of each block's curves: a hash of everything that they depend on."""
    options, attribution = study.params.accuracy, study.run_context.attribution
    shared = {
        "curves": list(accuracy.KINDS),
        "step": options.pixels(study.images.pixels.shape[1]),
        "substrate": options.substrate,
        "output": options.output,
        "batch_size": attribution.batch_size,
        "dtype": "float32",
        "libraries": {"scipy": version("scipy")} if options.substrate == "blur" else {},
        "source": fingerprint.digest("steadymap.metrics.accuracy", "steadymap.models.registry"),
    }
    pixels = [_sha256(study.images.pixels[block]) for block in study.blocks]
    weights = runner.weights_of(study.run_context.models, study.params.models.names)
    keys: dict[tuple[str, Setting], list[str]] = {}
    for model, setting in itertools.product(weights, settings):
        stack = study.maps.read(model, setting.hyperparameters)
        for block, images_sha256 in zip(study.blocks, pixels, strict=True):
            parts = {
                **shared,
                "weights": weights[model],
                "classes": [int(value) for value in study.targets[model][block]],
                "images": images_sha256,
                "maps": _sha256(stack[block]),
            }
            keys.setdefault((model, setting), []).append(key_of(parts, attribution))
    return keys


def _sha256(values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{values.dtype.str} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _execute(jobs: list[_Job], study: _Study) -> None:
    """Compute and store each job's curves, here or on workers, and report."""
    side, maps, run_context = study.params.data.image_size, study.maps, study.run_context
    per_map = accuracy.passes_per_map(side * side, study.params.accuracy.pixels(side))
    names = [
        f"curves of {maps.method}, {len(job.curve_keys)} maps, {job.model}, "
        f"images {job.block.start} on"
        for job in jobs
    ]
    models = run_context.files(dict.fromkeys(job.model for job in jobs))
    for _ in runner.run_jobs(
        _store_curves,
        jobs,
        names=names,
        weights=[len(job.curve_keys) * len(job.targets) * per_map for job in jobs],
        run_context=run_context,
        shared=runner.SharedFiles(study.cache.folder, [*models, maps.folder / "index.json"]),
        title=f"accuracy {maps.method}",
    ):
        pass


def _store_curves(job: _Job) -> None:
    """Compute and store a job's curves, float32 (images, 2, points) per setting."""
    pixels = np.load(job.run_context.evaluation_set / "images.npy", mmap_mode="r")[job.block]
    network = runner.trained_model(job.model, job.run_context)
    device = next(network.buffers()).device
    maps = Maps(job.maps)
    stack = np.stack(
        [maps.read(job.model, s.hyperparameters)[job.block] for s in job.curve_keys.values()]
    )
    curves = accuracy.curves(
        runner.runner_for(network, job.run_context),
        evaluation.as_images(pixels).to(device),
        torch.from_numpy(stack).to(device),
        torch.tensor(job.targets, dtype=torch.int64, device=device),
        step=job.options.pixels(pixels.shape[1]),
        substrate=job.options.substrate,
        output=job.options.output,
    )
    for key, values in zip(job.curve_keys, curves.cpu().numpy(), strict=True):
        job.cache.write(key, values, {})
