"""Collects all uses of Ray Serve's private modules and names; a new version of Ray must be checked here."""

from __future__ import annotations

import contextlib

import ray
from ray import serve
from ray.serve import context
from ray.serve._private import constants, replica

LOOPBACK = "127.0.0.1"
# The beginning of the name of the actor that is the Python proxy behind HAProxy.
_FALLBACK_PROXY = "SERVE_PROXY_ACTOR-fallback-"
_HEAD_RESOURCE = "node:__internal_head__"


def bind_grpc_to_loopback() -> None:
    """Bind the gRPC port of a replica, before it is ready, to loopback instead of all interfaces. Handles use Ray's own
    calls instead of gRPC, unless RAY_SERVE_USE_GRPC_BY_DEFAULT is set.
    """
    if not constants.RAY_SERVE_USE_GRPC_BY_DEFAULT:
        add_port = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _address: add_port(server, f"{LOOPBACK}:0")


def is_behind_haproxy() -> bool:
    """Whether the Serve that runs on this cluster was started with HAProxy."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"].startswith(_FALLBACK_PROXY) for actor in actors)


def head_address() -> str:
    """Return the address of the cluster's head node."""
    heads = [node for node in ray.nodes() if node["Alive"] and _HEAD_RESOURCE in node["Resources"]]
    return str(heads[0]["NodeManagerAddress"]) if heads else ""


def delete_in_background(app_name: str) -> None:
    """Remove an application from Serve without waiting for it."""
    serve.delete(app_name, _blocking=False)


def shut_down(timeout_s: float) -> None:
    """Shut Serve down without the errors that Ray prints with ``serve.shutdown``, whose call of the controller ends
    with the controller and would be retried.

    Raises:
        ray.exceptions.GetTimeoutError: applications still run after ``timeout_s``.
    """
    client, _ = context._check_cached_client_alive()
    if client is None:
        serve.shutdown()
        return
    client.shutdown_cached_handles()
    call = client._controller.graceful_shutdown.options(max_task_retries=0)
    with contextlib.suppress(ray.exceptions.RayActorError):
        ray.get(call.remote(), timeout=timeout_s)
    client._shutdown = True
    context._disconnect()
