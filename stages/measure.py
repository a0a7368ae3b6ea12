"""Measure a study once more at fixed weights: `DIR/tables`, which the gate reads.

Data, models and evaluation set are those of a folder of results; maps, scores and randomized
parameters are made by the code and params that are here. With --shift, by other method seeds.
"""

import argparse
from pathlib import Path

from environment import run
from steadymap.params.files import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="where weights and images are")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables/")
    parser.add_argument("--shift", type=int, default=0, help="added to every method's seed")
    parser.add_argument("--methods", nargs="+", help="default: all of params")
    given = parser.parse_args()
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.gate import provenance, reruns
    from steadymap.store import fingerprint

    script = Path(__file__).resolve()
    code = [path.relative_to(script.parents[1]) for path in (script, *fingerprint.closure(script))]
    params = reruns.reseeded(params, given.shift, methods=given.methods)
    params = params.model_copy(update={"study": f"{params.study}-again-{given.shift}"})
    tables = reruns.measure(params, shared=given.results, folder=given.out, cache=Path(".cache"))
    provenance.keep_sources(code, given.out)
    print(f"measure: {len(tables['sensitivity'])} sensitivities, tables in {given.out}/tables")


if __name__ == "__main__":
    run(main)
