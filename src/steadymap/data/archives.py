"""Tar archives, read where they lie: nothing is extracted, and no name in one becomes a path."""

import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath


def archived_files(
    path: Path,
    wanted: Callable[[PurePosixPath], bool],
    *,
    key: str,
    kind: str,
    most_bytes: int | None = None,
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Regular files in an archive with their content, in its order.

    Parameters
    ----------
    path : Path
        The archive; compressed or not.
    wanted : callable
        Whether a file of that name is to be read; the others are passed over.
    key, kind : str
        Key of params that names the archive, and what it is, for errors.
    most_bytes : int, optional
        Largest size of all files together. Without it the archive must be an uncompressed one, and
        files come without content, which lies in the archive itself.

    Raises
    ------
    ValueError
        Where the archive is broken, too large, or a wanted name is no regular file's.
    """
    size, total = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:" if most_bytes is None else "r|*") as members:
            for member in members:
                total += member.size
                is_large = most_bytes is not None and total > most_bytes
                if member.isdir() or not (is_large or wanted(PurePosixPath(member.name))):
                    continue
                if not member.isreg() or member.issparse() or is_large:
                    what = "makes it too large" if member.isreg() else "is no regular file"
                    raise ValueError(
                        f"{key}: {path.name} holds {member.name!r}, which {what} for this archive; "
                        "take the official one"
                    )
                if most_bytes is None and member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                content = members.extractfile(member) if most_bytes is not None else None
                yield member, b"" if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{key}: {path.name} is no readable {kind} ({error}); copy it again"
        ) from None
