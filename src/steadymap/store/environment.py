"""Environment that a result was made in: commit, libraries, machine."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("steadymap", "torch", "torchvision", "numpy", "scipy", "scikit-image", "mlflow", "dvc")


def commit() -> tuple[str, bool]:
    """Hash of the commit checked out, '' without one, and whether the code differs from it.

    `reports/` and `dvc.lock` do not count: a run rewrites them itself.
    """
    changes = _git(
        *("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"),
        *(":/", ":(exclude,top)reports", ":(exclude,top)dvc.lock"),
    )
    return _git("rev-parse", "HEAD"), bool(changes)


def _git(*arguments: str) -> str:
    try:
        process = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.strip()


def versions() -> dict[str, str]:
    """Version of Python and of the main libraries; those that are not installed are left out."""
    numbers = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers


def processor() -> str:
    """Name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def here(threads: int | None) -> dict[str, Any]:
    """Environment of the current process in the current folder.

    Parameters
    ----------
    threads : int or None
        Threads per process that params ask for; None where the libraries choose.
    """
    sha, dirty = commit()
    return {
        "commit": sha or None,
        "uncommitted_changes": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "processor": processor(),
        "n_processors": os.cpu_count(),
        "threads": threads,
    }
