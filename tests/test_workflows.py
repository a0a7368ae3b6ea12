"""Workflows of GitHub, which none of these tests reaches: held to the scripts that they call."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from conftest import ROOT
from test_pipeline import call, checked_out, environment

FOLDER = ROOT / ".github" / "workflows"
GATE, TEST = (yaml.safe_load((FOLDER / f"{name}.yml").read_text()) for name in ("gate", "test"))
STEPS = [step for step in GATE["jobs"]["statistical"]["steps"] if "run" in step]
MAKEFILE = (ROOT / "Makefile").read_text()


def triggers(workflow):
    # YAML 1.1 reads the key `on` as true.
    return workflow[True]


def commands(step):
    """Words of each command of a step."""
    lines = step["run"].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def scripts():
    """(script, options) of each stage that the gate's steps run."""
    for step in STEPS:
        for words in commands(step):
            if words[0] == ".venv/bin/python":
                yield words[1], [word for word in words[2:] if word.startswith("--")]


def test_every_push_runs_what_every_change_must_pass():
    (job,) = TEST["jobs"].values()
    ran = [step["run"] for step in job["steps"] if "run" in step]
    script = ROOT / ".ci" / "run"

    assert {"push", "pull_request"} <= set(triggers(TEST))
    assert ran == ["bash .ci/run"]
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-2:] == ["make lint", "make test"]


def test_the_gate_takes_a_commit_and_a_profile_that_exists():
    inputs = triggers(GATE)["workflow_dispatch"]["inputs"]

    assert set(inputs) == {"base", "profile"}
    assert (ROOT / "profiles" / f"{inputs['profile']['default']}.yaml").is_file()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["name"])
def test_inputs_reach_the_shell_as_variables_alone(step):
    """Put into the text of a command, an input could be a command of its own."""
    inputs = triggers(GATE)["workflow_dispatch"]["inputs"]
    given = step["env"]
    used = set(re.findall(r"\$\{?([A-Z_]+)", step["run"]))

    assert "${{" not in step["run"]
    assert used == set(given)
    for value in given.values():
        (name,) = re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", value).groups()
        assert name in inputs


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["name"])
def test_targets_of_make_exist(step):
    for words in commands(step):
        if words[0] == "make":
            target = words[3] if words[1] == "-C" else words[1]
            assert re.search(rf"^{target}:", MAKEFILE, re.M), target


def test_the_gate_measures_and_then_checks():
    assert [script for script, _ in scripts()] == ["stages/measure.py", "stages/check.py"]


@pytest.mark.parametrize(("script", "options"), list(scripts()))
def test_scripts_have_the_options_that_they_are_given(script, options):
    told = subprocess.run(
        [sys.executable, ROOT / script, "--help"],
        env=environment(ROOT),
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(re.findall(r"--[a-z-]+", told.stdout))

    assert options
    assert set(options) <= known


# What the steps call `make` does the same without an environment of its own.
MAKE = """#!/bin/sh
if [ "$1" = -C ]; then cd "$2" && shift 2; fi
case $1 in
  profile) exec python stages/write_params.py "${2#P=}" ;;
  repro) exec dvc repro analyze ;;
esac
exit 9
"""


@pytest.mark.slow
def test_the_gates_steps_on_a_tiny_study(tmp_path):
    """Its steps as they stand: green for the same code, red where ranges double."""
    checkout = checked_out(tmp_path / "checkout")
    path = checkout / "profiles" / "tiny.yaml"
    values = yaml.safe_load(path.read_text())
    kept = ("gradient", "smoothgrad")
    # A profile says what differs from the embedded study: null takes a part of it away.
    whole = yaml.safe_load((checkout / "profiles" / "embedded.yaml").read_text())
    values["methods"] = list(kept)
    for section in ("search", "comparisons", "randomization"):
        values[section] = dict.fromkeys(whole[section])
    values["sweeps"] |= {name: None for name in whole["methods"] if name not in kept}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    (checkout / ".venv").symlink_to(sys.prefix)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    assert call(checkout, "git", *identity, "commit", "-qam", "few methods").returncode == 0
    summary = tmp_path / "summary.md"

    def ran(step):
        variables = environment(checkout)
        variables |= {"BASE": "HEAD", "PROFILE": "tiny", "GITHUB_STEP_SUMMARY": str(summary)}
        variables["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{variables['PATH']}"
        return subprocess.run(
            # As GitHub runs a step.
            ["bash", "-e", "-c", step["run"]],
            cwd=checkout,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    for step in STEPS:
        found = ran(step)
        assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert "## Regression gate: green" in summary.read_text()

    source = checkout / "src" / "steadymap" / "scores.py"
    text = source.read_text()
    assert text.count("dynamic_range(part)") == 1
    source.write_text(text.replace("dynamic_range(part)", "dynamic_range(2 * part)"))
    codes = [ran(step).returncode for step in STEPS[1:]]

    assert codes == [0, 1]
    assert re.search(r"\| moved \| SG-.* dynamic_range/raw mean", summary.read_text())
