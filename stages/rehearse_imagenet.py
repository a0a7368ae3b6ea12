"""Rehearse the ImageNet profile on a few photographs, with random weights in the true formats.

Weights, params, results and reports of the rehearsal go to a new folder, and `summary.md`, which
holds tables alone.
"""

import argparse
import os
import runpy
import sys
import time
from pathlib import Path

import pandas as pd

from environment import run
from steadymap import rehearsal
from steadymap.params import load

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path, help="a folder per wnid, or official archives")
    parser.add_argument("folder", type=Path, help="new folder for the rehearsal")
    parser.add_argument("--quick", action="store_true", help="with still smaller grids")
    given = parser.parse_args()
    photographs, folder = given.photographs.resolve(), given.folder.resolve()
    folder.mkdir(parents=True)
    changes = [rehearsal.CUT, *([rehearsal.QUICK] if given.quick else [])]
    weights = rehearsal.write_weights(folder / "weights")
    text = rehearsal.params(photographs, weights, *changes)
    (folder / "params.yaml").write_text(text)
    os.chdir(folder)
    made, rows = load(), []
    for name, command in rehearsal.stages((ROOT / "dvc.yaml").read_text(), made):
        began = time.monotonic()
        sys.argv = [str(ROOT / command[0]), *command[1:]]
        runpy.run_path(sys.argv[0])["main"]()
        rows.append({"stage": name, "seconds": time.monotonic() - began})
    told = rehearsal.summary(made, pd.DataFrame(rows), *changes)
    (folder / "summary.md").write_text(told)
    print(f"rehearsal: {len(rows)} stages ran; {folder / 'summary.md'}")


if __name__ == "__main__":
    run(main)
