"""Covered images, computed in part, against whole passes."""

import pytest
import torch
from torch import nn

from conftest import Tiny, perturb
from steadymap.attribution import incremental
from steadymap.attribution.fusion import fused
from steadymap.attribution.incremental import Incremental, Patches, covered
from steadymap.attribution.model_runner import ModelRunner
from steadymap.models.registry import CONSTRUCTORS, build, explainable

GREY = torch.full((1, 3, 1, 1), 0.5)

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN fuses nothing"
)


class Odd(nn.Module):
    """Every kind of window: strides that don't divide the side, ceil mode, dilation, 1 x 3."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 4, stride=3, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.flat = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.narrow = nn.Conv2d(12, 4, 3)
        self.far = nn.Conv2d(4, 5, 3, stride=2)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.stem(x)
        both = torch.cat([torch.relu(self.flat(x)) + x, self.pool(self.dilated(x))], 1)
        return self.fc(torch.relu(self.far(self.narrow(self.norm(both)))).mean((2, 3)))


class Broadcast(nn.Module):
    """A sum of an activation and a value for all of it: nowhere does that stay in a box."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.whole = nn.Conv2d(4, 4, 40)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc((self.whole(x) + x).mean((2, 3)))


def adapted(network):
    torch.manual_seed(0)
    return explainable(perturb(network), mean=[0.5, 0.45, 0.4], std=[0.2, 0.21, 0.22])


def photographs(n, height, width):
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unfused(monkeypatch):
    """Segments of models as they are, so that float64 shows what is exact."""
    monkeypatch.setattr(incremental, "incremental", lambda model: Incremental(model.network))


def both(model, images, size, stride, *, batch_size=7):
    """Logits in part and in whole, and how many segments ran on crops."""
    tops, lefts = (tuple(range(0, side - size + 1, stride)) for side in images.shape[2:])
    patches = Patches(tops, lefts, size, GREY.to(images))
    runner = ModelRunner(model, batch_size, fast=model)
    in_part = covered(runner, images, patches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(incremental, "incremental", lambda model: None)
        whole = covered(ModelRunner(model, batch_size, fast=model), images, patches)
    chain = incremental.incremental(model)
    steps = chain.plan(*images.shape[2:], size, tops, lefts)
    assert runner.forward == len(images) * (1 + len(tops) * len(lefts))
    return in_part, whole, len(steps)


def apart(found, expected):
    """Largest difference, relative to the largest drop."""
    drops = (expected[:, :1] - expected[:, 1:]).abs().max()
    return float((found - expected).abs().max() / drops)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 90), (100, 47)])
@pytest.mark.parametrize(("size", "stride"), [(1, 7), (6, 5), (17, 9)])
@pytest.mark.usefixtures("unfused")
def test_any_window_at_any_place_equals_whole_passes(height, width, size, stride):
    model = adapted(Odd()).double()

    found, expected, n_steps = both(model, photographs(2, height, width).double(), size, stride)

    assert n_steps >= 1
    assert apart(found, expected) < 1e-10


@pytest.mark.parametrize("architecture", sorted(CONSTRUCTORS))
@pytest.mark.usefixtures("unfused", "narrow_vgg")
def test_every_architecture_equals_whole_passes(architecture):
    model = adapted(build(architecture, 10)).double()
    images = photographs(1, 96, 96).double()

    found, expected, n_steps = both(model, images, 9, 40, batch_size=4)

    assert n_steps >= 3
    # A drop of a random network may be less than a millionth of its logits.
    assert apart(found, expected) < 1e-4


@pytest.mark.parametrize("network", [Tiny(), Odd(), build("resnet18", 10)], ids=type)
def test_fused_float32_equals_whole_passes(network):
    model = fused(adapted(network))

    found, expected, n_steps = both(model, photographs(3, 64, 64), 12, 9)

    assert n_steps >= 1
    assert apart(found, expected) < 1e-3


@pytest.mark.usefixtures("unfused")
def test_a_crop_without_what_lies_around_would_be_seen(monkeypatch):
    """The comparison above is one that can fail: here padding stands where neighbors should."""

    def too_little(self, low, high):
        first = low * self.stride - self.padding + self.reach // 2
        return first, first + (high - low) * self.stride

    monkeypatch.setattr(incremental._Window, "needed", too_little)
    model = adapted(build("resnet18", 10)).double()

    found, expected, _ = both(model, photographs(1, 96, 96).double(), 6, 25)

    assert apart(found, expected) > 1e-3


@pytest.mark.usefixtures("unfused")
def test_a_box_one_value_short_would_be_seen(monkeypatch):
    changed = incremental._Segment.changed
    monkeypatch.setattr(
        incremental._Segment,
        "changed",
        lambda *given: (changed(*given)[0], changed(*given)[1] - 1),
    )

    found, expected, _ = both(adapted(Odd()).double(), photographs(1, 64, 64).double(), 6, 5)

    assert apart(found, expected) > 1e-3


def test_neighbors_in_a_batch_change_no_bit():
    model, images = adapted(build("resnet18", 10)), photographs(9, 64, 64)
    patches = Patches((0, 11, 40), (3, 50), 8, GREY)

    together = covered(ModelRunner(model, 4), images, patches)

    for position in (0, 5, 8):
        alone = covered(ModelRunner(model, 4), images[position : position + 1], patches)
        assert torch.equal(alone[0], together[position])


@pytest.mark.usefixtures("unfused")
def test_a_sum_that_broadcasts_runs_whole():
    model = adapted(Broadcast()).double()

    found, expected, n_steps = both(model, photographs(2, 40, 40).double(), 5, 11)

    assert n_steps == 2  # convolution and ReLU
    assert apart(found, expected) < 1e-5


@pytest.mark.usefixtures("unfused")
def test_a_patch_as_large_as_the_image_runs_whole():
    found, expected, n_steps = both(adapted(Odd()), photographs(1, 64, 64), 64, 1)

    assert n_steps == 0
    assert torch.allclose(found, expected, atol=1e-5)


class Indices(nn.Module):
    """Pooling that tells where its maxima were."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        values, places = self.pool(self.stem(x))
        return self.fc((values + places / 1000).mean((2, 3)))


@pytest.mark.usefixtures("unfused")
def test_what_is_not_understood_runs_whole():
    model = adapted(Indices()).double()

    found, expected, n_steps = both(model, photographs(1, 32, 32).double(), 3, 9)

    assert n_steps == 1
    assert apart(found, expected) < 1e-10


def test_what_is_not_fused_runs_whole():
    model = adapted(Tiny()).double()

    assert incremental.incremental(model) is None
    assert incremental.incremental(nn.Linear(3, 2)) is None
    assert incremental.incremental(fused(adapted(Tiny()))) is not None


def test_a_model_that_is_gone_is_not_kept():
    model = fused(adapted(Tiny()))
    incremental.incremental(model)
    before = len(incremental._INCREMENTAL)

    del model

    assert len(incremental._INCREMENTAL) == before - 1
