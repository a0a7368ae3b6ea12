"""Meaningful Perturbation: a mask learned to blur what the target score rests on."""

import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from steadymap import draws
from steadymap.attribution.integrated_gradients import blurred
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.shapes import Image

NAME = "meaningful_perturbation"

Mask = Float[Tensor, "mask_size mask_size"]

# Adam as published.
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8

# Discs of the circular start, as shares of the longer side: Fong & Vedaldi's are 0, 5, ... 170 px
# in images of 224 px, smoothed with 10 px, and only then brought to the mask's grid.
_RADII = 5 / 224 * np.arange(1, 35)
_DISC_BLUR = 10 / 224
_LEFT_OVER = 0.01

_CONVERGED = 0.05


def upsampling_weights(
    side: int, mask_size: int, upsampling: str
) -> Float[np.ndarray, "side mask_size"]:
    """Weights of mask cells for each pixel, along one axis; rows sum to 1.

    Cells tile the side. `bilinear` is linear between the cells' centers and constant beyond the
    outermost (`align_corners=False`), `nearest` takes the cell that holds the pixel's center. Both
    thus put a cell in the same place.

    Parameters
    ----------
    side : int
        Of the image, px.
    mask_size : int
        Cells along the side.
    upsampling : {"bilinear", "nearest"}
        Interpolation.
    """
    centers = (np.arange(side) + 0.5) * mask_size / side - 0.5
    if upsampling == "nearest":
        return np.eye(mask_size)[np.floor(centers + 0.5).astype(int)]
    cells = np.arange(mask_size)
    return np.stack([np.interp(centers, cells, row) for row in np.eye(mask_size)], axis=1)


def penalties(
    mask: Mask, *, l1_coefficient: float, tv_coefficient: float, tv_exponent: float
) -> tuple[Tensor, Tensor, Mask]:
    """L1 and total-variation terms of the loss, and the gradient of their sum.

    l1_coefficient sum |1 - m| and tv_coefficient sum |difference of neighbors|^tv_exponent, sums
    over the mask's own grid (Fong & Vedaldi 2017). At m = 1 the first has gradient 0.

    Parameters
    ----------
    mask : Tensor
        In [0, 1]; 1 keeps the image.
    l1_coefficient, tv_coefficient : float
        Weights of the terms.
    tv_exponent : float
        Power of the differences, at least 1.
    """
    l1 = l1_coefficient * (1 - mask).abs().sum()
    gradient = -l1_coefficient * torch.sign(1 - mask)
    tv = torch.zeros_like(l1)
    for axis in (0, 1):
        step = mask.diff(dim=axis)
        tv = tv + tv_coefficient * step.abs().pow(tv_exponent).sum()
        pull = (tv_coefficient * tv_exponent) * step.abs().pow(tv_exponent - 1) * torch.sign(step)
        gradient.narrow(axis, 1, len(mask) - 1).add_(pull)
        gradient.narrow(axis, 0, len(mask) - 1).sub_(pull)
    return l1, tv, gradient


def disc_masks(
    height: int, width: int, mask_size: int
) -> tuple[Float[np.ndarray, " radii"], Float[np.ndarray, "radii mask_size mask_size"]]:
    """Radii in mask cells, and masks that blur a centered, smoothed disc of each radius.

    Discs are drawn and smoothed in the image, then averaged over each mask cell. A disc is
    therefore round in the image and takes the same part of it on every grid. Radii grow by 5/224 of
    the longer side up to 170/224, where the disc covers the corners; the smoothing is 10/224 wide.

    Parameters
    ----------
    height, width : int
        Of the image, px.
    mask_size : int
        Cells along each side of the mask.
    """
    side = max(height, width)
    down = np.arange(height) - (height - 1) / 2
    across = np.arange(width) - (width - 1) / 2
    distance = np.hypot(down[:, None], across[None, :])
    # An edge one pixel wide makes areas grow with every radius, however small the image.
    discs = [np.clip(radius * side - distance + 0.5, 0, 1) for radius in _RADII]
    smooth = np.stack([gaussian_filter(disc, _DISC_BLUR * side) for disc in discs])
    cells = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(smooth)[:, None], mask_size)
    return _RADII * mask_size, 1 - cells[:, 0].numpy().clip(0, 1)


def first_suppressing(scores: Float[np.ndarray, " radii"], *, original: float, blank: float) -> int:
    """Position of the first disc that leaves under 1 % of the way from `blank` to `original`.

    It is the last disc where none does, and where blurring does not change the score.

    Parameters
    ----------
    scores : ndarray
        Score of the image with each disc blurred, smallest disc first.
    original : float
        Score of the image.
    blank : float
        Score of the wholly blurred image.
    """
    if original == blank:
        return len(scores) - 1
    enough = np.flatnonzero((scores - blank) / (original - blank) < _LEFT_OVER)
    return int(enough[0]) if len(enough) else len(scores) - 1


def shift(jitter: int, *, seed: int, image_id: str, iteration: int) -> tuple[int, int]:
    """Pixels down and right by which one iteration's window is moved over the image.

    Uniform on the jitter + 1 shifts around 0 on either axis: 3 gives -2 to 1, as windows of 224 px
    have that start at 0 to 3 in an image of 228 px.

    Parameters
    ----------
    jitter : int
        Range of the shifts, px; 0 for none.
    seed, image_id, iteration
        Key of the draw.
    """
    if jitter == 0:
        return 0, 0
    drawn = draws.generator(seed, image_id, NAME, iteration + 1).integers(0, jitter + 1, 2)
    down, right = (int(value) - (jitter + 1) // 2 for value in drawn)
    return down, right


def snapshot_steps(n_iterations: int) -> list[int]:
    """Steps whose masks are kept: 0, 1, 2, 5, 10, 20, 50, ... and the last."""
    decades = range(len(str(n_iterations)))
    ladder = [0, *(digit * 10**decade for decade in decades for digit in (1, 2, 5))]
    return sorted({step for step in ladder if step < n_iterations} | {n_iterations})


def converged_step(losses: Float[np.ndarray, " steps"]) -> float:
    """First step from which the loss stays within 5 % of its total drop of the last value.

    NaN where the last loss is not below or at the first.
    """
    drop = losses[0] - losses[-1]
    if not drop >= 0:
        return math.nan
    outside = np.flatnonzero(~(np.abs(losses - losses[-1]) <= _CONVERGED * drop))
    return float(outside[-1] + 1) if len(outside) else 0.0


class _Descent:
    """Mask of one image under optimization.

    One image at a time, in tensors of its own: kernels that round by position or alignment then
    can't tell in which company it is.
    """

    def __init__(
        self,
        image: Image,
        blank: Image,
        start: Mask,
        weights: tuple[Tensor, Tensor],
        setting: Setting,
    ):
        self.image, self.blank, self.mask, self.weights = image, blank, start, weights
        self.setting = setting
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)
        self.steps = 0
        self.penalties: list[Tensor] = []

    def upsampled(self, mask: Mask) -> Tensor:
        vertical, horizontal = self.weights
        return vertical @ mask @ horizontal.T

    def composite(self, mask: Mask, moved: tuple[int, int] = (0, 0)) -> Image:
        """Where the mask is 1 the image, where it is 0 the blurred one, both `moved` under it."""
        self.shown, self.hidden = (_window(plane, moved) for plane in (self.image, self.blank))
        weights = self.upsampled(mask)
        return weights * self.shown + (1 - weights) * self.hidden

    def update(self, gradient: Image) -> None:
        """One step of Adam, from the gradient of the score of the last composite."""
        # Channel by channel: a sum's order could depend on the tensor's layout.
        per_channel = [
            g * (shown - hidden)
            for g, shown, hidden in zip(gradient, self.shown, self.hidden, strict=True)
        ]
        vertical, horizontal = self.weights
        slope = vertical.T @ sum(per_channel[1:], start=per_channel[0]) @ horizontal
        named = ("l1_coefficient", "tv_coefficient", "tv_exponent")
        l1, tv, held = penalties(self.mask, **{name: self.setting[name] for name in named})
        slope = slope + held
        self.penalties.append(torch.stack([l1, tv]))
        self.steps += 1
        self.mean = _BETA1 * self.mean + (1 - _BETA1) * slope
        self.square = _BETA2 * self.square + (1 - _BETA2) * (slope * slope)
        width = self.square.sqrt() / math.sqrt(1 - _BETA2**self.steps) + _EPSILON
        rate = self.setting["learning_rate"] / (1 - _BETA1**self.steps)
        self.mask = (self.mask - rate * (self.mean / width)).clamp(0, 1)


def _window(plane: Image, moved: tuple[int, int]) -> Image:
    """The image seen through a window `moved` (down, right); its edge pixels go on beyond it."""
    if moved == (0, 0):
        return plane
    rows, columns = (
        (torch.arange(side, device=plane.device) + offset).clamp(0, side - 1)
        for side, offset in zip(plane.shape[1:], moved, strict=True)
    )
    return plane[:, rows][:, :, columns]


class _Group:
    """Runs of all images at settings that differ in `n_iterations` alone."""

    def __init__(self, runner: ModelRunner, batch: Batch, settings: Sequence[Setting]):
        images, _, image_ids = batch
        self.setting = shared = settings[0]
        self.image_ids = image_ids
        height, width = images.shape[2:]
        for name in ("mask_size", "jitter"):
            if shared[name] > min(height, width):
                raise ValueError(
                    f"{name} is {shared[name]}, the image {height} x {width}; "
                    f"choose at most {min(height, width)}"
                )
        vertical, horizontal = (
            torch.from_numpy(upsampling_weights(side, shared["mask_size"], shared["upsampling"]))
            for side in (height, width)
        )
        weights = vertical.to(images), horizontal.to(images)
        blanks = blurred(images, shared["blur_radius"])
        starts, self.radii = _starts(runner, batch, blanks, weights, shared)
        self.runs = [
            _Descent(image, blank, start, weights, shared)
            for image, blank, start in zip(images, blanks, starts, strict=True)
        ]
        self.ends = {setting["n_iterations"] for setting in settings}
        self._kept = self.ends.union(*(snapshot_steps(n) for n in self.ends))
        self.masks = {0: [run.mask for run in self.runs]}
        self.finals = {n: images.new_empty(len(images)) for n in self.ends}
        self.scored: list[Tensor] = []

    def composites(self) -> list[Tensor]:
        """What the next step's gradients are needed of."""
        step = len(self.scored)
        jitter, seed = self.setting["jitter"], self.setting["seed"]
        return [
            run.composite(run.mask, shift(jitter, seed=seed, image_id=name, iteration=step))
            for run, name in zip(self.runs, self.image_ids, strict=True)
        ]

    def update(self, scores: Tensor, gradients: Tensor) -> None:
        """Take the step."""
        self.scored.append(scores)
        for run, gradient in zip(self.runs, gradients, strict=True):
            run.update(gradient)
        if (done := len(self.scored)) in self._kept:
            self.masks[done] = [run.mask for run in self.runs]


def _meaningful_perturbation(
    runner: ModelRunner, batch: Batch, settings: Sequence[Setting]
) -> list[Explained]:
    """1 - up(m), in [0, 1], of the mask m that blurs away the target (Fong & Vedaldi 2017; SAM S1).

    m minimizes l1_coefficient sum |1 - m| + tv_coefficient TV(m) + score of up(m) x + (1 - up(m))
    blur(x), by Adam from `init`, clamped to [0, 1] after each step. As in Fong & Vedaldi's formula
    and the public implementations, an iteration's one random shift moves the image and its blurred
    copy under the mask. The settings may differ in anything: those that differ in `n_iterations`
    alone are the beginnings of one run, the others take their steps side by side.

    Diagnostics per image: terms of the loss as weighted, before each step, `loss_total`,
    `loss_l1`, `loss_tv`, `loss_probability` (images, n_iterations); `snapshots` (images, k,
    mask_size, mask_size) after `snapshot_steps` (images, k); `init_radius` of the circular start in
    mask cells, else NaN; `converged_step`; `final_probability` of the target without jitter.
    """
    shared: dict[str, list[Setting]] = {}
    names = [json.dumps({**setting, "n_iterations": None}, sort_keys=True) for setting in settings]
    for name, setting in zip(names, settings, strict=True):
        shared.setdefault(name, []).append(setting)
    groups = {name: _Group(runner, batch, members) for name, members in shared.items()}
    targets, n = batch.targets, len(batch.images)
    for iteration in range(max(setting["n_iterations"] for setting in settings)):
        active = [group for group in groups.values() if iteration < max(group.ends)]
        for output in dict.fromkeys(group.setting["output"] for group in active):
            part = [group for group in active if group.setting["output"] == output]
            # Images are far fewer than samples are: a whole batch would be mostly padding.
            scores, gradients = runner.scored_gradients(
                torch.stack([row for group in part for row in group.composites()]),
                targets.repeat(len(part)),
                output=output,
                batch_size=_rows(runner.batch_size),
            )
            for group, *step in zip(part, scores.split(n), gradients.split(n), strict=True):
                group.update(*step)
    ends = [(g, done, i) for g in groups.values() for done in sorted(g.ends) for i in range(n)]
    for start in range(0, len(ends), runner.batch_size):
        rows = ends[start : start + runner.batch_size]
        unmoved = torch.stack([g.runs[i].composite(g.masks[done][i]) for g, done, i in rows])
        classes = targets[[i for _, _, i in rows]]
        logits = runner.logits(unmoved)
        finals = runner.target_scores(logits, classes, "probability")
        multi_label = [g.setting["output"] == "sigmoid" for g, _, _ in rows]
        if any(multi_label):
            sigmoids = runner.target_scores(logits, classes, "sigmoid")
            finals = torch.where(torch.tensor(multi_label).to(finals.device), sigmoids, finals)
        for (group, done, i), score in zip(rows, finals, strict=True):
            group.finals[done][i] = score
    return [
        _explained(setting["n_iterations"], groups[name])
        for name, setting in zip(names, settings, strict=True)
    ]


def _rows(batch_size: int) -> int:
    """Rows of a step's pass."""
    return max(1, batch_size // 4)


def _starts(
    runner: ModelRunner,
    batch: Batch,
    blanks: Tensor,
    weights: tuple[Tensor, Tensor],
    setting: Setting,
) -> tuple[list[Tensor], np.ndarray]:
    """Mask that each image starts from, and the radius of its disc."""
    images, targets, image_ids = batch
    size = setting["mask_size"]
    none = np.full(len(images), np.nan)
    if setting["init"] == "ones":
        return [images.new_ones(size, size) for _ in images], none
    if setting["init"] == "random":
        uniform = [
            draws.generator(setting["seed"], name, NAME, 0).random((size, size), dtype=np.float32)
            for name in image_ids
        ]
        return [torch.from_numpy(mask).to(images, copy=True) for mask in uniform], none
    radii, discs = disc_masks(images.shape[2], images.shape[3], size)
    candidates = [torch.from_numpy(disc).to(images) for disc in discs]
    vertical, horizontal = weights
    # Nothing blurred and all of it stand before the discs.
    ends = [torch.full_like(vertical[:, :1] @ horizontal[:, :1].T, end) for end in (1, 0)]
    shown = torch.stack([*ends, *(vertical @ disc @ horizontal.T for disc in candidates)])[:, None]
    n = len(images) * len(shown)
    scores = torch.empty(n, dtype=images.dtype, device=images.device)
    for rows in runner.batches(n):
        position, disc_index = np.divmod(rows, len(shown))
        composites = (
            shown[disc_index] * images[position] + (1 - shown[disc_index]) * blanks[position]
        )
        scores[rows] = runner.scores(composites, targets[position], output=setting["output"])
    suppressing = [
        first_suppressing(row[2:], original=float(row[0]), blank=float(row[1]))
        for row in scores.reshape(len(images), len(shown)).double().cpu().numpy()
    ]
    return [candidates[disc].clone() for disc in suppressing], radii[suppressing]


def _explained(n: int, group: _Group) -> Explained:
    """Maps and diagnostics after `n` steps."""
    runs, masks = group.runs, group.masks
    terms = torch.stack([torch.stack(run.penalties[:n], 1) for run in runs])
    probability = torch.stack(group.scored[:n], 1)
    # Of 1 - m, so that what the mask keeps whole is exactly 0.
    maps = [run.upsampled(1 - mask).clamp(0, 1) for run, mask in zip(runs, masks[n], strict=True)]
    if smoothing := runs[0].setting["final_blur"]:
        maps = [blurred(plane[None], smoothing)[0] for plane in maps]
    l1, tv = terms[:, 0], terms[:, 1]
    total = l1 + tv + probability
    steps = snapshot_steps(n)
    snapshots = torch.stack([torch.stack(list(masks[step])) for step in steps], 1)
    converged = [converged_step(row) for row in total.double().cpu().numpy()]
    return torch.stack(maps), {
        "loss_total": total,
        "loss_l1": l1,
        "loss_tv": tv,
        "loss_probability": probability,
        "snapshots": snapshots,
        "snapshot_steps": torch.tensor(steps).expand(len(runs), -1),
        "init_radius": torch.from_numpy(group.radii),
        "converged_step": torch.tensor(converged, dtype=torch.float64),
        "final_probability": group.finals[n].double(),
    }


def _cost(setting: Setting, side: int) -> tuple[int, int]:
    search = len(_RADII) + 2 if setting["init"] == "circular" else 0
    return setting["n_iterations"] + search + 1, setting["n_iterations"]


MEANINGFUL_PERTURBATION = Explainer(
    _meaningful_perturbation,
    cost=_cost,
    libraries=("scipy",),
    rows=_rows,
    sequential=True,
    shares_passes=True,
)
