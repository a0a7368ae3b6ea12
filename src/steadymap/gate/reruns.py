"""A study's numbers once more at the same weights: with other method seeds, or by other code."""

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from steadymap.analysis.parameters import by_image
from steadymap.analysis.tables import study_summary
from steadymap.engine import runner
from steadymap.engine.settings import points, unique_settings
from steadymap.engine.tasks import cost_of
from steadymap.experiments import accuracy_scores, randomized_maps, randomized_methods
from steadymap.experiments.similarity_scores import score
from steadymap.params.schema import Params
from steadymap.store.atomic import atomic_folder, refuse_other_files
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table, write_table
from steadymap.store.task_cache import TaskCache

logger = logging.getLogger(__name__)

# What a rerun takes from the study as it is.
SHARED = ("data", "models", "evaluation_set")

# What the gate reads.
TABLES = ("images", "ipr_images", "models", "evaluation_set")


def stochastic(params: Params) -> list[str]:
    """Methods of a study, randomized parameters among them, that draw random numbers."""
    every, declared = [*params.methods, *params.randomization.methods], params.declared
    return [name for name in dict.fromkeys(every) if declared[name].stochastic]


def reseeded(params: Params, shift: int, *, methods: Collection[str] | None = None) -> Params:
    """Params of a study with the seed of every method moved on.

    Parameters
    ----------
    params : Params
        The study.
    shift : int
        What is added to every `seed`; sweeps of seeds are shifted as a whole. Draws of randomized
        weights stay as they are.
    methods : collection of str, optional
        Methods to keep; by default all.

    Raises
    ------
    ValueError
        Where a method is none of the study's.
    """
    of_study = dict.fromkeys([*params.methods, *params.randomization.methods])
    unknown = [name for name in methods or () if name not in of_study]
    if unknown:
        raise ValueError(
            f"method {unknown[0]!r} is not in the study; choose among {list(of_study)}"
        )
    kept, declared = set(of_study if methods is None else methods), params.declared

    def shifted(method: str, values: dict[str, Any]) -> dict[str, Any]:
        seed = declared[method].hyperparameters.get("seed")
        if seed is None:
            return values
        return {**values, "seed": values.get("seed", seed.default) + shift}

    values = params.model_dump()
    values["methods"] = [method for method in params.methods if method in kept]
    values["sweeps"] = {
        # A stochastic method without sweeps has its defaults, with a seed among them.
        method: values["sweeps"][method]
        or ({"default": {"fixed": {}}} if declared[method].stochastic else {})
        for method in values["methods"]
    }
    for method, sweeps in values["sweeps"].items():
        for sweep in sweeps.values():
            if sweep.get("vary") == "seed":
                sweep["values"] = [value + shift for value in sweep["values"]]
                sweep["reference"] += shift
            else:
                sweep["fixed"] = shifted(method, sweep["fixed"])
    randomized = values["randomization"]["methods"]
    values["randomization"]["methods"] = {
        method: {**options, "hyperparameters": shifted(method, options["hyperparameters"])}
        for method, options in randomized.items()
        if method in kept
    }
    return type(params).model_validate({**values, "search": {}, "comparisons": {}})


def passes(params: Params) -> tuple[int, int]:
    """Forward and backward passes of the sweeps' maps and their curves, per model."""
    size = params.data.image_size
    forward = backward = 0
    for method in params.methods:
        settings = unique_settings(points(method, params.sweeps[method]))
        n_images = params.evaluation_set.of(method)
        ahead, back = cost_of(settings, size)
        # Both curves of a map, their common ends not counted.
        ahead += len(settings) * 2 * (-(-size * size // params.accuracy.pixels(size)) - 1)
        forward, backward = forward + n_images * ahead, backward + n_images * back
    return forward, backward


def measure(params: Params, *, shared: Path, folder: Path, cache: Path) -> dict[str, pd.DataFrame]:
    """Maps, scores and randomized parameters of a study, and the tables that the gate reads.

    Parameters
    ----------
    params : Params
        The study; `study` names the folder of results, which must not be that of `shared`.
    shared : Path
        Results of a study whose data, models and evaluation set are used.
    folder : Path
        Where `tables/` is written, as a whole.
    cache : Path
        Folder of the task cache.

    Raises
    ------
    ValueError, FileNotFoundError
        Where results would be written into those that are shared, or these lack something.
    """
    shared, results = Path(shared), params.results
    if results.resolve() == shared.resolve():
        raise ValueError(f"{results}: a rerun needs a folder of its own; give it another study")
    target = Path(folder) / "tables"
    refuse_other_files(target, [f"{name}.csv" for name in TABLES], "name another folder")
    for name in SHARED:
        if not (shared / name).is_dir():
            raise FileNotFoundError(f"{shared / name}: no such folder; run `make repro` there")
        _link(shared / name, results / name)
    tasks = TaskCache(Path(cache) / "tasks")
    for method in params.methods:
        measure_method(method, params, cache=tasks)
    run_context = runner.RunContext.of(params)
    ran = randomized_maps.run(
        params, cache=tasks, changes=Path(cache) / "randomization", run_context=run_context
    )
    logger.info("randomize: %s", ran)
    torch.set_num_threads(1)
    tables, _ = study_summary(params, params.methods)
    moved, _, _ = randomized_methods.read(params)
    if not moved.empty:
        drawn = [
            name
            for name, made in randomized_methods.randomized_methods(params).items()
            if made.fresh is not None
        ]
        tables["ipr_images"] = by_image(moved, drawn)
    with atomic_folder(target) as temporary:
        for name in TABLES:
            if name in tables:
                write_table(tables[name], temporary / f"{name}.csv")
    return tables


def measure_method(method: str, params: Params, *, cache: TaskCache) -> None:
    """Maps, scores and accuracy of one method, where and as the stages leave them.

    Parameters
    ----------
    method : str
        Name of the method.
    params : Params
        The study.
    cache : TaskCache
        Finished tasks.
    """
    results, run_context = params.results, runner.RunContext.of(params)
    ran = runner.attribute(method, params, cache=cache)
    maps = Maps(results / "maps" / method)
    images = read_table(run_context.evaluation_set / "evaluation_set.csv")
    names = params.models.names
    rows = score(method, params.sweeps[method], names, maps, params.similarity, images)
    write_table(rows, results / "scores" / f"{method}.parquet")
    scored = accuracy_scores.score(method, params, cache=cache, run_context=run_context)
    write_table(scored.rows, results / "accuracy" / f"{method}.parquet")
    logger.info("%s %s: %s; accuracy: %s", params.study, method, ran, scored)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise ValueError(f"{target}: in the way of a link to {source}; remove it")
    target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=True)
