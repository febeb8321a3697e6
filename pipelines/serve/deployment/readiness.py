"""Waits for an application of Ray Serve, and explains why it is late or failed."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve

from pipelines.report.progress import format_duration
from pipelines.serve.client import is_ready
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ServeError

_POLL_S = 0.1
_REPORT_EVERY_S = 5.0


def wait_until_running(
    app_name: str,
    config: ServeConfig,
    report: Callable[[str], None],
    address: str = "",
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Wait until an application runs and, if it has an ``address``, answers there.

    Args:
        report: gets each change of the application's status, and every few seconds how long it has taken.

    Raises:
        ServeError: it fails, or takes longer than ``config.start_timeout_s``.
    """
    section = "serve" if address else "serve.challenger"
    label = "service" if address else "challenger"
    begun = last = time.monotonic()
    reported = ""
    while True:
        app = serve.status().applications.get(app_name)
        status = str(app.status.value) if app else "UNKNOWN"
        if status != reported:
            report(f"{label}: {status.lower().replace('_', ' ')}")
            reported, last = status, time.monotonic()
        now = time.monotonic()
        if now - last >= _REPORT_EVERY_S:
            shown = f"{format_duration(now - begun)}, of at most {format_duration(config.start_timeout_s)}"
            report(f"{label}: {status.lower().replace('_', ' ')} for {shown}")
            last = now
        if app is not None and status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ServeError(f"the {label} did not start: {_extract_replica_error(app)}")
        if status == "RUNNING" and (not address or is_ready(address, ssl_context)):
            return
        if now - begun > config.start_timeout_s:
            raise ServeError(
                f"the {label} did not answer{f' at {address}' if address else ''} within {config.start_timeout_s:g} s "
                f"(status {status}); {_explain_delay(app, config if address else config.challenger, section)}"
            )
        time.sleep(_POLL_S)


def wait_until_settled(app_name: str, timeout_s: float) -> None:
    """Wait until no replica starts or stops, as HAProxy may still call a stopping one that Serve no longer would."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        deployments = serve.status().applications[app_name].deployments.values()
        if all(set(deployment.replica_states) <= {"RUNNING"} for deployment in deployments):
            return
        time.sleep(_POLL_S)


def _extract_replica_error(app: Any) -> str:
    """Extract the line with the error from a replica's traceback; without one, return Serve's message."""
    messages = [deployment.message for deployment in app.deployments.values() if deployment.message]
    lines = [line.strip() for line in ("\n".join(messages) or app.message).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0] and not line.startswith("ray.")]
    return errors[-1] if errors else (lines[-1] if lines else "Serve gives no reason; see the replica's log")


def _explain_delay(app: Any, resources: Any, section: str) -> str:
    """Explain which resources an application waits for; ``resources`` has the settings ``replicas``, ``num_cpus`` and
    ``num_gpus``.
    """
    messages = " ".join(deployment.message for deployment in app.deployments.values()) if app else ""
    if "resource" in messages.lower():
        free = ray.available_resources()
        return (
            f"{resources.replicas} replica(s) need {resources.num_cpus:g} CPU and {resources.num_gpus:g} GPU each, and "
            f"the cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; lower "
            f"{section}.num_cpus or {section}.replicas"
        )
    if app is not None and str(app.status.value) == "RUNNING":
        return "Serve's proxy may not have started; see its log"
    return "raise serve.start_timeout_s, or see the replica's log"
