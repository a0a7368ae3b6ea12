"""Choose the images to explain: `results/{study}/evaluation_set`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.data.dataset import read_dataset
    from steadymap.engine import selection

    chosen = selection.select(params, read_dataset(params.results / "data"))
    dropped = ", ".join(f"{row.model} {row.n_dropped}" for row in chosen.models.itertuples())
    print(f"evaluation set: {len(chosen.images)} images; dropped by the rule: {dropped}")


if __name__ == "__main__":
    run(main)
