"""What every attribution method owes: bits, shapes, passes, and a model left as it was."""

import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop, InputXGradient, Occlusion, Saliency
from torch import nn

from conftest import Linear, Tiny, perturb
from steadymap import attribute
from steadymap.attribution import EXPLAINERS, explainer
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.sliding_patch import interpolation
from steadymap.models.registry import explainable
from steadymap.params.methods import METHODS

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
IDS = list("abcdef")

TRIALS = {"n_steps": 5, "n_trials": 2}
SLIC = {"n_samples": 30, "n_superpixels": 16}
MASK = {"n_iterations": 5, "mask_size": 6, "blur_radius": 3.0, "jitter": 1}
CASES = {
    "gradient": ("gradient", {}),
    "smoothgrad": ("smoothgrad", {"n_samples": 5}),
    "smoothgrad-absolute": ("smoothgrad", {"n_samples": 5, "sigma_unit": "absolute"}),
    "input_x_gradient": ("input_x_gradient", {}),
    "integrated_gradients": ("integrated_gradients", {**TRIALS, "baseline": "uniform"}),
    "integrated_gradients-gaussian": ("integrated_gradients", {**TRIALS, "baseline": "gaussian"}),
    "guided_backprop": ("guided_backprop", {}),
    "guided_gradcam": ("guided_gradcam", {}),
    "guided_gradcam-nearest": ("guided_gradcam", {"interpolation": "nearest"}),
    "deeplift": ("deeplift", {}),
    "deeplift-blurred": ("deeplift", {"baseline": "blurred", "blur_radius": 3.0}),
    "sliding_patch": ("sliding_patch", {"patch_size": 6, "stride": 5}),
    "sliding_patch-stretched": (
        "sliding_patch",
        {"patch_size": 6, "stride": 5, "upsampling": "stretched"},
    ),
    "lime": ("lime", SLIC),
    "lime-average": ("lime", {**SLIC, "surrogate": "average"}),
    "meaningful_perturbation": ("meaningful_perturbation", MASK),
    "meaningful_perturbation-random": (
        "meaningful_perturbation",
        {**MASK, "init": "random", "tv_exponent": 2.5, "mask_size": 7},
    ),
}
each_case = pytest.mark.parametrize(("method", "options"), CASES.values(), ids=CASES)
each_method = pytest.mark.parametrize("method", METHODS)


def options_of(method):
    return CASES[method][1]


def equal(a, b):
    """Whether maps and diagnostics are the same to the bit, NaN included."""
    return (
        torch.equal(a[0].nan_to_num(-1), b[0].nan_to_num(-1))
        and a[1].keys() == b[1].keys()
        and all(torch.equal(a[1][key].nan_to_num(-1), b[1][key].nan_to_num(-1)) for key in a[1])
    )


def agree(maps, others):
    """Whether maps are the same but for rounding, by the largest value of each."""
    scale = others.abs().amax((1, 2), keepdim=True)
    return ((maps - others).abs() <= 1e-3 * scale + 1e-6).all()


def test_every_declared_method_has_code_and_a_case():
    assert set(EXPLAINERS) == set(METHODS) == {method for method, _ in CASES.values()}


@each_case
class TestBits:
    """At one batch shape a map depends on its image alone."""

    @pytest.mark.parametrize("batch_size", [16, 7])
    def test_order_and_company_never_change_one(self, method, options, batch_size, tiny, images):
        def explained(positions):
            return attribute(
                method,
                tiny,
                images[positions],
                TARGETS[positions],
                image_ids=[IDS[i] for i in positions],
                diagnostics=True,
                batch_size=batch_size,
                **options,
            )

        def rows(explained, positions):
            return explained[0][positions], {k: v[positions] for k, v in explained[1].items()}

        whole = explained([0, 1, 2, 3, 4, 5])

        assert whole[0].shape == (6, 24, 24)
        assert whole[0].dtype == torch.float32
        assert whole[0].isfinite().all()
        assert (whole[0].flatten(1).std(1) > 0).all()
        for positions in ([5, 4, 3, 2, 1, 0], [0, 1], [3]):
            assert equal(explained(positions), rows(whole, positions))

    def test_ids_come_from_the_content_by_default(self, method, options, tiny, images):
        whole = attribute(method, tiny, images, TARGETS, batch_size=16, **options)

        turned = attribute(method, tiny, images.flip(0), TARGETS.flip(0), batch_size=16, **options)

        assert torch.equal(turned.flip(0), whole)

    def test_other_batch_shapes_agree_within_tolerance(self, method, options, tiny, images):
        single, large = (
            attribute(method, tiny, images, TARGETS, batch_size=size, **options) for size in (1, 32)
        )
        alone = attribute(method, tiny, images[:1], TARGETS[:1], **options)

        assert agree(single, large)
        assert agree(alone, large[:1])

    def test_a_score_that_is_not_finite_reaches_the_map(self, method, options, images):
        """There the engine names the image: no method may stop first, or hide it."""

        class Broken(Tiny):
            def forward(self, x):
                return super().forward(x) * torch.nan

        maps = attribute(method, perturb(Broken()), images, 0, **options)

        assert maps.isnan().flatten(1).any(1).all()


# Methods of which one pass serves several counts: the count's name, and counts.
COUNTS = {
    "smoothgrad": ("n_samples", (3, 10, 5)),
    "integrated_gradients": ("n_trials", (1, 3, 2)),
    "integrated_gradients-gaussian": ("n_trials", (1, 3, 2)),
    "lime": ("n_samples", (30, 70, 50)),
    "lime-average": ("n_samples", (30, 70, 50)),
    "meaningful_perturbation": ("n_iterations", (6, 9, 3)),
    "meaningful_perturbation-random": ("n_iterations", (6, 9, 3)),
}


@pytest.mark.parametrize("batch_size", [4, 16, 64])
@pytest.mark.parametrize("case", COUNTS)
def test_one_pass_serves_all_counts_to_the_bit(case, batch_size, tiny, images):
    (method, options), (name, counts) = CASES[case], COUNTS[case]
    settings = [METHODS[method].effective({**options, name: count}) for count in counts]
    runner = ModelRunner(tiny, batch_size)

    together = explainer(method).explain(runner, images, TARGETS, image_ids=IDS, settings=settings)

    if method != "meaningful_perturbation":  # Its finished masks are scored once per count.
        largest = explainer(method).cost(settings[1], 24)
        assert (runner.forward, runner.backward) == (6 * largest[0], 6 * largest[1])
    for setting, explained in zip(settings, together, strict=True):
        alone = attribute(
            method,
            tiny,
            images,
            TARGETS,
            image_ids=IDS,
            batch_size=batch_size,
            diagnostics=True,
            **setting,
        )
        assert equal(explained, alone)
    assert not torch.equal(together[0][0], together[1][0])


@each_method
class TestPasses:
    @pytest.mark.parametrize("n_images", [1, 5])
    def test_few_images_cost_few_rows(self, method, n_images, tiny, images, monkeypatch):
        """Rows of every pass, padding included, are what the method declares."""
        sizes = []
        padded = ModelRunner.padded

        def counted(runner, rows, size=None):
            filled = padded(runner, rows, size)
            sizes.append(len(filled))
            return filled

        monkeypatch.setattr(ModelRunner, "padded", counted)

        attribute(method, tiny, images[:n_images], 0, **options_of(method))

        forward, _ = explainer(method).cost(METHODS[method].effective(options_of(method)), 24)
        needed = n_images * forward
        if method == "sliding_patch":  # The images alone go through the whole model.
            assert sum(sizes) <= needed
        else:
            assert needed <= sum(sizes) < needed + (1 if n_images == 1 else 64)

    def test_declared_costs_are_the_passes_made(self, method, tiny, images):
        setting = METHODS[method].effective(options_of(method))
        runner = ModelRunner(tiny, 16)
        runner.gradients(images, TARGETS, output="logit")

        explainer(method).explain(runner, images, TARGETS, image_ids=IDS, settings=[setting])

        forward, backward = explainer(method).cost(setting, 24)
        assert (runner.forward, runner.backward) == (6 + 6 * forward, 6 + 6 * backward)
        assert runner.model is tiny


@each_method
class TestModel:
    def test_it_is_left_as_it_was(self, method, tiny, images):
        """A wrapper in train mode around a network in eval mode stays just that."""
        modes = {name: module.training for name, module in tiny.named_modules()}
        weights = {name: value.clone() for name, value in tiny.state_dict().items()}
        shape = repr(tiny), tiny.network.code, len(tiny._forward_hooks)
        random_state = torch.random.get_rng_state(), np.random.get_state()[1]

        attribute(method, tiny, images, TARGETS, **options_of(method))

        assert len(set(modes.values())) == 2
        assert modes == {name: module.training for name, module in tiny.named_modules()}
        assert (repr(tiny), tiny.network.code, len(tiny._forward_hooks)) == shape
        assert all(torch.equal(value, weights[name]) for name, value in tiny.state_dict().items())
        assert torch.equal(random_state[0], torch.random.get_rng_state())
        assert (random_state[1] == np.random.get_state()[1]).all()

    def test_in_train_mode_it_is_explained_in_eval_mode(self, method, images):
        """BatchNorm in train mode would mix the images."""
        network = perturb(Tiny())
        explained = [
            attribute(method, network.train(mode), images, TARGETS, **options_of(method))
            for mode in (False, True)
        ]

        assert network.training
        assert torch.equal(*explained)

    def test_a_plain_module_equals_the_adapted_one(self, method, images):
        """Functional, reused and in-place activations are met in both."""
        network = perturb(Tiny())
        adapted = explainable(network, mean=[0.0] * 3, std=[1.0] * 3)

        plain, expected = (
            attribute(method, model, images, TARGETS, **options_of(method))
            for model in (network, adapted)
        )

        assert agree(plain, expected)

    def test_a_model_around_an_adapted_one_equals_it(self, method, tiny, images):
        around = nn.Sequential(tiny, nn.Identity())
        around.mean, around.std = tiny.mean, tiny.std

        maps, expected = (
            attribute(method, model, images, TARGETS, **options_of(method))
            for model in (around, tiny)
        )

        assert agree(maps, expected)

    def test_the_score_is_the_output_asked_for(self, method, tiny, images):
        if "output" not in METHODS[method].hyperparameters:
            pytest.skip("explains the logit alone")

        maps = [
            attribute(method, tiny, images, TARGETS, output=output, **options_of(method))
            for output in ("logit", "probability")
        ]

        assert not torch.allclose(*maps)


@each_case
def test_seeds_have_draws_of_their_own_where_there_are_any(method, options, tiny, images):
    maps = [
        attribute(method, tiny, images, TARGETS, seed=seed, batch_size=16, **options)
        for seed in (0, 1)
    ]

    assert torch.equal(*maps) != METHODS[method].stochastic


def _occlusion(model, images):
    """Disjoint windows that cover the image: one value per window in both."""
    probability = nn.Sequential(model, nn.Softmax(1))
    values = Occlusion(probability).attribute(
        images,
        sliding_window_shapes=(3, 6, 6),
        strides=(3, 6, 6),
        baselines=model.mean.expand_as(images),
        target=TARGETS,
    )
    weights = torch.from_numpy(interpolation(24, 6, 6)).float()
    return weights @ values[:, 0, ::6, ::6] @ weights.T


# Guided Grad-CAM and DeepLIFT need networks that Captum's own rules take: see their files.
CAPTUM = {
    "gradient": ({}, lambda m, x: Saliency(m).attribute(x, TARGETS, abs=False).mean(1)),
    "input_x_gradient-pixel": (
        {"input_space": "pixel"},
        lambda m, x: InputXGradient(m).attribute(x, TARGETS).mean(1),
    ),
    "input_x_gradient-normalized": (
        {"input_space": "normalized"},
        lambda m, x: InputXGradient(m.network).attribute((x - m.mean) / m.std, TARGETS).mean(1),
    ),
    "guided_backprop": ({}, lambda m, x: GuidedBackprop(m).attribute(x, TARGETS).mean(1)),
    "sliding_patch": ({"patch_size": 6, "stride": 6}, _occlusion),
}


@pytest.mark.filterwarnings("ignore:Setting", "ignore:Input Tensor 0 did not")
@pytest.mark.parametrize("case", CAPTUM)
def test_it_equals_captum_s(case, tiny, images):
    method, (options, oracle) = case.partition("-")[0], CAPTUM[case]
    expected = oracle(tiny, images.clone()).detach()

    maps = attribute(method, tiny, images, TARGETS, **options)

    # Drops are differences of probabilities, whose rounding is absolute.
    rounding = 1e-6 if method == "sliding_patch" else 0.0
    assert (maps - expected).abs().max() <= 1e-5 * expected.abs().max() + rounding


def test_a_linear_model_has_no_relu_to_guide(images):
    for method in ("guided_backprop", "guided_gradcam"):
        with pytest.raises(ValueError, match="Linear has no ReLU and no ReLU6"):
            attribute(method, Linear(24), images, TARGETS % 3)
