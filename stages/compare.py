"""Compare inputs, models and sizes: `results/{study}/comparisons`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.experiments import comparisons
    from steadymap.store.task_cache import TaskCache

    cache = TaskCache(Path(".cache/tasks"))
    ran = comparisons.run(params, cache=cache, inputs=Path(".cache/inputs"))
    print(f"compare: {ran}")


if __name__ == "__main__":
    run(main)
