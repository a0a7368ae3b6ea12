"""Which of the package's source files a module needs, and a hash of what they say."""

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Declarations and file formats, ours and others': what they say reaches a result through the values
# in its key alone, so that a new method or a new params key leaves finished work finished.
_NEUTRAL = tuple(
    f"steadymap.{name}"
    for name in (
        "checkpoints",
        "downloads",
        "params",
        "sources",
        "store",
        "torch_files",
        "vocabulary",
    )
)
_REFERENCE = re.compile(r"steadymap(\.\w+)+:\w+")


def _path(module: str) -> Path | None:
    base = _PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _module(path: Path) -> str:
    parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file it does so.

    A string "steadymap.module:name", as registries hold, counts as an import.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            # `from package import module` names a module, not a member.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _REFERENCE.fullmatch(node.value)
        ):
            found.add(node.value.partition(":")[0])
    return {name for name in found if name.split(".")[0] == "steadymap" and _path(name)}


def closure(start: Path) -> set[Path]:
    """Every source file of the package that running the file `start` reads.

    Packages are entered through their `__init__`, except the top one, which is all lazy.
    """
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        for name in imports(path):
            parents = [name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)]
            for candidate in parents:
                target = _path(candidate)
                if target and target not in seen and candidate != "steadymap":
                    seen.add(target)
                    waiting.append(target)
    return seen - {start}


def _normalized(source: str) -> str:
    """Source without comments, layout and docstrings: what can't change a result."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def _file_digest(path: Path, modified: int) -> str:
    return hashlib.sha256(_normalized(path.read_text()).encode()).hexdigest()


@cache
def _imports_of(path: Path, modified: int) -> frozenset[str]:
    return frozenset(imports(path))


def digest(*modules: str) -> str:
    """Hash of the sources of `modules` and of all that they import from the package.

    Comments, docstrings and layout don't count. Neither do declarations and file formats, nor
    package `__init__` files: they hold registries, and a method must not depend on its siblings.
    """
    files: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or path in files or path.name == "__init__.py" or name in _NEUTRAL:
            continue
        files.add(path)
        waiting.extend(_imports_of(path, path.stat().st_mtime_ns))
    lines = [f"{_module(path)} {_file_digest(path, path.stat().st_mtime_ns)}" for path in files]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
