"""Keep beside a study's reports what they were made from: `dvc.lock`, `params.yaml`, sources."""

import argparse

from environment import run
from steadymap import provenance
from steadymap.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    provenance.keep(load().reports)


if __name__ == "__main__":
    run(main)
