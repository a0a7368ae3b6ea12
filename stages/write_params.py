"""Write the whole `params.yaml` of a profile.

Usage: python stages/write_params.py PROFILE
"""

import sys
from pathlib import Path

from environment import run
from steadymap.params import profile
from steadymap.store import atomic_file


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1]:
        raise ValueError("name one profile: `make profile P=embedded`")
    text = profile(sys.argv[1])
    with atomic_file(Path("params.yaml")) as temporary:
        temporary.write_text(text)
    print(f"params.yaml: profile {sys.argv[1]}")


if __name__ == "__main__":
    run(main)
