"""Everything that writes much, in a folder that holds too little; what each says, as JSON.

Arguments: the folder and, where a limit on the size of files stands for a small disk, its bytes.
"""

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from steadymap.data.dataset import MANIFEST, Dataset
from steadymap.engine import selection
from steadymap.experiments import comparisons
from steadymap.store import atomic, tables, task_cache
from steadymap.store import maps as store_maps
from steadymap.training import loop

FOLDER = Path(sys.argv[1])
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 256, 256, 3), dtype=np.uint8)
MAPS = np.random.default_rng(0).standard_normal((12, 256, 256)).astype(np.float32)
NONE = pd.DataFrame({"image_id": []})


def cache():
    task_cache.TaskCache(FOLDER).write("ab" * 32, MAPS, {})


def csv():
    tables.write_table(pd.DataFrame({"a": MAPS.ravel()}), FOLDER / "t.csv")


def parquet():
    tables.write_table(pd.DataFrame({"a": MAPS.ravel()}), FOLDER / "t.parquet")


def text():
    atomic.write_json(["x" * 100] * 40_000, FOLDER / "j.json")


def maps():
    store_maps.write_maps(
        FOLDER / "lime",
        method="lime",
        image_ids=[str(i) for i in range(12)],
        settings=[{"hyperparameters": {}, "task_ids": {}}],
        maps={"googlenet": iter([MAPS])},
        diagnostics=[],
    )


def evaluation_set():
    chosen = SimpleNamespace(positions=np.arange(12), images=NONE, targets=NONE, models=NONE)
    data = SimpleNamespace(images={"val": PIXELS}, masks={})
    selection.write(chosen, data, FOLDER / "evaluation_set")


def dataset():
    manifest = pd.DataFrame(columns=MANIFEST)
    Dataset(("a",), {"val": PIXELS}, {}, manifest, {}).write(FOLDER / "data")


def inputs():
    comparisons.Inputs(NONE, NONE, PIXELS).write(FOLDER / "noise")


def checkpoint():
    with atomic.atomic_file(FOLDER / "checkpoint.pt") as temporary:
        torch.save({"model": torch.from_numpy(MAPS)}, temporary)


def weights():
    with atomic.atomic_folder(FOLDER / "model") as temporary:
        loop._save(torch.nn.Linear(1000, 1000), {}, temporary)


WRITERS = (cache, csv, parquet, text, maps, evaluation_set, dataset, inputs, checkpoint, weights)

if __name__ == "__main__":
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    said = {}
    for writer in WRITERS:
        try:
            writer()
        except Exception as error:
            said[writer.__name__] = type(error).__name__, str(error)
    left = [str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()]
    print(json.dumps({"said": said, "left": left}))
