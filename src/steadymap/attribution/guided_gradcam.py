"""Guided Grad-CAM: guided backpropagation, weighted by what the last feature map says where."""

import copy
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from steadymap.attribution.guided_backprop import guided
from steadymap.attribution.passes import Explainer, Passes
from steadymap.models import Explainable, explainable

Explained = list[tuple[Tensor, dict[str, Tensor]]]

_log = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.MaxPool2d)
_POOL_CALLS = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"}
_MEANS = {"amax", "mean", "sum"}


class _Search(fx.Interpreter):
    """Runs a network and remembers the last feature map that its output depends on."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        # Maps that still lie in the image's plane, and those of them that a convolution made.
        self.plane: set[fx.Node] = set()
        self.features: set[fx.Node] = set()
        self.found: fx.Node | None = None
        self.needed: set[fx.Node] = set()
        for node in reversed(network.graph.nodes):
            if node.op == "output" or node in self.needed:
                self.needed.update(node.all_input_nodes)

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if not isinstance(value, Tensor) or value.ndim != 4 or node not in self.needed:
            return value
        if node.op == "placeholder":
            self.plane.add(node)
        called = str(getattr(node.target, "__name__", node.target))
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        pool = isinstance(module, _POOLS) or called in _POOL_CALLS
        # A global pooling gives one value a channel whatever the image's size; so does a mean.
        size = getattr(module, "output_size", None)
        if called.startswith("adaptive"):
            size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        if called in _MEANS or size in (1, (1, 1), [1, 1]):
            return value
        if self.plane.isdisjoint(node.all_input_nodes):
            return value
        self.plane.add(node)
        convolved = isinstance(module, _CONVOLUTIONS) or called == "conv2d"
        if convolved or not self.features.isdisjoint(node.all_input_nodes):
            self.features.add(node)
            if not pool:
                self.found = node
        return value


def feature_map(
    network: fx.GraphModule, images: Float[Tensor, "batch channel height width"]
) -> fx.Node:
    """Node of a traced network whose value Grad-CAM weighs: its last feature map.

    That is the last value with height and width that comes from a convolution, lies before any
    global pooling, is no pooling itself and that the output depends on. A concatenation or sum of
    branches counts as one, and so does what the last activation gives.

    Parameters
    ----------
    network : fx.GraphModule
        `Explainable.network`, in eval mode.
    images : Tensor
        Any images that it takes; they show which values have height and width.

    Raises
    ------
    ValueError
        Where there is no such value.
    """
    search = _Search(network)
    with torch.no_grad():
        search.run(images)
    if search.found is None:
        raise ValueError(
            f"{type(network).__name__} has no feature map of a convolution with height and width, "
            "which Guided Grad-CAM needs; use the method guided_backprop"
        )
    return search.found


class _Tap(nn.Module):
    """Cuts a value off from what it came from, and keeps it."""

    kept: Tensor

    def forward(self, values: Tensor) -> Tensor:
        self.kept = values.detach().requires_grad_()
        return self.kept


def _tapped(model: Explainable, images: Tensor) -> tuple[Explainable, _Tap]:
    """Copy of a model that keeps its last feature map; weights are shared."""
    weights = {id(value): value for value in chain(model.parameters(), model.buffers())}
    made, tap = copy.deepcopy(model, weights), _Tap()
    found = feature_map(model.network, images)
    _log.debug("%s: Grad-CAM at %s", type(model.network).__name__, found.name)
    node = next(node for node in made.network.graph.nodes if node.name == found.name)
    name = "steadymap_feature_map"
    made.network.add_submodule(name, tap)
    with made.network.graph.inserting_after(node):
        new = made.network.graph.call_module(name, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    made.network.recompile()
    return made, tap


def _map(feature: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of one image from (channel, height, width), float64."""
    feature, gradient = feature.double(), gradient.double()
    return (gradient.mean((1, 2), keepdim=True) * feature).sum(0).relu()


class _MapPasses(Passes):
    """Passes that go back no farther than the last feature map."""

    def maps(
        self, tap: _Tap, images: Tensor, targets: Tensor, *, output: str
    ) -> list[Float[Tensor, "height width"]]:
        found = []
        for start in range(0, len(images), self.batch_size):
            rows = images[start : start + self.batch_size]
            chosen = targets[start : start + self.batch_size]
            with self.in_memory(images, self.batch_size), torch.enable_grad():
                logits = self.model(self.padded(rows))[: len(rows)]
                scores = self.chosen(logits, chosen, output)
                (gradients,) = torch.autograd.grad(scores.sum(), tap.kept)
            # Image by image: a sum over all at once may depend on their number.
            found += [_map(tap.kept[i].detach(), gradients[i]) for i in range(len(rows))]
            self.forward += len(rows)
            self.backward += len(rows)
        return found


def grad_cam(
    passes: Passes,
    images: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"],
    *,
    output: str = "logit",
) -> Float[Tensor, "batch rows columns"]:
    """Grad-CAM at the last feature map, at its own resolution (Selvaraju et al. 2017, eq. 1-2).

    Each channel weighs the mean over space of the gradient of the target's score with respect to
    it; of the weighted sum of channels the positive part is taken.

    Parameters
    ----------
    passes : Passes
        Passes of the model, in eval mode. The feature map is found by one more forward pass, of
        one image, which is not counted.
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
        Where the model can't be traced or has no such feature map.
    """
    model = passes.model
    if not isinstance(model, Explainable):
        model = explainable(model, mean=[0.0], std=[1.0])
    made, tap = _tapped(model, images[:1])
    inner = _MapPasses(made, passes.batch_size)
    found = inner.maps(tap, images, targets, output=output)
    passes.forward += inner.forward
    passes.backward += inner.backward
    return torch.stack(found)


def _guided_gradcam(
    passes: Passes,
    images: Float[Tensor, "batch channel height width"],
    targets: Int[Tensor, " batch"],
    *,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
) -> Explained:
    """Grad-CAM, enlarged, times guided backpropagation (Selvaraju et al. 2017, section 3.2).

    Grad-CAM at the last feature map is enlarged to the image by `interpolation`: bilinear, corners
    not aligned, or nearest. It multiplies the guided gradient with respect to [0, 1] pixels before
    the signed mean over channels. Diagnostics per image: `cam_zero`, 1 where Grad-CAM is zero
    everywhere, and so the map, else 0; `cam_cells`, the number of positions of the feature map,
    where 1 means that the map is guided backpropagation times a constant.
    """
    found: Explained = []
    made = guided(passes.model)
    inner = Passes(made, passes.batch_size, fast=made)
    side = images.shape[-2:]
    for setting in settings:
        output, mode = setting["output"], setting["interpolation"]
        corners = None if mode == "nearest" else False
        cams = grad_cam(passes, images, targets, output=output)
        gradients = inner.gradients(images, targets, output=output)
        # Image by image, as kernels may choose their order of summation by shape.
        maps = [
            F.interpolate(cam[None, None], side, mode=mode, align_corners=corners)[0]
            * gradient.double()
            for cam, gradient in zip(cams, gradients, strict=True)
        ]
        extra = {
            "cam_zero": (cams == 0).flatten(1).all(1).double(),
            "cam_cells": torch.full((len(images),), cams[0].numel(), dtype=torch.float64),
        }
        found.append((torch.stack(maps).mean(1).float(), extra))
    passes.forward += inner.forward
    passes.backward += inner.backward
    return found


GUIDED_GRADCAM = Explainer(_guided_gradcam, cost=lambda setting, side: (2, 2), sequential=True)
