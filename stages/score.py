"""Score one method's maps against their references: `results/{study}/scores/{method}.parquet`.

Usage: python stages/score.py METHOD
"""

import importlib
import logging
import sys

from environment import run
from steadymap.params import load
from steadymap.scores import score
from steadymap.store import Maps, write_table


def main() -> None:
    params, method = load(), sys.argv[1]
    sweeps = params.sweeps[method]
    maps = Maps(params.results / "maps" / method)
    scores = score(method, sweeps, params.models.names, maps, params.similarity)
    write_table(scores, params.results / "scores" / f"{method}.parquet")
    print(f"score {method}: {len(scores)} scores")
    # By name: the mirror changes no output, so that changing it must not score again.
    tracking = importlib.import_module("steadymap.tracking")
    try:
        tracking.mirror_live(method, params)
    except tracking.TrackingError as error:
        logging.warning("not mirrored for now, the track stage does it again: %s", error)


if __name__ == "__main__":
    run(main)
