"""Fused kernels against the model's own, and what is left as it is."""

import pytest
import torch
from torch import nn

from conftest import Tiny, perturb
from steadymap.attribution import attribute
from steadymap.attribution.fusion import Convolution, fused
from steadymap.attribution.model_runner import ModelRunner
from steadymap.models.registry import build, explainable

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN fuses nothing"
)


class Branches(nn.Module):
    """Grouped, dilated, strided and reused convolutions; sums that broadcast; shared outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.wide = nn.Conv2d(8, 8, 1, padding=1)
        self.scalar = nn.Conv2d(8, 8, 12)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.grouped(x) + self.dilated(x))
        shared = self.dilated(x)
        x = torch.relu(shared) + shared
        x = torch.relu(self.scalar(x) + x) + nn.functional.relu6(self.grouped(x))
        return self.fc(self.wide(x).mean((2, 3)))


def adapted(network):
    torch.manual_seed(0)
    return explainable(perturb(network), mean=[0.5, 0.45, 0.4], std=[0.2, 0.21, 0.22])


def scored(model, images):
    images = images.clone().requires_grad_()
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits * weights).sum(), images)
    return logits.detach(), gradient


def units(model):
    return [module for module in model.modules() if isinstance(module, Convolution)]


@needs_onednn
@pytest.mark.parametrize("network", [Tiny, Branches])
def test_logits_and_gradients_equal_the_models(network, images):
    """No ReLU is near its kink here, so that rounding moves nothing by more than itself."""
    model = adapted(network())
    made = fused(model)

    assert units(made)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    for found, expected in zip(scored(made, images), scored(model, images), strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    graded = scored(made, images)[0]
    with torch.no_grad():
        assert torch.equal(made(images), graded)


@needs_onednn
@pytest.mark.usefixtures("narrow_vgg")
@pytest.mark.parametrize("architecture", ["googlenet", "resnet18", "mobilenet_v2", "vgg16"])
def test_architectures_keep_their_logits(architecture):
    model = adapted(build(architecture, 5))
    images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    made = fused(model)
    n = sum(isinstance(module, nn.Conv2d) for module in model.modules())

    with torch.no_grad():
        expected, found = model(images), made(images)

    assert len(units(made)) == n
    assert not any(type(module) in (nn.Conv2d, nn.BatchNorm2d) for module in made.modules())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_onednn
def test_a_residual_block_is_one_kernel_per_convolution():
    made = fused(adapted(build("resnet18", 5)))
    kinds = [type(module) for module in made.modules()]

    assert kinds.count(nn.ReLU) == 0
    assert sum(unit.relu for unit in units(made)) == 17


@needs_onednn
def test_the_model_is_not_touched_and_does_not_follow(tiny, images):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    expected = tiny(images)
    made = fused(tiny)

    assert torch.equal(tiny(images), expected)
    assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
    with torch.no_grad():
        found = made(images)
        tiny.network.conv1.weight.mul_(2)
        assert torch.equal(made(images), found)


@needs_onednn
def test_a_change_of_weights_between_calls_is_seen(tiny, images):
    first = attribute("gradient", tiny, images, 1)
    with torch.no_grad():
        tiny.network.conv1.weight.data.mul_(1.5)

    assert not torch.equal(attribute("gradient", tiny, images, 1), first)


def test_hooks_own_networks_and_other_devices_are_left_alone(tiny):
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    assert fused(bare) is bare
    meta = adapted(Tiny()).to("meta")
    assert fused(meta) is meta
    handle = tiny.network.conv1.register_forward_hook(lambda *_: None)
    assert fused(tiny) is tiny
    handle.remove()
    assert fused(tiny) is not tiny or not torch.backends.mkldnn.is_available()


@needs_onednn
def test_bits_do_not_depend_on_company_or_order(images):
    """At one padded batch shape, as for the model itself."""
    model = adapted(Branches())
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    whole = ModelRunner(model, 4).gradients(images, targets, output="logit")
    order = torch.tensor([5, 2, 0])
    some = ModelRunner(model, 4).gradients(images[order], targets[order], output="logit")

    assert torch.equal(some, whole[order])
    alone = ModelRunner(model, 4).scores(images[3:4], targets[3:4], output="logit")
    assert torch.equal(alone, ModelRunner(model, 4).scores(images, targets, output="logit")[3:4])


def test_too_large_a_batch_says_what_to_set(tiny, images):
    class Full(nn.Module):
        def forward(self, rows):
            raise torch.OutOfMemoryError("CUDA out of memory")

    runner = ModelRunner(tiny, 64, fast=Full())
    targets = torch.zeros(6, dtype=torch.int64)

    for call in (runner.scores, runner.gradients):
        with pytest.raises(
            MemoryError, match=r"64 images of 24 x 24 px .*batch_size to 32 \(it is 64"
        ):
            call(images, targets, output="logit")
