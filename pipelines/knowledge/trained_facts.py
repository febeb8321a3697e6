"""Records with which facts a model was trained, in a file beside the model, and so with which stores it can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.opened import FactSource
from pipelines.knowledge.store import FactStore
from pipelines.storage.folder import StorageFolder

FILE = "facts.json"


class TrainedFacts(BaseModel):
    """Identifies the version of a store with which a model was trained.

    Attributes:
        version: of the store.
        hash: of the version's facts (``FactStore.hash_of_facts``).
        encoder: hash of the sentence encoder by whose vectors facts are found; "" for a store without vectors.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: int
    hash: str
    encoder: str

    @classmethod
    def of(cls, source: FactSource) -> Self:
        """Describe the version of a fact store with which a model is trained.

        Raises:
            KnowledgeError: it does not exist any more.
        """
        store = FactStore(source.store)
        return cls(version=source.version, hash=store.hash_of_facts(source.version), encoder=store.encoder)

    def save(self, folder: str | Path) -> Path:
        """Write this description into a model's folder. Returns the file."""
        StorageFolder(folder).write(FILE, self.model_dump_json(indent=1).encode())
        return Path(folder) / FILE

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Read the file in a model's folder; None for a model that was trained without facts.

        Raises:
            KnowledgeError: the file is damaged.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise KnowledgeError(
                f"{str(file)!r} cannot be read ({str(error).splitlines()[0]}); restore the model's folder"
            ) from None

    def check_encoder(self, encoder: str) -> None:
        """Raise an error for a store whose vectors are by another encoder than in training.

        Args:
            encoder: the store's; "" for a store without vectors, which is refused only by what needs vectors.

        Raises:
            KnowledgeError: naming both.
        """
        if self.encoder and encoder and self.encoder != encoder:
            raise KnowledgeError(
                f"the model was trained with facts found by the sentence encoder {self.encoder[:12]}, and the store "
                f"has vectors of {encoder[:12]}; build a store with the encoder of the training (knowledge.encoder), "
                "or train anew with this one"
            )

    def tags(self) -> dict[str, str]:
        """Return the tags that describe the facts of a registered model version."""
        return {"knowledge_version": str(self.version), "knowledge_hash": self.hash, "knowledge_encoder": self.encoder}
