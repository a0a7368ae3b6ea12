"""Compute one method's maps: `results/{study}/maps/{method}`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    method = arguments(__doc__, method="a method of the study").method
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.engine import runner
    from steadymap.store.task_cache import TaskCache

    ran = runner.attribute(method, params, cache=TaskCache(Path(".cache/tasks")))
    print(f"attribute {method}: {ran}")


if __name__ == "__main__":
    run(main)
