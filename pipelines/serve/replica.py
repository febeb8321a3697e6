"""One replica of the service on Ray Serve: HTTP, decoding, batching and the model in one process.

One deployment, not an ingress before a model deployment: the hop between two would pickle every picture once more,
and on a small machine the second process only takes cores from the model (measured with 32 callers: 59 requests/s
in one, 40 in two; alone 51 ms and 62 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from pipelines.data.comparisons import ComparisonWriter
from pipelines.serve.answerer import Answerer
from pipelines.serve.app import create_app
from pipelines.serve.challenger import Challenged
from pipelines.serve.config import ServeConfig
from pipelines.serve.metrics import RayChallengerMetrics, RayMetrics
from pipelines.serve.rival import HandleRival
from pipelines.serve.service import Service
from vlmodel.config import dump, parse


@dataclass(frozen=True)
class Deployed:
    """What a replica was made of: all that it takes to deploy the same again.

    Attributes:
        config: the dumped ``ServeConfig``.
        key_hashes: SHA-256 hashes of the API keys.
        model: its folder, name and version in the registry, the digest of its files, and its golden answers.
        challenger: the same of the model beside it; {} for none.
    """

    config: Mapping[str, Any]
    key_hashes: tuple[str, ...]
    model: Mapping[str, str]
    challenger: Mapping[str, str] = field(default_factory=dict)


@serve.ingress()
class Replica:
    """Wires the HTTP application to a model. ``reconfigure`` loads the model; another one swaps in when it is warm.

    Args:
        config: the dumped ``ServeConfig``.
        key_hashes: SHA-256 hashes of the API keys.
        challenger: the model that is deployed beside this one; {} for none.
    """

    def __init__(self, config: Mapping[str, Any], key_hashes: Sequence[str], challenger: Mapping[str, str]) -> None:
        self._config = parse(ServeConfig, config)
        self._key_hashes = tuple(key_hashes)
        self._model: Mapping[str, str] = {}
        self._metrics = RayMetrics()
        self._answerer = Answerer(self._config, self._metrics)
        self._challenger = challenger
        self._challenged = _beside(self._answerer, challenger, self._config) if challenger else None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._challenged or self._answerer, self._config, self._key_hashes, self._metrics)

    async def reconfigure(self, model: Mapping[str, str]) -> None:
        await self._answerer.load(model["folder"], model["name"], model["version"], model["digest"], model["golden"])
        self._model = model

    def deployed(self) -> Deployed:
        """What this replica answers with, for who updates the service and may have to go back."""
        return Deployed(dump(self._config), self._key_hashes, self._model, self._challenger)

    def check_health(self) -> None:
        self._answerer.check_health()

    async def __del__(self) -> None:
        # Serve awaits this when it stops a replica.
        challenged: Challenged | None = getattr(self, "_challenged", None)
        if challenged is not None:
            await challenged.close()


def _beside(champion: Service, challenger: Mapping[str, str], config: ServeConfig) -> Challenged:
    settings = config.challenger
    writer = ComparisonWriter(settings.folder, int(settings.max_gb * 1e9)) if settings.folder else None
    return Challenged(champion, HandleRival(challenger), config, writer, RayChallengerMetrics())
