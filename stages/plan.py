"""Check params, then print what is to be computed and what it costs; computes nothing itself."""

from pathlib import Path

from environment import arguments, run
from steadymap.cost import estimate
from steadymap.params import load


def main() -> None:
    arguments(__doc__)
    print(estimate(load(), Path(".cache")))


if __name__ == "__main__":
    run(main)
