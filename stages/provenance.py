"""Keep beside a study's reports what they were made from: `dvc.lock`, `params.yaml`, sources.

`provenance.json`, which is not in git, has what differs between runs that compute the same: commit,
date, libraries, processor and threads.
"""

from environment import arguments, run
from steadymap.gate import provenance
from steadymap.params.files import load
from steadymap.store import environment
from steadymap.store.atomic import write_json


def main() -> None:
    arguments(__doc__)
    params = load()
    provenance.keep(params.reports)
    made_with = environment.here(params.engine.threads)
    write_json(made_with, params.reports / "provenance.json")


if __name__ == "__main__":
    run(main)
