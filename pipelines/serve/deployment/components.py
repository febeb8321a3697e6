"""The parts of a replica, put together. Importing this takes seconds of a core, as the model's libraries do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import ASGIApp

from pipelines.records.comparisons import ComparisonWriter
from pipelines.serve.challenger.deployment import RayChallengerClient
from pipelines.serve.challenger.router import ChallengerRouter
from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from pipelines.serve.metrics import RayChallengerMetrics, RayMetrics
from pipelines.serve.service import Service


class ReplicaComponents:
    """A model that is yet to be loaded, the HTTP application before it and, if there is one, the challenger beside it.

    Args:
        key_hashes: SHA-256 hashes of the API keys.
        challenger: the model that is deployed beside this one; {} for none.
    """

    def __init__(self, config: ServeConfig, key_hashes: Sequence[str], challenger: Mapping[str, str]) -> None:
        metrics = RayMetrics()
        self.service = InferenceService(config, metrics)
        self.router = _beside(self.service, challenger, config) if challenger else None
        self.app: ASGIApp = create_app(self.router or self.service, config, key_hashes, metrics)


def _beside(champion: Service, challenger: Mapping[str, str], config: ServeConfig) -> ChallengerRouter:
    settings = config.challenger
    writer = ComparisonWriter(settings.folder, int(settings.max_gb * 1e9)) if settings.folder else None
    return ChallengerRouter(champion, RayChallengerClient(challenger), config, writer, RayChallengerMetrics())
