"""Mirror tables, cards and figures in MLflow, and sweeps and searches as Optuna studies.

What is there already stays untouched.
"""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.tracking.mirror import Origin, mirror_study
    from steadymap.tracking.optuna import rebuild_studies

    mirrored = mirror_study(
        params.reports,
        params.results,
        origin=Origin.here(params.study),
        alpha=params.accuracy.alpha,
    )
    print(f"track: {mirrored}; Optuna studies: {rebuild_studies(params)}")


if __name__ == "__main__":
    run(main)
