"""Guided Grad-CAM: guided backpropagation times the enlarged Grad-CAM of the last feature map."""

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from steadymap.attribution.guided_backprop import guided
from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.attribution.shapes import Classes, Images
from steadymap.models.adapter import image_path
from steadymap.models.registry import Explainable, as_explainable, copy_sharing_weights

_log = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.MaxPool2d)
_POOL_CALLS = {
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "lp_pool2d", "max_pool2d")
}
_ORDERS = {"moveaxis", "movedim", "permute", "swapaxes", "swapdims", "transpose"}
_SHAPES = {"flatten", "reshape", "unflatten", "view"}


class FeatureMap(NamedTuple):
    """Feature map that Grad-CAM weighs: its node, and its channel, height and width axes."""

    node: fx.Node
    axes: tuple[int, ...]


class _Search(fx.Interpreter):
    """Runs a network and remembers the last feature map that its output depends on."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.path = image_path(network.graph)
        # Values with height and width: their axes and size, and those that a convolution made.
        self.axes: dict[fx.Node, tuple[int, ...]] = {}
        self.sizes: dict[fx.Node, torch.Size] = {}
        self.features: set[fx.Node] = set()
        self.feature: fx.Node | None = None
        # What comes before a convolution larger than 1 x 1.
        self.trunk: set[fx.Node] = set()
        for node in reversed(network.graph.nodes):
            if node in self.trunk or (self._convolves(node) and max(self._kernel(node)) > 1):
                self.trunk.update(node.all_input_nodes)

    def _called(self, node: fx.Node) -> Any:
        """Module that a node calls, else the name of its function."""
        if node.op == "call_module":
            return self.fetch_attr(str(node.target))
        return str(getattr(node.target, "__name__", node.target))

    def _convolves(self, node: fx.Node) -> bool:
        called = self._called(node)
        return isinstance(called, _CONVOLUTIONS) or called == "conv2d"

    def _kernel(self, node: fx.Node) -> tuple[int, ...]:
        module = self._called(node)
        if isinstance(module, _CONVOLUTIONS):
            return module.kernel_size
        weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            return tuple(self.fetch_attr(str(weight.target)).shape[2:])
        return 3, 3

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node not in self.path:
            return value
        sources = [source for source in node.all_input_nodes if source in self.axes]
        if node.op == "placeholder":
            self._keep(node, value, (1, 2, 3))
        elif self._convolves(node):
            self._convolution(node, value, node.all_input_nodes[0])
        elif sources:
            self._other(node, value, sources)
        return value

    def _keep(self, node: fx.Node, value: Tensor, axes: tuple[int, ...]) -> None:
        self.axes[node] = axes
        self.sizes[node] = torch.Size(value.shape[axis] for axis in axes[1:])

    def _convolution(self, node: fx.Node, value: Tensor, source: fx.Node) -> None:
        sides = self.env[source].shape[2:]
        # A kernel as large as the input makes it a fully connected layer.
        whole = value.shape[2:].numel() == 1 and tuple(self._kernel(node)) == tuple(sides)
        if value.ndim != 4 or (whole and (sides.numel() > 1 or source not in self.axes)):
            return
        self._keep(node, value, (1, 2, 3))
        self.features.add(node)
        self.feature = node

    def _other(self, node: fx.Node, value: Any, sources: list[fx.Node]) -> None:
        called, tensor = self._called(node), isinstance(value, Tensor)
        shapes = {item: getattr(self.env[item], "shape", None) for item in sources}
        alike = [item for item in sources if tensor and shapes[item] == value.shape]
        source = (alike or sources)[0]
        axes, size = self.axes[source], self.sizes[source]
        if tensor:
            if value.ndim != 4 or (called in _SHAPES and not alike):
                return
            if called in _ORDERS:
                axes = self._ordered(node, axes)
            size = torch.Size(value.shape[axis] for axis in axes[1:])
            if size.numel() == 1 < self.sizes[source].numel() and node not in self.trunk:
                # The call is a global pooling.
                return
        self.axes[node], self.sizes[node] = axes, size
        if not self.features.isdisjoint(sources):
            self.features.add(node)
            pool = isinstance(called, _POOLS) or called in _POOL_CALLS
            if tensor and node.users and not pool:
                self.feature = node

    def _ordered(self, node: fx.Node, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Position of each axis after a call, found by a tensor whose sides all differ."""
        probe = torch.empty(2, 3, 5, 7, device="meta")
        moved = getattr(self, node.op)(node.target, (probe, *node.args[1:]), node.kwargs)
        return tuple(moved.shape.index(probe.shape[axis]) for axis in axes)


def feature_map(network: fx.GraphModule, images: Images) -> FeatureMap:
    """Value of a traced network that Grad-CAM weighs: its last feature map.

    That is the last value with height and width that comes from a convolution, is no pooling and
    that the output depends on, before anything that leaves one position of the image, such as a
    global pooling, a mean, or a convolution as large as its input. A concatenation or sum of
    branches counts as one, and so does what the last activation gives. Channels may come last.

    Parameters
    ----------
    network : fx.GraphModule
        `Explainable.network`, in eval mode.
    images : Tensor
        Any images that it takes; they show which values have height and width.

    Raises
    ------
    ValueError
        Where there is no such value, or it has one position.
    """
    search = _Search(network)
    with torch.no_grad():
        search.run(images)
    name, node = type(network).__name__, search.feature
    if node is None:
        raise ValueError(
            f"{name} has no feature map of a convolution with height and width, "
            "which Guided Grad-CAM needs; use the method guided_backprop"
        )
    if search.sizes[node].numel() == 1:
        height, width = images.shape[2:]
        raise ValueError(
            f"{name}: the last feature map, {node.name!r}, has 1 x 1 positions for images of "
            f"{height} x {width} px, so that Guided Grad-CAM would be guided backpropagation times "
            "a constant; use larger images or the method guided_backprop"
        )
    return FeatureMap(node, search.axes[node])


class _Tap(nn.Module):
    """Keeps a value, detached from the graph that it was computed by."""

    kept: Tensor

    def __init__(self, axes: tuple[int, ...]):
        super().__init__()
        self.axes = axes

    def maps(self, values: Tensor) -> Tensor:
        """Values with the axes of the kept one, channels first."""
        return values.permute(0, *self.axes)

    def forward(self, values: Tensor) -> Tensor:
        self.kept = values.detach().requires_grad_()
        # Later calls may write to their input.
        return self.kept.clone()


def _tapped(model: Explainable, images: Tensor) -> tuple[Explainable, _Tap]:
    """Copy of a model that keeps its last feature map, channels first; weights are shared."""
    feature, axes = feature_map(model.network, images)
    copied, tap = copy_sharing_weights(model), _Tap(axes)
    _log.debug("%s: Grad-CAM at %s", type(model.network).__name__, feature.name)
    node = next(node for node in copied.network.graph.nodes if node.name == feature.name)
    name = "steadymap_feature_map"
    copied.network.add_submodule(name, tap)
    with copied.network.graph.inserting_after(node):
        call = copied.network.graph.call_module(name, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    copied.network.recompile()
    return copied, tap


def _map(feature: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of one image from (channel, height, width), float64."""
    feature, gradient = feature.double(), gradient.double()
    return (gradient.mean((1, 2), keepdim=True) * feature).sum(0).relu()


def grad_cam(
    runner: ModelRunner, images: Images, targets: Classes, *, output: str = "logit"
) -> Float[Tensor, "batch rows columns"]:
    """Grad-CAM at the last feature map, at its own resolution (Selvaraju et al. 2017, eq. 1-2).

    Each channel weighs the mean over space of the gradient of the target's score with respect to
    it; of the weighted sum of channels the positive part is taken.

    Parameters
    ----------
    runner : ModelRunner
        Runs the model, in eval mode. The feature map is found by one more forward pass, of one
        image, which is not counted.
    images : Tensor
        In [0, 1].
    targets : Tensor
        Class per image.
    output : str
        `logit`, `probability` or `sigmoid`.

    Returns
    -------
    Tensor
        Non-negative, float64.

    Raises
    ------
    ValueError
        Where the model can't be traced or has no such feature map, of more than one position.
    """
    model, tap = _tapped(as_explainable(runner.model, images.shape), images[:1])
    cams = []
    size = runner.batch_size
    for rows, classes in zip(images.split(size), targets.split(size), strict=True):
        with runner.naming_out_of_memory(images, size), torch.enable_grad():
            logits = model(runner.padded(rows))[: len(rows)]
            scores = runner.target_scores(logits, classes, output)
            # The backward pass ends at the feature map.
            (gradients,) = torch.autograd.grad(scores.sum(), tap.kept)
        # Image by image: a sum over all at once may depend on their number.
        features, gradients = tap.maps(tap.kept.detach()), tap.maps(gradients)
        cams += [_map(features[i], gradients[i]) for i in range(len(rows))]
        runner.forward += len(rows)
        runner.backward += len(rows)
    return torch.stack(cams)


def _guided_gradcam(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
    """Grad-CAM, enlarged, times guided backpropagation (Selvaraju et al. 2017, section 3.2).

    Grad-CAM at the last feature map is enlarged to the image by `interpolation`: bilinear, corners
    not aligned, or nearest. It multiplies the guided gradient with respect to [0, 1] pixels before
    the signed mean over channels. Diagnostics per image: `cam_zero`, 1 where Grad-CAM is zero
    everywhere, and so the map, else 0; `cam_cells`, the number of positions of the feature map.
    """
    images, targets, _ = batch
    output, mode = setting["output"], setting["interpolation"]
    corners = None if mode == "nearest" else False
    with runner.substituted(guided(runner.model, images.shape)) as guided_runner:
        cams = grad_cam(runner, images, targets, output=output)
        gradients = guided_runner.gradients(images, targets, output=output)
    # Image by image, as kernels may choose their order of summation by shape.
    maps = [
        F.interpolate(cam[None, None], images.shape[-2:], mode=mode, align_corners=corners)[0]
        * gradient.double()
        for cam, gradient in zip(cams, gradients, strict=True)
    ]
    return torch.stack(maps).mean(1).float(), {
        "cam_zero": (cams == 0).flatten(1).all(1).double(),
        "cam_cells": torch.full((len(images),), cams[0].numel(), dtype=torch.float64),
    }


GUIDED_GRADCAM = Explainer(_guided_gradcam, cost=lambda setting, side: (2, 2), sequential=True)
