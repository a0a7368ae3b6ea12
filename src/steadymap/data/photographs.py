"""One photograph's file: whether it is an image, and its upright RGB pixels whatever its mode."""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Formats that Pillow reads by itself: others call programs, or hold no photographs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "pgm", "png", "pnm", "ppm"),
        *("tif", "tiff", "webp"),
    )
)
_OTHER_FORMATS = frozenset(
    f".{name}"
    for name in (
        *("arw", "avif", "cr2", "dng", "eps", "heic", "heif", "ico", "jp2", "jxl", "nef"),
        *("psd", "raw", "svg", "tga"),
    )
)
# Smaller images show nothing once enlarged, and longer strips nothing once squeezed.
_MIN_SIDE = 8
_MAX_ASPECT = 20

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unusable(Exception):
    """An image that can't be taken; its text says why."""


class NoImage(Exception):
    """A file that is neither an image nor meant to be one; its text says what it is."""


@dataclass(frozen=True)
class Photograph:
    """A decoded image.

    Attributes
    ----------
    image : Image
        RGB, upright.
    stored : tuple of int
        Width and height in the file, before its EXIF orientation was applied.
    orientation : int
        That orientation, 1 for none.
    notes : tuple of str
        What was changed, lost or guessed.
    """

    image: Image.Image
    stored: tuple[int, int]
    orientation: int
    notes: tuple[str, ...]


@contextmanager
def pillow_unlimited() -> Iterator[None]:
    """Switch off Pillow's size limit and warnings: sizes and problems are handled here."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check(path: Path, *, max_megapixels: float) -> None:
    """Check by a file's header that it is an image of a size that can be used.

    Raises
    ------
    Unusable
        Where it is an image, or by its suffix is meant to be one, and can't be used.
    NoImage
        Where it is none.
    """
    suffix = path.suffix.lower()
    expected = suffix in SUFFIXES or suffix in _OTHER_FORMATS
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NoImage("no regular file")
        problem = "" if status.st_size else "the file is empty"
        size = (0, 0) if problem else _header(path)
    except NoImage:
        raise
    except UnidentifiedImageError:
        problem = "unreadable as an image"
        if suffix in _OTHER_FORMATS:
            problem = f"{suffix} is not read here; convert it to JPEG or PNG"
    except OSError as error:
        raise Unusable(f"can't be read: {error.strerror or error}") from None
    except Exception as error:  # Pillow's readers raise anything on a hostile file
        problem = _broken(error)
    if problem:
        raise Unusable(problem) if expected else NoImage("no image")
    _check_size(size, max_megapixels)


def check_bytes(content: bytes, *, max_megapixels: float) -> None:
    """Check by its header that a file's content is an image of a size that can be used.

    Raises
    ------
    Unusable
        Where it is none, or of a size that can't be used.
    """
    if not content:
        raise Unusable("the file is empty")
    try:
        size = _header(io.BytesIO(content))
    except UnidentifiedImageError:
        raise Unusable("unreadable as an image") from None
    except Exception as error:  # Pillow's readers raise anything on a hostile file
        raise Unusable(_broken(error)) from None
    _check_size(size, max_megapixels)


def _header(source: Path | io.BytesIO) -> tuple[int, int]:
    with Image.open(source, formats=_FORMATS) as image:
        return image.size


def _check_size(sides: tuple[int, int], max_megapixels: float) -> None:
    width, height = sides
    short, long = sorted(sides)
    size = f"{width} x {height} px"
    if short < _MIN_SIDE:
        raise Unusable(f"{size}: a side is below {_MIN_SIDE} px")
    if long > _MAX_ASPECT * short:
        raise Unusable(f"{size}: one side is more than {_MAX_ASPECT} times the other")
    if width * height > max_megapixels * 1e6:
        raise Unusable(f"{size}: more than data.max_megapixels {max_megapixels:g}")


def decode(source: Path | io.BytesIO, *, upright: bool = True) -> Photograph:
    """Read a file that passed `check`, or its bytes.

    Parameters
    ----------
    source : Path or BytesIO
    upright : bool
        Turn the image as its EXIF orientation says; else it stays as it is stored.

    Raises
    ------
    Unusable
        Where it is broken or of a mode whose meaning is unknown.
    """
    notes: list[str] = []
    try:
        with Image.open(source, formats=_FORMATS) as image:
            # Phones put a second picture into a JPEG; it is ignored.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                notes.append("the first of several frames")
            deep = any("16" in str(tile[3]) for tile in image.tile)
            image.load()
            orientation = _orientation(image, notes) if upright else 1
            stored = image.size
            pixels = _rgb(image, deep, notes)
        if orientation in _TURNS:
            pixels = pixels.transpose(_TURNS[orientation])
            notes.append(f"turned upright (EXIF orientation {orientation})")
    except Unusable:
        raise
    except Exception as error:  # Pillow's readers raise anything on a hostile file
        raise Unusable(_broken(error)) from None
    return Photograph(pixels, stored, orientation, tuple(notes))


def _broken(error: Exception) -> str:
    return f"broken: {error or type(error).__name__}"


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF orientation, read after loading: Pillow turns a TIFF by itself then."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # hostile EXIF raises anything too, and spoils no pixel
        notes.append("unreadable EXIF, taken as upright")
        return 1


def _rgb(image: Image.Image, deep: bool, notes: list[str]) -> Image.Image:
    """RGB of any mode; what is lost or guessed is noted."""
    whole = image.mode == "I" and image.format in ("PNG", "PPM")
    if image.mode.startswith("I;16") or whole:
        notes.append("16-bit gray to 8 bits")
        values = np.asarray(image.convert("I"), np.float64)
        image = Image.fromarray(np.rint(np.clip(values, 0, 65535) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise Unusable("32-bit values of unknown range; convert it to 8 bits")
    elif deep:
        notes.append("16 bits per channel to 8")
    if image.mode in ("1", "L", "LA"):
        notes.append("gray to RGB")
    elif image.mode in ("P", "PA"):
        notes.append("palette to RGB")
    elif image.mode not in ("RGB", "RGBA"):
        notes.append(f"{image.mode} to RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            notes.append("opaque alpha dropped")
        else:
            notes.append("transparency laid on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
