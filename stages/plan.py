"""Check params, then print what is to be computed and what it costs; computes nothing itself."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.experiments.cost import estimate

    print(estimate(params, Path(".cache")))


if __name__ == "__main__":
    run(main)
