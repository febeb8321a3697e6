"""The OpenAPI description of the tasks' routes: two ways to send a request, and all errors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from pipelines.registry.own_examples import ModelExample
from pipelines.serve.service import ModelInfo
from vlmodel.conversation import extract_question
from vlmodel.operations.base import TaskRequest, TaskResponse, all_operations, schema_with_examples

_ERRORS = {
    400: "The body is not JSON, or not a form in UTF-8, or not in gzip.",
    401: "The API key is missing or wrong.",
    403: "From another machine or under another name, where there are no API keys.",
    404: "The loaded model cannot do this; the message names what it can.",
    408: "The request took too long to arrive.",
    413: "The body or the image is too large.",
    415: "Neither application/json nor multipart/form-data, or compressed by other than gzip.",
    422: "The image or a field cannot be used.",
    429: "Too many requests, at once or of this caller; see Retry-After.",
    503: "No model is loaded yet.",
    504: "The answer took too long.",
}


class ErrorDetail(BaseModel):
    """The details of one error."""

    code: str = Field(description="Stable name of the error.")
    message: str = Field(description="What is wrong, and what to do about it.")


class ErrorBody(BaseModel):
    """The body of every response with a 4xx or 5xx status."""

    model_config = schema_with_examples(
        {
            "error": {
                "code": "undecodable_image",
                "message": "the image cannot be decoded; send a JPEG, PNG, WebP, BMP or GIF file",
            }
        }
    )

    error: ErrorDetail


def document_route(
    request_type: type[TaskRequest], response_type: type[TaskResponse], form: bool = True
) -> dict[str, Any]:
    """Build the arguments of FastAPI's route decorators for a task's route.

    Args:
        form: whether a request may be a multipart form too.
    """
    return {
        "response_model": response_type,
        "responses": {status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()},
        "openapi_extra": {"requestBody": _request_body(request_type, form)},
        "tags": ["tasks"],
    }


def _request_body(request_type: type[TaskRequest], form: bool) -> dict[str, Any]:
    """Describe a request body as JSON and as a form; FastAPI itself can declare only one of them for a route."""
    schema = request_type.model_json_schema()
    examples = schema.pop("examples", [{}])
    as_json = {
        "schema": schema,
        "examples": {f"example {i}": {"value": value} for i, value in enumerate(examples, start=1)},
    }
    if not form:
        return {"required": True, "content": {"application/json": as_json}}
    properties, required = dict(schema["properties"]), list(schema.get("required", ()))
    if "image" in properties:
        properties["image"] = {"type": "string", "format": "binary", "description": "The image file."}
    for singular, plural in request_type.repeatable.items():
        description = f"{properties[plural]['description']} Repeat the field to send several."
        del properties[plural]
        properties[singular] = {"type": "array", "items": {"type": "string"}, "description": description}
    return {
        "required": True,
        "content": {
            "application/json": as_json,
            "multipart/form-data": {
                "schema": {"type": "object", "properties": properties, "required": required},
                "example": {**examples[0], **({"image": "@picture.jpg"} if "image" in examples[0] else {})},
            },
        },
    }


def add_own_examples_to_openapi(
    spec: dict[str, Any], model: ModelInfo | None, examples: Sequence[ModelExample]
) -> dict[str, Any]:
    """Replace the example requests of the OpenAPI description by requests about the model's own data.

    Args:
        spec: is not changed.
        model: that is named in responses; None while none is loaded.
        examples: for each operation the first counts.
    """
    if model is None or not examples:
        return spec
    spec = copy.deepcopy(spec)
    for name, operation in all_operations().items():
        own = next((example for example in examples if example.task == name), None)
        if own is None:
            continue
        texts = [asked.text for asked in own.texts]
        content = spec["paths"][operation.path or f"/v1/{name}"]["post"]["requestBody"]["content"]
        requests = content["application/json"]["examples"]
        for request in requests.values():
            inputs = {input_name: one.data for input_name, one in own.inputs.items()}
            request["value"] = operation.example_request(request["value"], inputs, texts)
        if (form := content.get("multipart/form-data")) is not None:
            files = {input_name: f"@{_file_name(input_name, one.media_type)}" for input_name, one in own.inputs.items()}
            form["example"] = _as_form(operation.example_request(form["example"], files, texts))
        answered = [(extract_question(asked.text), asked.answer, asked.probability) for asked in own.texts]
        if (response := operation.example_response(answered)) is not None:
            facts = {"model": {"name": model.name, "version": model.version}, "latency_ms": 21.4, "unknown_words": []}
            spec["components"]["schemas"][operation.response.__name__]["examples"] = [{**response, **facts}]
    return spec


def _file_name(name: str, media_type: str) -> str:
    return "picture.jpg" if name == "image" else f"{name}.{media_type.rpartition('/')[2]}"


def _as_form(request: dict[str, Any]) -> dict[str, Any]:
    """Convert a request to a form, in which additional inputs are fields of their own."""
    fields = {name: value for name, value in request.items() if name != "inputs"}
    return {**request.get("inputs", {}), **fields}
