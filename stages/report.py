"""Draw the figures and write the report: `reports/{study}/report.html`, `report.md`, `figures`."""

from environment import arguments, run
from steadymap.params.files import load


def main() -> None:
    arguments(__doc__)
    params = load()
    # Once params are read: what draws takes seconds to import.
    from steadymap.report.build import build

    # Where tasks ran is not part of what came out.
    profile = params.model_dump(mode="json", exclude={"engine"})
    made = build(params.reports, params.results, study=params.study, profile=profile)
    if made.kept:
        print(f"report: {made.html}, from the committed tables and figures: results are not here")
    else:
        print(f"report: {made.html} and {made.markdown.name}")


if __name__ == "__main__":
    run(main)
