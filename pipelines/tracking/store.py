"""Opens connections to MLflow's tracking store and model registry. Importing MLflow takes seconds, so it is imported
only then.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipelines.storage.lock import hold_lock
from pipelines.tracking.address import (
    DATABASE,
    TrackingConfig,
    TrackingError,
    check_reachable,
    sqlite_file,
    tracking_uri,
)
from vlmodel.locations import redact_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_REASON = 500
_OPENING_S = 300  # creating a database takes seconds, on a busy machine a minute
_POLL_S = 2.0
_WAIT_S = 120.0
_LOG_LEVELS = {
    "urllib3.connectionpool": logging.ERROR,
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # it logs errors with SQL and traceback, and raises them as well
}


def open_store(config: TrackingConfig, storage: str) -> MlflowClient:
    """Open a client of the tracking store and model registry that jobs with this storage folder use.

    If the storage folder was moved or copied with its database, the file addresses in the database are updated.

    Raises:
        TrackingError: nothing answers there, or another process holds the store.
    """
    uri = tracking_uri(config, storage)
    client = connect_to_store(uri)
    database = sqlite_file(uri)
    if "://" not in storage and database == Path(storage).absolute() / DATABASE:
        from pipelines.tracking.relocation import relocate_artifacts

        with _database_lock(uri):
            try:
                relocate_artifacts(database)
            except sqlite3.Error as error:
                raise TrackingError(f"the file addresses in {database} cannot be checked: {error}") from error
    return client


def connect_to_store(uri: str) -> MlflowClient:
    """Open a client of the tracking server and model registry at ``uri``; creates a sqlite database that does not
    exist.

    Raises:
        TrackingError: nothing answers there. This is noticed within seconds; MLflow itself would retry for minutes.
    """
    with _database_lock(uri):
        check_reachable(uri)
        from mlflow import MlflowClient

        # urllib3 logs each attempt; that the server is gone is logged once (metric_queue.py), or ends the job. Creating
        # a sqlite database logs fifty migrations.
        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        with mlflow_errors(f"open the tracking store {redact_secrets(uri)}"):
            if (database := sqlite_file(uri)) is not None and not database.stat().st_size:
                _create_database(database)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


def _create_database(database: Path) -> None:
    """Create MLflow's tables in a file under another name, which is renamed when all are there: MLflow cannot continue
    with some of them, which a full disk or a kill would leave.
    """
    from mlflow import MlflowClient

    unfinished = database.with_name(f"{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    uri = f"sqlite:///{unfinished}"
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
    unfinished.replace(database)


def wait_until_reachable(uri: str, limit_s: float = _WAIT_S) -> None:
    """Wait until the store at ``uri`` answers.

    Raises:
        TrackingError: it does not within ``limit_s`` seconds.
    """

    def print_waiting_message(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            print(f"tracking  waits up to {limit_s:.0f} s: {state.outcome.exception()}", flush=True)

    retry = Retrying(
        retry=retry_if_exception_type(TrackingError),
        stop=stop_after_delay(limit_s),
        wait=wait_fixed(min(_POLL_S, limit_s)),
        before_sleep=print_waiting_message,
        reraise=True,
    )
    retry(check_reachable, uri)


@contextlib.contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Convert MLflow's errors within the block to ``TrackingError("could not <action>: ...")``."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # After the first line, a database's error repeats the SQL statement and all its values.
        reason = redact_secrets(str(error)).strip().partition("\n")[0][:_MAX_REASON]
        raise TrackingError(f"could not {action}: {reason}") from error


@contextlib.contextmanager
def hide_passwords_in_stdout() -> Iterator[None]:
    """Print MLflow's output without the password that a run's address may contain."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        print(redact_secrets(printed.getvalue()), end="", flush=True)


@contextlib.contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Lock a sqlite database: MLflow migrates it in many steps, and if two processes do so at once, both fail."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return

    def locked_database_error(holder: str) -> TrackingError:
        return TrackingError(f"{holder} has been opening {database} for {_OPENING_S} s; end it, and try again")

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                hold_lock(database.with_name(f".{database.name}.lock"), locked_database_error, _OPENING_S)
            )
        except OSError as error:
            raise TrackingError(
                f"the tracking store {redact_secrets(uri)} cannot be reached: {error}; choose a storage folder that "
                "can be written"
            ) from error
        yield
