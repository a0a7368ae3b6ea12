"""Tasks of a method's settings: their cache keys and their cost in model passes."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch

from steadymap.attribution import EXPLAINERS, explainer
from steadymap.engine.settings import Setting, setting, sharing_a_pass, with_next_seed
from steadymap.models import registry
from steadymap.params import plugins
from steadymap.params.plugins import declaration
from steadymap.params.schema import Attribution, Search
from steadymap.store import fingerprint


def reference_of(method: str, search: Search, image_size: int) -> Setting:
    """Setting that a search compares with.

    For `worst_case`, what params name, the method's defaults where they name nothing. For
    `cheapest`, the converged one (docs/protocol.md): the largest of the search, with another seed.

    Parameters
    ----------
    method
        Name of the method.
    search
        A search of params.
    image_size
        Side of the images, px.
    """
    if search.objective == "worst_case":
        return setting(method, {**search.fixed, **search.reference})
    converged = largest(method, search, image_size)
    return with_next_seed(converged) if declaration(method).stochastic else converged


def largest(method: str, search: Search, image_size: int) -> Setting:
    """Setting of a search that takes most model passes, params' own reference kept.

    Where passes don't depend on a hyperparameter, its largest value, or the last of its choices.

    Parameters
    ----------
    method
        Name of the method.
    search
        A search of params.
    image_size
        Side of the images, px.
    """
    values: dict[str, Any] = {name: axis.largest for name, axis in search.hyperparameters.items()}
    values |= search.reference
    for name, axis in search.hyperparameters.items():
        if name in search.reference:
            continue
        ends = [axis.largest, axis.low] if axis.choices is None else axis.choices[::-1]
        settings = [setting(method, {**search.fixed, **values, name: end}) for end in ends]
        costs = [sum(cost_of([candidate], image_size)) for candidate in settings]
        values[name] = ends[costs.index(max(costs))]
    return setting(method, {**search.fixed, **values})


def cost_of(settings: Sequence[Setting], image_size: int) -> tuple[int, int]:
    """Forward and backward passes per image; settings that share a pass take those of the most."""
    total_forward = total_backward = 0
    for group in sharing_a_pass(settings):
        costs = [explainer(one.method).cost(one.hyperparameters, image_size) for one in group]
        forward, backward = zip(*costs, strict=True)
        total_forward, total_backward = total_forward + max(forward), total_backward + max(backward)
    return total_forward, total_backward


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
    setting: Setting,
    *,
    weights_sha256: str,
    preprocessing: str,
    images: Sequence[tuple[str, str, int]],
    attribution: Attribution,
) -> str:
    """Name of a result: a hash of everything that it depends on.

    Parameters
    ----------
    setting : Setting
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
        "method": setting.method,
        "hyperparameters": setting.hyperparameters,
        "weights": weights_sha256,
        "preprocessing": preprocessing,
        "images": [list(image) for image in images],
        "batch_size": attribution.batch_size,
        "dtype": "float32",
        "libraries": {name: _version(name) for name in explainer(setting.method).libraries},
        "source": _source(setting.method),
    }
    return key_of(parts, attribution)


def key_of(parts: Mapping[str, Any], attribution: Attribution) -> str:
    """Name of a result: a hash of what it depends on, of torch's version and the kind of device.

    Kernels of another kind than a CPU round otherwise; what one computed must not pass for the
    other's.
    """
    kind = registry.device_kind(attribution.device)
    device = {} if kind == "cpu" else {"device": kind}
    everything = {**parts, "torch": torch.__version__, **device}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


# Read from a file of metadata, and asked for by every key.
@cache
def _version(library: str) -> str:
    return version(library)


def _source(method: str) -> str:
    """Hash of the code that makes a method's maps."""
    custom = plugins.find(method)
    if custom is None:
        return fingerprint.digest(EXPLAINERS[method].partition(":")[0], "steadymap.models.registry")
    used = {"steadymap.attribution.model_runner", "steadymap.models.registry", *custom.code.uses}
    if "steadymap.attribution" in used:  # any method may be meant
        used |= {path.partition(":")[0] for path in EXPLAINERS.values()}
    return f"{custom.code.path} {custom.code.source} {fingerprint.digest(*sorted(used))}"


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

    def task_id(self, model: str, setting: Setting) -> str:
        """Name of one setting's maps over all images, 16 hex digits."""
        return hashlib.sha256("\n".join(self.keys[model, setting]).encode()).hexdigest()[:16]


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

    Those that share a pass share tasks; where a method lets any do so, as many as fill it.

    Parameters
    ----------
    settings : list of Setting
        Settings of one method.
    weights : mapping of str to str
        Per model, the sha256 of its weights.
    rows, targets : DataFrame
        The evaluation set: columns image_id, sha256; image_id, model, target.
    preprocessing : str
        How files became pixels.
    attribution : Attribution
        Block size and batch shape.
    """
    step = attribution.block_size
    blocks = [tuple(range(s, min(s + step, len(rows)))) for s in range(0, len(rows), step)]
    groups = sharing_a_pass(settings)
    if groups and (capacity := explainer(groups[0][0].method).rows) is not None:
        together = max(1, capacity(attribution.batch_size) // len(blocks[0]))
        groups = [
            list(itertools.chain(*groups[start : start + together]))
            for start in range(0, len(groups), together)
        ]
    tasks: list[Task] = []
    keys: dict[tuple[str, Setting], list[str]] = {}
    for model, weights_sha256 in weights.items():
        classes = targets[targets["model"] == model].set_index("image_id")["target"]
        images = [
            (row.image_id, row.sha256, int(classes[row.image_id])) for row in rows.itertuples()
        ]
        for group in groups:
            for block in blocks:
                block_keys = tuple(
                    task_key(
                        one,
                        weights_sha256=weights_sha256,
                        preprocessing=preprocessing,
                        images=[images[position] for position in block],
                        attribution=attribution,
                    )
                    for one in group
                )
                tasks.append(Task(model, block, tuple(group), block_keys))
                for one, key in zip(group, block_keys, strict=True):
                    keys.setdefault((model, one), []).append(key)
    return Plan(settings, tasks, keys)
