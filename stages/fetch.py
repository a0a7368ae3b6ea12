"""Make the data set: `results/{study}/data`."""

from environment import run
from steadymap.data.fetch import fetch
from steadymap.params import load


def main() -> None:
    params = load()
    dataset = fetch(params.data)
    dataset.write(params.results / "data")
    counts = ", ".join(f"{len(images)} {split}" for split, images in dataset.images.items())
    print(f"fetch: {counts} images of {len(dataset.classes)} classes")


if __name__ == "__main__":
    run(main)
