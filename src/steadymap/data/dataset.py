"""A data set on disk: uint8 images, masks and a manifest."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steadymap.data.originals import BoxMasks, Originals, Placement
from steadymap.data.preprocessing import PixelBox
from steadymap.params.schema import Data
from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.tables import read_table, write_table

MANIFEST = ("id", "split", "class_name", "label", "sha256", "x0", "y0", "x1", "y1", "photo")
# Images whose pixel values are counted at a time.
_CHUNK = 512


@dataclass(frozen=True)
class Dataset:
    """Images with labels and, where known, the places of their objects.

    Attributes
    ----------
    classes : tuple of str
        Names in label order.
    images : dict of str to ndarray or Originals
        Per split, uint8 (n, height, width, 3); photographs too many to copy stay where they are.
    masks : dict of str to ndarray or BoxMasks
        Per split that has them, bool (n, height, width).
    manifest : DataFrame
        A row per image, in the order of `images` within its split: the columns of `MANIFEST`.
        Boxes are half-open pixel ranges, -1 where unknown; `photo` names the photograph that images
        share, and is empty where each image is one of its own.
    description : dict
        Kind, image size, digest and the like; JSON.
    skipped : DataFrame, optional
        What became of files that were not taken as they are, as `folders.Journal` has it.
    """

    classes: tuple[str, ...]
    images: Mapping[str, np.ndarray | Originals]
    masks: Mapping[str, np.ndarray | BoxMasks]
    manifest: pd.DataFrame
    description: dict[str, Any]
    skipped: pd.DataFrame | None = None

    def rows(self, split: str) -> pd.DataFrame:
        """Manifest of one split, positions as index."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)

    def write(self, folder: Path) -> None:
        """Write the folder as a whole."""
        with atomic_folder(folder) as temporary:
            places = {}
            for split, images in self.images.items():
                if isinstance(images, Originals):
                    write_table(images.files, temporary / f"{split}_files.parquet")
                    places[split] = asdict(images.placement)
                else:
                    np.save(temporary / f"{split}.npy", images)
            for split, masks in self.masks.items():
                if isinstance(masks, BoxMasks):
                    write_table(masks.boxes, temporary / f"{split}_boxes.parquet")
                else:
                    np.save(temporary / f"{split}_masks.npy", masks)
            write_table(self.manifest[list(MANIFEST)], temporary / "manifest.csv")
            if self.skipped is not None:
                write_table(self.skipped, temporary / "skipped.csv")
            described = {"classes": list(self.classes), **self.description}
            if places:
                described["originals"] = places
            write_json(described, temporary / "dataset.json")


def read_dataset(folder: Path) -> Dataset:
    """Open a data set that `Dataset.write` wrote; images stay on disk until they are used."""
    folder = Path(folder)
    description = read_json(folder / "dataset.json")
    manifest = read_table(folder / "manifest.csv")
    places = description.pop("originals", {})
    images: dict[str, np.ndarray | Originals] = {}
    masks: dict[str, np.ndarray | BoxMasks] = {}
    for split in manifest["split"].unique():
        if split in places:
            hashes = manifest.loc[manifest["split"] == split, "sha256"].tolist()
            files = read_table(folder / f"{split}_files.parquet")
            images[split] = originals = Originals(files, Placement(**places[split]), hashes)
            if (folder / f"{split}_boxes.parquet").is_file():
                boxes = read_table(folder / f"{split}_boxes.parquet")
                masks[split] = BoxMasks(boxes, originals.shape[:3])
            continue
        images[split] = np.load(folder / f"{split}.npy", mmap_mode="r")
        if (folder / f"{split}_masks.npy").is_file():
            masks[split] = np.load(folder / f"{split}_masks.npy", mmap_mode="r")
    classes = tuple(description.pop("classes"))
    return Dataset(classes, images, masks, manifest, description)


def manifest_row(
    image_id: str,
    split: str,
    class_name: str,
    label: int,
    sha256: str,
    box: PixelBox,
    photo: str = "",
) -> dict[str, Any]:
    """Row of the manifest.

    Parameters
    ----------
    image_id : str
        Name of the image in the data set.
    split : {"train", "val"}
        Its split.
    class_name : str
        Its class.
    label : int
        Position of the class.
    sha256 : str
        Hash of its pixels.
    box : tuple of int
        Half-open x0, y0, x1, y1, px; -1 where unknown.
    photo : str
        Photograph that images share; empty where each image is one of its own.
    """
    return dict(
        zip(MANIFEST, (image_id, split, class_name, label, sha256, *box, photo), strict=True)
    )


def describe(
    data: Data,
    manifest: pd.DataFrame,
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Sequence[int] = (),
) -> dict[str, Any]:
    """Description of a data set.

    Parameters
    ----------
    data : Data
        Section of params that the data set was made by.
    manifest : DataFrame
        A row per image.
    mean, std : sequence of float
        Channel statistics that images are to be normalized by, in [0, 1] units.
    sizes : sequence of int
        Sizes of files whose pixels no hash is known of; with the ids, pixel hashes and labels of
        all images they make the digest.
    """
    lines = manifest[["id", "sha256", "label"]].astype(str).agg(" ".join, axis=1).tolist()
    digest = hashlib.sha256("\n".join([*lines, *map(str, sizes)]).encode()).hexdigest()
    return {
        "kind": data.kind,
        "image_size": data.image_size,
        "preprocessing": data.pixel_recipe,
        "mean": list(mean),
        "std": list(std),
        "digest": digest,
    }


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel in [0, 1], from counts: exact, in little memory."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        counts += [np.bincount(chunk[..., c].ravel(), minlength=256) for c in range(3)]
    levels, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / total
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total)
    return [round(float(m), 6) for m in mean], [round(float(s), 6) for s in std]
