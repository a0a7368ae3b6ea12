"""The embedded data set: sticker-like objects pasted on photographs, with exact masks.

Everything that tells the classes apart lies inside the object's mask, at three levels: the
outline, a coarse texture, and a faint grating of two to four pixels' period.
The grating is a planted *non-robust feature*: it predicts the class perfectly, but an adversarial
perturbation too small to see can erase or forge it.
Background, position, size, rotation and colors are drawn without looking at the class, and no
photograph serves both training and validation.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from steadymap.data.dataset import manifest_row
from steadymap.data.preprocessing import PixelBox
from steadymap.params.schema import EmbeddedData

Array = NDArray[np.float64]

# Only photographs that are files of the scikit-image and scikit-learn wheels and whose license is
# stated there (docs/credits.md).  Both splits mix close-ups, scenes and plain surfaces.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        *("astronaut", "clock", "coins", "flower", "grass", "gravel", "immunohistochemistry"),
        *("retina", "text"),
    ),
    "val": ("brick", "camera", "chelsea", "china", "coffee", "hubble_deep_field", "rocket"),
}

_SPLITS = tuple(PHOTOGRAPHS)
_FROM_SKLEARN = ("china", "flower")
_SUPERSAMPLING = 3
# The scale on which lengths below are given; other image sizes scale them, the grating excepted.
_REFERENCE_SIZE = 64


@dataclass(frozen=True)
class Split:
    """Images of one split with their masks and a row of facts for each."""

    images: NDArray[np.uint8]  # (n, height, width, 3)
    masks: NDArray[np.bool_]  # (n, height, width), every pixel that the object touches
    manifest: pd.DataFrame  # id, split, class_name, label, sha256, x0, y0, x1, y1, photo


# Outlines: is the point inside?  x to the right, y down, the outline within about the unit circle.


def _disc(x: Array, y: Array) -> NDArray[np.bool_]:
    return np.hypot(x, y) < 1


def _ring(x: Array, y: Array) -> NDArray[np.bool_]:
    radius = np.hypot(x, y)
    return (radius < 1) & (radius > 0.42)


def _polygon(n_corners: int, *, inner: float, start: float = -np.pi / 2) -> Callable[..., NDArray]:
    """Regular star whose concave corners lie at radius `inner` (cos(pi/n): a polygon)."""

    def inside(x: Array, y: Array) -> NDArray[np.bool_]:
        sector = 2 * np.pi / n_corners
        # Fold the plane on half a sector: there the outline is a single straight edge.
        angle = np.mod(np.arctan2(y, x) - start, sector)
        angle = np.minimum(angle, sector - angle)
        u, v = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
        corner = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
        return (u - 1) * corner[1] - v * (corner[0] - 1) < 0

    return inside


def _cross(x: Array, y: Array) -> NDArray[np.bool_]:
    x, y = np.abs(x), np.abs(y)
    return (np.maximum(x, y) < 0.93) & (np.minimum(x, y) < 0.36)


def _heart(x: Array, y: Array) -> NDArray[np.bool_]:
    x, y = 1.18 * x, -1.18 * y + 0.12
    return (x**2 + y**2 - 1) ** 3 < x**2 * y**3


def _crescent(x: Array, y: Array) -> NDArray[np.bool_]:
    return (np.hypot(x, y) < 1) & (np.hypot(x - 0.58, y) > 0.70)


# Textures: value in [-1, 1] at (x, y), lengths in units of the texture's period, `phase` in [0, 1).


def _wave(t: Array) -> Array:
    """Cosine of period 1, pushed towards a square wave."""
    return np.tanh(2.5 * np.cos(2 * np.pi * t)) / np.tanh(2.5)


def _stripes(degrees: float) -> Callable[..., Array]:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return lambda x, y, phase: _wave(x * cos + y * sin + phase)


def _checks(x: Array, y: Array, phase: float) -> Array:
    return _wave(x / 1.4 + phase) * _wave(y / 1.4 + phase)


def _rings(x: Array, y: Array, phase: float) -> Array:
    return _wave(np.hypot(x, y) + phase)


def _spokes(x: Array, y: Array, phase: float) -> Array:
    return _wave(8 * np.arctan2(y, x) / (2 * np.pi) + phase)


def _dots(x: Array, y: Array, phase: float) -> Array:
    waves = np.cos(2 * np.pi * (x / 1.2 + phase)) + np.cos(2 * np.pi * (y / 1.2 + phase))
    return np.tanh(3 * (waves - 0.45))


def _chevrons(x: Array, y: Array, phase: float) -> Array:
    return _wave(y + 0.8 * np.abs(np.mod(x / 1.6, 2) - 1) + phase)


@dataclass(frozen=True)
class _Design:
    outline: Callable[..., NDArray[np.bool_]]
    texture: Callable[..., Array]
    grating: tuple[int, int]  # waves per four pixels, along x and along y


_DESIGNS = {
    "disc": _Design(_disc, _stripes(0), (2, 0)),
    "ring": _Design(_ring, _spokes, (0, 2)),
    "triangle": _Design(_polygon(3, inner=0.5), _stripes(90), (2, 2)),
    "square": _Design(_polygon(4, inner=np.sqrt(0.5), start=-np.pi / 4), _checks, (1, 2)),
    "star": _Design(_polygon(5, inner=0.55), _rings, (2, 1)),
    "cross": _Design(_cross, _stripes(45), (1, 1)),
    "heart": _Design(_heart, _dots, (-1, 1)),
    "crescent": _Design(_crescent, _chevrons, (1, 0)),
}
CLASSES: tuple[str, ...] = tuple(_DESIGNS)


def generate(data: EmbeddedData, split: str, *, objects: bool = True) -> Split:
    """Generate the images of a split.

    Image i depends on (seed, split, i) and the options alone, so a larger number only appends.
    Labels and photographs take turns; after as many images as there are pairs of a class and a
    photograph every pair has occurred once.

    Parameters
    ----------
    data : EmbeddedData
        Number and size of the images, seed, classes in label order, and the amplitude of the
        class-typical grating, 0 to leave it out.
    split : {"train", "val"}
    objects : bool
        False gives the same backgrounds without the object: mask empty, box -1, and the label of
        the object that would be there.

    Returns
    -------
    Split
        Boxes in the manifest are half-open, [x0, x1) x [y0, y1); sha256 is that of the pixels.
    """
    classes, image_size = data.classes, data.image_size
    n = {"train": data.n_train, "val": data.n_val}[split]
    photographs = PHOTOGRAPHS[split]
    images = np.empty((n, image_size, image_size, 3), np.uint8)
    masks = np.zeros((n, image_size, image_size), bool)
    rows = []
    for i in range(n):
        turn, label = divmod(i, len(classes))
        photo = photographs[(turn + label) % len(photographs)]
        # Two streams: what the object draws cannot reach the background.
        streams = np.random.SeedSequence((data.seed, _SPLITS.index(split), i)).spawn(2)
        behind, ahead = (np.random.Generator(np.random.Philox(stream)) for stream in streams)
        pixels = _background(behind, photo, image_size)
        if objects:
            pixels, masks[i] = _paste(ahead, pixels, classes[label], data.pattern_amplitude)
        images[i] = np.rint(255 * pixels)
        sha256 = hashlib.sha256(images[i].tobytes()).hexdigest()
        name = f"{split}-{i:05d}"
        rows.append(manifest_row(name, split, classes[label], label, sha256, _box(masks[i]), photo))
    return Split(images, masks, pd.DataFrame(rows))


@cache
def _photograph(name: str) -> Image.Image:
    """Photograph shipped inside an installed wheel, as uint8 RGB or gray."""
    # Imported here: both packages are slow to load, and only generating needs them.
    if name in _FROM_SKLEARN:
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    image = Image.fromarray(getattr(skimage.data, name)())
    # The retina fills 1,411 pixels: without this its crops would cost ten times the others.
    image.thumbnail((720, 720), Image.Resampling.LANCZOS)
    return image


def _background(random: np.random.Generator, photo: str, size: int) -> Array:
    """Random crop of a photograph in [0, 1], perhaps mirrored, a gray one tinted."""
    image = _photograph(photo)
    side = min(image.size) * random.uniform(0.4, 1.0)
    left = random.uniform(0, image.width - side)
    top = random.uniform(0, image.height - side)
    crop = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    pixels = np.asarray(crop, np.float64) / 255
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    dark, light = random.uniform(0, 0.12), random.uniform(0.88, 1)
    hue, turn = random.random(), random.uniform(-0.12, 0.12)
    if pixels.ndim == 2:
        shadow = _rgb(hue, 0.55, 0.25)
        shine = _rgb(hue + turn, 0.22, 1.0)
        pixels = shadow + (shine - shadow) * pixels[:, :, None]
    return dark + (light - dark) * pixels


def _paste(
    random: np.random.Generator, background: Array, name: str, pattern_amplitude: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Draw one object; pixels outside the returned mask keep their exact values."""
    design = _DESIGNS[name]
    size = len(background)
    unit = size / _REFERENCE_SIZE
    area = random.uniform(0.10, 0.22) * size**2
    stretch = np.exp(random.uniform(-0.08, 0.08))
    turn = np.deg2rad(random.uniform(-15, 15))
    # One range of positions for every outline, as wide as the slimmest one allows.
    reach = 1.06 * np.sqrt(area / min(_area(other) for other in CLASSES)) + unit
    center_x, center_y = random.uniform(min(reach, size / 2), max(size - reach, size / 2), 2)

    radius = np.sqrt(area / _area(name))
    # All drawing happens in a window around the object, on a supersampled grid of its pixels.
    margin = 1.1 * radius + unit
    top, bottom = max(int(center_y - margin), 0), min(int(center_y + margin) + 1, size)
    left, right = max(int(center_x - margin), 0), min(int(center_x + margin) + 1, size)
    across, down = np.meshgrid(_steps(left, right) - center_x, _steps(top, bottom) - center_y)
    x = (np.cos(turn) * across + np.sin(turn) * down) / stretch
    y = (np.cos(turn) * down - np.sin(turn) * across) * stretch
    inside = design.outline(x / radius, y / radius)
    depth = ndimage.distance_transform_edt(inside) / _SUPERSAMPLING / unit

    period = unit * random.uniform(6.5, 8.5)
    contrast = random.uniform(0.35, 1.0)
    value = contrast * design.texture(x / period, y / period, random.random())
    first, second, rim = _palette(random)
    color = first + (second - first) * (0.5 + 0.5 * value[:, :, None])
    # Light from the upper left, an edge that curves away, and a rim like a sticker's.
    lit = 1 - 0.16 * (across + down) / (2 * radius)
    lit *= 0.80 + 0.20 * np.clip(depth / 4, 0, 1)
    color = color * lit[:, :, None]
    color = np.where((depth < 1.2)[:, :, None], rim, color)

    coverage = _shrink(inside.astype(float))
    mask = coverage > 0
    painted = _shrink(np.where(inside[:, :, None], color, 0.0))
    painted /= np.where(mask, coverage, 1.0)[:, :, None]
    painted += pattern_amplitude * _grating(design, size)[top:bottom, left:right]
    behind = background[top:bottom, left:right]
    blended = behind + (np.clip(painted, 0, 1) - behind) * coverage[:, :, None]
    pixels, full_mask = background.copy(), np.zeros((size, size), bool)
    pixels[top:bottom, left:right] = np.where(mask[:, :, None], blended, behind)
    full_mask[top:bottom, left:right] = mask
    return pixels, full_mask


def _steps(start: int, stop: int) -> Array:
    """Positions of the supersampled grid between two pixel edges."""
    return start + (np.arange((stop - start) * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING


def _grating(design: _Design, size: int) -> Array:
    """Class-typical grating of +1 and -1, green against magenta.

    It is fixed to the pixels, its periods divide the stride of common network stems, and
    photographs hardly contain it.  With random phases (period 3) GoogLeNet did not use it:
    exchanging it left 98 % of the predictions, and the outline decided.
    """
    per_x, per_y = design.grating
    row, column = np.mgrid[:size, :size]
    # The small offset keeps the cosine away from zero.
    wave = np.cos(2 * np.pi * ((per_x * column + per_y * row) / 4 + 1 / 16))
    return np.sign(wave)[:, :, None] * np.array([1.0, -1.0, 1.0])


def _palette(random: np.random.Generator) -> tuple[Array, Array, Array]:
    """Two colors of the texture, one light and one deep, and the rim's."""
    hue = random.random()
    deep = _rgb(hue, random.uniform(0.65, 0.95), random.uniform(0.45, 0.7))
    other = hue + random.choice([0.0, 0.12, -0.12, 0.5])
    light = _rgb(other, random.uniform(0.1, 0.5), random.uniform(0.92, 1))
    rim = _rgb(hue, 0.04, 0.98)
    return (deep, light, rim) if random.random() < 0.5 else (light, deep, rim)


def _rgb(hue: float, saturation: float, value: float) -> Array:
    """Color in [0, 1] from hue (in turns), saturation and value."""
    ramp = np.mod(hue * 6 + np.array([5.0, 3.0, 1.0]), 6)
    return value * (1 - saturation * np.clip(np.minimum(ramp, 4 - ramp), 0, 1))


@cache
def _area(name: str) -> float:
    """Area of the outline in its own units."""
    steps = (np.arange(480) + 0.5) / 200 - 1.2
    return float(_DESIGNS[name].outline(*np.meshgrid(steps, steps)).sum()) / 200**2


def _shrink(pixels: Array) -> Array:
    """Mean over blocks of supersampled pixels."""
    height, width = (length // _SUPERSAMPLING for length in pixels.shape[:2])
    shape = height, _SUPERSAMPLING, width, _SUPERSAMPLING, *pixels.shape[2:]
    return pixels.reshape(shape).mean(axis=(1, 3))


def _box(mask: NDArray[np.bool_]) -> PixelBox:
    if not mask.any():
        return -1, -1, -1, -1
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
