import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from steadymap import attribute, draws
from steadymap.attribution import explainer
from steadymap.attribution import meaningful_perturbation as mp
from steadymap.attribution.model_runner import ModelRunner
from steadymap.params.methods import METHODS

NAME = "meaningful_perturbation"
IDS = list("abcdef")
TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
SMALL = {"n_iterations": 6, "mask_size": 6, "blur_radius": 3.0, "jitter": 2}
BATCH = 16


def explained(model, images, targets=TARGETS, *, ids=IDS, batch_size=BATCH, **options):
    """Maps and diagnostics."""
    return attribute(
        NAME,
        model,
        images,
        targets,
        image_ids=ids[: len(images)],
        diagnostics=True,
        batch_size=batch_size,
        **{**SMALL, **options},
    )


class Checkered(torch.nn.Module):
    """Two classes; the first is there as far as a checkerboard in one patch is."""

    def __init__(self, side=24, top=6, left=12, size=6):
        super().__init__()
        board = torch.zeros(side, side)
        signs = (torch.arange(size)[:, None] + torch.arange(size)) % 2 * 2.0 - 1
        board[top : top + size, left : left + size] = signs
        self.register_buffer("board", board)

    def forward(self, x):
        contrast = 2 * (x.mean(1) * self.board).sum((1, 2)) / self.board.abs().sum()
        return torch.stack([12 * contrast - 4, torch.zeros_like(contrast)], 1)

    def image(self):
        noise = torch.rand((1, 3, *self.board.shape), generator=torch.Generator().manual_seed(0))
        return torch.where(self.board == 0, noise, self.board / 2 + 0.5)


class Constant(torch.nn.Module):
    """The same logits for every image, though connected to it."""

    def forward(self, x):
        return 0 * x.sum((1, 2, 3))[:, None] + torch.tensor([1.0, 0.0])


def of_a_constant(images, **options):
    """Maps and diagnostics of a model that `attribute` refuses: its probability can't change."""
    classes = torch.zeros(len(images), dtype=torch.int64)
    setting = METHODS[NAME].effective({**SMALL, **options})
    runner = ModelRunner(Constant(), BATCH)
    return explainer(NAME).explain(runner, images, classes, image_ids=IDS, settings=[setting])[0]


class TestMaps:
    @pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
    @pytest.mark.parametrize("init", ["circular", "random", "ones"])
    def test_find_the_only_informative_region(self, init, upsampling):
        model = Checkered()
        options = {"n_iterations": 150, "mask_size": 8, "l1_coefficient": 1e-3}
        options |= {"tv_coefficient": 1e-3, "init": init, "upsampling": upsampling}

        maps, notes = explained(model, model.image(), torch.tensor([0]), **options)

        inside = maps[0][model.board != 0]
        far = F.max_pool2d(model.board.abs()[None], 13, 1, 6)[0] == 0
        assert model(model.image()).softmax(1)[0, 0] > 0.99
        assert notes["final_probability"] < 0.1
        assert inside.mean() > 0.35
        assert maps[0][far].max() < 0.05

    def test_are_zero_where_nothing_changes_the_probability(self, images):
        """Both penalties then end at a mask of ones, exactly."""
        maps, notes = of_a_constant(images, init="random", n_iterations=80, tv_coefficient=1e-4)

        assert (maps == 0).all()
        assert torch.allclose(notes["loss_probability"], torch.tensor(1 / (1 + math.exp(-1))))
        assert (notes["loss_l1"][:, -1] == 0).all()

    def test_lie_in_zero_to_one_and_follow_the_image_s_shape(self, tiny, images):
        wide = torch.cat([images, images[..., :8]], -1)

        maps, notes = explained(tiny, wide)

        assert maps.shape == (6, 24, 32)
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert notes["snapshots"].shape == (6, 5, 6, 6)

    def test_final_blur_smooths_the_finished_map(self, tiny, images):
        plain = explained(tiny, images)[0].numpy()

        smooth = explained(tiny, images, final_blur=1.5)[0].numpy()

        expected = [gaussian_filter(m.astype(float), 1.5, mode="nearest") for m in plain]
        assert np.allclose(smooth, expected, atol=1e-6)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"init": "random", "seed": 3, "upsampling": "nearest", "tv_exponent": 2.0},
            {"init": "ones", "jitter": 3, "output": "logit", "learning_rate": 0.03},
            {"init": "random", "jitter": 0, "tv_exponent": 1.5, "mask_size": 7},
        ],
    )
    @pytest.mark.parametrize("width", [24, 18])
    def test_equal_a_plain_loop_of_autograd_and_adam(self, tiny, images, options, width):
        """Ten steps; later rounding grows without bound (its own and ours alike)."""
        images = images[:2, :, :, :width]
        setting = METHODS[NAME].effective({**SMALL, "n_iterations": 10, **options})

        maps, notes = explained(tiny, images, TARGETS[:2], **setting)

        for k, image in enumerate(images):
            start = notes["snapshots"][k, 0]
            expected, losses = plain_loop(tiny, image, int(TARGETS[k]), start, IDS[k], setting)
            assert (start - notes["snapshots"][k, -1]).abs().max() > 0.1
            assert torch.allclose(maps[k], expected, atol=1e-4)
            assert torch.allclose(notes["loss_total"][k], losses, atol=1e-4)


def plain_loop(model, image, target, start, name, setting):
    """Map and loss per step of one image, by what torch has ready."""
    height, width = image.shape[1:]
    jitter, margin = setting["jitter"] + 1, (setting["jitter"] + 1) // 2
    mode = {
        "bilinear": {"mode": "bilinear", "align_corners": False},
        "nearest": {"mode": "nearest-exact"},
    }[setting["upsampling"]]
    smooth = [gaussian_filter(c, setting["blur_radius"], mode="nearest") for c in image.numpy()]
    pair = torch.stack([image, torch.from_numpy(np.stack(smooth))])
    pair = F.pad(pair, (margin, jitter, margin, jitter), mode="replicate")
    mask = start.clone().requires_grad_()
    adam = torch.optim.Adam([mask], lr=setting["learning_rate"])
    losses = []
    for step in range(setting["n_iterations"]):
        down, right = draws.generator(setting["seed"], name, NAME, step + 1).integers(0, jitter, 2)
        shown, hidden = pair[:, :, down : down + height, right : right + width]
        up = F.interpolate(mask[None, None], (height, width), **mode)[0]
        logits = model((up * shown + (1 - up) * hidden)[None])
        values = logits.softmax(1) if setting["output"] == "probability" else logits
        exponent = setting["tv_exponent"]
        tv = (mask[1:] - mask[:-1]).abs().pow(exponent).sum()
        tv = tv + (mask[:, 1:] - mask[:, :-1]).abs().pow(exponent).sum()
        loss = setting["l1_coefficient"] * (1 - mask).abs().sum() + values[0, target]
        loss = loss + setting["tv_coefficient"] * tv
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
        mask.data.clamp_(0, 1)
    return 1 - F.interpolate(mask.data[None, None], (height, width), **mode)[0, 0], torch.tensor(
        losses
    )


class TestBits:
    """One batch shape: nothing that a map is computed with may show in it."""

    @pytest.mark.parametrize("init", ["circular", "random", "ones"])
    def test_declared_costs_are_the_passes_made(self, tiny, images, init):
        setting = METHODS[NAME].effective({**SMALL, "init": init})
        runner = ModelRunner(tiny, BATCH)

        explainer(NAME).explain(runner, images, TARGETS, image_ids=IDS, settings=[setting])

        forward, backward = explainer(NAME).cost(setting, 24)
        assert (runner.forward, runner.backward) == (6 * forward, 6 * backward)

    def test_rows_of_another_shape_give_scores_and_gradients(self, tiny, images):
        scores, gradients = ModelRunner(tiny, BATCH).scored_gradients(
            images, TARGETS, output="probability", batch_size=4
        )

        usual = ModelRunner(tiny, BATCH)
        assert torch.allclose(scores, usual.scores(images, TARGETS, output="probability"))
        expected = usual.gradients(images, TARGETS, output="probability")
        assert (gradients - expected).abs().max() <= 1e-5 * expected.abs().max()


class TestSeeds:
    def test_a_random_start_belongs_to_image_and_seed(self, tiny, images):
        same = images[:1].expand(2, -1, -1, -1)
        options = {"init": "random", "jitter": 0}

        (a, b), notes = explained(tiny, same, TARGETS[:2] * 0, **options)
        other = explained(tiny, same, TARGETS[:2] * 0, seed=1, **options)[0][0]

        expected = draws.generator(0, "a", NAME, 0).random((6, 6), dtype=np.float32)
        assert np.array_equal(notes["snapshots"][0, 0], expected)
        assert (a - b).abs().max() > 0.1
        assert (a - other).abs().max() > 0.1

    @pytest.mark.parametrize("init", ["circular", "ones"])
    def test_change_nothing_without_jitter_and_random_start(self, tiny, images, init):
        maps = [explained(tiny, images, init=init, jitter=0, seed=seed)[0] for seed in (0, 1)]

        assert torch.equal(*maps)

    def test_change_the_jitter(self, tiny, images):
        maps = [explained(tiny, images, jitter=2, seed=seed)[0] for seed in (0, 1)]

        assert not torch.equal(*maps)

    @pytest.mark.parametrize(
        ("jitter", "expected"), [(0, {0}), (1, {-1, 0}), (2, {-1, 0, 1}), (3, {-2, -1, 0, 1})]
    )
    def test_shifts_are_centered(self, jitter, expected):
        drawn = [mp.shift(jitter, seed=0, image_id="a", iteration=i) for i in range(80)]

        assert set(drawn) == {(down, right) for down in expected for right in expected}

    def test_shifts_belong_to_image_seed_and_iteration(self):
        def shifts(seed, name):
            return [mp.shift(4, seed=seed, image_id=name, iteration=i) for i in range(20)]

        assert shifts(0, "a") == shifts(0, "a")
        assert shifts(0, "a") != shifts(1, "a")
        assert shifts(0, "a") != shifts(0, "b")


class TestBlur:
    def test_leaves_a_constant_image_alone(self):
        image = torch.tensor([0.2, 0.5, 1.0])[:, None, None].expand(3, 9, 14)

        assert torch.allclose(mp.blurred(image, 4.0), image, atol=1e-7)

    def test_spreads_a_point_as_a_gaussian_of_that_standard_deviation(self):
        image = torch.zeros(3, 41, 41)
        image[1, 20, 20] = 1
        away = np.arange(-20, 21)
        bell = np.exp(-(away**2) / (2 * 2.5**2))
        expected = torch.from_numpy(np.outer(bell, bell) / bell.sum() ** 2).float()

        smooth = mp.blurred(image, 2.5)

        # The kernel ends at four standard deviations.
        assert torch.allclose(smooth[1], expected, atol=1e-5)
        assert (smooth[[0, 2]] == 0).all()


class TestUpsampling:
    @pytest.mark.parametrize("mask_size", [1, 5, 8, 24])
    def test_equals_interpolate(self, mask_size):
        """Half-pixel centers: cells tile the image."""
        mask = torch.rand(mask_size, mask_size, generator=torch.Generator().manual_seed(0))
        modes = {
            "bilinear": {"mode": "bilinear", "align_corners": False},
            "nearest": {"mode": "nearest-exact"},
        }
        for upsampling, mode in modes.items():
            down, across = (
                torch.from_numpy(mp.upsampling_weights(side, mask_size, upsampling)).float()
                for side in (24, 31)
            )
            expected = F.interpolate(mask[None, None], (24, 31), **mode)[0, 0]
            assert torch.allclose(down @ mask @ across.T, expected, atol=1e-5)


class TestPenalties:
    def test_closed_form(self):
        mask = torch.tensor([[1.0, 0.5], [0.0, 0.25]])

        l1, tv, _ = mp.penalties(mask, l1_coefficient=2.0, tv_coefficient=3.0, tv_exponent=3.0)

        assert l1.item() == 2 * (0 + 0.5 + 1 + 0.75)
        assert tv.item() == 3 * (1 + 0.25**3 + 0.5**3 + 0.25**3)

    @pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
    def test_gradient_equals_autograd(self, exponent):
        mask = torch.rand((5, 5), generator=torch.Generator().manual_seed(0))
        mask[0, :3] = 1
        options = {"l1_coefficient": 0.3, "tv_coefficient": 0.7, "tv_exponent": exponent}
        leaf = mask.clone().requires_grad_()
        loss = 0.3 * (1 - leaf).abs().sum()
        for step in (leaf[1:] - leaf[:-1], leaf[:, 1:] - leaf[:, :-1]):
            loss = loss + 0.7 * step.abs().pow(exponent).sum()
        loss.backward()

        l1, tv, gradient = mp.penalties(mask, **options)

        assert torch.allclose(l1 + tv, loss)
        assert torch.allclose(gradient, leaf.grad, atol=1e-6)

    def test_losses_are_those_of_the_mask_before_each_step(self, images):
        options = {"l1_coefficient": 0.01, "tv_coefficient": 0.02, "tv_exponent": 2.0}

        _, notes = of_a_constant(images, init="random", n_iterations=3, **options)

        for k, step in enumerate((0, 1, 2)):
            masks = notes["snapshots"][:, step].numpy().astype(float)
            tv = sum((np.diff(masks, axis=axis) ** 2).sum((1, 2)) for axis in (1, 2))
            assert np.allclose(notes["loss_l1"][:, k], 0.01 * (1 - masks).sum((1, 2)), rtol=1e-5)
            assert np.allclose(notes["loss_tv"][:, k], 0.02 * tv, rtol=1e-5)
        parts = notes["loss_l1"] + notes["loss_tv"] + notes["loss_probability"]
        assert torch.equal(notes["loss_total"], parts)


class TestCircularStart:
    @pytest.mark.parametrize(("height", "width", "mask_size"), [(64, 64, 16), (48, 64, 12)])
    def test_discs_have_the_area_of_their_radius(self, height, width, mask_size):
        """In a mask of cells that are `side / mask_size` px on the longer side."""
        radii, masks = mp.disc_masks(height, width, mask_size)
        # Those whose smoothed edge stays inside.
        inside = radii < (height / 2 - 3 * 10 / 224 * width) * mask_size / width
        areas = (1 - masks).sum((1, 2)) * height / width

        assert inside.sum() >= 10
        assert np.allclose(areas[inside], np.pi * radii[inside] ** 2, rtol=0.02, atol=0.05)
        assert (np.diff(areas) >= 0).all()
        assert (np.diff(areas[inside]) > 0).all()

    def test_grow_from_small_to_the_whole_image(self):
        radii, masks = mp.disc_masks(64, 64, 28)

        assert np.allclose(radii[[0, -1]], [28 * 5 / 224, 28 * 170 / 224])
        assert (masks[0] > 0.8).all()
        assert masks[-1].max() < 0.05
        assert (masks >= 0).all()

    def test_take_the_same_part_of_the_image_on_every_grid(self):
        """On a grid of 28 a smoothing of 10 cells would leave the start nearly flat."""
        means = [mp.disc_masks(64, 64, size)[1].mean((1, 2)) for size in (4, 16, 64)]

        assert np.allclose(means[0], means[1], atol=1e-6)
        assert np.allclose(means[0], means[2], atol=1e-6)
        disc = mp.disc_masks(224, 224, 28)[1][9]
        assert disc[14, 14] < 1e-3
        assert disc[0, 0] == 1

    def test_are_round_and_centered(self):
        _, masks = mp.disc_masks(32, 32, 8)

        for mask in masks:
            assert np.allclose(mask, mask.T)
            assert np.allclose(mask, mask[::-1])
            assert np.allclose(mask, mask[:, ::-1])

    def test_the_smallest_that_suppresses_is_chosen(self, tiny, images):
        _, notes = explained(tiny, images)

        radii, masks = mp.disc_masks(24, 24, 6)
        blanks = [gaussian_filter(i.numpy(), 3.0, axes=(1, 2), mode="nearest") for i in images]
        blanks = torch.from_numpy(np.stack(blanks))
        every = torch.arange(6)
        with torch.no_grad():
            original, blank = (
                tiny(x).softmax(1)[every, TARGETS].double().numpy() for x in (images, blanks)
            )
            chosen = np.searchsorted(radii, notes["init_radius"].numpy())
            assert len(set(chosen)) > 1
            for k, position in enumerate(chosen):
                discs = torch.from_numpy(masks[: position + 1]).float()[:, None]
                up = F.interpolate(discs, (24, 24), mode="bilinear")
                mixed = up * images[k] + (1 - up) * blanks[k]
                scores = tiny(mixed).softmax(1)[:, TARGETS[k]].double().numpy()
                left = (scores - blank[k]) / (original[k] - blank[k])
                assert left[-1] < 0.01
                assert (left[:-1] >= 0.01).all()
                assert torch.allclose(notes["snapshots"][k, 0], discs[-1, 0])

    @pytest.mark.parametrize(
        ("scores", "original", "blank", "expected"),
        [
            ([0.9, 0.5, 0.1089, 0.1], 0.99, 0.1, 2),  # (.1089 - .1) / .89 = .01
            ([0.9, 0.5, 0.1088, 0.1], 0.99, 0.1, 2),
            ([0.9, 0.05, 0.3, 0.1], 0.99, 0.1, 1),  # below the blurred score already
            ([0.9, 0.5, 0.4, 0.3], 0.99, 0.1, 3),  # none suffices
            ([0.2, 0.7, 0.899, 0.9], 0.1, 0.9, 2),  # blurring raises the score
            ([0.4, 0.3, 0.5, 0.5], 0.5, 0.5, 3),  # blurring changes nothing
        ],
    )
    def test_first_suppressing(self, scores, original, blank, expected):
        found = mp.first_suppressing(np.array(scores), original=original, blank=blank)

        assert found == expected

    def test_where_blurring_changes_nothing_the_largest_is_taken(self, images):
        _, notes = of_a_constant(images)

        assert torch.allclose(notes["init_radius"], torch.tensor(6 * 170 / 224).double())

    @pytest.mark.parametrize("init", ["random", "ones"])
    def test_other_starts_have_no_radius(self, tiny, images, init):
        _, notes = explained(tiny, images, init=init)

        assert notes["init_radius"].isnan().all()
        if init == "ones":
            assert (notes["snapshots"][:, 0] == 1).all()


class TestDiagnostics:
    def test_shapes(self, tiny, images):
        _, notes = explained(tiny, images)

        for name in ("loss_total", "loss_l1", "loss_tv", "loss_probability"):
            assert notes[name].shape == (6, 6)
            assert notes[name].dtype == torch.float32
        assert notes["snapshot_steps"].tolist() == [[0, 1, 2, 5, 6]] * 6
        assert notes["snapshots"].shape == (6, 5, 6, 6)
        for name in ("init_radius", "converged_step", "final_probability"):
            assert notes[name].shape == (6,)

    @pytest.mark.parametrize("output", ["probability", "logit"])
    def test_final_probability_is_that_of_the_finished_composite(self, tiny, images, output):
        maps, notes = explained(tiny, images, output=output)

        blanks = torch.stack([mp.blurred(image, 3.0) for image in images])
        composites = (1 - maps[:, None]) * images + maps[:, None] * blanks
        with torch.no_grad():
            expected = tiny(composites).softmax(1)[torch.arange(6), TARGETS].double()
        assert torch.allclose(notes["final_probability"], expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("n", "expected"),
        [
            (1, [0, 1]),
            (2, [0, 1, 2]),
            (60, [0, 1, 2, 5, 10, 20, 50, 60]),
            (300, [0, 1, 2, 5, 10, 20, 50, 100, 200, 300]),
        ],
    )
    def test_snapshot_steps(self, n, expected):
        assert mp.snapshot_steps(n) == expected

    @pytest.mark.parametrize(
        ("losses", "expected"),
        [
            ([1.0, 0.5, 0.04, 0.2, 0.03, 0.05, 0.0], 4),  # .2 is outside after .04 was inside
            ([1.0, 0.0, 0.0], 1),
            ([0.3, 0.3, 0.3], 0),
            ([1.0], 0),
            ([1.0, -0.1, 0.0], 2),  # too low is outside as well
            ([0.5, 0.2, 0.6], math.nan),  # never dropped
            ([0.5, math.nan, math.nan], math.nan),
        ],
    )
    def test_converged_step(self, losses, expected):
        assert mp.converged_step(np.array(losses)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", ["mask_size", "jitter"])
def test_a_length_larger_than_the_image_is_refused(tiny, images, name):
    with pytest.raises(ValueError, match=rf"{name} is 25, the image 24 x 30; choose at most 24"):
        explained(tiny, torch.cat([images, images[..., :6]], -1), **{name: 25})


def test_an_unknown_start_is_refused(tiny, images):
    with pytest.raises(ValueError, match="init is 'square'; choose one of circular, random, ones"):
        explained(tiny, images, init="square")


def test_settings_side_by_side_equal_each_by_itself(tiny, images):
    """To the last bit, whatever they differ in; shorter runs and other outputs among them."""
    shared = {"mask_size": 4, "jitter": 2, "blur_radius": 2.0, "n_iterations": 4}
    settings = [
        METHODS["meaningful_perturbation"].effective({**shared, **one})
        for one in (
            {"seed": 0},
            {"seed": 1, "init": "random"},
            {"seed": 0, "n_iterations": 2},
            {"seed": 0, "blur_radius": 3.0, "mask_size": 6},
            {"seed": 0, "output": "logit"},
        )
    ]
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    names = list("abcdef")
    explain = explainer("meaningful_perturbation").explain
    joined = explain(ModelRunner(tiny, 16), images, targets, image_ids=names, settings=settings)

    for setting, (maps, extra) in zip(settings, joined, strict=True):
        [(alone, notes)] = explain(
            ModelRunner(tiny, 16), images, targets, image_ids=names, settings=[setting]
        )
        assert torch.equal(maps, alone)
        assert extra.keys() == notes.keys()
        for name, values in extra.items():
            assert torch.equal(values.nan_to_num(-1), notes[name].nan_to_num(-1)), name
