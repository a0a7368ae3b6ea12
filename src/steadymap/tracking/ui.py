"""The MLflow UI on 127.0.0.1."""

import argparse
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from steadymap.tracking.store import (
    TrackingError,
    artifact_folder,
    open_store,
    problem,
    sqlite_path,
    tracking_uri,
)


def ui_app() -> Any:
    """ASGI application of MLflow's UI, in one process.

    MLflow's own launcher takes 3.3 GB in 15 processes, this 0.3 GB.
    """
    from mlflow.server import constants, fastapi_app, handlers

    uri = tracking_uri()
    folder = artifact_folder(uri)
    with open_store(uri):
        handlers.initialize_backend_stores(uri, uri, folder.as_uri() if folder else None)
    # The requests' handlers look these up.
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = uri
    return fastapi_app.app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m steadymap.tracking ui`."""
    parser = argparse.ArgumentParser(prog="python -m steadymap.tracking")
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="serve the MLflow UI on this machine alone, until Ctrl-C")
    ui.add_argument("--port", type=int, default=5000)
    port = parser.parse_args(arguments).port
    uri = tracking_uri()
    path = sqlite_path(uri)
    try:
        if uri.startswith(("http://", "https://")):
            raise problem(uri, "this is a server with a UI of its own", "open it in a browser")
        if path is not None and not path.is_file():
            raise problem(uri, "there is no such file yet", "fill it by `make repro`")
        _check_port(port)
        # Deprecations inside MLflow are none of the reader's business.
        warnings.simplefilter("ignore")
        import uvicorn

        app = ui_app()
    except TrackingError as error:
        sys.exit(str(error))
    print(f"MLflow: http://127.0.0.1:{port}/#/experiments (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(
                f"port {port}: {str(error.strerror).lower()}; choose another by --port"
            ) from None
