"""The package's folders: what may import what, and how large things may become."""

import subprocess
import sys

import pytest

import structure
from conftest import ROOT

# A folder imports only from folders in the rows above its own.
FLOORS = [
    ["store", "draws", "progress"],
    ["params"],
    ["models"],
    ["statistics", "data", "attribution"],
    ["metrics", "training", "engine"],
    ["experiments"],
    ["analysis"],
    ["tracking", "report", "gate"],
    ["notebook"],
]


def test_folders_import_only_from_the_folders_below_them():
    floor = {name: level for level, row in enumerate(FLOORS) for name in row}

    upward = [
        f"{name} imports {below}"
        for name, targets in structure.arrows().items()
        for below in targets
        if floor[below] >= floor[name]
    ]

    assert upward == []


def test_modules_import_each_other_in_no_circle():
    graph = {path: structure.imported_files(path) - {path} for path in structure.sources()}
    done = set()
    while ready := {path for path in graph.keys() - done if graph[path] & graph.keys() <= done}:
        done |= ready

    assert graph.keys() == done


def test_a_circle_of_folders_is_named():
    with pytest.raises(ValueError, match=r"gate.*report"):
        structure.floors({"gate": {"report"}, "report": {"gate"}, "store": set()})


def test_arrows_that_others_imply_are_not_drawn():
    graph = {"gate": {"analysis", "store"}, "analysis": {"store"}, "store": set()}

    assert structure.reduced(graph) == {"gate": {"analysis"}, "analysis": {"store"}, "store": set()}


def test_no_folder_of_odds_and_ends():
    names = {path.stem for path in structure.sources()}

    assert not names & {"utils", "helpers", "common", "manager", "core", "misc"}


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("mlflow", "tracking"),
        ("optuna", "experiments/searches.py experiments/search_space.py tracking/optuna.py"),
        ("dask", "engine/cluster.py"),
        ("distributed", "engine/cluster.py"),
        ("matplotlib", "report"),
    ],
)
def test_heavy_libraries_have_one_home(library, home):
    homes = [structure.PACKAGE / part for part in home.split()]
    users = [path for path in structure.sources() if structure.imports_library(path, library)]

    assert users
    for path in users:
        assert any(path == place or place in path.parents for place in homes), path


def test_no_function_is_longer_than_the_limit():
    """Docstrings don't count; `make lint` limits parameters and complexity."""
    assert not [f.name for f in structure.functions() if f.lines > structure.MAX_LINES]


def test_code_lines_leave_out_comments_docstrings_and_blank_lines(tmp_path):
    file = tmp_path / "a.py"
    lines = ['"""Doc."""', "", "# why", "X = 1  # note", "", "def f():"]
    lines += ['    """Doc.', "", '    More."""', "    return X", ""]
    file.write_text("\n".join(lines))

    assert structure.code_lines(file) == 3


def test_importing_the_package_loads_no_heavy_library():
    program = "import sys, steadymap; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()

    assert not {"torch", "mlflow", "optuna", "matplotlib", "pandas"} & set(loaded)
