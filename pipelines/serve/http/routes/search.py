"""The route POST /v1/search: finds the samples of a data set that are nearest to a text, a picture or another input."""

from __future__ import annotations

import asyncio
import base64
import logging

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.search import SearchResult
from pipelines.embeddings.thumbnails import Thumbnails
from pipelines.errors import DataError
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.openapi import ErrorBody, document_route
from pipelines.serve.http.routes import base
from pipelines.serve.search import UpdatableSearch
from pipelines.serve.service import Service, ServiceRequest, ServiceResult
from vlmodel.media.base import DisplayCopy
from vlmodel.operations import base as schemas
from vlmodel.operations.embed import Embeddings as RequestVectors

_log = logging.getLogger(__name__)


class SearchRequest(schemas.InputsRequest):
    """A search by exactly one of: a text, a picture, or another input that the model embeds."""

    model_config = schemas.schema_with_examples(
        {"text": "a red circle", "top_k": 3},
        {"image": schemas.EXAMPLE_IMAGE, "top_k": 3, "thumbnails": False},
        {"image": schemas.EXAMPLE_IMAGE, "among": "text"},
    )

    text: schemas.Text | None = Field(default=None, description="What is searched for, in words.")
    image: schemas.ImageBytes | None = Field(default=None, description=schemas.IMAGE_DESCRIPTION)
    among: str = Field(
        default="",
        max_length=64,
        description="What is searched: `text` or the name of an input, of `search` in `/v1/model`. By default the "
        "inputs, such as the pictures, where there are any.",
    )
    top_k: int = Field(default=12, ge=1, le=100, description="How many of the nearest.")
    thumbnails: bool = Field(default=True, description="Also return a small copy of each sample's picture.")

    @model_validator(mode="after")
    def _check_one_query(self) -> SearchRequest:
        given = [self.text is not None, self.image is not None, *([True] * len(self.inputs))]
        if sum(given) != 1:
            message = "give one thing to search for: 'text', 'image' or another input; {count} were given"
            raise PydanticCustomError("not_one_query", message, {"count": sum(given)})
        return self


class Thumbnail(BaseModel):
    """A small copy of a picture."""

    media_type: str = Field(description="Such as image/jpeg.")
    data: str = Field(description="In base64.")


class SearchHit(BaseModel):
    """One search result: a sample, or one of its texts, and its similarity to the query."""

    key: str = Field(description="Of the sample in its data set.")
    split: str
    text: str | None = Field(description="The text that was found; null where an input was.")
    similarity: float = Field(ge=-1, le=1, description="Cosine of the angle between both vectors.")
    thumbnail: Thumbnail | None = Field(description="Of the sample's picture; null where it has none, or it is gone.")


class SearchResponse(schemas.TaskResponse):
    """The response with the nearest samples of the data set."""

    model_config = schemas.schema_with_examples(
        {
            "among": "image",
            "vectors": 1000,
            "hits": [{"key": "0007", "split": "train", "text": None, "similarity": 0.41, "thumbnail": None}],
            "model": schemas.EXAMPLE_MODEL,
            "latency_ms": 21.3,
        }
    )

    among: str = Field(description="What was searched.")
    vectors: int = Field(description="How many of them there are.")
    hits: list[SearchHit] = Field(description="The nearest first.")
    truncated: bool = Field(default=False, description=f"Of the text. {schemas.TRUNCATED_DESCRIPTION}")


def router(service: Service, config: ServeConfig, search: UpdatableSearch | None) -> APIRouter:
    """Create the route /v1/search; without ``config.search.embeddings`` it answers that there is nothing to search.

    Args:
        search: among the vectors of that folder.
    """
    routes = APIRouter()
    if search is None:

        @routes.post("/v1/search", include_in_schema=False)
        async def refuse_searches() -> Response:
            message = "this service has no vectors to search; its operator can name some, serve.search.embeddings"
            raise ApiError(404, "no_search", message)

        return routes

    documented = document_route(SearchRequest, SearchResponse)
    documented["responses"][409] = {"model": ErrorBody, "description": "The vectors are those of another model."}

    @routes.post("/v1/search", summary="Search a data set", **documented)
    async def find_nearest(request: Request) -> Response:
        """Find the samples that are nearest to a text, a picture or another input (JSON or a multipart form), in the
        data set that was embedded with this model.
        """
        handler = base.RequestHandler(request, service, config, "embed")
        body = await handler.read_request(SearchRequest)
        texts = () if body.text is None else (body.text,)
        base.check_text_lengths(texts, "text", config)
        asked = ServiceRequest("embed", body.inputs_with_image(body.image), texts)
        result = await handler.run_within_time_limit(service.run(asked))
        among, vectors, hits = await handler.run_within_time_limit(
            asyncio.to_thread(_find_in_vectors, search, result, body)
        )
        truncated = any(base.which_texts_are_truncated(result, texts))
        return handler.send_response(
            SearchResponse, result, among=among, vectors=vectors, hits=hits, truncated=truncated
        )

    return routes


def _find_in_vectors(
    search: UpdatableSearch, result: ServiceResult, body: SearchRequest
) -> tuple[str, int, list[SearchHit]]:
    """Search the stored vectors; returns what was searched, how many vectors it has, and the nearest.

    Raises:
        ApiError: the vectors are another model's, they cannot be read, or what is to be searched was not embedded.
    """
    try:
        opened, thumbnails = search.newest_search()
    except (DataError, OSError) as error:
        _log.warning("no search: %s", error)
        message = "the vectors cannot be read now; the service's log says why"
        raise ApiError(503, "search_unavailable", message, {"retry-after": "5"}) from None
    try:
        opened.embeddings.check_model(result.model.digest, f"{result.model.name} version {result.model.version}", "it")
    except EmbeddingsError as error:
        _log.warning("no search: %s", error)
        of = opened.embeddings.model
        message = (
            f"the vectors are those of model {of.name} version {of.version}, and version {result.model.version} is in "
            "use; the service's operator can embed the data with it (the job embed)"
        )
        raise ApiError(409, "vectors_of_another_model", message) from None
    known = opened.inputs
    among = body.among or next(iter(known))
    if among not in known:
        message = f"{among[:64]!r} was not embedded; search among {' or '.join(known)}"
        raise ApiError(422, "not_embedded", message)
    vector = _vector_of_query(result.result, body)
    hits = opened.nearest(vector, among, body.top_k)
    return among, known[among], _with_thumbnails(hits, thumbnails if body.thumbnails else None)


def _vector_of_query(vectors: RequestVectors, body: SearchRequest) -> NDArray[np.float32]:
    if body.text is not None:
        return vectors.text_ND[0]
    if vectors.image_D is None:
        raise ApiError(422, "input_not_embedded", "the model does not embed this input; send one that it compares")
    return vectors.image_D


def _with_thumbnails(hits: list[SearchResult], thumbnails: Thumbnails | None) -> list[SearchHit]:
    copies = thumbnails.make_thumbnails(hits) if thumbnails is not None else [None] * len(hits)
    return [
        SearchHit(key=hit.key, split=hit.split, text=hit.text, similarity=hit.similarity, thumbnail=_to_thumbnail(copy))
        for hit, copy in zip(hits, copies, strict=True)
    ]


def _to_thumbnail(copy: DisplayCopy | None) -> Thumbnail | None:
    if copy is None:
        return None
    return Thumbnail(media_type=copy.media_type, data=base64.b64encode(copy.data).decode())
