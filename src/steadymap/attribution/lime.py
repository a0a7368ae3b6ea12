"""LIME: a linear model of the target score over superpixels that are shown or hidden."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from skimage.segmentation import slic
from sklearn.linear_model import Lasso, Ridge
from threadpoolctl import threadpool_limits
from torch import Tensor

from steadymap import draws
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.shapes import Image

Segments = Int[np.ndarray, "height width"]

# Which superpixels each sample shows.
Shown = Bool[np.ndarray, "samples superpixels"]

PerSample = Float[np.ndarray, " samples"]

PerSuperpixel = Float[np.ndarray, " superpixels"]

# Values of the public lime package.
KERNEL_WIDTH = 0.25
RIDGE_ALPHA = 1.0


def superpixels(image: Image, *, n_superpixels: int, compactness: float, sigma: float) -> Segments:
    """Superpixel of each pixel, numbered 0..K-1 without gaps.

    scikit-image's SLIC of the image's own pixels. Its centers start on a grid, so that nothing in
    it is random; K is near `n_superpixels`, rarely equal to it.

    Parameters
    ----------
    image : Tensor
        In [0, 1].
    n_superpixels : int
        How many to ask for.
    compactness : float
        Weight of distance against color; larger ones are squarer.
    sigma : float
        Width of the Gaussian that smooths the colors first, px.

    Raises
    ------
    ValueError
        Where there are fewer pixels than superpixels.
    """
    _, height, width = image.shape
    if n_superpixels > height * width:
        raise ValueError(
            f"n_superpixels is {n_superpixels}, the image has {height * width} pixels; "
            "choose fewer superpixels"
        )
    pixels = np.ascontiguousarray(image.detach().cpu().double().permute(1, 2, 0).numpy())
    labels = slic(
        pixels, n_segments=n_superpixels, compactness=compactness, sigma=sigma, start_label=0
    )
    # Labels that start at 1 or skip a number would leave a superpixel without a column of its own.
    _, numbered = np.unique(labels, return_inverse=True)
    return numbered.reshape(height, width)


def masks(n_samples: int, n_superpixels: int, *, seed: int, image_id: str) -> Shown:
    """Which superpixels each sample shows: all of them in draw 0, then each with probability 1/2.

    A draw belongs to (seed, image id, index), so that a smaller sample is the beginning of a larger
    one.

    Parameters
    ----------
    n_samples : int
        Samples, the unperturbed one included.
    n_superpixels : int
        Superpixels of the image.
    seed, image_id
        Key of the draws.
    """
    shown = np.ones((n_samples, n_superpixels), dtype=bool)
    for draw in range(1, n_samples):
        generator = draws.generator(seed, image_id, "lime", draw)
        shown[draw] = generator.integers(0, 2, n_superpixels, dtype=bool)
    return shown


def proximities(shown: Shown) -> PerSample:
    """Weight of each sample: lime's exponential kernel of its cosine distance to all ones."""
    distance = 1 - np.sqrt(shown.mean(axis=1))
    return np.sqrt(np.exp(-((distance / KERNEL_WIDTH) ** 2)))


def regress(
    shown: Shown, scores: PerSample, *, surrogate: str, lasso_alpha: float
) -> tuple[PerSuperpixel, float]:
    """Coefficients of the weighted linear surrogate and its weighted R².

    Parameters
    ----------
    shown : ndarray
        Which superpixels each sample shows.
    scores : ndarray
        Score of each sample. Scores that don't differ give coefficients of exactly 0 and no R²
        (NaN); where one is not finite, no coefficient is.
    surrogate : {"ridge", "lasso"}
        Linear model; Ridge has lime's penalty `RIDGE_ALPHA`.
    lasso_alpha : float
        Penalty of the Lasso.

    References
    ----------
    Ribeiro, Singh, Guestrin: "Why should I trust you?", KDD 2016, section 3.4.
    """
    if not np.isfinite(scores).all():
        return np.full(shown.shape[1], np.nan), np.nan
    if (scores == scores[0]).all():
        # Solvers would return rounding noise, which similarity scores would scale up to a map.
        return np.zeros(shown.shape[1]), np.nan
    if surrogate == "lasso":
        # The default tolerance leaves errors of 1e-5 of the largest coefficient.
        model = Lasso(alpha=lasso_alpha, tol=1e-8, max_iter=100_000)
    else:
        model = Ridge(alpha=RIDGE_ALPHA)
    features, weights = shown.astype(np.float64), proximities(shown)
    model.fit(features, scores, sample_weight=weights)
    return model.coef_, float(model.score(features, scores, sample_weight=weights))


def changes(image: Image, hidden: Image, segments: Segments) -> PerSuperpixel:
    """Squared L2 distance that hiding each superpixel puts between an image and a sample.

    Parameters
    ----------
    image : Tensor
        In [0, 1].
    hidden : Tensor
        The image with all superpixels hidden.
    segments : ndarray
        Superpixel of each pixel.
    """
    moved = (image.detach().double() - hidden.detach().double()).square().sum(0)
    return np.bincount(segments.ravel(), weights=moved.cpu().numpy().ravel())


def average(shown: Shown, scores: PerSample, change: PerSuperpixel) -> PerSuperpixel:
    """Mean share of the score, closer samples weighing more (SAM, supplement S1, as written).

    Sample i with image x_i has score f_i, shows K_i superpixels and weighs w_i = 1 / |x_i - x|_2;
    superpixel k gets sum_i(w_i [k shown in i] f_i / K_i) / sum_i(w_i). A sample equal to the image,
    the first one above all, is no perturbed sample and has no weight; one that shows nothing has
    weight and gives nothing. Without any perturbed sample all is 0.

    Parameters
    ----------
    shown : ndarray
        Which superpixels each sample shows.
    scores : ndarray
        Score of each sample; where one is not finite, no coefficient is.
    change : ndarray
        What hiding each superpixel adds to the squared distance, from `changes`.
    """
    if not np.isfinite(scores).all():
        return np.full(shown.shape[1], np.nan)
    # Sums without BLAS, whose order depends on the number of rows.
    distance = np.sqrt(np.where(shown, 0.0, change).sum(axis=1))
    perturbed = distance > 0
    if not perturbed.any():
        return np.zeros(shown.shape[1])
    weights = 1 / distance[perturbed]
    kept = shown[perturbed]
    share = weights * scores[perturbed] / np.maximum(kept.sum(axis=1), 1)
    return np.where(kept, share[:, None], 0.0).sum(axis=0) / weights.sum()


def _hidden(image: Image, segments: Segments, fill: str) -> Image:
    """The image with all superpixels hidden."""
    if fill == "black":
        return torch.zeros_like(image)
    if fill == "gray":
        return torch.full_like(image, 0.5)
    owner = segments.ravel()
    counts = np.bincount(owner)
    colors = [
        np.bincount(owner, weights=channel.ravel()) / counts
        for channel in image.detach().cpu().double().numpy()
    ]
    return torch.from_numpy(np.stack(colors)[:, segments]).to(image)


def _lime(runner: ModelRunner, batch: Batch, settings: Sequence[Setting]) -> list[Explained]:
    """Weights of superpixels for the score (Ribeiro et al. 2016; SAM 2 and supplement S1, LIME).

    Each sample hides a random half of the superpixels; samples that hide less weigh more. Each
    pixel gets its superpixel's coefficient in a linear model of the score (`surrogate: ridge`,
    `lasso`), or its mean share of the score (`average`). The settings differ in `n_samples` alone:
    smaller samples are the beginning of larger ones, and all come from one pass. Diagnostics per
    image: `n_superpixels` found, `surrogate_r2` (NaN for `average`), and whether the map is
    `all_zero`.
    """
    images, targets, image_ids = batch
    shared = settings[0]
    largest = max(setting["n_samples"] for setting in settings)
    options = {key: shared[key] for key in ("n_superpixels", "compactness", "sigma")}
    segments = [superpixels(image, **options) for image in images]
    shown = [
        masks(largest, int(labels.max()) + 1, seed=shared["seed"], image_id=name)
        for labels, name in zip(segments, image_ids, strict=True)
    ]
    hidden = torch.stack(
        [_hidden(*pair, shared["fill"]) for pair in zip(images, segments, strict=True)]
    )
    scores = np.empty(len(images) * largest)
    for rows in runner.batches(len(scores)):
        position, draw = np.divmod(rows, largest)
        kept = np.stack([shown[p][d][segments[p]] for p, d in zip(position, draw, strict=True)])
        visible = torch.from_numpy(kept[:, None]).to(images.device)
        samples = torch.where(visible, images[position], hidden[position])
        sampled = runner.scores(samples, targets[position], output=shared["output"])
        scores[rows] = sampled.double().cpu().numpy()
    per_image = scores.reshape(len(images), largest)
    return [_explained(setting, segments, shown, per_image, images, hidden) for setting in settings]


def _explained(
    setting: Setting,
    segments: Sequence[np.ndarray],
    shown: Sequence[np.ndarray],
    scores: np.ndarray,
    images: Tensor,
    hidden: Tensor,
) -> Explained:
    """Maps and diagnostics from the first `n_samples` samples of each image."""
    n = setting["n_samples"]
    options = {key: setting[key] for key in ("surrogate", "lasso_alpha")}
    if setting["surrogate"] == "average":
        distances = map(changes, images, hidden, segments)
        fits = [
            (average(m[:n], s[:n], change), math.nan)
            for m, s, change in zip(shown, scores, distances, strict=True)
        ]
    else:
        # BLAS sums in another order with other numbers of threads.
        with threadpool_limits(1, user_api="blas"):
            fits = [regress(m[:n], s[:n], **options) for m, s in zip(shown, scores, strict=True)]
    maps = np.stack(
        [coefficients[labels] for (coefficients, _), labels in zip(fits, segments, strict=True)]
    ).astype(np.float32)
    notes = {
        "n_superpixels": [float(m.shape[1]) for m in shown],
        "surrogate_r2": [r2 for _, r2 in fits],
        "all_zero": [float(not image.any()) for image in maps],
    }
    extra = {name: torch.tensor(values, dtype=torch.float64) for name, values in notes.items()}
    return torch.from_numpy(maps).to(images.device), extra


LIME = Explainer(
    _lime,
    cost=lambda setting, side: (setting["n_samples"], 0),
    libraries=("scikit-image", "scikit-learn"),
    shares_passes=True,
)
