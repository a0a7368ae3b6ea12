"""Attribution methods, and the one function that runs any of them."""

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steadymap.attribution.custom import explainer_of
from steadymap.attribution.model_runner import Explainer, ModelRunner, wrong_targets
from steadymap.models.adoption import check, evaluation_mode
from steadymap.params.methods import Method
from steadymap.params.plugins import declaration, find, named
from steadymap.progress import reporting

__all__ = [
    "EXPLAINERS",
    "Images",
    "Targets",
    "adopted",
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

# Methods that trace a model which `explainable` has not made.
TRACING = ("deeplift", "guided_backprop", "guided_gradcam")
# Rounding may leave pixels so far outside of [0, 1]; they are clipped.
_PIXEL_TOLERANCE = 1e-5

Images = (
    Float[Tensor, "batch channel height width"] | Float[np.ndarray, "batch channel height width"]
)
Targets = Int[Tensor, " batch"] | Int[np.ndarray, " batch"] | Sequence[int] | int


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


def adopted(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    method: str | None = None,
    settings: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Check a model, in evaluation mode, and the classes before maps rest on them.

    Raises
    ------
    ValueError
        As `adoption.check`, and where a class is none of the model's.
    """
    outputs = {str(setting["output"]) for setting in settings if "output" in setting}
    n_classes = check(model, images, outputs=outputs, traced=method in TRACING)
    if int(classes.max()) >= n_classes:
        raise ValueError(wrong_targets(classes, n_classes))


@overload
def attribute(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Images,
    targets: Targets,
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
    images: Images,
    targets: Targets,
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
    images: Images,
    targets: Targets,
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
        From images in [0, 1] to logits (rows, classes); put into eval mode for the time of the
        call, autocast and inference mode off. Make one with `steadymap.models.explainable`. It is
        checked as `adoption.check` says.
    images : Tensor or ndarray
        (batch, channel, height, width) in [0, 1]; what lies outside by 1e-5 at most is clipped.
    targets : Tensor, ndarray, sequence of int, or int
        Class to explain, per image or for all, from 0. A head with one logit has class 0 alone,
        whose `probability` is the logit's sigmoid.
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
        Signed float32 maps (batch, height, width), not normalized.

    Raises
    ------
    ValueError
        Where method, hyperparameters, model, images or targets don't fit.
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
    settings = [setting for group in groups for setting in group]
    with evaluation_mode(model), bar if progress else nullcontext(lambda amount: None) as done:
        adopted(model, images, targets, method=method, settings=settings)
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


class _ReportedPasses(ModelRunner):
    """ModelRunner that say how many rows were passed since."""

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
    images: Images, targets: Targets, image_ids: Sequence[str] | None, batch_size: int | None
) -> tuple[Tensor, Tensor, list[str]]:
    """Return detached images, a class for each and names for draws, or say what is wrong."""
    whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise ValueError(f"batch_size is {batch_size}; choose at least 1, a whole number")
    # What was made in inference mode can't take part in gradients; copies can.
    with torch.inference_mode(False):
        pixels = _pixels(images)
        classes = _classes(targets, pixels)
    if image_ids is None:
        contents = pixels.cpu().contiguous().numpy()
        return pixels, classes, [hashlib.sha256(image.tobytes()).hexdigest() for image in contents]
    ids = [str(name) for name in image_ids]
    if len(ids) != len(pixels) or len(set(ids)) != len(ids):
        raise ValueError(
            f"image_ids name {len(set(ids))} different images, there are {len(pixels)}; "
            "give each a name of its own"
        )
    return pixels, classes, ids


def _pixels(images: Images) -> Tensor:
    """Float32 images (batch, channel, height, width) in [0, 1]."""
    if not isinstance(images, (Tensor, np.ndarray)):
        raise ValueError(
            f"images are {type(images).__name__}; give a tensor or an array "
            "(batch, channel, height, width)"
        )
    # A copy of an array: torch warns of read-only memory, and can't take every stride.
    given = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if given.ndim != 4 or given.shape[0] == 0:
        raise ValueError(
            f"images have shape {tuple(given.shape)}; give (batch, channel, height, width), "
            "at least one image"
        )
    if given.shape[3] in (1, 3, 4) and given.shape[1] > 4:
        turn = "permute" if isinstance(images, Tensor) else "transpose"
        raise ValueError(
            f"images have shape {tuple(given.shape)}, channels last; give (batch, channel, height, "
            f"width): images.{turn}(0, 3, 1, 2)"
        )
    if not given.is_floating_point():
        raise ValueError(f"images are {given.dtype}; give floats in [0, 1] (uint8 / 255)")
    given = given.float()
    low, high = float(given.min()), float(given.max())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):
        raise ValueError(
            f"images lie in [{low:.9g}, {high:.9g}]; give [0, 1], the model normalizes by itself"
        )
    if low < 0 or high > 1:
        return given.clamp(0, 1)
    return given.clone() if given.is_inference() else given


def _classes(targets: Targets, images: Tensor) -> Tensor:
    """Class of each image, int64 on its device."""
    found = torch.as_tensor(targets)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"targets are {found.dtype}; give whole numbers, class indices from 0, such as "
            "targets.long()"
        )
    found = found.to(images.device, torch.int64)
    if found.ndim == 0:
        found = found.expand(len(images))
    if found.shape != (len(images),):
        raise ValueError(
            f"targets have shape {tuple(found.shape)}, there are {len(images)} images; "
            "give one class per image"
        )
    if int(found.min()) < 0:
        raise ValueError(f"targets go down to {int(found.min())}; give class indices from 0")
    return found.clone()
