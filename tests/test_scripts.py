"""What people start by hand: make's targets and the scripts of stages/, studies/, benchmarks/."""

import os
import shutil
import subprocess

import pytest

from conftest import ROOT


@pytest.mark.parametrize("place", ["moved", "here", "linked"])
def test_an_environment_that_was_made_elsewhere_is_named(tmp_path, place):
    """Scripts in it start an interpreter of the old place, or none."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    at = os.path.realpath(tmp_path) if place == "here" else "/of/old"
    scripts = tmp_path / ("shared" if place == "linked" else ".venv") / "bin"
    scripts.mkdir(parents=True)
    (scripts / "activate").write_text(f'VIRTUAL_ENV="{at}/.venv"\n')
    if place == "linked":
        (tmp_path / ".venv").symlink_to("shared")

    found = subprocess.run(
        ["make", "-n", "plan"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (found.returncode == 2) == (place == "moved")
    assert ("remove it (rm -r .venv)" in found.stderr) == (place == "moved")
