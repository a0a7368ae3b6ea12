"""Integrated Gradients: gradients along the straight path from a baseline to the image."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from steadymap import draws
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.shapes import Images, PerImage


def blurred(
    images: Float[Tensor, "*batch height width"], radius: float
) -> Float[Tensor, "*batch height width"]:
    """Images under a Gaussian of standard deviation `radius` px, edges replicated.

    PIL's GaussianBlur, which Fong & Vedaldi's code uses, approximates this one by box filters.
    """
    pixels = images.detach().cpu().double().numpy()
    smooth = gaussian_filter(pixels, radius, axes=(-2, -1), mode="nearest")
    return torch.from_numpy(smooth).to(images)


def completeness(products: Images, change: PerImage) -> PerImage:
    """Absolute difference between the sum of each image's products and its score's change."""
    # Image by image: a sum over all at once may depend on their number.
    return (torch.stack([product.sum() for product in products]) - change).abs()


def baselines(
    images: Images,
    mean: Float[Tensor, "1 channel 1 1"],
    *,
    image_ids: Sequence[str],
    trial: int,
    setting: Setting,
) -> Images:
    """Where the paths of one trial begin, in [0, 1] pixels (Sturmfels et al. 2020).

    Parameters
    ----------
    images : Tensor
        In [0, 1].
    mean : Tensor
        Color that the model's normalization makes zero, in [0, 1].
    image_ids : sequence of str
        What random baselines are keyed by, with seed and trial.
    trial : int
        Index of the trial; only `uniform` and `gaussian` depend on it.
    setting : mapping
        `baseline` and what it needs. `zero` is black in `input_space` pixel and `mean` in
        normalized space; `uniform` draws each value from [0, 1); `blurred` is the image after a
        Gaussian filter of standard deviation `blur_radius` px, edge pixels repeated; `gaussian` is
        the image plus noise of standard deviation `noise_sigma`, clipped to [0, 1];
        `maximum_distance` has, for each value, the end of [0, 1] that is farther from it.
    """
    kind = setting["baseline"]
    if kind == "zero":
        kind = "mean" if setting["input_space"] == "normalized" else "black"
    if kind == "black":
        return torch.zeros_like(images)
    if kind == "mean":
        return mean.expand_as(images)
    if kind == "maximum_distance":
        return (images < 0.5).to(images)
    if kind == "blurred":
        return blurred(images, setting["blur_radius"])
    generators = [
        draws.generator(setting["seed"], name, "integrated_gradients", trial) for name in image_ids
    ]
    shape = images.shape[1:]
    if kind == "uniform":
        uniform = np.stack([g.random(shape, np.float32) for g in generators])
        return torch.from_numpy(uniform).to(images)
    noise = np.stack([g.standard_normal(shape, np.float32) for g in generators])
    return (images + setting["noise_sigma"] * torch.from_numpy(noise).to(images)).clamp(0, 1)


def _integrated_gradients(
    runner: ModelRunner, batch: Batch, settings: Sequence[Setting]
) -> list[Explained]:
    """(x - baseline) times the mean gradient on the path (Sundararajan et al. 2017; SAM S1, IG).

    The path from each of `n_trials` baselines is cut into `n_steps` equal steps and integrated by
    the trapezoid rule; products are averaged over trials, then over channels with their sign. They
    are the same in pixel and in normalized space, so that `input_space` says where a `zero`
    baseline lies and nothing else. The settings differ in `n_trials` alone: fewer trials are the
    beginning of more, and all come from one pass. Diagnostics per image, over channels and pixels
    of the map before its channels are averaged: `function_change`, score of the image minus mean
    score of the baselines, and `completeness`, the absolute difference between that and the sum.
    """
    images, targets, image_ids = batch
    shared = settings[0]
    output = shared["output"]
    counts = {setting["n_trials"] for setting in settings}
    n, n_trials, n_steps = len(images), max(counts), shared["n_steps"]
    mean, _ = runner.normalization(images)

    # A batch spans this many trials at most.
    @lru_cache(maxsize=runner.batch_size // n + 2)
    def beginnings(trial: int) -> Tensor:
        return baselines(images, mean, image_ids=image_ids, trial=trial, setting=shared)

    def begun(trial: np.ndarray, position: np.ndarray) -> Tensor:
        spanned = torch.cat([beginnings(t) for t in range(trial[0], trial[-1] + 1)])
        return spanned[(trial - trial[0]) * n + position]

    weights = np.full(n_steps + 1, 1 / n_steps)
    weights[[0, -1]] /= 2
    n_points = n_trials * (n_steps + 1)
    path, total = (torch.zeros_like(images, dtype=torch.float64) for _ in range(2))
    change = torch.zeros(n, dtype=torch.float64, device=images.device)
    finished: dict[int, Explained] = {}
    for rows in runner.batches(n * n_points):
        point, position = np.divmod(rows, n)
        trial, step = np.divmod(point, n_steps + 1)
        along = torch.from_numpy(step / n_steps).to(images).reshape(-1, 1, 1, 1)
        # Exact at both ends, and no fused operation whose rounding hangs on the tensor's shape.
        samples = (1 - along) * begun(trial, position) + along * images[position]
        scores, gradients = runner.scored_gradients(samples, targets[position], output=output)
        # Float64 and in order: fewer trials give the very map of a separate run.
        for p in np.unique(point):
            of_point = point == p
            at = position[of_point]
            j, k = divmod(int(p), n_steps + 1)
            if k == 0:
                path[at] = 0
                change[at] -= scores[of_point].double()
            path[at] += weights[k] * gradients[of_point].double()
            if k < n_steps:
                continue
            change[at] += scores[of_point].double()
            total[at] += (images[at].double() - beginnings(j)[at].double()) * path[at]
            if j + 1 in counts and at[-1] == n - 1:
                finished[j + 1] = _finished(total / (j + 1), change / (j + 1))
    return [finished[setting["n_trials"]] for setting in settings]


def _finished(products: Tensor, change: Tensor) -> Explained:
    extra = {"function_change": change, "completeness": completeness(products, change)}
    return products.mean(1).float(), extra


def _cost(setting: Setting, side: int) -> tuple[int, int]:
    points = setting["n_trials"] * (setting["n_steps"] + 1)
    return points, points


INTEGRATED_GRADIENTS = Explainer(
    _integrated_gradients, cost=_cost, libraries=("scipy",), shares_passes=True
)
