"""Boxes of objects from a CSV or from Pascal VOC XML, matched to images by file name."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from xml.etree import ElementTree

from steadymap.data.archives import archived_files
from steadymap.data.preprocessing import Box, Geometry, PixelBox

COLUMNS = ("file", "x0", "y0", "x1", "y1")
# Largest size, in bytes, of a box file and of all files of an archive.
_LARGEST = 64 * 2**20
_LARGEST_ARCHIVE = 2**30
_ARCHIVES = (".tar", ".tar.gz", ".tgz")

# Corner (x, y) of a stored photograph (width, height) once its EXIF orientation is applied: only
# those that exchange the sides, since only there a box file's size tells which one it means.
_UPRIGHT = {
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}


@dataclass
class Boxes:
    """Boxes of one image.

    Attributes
    ----------
    boxes : list of tuple
        Half-open x0, y0, x1, y1 in pixels of the photograph.
    names : list of str
        Name of each box's object, empty where none is given.
    size : tuple of int, optional
        Width and height that the boxes refer to, where the file says so.
    problem : str
        Why the boxes can't be used, if they can't.
    """

    boxes: list[Box] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    problem: str = ""

    def of_class(self, class_name: str) -> list[Box]:
        """Boxes of the objects named like the class, or all where none is."""
        named = [
            box for box, name in zip(self.boxes, self.names, strict=True) if name == class_name
        ]
        return named or self.boxes

    def upright(
        self, boxes: Iterable[Box], *, stored: tuple[int, int], orientation: int
    ) -> list[Box]:
        """Boxes in pixels of the photograph as it is seen.

        Parameters
        ----------
        boxes : iterable of tuple
        stored : tuple of int
            Width and height before the EXIF orientation is applied.
        orientation : int
            EXIF orientation, 1 for none.

        Raises
        ------
        ValueError
            Where the size in the box file is neither the stored nor the upright one.
        """
        turned = orientation in _UPRIGHT
        seen = stored[::-1] if turned else stored
        if self.size is None or self.size == seen:
            return list(boxes)
        if not turned or self.size != stored:
            raise ValueError(
                f"they are for {self.size[0]} x {self.size[1]} px, "
                f"the image has {seen[0]} x {seen[1]}"
            )
        turn = _UPRIGHT[orientation]
        upright = []
        for x0, y0, x1, y1 in boxes:
            (a, b), (c, d) = turn(x0, y0, *stored), turn(x1, y1, *stored)
            upright.append((min(a, c), min(b, d), max(a, c), max(b, d)))
        return upright

    def placed(
        self,
        class_name: str,
        geometry: Geometry,
        *,
        stored: tuple[int, int],
        orientation: int = 1,
    ) -> list[PixelBox]:
        """Boxes of a class's objects in pixels of the image that is made of the photograph.

        Parameters
        ----------
        class_name : str
            Class of the image, as in `of_class`.
        geometry : Geometry
            From the upright photograph to the image.
        stored, orientation
            As in `upright`.

        Raises
        ------
        ValueError
            Where the boxes can't be used.
        """
        if self.problem:
            raise ValueError(self.problem)
        boxes = self.upright(self.of_class(class_name), stored=stored, orientation=orientation)
        placed = [box for box in map(geometry.box, boxes) if box is not None]
        if boxes and not placed:
            raise ValueError("they lie outside of what is kept of the image")
        return placed


def enclosing(boxes: Sequence[PixelBox]) -> PixelBox:
    """Box around all boxes; -1, -1, -1, -1 around none."""
    if not boxes:
        return -1, -1, -1, -1
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def read_boxes(path: Path) -> dict[str, Boxes]:
    """Boxes per image, by the name that the file gives it.

    Parameters
    ----------
    path : Path
        A CSV with the columns of `COLUMNS`, a row per box, half-open pixels of the upright
        photograph; or a folder or tar archive of Pascal VOC XML, whose 1-based inclusive corners
        become half-open ones and whose path without suffix names the image. An archive is read
        where it lies.

    Raises
    ------
    ValueError
        Where the path is none of these, the CSV lacks a column, or the archive holds links,
        devices or more than boxes need.
    """
    if path.is_dir():
        return {
            file.relative_to(path).with_suffix("").as_posix(): _voc(file.name, file)
            for file in sorted(path.rglob("*"))
            if _is_voc(file) and file.is_file()
        }
    if not path.is_file():
        raise ValueError(
            f'data.boxes: "{path}" is neither a CSV file nor a folder or archive of XML files; '
            "name one, or null for none"
        )
    if not path.name.endswith(_ARCHIVES):
        return _table(path)
    files = archived_files(
        path, _is_voc, key="data.boxes", kind="archive", most_bytes=_LARGEST_ARCHIVE
    )
    return {
        str(PurePosixPath(member.name).with_suffix("")): _voc(
            PurePosixPath(member.name).name, content
        )
        for member, content in files
    }


def _is_voc(path: PurePath) -> bool:
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def _table(path: Path) -> dict[str, Boxes]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"data.boxes: {path.name} has no column {missing[0]}; write a header with "
                f"{', '.join(COLUMNS)}"
            )
        table: dict[str, Boxes] = {}
        for row in reader:
            name = (row["file"] or "").replace("\\", "/").removeprefix("./")
            boxes = table.setdefault(name, Boxes())
            try:
                box = _valid(*(_number(key, row[key]) for key in COLUMNS[1:]))
            except ValueError as error:
                boxes.problem = f"line {reader.line_num} of {path.name}: {error}"
                continue
            boxes.boxes.append(box)
            boxes.names.append("")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data.boxes: {path.name} is no readable CSV ({error})") from None
    return table


def _number(name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, no number")
    return value


def _valid(x0: float, y0: float, x1: float, y1: float) -> Box:
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty")
    return x0, y0, x1, y1


def _voc(name: str, source: bytes | Path) -> Boxes:
    """Boxes of one XML file, of its content or where it lies."""
    annotation = Boxes()
    try:
        size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size_bytes > _LARGEST:
            raise ValueError("too large for a box file")
        content = source if isinstance(source, bytes) else source.read_bytes()
        # Entities can be made to fill the memory, and no box file needs any.
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\0" in content:
            raise ValueError("it declares a document type or is not UTF-8")
        root = ElementTree.fromstring(content)
        size = root.find("size")
        if size is not None:
            width, height = (int(float(size.findtext(key) or 0)) for key in ("width", "height"))
            # Some tools leave zeros there.
            annotation.size = (width, height) if width > 0 and height > 0 else None
        for named, corners in _objects(root):
            x0, y0, x1, y1 = corners
            annotation.boxes.append(_valid(x0 - 1, y0 - 1, x1, y1))
            annotation.names.append(named)
    except (ElementTree.ParseError, ValueError, OverflowError, OSError) as error:
        annotation.problem = f"{name}: {error}"
    return annotation


def _objects(root: ElementTree.Element) -> Iterator[tuple[str, list[float]]]:
    for item in root.iter("object"):
        box = item.find("bndbox")
        if box is None:
            raise ValueError("an object has no bndbox")
        corners = [_number(key, box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        yield (item.findtext("name") or "").strip(), corners


class Matches:
    """Finds the boxes of an image by its path, or by its name where that is unique.

    Parameters
    ----------
    boxes : dict of str to Boxes
        From `read_boxes`.
    files : iterable of str
        Paths of all images below the data folder.
    """

    def __init__(self, boxes: dict[str, Boxes], files: Iterable[str]):
        self._boxes, self._files = boxes, set(files)
        self._owners: dict[str, list[str]] = {}
        for file in sorted(self._files):
            for alias in _aliases(file):
                self._owners.setdefault(alias, []).append(file)

    def _meant(self, name: str) -> list[str]:
        return [name] if name in self._files else self._owners.get(name, [])

    def of(self, file: str) -> Boxes | None:
        """Boxes of an image; None where there are none, or their name fits other images too."""
        for alias in _aliases(file):
            if alias in self._boxes and self._meant(alias) == [file]:
                return self._boxes[alias]
        return None

    def unmatched(self) -> Iterator[tuple[str, str]]:
        """Names in the box file that fit no image or several, with the reason."""
        for name in self._boxes:
            meant = self._meant(name)
            if not meant:
                yield name, "boxes for an image that is not there"
            elif len(meant) > 1:
                yield name, f"boxes for {meant[0]} or {meant[1]}: give the path"


def _aliases(file: str) -> list[str]:
    """Names by which a box file may mean an image: most of its path first, then less of it."""
    path = PurePosixPath(file)
    tails = [PurePosixPath(*path.parts[start:]) for start in range(len(path.parts))]
    aliases = []
    for tail in tails:
        aliases += [tail.as_posix(), tail.with_suffix("").as_posix()]
    return list(dict.fromkeys(aliases))
