"""Model passes at one padded batch shape, counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steadymap.attribution.fusion import fused
from steadymap.attribution.shapes import Classes, Images, Maps, PerImage
from steadymap.models.registry import probabilities
from steadymap.params.methods import OUTPUTS

# Hyperparameters of a method.
Setting = Mapping[str, Any]

# What a method gives for one setting: maps (batch, height, width), and diagnostics per image.
Explained = tuple[Maps, dict[str, Tensor]]


class Batch(NamedTuple):
    """Images to explain.

    Attributes
    ----------
    images : Tensor
        In [0, 1].
    targets : Tensor
        Class to explain of each image.
    image_ids : sequence of str
        What random draws are keyed by.
    """

    images: Images
    targets: Classes
    image_ids: Sequence[str]


def wrong_targets(targets: Tensor, n_classes: int) -> str:
    """Error message for targets that are not classes of a model."""
    if n_classes == 1:
        return (
            f"targets go up to {int(targets.max())}, the model has 1 logit; give 0, whose "
            "probability is the logit's sigmoid, or let the network return "
            "torch.cat([torch.zeros_like(logit), logit], 1) for classes 0 and 1"
        )
    return (
        f"targets go up to {int(targets.max())}, the model has {n_classes} classes; give class "
        "indices from 0"
    )


class ModelRunner:
    """Runs a model on rows of images, always `batch_size` of them at a time.

    A last, smaller batch is padded: kernels choose their summation order by shape, so only at one
    fixed shape does a row's result never depend on what it is computed together with.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits, in eval mode.
    batch_size : int
        Rows per pass.
    fast : nn.Module, optional
        The model in fewer kernels, as `fusion.fused` makes it; made at the first pass by default.
        What reads or changes the model's modules looks at `model`.

    Attributes
    ----------
    forward, backward : int
        Rows passed so far, padding not counted.
    """

    def __init__(self, model: nn.Module, batch_size: int, *, fast: nn.Module | None = None):
        self.model = model
        self.batch_size = batch_size
        self._fast = fast
        self.forward = 0
        self.backward = 0

    @property
    def fast(self) -> nn.Module:
        """The model in fewer kernels."""
        if self._fast is None:
            self._fast = fused(self.model)
        return self._fast

    def _run(self, rows: Tensor, part: nn.Module | None = None) -> Tensor:
        output: Tensor = (part or self.fast)(rows)
        return output

    def batches(self, n_rows: int) -> Iterator[Int[np.ndarray, " rows"]]:
        """Positions of the rows of each pass."""
        for start in range(0, n_rows, self.batch_size):
            yield np.arange(start, min(start + self.batch_size, n_rows))

    def normalization(self, images: Images) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that the model normalizes with, (1, channel, 1, 1).

        A model without `mean` and `std` does not normalize: its normalized space is pixel space.
        """
        mean, std = (getattr(self.model, name, None) for name in ("mean", "std"))
        if isinstance(mean, Tensor) and isinstance(std, Tensor):
            return mean.to(images), std.to(images)
        shape = (1, images.shape[1], 1, 1)
        return images.new_zeros(shape), images.new_ones(shape)

    @contextmanager
    def substituted(self, model: nn.Module) -> Iterator["ModelRunner"]:
        """Runner of a changed copy of the model, whose passes are counted as this one's."""
        runner = ModelRunner(model, self.batch_size, fast=model)
        yield runner
        self.forward += runner.forward
        self.backward += runner.backward

    @contextmanager
    def naming_out_of_memory(self, images: Tensor, size: int) -> Iterator[None]:
        """Say what to change where a pass of `size` rows of `images` does not fit the device."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            height, width = images.shape[2:]
            raise MemoryError(
                f"{images.device}: a pass of {size} images of {height} x {width} px does not fit "
                f"its memory; set attribution.batch_size to {max(1, self.batch_size // 2)} (it is "
                f"{self.batch_size}) and run again: the batch shape is part of what a map is, so "
                "all maps are computed anew"
            ) from error

    def padded(self, rows: Tensor, size: int | None = None) -> Tensor:
        """Rows of a whole batch, or of one of `size`, the last one repeated."""
        missing = (size or self.batch_size) - len(rows)
        if missing:
            rows = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
        return rows.contiguous(memory_format=torch.channels_last)

    def target_scores(self, logits: Tensor, targets: Tensor, output: str) -> Tensor:
        """Score of each row's target.

        Parameters
        ----------
        logits : Tensor
            (rows, classes).
        targets : Tensor
            Class of each row.
        output : {"logit", "probability", "sigmoid"}
            The score; see `probabilities`.

        Raises
        ------
        ValueError
            Where the output is none of these, or a target is no class of the model.
        """
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}; choose one of {', '.join(OUTPUTS)}")
        values = logits if output == "logit" else probabilities(logits, output)
        try:
            return values.gather(1, targets[:, None])[:, 0]
        except (RuntimeError, IndexError):
            raise ValueError(wrong_targets(targets, values.shape[1])) from None

    def logits(self, images: Images) -> Float[Tensor, "rows classes"]:
        """Logits of each row."""
        logits = []
        for rows in images.split(self.batch_size):
            with self.naming_out_of_memory(images, self.batch_size), torch.no_grad():
                logits.append(self._run(self.padded(rows))[: len(rows)])
            self.forward += len(rows)
        return torch.cat(logits)

    def through(self, part: nn.Module, rows: Tensor) -> Tensor:
        """Output of a part of the model for rows of a whole batch, which are not counted."""
        with self.naming_out_of_memory(rows, self.batch_size), torch.no_grad():
            return self._run(rows, part)

    def scores(self, images: Images, targets: Classes, *, output: str) -> PerImage:
        """Score of each row's target.

        Parameters
        ----------
        images : Tensor
            Any number of rows, in [0, 1].
        targets, output
            As in `target_scores`.
        """
        return self.target_scores(self.logits(images), targets, output)

    def gradients(self, images: Images, targets: Classes, *, output: str) -> Images:
        """Gradient of each row's target score with respect to its image in [0, 1].

        Parameters
        ----------
        images, targets, output
            As in `scores`.
        """
        return self.scored_gradients(images, targets, output=output)[1]

    def scored_gradients(
        self, images: Images, targets: Classes, *, output: str, batch_size: int | None = None
    ) -> tuple[PerImage, Images]:
        """Target score of each row, and its gradient with respect to the image in [0, 1].

        Parameters
        ----------
        images, targets, output
            As in `scores`.
        batch_size : int, optional
            Another padded shape, for a method whose rows can't fill this runner's. It must come
            from
            settings alone, never from the number of rows.
        """
        size = batch_size or self.batch_size
        scores, gradients = [], []
        for rows, classes in zip(images.split(size), targets.split(size), strict=True):
            with self.naming_out_of_memory(images, size), torch.enable_grad():
                padded = self.padded(rows, size).detach().requires_grad_()
                score = self.target_scores(self._run(padded)[: len(rows)], classes, output)
                (gradient,) = torch.autograd.grad(score.sum(), padded)
            scores.append(score.detach())
            gradients.append(gradient[: len(rows)])
            self.forward += len(rows)
            self.backward += len(rows)
        return torch.cat(scores), torch.cat(gradients)


@dataclass(frozen=True)
class Explainer:
    """The code of a method.

    Attributes
    ----------
    function : callable
        From runner, batch and setting to maps and diagnostics; where the method `shares_passes`,
        from runner, batch and settings to those of each setting.
    cost : callable
        From a setting and the image's side to forward and backward passes per image.
    libraries : tuple of str
        Packages beside torch whose versions the maps depend on.
    rows : callable, optional
        From the batch size to the rows of a pass of a method whose settings may differ in anything:
        where a block of images is smaller, several settings fill it.
    sequential : bool
        Whether an image's passes follow one another, each with one row of it.
    shares_passes : bool
        Whether one pass serves several settings, which differ in counts of samples alone unless the
        method has `rows`.
    """

    function: Callable[[ModelRunner, Batch, Any], Any]
    cost: Callable[[Setting, int], tuple[int, int]]
    libraries: tuple[str, ...] = ()
    rows: Callable[[int], int] | None = None
    sequential: bool = False
    shares_passes: bool = False

    def explain(
        self,
        runner: ModelRunner,
        images: Images,
        targets: Classes,
        *,
        image_ids: Sequence[str],
        settings: Sequence[Setting],
    ) -> list[Explained]:
        """Maps and per-image diagnostics of each setting.

        Parameters
        ----------
        runner : ModelRunner
            Runs and counts the model's passes.
        images, targets, image_ids
            As in `Batch`.
        settings : sequence of mapping
            Hyperparameters, with what they leave open filled in.
        """
        batch = Batch(images, targets, image_ids)
        if self.shares_passes:
            explained: list[Explained] = self.function(runner, batch, settings)
            return explained
        return [self.function(runner, batch, setting) for setting in settings]
