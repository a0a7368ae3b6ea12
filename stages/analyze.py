"""Turn scores into tables: `results/{study}/scores.parquet`, `reports/{study}/tables`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.analysis.tables import analyze

    tables = analyze(params)
    print(f"analyze: {len(tables['sensitivity'])} sensitivities of {len(tables['tasks'])} settings")


if __name__ == "__main__":
    run(main)
