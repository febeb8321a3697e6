"""The route POST /v1/embeddings, as in OpenAI's API: the vectors of texts. Those of pictures are at /v1/embed.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.middleware import VERSION
from pipelines.serve.http.openapi import document_route
from pipelines.serve.http.routes import base
from pipelines.serve.http.routes._openai import check_model
from pipelines.serve.service import Service, ServiceRequest
from vlmodel.operations.base import TaskRequest, TaskResponse, Text, schema_with_examples
from vlmodel.operations.embed import Embeddings, EmbedOperation


class EmbeddingsRequest(TaskRequest):
    """A request with texts to be embedded."""

    model_config = schema_with_examples({"model": "vlmodel", "input": ["a red circle", "a blue square"]})

    model: str = Field(max_length=256)
    input: Text | list[Text] = Field(description="One text, or several.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, description="The width of the model's space, if given.")
    user: str | None = Field(default=None, max_length=512)

    @field_validator("input", mode="before")
    @classmethod
    def _check_no_tokens(cls, given: Any) -> Any:
        first = given[0] if isinstance(given, list) and given else None
        if isinstance(first, int | list):
            raise PydanticCustomError(
                "tokens_given", "input has numbers of tokens, which another tokenizer made; send the texts themselves"
            )
        if isinstance(given, list) and not given:
            raise PydanticCustomError("empty_input", "input is empty; give at least one text")
        return given

    def texts(self) -> tuple[str, ...]:
        """The texts to embed, at least one."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or float32 in base64 (little-endian).")


class EmbeddingsUsage(BaseModel):
    """The number of tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(TaskResponse):
    """The response with the vectors, of length one, in the order of the texts."""

    data: list[Embedding]
    usage: EmbeddingsUsage


def router(service: Service, config: ServeConfig) -> APIRouter:
    """Create the route /v1/embeddings."""
    routes = APIRouter()

    @routes.post(
        "/v1/embeddings",
        name="embeddings",
        summary="Turn texts into vectors, as OpenAI's API does",
        description="OpenAI's embeddings, for a model that embeds.",
        **document_route(EmbeddingsRequest, EmbeddingsResponse, form=False),
    )
    async def embed(request: Request) -> Response:
        handler = base.RequestHandler(request, service, config, EmbedOperation.name)
        body = await handler.read_request(EmbeddingsRequest)
        assert service.model is not None
        check_model(body.model, service.model)
        base.check_text_lengths(body.texts(), EmbedOperation.text_name, config)
        result = await handler.run_within_time_limit(service.run(ServiceRequest(EmbedOperation.name, {}, body.texts())))
        request.scope[VERSION] = result.model.version
        found: Embeddings = result.result
        width = found.text_ND.shape[1]
        if body.dimensions not in (None, width):
            message = f"dimensions={body.dimensions}, and the model's vectors have {width} numbers; leave it out"
            raise ApiError(400, "bad_dimensions", message, param="dimensions")
        data = [
            Embedding(index=n, embedding=_encode(vector_D, body.encoding_format)).model_dump()
            for n, vector_D in enumerate(found.text_ND)
        ]
        usage = EmbeddingsUsage(prompt_tokens=found.tokens, total_tokens=found.tokens).model_dump()
        return JSONResponse(
            {"object": "list", "data": data, "model": result.model.name, "usage": usage},
            headers={"cache-control": "no-store", "x-model-alias": result.alias},
        )

    return routes


def _encode(vector_D: np.ndarray, form: str) -> list[float] | str:
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode() if form == "base64" else vector_D.tolist()
