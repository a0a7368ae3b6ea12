"""Structure of the package: folders, imports between them, sizes, functions over the limits.

Usage: python studies/structure.py [--draw]

Prints the counts as JSON. With `--draw`, also draws docs/pictures/architecture.png.
"""

import argparse
import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "steadymap"
# Ruff holds complexity (C901) and parameters (PLR0913); it has no rule for length.
MAX_LINES, MAX_PARAMETERS = 80, 8


@dataclass(frozen=True)
class Function:
    """Size of one function: lines without its docstring, and parameters."""

    name: str
    lines: int
    parameters: int


def folder_of(path: Path) -> str:
    """Folder of a source file, right below the package; a module there is a folder of its own."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _target(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, wherever in the file it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in members if _target(name)}
            names |= modules
            if len(modules) < len(members):
                names.add(node.module)
    ours = (name for name in names if name.startswith("steadymap."))
    return {target for name in ours if (target := _target(name))}


def imports_library(path: Path, library: str) -> bool:
    """Whether a file imports a library, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.split(".")[0] == library for name in names):
            return True
    return False


def sources() -> list[Path]:
    """Source files of the package, its lazy front door left out."""
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def arrows() -> dict[str, set[str]]:
    """Folders that each folder imports from."""
    found: dict[str, set[str]] = {folder_of(path): set() for path in sources()}
    for path in sources():
        here = folder_of(path)
        found[here] |= {folder_of(target) for target in imported_files(path)} - {here}
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Floor of each folder: one above the highest folder that it imports from.

    Raises
    ------
    ValueError
        Where folders import from each other in a circle.
    """
    levels: dict[str, int] = {}
    waiting = set(graph)
    while waiting:
        ready = {name for name in waiting if graph[name] <= levels.keys()}
        if not ready:
            raise ValueError(f"these folders import from each other: {sorted(waiting)}")
        for name in ready:
            levels[name] = 1 + max((levels[below] for below in graph[name]), default=-1)
        waiting -= ready
    return levels


def code_lines(path: Path) -> int:
    """Lines of code of a file: no blank lines, comments or docstrings."""
    text = path.read_text("utf-8")
    lines = {n for n, line in enumerate(text.splitlines(), 1) if line.strip()}
    lines -= {n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if docstring := _docstring(node):
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def _docstring(node: ast.AST) -> ast.Expr | None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        assert isinstance(first, ast.Expr)
        return first
    return None


def functions() -> Iterator[Function]:
    """Every function of the package with its size."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield _measured(path, node)


def _measured(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    docstring = _docstring(node)
    documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0  # type: ignore[operator]
    return Function(
        name=f"{path.relative_to(PACKAGE)}:{node.name}",
        lines=(node.end_lineno or node.lineno) - node.lineno + 1 - documented,
        parameters=len([name for name in names if name not in ("self", "cls")]),
    )


def counts() -> dict[str, int]:
    """Folders, floors, arrows, lines of code and functions over each limit."""
    graph = arrows()
    sized = list(functions())
    return {
        "files": len(sources()),
        "folders": len(graph),
        "floors": 1 + max(floors(graph).values()),
        "arrows": sum(len(below) for below in graph.values()),
        "lines": sum(len(path.read_text("utf-8").splitlines()) for path in sources()),
        "lines_of_code": sum(code_lines(path) for path in sources()),
        f"functions_over_{MAX_LINES}_lines": sum(f.lines > MAX_LINES for f in sized),
        f"functions_over_{MAX_PARAMETERS}_parameters": sum(
            f.parameters > MAX_PARAMETERS for f in sized
        ),
    }


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Arrows that no way over other folders implies."""
    below: dict[str, set[str]] = {}
    for name in sorted(graph, key=floors(graph).__getitem__):
        below[name] = graph[name].union(*(below[target] for target in graph[name]))
    return {
        name: {t for t in targets if not any(t in below[other] for other in targets - {t})}
        for name, targets in graph.items()
    }


def draw(path: Path) -> None:
    """Draw the folders on their floors; an arrow leads to each folder that one imports from.

    Arrows that others imply are left out.
    """
    from matplotlib.figure import Figure

    graph = arrows()
    levels = floors(graph)
    size = {name: 0 for name in graph}
    for source in sources():
        size[folder_of(source)] += code_lines(source)
    places = {}
    for level in sorted(set(levels.values())):
        names = sorted(name for name in levels if levels[name] == level)
        for position, name in enumerate(names):
            places[name] = ((position + 0.5) / len(names), level)
    figure = Figure(figsize=(9, 0.85 * (1 + max(levels.values()))), layout="constrained")
    axis = figure.subplots()
    axis.axis("off")
    axis.set(xlim=(0, 1), ylim=(-0.4, max(levels.values()) + 0.4))
    for name, below in reduced(graph).items():
        for target in below:
            axis.annotate(
                "",
                xy=places[target],
                xytext=places[name],
                arrowprops={"arrowstyle": "-|>", "color": "#9aa7b5", "lw": 0.9, "shrinkB": 26},
                zorder=1,
            )
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3f8", "edgecolor": "#33526e"}
        text = f"{name}\n{size[name]:,} lines"
        axis.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box, zorder=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw docs/pictures/architecture.png")
    if parser.parse_args().draw:
        draw(ROOT / "docs" / "pictures" / "architecture.png")
    print(json.dumps(counts(), indent=2))


if __name__ == "__main__":
    main()
