"""Determines the address of the tracking store, and whether it can be reached."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipelines.tracking.relocation import FILES
from vlmodel.config import ConfigSection
from vlmodel.errors import ExpectedError
from vlmodel.locations import redact_secrets

DATABASE = "mlflow.db"
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "oracle": 1521}


class TrackingError(ExpectedError, RuntimeError):
    """The tracking store or a run in it cannot be used. The message names the remedy."""


class TrackingConfig(ConfigSection):
    uri: str = ""
    """MLflow tracking URI; "" uses the environment's MLFLOW_TRACKING_URI, else sqlite in the storage folder."""
    experiment: str = "vlmodel"
    """Name of the MLflow experiment."""
    model_name: str = "vlmodel"
    """Name of the registered model. If it is not set, it is the last folder of data.tars: models of one data set are
    compared with each other, and not with those of another."""
    system_metrics: bool = True
    """Record CPU, memory, disk, network and GPU load of the machine of rank 0."""
    page_port: int = Field(5000, ge=1, le=65535)
    """Port of the MLflow page that the pipeline job serves (loopback only)."""

    @field_validator("uri")
    @classmethod
    def _check_no_password(cls, uri: str) -> str:
        if redact_secrets(uri) != uri:
            raise ValueError(
                f"{redact_secrets(uri)!r} holds credentials; give the address in MLFLOW_TRACKING_URI, or the "
                "credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN"
            )
        return uri

    @field_validator("model_name")
    @classmethod
    def _check_model_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.\- ]{1,200}", name):
            raise ValueError(f"{name!r} cannot name a registered model; use letters, digits, spaces and any of _ . -")
        return name


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """Return the address in use: ``config.uri``, else MLFLOW_TRACKING_URI, else ``sqlite:///<storage>/mlflow.db``.

    A relative sqlite file is made absolute, so that the address means the same in every process of this machine.

    Raises:
        TrackingError: there is no address and ``storage`` is not a local folder.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        if "://" in storage and not storage.startswith("file://"):
            raise TrackingError(
                f"storage {storage!r} is not a local folder, so it cannot hold a tracking database; set tracking.uri "
                "to the address of an MLflow server"
            )
        return f"sqlite:///{Path(storage.removeprefix('file://')).absolute() / DATABASE}"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite database; None for another store."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path) if uri.startswith("sqlite:///") and path and path != ":memory:" else None


def mlflow_server_command(uri: str, port: int = 5000) -> list[str]:
    """Return the command line of a server that shows the runs in the database ``uri`` at http://127.0.0.1:``port``."""
    # Job execution is off: it starts seven processes for features of language models, which take minutes of two cores
    # and outlive a server that is killed.
    server = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", sys.executable, "-m", "mlflow", "server"]
    return [*server, "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def artifact_location(uri: str, storage: str) -> str | None:
    """Return where a new experiment stores its files: in the storage folder, or None if a server decides it."""
    if urlsplit(uri).scheme in {"http", "https"} or uri.startswith("databricks"):
        return None
    if "://" in storage:
        return f"{storage.rstrip('/')}/{FILES}"
    return (Path(storage).absolute() / FILES).as_uri()


def check_reachable(uri: str) -> None:
    """Raise TrackingError if nothing answers at ``uri`` or, for sqlite, if the file cannot be created and written.

    Raises:
        TrackingError: it cannot be reached.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    try:
        if scheme == "sqlite":
            _check_sqlite(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
        elif scheme in {"http", "https"}:
            with contextlib.suppress(urllib.error.HTTPError):  # an error status is an answer, too
                # urllib would treat a user and password as a part of the host's name, and print them.
                server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
                urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=10).close()
        elif scheme in DEFAULT_PORTS and parts.hostname:
            socket.create_connection((parts.hostname, parts.port or DEFAULT_PORTS[scheme]), timeout=10).close()
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise TrackingError(
                f"the tracking store {redact_secrets(uri)} is held by another process (see which: lsof "
                f"{sqlite_file(uri)}); end that, or wait for it"
            ) from error
        remedy = (
            "choose a storage folder that can be written, or move the damaged file away"
            if scheme == "sqlite"
            else "start the server (mlflow server --backend-store-uri sqlite:///mlflow.db) or correct tracking.uri"
        )
        raise TrackingError(f"the tracking store {redact_secrets(uri)} cannot be reached: {error}; {remedy}") from error


def _check_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
        database.execute("PRAGMA schema_version").fetchone()
    if not os.access(path.parent, os.W_OK) or not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
