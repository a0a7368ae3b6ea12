import hashlib

import pytest
import torch
from captum.attr import GuidedBackprop
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
from torch import nn

from conftest import Linear, perturb
from steadymap import attribute
from steadymap.attribution.guided_backprop import guided
from steadymap.models.registry import build, explainable
from steadymap.params.methods import ARCHITECTURES

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="module")
def networks(narrow_vgg):
    made = {}

    def get(architecture):
        if architecture not in made:
            network = perturb(build(architecture, 7))
            made[architecture] = explainable(network, mean=[0.5, 0.45, 0.4], std=[0.2, 0.21, 0.22])
        return made[architecture]

    return get


def photo(architecture):
    side = ARCHITECTURES[architecture]
    return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(3))


def digest(model):
    found = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def by_hooks(model, images, target):
    """Gradient with whatever enters a ReLU or ReLU6 from above cut at zero, by tensor hooks."""
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs: (
                inputs[0].register_hook(lambda gradient: gradient.clamp(min=0)) and None
            )
        )
        for module in model.modules()
        if isinstance(module, (nn.ReLU, nn.ReLU6))
    ]
    try:
        inputs = images.clone().requires_grad_()
        return torch.autograd.grad(model(inputs)[:, target].sum(), inputs)[0]
    finally:
        for handle in handles:
            handle.remove()


class TestArchitectures:
    @pytest.mark.filterwarnings("ignore:Setting backward hooks")
    @pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"mobilenet_v2"}))
    def test_equals_captum(self, networks, name):
        model, image = networks(name), photo(name)
        expected = GuidedBackprop(model).attribute(image.clone(), target=2).mean(1)

        maps = attribute("guided_backprop", model, image, 2, batch_size=1)

        assert expected.abs().max() > 0
        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_relu6_is_guided_too(self, networks):
        """Captum overrides nothing on MobileNetV2; hooks that do know ReLU6."""
        model, image = networks("mobilenet_v2"), photo("mobilenet_v2")
        expected = by_hooks(model, image, 2).mean(1)

        maps = attribute("guided_backprop", model, image, 2, batch_size=1)

        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_it_is_not_the_gradient(self, networks, name):
        model, image = networks(name), photo(name)
        before = digest(model)

        maps, plain = (
            attribute(method, model, image, 2, batch_size=1)
            for method in ("guided_backprop", "gradient")
        )

        apart = maps / maps.norm() - plain / plain.norm()
        assert apart.norm() > 0.5
        assert digest(model) == before

    @pytest.mark.parametrize(("name", "calls"), [("googlenet", 57), ("mobilenet_v2", 35)])
    def test_every_relu_is_replaced_and_logits_stay(self, networks, name, calls):
        model, image = networks(name), photo(name)

        made = guided(model)

        kinds = [getattr(module, "rule", type(module)).__name__ for module in made.modules()]
        assert kinds.count("_Guide") == calls
        assert "ReLU" not in kinds
        assert "ReLU6" not in kinds
        with torch.no_grad():
            assert torch.equal(made(image), model(image))

    def test_weights_are_shared(self, networks):
        model = networks("vgg16")

        made = guided(model)

        ours, theirs = (
            {name: value.data_ptr() for name, value in m.state_dict().items()}
            for m in (made, model)
        )
        assert ours == theirs


class TestClosedForms:
    def test_captum_s_toy(self):
        """As in Captum's tests, whose map has no channels to average."""
        toy = BasicModel_ConvNet_One_Conv()
        image = torch.arange(16.0).reshape(1, 1, 4, 4)
        expected = [[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]
        # Images lie in [0, 1]: the first layer takes the scale.
        with torch.no_grad():
            toy.conv1.weight *= 15
        # Its own forward takes a second image and only contiguous ones.
        network = nn.Sequential(toy.conv1, toy.relu1, nn.Flatten(), toy.fc1, toy.relu2)

        maps = attribute("guided_backprop", network, image / 15, 0)

        assert torch.allclose(maps[0] / 15, torch.tensor(expected).float(), atol=1e-5)

    @pytest.mark.parametrize("through_the_adapter", [True, False])
    def test_relu6_passes_inside_and_with_the_target(self, through_the_adapter):
        """z = 8 x - 1 per pixel; at z = 0 and z = 6 the gate is shut."""

        class Gate(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate = nn.ReLU6()
                self.register_buffer("weights", torch.tensor([1.0, 2, -3, 4, 5, 6, 7, -8]))

            def forward(self, x):
                return (self.gate(8 * x - 1).flatten(1) * self.weights).sum(1, keepdim=True)

        network = Gate()
        if through_the_adapter:
            network = explainable(network, mean=[0.0], std=[1.0])
        #       z:           3, 1,   4,   0,     6,     7, 5.5,    2
        image = torch.tensor([4, 2, 5, 1, 7, 8, 6.5, 3]).reshape(1, 1, 2, 4) / 8

        maps = attribute("guided_backprop", network, image, 0)

        expected = 8 * torch.tensor([1.0, 2, 0, 0, 0, 0, 7, 0]).reshape(1, 2, 4)
        assert torch.equal(maps, expected)

    def test_each_layer_cuts_on_its_own(self):
        """relu(x + relu(y) - relu(1 - z)): what is negative at the inner gate never arrives."""

        class Nested(nn.Module):
            def forward(self, x):
                x, y, z = x[:, 0, 0, 0], x[:, 0, 0, 1], x[:, 0, 0, 2]
                return torch.relu(x + torch.relu(y) - torch.relu(1 - z))[:, None]

        image = torch.full((1, 1, 1, 3), 0.5)

        maps, plain = (
            attribute(method, Nested(), image, 0) for method in ("guided_backprop", "gradient")
        )

        assert plain.flatten().tolist() == [1, 1, 1]
        assert maps.flatten().tolist() == [1, 1, 0]


class Clamped(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.call(self.relu(x).mean((2, 3)))


class Branching(nn.Module):
    def forward(self, x):
        return torch.relu(x if x.sum() > 0 else -x).mean((2, 3))


@pytest.mark.parametrize("adapted", [False, True])
class TestRefusals:
    def check(self, network, images, adapted, message):
        if adapted:
            network = explainable(network, mean=[0.0] * 3, std=[1.0] * 3)
        with pytest.raises(ValueError, match=message):
            attribute("guided_backprop", network, images, 0)

    def test_a_model_without_relus(self, images, adapted):
        message = (
            "Linear has no ReLU and no ReLU6, so that nothing would be guided; use the method "
            r"gradient, or give a network with ReLUs through `steadymap.models.explainable\("
        )
        self.check(Linear(24), images, adapted, message)

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda x: x.clamp(min=0), "clamp"),
            (lambda x: torch.clamp_min(x, 0), "clamp_min"),
            (lambda x: x.clip_(0), "clip"),
            (lambda x: nn.functional.hardtanh(x, 0, 6), "hardtanh"),
            (lambda x: nn.functional.threshold(x, 0, 0), "threshold"),
            (lambda x: torch.maximum(x, 0 * x), "maximum"),
        ],
    )
    def test_a_relu_by_another_name(self, images, adapted, call, name):
        message = (
            rf"Clamped: {name}\(\) at node '\w+' may be a ReLU, which would not be guided; write "
            "it with nn.ReLU or nn.ReLU6"
        )
        self.check(Clamped(call), images, adapted, message)

    def test_a_relu_inside_a_library_module(self, images, adapted):
        # One token an image: without that axis it would attend to the other images.
        token = nn.Unflatten(1, (1, 4)), nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
        network = nn.Sequential(
            nn.Flatten(), nn.ReLU(), nn.Linear(1728, 4), *token, nn.Flatten()
        ).eval()
        message = "Sequential: part of module '4', TransformerEncoderLayer, may be a ReLU"
        self.check(network, images, adapted, message)


def test_a_model_that_cant_be_traced_is_refused(images):
    with pytest.raises(ValueError, match="Branching can't be traced"):
        attribute("guided_backprop", Branching(), images, 0)


class Aside(nn.Module):
    """ReLUs in what is added to the image's values, as in a position bias, and none behind."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.bias = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.register_buffer("places", torch.rand(1, 2))

    def forward(self, x):
        x = self.conv(x) + self.bias(self.places)[:, :, None, None] * x.shape[1]
        return self.head(x.mean((2, 3)))


class Excited(nn.Module):
    """Squeeze and excitation: a sigmoid that weighs channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.weigh = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid())
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        x = nn.functional.relu(self.conv(x))
        weights = self.weigh(x.mean((2, 3))).view(x.size(0), -1, 1, 1)
        # Not of the image: this clamp hides no ReLU.
        return self.head((x * weights.expand_as(x)).mean((2, 3))) * self.scale.clamp(max=4)


def convolved(*layers):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


class TestPath:
    def test_relus_that_the_image_does_not_meet_are_none(self, images):
        """The map would be the gradient to the last bit."""
        network = perturb(Aside())
        message = (
            "Aside: none of its 1 ReLUs lies between image and output.*use the method gradient"
        )
        for method in ("guided_backprop", "guided_gradcam"):
            with pytest.raises(ValueError, match=message):
                attribute(method, network, images, TARGETS)

    @pytest.mark.parametrize(
        ("layer", "named"),
        [
            (nn.Hardswish(inplace=True), r"hardswish \(1 calls\)"),
            (nn.GELU(), "gelu"),
            (nn.LeakyReLU(), "leakyrelu"),
            (nn.Sigmoid(), "sigmoid"),
            (Calling(lambda x: nn.functional.silu(x, inplace=True)), "silu"),
            (Calling(lambda x: x.tanh_()), "tanh"),
            (Calling(lambda x: x * torch.sigmoid(x)), "sigmoid"),
        ],
    )
    def test_activations_beside_relu_are_named(self, images, layer, named):
        message = f"has activations beside ReLU.* unguided: {named}.*use the method gradient"
        for method in ("guided_backprop", "guided_gradcam"):
            with pytest.raises(ValueError, match=message):
                attribute(method, convolved(layer), images, 0)

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda x: x * (x > 0), "gt"),
            (lambda x: torch.where(x > 0, x, 0), "gt"),
            (lambda x: (x + x.abs()) / 2, "abs"),
            (lambda x: torch.max(x, torch.zeros_like(x)), "max"),
        ],
    )
    def test_relus_by_hand(self, images, call, name):
        with pytest.raises(ValueError, match=rf"{name}\(\) at node .* may be a ReLU"):
            attribute("guided_backprop", convolved(Calling(call)), images, 0)

    def test_a_relu_behind_a_write_through_a_view_is_on_the_path(self, images):
        torch.manual_seed(0)
        network = convolved(Calling(lambda x: (x.flatten(1).sub_(0.2), x)[1]), nn.ReLU())

        maps, plain = (
            attribute(method, network, images, 0) for method in ("guided_backprop", "gradient")
        )

        assert not torch.allclose(maps, plain)

    def test_gates_keep_their_gradient(self, images):
        torch.manual_seed(0)
        network = perturb(Excited())

        maps = attribute("guided_backprop", network, images, 1)

        expected = by_hooks(explainable(network, mean=[0.0], std=[1.0]), images, 1).mean(1)
        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not torch.allclose(maps, attribute("gradient", network, images, 1))
