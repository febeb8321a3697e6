"""ASGI middleware around the application, the outermost first: metrics, authentication, rate, concurrency, body size.

They are plain ASGI, so that a refused request costs next to nothing and its body is not read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.config import ServeConfig, is_loopback
from pipelines.serve.errors import ApiError
from pipelines.serve.http.api_keys import KEY_HASHES_VARIABLE
from pipelines.serve.http.error_bodies import status_and_body
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.service import ServiceMetrics

# Keys of the ASGI scope that the layers share with the application.
STARTED = "vlmodel.started"
ERROR_CODE = "vlmodel.error_code"
SENDER = "vlmodel.sender"
VERSION = "vlmodel.version"

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
}


class RequestRefusedError(HTTPException):
    """Raised by ``receive`` for a request that is refused while its body arrives. Frameworks let exceptions of this
    class through while they parse a body.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


def sender_of(scope: Scope) -> str:
    """Identify the sender of an authenticated request: the beginning of the key's hash, or "local" without keys."""
    return str(scope.get(SENDER, "local"))


async def _send_error(error: ApiError, scope: Scope, send: Send) -> None:
    """Answer with ``error`` without reading the request."""
    scope[ERROR_CODE] = error.code
    headers = {"content-type": "application/json", **error.headers}
    status, body = status_and_body(error, path_of(scope))
    raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw_headers})
    await send({"type": "http.response.body", "body": body})


def path_of(scope: Scope) -> str:
    """Return the path of a request within the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_api_path(scope: Scope) -> bool:
    return path_of(scope).startswith("/v1/")


def _is_model_request(scope: Scope) -> bool:
    """Whether a request is a POST under /v1, and not for a page, a health check or a description."""
    return scope["type"] == "http" and scope["method"] == "POST" and _is_api_path(scope)


class RequestMetrics:
    """Counts every response, and adds the headers that restrict browsers to this origin."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, version: Callable[[], str]) -> None:
        self.app, self.metrics, self.version = app, metrics, version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = scope[STARTED] = time.perf_counter()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(name.encode(), value.encode()) for name, value in _SECURITY_HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            # The route's pattern: clients choose paths, and each would make a time series of its own.
            route = getattr(scope.get("route"), "path", "none")
            code = scope.get(ERROR_CODE, "ok" if status < 400 else "internal")
            version = scope.get(VERSION) or self.version()
            self.metrics.count_request(route, status, code, version, time.perf_counter() - started)


class Authentication:
    """Answers only this machine if there are no API keys; with keys, everything under /v1 requires one. If the service
    has a certificate (``config.tls``), plain HTTP is refused.

    The proxy before the replicas, which others may have started, decides on which address it listens. So a replica
    checks itself where a request comes from and how. A browser on this machine may have been lured: by a foreign name
    that resolves to this machine (DNS rebinding), or by a page of another site that sends a request, such as a form.
    """

    def __init__(self, app: ASGIApp, key_hashes: Sequence[str], config: ServeConfig) -> None:
        self.app, self.needs_https = app, config.tls.is_active
        self.key_hashes = [bytes.fromhex(entry) for entry in key_hashes]
        self.hosts = {name.lower() for name in config.allowed_hosts}
        self.origins = {origin.lower() for origin in config.allowed_origins}
        # An exposed service has names that only its administrators know, and a page that lures a browser has no key.
        self.takes_any_host = bool(key_hashes) and config.expose and not self.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        error = self._check_scheme(scope) or self._check_host(scope, headers) or self._check_origin(scope, headers)
        error = error or (self._check_key(scope, headers) if self.key_hashes else self._check_client_is_local(scope))
        if error is not None:
            return await _send_error(error, scope, send)
        await self.app(scope, receive, send)

    def _check_scheme(self, scope: Scope) -> ApiError | None:
        if not self.needs_https or scope.get("scheme") == "https":
            return None
        return ApiError(403, "not_encrypted", "this service answers over https alone; begin its address with https://")

    def _check_key(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        if not _is_api_path(scope):
            return None
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        key = (token if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")).strip()
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        # All hashes are compared, so that the time does not tell which one matched.
        matches = [hmac.compare_digest(digest, accepted) for accepted in self.key_hashes]
        if key and any(matches):
            # Enough of the hash to tell keys apart; no part of the key is stored anywhere.
            scope[SENDER] = f"key:{digest.hex()[:12]}"
            return None
        message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
        return ApiError(401, "unauthorized", message, {"www-authenticate": "Bearer"})

    def _check_client_is_local(self, scope: Scope) -> ApiError | None:
        client = scope.get("client")
        # No client means a Unix socket, which only this machine reaches.
        if client is None or is_loopback(client[0]):
            return None
        message = (
            f"this service has no API keys and answers only its own machine; its operator can set {KEY_HASHES_VARIABLE}"
        )
        return ApiError(403, "remote_without_key", message)

    def _check_host(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        """Refuse requests with foreign host names. Browsers always send exactly one; a client that sends none is no
        browser.
        """
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if not hosts or self.takes_any_host:
            return None
        name = _host_name(headers[b"host"])
        if len(hosts) == 1 and name and (is_loopback(name) or name in self.hosts):
            return None
        if len(hosts) == 1 and self.key_hashes and _is_ip_address(name):  # which no DNS entry can redirect
            return None
        return ApiError(
            403,
            "foreign_host",
            f"this service is not known as {headers[b'host'][:200]!r}; address it as localhost or 127.0.0.1, "
            "or have its operator add the name to serve.allowed_hosts",
        )

    def _check_origin(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        """Refuse requests that a page of another site makes a browser send. Clients that are no browsers send neither
        header.
        """
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is not None and origin.lower() in self.origins:
            return None
        # The browser's own verdict is safer than a comparison, which fails behind a proxy that changes names.
        same = site in ("same-origin", "none") if site is not None else _is_origin_of(origin, headers.get(b"host", ""))
        if same:
            return None
        return ApiError(
            403,
            "foreign_origin",
            f"a page of {(origin or 'another site')[:200]!r} may send nothing here; "
            "the service's operator can add its origin to serve.allowed_origins",
        )


def _host_name(host: str) -> str:
    """Return the lower-case name in a Host header, without port and brackets; "" if the header is malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\\\[\]]+))(?::[0-9]*)?", host.lower())
    return (match[1] or match[2]) if match else ""


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_origin_of(origin: str | None, host: str) -> bool:
    """Whether pages of this origin come from the host, over HTTP or (behind a proxy) HTTPS."""
    if origin is None:
        return True
    scheme, _, origin_host = origin.lower().partition("://")
    default_port = {"http": ":80", "https": ":443"}.get(scheme)
    if default_port is None:
        return False
    return origin_host.removesuffix(default_port) == host.lower().removesuffix(default_port)


class RateLimit:
    """Accepts as many requests under /v1 from each sender as ``limit`` grants; others are refused with their body
    unread.

    It is outside ``ConcurrencyLimit``, whose average request time must not count the requests refused here.
    """

    def __init__(self, app: ASGIApp, limit: TokenBuckets) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_model_request(scope) and (wait_s := self.limit.take_token_or_wait_time(sender_of(scope))):
            seconds = math.ceil(wait_s)
            message = f"you send more requests than you are granted; try again in {seconds} s"
            return await _send_error(ApiError(429, "rate_limited", message, {"retry-after": str(seconds)}), scope, send)
        await self.app(scope, receive, send)


class ConcurrencyLimit:
    """Processes at most ``max_in_flight`` requests under /v1 at a time, counted once their bodies are complete; others
    are refused.

    A request counts from when its body is complete, so slow senders keep nobody out. At the limit new requests are
    refused at once, their bodies unread. Retry-After is the time that the present requests are expected to take, from a
    moving average.
    """

    def __init__(self, app: ASGIApp, max_in_flight: int) -> None:
        self.app, self.max_in_flight = app, max_in_flight
        self.in_flight = 0
        self._seconds_apart = 0.0
        self._last_end = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_model_request(scope):
            return await self.app(scope, receive, send)
        if self.in_flight >= self.max_in_flight:
            return await _send_error(self._overload_error(), scope, send)
        is_counted = False

        async def receive_and_count() -> Message:
            nonlocal is_counted
            message = await receive()
            if not is_counted and message["type"] == "http.request" and not message.get("more_body", False):
                if self.in_flight >= self.max_in_flight:
                    raise RequestRefusedError(self._overload_error())
                if self.in_flight == 0:
                    self._last_end = time.perf_counter()
                self.in_flight += 1
                is_counted = True
            return message

        try:
            await self.app(scope, receive_and_count, send)
        finally:
            if is_counted:
                self.in_flight -= 1
                now = time.perf_counter()
                self._seconds_apart += 0.1 * (now - self._last_end - self._seconds_apart)
                self._last_end = now

    def _overload_error(self) -> ApiError:
        seconds = min(60, max(1, math.ceil(self.in_flight * self._seconds_apart)))
        message = f"{self.in_flight} requests are being answered already; try again in {seconds} s"
        return ApiError(429, "overloaded", message, {"retry-after": str(seconds)})


class _RequestBody:
    """The part of a request's body that has arrived so far.

    Attributes:
        received: bytes as they were sent.
        held: decompressed bytes that count against ``max_held_bytes``.
        timeout: ends the wait for more bytes.
        is_complete: whether its last byte is there.
        is_dropped: whether it was given up so that others have room.
    """

    def __init__(self, is_compressed: bool) -> None:
        self.received, self.held = 0, 0
        self.timeout: asyncio.Timeout | None = None
        self.is_complete = self.is_dropped = False
        self._gzip = zlib.decompressobj(wbits=31) if is_compressed else None

    def decompress(self, data: bytes, is_last: bool, limit: int) -> bytes:
        """Return the data, decompressed if necessary; at most one byte more than ``limit``."""
        if self._gzip is None:
            return data
        try:
            data = self._gzip.decompress(data, limit + 1)
        except zlib.error as error:
            raise RequestRefusedError(
                ApiError(400, "bad_encoding", f"the body is not in gzip ({error}); send it whole")
            ) from None
        # A file may have several members, but many small ones make much work of few bytes.
        if self._gzip.unused_data:
            raise RequestRefusedError(
                ApiError(400, "bad_encoding", "bytes follow the end of the gzip body; send one member alone")
            )
        if is_last and not self._gzip.eof and len(data) <= limit:
            raise RequestRefusedError(ApiError(400, "bad_encoding", "the gzip body ends early; send it whole"))
        return data


class BodyLimit:
    """Accepts bodies, plain or gzip, of at most ``max_bytes`` (decompressed) each and ``max_held_bytes`` in total.

    A longer body is refused by its announced length before it is read, else while it arrives. If all bodies together
    exceed the limit, the one that has been arriving for the longest is given up.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_held_bytes: int) -> None:
        self.app, self.max_bytes, self.max_held_bytes = app, max_bytes, max(max_bytes, max_held_bytes)
        self.held = 0
        self._arriving: dict[
            _RequestBody, None
        ] = {}  # incomplete bodies with bytes that count, in the order of their start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1").strip() for name, value in scope["headers"]}
        length, encoding = headers.get(b"content-length", ""), headers.get(b"content-encoding", "").lower()
        if length.isascii() and length.isdigit() and (len(length) > 20 or int(length) > self.max_bytes):
            return await _send_error(self._too_large(), scope, send)
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            message = f"content encoding {encoding[:80]!r} is not supported; send the body as it is, or in gzip"
            error = ApiError(415, "unsupported_encoding", message, {"accept-encoding": "gzip", "connection": "close"})
            return await _send_error(error, scope, send)
        body = _RequestBody(encoding.endswith("gzip"))

        async def receive_and_count() -> Message:
            if body.is_complete:
                return await receive()
            message = await self._receive_unless_dropped(body, receive)
            if message["type"] != "http.request":
                return message
            data, is_last = message.get("body", b""), not message.get("more_body", False)
            body.received += len(data)
            data = body.decompress(data, is_last, self.max_bytes - body.held)
            if max(body.received, body.held + len(data)) > self.max_bytes:
                raise RequestRefusedError(self._too_large())
            if data:
                self._account_body(body, len(data))
            if is_last:
                body.is_complete = True
                self._arriving.pop(body, None)
            return {**message, "body": data}

        try:
            await self.app(scope, receive_and_count, send)
        finally:
            self._arriving.pop(body, None)
            self.held -= body.held

    async def _receive_unless_dropped(self, body: _RequestBody, receive: Receive) -> Message:
        """Receive the next message of a request, unless its body is dropped meanwhile."""
        try:
            async with asyncio.timeout(0 if body.is_dropped else None) as body.timeout:
                message = await receive()
        except TimeoutError:
            body.is_dropped = True
        finally:
            body.timeout = None
        if body.is_dropped:
            text = "others need the room in which this request was arriving; send it faster, or try again"
            headers = {"connection": "close", "retry-after": "1"}
            raise RequestRefusedError(ApiError(408, "slow_request", text, headers)) from None
        return message

    def _account_body(self, body: _RequestBody, size: int) -> None:
        self._arriving[body] = None
        body.held += size
        self.held += size
        while self.held > self.max_held_bytes:
            oldest = next(iter(self._arriving))
            if oldest is body:
                text = f"the requests that are here have {self.held} bytes; try again in 1 s"
                raise RequestRefusedError(
                    ApiError(429, "overloaded", text, {"retry-after": "1", "connection": "close"})
                )
            self._drop_body(oldest)

    def _drop_body(self, body: _RequestBody) -> None:
        del self._arriving[body]
        body.is_dropped = True
        self.held -= body.held
        body.held = 0
        if body.timeout is not None:
            body.timeout.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> ApiError:
        message = f"the request is longer than {self.max_bytes} bytes; send a smaller image"
        return ApiError(413, "body_too_large", message, {"connection": "close"})
