"""Photographs that nobody prepared, made here."""

import os
import re
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from torchvision import transforms

from conftest import ROOT
from steadymap.data import folders, photographs
from steadymap.data.boxes import Boxes
from steadymap.data.dataset import read_dataset
from steadymap.data.fetch import fetch
from steadymap.data.preprocessing import geometry
from steadymap.experiments import cost
from steadymap.params.checks import check_recipe, overlay, validate
from steadymap.params.files import profile
from steadymap.params.methods import PRESETS
from steadymap.params.schema import FolderData, ParamsError, Recipe
from steadymap.store.tables import read_table


def noise(seed, size=(24, 20), channels=3):
    """Smooth random picture: neighbors resemble each other, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, channels), np.uint8).squeeze())
    return coarse.resize(size, Image.Resampling.BICUBIC)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = noise(zlib.crc32(str(path).encode()))
    image.save(path, **options)
    return path


def fill(root, classes=("cat", "dog"), n=6):
    for name in classes:
        for i in range(n):
            save(root / name / f"{i}.png", noise(zlib.crc32(f"{name}{i}".encode())))
    return root


def params(path, **options):
    return FolderData(kind="imagefolder", path=str(path), image_size=32, **options)


def told(dataset):
    """Reason and action by file."""
    return {row.file: (row.action, row.reason) for row in dataset.skipped.itertuples()}


@pytest.fixture
def tree(tmp_path):
    return fill(tmp_path / "photos")


class TestGeometry:
    @pytest.mark.parametrize("size", [(57, 40), (40, 57), (64, 64), (31, 300), (641, 480)])
    @pytest.mark.parametrize("preset", PRESETS)
    def test_pixels_are_torchvisions(self, preset, size):
        made = PRESETS[preset]
        side, resize = made.crop or 48, made.resize or 48
        image = noise(1, size)
        reference = transforms.Compose(
            [
                transforms.Resize((resize, resize) if made.squash else resize),
                transforms.CenterCrop(side),
            ]
        )

        found = geometry(preset, side, width=size[0], height=size[1]).pixels(image)

        np.testing.assert_array_equal(found, np.asarray(reference(image)))

    @pytest.mark.parametrize("preset", PRESETS)
    def test_a_box_goes_where_its_drawing_goes(self, preset):
        width, height, box = 400, 320, (130, 110, 250, 230)
        drawn = np.zeros((height, width, 3), np.uint8)
        drawn[box[1] : box[3], box[0] : box[2]] = 255
        side = PRESETS[preset].crop or 64
        placed = geometry(preset, side, width=width, height=height)

        x0, y0, x1, y1 = placed.box(box)

        lit = placed.pixels(Image.fromarray(drawn))[..., 0] >= 128
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        outer = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        # Touched pixels: at most one beyond those that are lit at least half.
        assert all(0 <= a - b <= 1 for a, b in zip(outer[:2], (x0, y0), strict=True))
        assert all(0 <= b - a <= 1 for a, b in zip(outer[2:], (x1, y1), strict=True))

    def test_boxes_are_clipped_at_the_crop_and_vanish_beyond_it(self):
        placed = geometry("resize-crop", 32, width=128, height=64)

        assert placed.box((0, 0, 128, 64)) == (0, 0, 32, 32)
        assert placed.box((0, 0, 40, 64)) == (0, 0, 4, 32)
        assert placed.box((0, 0, 32, 64)) is None

    def test_a_box_of_exact_pixels_stays_exact(self):
        placed = geometry("squash", 64, width=192, height=192)

        assert placed.box((3, 6, 9, 12)) == (1, 2, 3, 4)


class TestLayout:
    def test_one_folder_is_split_by_class(self, tree):
        dataset = fetch(params(tree, val_fraction=0.5))

        counts = dataset.manifest.groupby(["split", "class_name"]).size()
        assert dataset.classes == ("cat", "dog")
        assert counts.sum() == 12
        assert (counts > 0).all()
        assert counts.index.tolist() == [
            ("train", "cat"),
            ("train", "dog"),
            ("val", "cat"),
            ("val", "dog"),
        ]

    def test_the_manifest_is_that_of_the_embedded_set(self, tree, embedded, tmp_path):
        dataset = fetch(params(tree))
        dataset.write(tmp_path / "out")
        embedded.write(tmp_path / "embedded")
        found = read_dataset(tmp_path / "out")
        other = read_dataset(tmp_path / "embedded")

        assert list(found.manifest) == list(other.manifest)
        assert found.manifest.dtypes.tolist() == other.manifest.dtypes.tolist()
        assert found.manifest["id"].is_unique
        for split, images in found.images.items():
            rows = found.rows(split)
            assert images.shape == (len(rows), 32, 32, 3)
            for pixels, row in zip(images, rows.itertuples(), strict=True):
                image = Image.open(tree / row.id).convert("RGB")
                expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
                np.testing.assert_array_equal(pixels, expected)
                assert found.classes[row.label] == row.class_name == row.id.split("/")[0]
        assert (found.manifest[["x0", "y0", "x1", "y1"]] == -1).all(axis=None)
        assert (found.manifest["photo"] == "").all()
        assert found.description["preprocessing"] == "squash-32"
        train = found.images["train"] / 255
        assert found.description["mean"] == pytest.approx(train.mean((0, 1, 2)), abs=1e-6)
        assert found.description["std"] == pytest.approx(train.std((0, 1, 2)), abs=1e-6)

    def test_train_and_val_are_taken_as_they_are(self, tmp_path):
        fill(tmp_path / "train", n=3)
        for name in ("cat", "dog"):
            save(tmp_path / "val" / name / "x" / "0.JPG")
        fill(tmp_path / "test")
        dataset = fetch(params(tmp_path))

        assert {split: len(images) for split, images in dataset.images.items()} == {
            "train": 6,
            "val": 2,
        }
        assert dataset.rows("val")["id"].tolist() == ["val/cat/x/0.JPG", "val/dog/x/0.JPG"]
        assert told(dataset) == {"test": ("ignored", "beside train/ and val/")}

    def test_val_alone_is_for_finished_models(self, tmp_path):
        fill(tmp_path / "val", n=2)
        dataset = fetch(params(tmp_path))
        dataset.write(tmp_path / "out")

        assert list(read_dataset(tmp_path / "out").images) == ["val"]
        with pytest.raises(ParamsError, match=r"googlenet\.weights: null, but the data hold no tr"):
            check_recipe("googlenet", Recipe(epochs=1), classes=dataset.classes, n_train=0)

    def test_half_a_split_is_refused(self, tmp_path):
        fill(tmp_path / "train")
        with pytest.raises(ValueError, match="train/ holds a folder per class, but there is no s"):
            fetch(params(tmp_path))
        save(tmp_path / "val" / "loose.png")
        with pytest.raises(ValueError, match="no such val/; add it, or name train/ itself"):
            fetch(params(tmp_path))

    def test_a_class_may_be_called_train(self, tmp_path):
        fill(tmp_path, classes=("boat", "train"))

        assert fetch(params(tmp_path)).classes == ("boat", "train")

    def test_class_names_stay_text(self, tmp_path):
        fill(tmp_path / "photos", classes=("0001", "NA", "nan"))
        fetch(params(tmp_path / "photos")).write(tmp_path / "out")
        found = read_dataset(tmp_path / "out")

        assert found.classes == ("0001", "NA", "nan")
        assert set(found.manifest["class_name"]) == set(found.classes)

    def test_two_spellings_of_one_name_are_one_class(self, tmp_path):
        for i, form in enumerate(("NFC", "NFD")):
            save(tmp_path / unicodedata.normalize(form, "café") / f"{i}.png")
        fill(tmp_path, classes=("dog",))

        assert fetch(params(tmp_path, val_fraction=0.5)).classes == ("café", "dog")

    @pytest.mark.parametrize("path", [None, "nowhere"])
    def test_a_missing_folder_is_named(self, path):
        data = FolderData(kind="imagefolder", path=path, image_size=32)
        shown = "null" if path is None else '"nowhere"'

        with pytest.raises(ValueError, match=f"^data.path: {shown} is no folder; name one with a"):
            fetch(data)

    def test_one_class_is_too_few(self, tmp_path):
        fill(tmp_path, classes=("cat",))

        with pytest.raises(ValueError, match="has 1 classes with usable images; two are needed"):
            fetch(params(tmp_path))

    def test_single_images_can_only_be_validated(self, tmp_path):
        fill(tmp_path, n=1)

        with pytest.raises(ValueError, match=r"no validation images; data\.val_fraction 1 takes"):
            fetch(params(tmp_path))
        assert len(fetch(params(tmp_path, val_fraction=1)).images["val"]) == 2


class TestDrawing:
    def test_an_image_keeps_its_side_when_others_come_and_go(self, tmp_path):
        tree = fill(tmp_path / "photos", n=40)
        before = fetch(params(tree)).manifest.set_index("id")["split"]
        for i in range(40, 60):
            save(tree / "cat" / f"{i}.png")
        for i in range(10):
            (tree / "dog" / f"{i}.png").unlink()
        (tree / "dog" / "20.png").rename(tree / "dog" / "renamed.png")
        after = fetch(params(tree)).manifest.set_index("id")["split"]

        common = before.index.intersection(after.index)
        assert len(common) == 69
        assert (before[common] == after[common]).all()
        assert after["dog/renamed.png"] == before["dog/20.png"]
        assert 0.1 < (after == "val").mean() < 0.3

    def test_the_seed_decides_the_split(self, tmp_path):
        tree = fill(tmp_path, n=20)
        first, second = (fetch(params(tree, seed=seed)).manifest for seed in (0, 1))

        assert set(first[first["split"] == "val"]["id"]) != set(
            second[second["split"] == "val"]["id"]
        )

    def test_caps_are_balanced_and_nested(self, tmp_path):
        tree = fill(tmp_path, classes=("a", "b", "c"), n=20)
        save(tree / "d" / "0.png")
        save(tree / "d" / "1.png")
        small, large = (fetch(params(tree, val_fraction=0.4, n_train=13, n_val=n)) for n in (5, 7))

        train = small.rows("train")["class_name"].value_counts()
        assert train.to_dict() == {"a": 4, "b": 4, "c": 4, "d": 1}
        assert small.rows("val")["id"].tolist() == large.rows("val")["id"].tolist()[:5]
        assert small.rows("val")["class_name"].tolist() == ["a", "b", "c", "d", "a"]
        assert small.description["files"]["not_drawn"] == 62 - 18

    def test_a_bad_image_is_replaced_by_the_next_of_its_class(self, tmp_path):
        tree = fill(tmp_path, n=20)
        whole = fetch(params(tree, n_train=4, n_val=2))
        first = whole.rows("train")["id"][0]
        content = (tree / first).read_bytes()
        (tree / first).write_bytes(content[: len(content) // 2])
        found = fetch(params(tree, n_train=4, n_val=2))

        assert found.rows("train")["class_name"].tolist() == ["cat", "dog", "cat", "dog"]
        assert first not in set(found.manifest["id"])

    def test_fewer_images_than_classes_are_refused(self, tree):
        with pytest.raises(ValueError, match=r"data\.n_train: 1 is fewer than the 2 classes"):
            fetch(params(tree, n_train=1))

    def test_many_pixels_are_collected_on_disk(self, tree, monkeypatch, tmp_path):
        expected = fetch(params(tree))
        monkeypatch.setattr(folders, "_IN_MEMORY", 1000)
        found = fetch(params(tree))
        found.write(tmp_path / "out")

        assert isinstance(found.images["train"], np.memmap)
        assert found.description == expected.description
        np.testing.assert_array_equal(
            read_dataset(tmp_path / "out").images["val"], expected.images["val"]
        )

    def test_too_little_space_is_said_before_it_runs_out(self, tree, monkeypatch):
        monkeypatch.setattr(folders, "_IN_MEMORY", 1000)
        usage = shutil.disk_usage(tree)._replace(free=1000)
        monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: usage)

        with pytest.raises(OSError, match=r"do not fit into 0\.0 GB; set TMPDIR"):
            fetch(params(tree))


def with_transparency(alpha):
    image = noise(3, channels=4)
    image.putalpha(Image.fromarray(np.full((20, 24), alpha, np.uint8)))
    return image


def deep_gray():
    values = np.asarray(noise(4, channels=1), np.uint16) * 257
    return Image.fromarray(values)


def write_png(path, width, height, *, bits, color, rows=b""):
    """PNG by hand: of depths that Pillow reads and does not write, or of sizes it has not."""

    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


class TestConversions:
    @pytest.mark.parametrize(
        ("name", "image", "options", "reason"),
        [
            ("gray.png", noise(3, channels=1), {}, "gray to RGB"),
            ("two.png", noise(3, channels=1).convert("1"), {}, "gray to RGB"),
            ("grayalpha.png", noise(3).convert("LA"), {}, "gray to RGB; opaque alpha dropped"),
            ("cmyk.jpg", noise(3).convert("CMYK"), {}, "CMYK to RGB"),
            ("palette.png", noise(3).quantize(16), {}, "palette to RGB"),
            ("opaque.png", with_transparency(255), {}, "opaque alpha dropped"),
            ("glass.png", with_transparency(100), {}, "transparency laid on white"),
            (
                "hole.gif",
                noise(3).quantize(16),
                {"transparency": 0},
                "palette to RGB; transparency laid on white",
            ),
            ("deep.png", deep_gray(), {}, "16-bit gray to 8 bits; gray to RGB"),
            ("deep.tiff", deep_gray(), {}, "16-bit gray to 8 bits; gray to RGB"),
            (
                "film.gif",
                noise(3).quantize(16),
                {"save_all": True, "append_images": [noise(4).quantize(16)]},
                "the first of several frames; palette to RGB",
            ),
        ],
    )
    def test_what_keeps_its_meaning_is_converted_and_told(self, tree, name, image, options, reason):
        save(tree / "cat" / name, image, **options)
        dataset = fetch(params(tree, on_bad_image="refuse"))

        assert told(dataset) == {f"cat/{name}": ("converted", reason)}
        assert f"cat/{name}" in set(dataset.manifest["id"])

    def test_colors_of_16_bits_become_8(self, tree):
        values = (np.asarray(noise(5), np.uint16) * 257).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        write_png(tree / "cat" / "deep.png", 24, 20, bits=16, color=2, rows=rows)
        dataset = fetch(params(tree))

        assert told(dataset) == {"cat/deep.png": ("converted", "16 bits per channel to 8")}
        expected = np.asarray(noise(5))
        found = photographs.decode(tree / "cat" / "deep.png").image
        np.testing.assert_array_equal(np.asarray(found), expected)

    def test_gray_of_16_bits_keeps_its_levels(self, tmp_path):
        path = save(tmp_path / "deep.png", deep_gray())

        found = np.asarray(photographs.decode(path).image)

        np.testing.assert_array_equal(found[..., 0], np.asarray(noise(4, channels=1)))

    def test_transparent_pixels_become_white(self, tmp_path):
        path = save(tmp_path / "clear.png", with_transparency(0))

        assert (np.asarray(photographs.decode(path).image) == 255).all()

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photographs_are_turned_upright(self, tmp_path, orientation, suffix):
        image = Image.new("RGB", (40, 24), "black")
        image.paste("white", (0, 0, 10, 8))  # the upper left corner, as stored
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"turned.{suffix}", image, exif=exif)
        corner = {1: "NW", 2: "NE", 3: "SE", 4: "SW", 5: "NW", 6: "NE", 7: "SE", 8: "SW"}

        found = photographs.decode(path).image

        assert found.size == ((40, 24) if orientation < 5 else (24, 40))
        lit = np.asarray(found.convert("L"))
        row = -2 if "S" in corner[orientation] else 1
        column = -2 if "E" in corner[orientation] else 1
        assert lit[row, column] > 200
        assert (lit > 128).mean() == pytest.approx(80 / 960, rel=0.2)

    def test_broken_exif_spoils_no_image(self, tree):
        save(tree / "cat" / "odd.jpg", noise(9), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
        dataset = fetch(params(tree, on_bad_image="refuse"))

        assert "cat/odd.jpg" in set(dataset.manifest["id"])

    def test_uppercase_and_absent_suffixes_are_read(self, tree):
        save(tree / "cat" / "LOUD.JPEG")
        save(tree / "cat" / "plain.png").rename(tree / "cat" / "plain")
        save(tree / "cat" / "wrong.jpg", format="PNG")
        save(tree / "cat" / "猫 ünï (1).png")
        dataset = fetch(params(tree, on_bad_image="refuse"))

        assert told(dataset) == {}
        assert {"cat/LOUD.JPEG", "cat/plain", "cat/wrong.jpg", "cat/猫 ünï (1).png"} <= set(
            dataset.manifest["id"]
        )


def cut(path, image=None, **options):
    content = save(path, image, **options).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


# Per file: how it is made, and what is told of it.
HOSTILE = {
    "empty.jpg": (lambda path: path.touch(), "the file is empty"),
    "text.jpg": (lambda path: path.write_text("hello"), "unreadable as an image"),
    "cut.jpg": (lambda path: cut(path, noise(11, (200, 160))), "broken: .*truncated"),
    "cut.png": (lambda path: cut(path, noise(12, (200, 160))), "broken: .*truncated"),
    "cut.gif": (lambda path: cut(path, noise(13, (200, 160)).quantize(64)), "broken: "),
    "head.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "unreadable|broken|can't"),
    "pixel.png": (lambda path: save(path, Image.new("RGB", (1, 1))), "1 x 1 px: a side is below"),
    "strip.png": (lambda path: save(path, noise(14, (900, 20))), "900 x 20 px: one side is more"),
    "bomb.png": (
        lambda path: write_png(path, 100_000, 100_000, bits=1, color=0),
        "100000 x 100000 px: more than data.max_megapixels 100",
    ),
    "float.tiff": (
        lambda path: save(path, Image.fromarray(np.ones((20, 20), np.float32))),
        "32-bit values of unknown range; convert it to 8 bits",
    ),
    "phone.HEIC": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic"), ".heic is not read here"),
    "drawing.svg": (lambda path: path.write_text("<svg/>"), ".svg is not read here; convert it"),
    "gone.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "can't be read: No such file"),
    "self.jpg": (lambda path: path.symlink_to("self.jpg"), "can't be read: Too many levels"),
    "line\nbreak.png": (lambda path: save(path, noise(15)), "its name holds control characters"),
}


class TestBadFiles:
    @pytest.fixture
    def bad(self, tree):
        for name, (make, _) in HOSTILE.items():
            make(tree / "cat" / name)
        (tree / "bare").mkdir()
        save(tree / "alone" / "only.png")
        save(tree / "dog" / "copy.png", noise(zlib.crc32(b"dog0")))
        save(tree / "cat" / "both.png", noise(77))
        save(tree / "dog" / "both.png", noise(77))
        save(tree / "dog" / "same-pixels.bmp", noise(zlib.crc32(b"dog1")))
        save(tree / "loose.png")
        (tree / "README.txt").write_text("P5 is how a PGM begins, and this is none")
        (tree / "dog" / "P6.txt").write_text("P6 likewise")
        (tree / "dog" / "notes.csv").touch()
        (tree / "dog" / ".DS_Store").touch()
        (tree / "dog" / "._0.png").write_bytes(b"\0\5\x16\7")
        (tree / ".git").mkdir()
        os.mkfifo(tree / "dog" / "pipe.jpg")
        (tree / "dog" / "loop").symlink_to("..")
        (tree / "dog" / "cats").symlink_to("../cat")
        os.mkdir(os.fsencode(tree / "dog") + b"/\xff")
        save(tree / "dog" / "x.png").rename(tree / "dog" / "\udcff" / "x.png")
        return tree

    def test_a_folder_of_each_runs_and_names_them_all(self, bad, tmp_path):
        dataset = fetch(params(bad))
        dataset.write(tmp_path / "out")
        skipped = read_table(tmp_path / "out" / "skipped.csv")
        rows = {row.file: (row.action, row.reason) for row in skipped.itertuples()}

        for name, (_, reason) in HOSTILE.items():
            action, found = rows.pop(f"cat/{name}".replace("\n", "\\n"))
            assert action == "skipped", name
            assert re.search(reason, found), name
        # Which of two with the same pixels comes first depends on their content.
        same = {rows.pop(name, None) for name in ("dog/1.png", "dog/same-pixels.bmp")}
        assert len(same - {None}) == 1
        assert re.match(r"same pixels as dog/(1\.png|same-pixels\.bmp)$", (same - {None}).pop()[1])
        assert rows == {
            "alone/": ("noted", "no validation image in this class"),
            "bare/": ("skipped", "no usable image in this class"),
            "cat/both.png": ("skipped", "same content as dog/both.png of another class"),
            "dog/both.png": ("skipped", "same content as cat/both.png of another class"),
            "dog/copy.png": ("skipped", "same content as dog/0.png"),
            "dog/\\udcff/x.png": (
                "skipped",
                "its name holds control characters or is not UTF-8; rename it",
            ),
            "loose.png": ("skipped", "in no class folder"),
            "README.txt": ("ignored", "no image"),
            "dog/P6.txt": ("ignored", "no image"),
            "dog/notes.csv": ("ignored", "no image"),
            "dog/pipe.jpg": ("ignored", "no regular file"),
            "dog/.DS_Store": ("ignored", "hidden"),
            "dog/._0.png": ("ignored", "hidden"),
            ".git": ("ignored", "hidden"),
            "dog/loop": ("ignored", "a link to a folder read before"),
            "dog/cats": ("ignored", "a link to a folder read before"),
        }
        assert dataset.classes == ("alone", "cat", "dog")
        assert len(dataset.manifest) == 13

    def test_every_image_is_accounted_for(self, bad):
        dataset = fetch(params(bad, n_train=6, n_val=2))
        counts = dataset.description["files"]
        left_out = (dataset.skipped["action"] == "skipped") & (
            ~dataset.skipped["file"].str.endswith("/")
        )

        assert counts["taken"] == len(dataset.manifest) == 8
        assert counts["skipped"] == left_out.sum()
        assert counts["images"] == counts["taken"] + counts["not_drawn"] + counts["skipped"]
        assert f"{counts['images']} images found, 8 taken" in folders.summary(dataset.description)

    def test_refusing_names_them_in_one_error(self, bad):
        with pytest.raises(ValueError, match=r"on_bad_image: refuse, but not everything") as error:
            fetch(params(bad, on_bad_image="refuse"))

        lines = str(error.value).splitlines()
        assert "  cat/empty.jpg: the file is empty" in lines
        assert "  loose.png: in no class folder" in lines

    def test_refusing_sees_what_only_reading_shows(self, tree):
        cut(tree / "cat" / "cut.jpg", noise(11, (200, 160)))

        with pytest.raises(ValueError, match=r"refuse(.|\n)*\n  cat/cut\.jpg: broken"):
            fetch(params(tree, on_bad_image="refuse"))

    def test_harmless_copies_and_strangers_are_not_refused(self, tree):
        shutil.copy(tree / "cat" / "0.png", tree / "cat" / "again.png")
        (tree / "notes.txt").touch()
        dataset = fetch(params(tree, on_bad_image="refuse"))

        assert told(dataset)["cat/again.png"] == ("skipped", "same content as cat/0.png")

    def test_the_same_name_in_two_classes_is_two_images(self, tree):
        assert {"cat/0.png", "dog/0.png"} <= set(fetch(params(tree)).manifest["id"])

    def test_copies_in_both_splits_stay_in_validation(self, tmp_path):
        fill(tmp_path / "train", n=3)
        fill(tmp_path / "val", n=2)
        dataset = fetch(params(tmp_path))

        assert len(dataset.images["train"]) == 2
        assert told(dataset)["train/cat/0.png"] == ("skipped", "same content as val/cat/0.png")

    def test_a_class_that_is_never_trained_is_left_out(self, tmp_path):
        fill(tmp_path / "train", n=3)
        fill(tmp_path / "val", classes=("bird",), n=2)
        save(tmp_path / "val" / "cat" / "0.png")
        dataset = fetch(params(tmp_path))

        assert dataset.classes == ("cat", "dog")
        assert told(dataset) == {
            "bird/": ("skipped", "no usable image in this class"),
            "dog/": ("noted", "no validation image in this class"),
            "val/bird/0.png": ("skipped", "no training image in its class"),
            "val/bird/1.png": ("skipped", "no training image in its class"),
        }

    def test_links_to_folders_and_files_elsewhere_are_followed(self, tmp_path):
        fill(tmp_path / "store", n=3)
        (tmp_path / "photos" / "mixed").mkdir(parents=True)
        (tmp_path / "photos" / "cat").symlink_to(tmp_path / "store" / "cat")
        for i in range(3):
            (tmp_path / "photos" / "mixed" / f"{i}.png").symlink_to(
                tmp_path / "store" / "dog" / f"{i}.png"
            )
        dataset = fetch(params(tmp_path / "photos"))

        assert len(dataset.manifest) == 6
        assert told(dataset) == {}

    def test_a_link_above_the_folder_is_not_followed(self, tree):
        (tree / "cat" / "up").symlink_to(tree.parent.parent)

        assert len(fetch(params(tree)).manifest) == 12

    def test_deep_folders_are_read(self, tree):
        deep = tree / "cat" / "/".join("d" * 400)
        save(deep / "down.png")

        assert len(fetch(params(tree)).manifest) == 13

    def test_a_larger_limit_admits_larger_images(self, tree):
        save(tree / "cat" / "large.png", Image.new("RGB", (1000, 1000)))

        assert "cat/large.png" in told(fetch(params(tree, max_megapixels=0.9)))
        assert "cat/large.png" not in told(fetch(params(tree, max_megapixels=1)))

    def test_pillows_own_limit_is_left_as_it_was(self, tree):
        before = Image.MAX_IMAGE_PIXELS
        fetch(params(tree))

        assert before == Image.MAX_IMAGE_PIXELS

    def test_no_random_bytes_raise_anything_else(self, tmp_path):
        """Headers of every format, followed by noise or changed in a byte."""
        rng = np.random.default_rng(0)
        for suffix in ("bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"):
            good = save(tmp_path / f"good.{suffix}", noise(1)).read_bytes()
            for i in range(60):
                spoilt = bytearray(good)
                for position in rng.integers(0, min(len(good), 200), 1 + i % 4):
                    spoilt[position] = rng.integers(256)
                path = tmp_path / f"{i}.{suffix}"
                path.write_bytes(spoilt[: rng.integers(8, len(good))] if i % 3 else spoilt)
                try:
                    with photographs.pillow_unlimited():
                        photographs.check(path, max_megapixels=1)
                        found = photographs.decode(path).image
                except (photographs.Unusable, photographs.NoImage) as error:
                    assert str(error)  # noqa: PT017
                    assert str(tmp_path) not in str(error)  # noqa: PT017
                else:
                    assert found.mode == "RGB"


def voc(path, *boxes, size=None, name="thing"):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size or (0, 0)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def boxed(dataset):
    rows = dataset.manifest.set_index("id")[["x0", "y0", "x1", "y1"]]
    return {name: tuple(row) for name, row in rows.iterrows() if (row >= 0).all()}


class TestBoxes:
    @pytest.fixture
    def square(self, tmp_path):
        """Photographs of 64 px, so that boxes are halved."""
        for name in ("cat", "dog"):
            for i in range(4):
                image = noise(zlib.crc32(f"{name}{i}".encode()), (64, 64))
                save(tmp_path / "photos" / name / f"{name}{i}.png", image)
        return tmp_path / "photos"

    def test_a_csv_gives_union_masks_and_enclosing_boxes(self, square, tmp_path):
        table = tmp_path / "boxes.csv"
        table.write_text(
            "file,x0,y0,x1,y1,note\n"
            "cat/cat0.png,0,2,4,6,one\n"
            "cat/cat0.png,20,30,40,50,two\n"
            "dog1.png,8,8,16,16,by its name alone\n"
            ".\\dog\\dog2.png,9.5,9.5,99,99,clipped\n"
        )
        dataset = fetch(params(square, boxes=str(table), val_fraction=1))

        assert boxed(dataset) == {
            "cat/cat0.png": (0, 1, 20, 25),
            "dog/dog1.png": (4, 4, 8, 8),
            "dog/dog2.png": (4, 4, 32, 32),
        }
        masks = dict(zip(dataset.rows("val")["id"], dataset.masks["val"], strict=True))
        expected = np.zeros((32, 32), bool)
        expected[1:3, 0:2] = expected[15:25, 10:20] = True
        np.testing.assert_array_equal(masks["cat/cat0.png"], expected)
        assert not masks["cat/cat1.png"].any()
        assert told(dataset) == {}

    def test_masks_are_written_for_validation_and_boxes_for_all(self, square, tmp_path):
        table = tmp_path / "boxes.csv"
        names = [path.relative_to(square).as_posix() for path in square.rglob("*.png")]
        table.write_text("file,x0,y0,x1,y1\n" + "".join(f"{n},0,0,8,8\n" for n in names))
        fetch(params(square, boxes=str(table))).write(tmp_path / "out")
        found = read_dataset(tmp_path / "out")

        assert list(found.masks) == ["val"]
        assert found.masks["val"].sum(axis=(1, 2)).tolist() == [16] * len(found.images["val"])
        assert (found.manifest["x1"] == 4).all()

    def test_without_a_usable_box_there_are_no_masks(self, square, tmp_path):
        (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\n")

        assert fetch(params(square, boxes=str(tmp_path / "boxes.csv"))).masks == {}

    def test_bad_rows_are_told_and_leave_the_image(self, square, tmp_path):
        table = tmp_path / "boxes.csv"
        table.write_text(
            "file,x0,y0,x1,y1\n"
            "cat0.png,1,2,three,4\n"
            "cat1.png,5,5,5,9\n"
            "cat2.png,1,2\n"
            "cat3.png,70,70,80,80\n"
            "dog0.png,nan,0,1,1\n"
            "bird.png,1,2,3,4\n"
        )
        dataset = fetch(params(square, boxes=str(table), on_bad_image="refuse"))

        assert len(dataset.manifest) == 8
        assert boxed(dataset) == {}
        assert told(dataset) == {
            "cat/cat0.png": (
                "unboxed",
                "boxes not used: line 2 of boxes.csv: x1 is 'three', no number",
            ),
            "cat/cat1.png": (
                "unboxed",
                "boxes not used: line 3 of boxes.csv: the box 5, 5, 5, 9 is empty",
            ),
            "cat/cat2.png": (
                "unboxed",
                "boxes not used: line 4 of boxes.csv: x1 is None, no number",
            ),
            "cat/cat3.png": (
                "unboxed",
                "boxes not used: they lie outside of what is kept of the image",
            ),
            "dog/dog0.png": (
                "unboxed",
                "boxes not used: line 6 of boxes.csv: x0 is 'nan', no number",
            ),
            "bird.png": ("ignored", "boxes for an image that is not there"),
        }

    def test_a_name_of_two_images_is_told(self, tree, tmp_path):
        table = tmp_path / "boxes.csv"
        table.write_text("file,x0,y0,x1,y1\n0.png,1,2,3,4\ndog/1.png,1,2,3,4\n")
        dataset = fetch(params(tree, boxes=str(table)))

        assert list(boxed(dataset)) == ["dog/1.png"]
        assert told(dataset) == {
            "0.png": ("ignored", "boxes for cat/0.png or dog/0.png: give the path")
        }

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"file,x0,y0,x1\n", r"boxes.csv has no column y1; write a header with file, x0"),
            (b"", r"has no column file"),
            (b"file,x0,y0,x1,y1\n\xff\xfe", r"is no readable CSV"),
            (
                None,
                r'data.boxes: ".*boxes.csv" is neither a CSV file nor a folder or archive of XML',
            ),
        ],
    )
    def test_a_bad_table_is_refused(self, square, tmp_path, content, message):
        if content is not None:
            (tmp_path / "boxes.csv").write_bytes(content)

        with pytest.raises(ValueError, match=message):
            fetch(params(square, boxes=str(tmp_path / "boxes.csv")))

    def test_voc_corners_are_one_based_and_inclusive(self, square, tmp_path):
        folder = tmp_path / "xml"
        voc(folder / "cat0.xml", (1, 1, 64, 64), size=(64, 64))
        voc(folder / "dog" / "dog0.xml", (3, 5, 4, 6))
        voc(folder / "cat1.XML")
        dataset = fetch(params(square, boxes=str(folder)))

        assert boxed(dataset) == {"cat/cat0.png": (0, 0, 32, 32), "dog/dog0.png": (1, 2, 2, 3)}
        assert told(dataset) == {}

    def test_objects_of_the_class_are_preferred(self):
        boxes = Boxes([(0, 0, 1, 1), (2, 2, 3, 3)], ["cat", "dog"])

        assert boxes.of_class("dog") == [(2, 2, 3, 3)]
        assert boxes.of_class("n02084071") == [(0, 0, 1, 1), (2, 2, 3, 3)]

    def test_hostile_xml_is_told(self, square, tmp_path):
        folder = tmp_path / "xml"
        voc(folder / "cat0.xml", (1, 1, 8, 8), size=(640, 480))
        (folder / "cat1.xml").write_text("<annotation><object>")
        (folder / "cat2.xml").write_text(
            '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'
        )
        (folder / "cat3.xml").write_text("<annotation><object/></annotation>")
        voc(folder / "dog0.xml", (9, 9, 2, 2))
        voc(folder / "dog1.xml", ("", 9, 2, 2))
        voc(folder / "bird.xml", (1, 1, 2, 2))
        rows = told(fetch(params(square, boxes=str(folder))))

        assert rows.pop("bird") == ("ignored", "boxes for an image that is not there")
        assert {action for action, _ in rows.values()} == {"unboxed"}
        reasons = [rows[f"{name[:3]}/{name}.png"][1] for name in ["cat0", "cat1", "cat2", "cat3"]]
        assert "they are for 640 x 480 px, the image has 64 x 64" in reasons[0]
        assert "cat1.xml: no element found" in reasons[1]
        assert "declares a document type" in reasons[2]
        assert "an object has no bndbox" in reasons[3]
        assert "the box 8, 8, 2, 2 is empty" in rows["dog/dog0.png"][1]
        assert "xmin is '', no number" in rows["dog/dog1.png"][1]

    @pytest.mark.parametrize("orientation", [5, 6, 7, 8])
    @pytest.mark.parametrize("as_stored", [True, False])
    def test_boxes_turn_with_a_photograph_that_lies(self, tmp_path, orientation, as_stored):
        """The size in the box file tells whether its maker saw the picture upright."""
        stored = np.zeros((40, 64, 3), np.uint8)
        stored[4:20, 8:40] = 255
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / "photos" / "cat" / "a.png", Image.fromarray(stored), exif=exif)
        save(tmp_path / "photos" / "dog" / "b.png")
        lit = np.asarray(photographs.decode(path).image)[..., 0] > 0
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        seen = columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1
        box, size = ((9, 5, 40, 20), (64, 40)) if as_stored else (seen, (40, 64))
        voc(tmp_path / "xml" / "a.xml", box, size=size)
        dataset = fetch(params(tmp_path / "photos", boxes=str(tmp_path / "xml"), val_fraction=1))

        at = dataset.rows("val")["class_name"].tolist().index("cat")
        bright = dataset.images["val"][at][..., 0] >= 128
        mask = dataset.masks["val"][at]
        assert (bright & ~mask).sum() == 0
        assert mask.sum() <= bright.sum() * 1.25


class TestParams:
    @pytest.fixture
    def photos(self):
        return yaml.safe_load(profile("photos", ROOT / "profiles"))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"kind": "folder"},
                r"data.kind: \"folder\"; choose 'embedded', 'imagefolder' or 'imagenet'",
            ),
            ({"kind": None}, r"data.kind: missing; add it, one of embedded, imagefolder"),
            ({"classes": ["a"]}, r"data.classes: \[\"a\"\] is not a known key; remove it"),
            ({"image_size": "64"}, r"data.image_size: \"64\"; write a whole number"),
            ({"preprocessing": "squish"}, r"\"squish\" is no preset; did you mean 'squash'\?"),
            (
                {"preprocessing": "resize256-crop224"},
                r"data.image_size: 64, but resize256-crop224 makes 224 px; write 224",
            ),
            ({"val_fraction": 0}, r"data.val_fraction: 0; choose greater than 0"),
            ({"n_val": 0}, r"data.n_val: 0; choose greater than or equal to 1"),
            ({"n_val": 12}, r"evaluation_set.n_images: 32 is more than data.n_val 12"),
            ({"on_bad_image": "hide"}, r"data.on_bad_image: \"hide\"; choose 'skip' or 'refuse'"),
        ],
    )
    def test_each_problem_is_one_line(self, photos, changes, message):
        with pytest.raises(ParamsError, match=message) as error:
            validate(overlay(photos, {"data": changes}))

        assert "imagefolder." not in str(error.value)

    @pytest.mark.parametrize("data", [None, "photos", ["photos"]])
    def test_no_mapping_is_no_data(self, photos, data):
        photos["data"] = data

        with pytest.raises(ParamsError, match=r"  data: .*; write a mapping, key: value"):
            validate(photos)

    def test_pixels_are_named_by_how_they_came_about(self, values, photos):
        sized = {"preprocessing": "squash256-crop224", "image_size": 224}

        assert validate(values).data.pixel_recipe == "embedded-64"
        assert validate(photos).data.pixel_recipe == "squash-64"
        assert validate(overlay(photos, {"data": sized})).data.pixel_recipe == "squash256-crop224"

    def test_weights_of_other_classes_are_refused_once_classes_are_known(self, tmp_path):
        (tmp_path / "given").mkdir()
        (tmp_path / "given" / "card.json").write_text('{"classes": ["cat", "cow"]}')
        recipe = Recipe(weights="given")

        check_recipe("googlenet", recipe, classes=("cat", "cow"), n_train=0, root=tmp_path)
        with pytest.raises(
            ParamsError, match=r'googlenet.weights: "given" knows 2 classes, the data have 3; use'
        ):
            check_recipe("googlenet", recipe, classes=("a", "b", "c"), n_train=9, root=tmp_path)

    def test_extent_is_known_before_and_after_fetching(self, photos, tree, tmp_path):
        made = validate(overlay(photos, {"data": {"path": str(tree), "image_size": 32}}))
        before = cost.extent(made, None)
        fetch(made.data).write(tmp_path / "out")
        dataset = read_dataset(tmp_path / "out")
        after = cost.extent(made, dataset)
        save(tree / "cat" / "more.png")
        changed = cost.extent(made, dataset)

        assert (before.n_train, before.n_val, before.n_classes) == (10, 2, 2)
        assert not before.fetched
        assert after.fetched
        assert not after.changed
        assert after.n_train + after.n_val == 12
        assert changed.changed
        shutil.rmtree(tree)
        assert not cost.extent(made, dataset).changed


def test_the_stage_prints_counts_and_errors_without_a_traceback(photos_repo):
    repo, tree = photos_repo

    def run():
        return subprocess.run(
            [sys.executable, str(ROOT / "stages" / "fetch.py")],
            capture_output=True,
            text=True,
            cwd=repo,
            check=False,
        )

    missing = run()
    assert missing.returncode == 1
    assert missing.stderr == (
        'error: data.path: "data/photos" is no folder; name one with a folder per class\n'
    )
    (repo / "data").mkdir()
    fill(tree)
    (tree / "cat" / "empty.jpg").touch()
    done = run()

    assert done.returncode == 0, done.stderr
    assert re.search(r"fetch: \d+ train, \d+ val images of 2 classes", done.stdout)
    assert "13 images found, 12 taken, 0 not drawn, 1 skipped, 0 converted" in done.stdout
    table = pd.read_csv(repo / "results" / "photos" / "data" / "skipped.csv")
    assert table.to_numpy().tolist() == [["cat/empty.jpg", "the file is empty", "skipped"]]


@pytest.fixture
def photos_repo(tmp_path):
    (tmp_path / "params.yaml").write_text(profile("photos", ROOT / "profiles"))
    return tmp_path, tmp_path / "data" / "photos"
