"""Which code and params made a study's tables, and whether they are those that are here.

`dvc.lock` beside the tables has the hash of every file and the value of every parameter that their
stages used. `sources.json` has, per source file, that hash (`md5`) and one of what the file says
(`digest`), to which comments, docstrings and layout do not count.
"""

import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from steadymap.params import plugins
from steadymap.params.files import load
from steadymap.store import fingerprint
from steadymap.store.atomic import atomic_file, read_json, write_json

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
    """Write `sources.json`: hashes of source files, given relative to the current folder."""
    made = {
        Path(path).as_posix(): {"md5": _md5(path), "digest": fingerprint.file_digest(Path(path))}
        for path in paths
    }
    write_json(dict(sorted(made.items())), folder / SOURCES)


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
    known = read_json(record) if record.is_file() else {}
    # What was measured without DVC has the files alone.
    found = {path: {""} for path in known if not _unchanged(path, known[path]["md5"], known)}
    if lock.is_file():
        found = _since(_upstream(_yaml(lock), folder.name), folder, known)
    if found:
        lines = [
            f"- `{what}`" + (f" ({', '.join(sorted(stages))})" if any(stages) else "")
            for what, stages in sorted(found.items())
        ]
        more = [f"- and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise StaleError(
            f"{folder}: stale tables, which other code or params made than those that are here. "
            "Run `make repro`, which computes what changed, then check again. Changed, with the "
            "stages that use it:\n\n" + "\n".join([*lines[:_SHOWN], *more])
        )


def _since(
    locked: Mapping[str, Mapping[str, Any]], folder: Path, known: Mapping[str, Any]
) -> dict[str, set[str]]:
    """What changed since stages ran, and the names of those that use it."""
    found: dict[str, set[str]] = {}
    params = _yaml(Path(PARAMS))
    notes = _own_notes(params)
    for name, stage in locked.items():
        hashes = {entry["path"]: entry.get("md5") for entry in stage.get("deps", ())}
        changed = [path for path in _code(stage) if not _unchanged(path, hashes[path], known)]
        for end, note in notes.items():
            if any(path.endswith(end) and md5 != note for path, md5 in hashes.items()):
                changed.append(f"{PARAMS}: code of {Path(end).stem}")
        for key, value in stage.get("params", {}).get(PARAMS, {}).items():
            if _value(params, key) != value:
                changed.append(f"{PARAMS}: {key}")
        for entry in stage.get("outs", ()):
            if _is_tables(entry["path"], folder.name) and entry["md5"] != _md5_dir(folder):
                changed.append(f"{folder / 'tables'}: edited, or of another run than {LOCK}")
        for what in changed:
            found.setdefault(what, set()).add(name.partition("@")[0])
    return found


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
    made = {name: [out["path"] for out in stage.get("outs", ())] for name, stage in stages.items()}
    found: dict[str, Mapping[str, Any]] = {}
    waiting = [path for paths in made.values() for path in paths if _is_tables(path, study)]
    if not waiting:
        raise StaleError(
            f"reports/{study}/tables: no stage in {LOCK} wrote them; run `make repro` with params "
            "of that study"
        )
    while waiting:
        path = waiting.pop()
        for name, outs in made.items():
            if name not in found and any(_overlap(path, out) for out in outs):
                found[name] = stages[name]
                waiting += [entry["path"] for entry in stages[name].get("deps", ())]
    return found


def _is_tables(path: str, study: str) -> bool:
    return path == f"reports/{study}/tables"


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _code(stage: Mapping[str, Any]) -> list[str]:
    paths = (entry["path"] for entry in stage.get("deps", ()))
    return [path for path in paths if path.endswith(".py")]


def _unchanged(path: str, md5: str, known: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether a source file is the one with this hash, or says the same."""
    if not Path(path).is_file():
        return False
    if _md5(path) == md5:
        return True
    before = known.get(path, {})
    try:
        return before.get("md5") == md5 and before["digest"] == fingerprint.file_digest(Path(path))
    except SyntaxError:
        return False


def _own_notes(params: Mapping[str, Any]) -> dict[str, str]:
    """Hash of the note on each own method and on the own metrics, by its path's end."""
    if not any((params.get(name) or {}).get("own") for name in ("attribution", "similarity")):
        return {}
    made = load()
    notes: dict[str, Any] = {
        f"/own/methods/{name}.json": plugins.load(path).note
        for name, path in made.attribution.own.items()
    }
    notes["/own/similarity.json"] = {
        name: plugins.load(path).note for name, path in made.similarity.own.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "note.json")
        hashes = {}
        for end, note in notes.items():
            write_json(note, file)
            hashes[end] = _md5(file)
    return hashes


def _value(params: Mapping[str, Any], key: str) -> Any:
    found: Any = params
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _yaml(path: Path) -> Any:
    # The lock has thousands of lines.
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _md5(path: str | Path) -> str:
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()


def _md5_dir(folder: Path) -> str:
    """Hash of the tables, as DVC has it of a folder."""
    tables = folder / "tables"
    files = {path.relative_to(tables).as_posix(): path for path in tables.rglob("*")}
    entries = [
        {"md5": _md5(path), "relpath": name}
        for name, path in sorted(files.items())
        if path.is_file()
    ]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
