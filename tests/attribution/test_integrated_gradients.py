import math

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from scipy.ndimage import gaussian_filter1d

from conftest import Linear
from steadymap import attribute, draws
from steadymap.attribution.integrated_gradients import baselines
from steadymap.params.methods import METHODS

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
IDS = list("abcdef")
DETERMINISTIC = ("zero", "mean", "blurred", "maximum_distance")
RANDOM = ("uniform", "gaussian")


def starts(images, mean, baseline, *, trial=0, ids=IDS, **hyperparameters):
    setting = METHODS["integrated_gradients"].effective({"baseline": baseline, **hyperparameters})
    return baselines(images, mean, image_ids=ids, trial=trial, setting=setting)


@pytest.fixture
def keen(tiny, images):
    """The tiny network with logits that react, and that no bias decides beforehand."""
    with torch.no_grad():
        tiny.network.fc.weight *= 30
        tiny.network.fc.bias -= tiny(0.3 * images).mean(0)
    return tiny


class Sum(torch.nn.Module):
    """5x + y² + sin z, each variable in a pixel and a channel of its own."""

    def __init__(self):
        super().__init__()
        # From (.5, 1, 1), where the image has this color, to (1, 2, 3), where it is white.
        self.register_buffer("mean", torch.tensor([1 / 2, 1 / 2, 1 / 3]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.3, 0.2, 0.4]).reshape(1, 3, 1, 1))

    def forward(self, images):
        x, y, z = images[:, 0, 0, 0], 2 * images[:, 1, 0, 1], 3 * images[:, 2, 0, 2]
        return (5 * x + y**2 + torch.sin(z))[:, None]


class TestClosedForms:
    def test_a_sum_of_three_functions(self):
        expected = torch.tensor([2.5, 3.0, math.sin(3) - math.sin(1)])

        maps, notes = attribute(
            "integrated_gradients",
            Sum(),
            torch.ones(1, 3, 1, 3),
            0,
            baseline="mean",
            n_steps=400,
            output="logit",
            diagnostics=True,
        )

        # The map is a mean over three channels, two of which have nothing in a pixel.
        assert torch.allclose(3 * maps[0, 0], expected, atol=1e-5)
        assert notes["function_change"].item() == pytest.approx(expected.sum().item(), abs=1e-5)
        assert notes["completeness"].item() < 1e-5

    def test_the_trapezoid_of_few_steps(self):
        """The gradient of sin z at 1, 2 and 3: ends count half."""
        cosines = [math.cos(z) for z in (1, 2, 3)]

        maps = attribute(
            "integrated_gradients",
            Sum(),
            torch.ones(1, 3, 1, 3),
            0,
            baseline="mean",
            n_steps=2,
            output="logit",
        )

        expected = [2.5, 3.0, cosines[0] / 2 + cosines[1] + cosines[2] / 2]
        assert torch.allclose(3 * maps[0, 0], torch.tensor(expected), atol=1e-6)

    @pytest.mark.parametrize("baseline", DETERMINISTIC + RANDOM)
    def test_a_linear_model_needs_one_step(self, images, baseline):
        model = Linear(24)
        begin = starts(images, torch.zeros(1, 3, 1, 1), baseline, blur_radius=2.0)

        maps, notes = attribute(
            "integrated_gradients",
            model,
            images,
            1,
            image_ids=IDS,
            baseline=baseline,
            blur_radius=2.0,
            n_steps=1,
            output="logit",
            diagnostics=True,
        )

        expected = ((images - begin) * model.weights[1]).mean(1)
        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (notes["completeness"] <= 1e-4).all()
        assert (notes["function_change"].abs() > 0.05).all()


class TestCompleteness:
    @pytest.mark.parametrize("output", ["logit", "probability"])
    @pytest.mark.parametrize(
        "options",
        [
            {"baseline": "zero"},
            {"baseline": "zero", "input_space": "normalized"},
            {"baseline": "maximum_distance"},
            {"baseline": "uniform", "n_trials": 2},
            {"baseline": "gaussian", "n_trials": 2},
        ],
        ids=lambda options: "-".join(map(str, options.values())),
    )
    def test_the_map_sums_to_what_the_function_changes(self, keen, images, options, output):
        """Within 1 % of the change of the class that changes most."""
        ids, images = IDS[:3], 0.3 * images[:3]
        n_trials = options.get("n_trials", 1)

        def scores(x):
            with torch.no_grad():
                return keen(x) if output == "logit" else keen(x).softmax(1)

        begun = [
            scores(starts(images, keen.mean, trial=t, ids=ids, **options)) for t in range(n_trials)
        ]
        changes = scores(images) - sum(begun) / n_trials
        targets = changes.abs().argmax(1)
        change = changes[torch.arange(3), targets]
        assert (change.abs() > 0.05).all()

        maps, notes = attribute(
            "integrated_gradients",
            keen,
            images,
            targets,
            image_ids=ids,
            n_steps=150,
            output=output,
            diagnostics=True,
            **options,
        )

        assert (notes["function_change"] - change).abs().max() <= 1e-5
        residual = (3 * maps.double().sum((1, 2)) - change).abs()
        assert (residual <= 0.01 * change.abs()).all()
        assert torch.allclose(residual, notes["completeness"], atol=1e-5)

    def test_too_few_steps_show_in_the_residual(self, keen, images):
        few, many = (
            attribute("integrated_gradients", keen, images, TARGETS, n_steps=n, diagnostics=True)[
                1
            ]["completeness"].mean()
            for n in (1, 100)
        )

        assert many < 0.1 * few


class TestBaselines:
    def test_zero_is_black_or_the_mean_color(self, tiny, images):
        black = starts(images, tiny.mean, "zero")
        colored = starts(images, tiny.mean, "zero", input_space="normalized")

        assert (black == 0).all()
        assert torch.equal(colored, tiny.mean.expand_as(images))
        assert torch.equal(colored, starts(images, tiny.mean, "mean"))

    def test_zero_differs_between_the_spaces(self, tiny, images):
        options = {"n_steps": 8, "batch_size": 16}
        pixel, normalized, mean = (
            attribute("integrated_gradients", tiny, images, TARGETS, **options, **chosen)
            for chosen in (
                {"input_space": "pixel"},
                {"input_space": "normalized"},
                {"baseline": "mean"},
            )
        )

        assert torch.equal(normalized, mean)
        assert (pixel - normalized).abs().max() > 0.1 * pixel.abs().max()

    @pytest.mark.parametrize("baseline", ["uniform", "mean", "blurred", "maximum_distance"])
    def test_no_other_baseline_depends_on_the_space(self, tiny, images, baseline):
        maps = [
            attribute(
                "integrated_gradients",
                tiny,
                images,
                TARGETS,
                n_steps=3,
                baseline=baseline,
                blur_radius=2.0,
                input_space=space,
            )
            for space in ("pixel", "normalized")
        ]

        assert torch.equal(*maps)

    def test_the_product_is_the_same_in_normalized_space(self, tiny, images):
        """(z - z') times the gradient for z: std cancels."""
        normalized = (images - tiny.mean) / tiny.std
        probability = torch.nn.Sequential(tiny.network, torch.nn.Softmax(1))
        n = 12

        expected = IntegratedGradients(probability).attribute(
            normalized,
            baselines=-(tiny.mean / tiny.std).expand_as(images),
            target=TARGETS,
            n_steps=n + 1,
            method="riemann_trapezoid",
        )

        maps = attribute("integrated_gradients", tiny, images, TARGETS, n_steps=n)
        whole = expected.mean(1) * (n + 1) / n
        assert (maps - whole).abs().max() <= 1e-4 * whole.abs().max()

    def test_uniform_values_fill_the_range(self, images):
        values = starts(images, torch.zeros(1, 3, 1, 1), "uniform")

        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() < 1
        assert values.mean() == pytest.approx(0.5, abs=0.01)

    def test_gaussian_noise_is_clipped_around_the_image(self):
        images = torch.full((2, 3, 64, 64), 0.5)

        values = starts(
            images, torch.zeros(1, 3, 1, 1), "gaussian", ids=["a", "b"], noise_sigma=0.1
        )

        assert values.mean() == pytest.approx(0.5, abs=0.005)
        assert values.std() == pytest.approx(0.1, rel=0.03)
        wide = starts(images, torch.zeros(1, 3, 1, 1), "gaussian", ids=["a", "b"], noise_sigma=5.0)
        assert wide.min() == 0
        assert wide.max() == 1

    def test_blur_is_a_separable_gaussian_within_the_channel(self, images):
        blurred = starts(images, torch.zeros(1, 3, 1, 1), "blurred", blur_radius=1.5)

        expected = images.double().numpy()
        for axis in (2, 3):
            expected = gaussian_filter1d(expected, 1.5, axis=axis, mode="nearest")
        assert np.allclose(blurred.numpy(), expected, atol=1e-6)
        plain = torch.full_like(images, 0.7)
        assert torch.allclose(starts(plain, images[:1, :, :1, :1], "blurred"), plain)

    def test_maximum_distance_is_the_far_end_of_each_value(self):
        image = torch.tensor([0.0, 0.2, 0.49, 0.5, 0.8, 1.0]).reshape(1, 3, 1, 2)

        far = starts(image, torch.zeros(1, 3, 1, 1), "maximum_distance", ids=["a"])

        assert far.flatten().tolist() == [1, 1, 1, 0, 0, 0]
        assert ((image - far).abs() >= 0.5).all()

    @pytest.mark.parametrize("baseline", RANDOM)
    def test_draws_belong_to_seed_image_and_trial(self, baseline):
        same = torch.full((2, 3, 8, 8), 0.4)
        mean = torch.zeros(1, 3, 1, 1)

        first = starts(same, mean, baseline, ids=["a", "b"])

        assert not torch.equal(first[0], first[1])
        assert torch.equal(first, starts(same, mean, baseline, ids=["b", "a"]).flip(0))
        assert not torch.equal(first, starts(same, mean, baseline, ids=["a", "b"], trial=1))
        assert not torch.equal(first, starts(same, mean, baseline, ids=["a", "b"], seed=1))

    def test_uniform_draws_are_those_that_the_key_names(self):
        values = starts(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 1, 1), "uniform", ids=["a"])

        drawn = draws.generator(0, "a", "integrated_gradients", 0).random((3, 8, 8), np.float32)
        assert np.array_equal(values[0].numpy(), drawn)


class TestTrials:
    def test_a_map_is_the_mean_of_captum_s_over_the_trials(self, tiny, images):
        """Captum's trapezoid has n points but divides by n, not by its n - 1 steps."""
        n_steps, n_trials = 9, 3
        probability = torch.nn.Sequential(tiny, torch.nn.Softmax(1))
        separate = [
            IntegratedGradients(probability).attribute(
                images,
                baselines=starts(images, tiny.mean, "uniform", trial=t),
                target=TARGETS,
                n_steps=n_steps + 1,
                method="riemann_trapezoid",
            )
            for t in range(n_trials)
        ]
        expected = torch.stack(separate).mean(0).mean(1) * (n_steps + 1) / n_steps

        maps = attribute(
            "integrated_gradients",
            tiny,
            images,
            TARGETS,
            image_ids=IDS,
            baseline="uniform",
            n_steps=n_steps,
            n_trials=n_trials,
        )

        assert (maps - expected).abs().max() <= 1e-4 * expected.abs().max()

    @pytest.mark.parametrize("baseline", DETERMINISTIC)
    def test_equal_trials_are_refused(self, tiny, images, baseline):
        message = (
            f"n_trials is 2; with baseline {baseline} all trials are equal: write 1, or choose a "
            r"random baseline \(uniform, gaussian\)"
        )
        with pytest.raises(ValueError, match=message):
            attribute("integrated_gradients", tiny, images, 0, baseline=baseline, n_trials=2)
