"""Graphs whose calls write to none of their inputs, against the networks that they come from."""

import copy
import functools
import threading

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from conftest import perturb
from steadymap import attribute
from steadymap.attribution.incremental import incremental
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.sliding_patch import drops
from steadymap.models.registry import explainable

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:FutureWarning", "ignore:.*weight_norm.*:FutureWarning"
)

MEAN, STD = [0.5, 0.45, 0.4], [0.2, 0.21, 0.22]


class Around(nn.Module):
    """A call between two convolutions; its input and its result can both be used behind it."""

    def __init__(self, call):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("scale", torch.tensor([0.5, -1, 2, 3]).reshape(1, 4, 1, 1))
        self.head = nn.Linear(4, 5)
        self.call = call

    def forward(self, x):
        return self.head(F.elu(self.second(self.call(self, self.first(x)))).mean((2, 3)))


def statement(call):
    """A call whose result is not used, only what it wrote."""

    @functools.wraps(call)
    def run(network, x):
        call(network, x)
        return x

    return run


@statement
def item(_, x):
    x[:, 0] = 0


@statement
def masked_item(_, x):
    x[x < 0] = -0.3


@statement
def augmented_item(_, x):
    x[:, 1] += 1.5


@statement
def whole_view(_, x):
    x.view(-1).mul_(3)


@statement
def part_of_it(_, x):
    x[:, 1:3].sigmoid_()


@statement
def reshaped(_, x):
    F.relu(x.reshape(x.size(0), -1), inplace=True)


@statement
def module_on_a_view(network, x):
    network.relu(x.flatten(1))


@statement
def stored_outside(_, x):
    torch._foreach_mul_([x], 2.0)


def residual(network, x):
    return network.relu(x) + 2 * x


def chained(_, x):
    y = x.add_(1)
    z = y.mul_(2)
    return z + x.tanh() + y


def value_before(_, x):
    before = 2 * x
    x.sigmoid_()
    return before + x


def chunks(_, x):
    first, second = x.chunk(2, 1)
    first.mul_(3)
    return torch.cat([second, first, x[:, :0]], 1)


def permuted(_, x):
    y = x.permute(0, 2, 3, 1)
    y.mul_(2)
    y += 1
    return y.permute(0, 3, 1, 2) + x


def shifted(_, x):
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    y[:, :1].fill_(0.5)
    return y


def buffer(network, x):
    network.scale.mul_(2)
    return x * network.scale


def other_shape(_, x):
    x.unsqueeze_(0)
    return x.squeeze(0)


def out_elsewhere(_, x):
    y = torch.empty_like(x)
    torch.mul(x, 3, out=y)
    return y


@statement
def out_into_itself(_, x):
    torch.mul(x, 3, out=x)


CALLS = {
    "leaky_relu": statement(lambda _, x: F.leaky_relu(x, 0.3, inplace=True)),
    "silu": lambda _, x: F.silu(x, inplace=True),
    "hardswish by position": statement(lambda _, x: F.hardswish(x, True)),
    "sigmoid_": statement(lambda _, x: x.sigmoid_()),
    "tanh_": statement(lambda _, x: torch.tanh_(x)),
    "elu_": statement(lambda _, x: F.elu_(x)),
    "clamp_": statement(lambda _, x: x.clamp_(-0.1, 0.1)),
    "masked_fill_": statement(lambda _, x: x.masked_fill_(x < 0, -1)),
    "zero_": statement(lambda _, x: x[:, 0].zero_()),
    **{
        call.__name__: call
        for call in (
            *(item, masked_item, augmented_item, whole_view, part_of_it, reshaped),
            *(module_on_a_view, stored_outside, residual, chained, value_before, chunks),
            *(permuted, shifted, buffer, other_shape, out_elsewhere, out_into_itself),
        )
    },
}


def made(call):
    torch.manual_seed(0)
    return perturb(Around(call))


def normalized(images):
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def logits_of(network, images):
    """Of a copy, as a network may write to its buffers too."""
    with torch.no_grad():
        return copy.deepcopy(network)(normalized(images))


@pytest.mark.parametrize("name", CALLS)
class TestCallsThatWrite:
    def test_logits_stay_and_nothing_is_left_behind(self, name, images):
        network = made(CALLS[name])
        expected = logits_of(network, images)

        model = explainable(network, mean=MEAN, std=STD)

        with torch.no_grad():
            first, second = model(images), model(images)
        assert torch.equal(first, second)
        assert (first - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_gradients_are_the_networks_own(self, name, images):
        if name.startswith("out_") or name == "chunks":
            pytest.skip("autograd refuses such writes in the network itself")
        network = made(CALLS[name])
        inputs = images.clone().requires_grad_()
        copy.deepcopy(network)(normalized(inputs))[:, 2].sum().backward()

        maps = attribute("gradient", explainable(network, mean=MEAN, std=STD), images, 2)

        expected = inputs.grad.mean(1)
        assert (maps - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_sliding_patch_in_part_equals_whole_passes(self, name, images):
        """Where activations of the unchanged image are used again for every patch."""
        network = made(CALLS[name])
        model = explainable(network, mean=MEAN, std=STD)
        images, targets = images[:2], torch.tensor([2, 2])
        whole = logits_of(network, images)[:, 2]
        expected = torch.zeros(2, 6, 6)
        for row in range(6):
            for column in range(6):
                covered = images.clone()
                covered[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
                expected[:, row, column] = whole - logits_of(network, covered)[:, 2]
        runner = ModelRunner(model, 5)

        found = drops(runner, images, targets, patch_size=4, stride=4, fill="black", output="logit")

        places = tuple(range(0, 24, 4))
        if (chain := incremental(runner.fast)) is not None:
            assert chain.plan(24, 24, 4, places, places)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU()]
    return perturb(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)))


class Flags(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, x, features=False, mask=None, *, scale=2.0):
        if features:
            return x
        return self.inner(x if mask is None else x * mask) * scale


class Wrapper(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or small()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)
        self.pool, self.inner = nn.MaxPool2d(2), small()

    def forward(self, x):
        x = F.max_pool2d(input=self.relu(input=self.conv(input=x)), kernel_size=2, stride=1)
        return self.inner(input=F.relu(input=self.pool(input=x) - 0.2))


class Sized(nn.Module):
    """Pools as large as the image is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        x = self.conv(x)
        top = F.max_pool2d(x, kernel_size=x.size()[2:])
        return (top + F.avg_pool2d(input=x, kernel_size=x.shape[2:])).view(x.size(0), -1)


class Viewed(nn.Module):
    """For images of one size, which no usual one is."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 22 * 22, 5)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).view(x.size(0), -1))


@torch.compile
def doubled(x):
    return 2 * F.relu(x)


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    @torch.compile
    def forward(self, x):
        return self.inner(doubled(x))


class Holding(Wrapper):
    """What deepcopy can't copy: a lock, and values with a history."""

    def __init__(self):
        super().__init__()
        self.lock, self.seen = threading.Lock(), [2 * torch.ones(2, requires_grad=True)]


def reparametrized(change):
    """After a training step, which leaves weights with a history behind."""
    network = small()
    for layer in (network[0], network[2]):
        change(layer)
    network.train()(torch.rand(1, 3, 24, 24)).sum().backward()
    return network.eval()


NETWORKS = {
    "flags": Flags,
    "*args": Wrapper,
    "keywords": Keywords,
    "sizes": Sized,
    "views": Viewed,
    "DataParallel": lambda: nn.DataParallel(small()),
    "DataParallel inside": lambda: Wrapper(nn.DataParallel(small())),
    "compiled": lambda: torch.compile(small()),
    "compiled inside": lambda: Wrapper(nn.DataParallel(torch.compile(small()))),
    "compiled functions": Compiled,
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(small()),
    "uncopyable": Holding,
    "weight_norm": lambda: reparametrized(nn.utils.weight_norm),
    "spectral_norm": lambda: reparametrized(nn.utils.spectral_norm),
    "parametrized": lambda: reparametrized(parametrizations.weight_norm),
    "pruned": lambda: reparametrized(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_only_look_untraceable(name, images):
    network = NETWORKS[name]().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = network(normalized(images))

    model = explainable(network, mean=MEAN, std=STD)

    with torch.no_grad():
        assert (model(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(copy.deepcopy(model)(images), model(images))
        with torch.compiler.set_stance("force_eager"):
            assert torch.equal(network(normalized(images)), expected)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [type(module) for module in network.modules()] == kinds


class Values(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Shapes(nn.Module):
    def forward(self, x):
        return x if x.shape[2] == x.size(-1) else x.transpose(2, 3)


class Rows(nn.Module):
    def forward(self, x):
        return torch.stack([row.mean((1, 2)) for row in x])


class Masked(nn.Module):
    def forward(self, x, mask):
        return x * mask


class Fixed(nn.Module):
    """Takes no square image."""

    def forward(self, x):
        return (
            x.reshape(-1, 3, 7, 5).mean((2, 3))
            + 0 * x[:, :, 6, 4]
            + 0 * x.reshape(-1, 3, 35)[:, :, 0]
        )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Values, r"Values can't be traced at \S+test_adapter.py:\d+ \(`return x if x.sum\(\) > 0 "
                   r"else -x`\): .*values of a tensor; move such branches out of forward"),
        (Shapes, r"Shapes can't be traced at .*shape of a tensor.*write the size of your images"),
        (Rows, r"Rows can't be traced at .*for row in x.*cannot be iterated"),
        (Masked, r"Masked can't be traced: .*'mask'; wrap it in a module whose forward"),
        (lambda: torch.jit.script(small()), "the network is a ScriptModule.* give the nn.Module"),
        (lambda: Wrapper(torch.jit.script(small())), "module 'inner' of Wrapper is a ScriptModule"),
        (Fixed, r"Fixed: no blank image runs through it .*give size=\(height, width\)"),
    ],
)  # fmt: skip
def test_refusals_say_what_was_met_and_where(network, message):
    with pytest.raises(ValueError, match=message):
        explainable(network(), mean=MEAN, std=STD)


def test_the_size_of_images_can_be_given():
    images = torch.rand(2, 3, 7, 5)

    model = explainable(Fixed(), mean=MEAN, std=STD, size=(7, 5))

    assert torch.allclose(model(images), normalized(images).mean((2, 3)))


def test_an_adapted_network_can_be_adapted_again(images):
    """Copies that writes were moved to are copies still."""
    network = made(CALLS["chunks"])
    model = explainable(network, mean=MEAN, std=STD)

    again = explainable(nn.Sequential(model, nn.Identity()), mean=[0.0], std=[1.0])

    with torch.no_grad():
        assert torch.allclose(again(images), logits_of(network, images), rtol=1e-5)


# One of each family that torchvision has, the smallest.
FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11_bn", "vit_b_16", "wide_resnet50_2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_keeps_its_logits(name):
    torch.manual_seed(0)
    network = perturb(torchvision.models.get_model(name, weights=None, num_classes=7))
    images = torch.rand(1, 3, 224, 224)
    expected = logits_of(network, images)

    model = explainable(network, mean=MEAN, std=STD)

    with torch.no_grad():
        assert (model(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
