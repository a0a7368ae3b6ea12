import logging

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedGradCam, LayerGradCam
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from conftest import perturb
from steadymap.attribution.guided_gradcam import GUIDED_GRADCAM, feature_map, grad_cam
from steadymap.attribution.model_runner import ModelRunner
from steadymap.models.registry import build, explainable
from steadymap.params.methods import ARCHITECTURES

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
MEAN, STD = [0.5, 0.45, 0.4], [0.2, 0.21, 0.22]

# Where Grad-CAM is usually taken: the last map after its activation, as torchvision names it.
LAYERS = {
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mobilenet_v2": "features.18",
    "resnet18": "layer4.1",
    "resnet50": "layer4.2",
    # Its last convolution gives the logits.
    "squeezenet1_0": "classifier.2",
    "vgg16": "features.29",
}


def explain(model, images, targets, *, batch_size=8, **setting):
    setting = {"output": "logit", "interpolation": "bilinear", **setting}
    ids = [f"image-{i}" for i in range(len(images))]
    runner = ModelRunner(model, batch_size)
    return GUIDED_GRADCAM.explain(runner, images, targets, image_ids=ids, settings=[setting])[0]


def photos(side, n=2):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def networks(narrow_vgg):
    made = {}

    def get(architecture):
        if architecture not in made:
            network = perturb(build(architecture, 7))
            made[architecture] = network, explainable(network, mean=MEAN, std=STD)
        return made[architecture]

    return get


class TestFeatureMap:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_it_is_the_usual_layer(self, networks, name):
        network, model = networks(name)
        images = photos(128, 1)
        seen = []
        # Cloned, as torchvision's next layer may overwrite it in place.
        handle = network.get_submodule(LAYERS[name]).register_forward_hook(
            lambda module, inputs, output: seen.append(output.clone())
        )
        with torch.no_grad():
            network((images - model.mean) / model.std)
        handle.remove()

        node = feature_map(model.network, images).node

        values = {}

        class Keeping(torch.fx.Interpreter):
            def run_node(self, current):
                values[current.name] = super().run_node(current)
                return values[current.name]

        with torch.no_grad():
            Keeping(model.network).run((images - model.mean) / model.std)
        found = values[node.name]
        assert found.std() > 0
        assert (found >= 0).all()
        assert found.shape == seen[0].shape
        assert torch.allclose(found, seen[0], rtol=1e-4, atol=1e-5 * float(found.abs().max()))

    def test_it_does_not_hang_on_the_image_s_size(self, networks):
        _, model = networks("googlenet")

        names = {feature_map(model.network, photos(side, 1)).node.name for side in (64, 96, 160)}

        assert len(names) == 1

    def test_one_position_is_refused(self, networks):
        """At 32 px GoogLeNet's last map has one, as after a global pooling."""
        _, model = networks("googlenet")
        name = feature_map(model.network, photos(64, 1)).node.name

        with pytest.raises(
            ValueError, match=rf"GoogLeNet: .*'{name}', has 1 x 1 .* 32 x 32 px.*larger images"
        ):
            explain(model, photos(32), torch.tensor([2, 5]))

    @pytest.mark.parametrize(
        "head",
        [
            [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.Flatten()],
            [nn.AdaptiveMaxPool2d((1, 1)), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Flatten()],
            [nn.AvgPool2d(4), nn.Flatten(), nn.LazyLinear(2)],
            [nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2)],
        ],
    )
    def test_pools_and_what_follows_a_global_one_don_t_count(self, head):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
        network(photos(12))
        model = explainable(network, mean=MEAN, std=STD)

        node = feature_map(model.network, photos(12, 1)).node

        following = {"MaxPool2d": "Dropout"}.get(type(head[0]).__name__, "ReLU")
        found = model.network.get_submodule(node.target)
        assert type(found).__name__ == following

    def test_it_is_logged(self, tiny, images, caplog):
        with caplog.at_level(logging.DEBUG, "steadymap"):
            explain(tiny, images, TARGETS)

        name = feature_map(tiny.network, images).node.name
        assert caplog.messages == [f"Tiny: Grad-CAM at {name}"]


class Headed(nn.Module):
    """Two convolutions, 10 x 10 positions for 14 px, and a head."""

    def __init__(self, head, *layers):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
        self.head, self.layers = head, nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(self.head(self.body(x))).flatten(1)


def dense():
    return nn.Linear(6, 5)


def point():
    return nn.Conv2d(6, 5, 1)


HEADS = {
    "AvgPool2d": lambda: Headed(nn.AvgPool2d(10), nn.Flatten(), dense()),
    "AvgPool2d and what follows": lambda: Headed(
        nn.AvgPool2d(10), point(), nn.ReLU(), nn.Dropout()
    ),
    "MaxPool2d": lambda: Headed(nn.MaxPool2d(10), point()),
    "avg_pool2d of the shape": lambda: Headed(
        lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1), dense()
    ),
    "avg_pool2d of the size": lambda: Headed(
        lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]), point(), nn.ReLU(inplace=True)
    ),
    "adaptive": lambda: Headed(lambda x: F.adaptive_avg_pool2d(x, (1, 1)), point(), nn.ReLU()),
    "adaptive, larger": lambda: Headed(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)),
    "mean": lambda: Headed(lambda x: x.mean([2, 3]), dense()),
    "means": lambda: Headed(lambda x: x.mean(3).mean(2), dense()),
    "mean that keeps axes": lambda: Headed(lambda x: x.mean((-1, -2), keepdim=True), point()),
    "mean of a line": lambda: Headed(
        lambda x: x.view(x.size(0), x.size(1), -1).mean(2)[:, :, None, None], point(), nn.ReLU()
    ),
    "no pooling": lambda: Headed(nn.Flatten(), nn.Linear(600, 5)),
    "convolution of the whole": lambda: Headed(nn.Conv2d(6, 6, 10), nn.ReLU(), point()),
}
# Channels last, or between: where the last map is, and its axes.
ELSEWHERE = {
    "permuted": (
        lambda: Headed(lambda x: x.permute(0, 2, 3, 1), nn.LayerNorm(6), Mean((1, 2)), dense()),
        "layers.0",
        (3, 1, 2),
    ),
    "moved": (
        lambda: Headed(lambda x: x.movedim(1, 2), nn.Tanh(), Mean((1, 3)), dense()),
        "layers.0",
        (2, 1, 3),
    ),
    "ConvNeXt": (
        lambda: torchvision.models.ConvNeXt(
            [CNBlockConfig(6, 8, 1), CNBlockConfig(8, None, 1)], layer_scale=1, num_classes=5
        ),
        "features",
        (1, 2, 3),
    ),
    "Swin": (
        lambda: torchvision.models.SwinTransformer(
            [2, 2], 8, [1, 1], [1, 2], [2, 2], num_classes=5, stochastic_depth_prob=0
        ),
        "norm",
        (3, 1, 2),
    ),
    "ShuffleNet": (
        lambda: torchvision.models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 16], num_classes=5),
        "conv5",
        (1, 2, 3),
    ),
}


class Mean(nn.Module):
    def __init__(self, axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.mean(self.axes)


def by_hooks(network, layer, images, targets, axes=(1, 2, 3)):
    """Grad-CAM of the network itself at a layer that the test names."""
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: seen.append(output) or output.clone()
    )
    with torch.enable_grad():
        chosen = network(images.clone().requires_grad_()).gather(1, targets[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(chosen, seen[0])
    feature, gradient = (one.detach().permute(0, *axes) for one in (seen[0], gradient))
    return (gradient.mean((2, 3), keepdim=True) * feature).sum(1).relu().double()


class TestLayer:
    def check(self, network, layer, axes, side):
        network, images, targets = perturb(network), photos(side, 5), torch.arange(5)
        expected = by_hooks(network, layer, images, targets, axes)

        found = grad_cam(ModelRunner(network, 3), images, targets)

        assert expected.amax() > 0
        assert found.shape == expected.shape
        assert found[0].numel() > 1
        assert (found - expected).abs().max() <= 1e-4 * expected.amax()

    @pytest.mark.parametrize("name", HEADS)
    def test_heads_of_all_kinds(self, name):
        torch.manual_seed(1)
        self.check(HEADS[name](), "body.3", (1, 2, 3), 14)

    @pytest.mark.parametrize("name", ELSEWHERE)
    def test_channels_anywhere(self, name):
        torch.manual_seed(1)
        build_it, layer, axes = ELSEWHERE[name]
        self.check(build_it(), layer, axes, 14 if build_it().__class__ is Headed else 64)

    def test_a_write_behind_the_map_changes_nothing(self):
        """The map is cut off from what it came from, and what follows writes to it."""

        def head(x):
            x.flatten(2).mul_(2)
            return x.sigmoid_().mean((2, 3))

        torch.manual_seed(1)
        network = perturb(Headed(head, dense()))
        twin = perturb(Headed(lambda x: (2 * x).sigmoid().mean((2, 3)), dense()))
        twin.load_state_dict(network.state_dict())
        images, targets = photos(14, 5), torch.arange(5)

        found, expected = (
            grad_cam(ModelRunner(one, 3), images, targets) for one in (network, twin)
        )

        assert expected.amax() > 0
        assert torch.allclose(found, expected, rtol=1e-4)


class TestCaptum:
    def test_its_toy(self):
        """As in Captum's tests, at relu1, whose map has no channels to average."""
        toy = BasicModel_ConvNet_One_Conv()
        # Its own forward takes a second image and only contiguous ones.
        network = nn.Sequential(toy.conv1, toy.relu1, nn.Flatten(), toy.fc1, toy.relu2)
        image = torch.arange(16.0).reshape(1, 1, 4, 4)
        targets = torch.tensor([0])

        cams = grad_cam(ModelRunner(network, 1), image, targets)
        maps, extra = explain(network, image, targets, interpolation="nearest")

        expected = [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]
        assert torch.equal(cams[0], torch.tensor([[0, 4], [28, 32.5]]).double())
        assert torch.equal(maps[0], torch.tensor(expected))
        assert extra["cam_cells"].tolist() == [4]

    @pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not")
    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
    @pytest.mark.parametrize("name", ["resnet18", "vgg16"])
    def test_its_guided_grad_cam(self, networks, name, interpolation):
        _, model = networks(name)
        images = photos(64)
        targets = torch.tensor([2, 5])
        layer = model.network.get_submodule(feature_map(model.network, images).node.target)
        cams = LayerGradCam(model, layer).attribute(images, target=targets, relu_attributions=True)
        expected = GuidedGradCam(model, layer).attribute(
            images.clone(), target=targets, interpolate_mode=interpolation
        )

        found = grad_cam(ModelRunner(model, 2), images, targets)
        maps, extra = explain(model, images, targets, interpolation=interpolation)

        assert cams.shape[2:] == found.shape[1:]
        assert (found - cams[:, 0]).abs().max() <= 1e-5 * cams.abs().max()
        assert (cams.amax((1, 2, 3)) > 0).any()
        assert extra["cam_zero"].tolist() == [float((cam == 0).all()) for cam in cams]
        assert (maps - expected.mean(1)).abs().max() <= 1e-5 * expected.abs().max()

    @pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not")
    @pytest.mark.parametrize("name", ["googlenet", "mobilenet_v2"])
    def test_its_grad_cam_of_the_network_itself(self, networks, name):
        network, model = networks(name)
        images, targets = photos(64, 1).expand(7, -1, -1, -1), torch.arange(7)
        layer = network.get_submodule(LAYERS[name])
        normalized = (images - model.mean) / model.std
        expected = LayerGradCam(network, layer).attribute(
            normalized, target=targets, relu_attributions=True
        )

        found = grad_cam(ModelRunner(model, 2), images, targets)

        assert expected.amax() > 0
        assert (found - expected[:, 0]).abs().max() <= 1e-4 * expected.max()


class Counted(nn.Module):
    """Two channels, 4 x 4 cells of 2 x 2 px; class k weighs channels by row k of `weights`."""

    def __init__(self, weights):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2, stride=2, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, len(weights), bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.25, 1.0]).reshape(2, 1, 1, 1))
            self.fc.weight.copy_(torch.tensor(weights))

    def forward(self, x):
        return self.fc(self.pool(self.relu(self.conv(x))).flatten(1))


class TestClosedForms:
    def test_weights_are_mean_gradients(self):
        """Each cell weighs 1/16 of its channel's coefficient: cam = (2 m + 3 (4 m)) / 16."""
        image = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        m = F.avg_pool2d(image, 2)[0, 0].double()

        cams = grad_cam(ModelRunner(Counted([[2.0, 3.0]]), 2), image, torch.tensor([0]))

        assert torch.allclose(cams[0], 14 * m / 16, rtol=1e-5)

    @pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
    def test_it_is_enlarged_before_it_multiplies(self, interpolation):
        """The guided gradient is the same everywhere: (2 / 4 + 3) / 16."""
        image = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        cam = 14 * F.avg_pool2d(image, 2).double() / 16
        corners = None if interpolation == "nearest" else False
        large = F.interpolate(cam, (8, 8), mode=interpolation, align_corners=corners)

        maps, _ = explain(
            Counted([[2.0, 3.0]]), image, torch.tensor([0]), interpolation=interpolation
        )

        assert torch.allclose(maps[0].double(), large[0, 0] * 3.5 / 16, rtol=1e-5)

    def test_only_the_positive_part_counts(self):
        image = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        model = Counted([[2.0, 3.0], [-2.0, -3.0], [3.0, -1.0]])

        maps, extra = explain(model, image[:1].expand(3, -1, -1, -1), torch.arange(3))

        assert extra["cam_zero"].tolist() == [0, 1, 1]
        assert (maps[0] > 0).all()
        assert (maps[1:] == 0).all()


class TestMaps:
    @pytest.mark.parametrize("name", ["googlenet", "resnet18"])
    def test_company_never_changes_a_bit_on_a_large_network(self, networks, name):
        _, model = networks(name)
        images, targets = photos(64, 5), torch.tensor([0, 1, 2, 3, 4])
        whole, _ = explain(model, images, targets, batch_size=4)

        alone = [
            explain(model, images[i : i + 1], targets[i : i + 1], batch_size=4)[0]
            for i in reversed(range(5))
        ]

        assert torch.equal(torch.cat(alone[::-1]), whole)


class TestRefusals:
    def test_no_feature_map(self, images):
        network = nn.Sequential(nn.Flatten(), nn.Linear(1728, 4), nn.ReLU(), nn.Linear(4, 2))
        message = (
            "Sequential has no feature map of a convolution with height and width, which Guided "
            "Grad-CAM needs; use the method guided_backprop"
        )
        # Around an adapted network the normalized image is a map, but of no convolution.
        for model in (network, nn.Sequential(explainable(network, mean=MEAN, std=STD))):
            with pytest.raises(ValueError, match=message):
                explain(model, images, TARGETS)
