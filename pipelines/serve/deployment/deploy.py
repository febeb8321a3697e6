"""Starts, updates and stops the service on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import ControllerOptions, HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from pipelines.serve import ray_private, tls
from pipelines.serve.challenger.deployment import APP_NAME as CHALLENGER_APP
from pipelines.serve.client import is_reachable
from pipelines.serve.config import ServeConfig, is_loopback
from pipelines.serve.deployment import ingress
from pipelines.serve.deployment.address import check_port_free, format_host_and_port, service_address_of
from pipelines.serve.deployment.application import (
    build_challenger_application,
    build_champion_application,
    build_service_spec,
    describe_model_for_replicas,
)
from pipelines.serve.deployment.ingress import Ingress
from pipelines.serve.deployment.locks import cluster_lock, port_lock
from pipelines.serve.deployment.readiness import wait_until_running, wait_until_settled
from pipelines.serve.deployment.replica import ServiceSpec
from pipelines.serve.errors import ServeError
from pipelines.serve.inference.priority import HIGH
from vlmodel.config import parse_config

log = logging.getLogger(__name__)

APP_NAME = "vlmodel"

_SHUTDOWN_S = 30.0
# A busy replica answers in its turn.
_SPEC_TIMEOUT_S = 10.0
_FAILING_S = 60.0
# Of Serve's controller, whose proxies inherit it.
CONTROLLER_ENVIRONMENT = HIGH | {
    # Ten rounds a second, the default, take a twentieth of a core from the controller and the GCS.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # A thread of its own costs each request a millisecond or two of a core.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
_MODEL_DEFAULTS = {"name": APP_NAME, "version": "0", "digest": "", "golden": ""}
# Of the service that this process has started.
_ingress = Ingress()


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application for ``serve run pipelines.serve.deployment.deploy:app model_folder=...`` and for Serve
    config files.

    ``args`` holds ``model_folder``, optionally ``name``, ``version``, ``digest`` and ``golden`` (see
    ``describe_model_for_replicas``), and ``serve``: a tree of ``ServeConfig``. The address, encryption and proxy are
    then settings of that command or file (``http_options``, ``ssl_certfile``, ``ssl_keyfile``) and of Ray's environment
    (``RAY_SERVE_ENABLE_HA_PROXY``, see ``haproxy.py``). Whatever they are, replicas without API keys refuse requests
    from other machines, and with ``serve.tls`` they refuse requests that came without encryption.

    Raises:
        ServeError: an argument is missing or unknown; or see ``build_service_spec``.
    """
    if "model_folder" not in args:
        raise ServeError("model_folder is missing; name the folder of a trained model: model_folder=...")
    if unknown := sorted(set(args) - {"model_folder", "serve", *_MODEL_DEFAULTS}):
        known = ", ".join(("model_folder", *_MODEL_DEFAULTS, "serve"))
        raise ServeError(f"unknown argument {unknown[0]!r}; there are {known}")
    config = parse_config(ServeConfig, args.get("serve", {}))
    values = {key: str(args.get(key, default)) for key, default in _MODEL_DEFAULTS.items()}
    return build_champion_application(
        build_service_spec(config, describe_model_for_replicas(args["model_folder"], **values), None)
    )


def deploy_service(
    config: ServeConfig,
    model_folder: str | Path,
    name: str = APP_NAME,
    version: str = "0",
    digest: str = "",
    report: Callable[[str], None] = lambda line: None,
    *,
    golden: str = "",
    challenger: Mapping[str, str] | None = None,
) -> str:
    """Deploy the service on the cluster that this process is connected to, and wait until it answers.

    If Serve runs already, the application is updated without an interruption.

    Args:
        model_folder, name, version, digest, golden: see ``describe_model_for_replicas``.
        report: gets each change of the service's status.
        challenger: its ``describe_model_for_replicas``, if ``config.challenger.mode`` wants one.

    Returns:
        The address, such as ``http://127.0.0.1:8000``.

    Raises:
        ServeError: the port is taken, the model does not load, or nothing answers in time. The deployment is undone:
            replicas of the previous model go on, and are replaced by the same if they die.
    """
    if not ray.is_initialized():
        raise ServeError("not connected to a Ray cluster; call ray.init() first")
    spec = build_service_spec(
        config, describe_model_for_replicas(model_folder, name, version, digest, golden), challenger
    )
    with cluster_lock(2 * config.start_timeout_s, report):
        if serve.status().proxies:
            return _update_service(config, spec, report)
        with port_lock(config.port, config.start_timeout_s):
            return _start_service(config, spec, report)


def is_service_running() -> bool:
    """Whether the service is deployed on the cluster that this process is connected to."""
    return ray.is_initialized() and APP_NAME in serve.status().applications


def stop_service() -> None:
    """Remove the service from the cluster after the requests in flight have ended. Does nothing if none runs."""
    global _ingress
    if ray.is_initialized():
        ray_private.shut_down(_SHUTDOWN_S)
        ingress.remove_haproxy_files(_ingress)
        _ingress = Ingress()


def _start_service(config: ServeConfig, spec: ServiceSpec, report: Callable[[str], None]) -> str:
    """Start Ray Serve and deploy the service; on failure stop both."""
    global _ingress
    check_port_free(config.host, config.port)
    chosen, reason = ingress.choose_ingress(config, format_host_and_port(config.host, config.port))
    if reason:
        report(f"service: behind Serve's Python proxy, as {reason}")
    head_only = chosen.is_haproxy or is_loopback(config.host)
    certificate, key = map(str, config.tls.files)
    # HAProxy encrypts, and its connections to replicas are not encrypted.
    encryption: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key}
    if chosen.is_haproxy or not config.tls.is_active:
        encryption = {}
    try:
        with _hide_serve_lines():
            serve.start(
                proxy_location=ProxyLocation.HeadOnly if head_only else ProxyLocation.EveryNode,
                http_options=HTTPOptions(
                    host=chosen.host,
                    port=config.port,
                    # The application has its own limit, which no client's header can change; this ends what exceeds it.
                    request_timeout_s=config.request_timeout_s + config.shutdown_timeout_s,
                    **encryption,
                ),
                logging_config=LoggingConfig(enable_access_log=False),
                controller_options=ControllerOptions(
                    runtime_env={"env_vars": {**CONTROLLER_ENVIRONMENT, **chosen.environment}}
                ),
            )
        _ingress = chosen
        _deploy_challenger(config, spec, report)
        return _deploy_champion(config, spec, tls.ssl_context_for_own_certificate(config.tls), report)
    except BaseException:
        with contextlib.suppress(Exception), _hide_serve_lines():
            _remove_started_applications()
            ingress.remove_haproxy_files(chosen)
        raise


def _update_service(config: ServeConfig, spec: ServiceSpec, report: Callable[[str], None]) -> str:
    """Deploy an update while Serve runs; on failure deploy the previous specification again."""
    address, ssl_context = service_address_of(config), tls.ssl_context_for_own_certificate(config.tls)
    previous = _running_spec() if is_service_running() else None
    if not is_reachable(address, ssl_context):
        ssl_context = _trust_certificate_of_running_service(config, address)
    champion_changed = False
    try:
        _deploy_challenger(config, spec, report)
        champion_changed = True
        return _deploy_champion(config, spec, ssl_context, report)
    except BaseException:
        with contextlib.suppress(Exception), _hide_serve_lines():
            if previous is not None:
                _wait_for_failing_replicas(CHALLENGER_APP)
                _run_challenger(previous)
                # Else Serve would keep the failed model as its target, and never replace a dead replica.
                if champion_changed:
                    _wait_for_failing_replicas(APP_NAME)
                    _run_application(
                        build_champion_application(previous, ingress.replica_machine_address()), APP_NAME, "/"
                    )
            _remove_unconfigured_challenger(previous.challenger if previous else {})
        raise


def _wait_for_failing_replicas(app_name: str) -> None:
    """Wait until the failed replicas of an update have ended: Serve would count one that fails after the next
    deployment as a failure of that, and start none of its replicas.
    """
    app = serve.status().applications.get(app_name)
    if app is not None and app.status == "DEPLOY_FAILED":
        wait_until_settled(app_name, _FAILING_S)


def _deploy_challenger(config: ServeConfig, spec: ServiceSpec, report: Callable[[str], None]) -> None:
    """Deploy the challenger, before the champion, whose replicas call it."""
    with _hide_serve_lines():
        _run_challenger(spec)
    if spec.challenger:
        wait_until_running(CHALLENGER_APP, config, report)


def _deploy_champion(
    config: ServeConfig, spec: ServiceSpec, ssl_context: ssl.SSLContext | None, report: Callable[[str], None]
) -> str:
    address, machine = service_address_of(config), ingress.replica_machine_address()
    with _hide_serve_lines():
        _run_application(build_champion_application(spec, machine), APP_NAME, "/")
    wait_until_running(APP_NAME, config, report, address, ssl_context)
    if machine:
        wait_until_settled(APP_NAME, config.start_timeout_s)
    _remove_unconfigured_challenger(spec.challenger)
    return address


def _run_application(application: serve.Application, name: str, route_prefix: str | None) -> None:
    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def _run_challenger(spec: ServiceSpec) -> None:
    if spec.challenger:
        _run_application(build_challenger_application(spec), CHALLENGER_APP, None)  # no HTTP request reaches it


def _remove_unconfigured_challenger(challenger: Mapping[str, str]) -> None:
    if not challenger and CHALLENGER_APP in serve.status().applications:
        with _hide_serve_lines():
            ray_private.delete_in_background(CHALLENGER_APP)


def _remove_started_applications() -> None:
    """Remove the applications that were started here, and Serve too, unless it has other applications."""
    for name in (APP_NAME, CHALLENGER_APP):
        if name in serve.status().applications:
            serve.delete(name)
    if not serve.status().applications:
        ray_private.shut_down(_SHUTDOWN_S)


def _running_spec() -> ServiceSpec | None:
    """Return the specification with which the running replicas were deployed; None if none answers."""
    try:
        with _hide_serve_lines():
            spec: ServiceSpec = serve.get_app_handle(APP_NAME).spec.remote().result(timeout_s=_SPEC_TIMEOUT_S)
    except Exception as error:  # a broken service is a reason to update it
        log.warning("the running service does not say what it was deployed with: %r", error)
        return None
    return spec


def _trust_certificate_of_running_service(config: ServeConfig, address: str) -> ssl.SSLContext:
    """Return an SSL context for a running service that has another certificate, which it keeps; its model can still be
    updated.

    Raises:
        ServeError: the service is elsewhere, or encrypted where it should not be, or not where it should be.
    """
    ssl_context = tls.ssl_context_without_verification()
    if config.tls.is_active and is_reachable(address, ssl_context):
        log.warning(
            "the service shows another certificate than that in '%s'; HAProxy takes a renewed one at this update if it "
            "was started with this file, else it is taken after a stop (`serve shutdown`) and a new start",
            config.tls.certificate,
        )
        return ssl_context
    raise ServeError(
        f"Serve runs on this cluster and does not answer at {address}; it takes its address, and whether it encrypts, "
        "only when it starts: if they changed, stop it (`serve shutdown`), then try again"
    )


@contextlib.contextmanager
def _hide_serve_lines() -> Iterator[None]:
    """Hide Serve's repeated log lines about its start and its routes."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
