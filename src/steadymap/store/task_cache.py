"""Cache of finished maps, found by the hash of everything that they depend on."""

import errno
import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from steadymap.store.atomic import StorageError, atomic_file

logger = logging.getLogger(__name__)

_MORE_FILES = "raise the limit on open files (`ulimit -n`)"

_READING = {
    errno.EACCES: "make it readable",
    errno.EPERM: "make it readable",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
}

# Errors of reading a file whose bytes are not those that were written.
_DAMAGE = (
    *(ValueError, KeyError, EOFError, RuntimeError, OverflowError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)


@contextmanager
def _reporting_read_errors(path: Path) -> Iterator[None]:
    """Re-raise errors of the file system as StorageError with path and remedy, absence aside."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        # From a damaged archive with offsets before its beginning.
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
        with _reporting_read_errors(self.path(key)):
            return self.path(key).is_file()

    def write(self, key: str, maps: np.ndarray, diagnostics: Mapping[str, np.ndarray]) -> None:
        """Store one entry.

        Parameters
        ----------
        key
            Content key of the task.
        maps
            Maps, float32 (images, height, width).
        diagnostics
            Further arrays by name, their first axis the images.
        """
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
            with _reporting_read_errors(path), np.load(path, allow_pickle=False) as entry:
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
