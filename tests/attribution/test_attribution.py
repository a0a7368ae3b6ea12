import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Occlusion, Saliency

import steadymap
from conftest import Linear, Tiny, perturb
from steadymap import attribute, draws
from steadymap.attribution import EXPLAINERS, explainer
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.sliding_patch import corners, interpolation
from steadymap.params.methods import METHODS

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
SMALL = {
    "gradient": {},
    "smoothgrad": {"n_samples": 7},
    "input_x_gradient": {},
    "integrated_gradients": {"n_steps": 6, "n_trials": 2, "baseline": "uniform"},
    "guided_backprop": {},
    "guided_gradcam": {},
    "deeplift": {},
    "sliding_patch": {"patch_size": 6, "stride": 5},
    "lime": {"n_samples": 40, "n_superpixels": 16},
    "meaningful_perturbation": {
        "n_iterations": 6,
        "mask_size": 6,
        "blur_radius": 3.0,
        "jitter": 1,
    },
}


def test_every_declared_method_has_code():
    assert set(EXPLAINERS) == set(METHODS) == set(SMALL)


@pytest.mark.parametrize("method", SMALL)
class TestEveryMethod:
    def test_maps_are_float32_one_per_image(self, method, tiny, images):
        maps, diagnostics = attribute(
            method, tiny, images, TARGETS, diagnostics=True, **SMALL[method]
        )

        assert maps.shape == (6, 24, 24)
        assert maps.dtype == torch.float32
        assert torch.isfinite(maps).all()
        assert (maps.flatten(1).std(1) > 0).all()
        assert all(len(values) == 6 for values in diagnostics.values())

    def test_order_and_company_never_change_a_bit(self, method, tiny, images):
        """One batch shape: whole, reversed, in parts and alone give the same bits."""
        ids = [f"image-{i}" for i in range(6)]
        options = {"batch_size": 16, **SMALL[method]}

        def maps(chosen):
            return attribute(
                method,
                tiny,
                images[chosen],
                TARGETS[chosen],
                image_ids=[ids[i] for i in chosen],
                **options,
            )

        whole = maps([0, 1, 2, 3, 4, 5])

        assert torch.equal(maps([5, 4, 3, 2, 1, 0]).flip(0), whole)
        assert torch.equal(torch.cat([maps([0, 1]), maps([2, 3, 4, 5])]), whole)
        assert torch.equal(maps([3])[0], whole[3])

    def test_ids_come_from_the_content_by_default(self, method, tiny, images):
        options = {"batch_size": 16, **SMALL[method]}
        whole = attribute(method, tiny, images, TARGETS, **options)

        reversed_maps = attribute(method, tiny, images.flip(0), TARGETS.flip(0), **options)

        assert torch.equal(reversed_maps.flip(0), whole)

    def test_other_batch_shapes_agree_within_tolerance(self, method, tiny, images):
        one, many = (
            attribute(method, tiny, images, TARGETS, batch_size=size, **SMALL[method])
            for size in (1, 32)
        )
        alone = attribute(method, tiny, images[:1], TARGETS[:1], **SMALL[method])

        scale = many.abs().amax((1, 2), keepdim=True)
        assert ((one - many).abs() <= 1e-3 * scale + 1e-6).all()
        assert ((alone - many[:1]).abs() <= 1e-3 * scale[:1] + 1e-6).all()

    @pytest.mark.parametrize("n_images", [1, 5])
    def test_few_images_cost_few_rows(self, method, n_images, tiny, images, monkeypatch):
        """Rows of every pass, padding included, are what the method declares."""
        sizes = []
        padded = ModelRunner.padded

        def counted(runner, rows, size=None):
            made = padded(runner, rows, size)
            sizes.append(len(made))
            return made

        monkeypatch.setattr(ModelRunner, "padded", counted)

        attribute(method, tiny, images[:n_images], 0, **SMALL[method])

        forward, _ = explainer(method).cost(METHODS[method].effective(SMALL[method]), 24)
        needed = n_images * forward
        if method == "sliding_patch":  # The images alone go through the whole model.
            assert sum(sizes) <= needed
        else:
            assert needed <= sum(sizes) < needed + (1 if n_images == 1 else 64)

    def test_declared_costs_are_the_passes_made(self, method, tiny, images):
        setting = METHODS[method].effective(SMALL[method])
        runner = ModelRunner(tiny, 16)

        explainer(method).explain(
            runner, images, TARGETS, image_ids=list("abcdef"), settings=[setting]
        )

        forward, backward = explainer(method).cost(setting, 24)
        assert (runner.forward, runner.backward) == (6 * forward, 6 * backward)

    def test_every_module_is_left_in_its_mode(self, method, tiny, images):
        """A wrapper in train mode around a network in eval mode stays just that."""
        modes = {name: module.training for name, module in tiny.named_modules()}
        with torch.no_grad():
            before = tiny(images)

        attribute(method, tiny, images, TARGETS, **SMALL[method])

        assert len(set(modes.values())) == 2
        assert modes == {name: module.training for name, module in tiny.named_modules()}
        with torch.no_grad():
            assert torch.equal(before, tiny(images))

    def test_a_model_in_train_mode_is_explained_in_eval_mode(self, method, images):
        """BatchNorm in train mode would mix the images."""
        network = perturb(Tiny())
        explained = [
            attribute(method, made, images, TARGETS, **SMALL[method])
            for made in (network.eval(), network.train())
        ]

        assert network.training
        assert torch.equal(*explained)

    def test_the_global_random_state_is_left_as_it_was(self, method, tiny, images):
        torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1]

        attribute(method, tiny, images, TARGETS, **SMALL[method])

        assert torch.equal(torch_state, torch.random.get_rng_state())
        assert (numpy_state == np.random.get_state()[1]).all()


class TestGradient:
    def test_linear_model_gives_its_weights(self, images):
        model = Linear(24)

        maps = attribute("gradient", model, images, 1)

        assert torch.allclose(maps, model.weights[1].mean(0).expand(6, 24, 24), atol=1e-7)

    def test_equals_captum(self, tiny, images):
        expected = Saliency(tiny).attribute(images, TARGETS, abs=False).mean(1)

        maps = attribute("gradient", tiny, images, TARGETS)

        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()

    def test_probability_is_differentiated_on_request(self, tiny, images):
        inputs = images.clone().requires_grad_()
        probability = tiny(inputs).softmax(1)[torch.arange(6), TARGETS].sum()
        expected = torch.autograd.grad(probability, inputs)[0].mean(1)

        maps = attribute("gradient", tiny, images, TARGETS, output="probability")

        assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not torch.allclose(maps, attribute("gradient", tiny, images, TARGETS))


class Quadratic(torch.nn.Module):
    """One logit: half the sum of squares; its gradient is the image itself."""

    def forward(self, x):
        return 0.5 * (x**2).sum((1, 2, 3), keepdim=False)[:, None]


class TestSmoothGrad:
    def test_without_noise_it_is_the_gradient(self, tiny, images):
        plain = attribute("gradient", tiny, images, TARGETS, batch_size=16)

        smooth = attribute(
            "smoothgrad", tiny, images, TARGETS, n_samples=4, sigma=0.0, batch_size=16
        )

        assert torch.equal(smooth, plain)

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

    @pytest.mark.parametrize("batch_size", [4, 16, 64])
    def test_nested_samples_equal_separate_runs_to_the_bit(self, tiny, images, batch_size):
        declared = METHODS["smoothgrad"]
        settings = [declared.effective({"n_samples": n}) for n in (3, 10, 5)]
        ids = list("abcdef")

        nested = explainer("smoothgrad").explain(
            ModelRunner(tiny, batch_size), images, TARGETS, image_ids=ids, settings=settings
        )

        for setting, (maps, _) in zip(settings, nested, strict=True):
            alone = attribute(
                "smoothgrad", tiny, images, TARGETS, image_ids=ids, batch_size=batch_size, **setting
            )
            assert torch.equal(maps, alone)

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


class TestSlidingPatch:
    def test_linear_model_gives_the_patch_sums(self):
        """The drop is the sum, under the patch, of weight times (image - fill)."""
        model = Linear(12)
        images = torch.rand((2, 3, 12, 12), generator=torch.Generator().manual_seed(2))
        size, stride = 3, 1
        contributions = (images * model.weights[1]).sum(1)
        expected = torch.nn.functional.avg_pool2d(contributions[:, None], size, stride)[:, 0] * 9

        maps = attribute(
            "sliding_patch",
            model,
            images,
            1,
            patch_size=size,
            stride=stride,
            fill="black",
            output="logit",
        )

        # With stride 1 and an odd patch, centers fall on pixels.
        assert torch.allclose(maps[:, 1:-1, 1:-1], expected, atol=1e-4)
        assert torch.allclose(maps[:, 0, 1:-1], expected[:, 0], atol=1e-4)

    def test_equals_captum_where_definitions_coincide(self, tiny, images):
        """Disjoint windows that cover the image: one value per window in both."""
        probability = torch.nn.Sequential(tiny, torch.nn.Softmax(1))
        expected = Occlusion(probability).attribute(
            images,
            sliding_window_shapes=(3, 6, 6),
            strides=(3, 6, 6),
            baselines=tiny.mean.expand_as(images),
            target=TARGETS,
        )

        maps = attribute("sliding_patch", tiny, images, TARGETS, patch_size=6, stride=6)

        weights = torch.from_numpy(interpolation(24, 6, 6)).float()
        coarse = expected[:, 0, ::6, ::6]
        assert torch.allclose(maps, weights @ coarse @ weights.T, atol=1e-6)

    @pytest.mark.parametrize(("size", "stride", "count"), [(5, 3, 74), (52, 3, 58), (54, 3, 57)])
    def test_positions_are_the_paper_s(self, size, stride, count):
        assert len(corners(224, size, stride)) == count

    @pytest.mark.parametrize("size", [3, 4])
    def test_values_stand_at_the_patch_centers(self, size):
        """A ramp over centers stays that ramp in pixels, half pixels for even patches."""
        centers = corners(20, size, 2) + (size - 1) / 2

        spread = interpolation(20, size, 2) @ centers

        assert np.allclose(spread, np.clip(np.arange(20), centers[0], centers[-1]))

    def test_the_covered_object_is_found(self):
        class Corner(torch.nn.Module):
            def forward(self, x):
                inside = x[:, :, 4:8, 4:8].mean((1, 2, 3))
                return torch.stack([10 * inside, torch.zeros_like(inside)], 1)

        image = torch.rand((1, 3, 24, 24), generator=torch.Generator().manual_seed(0))

        found = attribute("sliding_patch", Corner(), image, 0, patch_size=4, stride=1)[0]

        peak = np.unravel_index(int(found.argmax()), (24, 24))
        assert all(5 <= place <= 6 for place in peak)
        assert found[12:, 12:].abs().max() < 1e-6

    def test_fills_differ(self, tiny, images):
        maps = [
            attribute("sliding_patch", tiny, images, TARGETS, patch_size=8, stride=8, fill=fill)
            for fill in ("mean", "black", "gray")
        ]

        assert not torch.allclose(maps[0], maps[1])
        assert not torch.allclose(maps[1], maps[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "lyme"}, r"method is 'lyme'; choose one of gradient, smoothgrad"),
        ({"n_samples": 0}, r"n_samples is 0; choose at least 1"),
        ({"n_samples": 2.5}, r"n_samples is 2.5; write a whole number"),
        ({"n_samples": True}, r"n_samples is True; write a whole number"),
        ({"sigma": float("nan")}, r"sigma is nan; write a finite number"),
        ({"width": 1}, r"width is 1; smoothgrad has no such hyperparameter; known are n_samples"),
        ({"output": "log"}, r"output is 'log'; choose one of logit, probability"),
        ({"images": torch.rand(3, 24, 24)}, r"images have shape \(3, 24, 24\); give \(batch, ch"),
        ({"images": torch.rand(1, 3, 24, 24) * 255}, r"images lie in .*; give \[0, 1\]"),
        ({"images": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, r"images are torch.uint8; give"),
        ({"targets": [0, 1, 2]}, r"targets have shape \(3,\), there are 2 images"),
        ({"targets": 9}, r"targets go up to 9, the model has 5 classes"),
        ({"image_ids": ["a", "a"]}, r"image_ids name 1 different images, there are 2"),
        ({"batch_size": 0}, r"batch_size is 0; choose at least 1"),
    ],
)
def test_wrong_calls_are_told(tiny, call, message):
    options = {"method": "smoothgrad", "images": torch.rand(2, 3, 24, 24), "targets": 0, **call}

    with pytest.raises(ValueError, match=message):
        attribute(options.pop("method"), tiny, options.pop("images"), **options)


def test_a_patch_larger_than_the_image_is_told(tiny, images):
    with pytest.raises(ValueError, match="patch_size is 25, the image 24 x 24; choose a smaller"):
        attribute("sliding_patch", tiny, images, 0, patch_size=25)


def test_a_seed_for_a_method_without_randomness_changes_nothing(tiny, images):
    maps = [attribute("gradient", tiny, images, 0, seed=seed, batch_size=16) for seed in (0, 1)]

    assert torch.equal(*maps)


def test_the_package_offers_what_it_names():
    assert all(callable(getattr(steadymap, name)) for name in steadymap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        steadymap.atribute  # noqa: B018
