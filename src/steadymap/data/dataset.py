"""A data set on disk: uint8 images, masks and a manifest, whatever they were made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steadymap.data.originals import BoxMasks, Originals, Placement, read_originals
from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.tables import read_table, write_table

MANIFEST = ("id", "split", "class_name", "label", "sha256", "x0", "y0", "x1", "y1", "photo")


@dataclass(frozen=True)
class Dataset:
    """Images with labels, and what is known of where their objects are.

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
    """

    classes: tuple[str, ...]
    images: Mapping[str, np.ndarray | Originals]
    masks: Mapping[str, np.ndarray | BoxMasks]
    manifest: pd.DataFrame
    description: dict[str, Any]

    def rows(self, split: str) -> pd.DataFrame:
        """Manifest of one split, positions as index."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)

    def write(self, folder: Path) -> None:
        """Write the folder as a whole."""
        with atomic_folder(folder) as temporary:
            places = {}
            for split, images in self.images.items():
                if isinstance(images, Originals):
                    images.write(temporary / f"{split}_files.parquet")
                    places[split] = asdict(images.placement)
                else:
                    np.save(temporary / f"{split}.npy", images)
            for split, masks in self.masks.items():
                if isinstance(masks, BoxMasks):
                    masks.write(temporary / f"{split}_boxes.parquet")
                else:
                    np.save(temporary / f"{split}_masks.npy", masks)
            write_table(self.manifest[list(MANIFEST)], temporary / "manifest.csv")
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
            images[split] = found = read_originals(
                folder / f"{split}_files.parquet", Placement(**places[split]), hashes
            )
            if (folder / f"{split}_boxes.parquet").is_file():
                boxes = read_table(folder / f"{split}_boxes.parquet")
                masks[split] = BoxMasks(boxes, found.shape[:3])
            continue
        images[split] = np.load(folder / f"{split}.npy", mmap_mode="r")
        if (folder / f"{split}_masks.npy").is_file():
            masks[split] = np.load(folder / f"{split}_masks.npy", mmap_mode="r")
    classes = tuple(description.pop("classes"))
    return Dataset(classes, images, masks, manifest, description)
