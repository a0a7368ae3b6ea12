"""Train one model, or take it from the cache: `results/{study}/models/{model}`.

Several processes share it under `torchrun --nproc-per-node N stages/train.py MODEL`.
"""

import logging
from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    model = arguments(__doc__, model="a model of the study").model
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.data.dataset import read_dataset
    from steadymap.store.tables import read_table
    from steadymap.tracking import live
    from steadymap.training.distributed import is_first_process
    from steadymap.training.verified import train_model

    folder = params.results / "models" / model
    dataset = read_dataset(params.results / "data")
    origin = live.Origin.here(params.study)

    def mirror(card, curves, *, finished=False):
        try:
            live.mirror_training(model, card=card, curves=curves, origin=origin, finished=finished)
        except live.TrackingError as error:
            logging.warning("not mirrored for now, the track stage does it again: %s", error)

    card = train_model(model, params, dataset, cache=Path(".cache/training"), on_epoch=mirror)
    if not is_first_process():
        return
    mirror(card, read_table(folder / "curves.csv"), finished=True)
    found = card["accuracies"]
    print(
        f"train {model}: {found['clean']:.1%} of {found['n_clean']} clean, "
        f"{found['robust']:.1%} of {found['n_robust']} under attack"
    )


if __name__ == "__main__":
    run(main)
