"""Requests a second over HTTP, and how long they take: ours, LitServe, FastAPI on uvicorn, and the bare forward pass.

ResNet-18, a BERT of 4 layers and a Transformer over both, 1,000 answers; photographs of 500 x 375, one question each;
1, 8 and 32 callers, each of whom asks when it is answered. Servers take turns and have the machine to themselves, with
the callers; and once more beside a process that keeps one core busy. BENCH_ROUNDS=N, BENCH_BUSY_ROUNDS=N and
BENCH_SECONDS=S for more or less. LitServe is none of our packages: `pip install --target FOLDER litserve` and
PYTHONPATH=FOLDER bring it, else it is left out.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.texts.corpus import train_tokenizer
from tests.bench.conftest import Figure
from tests.bench.photographs import WORDS, photograph
from tests.bench.servers.common import MAX_BATCH, PATH, threads
from tests.jobs.conftest import ROOT
from tests.vlmodel.tiny import collate
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

# Program and further arguments of each.
SERVERS = {
    "ours": ("raylm", "haproxy"),
    "ours, Python proxy": ("raylm", "python"),
    "LitServe": ("litserve_batches",),
    "FastAPI": ("fastapi_threads",),
}
CALLERS = (1, 8, 32)
ROUNDS, BUSY_ROUNDS = int(os.environ.get("BENCH_ROUNDS", 3)), int(os.environ.get("BENCH_BUSY_ROUNDS", 1))
SECONDS = float(os.environ.get("BENCH_SECONDS", 8))
IMAGES = 32
TREE = {
    "vision": {"name": "resnet18"},
    "language": {"width": 256, "depth": 4, "heads": 4},
    "fusion": {"width": 256, "heads": 4, "rounds": 2},
}

Rates = dict[tuple[str, int], list[float]]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example({"image": photograph(rng)}, (" ".join(rng.choice(WORDS, 8)),)) for _ in range(IMAGES)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([text for example in examples for text in example.texts], 200)
    processor = VLProcessor(ProcessorConfig(image_size=224), tokenizer, [f"answer {i}" for i in range(1000)])
    torch.manual_seed(0)
    VLModel.create_from_config(parse_config(ModelConfig, TREE), processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_requests_a_second(model: Path, examples: list[Example], tmp_path: Path, figure: Figure) -> None:
    _compare(model, examples, tmp_path, figure, ROUNDS, "")


def test_requests_a_second_beside_a_busy_process(
    model: Path, examples: list[Example], tmp_path: Path, figure: Figure
) -> None:
    """A build, a training or another service on the same machine: it has one core, as far as the system grants it."""
    with _busy_process():
        _compare(model, examples, tmp_path, figure, BUSY_ROUNDS, ", beside a busy process")


def _compare(model: Path, examples: list[Example], tmp_path: Path, figure: Figure, rounds: int, where: str) -> None:
    bodies = tmp_path / "bodies"
    bodies.write_bytes(b"\n".join(map(_body, examples)))
    kinds = [kind for kind in SERVERS if kind != "LitServe" or importlib.util.find_spec("litserve")]
    predictor = Predictor.from_pretrained(model, threads=threads())
    rates: Rates = {}
    latencies: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for callers in CALLERS:
            rates.setdefault(("pass", callers), []).append(_rate(_passes(predictor, examples, callers), callers))
            rates.setdefault(("bare", callers), []).append(_rate(_all_of_it(predictor, examples, callers), callers))
        for kind in kinds:
            with _serving(kind, model, tmp_path / "log") as url:
                for callers in CALLERS:
                    _load(url, bodies, callers, 2.0)  # not measured: threads and connections are made, kernels chosen
                    taken = _load(url, bodies, callers, SECONDS)
                    rates.setdefault((kind, callers), []).append(len(taken) / SECONDS)
                    latencies.setdefault((kind, callers), []).extend(taken)

    medians = {key: statistics.median(of_rounds) for key, of_rounds in rates.items()}
    for (kind, callers), rate in medians.items():
        if kind in SERVERS:
            peer = {"peer": "ours", "peer_value": medians["ours", callers]} if kind != "ours" else {}
            name = f"{kind}, {callers} callers{where}"
            figure(name, rate, "requests/s", limit=medians["pass", callers], **peer)
            for percent in (50, 99):
                value = float(np.percentile(latencies[kind, callers], percent)) * 1000
                figure(f"{name}, p{percent}", value, "ms")
        else:
            name = {"pass": "forward pass alone", "bare": "decode, tokenize, collate and pass in a loop"}[kind]
            figure(f"{name}, batches of {callers}{where}", rate, "images/s", limit=medians["pass", callers])
        assert rate > 0


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _body(example: Example) -> bytes:
    return json.dumps(
        {"image": base64.b64encode(example.inputs["image"]).decode(), "question": example.texts[0]}
    ).encode()


def _passes(predictor: Predictor, examples: list[Example], size: int) -> Callable[[], object]:
    batch = collate(predictor.processor, examples[:size])
    return lambda: predictor.predict_collated(batch)


def _all_of_it(predictor: Predictor, examples: list[Example], size: int) -> Callable[[], object]:
    return lambda: predictor.predict(examples[:size])


def _rate(step: Callable[[], object], size: int) -> float:
    step()
    end, steps, started = time.perf_counter() + SECONDS / 2, 0, time.perf_counter()
    while time.perf_counter() < end:
        step()
        steps += 1
    return steps * size / (time.perf_counter() - started)


def _load(url: str, bodies: Path, callers: int, seconds: float) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.http_load", url, str(bodies), str(callers), str(seconds)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    taken: list[float] = json.loads(ran.stdout)
    return taken


@contextmanager
def _serving(kind: str, model: Path, log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *more = SERVERS[kind]
    command = [sys.executable, "-m", f"tests.bench.servers.{program}", str(model), str(port), *more]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}{PATH}"
    try:
        _wait_for(url, server, log)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(urllib.request.Request(url, b"{}", {"content-type": "application/json"}), timeout=5)
        except urllib.error.HTTPError as error:
            if error.code != 404 and error.code != 503:  # it has its route and its model, and refuses the empty request
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()[-3000:]}")


assert max(CALLERS) == MAX_BATCH, "the bare pass in batches of all callers is the limit of a server that batches them"
