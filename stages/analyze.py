"""Turn scores into tables: `results/{study}/scores.parquet`, `reports/{study}/tables`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.analysis.tables import MOST_RESIDUAL, analyze

    tables = analyze(params)
    made = tables["completeness"]
    for row in made[made["median"] > MOST_RESIDUAL].itertuples():
        print(
            f"warning: {row.method} on {row.model} leaves {row.median:.1%} of the score's change "
            f"unexplained (median of {row.n_images} images, {row.hyperparameters}); raise n_steps"
        )
    print(f"analyze: {len(tables['sensitivity'])} sensitivities of {len(tables['tasks'])} settings")


if __name__ == "__main__":
    run(main)
