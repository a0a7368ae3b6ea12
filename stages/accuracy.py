"""Score one method's maps for accuracy: `results/{study}/accuracy/{method}.parquet`."""

from pathlib import Path

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    method = arguments(__doc__, method="a method of the study").method
    params = load()
    # Once params are read: torch takes seconds to import.
    from steadymap.engine.runner import RunContext
    from steadymap.experiments.accuracy_scores import score
    from steadymap.store.tables import write_table
    from steadymap.store.task_cache import TaskCache

    run_context = RunContext.of(params)
    scored = score(method, params, cache=TaskCache(Path(".cache/tasks")), run_context=run_context)
    write_table(scored.rows, params.results / "accuracy" / f"{method}.parquet")
    print(f"accuracy {method}: {scored}")


if __name__ == "__main__":
    run(main)
