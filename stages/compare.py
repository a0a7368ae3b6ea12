"""Compare inputs, models and sizes: `results/{study}/comparisons`."""

from pathlib import Path

from environment import run
from steadymap import comparisons
from steadymap.params import load
from steadymap.store import TaskCache


def main() -> None:
    ran = comparisons.run(
        load(), cache=TaskCache(Path(".cache/tasks")), inputs=Path(".cache/inputs")
    )
    print(f"compare: {ran}")


if __name__ == "__main__":
    run(main)
