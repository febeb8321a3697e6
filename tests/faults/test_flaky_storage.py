"""Drill: the store of the tars refuses some reads and cuts others short, in every process; nothing is lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.loader import MicroBatches
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from tests.faults.flaky import PROTOCOL, register
from tests.jobs.conftest import ROOT
from tests.pipelines.data.tar_maker import photo
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts

SAMPLES, A_SHARD = 300, 120


@pytest.fixture
def flaky_cluster() -> Iterator[None]:
    """A cluster of which every process knows the flaky file system."""
    register()
    ray.init(
        address="local", num_cpus=4, object_store_memory=150 << 20, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": register, "env_vars": {"PYTHONPATH": str(ROOT)}},
    )  # fmt: skip
    yield
    ray.shutdown()


def test_what_is_delivered_is_the_index(tmp_path: Path, flaky_cluster: None) -> None:
    folder = tmp_path / "store" / "tars"
    folder.mkdir(parents=True)
    with ShardWriter(folder, "train", max_samples=A_SHARD) as writer:
        for n in range(SAMPLES):  # 4 KB each and more: a tar is not read at once
            texts = SampleTexts((), (Question("what is it?", "noise"),))
            writer.add(f"{n:03d}", {"image": (photo(n, (96, 96), "PNG"), "png")}, texts)
    config = IndexConfig(validation_fraction=0.0)
    expected = build_index(str(folder), config)
    found = build_index(f"{PROTOCOL}://{folder}", config, force=True)
    assert found.hash == expected.hash
    assert found.quarantine().num_rows == 0
    assert [found.rows(shard.name) for shard in found.shards] == [expected.rows(s.name) for s in expected.shards]

    processor = VLProcessor(ProcessorConfig(image_size=16), train_tokenizer(["what is it ?"], 64), ["noise"])
    processor.save_pretrained(tmp_path / "processor")
    plain = Source(str(folder), expected.hash, "train", str(tmp_path / "processor"))
    over_a_bad_line = replace(plain, tars=f"{PROTOCOL}://{folder}")
    schedule = StepSchedule(plain.plan_order(shuffle=True), batch=16, epochs=1)
    seen: Counter[tuple[int, int]] = Counter()
    parts = [MicroBatches(source, schedule, 0, 1, 1, AugmentConfig()) for source in (plain, over_a_bad_line)]
    delivered = stream_batches(parts[1], StreamConfig(tasks=2))
    for number, arrays in enumerate(delivered):
        seen.update(zip(arrays["shard_B"].tolist(), arrays["row_B"].tolist(), strict=True))
        for name, array in parts[0][number].items():
            np.testing.assert_array_equal(arrays[name], array)
    everything = [(n, row) for n, s in enumerate(expected.shards) for row in range(s.sample_counts["train"])]
    assert seen == Counter(everything)
    assert len(everything) == SAMPLES

    faults = [file.name for file in (tmp_path / "store" / "_faults").iterdir()]
    processes = {name.split("-")[-2] for name in faults}
    print(f"{len(faults)} faults in {len(processes)} processes")
    assert {name.partition(".tar-")[0] for name in faults if ".tar-" in name} == {f"train-{n:06d}" for n in range(3)}
