"""One MLflow run for each training run, however often its processes die and come back.

The job's driver opens the run by name (``Tracker.open``) and hands ``tracker.handle`` to the training workers; the one
of rank 0 joins the same run (``Tracker.attach``), the others use ``NullTracker``. MLflow is imported when a tracker is
made and not before: that takes seconds, and most processes never need it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.storage.lock import locked
from pipelines.tracking.address import (
    DATABASE,
    TrackingConfig,
    TrackingError,
    artifact_location,
    check_reachable,
    page_command,
    sqlite_file,
    tracking_uri,
)
from pipelines.tracking.metric_queue import MetricPoint, MetricQueue, QueueError
from pipelines.tracking.provenance import flatten, git_state, is_below, truncate_with_hash, without_secrets
from vlmodel.locations import redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from pipelines.tracking.system_metrics import LoadMonitor
    from pipelines.tracking.unsent_metrics import UnsentMetrics

__all__ = [
    "RUN_TAG",
    "NullTracker",
    "RunHandle",
    "Tracker",
    "TrackingConfig",
    "TrackingError",
    "connect",
    "mlflow_errors",
    "open_store",
    "page_command",
    "tracking_uri",
    "wait_reachable",
]

log = logging.getLogger(__name__)

RUN_TAG = "training.run"
PARENT_TAG = "mlflow.parentRunId"
MAX_PARAM = 6000  # MLflow's limits: characters of a value, of a key, parameters in one request
MAX_KEY = 250
MAX_PARAMS_AT_ONCE = 100
_MAX_REASON = 500
_OPENING_S = 300  # making a database takes seconds, on a busy machine a minute
_CHECKPOINT_WAIT_S, _CLOSE_WAIT_S = 2.0, 20.0


@dataclass(frozen=True)
class RunHandle:
    """What another process needs to join a run. Small and picklable; its text form hides the address, which may hold
    credentials where it comes from the environment.
    """

    uri: str = field(repr=False)
    run_id: str
    system_metrics: bool
    started_ms: int = 0


def open_store(config: TrackingConfig, storage: str) -> MlflowClient:
    """Client of the tracking store and model registry that jobs with this storage folder use. Where the folder was
    moved or copied with the database in it, that is made to lead to the files beside it.

    Raises:
        TrackingError: nothing answers there, or the store is held by another process.
    """
    uri = tracking_uri(config, storage)
    client = connect(uri)
    database = sqlite_file(uri)
    if "://" not in storage and database == Path(storage).absolute() / DATABASE:
        from pipelines.tracking.relocation import relocate

        with _one_at_a_time(uri):
            try:
                relocate(database)
            except sqlite3.Error as error:
                raise TrackingError(f"the addresses in {database} cannot be looked through: {error}") from error
    return client


def connect(uri: str) -> MlflowClient:
    """Client of the tracking server and model registry at ``uri``; makes a sqlite database that does not exist.

    Raises:
        TrackingError: nothing answers there. It is found out within seconds; MLflow itself would try for minutes.
    """
    # Its library tells of each attempt; that the server is gone is told once (metric_queue.py), or ends the job.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with _one_at_a_time(uri):
        check_reachable(uri)
        from mlflow import MlflowClient

        with mlflow_errors(f"open the tracking store {redact(uri)}"), _quiet_migration():
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


def wait_reachable(uri: str, limit_s: float) -> None:
    """Return when the store at ``uri`` answers.

    Raises:
        TrackingError: it has not within ``limit_s`` seconds.
    """
    begun, waits = time.monotonic(), False
    while True:
        try:
            check_reachable(uri)
            return
        except TrackingError as error:
            if time.monotonic() - begun >= limit_s:
                raise
            if not waits:
                print(f"tracking  waits up to {limit_s:.0f} s: {error}", flush=True)
            waits = True
            time.sleep(min(2.0, limit_s))


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """MLflow makes and upgrades a sqlite database in many steps, and two processes that do so at once both fail."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    lock = database.with_name(f".{database.name}.lock")

    def busy(described: str) -> TrackingError:
        return TrackingError(f"{described} has been opening {database} for {_OPENING_S} s; end it, and try again")

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, busy, _OPENING_S))
        except OSError as error:
            raise TrackingError(
                f"the tracking store {redact(uri)} cannot be reached: {error}; choose a storage folder that can be "
                "written"
            ) from error
        yield


@contextlib.contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Turn MLflow's own errors within the block into ``TrackingError("could not <action>: ...")``."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        # What follows the first line are the statement and all its values, where a database failed.
        reason = redact(str(error)).strip().partition("\n")[0][:_MAX_REASON]
        raise TrackingError(f"could not {action}: {reason}") from error


class NullTracker:
    """Records nothing: the tracker of ranks above 0, and of jobs that are not tracked."""

    run_id = ""

    def log_params(self, tree: Mapping[str, Any], volatile: Collection[str] = ()) -> None: ...

    def log_data(self, facts: Mapping[str, Any], context: str = "training") -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_figure(self, figure: Figure, name: str) -> None: ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None: ...

    def log_text(self, text: str, name: str) -> None: ...

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def history(self) -> list[dict[str, float]]:
        return []

    def flush(self) -> None: ...

    def persist(self) -> None: ...

    def log_unsent(self, unsent: UnsentMetrics) -> None: ...

    def close(self, status: str = "FINISHED") -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        try:
            self.close(status)
        except TrackingError as failure:
            if error is None:
                raise
            log.warning("that the run ended is not recorded: %s", failure)


class Tracker(NullTracker):
    """The record of one training run. Use as a context manager: it ends as FINISHED, FAILED (an exception) or KILLED
    (KeyboardInterrupt, SystemExit). All methods may be called again after a restart; nothing is recorded twice.

    Attributes:
        is_new: whether ``open`` found no run of the name.
    """

    is_new = False

    def __init__(
        self, client: MlflowClient | None, handle: RunHandle, *, owner: bool, unsent: UnsentMetrics | None = None
    ) -> None:
        self._connected, self._owner, self._unsent = client, owner, unsent
        self.handle, self.run_id = handle, handle.run_id
        if client is not None:
            with mlflow_errors(f"read run {self.run_id}"):
                client.get_run(self.run_id)
        self._queue: MetricQueue | None = None
        self._monitor: LoadMonitor | None = None
        self._closed = False

    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect(self.handle.uri)
        return self._connected

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        storage: str,
        run_name: str,
        *,
        tags: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> Tracker:
        """Create the run of this name, or continue it where it exists, whatever became of it. For the driver.

        Args:
            parent: id of the run under which MLflow's page shows this one.

        Raises:
            TrackingError: the server cannot be reached, or the experiment was deleted.
        """
        uri = tracking_uri(config, storage)
        client = open_store(config, storage)
        with mlflow_errors(f"open run {run_name!r} in experiment {config.experiment!r}"):
            experiment = _experiment(client, config.experiment, artifact_location(uri, storage))
            run_id = _find_run(client, experiment, run_name)
            is_new = run_id is None
            if run_id is None:
                origin = {RUN_TAG: run_name, **git_state(Path(__file__).parent), **_source()}
                run_id = client.create_run(experiment, run_name=run_name, tags=origin).info.run_id
            else:
                client.update_run(run_id, status="RUNNING")
            started_ms = client.get_run(run_id).info.start_time or 0
            tracker = cls(client, RunHandle(uri, run_id, config.system_metrics, started_ms), owner=True)
            tracker.is_new = is_new
        tracker.set_tags({**(tags or {}), **({PARENT_TAG: parent} if parent else {})})
        return tracker

    @classmethod
    def attach(cls, handle: RunHandle, unsent: UnsentMetrics) -> Tracker:
        """Join a run that the driver opened. For the training worker of rank 0, whose machine's load is recorded;
        closing does not end the run.

        Nothing here waits for the server, or fails with it: metrics wait in memory, and from ``persist`` and ``close``
        on in ``unsent``, together with those that former processes of the run have left there.
        """
        import mlflow  # noqa: F401 - here rather than in the queue's thread, beside the imports of this one

        tracker = cls(None, handle, owner=False, unsent=unsent)
        left: list[MetricPoint] = []
        try:
            left = unsent.read()
        except OSError as error:
            log.warning("metrics that wait in the run's folder cannot be read: %s", error)
        tracker._queue = tracker._new_queue(left)
        if handle.system_metrics:
            tracker._start_monitor()
        return tracker

    @classmethod
    def of_run(cls, config: TrackingConfig, storage: str, run_id: str) -> Tracker:
        """Add to a run that has ended, as an evaluation does; closing leaves its status as it is.

        Raises:
            TrackingError: the server cannot be reached, or has no such run.
        """
        uri = tracking_uri(config, storage)
        return cls(open_store(config, storage), RunHandle(uri, run_id, system_metrics=False), owner=False)

    def log_params(self, tree: Mapping[str, Any], volatile: Collection[str] = ()) -> None:
        """Record the configuration: each setting as a parameter ``a.b.c``, the whole tree as ``config.json``.

        Args:
            tree: nested plain values.
            volatile: dotted prefixes of settings that may change when a run is continued, as addresses and numbers
                of processes; they are in ``config.json`` only.

        Raises:
            TrackingError: the run was started with other values; each is named with both values.
        """
        safe = without_secrets(tree)
        params = {
            key: truncate_with_hash(value, MAX_PARAM)
            for key, value in flatten(safe).items()
            if not is_below(key, volatile)
        }
        if too_long := [key for key in params if len(key) > MAX_KEY]:
            raise TrackingError(f"setting {too_long[0]!r} has a name of more than {MAX_KEY} characters; shorten it")
        from mlflow.entities import Param

        with mlflow_errors(f"log the parameters of run {self.run_id}"):
            run = self._client.get_run(self.run_id)
            self._refuse_changes({key: (run.data.params[key], params[key]) for key in params.keys() & run.data.params})
            new = [Param(key, value) for key, value in sorted(params.items()) if key not in run.data.params]
            for start in range(0, len(new), MAX_PARAMS_AT_ONCE):
                self._client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS_AT_ONCE], synchronous=True)
            self._client.log_dict(self.run_id, safe, "config.json")

    def log_data(self, facts: Mapping[str, Any], context: str = "training") -> None:
        """Record the data as an MLflow dataset.

        Args:
            facts: ``hash`` of the index, ``source`` (folder or URI of the tars), ``counts``, ``quarantine`` and
                whatever else is known; all of it becomes the dataset's profile.
            context: what the run did with it: "training", "validation", "test".

        Raises:
            TrackingError: the run used other data in this context before.
        """
        facts = without_secrets(facts)
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest, tag = str(facts["hash"]), f"data.{context}.hash"
        name = PurePosixPath(str(facts["source"]).rstrip("/")).name or "tars"
        dataset = Dataset(
            name=name[:500],
            digest=digest[:36],  # MLflow's limit; the whole hash is in the tag and in the profile
            source_type="local" if "://" not in str(facts["source"]) else "uri",
            source=json.dumps({"uri": facts["source"]}),
            profile=json.dumps(facts, sort_keys=True),
        )
        with mlflow_errors(f"log the data of run {self.run_id}"):
            known = self._client.get_run(self.run_id).data.tags.get(tag, digest)
            self._refuse_changes({f"{context} data (hash of the index)": (known, digest)})
            context_tag = InputTag("mlflow.data.context", context)
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [context_tag])])
            self._client.set_tag(self.run_id, tag, digest)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one line for each metric and return at once; a (metric, step) that is recorded already is left out.

        What is recorded of a metric is read when this process first logs it, so two processes must not log the same
        metric at the same time; one after the other they may.

        Raises:
            TrackingError: a name that MLflow refuses.
        """
        for key in metrics:
            if not re.fullmatch(r"[\w.\- /:]{1,250}", key):
                raise TrackingError(f"metric name {key!r}: use up to 250 letters, digits, spaces and any of _ . - / :")
        if self._queue is None:
            self._queue = self._new_queue()
        with _tracking_errors(self.handle.uri):
            self._queue.put({key: float(value) for key, value in metrics.items()}, step)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a picture, replacing one of the same name (``pictures/curves.png``)."""
        with mlflow_errors(f"log picture {name!r}"):
            self._client.log_figure(self.run_id, figure, name)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file, or a folder with all in it."""
        with mlflow_errors(f"log artifact {str(path)!r}"):
            store = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
            store(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """Store a text file, replacing one of the same name."""
        with mlflow_errors(f"log text {name!r}"):
            self._client.log_text(self.run_id, text, name)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Store rows as a CSV file with a header, replacing one of the same name. Columns: those of the first row."""
        table = io.StringIO()
        if rows:
            writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self.log_text(table.getvalue(), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing former values."""
        with mlflow_errors(f"tag run {self.run_id}"):
            for key, value in without_secrets(tags).items():
                self._client.set_tag(self.run_id, key, value)

    def history(self) -> list[dict[str, float]]:
        """All that is recorded, over all restarts: one ``{"step": ..., metric: value, ...}`` a step, in order of the
        steps. System metrics are left out, as their steps are ticks of a clock.
        """
        self.flush()
        by_step: defaultdict[int, dict[str, float]] = defaultdict(dict)
        with mlflow_errors(f"read the metrics of run {self.run_id}"):
            for key in self._client.get_run(self.run_id).data.metrics:
                if not key.startswith("system/"):
                    for metric in self._client.get_metric_history(self.run_id, key):
                        by_step[metric.step][key] = metric.value
        return [{"step": step, **by_step[step]} for step in sorted(by_step)]

    def persist(self) -> None:
        """Before a checkpoint: see that what is logged survives this process, in the store or else in the run's folder,
        as what comes before a checkpoint is never run again. An outage costs this at most two seconds, once.
        """
        if self._queue is not None and self._unsent is not None:
            if not self._queue.is_failing:
                with contextlib.suppress(QueueError):
                    self._queue.flush(_CHECKPOINT_WAIT_S)
            self._save_unsent(self._queue.unsent())

    def log_unsent(self, unsent: UnsentMetrics) -> None:
        """Store what training processes could not.

        Raises:
            TrackingError: the server does not take it; it waits on.
        """
        lines = unsent.read()
        if lines:
            queue = self._new_queue(lines)
            with _tracking_errors(self.handle.uri):
                queue.close()
        unsent.write([])

    def flush(self) -> None:
        """Wait until all queued metrics are stored.

        Raises:
            TrackingError: the server does not take them.
        """
        if self._queue is not None:
            with _tracking_errors(self.handle.uri):
                self._queue.flush()

    def close(self, status: str = "FINISHED") -> None:
        """Store what is queued; the driver's tracker also ends the run as FINISHED, FAILED or KILLED. The worker's
        keeps what cannot be stored in the run's folder.

        Raises:
            TrackingError: queued metrics could not be stored and are lost, or the run's end could not be.
        """
        if self._closed:
            return
        self._closed = True
        if self._monitor is not None:
            self._monitor.close()
        if self._unsent is not None:
            self._close_worker()
            return
        try:
            if self._queue is not None:
                with _tracking_errors(self.handle.uri):
                    self._queue.close()
        finally:
            if self._owner:
                check_reachable(self.handle.uri)
                with mlflow_errors(f"end run {self.run_id}"), _redacted_stdout():
                    self._client.set_terminated(self.run_id, status)

    def _new_queue(self, unsent: Sequence[MetricPoint] = ()) -> MetricQueue:
        return MetricQueue(self._write, self._written_steps, unsent=unsent)

    def _close_worker(self) -> None:
        if self._queue is None:
            return
        try:
            self._queue.close(1.0 if self._queue.is_failing else _CLOSE_WAIT_S)
        except QueueError as error:
            log.warning("%s; they wait in the run's folder", redact(str(error)))
        self._save_unsent(self._queue.unsent())

    def _save_unsent(self, lines: Sequence[MetricPoint]) -> None:
        assert self._unsent is not None
        try:
            self._unsent.write(lines)
        except OSError as error:  # of a full disk the checkpoint itself will tell
            log.warning("%d metric values wait in memory alone: %s", len(lines), error)

    def _write(self, lines: Sequence[MetricPoint]) -> None:
        check_reachable(self.handle.uri)
        from mlflow.entities import Metric

        metrics = [Metric(line.key, line.value, line.timestamp_ms, line.step) for line in lines]
        with mlflow_errors(f"write metrics of run {self.run_id}"):
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _written_steps(self, key: str) -> set[int]:
        check_reachable(self.handle.uri)
        with mlflow_errors(f"read the metrics of run {self.run_id}"):
            return {metric.step for metric in self._client.get_metric_history(self.run_id, key)}

    def _refuse_changes(self, values: Mapping[str, tuple[str, str]]) -> None:
        changes = [f"{key}: {old} -> {new}" for key, (old, new) in sorted(values.items()) if old != new]
        if changes:
            raise TrackingError(
                "this training run was started with other settings; start another run under a new name, or restore: "
                + "; ".join(changes)
            )

    def _start_monitor(self) -> None:
        from pipelines.tracking.system_metrics import LoadMonitor

        def put(load: Mapping[str, float], step: int) -> None:
            with contextlib.suppress(TrackingError):  # of a tracker that is being closed
                self.log_metrics(load, step)

        self._monitor = LoadMonitor(put, self.handle.started_ms)


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Id of the experiment, made when it does not exist."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another process may have been faster.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it (mlflow experiments restore -x {experiment.experiment_id}) "
            "or choose another name for tracking.experiment"
        )
    return str(experiment.experiment_id)


def _find_run(client: MlflowClient, experiment: str, run_name: str) -> str | None:
    if not re.fullmatch(r"[\w.\-]{1,200}", run_name):
        raise TrackingError(f"run name {run_name!r}: use up to 200 letters, digits and any of _ . -")
    found = client.search_runs(
        [experiment], f"tags.`{RUN_TAG}` = '{run_name}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return found[0].info.run_id if found else None


def _source() -> dict[str, str]:
    """MLflow's tags of the program and its user; those of git are not its own, which would describe the interpreter."""
    from mlflow.tracking.context.registry import resolve_tags

    return {key: value for key, value in resolve_tags().items() if key in {"mlflow.user", "mlflow.source.name"}}


@contextlib.contextmanager
def _quiet_migration() -> Iterator[None]:
    """Making a sqlite database reports each of its fifty migrations."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _redacted_stdout() -> Iterator[None]:
    """MLflow prints where a run can be looked at, with the password of an address that has one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        print(redact(said.getvalue()), end="", flush=True)


@contextlib.contextmanager
def _tracking_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except QueueError as error:
        raise TrackingError(
            f"{redact(str(error))}; see that the tracking store {redact(uri)} runs and has space, then run again"
        ) from error
