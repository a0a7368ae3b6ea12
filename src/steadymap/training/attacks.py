"""Adversarial images by projected gradient descent."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def _norm(values: Tensor) -> Tensor:
    """L2 norm of each image, shape (batch, 1, 1, 1)."""
    return values.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "l2",
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channel height width"]:
    """Images near `images` whose cross-entropy is raised.

    Each step follows the gradient normalized in the threat's norm, is projected on the ball and
    then the attacked image, not the perturbation, is clamped to [0, 1].

    Parameters
    ----------
    model : callable
        From images in [0, 1] to logits; put it in eval mode first.
    images : Tensor
        In [0, 1].
    labels : Tensor
        True labels.
    eps, step_size : float
        Radius and step in units of the norm over the whole image.
    steps : int
        Gradient steps.
    norm : {'l2', 'linf'}
        Threat model.
    random_start : bool
        Start from a random point of the ball.
    generator : torch.Generator, optional
        Randomness of the start.

    References
    ----------
    Madry et al., ICLR 2018; SAM, supplement S2.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm is {norm!r}; choose 'l2' or 'linf'")
    if eps <= 0 or step_size <= 0 or steps < 1:
        raise ValueError(f"eps {eps}, step_size {step_size}, steps {steps}: all must be positive")
    delta = torch.zeros_like(images)
    if random_start:
        if norm == "l2":
            noise = torch.randn(images.shape, generator=generator).to(images)
            radius = torch.rand((len(images), 1, 1, 1), generator=generator).to(images)
            # The d-th root makes the points uniform in the ball.
            radius = eps * radius ** (1 / images[0].numel())
            delta = noise / _norm(noise).clamp_min(1e-12) * radius
        else:
            delta = eps * (2 * torch.rand(images.shape, generator=generator).to(images) - 1)
        delta = (images + delta).clamp(0, 1) - images
    for _ in range(steps):
        attacked = (images + delta).detach().requires_grad_()
        loss = F.cross_entropy(model(attacked).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        if norm == "l2":
            delta = delta + step_size * gradient / _norm(gradient).clamp_min(1e-12)
            delta = delta * (eps / _norm(delta).clamp_min(1e-12)).clamp_max(1)
        else:
            delta = (delta + step_size * gradient.sign()).clamp(-eps, eps)
        delta = (images + delta).clamp(0, 1) - images
    return (images + delta).detach()
