"""The embed job's pass: every vector once, resumed where it was stopped, renewed where something changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.embeddings import embed
from pipelines.embeddings.embed import EmbeddingJob, EmbeddingsFileWriter, choose_inputs, choose_task, embed_dataset
from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.stored import LINEAGE, MANIFEST, PARTS, EmbeddingsManifest
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from tests.pipelines.embeddings.conftest import COPIES, Run, captions_of, index_tars, write_tars
from vlmodel.config import ConfigError, parse_part_config
from vlmodel.inference import Predictor
from vlmodel.processor import Example
from vlmodel.tasks.contrastive import Config as Contrastive

ROOT = Path(__file__).resolve().parents[3]


def rows_of(folder: str) -> list[dict[str, Any]]:
    """All rows in the order of the manifest."""
    parts = EmbeddingsManifest.read(StorageFolder(folder)).parts
    return pa.concat_tables([pq.read_table(f"{folder}/{PARTS}/{part.name}") for part in parts]).to_pylist()


def identities(folder: str) -> list[tuple[str, str, str, str | None]]:
    return [(row["key"], row["split"], row["input"], row["text"]) for row in rows_of(folder)]


def test_each_image_and_each_caption_has_the_vector_that_the_model_gives(
    run: Run, job: EmbeddingJob, index: Index, contrastive: Path
) -> None:
    made = run()
    predictor, reader = Predictor.from_pretrained(contrastive), ShardReader(index)
    rows = rows_of(job.out)
    expected: list[tuple[Any, ...]] = []
    for shard in index.shards:
        for sample in reader.read(shard.name, range(sum(shard.sample_counts.values()))):
            [(image_D, text_ND)] = predictor.embed([Example(sample.inputs, sample.texts.captions)])
            own: list[tuple[Any, ...]] = [("image", None, image_D)] if image_D is not None else []
            own += [("text", *pair) for pair in zip(sample.texts.captions, text_ND, strict=True)]
            expected += [(sample.key, sample.split, shard.name, *one) for one in own]
    assert [tuple(row[name] for name in ("key", "split", "shard", "input", "text")) for row in rows] == [
        one[:5] for one in expected
    ]
    assert np.allclose([row["vector"] for row in rows], [one[5] for one in expected], atol=1e-6)
    assert {name: made.count(name) for name in made.inputs} == {
        "image": sum(n % 7 != 6 for n in [*range(23), *range(30, 36)]),
        "text": sum(len(captions_of(n)) for n in [*range(23), *range(30, 36)]),
    }
    assert made.width == 8


def test_a_split_and_an_input_alone(run: Run, job: EmbeddingJob, index: Index) -> None:
    run()
    everything = identities(job.out)
    for split in ("train", "val", "test"):
        run(split=split, inputs=("text",), out=f"{job.out}-{split}")
        assert identities(f"{job.out}-{split}") == [one for one in everything if one[1] == split and one[2] == "text"]


def test_lineage_is_in_every_file(run: Run, job: EmbeddingJob, index: Index) -> None:
    made = run()
    for part in made.parts:
        lineage = json.loads(pq.read_schema(f"{job.out}/{PARTS}/{part.name}").metadata[LINEAGE])
        assert (lineage["model"], lineage["index"]) == (job.described.digest, index.hash)
        assert lineage["sha256"] == index.shard(lineage["shard"]).sha256


def test_a_stopped_job_goes_on_and_a_finished_one_computes_nothing(
    run: Run, job: EmbeddingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out=f"{job.out}-calm")
    written: list[str] = []
    write = EmbeddingsFileWriter.write

    def stop_at_the_third(writer: EmbeddingsFileWriter, part: Any) -> Any:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(part.name)
        return write(writer, part)

    monkeypatch.setattr(EmbeddingsFileWriter, "write", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (Path(job.out) / MANIFEST).exists()
    first = list(written)

    def note(writer: EmbeddingsFileWriter, part: Any) -> Any:
        written.append(part.name)
        return write(writer, part)

    monkeypatch.setattr(EmbeddingsFileWriter, "write", note)
    made = run()
    assert sorted(written) == sorted(part.name for part in made.parts), "each file once"
    assert set(first) < {part.name for part in made.parts}
    assert rows_of(job.out) == rows_of(f"{job.out}-calm")
    written.clear()
    assert run() == made
    assert written == []


KILLED = """
import sys
from pipelines.embeddings import embed
from tests.pipelines.embeddings.conftest import COPIES, serial
from pipelines.embeddings.embed import EmbeddingJob, EmbeddingsFileWriter, embed_dataset
from pipelines.embeddings.stored import EmbeddedModel
import json
embed.map_shards = serial
given = json.loads(sys.argv[1])
given["described"], given["inputs"] = EmbeddedModel(**given["described"]), tuple(given["inputs"])
write = EmbeddingsFileWriter.write
def told(writer, part):
    print("begins", flush=True)
    return write(writer, part)
EmbeddingsFileWriter.write = told
embed_dataset(EmbeddingJob(**given), COPIES)
"""


def test_a_killed_job_loses_and_doubles_nothing(run: Run, job: EmbeddingJob) -> None:
    run(out=f"{job.out}-calm")
    given = {**job.__dict__, "described": job.described.model_dump()}
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(given)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killed.stdout is not None
    for _ in range(4):
        assert killed.stdout.readline() == "begins\n"
    os.kill(killed.pid, signal.SIGKILL)  # while it writes the fourth
    killed.wait(60)
    left = list(Path(job.out, PARTS).glob("*.parquet"))
    assert 3 <= len(left) < len(EmbeddingsManifest.read(StorageFolder(f"{job.out}-calm")).parts)
    kept = {path: path.stat().st_mtime_ns for path in left}
    run()
    assert rows_of(job.out) == rows_of(f"{job.out}-calm")
    assert {path: path.stat().st_mtime_ns for path in left} == kept, "what was written is not written again"
    names = {part.name for part in EmbeddingsManifest.read(StorageFolder(job.out)).parts}
    assert {path.name for path in Path(job.out, PARTS).iterdir()} == names, "nothing half-written is left"


def test_of_new_tars_only_what_is_new_is_embedded(
    run: Run, job: EmbeddingJob, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = identities(job.out)
    written: list[str] = []
    write = EmbeddingsFileWriter.write

    def note(writer: EmbeddingsFileWriter, part: Any) -> Any:
        written.append(part.shard)
        return write(writer, part)

    monkeypatch.setattr(EmbeddingsFileWriter, "write", note)
    more = Path(index.tars).parent / "more"
    more.mkdir()
    write_tars(more, "train", range(50, 54))
    (more / "train-000000.tar").rename(Path(index.tars) / "train-000009.tar")
    made = run(index_hash=index_tars(Path(index.tars)).hash)
    assert written == ["train-000009.tar"] * 2
    after = identities(job.out)
    assert [one for one in after if one[0] < "0050"] == before
    assert len(after) == sum(made.count(name) for name in made.inputs) > len(before)


def test_another_model_takes_the_place_of_the_vectors(run: Run, job: EmbeddingJob) -> None:
    first = run()
    second = run(described=job.described.model_copy(update={"digest": "another"}))
    assert not {part.name for part in first.parts} & {part.name for part in second.parts}
    left = {path.name for path in Path(job.out, PARTS).iterdir()}
    assert left == {part.name for part in second.parts}, "those of the former are deleted"


def test_what_cannot_be_decoded_is_named(
    run: Run, job: EmbeddingJob, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ShardReader.read

    def spoil(reader: ShardReader, *arguments: Any, **options: Any) -> Any:
        return [sample._replace(inputs={"image": b"no image"}) for sample in read(reader, *arguments, **options)]

    monkeypatch.setattr(ShardReader, "read", spoil)
    with pytest.raises(DataError, match=r"image of sample '0030' in shard .*data\.index\.verify=decode"):
        run()


def test_nothing_to_embed_is_told(run: Run, job: EmbeddingJob, index: Index) -> None:
    tars = Path(index.tars).parent / "bare"
    tars.mkdir()
    write_tars(tars, "train", range(1))  # without a caption
    with pytest.raises(EmbeddingsError, match=r"no indexed sample of .* has text; choose another split"):
        run(tars=str(tars), index_hash=index_tars(tars).hash, inputs=("text",))


def test_two_jobs_do_not_write_to_one_folder(run: Run, job: EmbeddingJob) -> None:
    from pipelines.storage.lock import hold_lock

    with (
        hold_lock(Path(job.out, embed.LOCK), RuntimeError("mine")),
        pytest.raises(EmbeddingsError, match=r"writes vectors to .*embed\.out"),
    ):
        run()


def test_a_task_that_gives_no_vectors_is_refused() -> None:
    vqa, contrastive = parse_part_config("vlmodel.tasks", {"kind": "vqa"}), Contrastive()
    with pytest.raises(ConfigError, match=r"\(vqa\) give no vectors; name a model of task\.kind=contrastive"):
        choose_task({"": vqa}, "")
    assert choose_task({"ask": vqa, "space": contrastive}, "") == "space"
    for wrong in ("ask", "nothing"):
        with pytest.raises(ConfigError, match=rf"embed\.task='{wrong}' is no task of this model that embeds.*'space'"):
            choose_task({"ask": vqa, "space": contrastive}, wrong)
    assert choose_inputs(contrastive, []) == ("image", "text")
    assert choose_inputs(contrastive, ["text"]) == ("text",)
    with pytest.raises(ConfigError, match="the model embeds image and text, and not 'sound'"):
        choose_inputs(contrastive, ["sound"])


def test_a_further_input_is_embedded(tmp_path: Path, job: EmbeddingJob, here: None) -> None:
    """A contrastive model of series and texts, whose samples have no images."""
    from pipelines.data.index.build import build_index
    from pipelines.data.index.config import IndexConfig
    from pipelines.data.texts.corpus import train_tokenizer
    from pipelines.storage import manifest
    from tests.pipelines.data.tar_maker import series, write_tar
    from tests.vlmodel.tiny import tiny_input, tiny_tree
    from vlmodel.model import VLModel
    from vlmodel.processor import ProcessorConfig, VLProcessor

    tars, model = tmp_path / "series", tmp_path / "series-model"
    tars.mkdir()
    members = [[(f"{n}.imu.npy", series(n)), (f"{n}.json", b'{"captions": ["a b"]}')] for n in range(5)]
    write_tar(tars, "train-0.tar", [entry for sample in members for entry in sample])
    index = build_index(str(tars), IndexConfig(inputs=("imu", "text"), validation_fraction=0.0))
    tree = tiny_tree(
        tiny_input("series"), vision={"kind": "none"}, task={"kind": "contrastive", "stream": "imu", "width": 8}
    )
    processor = VLProcessor(
        ProcessorConfig(max_tokens=12),
        train_tokenizer(["a b"], 64),
        [],
        tree.task.tasks_by_name(),
        "none",
        tree.inputs,
        False,
    )
    VLModel.create_from_config(tree, processor).save_pretrained(model)
    processor.save_pretrained(model)
    described = job.described.model_copy(update={"digest": manifest.folder_digest(model)})
    of_series = replace(
        job, model=str(model), described=described, tars=str(tars), index_hash=index.hash, inputs=("imu", "text")
    )
    made = embed_dataset(of_series, COPIES)
    assert {name: made.count(name) for name in made.inputs} == {"imu": 5, "text": 5}
    found = {row["key"]: row["vector"] for row in rows_of(job.out) if row["input"] == "imu"}
    [(vector_D, _)] = Predictor.from_pretrained(model).embed([Example({"imu": series(3)}, ())])
    assert np.allclose(found["3"], vector_D, atol=1e-6)
