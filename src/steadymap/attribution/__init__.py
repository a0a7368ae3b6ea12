"""Attribution methods, and the one function that runs any of them."""

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steadymap.attribution.custom import explainer_of
from steadymap.attribution.model_runner import (
    Explained,
    Explainer,
    ModelRunner,
    Setting,
    wrong_targets,
)
from steadymap.models.adoption import check, evaluation_mode
from steadymap.params.methods import Method
from steadymap.params.plugins import declaration, find, named
from steadymap.progress import reporting

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
    """Code of a method, imported when it is asked for."""
    if (custom := find(name)) is not None:
        return explainer_of(custom)
    module, _, member = EXPLAINERS[name].partition(":")
    return getattr(importlib.import_module(module), member)


def check_model(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    method: str | None = None,
    settings: Sequence[Setting] = (),
) -> None:
    """Check a model, in evaluation mode, and the classes before maps are computed of them.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits.
    images : Tensor
        (batch, channel, height, width) in [0, 1].
    classes : Tensor
        Class to explain of each image.
    method : str, optional
        Name of the method; some trace the model, which must keep its logits then.
    settings : sequence of mapping
        Hyperparameters, whose `output` says which scores are explained.

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
    diagnostics : bool
        Also return the method's diagnostics, per image.
    batch_size : int, optional
        Rows per model pass; by default what these images fill, at most 64. A pass of fewer rows is
        padded to it. At one batch size an image's map is the same to the last bit in any order and
        company. Maps of different batch sizes agree to 1e-3 of the map's largest absolute value
        (Meaningful Perturbation's differ more, as its steps amplify differences). Give one
        `batch_size` to all calls whose maps must be equal.
    progress : bool
        Show a bar in a terminal or notebook where it takes longer than two seconds.
    **hyperparameters
        As declared in `steadymap.params.methods.METHODS`. Among them `seed`, of the random draws,
        0 by default; methods without randomness don't use it.

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
    seed = hyperparameters.pop("seed", 0)
    if declared.stochastic:
        hyperparameters["seed"] = seed
    setting = declared.effective(hyperparameters)
    images, classes, ids = checked_images(images, targets, image_ids, batch_size)
    ((maps, extra),) = explained(
        declared.name, model, images, classes, ids, [[setting]], batch_size, progress=progress
    )
    return (maps, extra) if diagnostics else maps


def explained(
    method: str,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    image_ids: Sequence[str],
    groups: Sequence[Sequence[Setting]],
    batch_size: int | None,
    *,
    progress: bool,
) -> list[Explained]:
    """Maps and diagnostics of settings in groups that share passes.

    Parameters
    ----------
    method : str
        Name of the method.
    model, images, targets, image_ids
        As in `attribute`, checked by `checked_images`.
    groups : sequence of sequences of mapping
        Settings; those of a group are computed from the same passes.
    batch_size : int or None
        Rows per model pass, the same for all settings; None for what the largest needs.
    progress : bool
        Whether a bar is shown.

    Returns
    -------
    list of (Tensor, dict of str to Tensor)
        Of each setting, group by group.
    """
    code = explainer(method)
    side = images.shape[-1]
    costs = [max(code.cost(setting, side)[0] for setting in group) for group in groups]
    if batch_size is None:
        n_rows = len(images) * (1 if code.sequential else max(costs))
        batch_size = rows_per_pass(n_rows, code.rows)
    bar = reporting(len(images) * sum(costs), method, transient=True)
    settings = [setting for group in groups for setting in group]
    with evaluation_mode(model), bar if progress else nullcontext(lambda amount: None) as report:
        check_model(model, images, targets, method=method, settings=settings)
        return [
            result
            for group in groups
            for result in code.explain(
                _ReportingRunner(model, batch_size, report),
                images,
                targets,
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


class _ReportingRunner(ModelRunner):
    """Runner that reports how many rows were passed since the last report."""

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
    """Return detached images, a class for each, and the names that draws are keyed by.

    Parameters
    ----------
    images, targets, image_ids, batch_size
        As in `attribute`.

    Raises
    ------
    ValueError
        Where one of them does not fit: with its value and the remedy.
    """
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
    pixels = images.detach() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if pixels.ndim != 4 or pixels.shape[0] == 0:
        raise ValueError(
            f"images have shape {tuple(pixels.shape)}; give (batch, channel, height, width), "
            "at least one image"
        )
    if pixels.shape[3] in (1, 3, 4) and pixels.shape[1] > 4:
        turn = "permute" if isinstance(images, Tensor) else "transpose"
        raise ValueError(
            f"images have shape {tuple(pixels.shape)}, channels last; give (batch, channel, "
            f"height, width): images.{turn}(0, 3, 1, 2)"
        )
    if not pixels.is_floating_point():
        raise ValueError(f"images are {pixels.dtype}; give floats in [0, 1] (uint8 / 255)")
    pixels = pixels.float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):
        raise ValueError(
            f"images lie in [{low:.9g}, {high:.9g}]; give [0, 1], the model normalizes by itself"
        )
    if low < 0 or high > 1:
        return pixels.clamp(0, 1)
    return pixels.clone() if pixels.is_inference() else pixels


def _classes(targets: Targets, images: Tensor) -> Tensor:
    """Class of each image, int64 on its device."""
    classes = torch.as_tensor(targets)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ValueError(
            f"targets are {classes.dtype}; give whole numbers, class indices from 0, such as "
            "targets.long()"
        )
    classes = classes.to(images.device, torch.int64)
    if classes.ndim == 0:
        classes = classes.expand(len(images))
    if classes.shape != (len(images),):
        raise ValueError(
            f"targets have shape {tuple(classes.shape)}, there are {len(images)} images; "
            "give one class per image"
        )
    if int(classes.min()) < 0:
        raise ValueError(f"targets go down to {int(classes.min())}; give class indices from 0")
    return classes.clone()
