"""Compute one method's maps: `results/{study}/maps/{method}`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params import load


def main() -> None:
    method = arguments(__doc__, method="a method of the study").method
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap import engine
    from steadymap.store import TaskCache

    ran = engine.attribute(method, params, cache=TaskCache(Path(".cache/tasks")))
    print(f"attribute {method}: {ran}")


if __name__ == "__main__":
    run(main)
