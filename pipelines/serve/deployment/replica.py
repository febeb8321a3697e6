"""One replica of the service on Ray Serve: HTTP, decoding, batching and the model in one process.

One deployment, not an ingress before a model deployment: the hop between two would pickle every image once more, and
on a small machine the second process only takes cores from the model (measured with 32 callers: 59 requests/s in one,
40 in two; alone 51 ms and 62 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import serve

from pipelines.serve.config import ServeConfig
from pipelines.serve.inference.priority import run_at_low_priority
from pipelines.serve.ray_private import bind_grpc_to_loopback
from vlmodel.config import dump_config, parse_config

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pipelines.serve.challenger.router import ChallengerRouter


@dataclass(frozen=True)
class ServiceSpec:
    """Everything that is needed to deploy a service again.

    Attributes:
        config: the dumped ``ServeConfig``.
        key_hashes: SHA-256 hashes of the API keys.
        model: its folder, name and version in the registry, the digest of its files, and its golden answers.
        challenger: the same of the challenger; {} for none.
        fact_key_hashes: SHA-256 hashes of the keys with which facts can be edited.
    """

    config: Mapping[str, Any]
    key_hashes: tuple[str, ...]
    model: Mapping[str, str]
    challenger: Mapping[str, str] = field(default_factory=dict)
    fact_key_hashes: tuple[str, ...] = ()


@serve.ingress()
class Replica:
    """An HTTP application over a model, which ``reconfigure`` loads and replaces. For its arguments see
    ``ServiceSpec``.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        key_hashes: Sequence[str],
        challenger: Mapping[str, str],
        fact_key_hashes: Sequence[str] = (),
    ) -> None:
        self._fact_key_hashes = tuple(fact_key_hashes)
        self._config, self._key_hashes = parse_config(ServeConfig, config), tuple(key_hashes)
        self._model: Mapping[str, str] = {}
        self._challenger = challenger
        self._router: ChallengerRouter | None = None
        bind_grpc_to_loopback()
        self._app = run_at_low_priority(self._build)

    def _build(self) -> ASGIApp:
        # Importing these takes seconds of a core, as they import the model's libraries.
        from pipelines.records.comparisons import ComparisonWriter
        from pipelines.serve.challenger.deployment import RayChallengerClient
        from pipelines.serve.challenger.router import ChallengerRouter
        from pipelines.serve.facts import UpdatableFactStore
        from pipelines.serve.http.app import create_app
        from pipelines.serve.inference.service import InferenceService
        from pipelines.serve.metrics import RayChallengerMetrics, RayMetrics
        from pipelines.serve.search import UpdatableSearch

        metrics, settings = RayMetrics(), self._config.challenger
        facts = UpdatableFactStore(self._config.knowledge) if self._config.knowledge.store else None
        self._service = InferenceService(self._config, metrics, facts)
        if self._challenger:
            writer = ComparisonWriter(settings.folder, int(settings.max_gb * 1e9)) if settings.folder else None
            client = RayChallengerClient(self._challenger)
            self._router = ChallengerRouter(self._service, client, self._config, writer, RayChallengerMetrics())
        search = UpdatableSearch(self._config.search) if self._config.search.embeddings else None
        return create_app(
            self._router or self._service, self._config, self._key_hashes, metrics, facts, self._fact_key_hashes, search
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def reconfigure(self, model: Mapping[str, str]) -> None:
        await self._service.load(model["folder"], model["name"], model["version"], model["digest"], model["golden"])
        self._model = model

    def spec(self) -> ServiceSpec:
        """Return the specification with which this replica was deployed, for an update that may have to be undone."""
        return ServiceSpec(
            dump_config(self._config), self._key_hashes, self._model, self._challenger, self._fact_key_hashes
        )

    def check_health(self) -> None:
        self._service.check_health()

    async def __del__(self) -> None:
        # Serve awaits this when it stops a replica, also one whose constructor failed.
        router: ChallengerRouter | None = getattr(self, "_router", None)
        if router is not None:
            await router.close()
