"""What every stage does first and last: find the environment, report errors in plain words."""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable

_absent = [
    name
    for name in ("steadymap", "torch", "pydantic", "pandas")
    if importlib.util.find_spec(name) is None
]
if _absent:
    sys.exit(
        f"{_absent[0]} is not installed in {sys.executable}: activate .venv "
        "(`. .venv/bin/activate`), or run through make, which does so by itself"
    )


NOISY = ("alembic", "mlflow", "matplotlib", "httpx", "distributed", "asyncio")


def run(main: Callable[[], int | None]) -> None:
    """Run a stage; an error that says what to do needs no traceback."""
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
        sys.exit("interrupted: finished tasks are kept, the next run goes on from them")
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if os.environ.get("STEADYMAP_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
