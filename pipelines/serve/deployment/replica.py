"""One replica of the service on Ray Serve: HTTP, decoding, batching and the model in one process.

One deployment, not an ingress before a model deployment: the hop between two would pickle every picture once more,
and on a small machine the second process only takes cores from the model (measured with 32 callers: 59 requests/s
in one, 40 in two; alone 51 ms and 62 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.types import ASGIApp

from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment.ingress import keep_to_this_machine
from pipelines.serve.inference.priority import run_at_low_priority
from vlmodel.config import dump, parse

if TYPE_CHECKING:
    from pipelines.serve.deployment.components import ReplicaComponents


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
        self._challenger = challenger
        keep_to_this_machine()
        self._parts = run_at_low_priority(self._assembled)

    def _assembled(self) -> ReplicaComponents:
        from pipelines.serve.deployment.components import ReplicaComponents

        return ReplicaComponents(self._config, self._key_hashes, self._challenger)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._parts.app

    async def reconfigure(self, model: Mapping[str, str]) -> None:
        service = self._parts.service
        await service.load(model["folder"], model["name"], model["version"], model["digest"], model["golden"])
        self._model = model

    def deployed(self) -> Deployed:
        """What this replica answers with, for who updates the service and may have to go back."""
        return Deployed(dump(self._config), self._key_hashes, self._model, self._challenger)

    def check_health(self) -> None:
        self._parts.service.check_health()

    async def __del__(self) -> None:
        # Serve awaits this when it stops a replica.
        parts: ReplicaComponents | None = getattr(self, "_parts", None)
        if parts is not None and parts.router is not None:
            await parts.router.close()
