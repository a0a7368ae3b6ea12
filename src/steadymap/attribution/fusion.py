"""Fusion of each convolution with the operations behind it into one kernel, for speed."""

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from steadymap.models.registry import Explainable

# Weights are laid out for an input's shape; a study has a batch shape per method at most.
_SHAPES = 3


class Convolution(nn.Module):
    """Convolution, then the sum with another tensor and ReLU where they follow, in one kernel.

    oneDNN's kernels through torch's own operators, with weights in the layout that they compute in:
    called through `conv2d` they would be brought into it at every pass.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: nn.Conv2d):
        super().__init__()
        self.register_buffer("weight", source.weight.detach())
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())
        self.padding = [int(side) for side in source.padding]
        self.stride, self.dilation = list(source.stride), list(source.dilation)
        self.groups = source.groups
        self.relu = False
        self.reach = [d * (k - 1) for d, k in zip(self.dilation, source.kernel_size, strict=True)]
        # Going back through such a convolution is another one, kernels flipped.
        self.flipped_padding = [r - p for r, p in zip(self.reach, self.padding, strict=True)]
        self.flips = self.groups == 1 and self.stride == [1, 1] and min(self.flipped_padding) >= 0
        self._packed: dict[tuple[bool, torch.Size], Tensor] = {}

    def _weight(self, rows: Tensor, *, flipped: bool) -> Tensor:
        key = flipped, rows.shape
        if key not in self._packed:
            if len(self._packed) >= 2 * _SHAPES:
                del self._packed[next(iter(self._packed))]
            weight, padding = self.weight, self.padding
            if flipped:
                weight = weight.transpose(0, 1).flip(2, 3).contiguous()
                padding = self.flipped_padding
            self._packed[key] = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, self.stride, self.dilation, self.groups, list(rows.shape)
            )
        return self._packed[key]

    def ahead(self, rows: Tensor, other: Tensor | None, *, relu: bool) -> Tensor:
        """Convolution of `rows`, plus `other`, through ReLU, each if asked for.

        Parameters
        ----------
        rows : Tensor
            (rows, channel, height, width), channels last in memory.
        other : Tensor or None
            What is added, of the output's shape.
        relu : bool
            Whether negative values become 0.
        """
        weight = self._weight(rows, flipped=False)
        places = self.padding, self.stride, self.dilation, self.groups
        operation = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return operation(rows, weight, self.bias, *places, "relu" if relu else "none", [], "")
        return operation.binary(
            rows, other, weight, self.bias, *places, "add", None, "relu" if relu else None, [], None
        )

    def back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient with respect to an input of `shape`."""
        if self.flips:
            weight = self._weight(gradient, flipped=True)
            places = self.flipped_padding, self.stride, self.dilation, self.groups
            return torch.ops.mkldnn._convolution_pointwise(
                gradient, weight, None, *places, "none", [], ""
            )
        # The operator reads the input's shape only, as no gradient of weights is asked for.
        rows = gradient.new_empty(shape).contiguous(memory_format=torch.channels_last)
        geometry = self.stride, self.padding, self.dilation, False, [0, 0], self.groups
        needed = [True, False, False]
        return torch.ops.aten.convolution_backward(
            gradient, rows, self.weight, None, *geometry, needed
        )[0]

    def _shape(self, rows: Tensor) -> tuple[int, ...]:
        places = zip(rows.shape[2:], self.padding, self.reach, self.stride, strict=True)
        sides = [
            (side + 2 * padding - reach - 1) // step + 1 for side, padding, reach, step in places
        ]
        return (len(rows), len(self.weight), *sides)

    def forward(self, rows: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolution, plus `other`, with this module's ReLU; differentiable in both inputs."""
        if other is not None and other.shape != self._shape(rows):
            # The kernel can't broadcast.
            total = self._run(rows, None, relu=False) + other
            return total.relu() if self.relu else total
        return self._run(rows, other, relu=self.relu)

    def _run(self, rows: Tensor, other: Tensor | None, *, relu: bool) -> Tensor:
        rows = rows.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():
            return _Differentiable.apply(rows, other, self, relu)
        return self.ahead(rows, other, relu=relu)


class _Differentiable(torch.autograd.Function):
    """Convolution with gradients of its inputs, and none of its weights."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, other: Tensor | None, unit: Convolution, relu: bool
    ) -> Tensor:
        ctx.unit, ctx.shape, ctx.relu = unit, rows.shape, relu
        output = unit.ahead(rows, other, relu=relu)
        if relu:
            ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if ctx.relu:
            (output,) = ctx.saved_tensors
            gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        rows = ctx.unit.back(gradient, ctx.shape) if ctx.needs_input_grad[0] else None
        return rows, gradient if ctx.needs_input_grad[1] else None, None, None


def fused(model: nn.Module) -> nn.Module:
    """Model with the same logits and input gradients, but for rounding, in fewer kernels.

    BatchNorm goes into the convolution before it, the sum and the ReLU behind it into its kernel.
    A copy with weights of its own: later changes of `model` don't reach it. What can't be fused
    here is returned as it is: anything but an `Explainable` in eval mode, with float32 weights on
    the CPU and without hooks, and everything where torch comes without oneDNN.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits.
    """
    if not _fusible(model):
        return model
    copied = copy.deepcopy(model).requires_grad_(False)
    assert isinstance(copied, Explainable)
    network = copied.network
    modules = dict(network.named_modules(remove_duplicate=False))
    units: list[fx.Node] = []
    for node in list(network.graph.nodes):
        source = _module(modules, node)
        if not _plain(source):
            continue
        assert isinstance(source, nn.Conv2d)
        behind = _only_user(node)
        norm = _module(modules, behind)
        if behind is not None and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
            source = fuse_conv_bn_eval(source, norm)
            _absorb(network, behind, node)
        # A new name per call: a network may call one convolution twice.
        name = f"fused.{node.name}"
        modules[name] = Convolution(source)
        network.add_submodule(name, modules[name])
        node.target = name
        units.append(node)
    order = {node: position for position, node in enumerate(network.graph.nodes)}
    for node in units:
        unit = modules[str(node.target)]
        assert isinstance(unit, Convolution)
        behind = _only_user(node)
        if behind is not None and behind.op == "call_function" and _is_sum(behind):
            other = next((operand for operand in behind.args if operand is not node), None)
            if isinstance(other, fx.Node) and order[other] < order[node]:
                node.args = (*node.args, other)
                _absorb(network, behind, node)
                behind = _only_user(node)
        if behind is not None and type(_module(modules, behind)) is nn.ReLU:
            unit.relu = True
            _absorb(network, behind, node)
    network.graph.lint()
    network.delete_all_unused_submodules()
    network.recompile()
    return copied.eval()


def _fusible(model: nn.Module) -> bool:
    if type(model) is not Explainable or not isinstance(model.network, fx.GraphModule):
        return False
    if model.network.training or not torch.backends.mkldnn.is_available():
        return False
    if any(value.device.type != "cpu" for value in model.buffers()):
        return False
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in model.modules()
    )


def _plain(module: nn.Module | None) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.dtype == torch.float32
        and not module.training
    )


def _is_sum(node: fx.Node) -> bool:
    if node.target not in (operator.add, torch.add) or node.kwargs or len(node.args) != 2:
        return False
    first, second = node.args
    return isinstance(first, fx.Node) and isinstance(second, fx.Node) and first is not second


def _module(modules: Mapping[str, nn.Module], node: fx.Node | None) -> nn.Module | None:
    return modules.get(str(node.target)) if node is not None and node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _absorb(network: fx.GraphModule, node: fx.Node, into: fx.Node) -> None:
    node.replace_all_uses_with(into)
    network.graph.erase_node(node)
