"""ILSVRC2012: validation from the official archives or an extracted tree, training by path.

Nothing is extracted and no photograph is copied: the data set is a table of where each lies.
Labels are positions among the 1,000 wnids in alphabetical order, as all public weights have them.
The devkit numbers classes in another order.
"""

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import scipy.io

from steadymap.data.archives import archived_files
from steadymap.data.boxes import Boxes, enclosing, read_boxes
from steadymap.data.dataset import Dataset, describe, manifest_row
from steadymap.data.folders import Journal, folder
from steadymap.data.originals import FILES, BoxMasks, Opened, Originals, Placement
from steadymap.data.photographs import SUFFIXES, Unusable, pillow_unlimited
from steadymap.data.preprocessing import PixelBox, geometry
from steadymap.params.schema import ImagenetData
from steadymap.progress import reporting

logger = logging.getLogger(__name__)

IMAGES = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
BOXES = "ILSVRC2012_bbox_val_v3.tgz"
# Hashes of the official files, as torchvision has them.
MD5 = {
    IMAGES: "29b22e2961454d5413ddabcf34fc5622",
    f"{DEVKIT}.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
# What public weights were trained with: channel statistics of the training images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images of the official splits.
N_TRAIN, N_VAL = 1_281_167, 50_000

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
# Of a photograph: its name, its class, and where it is.
_COLUMNS = ("id", "wnid", *FILES)
# Largest size of the devkit's files, in bytes.
_LARGEST = 64 * 2**20
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 256


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC2012 in label order."""
    listed = resources.files("steadymap.data").joinpath("imagenet_wnids.txt").read_text()
    return tuple(listed.split())


def gather(data: ImagenetData) -> Dataset:
    """Find the images, their classes and boxes; each validation image is decoded once.

    Images are `Originals`: `val`, and `train` where params name it. The digest covers the hashes of
    all validation pixels, all labels, and the sizes of the training files.

    Parameters
    ----------
    data : ImagenetData
        Its folder holds the archives `IMAGES` and `DEVKIT`; or `val/`, or nothing but, with a
        folder per wnid (any subset of them) or with the images themselves and the devkit beside.

    Raises
    ------
    ValueError
        Where nothing of that is there, something does not fit together, or `on_bad_image` is
        `refuse` and an image is broken.
    """
    journal = Journal()
    root = folder(
        data,
        f"place {IMAGES} and {DEVKIT}.tar.gz in one, or extracted images in a folder per wnid, "
        "and name it",
    )
    root_or_archive, photographs = _validation(root, journal)
    journal.n_images = len(photographs)
    drawn = _drawn(photographs, data.n_val, data.seed)
    placement = _placement(root_or_archive, data)
    boxes = _boxes(data)
    rows: list[dict[str, Any]] = []
    ranges = []
    closed = Originals(drawn, placement, [""] * len(drawn))
    for photograph, opened in zip(drawn.itertuples(), _opened(closed), strict=True):
        if isinstance(opened, Unusable):
            journal.leave_out(photograph.id, str(opened).removeprefix(f"{photograph.file}: "))
            continue
        placed = geometry(
            data.preprocessing, data.image_size, width=opened.size[0], height=opened.size[1]
        )
        placed_boxes = journal.usable(
            boxes.get(photograph.id), photograph.id, photograph.wnid, placed, stored=placed.size
        )
        ranges += [(len(rows), *box) for box in placed_boxes]
        rows.append(_row(photograph, "val", opened.sha256, placed_boxes))
    journal.refuse(data)
    if not rows:
        raise ValueError(
            f'data.path: no image of "{data.path}" can be used{journal.named("skipped")}'
        )
    surplus = sorted(set(boxes) - set(drawn["id"]))
    # Of a part of the images, the others' boxes are no surprise.
    if surplus and len(drawn) == len(photographs):
        journal.add(surplus[0], f"boxes of {len(surplus)} images that are not there", "ignored")
    val = pd.DataFrame(rows)
    taken = drawn[drawn["id"].isin(val["id"])]
    images = {"val": Originals(taken, placement, val["sha256"].tolist())}
    masks = {}
    if ranges:
        table = pd.DataFrame(ranges, columns=["position", "x0", "y0", "x1", "y1"])
        masks["val"] = BoxMasks(table, images["val"].shape[:3])
    manifest, sizes = val, list[int]()
    if data.train is not None:
        images["train"], train = _training(data)
        manifest = pd.concat([train, val], ignore_index=True)
        sizes = images["train"].files["size"].tolist()
    return Dataset(
        classes=wnids(),
        images=images,
        masks=masks,
        manifest=manifest,
        description={
            **describe(data, manifest, MEAN, STD, sizes),
            "files": journal.counts(len(taken)),
        },
        skipped=journal.table(),
    )


def _is_image(name: PurePath) -> bool:
    return name.suffix.lower() in SUFFIXES


def _drawn(photographs: pd.DataFrame, n: int | None, seed: int) -> pd.DataFrame:
    """Random `n` of the images, in their order; all where there are no more."""
    if n is None or n >= len(photographs):
        return photographs
    positions = np.random.default_rng(seed).permutation(len(photographs))[:n]
    return photographs.iloc[np.sort(positions)]


def _placement(source: Path, data: ImagenetData) -> Placement:
    return Placement(
        str(source), data.preprocessing, data.image_size, max_megapixels=data.max_megapixels
    )


def _validation(root: Path, journal: Journal) -> tuple[Path, pd.DataFrame]:
    """Archive or folder of the validation images, and each of them, in the order of their names."""
    archive = root / IMAGES
    if archive.is_file():
        _note_origin(archive, journal)
        members = archived_files(archive, _is_image, key="data.path", kind="tar archive")
        files = [(member.name, member.offset_data, member.size) for member, _ in members]
        return archive, _unique(_labeled(files, root, journal))
    source = root / "val" if (root / "val").is_dir() else root
    inside = sorted(os.scandir(source), key=lambda entry: entry.name)
    if any(entry.is_dir() and _WNID.fullmatch(entry.name) for entry in inside):
        return source, _unique(_in_folders(source, "data.path"))
    loose = [
        (entry.name, 0, entry.stat().st_size)
        for entry in inside
        if entry.is_file() and _is_image(Path(entry.name))
    ]
    if not loose:
        raise ValueError(
            f'data.path: "{root}" holds neither {IMAGES} nor images nor folders named by wnid '
            "(n01440764), in itself or in val/; place one of these there"
        )
    return source, _unique(_labeled(loose, root, journal))


def _unique(rows: Iterable[tuple[str, str, str, int, int]]) -> pd.DataFrame:
    """Photographs with `_COLUMNS`, in the order of their names, of which none may stand twice."""
    photographs = pd.DataFrame(rows, columns=list(_COLUMNS))
    photographs = photographs.sort_values(["id", "file"], ignore_index=True)
    twice = photographs.loc[photographs["id"].duplicated(keep=False), "file"].tolist()
    if twice:
        raise ValueError(
            f"data.path: {twice[0]} and {twice[1]} have one name; images are known by it: "
            "rename one"
        )
    return photographs


def _in_folders(source: Path, key: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Images of a tree with a folder per wnid."""
    classes = set(wnids())
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        if entry.name not in classes:
            raise ValueError(
                f'{key}: "{entry.name}" is none of the 1,000 wnids of ILSVRC2012; remove it, or '
                "read the folder with data.kind imagefolder"
            )
        for file in os.scandir(entry.path):
            if file.is_file() and _is_image(Path(file.name)):
                name = f"{entry.name}/{file.name}"
                yield Path(file.name).stem, entry.name, name, 0, file.stat().st_size


def _labeled(
    files: Sequence[tuple[str, int, int]], root: Path, journal: Journal
) -> Iterator[tuple[str, str, str, int, int]]:
    """Images that lie flat, with the class that the devkit gives their number."""
    truth = _ground_truth(root, journal)
    for name, offset, size in files:
        stem = PurePosixPath(name).stem
        matched = _NUMBER.fullmatch(stem)
        if matched is None or not 1 <= (number := int(matched[1])) <= len(truth):
            raise ValueError(
                f"data.path: {name} is none of ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{len(truth):08d}, which the devkit gives classes; remove it, or "
                "sort images into a folder per wnid"
            )
        yield stem, truth[number - 1], name, offset, size


def _ground_truth(root: Path, journal: Journal) -> list[str]:
    """Wnid of each validation image, in the order of their numbers."""
    archive, extracted = root / f"{DEVKIT}.tar.gz", root / DEVKIT / "data"
    if archive.is_file():
        _note_origin(archive, journal)
        meta, truth = _devkit(archive)
    elif (extracted / "meta.mat").is_file() and (extracted / _TRUTH).is_file():
        meta, truth = ((extracted / name).read_bytes() for name in ("meta.mat", _TRUTH))
    else:
        raise ValueError(
            f'data.path: images lie flat in "{root}", so that their classes stand in '
            f"{DEVKIT}.tar.gz alone; place it there"
        )
    names = synsets(meta)
    labels = []
    for line, text in enumerate(truth.decode("ascii", "replace").split(), start=1):
        if not text.isascii() or not text.isdigit() or int(text) not in names:
            raise ValueError(
                f"{DEVKIT}: {_TRUTH} has {text!r} in line {line}, which is no class of its "
                "meta.mat; take the official devkit"
            )
        labels.append(names[int(text)])
    return labels


def synsets(meta: bytes) -> dict[int, str]:
    """Wnid of each class number of the devkit: numbers are not in the order of wnids.

    Parameters
    ----------
    meta : bytes
        Content of `meta.mat`; groups of classes, which have children, are left out.

    Raises
    ------
    ValueError
        Where it is not readable, or names a class that ILSVRC2012 does not have.
    """
    try:
        table = np.atleast_1d(scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        classes = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in table
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # loadmat raises anything on a broken file
        raise ValueError(
            f"{DEVKIT}: meta.mat can't be read ({type(error).__name__}: {error}); take the "
            "official devkit"
        ) from None
    for wnid in classes.values():
        if wnid not in wnids():
            raise ValueError(
                f"{DEVKIT}: meta.mat has {wnid!r}, which is no class of ILSVRC2012; take the "
                "official devkit"
            )
    return classes


def _devkit(archive: Path) -> list[bytes]:
    """The two files of the devkit that classes are read from."""
    endings = ("data/meta.mat", f"data/{_TRUTH}")
    files = archived_files(
        archive,
        lambda name: str(name).endswith(endings),
        key="data.path",
        kind="devkit",
        most_bytes=_LARGEST,
    )
    contents = {PurePosixPath(member.name).name: content for member, content in files}
    for ending in endings:
        if PurePosixPath(ending).name not in contents:
            raise ValueError(f"data.path: {archive.name} has no {ending}; take the official devkit")
    return [contents["meta.mat"], contents[_TRUTH]]


def _note_origin(archive: Path, journal: Journal) -> None:
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != MD5[archive.name]:
        journal.add(archive.name, f"not the official file: its md5 is {md5}", "noted")
        logger.warning("%s is not the official file: its md5 is %s", archive.name, md5)


def _boxes(data: ImagenetData) -> dict[str, Boxes]:
    if data.boxes is None:
        return {}
    by_name = read_boxes(Path(data.boxes).expanduser())
    return {
        PurePosixPath(name).name.removesuffix(".JPEG"): boxes for name, boxes in by_name.items()
    }


def _row(
    photograph: Any, split: str, sha256: str, boxes: Sequence[PixelBox] = ()
) -> dict[str, Any]:
    wnid = photograph.wnid
    label = wnids().index(wnid)
    return manifest_row(photograph.id, split, wnid, label, sha256, enclosing(boxes))


def _opened(images: Originals) -> Iterator[Opened | Unusable]:
    """Each image, or why it can't be used; none is kept."""

    def one(position: int) -> Opened | Unusable:
        try:
            return images.open(position)
        except Unusable as error:
            return error

    with (
        pillow_unlimited(),
        ThreadPoolExecutor(_THREADS) as pool,
        reporting(len(images), "checking images", "images", transient=True) as advance,
    ):
        for start in range(0, len(images), _AT_ONCE):
            for opened in pool.map(one, range(start, min(start + _AT_ONCE, len(images)))):
                advance(1)
                yield opened


def _training(data: ImagenetData) -> tuple[Originals, pd.DataFrame]:
    """Training images by path alone: too many to open before anybody trains on them."""
    source = Path(str(data.train)).expanduser()
    if not source.is_dir():
        raise ValueError(
            f'data.train: "{data.train}" is no folder; name one with a folder per wnid, or null'
        )
    photographs = _unique(_in_folders(source, "data.train"))
    if photographs.empty:
        raise ValueError(
            f'data.train: "{data.train}" has no folder named by wnid (n01440764) with images; '
            "name one that has, or null"
        )
    drawn = _drawn(photographs, data.n_train, data.seed)
    rows = pd.DataFrame([_row(photograph, "train", "") for photograph in drawn.itertuples()])
    return Originals(drawn, _placement(source, data), [""] * len(drawn)), rows
