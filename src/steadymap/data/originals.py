"""Photographs left where they are, in a folder or a tar archive, and decoded when asked for."""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from steadymap.data.photographs import Unusable, check_bytes, decode, pillow_unlimited
from steadymap.data.preprocessing import geometry

FILES = ("file", "offset", "size")

# JPEG decoding leaves Python's lock alone; more threads than this gain nothing on a disk.
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Placement:
    """Where photographs lie, and what is made of them.

    Attributes
    ----------
    root : str
        Folder that file names start from, or an uncompressed tar archive.
    preprocessing : str
        Preset of the geometry.
    image_size : int
        Side of the pixels.
    max_megapixels : float
        Size that a photograph may have.
    """

    root: str
    preprocessing: str
    image_size: int
    max_megapixels: float


@dataclass(frozen=True)
class Opened:
    """One photograph's pixels.

    Attributes
    ----------
    pixels : ndarray
        Uint8 (side, side, 3).
    sha256 : str
        Their hash.
    size : tuple of int
        Width and height of the photograph.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    size: tuple[int, int]


class Originals:
    """Images of a split, read like an array: `images[3]`, `images[10:20]`, `images[[4, 1]]`.

    Nothing is kept in memory.  EXIF orientations are not applied, as neither torchvision's data
    sets nor the boxes of ILSVRC2012 do.

    Parameters
    ----------
    files : DataFrame
        Columns of `FILES`: path below the root or name in the archive, first byte in the archive
        (0 in a folder), bytes.
    placement : Placement
        Where they are.
    sha256 : sequence of str
        Hash that each image's pixels must have; '' where it is not known.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: pd.DataFrame, placement: Placement, sha256: Sequence[str]):
        if len(files) != len(sha256):
            raise ValueError(
                f"{len(files)} files and {len(sha256)} hashes; fetch again: `dvc repro -f fetch`"
            )
        self.files, self.placement = files[list(FILES)].reset_index(drop=True), placement
        self._sha256 = list(sha256)
        self._root = Path(placement.root).expanduser()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of all images as one array."""
        side = self.placement.image_size
        return len(self), side, side, 3

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        positions = np.arange(len(self))[key]
        if positions.ndim == 0:
            with pillow_unlimited():
                return self._checked(int(positions))
        images = np.empty((len(positions), *self.shape[1:]), np.uint8)
        with pillow_unlimited(), ThreadPoolExecutor(_THREADS) as pool:
            for index, pixels in enumerate(pool.map(self._checked, positions.tolist())):
                images[index] = pixels
        return images

    def photograph(self, position: int) -> Image.Image:
        """The whole RGB photograph, for augmentations that crop it themselves.

        Raises
        ------
        Unusable
            Where it is gone or broken: with its name.
        """
        name = self.files["file"].iat[position]
        try:
            content = self._bytes(position)
            check_bytes(content, max_megapixels=self.placement.max_megapixels)
            return decode(io.BytesIO(content), upright=False).image
        except OSError as error:
            raise Unusable(f"{name}: can't be read: {error.strerror or error}") from None
        except Unusable as error:
            raise Unusable(f"{name}: {error}") from None

    def open(self, position: int) -> Opened:
        """Pixels of one photograph, their hash and its size; raises as `photograph` does."""
        image = self.photograph(position)
        placement = self.placement
        placed = geometry(
            placement.preprocessing, placement.image_size, width=image.width, height=image.height
        )
        pixels = placed.pixels(image)
        return Opened(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), image.size)

    def _bytes(self, position: int) -> bytes:
        name, offset, size = self.files.iloc[position]
        # Opened anew: threads share no position in a file, and processes no handle.
        if self._root.is_file():
            with self._root.open("rb") as archive:
                archive.seek(int(offset))
                return archive.read(int(size))
        return (self._root / name).read_bytes()

    def _checked(self, position: int) -> NDArray[np.uint8]:
        try:
            opened = self.open(position)
        except Unusable as error:
            raise ValueError(
                f"{self._root}: {error}; put back what was fetched, or fetch what is there: "
                "`dvc repro -f fetch`"
            ) from None
        if self._sha256[position] not in ("", opened.sha256):
            raise ValueError(
                f"{self._root}: {self.files['file'].iat[position]} has other pixels than when it "
                "was fetched (another file, or another JPEG library); fetch again: "
                "`dvc repro -f fetch`"
            )
        return opened.pixels


class BoxMasks:
    """Unions of boxes, read like an array of masks (n, side, side).

    Parameters
    ----------
    boxes : DataFrame
        Columns position, x0, y0, x1, y1: half-open pixels of the image at that position; several
        rows or none per image.
    shape : tuple of int
        Of all masks as one array.
    """

    dtype = np.dtype(np.bool_)

    def __init__(self, boxes: pd.DataFrame, shape: tuple[int, int, int]):
        self.boxes, self.shape = boxes, shape
        self._of = {
            int(position): rows[["x0", "y0", "x1", "y1"]].to_numpy()
            for position, rows in boxes.groupby("position")
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.bool_]:
        positions = np.arange(len(self))[key]
        masks = np.zeros((positions.size, *self.shape[1:]), np.bool_)
        for mask, position in zip(masks, positions.ravel(), strict=True):
            for x0, y0, x1, y1 in self._of.get(int(position), ()):
                mask[y0:y1, x0:x1] = True
        return masks if positions.ndim else masks[0]
