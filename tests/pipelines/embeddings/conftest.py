"""Small tars, a tiny contrastive model, and passes in this process: Ray's workers take seconds to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.index import build
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.shards import ShardWriter
from pipelines.embeddings import embed
from pipelines.embeddings.embed import EmbeddingJob, ModelActorResources, embed_dataset
from pipelines.embeddings.stored import EmbeddedModel, EmbeddingsManifest
from pipelines.storage import manifest
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.serve.conftest import DECODERS, save_model
from vlmodel.sample import SampleTexts

WORDS = ("what", "colour", "is", "the", "circle", "square", "there", "a")
COPIES = ModelActorResources(batch=4)


def serial(items: Sequence[Any], work: Any, **options: Any) -> Iterator[Mapping[str, Any]]:
    """``map_shards`` in this process."""
    if isinstance(work, type):
        work = work(*options.get("fn_constructor_args", ()))
    yield from map(work, items)


def captions_of(number: int) -> tuple[str, ...]:
    """No caption, one or two."""
    return tuple(f"{WORDS[number % 8]} {WORDS[(number + n) % 7]}" for n in range(number % 3))


def write_tars(folder: Path, split: str, numbers: range, samples_per_tar: int = 5) -> None:
    """Samples with images but for each seventh, which has texts alone where it has any."""
    with ShardWriter(folder, split, max_samples=samples_per_tar, inputs=("image?", "text?")) as writer:
        for n in numbers:
            inputs = {} if n % 7 == 6 else {"image": (photo(n), "jpg")}
            if inputs or captions_of(n):
                writer.add(f"{n:04d}", inputs, SampleTexts(captions_of(n)))


@pytest.fixture(scope="session")
def contrastive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("contrastive"), DECODERS["contrastive"])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (build, embed):
        monkeypatch.setattr(module, "map_shards", serial)
    monkeypatch.setattr("pipelines.data.stream.ray_private.pass_arguments_by_value", lambda: None)


def index_tars(folder: Path) -> Index:
    return build_index(str(folder), IndexConfig(inputs=("image?", "text?"), validation_fraction=0.3))


@pytest.fixture
def index(tmp_path: Path, here: None) -> Index:
    """Twenty-three samples in five train tars, some of them for validation, and six in two test tars."""
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tars(tars, "train", range(23))
    write_tars(tars, "test", range(30, 36))
    return index_tars(tars)


Run = Callable[..., EmbeddingsManifest]


@pytest.fixture
def job(index: Index, contrastive: Path, tmp_path: Path) -> EmbeddingJob:
    described = EmbeddedModel(name="tiny", version="3", digest=manifest.folder_digest(contrastive), task="")
    return EmbeddingJob(
        str(contrastive), described, index.tars, index.hash, "", ("image", "text"), str(tmp_path / "vectors"),
        samples_per_file=3,
    )  # fmt: skip


@pytest.fixture
def run(job: EmbeddingJob) -> Run:
    """Run the job with some changes."""
    return lambda **changes: embed_dataset(replace(job, **changes), COPIES)
