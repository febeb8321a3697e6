"""The routes /v1/facts: show the facts about an entity, and add, edit and remove facts while the service runs.

Reading needs what all requests need. Editing changes the answers that everybody gets, so it needs a key of its own, in
the header X-Fact-Key; without such keys there is none.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from pipelines.knowledge.errors import FactRefusedError, KnowledgeError, UnknownFactError
from pipelines.knowledge.triples import MAX_LETTERS, Triple, has_invisible_characters
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.facts import UpdatableFactStore
from pipelines.serve.http.api_keys import FACT_KEY_HASHES_VARIABLE
from pipelines.serve.http.openapi import ErrorBody
from vlmodel.facts import Fact

_log = logging.getLogger(__name__)

T = TypeVar("T")

_ID = r"^[A-Za-z0-9_.:\-]{1,64}$"
_Key = Annotated[str, Header(alias="x-fact-key", description="A key for editing facts.")]
_Part = Annotated[str, Field(max_length=MAX_LETTERS)]


class FactRequest(BaseModel):
    """A request to add a fact, or to replace the one with its id."""

    model_config = ConfigDict(extra="forbid", strict=True)

    head: _Part
    relation: _Part = Field(description="In words or in the source's spelling: HasProperty is read as has property.")
    tail: _Part
    text: str = Field(default="", max_length=MAX_LETTERS, description="The fact as a sentence; made of the parts else.")
    id: str = Field(default="", pattern=r"^([A-Za-z0-9_.:\-]{1,64})?$", description="Given, it is that fact's edit.")
    source: str = Field(default="edited", max_length=200)


class StoredFact(BaseModel):
    """One fact, as it is stored."""

    id: str
    head: str
    relation: str
    tail: str
    text: str
    source: str


class FactResponse(BaseModel):
    """The response with the fact as it is stored, and the first version that has it."""

    fact: StoredFact
    knowledge_version: int


class DeletedResponse(BaseModel):
    """The response with the first version that no longer has the fact."""

    id: str
    knowledge_version: int


class FactsResponse(BaseModel):
    """The response with the facts about an entity, including contradictory ones."""

    entity: str
    facts: list[StoredFact]
    knowledge_version: int


def router(facts: UpdatableFactStore | None, config: ServeConfig, key_hashes: Sequence[str]) -> APIRouter:
    """Create the routes /v1/facts; without a store they answer that there is none.

    Args:
        key_hashes: SHA-256 hashes (hex) of the keys with which facts can be edited.
    """
    problems: dict[int | str, dict[str, Any]] = {s: {"model": ErrorBody} for s in (401, 403, 404, 422, 503)}
    routes = APIRouter(tags=["facts"], responses=problems)
    hashes = [bytes.fromhex(entry) for entry in key_hashes]

    def require_fact_store() -> UpdatableFactStore:
        if facts is None:
            raise ApiError(404, "no_facts", "this service has no store of facts; its operator can name one")
        return facts

    def require_editable_fact_store(key: str) -> UpdatableFactStore:
        store = require_fact_store()
        if not hashes:
            message = f"facts cannot be edited here; the service's operator can set {FACT_KEY_HASHES_VARIABLE}"
            raise ApiError(403, "facts_read_only", message)
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        # All are compared, so that the time does not tell which one matched.
        matches = [hmac.compare_digest(digest, accepted) for accepted in hashes]
        if not key or not any(matches):
            raise ApiError(401, "unauthorized", "the key for editing facts is missing or wrong; send it as X-Fact-Key")
        return store

    async def apply_change(work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(config.request_timeout_s):
                return await work
        except FactRefusedError as error:
            raise ApiError(422, error.fault, str(error)) from None
        except UnknownFactError:
            message = "there is no fact of this id; GET /v1/facts?entity=NAME shows those of an entity"
            raise ApiError(404, "unknown_fact", message) from None
        except (KnowledgeError, OSError, TimeoutError) as error:
            _log.warning("a fact was not changed: %s", error)
            message = "the store of facts cannot be used now; look whether the fact is there, then try again"
            raise ApiError(503, "facts_unavailable", message, {"retry-after": "1"}) from None

    @routes.post("/v1/facts", summary="Add or edit a fact")
    async def put(request: Annotated[FactRequest, Body()], x_fact_key: _Key = "") -> FactResponse:
        """Add or replace a fact. Every later answer of this replica uses it, those of other replicas within two
        seconds; a request can wait for `knowledge_version`.
        """
        store = require_editable_fact_store(x_fact_key)
        if has_invisible_characters(request.source):
            raise ApiError(422, "unseen_characters", "the source has characters that are not shown; leave them out")
        triple = Triple(request.head, request.relation, request.tail, text=request.text)
        version, fact = await apply_change(asyncio.to_thread(store.put, triple, request.id, request.source))
        return FactResponse(fact=_to_stored_fact(fact), knowledge_version=version)

    @routes.delete("/v1/facts/{fact_id}", summary="Remove a fact")
    async def delete(fact_id: Annotated[str, Path(pattern=_ID)], x_fact_key: _Key = "") -> DeletedResponse:
        """Remove a fact. No later answer of this replica uses it, and none of other replicas after two seconds."""
        version = await apply_change(asyncio.to_thread(require_editable_fact_store(x_fact_key).delete, fact_id))
        return DeletedResponse(id=fact_id, knowledge_version=version)

    @routes.get("/v1/facts", summary="The facts of an entity")
    async def of_entity(
        entity: Annotated[str, Query(min_length=1, max_length=MAX_LETTERS, description="A head or a tail.")],
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> FactsResponse:
        """Find the facts about an entity by its name, ignoring case; an empty list if nothing is known about it."""
        version, found = await apply_change(asyncio.to_thread(require_fact_store().find_facts_of_entity, entity, limit))
        return FactsResponse(entity=entity, facts=[_to_stored_fact(fact) for fact in found], knowledge_version=version)

    return routes


def _to_stored_fact(fact: Fact) -> StoredFact:
    return StoredFact(**{name: getattr(fact, name) for name in StoredFact.model_fields})
