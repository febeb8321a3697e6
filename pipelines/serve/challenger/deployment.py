"""The challenger's own Ray Serve deployment, and the client by which a champion's replica calls it.

Its own process: its memory, computing time and crashes do not affect the champion. Its own application: Serve judges
the health of an application as a whole, and the champion's must be healthy when the challenger is not. Requests between
them are pickled by Serve's handles, which only processes of this cluster can use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.inference.priority import run_at_low_priority
from pipelines.serve.metrics import RayMetrics
from pipelines.serve.ray_private import bind_grpc_to_loopback
from pipelines.serve.service import ServiceRequest, ServiceResult
from vlmodel.config import parse_config

if TYPE_CHECKING:
    from pipelines.serve.inference.service import InferenceService

APP_NAME = "vlmodel-challenger"
DEPLOYMENT = "Challenger"


class Challenger:
    """One replica of the challenger: a model without HTTP.

    Args:
        config: the dumped ``ServeConfig``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        settings = parse_config(ServeConfig, config)
        num_cpus, num_gpus = settings.challenger.num_cpus, settings.challenger.num_gpus
        own = {"num_cpus": num_cpus, "num_gpus": num_gpus, "model_threads": max(1, int(num_cpus))}
        self._config = settings.model_copy(update=own)
        bind_grpc_to_loopback()
        self._service = run_at_low_priority(self._build)

    def _build(self) -> InferenceService:
        # Importing the model's libraries takes seconds of a core.
        from pipelines.serve.facts import UpdatableFactStore
        from pipelines.serve.inference.service import InferenceService

        knowledge = self._config.knowledge
        return InferenceService(self._config, RayMetrics(), UpdatableFactStore(knowledge) if knowledge.store else None)

    async def reconfigure(self, model: Mapping[str, str]) -> None:
        await self._service.load(model["folder"], model["name"], model["version"], model["digest"], model["golden"])

    async def run(self, request: ServiceRequest) -> ServiceResult | ApiError:
        """Return the result or, as a value, why the request is refused, since Serve logs every exception as a fault."""
        try:
            return await self._service.run(request)
        except ApiError as error:
            return error

    def check_health(self) -> None:
        self._service.check_health()


class RayChallengerClient:
    """A ``ChallengerClient`` that calls the Ray Serve deployment of the challenger, which may be missing.

    Args:
        model: name and version, as it was deployed.
    """

    def __init__(self, model: Mapping[str, str]) -> None:
        self.version = model["version"]
        self._handle: DeploymentHandle[Any] | None = None
        self._handle_lock = asyncio.Lock()

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """See ``ChallengerClient``."""
        async with self._handle_lock:
            if self._handle is None:
                # It asks Serve's controller, which must not block the event loop.
                self._handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, APP_NAME)
        response = self._handle.run.remote(request)
        try:
            result = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        if isinstance(result, ApiError):
            raise replace(result)  # a copy: the traceback of a local variable would keep this frame and the image
        return result
