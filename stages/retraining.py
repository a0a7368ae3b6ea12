"""Train a study's models again from other seeds and measure what that does to their maps.

Run on demand, never by `dvc repro`, after the study itself: `reports/retraining/{study}` gets the
tables and a page. Trainings, maps and curves that a killed run left are found again.
"""

import argparse
import shlex
import sys
from pathlib import Path

from environment import run
from steadymap.params.files import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=3, help="beside the study's own (3)")
    parser.add_argument(
        "--sweeps", nargs="+", metavar="NAME", help="sweeps, or methods with all of theirs (all)"
    )
    parser.add_argument("--plan", action="store_true", help="print what it costs, and stop")
    options = parser.parse_args()
    params, cache = load(), Path(".cache")
    # Once params are read: torch takes seconds to import.
    from steadymap.gate import retraining

    made = retraining.studies(params, trainings=options.trainings, sweeps=options.sweeps)
    print(retraining.plan(made, cache), flush=True)
    if options.plan:
        return
    tables = retraining.run(made, cache=cache)
    folder = Path("reports/retraining") / params.study
    command = shlex.join(["python", "stages/retraining.py", *sys.argv[1:]])
    retraining.write(tables, made, folder, command=command)
    print(f"retraining: {len(made)} trainings, {folder}/README.md")


if __name__ == "__main__":
    run(main)
