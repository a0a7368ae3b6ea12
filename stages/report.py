"""Draw the figures and write the report: `reports/{study}/report.html`, `report.md`, `figures`."""

from environment import run
from steadymap.params import load
from steadymap.report import build


def main() -> None:
    params = load()
    build(
        params.reports, params.results, study=params.study, profile=params.model_dump(mode="json")
    )
    print(f"report: {params.reports}/report.html and report.md")


if __name__ == "__main__":
    run(main)
