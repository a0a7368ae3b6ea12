"""Visible structure of each method's maps, and with the target of another photograph (SAM 4.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from steadymap.engine import evaluation_set
from steadymap.engine.settings import Point, points
from steadymap.experiments.localization import EvaluationImages, evaluation_images
from steadymap.experiments.similarity_scores import chunks
from steadymap.metrics import structure
from steadymap.metrics.localization import object_masks
from steadymap.metrics.similarity import degenerate
from steadymap.params.schema import Params
from steadymap.statistics.pairing import mismatched
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

COLUMNS = (
    *("sweep", "method", "model", "value", "image_id", "other", "metric", "pairing"),
    *("score", "degenerate"),
)


def reference_points(method: str, params: Params) -> list[Point]:
    """Reference of each sweep of a method; of two draws of it, the first."""
    made: dict[str, Point] = {}
    for point in points(method, params.sweeps[method]):
        if point.is_reference:
            made.setdefault(point.sweep, point)
    return list(made.values())


@dataclass(frozen=True)
class _Targets:
    """What maps are held against: edges of all images, masks of the boxed ones, and partners.

    `partners` and `boxed_partners` are positions of another photograph, of each image and of each
    image that has a box; empty where there is but one.
    """

    edges: torch.Tensor
    masks: torch.Tensor
    boxed: np.ndarray
    partners: np.ndarray
    boxed_partners: np.ndarray


def _targets(images: EvaluationImages, rows: pd.DataFrame) -> _Targets:
    """Targets of the maps of these images, whose rows in the evaluation set are given too."""
    n, (height, width), boxed = len(rows), images.pixels.shape[1:3], images.boxed
    edges = [structure.edges(evaluation_set.as_images(images.pixels[c])) for c in chunks(n)]
    masks = torch.zeros((0, height, width), dtype=torch.bool)
    if len(boxed):
        boxes, outlines = (
            None if places is None else places[boxed] for places in (images.boxes, images.masks)
        )
        masks = object_masks(boxes, outlines, (len(boxed), height, width))
    partners, boxed_partners = _partners(rows), _partners(rows.iloc[boxed])
    return _Targets(torch.cat(edges), masks, boxed, partners, boxed_partners)


def _partners(rows: pd.DataFrame) -> np.ndarray:
    return mismatched(rows.reset_index(drop=True)) if len(rows) > 1 else np.zeros(0, int)


def score(params: Params) -> pd.DataFrame:
    """Structure of each method's maps at the reference of each of its sweeps.

    Returns
    -------
    DataFrame
        With the columns `COLUMNS`. Metrics are `edge_correlation`, `autocorrelation` and, of images
        that have a box, `mass_inside`; `pairing` is `same`, or `mismatched` with the edges, the
        map or the box of another photograph, a fixed partner of each image (`mismatched`), which
        `other` names.
    """
    folder = params.results / "evaluation_set"
    rows, images = read_table(folder / "evaluation_set.csv"), evaluation_images(folder, params)
    targets: dict[int, _Targets] = {}
    frames = [pd.DataFrame(columns=list(COLUMNS))]
    for method in params.methods:
        maps = Maps(params.results / "maps" / method)
        n = len(maps.image_ids)
        if n not in targets:
            targets[n] = _targets(images.first(n), rows.iloc[:n])
        for point in reference_points(method, params):
            for model in params.models.names:
                stack = np.array(maps.read(model, point.setting.hyperparameters))
                named = {"sweep": point.sweep, "method": method, "model": model}
                frames.append(
                    _rows(
                        torch.from_numpy(stack),
                        targets[n],
                        maps.image_ids,
                        {**named, "value": point.value},
                    )
                )
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]


def _rows(
    maps: torch.Tensor, targets: _Targets, image_ids: list[str], named: Mapping[str, Any]
) -> pd.DataFrame:
    """Score rows of one map of each image.

    Parameters
    ----------
    maps : Tensor
        Shape (images, height, width).
    targets : _Targets
        What they are held against.
    image_ids : list of str
        Ids of the images.
    named : mapping of str to object
        Columns that all rows share.
    """
    ids, flags = np.array(image_ids, object), degenerate(maps).numpy()
    everyone, inside = np.arange(len(maps)), maps[torch.from_numpy(targets.boxed)]
    measures = {
        "edge_correlation": (partial(structure.edge_correlation, maps), targets.edges, everyone),
        "autocorrelation": (partial(structure.autocorrelation, maps), maps, everyone),
        "mass_inside": (partial(structure.mass_inside, inside), targets.masks, targets.boxed),
    }
    frames = []
    for metric, (measure, target, positions) in measures.items():
        partners = targets.boxed_partners if metric == "mass_inside" else targets.partners
        pairings = {"same": np.arange(len(positions)), "mismatched": partners}
        for pairing, order in pairings.items():
            if len(order):
                found = {"image_id": ids[positions], "degenerate": flags[positions]}
                found |= {"other": ids[positions][order], "metric": metric, "pairing": pairing}
                found["score"] = measure(target[torch.from_numpy(order)]).numpy()
                frames.append(pd.DataFrame({**named, **found}))
    return pd.concat(frames, ignore_index=True)
