import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift
from torch import nn

from conftest import Linear, perturb
from steadymap import attribute
from steadymap.attribution import deeplift
from steadymap.attribution.deeplift import DEEPLIFT, contributions, is_complete
from steadymap.attribution.model_runner import ModelRunner
from steadymap.models.registry import build, explainable
from steadymap.params.methods import ARCHITECTURES

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
MEAN, STD = [0.5, 0.45, 0.4], [0.2, 0.21, 0.22]
POOLED = sorted(set(ARCHITECTURES) - {"mobilenet_v2"})


def trained_like(network, side):
    """Network in which nothing cancels: Kaiming weights, BatchNorm moved and fitted to a batch."""
    generator = torch.Generator().manual_seed(0)
    perturb(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network.train()(torch.randn((8, 3, side, side), generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def networks(narrow_vgg):
    made = {}

    def get(architecture):
        if architecture not in made:
            side = max(ARCHITECTURES[architecture], 64 if architecture == "googlenet" else 32)
            network = explainable(trained_like(build(architecture, 7), side), mean=MEAN, std=STD)
            made[architecture] = network, side
        return made[architecture]

    return get


def photos(side, n=2):
    return torch.rand((n, 3, side, side), generator=torch.Generator().manual_seed(3))


def explain(model, images, targets, *, batch_size=8, **setting):
    setting = {"baseline": "zero", "input_space": "pixel", "blur_radius": 3.0, **setting}
    ids = [f"image-{i}" for i in range(len(images))]
    runner = ModelRunner(model, batch_size)
    return DEEPLIFT.explain(runner, images, targets, image_ids=ids, settings=[setting])[0]


def shares(model, images, references, *, target=0):
    """Contributions of each value, and diagnostics."""
    targets = torch.full((len(images),), target)
    return contributions(ModelRunner(model, 2 * len(images)), images, references, targets)


def moving_class(model, images):
    """Class whose logit the images change most, against black; SqueezeNet's others may stay 0."""
    with torch.no_grad():
        changes = (model(images) - model(torch.zeros_like(images))).abs().amin(0)
    return int(changes.argmax())


def row(*values):
    """One image, one channel, one row."""
    return torch.tensor(values).float().reshape(1, 1, 1, -1)


class TestCompleteness:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_every_architecture(self, networks, name):
        model, side = networks(name)
        images = photos(side)
        target = moving_class(model, images)

        products, extra = shares(model, images, torch.zeros_like(images), target=target)

        change, logits = extra["function_change"], extra["max_logit"]
        with torch.no_grad():
            known, black = model(images), model(torch.zeros_like(images))
        assert (change.abs() >= 0.05).all()
        assert torch.allclose(change.float(), (known - black)[:, target], rtol=1e-3)
        assert torch.allclose(logits.float(), known.abs().amax(1), rtol=1e-4)
        residual = (products.sum((1, 2, 3)) - change).abs()
        assert torch.allclose(extra["completeness"], residual, rtol=1e-6, atol=1e-12)
        assert (residual <= 1e-5 * torch.maximum(change.abs(), logits)).all()
        assert extra["complete"].tolist() == [1, 1]
        # What a map of zeros leaves over is the whole change, which the gate must see.
        assert not is_complete(change.abs(), change, logits).any()

    @pytest.mark.parametrize("name", POOLED)
    def test_pools_that_give_all_to_the_image_s_winner_fail(self, networks, name, monkeypatch):
        model, side = networks(name)
        images = photos(side)
        monkeypatch.setattr(deeplift, "_carriers", lambda outcome, winners: winners[0::2])

        _, extra = shares(
            model, images, torch.zeros_like(images), target=moving_class(model, images)
        )

        assert extra["complete"].tolist() == [0, 0]

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_the_gradient_times_the_difference_fails(self, networks, name):
        model, side = networks(name)
        images = photos(side)
        target = moving_class(model, images)
        targets = torch.tensor([target, target])
        _, extra = shares(model, images, torch.zeros_like(images), target=target)

        gradients = ModelRunner(model, 2).gradients(images, targets, output="logit")

        change = extra["function_change"]
        residual = ((images * gradients).sum((1, 2, 3)) - change).abs()
        assert not is_complete(residual, change, extra["max_logit"]).any()

    @pytest.mark.parametrize("space", ["pixel", "normalized"])
    @pytest.mark.parametrize("baseline", ["zero", "mean", "blurred", "maximum_distance"])
    def test_every_baseline(self, tiny, images, baseline, space):
        maps, extra = explain(tiny, images, TARGETS, baseline=baseline, input_space=space)

        change = extra["function_change"]
        assert (change.abs() > 1e-3).all()
        assert (extra["completeness"] <= 1e-5 * extra["max_logit"]).all()
        assert torch.allclose(3 * maps.double().sum((1, 2)), change, atol=1e-5)

    @pytest.mark.parametrize(
        "pool",
        [
            nn.MaxPool2d(2),
            nn.MaxPool2d(3, 1, 1),
            nn.MaxPool2d(3, 2, 1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=2),
            nn.AdaptiveMaxPool2d(5),
        ],
    )
    def test_every_pool(self, pool):
        torch.manual_seed(0)
        side = 16
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), pool, nn.Conv2d(6, 6, 2), nn.ReLU6(), nn.Flatten()
        )
        n = network(photos(side)).shape[1]
        network = nn.Sequential(*network, nn.Linear(n, 3))
        images = photos(side, 5)

        _, extra = shares(explainable(network, mean=MEAN, std=STD), images, images.flip(0))

        # The middle image is its own baseline; equal rows may differ in a last bit by their place.
        assert extra["function_change"][2].abs() <= 1e-6 * extra["max_logit"][2]
        assert (extra["completeness"] <= 1e-5 * extra["max_logit"]).all()
        assert (extra["function_change"].abs() > 100 * extra["completeness"])[[0, 1, 3, 4]].all()


class TestClosedForms:
    def test_linear_model(self, images):
        model = Linear(24)

        maps, extra = explain(model, images, TARGETS[:6] % 3)

        expected = (images * model.weights[TARGETS % 3]).mean(1)
        assert torch.allclose(maps, expected, atol=1e-6)
        assert extra["complete"].all()

    def test_captum_s_relus(self):
        """2 relu(x) + 2 relu(y - 1.5) at (1, 2) against (0, 0)."""

        class Relus(nn.Module):
            def forward(self, x):
                x, y = x[:, 0, 0, 0], x[:, 0, 0, 1]
                return (2 * torch.relu(x) + 2 * torch.relu(y - 1.5))[:, None]

        products, extra = shares(Relus(), row(1, 2), row(0, 0))

        assert products.flatten().tolist() == [2, 1]
        assert extra["completeness"].tolist() == [0]
        assert extra["function_change"].tolist() == [3]

    def test_captum_s_pool(self):
        """The baseline's maximum is the larger one, and its winner carries the difference."""
        network = nn.Sequential(nn.MaxPool2d((1, 4)), nn.Flatten())
        images = torch.ones((2, 1, 1, 4))
        references = torch.cat([row(1, 2, 3, 9), row(4, 8, 6, 7)])

        products, extra = shares(network, images, references)

        assert products[0].flatten().tolist() == [0, 0, 0, -8]
        assert products[1].flatten().tolist() == [0, -7, 0, 0]
        assert extra["completeness"].tolist() == [0, 0]

    def test_windows_that_overlap_add_up(self):
        """Maxima 5, 5, 2 against 0, 3, 3: changes 5 and 2 at the second value, -1 at the third."""
        network = nn.Sequential(nn.MaxPool2d((1, 2), 1), nn.Flatten(), nn.Linear(3, 1, bias=False))
        with torch.no_grad():
            network[2].weight.copy_(torch.tensor([[1.0, 10, 100]]))

        products, extra = shares(network, row(1, 5, 2, 0), row(0, 0, 3, 1))

        assert torch.allclose(products.flatten(), torch.tensor([0, 25, -100, 0]).double())
        assert extra["function_change"].tolist() == [-75]

    def test_relu6_saturates_at_both_ends(self):
        """z = 8 x - 2: each value's share is its own change of relu6(z)."""
        network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(6, 1))
        with torch.no_grad():
            network[0].weight.fill_(8)
            network[0].bias.fill_(-2)
            network[3].weight.copy_(torch.tensor([[1.0, -2, 3, -4, 5, -6]]))
        x, b = row(1, 0.5, 0.1, 1, 0, 0.75) / 1, row(0.25, 1, 0.2, 0, 0.9, 0.5)

        products, _ = shares(network, x, b)

        def gate(values):
            return (8 * values - 2).clamp(0, 6).flatten()

        expected = network[3].weight[0] * (gate(x) - gate(b))
        assert torch.allclose(products.flatten().float(), expected, atol=1e-5)

    def test_a_difference_that_is_tiny_loses_no_digits(self):
        """x - b is 2 ** -20 on either side of the kink and across it."""
        network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False))
        with torch.no_grad():
            network[2].weight.fill_(1)
        step = 2.0**-20

        products, _ = shares(network, row(1, -1, step / 4), row(1 - step, -1 - step, -3 * step / 4))

        assert products.flatten().tolist() == [step, 0, step / 4]

    def test_inputs_that_do_not_differ_take_the_derivative(self):
        """Gradients at a hidden layer reach what does differ: relu(x) + relu(y) - relu(x)."""

        class Cancelling(nn.Module):
            def forward(self, x):
                x, y = x[:, 0, 0, 0], x[:, 0, 0, 1]
                return (torch.relu(x - y) + torch.relu(x))[:, None]

        # x - y is 1 in both.
        products, extra = shares(Cancelling(), row(3, 2), row(2, 1))

        assert products.flatten().tolist() == [2, -1]
        assert extra["completeness"].tolist() == [0]

    def test_an_image_that_is_its_own_baseline(self, tiny, images):
        products, extra = shares(tiny, images, images)

        assert (products == 0).all()
        assert (extra["function_change"] == 0).all()
        assert extra["complete"].all()

    def test_the_zero_of_normalized_space_is_the_mean_color(self, tiny, images):
        normalized, mean, black = (
            explain(tiny, images, TARGETS, baseline=baseline, input_space=space)[0]
            for baseline, space in (("zero", "normalized"), ("mean", "pixel"), ("zero", "pixel"))
        )

        assert torch.equal(normalized, mean)
        assert not torch.allclose(normalized, black)


class Plain(nn.Sequential):
    """As VGG, without max-pools."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
            *(nn.AvgPool2d(2), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()),
            *(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 5)),
        )


class TestOracles:
    @pytest.mark.filterwarnings("ignore:Setting forward, backward", "ignore:Input Tensor 0 did not")
    @pytest.mark.parametrize("name", ["plain", "resnet18"])
    def test_equals_captum(self, images, name):
        """Where Captum is complete: no input shared by branches, no overlapping pools."""
        torch.manual_seed(0)
        if name == "plain":
            network = Plain()
            network(images)
            perturb(network)
        else:
            network = build("resnet18", 5)
            network.maxpool = nn.Identity()
            network = trained_like(network, 24)
        model = explainable(network, mean=MEAN, std=STD)
        references = images.flip(0)
        expected, delta = DeepLift(model).attribute(
            images.clone(), references, target=3, return_convergence_delta=True
        )

        products, extra = shares(model, images, references, target=3)

        assert (delta.abs() <= 1e-4 * extra["max_logit"]).all()
        assert (products - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert extra["complete"].all()

    def test_equals_integrated_gradients_with_one_relu_layer(self, images):
        """With zero biases and a zero baseline; the path's first point, all zero, weighs 1/2n."""
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
        )
        network(images)
        model = explainable(network, mean=[0.0] * 3, std=[1.0] * 3)
        options = {"n_steps": 50, "output": "logit", "baseline": "zero"}
        expected = attribute("integrated_gradients", model, images, TARGETS, **options)

        maps, _ = explain(model, images, TARGETS)

        assert (maps - expected / 0.99).abs().max() <= 1e-5 * maps.abs().max()

    def test_equals_integrated_gradients_on_any_path_through_one_relu_layer(self, images):
        """A ReLU's mean derivative on a straight path is its quotient of differences."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        network(images[:2, :, :8, :8])
        model = explainable(network, mean=MEAN, std=STD)
        small = images[:2, :, :8, :8]
        options = {"n_steps": 4000, "output": "logit", "baseline": "maximum_distance"}
        expected = attribute("integrated_gradients", model, small, TARGETS[:2], **options)

        maps, _ = explain(model, small, TARGETS[:2], baseline="maximum_distance")
        gradient = attribute("gradient", model, small, TARGETS[:2])

        assert (maps - expected).abs().max() <= 1e-3 * maps.abs().max()
        products = (small - (small < 0.5).float()).mean(1) * gradient
        assert (maps - products).abs().max() > 1e-2 * maps.abs().max()


class TestMaps:
    def test_company_never_changes_a_bit_on_a_large_network(self, networks):
        model, side = networks("googlenet")
        images, targets = photos(side, 5), torch.tensor([0, 1, 2, 3, 4])
        whole, extra = explain(model, images, targets)

        for i in reversed(range(5)):
            maps, alone = explain(model, images[i : i + 1], targets[i : i + 1])

            assert torch.equal(maps[0], whole[i])
            assert all(torch.equal(alone[key][0], extra[key][i]) for key in extra)

    def test_logits_are_the_model_s_and_weights_are_shared(self, networks):
        model, side = networks("googlenet")
        images = photos(side)

        made = deeplift.rescaled(model)

        kinds = [getattr(module, "rule", type(module)).__name__ for module in made.modules()]
        assert kinds.count("_Rescale") == 57
        assert kinds.count("_Pool") == 13
        assert not {"ReLU", "MaxPool2d"} & set(kinds)
        with torch.no_grad():
            assert torch.equal(made(images), model(images))
        pointers = [
            {name: value.data_ptr() for name, value in m.state_dict().items()}
            for m in (made, model)
        ]
        assert pointers[0] == pointers[1]


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.relu = nn.ReLU()
        self.scale = nn.Parameter(torch.full((3, 1, 1), 2.0))

    def forward(self, x):
        x = self.call(self.relu(x), self.scale)
        return x.mean((2, 3))


class TestOperations:
    @pytest.mark.parametrize(
        ("call", "what"),
        [
            (lambda x, scale: torch.sigmoid(x), r"sigmoid\(\) at node 'sigmoid'"),
            (lambda x, scale: x.softmax(1), r"softmax\(\) at node 'softmax'"),
            (lambda x, scale: x.clamp(min=0), r"clamp\(\) at node 'clamp'"),
            (lambda x, scale: F.leaky_relu(x), r"leaky_relu\(\) at node 'leaky_relu'"),
            (lambda x, scale: F.dropout(x, training=True), r"dropout\(\) at node 'dropout'"),
            (lambda x, scale: x**2, r"pow\(\) at node 'pow_1'"),
            (lambda x, scale: x * x, r"mul\(\) of two values at node 'mul'"),
            (lambda x, scale: x * x.mean((2, 3), True), r"mul\(\) of two values at node 'mul'"),
            (lambda x, scale: torch.mul(scale * x, other=x), r"mul\(\) of two values at node"),
            (lambda x, scale: x / x, r"truediv\(\) of two values at node 'truediv'"),
            (lambda x, scale: 1 / (1 + x), r"truediv\(\) at node 'truediv'"),
            (lambda x, scale: F.conv2d(x, x), r"conv2d\(\) of two values at node 'conv2d'"),
            (lambda x, scale: x.amax((2, 3), True), r"amax\(\) at node 'amax'"),
        ],
    )
    def test_what_is_not_linear_is_refused(self, images, call, what):
        message = (
            f"Calling: {what}.* is not known to be linear and has no rescale rule here, so that "
            "DeepLIFT's map might not add up to the change of the score; write it with linear "
            "layers, nn.ReLU, nn.ReLU6 and nn.MaxPool2d, or use the method integrated_gradients"
        )
        network = Calling(call)
        for model in (network, explainable(network, mean=MEAN, std=STD)):
            with pytest.raises(ValueError, match=message):
                explain(model, images, TARGETS % 3)

    @pytest.mark.parametrize(
        ("module", "kind"),
        [
            (nn.Sigmoid(), "Sigmoid"),
            (nn.GELU(), "GELU"),
            (nn.LeakyReLU(), "LeakyReLU"),
            (nn.InstanceNorm2d(3), "InstanceNorm2d"),
            (nn.BatchNorm2d(3, track_running_stats=False), "BatchNorm2d"),
            (nn.LPPool2d(2, 2), "LPPool2d"),
        ],
    )
    def test_so_are_modules(self, images, module, kind):
        network = nn.Sequential(nn.ReLU(), module, nn.Flatten())
        with pytest.raises(ValueError, match=f"Sequential: module '.*', {kind}, is not known"):
            explain(network, images, TARGETS)

    def test_a_model_that_can_t_be_traced(self, images):
        class Branching(nn.Module):
            def forward(self, x):
                return torch.relu(x if x.sum() > 0 else -x).mean((2, 3))

        with pytest.raises(ValueError, match="Branching can't be traced"):
            explain(Branching(), images, TARGETS)

    @pytest.mark.parametrize(
        "call",
        [
            lambda x, scale: x * torch.sigmoid(scale) - 1,
            lambda x, scale: torch.relu(scale - 1.5) * x / torch.exp(scale),
            lambda x, scale: 2 - x.reshape(x.size(0), x.shape[1], -1)[..., None],
            lambda x, scale: torch.cat([x, -2 * x], 2).permute(0, 1, 3, 2),
            lambda x, scale: F.conv2d(x, scale[:, None].expand(3, 1, 3, 3), groups=3),
            lambda x, scale: F.avg_pool2d(F.dropout(x, training=False), 2),
            lambda x, scale: torch.einsum("bchw,cij->bchw", x, scale),
        ],
    )
    def test_what_is_linear_is_taken(self, images, call):
        network = Calling(call)

        _, extra = explain(network, images, TARGETS % 3)

        assert (extra["function_change"].abs() > 0.01).all()
        assert (extra["completeness"] <= 1e-5 * extra["max_logit"]).all()
