"""The embed job beside a bare loop, and the search among 100,000 and 1,000,000 vectors: latency and memory.

EfficientNet-Lite0 at 224 pixels and MiniLM, photographs of 500 x 375 with five captions each. BENCH_IMAGES=N,
BENCH_ROUNDS=N and BENCH_VECTORS=N,N for more or less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.embeddings.embed import EmbeddingJob, ModelActorResources, embed_dataset
from pipelines.embeddings.search import EmbeddingSearch
from pipelines.embeddings.stored import (
    EmbeddedModel,
    EmbeddingsFileRange,
    EmbeddingsManifest,
    arrow_schema,
    write_embeddings_file,
)
from pipelines.serve.config import SearchServingConfig, ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.search import UpdatableSearch
from pipelines.serve.service import ModelInfo, ServiceRequest, ServiceResult
from pipelines.storage.folder import StorageFolder
from tests.bench import photographs
from tests.bench.conftest import Figure
from tests.jobs.conftest import ROOT
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.server import served
from tests.real_weights import efficientnet_lite0, minilm
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.operations.embed import Embeddings as RequestVectors
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

IMAGES = int(os.environ.get("BENCH_IMAGES", 1500))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 3))
VECTORS = tuple(map(int, os.environ.get("BENCH_VECTORS", "100000,1000000").split(",")))
WIDTH, QUERIES, TOP = 256, 40, 12
BATCH = 64


def save_model(folder: Path) -> None:
    from transformers import AutoTokenizer

    towers = {
        "vision": {
            "kind": "timm", "name": "tf_efficientnet_lite0", "weights": str(efficientnet_lite0()), "match": "order",
            "output": "pooled", "frozen": True,
        },
        "language": {"pretrained": str(minilm()), "frozen": True},
        "task": {"kind": "contrastive", "width": WIDTH},
    }  # fmt: skip
    tree = parse_config(ModelConfig, towers)
    tokenizer = AutoTokenizer.from_pretrained(str(minilm()), local_files_only=True)
    processor = VLProcessor(ProcessorConfig(image_size=224, max_tokens=32), tokenizer, [], tree.task.tasks_by_name())
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def bare_loop(predictor: Predictor, files: Sequence[bytes], captions: Sequence[tuple[str, ...]], threads: int) -> float:
    """Images a second: decoded by threads and embedded with their captions, batch by batch, from memory to memory."""
    processor, started = predictor.processor, time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(files), BATCH):
            some = files[first : first + BATCH]
            decoded = list(pool.map(lambda data: processor.decode_inputs(Example({"image": data}, ())), some))
            predictor.embed_decoded(decoded, [Example({}, texts) for texts in captions[first : first + BATCH]])
    return len(files) / (time.perf_counter() - started)


@pytest.mark.usefixtures("ray_local")
def test_embed_beside_a_bare_loop(tmp_path: Path, figure: Figure) -> None:
    """Both compute the same vectors with the same threads; the job reads tars and writes Parquet beside. The first file
    of the job, whose process starts and loads the model before it, is not counted.
    """
    model, tars = tmp_path / "model", tmp_path / "tars"
    save_model(model)
    tars.mkdir()
    data = photographs.write(tars, IMAGES, 224)
    cores = len(os.sched_getaffinity(0))
    described = EmbeddedModel(name="lite0-minilm", version="0", digest="bench", task="")
    predictor = Predictor.from_pretrained(model, threads=cores)
    rng = np.random.default_rng(0)
    captions = [tuple(" ".join(rng.choice(photographs.WORDS, 10)) for _ in range(5)) for _ in data.jpegs]
    bare_loop(predictor, data.jpegs[:BATCH], captions, cores)
    rates: dict[str, list[float]] = {"job": [], "loop": []}
    for number in range(ROUNDS):
        rates["loop"].append(bare_loop(predictor, data.jpegs, captions, cores))
        told: list[tuple[float, int]] = []
        job = EmbeddingJob(
            str(model), described, data.source.tars, data.source.index_hash, "", ("image", "text"),
            str(tmp_path / f"vectors-{number}"),
        )  # fmt: skip
        embed_dataset(job, ModelActorResources(1, cores, 0.0, BATCH), partial(_note, told))
        (begun, first), (ended, last) = told[1], told[-1]
        rates["job"].append((last - first) / (ended - begun))
    by_round = [job / loop for job, loop in zip(rates["job"], rates["loop"], strict=True)]
    print(rates, by_round)
    job_rate, loop_rate = (statistics.median(rates[name]) for name in ("job", "loop"))
    figure("embed: images with 5 captions", job_rate, "images/s", peer="bare loop", peer_value=loop_rate)


def _note(told: list[tuple[float, int]], done: int, total: int) -> None:
    told.append((time.perf_counter(), done))


def store_vectors(folder: Path, count: int) -> np.ndarray:
    """Random unit vectors as the job stores them, 4,096 a file; returns some of them."""
    rng, at, parts, kept = np.random.default_rng(0), StorageFolder(str(folder)), [], []
    for start in range(0, count, 4096):
        size = min(4096, count - start)
        vectors_MD = rng.standard_normal((size, WIDTH), np.float32)
        vectors_MD /= np.linalg.norm(vectors_MD, axis=1, keepdims=True)
        kept.append(vectors_MD[:1])
        columns = {
            "key": [f"{start + n:09d}" for n in range(size)], "split": ["train"] * size, "shard": ["a.tar"] * size,
            "row": np.arange(start, start + size, dtype=np.int32), "input": ["image"] * size, "text": [None] * size,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_MD.ravel()), WIDTH),
        }  # fmt: skip
        table = pa.table({name: pa.array(values) for name, values in columns.items()}).cast(arrow_schema(WIDTH))
        parts.append(
            write_embeddings_file(
                at, EmbeddingsFileRange("a.tar", start, start + size, {"start": start}), "bench", table
            )
        )
    described = EmbeddedModel(name="bench", version="1", digest="bench", task="")
    made = EmbeddingsManifest(model=described, tars="none", index="bench", split="", inputs=["image"], parts=parts)
    made.write(at)
    return np.concatenate(kept)


def memory_mb() -> dict[str, float]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


class _Embedder(FakeService):
    """A service whose model gives one vector after the other, in no time."""

    def __init__(self, vectors_ND: np.ndarray) -> None:
        super().__init__()
        self.model = ModelInfo("bench", "1", ("embed",), 0, (224, 224), "squash", digest="bench")
        self.vectors_ND, self.asked = vectors_ND, 0

    async def run(self, request: ServiceRequest) -> ServiceResult:
        self.asked += 1
        return self.answered(RequestVectors(None, self.vectors_ND[self.asked % len(self.vectors_ND)][None]))


def search_in_own_process(folder: str) -> dict[str, Any]:
    """Milliseconds of searches, alone and over HTTP, and the memory that they take."""
    before = memory_mb()
    started = time.perf_counter()
    search = EmbeddingSearch(folder)
    opened_s = time.perf_counter() - started
    queries_ND = np.random.default_rng(1).standard_normal((QUERIES, WIDTH)).astype(np.float32)
    queries_ND /= np.linalg.norm(queries_ND, axis=1, keepdims=True)
    alone = _milliseconds(lambda n: search.nearest(queries_ND[n], "image", TOP))
    after = memory_mb()
    config = ServeConfig(search=SearchServingConfig(embeddings=folder))
    app = create_app(_Embedder(queries_ND), config, search=UpdatableSearch(config.search))
    with served(app) as address, httpx.Client(base_url=f"http://{address}", timeout=60) as client:
        body = {"text": "a", "thumbnails": False, "top_k": TOP}
        over_http = _milliseconds(lambda n: client.post("/v1/search", json=body).raise_for_status())
    count = search.inputs["image"]
    vectors_MD = np.fromfile(next(Path(folder).rglob("image.vectors")), np.float32).reshape(count, WIDTH)

    def in_memory(n: int) -> None:
        cosines_M = vectors_MD @ queries_ND[n]
        some = np.argpartition(-cosines_M, TOP)[:TOP]
        some[np.argsort(-cosines_M[some])]

    return {
        "open s": opened_s, "ms": alone, "http ms": over_http, "numpy ms": _milliseconds(in_memory),
        "anonymous MB": after["RssAnon"] - before["RssAnon"], "mapped MB": after["RssFile"] - before["RssFile"],
    }  # fmt: skip


def _milliseconds(search: Any) -> float:
    """The median of a search, after one that maps the files."""
    search(0)
    taken = []
    for number in range(QUERIES):
        started = time.perf_counter()
        search(number)
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


@pytest.mark.parametrize("count", VECTORS)
def test_search(tmp_path: Path, figure: Figure, count: int) -> None:
    """The peer has all vectors in memory, and one product of them with the query."""
    folder = tmp_path / "vectors"
    kept_ND = store_vectors(folder, count)
    started = time.perf_counter()
    made = EmbeddingSearch(str(folder))
    made_s = time.perf_counter() - started
    assert [hit.similarity for hit in made.nearest(kept_ND[-1], "image", 1)] == [pytest.approx(1, abs=1e-5)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.test_embed", str(folder)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    figure(f"search {count}: files made of Parquet", made_s, "s")
    figure(f"search {count}: opened", found["open s"], "s")
    figure(f"search {count}", found["ms"], "ms", peer="numpy, all in memory", peer_value=found["numpy ms"])
    figure(f"search {count} over HTTP, without the model", found["http ms"], "ms")
    figure(f"search {count}: memory of its own", found["anonymous MB"], "MB")
    figure(f"search {count}: mapped of files", found["mapped MB"], "MB")


if __name__ == "__main__":
    print(json.dumps(search_in_own_process(sys.argv[1])))
