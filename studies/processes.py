"""Compare training by one and by two processes on the embedded study: `reports/processes`.

Run on demand, after `make repro`. Same recipe and global batch, three seeds each; two processes
normalize each half of a batch by itself, so that their weights are others, and the question is
whether their accuracies are.
"""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from steadymap.data.dataset import read_dataset
from steadymap.params.files import load
from steadymap.store.atomic import atomic_file, read_json
from steadymap.store.tables import write_table
from steadymap.training.loop import TrainingSpec, train

CACHE = Path(".cache/training")


def trained(model: str, seed: int, n_processes: int) -> Path:
    """Folder of one training of this study."""
    return Path("results/processes") / f"{model}-{n_processes}-{seed}"


def work(model: str, seed: int, n_processes: int) -> None:
    """Train in this process, among those that torchrun started."""
    params = load()
    recipe = params.recipe(model).model_copy(update={"seed": seed})
    init_folder = params.results / "models" / recipe.init_from if recipe.init_from else None
    dataset = read_dataset(params.results / "data")
    train(
        TrainingSpec(model, recipe, dataset, params.robust_accuracy, init_folder),
        trained(model, seed, n_processes),
        # Apart: a training has the same name whatever the number of its processes.
        cache=CACHE / f"processes-{n_processes}",
        device="cpu",
    )


def start(model: str, seed: int, n_processes: int) -> None:
    """Start one training, with as many threads over all its processes as there are cores."""
    threads = max((os.cpu_count() or 1) // n_processes, 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={n_processes}", __file__, "--model", model]
    command += ["--work", str(seed), str(n_processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment)


def readme(table: pd.DataFrame, model: str) -> str:
    """Say what was run and how it came out."""
    groups = table.groupby("n_processes")[["clean", "robust"]]
    means, spreads = groups.mean(), groups.std(ddof=1)
    lines = [
        "# Training by one and by two processes",
        "",
        f"Written by `python studies/processes.py --model {model}`: `{model}` of the embedded "
        f"study, {table['seed'].nunique()} seeds each, the same recipe and global batch, gloo on "
        f"one machine of {os.cpu_count()} cores, torch {torch.__version__.partition('+')[0]}.",
        "",
        "| processes | clean accuracy, mean (SD over seeds) | under attack | last training loss |",
        "|---|---|---|---|",
    ]
    losses = table.groupby("n_processes")["train_loss"].mean()
    for n in means.index:
        cells = [
            f"{means.loc[n, name]:.2%} ({spreads.loc[n, name]:.2%})" for name in ("clean", "robust")
        ]
        lines.append(f"| {n} | {' | '.join(cells)} | {losses[n]:.4f} |")
    lines += [
        "",
        "`trainings.csv` has each training. Three seeds say little of small differences.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="googlenet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=int, nargs=2, metavar=("SEED", "PROCESSES"))
    options = parser.parse_args()
    if options.work:
        work(options.model, *options.work)
        return
    rows = []
    for seed in range(1, options.seeds + 1):
        for n_processes in (1, 2):
            folder = trained(options.model, seed, n_processes)
            if not (folder / "card.json").is_file():
                start(options.model, seed, n_processes)
            card = read_json(folder / "card.json")
            if card["n_processes"] != n_processes:
                parser.error(f"{folder}: made by {card['n_processes']} processes; remove it")
            accuracies, curves = card["accuracies"], pd.read_csv(folder / "curves.csv")
            rows.append(
                {
                    "model": options.model,
                    "n_processes": n_processes,
                    "seed": seed,
                    "clean": accuracies["clean"],
                    "robust": accuracies["robust"],
                    "train_loss": curves["train_loss"].iloc[-1],
                    "weights_sha256": card["weights_sha256"],
                }
            )
            logging.info("%s", rows[-1])
    table = pd.DataFrame(rows)
    output = Path("reports/processes")
    write_table(table, output / "trainings.csv")
    with atomic_file(output / "README.md") as temporary:
        temporary.write_text(readme(table, options.model))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
