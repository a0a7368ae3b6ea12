"""The only file formats: tables, map archives, the task cache; every write is atomic."""

import errno
import hashlib
import itertools
import json
import logging
import math
import os
import re
import secrets
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

# Columns that look like numbers in some studies and like words in others.
_TEXT = (
    "value",
    "image_id",
    "task_id",
    "sha256",
    "weights_sha256",
    "draws",
    "hyperparameter",
    "photo",
    "id",
    "class_name",
    "file",
    "reason",
    "claim",
    "direction",
    "size",
    "unit",
    "paper_model",
    "passes",
    "order",
    "method",
    "other",
)


_CSV: dict[str, Any] = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}


class StorageError(OSError):
    """A file that can't be written; names it, the reason and the remedy."""


_FULL = "free some space (`make clean-cache` says what the cache takes), then run it again"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), then run it again",
    errno.EACCES: "make its folder writable, then run it again",
    errno.EPERM: "make its folder writable, then run it again",
    errno.EROFS: "mount its folder for writing, then run it again",
}


_MORE_FILES = "raise the limit on open files (`ulimit -n`)"
_READING = {
    errno.EACCES: "make it readable",
    errno.EPERM: "make it readable",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
}
# What libraries say of a write that was cut short, and nothing of the reason.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|inline_container(?!.*Reader)", re.DOTALL)
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def _refusal(error: Exception) -> tuple[str, str] | None:
    """Reason and remedy of an error that a place for files stands behind; None of another."""
    if isinstance(error, OSError) and error.errno is not None:
        number, reason = error.errno, error.strerror or str(error)
    elif found := _SYSTEM_ERROR.search(str(error)):
        number = int(found[1])
        reason = os.strerror(number)
    elif isinstance(error, OSError | RuntimeError) and _CUT_SHORT.search(str(error)):
        number, reason = errno.ENOSPC, f"it could not be written to its end ({error})"
    else:
        return None
    return (reason, _REMEDIES[number]) if number in _REMEDIES else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which output a full disk or a read-only folder stands against."""
    try:
        yield
    except StorageError:
        raise
    # Of any kind: NumPy, PyTorch and safetensors have each another one for a full disk.
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        reason, remedy = refusal
        raise StorageError(
            f"{path}: {reason}; nothing of it was written and finished tasks are kept: {remedy}"
        ) from error


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


# As `_sibling` and `mark_of` name them, and SQLite what it still means to write.
_TEMPORARY = re.compile(
    r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp(-journal)?|\.((?P<marked>\d+)-)?[0-9a-f]{16}\.shared"
)


def mark_of(folder: Path) -> Path:
    """Name for a file by which others know a folder as long as this process needs it."""
    return folder / f".{os.getpid()}-{secrets.token_hex(8)}.shared"


def abandoned(
    folder: Path, *, lives: Callable[[int], bool], age: float = 86_400, deep: bool = True
) -> list[Path]:
    """Temporary files and folders that a kill left in a folder.

    Parameters
    ----------
    folder : Path
        Where to look; it may be absent.
    lives : callable
        Whether a process of this machine is running, by its id.
    age : float
        Seconds after which one goes though a process has its id: another, or another machine's.
    deep : bool
        Whether to look into the folders below too.
    """
    found = []
    for at, folders, files in os.walk(folder) if deep else itertools.islice(os.walk(folder), 1):
        for name in [*folders, *files]:
            if not (match := _TEMPORARY.fullmatch(name)):
                continue
            path, pid = Path(at) / name, match["pid"] or match["marked"]
            # Whoever lives may be done with it by now.
            with suppress(FileNotFoundError):
                old = time.time() - path.lstat().st_mtime > age
                if old or (pid is not None and not lives(int(pid))):
                    found.append(path)
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    return sorted(found)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that replaces it only if the block succeeds.

    Raises
    ------
    StorageError
        Where the disk is full or the folder can't be written to.
    """
    path = Path(path)
    temporary = _sibling(path)
    with _named(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            # Where the folder can't be read, there is nothing to remove.
            with suppress(PermissionError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that replaces `path` only if the block succeeds.

    Raises
    ------
    StorageError
        Where the disk is full or the folder can't be written to.
    """
    path = Path(path)
    temporary, old = _sibling(path), _sibling(path)
    with _named(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            if path.is_dir():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old.is_dir():
                    os.replace(old, path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_json(value: Any, path: Path) -> None:
    """Write `value` as indented JSON with a final newline."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is named."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; run the stage that writes it (`dvc repro`)"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}); delete it and run `dvc repro`"
        ) from None


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV (floats to 6 significant digits) or, by suffix, as Parquet (exact)."""
    path = Path(path)
    with atomic_file(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, **_CSV)


def holds_table(path: Path, frame: pd.DataFrame) -> bool:
    """Whether a CSV file is, to the byte, what `write_table` would write."""
    return Path(path).read_bytes() == frame.to_csv(None, **_CSV).encode()


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that `write_table` wrote; text columns stay text and '' stays ''."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table; run the stage that writes it (`dvc repro`)"
        )
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # Of a text, nothing means missing: a class may well be called NA.
    others = pd.read_csv(path, nrows=0).columns.difference(_TEXT)
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(_TEXT, str),
        keep_default_na=False,
        na_values={name: [""] for name in others},
    )


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What reading raises where the bytes are not those that were written.
_DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    """Say which file a disk, a mount or a limit stands before; an absent one stays absent."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        # A damaged archive may point before its own beginning.
        if error.errno in (None, errno.EINVAL):
            raise ValueError(str(error)) from error
        remedy = _READING.get(error.errno, "look at the disk or the mount it is on")
        raise StorageError(
            f"{path}: {error.strerror}; it can't be read and was left as it is: {remedy}, then run "
            "it again"
        ) from error


class TaskCache:
    """Finished maps, one file per (setting, model, block of images), found by key alone.

    An entry holds `maps`, float32 (block, height, width), and per-image diagnostics. The cache lies
    outside DVC's outputs, so what is computed survives a failed or changed stage.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the entry of `key` is, or would be."""
        return self.folder / key[:2] / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        with _legible(self.path(key)):
            return self.path(key).is_file()

    def write(self, key: str, maps: np.ndarray, diagnostics: Mapping[str, np.ndarray]) -> None:
        """Store one entry."""
        if maps.dtype != np.float32 or maps.ndim != 3:
            raise ValueError(
                f"maps of task {key} are {maps.dtype} {maps.shape}; "
                "a method must return float32 (batch, height, width)"
            )
        with atomic_file(self.path(key)) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, maps=maps, **diagnostics)

    def read(self, key: str) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
        """Maps and diagnostics of `key`; None where it is absent or its file is damaged.

        Raises
        ------
        StorageError
            Where the file can't be read, which says nothing of its content, or is damaged and
            can't be removed.
        """
        path = self.path(key)
        try:
            with _legible(path), np.load(path, allow_pickle=False) as entry:
                arrays = {name: entry[name] for name in entry.files}
            return arrays.pop("maps"), arrays
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            logger.warning("%s: damaged (%s); it is computed again", path, error)
            try:
                path.unlink(missing_ok=True)
            except OSError as refused:
                raise StorageError(
                    f"{path}: damaged ({error}), and can't be removed ({refused.strerror}): make "
                    "its folder writable, or remove it, then run it again"
                ) from refused
            return None


def write_maps(
    folder: Path,
    *,
    method: str,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    maps: Mapping[str, Iterator[np.ndarray]],
    diagnostics: Sequence[pd.DataFrame],
    arrays: MutableMapping[tuple[str, int], dict[str, np.ndarray]] | None = None,
) -> None:
    """Write one method's maps: `index.json`, `{model}.npy`, `diagnostics.parquet`, arrays.

    Parameters
    ----------
    folder : Path
        Replaced as a whole.
    method : str
        Name of the attribution method.
    image_ids : sequence of str
        Order of axis 1.
    settings : sequence of mapping
        Order of axis 0: `hyperparameters` and, per model, `task_ids`.
    maps : mapping of str to iterator of ndarray
        Per model, float32 (some images, height, width): setting after setting, a setting's images
        in one piece or in several.
    diagnostics : sequence of DataFrame
        Columns model, setting (index), image_id, name, value; may fill while `maps` is consumed.
    arrays : mapping, optional
        Per model and setting (index), diagnostics that are more than a number per image, images
        first: `{model}-{setting}.npz`; may fill likewise, and is emptied: what is written goes.
    """
    pending: MutableMapping[tuple[str, int], dict[str, np.ndarray]]
    pending = {} if arrays is None else arrays
    with atomic_folder(folder) as temporary:

        def save() -> None:
            while pending:
                (model, index), found = pending.popitem()
                np.savez(temporary / f"{model}-{index}.npz", allow_pickle=False, **found)

        def saving(stack: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            for piece in stack:
                save()
                yield piece
            save()

        for model, stack in maps.items():
            shape = len(settings), len(image_ids)
            _write_stack(temporary / f"{model}.npy", saving(stack), shape)
        save()
        notes = pd.DataFrame(columns=["model", "setting", "image_id", "name", "value"])
        if diagnostics:
            notes = pd.concat(diagnostics, ignore_index=True)
        write_table(notes, temporary / "diagnostics.parquet")
        write_json(
            {
                "method": method,
                "models": list(maps),
                "image_ids": list(image_ids),
                "settings": [dict(setting) for setting in settings],
            },
            temporary / "index.json",
        )


def _write_stack(path: Path, stack: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    """Write pieces as one float32 .npy of `shape` (settings, images) of maps, each as it comes.

    Not through a mapping: a disk that is full ends the process that writes to one.
    """
    first = next(stack, None)
    if first is None:
        return
    sides = first.shape[1:]
    header = {"descr": "<f4", "fortran_order": False, "shape": (*shape, *sides)}
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in itertools.chain([first], stack):
            if piece.shape[1:] != sides:
                raise ValueError(f"{path}: maps of {piece.shape[1:]} beside maps of {sides}")
            file.write(np.ascontiguousarray(piece, dtype="<f4").data)
            written += len(piece)
    if written != math.prod(shape):
        raise ValueError(f"{path}: {written} maps for {shape[0]} settings of {shape[1]} images")


class Maps:
    """One method's maps on disk, read without loading them all.

    Attributes
    ----------
    image_ids : list of str
        Order of the images.
    settings : list of dict
        Hyperparameters of each setting.
    task_ids : list of dict
        Per setting, the task id by model.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = read_json(self.folder / "index.json")
        self.method: str = index["method"]
        self.models: list[str] = index["models"]
        self.image_ids: list[str] = index["image_ids"]
        self.settings: list[dict[str, Any]] = [row["hyperparameters"] for row in index["settings"]]
        self.task_ids: list[dict[str, str]] = [row["task_ids"] for row in index["settings"]]

    def _position(self, model: str, hyperparameters: Mapping[str, Any]) -> int:
        if model not in self.models:
            raise KeyError(f"{self.folder}: no maps of model {model!r}; there are {self.models}")
        try:
            return self.settings.index(dict(hyperparameters))
        except ValueError:
            raise KeyError(
                f"{self.folder}: no maps with {dict(hyperparameters)}; run `dvc repro`"
            ) from None

    def arrays(self, model: str, hyperparameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Diagnostics of one setting that are more than a number per image, images first."""
        position = self._position(model, hyperparameters)
        path = self.folder / f"{model}-{position}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as entry:
            return {name: entry[name] for name in entry.files}

    def read(self, model: str, hyperparameters: Mapping[str, Any]) -> np.ndarray:
        """Maps of one setting, float32 (images, height, width)."""
        position = self._position(model, hyperparameters)
        return np.load(self.folder / f"{model}.npy", mmap_mode="r")[position]
