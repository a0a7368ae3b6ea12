"""Time and peak memory against numbers of images and settings, and against the image's size.

Each point runs in a process of its own, as a process's peak never falls. `AXES` is where another
axis goes (workers: run the same tasks by another engine in `_run`).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

import speed
from steadymap import engine
from steadymap.grid import plan_settings, setting
from steadymap.params import Attribution
from steadymap.store import TaskCache


@dataclass(frozen=True)
class Extent:
    """What one point of the curves runs.

    Attributes
    ----------
    images, settings, side : int
        Images explained, values of SmoothGrad's sigma, px.
    samples, batch_size : int
        Noise samples per setting, rows per pass.
    architecture : str
        Name in the registry.
    """

    images: int = 32
    settings: int = 1
    side: int = 64
    samples: int = 4
    batch_size: int = 16
    architecture: str = "googlenet"


AXES: dict[str, tuple[int, ...]] = {
    "images": (16, 32, 64, 128),
    "settings": (1, 2, 4, 8),
    "side": (64, 96, 128, 192),
}


def measured(axes: dict[str, tuple[int, ...]] = AXES, base: Extent | None = None) -> pd.DataFrame:
    """A row per point: axis, value, seconds, megabytes (peak of resident memory)."""
    same = asdict(base or Extent())
    rows = []
    for axis, values in axes.items():
        for value in values:
            found = subprocess.run(
                [sys.executable, __file__, json.dumps({**same, axis: value})],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
                check=False,
            )
            if found.returncode:
                raise ChildProcessError(f"growth, {axis} {value}: {found.stderr.strip()[-500:]}")
            rows.append({"axis": axis, "value": value, **json.loads(found.stdout)})
    return pd.DataFrame(rows)


def _run(extent: Extent) -> dict[str, float]:
    made = speed.Case(extent.architecture, extent.side, extent.images, {}, 10)
    with tempfile.TemporaryDirectory() as folder:
        bench = speed.Bench(made, Path(folder), candidates=())
        attribution = Attribution(batch_size=extent.batch_size, block_size=16, device="cpu")
        plan = plan_settings(
            [
                setting("smoothgrad", {"n_samples": extent.samples, "sigma": 0.1 + index / 100})
                for index in range(extent.settings)
            ],
            weights={"random": "random"},
            rows=bench.rows,
            targets=bench.target_rows,
            preprocessing="bench",
            attribution=attribution,
        )
        workplace = engine.Workplace(
            Path(folder) / "models", Path(folder) / "evaluation_set", attribution
        )
        began = time.perf_counter()
        engine.run(
            plan.tasks,
            cache=TaskCache(Path(folder) / "cache"),
            workplace=workplace,
            image_size=extent.side,
            title="growth",
        )
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "megabytes": peak / (2**20 if sys.platform == "darwin" else 2**10)}


if __name__ == "__main__":
    json.dump(_run(Extent(**json.loads(sys.argv[1]))), sys.stdout)
