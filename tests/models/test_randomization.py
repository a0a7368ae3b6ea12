"""Units, randomized copies and what they do to the function."""

import copy
import hashlib

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from conftest import Tiny, perturb
from steadymap.models.randomization import (
    CALIBRATION_IMAGES,
    functional_change,
    logits,
    needs_calibration,
    orders,
    randomized,
    units,
)
from steadymap.models.registry import CONSTRUCTORS, build, explainable

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COUNTS = {
    "inception_v3": (17, 17),
    "vgg16": (13, 16),
    "mobilenet_v2": (19, 20),
    "resnet18": (8, 10),
    "resnet50": (16, 18),
    "googlenet": (12, 13),
    "squeezenet1_0": (9, 10),
}


@pytest.fixture(scope="module")
def networks():
    """The registry's architectures without values: names, shapes and forward passes alone."""
    with torch.device("meta"):
        return {name: make(7).eval() for name, make in CONSTRUCTORS.items()}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return perturb(Tiny())


@pytest.fixture(scope="module")
def resnet():
    return perturb(build("resnet18", 7))


@pytest.fixture(scope="module")
def photographs():
    """Forty normalized images: two batches of calibration."""
    return torch.randn((40, 3, 32, 32), generator=torch.Generator().manual_seed(3))


def fingerprint(network):
    state = network.state_dict()
    joined = b"".join(name.encode() + value.numpy().tobytes() for name, value in state.items())
    return hashlib.sha256(joined).hexdigest()


def changed(before, after):
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def owned(network, unit):
    """Names in the state dict that belong to a unit."""
    return {
        name
        for name in network.state_dict()
        if any(name.startswith(f"{path}.") for path in unit.split("+"))
    }


# Units


@pytest.mark.parametrize("name", COUNTS)
def test_numbers_of_units_are_the_papers(networks, name):
    network = networks[name]
    paper, everything = units(network), units(network, "all")

    assert (len(paper), len(everything)) == COUNTS[name]
    assert set(paper) <= set(everything)
    assert units(network, architecture=name) == paper


@pytest.mark.parametrize("name", COUNTS)
def test_all_units_hold_every_parameter_once(networks, name):
    network = networks[name]
    parameters = [name for name, _ in network.named_parameters()]

    held = [
        parameter
        for unit in units(network, "all")
        for parameter in parameters
        if any(parameter.startswith(f"{path}.") for path in unit.split("+"))
    ]

    assert sorted(held) == sorted(parameters)


@pytest.mark.parametrize("name", COUNTS)
def test_units_come_in_the_order_of_the_forward_pass(networks, name):
    network = networks[name]
    found, called = units(network, "all"), []
    hooks = [
        network.get_submodule(unit.split("+")[0]).register_forward_pre_hook(
            lambda _module, _inputs, unit=unit: called.append(unit)
        )
        for unit in found
    ]

    with torch.no_grad():
        network(torch.empty((1, 3, 80, 80), device="meta"))

    for hook in hooks:
        hook.remove()
    assert called == found


def test_auxiliary_heads_are_no_units():
    with torch.device("meta"):
        network = torchvision.models.googlenet(weights=None, num_classes=7, init_weights=False)

    assert units(network, "all") == units(CONSTRUCTORS["googlenet"](7), "all")


def test_other_depths_of_a_known_class_have_the_same_rule():
    with torch.device("meta"):
        resnet34 = torchvision.models.resnet34(num_classes=7)
        vgg = torchvision.models.vgg11_bn(num_classes=7)

    assert len(units(resnet34)) == 16
    assert len(units(vgg)) == 8
    assert units(vgg)[0] == "features.0+features.1"


class Nested(nn.Module):
    """Containers, a block, an unused head, and definition in another order than use."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 3)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(Tiny(4))
        )

    def forward(self, x):
        return self.head(self.body(x))


def test_any_other_network_is_split_into_its_blocks():
    assert units(Nested()) == ["body.0+body.1", "body.3.0", "head"]
    assert units(Tiny()) == ["conv1+bn1", "conv2+bn2", "fc"]
    assert units(Tiny(), "all") == units(Tiny())


def test_own_units_are_put_into_the_order_of_the_forward_pass():
    own = ["head", "body.3.0.fc", "body.3.0.conv1+body.3.0.bn1"]

    assert units(Nested(), override=own) == list(reversed(own))


class Branching(Tiny):
    """Can't be traced."""

    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


def test_untraceable_networks_take_own_units():
    with pytest.raises(ValueError, match=r"Branching can't be traced.*yourself \(override\)"):
        units(Branching())
    assert units(Branching(), override=["fc", "conv1"]) == ["fc", "conv1"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["conv3"], r"unit 'conv3' matches no module of Tiny, the closest is 'conv[12]'; name mod"),
        (["conv1+bm1"], r"unit 'conv1\+bm1' .* the closest is 'bn1'"),
        ([""], "unit '' matches no module"),
        (["relu"], r"unit 'relu': relu \(ReLU\) has no parameters; leave it out"),
        (["fc", "fc"], "unit 'fc' is listed 2 times"),
        (["conv1", "conv1+bn1"], r"units 'conv1' and 'conv1\+bn1' share parameters"),
    ],
)
def test_names_that_fit_nothing_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        units(Tiny(), override=own)


def test_units_that_the_forward_pass_leaves_out_are_refused():
    with pytest.raises(ValueError, match="unit 'unused' is not used by the forward pass of Nested"):
        units(Nested(), override=["head", "unused"])


def test_networks_without_units_are_refused(network):
    with pytest.raises(ValueError, match="Sequential has no parameters: there is nothing to"):
        units(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="already adapted; pass the network that"):
        units(explainable(network, mean=MEAN, std=STD))
    with pytest.raises(ValueError, match="preset 'some' is unknown; choose one of paper, all"):
        units(network, "some")
    with pytest.raises(ValueError, match=r"'resnet' has no rule .*closest is 'resnet"):
        units(network, architecture="resnet")
    for name in ("googlenet", "vgg16"):
        with pytest.raises(ValueError, match=f"Tiny is not built like {name}; .* list the units"):
            units(network, architecture=name)


def test_orders():
    names = ["a", "b", "c"]

    assert orders(names) == [("a",), ("b",), ("c",)]
    assert orders(names, "top_down") == [("c",), ("c", "b"), ("c", "b", "a")]
    assert orders(names, "bottom_up") == [("a",), ("a", "b"), ("a", "b", "c")]
    with pytest.raises(ValueError, match="order 'random' is unknown; choose one of independent"):
        orders(names, "random")


# Randomising


@pytest.mark.parametrize("randomizer", ["init", "stale", "reset", "permute"])
def test_only_the_unit_changes_and_all_of_it(resnet, photographs, randomizer):
    before = fingerprint(resnet)
    for unit in ("layer2.0", "conv1+bn1", "fc"):
        found = randomized(
            resnet, unit, draw=0, seed=0, randomizer=randomizer, calibration_images=photographs
        )

        moved = changed(resnet, found)
        assert moved <= owned(resnet, unit)
        parameters = {name for name, _ in resnet.named_parameters()} & owned(resnet, unit)
        assert parameters <= moved
        statistics = {name for name in owned(resnet, unit) if "running" in name}
        assert statistics.isdisjoint(moved) if randomizer == "stale" else statistics <= moved
        assert not any(module.training for module in found.modules())
    assert fingerprint(resnet) == before


def test_biases_that_an_initialiser_zeroes_are_drawn(photographs):
    """VGG's constructor sets biases to 0, which would be the same in every draw."""
    network = perturb(torchvision.models.vgg11(num_classes=7)).requires_grad_(False)
    network.features[0].bias.add_(3)

    draws = [randomized(network, "features.0", draw=k, seed=0) for k in range(2)]

    biases = [found.features[0].bias for found in draws]
    assert not (biases[0] == biases[1]).any()
    trained = network.features[0].bias
    both = torch.cat(biases)
    assert abs(both.mean() - trained.mean()) < 0.1
    assert 0.7 < both.std() / trained.std() < 1.4
    assert changed(network, draws[0]) == {"features.0.weight", "features.0.bias"}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_weights_are_spread_as_the_constructor_spreads_them(name):
    """The oracle is a network that torchvision's own constructor has just made."""
    network = build(name, 40, seed=1)
    fresh = build(name, 40, seed=2).state_dict()
    compared = 0
    for unit in units(network, "all")[-4:]:
        found = randomized(network, unit, draw=0, seed=0, randomizer="stale").state_dict()
        for path in owned(network, unit):
            if fresh[path].numel() < 5000:
                continue
            compared += 1
            assert found[path].std() == pytest.approx(float(fresh[path].std()), rel=0.05)
            for sample in (found[path], fresh[path]):
                assert abs(sample.mean()) < 0.05 * sample.std()
            # Uniform against normal.
            reach = [
                float(sample.abs().max() / sample.std()) for sample in (found[path], fresh[path])
            ]
            assert (reach[0] < 1.8) == (reach[1] < 1.8)
    assert compared >= 4


def test_batchnorm_is_drawn_like_the_trained_layer():
    network = nn.Sequential(nn.Conv2d(3, 4000, 1), nn.BatchNorm2d(4000), nn.Flatten())
    nn.init.normal_(network[1].weight, 2, 0.5)
    nn.init.normal_(network[1].bias, -1, 0.2)

    found = randomized(network, "0+1", draw=0, seed=0, randomizer="stale").state_dict()

    gamma, beta = found["1.weight"].numpy(), found["1.bias"].numpy()
    assert gamma.mean() == pytest.approx(2, abs=0.05)
    assert gamma.std() == pytest.approx(0.5, rel=0.06)
    assert beta.mean() == pytest.approx(-1, abs=0.02)
    assert beta.std() == pytest.approx(0.2, rel=0.06)
    assert abs(np.corrcoef(gamma, network.state_dict()["1.weight"])[0, 1]) < 0.1
    assert abs(np.corrcoef(gamma, beta)[0, 1]) < 0.1


def test_units_of_the_same_shape_get_different_weights(resnet, photographs):
    found = {
        unit: randomized(resnet, unit, draw=0, seed=0, randomizer="stale")
        for unit in ("layer1.0", "layer1.1")
    }

    first = found["layer1.0"].layer1[0].state_dict()
    second = found["layer1.1"].layer1[1].state_dict()
    assert not (first["conv1.weight"] == second["conv1.weight"]).any()
    assert not (first["conv1.weight"] == first["conv2.weight"]).any()
    assert not (first["bn1.weight"] == second["bn1.weight"]).any()


def test_draws_and_seeds_differ_and_repeat(network, photographs):
    def made(draw, seed, randomizer):
        found = randomized(
            network,
            "conv2+bn2",
            draw=draw,
            seed=seed,
            randomizer=randomizer,
            calibration_images=photographs,
        )
        return fingerprint(found)

    for randomizer in ("init", "stale", "reset", "permute"):
        found = [made(draw, seed, randomizer) for draw, seed in ((0, 0), (1, 0), (0, 1))]
        assert len(set(found)) == 3
        assert made(0, 0, randomizer) == found[0]


def test_cascades_keep_what_the_step_before_drew(network, photographs):
    steps = [
        randomized(network, step, draw=0, seed=0, calibration_images=photographs)
        for step in orders(units(network), "top_down")
    ]

    assert torch.equal(steps[0].fc.weight, steps[2].fc.weight)
    assert torch.equal(steps[1].conv2.weight, steps[2].conv2.weight)
    alone = randomized(network, "conv2+bn2", draw=0, seed=0, calibration_images=photographs)
    assert torch.equal(alone.conv2.weight, steps[2].conv2.weight)
    parameters = {name for name, _ in network.named_parameters()}
    assert parameters <= changed(network, steps[-1])


@pytest.mark.parametrize("randomizer", ["init", "permute"])
def test_statistics_are_those_of_the_randomized_unit(resnet, photographs, randomizer):
    """On the calibration images BatchNorm's output has mean beta and spread |gamma|."""
    unit = "layer2.0"
    resnet = copy.deepcopy(resnet)
    for layer in resnet.modules():
        if isinstance(layer, _BatchNorm):
            # As after training: an average that went on would hardly move.
            layer.num_batches_tracked.fill_(1000)
    found = randomized(
        resnet, unit, draw=0, seed=0, randomizer=randomizer, calibration_images=photographs
    )
    stale = randomized(resnet, unit, draw=0, seed=0, randomizer="stale")

    def misfit(network):
        worst = []
        outputs = {}
        hooks = [
            layer.register_forward_hook(
                lambda module, _inputs, output: outputs.update({module: output.detach().clone()})
            )
            for layer in network.get_submodule(unit).modules()
            if isinstance(layer, _BatchNorm)
        ]
        logits(network, photographs, batch_size=len(photographs))
        for hook in hooks:
            hook.remove()
        for layer, output in outputs.items():
            scale = layer.weight.detach().abs()
            worst.append(((output.mean((0, 2, 3)) - layer.bias.detach()).abs() / scale).max())
            worst.append((output.std((0, 2, 3)) / scale - 1).abs().max())
        assert len(worst) == 6
        return max(float(value) for value in worst)

    assert misfit(found) < 0.1
    assert misfit(stale) > 0.5
    assert found.layer2[0].bn1.momentum == resnet.layer2[0].bn1.momentum


def test_reset_is_the_librarys(network):
    found = randomized(network, "conv2+bn2", draw=0, seed=0, randomizer="reset").bn2

    assert (found.weight == 1).all()
    assert (found.bias == 0).all()
    assert (found.running_mean == 0).all()
    assert (found.running_var == 1).all()


def test_permuting_keeps_each_tensors_values(network, photographs):
    found = randomized(
        network,
        "conv2+bn2",
        draw=0,
        seed=0,
        randomizer="permute",
        calibration_images=photographs,
    )

    for name in ("conv2.weight", "conv2.bias", "bn2.weight", "bn2.bias"):
        before, after = network.get_parameter(name), found.get_parameter(name)
        assert not torch.equal(before, after)
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


def test_stale_has_the_weights_of_init(network, photographs):
    init = randomized(network, "conv2+bn2", draw=0, seed=0, calibration_images=photographs)
    stale = randomized(network, "conv2+bn2", draw=0, seed=0, randomizer="stale")

    assert changed(init, stale) == {
        "bn2.running_mean",
        "bn2.running_var",
        "bn2.num_batches_tracked",
    }


def test_randomizing_nothing_changes_nothing(network, images):
    found = randomized(network, [], draw=0, seed=0)

    assert found is not network
    assert fingerprint(found) == fingerprint(network)
    assert torch.equal(logits(found, images), logits(network, images))


def test_more_calibration_images_than_wanted_are_left(network):
    many = torch.randn((CALIBRATION_IMAGES + 9, 3, 12, 12), generator=torch.Generator())

    found = [
        randomized(network, "conv1+bn1", draw=0, seed=0, calibration_images=many[:count])
        for count in (CALIBRATION_IMAGES, CALIBRATION_IMAGES + 9, CALIBRATION_IMAGES - 9)
    ]

    assert fingerprint(found[0]) == fingerprint(found[1])
    assert fingerprint(found[0]) != fingerprint(found[2])


@pytest.mark.parametrize("randomizer", ["init", "stale", "reset", "permute"])
def test_global_random_state_stays(network, photographs, randomizer):
    before = torch.get_rng_state()

    randomized(network, "fc", draw=0, seed=0, randomizer=randomizer, calibration_images=photographs)

    assert torch.equal(torch.get_rng_state(), before)


def test_own_constructor_is_used(network):
    def constructor():
        made = Tiny()
        for value in made.fc.parameters():
            nn.init.normal_(value, 50, 1)
        return made

    found = [
        randomized(network, "fc", draw=draw, seed=0, constructor=constructor).fc.weight
        for draw in (0, 0, 1)
    ]

    assert (found[0] > 40).all()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    with pytest.raises(ValueError, match=r"constructor makes no parameter fc\.weight of shape \(5"):
        randomized(network, "fc", draw=0, seed=0, constructor=lambda: Tiny(9))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(3.0))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale


def test_parameters_without_an_initialiser_are_refused_or_shuffled():
    network = nn.Sequential(Scaled())

    with pytest.raises(ValueError, match=r"unit '0': 0 \(Scaled\) has parameters and no reset_par"):
        randomized(network, "0", draw=0, seed=0)
    found = randomized(network, "0", draw=0, seed=0, randomizer="permute")
    assert sorted(found[0].scale.tolist()) == [0, 1, 2]


def test_calibration_images_are_asked_for_by_name(network):
    assert needs_calibration(network, "conv1+bn1", "init")
    assert not needs_calibration(network, "conv1+bn1", "stale")
    assert not needs_calibration(network, "fc", "init")
    for given in (None, torch.rand(1, 3, 12, 12)):
        with pytest.raises(ValueError, match=r"unit 'conv1\+bn1' has BatchNorm.*or choose random"):
            randomized(network, "conv1+bn1", draw=0, seed=0, calibration_images=given)
    randomized(network, "fc", draw=0, seed=0)


def test_networks_without_batchnorm_need_no_calibration(networks):
    assert not any(
        needs_calibration(networks["vgg16"], unit, "init") for unit in units(networks["vgg16"])
    )


def test_wrong_names_are_refused(network):
    with pytest.raises(ValueError, match="randomizer 'shuffle' is unknown; choose one of init"):
        randomized(network, "fc", draw=0, seed=0, randomizer="shuffle")
    with pytest.raises(
        ValueError, match="unit 'fd' matches no module of Tiny, the closest is 'fc'"
    ):
        randomized(network, "fd", draw=0, seed=0)


def test_networks_that_overflow_are_refused(network, photographs):
    network.requires_grad_(False)
    broken = network.get_parameter("bn2.weight")
    kept = broken.clone()
    broken.fill_(3e38)
    with pytest.raises(
        FloatingPointError, match=r"unit 'fc', draw 4: its logits are, on \d+ of 40"
    ):
        randomized(network, "fc", draw=4, seed=0, calibration_images=photographs)
    with pytest.raises(FloatingPointError, match=r"on \d+ of 2 images, not finite; choose another"):
        randomized(network, "fc", draw=4, seed=0, calibration_images=photographs[:2])
    broken.copy_(kept)
    broken[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"draw 1: parameter bn2\.weight is not finite"):
        randomized(network, "conv2+bn2", draw=1, seed=0, randomizer="stale")


@pytest.mark.parametrize("name", ["tiny", "googlenet"])
def test_adapter_keeps_the_randomized_logits(name, network, photographs):
    if name == "googlenet":
        network = perturb(build(name, 7))
    unit = units(network)[-1]
    found = randomized(network, unit, draw=0, seed=0, calibration_images=photographs[:16])

    adapted = explainable(found, mean=[0, 0, 0], std=[1, 1, 1])

    images = photographs[:4]
    expected, trained = logits(found, images), logits(network, images)
    assert (logits(adapted, images) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (trained - expected).abs().max() > 1e-3 * expected.abs().max()


# Change of the function


class Table(nn.Module):
    """Logits by the image's first pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x):
        return self.rows[x[:, 0, 0, 0].long()]


def test_functional_change_in_closed_form():
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    big, log3 = 50.0, float(np.log(3))
    before = Table([[big, 0.0], [0.0, big], [0.0, 0.0]])
    after = Table([[0.0, 0.0], [0.0, big], [0.0, log3]])

    found = functional_change(logits(before, images), after, images, torch.tensor([0, 1, 0]))

    assert found.n_images == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.kept_predictions == pytest.approx(2 / 3)
    assert found.target_change == pytest.approx((-0.5 + 0 - 0.25) / 3, abs=1e-6)


def test_the_same_function_has_no_change(network, images):
    before = logits(network, images)

    found = functional_change(before, network, images, before.argmax(1))

    assert (found.accuracy, found.kept_predictions, found.target_change) == (1, 1, 0)


def test_logits_do_not_depend_on_company(network, images):
    together = logits(network, images, batch_size=4)

    alone = torch.cat([logits(network, image[None], batch_size=4) for image in images])

    assert torch.equal(together, alone)


def test_numbers_of_images_and_targets_must_agree(network, images):
    with pytest.raises(ValueError, match="2 rows of logits, 6 images and 6 targets; pass as many"):
        functional_change(torch.zeros(2, 5), network, images, torch.zeros(6, dtype=torch.long))
