"""Time and peak memory against numbers of images, settings and workers, and the image's size.

Each point runs in a process of its own, as a process's peak never falls; one that stands on several
axes runs once. Seconds are the least of three runs, of tasks on workers that have begun already;
memory is that of all processes together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

import speed
from steadymap.engine import runner
from steadymap.engine.settings import setting
from steadymap.engine.tasks import plan_settings
from steadymap.params.schema import Attribution, Engine
from steadymap.store.task_cache import TaskCache


@dataclass(frozen=True)
class Extent:
    """What one point of the curves runs.

    Attributes
    ----------
    images, settings, side : int
        Images explained, values of SmoothGrad's sigma, px.
    samples, batch_size : int
        Noise samples per setting, rows per pass.
    workers : int
        Of a local cluster, a thread each; 0 runs in the process itself, on all its threads.
    architecture : str
        Name in the registry.
    """

    images: int = 32
    settings: int = 1
    side: int = 64
    samples: int = 8
    batch_size: int = 16
    workers: int = 0
    architecture: str = "googlenet"


AXES: dict[str, tuple[int, ...]] = {
    "images": (16, 32, 64, 128),
    "settings": (1, 2, 4, 8),
    "side": (64, 96, 128, 192),
    "workers": (1, 2, 4),
}
_REPETITIONS = 3
# Enough tasks for every worker.
FIXED: dict[str, dict[str, int]] = {"workers": {"images": 128}}


def measured(axes: dict[str, tuple[int, ...]] = AXES, base: Extent | None = None) -> pd.DataFrame:
    """A row per point: axis, value, seconds, megabytes (peak of resident memory)."""
    known: dict[Extent, dict[str, float]] = {}
    rows = []
    for axis, values in axes.items():
        for value in values:
            sizes: dict[str, Any] = {**FIXED.get(axis, {}), axis: value}
            extent = replace(base or Extent(), **sizes)
            if extent not in known:
                known[extent] = _in_a_process(extent)
            rows.append({"axis": axis, "value": value, **known[extent]})
    return pd.DataFrame(rows)


def _in_a_process(extent: Extent) -> dict[str, float]:
    found = subprocess.run(
        [sys.executable, __file__, json.dumps(asdict(extent))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    if found.returncode:
        raise ChildProcessError(f"growth, {extent}: {found.stderr.strip()[-500:]}")
    measures: dict[str, float] = json.loads(found.stdout)
    return measures


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
        chosen = Engine(kind="in_process")
        if extent.workers:
            chosen = Engine(kind="local", workers=extent.workers, threads=1)
        run_context = runner.RunContext(
            Path(folder) / "models", Path(folder) / "evaluation_set", attribution, chosen
        )
        runner.run(
            plan.tasks[: extent.workers],
            cache=TaskCache(Path(folder) / "first"),
            run_context=run_context,
            title="begin",
        )
        seconds = []
        for repetition in range(_REPETITIONS):
            began = time.perf_counter()
            runner.run(
                plan.tasks,
                cache=TaskCache(Path(folder) / f"cache{repetition}"),
                run_context=run_context,
                title="growth",
            )
            seconds.append(time.perf_counter() - began)
    here = psutil.Process()
    peaks = [_peak(process) for process in (here, *here.children(recursive=True))]
    return {"seconds": min(seconds), "megabytes": sum(peaks)}


def _peak(process: psutil.Process) -> float:
    """Megabytes at most; where the system doesn't keep that of others, those of now."""
    try:
        # Not getrusage, whose peak begins with that of the process that forked.
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return process.memory_info().rss / 2**20
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) / 2**10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extent", type=json.loads, help="fields of Extent, as JSON")
    json.dump(_run(Extent(**parser.parse_args().extent)), sys.stdout)
