"""Allows one deployment at a time, on a cluster and at a port of a machine."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines.serve.errors import ServeError
from pipelines.storage.lock import hold_lock

_NAME, _NAMESPACE = "vlmodel-deployment", "vlmodel"
_POLL_S, _ASK_S = 0.5, 10.0


class DeploymentLock:
    """An actor whose name exists once in a cluster and so serves as a lock. It ends with the job that made it, however
    that ends.
    """

    def __init__(self, holder: str) -> None:
        self._describe_holder = holder

    def holder(self) -> str:
        return self._describe_holder


@contextmanager
def cluster_lock(wait_s: float, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the only lock for deployments on this cluster while the block runs.

    Args:
        wait_s: for another deployment to end.
        report: gets a line if this has to wait, which names the holder.

    Raises:
        ServeError: another deployment takes longer.
    """
    actor_class: Any = ray.remote(num_cpus=0)(DeploymentLock).options(name=_NAME, namespace=_NAMESPACE)
    deadline, waits = time.monotonic() + wait_s, False
    while True:
        try:
            process = psutil.Process()
            lock = actor_class.remote(f"{process.username()} on {platform.node()}, process {process.pid}")
            # Ray checks the name first and creates the actor later: of two at once, one fails only at its first call.
            ray.get(lock.holder.remote())
            break
        except (ValueError, ray.exceptions.RayActorError):  # the name is taken
            if time.monotonic() > deadline:
                raise ServeError(
                    f"another deployment on this cluster ({_describe_holder()}) has not ended within {wait_s:g} s; "
                    "wait for it, or stop it, then try again"
                ) from None
            if not waits:
                report(f"service: waits for another deployment ({_describe_holder()})")
                waits = True
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        ray.kill(lock)


@contextmanager
def port_lock(port: int, wait_s: float) -> Iterator[None]:
    """Hold this user's lock for starting a service at this port of this machine while the block runs.

    Raises:
        ServeError: another start takes longer than ``wait_s``.
    """
    # In a private folder: others could put a file of this name into the shared one.
    folder = Path(tempfile.gettempdir()) / f"vlmodel-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServeError(f"'{folder}' belongs to someone else; remove it, or set TMPDIR to a folder of your own")
    refusal = ServeError(f"another service is being started at port {port}; choose another with serve.port=...")
    with hold_lock(folder / f"port-{port}.lock", refusal, wait_s):
        yield


def _describe_holder() -> str:
    try:
        return str(ray.get(ray.get_actor(_NAME, _NAMESPACE).holder.remote(), timeout=_ASK_S))
    except (ValueError, ray.exceptions.RayError):  # it has just ended, or is only just starting
        return "its holder is unknown"
