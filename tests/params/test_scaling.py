"""Params scaled to images of another size."""

from pathlib import Path

import pytest
import yaml

from steadymap.params.files import profile
from steadymap.params.methods import METHODS
from steadymap.params.scaling import scaled, scaled_values
from steadymap.params.schema import ParamsError

PROFILES = Path(__file__).resolve().parents[2] / "profiles"


@pytest.fixture(scope="module")
def imagenet():
    return yaml.safe_load(profile("imagenet", PROFILES))


def test_every_length_halves_with_the_image(imagenet):
    half = scaled(imagenet, 112)
    assert half["data"]["image_size"] == 112
    sweeps = half["sweeps"]
    assert sweeps["sliding_patch"]["SP-L"]["values"] == [3, 9, 15, 21, 27]
    assert sweeps["sliding_patch"]["SP-L"]["reference"] == 15
    assert sweeps["lime"]["LIME-seed"]["fixed"]["sigma"] == 1.5
    assert sweeps["lime"]["LIME-S"]["values"] == [50, 150]
    assert sweeps["meaningful_perturbation"]["MP-blur"]["values"] == [2.5, 5, 15]
    assert half["similarity"]["hog_cell"] == 8
    assert half["comparisons"]["object_size"]["object_sizes"] == [10, 42]
    assert half["robust_accuracy"]["eps"] == 1.5


def test_penalties_keep_their_share_of_a_smaller_mask(imagenet):
    fixed = scaled(imagenet, 64)["sweeps"]["meaningful_perturbation"]["MP-N"]["fixed"]
    assert fixed["mask_size"] == 8
    # docs/protocol.md: over the mask's area and over its edges.
    assert fixed["l1_coefficient"] == pytest.approx(1e-4 * 3.5**2)
    assert fixed["tv_coefficient"] == pytest.approx(1e-2 * 3.5)


def test_lengths_that_a_protocol_gives_are_scaled_too(imagenet):
    fixed = scaled(imagenet, 112)["sweeps"]["meaningful_perturbation"]["MP-N"]["fixed"]
    assert fixed["final_blur"] == 0.5


def test_values_that_would_coincide_lie_one_pixel_apart(imagenet):
    small = scaled(imagenet, 112)["sweeps"]["sliding_patch"]["SP-S"]
    assert small["values"] == [26, 27, 28]
    assert small["reference"] == 27
    assert scaled_values([1, 2, 3, 4], 2, lambda value: 5) == [4, 5, 6, 7]
    patch = METHODS["sliding_patch"].hyperparameters["patch_size"]
    assert scaled_values([10, 20], 10, lambda value: patch.scaled(value, 0.5)) == [5, 10]


def test_the_same_size_changes_no_value(imagenet):
    same = scaled(imagenet, 224)
    assert same["sweeps"] == imagenet["sweeps"]
    assert same["comparisons"] == imagenet["comparisons"]


def test_a_base_that_can_not_be_read_is_named(tmp_path):
    (tmp_path / "embedded.yaml").write_text((PROFILES / "embedded.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("study: mine\nbase: imagenet\n")
    with pytest.raises(ParamsError, match=r"mine: base is 'imagenet'; write \{profile"):
        profile("mine", tmp_path)
    (tmp_path / "mine.yaml").write_text("study: mine\nbase: {profile: imagent}\n")
    with pytest.raises(ParamsError, match="imagent"):
        profile("mine", tmp_path)
