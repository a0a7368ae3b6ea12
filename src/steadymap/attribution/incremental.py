"""Images with a patch covered, computed only where the patch changes activations.

In the first layers of a network a patch changes an activation inside a box only. There each layer
runs on crops just large enough for that box, whose values then replace those of the unchanged
image. Once the box covers most of an activation, the network runs on whole activations. Nothing is
approximated: the values are those of a whole pass, except for rounding where kernels sum in another
order for other shapes.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from steadymap.attribution.fusion import Convolution
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.shapes import Images
from steadymap.models.registry import Explainable

# Of an activation's elements; cutting out more than that saves less than it costs.
_LARGEST_SHARE = 0.7
# Plans kept: a task's settings have a few patch sizes.
_PLANS = 8
_POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity)
_SUMS = (operator.add, torch.add)
_Inputs = list[tuple[tuple[Any, ...], tuple[Any, ...]]]


@dataclass(frozen=True)
class _Window:
    """Inputs of one output element along one axis: `reach` + 1 neighboring values."""

    source: int
    reach: int = 0
    stride: int = 1
    padding: int = 0
    ceil: bool = False

    def size(self, length: int) -> int:
        span = length + 2 * self.padding - self.reach - 1
        if not self.ceil:
            return span // self.stride + 1
        count = -(-span // self.stride) + 1
        # No window may begin in the padding behind the input.
        return count - ((count - 1) * self.stride >= length + self.padding)

    def changed(self, low: int, high: int) -> tuple[int, int]:
        first = -(-(low + self.padding - self.reach) // self.stride)
        return first, (high + self.padding) // self.stride

    def needed(self, low: int, high: int) -> tuple[int, int]:
        return low * self.stride - self.padding, high * self.stride - self.padding + self.reach


@dataclass(frozen=True)
class _Segment:
    """Part of a network between two activations that all later nodes depend on alone.

    Attributes
    ----------
    module : fx.GraphModule
        Runs it.
    windows : tuple
        Per axis and node, what the node takes from nodes before it; node 0 is the input.
    """

    module: fx.GraphModule
    windows: tuple[tuple[tuple[_Window, ...], ...], ...]

    def stride(self, axis: int) -> int:
        strides = [1]
        for inputs in self.windows[axis]:
            strides.append(max(strides[window.source] * window.stride for window in inputs))
        return strides[-1]

    def sizes(self, axis: int, length: int) -> list[int] | None:
        """Of the input and of each node; none where a sum broadcasts."""
        sizes = [length]
        for inputs in self.windows[axis]:
            size, *others = (window.size(sizes[window.source]) for window in inputs)
            if any(other != size for other in others):
                return None
            sizes.append(size)
        return sizes

    def changed(self, axis: int, sizes: Sequence[int], low: int, high: int) -> tuple[int, int]:
        """First and last output that rest on any of the inputs from `low` to `high`."""
        ranges = [(low, high)]
        for inputs, size in zip(self.windows[axis], sizes[1:], strict=True):
            ends = [window.changed(*ranges[window.source]) for window in inputs]
            ranges.append((max(0, min(a for a, _ in ends)), min(size - 1, max(b for _, b in ends))))
        return ranges[-1]

    def needed(self, axis: int, sizes: Sequence[int], low: int, high: int) -> tuple[int, int]:
        """First and last input that outputs from `low` to `high` rest on."""
        ranges: list[tuple[int, int] | None] = [None] * len(sizes)
        ranges[-1] = low, high
        for node in range(len(sizes) - 1, 0, -1):
            if (outputs := ranges[node]) is None:
                continue
            for window in self.windows[axis][node - 1]:
                first, last = window.needed(*outputs)
                first, last = max(0, first), min(sizes[window.source] - 1, last)
                if (already := ranges[window.source]) is not None:
                    first, last = min(first, already[0]), max(last, already[1])
                ranges[window.source] = first, last
        assert ranges[0] is not None
        return ranges[0]


@dataclass(frozen=True)
class _Boxes:
    """Where an activation differs from that of the unchanged image, along one axis.

    Attributes
    ----------
    size : int
        Of the box, one for all places of the patch.
    starts : tuple of int
        Its first element, for each place.
    offsets : tuple of int
        The same within the crop that it was computed on.
    """

    size: int
    starts: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class _Crops:
    """Crops that a segment runs on, along one axis: size and, for each place, the first element."""

    size: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    """A segment, and per axis its crops and the boxes that come of them."""

    segment: _Segment
    crops: tuple[_Crops, _Crops]
    boxes: tuple[_Boxes, _Boxes]


def _followed(
    segment: _Segment, axis: int, length: int, boxes: _Boxes
) -> tuple[_Crops, _Boxes, int] | None:
    """Crops for changes in `boxes` of an input of `length`; boxes and length of the output."""
    sizes, stride = segment.sizes(axis, length), segment.stride(axis)
    if sizes is None:
        return None
    changed = [
        segment.changed(axis, sizes, start, start + boxes.size - 1) for start in boxes.starts
    ]
    size = max(1, *(high - low + 1 for low, high in changed))
    starts = [max(0, min(low, sizes[-1] - size)) for low, _ in changed]
    # A box may hold more than the changed values; they are computed too, and must be exact.
    needed = [segment.needed(axis, sizes, start, start + size - 1) for start in starts]
    # A crop begins at a multiple of the segment's stride; it may end with the whole activation.
    firsts = [low // stride * stride for low, _ in needed]
    length_needed = max(high + 1 - first for first, (_, high) in zip(firsts, needed, strict=True))
    crop = length - max(0, (length - length_needed) // stride) * stride
    firsts = [min(first, length - crop) for first in firsts]
    offsets = [start - first // stride for start, first in zip(starts, firsts, strict=True)]
    return _Crops(crop, tuple(firsts)), _Boxes(size, tuple(starts), tuple(offsets)), sizes[-1]


class Incremental:
    """A network in segments that run on crops.

    Parameters
    ----------
    network : fx.GraphModule
        In eval mode. What lies behind the first module that is neither convolution, pooling,
        normalization, activation, sum nor concatenation of channels runs on whole activations.
    """

    def __init__(self, network: fx.GraphModule):
        self._network = network
        self._segments, self._cuts = _segments(network)
        self._tails: dict[int, fx.GraphModule] = {}
        self.plan = lru_cache(maxsize=_PLANS)(self._plan)

    def tail(self, n: int) -> fx.GraphModule:
        """The network behind its first `n` segments."""
        if n not in self._tails:
            nodes = list(self._network.graph.nodes)
            self._tails[n] = _part(self._network, nodes, self._cuts[n], len(nodes) - 1)
        return self._tails[n]

    def _plan(
        self, height: int, width: int, size: int, tops: tuple[int, ...], lefts: tuple[int, ...]
    ) -> list[_Step]:
        """Segments worth running on crops, for patches of `size` px at `tops` and `lefts`."""
        steps: list[_Step] = []
        lengths = height, width
        boxes = _patch(size, tops), _patch(size, lefts)
        for segment in self._segments:
            down, right = (_followed(segment, axis, lengths[axis], boxes[axis]) for axis in (0, 1))
            if down is None or right is None:
                break
            if down[0].size * right[0].size > _LARGEST_SHARE * lengths[0] * lengths[1]:
                break
            lengths, boxes = (down[2], right[2]), (down[1], right[1])
            steps.append(_Step(segment, (down[0], right[0]), boxes))
        return steps


def _patch(size: int, starts: Sequence[int]) -> _Boxes:
    return _Boxes(size, tuple(starts), (0,) * len(starts))


_INCREMENTAL: WeakKeyDictionary[nn.Module, Incremental] = WeakKeyDictionary()


def incremental(model: nn.Module) -> Incremental | None:
    """A fused classifier in segments, cached; None for a model that `fusion.fused` did not change.

    That includes all models on a GPU, where many small steps have not been measured to pay.
    """
    if not isinstance(model, Explainable):
        return None
    if not any(isinstance(module, Convolution) for module in model.network.modules()):
        return None
    if model not in _INCREMENTAL:
        _INCREMENTAL[model] = Incremental(model.network)
    return _INCREMENTAL[model]


@dataclass(frozen=True)
class Patches:
    """Squares that cover an image one at a time, at each crossing of `tops` and `lefts`.

    Attributes
    ----------
    tops, lefts : tuple of int
        Where patches begin, px.
    size : int
        Of a patch, px.
    color : Tensor
        In [0, 1], shape (1, channel, 1, 1).
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    size: int
    color: Tensor

    @property
    def places(self) -> list[tuple[int, int]]:
        """Positions in `tops` and `lefts` of each patch, row by row."""
        return list(itertools.product(range(len(self.tops)), range(len(self.lefts))))


def covered(
    runner: ModelRunner, images: Images, patches: Patches
) -> Float[Tensor, "batch places classes"]:
    """Logits of each image as it is, then with each patch in turn.

    Parameters
    ----------
    runner : ModelRunner
        Runs the model.
    images : Tensor
        In [0, 1].
    patches : Patches
        What covers them.
    """
    chain, (height, width) = incremental(runner.fast), images.shape[2:]
    steps = chain and chain.plan(height, width, patches.size, patches.tops, patches.lefts)
    if not chain or not steps:
        return _in_whole(runner, images, patches)
    rest = chain.tail(len(steps))
    parts = images.split(runner.batch_size)
    return torch.cat([_in_part(runner, part, patches, steps, rest) for part in parts])


def _in_whole(runner: ModelRunner, images: Images, patches: Patches) -> Tensor:
    # The images themselves fill a batch with the others.
    places, size = patches.places, patches.size
    each = 1 + len(places)
    logits = []
    for rows in runner.batches(len(images) * each):
        shown = images[rows // each]
        for image, row in zip(shown, rows, strict=True):
            if row % each:
                i, j = places[row % each - 1]
                top, left = patches.tops[i], patches.lefts[j]
                image[:, top : top + size, left : left + size] = patches.color[0]
        logits.append(runner.logits(shown))
    return torch.cat(logits).reshape(len(images), each, -1)


def _in_part(
    runner: ModelRunner, images: Images, patches: Patches, steps: Sequence[_Step], rest: nn.Module
) -> Tensor:
    """Logits of one batch of images, whose activations are kept where segments meet."""
    mean, std = runner.normalization(images)
    wholes = [(runner.padded(images) - mean) / std]
    for step in steps:
        wholes.append(runner.through(step.segment.module, wholes[-1]))
    n, size, places = len(images), patches.size, patches.places
    logits = runner.through(rest, wholes[-1])[:n]
    covered_logits = logits.new_empty((n * len(places), logits.shape[1]))
    whole_patch = _patch(size, patches.tops), _patch(size, patches.lefts)
    patch = ((patches.color - mean) / std).expand(runner.batch_size, -1, size, size)
    for rows in runner.batches(len(covered_logits)):
        # A last, smaller batch is padded, as everywhere.
        filled = np.pad(rows, (0, runner.batch_size - len(rows)), mode="edge").tolist()
        positions = [row // len(places) for row in filled]
        shown = [places[row % len(places)] for row in filled]
        changed, boxes = patch, whole_patch
        for step, whole in zip(steps, wholes, strict=False):
            crops = _cut(whole, positions, shown, step.crops)
            _paste(crops, changed, shown, boxes, step.crops)
            changed, boxes = runner.through(step.segment.module, crops), step.boxes
        full = wholes[-1][positions].contiguous(memory_format=torch.channels_last)
        _paste(full, changed, shown, boxes)
        covered_logits[rows] = runner.through(rest, full)[: len(rows)]
    runner.forward += n + len(covered_logits)
    return torch.cat([logits[:, None], covered_logits.reshape(n, len(places), -1)], 1)


def _paste(
    into: Images,
    source: Images,
    places: Sequence[tuple[int, int]],
    boxes: tuple[_Boxes, _Boxes],
    crops: tuple[_Crops, _Crops] | None = None,
) -> None:
    """Write each row's box into the whole activation, or into the crop of it."""
    for row, place in enumerate(places):
        to, of = [], []
        for axis, index in enumerate(place):
            box = boxes[axis]
            low, high, origin = box.starts[index], box.starts[index] + box.size, 0
            if crops is not None:
                origin = crops[axis].starts[index]
                low, high = max(low, origin), min(high, origin + crops[axis].size)
            shift = box.offsets[index] - box.starts[index]
            to.append(slice(low - origin, max(low, high) - origin))
            of.append(slice(low + shift, max(low, high) + shift))
        into[row, :, to[0], to[1]] = source[row, :, of[0], of[1]]


def _cut(
    base: Images,
    positions: Sequence[int],
    places: Sequence[tuple[int, int]],
    crops: tuple[_Crops, _Crops],
) -> Images:
    """Crops of each row's unchanged image."""
    down, right = crops
    shape = (len(places), base.shape[1], down.size, right.size)
    crops_of_rows = torch.empty(shape, dtype=base.dtype, memory_format=torch.channels_last)
    for row, (position, (i, j)) in enumerate(zip(positions, places, strict=True)):
        top, left = down.starts[i], right.starts[j]
        crops_of_rows[row] = base[position, :, top : top + down.size, left : left + right.size]
    return crops_of_rows


def _segments(network: fx.GraphModule) -> tuple[list[_Segment], list[int]]:
    """Segments from the input on, and the nodes that they begin or end with."""
    nodes = list(network.graph.nodes)
    modules = dict(network.named_modules(remove_duplicate=False))
    index = {node: position for position, node in enumerate(nodes)}
    last = [max((index[user] for user in node.users), default=-1) for node in nodes]
    if not nodes or nodes[0].op != "placeholder":
        return [], [0]
    segments: list[_Segment] = []
    cuts: list[int] = [0]
    windows: tuple[list[tuple[_Window, ...]], ...] = ([], [])
    for position in range(1, len(nodes)):
        node = nodes[position]
        taken = _windows(node, modules)
        sources = node.all_input_nodes
        if taken is None or any(index[source] < cuts[-1] for source in sources):
            break
        for axis in (0, 1):
            windows[axis].append(
                tuple(
                    _Window(index[source] - cuts[-1], *taken[number][axis])
                    for number, source in enumerate(sources)
                )
            )
        # Nothing computed earlier is used later: a segment ends here.
        if max(last[cuts[-1] : position]) <= position:
            part = _part(network, nodes, cuts[-1], position)
            segments.append(_Segment(part, (tuple(windows[0]), tuple(windows[1]))))
            cuts.append(position)
            windows = ([], [])
    return segments, cuts


def _windows(node: fx.Node, modules: Mapping[str, nn.Module]) -> _Inputs | None:
    """Per input and axis the arguments of its `_Window`; None for an operation without a rule."""
    inputs = node.all_input_nodes
    same: _Inputs = [((), ())] * len(inputs)
    if node.op == "call_function":
        joined = node.target is torch.cat and (node.args[1:] == (1,) or node.kwargs == {"dim": 1})
        return same if joined or (node.target in _SUMS and len(inputs) == len(node.args)) else None
    if node.op != "call_module" or node.kwargs:
        return None
    module = modules[str(node.target)]
    if isinstance(module, _POINTWISE):
        return same
    kernel: Any
    dilation: Any = 1
    if isinstance(module, Convolution) or type(module) is nn.Conv2d:
        kernel, dilation = tuple(module.weight.shape[2:]), module.dilation
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return None
    elif isinstance(module, nn.MaxPool2d) and not module.return_indices:
        kernel, dilation = module.kernel_size, module.dilation
    elif isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size
    else:
        return None
    if isinstance(module.padding, str):
        return None
    ceil = bool(getattr(module, "ceil_mode", False))
    kernel, dilation = _two(kernel), _two(dilation)
    stride, padding = _two(module.stride), _two(module.padding)
    down, right = (
        (dilation[axis] * (kernel[axis] - 1), stride[axis], padding[axis], ceil) for axis in (0, 1)
    )
    return [(down, right), *same[1:]]


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _part(network: fx.GraphModule, nodes: list[fx.Node], first: int, last: int) -> fx.GraphModule:
    """The nodes after `first`, up to `last`, as a module."""
    graph = fx.Graph()
    copies = {nodes[first]: graph.placeholder("rows")}
    for node in nodes[first + 1 : last + 1]:
        copies[node] = graph.node_copy(node, lambda argument: copies[argument])
    if nodes[last].op != "output":
        graph.output(copies[nodes[last]])
    return fx.GraphModule(network, graph)
