"""Keep beside a study's reports what they were made from: `dvc.lock` and `params.yaml`."""

from pathlib import Path

from environment import run
from steadymap.params import load
from steadymap.store import atomic_file


def main() -> None:
    reports = load().reports
    for name in ("dvc.lock", "params.yaml"):
        with atomic_file(reports / name) as temporary:
            temporary.write_bytes(Path(name).read_bytes())


if __name__ == "__main__":
    run(main)
