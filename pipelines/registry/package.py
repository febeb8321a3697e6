"""Builds the package of a model from a checkpoint's inference part: a folder that MLflow can load anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import vlmodel.config
from pipelines.registry import golden, own_examples
from pipelines.registry.errors import ArtifactError
from pipelines.storage import manifest
from vlmodel import bases
from vlmodel.processor import Example, VLProcessor

_REQUIREMENTS = (
    "av", "mlflow", "numpy", "pandas", "peft", "pillow", "pydantic", "safetensors", "simplejpeg", "soundfile", "timm",
    "tokenizers", "torch", "torchmetrics", "torchvision", "transformers",
)  # fmt: skip
_OUTPUTS = Schema(
    [
        ColSpec(DataType.string, "answer"),
        ColSpec(DataType.double, "probability"),
        ColSpec(DataType.string, "answers"),
        ColSpec(DataType.string, "error", required=False),
    ]
)
_QUESTION = "question"  # as in pyfunc.py, which only MLflow imports


def model_signature(processor: VLProcessor) -> ModelSignature:
    """Describe the columns of a table that the model answers: its inputs, which a row may lack if there are several,
    and ``question`` if its first task reads texts.
    """
    names = processor.input_names
    columns: list[ColSpec | TensorSpec] = [ColSpec(DataType.binary, name, required=len(names) == 1) for name in names]
    if processor.default_task.reads_text():
        columns.append(ColSpec(DataType.string, _QUESTION))
    return ModelSignature(Schema(columns), _OUTPUTS, ParamSchema([ParamSpec("top_k", DataType.long, 5)]))


def input_table(processor: VLProcessor, example: Example) -> pd.DataFrame:
    """Build a table with one row from an example with one text."""
    row: dict[str, Any] = {name: example.inputs.get(name) for name in processor.input_names}
    if processor.default_task.reads_text():
        row[_QUESTION] = example.texts[0]
    return pd.DataFrame([row])


def build_package(
    checkpoint: Path,
    package: Path,
    example: Example,
    origin: Model,
    answers: Sequence[golden.GoldenAnswer] = (),
    card: str = "",
    shown: Sequence[own_examples.ModelExample] = (),
) -> str:
    """Write an MLflow model into a folder that does not exist yet. Returns the sha256 of its manifest.

    Args:
        checkpoint: folder that ``VLModel`` and ``VLProcessor`` saved, without bases in it.
        example: with one text, the input example.
        origin: the MLflow model description to complete, with the ids of its run and logged model.
        answers: golden answers to store.
        card: Markdown to store beside the model as README.md.
        shown: own examples to store.
    """
    processor = VLProcessor.from_pretrained(checkpoint)
    with TemporaryDirectory() as scratch:
        # Only this file of the pipeline, where the stored code imports it from.
        code = Path(scratch) / "pipelines" / "storage"
        code.mkdir(parents=True)
        shutil.copy(str(manifest.__file__), code)
        hide_mlflow_progress_bar()
        pyfunc.save_model(
            str(package),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"model": str(checkpoint.absolute())},
            code_paths=[str(Path(vlmodel.config.__file__).parent), str(code.parent)],
            signature=model_signature(processor),
            input_example=input_table(processor, example),
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS if _is_package_installed(name)],
            mlflow_model=origin,
        )
    for cache in list(package.rglob("__pycache__")):
        shutil.rmtree(cache)
    golden.write_golden_answers(answers, package)
    if card:
        # Beside the model and not in it: a replica compares the model's folder with the one that was registered.
        (package / "README.md").write_text(card, encoding="utf-8")
    own_examples.write_own_examples(shown, package)
    return manifest.write_manifest(package)


@contextmanager
def model_folder_without_base_weights(checkpoint: Path) -> Iterator[Path]:
    """Yield a folder of a model that does not contain its frozen base weights: the model's own folder if it contains
    none, else a temporary copy with these weights beside it.

    Raises:
        BaseWeightsError: one is missing or another.
    """
    if not (checkpoint / bases.FOLDER).exists():
        yield checkpoint
        return
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        shutil.copytree(checkpoint, copy, ignore=lambda folder, _: [bases.FOLDER] if Path(folder) == checkpoint else [])
        link_base_weights(checkpoint, Path(scratch))
        yield copy


def link_base_weights(checkpoint: Path, folder: Path) -> None:
    """Link a model's frozen base weights into a folder, so that copies of the model in that folder find them.

    Raises:
        BaseWeightsError: one is missing or another.
    """
    (folder / bases.FOLDER).mkdir()
    for file in set(bases.find_base_weights_files(checkpoint).values()):
        (folder / bases.FOLDER / file.name).symlink_to(file)


def verify_package(package: Path, expected: str) -> None:
    """Check that the files of a package are those that were registered.

    Args:
        expected: sha256 of its manifest.

    Raises:
        ArtifactError: they are not; the message names up to five.
    """
    try:
        manifest.verify_folder(package, expected)
    except manifest.ManifestError as error:
        raise ArtifactError(
            f"model {error}; delete what was added and restore the rest from a backup, or register the model again"
        ) from error


def inference_folder(package: Path) -> Path:
    """Return the folder within an MLflow model that ``from_pretrained`` loads."""
    flavor = Model.load(str(package)).flavors["python_function"]
    return package / flavor["artifacts"]["model"]["path"]


def read_signature(package: Path) -> dict[str, str] | None:
    """Read the inputs, outputs and parameters of an MLflow model; None if it has no signature."""
    stored = Model.load(str(package)).signature
    return None if stored is None else stored.to_dict()


def hide_mlflow_progress_bar() -> None:
    """Set the environment variable without which MLflow draws a progress bar for each folder that it copies."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _is_package_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
