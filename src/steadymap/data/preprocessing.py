"""Geometry that makes square images of photographs of any size, and places boxes in them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steadymap.params.methods import PRESETS

# Half-open x0, y0, x1, y1: of a photograph in fractions of its pixels, of an image in whole ones.
Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]

# A rounding error must not make a box grow by a pixel.
_SLACK = 1e-6


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of one photograph go: scaled, then cropped.

    Attributes
    ----------
    size : tuple of int
        Width and height of the photograph.
    scaled : tuple of int
        Width and height after scaling.
    corner : tuple of int
        Left and upper edge of the crop in the scaled photograph; negative where it is padded.
    side : int
        Width and height of the crop.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    side: int

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Uint8 (side, side, 3) of an RGB image."""
        if image.size != self.scaled:
            image = image.resize(self.scaled, Image.Resampling.BILINEAR)
        left, top = self.corner
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)), np.uint8)

    def box(self, box: Box) -> PixelBox | None:
        """Half-open range of pixels that a half-open box touches, None where it touches none."""
        edges = []
        for axis in (0, 1):
            ratio = self.scaled[axis] / self.size[axis]
            low = math.floor(box[axis] * ratio + _SLACK) - self.corner[axis]
            high = math.ceil(box[axis + 2] * ratio - _SLACK) - self.corner[axis]
            edges.append((min(max(low, 0), self.side), min(max(high, 0), self.side)))
        (x0, x1), (y0, y1) = edges
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def geometry(preset: str, image_size: int, *, width: int, height: int) -> Geometry:
    """Geometry of a preset for one photograph, rounded as by Resize and CenterCrop of torchvision.

    Parameters
    ----------
    preset : str
        Name in `PRESETS`.
    image_size : int
        Side of the image, px, where the preset does not give its own.
    width, height : int
        Of the photograph, px.
    """
    recipe = PRESETS[preset]
    target, side = recipe.resize or image_size, recipe.crop or image_size
    scaled = target, target
    if not recipe.squash:
        short = min(width, height)
        scaled = int(target * width / short), int(target * height / short)
    corner = round((scaled[0] - side) / 2), round((scaled[1] - side) / 2)
    return Geometry((width, height), scaled, corner, side)
