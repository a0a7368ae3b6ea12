"""A study with custom methods, models and data, and a way to run its stages in this process."""

import runpy
import sys

import numpy as np
from PIL import Image

from conftest import ROOT


def write_photos(folder):
    """Two classes of six photographs, the files that the page's boxes name among them."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(6):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
            picture = coarse.resize((48, 40), Image.Resampling.BICUBIC)
            picture.save(folder / "photos" / name / f"{i}.jpg", quality=95)


def run_stages(monkeypatch, *stages):
    """Run stages in this process, with two things left out that take long and stop no stage.

    MLflow's mirror can't be opened, and figures are drawn but not rendered.
    """
    monkeypatch.syspath_prepend(ROOT / "stages")

    def unrendered(figure, path, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(path)

    monkeypatch.setattr("steadymap.report.figures.theme.save", unrendered)

    class Unopened(Exception):
        pass

    def unopened(*args, **options):
        raise Unopened

    for module in ("live", "store"):
        monkeypatch.setattr(f"steadymap.tracking.{module}.TrackingError", Unopened)
    monkeypatch.setattr("steadymap.tracking.live.mirror_training", unopened)
    for name, *arguments in stages:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "stages" / f"{name}.py"))["main"]()
