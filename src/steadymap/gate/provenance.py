"""Which code and params made a study's tables, and whether they are those that are here.

`dvc.lock` beside the tables has the hash of every file and the value of every parameter that their
stages used. `sources.json` has, per source file, that hash (`md5`) and one of what the file says
(`digest`), to which comments, docstrings and layout do not count.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from steadymap.params import plugins
from steadymap.params.files import load
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, json_text, read_json, write_json

LOCK, PARAMS, SOURCES = "dvc.lock", "params.yaml", "sources.json"

_SHOWN = 30


class StaleError(ValueError):
    """Tables that other code or params made than those that are here: with what changed."""


def keep(reports: Path) -> None:
    """Keep beside a study's tables what made them: the current `dvc.lock` and `params.yaml`."""
    locked = _upstream(_yaml(Path(LOCK)), reports.name)
    for name in (LOCK, PARAMS):
        with atomic_file(reports / name) as temporary:
            temporary.write_bytes(Path(name).read_bytes())
    keep_sources({path for stage in locked.values() for path in _code(stage)}, reports)


def keep_sources(paths: Collection[str | Path], folder: Path) -> None:
    """Write `sources.json`: hashes of source files, given relative to the current folder.

    A folder stands for all files in it.
    """
    files = sorted({file for path in paths for file in _files(path).values()})
    hashes = {file.as_posix(): {"md5": _md5(file), "digest": _digest(file)} for file in files}
    write_json(hashes, folder / SOURCES)


def require_current(folder: Path) -> None:
    """Refuse tables that other code or params made than those in the current folder.

    Parameters
    ----------
    folder : Path
        Reports of a study, or what `stages/measure.py` wrote.

    Raises
    ------
    StaleError
        Where the tables are stale, or nothing says what made them: names each file and parameter.
    """
    lock, record = folder / LOCK, folder / SOURCES
    if not lock.is_file() and not record.is_file():
        raise StaleError(
            f"{folder}: neither {LOCK} nor {SOURCES} says which code made its tables; write them "
            "anew with `make repro` (or `stages/measure.py`)"
        )
    recorded = read_json(record) if record.is_file() else {}
    changed: dict[str, set[str]] = {}
    if lock.is_file():
        changed = _since(_upstream(_yaml(lock), folder.name), folder, recorded)
    else:
        # What was measured without DVC has the files alone.
        changed = {
            file: set()
            for path in recorded
            for file in _changed(path, recorded[path]["md5"], recorded)
        }
    if changed:
        lines = [
            f"- `{what}`" + (f" ({', '.join(sorted(stages))})" if stages else "")
            for what, stages in sorted(changed.items())
        ]
        more = [f"- and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise StaleError(
            f"{folder}: stale tables, which other code or params made than those that are here. "
            "Run `make repro`, which computes what changed, then check again. Changed, with the "
            "stages that use it:\n\n" + "\n".join([*lines[:_SHOWN], *more])
        )


def _since(
    locked: Mapping[str, Mapping[str, Any]], folder: Path, recorded: Mapping[str, Any]
) -> dict[str, set[str]]:
    """What changed since stages ran, and the names of those that use it."""
    users: dict[str, set[str]] = {}
    params = _yaml(Path(PARAMS))
    notes = _custom_notes(params)
    for name, stage in locked.items():
        hashes = {entry["path"]: entry.get("md5") for entry in stage.get("deps", ())}
        changed = [file for path in _code(stage) for file in _changed(path, hashes[path], recorded)]
        changed += [
            f"{PARAMS}: code of {Path(end).stem}"
            for end, note in notes.items()
            if any(path.endswith(end) and md5 != note for path, md5 in hashes.items())
        ]
        values = stage.get("params", {}).get(PARAMS, {})
        changed += [f"{PARAMS}: {key}" for key in values if _value(params, key) != values[key]]
        for entry in stage.get("outs", ()):
            tables = folder / "tables"
            if _is_tables(entry["path"], folder.name) and entry["md5"] != _md5(tables):
                changed.append(f"{tables}: edited, or of another run than {LOCK}")
        for what in changed:
            users.setdefault(what, set()).add(name.partition("@")[0])
    return users


def _upstream(lock: Mapping[str, Any], study: str) -> dict[str, Mapping[str, Any]]:
    """The stages of a lock that the tables of a study come from, by name."""
    declared, params = _yaml(Path("dvc.yaml"))["stages"], _yaml(Path(PARAMS))
    models = params.get("models") or {}
    items = {*(params.get("methods") or ()), *models.get("regular", ()), *models.get("robust", ())}
    # A lock keeps stages that are no more.
    stages = {
        name: stage
        for name, stage in lock["stages"].items()
        if name.partition("@")[0] in declared and ("@" not in name or name.split("@")[1] in items)
    }
    outs = {name: [out["path"] for out in stage.get("outs", ())] for name, stage in stages.items()}
    upstream: dict[str, Mapping[str, Any]] = {}
    waiting = [path for paths in outs.values() for path in paths if _is_tables(path, study)]
    if not waiting:
        raise StaleError(
            f"reports/{study}/tables: no stage in {LOCK} wrote them; run `make repro` with params "
            "of that study"
        )
    while waiting:
        path = waiting.pop()
        for name, paths in outs.items():
            if name not in upstream and any(_overlap(path, out) for out in paths):
                upstream[name] = stages[name]
                waiting += [entry["path"] for entry in stages[name].get("deps", ())]
    return upstream


def _is_tables(path: str, study: str) -> bool:
    return path == f"reports/{study}/tables"


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _code(stage: Mapping[str, Any]) -> list[str]:
    """Source files of a stage, and folders of them."""
    paths = (entry["path"] for entry in stage.get("deps", ()))
    return [path for path in paths if path.startswith(("src/", "stages/"))]


def _changed(path: str, md5: str, recorded: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Source files of `path`, a file or a folder, that no longer say what had this hash.

    Where `recorded` is not of what had the hash, bytes are all that is known.
    """
    files = {file.as_posix(): file for file in _files(path).values()}
    before = {name: recorded[name] for name in recorded if name == path or _overlap(path, name)}
    hashes = {name: record["md5"] for name, record in before.items()}
    if files and _md5(path) == md5:
        return []
    start = len(path) + 1
    known = {hashes.get(path), _folder_md5({name[start:]: hashes[name] for name in hashes})}
    if md5 not in known:
        return [path]
    return [
        name
        for name in sorted(files.keys() | before.keys())
        if name not in files or name not in before or before[name]["digest"] != _digest(files[name])
    ]


def _files(path: str | Path) -> dict[str, Path]:
    """Files of a folder by relative path, or a file alone."""
    path = Path(path)
    if not path.is_dir():
        return {path.name: path} if path.is_file() else {}
    # Compiled files are none that DVC looks at.
    return {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def _custom_notes(params: Mapping[str, Any]) -> dict[str, str]:
    """Hash of the note on each custom method and on the custom metrics, by its path's end."""
    if not any((params.get(name) or {}).get("own") for name in ("attribution", "similarity")):
        return {}
    validated = load()
    notes: dict[str, Any] = {
        f"/own/methods/{name}.json": plugins.load(path).note
        for name, path in validated.attribution.own.items()
    }
    notes["/own/similarity.json"] = {
        name: plugins.load(path).note for name, path in validated.similarity.own.items()
    }
    return {end: _md5_of(json_text(note)) for end, note in notes.items()}


def _value(params: Mapping[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _yaml(path: Path) -> Any:
    # The lock has thousands of lines.
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _md5(path: str | Path) -> str:
    """Hash of a file or folder, as DVC has it."""
    path = Path(path)
    if path.is_dir():
        return _folder_md5({name: _md5(file) for name, file in _files(path).items()})
    return _md5_of(path.read_bytes())


def _md5_of(content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _digest(path: Path) -> str:
    """Hash of what a file says; of Python, comments, docstrings and layout don't count."""
    if path.suffix != ".py":
        return _md5(path)
    try:
        return fingerprint.file_digest(path)
    except SyntaxError:
        return ""


def _folder_md5(hashes: Mapping[str, str]) -> str:
    """Hash of a folder from those of its files by relative path."""
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(hashes.items())]
    return f"{_md5_of(json.dumps(entries, sort_keys=True))}.dir"
