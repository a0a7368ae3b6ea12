"""What users would run without steadymap: Captum, lime, RISE's loop, scikit-image and scipy.

Each is given its best batch size and no gradients of weights. Where definitions coincide, draws are
handed in, so that the numbers can be held against ours. Those of `PEERS` draw when called and
return what is to be timed, a call without arguments: drawing is no cost of theirs.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from jaxtyping import Float
from lime import lime_image
from lime.wrappers.scikit_image import SegmentationAlgorithm
from scipy.stats import pearsonr, spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from steadymap import draws
from steadymap.attribution import lime as own_lime
from steadymap.attribution import meaningful_perturbation as own_mp
from steadymap.attribution import sliding_patch as own_patch
from steadymap.attribution.integrated_gradients import baselines
from steadymap.metrics.similarity import CONVENTIONS

# Its bar, drawn for every call, is no part of the method.
lime_image.tqdm = lambda rows: rows

Image = Float[Tensor, "1 channel height width"]
Images = Float[Tensor, "images channel height width"]
Run = Callable[[], Tensor]


class Network(nn.Module):
    """A classifier with its normalization, as papers' code has it.

    Parameters
    ----------
    network : nn.Module
        Of normalized images, in eval mode.
    mean, std : sequence of float
        Per channel.
    memory_format : torch.memory_format
        Of weights and of what goes in: contiguous as documented, or channels_last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        memory_format: torch.memory_format,
    ):
        super().__init__()
        self.network = network.to(memory_format=memory_format).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.memory_format = memory_format
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        rows = images.contiguous(memory_format=self.memory_format)
        return self.network((rows - self.mean) / self.std)


@dataclass(frozen=True)
class Peer:
    """A model as peers get it, and its fastest batches.

    Attributes
    ----------
    model : Network
        Gives logits.
    forward, backward : int
        Rows per pass without and with gradients.
    images : int
        Images whose masks take their steps together.
    """

    model: Network
    forward: int
    backward: int
    images: int = 1

    def probability(self) -> Callable[[Tensor], Tensor]:
        """The model with its softmax."""
        return lambda images: self.model(images).softmax(1)


@contextlib.contextmanager
def _normal(made: Iterator[Tensor]) -> Iterator[None]:
    """Hand noise to whoever calls `torch.normal`."""
    kept = torch.normal
    setattr(torch, "normal", lambda mean, std: torch.cat([next(made) for _ in std]))  # noqa: B010
    try:
        yield
    finally:
        setattr(torch, "normal", kept)  # noqa: B010


def together(method: str, peer: Peer, setting: Mapping[str, Any]) -> int:
    """Images that a call takes: as many as fill a batch, with Captum by their samples or points."""
    if method == "meaningful_perturbation":
        return peer.images
    if method == "smoothgrad":
        return max(1, peer.backward // setting["n_samples"])
    if method == "integrated_gradients":
        return max(1, peer.backward // (setting["n_steps"] + 1))
    return 1


def smoothgrad(
    peer: Peer,
    images: Images,
    targets: Sequence[int],
    names: Sequence[str],
    setting: Mapping[str, Any],
) -> Run:
    """Captum's NoiseTunnel over Saliency; maps."""
    normalized = (images - peer.model.mean) / peer.model.std
    units = normalized.amax((1, 2, 3)) - normalized.amin((1, 2, 3))
    n = setting["n_samples"]
    at_once = max(1, min(n, peer.backward // len(images)))
    noise = [
        unit
        * setting["sigma"]
        * peer.model.std
        * torch.from_numpy(
            draws.generator(setting["seed"], name, "smoothgrad", draw).standard_normal(
                images.shape[1:], dtype=np.float32
            )
        )
        for start in range(0, n, at_once)
        for unit, name in zip(units, names, strict=True)
        for draw in range(start, min(start + at_once, n))
    ]

    def run() -> Tensor:
        with _normal(iter(noise)):
            found = NoiseTunnel(Saliency(peer.model)).attribute(
                images,
                nt_type="smoothgrad",
                nt_samples=n,
                nt_samples_batch_size=at_once,
                stdevs=1.0,
                target=list(targets),
                abs=False,
            )
        return found.detach().mean(1)

    return run


def integrated_gradients(
    peer: Peer,
    images: Images,
    targets: Sequence[int],
    names: Sequence[str],
    setting: Mapping[str, Any],
) -> Run:
    """Captum's Integrated Gradients, one call per baseline; maps."""
    starts = [
        baselines(images, peer.model.mean, image_ids=names, trial=trial, setting=setting)
        for trial in range(setting["n_trials"])
    ]

    def run() -> Tensor:
        method = IntegratedGradients(peer.probability())
        points = setting["n_steps"] + 1
        total = torch.zeros_like(images)
        for start in starts:
            total += method.attribute(
                images,
                start,
                target=list(targets),
                n_steps=points,
                method="riemann_trapezoid",
                internal_batch_size=peer.backward,
            ).detach()
        # Its trapezoids are 1/points wide, of which there are points - 1.
        return (total / setting["n_trials"] * points / (points - 1)).mean(1).float()

    return run


def occlusion(
    peer: Peer,
    image: Image,
    targets: Sequence[int],
    names: Sequence[str],
    setting: Mapping[str, Any],
) -> Run:
    """Captum's Occlusion, or where the stride exceeds the patch, which it refuses, the plain loop.

    Captum adds windows cut off by the border and averages overlapping ones: a peer in time alone,
    of which `occlusion_share` is for windows that ours has too.
    """
    size, stride = setting["patch_size"], setting["stride"]
    [target] = targets
    if stride > size:
        return lambda: patch_loop(peer, image, target, setting)[None]

    def run() -> Tensor:
        with torch.no_grad():
            found = Occlusion(peer.probability()).attribute(
                image,
                sliding_window_shapes=(image.shape[1], size, size),
                strides=(image.shape[1], stride, stride),
                baselines=peer.model.mean.expand_as(image),
                target=target,
                perturbations_per_eval=peer.forward,
            )
        return found.mean(1)

    return run


def occlusion_share(sides: Sequence[int], setting: Mapping[str, Any]) -> float:
    """Our number of windows over that of `occlusion`."""
    size, stride = setting["patch_size"], setting["stride"]
    own, theirs = 1, 1
    for side in sides:
        own *= len(own_patch.corners(side, size, stride))
        theirs *= -(-(side - size) // stride) + 1
    return 1.0 if stride > size else own / theirs


def patch_loop(peer: Peer, image: Image, target: int, setting: Mapping[str, Any]) -> Tensor:
    """A plain loop over the same patch positions; drops (rows, columns)."""
    size, stride = setting["patch_size"], setting["stride"]
    tops, lefts = (own_patch.corners(side, size, stride) for side in image.shape[2:])
    places = [(top, left) for top in tops for left in lefts]
    found = []
    with torch.no_grad():
        original = peer.model(image).softmax(1)[0, target]
        for start in range(0, len(places), peer.forward):
            part = places[start : start + peer.forward]
            covered = image.repeat(len(part), 1, 1, 1)
            for row, (top, left) in zip(covered, part, strict=True):
                row[:, top : top + size, left : left + size] = peer.model.mean[0]
            found.append(original - peer.model(covered).softmax(1)[:, target])
    return torch.cat(found).reshape(len(tops), len(lefts))


class _Handed:
    """A random state that gives LIME the masks it is handed."""

    def __init__(self, shown: np.ndarray):
        self.shown = shown

    def randint(self, low: int, high: int, size: int) -> np.ndarray:
        assert size == self.shown.size
        return self.shown.astype(int).ravel()


def lime(
    peer: Peer,
    image: Image,
    targets: Sequence[int],
    names: Sequence[str],
    setting: Mapping[str, Any],
) -> Run:
    """The lime package with its own segmentation call; map (1, height, width)."""
    [target], [name] = targets, names
    pixels = np.ascontiguousarray(image[0].double().permute(1, 2, 0).numpy())
    segment = SegmentationAlgorithm(
        "slic",
        n_segments=setting["n_superpixels"],
        compactness=setting["compactness"],
        sigma=setting["sigma"],
        start_label=0,
    )
    # For the number of masks alone: the timed call segments the image itself.
    n_segments = int(segment(pixels).max()) + 1
    shown = own_lime.masks(setting["n_samples"], n_segments, seed=setting["seed"], image_id=name)

    def predict(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            made = torch.from_numpy(np.ascontiguousarray(rows)).float().permute(0, 3, 1, 2)
            return peer.model(made).softmax(1).double().numpy()

    def run() -> Tensor:
        explainer = lime_image.LimeImageExplainer(random_state=np.random.RandomState(0))
        explainer.random_state = _Handed(shown)
        explained = explainer.explain_instance(
            pixels,
            predict,
            labels=(target,),
            top_labels=None,
            hide_color=0,
            num_samples=setting["n_samples"],
            batch_size=peer.forward,
            segmentation_fn=segment,
            random_seed=0,
            num_features=100_000,
        )
        coefficients = np.zeros(n_segments)
        for segment_id, weight in explained.local_exp[target]:
            coefficients[segment_id] = weight
        return torch.from_numpy(coefficients[explained.segments][None]).float()

    return run


def meaningful_perturbation(
    peer: Peer,
    images: Images,
    targets: Sequence[int],
    names: Sequence[str],
    setting: Mapping[str, Any],
) -> Run:
    """A plain PyTorch loop over all images: autograd through the composites, torch's Adam; maps."""
    size, seed = setting["mask_size"], setting["seed"]
    drawn = [
        torch.from_numpy(
            draws.generator(seed, name, own_mp.NAME, 0).random((size, size), dtype=np.float32)
        )
        for name in names
    ]
    shifts = [
        [
            own_mp.shift(setting["jitter"], seed=seed, image_id=name, iteration=step)
            for name in names
        ]
        for step in range(setting["n_iterations"])
    ]
    return lambda: _descended(peer, images, torch.tensor(targets), drawn, shifts, setting)


def _descended(
    peer: Peer,
    images: Images,
    targets: Tensor,
    drawn: Sequence[Tensor],
    shifts: Sequence[Sequence[tuple[int, int]]],
    setting: Mapping[str, Any],
) -> Tensor:
    size, side, n = setting["mask_size"], images.shape[2:], len(images)
    blanks = torch.stack([own_mp.blurred(image, setting["blur_radius"]) for image in images])

    corners = {} if setting["upsampling"] == "nearest" else {"align_corners": False}

    def enlarged(mask: Tensor) -> Tensor:
        return F.interpolate(mask, side, mode=setting["upsampling"], **corners)

    def scores(rows: Tensor, followed: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [
                peer.model(part).softmax(1).gather(1, chosen[:, None])[:, 0]
                for part, chosen in zip(
                    rows.split(peer.forward), followed.split(peer.forward), strict=True
                )
            ]
        return torch.cat(parts)

    if setting["init"] == "random":
        start = torch.stack(list(drawn))
    else:
        _, discs = own_mp.disc_masks(images.shape[2], images.shape[3], size)
        candidates = torch.from_numpy(discs).to(images)
        shown = enlarged(candidates[:, None])
        composites = [
            torch.cat([image[None], blank[None], shown * image + (1 - shown) * blank])
            for image, blank in zip(images, blanks, strict=True)
        ]
        found = scores(torch.cat(composites), targets.repeat_interleave(len(discs) + 2))
        chosen = [
            own_mp.first_suppressing(np.array(rest), original=original, blank=hidden)
            for original, hidden, *rest in found.reshape(n, -1).tolist()
        ]
        start = candidates[chosen]
    mask = start.to(images, copy=True)[:, None].requires_grad_()
    optimizer = torch.optim.Adam([mask], lr=setting["learning_rate"])
    reach = setting["jitter"]
    padded = [F.pad(planes, [reach] * 4, mode="replicate") for planes in (images, blanks)]
    for moved in shifts:
        shown, hidden = (
            torch.stack(
                [
                    plane[:, reach + down :, reach + right :][:, : side[0], : side[1]]
                    for plane, (down, right) in zip(planes, moved, strict=True)
                ]
            )
            for planes in padded
        )
        weights = enlarged(mask)
        probabilities = peer.model(weights * shown + (1 - weights) * hidden).softmax(1)
        score = probabilities.gather(1, targets[:, None]).sum()
        l1 = setting["l1_coefficient"] * (1 - mask).abs().sum()
        power = setting["tv_exponent"]
        tv = mask.diff(dim=2).abs().pow(power).sum() + mask.diff(dim=3).abs().pow(power).sum()
        optimizer.zero_grad()
        (score + l1 + setting["tv_coefficient"] * tv).backward()
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    shown = enlarged(mask.detach())
    scores(shown * images + (1 - shown) * blanks, targets)
    maps = (1 - shown).clamp(0, 1)[:, 0]
    if setting["final_blur"]:
        maps = torch.stack(
            [own_mp.blurred(plane[None], setting["final_blur"])[0] for plane in maps]
        )
    return maps


def curve(
    peer: Peer, image: Image, map_: Tensor, target: int, *, step: int, kind: str
) -> np.ndarray:
    """Insertion or deletion as RISE's evaluator does it, a batch of steps at a time."""
    pixels = image[0].flatten(1)
    base = peer.model.mean[0].flatten(1).expand_as(pixels)
    begin, end = (base, pixels) if kind == "insertion" else (pixels, base)
    order = torch.argsort(map_.flatten(), descending=True, stable=True)
    shown, rows, found = begin.clone(), [begin.clone()], []
    for start in range(0, len(order), step):
        moved = order[start : start + step]
        shown[:, moved] = end[:, moved]
        rows.append(shown.clone())
    with torch.no_grad():
        for part in torch.stack(rows).split(peer.forward):
            logits = peer.model(part.reshape(-1, *image.shape[1:]))
            found.append(logits.softmax(1)[:, target])
    return torch.cat(found).numpy()


def similarities(a: np.ndarray, b: np.ndarray, *, hog_cell: int) -> dict[str, np.ndarray]:
    """What `steadymap.similarity.similarities` gives, pair by pair with scikit-image and scipy."""
    rows: dict[str, list[float]] = {}
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        scaled = [one / np.abs(one).max() for one in (x, y)]
        for name in ("common", "wang"):
            made = CONVENTIONS[name]
            pair = scaled
            if made.normalize == "abs_min_max":
                pair = [np.abs(one) for one in (x, y)]
                pair = [(one - one.min()) / (one.max() - one.min()) for one in pair]
            score = structural_similarity(
                *pair,
                data_range=made.data_range,
                win_size=None if made.gaussian_weights else made.win_size,
                gaussian_weights=made.gaussian_weights,
                sigma=made.sigma,
            )
            rows.setdefault(f"ssim {name}", []).append(score)
        rows.setdefault("spearman signed", []).append(spearmanr(x, y, axis=None).statistic)
        rows.setdefault("pearson signed", []).append(pearsonr(x.ravel(), y.ravel()).statistic)
        cells = [hog(one, pixels_per_cell=(hog_cell, hog_cell)) for one in scaled]
        rows.setdefault(f"hog_pearson cells{hog_cell}", []).append(pearsonr(*cells).statistic)
    return {name: np.array(values) for name, values in rows.items()}


PEERS: dict[str, Callable[..., Run]] = {
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "sliding_patch": occlusion,
    "lime": lime,
    "meaningful_perturbation": meaningful_perturbation,
}
