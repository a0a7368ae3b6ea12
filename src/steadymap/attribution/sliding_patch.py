"""Sliding Patch: how much the target score drops when a square is covered."""

import numpy as np
import torch
from jaxtyping import Float
from skimage.transform import resize
from torch import Tensor

from steadymap.attribution.incremental import Patches, covered
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.shapes import Classes, Images, Maps


def corners(side: int, patch_size: int, stride: int) -> np.ndarray:
    """First pixels, along one axis, of the patches that lie wholly inside the image.

    Parameters
    ----------
    side, patch_size, stride : int
        Of the image, of the patch, and between neighboring patches, px.
    """
    return np.arange(0, side - patch_size + 1, stride)


def interpolation(side: int, patch_size: int, stride: int) -> np.ndarray:
    """Weights (side, positions) that spread values at patch centers over pixels, along one axis.

    Linear between centers, which lie at corner + (patch_size - 1) / 2; beyond the outermost centers
    the edge value holds.

    Parameters
    ----------
    side, patch_size, stride : int
        As in `corners`.
    """
    centers = corners(side, patch_size, stride) + (patch_size - 1) / 2
    pixels = np.arange(side)
    return np.stack([np.interp(pixels, centers, row) for row in np.eye(len(centers))], axis=1)


def centered(
    coarse: Float[Tensor, "batch rows columns"], shape: tuple[int, int], *, size: int, stride: int
) -> Maps:
    """Enlarge maps with a value per patch, bilinear between the patches' centers.

    Parameters
    ----------
    coarse : Tensor
        A value per patch position.
    shape : tuple of int
        Height and width of the image, px.
    size, stride : int
        Side of the patch and distance between neighbors, px.
    """
    vertical, horizontal = (
        torch.from_numpy(interpolation(side, size, stride)).to(coarse.device) for side in shape
    )
    return (vertical @ coarse.double() @ horizontal.T).float()


def stretched(coarse: Float[Tensor, "batch rows columns"], shape: tuple[int, int]) -> Maps:
    """Stretch maps with a value per patch over the whole image, as the SAM paper's code does.

    scikit-image's `resize` with a spline of order 5, clipped to each map's own range. The outermost
    patches land at the borders although their centers lie (patch_size - 1) / 2 inside, so that
    maps of different patch sizes are shifted against each other and against the image. A value that
    is not finite makes its whole map NaN.
    """
    # One by one: a stack would be interpolated across its images too.
    large = [
        resize(values, shape, order=5, mode="reflect", clip=True, anti_aliasing=False)
        if np.isfinite(values).all()
        else np.full(shape, np.nan)
        for values in coarse.double().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(large)).float().to(coarse.device)


def _sliding_patch(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """Score of the image minus its score with a patch covered (Zeiler & Fergus 2014; SAM 2).

    One value per patch position inside the image, `stride` apart. The patch is filled with the
    color that normalization makes zero (`mean`), black or mid-gray. `upsampling` makes maps of the
    image's size: bilinear between the patch centers (`centered`), or a spline of order 5 stretched
    over the whole image (`stretched`, as the SAM paper's code).
    """
    options = {name: setting[name] for name in ("patch_size", "stride", "fill", "output")}
    coarse = drops(runner, batch.images, batch.targets, **options)
    shape = batch.images.shape[2], batch.images.shape[3]
    if setting["upsampling"] == "stretched":
        return stretched(coarse, shape), {}
    return centered(coarse, shape, size=setting["patch_size"], stride=setting["stride"]), {}


def drops(
    runner: ModelRunner,
    images: Images,
    targets: Classes,
    *,
    patch_size: int,
    stride: int,
    fill: str,
    output: str,
) -> Float[Tensor, "batch rows columns"]:
    """Score of the image minus its score with a patch covered, per patch position.

    Parameters
    ----------
    runner : ModelRunner
        Runs the model.
    images : Tensor
        In [0, 1].
    targets : Tensor
        Class whose score is read.
    patch_size, stride : int
        Side of the patch and distance between neighbors, px.
    fill : {"mean", "black", "gray"}
        Color of the patch.
    output : {"logit", "probability", "sigmoid"}
        The score.

    Raises
    ------
    ValueError
        Where the patch is larger than the image.
    """
    n, _, height, width = images.shape
    if patch_size > min(height, width):
        raise ValueError(
            f"patch_size is {patch_size}, the image {height} x {width}; choose a smaller patch"
        )
    color = {
        "mean": runner.normalization(images)[0],
        "black": torch.zeros_like(images[:1, :, :1, :1]),
        "gray": torch.full_like(images[:1, :, :1, :1], 0.5),
    }[fill]
    tops, lefts = corners(height, patch_size, stride), corners(width, patch_size, stride)
    patches = Patches(tuple(tops.tolist()), tuple(lefts.tolist()), patch_size, color)
    logits = covered(runner, images, patches)
    each = logits.shape[1]
    scores = runner.target_scores(logits.flatten(0, 1), targets.repeat_interleave(each), output)
    per_image = scores.reshape(n, each)
    return (per_image[:, :1] - per_image[:, 1:]).reshape(n, len(tops), len(lefts))


def _cost(setting: Setting, side: int) -> tuple[int, int]:
    return len(corners(side, setting["patch_size"], setting["stride"])) ** 2 + 1, 0


SLIDING_PATCH = Explainer(_sliding_patch, cost=_cost, libraries=("scikit-image", "scipy"))
