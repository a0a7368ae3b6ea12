"""Randomise parameters unit by unit and explain the copies: `results/{study}/randomization`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.engine.runner import RunContext
    from steadymap.experiments import randomized_maps
    from steadymap.store.task_cache import TaskCache

    run_context = RunContext.of(params)
    cache = Path(".cache")
    ran = randomized_maps.run(
        params,
        cache=TaskCache(cache / "tasks"),
        changes=cache / "randomization",
        run_context=run_context,
    )
    print(f"randomize: {ran}")


if __name__ == "__main__":
    run(main)
