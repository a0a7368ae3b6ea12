"""Insertion, deletion and localization against closed forms, plain loops and hand-made boxes."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from steadymap.attribution.model_runner import ModelRunner
from steadymap.metrics.accuracy import (
    KINDS,
    SUBSTRATES,
    auc,
    curves,
    default_step,
    deletion,
    fractions,
    insertion,
    passes_per_map,
    substrate_images,
)
from steadymap.metrics.localization import ALPHAS, iou, localization_error, trivial_maps

SIDE = 12
N = SIDE * SIDE


@pytest.fixture(autouse=True)
def one_thread():
    """Waiting for a second thread costs more than these small networks do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bright():
    """Four images without a black pixel."""
    return 0.2 + 0.6 * torch.rand((4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def noise():
    """Four signed maps."""
    return torch.randn((4, SIDE, SIDE), generator=torch.Generator().manual_seed(4))


ZEROS = torch.zeros(4, dtype=torch.int64)


class Probability(nn.Module):
    """Class 0 has the probability that `of` gives each image, class 1 the rest."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        p = self.of(x).double()
        return torch.stack([p.log(), (1 - p).log()], 1).clamp(min=-1e4).float()


def measured(model, images, maps, *, step, kind, substrate="black", targets=ZEROS, batch=16):
    found = curves(
        ModelRunner(model, batch),
        images,
        maps,
        targets,
        step=step,
        substrate=substrate,
        kinds=(kind,),
    )[:, 0]
    return found, auc(found, fractions=fractions(images.shape[2] * images.shape[3], step))


# Insertion and deletion


@pytest.mark.parametrize("step", [1, 5, 12])
def test_a_model_that_needs_every_pixel(bright, noise, step):
    """Its probability is gone with the first pixel, and back with the last."""
    model = Probability(lambda x: (x.sum(1) > 0).flatten(1).all(1))

    gone, down = measured(model, bright, noise, step=step, kind="deletion")
    back, up = measured(model, bright, noise, step=step, kind="insertion")

    assert gone.tolist() == [[1.0] + [0.0] * (gone.shape[1] - 1)] * 4
    assert back.tolist() == [[0.0] * (back.shape[1] - 1) + [1.0]] * 4
    last = N % step or step
    assert down.tolist() == pytest.approx([step / N / 2] * 4)
    assert up.tolist() == pytest.approx([last / N / 2] * 4)


def test_a_model_that_any_pixel_suffices(bright, noise):
    model = Probability(lambda x: (x.sum(1) > 0).flatten(1).any(1))

    _, up = measured(model, bright, noise, step=1, kind="insertion")
    _, down = measured(model, bright, noise, step=1, kind="deletion")

    assert up.tolist() == pytest.approx([1 - 1 / N / 2] * 4)
    assert down.tolist() == pytest.approx([1 - 1 / N / 2] * 4)


def test_contributions_give_the_optimal_curve(bright, rng):
    """A probability linear in the pixels: sums of sorted contributions, in closed form."""
    weights = torch.tensor(rng.normal(size=(3, SIDE, SIDE)) / (8 * N))
    contributions = (weights * bright.double()).sum(1)
    model = Probability(lambda x: 0.5 + (weights * x.double()).sum((1, 2, 3)))
    step = 10
    taken = (fractions(N, step) * N).long()

    found, best = measured(model, bright, contributions, step=step, kind="insertion")
    turned, worst = measured(model, bright, -contributions, step=step, kind="insertion")
    drawn = torch.tensor(rng.normal(size=contributions.shape))
    _, middle = measured(model, bright, drawn, step=step, kind="insertion")
    _, lowest = measured(model, bright, contributions, step=step, kind="deletion")
    _, highest = measured(model, bright, -contributions, step=step, kind="deletion")

    for curve, descending in ((found, True), (turned, False)):
        ordered = contributions.flatten(1).sort(dim=1, descending=descending).values
        sums = torch.cat([torch.zeros(4, 1), ordered.cumsum(1)], 1)
        assert (curve - (0.5 + sums[:, taken])).abs().max() < 1e-6
    assert (worst < middle).all()
    assert (middle < best).all()
    assert (lowest < highest).all()


def loop(model, image, heatmap, target, step, start, end):
    """The curve by its definition: one image, one step at a time."""
    order = np.argsort(-heatmap.numpy().ravel(), kind="stable")
    current = start.numpy().reshape(3, -1).copy()
    final, found = end.numpy().reshape(3, -1), []
    for taken in range(0, len(order) + step, step):
        pixels = order[max(0, taken - step) : taken]
        current[:, pixels] = final[:, pixels]
        logits = model(torch.from_numpy(current).reshape(1, *image.shape))
        found.append(float(logits.softmax(1)[0, target]))
    return found


@pytest.mark.parametrize("substrate", SUBSTRATES)
@pytest.mark.parametrize("step", [96, 100])
def test_curves_are_those_of_a_plain_loop(tiny, images, substrate, step):
    maps = torch.randn((6, 24, 24), generator=torch.Generator().manual_seed(2))
    maps[1] = maps[1].round()  # ties
    maps[2] = 0.0
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    base = substrate_images(ModelRunner(tiny, 1), images, substrate)

    found = curves(
        ModelRunner(tiny, 16), images, maps, targets, step=step, substrate=substrate
    ).numpy()

    for i in range(6):
        for kind, ends in enumerate([(base[i], images[i]), (images[i], base[i])]):
            expected = loop(tiny, images[i], maps[i], targets[i], step, *ends)
            assert found[i, kind] == pytest.approx(expected, abs=1e-6)
    assert len(set(found[0, 0])) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_ends_are_the_image_and_the_substrate(tiny, images, kind):
    targets = torch.arange(6) % 5
    runner = ModelRunner(tiny, 8)
    maps = torch.rand((6, 24, 24))

    found = curves(runner, images, maps, targets, step=200, kinds=(kind,))[:, 0]

    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1).expand_as(images)
    ends = [runner.scores(x, targets, output="probability") for x in (mean, images)]
    first, last = ends if kind == "insertion" else ends[::-1]
    assert torch.equal(found[:, 0], first)
    assert torch.equal(found[:, -1], last)


def test_deleting_in_reverse_is_inserting_backwards(tiny, images):
    """The weakest pixels gone, what is left are the strongest."""
    maps = torch.randn((6, 24, 24), generator=torch.Generator().manual_seed(5))
    targets = torch.zeros(6, dtype=torch.int64)

    inserted = curves(ModelRunner(tiny, 16), images, maps, targets, step=72)[:, 0]
    deleted = curves(ModelRunner(tiny, 16), images, -maps, targets, step=72)[:, 1]

    assert torch.equal(inserted, deleted.flip(1))


def test_no_bit_depends_on_company(tiny, images):
    maps = torch.randn((3, 6, 24, 24), generator=torch.Generator().manual_seed(6))
    targets = torch.arange(6) % 5
    options = {"step": 100, "substrate": "blur"}

    together = curves(ModelRunner(tiny, 7), images, maps, targets, **options)

    assert together.shape == (3, 6, 2, 7)
    for which, image in ((0, 0), (2, 5), (1, 3)):
        chosen = slice(image, image + 1)
        for index, kind in enumerate(KINDS):
            alone = curves(
                ModelRunner(tiny, 7),
                images[chosen],
                maps[which, chosen],
                targets[chosen],
                kinds=(kind,),
                **options,
            )
            assert torch.equal(alone[0, 0], together[which, image, index])


def test_equal_attributions_go_in_row_major_order(bright):
    falling = torch.arange(N, 0, -1.0).reshape(1, SIDE, SIDE).expand(4, -1, -1)
    signed = torch.zeros(4, SIDE, SIDE)
    signed[:, ::2] = -0.0
    weights = torch.rand((3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) / (3 * N)
    model = Probability(lambda x: (weights * x).sum((1, 2, 3)))

    expected, _ = measured(model, bright, falling, step=7, kind="insertion")

    for constant in (torch.ones(4, SIDE, SIDE), signed):
        found, _ = measured(model, bright, constant, step=7, kind="insertion")
        assert torch.equal(found, expected)


def test_negative_attributions_come_last(bright):
    """Signed, not by magnitude."""
    maps = torch.zeros(4, SIDE, SIDE)
    maps[:, 0], maps[:, 1] = -5, 1
    model = Probability(lambda x: x[:, 0, 1].mean(1))

    found, _ = measured(model, bright, maps, step=SIDE, kind="insertion")

    assert torch.allclose(found[:, 1], bright[:, 0, 1].mean(1))


def test_a_map_that_is_not_finite_is_nan_alone(tiny, images):
    maps = torch.rand((6, 24, 24))
    targets = torch.zeros(6, dtype=torch.int64)
    expected = curves(ModelRunner(tiny, 16), images, maps, targets, step=100)
    maps[1, 3, 3], maps[4, 0, 0] = math.nan, math.inf

    found = curves(ModelRunner(tiny, 16), images, maps, targets, step=100)

    assert found[[1, 4]].isnan().all()
    assert torch.equal(found[[0, 2, 3, 5]], expected[[0, 2, 3, 5]])


def test_blur_is_that_of_rise(tiny, images):
    """A unit impulse smoothed on an 11 x 11 grid; convolved in normalized space, zeros around."""
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, 5)).float()
    weight = torch.zeros(3, 3, 11, 11)
    for channel in range(3):
        weight[channel, channel] = kernel
    normalized = (images - tiny.mean) / tiny.std

    found = substrate_images(ModelRunner(tiny, 1), images, "blur")

    expected = torch.nn.functional.conv2d(normalized, weight, padding=5) * tiny.std + tiny.mean
    assert (found - expected).abs().max() < 1e-6
    assert torch.equal(found[2:3], substrate_images(ModelRunner(tiny, 1), images[2:3], "blur"))


def test_substrates_are_flat_colors(tiny, images):
    mean = substrate_images(ModelRunner(tiny, 1), images, "mean")

    assert mean.shape == images.shape
    assert ((mean - tiny.mean) / tiny.std == 0).all()
    assert not substrate_images(ModelRunner(tiny, 1), images, "black").any()


@pytest.mark.parametrize(("n_pixels", "step"), [(576, 100), (64 * 64, None), (224 * 224, None)])
def test_passes_are_those_that_are_planned(n_pixels, step):
    side = math.isqrt(n_pixels)
    runner = ModelRunner(Probability(lambda x: x.mean((1, 2, 3))), 50)
    chosen = default_step(n_pixels) if step is None else step

    curves(runner, torch.rand(1, 1, side, side), torch.rand(1, side, side), ZEROS[:1], step=chosen)

    assert runner.forward == passes_per_map(n_pixels, step)


def test_the_papers_step_is_a_28th_of_the_image():
    assert default_step(224 * 224) == 8 * 224
    assert len(fractions(224 * 224, default_step(224 * 224))) == 29
    assert default_step(9) == 1


def test_fractions_count_a_smaller_last_step():
    assert fractions(10, 4).tolist() == [0, 0.4, 0.8, 1]
    assert fractions(8, 4).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("over_max", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_notebook_functions_are_curve_and_area(tiny, images, kind, over_max):
    maps = torch.randn((2, 6, 24, 24), generator=torch.Generator().manual_seed(7))
    tiny.train()

    function = {"insertion": insertion, "deletion": deletion}[kind]
    found = function(tiny, images, maps, 1, over_max=over_max, batch_size=16)

    assert tiny.training
    tiny.eval()
    ones = torch.ones(6, dtype=torch.int64)
    curve = curves(ModelRunner(tiny, 16), images, maps, ones, step=21, kinds=(kind,))[..., 0, :]
    assert torch.equal(found, auc(curve, fractions=fractions(576, 21), over_max=over_max))
    assert found.shape == (2, 6)


# Areas


def test_areas_in_closed_form():
    curve = torch.tensor([[0.0, 0.25, 0.5], [1.0, 1.0, 1.0], [0.2, 0.8, 0.2]])

    assert auc(curve).tolist() == pytest.approx([0.25, 1.0, 0.5])
    assert auc(curve, over_max=True).tolist() == pytest.approx([0.5, 1.0, 0.625])


def test_areas_use_the_true_fractions(rng):
    at = np.array([0, 0.4, 0.8, 1])
    curve = rng.random((3, 5, 4))

    found = auc(torch.from_numpy(curve), fractions=torch.from_numpy(at))

    assert found.numpy() == pytest.approx(np.trapezoid(curve, at, axis=-1), abs=1e-15)


def test_scaling_a_curve_does_not_move_its_area_over_its_maximum(rng):
    curve = torch.from_numpy(rng.random((5, 9)))

    assert auc(curve * 0.01, over_max=True).numpy() == pytest.approx(
        auc(curve, over_max=True).numpy()
    )


def test_a_curve_of_zeros_has_no_area_over_its_maximum():
    zeros = torch.zeros(2, 5)

    assert auc(zeros).tolist() == [0, 0]
    assert auc(zeros, over_max=True).isnan().all()


# Localization

BOX = torch.tensor([[4, 3, 8, 9]])  # 4 x 6 px


def filled(*boxes, side=SIDE):
    found = torch.zeros(1, side, side)
    for x0, y0, x1, y1 in boxes:
        found[0, y0:y1, x0:x1] = 1
    return found


def test_alphas_are_the_papers():
    assert ALPHAS == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)


@pytest.mark.parametrize(
    ("heatmap", "expected"),
    [
        pytest.param(filled((4, 3, 8, 9)), 1, id="perfect"),
        pytest.param(1 - filled((4, 3, 8, 9)), 24 / N, id="inverted"),
        pytest.param(filled(), 0, id="empty"),
        pytest.param(-filled((4, 3, 8, 9)), 0, id="negative"),
        pytest.param(filled((0, 0, 12, 12)), 24 / N, id="whole image"),
        pytest.param(filled((7, 8, 8, 9)), 1 / 24, id="single pixel inside"),
        pytest.param(filled((8, 8, 9, 9)), 0, id="single pixel beside"),
        pytest.param(filled((4, 3, 5, 4), (7, 8, 8, 9)), 1, id="two corners of the box"),
        pytest.param(filled((0, 0, 1, 1), (11, 11, 12, 12)), 24 / N, id="two far pixels"),
        pytest.param(filled((2, 5, 6, 11)), 8 / 40, id="two columns overlap"),
        pytest.param(filled((4, 3, 8, 9)) - 9 * filled((0, 0, 2, 2)), 1, id="negative beside"),
    ],
)
def test_iou_by_hand(heatmap, expected):
    found = iou(heatmap, BOX)

    assert found.shape == (1, 9)
    assert found[0].tolist() == pytest.approx([expected] * 9)
    assert localization_error(heatmap, BOX)[0].tolist() == [float(expected <= 0.5)] * 9


def test_half_an_overlap_is_an_error():
    heatmap = filled((4, 3, 8, 6))

    assert iou(heatmap, BOX)[0, 0] == 0.5
    assert localization_error(heatmap, BOX)[0, 0] == 1


def test_pixels_of_just_alpha_times_the_maximum_survive():
    heatmap = 0.25 * filled((4, 3, 8, 9)) + 0.75 * filled((4, 3, 5, 4))

    found = iou(heatmap, BOX, alphas=(0.2, 0.25, 0.26))

    assert found[0].tolist() == pytest.approx([1, 1, 1 / 24])


def test_scale_does_not_matter(rng):
    maps = torch.from_numpy(rng.normal(size=(5, SIDE, SIDE)))

    assert torch.equal(iou(maps, BOX.expand(5, -1)), iou(maps / 1024, BOX.expand(5, -1)))


def test_a_mask_is_the_union_of_boxes():
    boxes = (0, 0, 4, 4), (8, 8, 12, 12)
    mask = filled(*boxes).bool()

    assert iou(filled(boxes[0]), masks=mask)[0, 0] == pytest.approx(0.5)
    assert iou(filled(*boxes), masks=mask)[0, 0] == pytest.approx(32 / N)
    assert torch.equal(
        iou(filled(boxes[0]), masks=filled((4, 3, 8, 9)).bool()), iou(filled(boxes[0]), BOX)
    )


def test_iou_is_that_of_a_plain_loop(rng):
    starts = rng.integers(0, 5, (7, 2))
    boxes = np.concatenate([starts, starts + rng.integers(2, 6, (7, 2))], axis=1)
    maps = 0.15 * rng.normal(size=(3, 7, 10, 14))
    for image, (x0, y0, x1, y1) in enumerate(boxes):
        maps[:, image, y0:y1, x0:x1] += 1

    found = iou(maps, boxes).numpy()

    for which, image, place in np.ndindex(found.shape):
        heat = np.maximum(maps[which, image], 0)
        down, across = np.nonzero(heat >= ALPHAS[place] * heat.max())
        mine, truth = np.zeros((2, 10, 14), bool)
        mine[down.min() : down.max() + 1, across.min() : across.max() + 1] = True
        x0, y0, x1, y1 = boxes[image]
        truth[y0:y1, x0:x1] = True
        expected = (mine & truth).sum() / (mine | truth).sum()
        assert found[which, image, place] == pytest.approx(expected, abs=1e-12)
    assert found.min() < 0.3
    assert found.max() > 0.7


def test_maps_that_are_not_finite_have_no_box():
    maps = filled((4, 3, 8, 9)).repeat(3, 1, 1)
    maps[0, 0, 0], maps[2, 0, 0] = math.nan, -math.inf

    for found in (iou(maps, BOX.expand(3, -1)), localization_error(maps, BOX.expand(3, -1))):
        assert found.isnan().all(1).tolist() == [True, False, True]


# Trivial maps


def test_trivial_maps(images):
    names = [f"image-{index}" for index in range(6)]

    found = trivial_maps(images, image_ids=names)

    assert list(found) == ["whole_image", "center_box", "random", "edges"]
    assert all(stack.shape == (6, 24, 24) for stack in found.values())
    assert all(stack.dtype == torch.float32 and stack.min() >= 0 for stack in found.values())
    assert (found["whole_image"] == 1).all()
    assert found["center_box"].sum((1, 2)).tolist() == pytest.approx([16 * 16] * 6)
    assert torch.equal(found["center_box"], found["center_box"].flip(1, 2))
    assert not torch.equal(found["random"][0], found["random"][1])


@pytest.mark.parametrize("side", [64, 224])
def test_the_center_box_is_half_the_image(side):
    box = trivial_maps(torch.zeros(1, 3, side, side), image_ids=["one"])["center_box"]

    assert float(box.mean()) == pytest.approx(0.5, abs=0.02)


def test_random_maps_belong_to_image_and_seed(images):
    names = [f"image-{index}" for index in range(6)]
    found = trivial_maps(images, image_ids=names)["random"]

    alone = trivial_maps(images[3:4], image_ids=names[3:4])["random"]
    other = trivial_maps(images, image_ids=names, seed=1)["random"]

    assert torch.equal(alone[0], found[3])
    assert not torch.equal(other[3], found[3])
    assert found.mean() == pytest.approx(0.5, abs=0.02)


def test_edges_are_where_the_color_changes():
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 0.6

    edges = trivial_maps(step, image_ids=["one"])["edges"][0]

    assert (edges > 1e-6).any(0).nonzero()[:, 0].tolist() == [7, 8]
    assert edges[:, 7:9] == pytest.approx(np.full((16, 2), 0.6 / math.sqrt(2)), abs=1e-6)


# Errors


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"substrate": "gray"}, ValueError, "substrate is 'gray'; choose one of mean, black, blur"),
        ({"kinds": ("both",)}, ValueError, "kind is 'both'; choose one of insertion, deletion"),
        ({"step": 0}, ValueError, "step is 0, the image has 576 pixels; choose from 1 to 288"),
        ({"step": 576}, ValueError, "step is 576, the image has 576 pixels; choose from 1 to 288"),
        (
            {"maps": torch.zeros(6, 24, 24, dtype=torch.int64)},
            TypeError,
            "maps are torch.int64; convert them to floating point",
        ),
        (
            {"maps": torch.zeros(5, 24, 24)},
            ValueError,
            r"maps have shape \(5, 24, 24\), the images \(6, 3, 24, 24\); give \(..., 6, 24, 24\)",
        ),
        ({"maps": torch.zeros(24, 24)}, ValueError, r"maps have shape \(24, 24\)"),
        (
            {"targets": torch.full((6,), 9)},
            ValueError,
            "targets go up to 9, the model has 5 classes",
        ),
    ],
)
def test_curves_refuse(tiny, images, changes, error, text):
    options = {
        "maps": torch.zeros(6, 24, 24),
        "targets": torch.zeros(6, dtype=torch.int64),
        "step": 100,
        **changes,
    }

    with pytest.raises(error, match=text):
        curves(ModelRunner(tiny, 16), images, **options)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ([0.0, 1.0], r"fractions have shape \(2,\), the curves 3 points; give one per point"),
        ([0.0, 0.5, 0.9], "fractions are 0, 0.5, 0.9; give rising ones from 0 to 1"),
        ([0.0, 0.0, 1.0], "give rising ones from 0 to 1"),
    ],
)
def test_areas_refuse(at, text):
    with pytest.raises(ValueError, match=text):
        auc(torch.ones(2, 3), fractions=torch.tensor(at))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "neither of boxes and masks are given; give one of them"),
        (
            {"boxes": BOX, "masks": torch.ones(1, SIDE, SIDE).bool()},
            "both of boxes and masks are given; give one of them",
        ),
        ({"boxes": BOX[0]}, r"boxes have shape \(4,\), there are 1 images; give x0, y0, x1, y1"),
        (
            {"boxes": torch.tensor([[-1, -1, -1, -1]])},
            r"boxes\[0\] is \[-1, -1, -1, -1\], the image 12 x 12; give .* without a box out",
        ),
        ({"boxes": torch.tensor([[0, 0, 13, 4]])}, r"boxes\[0\] is \[0, 0, 13, 4\]"),
        ({"masks": torch.zeros(1, SIDE, SIDE).bool()}, r"masks\[0\] is empty; leave images"),
        ({"masks": torch.ones(1, 5, 5).bool()}, r"masks have shape \(1, 5, 5\), the maps of one"),
        (
            {"boxes": BOX, "alphas": (0.5, 0)},
            r"alphas are \[0.5, 0\]; choose shares .* in \(0, 1\]",
        ),
        ({"boxes": BOX, "alphas": ()}, r"alphas are \[\]"),
    ],
)
def test_localization_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        localization_error(filled((4, 3, 8, 9)), **arguments)


def test_localization_refuses_a_single_map():
    with pytest.raises(ValueError, match=r"maps have shape \(12, 12\); give \(..., batch, height"):
        iou(filled()[0], BOX)


def test_trivial_maps_need_a_name_per_image(images):
    with pytest.raises(ValueError, match="image_ids are 1, there are 6 images; name each"):
        trivial_maps(images, image_ids=["one"])


def test_one_image_s_curve_costs_its_points(bright, noise, monkeypatch):
    sizes = []
    run = ModelRunner._run
    monkeypatch.setattr(
        ModelRunner, "_run", lambda runner, rows: (sizes.append(len(rows)), run(runner, rows))[1]
    )
    model = Probability(lambda x: x.mean((1, 2, 3)))

    found = insertion(model, bright[:1], noise[:1], 0, step=N // 4)

    assert sizes == [3, 3]
    fixed = insertion(model, bright[:1], noise[:1], 0, step=N // 4, batch_size=64)
    assert torch.allclose(found, fixed, atol=1e-6)
