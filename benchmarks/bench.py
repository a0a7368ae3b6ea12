"""Time steadymap beside Captum, lime, RISE's loop, scikit-image and scipy: `reports/bench`.

Usage: python benchmarks/bench.py [--case googlenet:224 ...] [--repetitions N] [--threads N]
                                  [--profile] [--growth]
"""

import argparse
import cProfile
import logging
import pstats
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import growth
import pictures
import speed
from environment import run
from steadymap.report.figures import theme
from steadymap.store.atomic import atomic_file, write_json
from steadymap.store.environment import processor

OUT = speed.ROOT / "reports" / "bench"
CASES = ("googlenet:224", "resnet50:224", "googlenet:64")
IMAGES = {224: 1, 64: 8}
# Of each side, px: a run at 224 px takes minutes, and lasts long enough to be steady.
REPETITIONS = {224: 2, 64: 3}
LIBRARIES = ("torch", "captum", "lime", "numpy", "scikit-image", "scipy")


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help=f"of {', '.join(CASES)}; default all")
    told = ", ".join(f"{n} at {side} px" for side, n in REPETITIONS.items())
    parser.add_argument("--repetitions", type=int, help=f"default {told}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--profile", action="store_true", help="only where our own time goes")
    parser.add_argument("--growth", action="store_true", help="only time and memory against size")
    given = parser.parse_args()
    if given.case and given.out == OUT and not given.profile:
        parser.error(f"--case: a part would replace the whole {OUT}; name another folder by --out")
    return given


def prepared(name: str, folder: Path) -> speed.Bench:
    """Case named architecture:side."""
    architecture, side = name.split(":")
    made = speed.case(
        architecture,
        int(side),
        n_images=IMAGES[int(side)],
        n_classes=3 if side == "64" else 1000,
    )
    return speed.Bench(made, folder, candidates=speed.CANDIDATES[int(side)])


def profile(name: str) -> None:
    """Print the share of passes per method, and what costs most beside them."""
    with tempfile.TemporaryDirectory() as folder:
        bench = prepared(name, Path(folder))
        for method in bench.case.sweeps:
            seconds, inside, _ = bench.own(method)
            print(f"{bench.case.name} {method}: {seconds:.1f} s, {inside / seconds:.1%} in passes")
            profiler = cProfile.Profile()
            profiler.runcall(bench.own, method)
            shown = pstats.Stats(profiler)
            shown.sort_stats("tottime").print_stats(12)


def ratio(part: dict[str, Any], kind: str) -> str:
    """The ratio of medians, and that of each repetition from lowest to highest."""
    runs = part[f"sweep_{kind}_runs"]
    told = f"{part[f'sweep_{kind}_ratio']:.1f} x"
    return told if len(runs) == 1 else f"{told} ({min(runs):.2f} to {max(runs):.2f})"


def report(
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    covered: list[dict[str, Any]],
    pairs: dict[str, Any],
) -> str:
    """The table as Markdown."""
    totals = speed.summary(rows, pairs["ratio"])
    lines = [
        "| model and size | against peers as documented | against peers in channels_last "
        "| each setting once | in model passes | maps equal |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {ratio(part, 'fp32')} | {ratio(part, 'channels_last')} "
        f"| {part['sweep_fp32_distinct_ratio']:.1f} x, "
        f"{part['sweep_channels_last_distinct_ratio']:.1f} x "
        f"| {part['model_time_share']:.0%} | {'yes' if part['maps_equal'] else 'no'} |"
        for name, part in totals.items()
    ]
    lines += [
        "",
        "Ratios are of medians over repetitions; in brackets each repetition's own.",
        f"Similarities of {pairs['case']}: {pairs['ratio']:.1f} x scikit-image and scipy "
        f"({pairs['one_thread_ratio']:.1f} x on one thread, as theirs), largest difference "
        f"{pairs['max_difference']:.0e}.",
    ]
    lines += [
        f"Insertion and deletion, {row['case']}: {row['fp32_ratio']:.1f} x and "
        f"{row['channels_last_ratio']:.1f} x RISE's loop, largest difference "
        f"{row['max_difference']:.0e}."
        for row in curves
    ]
    for name in dict.fromkeys(row["case"] for row in covered):
        told = ", ".join(
            f"{row['ratio']:.2f} x at {row['patch_size']} px"
            for row in covered
            if row["case"] == name
        )
        lines.append(f"Sliding Patch in part against whole passes, {name}: {told}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    options = arguments()
    torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.INFO)
    names = options.case or CASES
    options.out.mkdir(parents=True, exist_ok=True)
    if options.profile:
        for name in names:
            profile(name)
        return
    if options.growth:
        table = growth.measured()
        with atomic_file(options.out / "growth.csv") as temporary:
            table.to_csv(temporary, index=False)
        theme.save(pictures.growth_curves(table), options.out / "growth.png")
        print(table.to_string(index=False))
        return
    rows, curves, covered = [], [], []
    batches: dict[str, dict[str, Any]] = {}
    pairs = speed.compare_similarity(side=224, n_pairs=64, hog_cell=16, repetitions=7)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            bench = prepared(name, Path(folder))
            times = options.repetitions or REPETITIONS[bench.case.side]
            batches[bench.case.name] = bench.batches
            rows += speed.compare(bench, repetitions=times)
            curves.append(speed.compare_curves(bench, repetitions=times))
            covered += speed.compare_covered(bench, repetitions=times)
    made = {
        "cases": speed.summary(rows, pairs["ratio"]),
        "similarity": pairs,
        "curves": curves,
        "covered": covered,
        "methods": rows,
        "factors": {str(side): factors for side, factors in speed.FACTORS.items()},
        "batches": batches,
        "threads": options.threads,
        "processor": processor(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    write_json(made, options.out / "bench.json")
    with atomic_file(options.out / "bench.csv") as temporary:
        pd.DataFrame(rows).drop(columns="runs").to_csv(temporary, index=False)
    with atomic_file(options.out / "bench.md") as temporary:
        temporary.write_text(report(rows, curves, covered, pairs))
    theme.save(pictures.speed_bars(pd.DataFrame(rows)), options.out / "bench.png")
    print(report(rows, curves, covered, pairs))


if __name__ == "__main__":
    run(main)
