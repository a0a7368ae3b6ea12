"""Guided backpropagation: gradients that no ReLU lets pass against the target."""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from steadymap.attribution.passes import Explainer, Passes
from steadymap.models import Explainable, explainable

Explained = list[tuple[Tensor, dict[str, Tensor]]]

# Calls and modules that may hold a ReLU which the adapter does not make a module of its own.
_CALLS = {"clamp", "clamp_min", "clip", "hardtanh", "maximum", "threshold"}
_MODULES = (nn.RNNBase, nn.RNNCell, nn.TransformerDecoderLayer, nn.TransformerEncoderLayer)


class _Guide(torch.autograd.Function):
    """Values between 0 and `cap`; gradients where the input lies strictly between, if positive."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cap: float) -> Tensor:
        outcome = values.clamp(0, cap)
        ctx.cap = cap
        ctx.save_for_backward(outcome)
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (outcome,) = ctx.saved_tensors
        shut = (outcome <= 0) | (outcome >= ctx.cap)
        return gradient.clamp(min=0).masked_fill(shut, 0), None


class _GuidedReLU(nn.Module):
    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def forward(self, values: Tensor) -> Tensor:
        return _Guide.apply(values, self.cap)


def _hidden(network: fx.GraphModule) -> str:
    """What may be a ReLU in disguise; empty if nothing is."""
    for node in network.graph.nodes:
        if node.op in ("call_function", "call_method"):
            called = getattr(node.target, "__name__", node.target).strip("_")
            if called in _CALLS:
                return f"{called}() at node {node.name!r}"
    for path, module in network.named_modules():
        if isinstance(module, _MODULES):
            return f"part of module {path!r}, {type(module).__name__},"
    return ""


def guided(model: nn.Module) -> nn.Module:
    """Copy of a model whose ReLUs and ReLU6s pass a gradient g only where g > 0.

    As always, also the input z must lie in 0 < z (0 < z < 6); logits are the model's. Other
    activations keep their gradient (Springenberg et al. 2015). The copy shares the model's
    weights, and the model is not touched.

    Parameters
    ----------
    model : nn.Module
        In eval mode. Anything but an `Explainable` is first traced in the same way, so that
        functional, reused and in-place ReLUs are guided too.

    Raises
    ------
    ValueError
        Where the model can't be traced, or where ReLUs are absent or may be hidden: unguided, they
        would give the plain gradient under this method's name.
    """
    if isinstance(model, Explainable):
        # Weights are shared, everything else is copied.
        weights = {id(value): value for value in chain(model.parameters(), model.buffers())}
        made: nn.Module = copy.deepcopy(model, weights)
        network = model.network
    else:
        made = network = explainable(model, mean=[0.0], std=[1.0]).network
    name = type(network).__name__
    if hidden := _hidden(network):
        raise ValueError(
            f"{name}: {hidden} may be a ReLU, which would not be guided; write it with nn.ReLU or "
            "nn.ReLU6"
        )
    found = [
        (path, math.inf if isinstance(module, nn.ReLU) else 6.0)
        for path, module in made.named_modules(remove_duplicate=False)
        if isinstance(module, (nn.ReLU, nn.ReLU6))
    ]
    if not found:
        raise ValueError(
            f"{name} has no ReLU and no ReLU6, so that nothing would be guided; use the method "
            "gradient, or give a network with ReLUs through "
            "`steadymap.models.explainable(network, ...)`"
        )
    for path, cap in found:
        made.set_submodule(path, _GuidedReLU(cap))
    return made


def _guided_backprop(
    passes: Passes,
    images: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"],
    *,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
) -> Explained:
    """Gradient of the target score through guided ReLUs (Springenberg et al. 2015; SAM 4.2).

    With respect to pixels in [0, 1]; signed mean over channels.
    """
    found: Explained = []
    made = guided(passes.model)
    inner = Passes(made, passes.batch_size, fast=made)
    for setting in settings:
        gradients = inner.gradients(images, targets, output=setting["output"])
        found.append((gradients.double().mean(1).float(), {}))
    passes.forward += inner.forward
    passes.backward += inner.backward
    return found


GUIDED_BACKPROP = Explainer(_guided_backprop, cost=lambda setting, side: (1, 1))
