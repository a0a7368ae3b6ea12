"""Regression gate: hold a study's numbers against a baseline, or accept them as the new one.

Exit code 1 where a cell moved, 2 where one is inconclusive or missing, tables are stale or nothing
can be compared, 0 where all are the same. docs/gate.md says what that means.
"""

import argparse
import os
import traceback
from pathlib import Path

from environment import run, say
from steadymap.gate import baseline, provenance, words
from steadymap.params.files import load


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


def compared(given: argparse.Namespace) -> tuple[str, int]:
    """The verdict in words, and the exit code; of an acceptance, what was accepted."""
    study = given.baseline.name if given.baseline else ""
    if not (given.baseline and given.current):
        params = load()
        study = params.study
        given.baseline = given.baseline or Path("reports/baseline") / study
        given.current = given.current or params.reports
    provenance.require_current(given.current)
    if given.accept:
        reruns = [baseline.read(folder) for folder in given.margins]
        current = baseline.read(given.current)
        entry = baseline.accept(current, given.baseline, reason=given.reason, reruns=reruns)
        return f"{given.baseline}: {entry.n_cells} cells accepted; margins {entry.margins}", 0
    if given.reason or given.margins:
        raise ValueError("--reason and --margins go with --accept; add it or leave them out")
    spread = given.retraining or Path("reports/retraining") / study / "margins.csv"
    folders = given.baseline, given.current
    return words.verdict(*folders, margins_of=given.margins_of, retraining=spread)


def main() -> int:
    given = arguments()
    try:
        text, code = compared(given)
    # Nothing compared is no proof that something moved: never 1.
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) or os.environ.get("STEADYMAP_TRACEBACK"):
            traceback.print_exc()
        title = "Baseline: nothing accepted" if given.accept else "Regression gate: not compared"
        text, code = f"## {title}\n\n{error}\n", 2
    say(text, summary=given.summary or os.environ.get("GITHUB_STEP_SUMMARY"))
    return code


if __name__ == "__main__":
    run(main, failed=2)
