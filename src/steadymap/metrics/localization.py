"""Localization by attribution maps: a box around a map's strongest pixels and the object's box.

A map with a NaN or infinity scores NaN; other maps of the batch are not affected.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from steadymap import draws
from steadymap.metrics.structure import edges
from steadymap.params.methods import ALPHAS

# Per image one map, or one per leading index.
Maps = Float[Tensor, "*maps batch height width"] | Float[np.ndarray, "*maps batch height width"]

Boxes = Int[Tensor, "batch 4"] | Int[np.ndarray, "batch 4"]

Masks = Bool[Tensor, "batch height width"] | Bool[np.ndarray, "batch height width"]


def as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """Detached tensor of a tensor or an array."""
    # A copy of an array: torch warns about read-only memory such as a memory-mapped archive.
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def iou(
    maps: Maps,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Float64[Tensor, "*maps batch alphas"]:
    """Intersection over union of the box around each map's strongest pixels and the object's.

    Negative attributions count as 0. The pixels of at least `alpha` times the maximum survive, and
    one box is drawn around all of them, first and last row and column included (SAM 3.3 and code,
    whose boxes lack their first row and column by a slip).

    Parameters
    ----------
    maps : Tensor or ndarray
        Signed; of each image one, or one per leading index.
    boxes : Tensor or ndarray, optional
        The object's x0, y0, x1, y1 per image, half-open, px.
    masks : Tensor or ndarray, optional
        Instead of boxes, the union of an image's boxes; true inside.
    alphas : sequence of float
        Shares of the maximum, in (0, 1].

    Returns
    -------
    Tensor
        In [0, 1]; 0 for a map without a positive value.

    Raises
    ------
    ValueError
        Where neither or both of boxes and masks are given, or shapes, boxes or alphas don't fit.
    """
    values = as_tensor(maps)
    if values.ndim < 3 or 0 in values.shape[-2:]:
        raise ValueError(f"maps have shape {tuple(values.shape)}; give (..., batch, height, width)")
    if not len(alphas) or not all(0 < alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas are {list(alphas)}; choose shares of the maximum in (0, 1]")
    truth = object_masks(boxes, masks, values.shape[-3:]).to(values.device)
    values = values.double()
    finite = values.isfinite().all(-1).all(-1)
    values = values.clamp(min=0)
    rows, columns = values.amax(-1), values.amax(-2)
    peak = rows.amax(-1)
    bar = peak[..., None] * torch.tensor(alphas, dtype=torch.float64, device=values.device)
    y0, y1 = _extent(rows[..., None, :] >= bar[..., None])
    x0, x1 = _extent(columns[..., None, :] >= bar[..., None])

    # Sums over a rectangle are four look-ups in the sums over all rectangles from the corner.
    corner = nn.functional.pad(truth.long().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    image = torch.arange(len(truth), device=values.device)[:, None]
    inside = (
        corner[image, y1, x1]
        - corner[image, y0, x1]
        - corner[image, y1, x0]
        + corner[image, y0, x0]
    )
    union = (y1 - y0) * (x1 - x0) + corner[:, -1, -1][:, None] - inside
    ratio = torch.where(peak[..., None] > 0, inside.double() / union, 0.0)
    return torch.where(finite[..., None], ratio, math.nan)


def localization_error(
    maps: Maps,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Float64[Tensor, "*maps batch alphas"]:
    """1 where the IoU is .5 or less, else 0 (SAM 3.3).

    Parameters
    ----------
    maps, boxes, masks, alphas
        As in `iou`, whose errors it raises too.

    Returns
    -------
    Tensor
        1 for a map without a positive value, NaN for one with a NaN or infinity.
    """
    overlap = iou(maps, boxes, masks, alphas=alphas)
    return torch.where(overlap.isnan(), overlap, (overlap <= 0.5).double())


def _extent(alive: Tensor) -> tuple[Tensor, Tensor]:
    """First true place along the last axis, and the one behind the last."""
    marks = alive.int()
    return marks.argmax(-1), marks.shape[-1] - marks.flip(-1).argmax(-1)


def object_masks(boxes: Boxes | None, masks: Masks | None, shape: Sequence[int]) -> Tensor:
    """Where the objects are, bool (batch, height, width).

    Parameters
    ----------
    boxes, masks
        One of the two, as in `iou`.
    shape : sequence of int
        Number of images, height and width.

    Raises
    ------
    ValueError
        Where neither or both are given, or one does not fit the shape or is empty.
    """
    n, height, width = shape
    if (boxes is None) == (masks is None):
        which = "neither" if boxes is None else "both"
        raise ValueError(f"{which} of boxes and masks are given; give one of them")
    if masks is not None:
        truth = as_tensor(masks).bool()
        if truth.shape != torch.Size(shape):
            raise ValueError(
                f"masks have shape {tuple(truth.shape)}, the maps of one setting {tuple(shape)}; "
                "give one mask per image, of its size"
            )
        empty = ~truth.flatten(1).any(1)
        if empty.any():
            raise ValueError(
                f"masks[{int(empty.nonzero()[0])}] is empty; leave images without a box out"
            )
        return truth
    corners = as_tensor(boxes)  # type: ignore[arg-type]
    if corners.shape != (n, 4):
        raise ValueError(
            f"boxes have shape {tuple(corners.shape)}, there are {n} images; "
            "give x0, y0, x1, y1 of each"
        )
    x0, y0, x1, y1 = corners.unbind(1)
    fits = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    if not fits.all():
        first = int((~fits).nonzero()[0])
        raise ValueError(
            f"boxes[{first}] is {corners[first].tolist()}, the image {width} x {height}; give "
            "x0 < x1 and y0 < y1 inside it, and leave images without a box out"
        )
    down, across = torch.arange(height)[:, None], torch.arange(width)
    x0, y0, x1, y1 = (side.cpu()[:, None, None] for side in (x0, y0, x1, y1))
    return (across >= x0) & (across < x1) & (down >= y0) & (down < y1)


def trivial_maps(
    images: Float[Tensor, "batch 3 height width"], *, image_ids: Sequence[str], seed: int = 0
) -> dict[str, Float[Tensor, "batch height width"]]:
    """Maps made without a model, which a localization error is compared with.

    Parameters
    ----------
    images : Tensor
        RGB, in [0, 1].
    image_ids : sequence of str
        What the random maps are keyed by.
    seed : int
        Seed of the random maps.

    Returns
    -------
    dict of str to Tensor
        `whole_image`: ones; `center_box`: ones in a central box of about half the image's area
        (margins of (1 - .5^.5) / 2 of each side, in whole pixels), zeros around it; `random`:
        independent draws from [0, 1); `edges`: Sobel's gradient magnitude of the gray image.
        Non-negative, float32.

    Raises
    ------
    ValueError
        Where there is not one id per image.
    """
    n, _, height, width = images.shape
    if len(image_ids) != n:
        raise ValueError(f"image_ids are {len(image_ids)}, there are {n} images; name each")
    box = torch.zeros((n, height, width))
    top, left = (round(side * (1 - math.sqrt(0.5)) / 2) for side in (height, width))
    box[:, top : height - top, left : width - left] = 1
    noise = [
        draws.generator(seed, name, "random", 0).random((height, width), dtype=np.float32)
        for name in image_ids
    ]
    return {
        "whole_image": torch.ones((n, height, width)),
        "center_box": box,
        "random": torch.from_numpy(np.stack(noise)),
        "edges": edges(images),
    }
