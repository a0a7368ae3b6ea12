"""Scores of every variant's maps against its reference's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from steadymap.engine.settings import pairs, points
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
from steadymap.store.maps import Maps

COLUMNS = (
    "sweep",
    "method",
    "model",
    "hyperparameter",
    "value",
    "image_id",
    "metric",
    "convention",
    "draws",
    "score",
    "degenerate",
    "inverted",
)

# Pairs of maps scored at once: enough to be fast, little enough for 224 px.
_CHUNK = 128


def score(
    method: str,
    sweeps: Mapping[str, Sweep],
    models: Sequence[str],
    maps: Maps,
    options: Similarity,
) -> pd.DataFrame:
    """Score all comparisons that a method's sweeps ask for.

    Returns
    -------
    DataFrame
        With the columns `COLUMNS`. Similarities leave the reference with itself out; the row
        `dynamic_range` is there for each map. `degenerate` and `inverted` say of the pair what
        `steadymap.similarity` calls so, whichever the metric.
    """
    frames = []
    for model in models:
        for reference, variant, draws in pairs(method, sweeps):
            same = {
                "sweep": variant.sweep,
                "method": method,
                "model": model,
                "hyperparameter": variant.hyperparameter,
                "value": variant.value,
                "draws": draws,
            }
            a = maps.read(model, reference.setting.hyperparameters)
            b = maps.read(model, variant.setting.hyperparameters)
            frames += pair_scores(
                method, a, b, image_ids=maps.image_ids, same=same, options=options
            )
        for point in points(method, sweeps):
            ranges, flagged = spreads(maps.read(model, point.setting.hyperparameters))
            frames.append(
                pd.DataFrame(
                    {
                        "sweep": point.sweep,
                        "method": method,
                        "model": model,
                        "hyperparameter": point.hyperparameter,
                        "value": point.value,
                        "image_id": maps.image_ids,
                        "metric": "dynamic_range",
                        "convention": "raw",
                        "draws": point.draws,
                        "score": ranges,
                        "degenerate": flagged,
                        "inverted": False,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]


def spreads(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dynamic range of each map (images, height, width), and whether it is degenerate."""
    ranges, flagged = [], []
    for some in chunks(len(maps)):
        part = torch.from_numpy(np.array(maps[some]))
        ranges.append(dynamic_range(part).numpy())
        flagged.append(degenerate(part).numpy())
    return np.concatenate(ranges), np.concatenate(flagged)


def chunks(n: int, size: int = 1) -> list[slice]:
    """Slices of n maps, or blocks of `size` maps: enough to be fast, little enough for 224 px."""
    step = max(1, _CHUNK // size)
    return [slice(start, start + step) for start in range(0, n, step)]


def pair_scores(
    method: str,
    a: np.ndarray,
    b: np.ndarray,
    *,
    image_ids: Sequence[str],
    same: Mapping[str, Any],
    options: Similarity,
    distance: bool = False,
) -> list[pd.DataFrame]:
    """Score rows of pairs of maps; `same` are the columns that all of them share.

    Parameters
    ----------
    a, b : ndarray
        Maps (images, height, width), paired by position.
    distance : bool
        Whether to add `l1`: the mean absolute difference of the maps, each divided by its largest
        absolute value.
    """
    frames = []
    own = {name: metric(name, path).function for name, path in options.own.items()}
    for some in chunks(len(a)):
        first, second = (torch.from_numpy(np.array(maps[some])) for maps in (a, b))
        flagged = (degenerate(first) | degenerate(second)).numpy()
        found = similarities(
            method,
            first,
            second,
            conventions=tuple(options.conventions),
            hog_cell=options.hog_cell,
            win_size=options.win_size,
        )
        for name, function in own.items():
            found[name, "own"] = custom_similarity(name, function, first, second)
        if distance:
            scaled = [normalize(maps.double()) for maps in (first, second)]
            found["l1", "max_abs"] = (scaled[0] - scaled[1]).abs().mean(dim=(1, 2))
        turned = inverted(found["spearman", "signed"]).numpy()
        for (name, convention), values in found.items():
            rows = {
                **same,
                "image_id": image_ids[some],
                "metric": name,
                "convention": convention,
                "score": values.numpy(),
                "degenerate": flagged,
                "inverted": turned,
            }
            frames.append(pd.DataFrame(rows))
    return frames
