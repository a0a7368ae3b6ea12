"""Rehearse the ImageNet profile on a few photographs, with random weights in the true formats.

Usage: python stages/rehearse_imagenet.py PHOTOGRAPHS FOLDER [--quick]

PHOTOGRAPHS has a folder per wnid, or the official archives. FOLDER must be new: weights, params,
results and reports of the rehearsal go there, and `summary.md`, which holds tables alone.
"""

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
    arguments = [argument for argument in sys.argv[1:] if argument != "--quick"]
    if len(arguments) != 2:
        raise ValueError("name the folder of photographs and a new folder for the rehearsal")
    photographs, folder = (Path(argument).resolve() for argument in arguments)
    folder.mkdir(parents=True)
    changes = [rehearsal.CUT, *([rehearsal.QUICK] if "--quick" in sys.argv else [])]
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
