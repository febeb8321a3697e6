"""ASGI layers around the application: who may ask, how often, how much at once, how long a body; what is counted.

They are plain ASGI, below any framework, so that a refused request costs next to nothing and its body is not read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import math
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.config import ServeConfig, is_loopback
from pipelines.serve.errors import ApiError, ServeError
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.service import Metrics

KEY_HASHES_VARIABLE = "VLMODEL_API_KEY_HASHES"

# The pipe would hash nothing where KEY is not set, and so the check stands before it.
_MAKE_HASH = 'make one with: : "${KEY:?is empty}" && printf %s "$KEY" | sha256sum'
_BLANKS = ("", " ", "\t", "\n", "\r")
_NO_KEYS = frozenset(hashlib.sha256((a + b).encode()).hexdigest() for a in _BLANKS for b in _BLANKS)

# Keys of the ASGI scope that the layers share with the application.
STARTED = "vlmodel.started"
ERROR_CODE = "vlmodel.error_code"
SENDER = "vlmodel.sender"
VERSION = "vlmodel.version"

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


def read_key_hashes(environment: Mapping[str, str]) -> tuple[str, ...]:
    """SHA-256 hashes (hex) of the accepted API keys, from a comma-separated environment variable; () where there is no
    such variable.

    Raises:
        ServeError: the variable is there and empty, as is an entry of it, or an entry is not 64 hexadecimal digits, or
            is the hash of no key. All of these come from a command whose own variable was empty, and would open the
            service.
    """
    if KEY_HASHES_VARIABLE not in environment:
        return ()
    hashes = [entry.strip().lower() for entry in environment[KEY_HASHES_VARIABLE].split(",")]
    if hashes == [""]:
        raise ServeError(f"{KEY_HASHES_VARIABLE} is set and empty; unset it to serve without API keys, or {_MAKE_HASH}")
    for position, entry in enumerate(hashes, start=1):
        # The entry itself stays out of the messages: it may be a key put there by mistake.
        which = f"entry {position} of {KEY_HASHES_VARIABLE}"
        if not entry:
            raise ServeError(f"{which} is empty; remove its comma, or {_MAKE_HASH}")
        if len(entry) != 64 or set(entry) - set("0123456789abcdef"):
            raise ServeError(f"{which} is not a SHA-256 hash (64 hexadecimal digits); {_MAKE_HASH}")
        if entry in _NO_KEYS:
            raise ServeError(f"{which} is the hash of no key (of nothing, or of blanks alone); {_MAKE_HASH}")
    return tuple(hashes)


def sender_of(scope: Scope) -> str:
    """Who sent a request that ``Authentication`` let through: the start of the key's hash, "local" without keys.

    There are no more of these than keys.
    """
    return str(scope.get(SENDER, "local"))


def _is_work(scope: Scope) -> bool:
    """Whether it is a request that the model may have to work for, and not a page, a check or a description."""
    return scope["type"] == "http" and scope["method"] == "POST" and _is_versioned(scope)


def _is_versioned(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).startswith("/v1/")


def error_body(error: ApiError) -> bytes:
    """The JSON of ``schema.ErrorBody``."""
    return json.dumps({"error": {"code": error.code, "message": error.message}}).encode()


async def refuse(error: ApiError, scope: Scope, send: Send) -> None:
    """Answer with ``error`` without reading the request."""
    scope[ERROR_CODE] = error.code
    headers = {"content-type": "application/json", **error.headers}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": error_body(error)})


class RequestMetrics:
    """Outermost: counts every answer, and adds the headers that keep a browser on this origin."""

    def __init__(self, app: ASGIApp, metrics: Metrics, version: Callable[[], str]) -> None:
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
            # The route's pattern, not the path: a path is the client's text and would make endless time series.
            route = getattr(scope.get("route"), "path", "none")
            code = scope.get(ERROR_CODE, "ok" if status < 400 else "internal")
            version = scope.get(VERSION) or self.version()
            self.metrics.request(route, status, code, version, time.perf_counter() - started)


class Authentication:
    """Without API keys only this machine may ask; with them, everything under /v1 needs one.

    Where the service has a certificate, ``config.tls``, no one may ask in plain HTTP.

    The proxy in front decides what address is listened on, and it can be started by others. So a replica checks for
    itself where a request comes from and how. A browser on this machine may have been lured: by a foreign name that
    leads here (DNS rebinding), or by a page of another site that has it send a request, such as a form, here.
    """

    def __init__(self, app: ASGIApp, key_hashes: Sequence[str], config: ServeConfig) -> None:
        self.app, self.encrypted = app, config.tls.active
        self.key_hashes = [bytes.fromhex(entry) for entry in key_hashes]
        self.hosts = {name.lower() for name in config.allowed_hosts}
        self.origins = {origin.lower() for origin in config.allowed_origins}
        # What leads to a service for other machines, their administrators know; a page that was lured has no key.
        self.takes_any_host = bool(key_hashes) and config.expose and not self.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        error = self._check_scheme(scope) or self._check_host(scope, headers) or self._check_page(scope, headers)
        error = error or (self._check_key(scope, headers) if self.key_hashes else self._check_client(scope))
        if error is not None:
            return await refuse(error, scope, send)
        await self.app(scope, receive, send)

    def _check_scheme(self, scope: Scope) -> ApiError | None:
        if not self.encrypted or scope.get("scheme") == "https":
            return None
        return ApiError(403, "not_encrypted", "this service answers over https alone; begin its address with https://")

    def _check_key(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        if not _is_versioned(scope):
            return None
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        key = (token if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")).strip()
        digest = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        # Every hash is compared, whatever the outcome so far: the time tells nothing about which one matched.
        matches = [hmac.compare_digest(digest, accepted) for accepted in self.key_hashes]
        if key and any(matches):
            # Enough of the hash to tell keys apart; of the key itself nothing is written down anywhere.
            scope[SENDER] = f"key:{digest.hex()[:12]}"
            return None
        return ApiError(
            401,
            "unauthorized",
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            {"www-authenticate": "Bearer"},
        )

    def _check_client(self, scope: Scope) -> ApiError | None:
        client = scope.get("client")
        # No client means a Unix socket, which is on this machine by nature.
        if client is None or is_loopback(client[0]):
            return None
        return ApiError(
            403,
            "remote_without_key",
            "this service has no API keys and answers only its own machine; "
            f"its operator can set {KEY_HASHES_VARIABLE}",
        )

    def _check_host(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        """Refuse a browser that a foreign name led here; browsers name one host, and what names none is no browser."""
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if not hosts or self.takes_any_host:
            return None
        name = _host_name(headers[b"host"])
        if len(hosts) == 1 and name and (is_loopback(name) or name in self.hosts):
            return None
        if len(hosts) == 1 and self.key_hashes and _is_address(name):  # which no one can make lead elsewhere
            return None
        return ApiError(
            403,
            "foreign_host",
            f"this service is not known as {headers[b'host'][:200]!r}; address it as localhost or 127.0.0.1, "
            "or have its operator add the name to serve.allowed_hosts",
        )

    def _check_page(self, scope: Scope, headers: Mapping[bytes, str]) -> ApiError | None:
        """Refuse what a page of another site has a browser send; what is no browser says nothing of pages."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is not None and origin.lower() in self.origins:
            return None
        # Browsers that send the second know better than a comparison, which a proxy that changes names would spoil.
        own = site in ("same-origin", "none") if site is not None else _is_of(origin, headers.get(b"host", ""))
        if own:
            return None
        return ApiError(
            403,
            "foreign_origin",
            f"a page of {(origin or 'another site')[:200]!r} may send nothing here; "
            "the service's operator can add its origin to serve.allowed_origins",
        )


def _host_name(host: str) -> str:
    """The name in a Host header in small letters: without its port, and without the brackets of an IPv6 address; ""
    where it is not written as one.
    """
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\\\[\]]+))(?::[0-9]*)?", host.lower())
    return (match[1] or match[2]) if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_of(origin: str | None, host: str) -> bool:
    """Whether a page of this origin came from the host, in plain HTTP or, as by a proxy before it, encrypted."""
    if origin is None:
        return True
    scheme, _, place = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


class RateLimit:
    """Takes of each sender as many requests under /v1 as ``limit`` grants; one more is refused, its body unread.

    It is outside ``ConcurrencyLimit``, whose average request time must not count the requests refused here.
    """

    def __init__(self, app: ASGIApp, limit: TokenBuckets) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_work(scope) and (wait_s := self.limit.take(sender_of(scope))):
            seconds = math.ceil(wait_s)
            message = f"you send more requests than you are granted; try again in {seconds} s"
            return await refuse(ApiError(429, "rate_limited", message, {"retry-after": str(seconds)}), scope, send)
        await self.app(scope, receive, send)


class Refused(HTTPException):
    """Raised out of ``receive``, for a request that is refused while its body arrives.

    It is of a kind that frameworks let through while they parse a body.
    """

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


class ConcurrencyLimit:
    """Holds at most ``max_in_flight`` requests under /v1 whose bodies are there; one more is refused.

    A request takes its place when the last of its body has come, so that slow senders keep nobody out. While all places
    are taken, others are refused at once, their bodies unread. Retry-After is the time that the held requests are
    expected to take, from a moving average.
    """

    def __init__(self, app: ASGIApp, max_in_flight: int) -> None:
        self.app, self.max_in_flight = app, max_in_flight
        self.in_flight = 0
        self._seconds_apart = 0.0
        self._last_end = time.perf_counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_work(scope):
            return await self.app(scope, receive, send)
        if self.in_flight >= self.max_in_flight:
            return await refuse(self._error(), scope, send)
        has_place = False

        async def receive_and_enter() -> Message:
            nonlocal has_place
            message = await receive()
            if not has_place and message["type"] == "http.request" and not message.get("more_body", False):
                if self.in_flight >= self.max_in_flight:
                    raise Refused(self._error())
                self._enter()
                has_place = True
            return message

        try:
            await self.app(scope, receive_and_enter, send)
        finally:
            if has_place:
                self._leave()

    def _enter(self) -> None:
        if self.in_flight == 0:
            self._last_end = time.perf_counter()
        self.in_flight += 1

    def _leave(self) -> None:
        self.in_flight -= 1
        now = time.perf_counter()
        self._seconds_apart += 0.1 * (now - self._last_end - self._seconds_apart)
        self._last_end = now

    def _error(self) -> ApiError:
        seconds = min(60, max(1, math.ceil(self.in_flight * self._seconds_apart)))
        return ApiError(
            429,
            "overloaded",
            f"{self.in_flight} requests are being answered already; try again in {seconds} s",
            {"retry-after": str(seconds)},
        )


class _Body:
    """What one request has sent so far.

    Attributes:
        bytes: as they were sent.
        held: bytes that count as held, decompressed.
        waiting: ends the wait for more of it.
        is_whole: whether the last of it is there.
        dropped: whether others need the room.
    """

    def __init__(self, compressed: bool) -> None:
        self.bytes, self.held = 0, 0
        self.waiting: asyncio.Timeout | None = None
        self.is_whole = self.dropped = False
        self._unzip = zlib.decompressobj(wbits=31) if compressed else None

    def plain(self, data: bytes, is_last: bool, limit: int) -> bytes:
        """The data, decompressed where they are compressed; at most one byte more than ``limit``.

        Raises:
            Refused: they cannot be decompressed.
        """
        if self._unzip is None:
            return data
        try:
            data = self._unzip.decompress(data, limit + 1)
        except zlib.error as error:
            raise Refused(ApiError(400, "bad_encoding", f"the body is not in gzip ({error}); send it whole")) from None
        # A second member would be as valid, and many small ones make much work of few bytes.
        if self._unzip.unused_data:
            raise Refused(ApiError(400, "bad_encoding", "bytes follow the end of the gzip body; send one member alone"))
        if is_last and not self._unzip.eof and len(data) <= limit:
            raise Refused(ApiError(400, "bad_encoding", "the gzip body ends early; send it whole"))
        return data


class BodyLimit:
    """Takes bodies as they are or in gzip, of at most ``max_bytes`` (decompressed) each and ``max_held_bytes`` in all.

    A longer one is refused by its announced length before any of it is read, else while it arrives. Where all together
    are too many, the one that has been arriving for the longest is given up.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_held_bytes: int) -> None:
        self.app, self.max_bytes, self.max_held_bytes = app, max_bytes, max(max_bytes, max_held_bytes)
        self.held = 0
        self._arriving: dict[_Body, None] = {}  # those with bytes that count, the first that began first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1").strip() for name, value in scope["headers"]}
        announced, encoding = headers.get(b"content-length", ""), headers.get(b"content-encoding", "").lower()
        if announced.isascii() and announced.isdigit() and (len(announced) > 20 or int(announced) > self.max_bytes):
            return await refuse(self._too_large(), scope, send)
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            message = f"content encoding {encoding[:80]!r} is not supported; send the body as it is, or in gzip"
            error = ApiError(415, "unsupported_encoding", message, {"accept-encoding": "gzip", "connection": "close"})
            return await refuse(error, scope, send)
        body = _Body(encoding.endswith("gzip"))

        async def receive_counted() -> Message:
            if body.is_whole:
                return await receive()
            message = await self._next(body, receive)
            if message["type"] != "http.request":
                return message
            data, is_last = message.get("body", b""), not message.get("more_body", False)
            body.bytes += len(data)
            data = body.plain(data, is_last, self.max_bytes - body.held)
            if max(body.bytes, body.held + len(data)) > self.max_bytes:
                raise Refused(self._too_large())
            if data:
                self._hold(body, len(data))
            if is_last:
                body.is_whole = True
                self._arriving.pop(body, None)
            return {**message, "body": data}

        try:
            await self.app(scope, receive_counted, send)
        finally:
            self._arriving.pop(body, None)
            self.held -= body.held

    async def _next(self, body: _Body, receive: Receive) -> Message:
        """The next message.

        Raises:
            Refused: the body was given up meanwhile.
        """
        try:
            async with asyncio.timeout(0 if body.dropped else None) as body.waiting:
                message = await receive()
        except TimeoutError:
            body.dropped = True
        finally:
            body.waiting = None
        if body.dropped:
            text = "others need the room in which this request was arriving; send it faster, or try again"
            headers = {"connection": "close", "retry-after": "1"}
            raise Refused(ApiError(408, "slow_request", text, headers)) from None
        return message

    def _hold(self, body: _Body, size: int) -> None:
        self._arriving[body] = None
        body.held += size
        self.held += size
        while self.held > self.max_held_bytes:
            first = next(iter(self._arriving))
            if first is body:
                text = f"the requests that are here have {self.held} bytes; try again in 1 s"
                raise Refused(ApiError(429, "overloaded", text, {"retry-after": "1", "connection": "close"}))
            self._drop(first)

    def _drop(self, body: _Body) -> None:
        del self._arriving[body]
        body.dropped = True
        self.held -= body.held
        body.held = 0
        if body.waiting is not None:
            body.waiting.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"the request is longer than {self.max_bytes} bytes; send a smaller image",
            {"connection": "close"},
        )
