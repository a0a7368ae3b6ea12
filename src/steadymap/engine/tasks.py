"""Sweeps, the settings they need, and the tasks that compute them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from steadymap.attribution import EXPLAINERS, explainer
from steadymap.engine.settings import Setting, points, setting, unique_settings
from steadymap.models import registry
from steadymap.params import plugins
from steadymap.params.plugins import declaration
from steadymap.params.schema import Attribution, Search, Sweep
from steadymap.store import fingerprint


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


def cost_of(settings: Sequence[Setting], image_size: int) -> tuple[int, int]:
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
    kind = registry.device_kind(attribution.device)
    return {} if kind == "cpu" else {"device": kind}


# Read from a file of metadata, and asked for by every key.
@cache
def _version(library: str) -> str:
    return version(library)


def _source(method: str) -> str:
    """Hash of the code that makes a method's maps."""
    mine = plugins.find(method)
    if mine is None:
        return fingerprint.digest(EXPLAINERS[method].partition(":")[0], "steadymap.models.registry")
    used = {"steadymap.attribution.model_runner", "steadymap.models.registry", *mine.code.uses}
    if "steadymap.attribution" in used:  # any method may be meant
        used |= {path.partition(":")[0] for path in EXPLAINERS.values()}
    return f"{mine.code.path} {mine.code.source} {fingerprint.digest(*sorted(used))}"


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
