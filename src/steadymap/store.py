"""The only file formats: tables, map archives, the task cache; every write is atomic."""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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


class StorageError(OSError):
    """A file that can't be written; names it, the reason and the remedy."""


_FULL = "free some space (`make clean-cache` says what the cache takes), then run it again"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: "make its folder writable, then run it again",
    errno.EPERM: "make its folder writable, then run it again",
    errno.EROFS: "mount its folder for writing, then run it again",
}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which output a full disk or a read-only folder stands against."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        remedy = _REMEDIES[error.errno]
        raise StorageError(
            f"{path}: {error.strerror}; nothing of it was written and finished tasks are kept: "
            f"{remedy}"
        ) from error


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


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
            frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


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
        """Maps and diagnostics of `key`; None where it is absent or its file is damaged."""
        try:
            with np.load(self.path(key), allow_pickle=False) as entry:
                arrays = {name: entry[name] for name in entry.files}
            return arrays.pop("maps"), arrays
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s: damaged (%s); it is computed again", self.path(key), error)
            self.path(key).unlink(missing_ok=True)
            return None


def write_maps(
    folder: Path,
    *,
    method: str,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    maps: Mapping[str, Iterator[np.ndarray]],
    diagnostics: Sequence[pd.DataFrame],
    arrays: Mapping[tuple[str, int], Mapping[str, np.ndarray]] | None = None,
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
        Per model and setting, float32 (images, height, width).
    diagnostics : sequence of DataFrame
        Columns model, setting (index), image_id, name, value; may fill while `maps` is consumed.
    arrays : mapping, optional
        Per model and setting (index), diagnostics that are more than a number per image, images
        first: `{model}-{setting}.npz`; may fill likewise.
    """
    with atomic_folder(folder) as temporary:
        for model, stack in maps.items():
            archive = None
            for index, values in enumerate(stack):
                if archive is None:
                    archive = np.lib.format.open_memmap(
                        temporary / f"{model}.npy",
                        mode="w+",
                        dtype=np.float32,
                        shape=(len(settings), *values.shape),
                    )
                archive[index] = values
            del archive
        for (model, index), found in (arrays or {}).items():
            np.savez(temporary / f"{model}-{index}.npz", allow_pickle=False, **found)
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
