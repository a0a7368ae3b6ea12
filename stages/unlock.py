"""Mend what a kill in the middle of DVC's own bookkeeping leaves behind.

DVC rewrites `.dvc/tmp/rwlock` in place; cut off halfway it is no JSON, and DVC refuses to start.
What it says of stages that run holds for no dead process, so a broken one can go.
"""

import json
import time
from pathlib import Path

from environment import run

RWLOCK = Path(".dvc/tmp/rwlock")


def broken(path: Path) -> bool:
    """Whether there is a lock file that can't be read."""
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def main() -> None:
    if not broken(RWLOCK):
        return
    # A DVC that lives may be writing just now; it needs no second.
    time.sleep(1)
    if broken(RWLOCK):
        RWLOCK.unlink(missing_ok=True)
        print(f"{RWLOCK}: cut off by a kill, removed")


if __name__ == "__main__":
    run(main)
