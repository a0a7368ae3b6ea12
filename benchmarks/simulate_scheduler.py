"""Send empty tasks through the scheduler and write what each costs: `reports/scale/scheduler.json`.

Usage: python benchmarks/simulate_scheduler.py [--tasks 100000] [--workers 2] [--out FILE]

Jobs are as long as real ones and are unpacked by the workers, which then do nothing. The scheduler
runs in the client's process, so its time and the client's add up.
"""

import argparse
import json
import operator
import pickle
import resource
import time
from itertools import pairwise
from pathlib import Path

from steadymap.engine import cluster, runner
from steadymap.engine.settings import setting
from steadymap.engine.tasks import Task
from steadymap.params.schema import Attribution, Engine
from steadymap.store.atomic import write_json
from steadymap.store.task_cache import TaskCache

_PARTS = 10


def jobs(n: int) -> list[runner._Job]:
    """As many jobs as a sweep would have, each about sixteen images and three settings."""
    attribution = Attribution(batch_size=64, block_size=16, device="cpu")
    place = runner.RunContext(
        Path("/shared/steadymap/results/study/models"),
        Path("/shared/steadymap/results/study/evaluation_set"),
        attribution,
        Engine(),
    )
    settings = tuple(setting("smoothgrad", {"n_samples": count}) for count in (50, 100, 200))
    cache = TaskCache(Path("/shared/steadymap/.cache/tasks"))
    return [
        runner._Job(
            Task(
                "googlenet",
                tuple(range(16 * index, 16 * index + 16)),
                settings,
                tuple(f"{index:032x}{count:032x}" for count in range(3)),
            ),
            place,
            cache,
        )
        for index in range(n)
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("reports/scale/scheduler.json"))
    chosen = parser.parse_args()
    options = Engine(kind="local", workers=chosen.workers, threads=1)
    folder = Path(".cache/scheduler")

    def send(todo: list[runner._Job], stamps: list[float]) -> None:
        outcomes = cluster.unordered(
            operator.truth, todo, options=options, folder=folder, files=[], ends=operator.truth
        )
        for _, _, error, _ in outcomes:
            assert error is None, error
            stamps.append(time.perf_counter())

    # Workers start and import before the clock does.
    send(jobs(10 * chosen.workers), [])
    todo = jobs(chosen.tasks)
    stamps: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    send(todo, stamps)
    cpu = time.process_time() - cpu
    step = max(1, chosen.tasks // _PARTS)
    ends = [began, *stamps[step - 1 :: step]]
    seconds = stamps[-1] - began
    found = {
        "tasks": chosen.tasks,
        "workers": chosen.workers,
        "bytes_per_task": len(pickle.dumps((operator.truth, todo[-1]))),
        "seconds": round(seconds, 2),
        "milliseconds_per_task": round(1000 * seconds / chosen.tasks, 3),
        "client_and_scheduler_cpu_milliseconds_per_task": round(1000 * cpu / chosen.tasks, 3),
        "milliseconds_per_task_by_tenth": [
            round(1000 * (after - before) / step, 3) for before, after in pairwise(ends)
        ],
        "peak_resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    write_json(found, chosen.out)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
