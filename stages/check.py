"""Regression gate: hold a study's numbers against a baseline, or accept them as the new one.

Exit code 1 where a cell moved, 2 where one is inconclusive or missing or nothing can be compared,
0 where all are the same. docs/gate.md says what that means.
"""

import argparse
import os
from pathlib import Path

from environment import run
from steadymap import check
from steadymap.params import load


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, help="default: reports/baseline/{study}")
    parser.add_argument("--current", type=Path, help="default: reports/{study}")
    parser.add_argument("--accept", action="store_true", help="write the baseline anew")
    parser.add_argument("--reason", default="", help="why, with --accept")
    reruns = "with --accept: measure margins anew on these reruns (stages/reruns.py)"
    parser.add_argument("--margins", type=Path, nargs="+", default=[], metavar="DIR", help=reruns)
    borrowed = "a baseline whose margins count where --baseline has none of its own"
    parser.add_argument("--margins-of", type=Path, metavar="DIR", help=borrowed)
    spread = "spread over trainings; default: reports/retraining/{study}/margins.csv"
    parser.add_argument("--retraining", type=Path, help=spread)
    parser.add_argument("--summary", type=Path, help="file to append to; CI's by default")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    try:
        if not (given.baseline and given.current and given.retraining):
            params = load()
            given.baseline = given.baseline or Path("reports/baseline") / params.study
            given.current = given.current or params.reports
            given.retraining = (
                given.retraining or Path("reports/retraining") / params.study / "margins.csv"
            )
        current = check.read(given.current)
        if given.accept:
            reruns = [check.read(folder) for folder in given.margins]
            entry = check.accept(current, given.baseline, reason=given.reason, reruns=reruns)
            print(f"{given.baseline}: {entry.n_cells} cells accepted; margins {entry.margins}")
            return 0
        if given.reason or given.margins:
            raise ValueError("--reason and --margins go with --accept; add it or leave them out")
        baseline = check.read(given.baseline)
        # Without a committed baseline there are none to borrow, and the table says so.
        if given.margins_of and given.margins_of.is_dir():
            baseline = check.borrowed(baseline, check.read(given.margins_of))
        yardstick = check.retraining_table(given.retraining)
        table = check.compare(baseline, current, retraining=yardstick)
        text, code = check.markdown(table, baseline, current), check.exit_code(table)
    # Nothing compared is no proof that something moved: never 1.
    except (ValueError, OSError) as error:
        text, code = f"## Regression gate: nothing compared\n\n{error}\n", 2
    print(text)
    summary = given.summary or os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a") as file:
            file.write(text)
    return code


if __name__ == "__main__":
    run(main)
