"""Settings of the service, and the rule that keeps an open service on this machine only."""

from __future__ import annotations

import ipaddress
import os
from typing import Literal

from pydantic import Field, model_validator

from pipelines.serve.tls import TLSConfig
from vlmodel.config import Section
from vlmodel.locations import Location


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an IPv4/IPv6 address) reaches this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class FeedbackConfig(Section):
    """Corrections of answers, which callers may send."""

    folder: Location = ""
    """Spool of the corrections, which all replicas can write to; "" takes none."""
    per_minute: int = Field(default=30, ge=1)
    """Most corrections that each replica takes of one sender at once, and then in each minute."""
    max_gb: float = Field(default=1.0, gt=0)
    """Most that the spool may hold, of all replicas together; days that are moved away make room."""


class ChallengerConfig(Section):
    """The registry's challenger, asked beside the champion on real requests (challenger.py)."""

    mode: Literal["off", "shadow", "canary"] = "off"
    """"shadow": it is asked too, after the champion has answered, and nobody sees what it says. "canary": it answers
    its share of the requests, and the champion where it fails or is late. Streamed captions and embeddings are always
    the champion's."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Share of the images (of the texts, where there is no image) that it is asked about; an image has one side."""
    folder: Location = ""
    """Folder or URI of what was compared, which all replicas can write to; "" keeps nothing but metrics."""
    max_gb: float = Field(default=1.0, gt=0)
    """Most that the folder may hold."""
    flush_s: float = Field(default=30.0, gt=0)
    """What was compared is written after so long; a replica that is killed loses what it has not written."""
    max_waiting: int = Field(default=16, ge=1)
    """Requests that each replica has at the challenger at once; one more is the champion's alone."""
    timeout_s: float = Field(default=2.0, gt=0)
    """Time for an answer of the challenger."""
    replicas: int = Field(default=1, ge=1)
    """Copies of the challenger, each in a process of its own."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that each of them reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or the fraction of one, that each of them reserves."""
    model_threads: int = Field(default=1, ge=1)
    """Threads of its forward pass on CPU; few leave the cores to a champion on the same machine."""


class ServeConfig(Section):
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs `expose = true` and API keys."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the service."""

    expose: bool = False
    """Allow other machines to connect. Needs the SHA-256 hashes of API keys in VLMODEL_API_KEY_HASHES."""

    allowed_hosts: list[str] = []
    """Names under which callers may address the service, as a proxy before it passes them on, without a port. localhost
    and loopback addresses are always taken, other addresses where there are API keys. Empty, an exposed service takes
    every name, and any other none."""

    allowed_origins: list[str] = []
    """Other sites whose pages may use the service from a browser, such as `https://app.example.org`. Its own page may
    always."""

    tls: TLSConfig = TLSConfig()

    ingress: Literal["auto", "haproxy", "python"] = "auto"
    """What takes requests in: HAProxy, which is quicker and stops slow clients before they reach a replica, or Serve's
    proxy in Python. "auto" is HAProxy on a Linux cluster of one machine that has it (ray[serve] brings it), else the
    Python proxy. It is chosen when the service starts; an update keeps it."""

    ingress_metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port, on loopback, of HAProxy's own metrics for Prometheus (/metrics); 0 opens none. Requests, errors and
    times are among Ray's metrics anyway."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the model, each in a process of its own."""

    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that each replica reserves on the cluster (not its number of threads)."""

    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or the fraction of one, that each replica reserves; above 0 the model runs on CUDA."""

    model_threads: int = Field(default=0, ge=0)
    """Threads of a forward pass on CPU; 0 means the machine's cores, shared among the replicas."""

    passes: int = Field(default=0, ge=0)
    """Forward passes that a replica runs at one time, sharing its threads; 0 means one on a GPU, and on CPU as many as
    there are threads, up to 4."""

    decode_threads: int = Field(default=2, ge=1)
    """Threads that decode images, beside the event loop."""

    max_image_pixels: int = Field(default=0, ge=0)
    """Most pixels of an image once it is decoded, and of all images that a replica decodes at one time (beside those
    below a million); larger ones are refused with 413 by their headers. A large JPEG that is decoded at a part of its
    size counts that part. 0 means 64 times the pixels that the model is given, and at least 16 million."""

    max_batch_size: int = Field(default=16, ge=1)
    """Most images in one forward pass."""

    batch_wait_s: float = Field(default=0.0, ge=0)
    """How long an idle model waits for a fuller batch. A busy model gathers the next batch meanwhile anyway."""

    max_in_flight: int = Field(default=128, ge=1)
    """Requests that a replica holds at once, running or queued; one more is answered 429 at once. A request counts from
    when the last of its body is there."""

    requests_per_minute: int = Field(default=0, ge=0)
    """Requests that each API key may make in a minute, or without keys all callers together; each replica grants an
    even share of it. 0 sets no limit."""

    request_burst: int = Field(default=30, ge=1)
    """Requests that a key may make at once, before that limit slows it."""

    max_body_bytes: int = Field(default=10 << 20, ge=1024)
    """Largest request body, decompressed; a longer one is refused with 413 before it is read whole."""

    max_held_bytes: int = Field(default=256 << 20, ge=1024)
    """Most bytes of request bodies that a replica holds at once, and never less than `max_body_bytes`; where more come,
    the one that has been arriving for the longest is answered 408."""

    max_questions: int = Field(default=16, ge=1)
    """Most questions in one request."""

    max_texts: int = Field(default=64, ge=1)
    """Most texts in one request, to be matched or embedded."""

    max_question_chars: int = Field(default=1000, ge=1)
    """Longest question or text. The tokenizer truncates far below this; it bounds the work on hostile input."""

    request_timeout_s: float = Field(default=10.0, gt=0)
    """Time for one request, from its first byte to its answer. No header of a client can change it."""

    feedback: FeedbackConfig = FeedbackConfig()

    challenger: ChallengerConfig = ChallengerConfig()

    golden_tolerance: float = Field(default=0.02, ge=0, le=1)
    """By how much a probability or cosine of the version's golden answers may be another on this machine; a replica
    whose model gives others does not take over. 1 does not ask for them."""

    start_timeout_s: float = Field(default=300.0, gt=0)
    """Time for all replicas to load the model and answer."""

    shutdown_timeout_s: float = Field(default=20.0, gt=0)
    """Time for requests in flight to end when a replica is stopped."""

    @model_validator(mode="after")
    def _names(self) -> ServeConfig:
        for host in self.allowed_hosts:
            if not host or set(host) & set(":/*@ "):
                raise ValueError(f"allowed_hosts has {host!r}; give names alone, such as 'vlm.example.org'")
        for origin in self.allowed_origins:
            scheme, _, place = origin.partition("://")
            if scheme not in ("http", "https") or not place or set(place) & set("/*@ "):
                raise ValueError(
                    f"allowed_origins has {origin!r}; give scheme and host, such as 'https://app.example.org'"
                )
        return self

    @model_validator(mode="after")
    def _stay_on_this_machine(self) -> ServeConfig:
        if not is_loopback(self.host) and not self.expose:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines; keep 127.0.0.1, or set expose = true and "
                "put the SHA-256 hashes of API keys into VLMODEL_API_KEY_HASHES"
            )
        return self


def model_threads(config: ServeConfig) -> int:
    """Threads of one replica's forward pass: as set, else its share of the cores that this process may use."""
    return config.model_threads or max(1, len(os.sched_getaffinity(0)) // config.replicas)


def forward_passes(config: ServeConfig) -> int:
    """Forward passes of one replica at one time."""
    return config.passes or (1 if config.num_gpus > 0 else min(model_threads(config), 4))
