"""Write the whole `params.yaml` of a profile; one that is nobody's profile is kept beside it."""

import re
from pathlib import Path

from environment import arguments, run
from steadymap.params import profile
from steadymap.store import atomic_file

PARAMS, KEPT = Path("params.yaml"), Path("params.previous.yaml")


def edited(text: str) -> bool:
    """Whether params are no profile as it is written here."""
    named = re.match(r"# Written by `make profile P=([^`]+)`", text)
    try:
        return text != profile(named[1] if named else "embedded")
    except ValueError:
        return True


def main() -> None:
    name = arguments(__doc__, profile="name of a file in profiles/, `embedded`").profile
    text = profile(name)
    before = PARAMS.read_text() if PARAMS.is_file() else text
    if before != text and edited(before):
        with atomic_file(KEPT) as temporary:
            temporary.write_text(before)
        print(f"{PARAMS} had been edited: it is now {KEPT}")
    with atomic_file(PARAMS) as temporary:
        temporary.write_text(text)
    print(f"{PARAMS}: profile {name}")


if __name__ == "__main__":
    run(main)
