"""Sweeps, the settings they need, and the tasks that compute them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from steadymap import models, own, sources
from steadymap.attribution import EXPLAINERS, explainer
from steadymap.own import declaration
from steadymap.params import Attribution, Search, Sweep

DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """A method with all its hyperparameters.

    Attributes
    ----------
    method : str
        Name of the method.
    text : str
        The effective hyperparameters as JSON with sorted keys.
    """

    method: str
    text: str

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """The effective hyperparameters."""
        return json.loads(self.text)

    @cached_property
    def passes(self) -> str:
        """What settings that share one pass have in common."""
        if own.find(self.method):
            return self.text  # a function of one's own is called once per setting
        declared = declaration(self.method).hyperparameters
        kept = {
            key: value
            for key, value in self.hyperparameters.items()
            if not (declared[key].count or declared[key].progress)
        }
        return json.dumps(kept, sort_keys=True)


def setting(method: str, hyperparameters: Mapping[str, Any]) -> Setting:
    """Setting of a method with the hyperparameters given and the defaults of the others."""
    effective = declaration(method).effective(hyperparameters)
    return Setting(method, json.dumps(effective, sort_keys=True))


@dataclass(frozen=True)
class Point:
    """One setting in its role in a sweep.

    Attributes
    ----------
    sweep, hyperparameter : str
        Name of the sweep and of what it varies; `default` and '' for a method without sweeps.
    value : str
        Value of the varied hyperparameter.
    draws : {'nested', 'independent', 'none'}
        Whether the sweep's settings share random draws with its reference.
    is_reference : bool
        Whether the others are compared with it.
    setting : Setting
        What is computed.
    """

    sweep: str
    hyperparameter: str
    value: str
    draws: str
    is_reference: bool
    setting: Setting


def points(method: str, sweeps: Mapping[str, Sweep]) -> list[Point]:
    """All points of a method's sweeps, in order.

    A sweep over a count of samples appears with both kinds of draws. In the nested one each
    sample begins with the smaller ones; in the independent one the reference alone has draws of
    its own, from the next seed, which costs one more map.
    """
    if not sweeps:
        return [Point(DEFAULT, "", "", "none", True, setting(method, {}))]
    found = []
    declared = declaration(method)
    for name, sweep in sweeps.items():
        if sweep.vary is None:
            found.append(Point(name, "", "", "none", True, setting(method, sweep.fixed)))
            continue
        if not declared.stochastic:
            draws = "none"
        else:
            draws = "independent" if sweep.vary == "seed" else "nested"
        for value in sweep.values:
            made = setting(method, {**sweep.fixed, sweep.vary: value})
            is_reference = value == sweep.reference
            found.append(Point(name, sweep.vary, str(value), draws, is_reference, made))
            if is_reference and declared.hyperparameters[sweep.vary].count:
                seed = made.hyperparameters["seed"] + 1
                other = setting(method, {**made.hyperparameters, "seed": seed})
                found.append(Point(name, sweep.vary, str(value), "independent", True, other))
    return found


def grids_of(wanted: Sequence[Point]) -> dict[str, list[str]]:
    """Values of each sweep in order, the reference among them."""
    found: dict[str, dict[str, None]] = {}
    for point in wanted:
        found.setdefault(point.sweep, {})[point.value] = None
    return {sweep: list(values) for sweep, values in found.items()}


def pairs(method: str, sweeps: Mapping[str, Sweep]) -> list[tuple[Point, Point, str]]:
    """Reference, variant and draws of every comparison that a method's sweeps ask for."""
    found = []
    all_points = points(method, sweeps)
    for reference in (point for point in all_points if point.is_reference):
        found += [
            (reference, variant, reference.draws)
            for variant in all_points
            if variant.sweep == reference.sweep and not variant.is_reference
        ]
    return found


def unique_settings(wanted: Sequence[Point]) -> list[Setting]:
    """Settings of the points, each once, in order of appearance."""
    return list(dict.fromkeys(point.setting for point in wanted))


def reference_of(method: str, search: Search, image_size: int) -> Setting:
    """Setting that a search compares with.

    For `worst_case`, what params name, the method's defaults where they name nothing. For
    `cheapest`, the converged one (docs/protocol.md): the largest of the search, with another seed.
    """
    if search.objective == "worst_case":
        return setting(method, {**search.fixed, **search.reference})
    made = largest(method, search, image_size)
    if not declaration(method).stochastic:
        return made
    seed = made.hyperparameters["seed"] + 1
    return setting(method, {**made.hyperparameters, "seed": seed})


def largest(method: str, search: Search, image_size: int) -> Setting:
    """Setting of a search that takes most model passes, params' own reference kept.

    Where passes don't depend on a hyperparameter, its largest value, or the last of its choices.
    """
    explained = explainer(method)
    chosen: dict[str, Any] = {name: axis.largest for name, axis in search.hyperparameters.items()}
    chosen |= search.reference
    for name, axis in search.hyperparameters.items():
        if name in search.reference:
            continue
        ends = [axis.largest, axis.low] if axis.choices is None else axis.choices[::-1]

        def passes(value: Any, name: str = name) -> int:
            made = declaration(method).effective({**search.fixed, **chosen, name: value})
            return sum(explained.cost(made, image_size))

        chosen[name] = max(ends, key=passes)
    return setting(method, {**search.fixed, **chosen})


def passes_of(settings: Sequence[Setting], image_size: int) -> tuple[int, int]:
    """Forward and backward passes per image; settings that share a pass take those of the most."""
    most: dict[tuple[str, str], tuple[int, int]] = {}
    for made in settings:
        cost = explainer(made.method).cost(made.hyperparameters, image_size)
        found = most.get((made.method, made.passes), (0, 0))
        most[made.method, made.passes] = max(found[0], cost[0]), max(found[1], cost[1])
    return sum(cost[0] for cost in most.values()), sum(cost[1] for cost in most.values())


@dataclass(frozen=True)
class Task:
    """Maps of one block of images by one model, for settings that share a pass.

    Attributes
    ----------
    model : str
        Name of the model.
    block : tuple of int
        Positions of the images in the evaluation set.
    settings : tuple of Setting
        What to compute.
    keys : tuple of str
        Name of each setting's entry in the task cache.
    """

    model: str
    block: tuple[int, ...]
    settings: tuple[Setting, ...]
    keys: tuple[str, ...]


def task_key(
    made: Setting,
    *,
    weights_sha256: str,
    preprocessing: str,
    images: Sequence[tuple[str, str, int]],
    attribution: Attribution,
) -> str:
    """Name of a result: a hash of everything that it depends on.

    Parameters
    ----------
    made : Setting
        Method and effective hyperparameters, seed included.
    weights_sha256 : str
        Hash of the model's weights.
    preprocessing : str
        How files became pixels.
    images : sequence of (str, str, int)
        Id, content hash and target of each image of the block.
    attribution : Attribution
        Gives the padded batch shape, and the device.
    """
    parts = {
        "method": made.method,
        "hyperparameters": made.hyperparameters,
        "weights": weights_sha256,
        "preprocessing": preprocessing,
        "images": [list(image) for image in images],
        "batch_size": attribution.batch_size,
        "dtype": "float32",
        "torch": torch.__version__,
        "libraries": {name: _version(name) for name in explainer(made.method).libraries},
        "source": _source(made.method),
        **device_part(attribution),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def device_part(attribution: Attribution) -> dict[str, str]:
    """What the kind of device adds to a key: nothing for a CPU.

    Kernels of another kind round otherwise; what one computed must not pass for the other's.
    """
    kind = models.device_kind(attribution.device)
    return {} if kind == "cpu" else {"device": kind}


# Read from a file of metadata, and asked for by every key.
@cache
def _version(library: str) -> str:
    return version(library)


def _source(method: str) -> str:
    """Hash of the code that makes a method's maps."""
    mine = own.find(method)
    if mine is None:
        return sources.digest(EXPLAINERS[method].partition(":")[0], "steadymap.models")
    used = {"steadymap.attribution.passes", "steadymap.models", *mine.code.uses}
    if "steadymap.attribution" in used:  # any method may be meant
        used |= {path.partition(":")[0] for path in EXPLAINERS.values()}
    return f"{mine.code.path} {mine.code.source} {sources.digest(*sorted(used))}"


@dataclass(frozen=True)
class Plan:
    """Tasks of one method, and where each setting's maps will be found.

    Attributes
    ----------
    settings : list of Setting
        Order of the archive.
    tasks : list of Task
        Everything that should exist, whether or not the cache holds it.
    keys : dict
        Per (model, setting), the cache keys of its blocks in order.
    """

    settings: list[Setting]
    tasks: list[Task]
    keys: dict[tuple[str, Setting], list[str]]

    def task_id(self, model: str, made: Setting) -> str:
        """Name of one setting's maps over all images, 16 hex digits."""
        return hashlib.sha256("\n".join(self.keys[model, made]).encode()).hexdigest()[:16]


def plan(
    method: str,
    sweeps: Mapping[str, Sweep],
    *,
    weights: Mapping[str, str],
    rows: pd.DataFrame,
    targets: pd.DataFrame,
    preprocessing: str,
    attribution: Attribution,
) -> Plan:
    """Tasks of a method for all models and images.

    Parameters
    ----------
    method : str
        Name of the method.
    sweeps : mapping
        Its sweeps.
    weights : mapping of str to str
        Per model, the sha256 of its weights.
    rows, targets : DataFrame
        The evaluation set: columns image_id, sha256; image_id, model, target.
    preprocessing : str
        How files became pixels.
    attribution : Attribution
        Block size and batch shape.
    """
    return plan_settings(
        unique_settings(points(method, sweeps)),
        weights=weights,
        rows=rows,
        targets=targets,
        preprocessing=preprocessing,
        attribution=attribution,
    )


def plan_settings(
    settings: list[Setting],
    *,
    weights: Mapping[str, str],
    rows: pd.DataFrame,
    targets: pd.DataFrame,
    preprocessing: str,
    attribution: Attribution,
) -> Plan:
    """Tasks of settings of one method, each named once, for all models and images.

    Those that share a pass share tasks; where a method lets any do so, as many as fill it. The
    other parameters are as in `plan`.
    """
    shared: dict[str, list[Setting]] = {}
    for made in settings:
        shared.setdefault(made.passes, []).append(made)
    step = attribution.block_size
    blocks = [tuple(range(s, min(s + step, len(rows)))) for s in range(0, len(rows), step)]
    groups = list(shared.values())
    if groups and (wide := explainer(groups[0][0].method).rows) is not None:
        together = max(1, wide(attribution.batch_size) // len(blocks[0]))
        groups = [
            [made for group in groups[start : start + together] for made in group]
            for start in range(0, len(groups), together)
        ]
    tasks: list[Task] = []
    keys: dict[tuple[str, Setting], list[str]] = {}
    for model, weights_sha256 in weights.items():
        chosen = targets[targets["model"] == model].set_index("image_id")["target"]
        images = [
            (row.image_id, row.sha256, int(chosen[row.image_id])) for row in rows.itertuples()
        ]
        for group in groups:
            for block in blocks:
                found = tuple(
                    task_key(
                        made,
                        weights_sha256=weights_sha256,
                        preprocessing=preprocessing,
                        images=[images[position] for position in block],
                        attribution=attribution,
                    )
                    for made in group
                )
                tasks.append(Task(model, block, tuple(group), found))
                for made, key in zip(group, found, strict=True):
                    keys.setdefault((model, made), []).append(key)
    return Plan(settings, tasks, keys)
