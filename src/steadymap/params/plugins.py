"""Attribution methods and similarity metrics of users, from modules outside the package."""

import ast
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from steadymap import HOMES
from steadymap.params.methods import METHODS, SIMILARITIES, Hyperparameter, Method, name_problem
from steadymap.store import fingerprint

F = TypeVar("F", bound=Callable[..., Any])

Cost = Callable[[Mapping[str, Any], int], tuple[int, int]]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_DECLARED = "__steadymap_method__"

_N_POSITIONAL = 3


class OwnError(ValueError):
    """A custom method or metric that can't be used."""


@dataclass(frozen=True)
class _Declared:
    """What `attribution_method` notes on a function."""

    hyperparameters: Mapping[str, Hyperparameter]
    cost: Cost
    libraries: tuple[str, ...]
    takes_ids: bool


@dataclass(frozen=True)
class Code:
    """A function that `module:name` names.

    Attributes
    ----------
    path : str
        `module:name`; empty for a function that was given itself.
    function : callable
        The function.
    source : str
        Hash of its file and of those that the file imports from the same project, as imported.
    uses : tuple of str
        Modules of this package that they import.
    """

    path: str
    function: Callable[..., Any]
    source: str = ""
    uses: tuple[str, ...] = ()

    @property
    def note(self) -> dict[str, str]:
        """Path and hash: another one where the function may be another."""
        return {"path": self.path, "source": self.source}


@dataclass(frozen=True)
class OwnMethod(_Declared):
    """A custom attribution method under the name that a study gives it.

    Attributes
    ----------
    declaration : Method
        Name and hyperparameters.
    code : Code
        The function.
    cost : callable
        From a setting and the image's side to forward and backward passes per image.
    libraries : tuple of str
        Packages beside torch whose versions the maps depend on.
    takes_ids : bool
        Whether the function takes `image_ids`.
    """

    declaration: Method
    code: Code


_METHODS: dict[str, OwnMethod] = {}

# Own modules in memory: the files that they were made of, and what those said.
_IMPORTED: dict[str, tuple[tuple[Path, ...], str]] = {}


def attribution_method(
    *,
    cost: tuple[int, int] | Cost,
    libraries: Sequence[str] = (),
    **hyperparameters: Hyperparameter,
) -> Callable[[F], F]:
    """Declare a function as an attribution method; the function itself stays as it is.

    The function takes `(runner, images, targets, *, ...)`: what runs the model
    (`steadymap.attribution.model_runner.ModelRunner`), images (batch, channel, height, width) in
    [0, 1],
    the class to explain for each, and by keyword every hyperparameter declared. If it takes
    `image_ids`, it gets the images' names, which random draws are keyed by. It returns signed maps
    (batch, height, width), each a function of its own image alone.

    Parameters
    ----------
    cost : tuple of int, or callable
        Forward and backward passes per image, at most; or a function of the hyperparameters and
        the image's side that gives them.
    libraries : sequence of str
        Distributions beside torch whose versions the maps depend on.
    **hyperparameters : Hyperparameter
        Type, default and range of each. A method that draws random numbers declares `seed`.

    Raises
    ------
    OwnError
        Where the declaration does not fit the function.
    """

    def note(function: F) -> F:
        name = getattr(function, "__name__", str(function))
        taken = _keywords(name, function)
        _check_hyperparameters(name, hyperparameters)
        for argument in sorted(taken - set(hyperparameters) - {"image_ids"}):
            raise OwnError(
                f"{name} takes {argument}, which is not declared; write "
                f"@attribution_method({argument}=Hyperparameter(...)), or drop the argument"
            )
        for argument in hyperparameters:
            if argument not in taken:
                raise OwnError(
                    f"{name} declares {argument}, but takes no such argument; add it behind the *"
                )
        declared = _Declared(
            dict(hyperparameters), _cost(name, cost), tuple(libraries), "image_ids" in taken
        )
        setattr(function, _DECLARED, declared)
        return function

    return note


def _keywords(name: str, function: Callable[..., Any]) -> set[str]:
    """Arguments of a method behind runner, images and targets."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first, rest = parameters[:_N_POSITIONAL], parameters[_N_POSITIONAL:]
    if len(first) < _N_POSITIONAL or any(p.kind not in positional for p in first):
        raise OwnError(f"{name} must take (runner, images, targets, *, ...); change its arguments")
    for parameter in rest:
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            raise OwnError(f"{name} takes {parameter}; name each hyperparameter instead")
    return {parameter.name for parameter in rest}


def _check_hyperparameters(name: str, hyperparameters: Mapping[str, Any]) -> None:
    for key, declared in hyperparameters.items():
        if key == "image_ids":
            raise OwnError(f"{name}: image_ids is no hyperparameter; drop its declaration")
        if not isinstance(declared, Hyperparameter) or declared.type not in (int, float, str):
            raise OwnError(
                f"{name}: {key} is declared as {declared!r}; write Hyperparameter(int, 3, low=1), "
                "its type int, float or str"
            )
        if (declared.count or declared.progress) and declared.type is not int:
            raise OwnError(f"{name}: {key} counts, but is no whole number; declare it as int")
        try:
            declared.check(key, declared.default)
        except ValueError as error:
            raise OwnError(f"{name}: the default of {error}") from None
    seed = hyperparameters.get("seed")
    if seed is not None and (seed.type is not int or seed.low < 0):
        raise OwnError(
            f"{name}: seed is no whole number from 0; write Hyperparameter(int, 0, low=0)"
        )


def _cost(name: str, cost: Any) -> Cost:
    if callable(cost):
        return cost
    is_pair = isinstance(cost, tuple) and len(cost) == 2
    if is_pair and all(isinstance(value, int) and value >= 0 for value in cost):
        return lambda hyperparameters, side: cost
    raise OwnError(
        f"{name}: cost is {cost!r}; write (forward, backward) passes per image, such as (1, 1), or "
        "a function of hyperparameters and side that gives them"
    )


def find(name: str) -> OwnMethod | None:
    """Own method of that name, None where there is none."""
    return _METHODS.get(name)


def declaration(name: str) -> Method:
    """Declaration of a method, the package's or a custom one.

    Raises
    ------
    ValueError
        Where there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    if name in _METHODS:
        return _METHODS[name].declaration
    raise ValueError(f"method is {name!r}; choose one of {', '.join([*METHODS, *_METHODS])}")


def named(method: str | Callable[..., Any]) -> str:
    """Name of a method; a function that `attribution_method` declared gets its own.

    Raises
    ------
    OwnError
        Where the function is not declared, or has the name of one of the package's.
    """
    if isinstance(method, str):
        return method
    return _register(getattr(method, "__name__", str(method)), Code("", method))


def register(name: str, path: str, *, folder: Path | None = None) -> Method:
    """Import an own method, as `load`, and make it known; one of that name gives way.

    Parameters
    ----------
    name
        Name in params.
    path
        `module:function`.
    folder
        Folder of the module; the working folder by default.

    Raises
    ------
    OwnError
        Where name, path, module, member or declaration is not usable.
    """
    check_name(name, METHODS, "method")
    return declaration(_register(name, load(path, folder)))


def _register(name: str, code: Code) -> str:
    check_name(name, METHODS, "method")
    declared = getattr(code.function, _DECLARED, None)
    if declared is None:
        raise OwnError(
            f"{code.path or name} is not declared; write @attribution_method(cost=(1, 1)) above "
            "it, with its hyperparameters"
        )
    method = Method(name, declared.hyperparameters)
    _METHODS[name] = OwnMethod(**vars(declared), declaration=method, code=code)
    return name


def metric(name: str, path: str) -> Code:
    """Import an own similarity metric.

    Raises
    ------
    OwnError
        Where name, path, module or member is not usable.
    """
    check_name(name, SIMILARITIES, "metric")
    return load(path)


def check_name(name: str, taken: Sequence[str] | Mapping[str, Any], kind: str) -> None:
    """Refuse names that tables and files can't hold, and those of the package.

    Parameters
    ----------
    name
        Name to be checked.
    taken
        Names of the package.
    kind
        What it names, for errors.
    """
    if (problem := name_problem(name, kind)) is not None:
        raise OwnError(f"{name!r} can't name a {kind}; {problem}")
    if name in taken:
        raise OwnError(f"{name} is the name of a {kind} of steadymap; choose another")


def load(path: str, folder: Path | None = None) -> Code:
    """Import the function that `module:name` names, from a folder or the environment.

    The folder is the working one where none is given. A module that changed since it was imported
    is imported anew.

    Raises
    ------
    OwnError
        Where module or name can't be imported, or is no function.
    """
    if not _PATH.fullmatch(path):
        raise OwnError(f"{path!r} is no dotted path; write module:function")
    module, _, member = path.partition(":")
    if module.split(".")[0] == "steadymap":
        raise OwnError(f"{path!r} is the package's own; name a module of yours")
    files, source = _imported(module, folder or Path.cwd())
    found = getattr(sys.modules[module], member, None)
    if found is None:
        close = get_close_matches(member, vars(sys.modules[module]), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"define it in {files[0].name}"
        raise OwnError(f"{module} has no {member}; {hint}")
    if not callable(found) or inspect.isclass(found):
        raise OwnError(f"{path} is no function; name one")
    uses = sorted({name for file in files for name in _package_modules(file)})
    return Code(path, found, source, tuple(uses))


def _imported(module: str, here: Path) -> tuple[tuple[Path, ...], str]:
    """Import a module if it is not there as its files are now; those files and their hash."""
    _forget_changed(module, here)
    # Stages run from the project's root, where an own module lies; sys.path begins with stages/.
    sys.path.insert(0, str(here))
    try:
        importlib.invalidate_caches()
        importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise OwnError(
                f"there is no module {error.name}; put {str(error.name).replace('.', '/')}.py into "
                "the project's root, or install its package"
            ) from None
        raise OwnError(
            f"{module} can't be imported ({type(error).__name__}: {error}); mend it"
        ) from error
    finally:
        sys.path.pop(0)
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not file.endswith(".py"):
        raise OwnError(f"{module} is no Python file; name a module that is")
    if module not in _IMPORTED:
        files = _files(module, Path(file).resolve(), here.resolve())
        _IMPORTED[module] = files, _digest(files)
    return _IMPORTED[module]


def _forget_changed(module: str, here: Path) -> None:
    """Drop a module from memory if its files changed, or another one stands in the folder."""
    if module not in sys.modules:
        _IMPORTED.pop(module, None)
        return
    file = getattr(sys.modules[module], "__file__", None)
    files, source = _IMPORTED.get(module, ((Path(file).resolve(),) if file else (), None))
    place = here.joinpath(*module.split("."))
    stands = [path.resolve() for path in (place.with_suffix(".py"), place / "__init__.py")]
    moved = not any(path in files for path in stands) and any(p.is_file() for p in stands)
    if not moved and (source is None or _digest(files) == source):
        return
    for name, known in list(sys.modules.items()):
        known_file = getattr(known, "__file__", None)
        if known_file and Path(known_file).resolve() in files:
            del sys.modules[name]
            _IMPORTED.pop(name, None)


def _files(module: str, file: Path, here: Path) -> tuple[Path, ...]:
    """File of a module, then those it imports from the same project or package."""
    root = file.parents[module.count(".") + (file.name == "__init__.py")]
    top = module.split(".")[0]
    found, waiting = [file], [file]
    while waiting:
        path = waiting.pop()
        package = list((path.parent).relative_to(root).parts)
        for name in _names(path, package):
            # In an environment's folder the neighbors are other people's packages.
            if root != here and name.split(".")[0] != top:
                continue
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                base = root.joinpath(*parts[:length])
                for candidate in (base.with_suffix(".py"), base / "__init__.py"):
                    if candidate.is_file() and candidate not in found:
                        found.append(candidate)
                        waiting.append(candidate)
    return file, *sorted(found[1:])


def _names(path: Path, package: Sequence[str]) -> set[str]:
    """Absolute names of the modules, and perhaps members, that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found - {""}


def _package_modules(file: Path) -> set[str]:
    """Modules of this package that a file imports, through its front door too."""
    parts = {name: name.split(".") for name in _names(file, []) if name.startswith("steadymap.")}
    homes = {HOMES.get(levels[1], name) for name, levels in parts.items()}
    return {name for name in homes if fingerprint.is_module(name)}


def _digest(files: Sequence[Path]) -> str:
    try:
        lines = [f"{path.name} {fingerprint.file_digest(path)}" for path in files]
    except (OSError, SyntaxError):
        return ""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
