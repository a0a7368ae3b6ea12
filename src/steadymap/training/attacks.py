"""Adversarial images by projected gradient descent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steadymap.params.schema import Attack


def _norm(values: Tensor) -> Tensor:
    """L2 norm of each image, shape (batch, 1, 1, 1)."""
    return values.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def _random_offsets(
    images: Tensor, attack: Attack, generator: torch.Generator | None
) -> Float[Tensor, "batch channel height width"]:
    """Points of the attack's ball around 0, uniform in its volume."""
    if attack.norm == "linf":
        return attack.eps * (2 * torch.rand(images.shape, generator=generator).to(images) - 1)
    noise = torch.randn(images.shape, generator=generator).to(images)
    radius = torch.rand((len(images), 1, 1, 1), generator=generator).to(images)
    # The d-th root makes the points uniform in the ball.
    radius = attack.eps * radius ** (1 / images[0].numel())
    return noise / _norm(noise).clamp_min(1e-12) * radius


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    attack: Attack,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel height width"]:
    """Perturb images within a ball so that the cross-entropy of their labels rises.

    Each step follows the gradient normalized in the attack's norm and is projected on the ball.
    Then the attacked image, not the perturbation, is clamped to [0, 1].

    Parameters
    ----------
    model : callable
        From images in [0, 1] to logits, in eval mode.
    images : Tensor
        In [0, 1], shape (batch, channel, height, width).
    labels : Tensor
        True labels, shape (batch,).
    attack : Attack
        Norm, radius and step size in units of that norm over the whole image, number of steps, and
        whether to start from a random point of the ball.
    generator : torch.Generator, optional
        Randomness of the start.

    Returns
    -------
    Tensor
        Attacked images, shaped as `images`.

    References
    ----------
    Madry et al., ICLR 2018; SAM, supplement S2.
    """
    delta = torch.zeros_like(images)
    if attack.random_start:
        delta = (images + _random_offsets(images, attack, generator)).clamp(0, 1) - images
    for _ in range(attack.steps):
        attacked = (images + delta).detach().requires_grad_()
        loss = F.cross_entropy(model(attacked).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        if attack.norm == "l2":
            delta = delta + attack.step_size * gradient / _norm(gradient).clamp_min(1e-12)
            delta = delta * (attack.eps / _norm(delta).clamp_min(1e-12)).clamp_max(1)
        else:
            delta = delta + attack.step_size * gradient.sign()
            delta = delta.clamp(-attack.eps, attack.eps)
        delta = (images + delta).clamp(0, 1) - images
    return (images + delta).detach()
