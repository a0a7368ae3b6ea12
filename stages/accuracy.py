"""Score one method's maps for accuracy: `results/{study}/accuracy/{method}.parquet`."""

import importlib
import logging
from pathlib import Path

from environment import arguments, run
from steadymap.params import load


def main() -> None:
    method = arguments(__doc__, method="a method of the study").method
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.accuracy_scores import score
    from steadymap.engine import Workplace
    from steadymap.store import TaskCache, write_table

    workplace = Workplace.of(params)
    scored = score(method, params, cache=TaskCache(Path(".cache/tasks")), workplace=workplace)
    write_table(scored.rows, params.results / "accuracy" / f"{method}.parquet")
    print(f"accuracy {method}: {scored}")
    # By name: the mirror changes no output, so that changing it must not score again.
    tracking = importlib.import_module("steadymap.tracking")
    try:
        tracking.mirror_live(method, params)
    except tracking.TrackingError as error:
        logging.warning("not mirrored for now, the track stage does it again: %s", error)


if __name__ == "__main__":
    run(main)
