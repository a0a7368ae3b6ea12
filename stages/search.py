"""Run the searches, whose points Optuna proposes: `results/{study}/search`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap import search
    from steadymap.store import TaskCache

    bench = search.TaskBench(params, TaskCache(Path(".cache/tasks")))
    found, shares = search.run(params, bench)
    search.write(found, shares, params)
    asked = found[found["state"] != search.REFERENCE]
    failed = int((asked["state"] == search.FAILED).sum())
    again = int(asked.duplicated(["search", "model", "task_id"]).sum())
    print(
        f"search: {bench.executed} tasks executed, {bench.cached} found in the cache; "
        f"{len(asked)} points asked, {again} of them again, {failed} failed"
    )
    if failed:
        print("search: failed points are tried again by the next run")


if __name__ == "__main__":
    run(main)
