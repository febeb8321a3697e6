"""What takes the requests in, before the replicas: HAProxy where it can, else Serve's own proxy in Python.

HAProxy ends heads and small bodies that never come to an end, and costs each request less. With it replicas answer HTTP
themselves, each on a port of its own, and it has to reach them: here on loopback, so that the service's port is the
only one that other machines see. That takes a cluster of one machine. On several, replicas would have to listen to
the network, which is for a network policy to guard (infra/k8s); otherwise the Python proxy serves.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.serve._private import constants
from ray.serve._private import replica as serve_replica

from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment import haproxy
from pipelines.serve.deployment.haproxy import Options
from pipelines.serve.errors import ServeError

LOOPBACK = "127.0.0.1"
# A path of a Unix socket has at most 107 letters, and Serve adds a node's 56: Ray's own session folder is too long.
_FOLDERS, _PREFIX = Path("/tmp"), "vlserve-"
# A folder that no HAProxy uses: it may be one that is just being started.
_LEFT_OVER_S = 3600.0
# A replica that is to stop is reachable for so long: HAProxy is told of it within about one second, and then its former
# process goes on for connections that are kept.
_DRAINING_S = Options.keep_alive_s + 1
# How much longer HAProxy waits for a silent client than a replica does.
_AFTER_REPLICA_S = 5
_FALLBACK_PROXY = "SERVE_PROXY_ACTOR-fallback-"


@dataclass(frozen=True)
class Ingress:
    """How Serve is to be started.

    Attributes:
        environment: of Serve's controller, which its proxies and replicas inherit.
        host: that Serve's own HTTP servers listen on.
        folder: of HAProxy's files on the cluster's machine; "" for the Python proxy.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: {"RAY_SERVE_ENABLE_HA_PROXY": "0"})
    host: str = ""
    folder: str = ""

    @property
    def is_haproxy(self) -> bool:
        return bool(self.folder)


def choose(config: ServeConfig, address: str) -> tuple[Ingress, str]:
    """The ingress for a cluster on which Serve does not run yet, and why it is not HAProxy where that was not asked.

    Args:
        address: ``HOST:PORT`` that the service listens on.

    Raises:
        ServeError: ``config.ingress`` is "haproxy" and it cannot run here.
    """
    python = Ingress(host=config.host)
    if config.ingress == "python":
        return python, ""
    reason = _why_not_here()
    if not reason:
        prepared = ray.get(ray.remote(num_cpus=0)(_prepare).remote(config, address))
        if isinstance(prepared, Ingress):
            return prepared, ""
        reason = prepared
    if config.ingress == "haproxy":
        raise ServeError(f"serve.ingress is 'haproxy', and {reason}; mend that, or set serve.ingress=auto")
    return python, reason


def machine() -> str:
    """Address of the machine that replicas must run on, for HAProxy reaches them on loopback; "" where any will do."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    if not any(actor["name"].startswith(_FALLBACK_PROXY) for actor in actors):
        return ""
    heads = [str(node["NodeManagerAddress"]) for node in _nodes() if "node:__internal_head__" in node["Resources"]]
    return heads[0] if heads else ""


def remove(ingress: Ingress) -> None:
    """Remove HAProxy's files, once it has stopped. Does nothing on another machine than the cluster's."""
    if ingress.folder:
        shutil.rmtree(ingress.folder, ignore_errors=True)


def keep_to_this_machine() -> None:
    """In a replica, before it is ready: no port on all interfaces for handles that call it over gRPC, but on loopback.

    Handles use Ray's own calls instead, unless RAY_SERVE_USE_GRPC_BY_DEFAULT says so.
    """
    if not constants.RAY_SERVE_USE_GRPC_BY_DEFAULT:
        opened = serve_replica.add_port_to_grpc_server
        serve_replica.add_port_to_grpc_server = lambda server, _address: opened(server, f"{LOOPBACK}:0")


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _why_not_here() -> str:
    machines = {node["NodeManagerAddress"] for node in _nodes()}
    if len(machines) > 1:
        return f"the cluster has {len(machines)} machines, between which replicas' ports would be open"
    return ""


def _prepare(config: ServeConfig, address: str) -> Ingress | str:
    """On the cluster's machine and as its user: HAProxy's folder and settings, or why it cannot be used."""
    program = haproxy.binary()
    if sys.platform != "linux":
        return f"HAProxy is for Linux, and this is {sys.platform}"
    if program is None:
        return "there is no HAProxy on this machine (pip install 'ray[serve]' brings it)"
    try:
        subprocess.run([program, "-v"], capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"HAProxy at {program} does not run ({error})"
    _remove_left_overs()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_FOLDERS))  # for this user alone
    # A copy, as Ray may clear the working directory of the job that starts Serve.
    mended, starter = Path(shutil.copy(haproxy.__file__, folder)), folder / "haproxy"
    starter.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-B", str(mended)])} "$@"\n')
    starter.chmod(0o700)
    options = Options(
        bind=address,
        certificate=str(_certificate(config, folder)) if config.tls.active else "",
        metrics=f"{LOOPBACK}:{config.ingress_metrics_port}" if config.ingress_metrics_port else "",
        request_s=math.ceil(config.request_timeout_s),
    )
    return Ingress({**_environment(config, folder), haproxy.OPTIONS_VARIABLE: options.dump()}, LOOPBACK, str(folder))


def _environment(config: ServeConfig, folder: Path) -> dict[str, str]:
    at_most_s = math.ceil(config.request_timeout_s + config.shutdown_timeout_s)
    variables = {
        "RAY_SERVE_ENABLE_HA_PROXY": 1,
        "RAY_SERVE_HAPROXY_BINARY_PATH": folder / "haproxy",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": folder / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": folder / "admin",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": folder / "log",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": folder / "state",
        "RAY_SERVE_HAPROXY_NBTHREAD": max(1, (os.cpu_count() or 1) // 4),
        # Of silence; how long a request takes in all is for the application, whose answer says so. HAProxy itself would
        # say 400 of a long body that stops.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": math.ceil(config.request_timeout_s) + _AFTER_REPLICA_S,
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": at_most_s,
        # Of a worker that was replaced, for the answers that it still owes.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": at_most_s,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DRAINING_S,
        # The Python proxy that requests wait at while no replica can be reached.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": _free_port(),
    }
    return {name: str(value) for name, value in variables.items()}


def _certificate(config: ServeConfig, folder: Path) -> Path:
    """The certificate under a name that HAProxy finds the key by. Links: each reload reads a renewed one."""
    here = folder / "service.pem"
    certificate, key = config.tls.files
    here.symlink_to(certificate)
    Path(f"{here}.key").symlink_to(key)
    return here


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _remove_left_overs() -> None:
    """Folders of services of this user that ended without removing them: HAProxy keeps a lock while it lives."""
    for folder in _FOLDERS.glob(f"{_PREFIX}*"):
        status = folder.lstat()
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > _LEFT_OVER_S:
            with contextlib.suppress(OSError), _opened(folder) as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield held
    finally:
        os.close(held)
