"""A data set on disk: uint8 images, masks and a manifest, whatever they were made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steadymap.store import atomic_folder, read_json, read_table, write_json, write_table

MANIFEST = ("id", "split", "class_name", "label", "sha256", "x0", "y0", "x1", "y1", "photo")


@dataclass(frozen=True)
class Dataset:
    """Images with labels, and what is known of where their objects are.

    Attributes
    ----------
    classes : tuple of str
        Names in label order.
    images : dict of str to ndarray
        Per split, uint8 (n, height, width, 3).
    masks : dict of str to ndarray
        Per split that has them, bool (n, height, width).
    manifest : DataFrame
        A row per image, in the order of `images` within its split: the columns of `MANIFEST`.
        Boxes are half-open pixel ranges, -1 where unknown; `photo` names the photograph that images
        share, and is empty where each image is one of its own.
    description : dict
        Kind, image size, digest and the like; JSON.
    """

    classes: tuple[str, ...]
    images: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    manifest: pd.DataFrame
    description: dict[str, Any]

    def rows(self, split: str) -> pd.DataFrame:
        """Manifest of one split, positions as index."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)

    def write(self, folder: Path) -> None:
        """Write the folder as a whole."""
        with atomic_folder(folder) as temporary:
            for split, images in self.images.items():
                np.save(temporary / f"{split}.npy", images)
            for split, masks in self.masks.items():
                np.save(temporary / f"{split}_masks.npy", masks)
            write_table(self.manifest[list(MANIFEST)], temporary / "manifest.csv")
            write_json(
                {"classes": list(self.classes), **self.description}, temporary / "dataset.json"
            )


def read_dataset(folder: Path) -> Dataset:
    """Open a data set that `Dataset.write` wrote; images stay on disk until they are used."""
    folder = Path(folder)
    description = read_json(folder / "dataset.json")
    manifest = read_table(folder / "manifest.csv")
    images, masks = {}, {}
    for split in manifest["split"].unique():
        images[split] = np.load(folder / f"{split}.npy", mmap_mode="r")
        if (folder / f"{split}_masks.npy").is_file():
            masks[split] = np.load(folder / f"{split}_masks.npy", mmap_mode="r")
    classes = tuple(description.pop("classes"))
    return Dataset(classes, images, masks, manifest, description)
