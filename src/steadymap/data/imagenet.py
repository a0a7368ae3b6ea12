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
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import scipy.io

from steadymap.data.boxes import Boxes, read_boxes
from steadymap.data.folders import Journal
from steadymap.data.originals import FILES, BoxMasks, Opened, Originals, Placement
from steadymap.data.photographs import SUFFIXES, Unusable, pillow_at_ease
from steadymap.data.preprocessing import Geometry, geometry
from steadymap.params.schema import ImagenetData

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
# No file of the devkit is larger.
_LARGEST = 64 * 2**20
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 256
_LOG_SECONDS = 30


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 classes of ILSVRC2012 in label order."""
    listed = resources.files("steadymap.data").joinpath("imagenet_wnids.txt").read_text()
    return tuple(listed.split())


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes
    ----------
    images : dict of str to Originals
        `val`, and `train` where params name it.
    masks : dict of str to BoxMasks
        `val`, where boxes are known.
    manifest : DataFrame
        In the order of the images.
    skipped : DataFrame
        Files that were left out or are worth knowing: file, reason, action.
    counts : dict
        Images found, taken, not drawn (beyond `n_val`); files per action.
    digest : str
        Hash of all pixels' hashes and labels; of training images, of their sizes.
    """

    images: dict[str, Originals]
    masks: dict[str, BoxMasks]
    manifest: pd.DataFrame
    skipped: pd.DataFrame
    counts: dict[str, int]
    digest: str


@dataclass(frozen=True)
class _Photograph:
    id: str
    wnid: str
    file: str
    offset: int
    size: int


def gather(data: ImagenetData) -> Gathered:
    """Find the images, their classes and boxes; each validation image is decoded once.

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
    root = folder(data)
    place, found = _validation(root, journal)
    n_found = journal.n_images = len(found)
    if data.n_val is not None and data.n_val < n_found:
        drawn = np.random.default_rng(data.seed).permutation(n_found)[: data.n_val]
        found = [found[position] for position in np.sort(drawn)]
    placement = Placement(
        str(place), data.preprocessing, data.image_size, max_megapixels=data.max_megapixels
    )
    boxes = _boxes(data)
    taken: list[_Photograph] = []
    rows, ranges = [], []
    closed = Originals(_files(found), placement, [""] * len(found))
    for photograph, opened in zip(found, _opened(closed), strict=True):
        if isinstance(opened, Unusable):
            journal.leave_out(photograph.id, str(opened).removeprefix(f"{photograph.file}: "))
            continue
        placed = geometry(
            data.preprocessing, data.image_size, width=opened.size[0], height=opened.size[1]
        )
        known = _placed(boxes.get(photograph.id), photograph, placed, journal)
        ranges += [(len(taken), *box) for box in known]
        rows.append(_row(photograph, "val", opened.sha256, known))
        taken.append(photograph)
    _refuse(data, journal)
    if not taken:
        raise ValueError(
            f'data.path: no image of "{data.path}" can be used{journal.named("skipped")}'
        )
    _note_surplus(boxes, found, n_found, journal)
    val = pd.DataFrame(rows)
    images = {"val": Originals(_files(taken), placement, val["sha256"].tolist())}
    masks = {}
    if ranges:
        table = pd.DataFrame(ranges, columns=["position", "x0", "y0", "x1", "y1"])
        masks["val"] = BoxMasks(table, images["val"].shape[:3])
    manifest, sizes = val, []
    if data.train is not None:
        images["train"], train = _training(data)
        manifest = pd.concat([train, val], ignore_index=True)
        sizes = images["train"].files["size"].tolist()
    lines = manifest[["id", "sha256", "label"]].astype(str).agg(" ".join, axis=1).tolist()
    return Gathered(
        images=images,
        masks=masks,
        manifest=manifest,
        skipped=journal.table(),
        counts=journal.counts(len(taken)),
        digest=hashlib.sha256("\n".join([*lines, *map(str, sizes)]).encode()).hexdigest(),
    )


def folder(data: ImagenetData) -> Path:
    """Folder that params name.

    Raises
    ------
    ValueError
        Where it is none: with what belongs there.
    """
    shown = "null" if data.path is None else f'"{data.path}"'
    if not data.path or not (root := Path(data.path).expanduser()).is_dir():
        raise ValueError(
            f"data.path: {shown} is no folder; place {IMAGES} and {DEVKIT}.tar.gz in one, or "
            "extracted images in a folder per wnid, and name it"
        )
    return root


def _validation(root: Path, journal: Journal) -> tuple[Path, list[_Photograph]]:
    """Archive or folder of the validation images, and each of them, in the order of their names."""
    archive = root / IMAGES
    if archive.is_file():
        _note_origin(archive, journal)
        found = list(_labeled(list(_archived(archive)), root, journal))
        return archive, _unique(found)
    place = root / "val" if (root / "val").is_dir() else root
    inside = sorted(os.scandir(place), key=lambda entry: entry.name)
    if any(entry.is_dir() and _WNID.fullmatch(entry.name) for entry in inside):
        return place, _unique(_in_folders(place, "data.path"))
    loose = [
        (entry.name, 0, entry.stat().st_size)
        for entry in inside
        if entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES
    ]
    if not loose:
        raise ValueError(
            f'data.path: "{root}" holds neither {IMAGES} nor images nor folders named by wnid '
            "(n01440764), in itself or in val/; place one of these there"
        )
    return place, _unique(list(_labeled(loose, root, journal)))


def _unique(found: Sequence[_Photograph]) -> list[_Photograph]:
    ordered = sorted(found, key=lambda photograph: (photograph.id, photograph.file))
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise ValueError(
                f"data.path: {one.file} and {other.file} have one name; images are known by it: "
                "rename one"
            )
    return ordered


def _in_folders(place: Path, key: str) -> list[_Photograph]:
    """Images of a tree with a folder per wnid."""
    known, found = set(wnids()), []
    for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        if entry.name not in known:
            raise ValueError(
                f'{key}: "{entry.name}" is none of the 1,000 wnids of ILSVRC2012; remove it, or '
                "read the folder with data.kind imagefolder"
            )
        for file in os.scandir(entry.path):
            if file.is_file() and Path(file.name).suffix.lower() in SUFFIXES:
                name = f"{entry.name}/{file.name}"
                stem = PurePosixPath(file.name).stem
                found.append(_Photograph(stem, entry.name, name, 0, file.stat().st_size))
    return found


def _archived(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of each image in an uncompressed tar; nothing is extracted."""
    total = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as members:
            for member in members:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(
                        f"data.path: {archive.name} holds {member.name!r}, which is no regular "
                        "file; take the official archive"
                    )
                if member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(
            f"data.path: {archive.name} is no readable tar archive ({error}); copy it again"
        ) from None


def _labeled(
    found: Sequence[tuple[str, int, int]], root: Path, journal: Journal
) -> Iterator[_Photograph]:
    """Images that lie flat, with the class that the devkit gives their number."""
    truth = _ground_truth(root, journal)
    for name, offset, size in found:
        stem = PurePosixPath(name).stem
        matched = _NUMBER.fullmatch(stem)
        if matched is None or not 1 <= (number := int(matched[1])) <= len(truth):
            raise ValueError(
                f"data.path: {name} is none of ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{len(truth):08d}, which the devkit gives classes; remove it, or "
                "sort images into a folder per wnid"
            )
        yield _Photograph(stem, truth[number - 1], name, offset, size)


def _ground_truth(root: Path, journal: Journal) -> list[str]:
    """Wnid of each validation image, in the order of their numbers."""
    archive, extracted = root / f"{DEVKIT}.tar.gz", root / DEVKIT / "data"
    if archive.is_file():
        _note_origin(archive, journal)
        meta, truth = (_member(archive, f"data/{name}") for name in ("meta.mat", _TRUTH))
    elif (extracted / "meta.mat").is_file() and (extracted / _TRUTH).is_file():
        meta, truth = ((extracted / name).read_bytes() for name in ("meta.mat", _TRUTH))
    else:
        raise ValueError(
            f'data.path: images lie flat in "{root}", so that their classes stand in '
            f"{DEVKIT}.tar.gz alone; place it there"
        )
    names = synsets(meta)
    found = []
    for line, text in enumerate(truth.decode("ascii", "replace").split(), start=1):
        if not text.isascii() or not text.isdigit() or int(text) not in names:
            raise ValueError(
                f"{DEVKIT}: {_TRUTH} has {text!r} in line {line}, which is no class of its "
                "meta.mat; take the official devkit"
            )
        found.append(names[int(text)])
    return found


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
        found = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in table
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # loadmat raises anything on a broken file
        raise ValueError(
            f"{DEVKIT}: meta.mat can't be read ({type(error).__name__}: {error}); take the "
            "official devkit"
        ) from None
    for wnid in found.values():
        if wnid not in wnids():
            raise ValueError(
                f"{DEVKIT}: meta.mat has {wnid!r}, which is no class of ILSVRC2012; take the "
                "official devkit"
            )
    return found


def _member(archive: Path, ending: str) -> bytes:
    """A member of the devkit, read where it lies."""
    read = 0
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                read += member.size
                if read > _LARGEST:
                    raise tarfile.ReadError(f"more than {_LARGEST >> 20} MB")
                if member.isreg() and member.name.endswith(f"/{ending}"):
                    file = members.extractfile(member)
                    assert file is not None
                    return file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"data.path: {archive.name} is no readable devkit ({error}); copy it again"
        ) from None
    raise ValueError(f"data.path: {archive.name} has no {ending}; take the official devkit")


def _note_origin(archive: Path, journal: Journal) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != MD5[archive.name]:
        journal.add(archive.name, f"not the official file: its md5 is {found}", "noted")
        logger.warning("%s is not the official file: its md5 is %s", archive.name, found)


def _boxes(data: ImagenetData) -> dict[str, Boxes]:
    if data.boxes is None:
        return {}
    found = read_boxes(Path(data.boxes).expanduser())
    return {PurePosixPath(name).name.removesuffix(".JPEG"): boxes for name, boxes in found.items()}


def _placed(
    known: Boxes | None, photograph: _Photograph, placed: Geometry, journal: Journal
) -> list[tuple[int, int, int, int]]:
    """Boxes of an image in its pixels, by the same geometry."""
    if known is None:
        return []
    problem, found = known.problem, []
    if not problem:
        try:
            boxes = known.upright(
                known.of_class(photograph.wnid), stored=placed.size, orientation=1
            )
            found = [box for box in map(placed.box, boxes) if box is not None]
            if boxes and not found:
                problem = "they lie outside of what is kept of the image"
        except ValueError as error:
            problem = str(error)
    if problem:
        journal.add(photograph.id, f"boxes not used: {problem}", "unboxed")
    return found


def _note_surplus(
    boxes: dict[str, Boxes], found: Sequence[_Photograph], n_found: int, journal: Journal
) -> None:
    surplus = sorted(set(boxes) - {photograph.id for photograph in found})
    # Of a part of the images, the others' boxes are no surprise.
    if surplus and len(found) == n_found:
        journal.add(surplus[0], f"boxes of {len(surplus)} images that are not there", "ignored")


def _refuse(data: ImagenetData, journal: Journal) -> None:
    if data.on_bad_image == "refuse" and journal.n_bad:
        raise ValueError(
            "data.on_bad_image: refuse, but images are broken; copy these again, or write skip"
            f"{journal.named('skipped')}"
        )


def _row(
    photograph: _Photograph,
    split: str,
    sha256: str,
    boxes: Sequence[tuple[int, int, int, int]] = (),
) -> dict[str, object]:
    x0, y0, x1, y1 = zip(*boxes, strict=True) if boxes else ((-1,),) * 4
    return {
        "id": photograph.id,
        "split": split,
        "class_name": photograph.wnid,
        "label": wnids().index(photograph.wnid),
        "sha256": sha256,
        "x0": min(x0),
        "y0": min(y0),
        "x1": max(x1),
        "y1": max(y1),
        "photo": "",
    }


def _files(found: Sequence[_Photograph]) -> pd.DataFrame:
    rows = [(item.file, item.offset, item.size) for item in found]
    return pd.DataFrame(rows, columns=list(FILES)).astype({"offset": "int64", "size": "int64"})


def _opened(images: Originals) -> Iterator[Opened | Unusable]:
    """Each image, or why it can't be used; none is kept."""

    def one(position: int) -> Opened | Unusable:
        try:
            return images.open(position)
        except Unusable as error:
            return error

    told = time.monotonic()
    with pillow_at_ease(), ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(images), _AT_ONCE):
            yield from pool.map(one, range(start, min(start + _AT_ONCE, len(images))))
            if time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                logger.info("%d of %d images checked", start + _AT_ONCE, len(images))


def _training(data: ImagenetData) -> tuple[Originals, pd.DataFrame]:
    """Training images by path alone: too many to open before anybody trains on them."""
    place = Path(str(data.train)).expanduser()
    if not place.is_dir():
        raise ValueError(
            f'data.train: "{data.train}" is no folder; name one with a folder per wnid, or null'
        )
    found = _in_folders(place, "data.train")
    if not found:
        raise ValueError(
            f'data.train: "{data.train}" has no folder named by wnid (n01440764) with images; '
            "name one that has, or null"
        )
    found = _unique(found)
    if data.n_train is not None and data.n_train < len(found):
        drawn = np.random.default_rng(data.seed).permutation(len(found))[: data.n_train]
        found = [found[position] for position in np.sort(drawn)]
    placement = Placement(
        str(place), data.preprocessing, data.image_size, max_megapixels=data.max_megapixels
    )
    rows = pd.DataFrame([_row(photograph, "train", "") for photograph in found])
    return Originals(_files(found), placement, [""] * len(found)), rows
