"""Note what the code of own methods and metrics says: `results/{study}/own`.

DVC watches no file that params name; a changed note makes the stages run again that use it.
"""

from environment import arguments, run
from steadymap.params import plugins
from steadymap.params.files import load
from steadymap.store.atomic import atomic_folder, write_json


def main() -> None:
    arguments(__doc__)
    params = load()
    methods: dict[str, dict[str, str] | None] = dict.fromkeys(params.methods)
    for name, path in params.attribution.own.items():
        methods[name] = plugins.load(path).note
    metrics = {name: plugins.load(path).note for name, path in params.similarity.own.items()}
    with atomic_folder(params.results / "own") as folder:
        for name, note in methods.items():
            write_json(note, folder / "methods" / f"{name}.json")
        write_json(metrics, folder / "similarity.json")
    print(f"own: {len(params.attribution.own)} methods, {len(metrics)} metrics")


if __name__ == "__main__":
    run(main)
