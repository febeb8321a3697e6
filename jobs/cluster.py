"""The Ray cluster that a job runs on: the one it was submitted to, one that is named, or a small one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from pydantic import Field
from transformers.utils import logging as transformers_logging

from vlmodel.config import Section

_REPOSITORY = Path(__file__).resolve().parent.parent
# Without these, each worker of a job that was started by hand on a cluster would lack the code.
_NOT_SHIPPED = [".git", ".venv", "build", "tests", "**/__pycache__", ".*_cache", "*.egg-info"]

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # A killed worker's stream holds its share of the cluster for this long; the default is three minutes.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
    # Serve's own lines lie in the session's log files.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_VERBOSITY": "error",
}

_own = True


class ClusterError(RuntimeError):
    """No cluster can be had; the message says why and what to do."""


class ClusterConfig(Section):
    """Where the job runs."""

    address: str = ""
    """Address of a running cluster ("auto" finds one on this machine); "" uses RAY_ADDRESS, else starts one here."""
    num_cpus: int = Field(0, ge=0)
    """CPUs that a cluster started here declares; 0 is the machine's cores, and at least 8. Many parts only wait, and
    Ray Data gives each of the streams that run at one time a whole number of CPUs, or none."""
    object_store_mb: int = Field(512, ge=80)
    """Object store of a cluster started here."""


@contextmanager
def connected(config: ClusterConfig) -> Iterator[bool]:
    """Be in a cluster while the block runs; a cluster started here ends with it. Nests: the outer one is used.

    Yields:
        whether the cluster was started here, and so ends with this process.

    Raises:
        ClusterError: the named cluster cannot be reached.
    """
    global _own
    if ray.is_initialized():
        yield _own
        return
    _set_environment()
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    _own = not address or address == "local"
    if not _own:
        _join(address)
    else:
        ray.init(
            address="local",
            num_cpus=config.num_cpus or max(8, os.cpu_count() or 1),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.ERROR,
        )
    try:
        yield _own
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    # A submitted job has its working directory already; a second one would hide it.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    variables = {name: os.environ[name] for name in _ENVIRONMENT}
    environment: dict[str, object] = {"env_vars": variables}
    if not submitted:
        environment |= {"working_dir": str(_REPOSITORY), "excludes": _NOT_SHIPPED}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster answers at cluster.address={address!r} ({error}); start one with infra/cluster.sh start, "
            "correct the address, set RAY_AUTH_MODE=token with the cluster's token, or leave it empty to start one here"
        ) from None


def _set_environment() -> None:
    """As it should be here and in every worker: above all, fewer notices of libraries; their errors still show."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # In this process the libraries have read their variables already, at import.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
