"""Settings of the service. A service without API keys must stay on this machine."""

from __future__ import annotations

import ipaddress
import os
from typing import Literal

from pydantic import Field, model_validator

from pipelines.serve.tls import TLSConfig
from vlmodel.config import ConfigSection
from vlmodel.locations import Location


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an IPv4/IPv6 address) reaches this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class FeedbackConfig(ConfigSection):
    """Settings of the corrections that callers may send."""

    folder: Location = ""
    """Folder or URI for corrections, writable by all replicas; "" takes none."""
    per_minute: int = Field(default=30, ge=1)
    """Most corrections that each replica takes from one sender in a minute, and at once."""
    max_gb: float = Field(default=1.0, gt=0)
    """Most that the folder may hold, of all replicas together. Moving days away makes room."""


class ChallengerConfig(ConfigSection):
    """Settings of the registry's challenger, which gets a share of the requests too."""

    mode: Literal["off", "shadow", "canary"] = "off"
    """"shadow": it gets a copy of requests that the champion has answered, and nobody sees its answers. "canary": its
    answers are sent, and the champion's if it fails or is late. Streamed captions and embeddings are always the
    champion's."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Share of the images that it gets (of the texts, for requests without an image). All requests about an image go
    the same way."""
    folder: Location = ""
    """Folder or URI for comparisons of both answers, writable by all replicas; "" keeps only metrics."""
    max_gb: float = Field(default=1.0, gt=0)
    """Most that the folder may hold."""
    timeout_s: float = Field(default=2.0, gt=0)
    """Time for an answer of the challenger."""
    replicas: int = Field(default=1, ge=1)
    """Copies of the challenger, each in a process of its own."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that each copy reserves, each with a thread of its forward passes. Few leave the cores to a champion on the
    same machine."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or the fraction of one, that each copy reserves."""


class KnowledgeServingConfig(ConfigSection):
    """Settings of the store of facts with which the service answers."""

    store: Location = ""
    """Folder or URI of the store; "" takes that of knowledge.store. Facts are edited by POST and DELETE /v1/facts, with
    keys whose SHA-256 hashes are in VLMODEL_FACT_KEY_HASHES."""
    encoder: Location = ""
    """Folder of its sentence encoder; "" takes that of knowledge.encoder."""
    exact: int = Field(default=1_000_000, ge=0)
    """Up to so many facts the search is exact."""
    refresh_s: float = Field(default=0.5, gt=0)
    """How often each replica looks for a newer version."""


class SearchServingConfig(ConfigSection):
    """Settings of the stored vectors that the service searches."""

    embeddings: Location = ""
    """Folder or URI that the embed job wrote, of the model that is served; "" for no search. New vectors in it are used
    without a restart. Whoever may ask the service sees keys, texts and small pictures of all samples in it."""
    exact: int = Field(default=1_000_000, ge=0)
    """Up to so many vectors the search is exact; above, it is usearch's, and may miss some."""
    refresh_s: float = Field(default=5.0, gt=0)
    """How often each replica looks for newer vectors, when it searches."""


class ServeConfig(ConfigSection):
    version: str = ""
    """Which version of the registered model to serve, by its number or alias; "" the champion. Nothing is promoted."""

    model: Location = ""
    """Folder of a model to serve in place of a registered one, such as the `model` folder of a checkpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs `expose = true` and API keys."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the service."""

    expose: bool = False
    """Allow other machines to connect. Needs SHA-256 hashes of API keys in VLMODEL_API_KEY_HASHES."""

    allowed_hosts: list[str] = []
    """Host names (without port) that the Host header of a request may have. localhost and loopback addresses are always
    allowed, other IP addresses if there are API keys. If empty, an exposed service allows every name, and any other
    service none."""

    allowed_origins: list[str] = []
    """Other sites whose pages may use the service from a browser, such as `https://app.example.org`."""

    tls: TLSConfig = TLSConfig()

    ingress: Literal["auto", "haproxy", "python"] = "auto"
    """The proxy before the replicas: HAProxy, which is faster and stops slow clients before they reach a replica, or
    Serve's proxy in Python. "auto" is HAProxy on a Linux cluster of one machine that has it (ray[serve] brings it),
    else the Python proxy. An update of a running service keeps its proxy."""

    ingress_metrics_port: int = Field(default=0, ge=0, le=65535)
    """TCP port, on loopback, of HAProxy's own metrics for Prometheus (/metrics); 0 opens none. Ray's metrics have
    requests, errors and times without it."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the model, each in a process of its own."""

    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs that each replica reserves on the cluster (not its number of threads)."""

    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs, or the fraction of one, that each replica reserves; above 0 the model runs on CUDA."""

    model_threads: int = Field(default=0, ge=0)
    """Threads of a forward pass on CPU; 0 divides the machine's cores among the replicas."""

    max_image_pixels: int = Field(default=0, ge=0)
    """Most pixels of a decoded image, and of all images above a million pixels that a replica decodes at one time. A
    larger image is refused with 413 before it is decoded. A large JPEG that is decoded at reduced size counts as that.
    0 means 64 times the pixels of the model's input, and at least 16 million."""

    max_batch_size: int = Field(default=16, ge=1)
    """Most images in one forward pass."""

    max_in_flight: int = Field(default=128, ge=1)
    """Requests that a replica runs or queues at once; others are answered 429 immediately. A request counts from when
    its body is complete."""

    requests_per_minute: int = Field(default=0, ge=0)
    """Requests that each API key (without keys: all callers together) may make in a minute, half of them
    at once. Each replica grants an equal share. 0 sets no limit."""

    max_body_bytes: int = Field(default=10 << 20, ge=1024)
    """Largest request body, decompressed; a larger one is refused with 413 before all of it is read."""

    max_texts: int = Field(default=64, ge=1)
    """Most questions, or texts to match or embed, in one request."""

    max_question_chars: int = Field(default=1000, ge=1)
    """Longest question or text, in characters. The tokenizer truncates far below this; it bounds the work on hostile
    input."""

    request_timeout_s: float = Field(default=10.0, gt=0)
    """Time for one request, from its first byte to its answer. Clients cannot change it."""

    examples: Literal["auto", "on", "off"] = "auto"
    """Whether the page and /docs show a few samples of the data that the model was evaluated on (GET /v1/examples).
    "auto": unless `expose` is true, as the pictures may be of people."""

    feedback: FeedbackConfig = FeedbackConfig()

    knowledge: KnowledgeServingConfig = KnowledgeServingConfig()

    search: SearchServingConfig = SearchServingConfig()

    challenger: ChallengerConfig = ChallengerConfig()

    golden_tolerance: float = Field(default=0.02, ge=0, le=1)
    """By how much a probability or cosine may differ on this machine from the golden answers that were stored with the
    model version. A replica with larger differences is not served. 1 does not compare them."""

    start_timeout_s: float = Field(default=300.0, gt=0)
    """Time for all replicas to load the model and answer."""

    shutdown_timeout_s: float = Field(default=20.0, gt=0)
    """Time for requests in flight when a replica is stopped."""

    @property
    def shows_examples(self) -> bool:
        """Whether callers can see samples of the data on which the model was evaluated."""
        return self.examples == "on" or (self.examples == "auto" and not self.expose)

    @model_validator(mode="after")
    def _check_one_model_source(self) -> ServeConfig:
        if self.version and self.model:
            raise ValueError(f"version={self.version!r} and model={self.model!r} name two models; keep one")
        if self.model and self.challenger.mode != "off":
            raise ValueError(f"model={self.model!r} is no version that has a challenger; set challenger.mode=off")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> ServeConfig:
        for host in self.allowed_hosts:
            if not host or set(host) & set(":/*@ "):
                raise ValueError(f"allowed_hosts has {host!r}; give names alone, such as 'vlm.example.org'")
        for origin in self.allowed_origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or set(host) & set("/*@ "):
                raise ValueError(
                    f"allowed_origins has {origin!r}; give scheme and host, such as 'https://app.example.org'"
                )
        return self

    @model_validator(mode="after")
    def _check_exposed_service_has_keys(self) -> ServeConfig:
        if not is_loopback(self.host) and not self.expose:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines; keep 127.0.0.1, or set expose = true and "
                "put the SHA-256 hashes of API keys into VLMODEL_API_KEY_HASHES"
            )
        return self


def model_threads(config: ServeConfig) -> int:
    """The number of threads of one replica's forward pass: the setting, or an equal share of this process's cores."""
    return config.model_threads or max(1, len(os.sched_getaffinity(0)) // config.replicas)


def threads_for_decoding(config: ServeConfig) -> int:
    """The number of threads of one replica that decode images: one for each CPU that it reserves, and at least two."""
    return max(2, int(config.num_cpus))


def concurrent_forward_passes(config: ServeConfig) -> int:
    """The number of forward passes of one replica at a time: one on a GPU; on CPU one for each thread, up to 4."""
    return 1 if config.num_gpus > 0 else min(model_threads(config), 4)
