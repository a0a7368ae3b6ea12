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
    method = sys.argv[1]
    ran = engine.attribute(method, load(), cache=TaskCache(Path(".cache/tasks")))
    print(f"attribute {method}: {ran}")


if __name__ == "__main__":
    run(main)
