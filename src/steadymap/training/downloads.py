"""Files from the network: resumed, checked before use, there as a whole or not at all."""

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

# What arrived of a chunk that breaks off is lost.
_CHUNK = 1 << 16

_LOG_SECONDS = 15

# Answers that another try may change; all other errors are final.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file that could not be had: its address, the reason, what to place where."""


class _Broken(Exception):
    """A try that failed and may be repeated."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def check_file(path: Path, *, sha256: str) -> Path:
    """Return `path` if its content has this sha256, or one that begins with these digits.

    Raises
    ------
    ValueError
        Where it has another one.
    """
    with Path(path).open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        raise ValueError(
            f"{path}: sha256 {found[:16]}… is not the {sha256[:16]}… wanted; delete the file, or "
            "name the right sha256"
        )
    return Path(path)


def download(
    url: str,
    destination: Path,
    *,
    sha256: str,
    attempts: int = 5,
    timeout: float = 60.0,
    backoff: float = 1.0,
    max_bytes: int | None = None,
) -> Path:
    """Download a file; what was broken off is taken up again.

    Bytes go to `destination` with `.part` behind it, and get the name only once their sha256 is
    right. Proxies and certificates are taken from the environment, as `requests` does.

    Parameters
    ----------
    url : str
        http or https; redirections are followed.
    destination : Path
        A file that is there already is checked and kept.
    sha256 : str
        Of the content; the first digits, eight at least, where no more is known.
    attempts : int
        Tries in a row that may bring nothing new.
    timeout : float
        Seconds without a byte after which a try is given up.
    backoff : float
        Seconds before the second try; doubled for each further one, a minute at most.
    max_bytes : int, optional
        Size above which the file is refused.

    Returns
    -------
    Path
        `destination`.

    Raises
    ------
    ValueError
        Where a file is there, or came, with another sha256.
    DownloadError
        Where it can't be had.
    """
    destination = Path(destination)
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 {sha256!r}: write its 64 hex digits, the first 8 at least")
    if not re.match(r"https?://", url):
        raise ValueError(f"{url}: no http or https address; name one, or a file")
    if destination.exists():
        return check_file(destination, sha256=sha256)
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.part")
    with _locked(part) as opened, requests.Session() as session:
        transfer = _Transfer(url, destination, opened, part, session, timeout, max_bytes)
        failures, restarted = 0, False
        while True:
            before = transfer.size
            try:
                transfer.run()
            except _Broken as error:
                failures = 1 if transfer.size > before else failures + 1
                if failures >= attempts:
                    raise transfer.failed(str(error), sha256, attempts) from None
                wait = min(60.0, error.wait or backoff * 2 ** (failures - 1))
                logger.warning("%s: %s; again in %.0f s", url, error, wait)
                time.sleep(wait)
                continue
            try:
                check_file(part, sha256=sha256)
            except ValueError as error:
                transfer.forget()
                if before and not restarted:
                    restarted = True
                    logger.warning("%s: the parts don't fit together; from the start", url)
                    continue
                found = re.search(r"sha256 (\S+)", str(error))
                raise ValueError(
                    f"{url}: what came has sha256 {found[1] if found else '?'}, not the "
                    f"{sha256[:16]}… wanted; nothing was kept: correct the address or the sha256"
                ) from None
            opened.flush()
            os.fsync(opened.fileno())
            os.replace(part, destination)
            transfer.note.unlink(missing_ok=True)
            return destination


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The partial file, open, for this process alone; an empty one does not stay."""
    with part.open("ab+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DownloadError(
                f"{part}: another process is downloading it; wait until it is done"
            ) from None
        try:
            yield opened
        finally:
            if part.exists() and part.stat().st_size == 0:
                part.unlink()
                _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    """What the server called the content of which `part` is the beginning."""
    return part.with_name(f"{part.name}.json")


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        url: str,
        destination: Path,
        opened: IO[bytes],
        part: Path,
        session: requests.Session,
        timeout: float,
        max_bytes: int | None,
    ):
        self.url, self.destination, self.opened, self.part = url, destination, opened, part
        self.session, self.timeout, self.max_bytes = session, timeout, max_bytes
        self.note = _note(part)
        if self._known().get("url") != url:
            self.forget()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.opened.fileno()).st_size

    def forget(self) -> None:
        """Start from nothing."""
        self.opened.truncate(0)
        self.note.unlink(missing_ok=True)

    def _known(self) -> dict[str, Any]:
        try:
            found = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def failed(self, reason: str, sha256: str, attempts: int) -> DownloadError:
        kept = f"; {self.size} bytes are kept and the next run goes on from there"
        return DownloadError(
            f"{self.url}: not downloaded in {attempts} tries ({reason})"
            f"{kept if self.size else ''}. Where there is no network, or a proxy that HTTPS_PROXY "
            f"does not name, download it elsewhere and place it at {self.destination} "
            f"(sha256 {sha256})"
        )

    def run(self) -> None:
        """One try: from where the last one ended to the end, or `_Broken`."""
        start = self.size
        # A compressed answer would count other bytes than the file's.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if validator := self._known().get("validator"):
                headers["If-Range"] = validator
        try:
            with self.session.get(
                self.url,
                headers=headers,
                stream=True,
                timeout=(min(20.0, self.timeout), self.timeout),
            ) as answer:
                self._receive(answer, start)
        except requests.exceptions.SSLError as error:
            raise DownloadError(
                f"{self.url}: {_reason(error)}; name your authority's certificates in "
                "REQUESTS_CA_BUNDLE"
            ) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Broken(_reason(error)) from None
        except requests.exceptions.ChunkedEncodingError:
            raise _Broken("the server broke off") from None
        except requests.RequestException as error:
            raise DownloadError(f"{self.url}: {_reason(error)}; correct the address") from None

    def _receive(self, answer: requests.Response, start: int) -> None:
        if answer.status_code == 416 and start:
            # Nothing lies behind what is there: all of it, which its sha256 tells, or too much.
            if _total(answer) == start:
                return
            self.forget()
            raise _Broken("the server has less than what is there; from the start", 0.001)
        if answer.status_code in _PASSING:
            later = answer.headers.get("Retry-After", "")
            raise _Broken(f"status {answer.status_code}", float(later) if later.isdigit() else None)
        if answer.status_code not in (200, 206):
            raise DownloadError(
                f"{self.url}: the server says {answer.status_code} {answer.reason}; correct the "
                f"address, or place the file at {self.destination} yourself"
            )
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(
                f"{self.url}: the server sends the file compressed; place it at "
                f"{self.destination} yourself"
            )
        if answer.status_code == 206 and _first(answer) != start:
            self.forget()
            raise _Broken("the server sent another part than asked for", 0.001)
        if answer.status_code == 200 and start:
            # The server knows no ranges, or has other content by now.
            self.forget()
            start = 0
        total = _total(answer)
        self._room(total, start)
        if start == 0:
            tag = answer.headers.get("ETag", "")
            strong = tag if tag and not tag.startswith("W/") else None
            validator = strong or answer.headers.get("Last-Modified")
            self.note.write_text(json.dumps({"url": self.url, "validator": validator}))
        for _ in _progress(self._written(answer), self.destination.name, start, total):
            pass
        if total is not None and self.size != total:
            raise _Broken(f"{self.size} of {total} bytes came")

    def _room(self, total: int | None, start: int) -> None:
        free = shutil.disk_usage(self.destination.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{self.url}: {total - start} bytes to come and {free} free at "
                f"{self.destination.parent}; make room"
            )
        if total is not None:
            self._limit(total)

    def _limit(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            self.forget()
            raise DownloadError(
                f"{self.url}: {size} bytes or more, and max_bytes is {self.max_bytes}; correct "
                "the address"
            )

    def _written(self, answer: requests.Response) -> Iterator[int]:
        for chunk in answer.iter_content(_CHUNK):
            self.opened.write(chunk)
            self.opened.flush()
            self._limit(self.size)
            yield len(chunk)


def _first(answer: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total(answer: requests.Response) -> int | None:
    """Size of the whole file, where the server says it."""
    if answer.status_code in (206, 416):
        found = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _reason(error: Exception) -> str:
    """The innermost cause in a few words: requests wraps it three deep."""
    text = str(error)
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return "no answer in time"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy can't be reached"
    if "resolve" in text or "Name or service" in text or "nodename" in text:
        return "the host's name is not known here"
    found = re.search(r"\[Errno -?\d+\] ([A-Za-z ]+)", text)
    return (
        found[1].lower() if found else text.splitlines()[0][:120] if text else type(error).__name__
    )


def _progress(chunks: Iterator[int], name: str, start: int, total: int | None) -> Iterator[int]:
    """Pass sizes on and report: a bar in a terminal, else a line now and then."""
    console = Console(stderr=True)
    began = last = time.monotonic()
    done = start
    columns = (
        TextColumn(name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=total, completed=start)
        for size in chunks:
            yield size
            done += size
            progress.update(bar, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - last > _LOG_SECONDS:
                last = now
                rate = (done - start) / (now - began)
                left = (total - done) / rate if total and rate else math.inf
                logger.info(
                    "%s: %.0f of %s MB, %.1f MB/s, %s left",
                    name,
                    done / 1e6,
                    f"{total / 1e6:.0f}" if total else "?",
                    rate / 1e6,
                    f"{left:.0f} s" if math.isfinite(left) else "unknown",
                )
