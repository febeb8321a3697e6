"""Classifies samples zero-shot by the stored vectors of a contrastive model, and reports the accuracy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.embeddings.stored import EmbeddingsManifest, read_embeddings_file
from pipelines.errors import DataError
from pipelines.evaluate.baselines import Baselines
from pipelines.evaluate.build_report import build_report
from pipelines.evaluate.config import ZeroShotConfig
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.schema import SCHEMA
from pipelines.storage.folder import StorageFolder
from vlmodel.processor import Example
from vlmodel.tasks.classify import Config as Classification
from vlmodel.zero_shot import class_probabilities, class_vectors, make_prompts

if TYPE_CHECKING:
    pass


_PROMPTS_AT_ONCE = 256


def find_class_names(config: ZeroShotConfig, labels: Sequence[str]) -> dict[str, str]:
    """Return the name of each class among which the model chooses.

    Args:
        labels: of the samples.

    Raises:
        DataError: the file of names cannot be read, or lacks a class of the samples.
    """
    if not config.names:
        return {label: label.replace("_", " ") for label in sorted(set(labels))}
    setting = f"evaluate.zero_shot.names={config.names!r}"
    try:
        names = json.loads(Path(config.names).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{setting} cannot be read ({error}); name a JSON file") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f'{setting} must hold one object, as {{"n01440764": "tench"}}')
    if missing := sorted(set(labels) - names.keys()):
        raise DataError(f"{setting} lacks {len(missing)} classes of the samples: {', '.join(missing[:5])}; add them")
    return names


def classify_dataset(
    model: str, folder: str, embeddings: EmbeddingsManifest, config: ZeroShotConfig
) -> tuple[pa.Table, list[str]]:
    """Classify the samples whose vectors are stored; returns the chosen classes, and the classes that there are.

    Args:
        model: its folder.
        folder: of the vectors; "text" is none of them.

    Returns:
        a table of ``schema.SCHEMA``, a row for each sample with a class; ``shuffled`` is the choice for another
        sample, the one that is half the table away.

    Raises:
        DataError: no sample has a class.
    """
    from vlmodel.inference import Predictor

    opened, reader = StorageFolder(folder), ShardReader(Index.open(embeddings.tars, embeddings.index))
    by_part = {part.name: _read_labels(opened, part.name, reader) for part in embeddings.parts}
    labels = [label for of_part in by_part.values() for label in of_part if label is not None]
    if not labels:
        raise DataError(
            f"no {embeddings.split or 'indexed'} sample of {embeddings.tars!r} has a class to be judged by; import "
            "folders that are named by classes with source.kind=folder source.classes=folder"
        )
    names = find_class_names(config, labels)
    classes = list(names)
    predictor = Predictor.from_pretrained(model)
    task = embeddings.model.task
    temperature: float = predictor.model.decoder.task_decoders()[task].temperature
    prompts = make_prompts(list(names.values()), config.templates)
    text_ND = np.concatenate(
        [
            predictor.embed([Example({}, prompts[start : start + _PROMPTS_AT_ONCE])], task)[0][1]
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
        ]
    )
    vectors_CD = class_vectors(text_ND, len(classes))
    tables = []
    for name, of_part in by_part.items():
        has_class = pa.array([label is not None for label in of_part], pa.bool_())
        samples = read_embeddings_file(opened, name).filter(has_class)
        flat = samples["vector"].combine_chunks().flatten().to_numpy()
        probability_BC = class_probabilities(flat.reshape(samples.num_rows, -1), vectors_CD, temperature)
        known = [label for label in of_part if label is not None]
        tables.append(_to_answers(samples, known, classes, probability_BC, config.top_k))
    answers = pa.concat_tables(tables).combine_chunks()
    half = np.roll(np.arange(answers.num_rows), answers.num_rows // 2)
    for column, of in (("shuffled", "predicted"), ("shuffled_probability", "probability")):
        at = SCHEMA.get_field_index(column)
        answers = answers.set_column(at, SCHEMA.field(at), answers[of].take(pa.array(half)))
    return answers, classes


def report_zero_shot(answers: pa.Table, classes: Sequence[str], split: str) -> TaskReport:
    """Report the accuracy, compared with always answering the most frequent class, and with answers about other
    samples.
    """
    majority, _ = min(Counter(answers["target"].to_pylist()).items(), key=lambda pair: (-pair[1], pair[0]))
    return build_report(answers, split, Classification(), Baselines({"": {"majority": majority}}), classes, "none")


def _read_labels(folder: StorageFolder, part: str, reader: ShardReader) -> list[str | None]:
    """Read the class of each row of a file of vectors, all of one shard; None if it is unknown."""
    table = read_embeddings_file(folder, part)
    labels: list[str | None] = []
    for shard in pc.unique(table["shard"]).to_pylist():
        labels += [texts.label for texts in reader.read_texts(shard, table["row"].to_pylist())]
    return labels


def _to_answers(
    samples: pa.Table, labels: Sequence[str], classes: Sequence[str], probability_BC: np.ndarray, top_k: int
) -> pa.Table:
    order_BK = np.argsort(-probability_BC, axis=1, kind="stable")[:, :top_k]
    ranked = [[classes[n] for n in order] for order in order_BK.tolist()]
    shares = np.take_along_axis(probability_BC, order_BK, 1)
    columns = {
        "key": samples["key"].to_pylist(),
        "split": samples["split"].to_pylist(),
        "text": [""] * len(labels),
        "target": labels,
        "references": [[label] for label in labels],
        "truncated": [False] * len(labels),
        "predicted": [names[0] for names in ranked],
        "probability": shares[:, 0],
        "answers": ranked,
        "probabilities": list(shares),
    }
    none = [None] * len(labels)
    arrays = [pa.array(columns.get(field.name, none), field.type) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
