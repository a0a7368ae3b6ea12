"""Progress of a long computation: a bar in a terminal, lines in a log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

_LOG_SECONDS = 15.0
_SHORT_SECONDS = 2.0


@contextmanager
def reporting(
    total: int,
    title: str,
    unit: str = "passes",
    *,
    n_tasks: int | None = None,
    transient: bool = False,
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the amount of work done since its last call, in `unit`.

    Shows a bar in a terminal or notebook, and logs a line every 15 seconds elsewhere, each with
    the amount done, the rate and the time left.

    Parameters
    ----------
    total : int
        Amount of work, in `unit`.
    title, unit : str
        Name of the work and its unit.
    n_tasks : int, optional
        Number of tasks to count too; each call then is the end of one.
    transient : bool
        Show the bar only once two seconds have passed, and remove it at the end.
    """
    console = Console(stderr=True)
    if console.is_jupyter:
        # A notebook shows one line that is overwritten; rich's own bar there needs ipywidgets.
        console = Console(file=sys.stdout, force_jupyter=False, force_terminal=True, width=100)
    columns = (
        TextColumn(title),
        BarColumn(),
        TextColumn("{task.fields[counted]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began = last = time.monotonic()
    done, ended = 0, 0
    bar = Progress(*columns, console=console, transient=transient, disable=not console.is_terminal)

    def counted() -> str:
        return f"{done:,}/{total:,}" if n_tasks is None else f"{ended}/{n_tasks} tasks"

    task = bar.add_task(title, total=total, counted=counted(), rate="")

    def advance(amount: int) -> None:
        nonlocal done, ended, last
        done, ended = done + amount, ended + 1
        now = time.monotonic()
        rate = done / max(now - began, 1e-9)
        speed = f"{rate:,.0f} {unit}/s"
        if not bar.live.is_started and now - began > _SHORT_SECONDS:
            bar.start()
        bar.update(task, completed=done, counted=counted(), rate=speed)
        if not console.is_terminal and (now - last > _LOG_SECONDS or ended == n_tasks):
            last = now
            left = (total - done) / rate if rate else 0.0
            logger.info("%s: %s, %s, %.0f s left", title, counted(), speed, left)

    if not transient:
        bar.start()
    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
