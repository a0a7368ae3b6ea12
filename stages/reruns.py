"""Rerun a study with other method seeds: margins from some reruns, the gate on all others.

What differs is chance alone, so the gate has to stay green. Reruns also take images in other blocks
and run here or on one or two workers, which must not matter at all (docs/protocol.md).
"""

import argparse
from pathlib import Path

from environment import run
from steadymap.params.files import load
from steadymap.params.schema import Engine

# Larger than any seed of a sweep, so that no two reruns share one.
SHIFT = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--margins", type=int, default=10, help="reruns that margins come from")
    parser.add_argument("--checks", type=int, default=5, help="further reruns, to be checked")
    parser.add_argument("--methods", nargs="+", help="default: those that draw random numbers")
    parser.add_argument("--out", type=Path, help="default: reports/gate/{study}")
    parser.add_argument("--plan", action="store_true", help="say what it costs and stop")
    given = parser.parse_args()
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.gate import baseline as gate_baseline
    from steadymap.gate import compare, provenance, reruns, words
    from steadymap.store.atomic import atomic_file

    out = given.out or Path("reports/gate") / params.study
    methods = given.methods or reruns.stochastic(params)
    first = reruns.reseeded(params, SHIFT, methods=methods)
    n_reruns, n_pairs = given.margins + given.checks, len(params.models.names)
    ahead, back = (n * n_pairs for n in reruns.passes(first))
    print(f"{n_reruns} reruns of {', '.join(methods)}; of the sweeps alone {ahead:,} forward and "
          f"{back:,} backward passes each")  # fmt: skip
    if given.plan:
        return 0
    provenance.require_current(params.reports)
    made = []
    for number in range(1, n_reruns + 1):
        again = reruns.reseeded(params, number * SHIFT, methods=methods)
        blocks = again.attribution.model_copy(update={"block_size": (8, 12, 16)[number % 3]})
        name, workers = f"{params.study}-rerun-{number}", number % 3
        place = Engine(kind="local", workers=workers) if workers else Engine(kind="in_process")
        again = again.model_copy(update={"study": name, "attribution": blocks, "engine": place})
        print(f"rerun {number} of {n_reruns}: {workers or 'no'} workers, block of "
              f"{blocks.block_size} images", flush=True)  # fmt: skip
        folder = again.results / "gate"
        reruns.measure(again, shared=params.results, folder=folder, cache=Path(".cache"))
        made.append(gate_baseline.read(folder))
    current = gate_baseline.read(params.reports).of_methods(methods)
    gate_baseline.accept(current, out / "baseline", reason="reruns with other method seeds",
                 reruns=made[: given.margins])  # fmt: skip
    baseline = gate_baseline.read(out / "baseline")
    codes, texts = [], []
    for rerun in made[given.margins :]:
        table = compare.compare(baseline, rerun)
        codes.append(compare.exit_code(table))
        texts.append(words.markdown(table, baseline, rerun))
    green = codes.count(0)
    print(told := f"{green} of {len(codes)} reruns with other method seeds are green")
    with atomic_file(out / "reruns.md") as temporary:
        temporary.write_text("\n".join([f"# {told}\n", *texts]))
    return 0 if green == len(codes) else 1


if __name__ == "__main__":
    run(main)
