"""Networks with some of their parameters drawn anew, and how much their function changes.

The independent parameter randomization of Adebayo et al. (2018) as Sriram & Conati extend it: one
*unit* of a network (a block of layers) loses what it learned, all others keep it.
"""

import copy
import difflib
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import VGG, GoogLeNet, Inception3, MobileNetV2, ResNet, SqueezeNet
from torchvision.models.squeezenet import Fire

from steadymap.draws import derived_seed

PRESETS = ("paper", "all")
RANDOMIZERS = ("init", "stale", "reset", "permute")
ORDERS = ("independent", "top_down", "bottom_up")
# Images that running statistics are estimated on, at most.
CALIBRATION_IMAGES = 128
# Images per pass; part of what the statistics depend on, hence no option.
_CALIBRATION_BATCH = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rule:
    """Units of an architecture, as regular expressions over the paths of its modules.

    Attributes
    ----------
    kind : type
        Class of the network.
    n_blocks : int
        Number of the paper's units.
    blocks : str
        Their paths.
    stem, head : str
        A unit before these and the units behind them, which the paper leaves out.
    layer : type or tuple of type
        Class of all units but the stem.
    """

    kind: type[nn.Module]
    n_blocks: int
    blocks: str
    stem: str = ""
    head: str = ""
    layer: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module

    def units(self, network: nn.Module, preset: str) -> list[str]:
        """Names of the units, in the order of the modules."""
        blocks, head = self._matching(network, self.blocks), self._matching(network, self.head)
        if preset == "paper":
            return blocks
        return [*([self.stem] if self.stem else []), *blocks, *head]

    def _matching(self, network: nn.Module, pattern: str) -> list[str]:
        modules = dict(network.named_modules())
        names = []
        for (path, module), following in pairwise([*modules.items(), ("", None)]):
            if path and re.fullmatch(pattern, path) and isinstance(module, self.layer):
                # VGG has its normalizations between the convolutions.
                joined = self.kind is VGG and isinstance(following[1], _BatchNorm)
                names.append(f"{path}+{following[0]}" if joined else path)
        return names


# The paper gives the numbers of its units and no names. These are the blocks of each architecture
# that give its numbers; InceptionV3's are named by Adebayo et al. (16 blocks and the logits).
# GoogLeNet and SqueezeNet are not in the paper.
_RULES: dict[str, _Rule] = {
    "googlenet": _Rule(GoogLeNet, 12, r"conv[123]|inception\w+", head="fc"),
    "inception_v3": _Rule(Inception3, 17, r"Conv2d_\w+|Mixed_\w+|fc"),
    "mobilenet_v2": _Rule(MobileNetV2, 19, r"features\.\d+", head=r"classifier\.1"),
    "resnet18": _Rule(ResNet, 8, r"layer[1-4]\.\d+", stem="conv1+bn1", head="fc"),
    "resnet50": _Rule(ResNet, 16, r"layer[1-4]\.\d+", stem="conv1+bn1", head="fc"),
    "squeezenet1_0": _Rule(
        SqueezeNet, 9, r"features\.\d+", head=r"classifier\.1", layer=(nn.Conv2d, Fire)
    ),
    "vgg16": _Rule(
        VGG, 13, r"features\.\d+", head=r"classifier\.\d+", layer=(nn.Conv2d, nn.Linear)
    ),
}


def units(
    network: nn.Module,
    preset: str = "paper",
    *,
    architecture: str | None = None,
    override: Sequence[str] | None = None,
) -> list[str]:
    """Names of a network's units, from the input to the logits.

    A unit is a module by its path, or several joined by `+` (`conv1+bn1`).

    Parameters
    ----------
    network : nn.Module
        Classifier as constructed, before `steadymap.models.explainable`.
    preset : {"paper", "all"}
        `paper`: 17, 13, 19, 8 and 16 units for inception_v3, vgg16, mobilenet_v2, resnet18 and
        resnet50 (Sriram & Conati, section 6), and by the same rules 12 for googlenet and 9 for
        squeezenet1_0. `all` adds what these leave out of stem and head: 17, 16, 20, 10, 18, 13
        and 10.
    architecture : str, optional
        Whose rule applies; by default the one of the network's class.
    override : sequence of str, optional
        Units of your own, which take the place of the preset's.

    Returns
    -------
    list of str
        Without auxiliary heads and modules that evaluation does not use. Networks of other classes
        have one rule for both presets: each child with parameters is a unit, plain containers
        (`nn.Sequential`, `nn.ModuleList`, `nn.ModuleDict`) are opened, and a child with vectors
        alone (a normalization) joins the unit before it.

    Raises
    ------
    ValueError
        Where a name matches no module, a unit has no parameters, is not used, or shares parameters
        with another; where the network has none, can't be traced or is already adapted.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    if any(isinstance(module, fx.GraphModule) for module in network.modules()):
        raise ValueError(
            f"{type(network).__name__} is already adapted; pass the network that "
            "steadymap.models.explainable was given"
        )
    if not any(True for _ in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} has no parameters: there is nothing to randomize; choose "
            "another model"
        )
    if override is not None:
        return _listed_units(network, list(override))
    if architecture is not None and architecture not in _RULES:
        raise ValueError(
            f"architecture {architecture!r} has no rule for its units"
            f"{_closest(architecture, list(_RULES))}; choose one of {', '.join(_RULES)}, or list "
            "the units yourself (override)"
        )
    for name, rule in _RULES.items():
        if name == architecture or (architecture is None and isinstance(network, rule.kind)):
            names = rule.units(network, preset)
            # Of networks of the same class, such as another ResNet, the number is not known.
            n_paper = len(rule.units(network, "paper"))
            if not names or (architecture and n_paper != rule.n_blocks):
                raise ValueError(
                    f"{type(network).__name__} is not built like {name}; leave out "
                    "architecture, or list the units yourself (override)"
                )
            for unit in names:
                _modules(network, unit)
            return names
    return _traced_units(network)


def _listed_units(network: nn.Module, names: list[str]) -> list[str]:
    owners: dict[int, str] = {}
    for unit in names:
        for _, parameter in _parameters(network, unit):
            other = owners.setdefault(id(parameter), unit)
            if other != unit:
                raise ValueError(
                    f"units {other!r} and {unit!r} share parameters; name one of them, or parts "
                    "that don't overlap"
                )
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"unit {double!r} is listed {names.count(double)} times; list it once")
    try:
        used = _used(network)
    except ValueError:
        return names
    first = {}
    for unit in names:
        places = [used[path] for path, _ in _parameters(network, unit) if path in used]
        if not places:
            raise ValueError(
                f"unit {unit!r} is not used by the forward pass of {type(network).__name__}; "
                "leave it out"
            )
        first[unit] = min(places)
    return sorted(names, key=lambda unit: first[unit])


def _traced_units(network: nn.Module) -> list[str]:
    used = _used(network)
    vectors = {path: parameter.ndim <= 1 for path, parameter in network.named_parameters()}
    blocks: dict[str, list[str]] = {}
    for path in sorted(used, key=lambda path: used[path]):
        name = _block(network, path)
        if name:
            blocks.setdefault(name, []).append(path)
        else:
            _log.warning(
                "%s holds parameter %s itself, outside of any module: it is in no unit",
                type(network).__name__,
                path,
            )
    names: list[str] = []
    for name, paths in blocks.items():
        if names and all(vectors[path] for path in paths):
            names[-1] += f"+{name}"
        else:
            names.append(name)
    if not names:
        raise ValueError(
            f"{type(network).__name__}: the forward pass uses no module with parameters; list "
            "units yourself (override)"
        )
    return names


def _block(network: nn.Module, path: str) -> str:
    """Outermost module that holds a parameter and is no plain container; "" for the root."""
    module, names = network, list[str]()
    for name in path.split(".")[:-1]:
        module = module.get_submodule(name)
        names.append(name)
        if type(module) not in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
            return ".".join(names)
    return ".".join(names)


def _used(network: nn.Module) -> dict[str, int]:
    """Paths of the parameters that evaluation uses, with the position of their first use."""
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} can't be traced ({error}); list its units yourself "
            "(override)"
        ) from error
    parameters = dict(network.named_parameters(remove_duplicate=False))
    first_use: dict[str, int] = {}
    for position, node in enumerate(traced.graph.nodes):
        target = str(node.target)
        if node.op == "call_module":
            for path in parameters:
                if path.startswith(f"{target}."):
                    first_use.setdefault(path, position)
        elif node.op == "get_attr" and target in parameters:
            first_use.setdefault(target, position)
    return first_use


def _closest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f", the closest is {near[0]!r}" if near else ""


def _modules(network: nn.Module, unit: str) -> list[tuple[str, nn.Module]]:
    """Modules of a unit by path, each with parameters."""
    modules = dict(network.named_modules())
    del modules[""]
    members = []
    for path in unit.split("+"):
        if path not in modules:
            raise ValueError(
                f"unit {unit!r} matches no module of {type(network).__name__}"
                f"{_closest(path, list(modules))}; name modules as network.named_modules() does, "
                "joined by '+'"
            )
        if not any(True for _ in modules[path].parameters()):
            raise ValueError(
                f"unit {unit!r}: {path} ({type(modules[path]).__name__}) has no parameters; "
                "leave it out"
            )
        members.append((path, modules[path]))
    return members


def _parameters(network: nn.Module, unit: str) -> Iterator[tuple[str, nn.Parameter]]:
    for path, module in _modules(network, unit):
        for name, parameter in module.named_parameters():
            yield f"{path}.{name}", parameter


def _norms(network: nn.Module, unit: str) -> list[_BatchNorm]:
    """BatchNorms of a unit that keep running statistics."""
    return [
        layer
        for _, module in _modules(network, unit)
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]


def orders(names: Sequence[str], order: str = "independent") -> list[tuple[str, ...]]:
    """Which units are randomized together in each step.

    Parameters
    ----------
    names : sequence of str
        Units, from the input to the logits.
    order : {"independent", "top_down", "bottom_up"}
        `independent`: one unit at a time, the paper's test. The cascades randomize, in step k, the
        k units next to the logits (`top_down`) or to the input (`bottom_up`); the last of a step is
        the one that it adds.

    Raises
    ------
    ValueError
        Where the order is unknown.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is unknown; choose one of {', '.join(ORDERS)}")
    if order == "independent":
        return [(name,) for name in names]
    sequence = list(names) if order == "bottom_up" else list(reversed(names))
    return [tuple(sequence[: k + 1]) for k in range(len(sequence))]


def needs_calibration(network: nn.Module, unit: str | Sequence[str], randomizer: str) -> bool:
    """Whether `randomized` needs calibration images: for `init` and `permute` with BatchNorm.

    Parameters
    ----------
    network, unit, randomizer
        As in `randomized`.
    """
    return randomizer in ("init", "permute") and any(
        _norms(network, name) for name in _listed(unit)
    )


def _listed(unit: str | Sequence[str]) -> list[str]:
    return [unit] if isinstance(unit, str) else list(unit)


def randomized(
    network: nn.Module,
    unit: str | Sequence[str],
    *,
    draw: int,
    seed: int,
    randomizer: str = "init",
    calibration_images: Float[Tensor, "images channel height width"] | None = None,
    constructor: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Copy of a network in which one unit, or several, lost what they learned.

    Each parameter has draws of its own, by (seed, path, draw): units of the same shape differ, and
    a cascade's step holds the weights of the step before.

    Parameters
    ----------
    network : nn.Module
        Classifier of normalized images, before `steadymap.models.explainable`; not touched.
    unit : str or sequence of str
        As `units` names them; an empty sequence gives an exact copy.
    draw : int
        Index of the draw.
    seed : int
        Seed of the study.
    randomizer : {"init", "stale", "reset", "permute"}
        `init`: the architecture's initializer; what it sets to a constant (BatchNorm's gamma and
        beta, the biases of VGG and MobileNetV2) is drawn from a normal distribution with the
        trained tensor's mean and standard deviation; the unit's running statistics are estimated
        anew. `stale`: the same, trained statistics kept. `reset`: the layers' own
        `reset_parameters`, BatchNorm at weight 1, bias 0, mean 0, variance 1. `permute`: values
        shuffled within each parameter, statistics estimated anew.
    calibration_images : Tensor, optional
        Normalized training images, shape (images, channel, height, width), at least two; the first
        `CALIBRATION_IMAGES` are used. `init` and `permute` need them where the unit has BatchNorm.
        Outputs on them must be finite; without them, only the parameters are checked.
    constructor : callable, optional
        Makes a fresh network like this one, whose initializer `init` and `stale` then use; without
        it, those of torchvision's ResNet, VGG and MobileNetV2, and `reset_parameters` for others.

    Returns
    -------
    nn.Module
        In eval mode. The global random state is as before.

    Raises
    ------
    ValueError
        Where unit or randomizer is unknown, calibration images lack, or a module can't be drawn.
    FloatingPointError
        Where a parameter or an output is not finite.
    """
    if randomizer not in RANDOMIZERS:
        raise ValueError(
            f"randomizer {randomizer!r} is unknown; choose one of {', '.join(RANDOMIZERS)}"
        )
    names = _listed(unit)
    label = "+".join(names)
    if needs_calibration(network, names, randomizer) and (
        calibration_images is None or len(calibration_images) < 2
    ):
        count = "none" if calibration_images is None else len(calibration_images)
        raise ValueError(
            f"unit {label!r} has BatchNorm, whose running statistics {randomizer!r} estimates "
            f"anew; calibration_images: {count} given: pass at least 2 training images (up to "
            f"{CALIBRATION_IMAGES}), or choose randomizer 'stale' or 'reset'"
        )
    result = copy.deepcopy(network).eval()
    key = (seed, draw)
    with torch.no_grad():
        fresh = _fresh(result, names, randomizer, key, constructor)
        for name in names:
            for path, parameter in _parameters(result, name):
                if randomizer == "permute":
                    order = torch.randperm(parameter.numel(), generator=_generator(key, path))
                    values = parameter.flatten()[order.to(parameter.device)].view_as(parameter)
                elif randomizer != "reset" and _constant(fresh[path]):
                    values = _normal_like(parameter, _generator(key, path))
                else:
                    values = fresh[path]
                parameter.copy_(values)
            if randomizer == "reset":
                for norm in _norms(result, name):
                    norm.reset_running_stats()
        if needs_calibration(result, names, randomizer):
            assert calibration_images is not None
            norms = [norm for name in names for norm in _norms(result, name)]
            _estimate_statistics(result, norms, calibration_images[:CALIBRATION_IMAGES])
        _check_finite(result, names, calibration_images, label, draw)
    return result


def _generator(key: tuple[int, int], path: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed("randomization", *key, path))


def _constant(values: Tensor) -> bool:
    # A single value does not show whether it was drawn: it stays as the initializer has it.
    return values.numel() > 1 and bool((values == values.flatten()[0]).all())


def _normal_like(trained: Tensor, generator: torch.Generator) -> Tensor:
    values = trained.double()
    noise = torch.randn(trained.shape, generator=generator, dtype=torch.float64)
    return values.mean() + values.std(correction=0) * noise.to(trained.device)


def _fresh(
    network: nn.Module,
    names: Sequence[str],
    randomizer: str,
    key: tuple[int, int],
    constructor: Callable[[], nn.Module] | None,
) -> dict[str, Tensor]:
    """Values that an initializer gives to the parameters of the units named, by path."""
    if randomizer == "permute" or not names:
        return {}
    shapes = {
        path: parameter.shape for name in names for path, parameter in _parameters(network, name)
    }
    if constructor is not None and randomizer != "reset":
        values: dict[str, Tensor] = {}
        for name in names:
            # A unit's seed, not the step's: cascades keep what they drew.
            constructed = _constructed(constructor, derived_seed("randomization", *key, name))
            values |= {
                path: constructed[path]
                for path, _ in _parameters(network, name)
                if path in constructed
            }
        for path, shape in shapes.items():
            if path not in values or values[path].shape != shape:
                raise ValueError(
                    f"constructor makes no parameter {path} of shape {tuple(shape)}; pass the one "
                    "that made the network"
                )
        return values
    initialize = _reset if randomizer == "reset" else _initializer(network)
    values = {}
    for name in names:
        for root, module in _modules(network, name):
            for inner, layer in module.named_modules():
                path = f"{root}.{inner}" if inner else root
                own_parameters = dict(layer.named_parameters(recurse=False))
                if not own_parameters:
                    continue
                if not callable(getattr(layer, "reset_parameters", None)):
                    raise ValueError(
                        f"unit {name!r}: {path} ({type(layer).__name__}) has parameters and no "
                        "reset_parameters(); pass `constructor`, or choose randomizer 'permute'"
                    )
                # On the CPU, where the same seed gives the same numbers on every machine.
                made_layer = copy.deepcopy(layer).cpu()
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derived_seed("randomization", *key, path))
                    initialize(made_layer)
                for parameter_name in own_parameters:
                    values[f"{path}.{parameter_name}"] = made_layer.get_parameter(parameter_name)
    return values


def _constructed(constructor: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(constructor().named_parameters())


def _reset(layer: nn.Module) -> None:
    getattr(layer, "reset_parameters")()  # noqa: B009  modules declare no such method


def _kaiming(layer: nn.Module) -> None:
    """Initializer of torchvision's ResNet: He et al. (2015) for convolutions."""
    _reset(layer)
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _kaiming_small_head(layer: nn.Module) -> None:
    """Initializer of torchvision's VGG and MobileNetV2."""
    _kaiming(layer)
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _initializer(network: nn.Module) -> Callable[[nn.Module], None]:
    # GoogLeNet and InceptionV3 are constructed with init_weights=False: the layers' own.
    if isinstance(network, (VGG, MobileNetV2)):
        return _kaiming_small_head
    return _kaiming if isinstance(network, ResNet) else _reset


def _estimate_statistics(network: nn.Module, norms: Sequence[_BatchNorm], images: Tensor) -> None:
    """Running statistics as averages over batches of nearly equal size."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in torch.tensor_split(images, math.ceil(len(images) / _CALIBRATION_BATCH)):
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _check_finite(
    network: nn.Module, names: Sequence[str], images: Tensor | None, label: str, draw: int
) -> None:
    problem = next(
        (
            f"parameter {path} is"
            for name in names
            for path, parameter in _parameters(network, name)
            if not parameter.isfinite().all()
        ),
        None,
    )
    if problem is None and images is not None:
        outputs = logits(network, images)
        if not outputs.isfinite().all():
            count = int((~outputs.isfinite()).any(1).sum())
            problem = f"its logits are, on {count} of {len(outputs)} images,"
    if problem is not None:
        raise FloatingPointError(
            f"unit {label or '(none)'!r}, draw {draw}: {problem} not finite; choose another "
            "randomizer ('permute' keeps the trained values' range) or leave the unit out"
        )


def logits(
    network: nn.Module,
    images: Float[Tensor, "images channel height width"],
    *,
    batch_size: int = 32,
) -> Float[Tensor, "images classes"]:
    """Logits, computed at one padded batch shape.

    Parameters
    ----------
    network : nn.Module
        In eval mode.
    images : Tensor
        As the network takes them.
    batch_size : int
        Rows per pass.
    """
    outputs = []
    with torch.no_grad():
        for rows in images.split(batch_size):
            padding = rows[-1:].expand(batch_size - len(rows), *rows.shape[1:])
            outputs.append(network(torch.cat([rows, padding]))[: len(rows)])
    return torch.cat(outputs)


@dataclass(frozen=True)
class FunctionChange:
    """Change of a network's function by randomization.

    Attributes
    ----------
    accuracy : float
        Share of images whose target the randomized network predicts, in [0, 1].
    kept_predictions : float
        Share of images that both networks give the same class, in [0, 1].
    target_change : float
        Mean of the target's probability after minus before, in [-1, 1]; a loss is negative.
    n_images : int
        Number of images.
    """

    accuracy: float
    kept_predictions: float
    target_change: float
    n_images: int


def functional_change(
    before: Float[Tensor, "images classes"],
    randomized: nn.Module,
    images: Float[Tensor, "images channel height width"],
    targets: Int[Tensor, " images"],
) -> FunctionChange:
    """Compare what a network and its randomized copy predict.

    Parameters
    ----------
    before : Tensor
        Logits of `images` by the trained network.
    randomized : nn.Module
        The copy.
    images : Tensor
        As both networks take them.
    targets : Tensor
        Class of each image: the one that the original's maps explain.

    Raises
    ------
    ValueError
        Where logits, images and targets differ in number.
    """
    if not len(before) == len(images) == len(targets):
        raise ValueError(
            f"{len(before)} rows of logits, {len(images)} images and {len(targets)} targets; pass "
            "as many of each"
        )
    after = logits(randomized, images)
    old, new = (
        values.double().softmax(1).gather(1, targets[:, None]) for values in (before, after)
    )
    predicted = after.argmax(1)
    return FunctionChange(
        accuracy=float((predicted == targets).double().mean()),
        kept_predictions=float((predicted == before.argmax(1)).double().mean()),
        target_change=float((new - old).mean()),
        n_images=len(images),
    )
