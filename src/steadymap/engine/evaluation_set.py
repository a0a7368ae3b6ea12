"""The evaluation set on disk: rows, targets and pixels of the images that are explained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from steadymap.store.tables import read_table, write_table


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """Float32 images (n, 3, height, width) in [0, 1] of uint8 pixels (n, height, width, 3)."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Rows, targets per model and uint8 pixels, left on disk, of an evaluation set."""
    folder = Path(folder)
    rows, targets = (read_table(folder / name) for name in ("evaluation_set.csv", "targets.csv"))
    return rows, targets, np.load(folder / "images.npy", mmap_mode="r")


def write(
    folder: Path,
    rows: pd.DataFrame,
    targets: pd.DataFrame,
    pixels: np.ndarray,
    masks: np.ndarray | None,
) -> None:
    """Write an evaluation set into a folder that is there.

    Parameters
    ----------
    folder : Path
        Where the files go.
    rows, targets : DataFrame
        A row per image; a row per image and model.
    pixels : ndarray
        Uint8 (images, height, width, 3).
    masks : ndarray or None
        Pixels of the object, bool (images, height, width).
    """
    np.save(folder / "images.npy", pixels)
    if masks is not None:
        np.save(folder / "masks.npy", masks)
    write_table(rows, folder / "evaluation_set.csv")
    write_table(targets, folder / "targets.csv")


def pixels_of(folder: Path, positions: Sequence[int]) -> np.ndarray:
    """Uint8 pixels of some images of an evaluation set; the others are not read."""
    # Not kept open: a file that is still mapped keeps its folder from being replaced on NFS.
    return np.load(Path(folder) / "images.npy", mmap_mode="r")[list(positions)]
