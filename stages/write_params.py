"""Write `params.yaml`: of a profile, or the keys that a short one leaves out.

A profile is profiles/PROFILE.yaml over what applies of the embedded study. DVC looks up every key
of which stages depend: `--complete` adds those that are missing with their defaults, and changes
nothing else. Params that are nobody's profile are kept as params.previous.yaml.
"""

import argparse
import re
from pathlib import Path

from environment import run
from steadymap.params.files import complete, profile, read_text, schema

PARAMS, KEPT = Path("params.yaml"), Path("params.previous.yaml")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", nargs="?", help="name of a file in profiles/, `embedded`")
    parser.add_argument("--complete", action="store_true", help="add what params.yaml leaves out")
    parser.add_argument("--schema", action="store_true", help="write docs/params.schema.json")
    given = parser.parse_args()
    if bool(given.profile) + given.complete + given.schema != 1:
        raise ValueError("name one profile: `make profile P=embedded`, or --complete, or --schema")
    return given


def edited(text: str) -> bool:
    """Whether params are no profile as it is written here."""
    named = re.search(r"^# Written by `make profile P=([^`]+)`", text, re.MULTILINE)
    try:
        return text != profile(named[1] if named else "embedded")
    except ValueError:
        return True


def main() -> None:
    given, path, kept = arguments(), PARAMS, None
    if given.schema:
        path, text, told = Path("docs/params.schema.json"), schema(), "what params.yaml may hold"
    elif given.profile:
        text, told = profile(given.profile), f"profile {given.profile}"
        before = PARAMS.read_text() if PARAMS.is_file() else text
        kept = before if before != text and edited(before) else None
    else:
        before = read_text(path)
        text, told = complete(before), "defaults written of what it left out"
        if text == before:
            return
    # Once all is checked: pandas takes a moment to import.
    from steadymap.store.atomic import atomic_file

    if kept is not None:
        with atomic_file(KEPT) as temporary:
            temporary.write_text(kept)
        print(f"{PARAMS} had been edited: it is now {KEPT}")
    with atomic_file(path) as temporary:
        temporary.write_text(text)
    print(f"{path}: {told}")


if __name__ == "__main__":
    run(main)
