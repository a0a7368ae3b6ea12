"""The embedded data set keeps its promises: exact masks, no leaks, nothing changes on growing."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from steadymap.data import embedded
from steadymap.data.embedded import CLASSES, PHOTOGRAPHS
from steadymap.params.schema import EmbeddedData

N = 120


def generate(split, n, *, objects=True, **options):
    data = EmbeddedData(kind="embedded", n_train=n, n_val=n, **options)
    return embedded.generate(data, split, objects=objects)


@pytest.fixture(scope="module")
def validation():
    return generate("val", N)


@pytest.fixture(scope="module")
def without_objects():
    return generate("val", N, objects=False)


def assert_same(a, b):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.masks, b.masks)
    pd.testing.assert_frame_equal(a.manifest, b.manifest)


def test_shapes_and_columns(validation):
    assert validation.images.shape == (N, 64, 64, 3)
    assert validation.images.dtype == np.uint8
    assert validation.masks.shape == (N, 64, 64)
    assert validation.masks.dtype == bool
    columns = "id split class_name label sha256 x0 y0 x1 y1 photo"
    assert list(validation.manifest) == columns.split()
    assert validation.manifest.id[12] == "val-00012"


def test_same_call_gives_the_same_images(validation):
    assert_same(generate("val", N), validation)


def test_growing_never_changes_earlier_images(validation):
    few = generate("val", 17)

    np.testing.assert_array_equal(few.images, validation.images[:17])
    np.testing.assert_array_equal(few.masks, validation.masks[:17])
    pd.testing.assert_frame_equal(few.manifest, validation.manifest[:17])


def test_seed_and_split_change_every_image(validation):
    hashes = set(validation.manifest.sha256)

    assert len(hashes) == N
    assert hashes.isdisjoint(generate("val", 20, seed=1).manifest.sha256)
    assert hashes.isdisjoint(generate("train", 20).manifest.sha256)


def test_ids_and_hashes(validation):
    manifest = validation.manifest
    assert manifest.id.is_unique
    for image, expected in zip(validation.images, manifest.sha256, strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest() == expected


@pytest.mark.parametrize("size", [32, 64, 97])
@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_enclose_masks_tightly(split, size):
    data = generate(split, 40, image_size=size)

    for mask, row in zip(data.masks, data.manifest.itertuples(), strict=True):
        assert mask[row.y0 : row.y1, row.x0 : row.x1].sum() == mask.sum()
        assert mask[row.y0, :].any()
        assert mask[row.y1 - 1, :].any()
        assert mask[:, row.x0].any()
        assert mask[:, row.x1 - 1].any()


def test_objects_are_whole_and_of_moderate_size(validation):
    """No object touches the border: none is cut off."""
    share = validation.masks.mean(axis=(1, 2))

    assert share.min() > 0.08
    assert share.max() < 0.30
    border = np.ones((64, 64), bool)
    border[1:-1, 1:-1] = False
    assert not validation.masks[:, border].any()


def test_only_the_mask_differs_from_the_background(validation, without_objects):
    changed = (validation.images != without_objects.images).any(axis=3)

    assert not (changed & ~validation.masks).any()
    assert changed[validation.masks].mean() > 0.97
    assert not without_objects.masks.any()
    assert (without_objects.manifest[["x0", "y0", "x1", "y1"]] == -1).all(axis=None)


def test_the_label_without_object_is_that_of_the_missing_object(validation, without_objects):
    for column in ("id", "label", "class_name", "photo"):
        assert list(without_objects.manifest[column]) == list(validation.manifest[column])


def test_pattern_changes_the_inside_alone_and_faintly(validation):
    plain = generate("val", N, pattern_amplitude=0)
    difference = np.abs(validation.images.astype(int) - plain.images).max(axis=3)

    np.testing.assert_array_equal(plain.masks, validation.masks)
    assert not difference[~validation.masks].any()
    assert 0 < difference.max() <= np.ceil(0.04 * 255)


def test_no_photograph_serves_both_splits():
    assert len(PHOTOGRAPHS["val"]) >= 6
    assert set(PHOTOGRAPHS["train"]).isdisjoint(PHOTOGRAPHS["val"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_sees_every_photograph_equally_often(split):
    n = len(CLASSES) * len(PHOTOGRAPHS[split])
    manifest = generate(split, n, image_size=32).manifest
    pairs = pd.crosstab(manifest.class_name, manifest.photo)

    assert pairs.shape == (len(CLASSES), len(PHOTOGRAPHS[split]))
    assert (pairs == 1).all(axis=None)


def test_classes_take_turns(validation):
    assert list(validation.manifest.label) == [i % len(CLASSES) for i in range(N)]
    assert list(validation.manifest.class_name[: len(CLASSES)]) == list(CLASSES)


def test_class_does_not_tell_where_or_how_large_the_object_is():
    """Outlines of one area at one range of positions: the class means stay close."""
    data = generate("train", 60 * len(CLASSES), image_size=32)
    rows, columns = np.mgrid[:32, :32] + 0.5
    area = data.masks.sum(axis=(1, 2))
    facts = pd.DataFrame(
        {
            "x": (data.masks * columns).sum(axis=(1, 2)) / area,
            "y": (data.masks * rows).sum(axis=(1, 2)) / area,
            "area": area / 32,
        }
    )
    by_class = facts.groupby(data.manifest.class_name)
    between = by_class.mean().std() / facts.std()

    assert (between < 0.5).all()


def test_a_subset_of_classes_keeps_its_order():
    manifest = generate("val", 4, classes=["star", "disc"]).manifest

    assert list(manifest.class_name) == ["star", "disc", "star", "disc"]
    assert list(manifest.label) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, r"n_val\n.*greater than or equal to 1 .*input_value=0"),
        ({"image_size": 31}, r"image_size\n.*greater than or equal to 32 .*input_value=31"),
        ({"seed": -1}, r"seed\n.*greater than or equal to 0 .*input_value=-1"),
        ({"pattern_amplitude": 0.7}, r"pattern_amplitude\n.*less than or equal to 0.5"),
        ({"classes": ["disc", "moebius"]}, r"classes\n.*'moebius' is no class; .*disc, ring"),
        ({"classes": ["disc"]}, r"classes\n.*at least 2 items"),
        ({"classes": ["disc", "disc"]}, r"classes\n.*stands twice"),
    ],
)
def test_errors_name_key_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"split": "val", "n": 4} | arguments)
