"""Atomic files and folders, with errors that name path and remedy."""

import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class StorageError(OSError):
    """A file can't be read or written; names it, the reason and the remedy."""


_FULL = "free some space (`make clean-cache` says what the cache takes), then run it again"

_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), then run it again",
    errno.EACCES: "make its folder writable, then run it again",
    errno.EPERM: "make its folder writable, then run it again",
    errno.EROFS: "mount its folder for writing, then run it again",
}

# Messages of libraries about a write that was cut short, which leave out the reason.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|inline_container(?!.*Reader)", re.DOTALL)

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def _refusal(error: Exception) -> tuple[str, str] | None:
    """Reason and remedy of an error that the file system caused; None for other errors."""
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
def _replacing(path: Path) -> Iterator[None]:
    """Make the folder of a file; re-raise errors of the file system with path and remedy."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except StorageError:
        raise
    # Of any kind: NumPy, PyTorch and safetensors each raise another one for a full disk.
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


# Names that `_sibling` and `mark_of` give, and SQLite to a journal beside them.
_TEMPORARY = re.compile(
    r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp(-journal)?|\.((?P<marked>\d+)-)?[0-9a-f]{16}\.shared"
)


def mark_of(folder: Path) -> Path:
    """Path of a marker file of this process in a shared folder."""
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
        From a process id to whether that process runs on this machine.
    age : float
        Seconds after which a file counts as abandoned although a process has its id, which may be
        of another machine, or reused.
    deep : bool
        Whether to look into the folders below too.

    Returns
    -------
    list of Path
        Sorted.
    """
    paths = []
    for at, folders, files in os.walk(folder) if deep else itertools.islice(os.walk(folder), 1):
        for name in [*folders, *files]:
            if not (match := _TEMPORARY.fullmatch(name)):
                continue
            path, pid = Path(at) / name, match["pid"] or match["marked"]
            # A living process may have removed it meanwhile.
            with suppress(FileNotFoundError):
                old = time.time() - path.lstat().st_mtime > age
                if old or (pid is not None and not lives(int(pid))):
                    paths.append(path)
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    return sorted(paths)


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
    with _replacing(path):
        try:
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
    with _replacing(path):
        try:
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


def refuse_other_files(folder: Path, names: Collection[str], remedy: str) -> None:
    """Refuse to replace a folder that holds anything beside these files, hidden ones aside.

    Parameters
    ----------
    folder
        Folder that is about to be replaced.
    names
        Files that it may hold.
    remedy
        What the error says to do.
    """
    others = {path.name for path in folder.glob("[!.]*")} - set(names)
    if others:
        raise ValueError(
            f"{folder}: holds {min(others)}, which is not written here and would be deleted; "
            f"{remedy}"
        )


def json_text(value: Any) -> str:
    """Indented JSON with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Write a value as `json_text` gives it."""
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(value))


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


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
