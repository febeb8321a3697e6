"""Connects a job to a Ray cluster: the one to which it was submitted, one that is named, or a small one of its own.

Ray is imported when a job connects: what a job refuses before that is told at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from pipelines.workflows import signals
from vlmodel.config import PARTS, ConfigSection
from vlmodel.errors import ExpectedError

_REPOSITORY = Path(__file__).resolve().parents[2]
# Without these, each worker of a job that was started by hand on a cluster would lack the code.
_NOT_SHIPPED = [".git", ".venv", "build", "tests", "**/__pycache__", ".*_cache", "*.egg-info"]

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # What Ray Data logs at level ERROR it raises as well.
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    # A killed worker's stream holds its share of the cluster for this long; the default is three minutes.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
    # Serve's own lines lie in the session's log files.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_VERBOSITY": "error",
}

_UNREACHED = (
    "no Ray cluster answers at cluster.address={address!r} ({reason}); start one with infra/cluster.sh start, correct "
    "the address (or RAY_ADDRESS), set RAY_AUTH_MODE=token with the cluster's token, or leave it empty to start one "
    "here"
)
_ANSWER_S = 5.0
# Ray reads it once in a process.
_TOKEN = secrets.token_hex(32)

_own = True


class ClusterError(ExpectedError, RuntimeError):
    """The job cannot get a Ray cluster; the message says why and what to do."""


class ClusterConfig(ConfigSection):
    """Settings of where the job runs."""

    address: str = ""
    """Address of a running cluster ("auto" finds one on this machine); "" uses RAY_ADDRESS, else starts one here."""
    num_cpus: int = Field(0, ge=0)
    """CPUs that a cluster started here declares; 0 is the machine's cores, and at least 8. Many parts only wait, and
    Ray Data gives each of the streams that run at one time a whole number of CPUs, or none."""
    object_store_mb: int = Field(512, ge=80)
    """Object store of a cluster started here."""


def starts_own_cluster(config: ClusterConfig) -> bool:
    """Whether a job with these settings starts a cluster of its own, if it is not connected to one already."""
    return _address_of(config) in ("", "local")


def _address_of(config: ClusterConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS", "")


@contextmanager
def connected_to_cluster(config: ClusterConfig) -> Iterator[bool]:
    """Connect to a cluster while the block runs; a cluster started here ends with it. Nested calls use the outer
    connection.

    Yields:
        whether the cluster was started here, and so ends with this process.

    Raises:
        ClusterError: the named cluster cannot be reached.
    """
    global _own
    # Before the imports: libraries read their variables when they are imported.
    _set_environment()
    import ray
    from ray.data import DataContext

    if ray.is_initialized():
        yield _own
        return
    address = _address_of(config)
    _own = starts_own_cluster(config)
    with signals.restored_signal_handlers():
        if _own:
            _start_cluster(config)
        else:
            _join_cluster(address)
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        print(
            "warning: this Ray cluster asks nobody for a token: whoever reaches its ports can run code as you; unset "
            "RAY_AUTH_MODE, or start it with infra/cluster.sh start",
            file=sys.stderr,
            flush=True,
        )
    # Our own errors keep their type, and so are told in one line.
    DataContext.get_current().raise_original_map_exception = True
    try:
        yield _own
    finally:
        ray.shutdown()


def _start_cluster(config: ClusterConfig) -> None:
    """Start a cluster that listens only on loopback, requires a token that only this process knows, and keeps its
    sockets, logs and spilled objects where no other user of the machine can reach them.
    """
    import ray
    from ray._private import ray_constants

    folder = _make_private_session_folder()
    # Ray would write a token into the home folder, readable by all, and keep the address of a network card.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
    # Ray may have been imported before, and then has read the variable already.
    os.environ.setdefault(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] == "1"
    try:
        ray.init(
            address="local",
            num_cpus=config.num_cpus or max(8, os.cpu_count() or 1),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )
    except OSError as error:
        raise ClusterError(
            f"Ray cannot start in {folder}: {error}; name a short folder on a disk with room in RAY_TMPDIR"
        ) from None
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray raises a bare Exception for this
            raise
        raise ClusterError(
            f"Ray did not start within its 30 s, as this machine is too busy or short of memory; start the job again "
            f"when there is room (Ray's logs are in {folder})"
        ) from None


def _make_private_session_folder() -> Path:
    """Make a folder that only this user can enter, in which Ray keeps its sessions; the folders that Ray creates inside
    it are readable by all users.

    Its path is short, as that of a socket has at most 107 characters.
    """
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    folder = parent / f"ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if facts.st_uid != os.getuid() or not stat.S_ISDIR(facts.st_mode):  # Another user was there first.
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent))
        folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(
            f"{folder} cannot be made for Ray's sockets and logs ({error.strerror}); name another folder in RAY_TMPDIR"
        ) from None
    return folder / "ray"


def _join_cluster(address: str) -> None:
    import ray

    _require_reachable_head(address)
    # A submitted job has its working directory already; a second one would hide it.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    variables = {name: os.environ[name] for name in (*_ENVIRONMENT, PARTS) if name in os.environ}
    environment: dict[str, object] = {"env_vars": variables}
    if not submitted:
        environment |= {"working_dir": str(_REPOSITORY), "excludes": _NOT_SHIPPED}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(_UNREACHED.format(address=address, reason=error)) from None


def _require_reachable_head(address: str) -> None:
    """Connect to the port of the cluster's head first, as ``ray.init`` tries for a quarter of an hour to reach a head
    that is gone.

    Raises:
        ClusterError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", which Ray looks for on this machine
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_UNREACHED.format(address=address, reason=error)) from None


def _set_environment() -> None:
    """Set environment variables of this process and every worker, above all those that reduce the notices of libraries;
    their errors still show.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Libraries that this process has imported already have read their variables.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if (transformers := sys.modules.get("transformers")) is not None:
        transformers.utils.logging.disable_progress_bar()
