"""Draw the figures and write the report: `reports/{study}/report.html`, `report.md`, `figures`."""

from environment import run
from steadymap.params import load
from steadymap.report import build


def main() -> None:
    params = load()
    # Where tasks ran is not part of what came out.
    profile = params.model_dump(mode="json", exclude={"engine"})
    build(params.reports, params.results, study=params.study, profile=profile)
    print(f"report: {params.reports}/report.html and report.md")


if __name__ == "__main__":
    run(main)
