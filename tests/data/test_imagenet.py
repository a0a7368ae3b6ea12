import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torchvision
from PIL import Image
from torchvision.datasets import imagenet as torchvision_imagenet

import miniature
from conftest import ROOT
from steadymap.data import imagenet
from steadymap.data.dataset import Dataset, read_dataset
from steadymap.data.fetch import fetch
from steadymap.engine import selection
from steadymap.params.checks import validate
from steadymap.params.schema import EvaluationSet, ImagenetData, ParamsError


def data(path, **changes):
    return ImagenetData(
        kind="imagenet",
        path=str(path),
        **{"image_size": 64, "preprocessing": "squash", "boxes": None} | changes,
    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return miniature.write_archives(tmp_path_factory.mktemp("imagenet") / "official")


@pytest.fixture
def tree(tmp_path):
    return miniature.write_tree(tmp_path / "tree")


def bright(pixels):
    """Half-open box around the bright pixels of an image."""
    rows, columns = (np.flatnonzero((pixels[..., 0] > 110).any(axis)) for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


class TestClasses:
    def test_labels_are_the_sorted_wnids(self):
        assert len(imagenet.wnids()) == 1000
        assert list(imagenet.wnids()) == sorted(set(imagenet.wnids()))

    def test_classes_are_those_that_torchvision_reads(self, archives, tmp_path, monkeypatch):
        """Its data set from the same archives, which it extracts; told that they are official."""
        for key, name in (("val", imagenet.IMAGES), ("devkit", f"{imagenet.DEVKIT}.tar.gz")):
            content = (archives / name).read_bytes()
            (tmp_path / name).write_bytes(content)
            entry = (name, hashlib.md5(content).hexdigest())
            monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, key, entry)
        theirs = torchvision_imagenet.ImageNet(str(tmp_path), split="val")
        expected = {Path(path).stem: theirs.wnids[index] for path, index in theirs.samples}

        rows = fetch(data(archives)).rows("val")

        assert dict(zip(rows["id"], rows["class_name"], strict=True)) == expected

    def test_official_hashes_are_torchvision_s(self):
        known = dict(torchvision_imagenet.ARCHIVE_META[key] for key in ("val", "devkit"))

        assert known == imagenet.MD5

    def test_numbers_of_the_devkit_are_not_labels(self, archives):
        """The trap: ILSVRC2012_ID 1 is n02119789, and label 0 is n01440764."""
        rows = fetch(data(archives)).rows("val").set_index("id")

        assert rows.loc[miniature.name(1), "label"] == 0
        wnid = rows.loc[miniature.name(2), "class_name"]
        assert wnid == "n02119789"
        assert rows.loc[miniature.name(2), "label"] == imagenet.wnids().index(wnid) == 278


class TestLayouts:
    def test_archives_tree_and_flat_folder_are_one_data_set(self, archives, tree, tmp_path):
        flat = miniature.write_flat(tmp_path / "flat")
        (tmp_path / "split").mkdir()
        tree.rename(tmp_path / "split" / "val")
        found = [fetch(data(path)) for path in (archives, flat, tmp_path / "split")]

        assert len(found[0].rows("val")) == len(miniature.TRUTH)
        for other in found[1:]:
            pd.testing.assert_frame_equal(found[0].manifest, other.manifest)
            assert (found[0].images["val"][:] == other.images["val"][:]).all()
            assert found[0].description["digest"] == other.description["digest"]

    def test_pixels_are_torchvision_s(self, tree):
        transform = torchvision.transforms.Compose(
            [torchvision.transforms.Resize((256, 256)), torchvision.transforms.CenterCrop(224)]
        )
        made = fetch(data(tree, preprocessing="squash256-crop224", image_size=224))
        image = Image.open(tree / "n01440764" / f"{miniature.name(1)}.JPEG").convert("RGB")

        assert (made.images["val"][0] == np.asarray(transform(image))).all()

    def test_it_is_read_like_an_array(self, tree, tmp_path):
        made = fetch(data(tree))
        made.write(tmp_path / "data")
        images = read_dataset(tmp_path / "data").images["val"]
        every = np.stack([images[position] for position in range(len(images))])

        assert images.shape == every.shape == (8, 64, 64, 3)
        assert (images[2:5] == every[2:5]).all()
        assert (images[np.array([6, 1])] == every[[6, 1]]).all()
        assert images[:0].shape == (0, 64, 64, 3)
        with pytest.raises(IndexError):
            images[8]

    def test_nothing_is_copied(self, tree, tmp_path):
        made = fetch(data(tree, train=str(tree)))
        made.write(tmp_path / "data")

        stored = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
        assert stored < 30_000
        again = read_dataset(tmp_path / "data")
        assert (
            again.rows("train")["class_name"].tolist() == again.rows("val")["class_name"].tolist()
        )
        assert (again.images["train"][3] == again.images["val"][3]).all()
        assert again.images["train"].photograph(0).size == miniature.SIZES[1]

    def test_a_part_of_the_images_is_drawn_from_the_seed(self, tree):
        some, same, other = (
            list(fetch(data(tree, n_val=5, seed=seed)).rows("val")["id"]) for seed in (0, 0, 1)
        )

        assert len(some) == 5
        assert some == same == sorted(some)
        assert some != other

    def test_a_turned_photograph_stays_as_it_is_stored(self, tree):
        """As torchvision and the paper's code read it, and as its boxes mean it."""
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tree / "n01440764" / f"{miniature.name(1)}.JPEG"
        plain = fetch(data(tree)).images["val"][0]
        path.write_bytes(miniature.jpeg(miniature.drawn(1)[0], exif=exif))

        assert (fetch(data(tree)).images["val"][0] == plain).all()

    def test_a_file_that_changed_since_is_not_taken_for_the_old_one(self, tree):
        made = fetch(data(tree))
        path = tree / "n01440764" / f"{miniature.name(1)}.JPEG"
        path.write_bytes(miniature.jpeg(miniature.drawn(3)[0]))

        with pytest.raises(ValueError, match=r"00000001.JPEG has other pixels than when it was"):
            made.images["val"][:2]
        path.unlink()
        with pytest.raises(ValueError, match=r"00000001.JPEG: can't be read: No such file"):
            made.images["val"][:2]


class TestBoxes:
    @pytest.mark.parametrize(
        ("preprocessing", "size"),
        [
            ("squash256-crop224", 224),
            ("resize256-crop224", 224),
            ("resize342-crop299", 299),
            ("squash", 48),
        ],
    )
    def test_they_lie_where_the_rectangle_lies_that_was_drawn(self, archives, preprocessing, size):
        made = fetch(
            data(
                archives,
                preprocessing=preprocessing,
                image_size=size,
                boxes=str(archives / imagenet.BOXES),
            )
        )

        rows = made.rows("val")
        for place, number in enumerate(range(1, 9)):
            if preprocessing.startswith("resize") and number % 2 == 0:
                continue  # the crop may cut one of two rectangles
            expected = bright(made.images["val"][place])
            found = rows.loc[place, ["x0", "y0", "x1", "y1"]].to_numpy(int)
            assert np.abs(found - expected).max() <= 1, number

    def test_several_of_an_image_are_all_kept(self, archives, tmp_path):
        made = fetch(data(archives, boxes=str(archives / imagenet.BOXES)))
        made.write(tmp_path / "data")
        masks = read_dataset(tmp_path / "data").masks["val"]

        two = masks[np.array([1])][0]
        # Number 2 is 100 x 100 px: 30-50 by 20-50 and 60-75 by 40-60, on 64 px.
        expected = np.zeros((64, 64), bool)
        expected[12:32, 19:32] = expected[25:39, 38:48] = True
        assert (two == expected).all()
        assert masks[0].sum() == (made.rows("val").loc[0, "x1"] - made.rows("val").loc[0, "x0"]) * (
            made.rows("val").loc[0, "y1"] - made.rows("val").loc[0, "y0"]
        )

    def test_those_of_another_size_are_told(self, archives, tmp_path):
        content = miniature.xml(1, (999, 80), [(1, 1, 5, 5)], "n01440764")
        boxes = miniature.archive(tmp_path / "b.tgz", {f"{miniature.name(1)}.xml": content}, "w:gz")

        made = fetch(data(archives, boxes=str(boxes)))

        row = made.skipped.query("action == 'unboxed'").iloc[0]
        assert row["file"] == miniature.name(1)
        assert "they are for 999 x 80 px, the image has 90 x 120" in row["reason"]
        assert "val" not in made.masks

    def test_an_archive_with_a_link_is_refused(self, tree, tmp_path):
        path = tmp_path / "boxes.tgz"
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo("val/x.xml")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)

        with pytest.raises(ValueError, match=r"boxes.tgz holds 'val/x.xml', which is no regular"):
            fetch(data(tree, boxes=str(path)))

    def test_a_cut_off_archive_is_refused(self, archives, tmp_path):
        whole = (archives / imagenet.BOXES).read_bytes()
        (tmp_path / "boxes.tgz").write_bytes(whole[: len(whole) // 2])

        with pytest.raises(ValueError, match=r"boxes.tgz is no readable archive .*copy it again"):
            fetch(data(archives, boxes=str(tmp_path / "boxes.tgz")))


class TestRefusals:
    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r'data.path: ".*gone" is no folder; place ILSVRC2012'):
            fetch(data(tmp_path / "gone"))

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds neither ILSVRC2012_img_val.tar nor images"):
            fetch(data(tmp_path))

    def test_flat_images_without_the_devkit(self, tmp_path):
        flat = miniature.write_flat(tmp_path / "flat")
        (flat / f"{imagenet.DEVKIT}.tar.gz").unlink()

        with pytest.raises(ValueError, match=r"lie flat .* ILSVRC2012_devkit_t12.tar.gz alone"):
            fetch(data(flat))

    def test_another_class(self, tree):
        (tree / "n00000001").mkdir()

        with pytest.raises(ValueError, match=r'data.path: "n00000001" is none of the 1,000 wnids'):
            fetch(data(tree))

    def test_two_images_of_one_name(self, tree):
        source = tree / "n01440764" / f"{miniature.name(1)}.JPEG"
        (tree / "n15075141" / source.name).write_bytes(source.read_bytes())

        with pytest.raises(ValueError, match=r"00000001.JPEG and n15075141/.* have one name"):
            fetch(data(tree))

    @pytest.mark.parametrize("action", ["refuse", "skip"])
    def test_a_truncated_image(self, tree, action):
        path = tree / "n01440764" / f"{miniature.name(1)}.JPEG"
        path.write_bytes(path.read_bytes()[:-200])

        if action == "refuse":
            with pytest.raises(
                ValueError, match=r"(?s)refuse.*00000001: broken: image file is trun"
            ):
                fetch(data(tree))
        else:
            made = fetch(data(tree, on_bad_image="skip"))
            assert len(made.rows("val")) == 7
            assert made.skipped.loc[0, "file"] == miniature.name(1)
            assert made.description["files"]["skipped"] == 1

    def test_a_link_in_the_archive(self, archives, tmp_path):
        with tarfile.open(tmp_path / imagenet.IMAGES, "w") as tar:
            info = tarfile.TarInfo("../../x.JPEG")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
        miniature.write_devkit(tmp_path)

        with pytest.raises(ValueError, match=r"holds '../../x.JPEG', which is no regular file"):
            fetch(data(tmp_path))

    def test_a_cut_off_archive(self, archives, tmp_path):
        whole = (archives / imagenet.IMAGES).read_bytes()
        (tmp_path / imagenet.IMAGES).write_bytes(whole[: len(whole) // 2])
        miniature.write_devkit(tmp_path)

        with pytest.raises(ValueError, match=r"no readable tar archive .*copy it again"):
            fetch(data(tmp_path))

    def test_more_images_than_the_devkit_knows(self, archives, tmp_path):
        (tmp_path / imagenet.IMAGES).write_bytes((archives / imagenet.IMAGES).read_bytes())
        miniature.write_devkit(tmp_path, truth=miniature.TRUTH[:7])

        with pytest.raises(
            ValueError, match=r"00000008.JPEG is none of .*_00000001 to .*_00000007"
        ):
            fetch(data(tmp_path))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"truth": (9,) * 8}, r"has '9' in line 1, which is no class of its meta.mat"),
            ({"synsets": {1: "n99999999"}}, r"meta.mat has 'n99999999', which is no class"),
        ],
    )
    def test_a_devkit_that_does_not_fit(self, archives, tmp_path, changes, message):
        (tmp_path / imagenet.IMAGES).write_bytes((archives / imagenet.IMAGES).read_bytes())
        miniature.write_devkit(tmp_path, **changes)

        with pytest.raises(ValueError, match=message):
            fetch(data(tmp_path))

    def test_a_broken_devkit(self, archives, tmp_path):
        with pytest.raises(ValueError, match=r"meta.mat can't be read .*take the official devkit"):
            imagenet.synsets(b"MATLAB 5.0 MAT-file" + bytes(200))
        (tmp_path / imagenet.IMAGES).write_bytes((archives / imagenet.IMAGES).read_bytes())
        (tmp_path / f"{imagenet.DEVKIT}.tar.gz").write_bytes(b"\x1f\x8bnothing")
        with pytest.raises(ValueError, match=r"no readable devkit .*copy it again"):
            fetch(data(tmp_path))

    def test_other_archives_than_the_official_ones_are_told(self, archives):
        noted = fetch(data(archives)).skipped.query("action == 'noted'")

        assert sorted(noted["file"]) == sorted(imagenet.MD5)
        assert noted["reason"].str.startswith("not the official file: its md5 is ").all()

    def test_a_train_folder_that_is_none(self, tree, tmp_path):
        with pytest.raises(ValueError, match=r'data.train: ".*gone" is no folder'):
            fetch(data(tree, train=str(tmp_path / "gone")))


class TestSam1735:
    """The paper's choice, sam-protocol section 5, against the steps of its code."""

    names = ("resnet50", "googlenet", "resnet50-r", "googlenet-r")

    def predicted(self, n):
        rng = np.random.default_rng(5)
        labels = rng.integers(1000, size=n)
        return labels, {
            model: np.where(rng.random(n) < share, labels, (labels + 1) % 1000)
            for model, share in zip(self.names, (0.76, 0.69, 0.56, 0.51), strict=True)
        }

    def dataset(self, labels):
        """A data set of a manifest alone, its rows in another order than their names."""
        order = np.random.default_rng(1).permutation(len(labels))
        manifest = pd.DataFrame({"id": [miniature.name(n + 1) for n in range(len(labels))]})
        manifest = manifest.assign(split="val", class_name="x", label=labels, sha256="", photo="")
        manifest = manifest.assign(x0=-1, y0=-1, x1=-1, y1=-1).iloc[order].reset_index(drop=True)
        return order, Dataset(("x",), {}, {}, manifest, {})

    def test_it_is_the_papers_procedure(self):
        labels, predicted = self.predicted(9000)
        names = [miniature.name(n + 1) for n in range(9000)]
        right = {
            model: {name for name, ok in zip(names, found == labels, strict=True) if ok}
            for model, found in predicted.items()
        }
        shared = sorted(right["resnet50"] & right["googlenet"] & right["resnet50-r"])
        assert len(shared) > 2000
        state = np.random.get_state()
        np.random.seed(0)
        expected = [name for name in np.random.permutation(shared)[:2000]]
        np.random.set_state(state)
        expected = [name for name in expected if name in right["googlenet-r"]]
        order, dataset = self.dataset(labels)
        rule = EvaluationSet(rule="sam-1735", target="label", n_images=len(expected), seed=0)

        chosen = selection.choose(
            rule, dataset, {model: found[order] for model, found in predicted.items()}
        )

        assert chosen.images["image_id"].tolist() == expected
        assert (chosen.targets["prediction"] == chosen.targets["target"]).all()

    def test_too_few_are_told_with_counts(self):
        labels, predicted = self.predicted(300)
        order, dataset = self.dataset(labels)
        rule = EvaluationSet(rule="sam-1735", target="label", n_images=1735, seed=0)

        with pytest.raises(ValueError, match=r"1735 wanted, \d+ left under rule sam-1735 of 300"):
            selection.choose(
                rule, dataset, {model: found[order] for model, found in predicted.items()}
            )

    def test_it_asks_for_all_four_models(self, values):
        values["evaluation_set"]["rule"] = "sam-1735"

        with pytest.raises(
            ParamsError, match=r"sam-1735 asks resnet50, .*, and resnet50 is no model; add it"
        ):
            validate(values, root=ROOT)
