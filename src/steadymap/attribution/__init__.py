"""Attribution methods, and the one function that runs any of them."""

import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steadymap.attribution.own import explainer_of
from steadymap.attribution.passes import Explainer, Passes
from steadymap.own import declaration, find, named
from steadymap.progress import reporting
from steadymap.vocabulary import Method

__all__ = [
    "EXPLAINERS",
    "attribute",
    "checked_images",
    "evaluation_mode",
    "explained",
    "explainer",
    "method_named",
    "rows_per_pass",
]

# More rows hardly make a pass faster per row, and take memory.
_MAX_ROWS = 64

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
    batch_size: int | None = None,
    progress: bool = True,
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
    batch_size: int | None = None,
    progress: bool = True,
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
    batch_size: int | None = None,
    progress: bool = True,
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
    batch_size : int, optional
        Rows per model pass; by default what these images fill, at most 64. A pass of fewer rows is
        padded to it. At one batch size an image's map is the same to the last bit in any order and
        company. Maps of different batch sizes agree to 1e-3 of the map's largest absolute value
        (Meaningful Perturbation's differ more, as its steps amplify differences): give one
        `batch_size` to all calls whose maps must be equal.
    progress : bool
        Show a bar in a terminal or notebook where it takes longer than two seconds.
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
    ((maps, extra),) = explained(
        *(declared.name, model, images, classes, ids, [[setting]]), batch_size, progress=progress
    )
    return (maps, extra) if diagnostics else maps


def explained(
    method: str,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    image_ids: Sequence[str],
    groups: Sequence[Sequence[Mapping[str, Any]]],
    batch_size: int | None,
    *,
    progress: bool,
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Maps and diagnostics of settings in groups that share passes, in order, and progress.

    All settings have one batch size: `batch_size`, or what the largest needs.
    """
    found = explainer(method)
    side = images.shape[-1]
    costs = [max(found.cost(setting, side)[0] for setting in group) for group in groups]
    if batch_size is None:
        n_rows = len(images) * (1 if found.sequential else max(costs))
        batch_size = rows_per_pass(n_rows, found.rows)
    bar = reporting(len(images) * sum(costs), method, transient=True)
    with evaluation_mode(model), bar if progress else nullcontext(lambda amount: None) as done:
        return [
            pair
            for group in groups
            for pair in found.explain(
                *(_ReportedPasses(model, batch_size, done), images, targets),
                image_ids=image_ids,
                settings=group,
            )
        ]


def rows_per_pass(n_rows: int, rows: Callable[[int], int] | None = None) -> int:
    """Smallest batch size at which `n_rows` take no more passes than at 64.

    `rows` is that of `Explainer`.
    """
    rows = rows or (lambda size: size)
    n_passes = math.ceil(max(1, n_rows) / rows(_MAX_ROWS))
    return next(size for size in range(1, _MAX_ROWS + 1) if n_passes * rows(size) >= n_rows)


class _ReportedPasses(Passes):
    """Passes that say how many rows were passed since."""

    def __init__(self, model: nn.Module, batch_size: int, report: Callable[[int], None]):
        self._report = report
        self._forward = 0
        super().__init__(model, batch_size)

    @property
    def forward(self) -> int:
        return self._forward

    @forward.setter
    def forward(self, value: int) -> None:
        self._report(value - self._forward)
        self._forward = value


def checked_images(
    images: Tensor,
    targets: Tensor | Sequence[int] | int,
    image_ids: Sequence[str] | None,
    batch_size: int | None,
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
    if batch_size is not None and batch_size < 1:
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
