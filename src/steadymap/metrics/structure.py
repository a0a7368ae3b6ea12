"""Visible structure of an attribution map: its likeness to edges, smoothness, and place.

SAM (Bansal et al., 2020; 4.1) shows that gradients of robust networks have the structure of the
image and those of regular ones are noise. Each score here reads magnitudes, |map|, and can also be
taken with the image, the map or the object of another photograph: what is left then is chance, and
what all images share, such as objects in the middle.

A map with a NaN or infinity scores NaN; other maps of the batch are not affected.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from skimage.color import rgb2gray
from skimage.filters import sobel
from torch import Tensor

from steadymap.metrics.similarity import pearson, spearman

Maps = Float[Tensor, "batch height width"]

Scores = Float64[Tensor, " batch"]


def edges(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
    """Sobel's gradient magnitude of the gray image; RGB in [0, 1], float32."""
    gray = rgb2gray(images.detach().cpu().double().numpy(), channel_axis=1)
    return torch.from_numpy(np.stack([sobel(image) for image in gray])).float()


def edge_correlation(maps: Maps, images_edges: Maps) -> Scores:
    """Spearman's rank correlation of |map| with the image's edges, as `edges` has them.

    In [-1, 1]; NaN where either is constant.
    """
    return spearman(maps.abs(), images_edges)


def autocorrelation(maps: Maps, others: Maps | None = None) -> Scores:
    """Linear correlation of |map| at a pixel with |map|, or another, at its four neighbors.

    Over all pairs of neighbors in both directions: Moran's I (1950) with the four neighbors as
    weights and means taken over pairs, bivariate where another map is given. In [-1, 1], near 1 for
    smooth maps, near 0 for white noise; NaN for a map of constant magnitude.
    """
    here, there = maps.abs(), (maps if others is None else others).abs()
    # Each neighbor's side: right, left, below, above.
    at = (here[:, :, :-1], here[:, :, 1:], here[:, :-1], here[:, 1:])
    beside = (there[:, :, 1:], there[:, :, :-1], there[:, 1:], there[:, :-1])
    first, second = (torch.cat([part.flatten(1) for part in parts], 1) for parts in (at, beside))
    return pearson(first[:, None], second[:, None])


def mass_inside(maps: Maps, masks: Bool[Tensor, "batch height width"]) -> Scores:
    """Share of the sum of |map| that lies inside the object's mask.

    In [0, 1]; of a map of constant magnitude the mask's share of the image, NaN for a map of zeros.
    """
    mass = maps.double().abs()
    finite = mass.isfinite().all(-1).all(-1)
    # The largest first, so that no sum overflows.
    mass = mass / mass.amax((-1, -2), keepdim=True)
    share = (mass * masks).sum((-1, -2)) / mass.sum((-1, -2))
    return torch.where(finite, share, math.nan)
