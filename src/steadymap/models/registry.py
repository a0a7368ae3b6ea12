"""Networks: the registry, and the adapter that makes one explainable."""

import copy
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from steadymap.draws import derived_seed
from steadymap.models import adapter
from steadymap.params.methods import ARCHITECTURES, INPUT_TRANSFORMING, statistics_problem
from steadymap.store.atomic import file_sha256, read_json


def _torchvision(name: str, n_classes: int, **options: Any) -> nn.Module:
    # Imported here: torchvision brings torch._dynamo, seconds that explaining does not need.
    import torchvision

    network: nn.Module = getattr(torchvision.models, name)(num_classes=n_classes, **options)
    return network


# transform_input is stated: torchvision switches it on with its pretrained weights, silently.
_INCEPTION = {"aux_logits": False, "transform_input": False, "init_weights": False}

CONSTRUCTORS: dict[str, Callable[[int], nn.Module]] = {
    name: partial(_torchvision, name, **(_INCEPTION if name in INPUT_TRANSFORMING else {}))
    for name in ARCHITECTURES
}


def _custom(architecture: str) -> tuple[Callable[[int], Any], Path]:
    """Function that `module:function` names, and the file that it stands in."""
    module, _, name = architecture.partition(":")
    # Stages run from the project's root, where custom modules lie; sys.path begins with stages/.
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ValueError(
            f"architecture {architecture!r} can't be imported ({error}); name a function of a "
            "module in the project's root or in the environment, as module:function"
        ) from error
    finally:
        sys.path.pop(0)
    file = inspect.getsourcefile(sys.modules[module])
    if not callable(function) or file is None:
        raise ValueError(
            f"architecture {architecture!r} is no function in a Python file; name one that takes "
            "the number of classes and returns the network"
        )
    return function, Path(file)


def source_sha256(architecture: str) -> str | None:
    """Sha256 of the file of a custom architecture; None for those of the registry."""
    return file_sha256(_custom(architecture)[1]) if ":" in architecture else None


def build(architecture: str, n_classes: int, *, seed: int = 0) -> nn.Module:
    """Network with fresh weights; the global random state is left as it was.

    Parameters
    ----------
    architecture : str
        A name of `CONSTRUCTORS`, or a custom `module:function`: the function takes the number of
        classes and returns a classifier of normalized images.
    n_classes : int
        Number of classes.
    seed : int
        Seed of the weights.

    Raises
    ------
    ValueError
        Where the architecture is not known, can't be imported or returns no network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("weights", architecture, seed))
        if architecture in CONSTRUCTORS:
            return CONSTRUCTORS[architecture](n_classes)
        if ":" not in architecture:
            raise ValueError(
                f"architecture {architecture!r} is not known; choose one of "
                f"{sorted(CONSTRUCTORS)}, or name your own as module:function"
            )
        network = _custom(architecture)[0](n_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"architecture {architecture!r} returns {type(network).__name__}; return an nn.Module"
        )
    return network


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; `checkpoints.read_state_dict` reads all others.

    Raises
    ------
    ValueError
        Where it is none, or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: no readable safetensors file ({error}); write it again with "
            "safetensors.torch.save_file"
        ) from None


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights, all of them or none.

    Parameters
    ----------
    network : nn.Module
        Takes the weights.
    state : mapping of str to Tensor
        Weights by name.
    source : str
        Where they come from, for errors.

    Raises
    ------
    ValueError
        Where a tensor is missing, surplus, of another shape or not finite: with its name.
    """
    expected = network.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is surplus" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the network {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems += [
        f"{name} holds NaN or infinity"
        for name, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{source}: does not fit the network: {', '.join(problems[:3])}{more}; name weights of "
            "this very architecture and number of classes"
        )
    network.load_state_dict(state)


def device_kind(name: str) -> str:
    """Kind of device of a params value, there or not; `auto` takes a GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def choose_device(name: str) -> torch.device:
    """Device of a params value.

    Raises
    ------
    ValueError
        Where this machine has none of its kind.
    """
    kind = device_kind(name)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise ValueError(
            f"attribution.device: {kind}, but torch {torch.__version__} finds none on this "
            "machine; write auto or cpu (where workers elsewhere have one, plan.throughput spares "
            "this machine the measurement)"
        )
    return torch.device(kind)


def probabilities(
    logits: Float[Tensor, "rows classes"], output: str = "probability"
) -> Float[Tensor, "rows classes"]:
    """Probability of each class.

    Parameters
    ----------
    logits : Tensor
        Of each class.
    output : {'probability', 'sigmoid'}
        Softmax over classes, where a head with one logit has its sigmoid; or the sigmoid of each
        logit, for heads whose classes do not exclude one another.
    """
    if output == "sigmoid" or logits.shape[1] == 1:
        return logits.sigmoid()
    return logits.softmax(1)


class Normalized(nn.Module):
    """A network behind the normalization of its images, which takes images in [0, 1].

    Nothing is clamped, so gradients beyond [0, 1] stay alive.

    Attributes
    ----------
    network : nn.Module
        Takes normalized images.
    mean, std : Tensor
        Channel statistics, shape (1, channels, 1, 1), in [0, 1] units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """What the network returns; in training, the logits of auxiliary heads too."""
        return self.network((images - self.mean) / self.std)


class Explainable(Normalized):
    """A normalized network that is fit to be explained.

    Attributes
    ----------
    network : fx.GraphModule
        The network, each activation and pooling call a module of its own, nothing in place.
    """

    network: fx.GraphModule

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits of images in [0, 1]."""
        self.check_channels(images)
        return super().forward(images)

    def check_channels(self, images: Tensor) -> None:
        """Refuse images that statistics of another number of channels would be broadcast over."""
        n = self.mean.shape[1]
        if n > 1 and isinstance(images, Tensor) and images.shape[1] != n:
            raise ValueError(
                f"images have {images.shape[1]} channels, mean and std of the network {n}; give "
                "images of so many, such as images.expand(-1, 3, -1, -1) of gray ones"
            )


# Graph to the network that it was traced from and a copy of its buffers, to which tracing may
# write; an entry is deleted once the logits have been compared.
ORIGINALS: WeakKeyDictionary[nn.Module, tuple[nn.Module, dict[str, Tensor]]] = WeakKeyDictionary()


class _Picked(nn.Module):
    """A network that returns its logits alone."""

    def __init__(self, network: nn.Module, logits: Callable[[Any], Tensor]):
        super().__init__()
        self.network = network
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.network(images))


@torch.inference_mode(False)
def explainable(
    network: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    logits: Callable[[Any], Tensor] | None = None,
    size: tuple[int, int] | None = None,
) -> Explainable:
    """Copy a classifier into a form that attribution methods can trust.

    Functional, reused and in-place activations and poolings become one out-of-place module per
    call, and no other call writes to its input either; heads that evaluation does not use
    disappear; logits stay the same, which `adoption.check` measures on the first images explained.
    The network given is not touched.

    Parameters
    ----------
    network : nn.Module
        Classifier of normalized images.
    mean, std : sequence of float
        Channel statistics that it was trained with, in [0, 1] units.
    logits : callable, optional
        Picks the logits (rows, classes) from what the network returns, where that is a tuple, a
        mapping or an object.
    size : tuple of int, optional
        Height and width, px, of images that it takes. Which calls write to their input is seen on a
        blank image; by default squares of up to 512 px are tried.

    Raises
    ------
    ValueError
        Where mean and std are no statistics of images in [0, 1]; where the network's forward pass
        can't be traced, so that hidden activations could slip through unseen: with the line that it
        ends at. Where no blank image runs through it.
    """
    if (problem := statistics_problem(mean, std)) is not None:
        raise ValueError(problem)
    original = adapter.copied(network)
    if logits is not None:
        named = type(type(original).__name__, (_Picked,), {})
        original = named(original, logits).eval()
    channels = len(mean) if len(mean) > 1 else None
    buffers = {name: value.clone() for name, value in original.named_buffers()}
    traced = adapter.traced(original, channels=channels, size=size)
    adapted = Explainable(traced, mean, std).requires_grad_(False)
    ORIGINALS[traced] = original, buffers
    return adapted.to(memory_format=torch.channels_last)


def as_explainable(model: nn.Module, shape: Sequence[int] | None = None) -> Explainable:
    """The model, if it is explainable, else one that does not normalize made of it.

    Parameters
    ----------
    model : nn.Module
        From images in [0, 1] to logits.
    shape : sequence of int, optional
        Of a batch of images that it takes.
    """
    if isinstance(model, Explainable):
        return model
    if shape is None:
        return explainable(model, mean=[0.0], std=[1.0])
    _, n, height, width = shape
    return explainable(model, mean=[0.0] * n, std=[1.0] * n, size=(height, width))


def copy_sharing_weights(model: Explainable) -> Explainable:
    """Copy of a model that has its very weights; everything else may be changed."""
    weights = {id(value): value for value in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, weights)


def identity(card: Mapping[str, Any]) -> str:
    """Hash of a network's weights and, for a custom architecture, of its code.

    Weights from elsewhere come with statistics that params can change alone, so theirs count too.
    """
    parts = [card["weights_sha256"]]
    if card.get("source_sha256") is not None:
        parts.append(card["source_sha256"])
    if card.get("checkpoint") is not None:
        parts.append(f"{list(card['mean'])} {list(card['std'])}")
    if len(parts) == 1:
        return str(parts[0])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load(folder: Path) -> Explainable:
    """Open a trained model from its folder: `card.json` and `weights.safetensors`.

    Raises
    ------
    ValueError
        Where the weights are not those of the card, or do not fit its architecture.
    """
    folder = Path(folder)
    card = read_json(folder / "card.json")
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `dvc repro` or place the weights there")
    if (sha256 := file_sha256(path)) != card["weights_sha256"]:
        raise ValueError(
            f"{path}: sha256 {sha256[:16]}… is not the card's {card['weights_sha256'][:16]}…; "
            "delete the folder and train again"
        )
    if source_sha256(card["architecture"]) != card.get("source_sha256"):
        raise ValueError(
            f"{folder}: the code of {card['architecture']} changed since; take the model in again: "
            f"`dvc repro -f train@{card['model']}`"
        )
    network = build(card["architecture"], len(card["classes"]))
    load_state(network, read_state(path), source=str(path))
    return explainable(network, mean=card["mean"], std=card["std"])
