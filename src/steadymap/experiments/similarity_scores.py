"""Scores of every variant's maps against its reference's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from steadymap.engine.settings import Point, headline_points, pairs, points
from steadymap.metrics.similarity import (
    custom_similarity,
    degenerate,
    dynamic_range,
    inverted,
    normalize,
    similarities,
)
from steadymap.params.plugins import metric
from steadymap.params.schema import Similarity, Sweep
from steadymap.statistics.pairing import mismatched
from steadymap.store.maps import Maps
from steadymap.store.tables import MISMATCH

COLUMNS = (
    *("sweep", "method", "model", "hyperparameter", "value", "image_id", "metric", "convention"),
    *("draws", "score", "degenerate", "inverted"),
)

# Pairs of maps scored at once: enough to be fast, little enough for 224 px.
_CHUNK = 128


def point_columns(point: Point, *, method: str, model: str, draws: str) -> dict[str, str]:
    """Columns that name a point of a sweep in score rows.

    Parameters
    ----------
    point : Point
        Gives sweep, hyperparameter and value.
    method, model : str
        Names of the method and the model.
    draws : {'nested', 'independent', 'none', 'mismatch'}
        Group of draws in which the point is scored; a variant stands in each of its sweep's.
        `mismatch` marks a reference's maps of different images.
    """
    return {
        "sweep": point.sweep,
        "method": method,
        "model": model,
        "hyperparameter": point.hyperparameter,
        "value": point.value,
        "draws": draws,
    }


def score(
    method: str,
    sweeps: Mapping[str, Sweep],
    models: Sequence[str],
    maps: Maps,
    options: Similarity,
    rows: pd.DataFrame,
) -> pd.DataFrame:
    """Score all comparisons that a method's sweeps ask for.

    Parameters
    ----------
    method : str
        Name of the method.
    sweeps : mapping of str to Sweep
        Its sweeps by name.
    models : sequence of str
        Names of the models.
    maps : Maps
        The method's archive.
    options : Similarity
        Conventions of the metrics, and the user's own metrics.
    rows : DataFrame
        The evaluation set, with columns image_id, photo and class_name.

    Returns
    -------
    DataFrame
        With the columns `COLUMNS`. Similarities leave out the reference with itself; its maps of
        different images are compared as draws `mismatch`. Each map has one row `dynamic_range`.
        `degenerate` and `inverted` describe the pair of maps and are the same for all metrics
        (`steadymap.metrics.similarity`).
    """
    frames = []
    every = points(method, sweeps)
    references = [point for point in headline_points(every) if point.is_reference and point.value]
    explained = rows[rows["image_id"].isin(maps.image_ids)]
    others = mismatched(explained) if len(explained) > 1 else None
    for model in models:
        for reference, variant, draws in pairs(method, sweeps):
            frames += pair_scores(
                method,
                maps.read(model, reference.setting.hyperparameters),
                maps.read(model, variant.setting.hyperparameters),
                image_ids=maps.image_ids,
                columns=point_columns(variant, method=method, model=model, draws=draws),
                options=options,
            )
        for reference in references if others is not None else ():
            stack = maps.read(model, reference.setting.hyperparameters)
            frames += pair_scores(
                method,
                stack,
                stack[others],
                image_ids=maps.image_ids,
                columns=point_columns(reference, method=method, model=model, draws=MISMATCH),
                options=options,
            )
        for point in every:
            ranges, flags = dynamic_ranges(maps.read(model, point.setting.hyperparameters))
            rows = {
                **point_columns(point, method=method, model=model, draws=point.draws),
                "image_id": maps.image_ids,
                "metric": "dynamic_range",
                "convention": "raw",
                "score": ranges,
                "degenerate": flags,
                "inverted": False,
            }
            frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]


def dynamic_ranges(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic range of each map (images, height, width), and whether it is degenerate."""
    stacks = (torch.from_numpy(np.array(maps[chunk])) for chunk in chunks(len(maps)))
    parts = [(dynamic_range(stack).numpy(), degenerate(stack).numpy()) for stack in stacks]
    ranges, flags = zip(*parts, strict=True)
    return np.concatenate(ranges), np.concatenate(flags)


def chunks(n: int, size: int = 1) -> list[slice]:
    """Slices of n maps, or of n blocks of `size` maps, that are scored at once."""
    step = max(1, _CHUNK // size)
    return [slice(start, start + step) for start in range(0, n, step)]


def pair_scores(
    method: str,
    a: np.ndarray,
    b: np.ndarray,
    *,
    image_ids: Sequence[str],
    columns: Mapping[str, Any],
    options: Similarity,
    distance: bool = False,
) -> list[pd.DataFrame]:
    """Score rows of pairs of maps, by every metric and convention.

    Parameters
    ----------
    method : str
        Method by whose convention maps are normalized.
    a, b : ndarray
        Maps (images, height, width), paired by position.
    image_ids : sequence of str
        Ids of the images.
    columns : mapping of str to object
        Columns that all rows share.
    options : Similarity
        Conventions of the metrics, and the user's own metrics.
    distance : bool
        Whether to add `l1`: the mean absolute difference of the maps, each divided by its largest
        absolute value.
    """
    frames = []
    custom = {name: metric(name, path).function for name, path in options.own.items()}
    for chunk in chunks(len(a)):
        first, second = (torch.from_numpy(np.array(maps[chunk])) for maps in (a, b))
        flags = (degenerate(first) | degenerate(second)).numpy()
        scores = similarities(
            method,
            first,
            second,
            conventions=tuple(options.conventions),
            hog_cell=options.hog_cell,
            win_size=options.win_size,
        )
        for name, function in custom.items():
            scores[name, "own"] = custom_similarity(name, function, first, second)
        if distance:
            scaled = [normalize(maps.double()) for maps in (first, second)]
            scores["l1", "max_abs"] = (scaled[0] - scaled[1]).abs().mean(dim=(1, 2))
        inversions = inverted(scores["spearman", "signed"]).numpy()
        for (name, convention), values in scores.items():
            rows = {
                **columns,
                "image_id": image_ids[chunk],
                "metric": name,
                "convention": convention,
                "score": values.numpy(),
                "degenerate": flags,
                "inverted": inversions,
            }
            frames.append(pd.DataFrame(rows))
    return frames
