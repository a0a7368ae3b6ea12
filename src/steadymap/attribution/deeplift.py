"""DeepLIFT: differences from a baseline, carried back through the network by the rescale rule."""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from steadymap.attribution.integrated_gradients import baselines, completeness
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.rules import Ruled, cap_of, with_rules
from steadymap.attribution.shapes import Classes, Images, PerImage
from steadymap.models.adapter import is_size
from steadymap.models.registry import Explainable, as_explainable

# What is left to autograd, being linear (or a constant plus linear) in what comes from the image:
# sums of any number of such values, products with constants, and operations on one such value.
_SUMS: set[Any] = {
    *(operator.add, operator.sub, torch.add, torch.sub, torch.cat, torch.concat, torch.stack),
    *("add", "sub"),
}
_PRODUCTS: set[Any] = {
    *(operator.mul, operator.matmul, torch.mul, torch.matmul, torch.einsum, "mul", "matmul")
}
_OPERATIONS: set[Any] = {
    *(operator.neg, operator.truediv, operator.getitem, torch.mean, torch.sum),
    *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze),
    *(torch.unsqueeze, torch.chunk, torch.split, F.avg_pool2d, F.adaptive_avg_pool2d, F.conv2d),
    *(F.linear, F.pad, "neg", "mean", "sum", "flatten", "view", "reshape", "permute"),
    *("transpose", "squeeze", "unsqueeze", "chunk", "split", "contiguous", "clone"),
}
_LINEAR = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout),
    *(nn.Dropout2d, nn.Identity, nn.Flatten, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle),
)


class _Rescale(torch.autograd.Function):
    """Values between 0 and `cap`; backwards, quotients of differences instead of derivatives.

    Rows alternate: an image's, its baseline's.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, cap: float) -> Tensor:
        outcome = values.clamp(0, cap)
        image, difference = values[0::2], values[0::2] - values[1::2]
        # The quotient loses no digits however small the difference is: where both lie on one side
        # of a kink numerator and denominator are equal or the former is 0, else nothing cancels.
        quotient = (outcome[0::2] - outcome[1::2]) / difference
        derivative = ((image > 0) & (image < cap)).to(quotient)
        ctx.save_for_backward(torch.where(difference == 0, derivative, quotient))
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (multiplier,) = ctx.saved_tensors
        return (gradient.unflatten(0, (-1, 2)) * multiplier[:, None]).flatten(0, 1), None


def _carriers(outcome: Tensor, winners: Tensor) -> Tensor:
    """Position that carries each window's difference: the winner of the larger maximum."""
    return torch.where(outcome[0::2] >= outcome[1::2], winners[0::2], winners[1::2])


class _Pool(torch.autograd.Function):
    """Maxima of windows; backwards, each window's difference goes to one of its positions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
        outcome, winners = pool(values)
        carriers = _carriers(outcome, winners).flatten(2)
        carried = (values[0::2] - values[1::2]).flatten(2).gather(2, carriers)
        quotient = (outcome[0::2] - outcome[1::2]).flatten(2) / carried
        ctx.shape = values.shape
        # Where the winner does not differ the window does not either: the pool's own derivative.
        ctx.save_for_backward(carriers, torch.where(carried == 0, 1, quotient))
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        carriers, multiplier = (saved[:, None] for saved in ctx.saved_tensors)
        shares = gradient.flatten(2).unflatten(0, (-1, 2)) * multiplier
        # Windows that overlap add up at a position which carries several.
        total = gradient.new_zeros(ctx.shape).flatten(2).unflatten(0, (-1, 2))
        total.scatter_add_(3, carriers.expand_as(shares), shares)
        return total.flatten(0, 1).reshape(ctx.shape), None


def _replacement(module: nn.Module) -> nn.Module | None:
    """Module with the rescale rule for one that has such a rule."""
    if (cap := cap_of(module)) is not None:
        return Ruled(_Rescale, cap)
    pool: Any = None
    if isinstance(module, nn.AdaptiveMaxPool2d):
        pool = partial(F.adaptive_max_pool2d, output_size=module.output_size, return_indices=True)
    elif isinstance(module, nn.MaxPool2d):
        options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        arguments = {option: getattr(module, option) for option in options}
        pool = partial(F.max_pool2d, **arguments, return_indices=True)
    if pool is None or module.return_indices:
        return None
    return Ruled(_Pool, pool)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        # Without running statistics it normalizes by its batch, in eval mode too.
        return module.running_mean is not None and module.running_var is not None
    return isinstance(module, _LINEAR)


def _dropped(node: fx.Node) -> bool:
    """Whether a call is a dropout that drops nothing."""
    if node.target not in (F.dropout, torch.dropout):
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False


def _used(node: fx.Node) -> list[fx.Node]:
    """Every use of a value by a node; `all_input_nodes` has one for the two in x * x."""
    used: list[fx.Node] = []

    def see(value: fx.Node) -> fx.Node:
        used.append(value)
        return value

    fx.node.map_arg((node.args, node.kwargs), see)
    return used


def _ruled(network: fx.GraphModule, name: str) -> dict[str, nn.Module]:
    """Modules with the rescale rule, by the path of those whose place they take.

    Anything on the image's way that neither has such a rule nor is known to be linear is refused.
    """
    varying: set[fx.Node] = set()
    replacements: dict[str, nn.Module] = {}
    for node in network.graph.nodes:
        sources = [used for used in _used(node) if used in varying]
        if node.op == "output" or is_size(node):
            continue
        if node.op == "placeholder" or sources:
            varying.add(node)
        if not sources:
            continue
        alone = len(sources) == 1
        first = alone and bool(node.args) and node.args[0] is sources[0]
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            replacement = _replacement(module)
            if first and replacement is not None:
                replacements[str(node.target)] = replacement
                continue
            if first and _is_linear(module):
                continue
            what = f"module {node.target!r}, {type(module).__name__},"
        else:
            if node.target in _SUMS or (first and (node.target in _OPERATIONS or _dropped(node))):
                continue
            if node.target in _PRODUCTS and alone:
                continue
            called = str(getattr(node.target, "__name__", node.target)).strip("_")
            factors = " of two values" if len(sources) > 1 else ""
            what = f"{called}(){factors} at node {node.name!r}"
        raise ValueError(
            f"{name}: {what} is not known to be linear and has no rescale rule here, so that "
            "DeepLIFT's map might not add up to the change of the score; write it with linear "
            "layers, nn.ReLU, nn.ReLU6 and nn.MaxPool2d, or use the method integrated_gradients"
        )
    return replacements


def rescaled(model: nn.Module, shape: Sequence[int] | None = None) -> Explainable:
    """Copy of a model, in eval mode, whose backward pass carries differences instead of gradients.

    Its rows alternate: an image, its baseline. The gradient of both rows' scores is then, in either
    row, DeepLIFT's multiplier by the rescale rule (Shrikumar et al. 2017, section 3.5.1): a ReLU or
    ReLU6 multiplies by the difference of its outputs over that of its inputs. The difference of a
    max-pool's window goes to the image's winner where the image's maximum is not the smaller one,
    else to the baseline's, with a multiplier in [0, 1]; overlapping windows add up. Where inputs
    don't differ at all the derivative at the image is taken. Logits are the model's. The copy
    shares the model's weights, and the model is not touched.

    Parameters
    ----------
    model : nn.Module
        Anything but an `Explainable` is first traced in the same way.
    shape : sequence of int, optional
        Of a batch of images that it takes.

    Raises
    ------
    ValueError
        Where the model can't be traced, or where an operation is neither linear nor ruled.
    """
    traced = as_explainable(model, shape)
    replacements = _ruled(traced.network, type(traced.network).__name__)
    return with_rules(traced, replacements).eval()


def is_complete(
    residual: PerImage, change: PerImage, max_logit: PerImage
) -> Bool[Tensor, " batch"]:
    """Whether maps add up: residual <= 1e-3 |change of the logit| + 1e-5 largest |logit|.

    Parameters
    ----------
    residual : Tensor
        Absolute difference between a map's sum and the change of the logit, per image.
    change : Tensor
        Logit of the image minus logit of the baseline.
    max_logit : Tensor
        Largest absolute logit of the image.
    """
    return residual <= 1e-3 * change.abs() + 1e-5 * max_logit


def contributions(
    runner: ModelRunner, images: Images, references: Images, targets: Classes
) -> tuple[Images, dict[str, PerImage]]:
    """Share of each value in the change of the target's logit from a baseline to the image.

    Parameters
    ----------
    runner : ModelRunner
        Runs the model; a pair of image and baseline is two rows.
    images, references : Tensor
        In [0, 1]: images and their baselines.
    targets : Tensor
        Class per image.

    Returns
    -------
    Tensor, dict of str to Tensor
        (x - baseline) times multiplier, float64, and per image `function_change`, logit of the
        image minus logit of the baseline; `completeness`, the absolute difference between that
        and the sum of the shares; `max_logit`, the image's largest absolute logit; `complete`, 1
        where `completeness` <= 1e-3 |function_change| + 1e-5 `max_logit`, else 0.
    """
    model = rescaled(runner.model, images.shape)
    peaks: list[Tensor] = []
    model.register_forward_hook(
        lambda module, inputs, logits: peaks.append(logits.detach().abs().amax(1))
    )
    rows = torch.stack([images, references], 1).flatten(0, 1)
    # Pairs never part: an even number of rows, at least one pair.
    size = 2 * max(1, runner.batch_size // 2)
    with runner.substituted(model) as rescaled_runner:
        scores, gradients = rescaled_runner.scored_gradients(
            rows, targets.repeat_interleave(2), output="logit", batch_size=size
        )
    products = (images.double() - references.double()) * gradients[0::2].double()
    change = scores[0::2].double() - scores[1::2].double()
    residual = completeness(products, change)
    max_logit = torch.cat(peaks)[: len(rows) : 2].double()
    return products, {
        "function_change": change,
        "completeness": residual,
        "max_logit": max_logit,
        "complete": is_complete(residual, change, max_logit).double(),
    }


def _deeplift(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """DeepLIFT by the rescale rule, of the target's logit (Shrikumar et al. 2017).

    (x - baseline) times multiplier, signed mean over channels. The products are the same in pixel
    and in normalized space, so that `input_space` says where a `zero` baseline lies and nothing
    else. Diagnostics are those of `contributions`, of the map before its channels are averaged.
    """
    images, targets, image_ids = batch
    mean, _ = runner.normalization(images)
    references = baselines(images, mean, image_ids=image_ids, trial=0, setting=setting)
    products, extra = contributions(runner, images, references, targets)
    return products.mean(1).float(), extra


DEEPLIFT = Explainer(_deeplift, cost=lambda setting, side: (2, 2), libraries=("scipy",))
