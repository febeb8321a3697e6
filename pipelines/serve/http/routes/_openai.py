"""Functions shared by the routes of OpenAI's API."""

from __future__ import annotations

from pipelines.serve.errors import ApiError
from pipelines.serve.service import ModelInfo


def check_model(asked: str, model: ModelInfo) -> None:
    """Raise ApiError if a request names another model than the loaded one; NAME and NAME:VERSION are accepted.

    Raises:
        ApiError: 404 "model_not_found".
    """
    if asked not in (model.name, f"{model.name}:{model.version}"):
        message = f"there is no model {asked[:80]!r}; this service has {model.name!r}, version {model.version}"
        raise ApiError(404, "model_not_found", message, param="model")
