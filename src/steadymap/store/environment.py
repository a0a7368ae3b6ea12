"""What a result was made with: commit, libraries, machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("steadymap", "torch", "torchvision", "numpy", "scipy", "scikit-image", "mlflow", "dvc")


def commit() -> tuple[str, bool]:
    """Hash of the commit checked out, '' without one, and whether the code differs from it.

    What a run rewrites itself (`reports/`, `dvc.lock`) says nothing about the code that it ran, and
    does not count.
    """
    changes = _git(
        *("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--"),
        *(":/", ":(exclude,top)reports", ":(exclude,top)dvc.lock"),
    )
    return _git("rev-parse", "HEAD"), bool(changes)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Version of Python and of the main libraries; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def here(threads: int | None) -> dict[str, Any]:
    """All of it, for what the current process makes in the current folder.

    Parameters
    ----------
    threads : int or None
        Threads per process that params ask for; None where the libraries choose.
    """
    made, dirty = commit()
    return {
        "commit": made or None,
        "uncommitted_changes": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "processor": processor(),
        "n_processors": os.cpu_count(),
        "threads": threads,
    }
