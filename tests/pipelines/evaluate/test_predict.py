"""Offline prediction as it is put together; what it answers is tested with the jobs."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from pipelines.data.corpus import train_tokenizer
from pipelines.data.index.index import IndexConfig, build_index
from pipelines.data.sample import Question, Texts
from pipelines.data.shards import ShardWriter
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.stream import StreamConfig
from pipelines.evaluate.predict import PredictConfig, predict
from vlmodel.processor import ProcessorConfig, VLProcessor


def test_a_share_of_a_gpu_can_be_asked_for(tmp_path: Path, ray_local: None) -> None:
    """Ray Data refuses such a stage without a batch size, when it is put together."""
    image = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(image, "PNG")
    with ShardWriter(tmp_path, "test", max_samples=5) as writer:
        writer.add("000", image.getvalue(), "png", Texts((), (Question("what is it?", "red"),)))
    index = build_index(str(tmp_path), IndexConfig(validation_fraction=0.0))
    model = tmp_path / "model"
    VLProcessor(ProcessorConfig(image_size=16), train_tokenizer(["what is it ?"], 64), ["red"]).save_pretrained(model)
    source = Source(str(tmp_path), index.hash, "test", str(model))
    made = predict(str(model), source, PredictConfig(gpus_per_worker=0.25), StreamConfig())
    assert "MapBatches(_Answerer)" in str(made)
