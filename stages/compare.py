"""Compare inputs, models and sizes: `results/{study}/comparisons`."""

from pathlib import Path

from environment import arguments, run
from steadymap import comparisons
from steadymap.params import load
from steadymap.store import TaskCache


def main() -> None:
    arguments(__doc__)
    ran = comparisons.run(
        load(), cache=TaskCache(Path(".cache/tasks")), inputs=Path(".cache/inputs")
    )
    print(f"compare: {ran}")


if __name__ == "__main__":
    run(main)
