"""Tracks each training run as one MLflow run, however often its processes restart.

The driver opens the run by name (``Tracker.open``) and passes ``tracker.handle`` to the training workers. Rank 0 joins
the run (``Tracker.attach``); the other ranks use ``NullTracker``. MLflow is imported when a tracker is created: that
takes seconds, and most processes never need it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.tracking import page
from pipelines.tracking.address import TrackingConfig, TrackingError, artifact_location, check_reachable, tracking_uri
from pipelines.tracking.metric_writer import MetricWriter
from pipelines.tracking.provenance import (
    flatten_settings,
    git_state,
    has_dotted_prefix,
    truncate_with_hash,
    without_secrets,
)
from pipelines.tracking.store import connect_to_store, hide_passwords_in_stdout, mlflow_errors, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from pipelines.tracking.system_metrics import LoadMonitor
    from pipelines.tracking.unsent_metrics import UnsentMetrics

log = logging.getLogger(__name__)

RUN_TAG = "training.run"
PARENT_TAG = "mlflow.parentRunId"
MAX_PARAM = 6000  # MLflow's limits: characters of a value, characters of a key, parameters in one request
MAX_KEY = 250
MAX_PARAMS_AT_ONCE = 100


@dataclass(frozen=True)
class RunHandle:
    """What another process needs to join a run. Small and picklable. Its repr hides the address, which may contain
    credentials from the environment.
    """

    uri: str = field(repr=False)
    run_id: str
    system_metrics: bool
    started_ms: int = 0


class NullTracker:
    """A tracker that records nothing, for ranks above 0 and for jobs that are not tracked."""

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
    def log_unsent_metrics(self, unsent: UnsentMetrics) -> None: ...
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
            log.warning("the end of the run is not recorded: %s", failure)


class Tracker(NullTracker):
    """Records one training run. As a context manager it ends the run as FINISHED, FAILED (an exception) or KILLED
    (KeyboardInterrupt, SystemExit). All methods may be called again after a restart; nothing is recorded twice.

    Attributes:
        is_new: whether ``open`` created the run.
    """

    is_new = False

    def __init__(
        self,
        client: MlflowClient | None,
        handle: RunHandle,
        *,
        ends_run: bool = False,
        unsent: UnsentMetrics | None = None,
    ) -> None:
        self._connected, self._ends_run = client, ends_run
        self.handle, self.run_id = handle, handle.run_id
        if client is not None:
            with mlflow_errors(f"read run {self.run_id}"):
                client.get_run(self.run_id)
        self._writer = MetricWriter(handle.uri, handle.run_id, lambda: self._client, unsent)
        self._monitor: LoadMonitor | None = None
        self._closed = False

    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = connect_to_store(self.handle.uri)
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
        """Create the run of this name, or continue it if it exists, whatever its status. For the driver.

        Args:
            parent: id of the run under which MLflow's page shows this one.

        Raises:
            TrackingError: the server cannot be reached, or the experiment was deleted.
        """
        uri = tracking_uri(config, storage)
        client = open_store(config, storage)
        with mlflow_errors(f"open run {run_name!r} in experiment {config.experiment!r}"):
            experiment = _experiment_id(client, config.experiment, artifact_location(uri, storage))
            run_id = _find_run(client, experiment, run_name)
            is_new = run_id is None
            if run_id is None:
                origin = {RUN_TAG: run_name, **git_state(Path(__file__).parent), **_mlflow_tags_of_program()}
                run_id = client.create_run(experiment, run_name=run_name, tags=origin).info.run_id
            else:
                client.update_run(run_id, status="RUNNING")
            started_ms = client.get_run(run_id).info.start_time or 0
            tracker = cls(client, RunHandle(uri, run_id, config.system_metrics, started_ms), ends_run=True)
            tracker.is_new = is_new
        tracker.set_tags({**(tags or {}), **({PARENT_TAG: parent} if parent else {})})
        return tracker

    @classmethod
    def attach(cls, handle: RunHandle, unsent: UnsentMetrics) -> Tracker:
        """Join a run that the driver opened. For the worker of rank 0, whose machine's load is recorded; closing does
        not end the run.

        Nothing here waits for the server or fails with it: metrics are queued in memory, and ``persist`` and ``close``
        save them in ``unsent``, together with those of earlier processes of the run.
        """
        import mlflow  # noqa: F401 - here and not in the queue's thread, which would import beside this one

        tracker = cls(None, handle, unsent=unsent)
        if handle.system_metrics:
            tracker._start_monitor()
        return tracker

    @classmethod
    def reopen_run(cls, config: TrackingConfig, storage: str, run_id: str) -> Tracker:
        """Add to a run that has ended, as an evaluation does; closing does not change its status.

        Raises:
            TrackingError: the server cannot be reached, or has no such run.
        """
        uri = tracking_uri(config, storage)
        return cls(open_store(config, storage), RunHandle(uri, run_id, system_metrics=False))

    def log_params(self, tree: Mapping[str, Any], volatile: Collection[str] = ()) -> None:
        """Record the configuration: each setting as a parameter ``a.b.c``, the whole tree as ``config.json``.

        Args:
            tree: nested plain values.
            volatile: dotted prefixes of settings that may change when a run is continued, such as addresses and
                numbers of processes; they are recorded in ``config.json`` only.

        Raises:
            TrackingError: the run was started with other values; the message names each with both values.
        """
        safe = without_secrets(tree)
        params = {
            key: truncate_with_hash(value, MAX_PARAM)
            for key, value in flatten_settings(safe).items()
            if not has_dotted_prefix(key, volatile)
        }
        if too_long := [key for key in params if len(key) > MAX_KEY]:
            raise TrackingError(f"setting {too_long[0]!r} has a name of more than {MAX_KEY} characters; shorten it")
        from mlflow.entities import Param

        with mlflow_errors(f"log the parameters of run {self.run_id}"):
            recorded = self._client.get_run(self.run_id).data.params
            _refuse_changed_settings({key: (recorded[key], params[key]) for key in params.keys() & recorded})
            new = [Param(key, value) for key, value in sorted(params.items()) if key not in recorded]
            for start in range(0, len(new), MAX_PARAMS_AT_ONCE):
                self._client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS_AT_ONCE], synchronous=True)
            self._client.log_dict(self.run_id, safe, "config.json")

    def log_data(self, facts: Mapping[str, Any], context: str = "training") -> None:
        """Record the data as an MLflow dataset.

        Args:
            facts: ``hash`` of the index, ``source`` (folder or URI of the tars), and anything else; all of it becomes
                the dataset's profile.
            context: what the run used it for: "training", "validation", "test".

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
            recorded = self._client.get_run(self.run_id).data.tags.get(tag, digest)
            _refuse_changed_settings({f"{context} data (hash of the index)": (recorded, digest)})
            context_tag = InputTag("mlflow.data.context", context)
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [context_tag])])
            self._client.set_tag(self.run_id, tag, digest)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one value of each metric and return at once; a (metric, step) that is already recorded is skipped.

        The recorded steps of a metric are read when this process first logs it, so two processes may log the same
        metric one after the other, but not at the same time.

        Raises:
            TrackingError: a name that MLflow refuses.
        """
        for key in metrics:
            if not re.fullmatch(r"[\w.\- /:]{1,250}", key):
                raise TrackingError(f"metric name {key!r}: use up to 250 letters, digits, spaces and any of _ . - / :")
        self._writer.put(metrics, step)

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
        """Store rows as a CSV file, replacing one of the same name."""
        self.log_text(to_csv(rows), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing earlier values."""
        with mlflow_errors(f"tag run {self.run_id}"):
            for key, value in without_secrets(tags).items():
                self._client.set_tag(self.run_id, key, value)

    def history(self) -> list[dict[str, float]]:
        """Return all recorded metrics over all restarts: one ``{"step": ..., metric: value, ...}`` for each step, in
        order. System metrics are left out, as their steps count seconds.
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
        """Make the logged values survive this process, in the store or else in the run's folder. Called before a
        checkpoint, as the steps before it are never run again. During an outage this takes at most two seconds, once.
        """
        self._writer.persist()

    def log_unsent_metrics(self, unsent: UnsentMetrics) -> None:
        """Store the metrics that training processes could not store.

        Raises:
            TrackingError: the server does not take them; they stay where they are.
        """
        self._writer.send(unsent.read())
        unsent.write([])

    def flush(self) -> None:
        """Wait until all queued metrics are stored.

        Raises:
            TrackingError: the server does not take them.
        """
        self._writer.flush()

    def close(self, status: str = "FINISHED") -> None:
        """Store what is queued. The driver's tracker also ends the run as FINISHED, FAILED or KILLED; the worker's
        saves what cannot be stored in the run's folder.

        Raises:
            TrackingError: queued metrics could not be stored and are lost, or the run's end could not be recorded.
        """
        if self._closed:
            return
        self._closed = True
        if self._monitor is not None:
            self._monitor.close()
        try:
            self._writer.close()
        finally:
            if self._ends_run:
                check_reachable(self.handle.uri)
                with mlflow_errors(f"end run {self.run_id}"), hide_passwords_in_stdout():
                    self._client.set_terminated(self.run_id, status)

    def _start_monitor(self) -> None:
        from pipelines.tracking.system_metrics import LoadMonitor

        def put_sample(load: Mapping[str, float], step: int) -> None:
            with contextlib.suppress(TrackingError):  # the tracker is being closed
                self.log_metrics(load, step)

        self._monitor = LoadMonitor(put_sample, self.handle.started_ms)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as CSV with a header, with the columns of the first row."""
    table = io.StringIO()
    if rows:
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table.getvalue()


def _refuse_changed_settings(values: Mapping[str, tuple[str, str]]) -> None:
    changes = [f"{key}: {old} -> {new}" for key, (old, new) in sorted(values.items()) if old != new]
    if changes:
        raise TrackingError(
            "this training run was started with other settings; start another run under a new name, or restore: "
            + "; ".join(changes)
        )


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Return the id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts, tags=page.TAGS))
        except MlflowException:
            # Another process may have created it.
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
    runs = client.search_runs(
        [experiment], f"tags.`{RUN_TAG}` = '{run_name}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return runs[0].info.run_id if runs else None


def _mlflow_tags_of_program() -> dict[str, str]:
    """Return MLflow's tags of the program and its user. Its git tags are left out, as they would describe the
    interpreter.
    """
    from mlflow.tracking.context.registry import resolve_tags

    return {key: value for key, value in resolve_tags().items() if key in {"mlflow.user", "mlflow.source.name"}}
