"""Start, update and stop the service on a Ray cluster."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.config import BackpressureConfig, ControllerOptions, HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from pipelines.registry import manifest
from pipelines.serve import tls
from pipelines.serve.challenger import deployment as challenger_deployment
from pipelines.serve.client import is_ready, is_there
from pipelines.serve.config import ChallengerConfig, ServeConfig, is_loopback
from pipelines.serve.deployment import exclusive, ingress
from pipelines.serve.deployment.ingress import Ingress
from pipelines.serve.deployment.replica import Deployed, Replica
from pipelines.serve.errors import ServeError
from pipelines.serve.http.middleware import KEY_HASHES_VARIABLE, read_key_hashes
from pipelines.serve.inference.priority import HIGH, NORMAL
from vlmodel.config import dump, parse

log = logging.getLogger(__name__)

APP_NAME = "vlmodel"

# A dead replica is noticed within this time; Serve's own default is 10 s.
_HEALTH_CHECK_S = 2.0
# For replicas to say what they were deployed with; a busy one is asked in its turn.
_ASK_S = 10.0
# Of Serve's controller and, as they inherit it, its proxies.
CONTROLLER_ENVIRONMENT = HIGH | {
    # Ten rounds a second, the default, keep it and the GCS at work: a twentieth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # A thread of its own costs each request a millisecond or two of a core.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}

_OF_MODEL = {"name": APP_NAME, "version": "0", "digest": "", "golden": ""}
# Of the service that this process has started.
_started = Ingress()


def build_app(
    config: ServeConfig,
    model_folder: str | Path,
    name: str = APP_NAME,
    version: str = "0",
    digest: str = "",
    golden: str = "",
    challenger: Mapping[str, str] | None = None,
) -> serve.Application:
    """The Serve application that answers with the model in ``model_folder``.

    Args:
        config: the service's settings.
        model_folder: a folder written by ``save_pretrained``, readable on every node that runs a replica.
        name, version: of the model in the registry; every answer carries them.
        digest: of the folder (``manifest.digest``), as the registry has it; if not given, as it is now. A replica
            refuses to start from other files, also one that takes a dead one's place later.
        golden: file of the version's golden answers; a replica refuses to start if its model gives others.
        challenger: the model that is deployed beside it (``model_spec``), where ``config.challenger.mode`` wants one.

    Raises:
        ServeError: the folder holds no model, the certificate cannot be used, the service is to be exposed and has no
            API keys, or there is no challenger and one is wanted.
        ArtifactError: a link in the folder, which could point anywhere.
    """
    return _application(_described(config, model_spec(model_folder, name, version, digest, golden), challenger))


def model_spec(folder: str | Path, name: str, version: str, digest: str = "", golden: str = "") -> dict[str, str]:
    """A model as replicas are told of it; see ``build_app``.

    Raises:
        ServeError: the folder holds no model.
        ArtifactError: a link in the folder, which could point anywhere.
    """
    place = Path(folder).expanduser().resolve()
    if not (place / "config.json").is_file():
        raise ServeError(
            f"{str(place)!r} holds no model (no config.json); train one, or name a checkpoint's model folder"
        )
    return {
        "folder": str(place),
        "name": name,
        "version": str(version),
        "digest": digest or manifest.digest(place),
        "golden": golden,
    }


def _described(config: ServeConfig, model: Mapping[str, str], challenger: Mapping[str, str] | None) -> Deployed:
    if config.challenger.mode != "off" and challenger is None:
        raise ServeError(
            f"serve.challenger.mode is {config.challenger.mode!r} and no challenger is named; deploy with "
            "python -m jobs.serve, which takes the registry's, or set serve.challenger.mode=off"
        )
    key_hashes = read_key_hashes(os.environ)
    if config.expose and not key_hashes:
        raise ServeError(
            f"serve.expose is true and there are no API keys; put SHA-256 hashes of keys into {KEY_HASHES_VARIABLE}"
        )
    tls.check(config.tls)
    beside = dict(challenger or {}) if config.challenger.mode != "off" else {}
    return Deployed(dump(config), key_hashes, model, beside)


def _application(deployed: Deployed, machine: str = "") -> serve.Application:
    """Args: ``machine`` is the address of the one that replicas must run on, where there is such a one."""
    config = parse(ServeConfig, deployed.config)
    deployment = serve.deployment(
        num_replicas=config.replicas,
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "resources": {f"node:{machine}": 0.001} if machine else {},
            "runtime_env": _environment(HIGH),
        },
        user_config=dict(deployed.model),
        # The application refuses the excess itself, with JSON and a measured Retry-After; these are a second line.
        max_ongoing_requests=2 * config.max_in_flight + 64,
        max_queued_requests=config.max_in_flight,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=config.shutdown_timeout_s,
        # A model that does not load will not load the second time either.
        max_constructor_retry_count=1,
        # With the default of 0 the old replica stops first, and an update is an outage.
        max_surge_percent=100,
        health_check_period_s=_HEALTH_CHECK_S,
        logging_config=LoggingConfig(enable_access_log=False),
    )(Replica)
    return deployment.bind(deployed.config, deployed.key_hashes, deployed.challenger)


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """This job's, with variables of a replica's own."""
    environment = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return environment | {"env_vars": {**environment.get("env_vars", {}), **variables}}


def _challenger_application(deployed: Deployed) -> serve.Application:
    config = parse(ServeConfig, deployed.config)
    own = config.challenger
    deployment = serve.deployment(
        name=challenger_deployment.DEPLOYMENT,
        num_replicas=own.replicas,
        ray_actor_options={
            "num_cpus": own.num_cpus,
            "num_gpus": own.num_gpus,
            # Nobody waits for a shadow.
            "runtime_env": _environment(HIGH if own.mode == "canary" else NORMAL),
        },
        user_config=dict(deployed.challenger),
        # Each of the champion's replicas holds back what is more than max_waiting.
        max_ongoing_requests=config.replicas * own.max_waiting,
        max_constructor_retry_count=1,
        max_surge_percent=100,
        health_check_period_s=_HEALTH_CHECK_S,
        logging_config=LoggingConfig(enable_access_log=False),
    )(challenger_deployment.Challenger)
    return deployment.bind(deployed.config)


def app(args: Mapping[str, Any]) -> serve.Application:
    """Application builder for ``serve run pipelines.serve.deployment.deploy:app model_folder=...`` and for Serve
    config files.

    ``args`` holds ``model_folder``, optionally ``name``, ``version``, ``digest`` and ``golden``, which are those of
    ``build_app``, and ``serve``: a tree of ``ServeConfig``.
    The address is then a matter of that command or file (``http_options``); without API keys the replicas refuse
    every request from another machine, whatever the address. So is encryption (``ssl_certfile``, ``ssl_keyfile``);
    where ``serve.tls`` is set, the replicas refuse every request that came without it. So is what takes the requests
    in (``RAY_SERVE_ENABLE_HA_PROXY`` in Ray's environment, see ``haproxy.py``).

    Raises:
        ServeError: an argument is missing or unknown, else as ``build_app``.
    """
    if "model_folder" not in args:
        raise ServeError("model_folder is missing; name the folder of a trained model: model_folder=...")
    if unknown := sorted(set(args) - {"model_folder", "serve", *_OF_MODEL}):
        known = ", ".join(("model_folder", *_OF_MODEL, "serve"))
        raise ServeError(f"unknown argument {unknown[0]!r}; there are {known}")
    config = parse(ServeConfig, args.get("serve", {}))
    name, version, digest, golden = (str(args.get(key, default)) for key, default in _OF_MODEL.items())
    return build_app(config, args["model_folder"], name, version, digest, golden)


def start(
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
    """Deploy on the cluster that this process is connected to, and wait until it answers.

    Where Serve runs already, the application is updated without an interruption.

    Args:
        config, model_folder, name, version, digest, golden, challenger: see ``build_app``.
        report: is told each change of the service's status.

    Returns:
        The address, such as ``http://127.0.0.1:8000``.

    Raises:
        ServeError: the port is taken, the model does not load, or nothing answers in time. What was begun is undone:
            replicas of the former model have gone on, and one that dies is replaced by one of the former model.
    """
    if not ray.is_initialized():
        raise ServeError("not connected to a Ray cluster; call ray.init() first")
    wanted = _described(config, model_spec(model_folder, name, version, digest, golden), challenger)
    with exclusive.on_cluster(2 * config.start_timeout_s, report):
        if serve.status().proxies:
            return _update(config, wanted, report)
        with exclusive.at_port(config.port, config.start_timeout_s):
            return _start(config, wanted, report)


def _start(config: ServeConfig, wanted: Deployed, report: Callable[[str], None]) -> str:
    """Start Serve, then deploy."""
    global _started
    check_port_free(config.host, config.port)
    chosen, reason = ingress.choose(config, _authority(config.host, config.port))
    if reason:
        report(f"service: behind Serve's Python proxy, as {reason}")
    try:
        with _quiet():
            serve.start(
                proxy_location=(
                    ProxyLocation.HeadOnly if chosen.is_haproxy or is_loopback(config.host) else ProxyLocation.EveryNode
                ),
                http_options=HTTPOptions(
                    host=chosen.host,
                    port=config.port,
                    # The application times requests itself (a client's header can change this one); this ends what
                    # it cannot.
                    request_timeout_s=config.request_timeout_s + config.shutdown_timeout_s,
                    # HAProxy encrypts, and speaks to replicas in plain.
                    **({} if chosen.is_haproxy else _encryption(config)),
                ),
                logging_config=LoggingConfig(enable_access_log=False),
                controller_options=ControllerOptions(
                    runtime_env={"env_vars": {**CONTROLLER_ENVIRONMENT, **chosen.environment}}
                ),
            )
        _started = chosen
        _deploy_challenger(config, wanted, report)
        return _deploy_champion(config, wanted, tls.pinned(config.tls), report)
    except BaseException:
        with contextlib.suppress(Exception), _quiet():
            _take_back()
            ingress.remove(chosen)
        raise


def _update(config: ServeConfig, wanted: Deployed, report: Callable[[str], None]) -> str:
    """Deploy where Serve runs, and go back to what was deployed before where that fails."""
    address, ssl_context = address_of(config), tls.pinned(config.tls)
    former = _deployed() if is_running() else None
    if not is_there(address, ssl_context):
        ssl_context = _other_trust(config, address)
    touched = False
    try:
        _deploy_challenger(config, wanted, report)
        touched = True
        return _deploy_champion(config, wanted, ssl_context, report)
    except BaseException:
        with contextlib.suppress(Exception), _quiet():
            if former is not None:
                _run_challenger(former)
                # Else Serve would go on wanting what failed, and never replace a dead replica of the former model.
                if touched:
                    _run(_application(former, ingress.machine()))
            _end_challenger_unless(former.challenger if former else {})
        raise


def _deploy_challenger(config: ServeConfig, wanted: Deployed, report: Callable[[str], None]) -> None:
    """It comes before the champion that asks it."""
    with _quiet():
        _run_challenger(wanted)
    if wanted.challenger:
        _wait_until_ready(config, "", None, report, challenger_deployment.APP_NAME)


def _deploy_champion(
    config: ServeConfig, wanted: Deployed, ssl_context: ssl.SSLContext | None, report: Callable[[str], None]
) -> str:
    address, machine = address_of(config), ingress.machine()
    with _quiet():
        _run(_application(wanted, machine))
    _wait_until_ready(config, address, ssl_context, report)
    if machine:
        _wait_until_former_ended(config)
    _end_challenger_unless(wanted.challenger)
    return address


def _wait_until_former_ended(config: ServeConfig) -> None:
    """Until no replica of the former model is left, which HAProxy may still ask when Serve no longer would."""
    deadline = time.monotonic() + config.start_timeout_s
    while time.monotonic() < deadline:
        deployments = serve.status().applications[APP_NAME].deployments.values()
        if all(set(deployment.replica_states) <= {"RUNNING"} for deployment in deployments):
            return
        time.sleep(0.1)


def _take_back() -> None:
    """Remove what was begun here; Serve too, unless others have put an application of theirs there meanwhile."""
    for name in (APP_NAME, challenger_deployment.APP_NAME):
        if name in serve.status().applications:
            serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def _other_trust(config: ServeConfig, address: str) -> ssl.SSLContext:
    """For a service that runs with the certificate of before: it goes on with that, and can be updated.

    Raises:
        ServeError: the service is elsewhere, or encrypted where it should not be, or not where it should be.
    """
    ssl_context = tls.unverified()
    if config.tls.active and is_there(address, ssl_context):
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


def _encryption(config: ServeConfig) -> dict[str, Any]:
    if not config.tls.active:
        return {}
    certificate, key = config.tls.files
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def _run(application: serve.Application, name: str = APP_NAME, route_prefix: str | None = "/") -> None:
    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def _run_challenger(wanted: Deployed) -> None:
    """Deploy the challenger, which no HTTP request reaches."""
    if wanted.challenger:
        _run(_challenger_application(wanted), challenger_deployment.APP_NAME, route_prefix=None)


def _end_challenger_unless(wanted: Mapping[str, str]) -> None:
    """Remove a challenger that no champion asks any more."""
    if not wanted and challenger_deployment.APP_NAME in serve.status().applications:
        with _quiet():
            serve.delete(challenger_deployment.APP_NAME, _blocking=False)


def _deployed() -> Deployed | None:
    """What the running replicas were deployed with; None where none says it."""
    try:
        with _quiet():
            deployed: Deployed = serve.get_app_handle(APP_NAME).deployed.remote().result(timeout_s=_ASK_S)
    except Exception as error:  # whatever ails a service is a reason to update it
        log.warning("the running service does not say what it was deployed with: %r", error)
        return None
    return deployed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Serve from telling that it starts twice, with our options and for the application, and how it routes."""
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_running() -> bool:
    """Whether the service is deployed on the cluster that this process is connected to."""
    return ray.is_initialized() and APP_NAME in serve.status().applications


def stop() -> None:
    """Let requests in flight end, then remove the service from the cluster. Does nothing where none runs."""
    global _started
    if ray.is_initialized():
        serve.shutdown()
        ingress.remove(_started)
        _started = Ingress()


def address_of(config: ServeConfig) -> str:
    """The address under which this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    scheme = "https" if config.tls.active else "http"
    return f"{scheme}://{_authority(host, config.port)}"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_port_free(host: str, port: int, setting: str = "serve.port") -> None:
    """Refuse a port that something listens on. Serve's own proxy shares ports and would not notice.

    Raises:
        ServeError: the port is in use, or this process may not listen there.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServeError(f"host {host!r} is not an address of this machine ({error}); use 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as listener:
        # Without this, connections of a service that just ended keep its port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(1)
        except OSError as error:
            reason = {
                errno.EADDRINUSE: f"is in use{_by_whom(port)}; stop what listens there, or choose another with "
                f"{setting}=...",
                errno.EACCES: f"needs more rights; choose one above 1023 with {setting}=...",
                errno.EADDRNOTAVAIL: "cannot be opened on that host; set serve.host=127.0.0.1",
            }.get(error.errno or 0, f"cannot be opened ({error}); choose another with {setting}=...")
            raise ServeError(f"port {port} on {host} {reason}") from None


def _by_whom(port: int) -> str:
    """The processes that listen at a port, as far as this user may know them."""
    with contextlib.suppress(psutil.Error):
        listening = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
        }
        names = [f"{psutil.Process(pid).name()} (process {pid})" for pid in sorted(listening)]
        return " by " + " and ".join(names) if names else ""
    return ""


def _wait_until_ready(
    config: ServeConfig,
    address: str,
    ssl_context: ssl.SSLContext | None,
    report: Callable[[str], None],
    app_name: str = APP_NAME,
) -> None:
    """Wait for an application, and for its answer at ``address`` where it has one."""
    what = "service" if app_name == APP_NAME else "challenger"
    where = f" at {address}" if address else ""
    deadline = time.monotonic() + config.start_timeout_s
    said = ""
    while True:
        overview = serve.status().applications.get(app_name)
        status = str(overview.status.value) if overview else "UNKNOWN"
        if status != said:
            report(f"{what}: {status.lower().replace('_', ' ')}")
            said = status
        if status in ("DEPLOY_FAILED", "UNHEALTHY") and overview is not None:
            raise ServeError(f"the {what} did not start: {_reason(overview)}")
        if status == "RUNNING" and (not address or is_ready(address, ssl_context)):
            return
        if time.monotonic() > deadline:
            raise ServeError(
                f"the {what} did not answer{where} within {config.start_timeout_s:g} s (status {status}); "
                f"{_why_late(overview, config if app_name == APP_NAME else config.challenger)}"
            )
        time.sleep(0.1)


def _reason(overview: Any) -> str:
    """The line of a replica's traceback that says what happened, else what Serve says."""
    messages = [deployment.message for deployment in overview.deployments.values() if deployment.message]
    text = "\n".join(messages) or overview.message
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0] and not line.startswith("ray.")]
    return errors[-1] if errors else (lines[-1] if lines else "Serve gives no reason; see the replica's log")


def _why_late(overview: Any, config: ServeConfig | ChallengerConfig) -> str:
    waiting = " ".join(d.message for d in overview.deployments.values()) if overview else ""
    if "resource" in waiting.lower():
        free = ray.available_resources()
        section = "serve" if isinstance(config, ServeConfig) else "serve.challenger"
        return (
            f"{config.replicas} replica(s) need {config.num_cpus:g} CPU and {config.num_gpus:g} GPU each, and the "
            f"cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free; lower "
            f"{section}.num_cpus or {section}.replicas"
        )
    if overview is not None and str(overview.status.value) == "RUNNING":
        return "Serve's proxy may not have started; see its log"
    return "raise serve.start_timeout_s, or see the replica's log"
