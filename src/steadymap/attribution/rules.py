"""Modules whose backward pass follows a rule of its own, in place of a network's."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steadymap.models.registry import Explainable, copy_sharing_weights


class Ruled(nn.Module):
    """Module that applies an autograd function with fixed arguments."""

    def __init__(self, rule: type[torch.autograd.Function], argument: Any):
        super().__init__()
        self.rule, self.argument = rule, argument

    def forward(self, values: Tensor) -> Tensor:
        """Output of the rule."""
        return self.rule.apply(values, self.argument)


def cap_of(module: nn.Module) -> float | None:
    """Largest output of a ReLU or ReLU6; None for any other module."""
    if isinstance(module, nn.ReLU):
        return math.inf
    return 6.0 if isinstance(module, nn.ReLU6) else None


def with_rules(model: Explainable, ruled: Mapping[str, nn.Module]) -> Explainable:
    """Copy of a model, sharing its weights, with modules of its network replaced by path."""
    copied = copy_sharing_weights(model)
    for path, module in ruled.items():
        copied.network.set_submodule(path, module)
    return copied
