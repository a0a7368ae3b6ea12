"""What every stage does first and last: find the environment, report errors in plain words."""

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

_absent = [
    name
    for name in ("steadymap", "torch", "pydantic", "pandas")
    if importlib.util.find_spec(name) is None
]
if _absent:
    print(
        f"{_absent[0]} is not installed in {sys.executable}: activate .venv "
        "(`. .venv/bin/activate`), or run through make, which does so by itself",
        file=sys.stderr,
    )
    # Not 1, which from the gate means that a number moved.
    sys.exit(2)

NOISY = ("alembic", "mlflow", "matplotlib", "httpx", "distributed", "asyncio")


def arguments(about: str | None, **positional: str) -> argparse.Namespace:
    """Parse the command line: positional arguments with what they mean, and `--help`."""
    parser = argparse.ArgumentParser(description=about)
    for name, meaning in positional.items():
        parser.add_argument(name, metavar=name.upper(), help=meaning)
    return parser.parse_args()


def run(main: Callable[[], int | None], *, failed: int = 1) -> None:
    """Run a stage; an error that says what to do needs no traceback, and ends it with `failed`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("steadymap").setLevel(logging.INFO)
    # At the handler: libraries set the levels of their own loggers when they are imported.
    logging.getLogger().handlers[0].addFilter(
        lambda record: record.levelno >= logging.WARNING or not record.name.startswith(NOISY)
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: finished tasks are kept, the next run goes on", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if os.environ.get("STEADYMAP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(failed)


def say(text: str, *, summary: str | Path | None) -> None:
    """Print a text, and append it to a file; whoever can't take it changes no exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not summary:
        return
    try:
        with Path(summary).open("a") as file:
            file.write(f"{text}\n")
    except OSError as error:
        print(f"summary not written: {error}; name another with --summary", file=sys.stderr)
