"""Builds the Ray Serve applications of champion and challenger from a ``ServiceSpec``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from pipelines.serve import tls
from pipelines.serve.challenger.calls import MAX_WAITING
from pipelines.serve.challenger.deployment import DEPLOYMENT, Challenger
from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment.replica import Replica, ServiceSpec
from pipelines.serve.errors import ServeError
from pipelines.serve.http.api_keys import FACT_KEY_HASHES_VARIABLE, KEY_HASHES_VARIABLE, read_key_hashes
from pipelines.serve.inference.priority import HIGH, NORMAL
from pipelines.storage import manifest
from vlmodel.config import dump_config, parse_config

# A model that does not load will not load the second time either. With a surge of 0, the default, the old replica
# stops first, and an update is an outage. A dead replica is noticed within 2 s (Serve's default is 10 s).
_COMMON: dict[str, Any] = {
    "max_constructor_retry_count": 1,
    "max_surge_percent": 100,
    "health_check_period_s": 2.0,
    "logging_config": LoggingConfig(enable_access_log=False),
}


def describe_model_for_replicas(
    folder: str | Path, name: str, version: str, digest: str = "", golden: str = ""
) -> dict[str, str]:
    """Describe a model as plain values, from which replicas load it.

    Args:
        folder: written by ``save_pretrained``, readable on every node that runs a replica.
        name, version: of the model in the registry; every answer carries them.
        digest: of the folder (``manifest.folder_digest``), as the registry has it; if not given, as it is now. A
            replica refuses to start from other files, also one that replaces a dead one later.
        golden: file of the version's golden answers; a replica refuses to start if its model gives others.

    Raises:
        ServeError: the folder holds no model.
        ManifestError: a link in the folder, which could point anywhere.
    """
    path = Path(folder).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise ServeError(
            f"{str(path)!r} holds no model (no config.json); train one, or name a checkpoint's model folder"
        )
    digest = digest or manifest.folder_digest(path)
    return {"folder": str(path), "name": name, "version": str(version), "digest": digest, "golden": golden}


def build_service_spec(
    config: ServeConfig, model: Mapping[str, str], challenger: Mapping[str, str] | None
) -> ServiceSpec:
    """Build the specification of the service: settings, API keys (from the environment) and models.

    Raises:
        ServeError: the certificate cannot be used, the service is to be exposed and has no API keys, or a challenger is
            wanted and not given.
    """
    mode = config.challenger.mode
    if mode != "off" and challenger is None:
        raise ServeError(
            f"serve.challenger.mode is {mode!r} and no challenger is named; deploy with python -m jobs.serve, which "
            "takes the registry's, or set serve.challenger.mode=off"
        )
    key_hashes = read_key_hashes(os.environ)
    if config.expose and not key_hashes:
        raise ServeError(
            f"serve.expose is true and there are no API keys; put SHA-256 hashes of keys into {KEY_HASHES_VARIABLE}"
        )
    tls.check_tls_files(config.tls)
    fact_key_hashes = read_key_hashes(os.environ, FACT_KEY_HASHES_VARIABLE)
    named = dict(challenger or {}) if mode != "off" else {}
    return ServiceSpec(dump_config(config), key_hashes, model, named, fact_key_hashes)


def build_champion_application(spec: ServiceSpec, machine: str = "") -> serve.Application:
    """Build the application that answers HTTP.

    Args:
        machine: address of the only machine that replicas may run on; "" for any.
    """
    config = parse_config(ServeConfig, spec.config)
    deployment = serve.deployment(
        num_replicas=config.replicas,
        ray_actor_options={
            "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "resources": {f"node:{machine}": 0.001} if machine else {},
            "runtime_env": _make_runtime_env(HIGH),
        },
        user_config=dict(spec.model),
        # The application itself refuses what exceeds ``max_in_flight``, with a measured Retry-After; these limits are
        # a second line.
        max_ongoing_requests=2 * config.max_in_flight + 64,
        max_queued_requests=config.max_in_flight,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=config.shutdown_timeout_s,
        **_COMMON,
    )(Replica)
    return deployment.bind(spec.config, spec.key_hashes, spec.challenger, spec.fact_key_hashes)


def build_challenger_application(spec: ServiceSpec) -> serve.Application:
    """Build the challenger's application, which only the champion's replicas call."""
    config = parse_config(ServeConfig, spec.config)
    settings = config.challenger
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=settings.replicas,
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            # Nobody waits for a shadow.
            "runtime_env": _make_runtime_env(HIGH if settings.mode == "canary" else NORMAL),
        },
        user_config=dict(spec.challenger),
        max_ongoing_requests=config.replicas * MAX_WAITING,
        **_COMMON,
    )(Challenger)
    return deployment.bind(spec.config)


def _make_runtime_env(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return this job's runtime environment with additional environment variables."""
    environment = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return environment | {"env_vars": {**environment.get("env_vars", {}), **variables}}
