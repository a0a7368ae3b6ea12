"""Keep beside a study's reports what they were made from: `dvc.lock`, `params.yaml`, sources."""

from environment import arguments, run
from steadymap import provenance
from steadymap.params import load


def main() -> None:
    arguments(__doc__)
    provenance.keep(load().reports)


if __name__ == "__main__":
    run(main)
