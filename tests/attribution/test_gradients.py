import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency

from conftest import Linear
from steadymap import attribute, draws

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
IDS = list("abcdef")


class NormalizedLinear(Linear):
    """Linear in the normalized pixels."""

    def __init__(self, side):
        super().__init__(side)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).reshape(1, 3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


class Quadratic(torch.nn.Module):
    """One logit: half the sum of squares; its gradient is the image itself."""

    def forward(self, x):
        return 0.5 * (x**2).sum((1, 2, 3))[:, None]


class TestInputXGradient:
    def test_closed_form_on_a_linear_model(self, images):
        """Normalised: z w; pixel: x w / std."""
        model = NormalizedLinear(24)
        weights = model.weights[1]
        expected = {
            "normalized": (images - model.mean) / model.std * weights,
            "pixel": images * weights / model.std,
        }

        for space, products in expected.items():
            maps = attribute("input_x_gradient", model, images, 1, input_space=space)

            assert torch.allclose(maps, products.mean(1), atol=1e-5)

    def test_the_normalized_image_is_the_default_and_differs(self, tiny, images):
        default, normalized, pixel = (
            attribute("input_x_gradient", tiny, images, TARGETS, **options)
            for options in ({}, {"input_space": "normalized"}, {"input_space": "pixel"})
        )

        assert torch.equal(default, normalized)
        assert (normalized - pixel).abs().max() > 0.1 * pixel.abs().max()

    @pytest.mark.parametrize("space", ["pixel", "normalized"])
    def test_the_color_that_counts_as_zero_gets_nothing(self, tiny, images, space):
        """The gradient there is not zero: the product with the image is what vanishes."""
        images[:, :, :6] = tiny.mean if space == "normalized" else 0.0

        maps = attribute("input_x_gradient", tiny, images, TARGETS, input_space=space)

        assert (maps[:, :6] == 0).all()
        assert attribute("gradient", tiny, images, TARGETS)[:, :6].abs().max() > 0
        assert maps[:, 6:].abs().max() > 0

    def test_without_statistics_normalized_space_is_pixel_space(self, images):
        pixel, normalized = (
            attribute("input_x_gradient", Quadratic(), images, 0, input_space=space)
            for space in ("pixel", "normalized")
        )

        assert torch.equal(pixel, normalized)
        assert torch.allclose(pixel, (images**2).mean(1))

    def test_probability_is_differentiated_on_request(self, tiny, images):
        inputs = images.clone().requires_grad_()
        probability = tiny(inputs).softmax(1)[torch.arange(6), TARGETS].sum()
        gradient = torch.autograd.grad(probability, inputs)[0]
        expected = (images * gradient).mean(1)

        maps = attribute(
            "input_x_gradient", tiny, images, TARGETS, input_space="pixel", output="probability"
        )

        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()


class TestSmoothGradsUnit:
    """`sigma_unit`; what else SmoothGrad does is in test_attribution."""

    @pytest.mark.parametrize("space", ["pixel", "normalized"])
    def test_without_noise_it_is_the_gradient(self, tiny, images, space):
        options = {"n_samples": 4, "sigma": 0.0, "sigma_unit": "absolute", "input_space": space}

        smooth = attribute("smoothgrad", tiny, images, TARGETS, batch_size=16, **options)

        assert torch.equal(smooth, attribute("gradient", tiny, images, TARGETS, batch_size=16))

    @pytest.mark.parametrize("space", ["pixel", "normalized"])
    def test_absolute_sigma_closed_form(self, tiny, images, space):
        """The noise has width sigma in its space, whatever the image's contrast."""
        model = Quadratic()
        model.mean, model.std = tiny.mean, tiny.std
        images[3:] *= 0.1
        n, sigma = 4, 0.2
        width = sigma * (tiny.std if space == "normalized" else torch.ones(1, 3, 1, 1))

        maps = attribute(
            "smoothgrad",
            model,
            images,
            0,
            image_ids=IDS,
            n_samples=n,
            sigma=sigma,
            sigma_unit="absolute",
            input_space=space,
        )

        for position, name in enumerate(IDS):
            noise = np.mean(
                [
                    draws.generator(0, name, "smoothgrad", d).standard_normal(
                        (3, 24, 24), dtype=np.float32
                    )
                    for d in range(n)
                ],
                axis=0,
            )
            expected = (images[position] + width[0] * torch.from_numpy(noise)).mean(0)
            assert torch.allclose(maps[position], expected, atol=1e-6)

    @pytest.mark.parametrize("space", ["pixel", "normalized"])
    def test_a_fraction_of_the_range_is_that_much_absolute_noise(self, tiny, images, space):
        image = images[:1] * 0.4
        seen = (image - tiny.mean) / tiny.std if space == "normalized" else image
        options = {"image_ids": ["a"], "n_samples": 5, "input_space": space}

        fraction, absolute, other = (
            attribute("smoothgrad", tiny, image, 2, sigma=sigma, sigma_unit=unit, **options)
            for sigma, unit in (
                (0.3, "range"),
                (0.3 * float(seen.max() - seen.min()), "absolute"),
                (0.3, "absolute"),
            )
        )

        scale = fraction.abs().max()
        assert (fraction - absolute).abs().max() <= 1e-3 * scale
        assert (fraction - other).abs().max() > 0.05 * scale

    def test_the_range_is_the_default(self, tiny, images):
        default, fraction, absolute = (
            attribute("smoothgrad", tiny, images, TARGETS, n_samples=2, **options)
            for options in ({}, {"sigma_unit": "range"}, {"sigma_unit": "absolute"})
        )

        assert torch.equal(default, fraction)
        assert not torch.allclose(default, absolute)

    def test_an_unknown_unit_is_told(self, tiny, images):
        with pytest.raises(ValueError, match="sigma_unit is 'px'; choose one of range, absolute"):
            attribute("smoothgrad", tiny, images, 0, sigma_unit="px")


class TestGradient:
    def test_linear_model_gives_its_weights(self, images):
        model = Linear(24)

        maps = attribute("gradient", model, images, 1)

        assert torch.allclose(maps, model.weights[1].mean(0).expand(6, 24, 24), atol=1e-7)


class TestSmoothGrad:
    def test_closed_form_on_a_quadratic(self, images):
        """The mean gradient is the image plus the mean of the very noise that the keys name."""
        n, sigma = 8, 0.2
        ids = list("abcdef")

        maps = attribute(
            "smoothgrad", Quadratic(), images, 0, image_ids=ids, seed=3, n_samples=n, sigma=sigma
        )

        for position, name in enumerate(ids):
            noise = np.mean(
                [
                    draws.generator(3, name, "smoothgrad", d).standard_normal(
                        (3, 24, 24), dtype=np.float32
                    )
                    for d in range(n)
                ],
                axis=0,
            )
            image = images[position]
            width = sigma * float(image.max() - image.min())
            expected = (image + width * torch.from_numpy(noise)).mean(0)
            assert torch.allclose(maps[position], expected, atol=1e-5)

    def test_sigma_is_a_fraction_of_the_range_in_normalized_space(self, tiny, images):
        """Noise of width s in normalized space is s times the channel's std in pixels."""
        model = Quadratic()
        model.mean, model.std = tiny.mean, tiny.std
        options = {"image_ids": list("abcdef"), "n_samples": 400, "sigma": 0.1}
        normalized = (images - tiny.mean) / tiny.std
        width = 0.1 * (normalized.amax((1, 2, 3)) - normalized.amin((1, 2, 3)))

        moved = attribute("smoothgrad", model, images, 0, **options) - images.mean(1)

        # The channel mean of independent noises, averaged over the samples.
        expected = width * (tiny.std**2).sum().sqrt() / 3 / 400**0.5
        assert torch.allclose(moved.flatten(1).std(1), expected, rtol=0.1)
        pixel = attribute("smoothgrad", model, images, 0, input_space="pixel", **options)
        assert not torch.allclose(pixel, moved + images.mean(1))

    def test_seeds_and_images_have_draws_of_their_own(self, tiny):
        same = torch.full((2, 3, 24, 24), 0.5)
        same[:, :, 5:9, 5:9] = 0.8

        a, b = attribute("smoothgrad", tiny, same, 0, image_ids=["a", "b"], n_samples=2)
        other = attribute("smoothgrad", tiny, same, 0, image_ids=["a", "b"], n_samples=2, seed=1)[0]

        assert not torch.allclose(a, b)
        assert not torch.allclose(a, other)

    def test_agrees_with_captum_in_the_limit(self, tiny, images):
        """Captum's width is absolute and its noise another: the means meet at 1/sqrt(n)."""
        torch.manual_seed(0)
        image = images[:1]
        width = 0.1 * float(image.max() - image.min())
        expected = (
            NoiseTunnel(Saliency(tiny))
            .attribute(
                image,
                nt_samples=2000,
                nt_samples_batch_size=500,
                stdevs=width,
                target=2,
                abs=False,
            )
            .mean(1)
        )

        maps = attribute(
            "smoothgrad", tiny, image, 2, n_samples=2000, sigma=0.1, input_space="pixel"
        )

        both = torch.stack([maps.flatten(), expected.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.99
