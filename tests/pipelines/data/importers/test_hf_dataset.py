"""Hugging Face data sets as they lie on disk, written here as the package ``datasets`` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.importers.hf_dataset import Config
from pipelines.data.importing.importer import RejectedSample, SourceSample
from pipelines.errors import DataError
from vlmodel.sample import Question

Read = Callable[[Config], tuple[dict[str, SourceSample], list[RejectedSample]]]
Picture = Callable[..., bytes]

IMAGE = {"_type": "Image"}
CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def table(rows: list[dict[str, Any]], features: dict[str, Any], **types: pa.DataType) -> pa.Table:
    """Rows with the description of their columns, as ``datasets`` writes it into the schema."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.Table.from_pylist(rows).schema
    for name, feature in features.items():
        if name in schema.names and feature == IMAGE:
            schema = schema.set(schema.get_field_index(name), pa.field(name, struct))
    for name, kind in types.items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    described = json.dumps({"info": {"features": features}})
    return pa.Table.from_pylist(rows, schema).replace_schema_metadata({"huggingface": described})


def write_parquet(file: Path, rows: list[dict[str, Any]], features: dict[str, Any], **types: pa.DataType) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows, features, **types), file)


def save_to_disk(folder: Path, rows: list[dict[str, Any]], features: dict[str, Any], split: str | None = None) -> None:
    """Two Arrow streams, of which the first has the first half."""
    folder.mkdir(parents=True)
    whole = table(rows, features)
    half = -(-len(rows) // 2)
    files = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    for name, part in zip(files, (whole.slice(0, half), whole.slice(half)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, whole.schema) as writer:
            writer.write_table(part, max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in files], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def stored(picture: Picture, number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": f"{number}.png"}


def test_images_with_classes_in_parquet_files(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    features = {"img": IMAGE, "label": CLASSES}
    for split, numbers in (("train", range(5)), ("validation", range(10, 12)), ("test", range(20, 22))):
        rows = [{"img": stored(picture, n), "label": n % 2 if split != "test" else -1} for n in numbers]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows, features)
    records, rejects = read_all(Config(folder=str(tmp_path), inputs=("image", "text?")))
    assert rejects == []
    found = sorted((r.split, r.texts.label, r.inputs["image"]) for r in records.values() if r.split != "test")
    assert found == sorted(
        [("train", ("cat", "dog")[n % 2], (picture(n), "png")) for n in range(5)]
        + [("val", ("cat", "dog")[n % 2], (picture(n), "png")) for n in range(10, 12)]
    )
    assert [r.texts.label for r in records.values() if r.split == "test"] == [None, None], "unknown in the test split"


def test_captions_that_save_to_disk_wrote(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    """A caption a row, and lists of captions: all of one image are one sample's."""
    features = {"image": IMAGE, "caption": {"dtype": "string", "_type": "Value"}}
    rows = [{"image": stored(picture, n // 2), "caption": f"caption {n}"} for n in range(6)]
    save_to_disk(tmp_path / "set" / "train", rows, features)
    lists = [{"image": stored(picture, 9), "caption": ["one", "two"]}]
    save_to_disk(tmp_path / "set" / "validation", lists, features)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    records, rejects = read_all(Config(folder=str(tmp_path / "set")))
    assert rejects == []
    assert sorted((r.split, r.texts.captions) for r in records.values()) == [
        ("train", ("caption 0", "caption 1")),
        ("train", ("caption 2", "caption 3")),
        ("train", ("caption 4", "caption 5")),
        ("val", ("one", "two")),
    ]
    save_to_disk(tmp_path / "alone", rows, features, split="test")
    assert {r.split for r in read_all(Config(folder=str(tmp_path / "alone")))[0].values()} == {"test"}


def test_arrow_files_that_datasets_keeps(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    """The cache of ``load_dataset``, without what ``map`` left in it."""
    cache = tmp_path / "default" / "0.0.0" / "abc"
    save_to_disk(cache, [{"image": stored(picture, 1), "caption": "a"}], {"image": IMAGE})
    (cache / "state.json").unlink()
    (cache / "data-00000-of-00002.arrow").rename(cache / "flowers-validation.arrow")
    (cache / "data-00001-of-00002.arrow").rename(cache / "cache-0123.arrow")
    [sample] = read_all(Config(folder=str(tmp_path)))[0].values()
    assert (sample.split, sample.texts.captions) == ("val", ("a",))


def test_questions_with_all_answers(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    """As of VQA v2: structs of answers, a consensus under another name, the images in lists."""
    features = {"images": {"feature": IMAGE, "_type": "List"}, "question": {"dtype": "string", "_type": "Value"}}
    rows = [
        {
            "images": [stored(picture, 1)],
            "question": f"what is it? {n}",
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(("a cat", "cat", "cat"))],
            "multiple_choice_answer": ("cat", None)[n],
            "question_id": 70 + n,
        }
        for n in range(2)
    ]
    rows.append({**rows[0], "images": [stored(picture, 1), stored(picture, 2)]})
    write_parquet(tmp_path / "vqa" / "train.parquet", rows, features)
    records, rejects = read_all(Config(folder=str(tmp_path), answer="multiple_choice_answer"))
    [sample] = records.values()
    answers = ("a cat", "cat", "cat")
    assert sample.texts.questions == tuple(Question(f"what is it? {n}", "cat", answers, str(70 + n)) for n in range(2))
    [reject] = rejects
    assert (reject.key, reject.reason) == ("train.parquet:2", "bad_schema")
    assert "2 images" in reject.detail


def test_a_column_of_the_split_counts_where_it_is_named(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    rows = [{"image": stored(picture, n), "caption": "a", "split": ("train", "val", "test")[n]} for n in range(3)]
    write_parquet(tmp_path / "test-00000.parquet", rows, {"image": IMAGE})
    assert {r.split for r in read_all(Config(folder=str(tmp_path)))[0].values()} == {"test"}
    by_column, _ = read_all(Config(folder=str(tmp_path), split="split"))
    assert sorted(r.split for r in by_column.values()) == ["test", "train", "val"]


def test_configurations_are_folders_of_which_one_is_named(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    for number, name in enumerate(("plain", "hard")):
        rows = [{"image": stored(picture, number), "caption": name}]
        write_parquet(tmp_path / name / "train" / "0000.parquet", rows, {"image": IMAGE})
    with pytest.raises(DataError, match=r"several configurations: hard, plain; name one in source\.name"):
        read_all(Config(folder=str(tmp_path)))
    [sample] = read_all(Config(folder=str(tmp_path), name="hard"))[0].values()
    assert (sample.texts.captions, sample.split) == (("hard",), "train")
    with pytest.raises(DataError, match=r"no configuration 'soft' \(source\.name\); it has hard, plain"):
        read_all(Config(folder=str(tmp_path), name="soft"))


def test_one_parquet_file_and_one_without_a_description(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    """As pandas would write it: columns count by their names."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.table({"image": pa.array([stored(picture, 1)], struct), "text": ["a cat"]})
    pq.write_table(rows, tmp_path / "dev.parquet")
    [sample] = read_all(Config(folder=str(tmp_path / "dev.parquet")))[0].values()
    assert (sample.texts.captions, sample.split) == (("a cat",), "val")


def test_images_that_lie_beside_the_table(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    (tmp_path / "1.png").write_bytes(picture(1))
    write_parquet(
        tmp_path / "train.parquet", [{"image": {"bytes": None, "path": "1.png"}, "text": "a"}], {"image": IMAGE}
    )
    [sample] = read_all(Config(folder=str(tmp_path)))[0].values()
    assert sample.inputs["image"][0] == picture(1)


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"left": IMAGE, "right": IMAGE}, r"several columns of Image: 'left', 'right'; name one in source\.image"),
        (
            {"left": IMAGE, "coarse": CLASSES, "fine": CLASSES},
            r"several columns of ClassLabel: 'coarse', 'fine'; name one in source\.label",
        ),
    ],
)
def test_of_several_columns_one_is_to_be_named(
    tmp_path: Path, picture: Picture, read_all: Read, features: dict[str, Any], says: str
) -> None:
    rows = [{name: stored(picture, 1) if f == IMAGE else 1 for name, f in features.items()}]
    write_parquet(tmp_path / "train.parquet", rows, features)
    with pytest.raises(DataError, match=says):
        read_all(Config(folder=str(tmp_path)))


def test_what_is_no_data_set_is_told(tmp_path: Path, picture: Picture, read_all: Read) -> None:
    with pytest.raises(DataError, match=r"does not exist; set source\.folder"):
        read_all(Config(folder=str(tmp_path / "none")))
    with pytest.raises(DataError, match="holds no data set"):
        read_all(Config(folder=str(tmp_path)))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        read_all(Config(folder=str(tmp_path)))
    rows = [{"image": stored(picture, 1), "label": 7}, {"image": stored(picture, 2), "label": 1}]
    write_parquet(tmp_path / "train.parquet", rows, {"image": IMAGE, "label": CLASSES})
    records, [reject] = read_all(Config(folder=str(tmp_path)))
    assert [r.texts.label for r in records.values()] == ["dog"]
    assert "label = 7 is none of its 2 classes" in reject.detail
    write_parquet(tmp_path / "train.parquet", [{"picture": stored(picture, 1)}], {})
    with pytest.raises(DataError, match=r"none of its columns that it is an image; they are .picture.: name it"):
        read_all(Config(folder=str(tmp_path)))


def test_the_fingerprint_changes_with_the_files(tmp_path: Path, picture: Picture) -> None:
    write_parquet(tmp_path / "train.parquet", [{"image": stored(picture, 1), "text": "a"}], {"image": IMAGE})
    config = Config(folder=str(tmp_path))
    before = config.fingerprint()
    assert before == config.fingerprint()
    write_parquet(tmp_path / "test.parquet", [{"image": stored(picture, 2), "text": "b"}], {"image": IMAGE})
    assert config.fingerprint() != before
