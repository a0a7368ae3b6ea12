"""Guided backpropagation: each ReLU passes the positive part of a gradient only."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.rules import Ruled, cap_of, with_rules
from steadymap.models.adapter import image_path
from steadymap.models.registry import Explainable, as_explainable

# Calls and modules that may hold a ReLU which the adapter does not make a module of its own.
_CALLS = {
    *("abs", "clamp", "clamp_min", "clip", "ge", "gt", "hardtanh", "le", "lt", "maximum"),
    *("threshold", "where"),
}
_MODULES = (nn.RNNBase, nn.RNNCell, nn.TransformerDecoderLayer, nn.TransformerEncoderLayer)
# Activations by the names of their modules and functions, without case and underscores.
_ACTIVATIONS = {name.lower() for name in nn.modules.activation.__all__} - {"multiheadattention"}
# Activations that may weigh other values (gates), and calls that may lie between.
_GATES = {"hardsigmoid", "logsoftmax", "sigmoid", "softmax", "softmax2d", "softmin"}
_SHAPING = {
    *("contiguous", "dropout", "expand", "expandas", "flatten", "identity", "permute", "reshape"),
    *("reshapeas", "squeeze", "transpose", "unflatten", "unsqueeze", "view", "viewas"),
}
_PRODUCTS = {"bmm", "einsum", "matmul", "mul"}


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


def _called(network: fx.GraphModule, node: fx.Node) -> str:
    """Name of the module or function that a node calls, without case and underscores."""
    called: Any = node.target
    if node.op == "call_module":
        called = type(network.get_submodule(str(node.target)))
    return str(getattr(called, "__name__", called)).lower().replace("_", "")


def _hidden(network: fx.GraphModule, path: list[fx.Node]) -> str:
    """First call on the images' path that may be a ReLU under another name; empty if none is."""
    for node in path:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, _MODULES):
                return f"part of module {node.target!r}, {type(module).__name__},"
        elif node.op in ("call_function", "call_method"):
            called = str(getattr(node.target, "__name__", node.target)).strip("_")
            several = called == "max" and len(node.all_input_nodes) > 1
            if called in _CALLS or several:
                return f"{called}() at node {node.name!r}"
    return ""


def _is_gate(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an activation only weighs other values, or ends the network."""
    waiting, seen = list(node.users), set(node.users)
    while waiting:
        user = waiting.pop()
        called = _called(network, user)
        # x * sigmoid(x) is an activation.
        if called in _PRODUCTS and not set(user.all_input_nodes) & set(node.all_input_nodes):
            continue
        if called in _SHAPING:
            waiting += set(user.users) - seen
            seen.update(user.users)
        elif user.op != "output":
            return False
    return True


def _others(network: fx.GraphModule, path: list[fx.Node]) -> dict[str, int]:
    """Activations on the images' path that guiding has no rule for, and how often each occurs."""
    counts: Counter[str] = Counter()
    for node in path:
        called = _called(network, node)
        if called in ("relu", "relu6") or called not in _ACTIVATIONS:
            continue
        if called not in _GATES or not _is_gate(network, node):
            counts[called] += 1
    return counts


def _check(network: fx.GraphModule) -> None:
    """Refuse a network whose map would not be that of guided backpropagation."""
    name, on_path = type(network).__name__, image_path(network.graph)
    path = [node for node in network.graph.nodes if node in on_path]
    if hidden := _hidden(network, path):
        raise ValueError(
            f"{name}: {hidden} may be a ReLU, which would not be guided; write it with nn.ReLU or "
            "nn.ReLU6"
        )
    remedy = (
        "use the method gradient, or give a network with ReLUs through "
        "`steadymap.models.explainable(network, ...)`"
    )
    relus = [module for module in network.modules() if isinstance(module, (nn.ReLU, nn.ReLU6))]
    if not relus:
        raise ValueError(
            f"{name} has no ReLU and no ReLU6, so that nothing would be guided; {remedy}"
        )
    if not any(_called(network, node) in ("relu", "relu6") for node in path):
        raise ValueError(
            f"{name}: none of its {len(relus)} ReLUs lies between image and output, so that the "
            f"map would be the gradient; {remedy}"
        )
    if others := _others(network, path):
        named = ", ".join(f"{called} ({n} calls)" for called, n in others.items())
        raise ValueError(
            f"{name} has activations beside ReLU that would pass their gradient unguided: {named}; "
            "use the method gradient, or a network whose activations are all nn.ReLU or nn.ReLU6"
        )


def guided(model: nn.Module, shape: Sequence[int] | None = None) -> Explainable:
    """Copy of a model whose ReLUs and ReLU6s pass a gradient g only where g > 0.

    As always, also the input z must lie in 0 < z (0 < z < 6); logits are the model's (Springenberg
    et al. 2015). A sigmoid or softmax that weighs other values, as in squeeze and excitation, or
    ends the network keeps its gradient. The copy shares the model's weights, and the model is not
    touched.

    Parameters
    ----------
    model : nn.Module
        In eval mode. Anything but an `Explainable` is first traced in the same way, so that
        functional, reused and in-place ReLUs are guided too.
    shape : sequence of int, optional
        Of a batch of images that it takes.

    Raises
    ------
    ValueError
        Where the model can't be traced; where no ReLU lies between image and output, ReLUs may be
        hidden, or other activations are there too: unguided, they would give the plain gradient
        under this method's name.
    """
    traced = as_explainable(model, shape)
    _check(traced.network)
    modules = traced.network.named_modules(remove_duplicate=False)
    caps = {path: cap for path, module in modules if (cap := cap_of(module)) is not None}
    return with_rules(traced, {path: Ruled(_Guide, cap) for path, cap in caps.items()})


def _guided_backprop(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """Gradient of the target score through guided ReLUs (Springenberg et al. 2015; SAM 4.2).

    With respect to pixels in [0, 1]; signed mean over channels.
    """
    images, targets, _ = batch
    with runner.substituted(guided(runner.model, images.shape)) as guided_runner:
        gradients = guided_runner.gradients(images, targets, output=setting["output"])
    return gradients.double().mean(1).float(), {}


GUIDED_BACKPROP = Explainer(_guided_backprop, cost=lambda setting, side: (1, 1))
