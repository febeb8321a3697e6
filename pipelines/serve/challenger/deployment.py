"""The challenger as a deployment of its own, in an application of its own, and the way to it from a champion's replica.

Its own process: what it allocates, how long it computes and whether it crashes are no matter of the champion's. Its own
application: Serve judges an application as a whole, and the champion's must be well when the challenger is not. What
travels between them is what Serve's handles pickle, which only processes of this cluster can send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from pipelines.serve.challenger.request import ServiceRequest, dispatch
from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment.ingress import keep_to_this_machine
from pipelines.serve.errors import ApiError
from pipelines.serve.inference.priority import run_at_low_priority
from pipelines.serve.metrics import RayMetrics
from pipelines.serve.service import ServiceResult
from vlmodel.config import parse

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
        settings = parse(ServeConfig, config)
        own = {"num_gpus": settings.challenger.num_gpus, "model_threads": settings.challenger.model_threads}
        self._config = settings.model_copy(update=own)
        keep_to_this_machine()
        # As in a replica of the champion's: importing the model's libraries takes seconds of a core.
        self._service = run_at_low_priority(self._load_libraries)

    def _load_libraries(self) -> InferenceService:
        from pipelines.serve.inference.service import InferenceService

        return InferenceService(self._config, RayMetrics())

    async def reconfigure(self, model: Mapping[str, str]) -> None:
        await self._service.load(model["folder"], model["name"], model["version"], model["digest"], model["golden"])

    async def ask(self, request: ServiceRequest) -> ServiceResult[Any] | ApiError:
        """The answer, or why the request is refused: as a value, since Serve logs what is raised as a fault."""
        try:
            return await dispatch(self._service, request)
        except ApiError as error:
            return error

    def check_health(self) -> None:
        self._service.check_health()


class RayChallengerClient:
    """The challenger's deployment, seen from a champion's replica; whether it is there is found out by asking.

    Args:
        model: name and version, as it was deployed.
    """

    def __init__(self, model: Mapping[str, str]) -> None:
        self.version = model["version"]
        self._handle: DeploymentHandle[Any] | None = None
        self._handle_lock = asyncio.Lock()

    async def ask(self, request: ServiceRequest) -> ServiceResult[Any]:
        """See ``ChallengerClient``."""
        response = (await self._get_handle()).ask.remote(request)
        try:
            result = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        if isinstance(result, ApiError):
            raise result
        return result

    async def _get_handle(self) -> DeploymentHandle[Any]:
        async with self._handle_lock:
            if self._handle is None:
                # It asks Serve's controller, which must not hold up the event loop.
                self._handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, APP_NAME)
            return self._handle
