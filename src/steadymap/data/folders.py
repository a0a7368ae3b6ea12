"""Image folders: a folder per class, photographs of any size and format, every bad file named.

A file is an image if its content says so, whatever its name.
It is converted where that keeps the meaning; else it is left out, or the whole is refused.
What happened to each file is written to `skipped.csv` beside the images.
Color profiles are not applied.
"""

import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steadymap.data.boxes import Boxes, Matches, enclosing, read_boxes
from steadymap.data.dataset import Dataset, channel_statistics, describe, manifest_row
from steadymap.data.photographs import (
    SUFFIXES,
    NoImage,
    Unusable,
    check,
    decode,
    pillow_unlimited,
)
from steadymap.data.preprocessing import Geometry, PixelBox, geometry
from steadymap.params.schema import FolderData, ImagenetData
from steadymap.progress import reporting
from steadymap.store.atomic import file_sha256

SPLITS = ("train", "val")
ACTIONS = ("skipped", "converted", "unboxed", "noted", "ignored")

# How many files an error names.
_NAMED_AT_ONCE = 20
# Bytes of pixels beyond which they are collected on disk.
_IN_MEMORY = 2**29


def summary(description: Mapping[str, Any]) -> str:
    """How many files were found, and what became of them, by a data set's description."""
    counts = description["files"]
    parts = [f"{counts['images']} images found", f"{counts['taken']} taken"]
    parts += [f"{counts[key]} {key.replace('_', ' ')}" for key in ("not_drawn", *ACTIONS)]
    return ", ".join(parts)


@dataclass(frozen=True)
class Listing:
    """Numbers known from the file names of a data folder, before any file is opened.

    Attributes
    ----------
    n_train, n_val, n_classes : int
        About how many there will be.
    digest : str
        Hash of paths and sizes; changes when files come or go.
    """

    n_train: int
    n_val: int
    n_classes: int
    digest: str


def gather(data: FolderData) -> Dataset:
    """Read a folder of photographs.

    Classes are sorted by name. In the manifest they take turns, so that every beginning of a split
    is balanced.

    Parameters
    ----------
    data : FolderData
        Its folder holds `train/` and `val/` with a folder per class in each, `val/` alone, or the
        class folders themselves. Those are split by content: an image keeps its side when others
        come or go, except that a class of two or more has at least one on each.

    Raises
    ------
    ValueError
        Where the folder is none, fewer than two classes or no validation images are left, or
        `on_bad_image` is `refuse` and images would be left out.
    """
    root, journal = folder(data), Journal()
    boxes = read_boxes(Path(data.boxes).expanduser()) if data.boxes else {}
    files, class_names = _listed(root, journal)
    with pillow_unlimited():
        sources = _survey(files, data, journal)
        journal.refuse(data)
        matches = Matches(boxes, [source.name for source in sources])
        for name, reason in matches.unmatched():
            journal.add(name, reason, "ignored")
        sources = _split(_without_copies(sources, journal), data)
        drawing = _Drawing(data, matches, journal)
        images, masks = drawing.draw(sources)
    rows = drawing.rows
    leading = "train" if len(images["train"]) else "val"
    classes = sorted({row["class_name"] for row in rows if row["split"] == leading})
    validated = {row["class_name"] for row in rows if row["split"] == "val"}
    for name in sorted(class_names - set(classes)):
        journal.add_class(name, "no usable image in this class", bad=True)
    if data.n_val is None:
        for name in sorted(set(classes) - validated):
            journal.add_class(name, "no validation image in this class")
    journal.refuse(data)
    problem = (
        ""
        if validated
        else ("no validation images; data.val_fraction 1 takes all images for validation")
    )
    if len(classes) < 2:
        problem = f"{len(classes)} classes with usable images; two are needed"
    if problem:
        raise ValueError(f'data.path: "{data.path}" has {problem}{journal.named("skipped")}')
    manifest = pd.DataFrame(rows)
    manifest["label"] = manifest["class_name"].map({name: i for i, name in enumerate(classes)})
    return Dataset(
        classes=tuple(classes),
        images=images,
        masks=masks,
        manifest=manifest,
        description={
            # Without training images, as with finished models, statistics are those of val.
            **describe(data, manifest, *channel_statistics(images[leading])),
            "files": journal.counts(len(rows)),
            "listing": listing(data).digest,
        },
        skipped=journal.table(),
    )


def listing(data: FolderData) -> Listing:
    """List the folder of `data` without opening a file."""
    files, classes = _listed(folder(data), Journal())
    numbers = Counter(file.split for file in files if file.path.suffix.lower() in SUFFIXES)
    lines = sorted(f"{_printable(file.name)} {_size(file.path)}" for file in files)
    loose = round(numbers[None] * data.val_fraction)
    n_train, n_val = numbers["train"] + numbers[None] - loose, numbers["val"] + loose
    return Listing(
        n_train=min(n_train, data.n_train or n_train),
        n_val=min(n_val, data.n_val or n_val),
        n_classes=len(classes),
        digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )


def folder(
    data: FolderData | ImagenetData, remedy: str = "name one with a folder per class"
) -> Path:
    """Folder that params name.

    Raises
    ------
    ValueError
        Where it is none: with the remedy.
    """
    shown = "null" if data.path is None else f'"{data.path}"'
    if not data.path or not (root := Path(data.path).expanduser()).is_dir():
        raise ValueError(f"data.path: {shown} is no folder; {remedy}")
    return root


class Journal:
    """Log of the files that were skipped, converted or ignored.

    Attributes
    ----------
    rows : list of tuple
        File, reason, action of `ACTIONS`.
    n_images, n_left_out, n_bad : int
        Images found, those left out, and those of them that params may refuse.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.n_images = 0
        self.n_left_out = 0
        self.n_bad = 0

    def add(self, file: str, reason: str, action: str) -> None:
        """Add a line.

        Parameters
        ----------
        file : str
            File or folder, below the data folder.
        reason : str
            Why it was not taken as it is.
        action : str
            One of `ACTIONS`.
        """
        self.rows.append((_printable(file), _printable(" ".join(reason.split())), action))

    def leave_out(self, file: str, reason: str, *, bad: bool = True) -> None:
        """Add a line on an image that is skipped.

        Parameters
        ----------
        file, reason
            As in `add`.
        bad : bool
            Whether params may refuse that.
        """
        self.add(file, reason, "skipped")
        self.n_left_out += 1
        self.n_bad += bad

    def add_class(self, name: str, reason: str, *, bad: bool = False) -> None:
        """Add a line on a class folder.

        Parameters
        ----------
        name, reason
            The class, and why it is named here.
        bad : bool
            Whether it is skipped, which params may refuse; else it is noted.
        """
        self.add(f"{name}/", reason, "skipped" if bad else "noted")
        self.n_bad += bad

    def refuse(self, data: FolderData | ImagenetData) -> None:
        """Raise where params refuse what was left out."""
        if data.on_bad_image == "refuse" and self.n_bad:
            raise ValueError(
                "data.on_bad_image: refuse, but not everything can be taken; repair or remove "
                f"these, or write skip{self.named('skipped')}"
            )

    def usable(
        self,
        boxes: Boxes | None,
        name: str,
        class_name: str,
        geometry: Geometry,
        *,
        stored: tuple[int, int],
        orientation: int = 1,
    ) -> list[PixelBox]:
        """Boxes of an image in its pixels, none where they can't be used, which is written down.

        Parameters
        ----------
        boxes : Boxes, optional
            What the box file says of the image.
        name : str
            Of the image.
        class_name, geometry, stored, orientation
            As in `Boxes.placed`.
        """
        if boxes is None:
            return []
        try:
            return boxes.placed(class_name, geometry, stored=stored, orientation=orientation)
        except ValueError as error:
            self.add(name, f"boxes not used: {error}", "unboxed")
            return []

    def named(self, action: str) -> str:
        """Lines for an error."""
        rows = [f"{file}: {reason}" for file, reason, done in self.rows if done == action]
        more = len(rows) - _NAMED_AT_ONCE
        rows = rows[:_NAMED_AT_ONCE] + ([f"and {more} more"] if more > 0 else [])
        return "".join(f"\n  {row}" for row in rows)

    def table(self) -> pd.DataFrame:
        """Columns file, reason, action."""
        return pd.DataFrame(sorted(self.rows), columns=["file", "reason", "action"])

    def counts(self, taken: int) -> dict[str, int]:
        """Images found, taken, not drawn; files per action."""
        done = Counter(action for _, _, action in self.rows)
        not_drawn = self.n_images - taken - self.n_left_out
        images = {"images": self.n_images, "taken": taken, "not_drawn": not_drawn}
        # Folders are skipped too, and are no images.
        actions = {action: done[action] for action in ACTIONS} | {"skipped": self.n_left_out}
        return images | actions


@dataclass(frozen=True)
class _Source:
    """A file below a class folder."""

    path: Path
    name: str  # path below the data folder, the image's id
    class_name: str
    split: str | None
    sha256: str = ""  # of the file, once it is known to be a usable image
    key: str = ""  # order within its class, and its side of the split


def _printable(text: str) -> str:
    """Text that any file and terminal takes: odd characters escaped."""
    return "".join(
        char.encode("unicode_escape").decode() if _is_odd(char) else char for char in text
    )


def _is_odd(char: str) -> bool:
    # Control characters, and bytes of a file name that are not UTF-8.
    return unicodedata.category(char) in ("Cc", "Cs")


def _listed(root: Path, journal: Journal) -> tuple[list[_Source], set[str]]:
    """Every file below the class folders, and the classes; what lies elsewhere is journaled."""
    sides = _sides(root)
    for path in _visible(root, root, journal) if sides else []:
        if path.name not in sides:
            journal.add(_name(path, root), "beside train/ and val/", "ignored")
    places: list[tuple[str | None, Path]] = [(split, root / split) for split in sides]
    folders: list[tuple[str | None, Path]] = []
    for split, side in places or [(None, root)]:
        for path in _visible(side, root, journal):
            if os.path.isdir(path):
                folders.append((split, path))
            elif path.suffix.lower() in SUFFIXES:
                journal.n_images += 1
                journal.leave_out(_name(path, root), "in no class folder")
            else:
                journal.add(_name(path, root), "no image", "ignored")
    # A link to any of these would bring in what belongs elsewhere.
    above = [root.resolve(), *root.resolve().parents, *(side for _, side in places)]
    seen = {_identity(path) for path in above}
    classes = [
        (split, path) for split, path in folders if _is_new_folder(path, root, seen, journal)
    ]
    files = [
        _Source(path, _name(path, root), _class_name(side), split)
        for split, side in classes
        for path in _below(side, root, seen, journal)
    ]
    return files, {_class_name(side) for _, side in folders}


def _class_name(class_folder: Path) -> str:
    # The same letter may be written in two ways, as systems do.
    return unicodedata.normalize("NFC", class_folder.name)


def _sides(root: Path) -> list[str]:
    """Those of train and val that hold class folders, where the tree is split so."""
    sides, loose = [], False
    for split in SPLITS:
        inside = list((root / split).iterdir()) if os.path.isdir(root / split) else []
        inside = [path for path in inside if not path.name.startswith(".")]
        if any(os.path.isdir(path) for path in inside):
            sides.append(split)
            loose |= any(path.suffix.lower() in SUFFIXES for path in inside)
    # A single one with images of its own is a class that happens to be called train or val.
    if len(sides) == 1 and loose:
        return []
    other = "val" if sides == ["train"] else "train"
    if sides == ["train"] or (sides == ["val"] and (root / other).exists()):
        raise ValueError(
            f"data.path: its {sides[0]}/ holds a folder per class, but there is no such {other}/; "
            f"add it, or name {sides[0]}/ itself to have it split"
        )
    return sides


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _visible(parent: Path, root: Path, journal: Journal) -> list[Path]:
    """What a folder holds, hidden files and folders excepted."""
    try:
        paths = sorted(parent.iterdir())
    except OSError as error:
        journal.add(_name(parent, root), f"can't be listed: {error.strerror}", "skipped")
        journal.n_bad += 1
        return []
    for path in paths:
        if path.name.startswith("."):
            journal.add(_name(path, root), "hidden", "ignored")
    return [path for path in paths if not path.name.startswith(".")]


def _below(
    class_folder: Path, root: Path, seen: set[tuple[int, int]], journal: Journal
) -> Iterator[Path]:
    """Files at any depth; links are followed, but no folder is read twice."""
    waiting = [class_folder]
    while waiting:
        for path in _visible(waiting.pop(), root, journal):
            if not os.path.isdir(path):
                yield path
            elif _is_new_folder(path, root, seen, journal):
                waiting.append(path)


def _is_new_folder(path: Path, root: Path, seen: set[tuple[int, int]], journal: Journal) -> bool:
    """Whether a folder was not read before, under another name; it counts as read from now on."""
    if is_new := (identity := _identity(path)) not in seen:
        seen.add(identity)
    else:
        journal.add(_name(path, root), "a link to a folder read before", "ignored")
    return is_new


def _survey(files: Sequence[_Source], data: FolderData, journal: Journal) -> list[_Source]:
    """Those that open as images of a usable size."""
    sources = []
    for item in files:
        try:
            check(item.path, max_megapixels=data.max_megapixels)
            if any(map(_is_odd, item.name)):
                raise Unusable("its name holds control characters or is not UTF-8; rename it")
            content = file_sha256(item.path)
        except NoImage as error:
            journal.add(item.name, str(error), "ignored")
            continue
        except Unusable as error:
            journal.leave_out(item.name, str(error))
        except OSError as error:
            journal.leave_out(item.name, f"can't be read: {error.strerror}")
        else:
            key = hashlib.sha256(f"{data.seed}\n{content}".encode()).hexdigest()
            sources.append(replace(item, sha256=content, key=key))
        journal.n_images += 1
    return sources


def _without_copies(sources: Sequence[_Source], journal: Journal) -> list[_Source]:
    """Drop copies: one of a class's copies stays, in val if any is; of several classes' none."""
    groups: dict[str, list[_Source]] = defaultdict(list)
    for source in sources:
        groups[source.sha256].append(source)
    dropped: set[str] = set()
    for copies in groups.values():
        copies.sort(key=lambda source: (source.split == "train", source.name))
        first, *others = copies
        if len({source.class_name for source in copies}) > 1:
            other = next(source for source in others if source.class_name != first.class_name)
            for source in copies:
                twin = other if source.class_name == first.class_name else first
                journal.leave_out(source.name, f"same content as {twin.name} of another class")
            dropped.update(source.name for source in copies)
        else:
            for source in others:
                journal.leave_out(source.name, f"same content as {first.name}", bad=False)
            dropped.update(source.name for source in others)
    return [source for source in sources if source.name not in dropped]


def _split(sources: Sequence[_Source], data: FolderData) -> list[_Source]:
    """Give a side to those that have none."""
    split = [source for source in sources if source.split is not None]
    classes: dict[str, list[_Source]] = defaultdict(list)
    for source in sources:
        if source.split is None:
            classes[source.class_name].append(source)
    for members in classes.values():
        members.sort(key=lambda source: source.key)
        n_val = sum(int(source.key[:16], 16) / 16**16 < data.val_fraction for source in members)
        if data.val_fraction < 1:
            n_val = min(max(n_val, 1), len(members) - 1)
        split += [replace(source, split="val") for source in members[:n_val]]
        split += [replace(source, split="train") for source in members[n_val:]]
    return split


class _Drawing:
    """Takes images into arrays until params have what they ask for.

    Attributes
    ----------
    rows : list of dict
        Rows of the manifest so far, labels not yet known.
    """

    def __init__(self, data: FolderData, matches: Matches, journal: Journal):
        self.data, self.matches, self.journal = data, matches, journal
        self.rows: list[dict[str, Any]] = []
        self._taken: dict[str, _Source] = {}

    def draw(
        self, sources: Sequence[_Source]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Images and masks per split; classes take turns, each in the order of its keys."""
        images: dict[str, np.ndarray] = {}
        masks: dict[str, np.ndarray] = {}
        for split, limit in zip(SPLITS, (self.data.n_train, self.data.n_val), strict=True):
            queues: dict[str, deque[_Source]] = {}
            for source in sorted(sources, key=lambda source: (source.class_name, source.key)):
                if source.split == split:
                    queues.setdefault(source.class_name, deque()).append(source)
            if split == "train" and limit is not None and limit < len(queues):
                raise ValueError(
                    f"data.n_train: {limit} is fewer than the {len(queues)} classes; "
                    "ask for at least one image of each"
                )
            if split == "val" and len(images["train"]):
                self._drop_untrained(queues)
            size = self.data.image_size
            most = sum(map(len, queues.values()))
            most = min(most, most if limit is None else limit)
            pixels = _scratch((most, size, size, 3), np.uint8)
            boxed = split == "val" and self.data.boxes is not None
            union = _scratch((most, size, size), np.bool_) if boxed else None
            n = self._fill(queues, pixels, union)
            images[split] = pixels[:n]
            if union is not None and union[:n].any():
                masks[split] = union[:n]
        return images, masks

    def _drop_untrained(self, queues: dict[str, deque[_Source]]) -> None:
        trained = {row["class_name"] for row in self.rows}
        for name in [name for name in queues if name not in trained]:
            for source in queues.pop(name):
                self.journal.leave_out(source.name, "no training image in its class")

    def _fill(
        self, queues: dict[str, deque[_Source]], pixels: np.ndarray, union: np.ndarray | None
    ) -> int:
        n = 0
        with reporting(len(pixels), "reading images", "images", transient=True) as advance:
            while queues and n < len(pixels):
                for name in list(queues):
                    taken = False
                    while queues[name] and not taken and n < len(pixels):
                        mask = None if union is None else union[n]
                        taken = self._take(queues[name].popleft(), pixels[n], mask)
                        n += taken
                        advance(taken)
                    if not queues[name]:
                        del queues[name]
        return n

    def _take(self, source: _Source, pixels: np.ndarray, mask: np.ndarray | None) -> bool:
        """Read one image into `pixels` and its boxes into `mask`; False where it is left out."""
        try:
            photograph = decode(source.path)
        except Unusable as error:
            self.journal.leave_out(source.name, str(error))
            return False
        width, height = photograph.image.size
        placed = geometry(self.data.preprocessing, self.data.image_size, width=width, height=height)
        pixels[:] = placed.pixels(photograph.image)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        twin = self._taken.setdefault(digest, source)
        if twin is not source:
            same = twin.class_name == source.class_name
            of = "" if same else " of another class"
            self.journal.leave_out(source.name, f"same pixels as {twin.name}{of}", bad=not same)
            return False
        if photograph.notes:
            self.journal.add(source.name, "; ".join(photograph.notes), "converted")
        boxes = self.journal.usable(
            self.matches.of(source.name),
            source.name,
            source.class_name,
            placed,
            stored=photograph.stored,
            orientation=photograph.orientation,
        )
        if mask is not None:
            for x0, y0, x1, y1 in boxes:
                mask[y0:y1, x0:x1] = True
        # The split is known by now, the label only once all classes are.
        split, name = str(source.split), source.class_name
        self.rows.append(manifest_row(source.name, split, name, -1, digest, enclosing(boxes)))
        return True


def _scratch(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Zeros to be filled, on disk where they are many; the file goes when they do."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY:
        return np.zeros(shape, dtype)
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free
    if size > free:
        raise OSError(
            f"{temporary}: {size / 1e9:.1f} GB of images do not fit into {free / 1e9:.1f} GB; "
            "set TMPDIR to a larger place, or data.n_train and data.n_val to fewer"
        )
    with tempfile.TemporaryFile(dir=temporary) as file:
        return np.memmap(file, dtype, "w+", shape=shape)
