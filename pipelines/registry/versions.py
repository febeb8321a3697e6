"""Looks up versions of one registered model, and the aliases that say which version is in use.

``champion`` is the version that serves, ``previous`` the one before it, ``challenger`` a newer one that is usable and
not shown to be better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.registry import golden
from pipelines.registry.errors import RegistryError
from pipelines.registry.version_score import VersionScore
from pipelines.tracking.store import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion


CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MANIFEST_TAG, MODEL_TAG = "manifest_sha256", "model_sha256"
PROMOTION_TAG, ROLLBACK_TAG = "promotion", "rollback"


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model.

    Attributes:
        tags: of the version, among them its score.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]

    @classmethod
    def from_mlflow(cls, version: MlflowVersion) -> ModelVersion:
        return ModelVersion(version.name, str(version.version), version.run_id or "", dict(version.tags))

    @property
    def score(self) -> VersionScore | None:
        """The evaluation result of this version; None if it has none."""
        return VersionScore.from_tags(self.tags)

    @property
    def previous_champion(self) -> str | None:
        """The champion that this version replaced; None if there was none."""
        previous: str | None = json.loads(self.tags.get(PROMOTION_TAG, "{}")).get("former")
        return previous

    @property
    def rollback_reason(self) -> str:
        """Why this version was rolled back; "" if it was not."""
        reason: str = json.loads(self.tags.get(ROLLBACK_TAG, "{}")).get("reason", "")
        return reason


@dataclass(frozen=True)
class LocalModel(ModelVersion):
    """A version whose files are downloaded and verified.

    Attributes:
        package: the MLflow model.
        folder: the part of it that ``Predictor.from_pretrained`` loads.
    """

    package: Path
    folder: Path

    @property
    def digest(self) -> str:
        """The digest (``manifest.folder_digest``) of the model's folder when it was registered."""
        return self.tags[MODEL_TAG]

    @property
    def golden_answers_file(self) -> Path | None:
        """The file with the version's golden answers; None if it was registered without any."""
        file = self.package / golden.GOLDEN
        return file if file.is_file() else None


class ModelVersions:
    """Looks up versions of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self.client, self.name = client, name

    def find(self, alias: str = CHAMPION) -> ModelVersion | None:
        """Find the version that has an alias; None if no version has it."""
        with mlflow_errors(f"look up model {self.name!r}"):
            number = self.aliases().get(alias)
            return ModelVersion.from_mlflow(self.client.get_model_version(self.name, number)) if number else None

    def version(self, version: str) -> ModelVersion:
        """Look up the model version with this number.

        Raises:
            RegistryError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return ModelVersion.from_mlflow(self.client.get_model_version(self.name, version))
        except MlflowException as error:
            numbers = [str(v.version) for v in self.client.search_model_versions(f"name = '{self.name}'")]
            raise RegistryError(
                f"model {self.name!r} has no version {version!r}; it has: {', '.join(numbers) or 'none'}"
            ) from error

    def newest_version_of_run(self, run_name: str) -> ModelVersion | None:
        """Return the newest version that a training run of this name registered; None if there is none."""
        with mlflow_errors(f"look up versions of model {self.name!r}"):
            query = f"name = '{self.name}' and tags.run_name = '{run_name}'"
            versions = [ModelVersion.from_mlflow(version) for version in self.client.search_model_versions(query)]
        return max(versions, key=lambda version: int(version.version), default=None)

    def aliases(self) -> dict[str, str]:
        """Map each alias to its version number."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: str(version) for alias, version in aliases.items()}
