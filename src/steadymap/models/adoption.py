"""Checks that a model must pass before its maps can be trusted."""

from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steadymap.models import adapter
from steadymap.models.registry import ORIGINALS, Explainable, as_explainable, probabilities

# Largest differences of logits, relative to the largest of them: of the adapted network from the
# given one, where only rounding may differ, and of an image alone from the same image in company.
ADAPTED_TOLERANCE = 1e-3

COMPANY_TOLERANCE = 1e-4

_FLOATS = (torch.float32, torch.float64)

# Beginnings of the names of torch's random calls.
_RANDOM = ("alpha_dropout", "bernoulli", "dropout", "feature_", "multinomial", "normal", "rand")

# Network to the state that was checked, and to its number of classes by the other arguments.
_CHECKED: WeakKeyDictionary[nn.Module, tuple[Hashable, dict[Hashable, int]]] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode, without autocast and outside of inference mode.

    Afterwards each of its modules is back in its own mode. Under autocast activations would be
    rounded to 8 bits, and in inference mode there are no gradients.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}; give an nn.Module")
    modes = {module: module.training for module in model.modules()}
    accelerator = torch.accelerator.current_accelerator()
    model.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            for kind in {"cpu", accelerator.type if accelerator else "cpu"}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    *,
    outputs: Collection[str] = (),
    traced: bool = False,
) -> int:
    """Run a model on the first image and refuse it where its maps could not be trusted.

    It must return logits, a float tensor (rows, classes). An `Explainable` must give the logits
    of the network that it was made of (`ADAPTED_TOLERANCE`). An image's logits must be the same
    next to any other (`COMPANY_TOLERANCE`). The scores that `outputs` names must differ between
    unlike images. Costs five passes of two rows, once per state of the model.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits, in `evaluation_mode`.
    images : Tensor
        In [0, 1]; the first one is used.
    outputs : collection of str
        Scores that maps are made of, of `logit`, `probability`, `sigmoid`.
    traced : bool
        Whether a method will trace the model, which then must keep its logits too.

    Returns
    -------
    int
        Number of classes.

    Raises
    ------
    ValueError
        With the network's name, what was measured and the remedy.
    """
    state, key = _state(model), (images.shape[1:], images.device, frozenset(outputs), traced)
    before, n_classes_by_key = _CHECKED.get(model, (None, {}))
    n_classes_by_key = n_classes_by_key if before == state else {}
    if key not in n_classes_by_key:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            n_classes_by_key[key] = _checked(model, images[:1], outputs, traced)
        _CHECKED[model] = state, n_classes_by_key
    return n_classes_by_key[key]


def check_classifier(
    model: nn.Module,
    *,
    key: str,
    n_classes: int,
    image_size: int = 0,
    images: Tensor | None = None,
    outputs: Collection[str] = (),
) -> None:
    """Check a model of a study, which must have one logit for each class of the data.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits.
    key : str
        What names it, for errors.
    n_classes : int
        Classes of the data.
    image_size : int
        Side of a random image, px, where there is no other.
    images : Tensor, optional
        In [0, 1]; the first one is used.
    outputs : collection of str
        As in `check`.

    Raises
    ------
    ValueError
        As `check`, beginning with the key; and where there are fewer or more logits than classes.
    """
    if images is None:
        drawn = torch.rand((3, image_size, image_size), generator=torch.Generator().manual_seed(0))
        images = drawn[None].to(next(model.buffers()).device)
    try:
        with evaluation_mode(model):
            n_logits = check(model, images, outputs=outputs)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if n_logits != n_classes:
        raise ValueError(
            f"{key}: {_name(model)} returns {n_logits} logits, the data have {n_classes} classes; "
            "return one per class (a lone logit becomes two by "
            "torch.cat([torch.zeros_like(logit), logit], 1))"
        )


def _checked(model: nn.Module, image: Tensor, outputs: Collection[str], traced: bool) -> int:
    name = _name(model)
    # Unlike the image in each pixel, in [0, 1].
    other = (image + 0.5) % 1
    alone = _logits(model, torch.cat([image, image]), name)
    company = _logits(model, torch.cat([image, other]), name)
    scale = float(alone.abs().max())
    difference = float((torch.stack([alone[1], company[0]]) - alone[0]).abs().max())
    if difference > COMPANY_TOLERANCE * scale:
        raise ValueError(
            f"{name}: the logits of one image differ by {difference:.2g} between passes, where the "
            f"largest is {scale:.2g} (allowed is {COMPANY_TOLERANCE:g} of it): they depend on "
            f"chance or on the other images of the batch{_suspects(model)}; write "
            "F.dropout(x, training=self.training) or nn.Dropout, and BatchNorm with "
            "track_running_stats=True"
        )
    graph = model.network if isinstance(model, Explainable) else model
    if isinstance(model, Explainable) and graph in ORIGINALS:
        original, buffers = ORIGINALS[graph]
        rows = (torch.cat([image, other]) - model.mean) / model.std
        _compare(original, graph, rows, name, buffers)
        del ORIGINALS[graph]
    elif traced and not isinstance(model, Explainable):
        copied = as_explainable(model, image.shape)
        _compare(model, copied.network, torch.cat([image, other]), name)
    shown = torch.stack([alone[0], company[1]])
    for output in outputs:
        if output == "logit" or not _constant(probabilities(shown, output)):
            continue
        extremes = torch.cat([torch.zeros_like(image), torch.ones_like(image)])
        scores = probabilities(torch.cat([shown, _logits(model, extremes, name)]), output)
        if _constant(scores):
            values = ", ".join(f"{value:.4g}" for value in scores[0, :3].tolist())
            raise ValueError(
                f"{name}: output {output!r} can't change: it is {values} for the first image, for "
                "one unlike it, for black and for white alike, so that every map would be zero; "
                "give a head with logits, not probabilities, or use output='logit'"
            )
    return alone.shape[1]


def _name(model: nn.Module) -> str:
    return type(model.network if isinstance(model, Explainable) else model).__name__


def _state(model: nn.Module) -> Hashable:
    """Value that changes with weights, dtypes, devices or hooks."""
    weights = [*model.parameters(), *model.buffers()]
    return (
        tuple(
            (id(w), None if w.is_inference() else w._version, w.dtype, w.device, w.data_ptr())
            for w in weights
        ),
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    )


def _constant(values: Tensor) -> bool:
    return bool((values == values[:1]).all())


def _logits(model: nn.Module, rows: Tensor, name: str) -> Tensor:
    """Logits of rows; raises where the images or the model's output can't be used."""
    if isinstance(model, Explainable):
        model.check_channels(rows)
    if any(weight.is_inference() for weight in model.parameters()):
        raise ValueError(
            f"{name}: its parameters were made inside torch.inference_mode(), where there are no "
            "gradients; make the network outside, or give a copy of it by steadymap.explainable"
        )
    try:
        output = model(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name} can't take images of shape {tuple(rows.shape[1:])}, {rows.dtype}, on "
            f"{rows.device} ({' '.join(str(error).split())[:200]}); {_remedy(model, rows)}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(rows):
        raise ValueError(
            f"{name} returns {_shown(output)} for {len(rows)} images; maps need logits, a tensor "
            "(rows, classes): let forward() return them, or pick them by "
            "steadymap.explainable(network, mean=..., std=..., "
            f"logits=lambda output: {_pick(output, len(rows))})"
        )
    if output.dtype not in _FLOATS or output.device != rows.device:
        raise ValueError(
            f"{name} returns {output.dtype} on {output.device}; maps are float32: give "
            f"network.float() on {rows.device}"
        )
    return output.detach()


def _remedy(model: nn.Module, rows: Tensor) -> str:
    for weight in model.parameters():
        if weight.device != rows.device:
            return f"its parameters are on {weight.device}: move images or network to the other"
        if weight.dtype != rows.dtype:
            return (
                f"its parameters are {weight.dtype}, and maps are computed in float32: give "
                "network.float()"
            )
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != rows.shape[1]:
        return (
            f"its first convolution takes {first.in_channels} channels: give images of so many, "
            "such as images.expand(-1, 3, -1, -1) or images.mean(1, keepdim=True)"
        )
    return "give images of the size and channels that it was made for"


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {', '.join(map(repr, output))}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {len(output)}"
    return f"an object, {type(output).__name__},"


def _pick(output: Any, n_rows: int) -> str:
    """Python that picks logits from what a network returns."""

    def fits(value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim == 2 and len(value) == n_rows

    if isinstance(output, Tensor):
        return "output.mean((2, 3))" if output.ndim == 4 else "output.reshape(len(output), -1)"
    if isinstance(output, Mapping):
        return f"output[{next((key for key in output if fits(output[key])), 'logits')!r}]"
    if isinstance(output, (tuple, list)):
        return f"output[{next((i for i, value in enumerate(output) if fits(value)), 0)}]"
    named = [key for key, value in getattr(output, "__dict__", {}).items() if fits(value)]
    return f"output.{named[0] if named else 'logits'}"


def _suspects(model: nn.Module) -> str:
    """Modules and calls that may make logits depend on chance or on other rows, in brackets."""
    suspects = [
        f"{path}, {type(module).__name__} without running statistics"
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    for graph in (m for m in model.modules() if isinstance(m, fx.GraphModule)):
        for node in graph.graph.nodes:
            called = str(getattr(node.target, "__name__", node.target)).strip("_")
            if node.op.startswith("call_") and node.op != "call_module":
                suspects += [f"{called}() at {node.name}"] if called.startswith(_RANDOM) else []
    return f" ({'; '.join(suspects[:3])})" if suspects else ""


def _compare(
    original: nn.Module,
    adapted: nn.Module,
    rows: Tensor,
    name: str,
    buffers: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuse a copy whose logits are not the original's.

    The original runs as it was given, in its own copy: it may write to its buffers, or to views
    that exist in one memory format alone.
    """
    plain = adapter.copied(original).to(rows.device)
    plain = plain.to(memory_format=torch.contiguous_format)
    plain.load_state_dict(dict(buffers or {}), strict=False)
    with evaluation_mode(plain):
        expected = _logits(plain, rows.contiguous(), name)
    scale = float(expected.abs().max())
    difference = float((adapted(rows) - expected).abs().max())
    if not difference > ADAPTED_TOLERANCE * scale:
        return
    hooked = [
        path or "the network itself"
        for path, module in original.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    reason = "a branch on the kind of its input (isinstance, torch.is_tensor) goes the other way"
    if hooked:
        reason = f"forward hooks, here of {', '.join(hooked[:3])}, are dropped"
    raise ValueError(
        f"{name}: the traced copy's logits differ from the network's by {difference:.2g}, where "
        f"the largest is {scale:.2g} (allowed is {ADAPTED_TOLERANCE:g} of it); probably {reason} "
        "when it is traced: move that into forward() as plain code"
    )
