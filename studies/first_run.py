"""Time `make repro` in a fresh clone: set-up, the study, and what both take on disk.

Usage: python studies/first_run.py [--folder FOLDER]

Writes reports/repro/repro.json, which README and docs/performance.md quote.
"""

import argparse
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from steadymap.store.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]


def timed(folder: Path, *command: str) -> float:
    """Minutes that a command takes; its output goes where ours does."""
    began = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    return (time.monotonic() - began) / 60


def gigabytes(*paths: Path) -> float:
    """Size on disk of folders and files, hard links counted once."""
    files = {}
    for path in paths:
        for file in [path, *path.rglob("*")]:
            if file.exists() and not file.is_symlink():
                status = file.stat()
                files[status.st_ino] = status.st_blocks * 512
    return sum(files.values()) / 1e9


def processor() -> str:
    """Name of the processor, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="new folder for the clone, which is kept")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        clone = given or Path(temporary) / "steadymap"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        setup = timed(clone, "make", "params")
        study = timed(clone, "make", "repro")
        written = [path for path in clone.iterdir() if path.name not in (".git", ".venv")]
        run = {
            "setup_minutes": round(setup, 1),
            "study_minutes": round(study, 1),
            "venv_gb": round(gigabytes(clone / ".venv"), 1),
            "study_gb": round(gigabytes(*written), 1),
            "cores": os.cpu_count(),
            "processor": processor(),
        }
    folder = ROOT / "reports" / "repro"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(run, folder / "repro.json")
    print(run)


if __name__ == "__main__":
    main()
