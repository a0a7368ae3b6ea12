"""Archives that others made: unpacked as plain files below one folder, or not at all."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from steadymap.store import atomic_folder

_CHUNK = 1 << 20
# Below this a high ratio does no harm, and small text files have one.
_SMALL = 1 << 20
_BLOCK = 512


class ArchiveError(ValueError):
    """An archive that is not unpacked: its name, the member, the reason, the remedy."""


class _Refusal(Exception):
    """Why, and which member it is about where that is not the one at hand."""

    def __init__(self, reason: str, member: str | None = None):
        super().__init__(reason)
        self.member = member


@dataclass(frozen=True)
class _Member:
    name: str
    folder: bool
    content: IO[bytes] | None


class _Bounded:
    """A decompressed stream that ends in an error where it grows beyond a limit."""

    def __init__(self, stream: IO[bytes], limit: int):
        self.stream, self.limit, self.done = stream, limit, 0
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
        self.done += len(data)
        if self.done > self.limit:
            raise _Refusal(f"it unpacks to more than {self.limit} bytes", "")
        self.tail = (self.tail + data)[-_BLOCK:]
        return data


def extract(
    archive: Path,
    destination: Path,
    *,
    max_bytes: int = 1 << 40,
    max_ratio: float = 200.0,
    max_members: int = 5_000_000,
) -> int:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive whose maker is not trusted.

    Only plain files and folders are made, owned by who runs this and not executable; the content
    decides the format.

    Parameters
    ----------
    archive : Path
        The file.
    destination : Path
        Folder to make; it appears when everything is unpacked, and must not be there before,
        unless empty.
    max_bytes : int
        Most that may come out.
    max_ratio : float
        Most bytes that may come out per byte of the archive; a few small files are free of it.
    max_members : int
        Most members.

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    ArchiveError
        Where a member lies outside, is a link or device, or stands twice, where the sizes exceed
        the limits, or where the archive is damaged: with the member's name. Nothing is left.
    FileExistsError
        Where the destination holds something.
    """
    archive, destination = Path(archive), Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination}: is there already; delete it, or name another folder")
    limit = min(max_bytes, max(_SMALL, int(max_ratio * archive.stat().st_size)))
    why = (
        f"more than max_bytes {max_bytes}"
        if limit == max_bytes
        else f"more than {max_ratio:g} times the archive's size"
    )
    total, files = 0, 0
    name = None
    try:
        with atomic_folder(destination) as temporary:
            for count, member in enumerate(_members(archive, limit)):
                name = member.name
                if count >= max_members:
                    raise _Refusal(f"it is one of more than {max_members}")
                path = temporary / _inside(name)
                if member.folder:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                # "x": what stands there already is not written to.
                with path.open("xb") as out:
                    assert member.content is not None
                    while data := member.content.read(_CHUNK):
                        total += len(data)
                        if total > limit:
                            raise _Refusal(f"with it come {why}")
                        out.write(data)
                files += 1
            if files == 0:
                raise _Refusal("no file in it", "")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _refused(archive, name, "stands there twice") from None
    except _Refusal as error:
        concerned = name if error.member is None else error.member
        raise _refused(archive, concerned, str(error)) from None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refused(archive, name, f"the archive is damaged ({error})") from None
    return files


def _refused(archive: Path, member: str | None, reason: str) -> ArchiveError:
    where = f" member {member[:200]!r}:" if member else ""
    return ArchiveError(
        f"{archive}:{where} {reason}; nothing was unpacked: compare the file's sha256 with the "
        "publisher's and fetch it again from there"
    )


def _inside(name: str) -> Path:
    """Relative path of a member, or an error where it could lead elsewhere."""
    if not name or any(ord(character) < 32 for character in name) or "\\" in name:
        raise _Refusal("its name is empty or has control characters or backslashes")
    if name.startswith("/") or name[1:2] == ":":
        raise _Refusal("its path is absolute")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _Refusal("its path leads out of the folder")
    if len(name) > 1000 or any(len(part.encode(errors="replace")) > 255 for part in parts):
        raise _Refusal("its name is too long")
    return Path(*parts)


def _members(archive: Path, limit: int) -> Iterator[_Member]:
    with archive.open("rb") as opened:
        start = opened.read(6)
        opened.seek(0)
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            yield from _zip_members(opened)
            return
        with _decompressed(opened, start) as stream:
            # Headers and padding come on top of the files' bytes.
            bounded = _Bounded(stream, limit + limit // 2 + _SMALL)
            with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r|") as tar:
                yield from _tar_members(tar)
            while bounded.read():
                pass
            # tarfile takes an end within a header, or none at all, for the end.
            if any(bounded.tail):
                raise _Refusal("the archive is damaged (it ends early)", "")


@contextmanager
def _decompressed(opened: IO[bytes], start: bytes) -> Iterator[IO[bytes]]:
    if start[:2] == b"\x1f\x8b":
        stream: IO[bytes] = cast("IO[bytes]", gzip.GzipFile(fileobj=opened))
    elif start[:3] == b"BZh":
        stream = bz2.BZ2File(opened)
    elif start == b"\xfd7zXZ\x00":
        stream = lzma.open(opened)  # noqa: SIM115  closed below
    else:
        stream = opened
    with stream:
        yield stream


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        if member.isdir():
            yield _Member(member.name, True, None)
        elif not member.isreg() or member.issparse():
            kind = (
                f"a link to {member.linkname[:100]!r}"
                if member.issym() or member.islnk()
                else "a sparse file"
                if member.issparse()
                else "a device or pipe"
            )
            raise _Refusal(f"it is {kind}", member.name)
        else:
            yield _Member(member.name, False, tar.extractfile(member))


def _zip_members(opened: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if stat.S_ISLNK(mode) else "a device or pipe"
                raise _Refusal(f"it is {kind}", member.filename)
            if member.flag_bits & 1:
                raise _Refusal("it is encrypted", member.filename)
            if member.is_dir():
                yield _Member(member.filename, True, None)
                continue
            with archive.open(member) as content:
                yield _Member(member.filename, False, content)
