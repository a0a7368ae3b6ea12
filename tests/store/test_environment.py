"""What a result was made with."""

import platform
import subprocess
from importlib.metadata import version

import pytest

from steadymap.store import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit of a source file and a report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    for name in ("code.py", "reports/report.md"):
        (tmp_path / name).write_text("1")
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm start"):
        subprocess.run(["git", *command.split()], check=True)
    return tmp_path


def test_the_commit_is_dirty_by_its_code_and_not_by_what_a_run_rewrites(repository):
    made, dirty = environment.commit()
    (repository / "reports" / "report.md").write_text("2")
    rewritten = environment.commit()
    (repository / "code.py").write_text("2")

    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert (made, dirty) == (head.stdout.strip(), False)
    assert rewritten == (made, False)
    assert environment.commit() == (made, True)


def test_without_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)

    assert environment.commit() == ("", False)
    assert environment.here(None)["commit"] is None


def test_libraries_and_machine_are_named(repository):
    found = environment.here(3)

    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["threads"] == 3
    assert found["processor"]
    assert found["date"].endswith("+00:00")
