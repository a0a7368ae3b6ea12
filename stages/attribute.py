"""Compute one method's maps: `results/{study}/maps/{method}`.

Usage: python stages/attribute.py METHOD
"""

import sys
from pathlib import Path

from environment import run
from steadymap import engine
from steadymap.params import load
from steadymap.store import TaskCache


def main() -> None:
    params, method = load(), sys.argv[1]
    made = engine.study_plan(method, params)
    cache = TaskCache(Path(".cache/tasks"))
    workplace = engine.Workplace.of(params)
    ran = engine.run(
        made.tasks,
        cache=cache,
        workplace=workplace,
        image_size=params.data.image_size,
        title=f"attribute {method}",
    )
    engine.assemble(
        method, made, cache=cache, workplace=workplace, folder=params.results / "maps" / method
    )
    print(f"attribute {method}: {ran}")


if __name__ == "__main__":
    run(main)
