"""The model registry: registers versions, and gives access to their files and aliases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from pipelines.knowledge.trained_facts import TrainedFacts
from pipelines.registry import package
from pipelines.registry.alias_changes import AliasManager
from pipelines.registry.config import RegistryConfig
from pipelines.registry.errors import RegistryError
from pipelines.registry.own_examples import ModelExample
from pipelines.registry.package_store import PackageStore
from pipelines.registry.version_score import VersionScore
from pipelines.registry.versions import (
    CHALLENGER,
    CHAMPION,
    MANIFEST_TAG,
    MODEL_TAG,
    LocalModel,
    ModelVersion,
    ModelVersions,
)
from pipelines.storage import manifest
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.store import mlflow_errors, open_store
from pipelines.tracking.tracker import RUN_TAG
from vlmodel.processor import Example

log = logging.getLogger(__name__)

_DESCRIPTION = (
    "Versions of a model. The version with the alias `champion` is the one that is served; `previous` "
    "was served before it, and `challenger` may be asked beside it."
)
_MAX_DESCRIPTION = 5000


class Registry(ModelVersions):
    """One registered model. It has the lookups of ``ModelVersions``, ``download`` and ``verify_stored`` of
    ``PackageStore``, and ``promote``, ``rollback`` and ``set_challenger`` of ``AliasManager``.
    """

    def __init__(
        self,
        client: MlflowClient,
        name: str,
        storage: StorageFolder,
        cache: Path,
        lock: Path,
        *,
        smoke_test: bool = True,
    ) -> None:
        super().__init__(client, name)
        self._packages = PackageStore(client, storage, cache, smoke_test=smoke_test)
        self.download, self.verify_stored = self._packages.download, self._packages.verify_stored
        changes = AliasManager(self, self._packages, lock)
        self.promote, self.rollback, self.set_challenger = changes.promote, changes.rollback, changes.set_challenger

    @classmethod
    def open(cls, tracking: TrackingConfig, storage: str, config: RegistryConfig | None = None) -> Self:
        """Open the registry of a model in the tracking store.

        Raises:
            TrackingError: the server cannot be reached.
            RegistryError: there is no local folder for downloads.
        """
        config = config or RegistryConfig()
        if not config.cache and "://" in storage:
            raise RegistryError(f"storage {storage!r} is not a local folder; set registry.cache to one for downloads")
        cache = Path(config.cache or Path(storage) / "models").absolute()
        client = open_store(tracking, storage)
        # In the storage folder, which all nodes share.
        lock = (cache if "://" in storage else Path(storage).absolute()) / f".{tracking.model_name}.lock"
        return cls(client, tracking.model_name, StorageFolder(storage), cache, lock, smoke_test=config.smoke_test)

    def log_model(
        self,
        run_id: str,
        checkpoint: Path,
        example: Example,
        score: VersionScore,
        step: int = 0,
        examples: Mapping[str, Example] | None = None,
        card: str = "",
        shown: Sequence[ModelExample] = (),
    ) -> ModelVersion:
        """Store the inference part of a checkpoint with its run and register it as a new version. Frozen weights are
        stored once for all versions that share them.

        Repeating it with the same files of the same run returns the same version, as after a restart.

        Args:
            run_id: the MLflow run that trained it.
            checkpoint: folder that ``VLModel`` and ``VLProcessor`` saved.
            example: with one text, the input example and the input of the smoke test.
            score: of these weights.
            step: of the checkpoint.
            examples: one for each task of the model, for its golden answers; by default ``example``, for the first.
            card: Markdown to store beside the model.
            shown: examples of the model's own data, for the page of a service.

        Raises:
            BaseWeightsError: frozen weights that it is built on are missing or others.
            SmokeError: it does not load or answer in a fresh process; nothing is registered.
            TrackingError: the server refused it.
        """
        with (
            package.model_folder_without_base_weights(checkpoint) as trained,
            mlflow_errors(f"register model {self.name!r}"),
        ):
            fingerprint = manifest.folder_digest(trained)
            self._create_registered_model()
            for registered in self.client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'"):
                if registered.tags.get(MODEL_TAG) == fingerprint:
                    return ModelVersion.from_mlflow(registered)
            run = self.client.get_run(run_id)
            run_name = run.data.tags.get(RUN_TAG, run.info.run_name or "")
            facts = TrainedFacts.load(trained)
            tags = {**score.to_tags(), **(facts.tags() if facts else {}), "run_name": run_name, "step": str(step)}
            logged = self.client.create_logged_model(
                run.info.experiment_id, self.name, source_run_id=run_id, tags=tags, model_type="vlmodel"
            )
            try:
                tags[MANIFEST_TAG] = self._packages.store_package(
                    logged.model_id, run_id, trained, example, examples, card, shown
                )
                tags[MODEL_TAG] = fingerprint
                self.client.finalize_logged_model(logged.model_id, "READY")
            except BaseException:
                self.client.finalize_logged_model(logged.model_id, "FAILED")
                raise
            self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
            version = self.client.create_model_version(
                self.name, logged.artifact_location, run_id, tags=tags, model_id=logged.model_id,
                description=card[:_MAX_DESCRIPTION],
            )  # fmt: skip
        log.info("registered %s version %s", self.name, version.version)
        return ModelVersion.from_mlflow(version)

    def champion(self) -> LocalModel:
        """Return the champion, which is the version in use, downloaded and verified.

        Raises:
            RegistryError: there is no champion.
            ArtifactError: its files are not those that were registered.
        """
        return self._download_aliased_version(
            CHAMPION, "train one (python -m jobs.train) and promote it (python -m jobs.promote)"
        )

    def challenger(self) -> LocalModel:
        """Return the version with the alias ``challenger``, downloaded and verified.

        Raises:
            RegistryError: there is none.
            ArtifactError: its files are not those that were registered.
        """
        return self._download_aliased_version(
            CHALLENGER,
            "judge a newer version (python -m jobs.promote), which is made the challenger if it is fit to be used and "
            "not shown to be better, or set serve.challenger.mode=off",
        )

    def _download_aliased_version(self, alias: str, remedy: str) -> LocalModel:
        version = self.find(alias)
        if version is None:
            raise RegistryError(f"model {self.name!r} has no {alias}; {remedy}")
        return self.download(version)

    def _create_registered_model(self) -> None:
        try:
            self.client.create_registered_model(self.name, description=_DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
