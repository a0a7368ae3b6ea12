"""The stages as DVC sees them, without running any."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from steadymap.store.fingerprint import closure

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_deps_hold_all_that_the_stage_imports(stage):
    """A file outside them could change and leave stale results behind."""
    script = re.search(r"stages/\w+\.py", STAGES[stage]["cmd"])[0]
    imported = {"/".join(path.relative_to(ROOT).parts[:3]) for path in closure(ROOT / script)}

    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith("src/")}

    assert script in STAGES[stage]["deps"]
    assert declared == imported


@pytest.mark.parametrize("stage", ["analyze", "report", "track"])
def test_tables_and_reports_depend_on_no_code_that_makes_maps(stage):
    """Maps, models and trainings reach them as files; a new method must not draw them anew."""
    for folder in ("attribution", "models", "training"):
        assert f"src/steadymap/{folder}" not in STAGES[stage]["deps"]


def test_the_report_depends_on_tables_alone():
    for folder in ("engine", "experiments"):
        assert f"src/steadymap/{folder}" not in STAGES["report"]["deps"]


def test_trainings_and_the_last_stage_alone_depend_on_the_mirror():
    """A training shows its curves while it goes on; all else is mirrored from the tables."""
    mirroring = [s for s in STAGES if "src/steadymap/tracking" in STAGES[s]["deps"]]

    assert mirroring == ["train", "train_robust", "track"]


def test_dvc_yaml_stays_short_and_ignores_compiled_files():
    assert len((ROOT / "dvc.yaml").read_bytes()) <= 9_000
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_training_does_not_depend_on_what_comes_after_it():
    deps = " ".join(STAGES["train"]["deps"])

    for name in ("report", "analysis", "metrics", "engine", "attribution"):
        assert name not in deps


def test_outs_belong_to_one_stage_and_never_are_the_reports_folder():
    outs = []
    for stage in STAGES.values():
        for out in stage.get("outs", []):
            outs.append(out if isinstance(out, str) else next(iter(out)))

    assert len(outs) == len(set(outs))
    assert "reports/${study}" not in outs
    assert not any(a != b and b.startswith(f"{a}/") for a in outs for b in outs)


def test_every_stage_that_reads_a_section_declares_it():
    """`params.section` in a script has its key in dvc.yaml, apart from places and names."""
    # A recipe is the model's own section of `training`, which DVC names by the model.
    free = {"results", "reports", "study", "model_dump", "recipe", "yaml", "files", "checks"}
    for name, stage in STAGES.items():
        script = re.search(r"stages/\w+\.py", stage["cmd"])[0]
        used = set(re.findall(r"params\.(\w+)", (ROOT / script).read_text())) - free
        declared = {str(key).split(".")[0] for key in stage.get("params", [])}
        whole = any(isinstance(key, dict) for key in stage.get("params", []))
        if whole or stage.get("always_changed"):
            continue
        # The device changes no bit; sizes of images come with the data.
        missing = used - declared - ({"attribution"} if "train" in name else set())
        missing -= {"data"} if name == "attribute" else set()
        assert not missing, name


def test_a_stage_outside_the_environment_says_so(tmp_path):
    """An interpreter that sees no site-packages stands for the wrong environment."""
    found = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "stages" / "environment.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert found.returncode == 2
    assert "activate .venv" in found.stderr


# Arguments of those that need some.
ARGUMENTS = {
    **{name: ["gradient"] for name in ("accuracy", "attribute", "score")},
    "train": ["googlenet"],
    "measure": ["--results", "results", "--out", "out"],
}
READERS = sorted(
    path.stem
    for path in (ROOT / "stages").glob("*.py")
    if re.search(r"\bload\(\)", path.read_text())
)
STARTED = """
import contextlib, io, json, runpy, sys
found, told = {}, io.StringIO()
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    streams = contextlib.redirect_stderr(told), contextlib.redirect_stdout(told)
    with streams[0], streams[1], contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    found[script] = [told.getvalue(), "torch" in sys.modules]
    told.truncate(told.seek(0))
print(json.dumps(found))
"""


def test_a_typo_is_told_before_torch_is_imported(tmp_path):
    """By every script that reads params: each in turn in one interpreter, which ends without."""
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("n_images: 16", "n_imagse: 16"))
    scripts = [[str(ROOT / "stages" / f"{n}.py"), *ARGUMENTS.get(n, [])] for n in READERS]

    found = subprocess.run(
        [sys.executable, "-c", STARTED, json.dumps(scripts)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'stages'}:{ROOT / 'src'}"},
    )

    assert {"plan", "train", "attribute", "report", "track", "reruns"} <= set(READERS)
    for script, (told, torch_imported) in json.loads(found.stdout.splitlines()[-1]).items():
        assert "evaluation_set.n_imagse: 16 is not a known key; remove it or" in told, script
        assert not torch_imported, script


def test_stage_names_shadow_no_standard_module():
    names = {path.stem for path in (ROOT / "stages").glob("*.py")}

    assert not names & set(sys.stdlib_module_names)


def test_every_stage_fits_a_screen():
    for path in Path(ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 75, path.name
