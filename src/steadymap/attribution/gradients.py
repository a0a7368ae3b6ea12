"""Gradient, Input x Gradient and SmoothGrad."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steadymap import draws
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting


def _gradient(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """Signed mean over channels of the gradient of the target score (SAM 2, Gradient)."""
    gradients = runner.gradients(batch.images, batch.targets, output=setting["output"])
    return gradients.double().mean(1).float(), {}


def _input_x_gradient(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """Image times gradient of the target score (Shrikumar et al. 2016; SAM 2, Gradient x Input).

    Both in `input_space`, where the image counts from zero: from black in pixel space, from the
    color that normalization makes zero in normalized space. The latter image is signed. Signed
    mean over channels.
    """
    # The std that a normalized image is divided by is what its gradient is multiplied by.
    images = batch.images
    mean, _ = runner.normalization(images)
    zero = mean if setting["input_space"] == "normalized" else torch.zeros_like(mean)
    gradients = runner.gradients(images, batch.targets, output=setting["output"])
    return ((images - zero).double() * gradients.double()).mean(1).float(), {}


def _smoothgrad(runner: ModelRunner, batch: Batch, settings: Sequence[Setting]) -> list[Explained]:
    """Mean gradient over noisy copies of the image (Smilkov et al. 2017; SAM 2, SmoothGrad).

    The noise is Gaussian, not clipped. Its standard deviation in `input_space` is `sigma` times
    (max - min) of that image there (`sigma_unit` range), or `sigma` itself (absolute); gradients
    are with respect to [0, 1] pixels. The settings differ in `n_samples` alone: smaller samples are
    the beginning of larger ones, and all come from one pass.
    """
    images, targets, image_ids = batch
    shared = settings[0]
    mean, std = runner.normalization(images)
    if shared["input_space"] == "pixel":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    normalized = ((images - mean) / std).flatten(1)
    unit = normalized.amax(1) - normalized.amin(1)
    if shared["sigma_unit"] == "absolute":
        unit = torch.ones_like(unit)
    # Noise of one width in normalized space is noise of width std per channel in pixel space.
    width = unit.reshape(-1, 1, 1, 1) * shared["sigma"] * std

    counts = {setting["n_samples"] for setting in settings}
    total = torch.zeros_like(images, dtype=torch.float64)
    finished: dict[int, Tensor] = {}
    n, largest = len(images), max(counts)
    for rows in runner.batches(n * largest):
        draw, position = np.divmod(rows, n)
        noise = np.stack(
            [
                draws.generator(shared["seed"], image_ids[p], "smoothgrad", int(d)).standard_normal(
                    images.shape[1:], dtype=np.float32
                )
                for d, p in zip(draw, position, strict=True)
            ]
        )
        noisy = images[position] + width[position] * torch.from_numpy(noise).to(images)
        gradients = runner.gradients(noisy, targets[position], output=shared["output"])
        # Float64 and draw by draw: a prefix of the draws gives the very map of a separate run.
        for d in np.unique(draw):
            of_draw = draw == d
            total[position[of_draw]] += gradients[of_draw].double()
            if d + 1 in counts and position[of_draw][-1] == n - 1:
                finished[int(d) + 1] = (total / (d + 1)).mean(1).float()
    return [(finished[setting["n_samples"]], {}) for setting in settings]


GRADIENT = Explainer(_gradient, cost=lambda setting, side: (1, 1))
INPUT_X_GRADIENT = Explainer(_input_x_gradient, cost=lambda setting, side: (1, 1))
SMOOTHGRAD = Explainer(
    _smoothgrad,
    cost=lambda setting, side: (setting["n_samples"], setting["n_samples"]),
    shares_passes=True,
)
