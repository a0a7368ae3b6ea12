"""Turn scores into tables: `results/{study}/scores.parquet`, `reports/{study}/tables`."""

from environment import arguments, run
from steadymap.analysis import analyze
from steadymap.params import load


def main() -> None:
    arguments(__doc__)
    params = load()
    tables = analyze(params)
    print(f"analyze: {len(tables['sensitivity'])} sensitivities of {len(tables['tasks'])} settings")


if __name__ == "__main__":
    run(main)
