"""Tables are held against the code and params that made them."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from baseline_tables import write_reports
from conftest import ROOT
from steadymap.gate import provenance
from steadymap.params.files import profile
from steadymap.store.atomic import read_json

ANALYSIS = "src/steadymap/analysis"
METHOD = "src/steadymap/attribution/gradients.py"
TABLES = "reports/tiny/tables"


def lock(checkout):
    """What DVC would write, of two stages and one of a method that is no more."""
    params = yaml.safe_load((checkout / "params.yaml").read_text())
    maps = "results/tiny/maps/gradient"

    def stage(code, keys, deps=(), outs=()):
        files = [{"path": path, "md5": provenance._md5(checkout / path)} for path in code]
        values = {key: provenance._value(params, key) for key in keys}
        return {
            "deps": files + [{"path": path, "md5": "0"} for path in deps],
            "params": {"params.yaml": values},
            "outs": [{"path": path, "md5": md5} for path, md5 in outs],
        }

    tables = provenance._md5(checkout / TABLES)
    gone = stage([METHOD], ["sweeps.gone"], outs=[("results/tiny/maps/gone", "0")])
    gone["params"]["params.yaml"]["sweeps.gone"] = {"was": "here"}
    return {
        "stages": {
            "attribute@gradient": stage([METHOD], ["sweeps.gradient"], outs=[(maps, "0")]),
            "attribute@gone": gone,
            "analyze": stage(
                [ANALYSIS],
                ["statistics", "protocol"],
                deps=["results/tiny/maps"],
                outs=[(TABLES, tables)],
            ),
            "report": stage(["src/steadymap/report/figures/sweeps.py"], ["sweeps"], deps=[TABLES]),
        }
    }


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A fresh clone with a study's committed tables and an accepted baseline."""
    for name in ("src", "stages"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(profile("tiny", ROOT / "profiles"))
    reports = tmp_path / "reports" / "tiny"
    write_reports(reports)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock(tmp_path)))
    monkeypatch.chdir(tmp_path)
    provenance.keep(reports)
    return tmp_path


def check(checkout, *arguments):
    found = subprocess.run(
        [sys.executable, "stages/check.py", *arguments],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode, found.stdout + found.stderr


def test_broken_code_makes_the_tables_stale(checkout):
    assert check(checkout, "--accept", "--reason", "first")[0] == 0
    assert check(checkout)[0] == 0
    with (checkout / METHOD).open("a") as file:
        file.write("\nraise RuntimeError\n")

    for arguments in ([], ["--accept", "--reason", "why"]):
        code, told = check(checkout, *arguments)

        assert code == 2
        assert f"- `{METHOD}` (attribute)" in told
        assert "make repro" in told
        assert "496 same" not in told


def test_comments_docstrings_and_layout_make_nothing_stale(checkout):
    path, reports = checkout / METHOD, checkout / "reports" / "tiny"
    head, _, rest = path.read_text().partition('"""\n')
    path.write_text(f'{head} Other words."""\n# A comment.\n\n\n{rest}\n')

    provenance.require_current(reports)
    (reports / provenance.SOURCES).unlink()
    # Then bytes are all that is known.
    with pytest.raises(provenance.StaleError, match=METHOD):
        provenance.require_current(reports)


def test_a_record_of_other_files_than_the_locks_does_not_count(checkout):
    """One that is younger than the tables must not vouch for the code that made them."""
    path, reports = checkout / METHOD, checkout / "reports" / "tiny"
    path.write_text(path.read_text() + "\nraise RuntimeError\n")
    provenance.keep_sources([METHOD], reports)
    path.write_text(path.read_text() + "# A comment.\n")

    with pytest.raises(provenance.StaleError, match=METHOD):
        provenance.require_current(reports)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("statistics", {"confidence": 0.5}, "params.yaml: statistics` (analyze)"),
        ("sweeps", {"gradient": {"s": {}}}, "params.yaml: sweeps.gradient` (attribute)"),
        ("protocol", "text", "params.yaml: protocol` (analyze)"),
    ],
)
def test_changed_params_make_the_tables_stale(checkout, key, value, named):
    path = checkout / "params.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, key: value}))

    with pytest.raises(provenance.StaleError, match="make repro") as stale:
        provenance.require_current(checkout / "reports" / "tiny")

    assert named in str(stale.value)


def test_what_does_not_reach_the_tables_does_not_count(checkout):
    with (checkout / "src/steadymap/report/figures/sweeps.py").open("a") as file:
        file.write("\nBLUE = 1\n")
    path = checkout / "params.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "engine": {"workers": 3}}))

    provenance.require_current(checkout / "reports" / "tiny")


def test_a_file_that_is_no_more_and_edited_tables_are_named(checkout):
    (checkout / METHOD).unlink()
    with (checkout / TABLES / "models.csv").open("a") as file:
        file.write("\n")

    with pytest.raises(provenance.StaleError, match=METHOD) as stale:
        provenance.require_current(checkout / "reports" / "tiny")

    assert f"{TABLES}: edited" in str(stale.value)


def test_tables_that_nothing_vouches_for_are_refused(checkout):
    for name in ("dvc.lock", provenance.SOURCES):
        (checkout / "reports" / "tiny" / name).unlink()

    with pytest.raises(provenance.StaleError, match=r"which code made its tables.*make repro"):
        provenance.require_current(checkout / "reports" / "tiny")


def test_what_was_measured_is_held_to_the_code_that_measured_it(checkout):
    folder = checkout / "measured"
    provenance.keep_sources([METHOD], folder)
    provenance.require_current(folder)
    (checkout / METHOD).write_text("raise RuntimeError\n")

    with pytest.raises(provenance.StaleError, match=METHOD):
        provenance.require_current(folder)


def test_a_changed_own_method_makes_the_tables_stale(checkout, monkeypatch):
    notes = {"/own/methods/mine.json": "1"}
    monkeypatch.setattr(provenance, "_custom_notes", lambda params: notes)
    path = checkout / "reports" / "tiny" / "dvc.lock"
    locked = yaml.safe_load(path.read_text())
    note = {"path": "results/tiny/own/methods/mine.json", "md5": "1"}
    locked["stages"]["attribute@gradient"]["deps"].append(note)
    path.write_text(yaml.safe_dump(locked))
    provenance.require_current(path.parent)
    notes["/own/methods/mine.json"] = "2"

    with pytest.raises(provenance.StaleError, match="code of mine"):
        provenance.require_current(path.parent)


def test_a_folder_is_held_file_by_file(checkout):
    """DVC's lock has one hash for a folder; comments in it make nothing stale."""
    reports = checkout / "reports" / "tiny"
    sweeps, data = checkout / ANALYSIS / "sweeps.py", checkout / ANALYSIS / "claims" / "more.csv"
    sweeps.write_text(sweeps.read_text() + "# A comment.\n")
    provenance.require_current(reports)

    sweeps.write_text(sweeps.read_text() + "raise RuntimeError\n")
    data.write_text("a,b\n")

    with pytest.raises(provenance.StaleError, match=r"sweeps.py` \(analyze\)") as stale:
        provenance.require_current(reports)
    assert f"{ANALYSIS}/claims/more.csv` (analyze)" in str(stale.value)
    assert "tables.py" not in str(stale.value)


def test_a_folders_hash_is_dvcs(tmp_path):
    build = pytest.importorskip("dvc_data.hashfile.build").build
    odb = pytest.importorskip("dvc.repo").Repo.init(str(tmp_path), no_scm=True).cache.local
    folder = tmp_path / "folder"
    for name in ("b.py", "a/c.py", "a.py", "a-b/d.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)

    _, _, tree = build(odb, str(folder), odb.fs, "md5", dry_run=True)

    assert provenance._md5(folder) == tree.hash_info.value


def test_the_record_has_what_made_the_tables_alone(checkout):
    record = read_json(checkout / "reports" / "tiny" / provenance.SOURCES)

    files = {path.relative_to(checkout).as_posix() for path in (checkout / ANALYSIS).rglob("*.*")}
    assert set(record) == {METHOD, *files}
