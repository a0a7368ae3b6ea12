"""Clear away what a kill leaves behind: DVC's lock file, and half-written files.

DVC rewrites `.dvc/tmp/rwlock` in place; cut off halfway it is no JSON, and DVC refuses to start.
It also takes a killed process for a running one as long as nobody has collected it (a zombie, as
in containers without an init). A lock file that no living process holds can go.
"""

import json
import shutil
import time
from pathlib import Path

from environment import arguments, run

RWLOCK = Path(".dvc/tmp/rwlock")
# Folders to sweep, with what lies below them; MLflow's database lies beside these.
TOPS = {".": False, "results": True, ".cache": True, "reports": True}


def holders(path: Path) -> list[int]:
    """Processes that the lock file names; raises ValueError where it is cut off."""
    entries = json.loads(path.read_text()).values()
    held = (lock for entry in entries for lock in (*entry.get("read", []), entry.get("write")))
    return [lock["pid"] for lock in held if lock]


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


def sweep() -> None:
    from steadymap.store.atomic import abandoned  # here, as psutil

    for top, deep in TOPS.items():
        for path in abandoned(Path(top), lives=lives, deep=deep):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            print(f"{path}: left behind by a kill, removed")


def main() -> None:
    arguments(__doc__)
    if left_behind(RWLOCK):
        # A DVC that lives may be writing just now; it needs no second.
        time.sleep(1)
        if left_behind(RWLOCK):
            if RWLOCK.read_text().strip() not in ("", "{}"):
                print(f"{RWLOCK}: left behind by a kill, removed")
            RWLOCK.unlink(missing_ok=True)
    # Where a DVC lives, its stages are writing.
    if not RWLOCK.exists():
        sweep()


if __name__ == "__main__":
    run(main)
