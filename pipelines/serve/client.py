"""A Python client of the service over HTTP."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx

from pipelines.serve.errors import ServeError
from pipelines.serve.http.routes.feedback import FeedbackResponse
from pipelines.serve.http.routes.search import SearchResponse
from vlmodel.operations.ask import VQAResponse
from vlmodel.operations.base import TaskResponse
from vlmodel.operations.classify import ClassifyResponse
from vlmodel.operations.describe import CaptionResponse
from vlmodel.operations.embed import EmbedResponse
from vlmodel.operations.match import MatchResponse

ResponseT = TypeVar("ResponseT", bound=TaskResponse)


class Client:
    """A client of the service at ``address``, with persistent connections. Threads may share it.

    Images and further inputs (``inputs``, by their names) are encoded files. Every call raises ``ServeError``, with the
    reason, if the service cannot be reached or refuses the request.

    Args:
        address: such as ``https://vlm.example.org:8000``.
        api_key: if the service needs one.
        ssl_context: which certificates are accepted, such as ``ssl.create_default_context(cafile="our-ca.pem")``; by
            default those of the public authorities.
        timeout_s: for each step of a call: to connect, to send, to receive more.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.address = address
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # With trust_env, a request to this machine would go through a proxy that is meant for others.
        self._http = httpx.Client(
            base_url=address, headers=headers, timeout=timeout_s, verify=ssl_context or True, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        image: bytes | None,
        questions: Sequence[str],
        *,
        top_k: int = 5,
        attention: bool = False,
        inputs: Mapping[str, bytes] | None = None,
    ) -> VQAResponse:
        """Return the ``top_k`` most probable answers to each question about an image, or about other inputs."""
        fields = {"question": questions, "top_k": str(top_k), "attention": str(attention).lower()}
        return self._post_task("vqa", VQAResponse, image, fields, inputs)

    def caption(
        self,
        image: bytes | None,
        *,
        top_k: int = 1,
        attention: bool = False,
        inputs: Mapping[str, bytes] | None = None,
    ) -> CaptionResponse:
        """Return at most ``top_k`` captions of an image, or of other inputs."""
        fields = {"top_k": str(top_k), "attention": str(attention).lower()}
        return self._post_task("caption", CaptionResponse, image, fields, inputs)

    def classify(
        self,
        image: bytes | None = None,
        *,
        top_k: int = 5,
        attention: bool = False,
        inputs: Mapping[str, bytes] | None = None,
        classes: Sequence[str] = (),
        templates: Sequence[str] = (),
    ) -> ClassifyResponse:
        """Return the ``top_k`` most probable classes of an image, or of other inputs.

        Args:
            classes: to choose among, for a contrastive model.
            templates: in which it reads them, such as "a photo of a {}."; the service's own if not given.
        """
        fields: dict[str, str | Sequence[str]] = {"top_k": str(top_k), "attention": str(attention).lower()}
        fields |= {"classes": classes, "templates": templates}
        return self._post_task("classify", ClassifyResponse, image, fields, inputs)

    def match(
        self, image: bytes | None, texts: Sequence[str], *, inputs: Mapping[str, bytes] | None = None
    ) -> MatchResponse:
        """Return how well each text fits an image, or other inputs."""
        return self._post_task("match", MatchResponse, image, {"text": texts}, inputs)

    def embed(
        self, image: bytes | None = None, texts: Sequence[str] = (), *, inputs: Mapping[str, bytes] | None = None
    ) -> EmbedResponse:
        """Embed an image (or the input that the model embeds), texts or both as vectors of length one."""
        return self._post_task("embed", EmbedResponse, image, {"text": texts}, inputs)

    def search(
        self,
        text: str = "",
        *,
        image: bytes | None = None,
        inputs: Mapping[str, bytes] | None = None,
        among: str = "",
        top_k: int = 12,
        thumbnails: bool = False,
    ) -> SearchResponse:
        """Search the service's data set for what is nearest to a text, an image or another input.

        Args:
            among: what is searched, "text" or the name of an input; the inputs if not given.
        """
        fields = {"among": among, "top_k": str(top_k), "thumbnails": str(thumbnails).lower()}
        fields |= {"text": text} if text else {}
        return self._post_task("search", SearchResponse, image, fields, inputs)

    def correct_answer(self, image: bytes, question: str, answer: str, *, version: str = "") -> FeedbackResponse:
        """Send the right answer to a question; ``version`` is that of the model that was wrong."""
        fields = {"question": question, "answer": answer, "version": version}
        return self._post_task("feedback", FeedbackResponse, image, fields)

    def correct_caption(self, image: bytes, caption: str, *, version: str = "") -> FeedbackResponse:
        """Send a right caption; ``version`` is that of the model that was wrong."""
        return self._post_task("feedback", FeedbackResponse, image, {"caption": caption, "version": version})

    def _post_task(
        self,
        route: str,
        response_type: type[ResponseT],
        image: bytes | None,
        fields: Mapping[str, str | Sequence[str]],
        inputs: Mapping[str, bytes] | None = None,
    ) -> ResponseT:
        # All fields as parts, as httpx does not send a form without files as multipart.
        parts: list[tuple[str, tuple[str | None, str | bytes]]] = [
            (name, (None, value))
            for name, values in fields.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        files = {**(inputs or {}), **({"image": image} if image is not None else {})}
        parts += [(name, (name, data)) for name, data in files.items()]
        try:
            response = self._http.post(f"/v1/{route}", files=parts)
        except httpx.HTTPError as error:
            raise ServeError(
                f"no answer from {self.address} ({error or type(error).__name__}); is the service running?"
            ) from None
        if response.status_code != 200:
            raise ServeError(f"{self.address} answered {response.status_code}: {_error_message(response)}")
        return response_type.model_validate_json(response.content)


def is_ready(address: str, ssl_context: ssl.SSLContext | None = None, timeout_s: float = 2.0) -> bool:
    """Whether the service at ``address`` has loaded its model."""
    response = _get_or_none(f"{address}/readyz", ssl_context, timeout_s)
    return response is not None and response.status_code == 200


def is_reachable(address: str, ssl_context: ssl.SSLContext | None = None, timeout_s: float = 10.0) -> bool:
    """Whether a server with an accepted certificate answers at ``address``, even with an error."""
    return _get_or_none(f"{address}/healthz", ssl_context, timeout_s) is not None


def _get_or_none(url: str, ssl_context: ssl.SSLContext | None, timeout_s: float) -> httpx.Response | None:
    try:
        return httpx.get(url, verify=ssl_context or True, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError:
        return None


def _error_message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
