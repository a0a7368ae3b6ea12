"""Randomise parameters unit by unit and explain the copies: `results/{study}/randomization`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap import ipr
    from steadymap.engine import Workplace
    from steadymap.store import TaskCache

    workplace = Workplace.of(params)
    cache = Path(".cache")
    ran = ipr.run(
        params,
        cache=TaskCache(cache / "tasks"),
        changes=cache / "randomization",
        workplace=workplace,
    )
    print(f"randomize: {ran}")


if __name__ == "__main__":
    run(main)
