"""A miniature of ILSVRC2012 in the layout of the official archives, from drawn images."""

import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from steadymap.data import imagenet

# As in the devkit, numbers of classes are not in the order of wnids.
SYNSETS = {1: "n02119789", 2: "n02100735", 3: "n01440764", 4: "n15075141"}
# Class number of each image, in the order of their names.
TRUTH = (3, 1, 4, 2, 1, 3, 2, 4)
SIZES = ((120, 90), (90, 120), (100, 100), (150, 80))


def drawn(number: int) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Image `number` and its boxes, 1-based and inclusive: bright rectangles on a dark ground."""
    width, height = SIZES[number % len(SIZES)]
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[..., 1] += (np.arange(width) // 4 % 2 * 10 * (number % 3)).astype(np.uint8)
    boxes = [(31, 21, 60, 50)] if number % 2 else [(31, 21, 50, 50), (61, 41, 75, 60)]
    for x0, y0, x1, y1 in boxes:
        pixels[y0 - 1 : y1, x0 - 1 : x1] = 200 + number
    return Image.fromarray(pixels), boxes


def name(number: int) -> str:
    """Name of a validation image, numbered from 1."""
    return f"ILSVRC2012_val_{number:08d}"


def jpeg(image: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95, **options)
    return content.getvalue()


def xml(number: int, size: tuple[int, int], boxes, wnid: str) -> bytes:
    objects = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return (
        f"<annotation><folder>val</folder><filename>{name(number)}</filename><size>"
        f"<width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{objects}</annotation>"
    ).encode()


def meta(synsets=SYNSETS) -> bytes:
    """`meta.mat`: classes, and behind them a group that has children."""
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
        ("children", object),
        ("wordnet_height", object),
        ("num_train_images", object),
    ]
    rows = [(i, w, f"word {i}", "a gloss", 0, [], 0, 1300) for i, w in synsets.items()]
    rows.append((len(synsets) + 1, "n00001740", "entity", "a gloss", 2, [1.0, 2.0], 5, 0))
    table = np.array(rows, dtype=kinds).reshape(-1, 1)
    content = io.BytesIO()
    scipy.io.savemat(content, {"synsets": table})
    return content.getvalue()


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_archives(folder: Path) -> Path:
    """The three official archives."""
    folder.mkdir(parents=True)
    images, boxes = {}, {}
    for number, synset in enumerate(TRUTH, start=1):
        image, found = drawn(number)
        images[f"{name(number)}.JPEG"] = jpeg(image)
        boxes[f"val/{name(number)}.xml"] = xml(number, image.size, found, SYNSETS[synset])
    archive(folder / imagenet.IMAGES, images)
    archive(folder / imagenet.BOXES, boxes, "w:gz")
    write_devkit(folder)
    return folder


def write_devkit(folder: Path, *, synsets=SYNSETS, truth=TRUTH) -> None:
    top = f"{imagenet.DEVKIT}/data"
    members = {
        f"{top}/meta.mat": meta(synsets),
        f"{top}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in truth).encode(),
    }
    archive(folder / f"{imagenet.DEVKIT}.tar.gz", members, "w:gz")


def write_tree(folder: Path) -> Path:
    """The validation images in a folder per wnid."""
    for number, synset in enumerate(TRUTH, start=1):
        place = folder / SYNSETS[synset]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name(number)}.JPEG").write_bytes(jpeg(drawn(number)[0]))
    return folder


def write_flat(folder: Path) -> Path:
    """The validation images as they come out of the archive, and the devkit."""
    folder.mkdir(parents=True)
    for number in range(1, len(TRUTH) + 1):
        (folder / f"{name(number)}.JPEG").write_bytes(jpeg(drawn(number)[0]))
    write_devkit(folder)
    return folder
