import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline
from skimage.transform import resize

from conftest import Linear
from steadymap import attribute
from steadymap.attribution.model_runner import ModelRunner
from steadymap.attribution.sliding_patch import centered, corners, drops, interpolation, stretched
from steadymap.params.methods import METHODS

TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
UPSAMPLINGS = METHODS["sliding_patch"].hyperparameters["upsampling"].choices
SMALL = {"patch_size": 6, "stride": 3}


class Disc(torch.nn.Module):
    """Reads the brightness of 4 x 4 px in the middle of a side, and nothing else."""

    def forward(self, x):
        middle = x.shape[-1] // 2
        inside = x[:, :, middle - 2 : middle + 2, 2:6].mean((1, 2, 3))
        return torch.stack([10 * inside, torch.zeros_like(inside)], 1)


def enlarged(coarse, shape, upsampling, *, size, stride):
    if upsampling == "stretched":
        return stretched(coarse, shape)
    return centered(coarse, shape, size=size, stride=stride)


class TestDrops:
    @pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 3), (4, 2), (12, 1)])
    @pytest.mark.parametrize(("fill", "color"), [("black", 0.0), ("gray", 0.5)])
    def test_linear_model_gives_the_patch_sums(self, size, stride, fill, color):
        """The sum, under the patch, of weight times (image - fill)."""
        model = Linear(12)
        images = torch.rand((2, 3, 12, 12), generator=torch.Generator().manual_seed(2))
        contributions = ((images - color) * model.weights[1]).sum(1, keepdim=True)
        expected = torch.nn.functional.avg_pool2d(contributions, size, stride)[:, 0] * size**2

        found = drops(
            ModelRunner(model, 16),
            images,
            torch.tensor([1, 1]),
            patch_size=size,
            stride=stride,
            fill=fill,
            output="logit",
        )

        assert found.shape == (2, len(corners(12, size, stride)), len(corners(12, size, stride)))
        assert torch.allclose(found, expected, atol=1e-4)

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    def test_maps_are_drops_enlarged(self, tiny, images, upsampling):
        """The same low-resolution values under both."""
        coarse = drops(
            ModelRunner(tiny, 16), images, TARGETS, **SMALL, fill="mean", output="probability"
        )

        maps = attribute(
            "sliding_patch", tiny, images, TARGETS, batch_size=16, upsampling=upsampling, **SMALL
        )

        expected = enlarged(coarse, (24, 24), upsampling, size=6, stride=3)
        assert torch.equal(maps, expected)

    def test_the_mean_color_hides_nothing_of_itself(self, tiny):
        """An image in the color that normalization makes zero."""
        images = tiny.mean.expand(1, 3, 24, 24)

        maps = attribute("sliding_patch", tiny, images, 0, fill="mean", **SMALL)

        assert (maps == 0).all()

    def test_a_patch_as_large_as_the_image_has_one_place(self, tiny, images):
        found = [
            attribute("sliding_patch", tiny, images, 0, patch_size=24, upsampling=upsampling)
            for upsampling in UPSAMPLINGS
        ]

        assert torch.equal(*found)
        assert (found[0] == found[0][:, :1, :1]).all()
        assert (found[0] != 0).all()

    def test_oblong_images(self):
        image = torch.rand((1, 3, 24, 16), generator=torch.Generator().manual_seed(0))

        for upsampling in UPSAMPLINGS:
            maps = attribute("sliding_patch", Disc(), image, 0, upsampling=upsampling, **SMALL)

            assert maps.shape == (1, 24, 16)
            assert maps.std() > 0


class TestUpsampling:
    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    @pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
    def test_constant_maps_stay_constant(self, upsampling, value):
        coarse = torch.full((2, 7, 7), value)

        found = enlarged(coarse, (24, 24), upsampling, size=6, stride=3)

        assert (found == value).all()

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    def test_maps_do_not_touch_one_another(self, upsampling, rng):
        coarse = torch.from_numpy(rng.normal(size=(3, 7, 7))).float()

        together = enlarged(coarse, (24, 24), upsampling, size=6, stride=3)

        for position in range(3):
            alone = enlarged(coarse[position, None], (24, 24), upsampling, size=6, stride=3)
            assert torch.equal(alone[0], together[position])

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    def test_no_value_lies_beyond_those_of_the_patches(self, upsampling, rng):
        """A spline overshoots; it is clipped."""
        coarse = torch.from_numpy(rng.normal(size=(1, 7, 7)) ** 3).float()

        found = enlarged(coarse, (24, 24), upsampling, size=6, stride=3)

        assert coarse.min() <= found.min() < found.max() <= coarse.max()


class TestStretched:
    @pytest.mark.parametrize(("rows", "side"), [(7, 24), (19, 64), (1, 24), (2, 24), (24, 24)])
    def test_equals_resize_as_the_code_calls_it(self, rng, rows, side):
        """Its defaults beside the order: reflection, clipping, antialiasing."""
        coarse = rng.normal(size=(2, rows, rows)).astype(np.float32)
        expected = [resize(one.astype(float), (side, side), order=5) for one in coarse]

        found = stretched(torch.from_numpy(coarse), (side, side))

        assert found.dtype == torch.float32
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-7)

    def test_is_a_quintic_spline(self):
        """Away from the borders, where reflection counts, scipy's own B-spline, clipped."""
        cells = np.sin(np.arange(60) / 3)
        places = (np.arange(180) + 0.5) / 3 - 0.5

        found = stretched(torch.from_numpy(np.tile(cells, (1, 60, 1))), (180, 180))

        expected = make_interp_spline(np.arange(60), cells, k=5)(places)
        expected = np.clip(expected, cells.min(), cells.max())
        assert np.allclose(found[0, 90, 72:108], expected[72:108], atol=1e-6)

    def test_reaches_the_borders_where_patch_centers_do_not(self):
        """A ramp over patches: linear in the pixel, pixel j at cell (j + .5) rows / side - .5."""
        rows, side = 20, 60
        coarse = torch.arange(rows).float().expand(1, rows, rows)

        found = stretched(coarse, (side, side))[0, 30]
        middle = centered(coarse, (side, side), size=22, stride=2)[0, 30]

        expected = (np.arange(side) + 0.5) * rows / side - 0.5
        assert np.allclose(found[15:45], expected[15:45], atol=0.02)
        assert np.allclose(middle[15:45], (np.arange(15, 45) - 10.5) / 2, atol=1e-6)
        # Left of the middle it runs ahead of the patch centers, right of it behind.
        assert found[15] > middle[15] + 1
        assert found[44] < middle[44] - 1

    def test_the_object_moves_outwards(self):
        """What the SAM code's maps suffer from: the peak leaves the object for the border."""
        image = torch.ones((1, 3, 24, 24))

        right, wrong = (
            attribute(
                "sliding_patch", Disc(), image, 0, patch_size=8, stride=1, upsampling=upsampling
            )[0].sum(0)
            for upsampling in UPSAMPLINGS
        )

        def center(profile):
            return float((profile * torch.arange(24)).sum() / profile.sum())

        assert center(wrong) < center(right) - 0.5

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
    def test_a_score_that_is_not_finite_reaches_the_map(self, rng, wrong):
        """There the engine names the image; the others keep their maps."""
        coarse = torch.from_numpy(rng.normal(size=(2, 7, 7)))
        coarse[0, 3, 3] = wrong

        maps = stretched(coarse, (24, 24))

        assert maps[0].isnan().all()
        assert torch.isfinite(maps[1]).all()


class TestCentered:
    def test_is_blank_where_no_patch_touches_the_object(self):
        """Exactly 0, and a patch that never reaches the object leaves the whole map blank."""
        image = torch.rand((1, 3, 24, 24), generator=torch.Generator().manual_seed(0))

        maps = attribute("sliding_patch", Disc(), image, 0, patch_size=4, stride=1, output="logit")

        assert (maps[0, :, 9:] == 0).all()
        assert (maps[0, 11:13, 2:6] != 0).all()

        class Corner(torch.nn.Module):
            def forward(self, x):
                return torch.stack([x[:, 0, -1, -1], x[:, 1, -1, -1]], 1)

        # Corners at 0, 7 and 14: the last patch ends at pixel 22 of 24.
        blank = attribute("sliding_patch", Corner(), image, 0, patch_size=8, stride=7)
        assert (blank == 0).all()

    def test_half_the_peak_covers_the_patch_not_the_object(self):
        """On a blank ground a large patch paints its own size (SAM, Fig. 6)."""
        image = torch.zeros((1, 3, 32, 32))
        image[:, :, 14:18, 2:6] = 1

        areas = [
            int((found >= 0.5 * found.max()).sum())
            for size in (3, 9, 15)
            for found in [
                attribute(
                    "sliding_patch", Disc(), image, 0, patch_size=size, stride=1, fill="black"
                )
            ]
        ]

        assert areas[0] <= 36 < areas[1] < areas[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"upsampling": "bilinear"}, "upsampling is 'bilinear'; choose one of centered, stretched"),
        ({"patch_size": 0}, "patch_size is 0; choose at least 1"),
        ({"patch_size": 25}, "patch_size is 25, the image 24 x 24; choose a smaller patch"),
        ({"stride": 0}, "stride is 0; choose at least 1"),
        ({"fill": "blur"}, "fill is 'blur'; choose one of mean, black, gray"),
    ],
)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_wrong_values_are_told(tiny, images, option, message, upsampling):
    with pytest.raises(ValueError, match=message):
        attribute("sliding_patch", tiny, images, 0, **{"upsampling": upsampling, **option})


class TestPatches:
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
