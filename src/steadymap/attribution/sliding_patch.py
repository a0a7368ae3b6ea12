"""Sliding Patch: how much the target score drops when a square is covered."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steadymap.attribution.passes import Explainer, Passes, statistics

Explained = list[tuple[Tensor, dict[str, Tensor]]]


def corners(side: int, patch_size: int, stride: int) -> np.ndarray:
    """First pixels, along one axis, of the patches that lie wholly inside the image."""
    return np.arange(0, side - patch_size + 1, stride)


def interpolation(side: int, patch_size: int, stride: int) -> np.ndarray:
    """Weights (side, positions) that spread values at patch centres over pixels, along one axis.

    Linear between centres, which lie at corner + (patch_size - 1) / 2; beyond the outermost
    centres the edge value holds.
    """
    centres = corners(side, patch_size, stride) + (patch_size - 1) / 2
    pixels = np.arange(side)
    return np.stack([np.interp(pixels, centres, row) for row in np.eye(len(centres))], axis=1)


def _sliding_patch(
    passes: Passes,
    images: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"],
    *,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
) -> Explained:
    """Score of the image minus its score with a patch covered (Zeiler & Fergus 2014; SAM 2).

    One value per patch position inside the image, `stride` apart, then bilinear between the patch
    centres. The patch is filled with the colour that normalisation makes zero (`mean`), black or
    mid-grey.
    """
    return [(_one(passes, images, targets, setting), {}) for setting in settings]


def _one(passes: Passes, images: Tensor, targets: Tensor, setting: Mapping[str, Any]) -> Tensor:
    n, _, height, width = images.shape
    size, stride = setting["patch_size"], setting["stride"]
    if size > min(height, width):
        raise ValueError(
            f"patch_size is {size}, the image {height} x {width}; choose a smaller patch"
        )
    fill = {
        "mean": statistics(passes.model, images)[0],
        "black": torch.zeros_like(images[:1, :, :1, :1]),
        "grey": torch.full_like(images[:1, :, :1, :1], 0.5),
    }[setting["fill"]]
    tops, lefts = corners(height, size, stride), corners(width, size, stride)
    places = [(top, left) for top in tops for left in lefts]
    drops = torch.empty(n * len(places), dtype=torch.float32, device=images.device)
    original = passes.scores(images, targets, output=setting["output"])
    for start in range(0, len(drops), passes.batch_size):
        rows = np.arange(start, min(start + passes.batch_size, len(drops)))
        position = rows // len(places)
        covered = images[position]
        for row, place in enumerate(rows % len(places)):
            top, left = places[place]
            covered[row, :, top : top + size, left : left + size] = fill[0]
        scores = passes.scores(covered, targets[position], output=setting["output"])
        drops[rows] = original[position] - scores
    coarse = drops.reshape(n, len(tops), len(lefts)).double()
    vertical = torch.from_numpy(interpolation(height, size, stride)).to(coarse)
    horizontal = torch.from_numpy(interpolation(width, size, stride)).to(coarse)
    return (vertical @ coarse @ horizontal.T).float()


def _cost(setting: Mapping[str, Any], side: int) -> tuple[int, int]:
    return len(corners(side, setting["patch_size"], setting["stride"])) ** 2 + 1, 0


SLIDING_PATCH = Explainer(_sliding_patch, cost=_cost)
