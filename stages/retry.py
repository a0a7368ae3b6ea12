"""Count the runs that left failed points of searches: `results/{study}/search_attempt.json`.

DVC would take a search that ended with failed points for done; a higher count makes it run again.
"""

from environment import arguments, run
from steadymap.params.files import load
from steadymap.store.atomic import read_json, write_json
from steadymap.store.tables import read_table


def main() -> None:
    arguments(__doc__)
    results = load().results
    path, table = results / "search_attempt.json", results / "search" / "search.csv"
    attempt = read_json(path)["attempt"] if path.is_file() else 0
    failed = int((read_table(table)["state"] == "failed").sum()) if table.is_file() else 0
    write_json({"attempt": attempt + (failed > 0)}, path)
    print(f"retry: {failed} failed points to try again")


if __name__ == "__main__":
    run(main)
