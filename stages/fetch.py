"""Make the data set: `results/{study}/data`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: what reads images takes a second to import.
    from steadymap.data.fetch import fetch
    from steadymap.data.folders import summary

    dataset = fetch(params.data)
    folder = params.results / "data"
    dataset.write(folder)
    counts = ", ".join(f"{len(images)} {split}" for split, images in dataset.images.items())
    print(f"fetch: {counts} images of {len(dataset.classes)} classes")
    if dataset.skipped is not None:
        print(f"fetch: {summary(dataset.description)}; by file in {folder / 'skipped.csv'}")


if __name__ == "__main__":
    run(main)
