"""Downloads of weights files: verified before use, present as a whole or not at all."""

import logging
import re
import sys
from pathlib import Path

import pooch
import requests

from steadymap.store.atomic import atomic_file, file_sha256

logger = logging.getLogger(__name__)

_RETRIES = 3

# Seconds to connect, and seconds without a byte after which a try is given up.
_TIMEOUT = (20.0, 60.0)

# It would print the temporary name of the file.
pooch.get_logger().setLevel(logging.WARNING)


class DownloadError(OSError):
    """A file that can't be downloaded: its address, the reason, and where to place it by hand."""


def check_file(path: Path, *, sha256: str) -> Path:
    """Return `path` if the sha256 of its content begins with these digits.

    Raises
    ------
    ValueError
        Where it begins otherwise.
    """
    actual = file_sha256(Path(path))
    if not actual.startswith(sha256.lower()):
        raise ValueError(
            f"{path}: sha256 {actual[:16]}… is not the {sha256[:16]}… wanted; delete the file, or "
            "name the right sha256"
        )
    return Path(path)


def download(url: str, destination: Path, *, sha256: str) -> Path:
    """Download a file, unless it is there already, and verify its content.

    Failures are retried after seconds, from the start. Proxies and certificates are taken from the
    environment, as `requests` does.

    Parameters
    ----------
    url : str
        http or https; redirections are followed.
    destination : Path
        A file that is there already is verified and kept.
    sha256 : str
        Of the content; the first digits, eight at least, where no more is known.

    Returns
    -------
    Path
        `destination`.

    Raises
    ------
    ValueError
        Where the file that is there, or that came, has another sha256.
    DownloadError
        Where the file can't be downloaded.
    """
    destination = Path(destination)
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ValueError(f"sha256 {sha256!r}: write its 64 hex digits, the first 8 at least")
    if not re.match(r"https?://", url):
        raise ValueError(f"{url}: no http or https address; name one, or a file")
    if destination.exists():
        return check_file(destination, sha256=sha256)
    logger.info("downloading %s to %s", url, destination)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT)
    with atomic_file(destination) as temporary:
        # A registry takes whole hashes only; ours may be the first digits.
        folder = pooch.create(
            temporary.parent,
            base_url="",
            registry={temporary.name: None},
            urls={temporary.name: url},
            retry_if_failed=_RETRIES,
        )
        try:
            folder.fetch(temporary.name, downloader=downloader)
        except requests.RequestException as error:
            raise DownloadError(
                f"{url}: not downloaded ({_reason(error)}); correct the address, name your proxy "
                "in HTTPS_PROXY and your certificates in REQUESTS_CA_BUNDLE, or download the file "
                f"elsewhere and place it at {destination} (sha256 {sha256})"
            ) from None
        actual = file_sha256(temporary)
        if not actual.startswith(sha256.lower()):
            raise ValueError(
                f"{url}: what came has sha256 {actual[:16]}…, not the {sha256[:16]}… wanted; "
                "nothing was kept: correct the address or the sha256"
            )
    return destination


def _reason(error: requests.RequestException) -> str:
    """Reason of a failure in one line: what the server answered, or the innermost cause."""
    if error.response is not None and error.response.status_code >= 400:
        return f"the server says {error.response.status_code} {error.response.reason}"
    wrapped = error.args[0] if error.args else error
    text = str(getattr(wrapped, "reason", wrapped))
    return text.rsplit(": ", 1)[-1].splitlines()[0][:120] if text else type(error).__name__
