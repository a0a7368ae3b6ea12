"""The package as its users' tools see it: editors, type checkers, the import system."""

import ast
import importlib.metadata
import inspect
import re
import rlcompleter
import subprocess
import sys
from importlib import resources

import pytest

import steadymap
from conftest import ROOT


def test_names_are_typed_and_imported_from_the_same_modules():
    tree = ast.parse(inspect.getsource(steadymap))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert typed == steadymap.HOMES
    assert set(steadymap.__all__) == set(steadymap.HOMES)
    assert resources.files("steadymap").joinpath("py.typed").is_file()


def test_dir_and_completion_list_the_public_names_alone():
    completer = rlcompleter.Completer({"steadymap": steadymap})

    assert dir(steadymap) == sorted([*steadymap.__all__, "__version__"])
    assert completer.attr_matches("steadymap.s") == [
        "steadymap.show(",
        "steadymap.ssim(",
        "steadymap.sweep(",
    ]


def test_the_version_is_that_of_the_installed_package():
    assert steadymap.__version__ == importlib.metadata.version("steadymap")


@pytest.mark.slow
def test_a_type_checker_knows_the_functions(tmp_path):
    (tmp_path / "own.py").write_text(
        "import steadymap\n"
        "reveal_type(steadymap.sweep)\n"
        "reveal_type(steadymap.__version__)\n"
        "steadymap.swep\n"
        'steadymap.sweep("gradient", 1)\n'
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "own.py"]
    command += ["--config-file", str(ROOT / "pyproject.toml")]

    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    told = dict(re.findall(r"own\.py:(\d): (.*)", found.stdout))
    assert 'Revealed type is "def (method: ' in told["2"]
    assert 'Revealed type is "str"' in told["3"]
    assert 'no attribute "swep"' in told["4"]
    assert told["5"].startswith("error")


def test_sweeping_imports_nothing_that_only_drawing_or_building_needs():
    code = "import sys; from steadymap import attribute, explainable, sweep; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    heavy = {"matplotlib", "torch._dynamo", "torchvision", "mlflow", "optuna", "dvc"}
    assert not heavy & set(loaded.stdout.split())
