"""Score one method's maps against their references: `results/{study}/scores/{method}.parquet`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    method = arguments(__doc__, method="a method of the study").method
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.experiments.similarity_scores import score
    from steadymap.store.maps import Maps
    from steadymap.store.tables import read_table, write_table

    sweeps = params.sweeps[method]
    maps = Maps(params.results / "maps" / method)
    rows = read_table(params.results / "evaluation_set" / "evaluation_set.csv")
    scores = score(method, sweeps, params.models.names, maps, params.similarity, rows)
    write_table(scores, params.results / "scores" / f"{method}.parquet")
    print(f"score {method}: {len(scores)} scores")


if __name__ == "__main__":
    run(main)
