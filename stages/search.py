"""Run the searches, whose points Optuna proposes: `results/{study}/search`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.experiments import searches
    from steadymap.store.task_cache import TaskCache

    evaluator = searches.TaskEvaluator(params, TaskCache(Path(".cache/tasks")))
    rows, shares = searches.run(params, evaluator)
    searches.write(rows, shares, params)
    asked = rows[rows["state"] != searches.REFERENCE]
    failed = int((asked["state"] == searches.FAILED).sum())
    again = int(asked.duplicated(["search", "model", "task_id"]).sum())
    print(
        f"search: {evaluator.executed} tasks executed, {evaluator.cached} found in the cache; "
        f"{len(asked)} points asked, {again} of them again, {failed} failed"
    )
    if failed:
        print("search: failed points are tried again by the next run")


if __name__ == "__main__":
    run(main)
