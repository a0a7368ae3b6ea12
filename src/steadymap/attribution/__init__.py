"""Attribution methods, and the one function that runs any of them."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steadymap.attribution.own import explainer_of
from steadymap.attribution.passes import Explainer, Passes
from steadymap.own import declaration, find, named
from steadymap.vocabulary import Method

__all__ = [
    "EXPLAINERS",
    "attribute",
    "checked_images",
    "evaluation_mode",
    "explainer",
    "method_named",
]

# Where each method's code is; imported when it is used.
EXPLAINERS: dict[str, str] = {
    "gradient": "steadymap.attribution.gradients:GRADIENT",
    "smoothgrad": "steadymap.attribution.gradients:SMOOTHGRAD",
    "input_x_gradient": "steadymap.attribution.gradients:INPUT_X_GRADIENT",
    "integrated_gradients": "steadymap.attribution.integrated_gradients:INTEGRATED_GRADIENTS",
    "guided_backprop": "steadymap.attribution.guided_backprop:GUIDED_BACKPROP",
    "guided_gradcam": "steadymap.attribution.guided_gradcam:GUIDED_GRADCAM",
    "deeplift": "steadymap.attribution.deeplift:DEEPLIFT",
    "sliding_patch": "steadymap.attribution.sliding_patch:SLIDING_PATCH",
    "lime": "steadymap.attribution.lime:LIME",
    "meaningful_perturbation": (
        "steadymap.attribution.meaningful_perturbation:MEANINGFUL_PERTURBATION"
    ),
}


def method_named(method: str | Callable[..., Any]) -> Method:
    """Declaration of a method, or of a function that `steadymap.attribution_method` declared.

    Raises
    ------
    ValueError
        Where there is none of that name, or the function is not declared.
    """
    return declaration(named(method))


def explainer(name: str) -> Explainer:
    """Code of a method."""
    if (mine := find(name)) is not None:
        return explainer_of(mine)
    module, _, member = EXPLAINERS[name].partition(":")
    return getattr(importlib.import_module(module), member)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@overload
def attribute(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | int,
    *,
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    diagnostics: Literal[False] = False,
    batch_size: int = 64,
    **hyperparameters: Any,
) -> Tensor: ...


@overload
def attribute(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | int,
    *,
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    diagnostics: Literal[True],
    batch_size: int = 64,
    **hyperparameters: Any,
) -> tuple[Tensor, dict[str, Tensor]]: ...


def attribute(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"] | Sequence[int] | int,
    *,
    image_ids: Sequence[str] | None = None,
    seed: int = 0,
    diagnostics: bool = False,
    batch_size: int = 64,
    **hyperparameters: Any,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Attribution maps of a batch of images.

    Parameters
    ----------
    method : str or callable
        Name of the method, or a function that `steadymap.attribution_method` declared.
    model : nn.Module
        From images in [0, 1] to logits; put into eval mode for the time of the call. Make one with
        `steadymap.models.explainable`.
    images : Tensor
        In [0, 1].
    targets : Tensor, sequence of int, or int
        Class to explain, per image or for all.
    image_ids : sequence of str, optional
        What random draws are keyed by; by default a hash of each image's content.
    seed : int
        Seed of the draws; methods without randomness don't use it.
    diagnostics : bool
        Also return what the method says of its maps, per image.
    batch_size : int
        Rows per model pass. Bits are the same for any order and company at one batch size.
    **hyperparameters
        As declared in `steadymap.vocabulary.METHODS`.

    Returns
    -------
    Tensor or (Tensor, dict of str to Tensor)
        Signed float32 maps (batch, height, width), not normalised.

    Raises
    ------
    ValueError
        Where method, hyperparameters, images or targets don't fit.
    """
    declared = method_named(method)
    if "seed" in hyperparameters or declared.stochastic:
        hyperparameters["seed"] = hyperparameters.get("seed", seed)
    setting = declared.effective(hyperparameters)
    images, classes, ids = checked_images(images, targets, image_ids, batch_size)
    with evaluation_mode(model):
        maps, extra = explainer(declared.name).explain(
            Passes(model, batch_size), images, classes, image_ids=ids, settings=[setting]
        )[0]
    return (maps, extra) if diagnostics else maps


def checked_images(
    images: Tensor,
    targets: Tensor | Sequence[int] | int,
    image_ids: Sequence[str] | None,
    batch_size: int,
) -> tuple[Tensor, Tensor, list[str]]:
    """Return detached images, a class for each and names for draws, or say what is wrong."""
    if images.ndim != 4 or images.shape[0] == 0:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; give (batch, channel, height, width), "
            "at least one image"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; give floats in [0, 1] (uint8 / 255)")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images lie in [{low:.3g}, {high:.3g}]; give [0, 1], the model normalises by itself"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; choose at least 1")
    classes = torch.as_tensor(targets, dtype=torch.int64, device=images.device)
    if classes.ndim == 0:
        classes = classes.expand(len(images))
    if classes.shape != (len(images),):
        raise ValueError(
            f"targets have shape {tuple(classes.shape)}, there are {len(images)} images; "
            "give one class per image"
        )
    if image_ids is None:
        pixels = images.detach().cpu().float().contiguous().numpy()
        ids = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    else:
        ids = [str(name) for name in image_ids]
        if len(ids) != len(images) or len(set(ids)) != len(ids):
            raise ValueError(
                f"image_ids name {len(set(ids))} different images, there are {len(images)}; "
                "give each a name of its own"
            )
    return images.detach().float(), classes, ids
