"""Stores with a model a few samples of the data on which it was evaluated, as examples for users.

A service offers them on its page and in its documentation: they ask in the words that the model has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipelines.registry.errors import ArtifactError

FILE = "examples.json"


class AnsweredText(BaseModel):
    """A text about the inputs, and the model's best answer with its probability or score."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str
    answer: str
    probability: float


class ExampleInput(BaseModel):
    """One input of an example, without the metadata of the source's file.

    Attributes:
        media_type: such as "image/png".
        data: in base64.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    media_type: str
    data: str


class ModelExample(BaseModel):
    """The inputs of a sample, by their names, with texts about them.

    Attributes:
        task: of the model; in a service the operation that answers.
        texts: of a task that reads none, an empty one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str
    inputs: dict[str, ExampleInput]
    texts: tuple[AnsweredText, ...]


_EXAMPLES = TypeAdapter(list[ModelExample])


def write_own_examples(examples: Sequence[ModelExample], folder: Path) -> None:
    """Store examples in a model's package."""
    (folder / FILE).write_bytes(_EXAMPLES.dump_json(list(examples), indent=1))


def read_own_examples(file: Path) -> list[ModelExample]:
    """Read the examples of a model's package; none if it has no such file.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        return _EXAMPLES.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"examples {str(file)!r} cannot be read ({reason}); deploy again (python -m jobs.serve), which restores a "
            "damaged copy of a registered model"
        ) from error
