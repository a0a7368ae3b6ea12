"""Compute one method's maps: `results/{study}/maps/{method}`."""

from pathlib import Path

from environment import arguments, run
from steadymap import engine
from steadymap.params import load
from steadymap.store import TaskCache


def main() -> None:
    method = arguments(__doc__, method="name of the method in params.yaml").method
    ran = engine.attribute(method, load(), cache=TaskCache(Path(".cache/tasks")))
    print(f"attribute {method}: {ran}")


if __name__ == "__main__":
    run(main)
