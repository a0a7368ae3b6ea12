"""Accuracy of attribution maps: insertion and deletion.

Insertion and deletion ask the model: pixels enter or leave the image in the map's order while the
probability of a class is followed.

A map with a NaN or infinity scores NaN; other maps of the batch are not affected.
"""

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.ndimage import correlate1d, gaussian_filter1d
from torch import Tensor, nn

from steadymap.attribution import Images, Targets, check_model, checked_images, rows_per_pass
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.shapes import Classes
from steadymap.attribution.shapes import Images as ImageTensor
from steadymap.metrics.localization import Maps, as_tensor
from steadymap.models.adoption import evaluation_mode
from steadymap.params.methods import OUTPUTS

KINDS = ("insertion", "deletion")

SUBSTRATES = ("mean", "black", "blur")

# RISE's blur: side and standard deviation of the kernel, px, whatever the image's size.
_BLUR_SIDE, _BLUR_SIGMA = 11, 5.0

# Steps of the SAM paper's curves: 1792 of 224 x 224 pixels at a time.
_STEPS = 28


def default_step(n_pixels: int) -> int:
    """Pixels inserted or deleted at a time: a 28th of the image (1792 of 224 x 224; SAM 3.3)."""
    return max(1, round(n_pixels / _STEPS))


def fractions(n_pixels: int, step: int) -> Float64[Tensor, " points"]:
    """Share of the pixels that is inserted or deleted at each point of a curve, from 0 to 1.

    The last step is smaller where `step` does not divide the number of pixels.

    Raises
    ------
    ValueError
        Where no step would lie between the ends.
    """
    if not 1 <= step < n_pixels:
        raise ValueError(
            f"step is {step}, the image has {n_pixels} pixels; choose from 1 to "
            f"{max(1, n_pixels // 2)}: with fewer than two steps every map has the same curve"
        )
    taken = torch.arange(math.ceil(n_pixels / step) + 1, dtype=torch.float64) * step
    return taken.clamp(max=n_pixels) / n_pixels


def passes_per_map(n_pixels: int, step: int | None = None) -> int:
    """Forward passes that insertion and deletion of one map take together.

    Both have the same two ends. Maps of an image that are measured together share them, so that
    each further one takes two fewer.
    """
    points = len(fractions(n_pixels, default_step(n_pixels) if step is None else step))
    return 2 * (points - 2) + 2


def substrate_images(runner: ModelRunner, images: ImageTensor, substrate: str) -> ImageTensor:
    """Images that insertion begins with and deletion ends with.

    Parameters
    ----------
    runner : ModelRunner
        Of the model, which gives the channel statistics.
    images : Tensor
        In [0, 1].
    substrate : {'mean', 'black', 'blur'}
        The color that normalization makes zero (SAM's code); black; or the image blurred as by
        RISE: Gaussian of 5 px on 11 x 11 px, beyond the border the color that normalization makes
        zero. RISE blurs for insertion alone and deletes to zero; here both take the one named.

    Raises
    ------
    ValueError
        Where there is no such substrate.

    References
    ----------
    Petsiuk, Das, Saenko: RISE, BMVC 2018.
    """
    if substrate not in SUBSTRATES:
        raise ValueError(f"substrate is {substrate!r}; choose one of {', '.join(SUBSTRATES)}")
    mean, _ = runner.normalization(images)
    if substrate == "black":
        return torch.zeros_like(images)
    if substrate == "mean":
        return mean.expand_as(images).contiguous()
    # Cut to 11 px, the tails folded back inside.
    unit = np.zeros(_BLUR_SIDE)
    unit[_BLUR_SIDE // 2] = 1
    kernel = gaussian_filter1d(unit, _BLUR_SIGMA)
    # Row by row in float64: an image's blur never depends on its batch.
    blurred = (images - mean).detach().double().cpu().numpy()
    for axis in (2, 3):
        blurred = correlate1d(blurred, kernel, axis=axis, mode="constant")
    return (torch.from_numpy(blurred).to(images.device) + mean.double()).to(images.dtype)


def curves(
    runner: ModelRunner,
    images: ImageTensor,
    maps: Float[Tensor, "*maps batch height width"],
    targets: Classes,
    *,
    step: int,
    substrate: str = "mean",
    kinds: Sequence[str] = KINDS,
    output: str = "probability",
) -> Float[Tensor, "*maps batch kinds points"]:
    """Probability of each image's class while its pixels are inserted or deleted (RISE; SAM 3.3).

    Pixels go in descending signed attribution, all channels at once, `step` at a time; of equal
    ones the earlier in row-major order goes first. Both ends are included.

    Parameters
    ----------
    runner : ModelRunner
        Of the model, in eval mode.
    images : Tensor
        In [0, 1].
    maps : Tensor
        Signed; of each image one, or one per leading index. All share full batches.
    targets : Tensor
        Class to follow per image.
    step : int
        Pixels at a time; the last step is smaller where it does not divide the image.
    substrate : {'mean', 'black', 'blur'}
        See `substrate_images`.
    kinds : sequence of {'insertion', 'deletion'}
        From the substrate to the image, or back; the ends that both have are computed once.
    output : {'probability', 'sigmoid'}
        See `insertion`.

    Returns
    -------
    Tensor
        In [0, 1], at the points of `fractions`. At one batch shape a map's curve is the same to the
        last bit whatever it is measured together with.

    Raises
    ------
    TypeError, ValueError
        Where maps, images or options don't fit.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"kind is {min(unknown)!r}; choose one of {', '.join(KINDS)}")
    _check_maps(maps, images)
    n, _, height, width = images.shape
    n_points = len(fractions(height * width, step))
    base = substrate_images(runner, images, substrate)
    stack = maps.detach().to(images.device).reshape(-1, n, height * width)
    # Adding 0 makes -0 a 0, so that they tie on every device.
    order = (stack + 0.0).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(height * width, dtype=torch.int32, device=images.device)
    ranks = torch.empty(order.shape, dtype=torch.int32, device=images.device)
    ranks.scatter_(-1, order, places.expand_as(order))

    ends = runner.scores(torch.cat([base, images]), torch.cat([targets, targets]), output=output)
    values = torch.empty((len(stack), n, len(kinds), n_points), device=images.device)
    for index, name in enumerate(kinds):
        first, last = (0, -1) if name == "insertion" else (-1, 0)
        values[:, :, index, first], values[:, :, index, last] = ends[:n], ends[n:]
    inner = values[..., 1:-1]
    for rows in runner.batches(inner.numel()):
        at = np.unravel_index(rows, inner.shape)
        which, image, kind, point = (torch.from_numpy(index) for index in at)
        moved = ranks[which, image] < ((point + 1) * step).to(ranks)[:, None]
        deleting = torch.tensor([name == "deletion" for name in kinds])[kind].to(moved.device)
        shown = (moved ^ deleting[:, None]).reshape(-1, 1, height, width)
        composites = torch.where(shown, images[image], base[image])
        scores = runner.scores(composites, targets[image], output=output)
        inner[which, image, kind, point] = scores
    values[~stack.isfinite().all(dim=-1)] = math.nan
    return values.reshape(*maps.shape[:-2], len(kinds), n_points)


def _check_maps(maps: Tensor, images: Tensor) -> None:
    if not maps.is_floating_point():
        raise TypeError(f"maps are {maps.dtype}; convert them to floating point")
    n, _, height, width = images.shape
    if maps.ndim < 3 or maps.shape[-3:] != (n, height, width):
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}, the images {tuple(images.shape)}; give "
            f"(..., {n}, {height}, {width}): one map per image, of its size"
        )


def auc(
    curves: Float[Tensor, "*maps points"],
    *,
    fractions: Float[Tensor, " points"] | None = None,
    over_max: bool = False,
) -> Float64[Tensor, "*maps"]:
    """Area under each curve by the trapezoid rule, over [0, 1].

    Parameters
    ----------
    curves : Tensor
        Probabilities.
    fractions : Tensor, optional
        Where the points lie, from 0 to 1; evenly spaced by default.
    over_max : bool
        Divide by the curve's own maximum, as SAM's code does and RISE does not: a curve that stays
        low is not lower for it. A curve of zeros then is NaN.

    Returns
    -------
    Tensor
        In [0, 1]. Higher is better for insertion, lower for deletion.

    Raises
    ------
    ValueError
        Where the fractions don't fit the curves or don't rise from 0 to 1.
    """
    values = curves.double()
    n_points = values.shape[-1]
    if fractions is None:
        fractions = torch.linspace(0, 1, n_points, dtype=torch.float64)
    at = fractions.double().to(values.device)
    if at.shape != (n_points,):
        raise ValueError(
            f"fractions have shape {tuple(at.shape)}, the curves {n_points} points; "
            "give one per point"
        )
    if n_points < 2 or at[0] != 0 or at[-1] != 1 or not (at.diff() > 0).all():
        shown = ", ".join(f"{value:.4g}" for value in at.tolist())
        raise ValueError(f"fractions are {shown}; give rising ones from 0 to 1")
    # Point by point: torch sums in another order for other numbers of curves.
    area = torch.zeros_like(values[..., 0])
    for point, width in enumerate(at.diff()):
        area += width * (values[..., point] + values[..., point + 1]) / 2
    return area / values.amax(-1) if over_max else area


class CurveOptions(TypedDict, total=False):
    """Keyword arguments of `insertion` and `deletion`, documented there."""

    step: int | None
    substrate: str
    over_max: bool
    batch_size: int | None
    output: str


_DEFAULTS: CurveOptions = {
    "step": None,
    "substrate": "mean",
    "over_max": False,
    "batch_size": None,
    "output": "probability",
}


def insertion(
    model: nn.Module, images: Images, maps: Maps, targets: Targets, **options: Unpack[CurveOptions]
) -> Float64[Tensor, "*maps batch"]:
    """Area under the probability as pixels enter the image, the map's strongest first.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits; put into eval mode for the time of the call.
    images : Tensor
        In [0, 1].
    maps : Tensor
        Signed; of each image one, or one per leading index.
    targets : Tensor, sequence of int, or int
        Class to follow, per image or for all.
    step : int, optional
        Pixels at a time; by default a 28th of the image.
    substrate : {'mean', 'black', 'blur'}, optional
        See `substrate_images`; `mean` by default.
    over_max : bool, optional
        See `auc`; off by default.
    batch_size : int, optional
        Rows per model pass, to which smaller ones are padded; by default what the curves fill, at
        most 64. Only at one batch size is a score the same to the last bit in any company.
    output : {'probability', 'sigmoid'}, optional
        What is followed: softmax over classes (the default), where a lone logit has its sigmoid; or
        the sigmoid of the class's own logit, for heads whose classes do not exclude one another.

    Returns
    -------
    Tensor
        In [0, 1]; higher is better.

    Raises
    ------
    TypeError, ValueError
        Where images, maps, targets or options don't fit.
    """
    return _area("insertion", model, images, maps, targets, options)


def deletion(
    model: nn.Module, images: Images, maps: Maps, targets: Targets, **options: Unpack[CurveOptions]
) -> Float64[Tensor, "*maps batch"]:
    """Area under the probability as pixels leave the image, the map's strongest first.

    Parameters
    ----------
    model, images, maps, targets, **options
        As in `insertion`.

    Returns
    -------
    Tensor
        In [0, 1]; lower is better.
    """
    return _area("deletion", model, images, maps, targets, options)


def _area(
    kind: str, model: nn.Module, images: Images, maps: Maps, targets: Targets, options: CurveOptions
) -> Tensor:
    if unknown := set(options) - set(_DEFAULTS):
        raise TypeError(f"{kind}() has no option {min(unknown)!r}; use {', '.join(_DEFAULTS)}")
    asked: CurveOptions = {**_DEFAULTS, **options}
    step, batch_size, output = asked["step"], asked["batch_size"], asked["output"]
    if output not in OUTPUTS[1:]:
        raise ValueError(f"output is {output!r}; choose one of {', '.join(OUTPUTS[1:])}")
    images, classes, _ = checked_images(images, targets, None, batch_size)
    n_pixels = images.shape[2] * images.shape[3]
    step = default_step(n_pixels) if step is None else step
    points, stack = fractions(n_pixels, step), as_tensor(maps)
    n_maps = math.prod(stack.shape[:-2])
    runner = ModelRunner(model, batch_size or rows_per_pass(n_maps * (len(points) - 2)))
    followed = {"substrate": asked["substrate"], "output": output}
    with evaluation_mode(model):
        check_model(model, images, classes, settings=[asked])
        values = curves(runner, images, stack, classes, step=step, kinds=(kind,), **followed)
    return auc(values[..., 0, :], fractions=points, over_max=asked["over_max"])
