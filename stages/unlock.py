"""Mend what a kill in the middle of DVC's own bookkeeping leaves behind.

DVC rewrites `.dvc/tmp/rwlock` in place; cut off halfway it is no JSON, and DVC refuses to start.
It also takes a killed process for a running one as long as nobody has collected it (a zombie, as
in containers without an init). A lock file that no living process holds can go.
"""

import json
import time
from pathlib import Path

from environment import run

RWLOCK = Path(".dvc/tmp/rwlock")


def holders(path: Path) -> list[int]:
    """Processes that the lock file names; raises ValueError where it is cut off."""
    found = []
    for entry in json.loads(path.read_text()).values():
        for held in (*entry.get("read", []), entry.get("write")):
            if held:
                found.append(held["pid"])
    return found


def lives(pid: int) -> bool:
    import psutil  # here, so that environment can say what is amiss where it is missing

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def left_behind(path: Path) -> bool:
    """Whether there is a lock file that can't be read, or that only dead processes hold."""
    try:
        return not any(lives(pid) for pid in holders(path))
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def main() -> None:
    if not left_behind(RWLOCK):
        return
    # A DVC that lives may be writing just now; it needs no second.
    time.sleep(1)
    if left_behind(RWLOCK):
        if RWLOCK.read_text().strip() not in ("", "{}"):
            print(f"{RWLOCK}: left behind by a kill, removed")
        RWLOCK.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
