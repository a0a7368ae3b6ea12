"""A network's forward pass as a graph of calls that write to none of their inputs."""

import copy
import inspect
import logging
import operator
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Sides, px, of the blank images that are tried first, and the largest of those tried after them.
_SIDES = (224, 32, 64, 28, 96, 128, 256, 299)

_LARGEST_SIDE = 512

# Mark, in a node's `meta`, of calls that write to a copy made for it.
_WRITES = "steadymap_writes"

# Calls that tell an image's size and kind, not its values.
_SIZES = {"size", "dim", "ndimension", "numel", "len"}

_SIZE_FIELDS = {"shape", "ndim", "dtype", "device", "is_cuda"}

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}

_MAX_POOLS = {F.max_pool2d, torch.max_pool2d}

# In the order of the function, which is not the module's.
_MAX_POOL_OPTIONS = (
    *("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
)


def is_size(node: fx.Node) -> bool:
    """Whether a call tells the size or the kind of a tensor and none of its values."""
    called = getattr(node.target, "__name__", node.target)
    return called in _SIZES or (node.target is getattr and node.args[1] in _SIZE_FIELDS)


def image_path(graph: fx.Graph) -> set[fx.Node]:
    """Nodes through which values of the images reach the output, both ends included."""
    from_image: set[fx.Node] = set()
    for node in graph.nodes:
        sources = any(source in from_image for source in node.all_input_nodes)
        if node.op == "placeholder" or (sources and not is_size(node)):
            from_image.add(node)
    to_output: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        written: Any = node.args[0] if _WRITES in node.meta and node.args else None
        # What is written to a view reaches the output through what it is a view of.
        while isinstance(written, fx.Node) and written not in to_output:
            written = written.args[0] if written.args else None
        if node.op == "output" or node in to_output or isinstance(written, fx.Node):
            to_output.update({node, *node.all_input_nodes} & from_image)
    return to_output


def traced(
    network: nn.Module, *, channels: int | None = None, size: tuple[int, int] | None = None
) -> fx.GraphModule:
    """Graph of a network, as `copied` makes it, in which no call writes to what it was given.

    Each call of an activation or pooling module, of `relu`, `relu6` or `max_pool2d` is a module of
    its own. Which calls write to their input is seen by running the graph on a blank image without
    computing a value.

    Parameters
    ----------
    network : nn.Module
        Takes images as its one required argument.
    channels : int, optional
        Of the blank images; by default those of the first convolution, 3 or 1.
    size : tuple of int, optional
        Their height and width, px; by default several are tried.

    Raises
    ------
    ValueError
        Where the forward pass can't be traced, or no blank image runs through it.
    """
    graph_module = _graph(network)
    probe = _probed(graph_module, list(_shapes(network, channels, size)))
    _Rewriting(graph_module, probe).run()
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def _inner(module: nn.Module) -> nn.Module:
    """What a module of `torch.compile` or of data parallelism wraps."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def copied(network: nn.Module) -> nn.Module:
    """Copy in eval mode, unwrapped, each weight a plain tensor."""
    network = _inner(network)
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {path!r} of {type(network).__name__}" if path else "the network"
            raise ValueError(
                f"{what} is a ScriptModule, compiled by torch.jit, and has no Python code that "
                "could be traced; give the nn.Module that it was made of, with its weights"
            )
    try:
        duplicate = copy.deepcopy(network)
    except Exception:
        duplicate = copy.deepcopy(network, _shared(network))
    for module in duplicate.modules():
        # Children are looked at after this, so that what is unwrapped is looked into.
        for name, child in module._modules.items():
            module._modules[name] = None if child is None else _inner(child)
    duplicate.eval()
    for module in list(duplicate.modules()):
        _plain_weights(module)
    return duplicate.requires_grad_(False)


def _shared(network: nn.Module) -> dict[int, Any]:
    """Copies, as `deepcopy` takes them, of attributes that it can't copy.

    Tensors with a history, such as weights that a hook computes, are detached; anything else, such
    as a lock, is shared with the network.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                memo[id(value)] = tree_map_only(
                    Tensor, lambda tensor: tensor.detach().clone(), value
                )
    return memo


def _plain_weights(module: nn.Module) -> None:
    """Weights that hooks compute before every pass become what they are computed to be."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)


class _Proxy(fx.Proxy):
    """Also notes `x[i] = y`, and `x += y` as the write that it is for a tensor."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _augmented(target: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
for _name in (*_ARITHMETIC, "and", "or", "xor"):
    setattr(_Proxy, f"__i{_name}__", _augmented(getattr(operator, f"i{_name}")))


class _Tracer(fx.Tracer):
    """Traces images alone: other arguments of forward() keep their defaults."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        overridden = vars(self.root).get("forward")
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        if overridden is None and len(parameters) == 1 and parameters[0].kind < 2:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        call = overridden or root_fn.__get__(self.root)
        images = self.create_proxy("placeholder", "images", (), {})
        return (lambda _, rows: call(rows)), [self.root, images]

    def to_bool(self, obj: fx.Proxy) -> bool:
        waiting, seen = [obj.node], {obj.node}
        while waiting:
            node = waiting.pop()
            if node.op == "placeholder":
                raise fx.proxy.TraceError(
                    "a branch there depends on the values of a tensor; move such branches out of "
                    "forward()"
                )
            if not is_size(node):
                waiting += set(node.all_input_nodes) - seen
                seen.update(waiting)
        raise fx.proxy.TraceError(
            "a branch there depends on the shape of a tensor, which is not known while tracing; "
            "write the size of your images as a number, or move such branches out of forward()"
        )


def _graph(network: nn.Module) -> fx.GraphModule:
    tracer, name = _Tracer(), type(network).__name__
    # What is compiled is traced as the Python code that it was compiled from.
    eager: Any = nullcontext()
    if "torch._dynamo" in sys.modules:
        eager = torch._dynamo.config.patch(error_on_nested_fx_trace=False)
    try:
        with eager:
            return fx.GraphModule(network, tracer.trace(network), name)
    except Exception as error:
        raise ValueError(f"{name} can't be traced{_place(error)}: {_met(error)}") from error


def _met(error: Exception) -> str:
    if isinstance(error, NotImplementedError) and "argument of type" in str(error):
        return (
            f"an object goes into or out of a call ({error}); where forward() returns it, pick its "
            "logits by logits=lambda output: output.logits"
        )
    if isinstance(error, fx.proxy.TraceError) and "branch" in str(error):
        return str(error)
    if isinstance(error, TypeError) and "required" in str(error):
        return f"{error}; wrap it in a module whose forward() takes images alone"
    return (
        f"{error}; write that line in operations on tensors that torch.fx can follow, or move it "
        "out of forward()"
    )


def _place(error: Exception) -> str:
    """Line of the network's own code, the innermost one, that an error comes from."""
    library = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and library not in file.parents and file != Path(__file__):
            return f" at {file}:{frame.lineno} (`{frame.line}`)"
    return ""


def _shapes(
    network: nn.Module, channels: int | None, size: tuple[int, int] | None
) -> Iterator[tuple[int, ...]]:
    """Shapes of batches to try, the usual ones first."""
    first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
    counts = (channels,) if channels else tuple(dict.fromkeys((first, 3, 1)))
    sides = dict.fromkeys((*_SIDES, *range(1, _LARGEST_SIDE + 1)))
    for shown in [size] if size else [(side, side) for side in sides]:
        for count in counts:
            yield 2, count, *shown


class _Writes(TorchDispatchMode):
    """Notes the storages that operators say they write to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        schema = getattr(func, "_schema", None)
        for index, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[index] if index < len(args) else keywords.get(argument.name)
                self.found.update(_storages(value))
        return func(*args, **keywords)


def _storages(value: Any) -> list[int]:
    return [
        leaf.untyped_storage()._cdata
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]


_Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


class _Probe(fx.Interpreter):
    """Runs a graph and keeps all values, and which of them each call writes to.

    Attributes
    ----------
    written : dict
        Storages that a call writes to and that a value before it has.
    replaceable : set
        Calls that `_out_of_place` finds another for.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph):
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.watch = _Writes()
        self.known: set[int] = set()
        self.written: dict[fx.Node, set[int]] = {}
        self.replaceable: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> Any:
        self.watch.found.clear()
        value = super().run_node(node)
        if written := self.watch.found & self.known:
            self.written[node] = written
            if (call := _out_of_place(node)) is not None and self._fits(node, call):
                self.replaceable.add(node)
        self.known.update(_storages(value))
        return value

    def _fits(self, node: fx.Node, call: _Call) -> bool:
        """Whether a call out of place gives the shape and type of what is written to."""
        operation, target, args, kwargs = call
        values = [self.env[source] for source in node.all_input_nodes]
        targets = [value for value in values if self.written[node].intersection(_storages(value))]
        try:
            args, kwargs = fx.node.map_arg((args, kwargs), lambda source: self.env[source])
            result = getattr(self, operation)(target, args, kwargs)
            return (result.shape, result.dtype) == (targets[0].shape, targets[0].dtype)
        except Exception:
            return False


def with_item(values: Tensor, index: Any, item: Any) -> Tensor:
    """Copy of a tensor with an item set: `values[index] = item` out of place.

    Parameters
    ----------
    values : Tensor
        What is copied.
    index
        Any index of a tensor.
    item
        What stands there in the copy.
    """
    changed = values.clone()
    changed[index] = item
    return changed


def contiguous_copy(value: Any) -> Any:
    """Copy of a tensor, or of those in a container, each laid out row by row."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", contiguous_copy, (value,), {})
    return tree_map_only(
        Tensor, lambda tensor: tensor.clone(memory_format=torch.contiguous_format), value
    )


def _out_of_place(node: fx.Node) -> _Call | None:
    """What computes that which a call writes, by the conventions of torch's names."""
    name = str(getattr(node.target, "__name__", node.target))
    base, kwargs = name.removesuffix("_"), dict(node.kwargs)
    if node.op == "call_method":
        if base == name or not hasattr(Tensor, base):
            return None
        if hasattr(torch, base):
            return "call_function", getattr(torch, base), node.args, kwargs
        return "call_method", base, node.args, kwargs
    if not callable(node.target):
        return None
    if node.target is operator.setitem:
        return "call_function", with_item, node.args, kwargs
    if kwargs.pop("out", None) is not None:
        return "call_function", node.target, node.args, kwargs
    if hasattr(operator, name) and getattr(operator, name) is node.target:
        function = getattr(operator, name[1:], getattr(operator, f"{name[1:]}_", None))
        return None if function is None else ("call_function", function, node.args, kwargs)
    if base != name:
        function = getattr(torch, base, getattr(F, base, None))
        return None if function is None else ("call_function", function, node.args, kwargs)
    try:
        bound = inspect.signature(node.target).bind(*node.args, **kwargs)
    except (TypeError, ValueError):
        return None
    if "inplace" not in bound.arguments:
        return None
    bound.arguments["inplace"] = False
    return "call_function", node.target, bound.args, bound.kwargs


def _weightless(network: fx.GraphModule) -> fx.GraphModule:
    """Copy whose tensors have shapes and share memory as others do, but hold no values."""
    empty = {
        id(tensor): tensor.detach().to("meta")
        for module in network.modules()
        for tensor in tree_leaves([module._parameters, module._buffers, vars(module)])
        if isinstance(tensor, Tensor)
    }
    return copy.deepcopy(network, empty)


def _probed(network: fx.GraphModule, shapes: Sequence[tuple[int, ...]]) -> _Probe:
    """Run of a graph on the first blank images that it takes."""
    weights = [weight for weight in network.state_dict().values() if weight.is_floating_point()]
    like = weights[0] if weights else torch.zeros(0)
    problem: Exception | None = None
    for device in (torch.device("meta"), like.device):
        module, fake = (_weightless(network), False) if device.type == "meta" else (network, True)
        for shape in shapes:
            probe = _Probe(module, network.graph)
            try:
                with torch.no_grad(), _faking(fake), probe.watch:
                    probe.run(torch.zeros(shape, dtype=like.dtype, device=device))
                return probe
            except Exception as error:
                problem = problem or error
    reason = str(problem).strip().partition("\n")[0]
    raise ValueError(
        f"{type(network).__name__}: no blank image runs through it ({reason}), so that calls that "
        "write to their input would not be found; give size=(height, width) of images that it "
        "takes, in px"
    ) from problem


@contextmanager
def _faking(active: bool) -> Iterator[None]:
    """Compute no values on the device where weights are: slower than without a device."""
    if not active:
        yield
        return
    from torch._subclasses.fake_tensor import FakeTensorMode

    # It would print what went wrong at every size.
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.setLevel(level)


class _Rewriting:
    """Makes a graph one in which each tensor is written once, where it is made.

    While calls write, several nodes have the very same tensor, and what it holds depends on the
    place. Behind a call that is made out of place its result stands for all of them. Where a write
    is also seen through another tensor, such as a view, the memory is copied where it comes from,
    and the copy is written to.
    """

    def __init__(self, network: fx.GraphModule, probe: _Probe):
        self.network, self.graph, self.written = network, network.graph, probe.written
        self.replaceable, self.values = probe.replaceable, probe.env
        self.nodes = [node for node in self.graph.nodes if node.op != "output"]
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.storages = {node: set(_storages(self.values[node])) for node in self.nodes}
        self.holders: dict[int, list[fx.Node]] = {}
        for node in self.nodes:
            self.holders.setdefault(id(self.values[node]), []).append(node)
        self.targets = {node: self._target(node) for node in self.written}
        self.shared: set[int] = set()
        for node, storages in self.written.items():
            if not self._alone(node):
                self.shared |= storages

    def run(self) -> None:
        """Rewrite the graph."""
        for node in self.nodes:
            if self.storages[node] & self.shared:
                self._copy(node)
        for position, node in enumerate(self.nodes):
            _by_position(self.network, node)
            self._rewrite(position, node)

    def _target(self, node: fx.Node) -> Tensor | None:
        """Tensor that a call writes to, if it is one."""
        tensors = [
            self.values[source]
            for source in node.all_input_nodes
            if self.storages[source] & self.written[node]
        ]
        first = next(iter(tensors), None)
        is_one = isinstance(first, Tensor) and all(source is first for source in tensors)
        return first if is_one else None

    def _alone(self, node: fx.Node) -> bool:
        """Whether nothing but the tensor written to shares its memory and is used afterwards."""
        target, position = self.targets[node], self.order[node]
        if target is None or len(self.written[node]) > 1:
            return False
        if self.values[node] is not target and node.users:
            return False
        return not any(
            self.storages[earlier] & self.written[node]
            and self.values[earlier] is not target
            and any(self.order[user] > position for user in earlier.users)
            for earlier in self.nodes[:position]
        )

    def _copy(self, node: fx.Node) -> None:
        """Copy memory that writes share, where it comes from."""
        first = next(
            earlier for earlier in self.nodes if self.storages[earlier] & self.storages[node]
        )
        if first is node:
            with self.graph.inserting_after(node):
                duplicate = self.graph.call_function(contiguous_copy, (node,))
            node.replace_all_uses_with(duplicate, delete_user_cb=lambda user: user is not duplicate)
            self._hold(node, duplicate)
        elif node.op == "get_attr":
            node.replace_all_uses_with(self._holder(first))

    def _hold(self, node: fx.Node, new: fx.Node) -> None:
        holders = self.holders[id(self.values[node])]
        # A node that was copied does not stand for its value any more.
        if node in holders:
            holders[holders.index(node)] = new

    def _rewrite(self, position: int, node: fx.Node) -> None:
        storages = self.written.get(node, set())
        if storages and self.targets[node] is None:
            # One of several tensors is written to: in memory that was copied, as it is.
            node.meta[_WRITES] = True
            return
        module = _module(self.network, node)
        new: fx.Node | None = None
        with self.graph.inserting_after(node):
            if module is not None:
                name = f"calls.{node.name}_{position}"
                self.network.add_submodule(name, module)
                new = self.graph.call_module(name, tuple(node.args[:1]))
            elif node in self.replaceable and (call := _out_of_place(node)) is not None:
                new = self.graph.create_node(*call)
        if storages & self.shared:
            if new is not None:
                self._write_back(position, node, new)
            else:
                node.meta[_WRITES] = True
        elif storages:
            self._write_once(position, node, new)
        elif new is not None:
            self._replace(node, new)
        elif _is_view(node):
            # Values that lie row by row may be viewed in a shape that values channels last can't.
            node.target = str(node.target).replace("view", "reshape")

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        self._hold(node, new)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _holder(self, node: fx.Node) -> fx.Node:
        """Node among a call's inputs that has the tensor written to."""
        holders = self.holders[id(self.targets[node])]
        return next(source for source in node.all_input_nodes if source in holders)

    def _write_back(self, position: int, node: fx.Node, new: fx.Node) -> None:
        with self.graph.inserting_after(new):
            back = self.graph.call_method("copy_", (self._holder(node), new))
        back.meta[_WRITES] = True
        node.replace_all_uses_with(back)
        self.graph.erase_node(node)
        self._stand(position, node, back)

    def _write_once(self, position: int, node: fx.Node, new: fx.Node | None) -> None:
        if new is None:
            target = self._holder(node)
            with self.graph.inserting_before(node):
                new = self.graph.call_function(contiguous_copy, (target,))
            node.replace_input_with(target, new)
            node.meta[_WRITES] = True
        elif self.values[node] is self.targets[node]:
            self._replace(node, new)
        else:
            self.graph.erase_node(node)
        self._stand(position, node, new)

    def _stand(self, position: int, node: fx.Node, new: fx.Node) -> None:
        """Let a node stand for the tensor that a call wrote to, behind that call."""
        holders = self.holders[id(self.targets[node])]
        for holder in [other for other in holders if self.order.get(other, -1) < position]:
            holder.replace_all_uses_with(
                new, delete_user_cb=lambda user: self.order.get(user, -1) > position
            )
        if new not in holders:
            holders.append(new)


def _by_position(network: fx.GraphModule, node: fx.Node) -> None:
    """Give a call by position what it gets by keyword alone."""
    if node.args or not node.kwargs:
        return
    if node.op == "call_module":
        forward = network.get_submodule(str(node.target)).forward
        bound = inspect.signature(forward).bind(**node.kwargs)
        node.args, node.kwargs = bound.args, bound.kwargs
    elif node.op == "call_function" and "input" in node.kwargs:
        node.args = (node.kwargs["input"],)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Module of its own for a call of an activation or a pooling."""
    if node.op == "call_module":
        called = network.get_submodule(str(node.target))
        if not isinstance(called, _POOLS) and not hasattr(called, "inplace"):
            return None
        module = copy.deepcopy(called)
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  modules declare no such field
        return module
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _RELUS:
        return nn.ReLU()
    if node.target is F.relu6:
        return nn.ReLU6()
    # A kernel as large as the image is known with the image only.
    if node.target in _MAX_POOLS and len(node.all_input_nodes) == 1:
        options: Any = dict(zip(_MAX_POOL_OPTIONS, node.args[1:], strict=False)) | node.kwargs
        return nn.MaxPool2d(**options)
    return None


def _is_view(node: fx.Node) -> bool:
    """Whether a call is a view in another shape, not in another type."""
    shapes = node.args[1:] and not isinstance(node.args[1], torch.dtype) and not node.kwargs
    return bool(node.op == "call_method" and node.target in ("view", "view_as") and shapes)
