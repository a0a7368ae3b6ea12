import json
import sys

import pytest
import torch
import torchvision
from torch import nn

from conftest import Tiny, perturb, write_model
from steadymap.models.registry import (
    CONSTRUCTORS,
    build,
    explainable,
    identity,
    load,
    load_state,
    read_state,
    source_sha256,
)
from steadymap.params.methods import ARCHITECTURES

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def auxiliary_googlenet(transform_input):
    return torchvision.models.googlenet(
        weights=None, num_classes=7, init_weights=False, transform_input=transform_input
    )


NETWORKS = {
    "tiny": lambda: Tiny(),
    **{name: lambda name=name: build(name, 7) for name in ARCHITECTURES},
    "googlenet with heads": lambda: auxiliary_googlenet(False),
    "googlenet, input transformed": lambda: auxiliary_googlenet(True),
    "inception_v3 with heads": lambda: torchvision.models.inception_v3(
        weights=None, num_classes=7, init_weights=False, transform_input=True
    ),
}


def logits_of(network, images):
    mean, std = torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(STD).reshape(1, 3, 1, 1)
    with torch.no_grad():
        return network((images - mean) / std)


@pytest.mark.parametrize("name", NETWORKS)
def test_adapter_keeps_the_logits(name):
    """Perturbed BatchNorm: identity statistics would hide a lost layer."""
    network = perturb(NETWORKS[name]())
    images = torch.rand((3, 3, 80, 80), generator=torch.Generator().manual_seed(0))

    adapted = explainable(network, mean=MEAN, std=STD)

    expected = logits_of(network, images)
    with torch.no_grad():
        assert (adapted(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("tiny", 3),
        ("googlenet with heads", 57),
        ("inception_v3 with heads", 94),
        ("mobilenet_v2", 35),
        ("resnet18", 17),
        ("resnet50", 49),
        ("vgg16", 15),
    ],
)
def test_every_activation_call_is_a_module_of_its_own(name, calls):
    adapted = explainable(NETWORKS[name](), mean=MEAN, std=STD)

    activations = [m for m in adapted.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    assert len(activations) == calls
    assert not any(module.inplace for module in activations)
    counts = dict.fromkeys(activations, 0)

    def count(module, _inputs, _output):
        counts[module] += 1

    for module in activations:
        module.register_forward_hook(count)
    adapted(torch.rand(1, 3, 80, 80))
    assert set(counts.values()) == {1}


def test_auxiliary_heads_are_gone():
    adapted = explainable(auxiliary_googlenet(False), mean=MEAN, std=STD)

    assert not [name for name, _ in adapted.named_modules() if "aux" in name]


def test_the_network_given_is_not_touched():
    network = Tiny().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    adapted = explainable(network, mean=MEAN, std=STD)
    adapted(torch.rand(2, 3, 16, 16))

    assert network.training
    assert network.relu.inplace
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_nothing_is_clamped(tiny):
    images = (3 * torch.rand(2, 3, 16, 16) - 1).requires_grad_()

    tiny(images).sum().backward()

    outside = (images < 0) | (images > 1)
    assert (images.grad[outside] != 0).float().mean() > 0.5


def test_a_network_that_cannot_be_traced_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branching can't be traced .*move such branches out"):
        explainable(Branching(), mean=MEAN, std=STD)


def test_registry_and_vocabulary_agree():
    assert set(CONSTRUCTORS) == set(ARCHITECTURES)


def test_build_is_seeded_and_leaves_the_random_state():
    before = torch.random.get_rng_state()

    first, again, other = (build("googlenet", 5, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_unknown_architecture_is_named():
    with pytest.raises(ValueError, match=r"'alexnet' is not known; choose one of .*googlenet"):
        build("alexnet", 5)


def test_loaded_weights_must_be_the_card_s(tmp_path):
    write_model(tmp_path / "googlenet", model="googlenet", classes=list("abc"))
    assert load(tmp_path / "googlenet")(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    card = json.loads((tmp_path / "googlenet" / "card.json").read_text())

    other = {**card, "classes": list("abcd")}
    (tmp_path / "googlenet" / "card.json").write_text(json.dumps(other))
    with pytest.raises(
        ValueError,
        match=r"does not fit the network: fc.weight has shape \(3, 48\), the network \(4, 48\)",
    ):
        load(tmp_path / "googlenet")

    (tmp_path / "googlenet" / "card.json").write_text(json.dumps({**card, "weights_sha256": "0"}))
    with pytest.raises(ValueError, match=r"weights.safetensors: sha256 .* is not the card's 0"):
        load(tmp_path / "googlenet")


OWN = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, num_classes))

def none(num_classes):
    return num_classes

value = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module of one's own in the working folder; another one in each test."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


class TestOwnArchitecture:
    def test_is_built_seeded_and_leaves_the_import_path(self, own):
        before = list(sys.path)

        first, again, other = (build(f"{own}:small", 5, seed=seed) for seed in (1, 1, 2))

        assert sys.path == before
        assert first[4].out_features == 5
        assert torch.equal(first[0].weight, again[0].weight)
        assert not torch.equal(first[0].weight, other[0].weight)

    def test_its_code_is_part_of_what_it_is(self, own, tmp_path):
        before = source_sha256(f"{own}:small")
        card = {"weights_sha256": "ab", "source_sha256": before}

        (tmp_path / f"{own}.py").write_text(OWN + "\n# changed\n")

        assert source_sha256(f"{own}:small") != before
        assert source_sha256("googlenet") is None
        assert identity({"weights_sha256": "ab", "source_sha256": None}) == "ab"
        assert identity(card) not in ("ab", identity({**card, "source_sha256": "other"}))

    def test_statistics_count_where_params_can_change_them_alone(self):
        card = {"weights_sha256": "ab", "mean": MEAN, "std": STD}
        taken = {**card, "checkpoint": {"sha256": "cd"}}

        assert identity(card) == "ab"
        assert len({identity(card), identity(taken), identity({**taken, "mean": STD})}) == 3

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere_at_all:small", r"can't be imported \(No module named 'nowhere_at_all'\)"),
            ("OWN:absent", r"can't be imported \(module 'own_.*' has no attribute 'absent'\)"),
            ("OWN:none", "returns int; return an nn.Module"),
            ("OWN:value", "is no function in a Python file"),
        ],
    )
    def test_what_is_no_network_is_refused(self, own, name, message):
        with pytest.raises(ValueError, match=message):
            build(name.replace("OWN", own), 5)


class TestWeightsFile:
    def test_a_file_of_another_format_is_refused(self, tmp_path):
        """Those are read by `checkpoints`, safely, not by what opens our own."""
        torch.save({"a": torch.rand(2)}, tmp_path / "w.safetensors")

        with pytest.raises(
            ValueError, match=r"w.safetensors: no readable safetensors file .*write it again"
        ):
            read_state(tmp_path / "w.safetensors")

    def test_all_tensors_fit_or_none_is_loaded(self):
        network = nn.Linear(3, 2)
        before = network.weight.detach().clone()
        good = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
        for spoiled, message in (
            ({"weight": good["weight"]}, "bias is missing"),
            ({**good, "extra": torch.zeros(1)}, "extra is surplus"),
            ({**good, "bias": torch.zeros(3)}, r"bias has shape \(3,\), the network \(2,\)"),
            ({**good, "bias": torch.full((2,), torch.nan)}, "bias holds NaN or infinity"),
        ):
            with pytest.raises(ValueError, match=f"here: does not fit the network: {message}"):
                load_state(network, spoiled, source="here")
            assert torch.equal(network.weight, before)

        load_state(network, good, source="here")
        assert not network.weight.any()
