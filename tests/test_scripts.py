"""What people start by hand: make's targets and the scripts of stages/, studies/, benchmarks/."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest

from baseline_tables import write_reports
from conftest import ROOT
from steadymap.gate import baseline, reruns
from steadymap.params.checks import validate


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


SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("stages", "studies", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
# All in one process: each would import PyTorch anew.
DRIVER = """
import contextlib, io, json, pathlib, runpy, sys
found = {}
for script in json.loads(sys.argv[1]):
    for words in (["--help"], ["--no-such-option", "x"], ["x", "y", "z", "z", "z"]):
        sys.argv, sys.path[0] = [script, *words], str(pathlib.Path(script).parent)
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            try:
                runpy.run_path(script, run_name="__main__")
                code = None
            except SystemExit as ended:
                code = ended.code
        found[f"{script} {words[0]}"] = [code, told.getvalue()]
print(json.dumps(found))
"""


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_help_and_unknown_arguments_do_nothing(tmp_path):
    """In a copy of a fresh clone: no file is changed, made or deleted."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "tables", "*.lock")
    for name in ("src", "stages", "studies", "benchmarks", "profiles", "reports/embedded"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    before = contents(tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(SCRIPTS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(SCRIPTS) > 25
    for script in SCRIPTS:
        code, told = found[f"{script} --help"]
        assert (code, "usage: " in told) == (0, True), script
        assert found[f"{script} --no-such-option"][0] == 2, script
        assert found[f"{script} x"][0] == 2, script
    assert contents(tmp_path) == before


def test_edited_params_survive_another_profile(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "stages")
    script = runpy.run_path(str(ROOT / "stages" / "write_params.py"))
    kept = tmp_path / "params.previous.yaml"

    def write(name):
        monkeypatch.setattr(sys, "argv", ["write_params.py", name])
        script["main"]()

    write("tiny")
    write("embedded")
    assert not kept.exists()
    edited = (tmp_path / "params.yaml").read_text().replace("embedded", "mine", 1)
    (tmp_path / "params.yaml").write_text(edited)
    write("tiny")
    write("embedded")

    assert kept.read_text() == edited
    assert "params.previous.yaml" in capsys.readouterr().out
    assert "/params.previous.yaml\n" in (ROOT / ".gitignore").read_text()


def test_a_folder_that_is_no_baseline_is_never_replaced(tmp_path):
    write_reports(tmp_path / "study")
    current = baseline.read(tmp_path / "study")
    before = contents(tmp_path)

    with pytest.raises(ValueError, match="would be deleted; name another folder"):
        baseline.accept(current, tmp_path / "study", reason="a slip")

    assert contents(tmp_path) == before


def test_measured_tables_replace_no_study_s(tmp_path, values):
    write_reports(tmp_path / "study")
    (tmp_path / "study" / "tables" / "claims.csv").touch()

    with pytest.raises(ValueError, match=r"claims\.csv.*would be deleted; name another"):
        reruns.measure(validate(values), shared=tmp_path, folder=tmp_path / "study", cache=tmp_path)
