"""Import closures of the package's modules, and hashes of their code."""

import ast
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# Declarations and file formats affect a result only through values that its key holds: with them
# left out of the hash, a new method or params key invalidates no finished work.
_NEUTRAL = (
    *("steadymap.params", "steadymap.store", "steadymap.training.checkpoints"),
    *("steadymap.training.downloads", "steadymap.training.torch_files"),
)

_REFERENCE = re.compile(r"steadymap(\.\w+)+:\w+")


def _path(module: str) -> Path | None:
    base = _PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file it does so.

    A string "steadymap.module:name", as registries hold, counts as an import.
    """
    return set(_imports(path, path.stat().st_mtime_ns))


@cache
def _imports(path: Path, modified: int) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            # `from package import module` names a module, not a member.
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _REFERENCE.fullmatch(node.value)
        ):
            names.add(node.value.partition(":")[0])
    return frozenset(
        name for name in names if name.split(".")[0] == "steadymap" and is_module(name)
    )


def closure(start: Path) -> set[Path]:
    """Source files of the package that running the file `start` imports.

    Packages are entered through their `__init__`, except the top one, which imports lazily.
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
    """Source without comments, layout and docstrings, which can't change a result."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def _file_digest(path: Path, modified: int) -> str:
    return hashlib.sha256(_normalized(path.read_text()).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hash of a source file's code; comments, docstrings and layout don't count."""
    return _file_digest(path, path.stat().st_mtime_ns)


def is_module(name: str) -> bool:
    """Whether the package has a module of that name."""
    return _path(name) is not None


class _WithoutModules(ast.NodeTransformer):
    """Drops imports from the package; a name bound to one of its modules becomes a placeholder."""

    def __init__(self, bound: Mapping[str, str]):
        self.bound = bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.Pass() if (node.module or "").split(".")[0] == "steadymap" else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        name = self.bound.get(node.id)
        return ast.Name(f"<{name}>", node.ctx) if name else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        module, _, member = (
            node.value.partition(":") if isinstance(node.value, str) else ("", "", "")
        )
        if module.startswith("steadymap.") and is_module(module):
            return ast.Constant(f"<{module}>{member}")
        return node


@cache
def _statements(path: Path, modified: int) -> tuple[str, ...]:
    """Top-level statements of a file, normalized, each as text."""
    tree = ast.parse(_normalized(path.read_text()))
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "steadymap":
            for alias in node.names:
                if is_module(module := f"{node.module}.{alias.name}"):
                    bound[alias.asname or alias.name] = module
    statements = []
    for node in tree.body:
        text = ast.unparse(ast.fix_missing_locations(_WithoutModules(bound).visit(node)))
        if text != "pass" and not text.startswith("__all__"):
            statements.append(text)
    return tuple(statements)


def _resolved(path: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Statements of a file, in which a module of the package stands for its content.

    `above` are the files that are being resolved: modules that import each other end there.
    """

    def hashed(match: re.Match[str]) -> str:
        target = _path(match[1])
        if target is None or target.name == "__init__.py" or _is_neutral(match[1]):
            return "neutral"
        if target in (*above, path):
            return "above"
        lines = sorted(_resolved(target, (*above, path)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    texts = _statements(path, path.stat().st_mtime_ns)
    return [re.sub(r"<(steadymap[\w.]*)>", hashed, text) for text in texts]


def _is_neutral(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NEUTRAL)


def digest(*modules: str) -> str:
    """Hash of the code of `modules` and of all that they import from the package.

    Neither comments, docstrings and layout count, nor in which module of the package a statement
    stands, what the modules are called and how they import each other: moving or renaming code
    leaves finished work finished. Declarations and file formats don't count either, nor package
    `__init__` files: they hold registries, and a method must not depend on its siblings.
    """
    files: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or path in files or path.name == "__init__.py" or _is_neutral(name):
            continue
        files.add(path)
        waiting.extend(_imports(path, path.stat().st_mtime_ns))
    return _digest(frozenset((path, path.stat().st_mtime_ns) for path in files))


# Cached, as every task's key needs it.
@cache
def _digest(files: frozenset[tuple[Path, int]]) -> str:
    lines = {text for path, _ in files for text in _resolved(path)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
