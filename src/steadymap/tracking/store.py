"""The MLflow tracking store: address, connection, errors."""

import logging
import os
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils import get_results_from_paginated_fn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from steadymap.store.atomic import atomic_file

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 10.0

_CONNECT_SECONDS = 5.0

_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class TrackingError(OSError):
    """The tracking store can't be used; names its URI, the cause and the remedy."""


def tracking_uri(uri: str | None = None) -> str:
    """Return `uri`, or `MLFLOW_TRACKING_URI`, or `mlflow.db` at the root of the repository."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    # DVC runs each stage in the folder of its dvc.yaml.
    return uri or f"sqlite:///{Path(os.environ.get('DVC_ROOT') or '.').resolve() / 'mlflow.db'}"


@contextmanager
def open_store(uri: str | None) -> Iterator[tuple[MlflowClient, str]]:
    """Yield a client and its URI; whatever fails in the store becomes a TrackingError."""
    uri = tracking_uri(uri)
    try:
        _probe(uri)
        _relocate(uri)
        yield MlflowClient(tracking_uri=uri, registry_uri=uri), uri
    except TrackingError:
        raise
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise problem(uri, str(error) or type(error).__name__) from error


def _probe(uri: str) -> None:
    """Fail within seconds where MLflow would retry for minutes."""
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            _create(path)
        connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA schema_version")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    elif scheme in ("", "file"):
        raise problem(uri, "MLflow has given up storing runs as plain files")
    elif parts.hostname and scheme in _PORTS:
        if scheme in getproxies() and not proxy_bypass(parts.hostname):
            return
        address = (parts.hostname, parts.port or _PORTS[scheme])
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()


# Columns in which MLflow keeps where artifacts are.
_LOCATIONS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
    ("logged_models", "artifact_location"),
)


def _relocate(uri: str) -> None:
    """Point a local database that was moved or copied to the artifacts beside it.

    MLflow stores absolute locations. Those elsewhere that somebody else chose are left alone.
    """
    path, folder = sqlite_path(uri), artifact_folder(uri)
    if path is None or folder is None:
        return
    here = f"{folder.as_uri()}/"
    with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not {table for table, _ in _LOCATIONS} <= tables:
            return
        known = database.execute("SELECT name, experiment_id, artifact_location FROM experiments")
        roots = {
            location.removesuffix(end)
            for name, number, location in known
            for end in (quote(name), str(number))
            if location and location.endswith(f"/{folder.name}/{end}")
        }
        if not (roots := roots - {here}):
            return
        database.execute("BEGIN IMMEDIATE")
        for root in roots:
            for table, column in _LOCATIONS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (here, len(root) + 1, len(root), root),
                )
        database.execute("COMMIT")
    logger.info("MLflow: %s was moved; its artifacts are those in %s", path.name, folder)


# Remedies by a pattern of an error's message.
_REMEDIES: dict[str, str] = yaml.safe_load(
    resources.files("steadymap.tracking").joinpath("remedies.yaml").read_text("utf-8")
)


def problem(uri: str, cause: str, remedy: str | None = None) -> TrackingError:
    """TrackingError of a store, with cause and remedy, without a password.

    Parameters
    ----------
    uri : str
        Address of the store.
    cause : str
        Message of the error; of SQLAlchemy's, the first line that is no hint counts.
    remedy : str, optional
        By default one for the cause.
    """
    lines = [line for line in cause.strip().splitlines() if not line.startswith("(raised as a")]
    cause = re.sub(r"^\((\w+\.)+\w+\) ", "", (lines or [cause])[0].strip())
    if remedy is None:
        found = (words for words in _REMEDIES if re.search(words, cause, re.IGNORECASE))
        other = "mend it, or set MLFLOW_TRACKING_URI to another store"
        remedy = _REMEDIES.get(next(found, ""), other)
    shown = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)
    return TrackingError(f"MLflow store {shown}: {cause}; {remedy}")


def _create(path: Path) -> None:
    """Make a database at once: with tables that a kill left half made MLflow can do nothing."""
    with atomic_file(path) as temporary:
        store = SqlAlchemyStore(f"sqlite:///{temporary}", (path.parent / "mlartifacts").as_uri())
        store.engine.dispose()


def sqlite_path(uri: str) -> Path | None:
    """File of an SQLite store; None for other stores."""
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    if not database or database == ":memory:":
        return None
    return Path(database.removeprefix("file:")).resolve()


def artifact_folder(uri: str) -> Path | None:
    """Beside a local database; a server decides for itself."""
    path = sqlite_path(uri)
    return None if path is None else path.parent / "mlartifacts"


def all_pages(search: Callable[..., Any], **options: Any) -> list[Any]:
    """Items of all pages of an MLflow search."""
    return get_results_from_paginated_fn(
        lambda most, token: search(**options, max_results=most, page_token=token), 1000
    )
