"""Networks, images and targets as users bring them: each works or is refused with what is true."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import Linear, Tiny, perturb
from steadymap import attribute, deletion, explainable, insertion, show, sweep
from steadymap.attribution.model_runner import ModelRunner
from steadymap.models import adoption, registry
from steadymap.params.checks import validate
from steadymap.params.methods import METHODS

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Of each method that reads a probability, a setting that is quick.
QUICK = {
    "sliding_patch": {"patch_size": 8, "stride": 8},
    "lime": {"n_samples": 30, "n_superpixels": 9},
    "integrated_gradients": {"n_steps": 4},
    "meaningful_perturbation": {"n_iterations": 3, "mask_size": 4, "blur_radius": 2.0, "jitter": 0},
}


class Changed(nn.Module):
    """A network whose answer a function changes."""

    def __init__(self, network, change):
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x):
        return self.change(self.network(x))


class Answer:
    def __init__(self, logits):
        self.logits = logits


def fresh(n_classes=5):
    torch.manual_seed(0)
    return perturb(Tiny(n_classes))


def normalized(images):
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


class TestScores:
    """A score is a logit, a softmax or a sigmoid; of a lone logit softmax would be 1."""

    @pytest.mark.parametrize("output", ["probability", "sigmoid"])
    def test_of_one_logit_is_its_sigmoid(self, images, output):
        network = fresh(1)
        model = explainable(network, mean=MEAN, std=STD)
        rows = images.clone().requires_grad_()
        scores = torch.sigmoid(network(normalized(rows)))[:, 0]
        (expected,) = torch.autograd.grad(scores.sum(), rows)

        maps = attribute("gradient", model, images, 0, output=output)

        assert (maps - expected.mean(1)).abs().max() <= 1e-5 * expected.mean(1).abs().max()
        assert maps.abs().max() > 0

    @pytest.mark.parametrize("method", QUICK)
    def test_of_one_logit_gives_maps_that_are_not_zero(self, method, images):
        model = explainable(fresh(1), mean=MEAN, std=STD)

        maps = attribute(method, model, images[:2], 0, **QUICK[method])

        assert (maps.flatten(1).std(1) > 0).all()

    def test_of_a_patch_is_the_drop_of_the_sigmoid(self, images):
        """Multi-label head: the other logits don't count, as they do in a softmax."""
        network = fresh(3)
        model = explainable(network, mean=MEAN, std=STD)

        maps = attribute(
            "sliding_patch", model, images[:2], 1, patch_size=24, stride=1, output="sigmoid"
        )

        covered = torch.zeros_like(images[:2])
        with torch.no_grad():
            before, after = (
                network(rows)[:, 1].sigmoid() for rows in (normalized(images[:2]), covered)
            )
        assert torch.allclose(maps[:, 0, 0], before - after, atol=1e-6)

    def test_final_probability_of_a_multi_label_mask_is_its_sigmoid(self, images):
        model = explainable(fresh(3), mean=MEAN, std=STD)
        options = {**QUICK["meaningful_perturbation"], "n_iterations": 1, "learning_rate": 1e-9}

        def final(output):
            call = ("meaningful_perturbation", model, images[:2], 1)
            _, notes = attribute(*call, diagnostics=True, init="ones", output=output, **options)
            return notes["final_probability"].float()

        with torch.no_grad():
            logits = model(images[:2])
        assert torch.allclose(final("sigmoid"), logits.sigmoid()[:, 1], atol=1e-5)
        assert torch.allclose(final("logit"), logits.softmax(1)[:, 1], atol=1e-5)

    @pytest.mark.parametrize(
        ("n_classes", "output"), [(1, "probability"), (3, "sigmoid"), (3, "probability")]
    )
    def test_of_insertion_and_deletion_follow_the_head(self, images, n_classes, output):
        network = fresh(n_classes)
        model = explainable(network, mean=MEAN, std=STD)
        maps = images.mean(1)
        half = 12 * 24
        shown = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1) < half
        shown = shown.reshape(6, 1, 24, 24)
        mean = model.mean.expand_as(images)

        def value(rows):
            with torch.no_grad():
                logits = network(normalized(rows))
            many = n_classes > 1 and output == "probability"
            return (logits.softmax(1) if many else logits.sigmoid())[:, 0].double()

        ends, blank = value(images), value(mean)
        inserted = (blank + 2 * value(torch.where(shown, images, mean)) + ends) / 4
        deleted = (ends + 2 * value(torch.where(shown, mean, images)) + blank) / 4
        call = {"step": half, "output": output}
        assert torch.allclose(insertion(model, images, maps, 0, **call), inserted, atol=1e-6)
        assert torch.allclose(deletion(model, images, maps.numpy(), 0, **call), deleted, atol=1e-6)

    def test_of_an_ordinary_head_keep_their_bits(self, images):
        """The softmax path is that of a plain loop at the same batch shape."""
        model = explainable(fresh(), mean=MEAN, std=STD)
        targets = torch.tensor([0, 1, 2, 3, 4, 0])
        runner = ModelRunner(model, 8)
        with torch.no_grad():
            logits = runner.fast(runner.padded(images))[:6]
        expected = logits.softmax(1).gather(1, targets[:, None])[:, 0]

        found = runner.scores(images, targets, output="probability")

        assert torch.equal(found, expected)

    def test_that_are_none_are_refused(self, tiny, images):
        with pytest.raises(ValueError, match=r"output is 'prob'; choose one of logit, probability"):
            ModelRunner(tiny, 8).scores(images, torch.zeros(6, dtype=torch.int64), output="prob")
        with pytest.raises(ValueError, match=r"output is 'logit'; choose one of probability, sig"):
            insertion(tiny, images, images.mean(1), 0, output="logit")

    @pytest.mark.parametrize("change", [lambda z: z * 0, lambda z: z.softmax(1)])
    def test_that_cannot_change_are_refused_by_name(self, images, change):
        model = Changed(fresh(1), change)

        with pytest.raises(
            ValueError, match=r"Changed: output 'probability' can't change: .*use output='logit'"
        ):
            attribute("lime", model, images[:1], 0)
        with pytest.raises(ValueError, match=r"Changed: output 'probability' can't change"):
            insertion(model, images, images.mean(1), 0)
        attribute("gradient", model, images[:1], 0)

    def test_every_output_offers_the_sigmoid(self):
        offered = [
            m.hyperparameters["output"] for m in METHODS.values() if "output" in m.hyperparameters
        ]

        assert len(offered) == 9
        assert {each.choices for each in offered} == {("logit", "probability", "sigmoid")}


class TestOutputs:
    """What is no tensor of logits is refused with the lambda that picks them."""

    CASES = (
        (lambda z: (z, z[:, :, None]), r"returns tuple of 2 .*lambda output: output\[0\]"),
        (lambda z: [z[..., None], z], r"returns list of 2 .*lambda output: output\[1\]"),
        (lambda z: {"aux": 1, "out": z}, r"returns dict with 'aux', 'out' .*output\['out'\]"),
        (Answer, r"returns an object, Answer, .*lambda output: output.logits"),
        (
            lambda z: z[:, :, None, None],
            r"returns a tensor of shape \(2, 5, 1, 1\) .*output.mean\(\(2, 3\)\)",
        ),
        (lambda z: z[:, 0], r"returns a tensor of shape \(2,\) .*output.reshape"),
        (lambda z: z.half(), r"returns torch.float16 .*network.float\(\)"),
    )

    @pytest.mark.parametrize(("change", "message"), CASES)
    def test_are_refused_with_the_remedy(self, images, change, message):
        call = {"vary": {"patch_size": [4, 8]}, "stride": 4}
        for run in (
            lambda model: attribute("gradient", model, images, 0),
            lambda model: sweep("sliding_patch", model, images, 0, **call),
            lambda model: show("sliding_patch", model, images, 0, **call),
            lambda model: deletion(model, images, images.mean(1), 0),
        ):
            with pytest.raises(ValueError, match=f"Changed {message}"):
                run(Changed(fresh(), change))

    @pytest.mark.parametrize(
        ("change", "pick"),
        [
            (lambda z: (z, z[:, :, None]), lambda output: output[0]),
            (lambda z: {"out": z}, lambda output: output["out"]),
            (Answer, lambda output: output.logits),
            (lambda z: z[:, :, None, None], lambda output: output.mean((2, 3))),
        ],
    )
    def test_are_picked_by_the_remedy(self, images, change, pick):
        plain, model = (
            explainable(network, mean=MEAN, std=STD, logits=chosen)
            for network, chosen in ((fresh(), None), (Changed(fresh(), change), pick))
        )

        maps = [attribute("guided_backprop", made, images, 0) for made in (plain, model)]

        assert torch.equal(*maps)
        assert type(model.network).__name__ == "Changed"

    def test_that_cannot_be_traced_are_told_with_the_remedy(self):
        with pytest.raises(ValueError, match=r"Changed can't be traced.*Answer.*output.logits"):
            explainable(Changed(fresh(), Answer), mean=MEAN, std=STD)

    def test_of_a_callable_are_not_asked_for(self, images):
        with pytest.raises(ValueError, match=r"model is function; give an nn.Module"):
            attribute("gradient", lambda x: x, images, 0)


class Branching(Tiny):
    def forward(self, x):
        logits = super().forward(x)
        return logits if torch.is_tensor(x) else 3 * logits


class TestCopiesKeepTheLogits:
    def test_a_dropped_hook_is_refused_with_the_difference(self, images):
        network = fresh()
        network.register_forward_hook(lambda module, given, found: -2 * found)
        with torch.no_grad():
            largest = float(network(normalized(images[:1])).abs().max())
        model = explainable(network, mean=MEAN, std=STD)

        with pytest.raises(
            ValueError,
            match=r"Tiny: .*differ from .* by .*forward hooks, here of the network itself",
        ) as caught:
            attribute("gradient", model, images, 0)
        # The traced copy gives z, the network -2 z: they differ by 1.5 times the largest.
        told = float(str(caught.value).split(" by ")[1].split(",")[0])
        assert told == pytest.approx(1.5 * largest, rel=0.3)

    @pytest.mark.parametrize("method", ["gradient", "deeplift", "guided_backprop"])
    def test_a_branch_that_tracing_turns_is_refused(self, images, method):
        torch.manual_seed(0)
        network = perturb(Branching())
        model = explainable(network, mean=MEAN, std=STD)

        with pytest.raises(ValueError, match=r"Branching: .*a branch on the kind .*is_tensor"):
            attribute(method, model, images, 0)
        # Without an adapter, methods that trace trace the same.
        if method == "gradient":
            assert attribute(method, network, images, 0).abs().max() > 0
        else:
            with pytest.raises(ValueError, match=r"Branching: .*move that into forward"):
                attribute(method, network, images, 0)

    def test_the_given_network_is_let_go_once_compared(self, tiny, images):
        assert tiny.network in registry.ORIGINALS

        attribute("gradient", tiny, images, 0)

        assert tiny.network not in registry.ORIGINALS


class Mates(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))


class TestChanceAndCompany:
    @pytest.mark.parametrize("adapted", [True, False])
    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (lambda: Changed(fresh(), F.dropout), r"dropout\(\) at "),
            (lambda: Changed(fresh(), lambda z: z + 0.1 * torch.rand_like(z)), "rand_like"),
            (Mates, "norm, BatchNorm2d without running statistics"),
            (lambda: Changed(fresh(), lambda z: z - z.mean(0, keepdim=True)), ""),
        ],
    )
    def test_are_refused_by_name_with_the_difference(self, images, network, message, adapted):
        model = network()
        if adapted:
            model = explainable(model, mean=MEAN, std=STD)
        elif "norm" not in message:
            message = ""

        with pytest.raises(
            ValueError, match=rf"(?s)logits of one image differ by .*1e-04|0.0001.*{message}"
        ) as caught:
            attribute("gradient", model, images[:1], 0)
        assert message.replace("\\", "") in str(caught.value)
        assert "track_running_stats=True" in str(caught.value)

    def test_one_image_alone_is_enough_to_tell(self):
        """A gray image too, whose inverse is itself."""
        with pytest.raises(ValueError, match="on the other images of the batch"):
            attribute("gradient", Mates().eval(), torch.full((1, 3, 8, 8), 0.5), 0)

    def test_the_random_state_is_left_as_it_was(self, images):
        model = Changed(fresh(), F.dropout)
        before = torch.random.get_rng_state()

        with pytest.raises(ValueError, match="they depend on chance"):
            attribute("gradient", model, images, 0)

        assert torch.equal(before, torch.random.get_rng_state())


class Counting(Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class TestOnce:
    def test_a_network_is_checked_once_until_it_changes(self):
        model = Counting(8)
        image = torch.rand(1, 3, 8, 8)

        def runner():
            before = model.calls
            attribute("gradient", model, image, 0)
            return model.calls - before

        assert [runner(), runner()] == [3, 1]
        model.weights.mul_(2)
        assert [runner(), runner()] == [3, 1]


class TestArithmetic:
    @pytest.mark.parametrize("method", METHODS)
    def test_autocast_changes_no_bit(self, method, tiny, images):
        options = QUICK.get(method, {"n_samples": 3} if method == "smoothgrad" else {})
        plain = attribute(method, tiny, images[:2], 0, batch_size=8, **options)

        with torch.autocast("cpu", torch.bfloat16):
            maps = attribute(method, tiny, images[:2], 0, batch_size=8, **options)

        assert maps.dtype == torch.float32
        assert torch.equal(maps, plain)

    @pytest.mark.parametrize("method", METHODS)
    def test_inference_mode_changes_no_bit(self, method):
        options = QUICK.get(method, {"n_samples": 3} if method == "smoothgrad" else {})

        def maps():
            images = torch.rand((2, 3, 24, 24), generator=torch.Generator().manual_seed(3))
            model = explainable(fresh(), mean=MEAN, std=STD)
            targets = torch.tensor([0, 1])
            return attribute(method, model, images, targets, batch_size=8, **options)

        plain = maps()
        with torch.inference_mode():
            inside = maps()

        assert torch.equal(inside, plain)

    def test_insertion_and_sweep_run_in_inference_mode_and_under_autocast(self, tiny, images):
        call = {"vary": {"sigma": [0.1, 0.3]}, "n_samples": 2}
        plain = (
            insertion(tiny, images, images.mean(1), 0),
            sweep("smoothgrad", tiny, images, 0, **call),
        )

        for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
            with mode:
                assert torch.equal(insertion(tiny, images, images.mean(1), 0), plain[0])
                found = sweep("smoothgrad", tiny, images, 0, **call)
            assert found["score"].equals(plain[1]["score"])

    def test_a_network_made_in_inference_mode_is_refused_and_its_copy_taken(self, images):
        with torch.inference_mode():
            network = fresh()

        with pytest.raises(ValueError, match=r"Tiny: .*made inside torch.inference_mode\(\)"):
            attribute("gradient", network, images, 0)
        model = explainable(network, mean=MEAN, std=STD)
        assert attribute("gradient", model, images, 0).abs().max() > 0

    @pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
    def test_networks_of_other_precisions_are_refused_with_the_remedy(self, images, dtype):
        for model in (
            explainable(fresh().to(dtype), mean=MEAN, std=STD),
            fresh().to(dtype),
        ):
            with pytest.raises(ValueError, match=rf"Tiny .*are {dtype}, .*give network.float\(\)"):
                attribute("gradient", model, images, 0)

    def test_a_whole_model_in_double_precision_gives_the_same_maps(self, tiny, images):
        plain = attribute("gradient", tiny, images, 0)

        maps = attribute("gradient", tiny.double(), images, 0)

        assert maps.dtype == torch.float32
        assert (maps - plain).abs().max() <= 1e-5 * plain.abs().max()

    def test_another_device_is_named(self, images):
        with pytest.raises(ValueError, match=r"parameters are on meta: move images or network"):
            attribute("gradient", fresh().to("meta"), images, 0)


class TestStatistics:
    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            ([123.7, 116.3, 103.5], STD, r"mean is \[123.7, .* divided by 255"),
            (MEAN, [58.4, 57.1, 57.4], r"std is \[58.4, .* divided by 255"),
            (MEAN, [0.2, 0, 0.2], r"std is .*give values above 0"),
            (MEAN, [0.2, -0.2, 0.2], r"std is .*give values above 0"),
            (MEAN, [0.2, float("nan"), 0.2], r"std is .*give statistics of images in \[0, 1\]"),
            (MEAN, [0.2], r"mean has 3 values, std 1; give one of each per channel"),
        ],
    )
    def test_that_are_none_are_refused(self, mean, std, message):
        with pytest.raises(ValueError, match=message):
            explainable(fresh(), mean=mean, std=std)

    @pytest.mark.parametrize(
        ("mean", "std", "key"),
        [
            ([123.7, 116.3, 103.5], [0.2, 0.2, 0.2], r"training.googlenet.mean: .*255"),
            ([0.5, 0.5, 0.5], [58.4, 57.1, 57.4], r"training.googlenet.std: .*255"),
            ([0.5, 0.5, 0.5], [0.2, 0, 0.2], r"training.googlenet.std: .*give values above 0"),
        ],
    )
    def test_that_are_none_are_refused_in_params(self, values, tmp_path, mean, std, key):
        (tmp_path / "w.pt").write_bytes(b"")
        values["training"]["googlenet"] = {"weights": "w.pt", "mean": mean, "std": std}

        with pytest.raises(ValueError, match=key):
            validate(values, root=tmp_path)


class TestImages:
    def test_of_numpy_are_taken(self, tiny, images):
        plain = attribute("smoothgrad", tiny, images, [0, 1, 2, 3, 4, 0], n_samples=2)
        targets = np.array([0, 1, 2, 3, 4, 0])

        for array in (images.numpy(), images.numpy().astype(np.float64), images.numpy()[..., :]):
            assert torch.equal(attribute("smoothgrad", tiny, array, targets, n_samples=2), plain)
        frozen = images.numpy().copy()
        frozen.setflags(write=False)
        assert torch.equal(attribute("smoothgrad", tiny, frozen, targets, n_samples=2), plain)
        found = sweep("smoothgrad", tiny, frozen, targets, vary={"n_samples": [2, 3]})
        assert found["score"].notna().all()

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (np.random.rand(2, 24, 24, 3), r"channels last; .*images.transpose\(0, 3, 1, 2\)"),
            (torch.rand(2, 24, 24, 3), r"channels last; .*images.permute\(0, 3, 1, 2\)"),
            (torch.rand(2, 1, 24, 24), r"images have 1 channels, mean and std .* 3; .*expand"),
            (torch.rand(2, 4, 24, 24), r"images have 4 channels, mean and std of the network 3"),
            ([[0.5]], r"images are list; give a tensor or an array"),
            (torch.full((1, 3, 24, 24), 1.0001), r"images lie in \[1.0001\d*, 1.0001\d*\]; give"),
            (torch.full((1, 3, 24, 24), -0.0001), r"images lie in \[-\d.*; give \[0, 1\]"),
            (torch.full((1, 3, 24, 24), float("nan")), r"images lie in \[nan, nan\]; give"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, tiny, images, message):
        with pytest.raises(ValueError, match=message):
            attribute("gradient", tiny, images, 0)

    def test_of_three_channels_for_a_gray_network_are_refused(self):
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        network(torch.rand(1, 1, 8, 8))
        for model in (network.eval(), explainable(network, mean=[0.5], std=[0.5])):
            with pytest.raises(ValueError, match=r"takes 1 channels: .*images.mean\(1, keepdim"):
                attribute("gradient", model, torch.rand(2, 3, 8, 8), 0)
        assert attribute("gradient", model, torch.rand(2, 1, 8, 8), 0).shape == (2, 8, 8)

    def test_gray_ones_are_never_broadcast_by_the_network_itself(self, tiny):
        with pytest.raises(ValueError, match=r"images have 1 channels, mean and std .* 3"):
            tiny(torch.rand(2, 1, 24, 24))

    def test_pixels_beyond_by_rounding_are_clipped(self, tiny, images):
        edged = images.clone()
        edged[0, 0, 0, 0], edged[0, 0, 0, 1] = 1.0, 0.0
        beyond = edged.clone()
        beyond[0, 0, 0, 0], beyond[0, 0, 0, 1] = 1.000001, -1e-6
        options = {"n_samples": 2}

        maps = [attribute("smoothgrad", tiny, rows, 0, **options) for rows in (edged, beyond)]

        assert torch.equal(*maps)


class TestTargets:
    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            (-1, r"targets go down to -1; give class indices from 0"),
            ([0, -2], r"targets go down to -2"),
            (float("nan"), r"targets are torch.float32; give whole numbers"),
            ([0.9, 1.0], r"targets are torch.float32; .*targets.long\(\)"),
            (torch.tensor([1.0, 2.0]), r"targets are torch.float32; give whole numbers"),
            (np.array([True, False]), r"targets are torch.bool; give whole numbers"),
            ([0, 5], r"targets go up to 5, the model has 5 classes"),
        ],
    )
    def test_that_are_no_classes_are_refused(self, tiny, images, targets, message):
        for run in (
            lambda: attribute("gradient", tiny, images[:2], targets),
            lambda: insertion(tiny, images[:2], images[:2].mean(1), targets),
        ):
            with pytest.raises(ValueError, match=message):
                run()

    def test_of_one_logit_are_class_0_alone(self, images):
        model = explainable(fresh(1), mean=MEAN, std=STD)

        with pytest.raises(ValueError, match=r"go up to 1, the model has 1 logit; give 0, .*cat"):
            attribute("lime", model, images[:2], [0, 1])

    def test_of_both_classes_come_by_the_remedy(self, images):
        """Softmax of (0, z) is the sigmoid of z, and its complement."""
        network = fresh(1)
        both = Changed(network, lambda z: torch.cat([torch.zeros_like(z), z], 1))
        one, two = (explainable(each, mean=MEAN, std=STD) for each in (network, both))
        options = {"patch_size": 8, "stride": 8}

        positive = attribute("sliding_patch", one, images, 0, **options)

        assert torch.allclose(
            attribute("sliding_patch", two, images, 1, **options), positive, atol=1e-6
        )
        assert torch.allclose(
            attribute("sliding_patch", two, images, 0, **options), -positive, atol=1e-6
        )

    def test_of_numpy_s_scalars_are_taken(self, tiny, images):
        plain = attribute("gradient", tiny, images, 2)

        for target in (np.int64(2), torch.tensor(2), np.full(6, 2, np.uint8)):
            assert torch.equal(attribute("gradient", tiny, images, target), plain)


class TestHyperparameters:
    def test_numpy_s_numbers_become_python_s(self, tiny, images):
        given = {"n_samples": np.int64(3), "sigma": np.float64(0.2), "seed": np.int32(1)}
        setting = METHODS["smoothgrad"].effective({**given, "output": np.str_("logit")})

        assert {type(value) for value in setting.values()} == {int, float, str}
        json.dumps(setting)
        plain = attribute("smoothgrad", tiny, images, 0, n_samples=3, sigma=0.2, seed=1)
        assert torch.equal(attribute("smoothgrad", tiny, images, 0, **given), plain)

    def test_numpy_s_values_are_swept(self, tiny, images):
        call = ("smoothgrad", tiny, images, 0)
        plain = sweep(*call, vary={"n_samples": [2, 4]}, sigma=0.5)

        found = sweep(
            *call,
            vary={"n_samples": np.array([2, 4])},
            reference=np.int64(2),
            sigma=np.float32(0.5),
        )

        assert found.equals(plain)

    @pytest.mark.parametrize("value", [np.bool_(True), np.float64(2.5), np.array([2]), "2"])
    def test_what_is_no_number_is_refused(self, tiny, images, value):
        with pytest.raises(ValueError, match=r"n_samples is .*; write a whole number"):
            attribute("smoothgrad", tiny, images, 0, n_samples=value)

    @pytest.mark.parametrize("size", [2.5, True, 0, -1])
    def test_batch_sizes_are_whole_numbers(self, tiny, images, size):
        with pytest.raises(ValueError, match=r"batch_size is .*; choose at least 1"):
            attribute("gradient", tiny, images, 0, batch_size=size)


class TestStudies:
    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (lambda: Changed(fresh(), lambda z: (z, z)), "key: Changed returns tuple of 2"),
            (lambda: fresh(1), r"key: Tiny returns 1 logits, the data have 5 classes; .*torch.cat"),
            (lambda: fresh(4), r"key: Tiny returns 4 logits, the data have 5 classes"),
            (Mates, r"key: Mates: .*norm, BatchNorm2d without running statistics"),
        ],
    )
    def test_refuse_a_network_by_its_key(self, network, message):
        model = explainable(network(), mean=MEAN, std=STD)

        with pytest.raises(ValueError, match=message):
            adoption.check_classifier(model, key="key", n_classes=5, image_size=24)

    @pytest.mark.parametrize("kind", ["cuda", "mps"])
    def test_name_the_key_of_a_device_that_is_not_there(self, kind, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

        with pytest.raises(ValueError, match=rf"attribution.device: {kind}, .*write auto or cpu"):
            registry.choose_device(kind)
        # Keys of tasks for workers that have one can be made here.
        assert registry.device_kind(kind) == kind
        assert registry.choose_device("auto") == torch.device("cpu")
