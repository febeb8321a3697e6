"""The model registry: versions with their scores and hashes, and the aliases that say which one is in use.

``champion`` is the version that serves, ``previous`` the one before it, ``challenger`` a newer one that is fit to be
used and has not been shown to be better. MLflow's aliases know no compare-and-swap, the last writer wins; so they are
changed under a lock. Setting ``champion`` is the one write that counts: what is written before says nothing
without it, and what comes after it is completed by any later change.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Self

from mlflow import MlflowClient, artifacts
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion as StoredVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipelines.registry import golden, manifest, package
from pipelines.registry.config import RegistryConfig
from pipelines.registry.errors import ArtifactError, ChampionChangedError, RegistryError
from pipelines.registry.smoke import answers_in_fresh_process
from pipelines.registry.version_score import VersionScore
from pipelines.storage.lock import locked
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.store import mlflow_errors, open_store
from pipelines.tracking.tracker import RUN_TAG
from vlmodel.inference import Predictor

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MANIFEST_TAG, MODEL_TAG = "manifest_sha256", "model_sha256"
PROMOTION_TAG, ROLLBACK_TAG = "promotion", "rollback"

_LOCK_WAIT_S = 120


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry.

    Attributes:
        tags: of the version, its score among them.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def score(self) -> VersionScore | None:
        """What its evaluation said, None for a version without."""
        return VersionScore.from_tags(self.tags)

    @property
    def previous_champion(self) -> str | None:
        """The champion that it took the place of; None where there was none."""
        previous_champion: str | None = json.loads(self.tags.get(PROMOTION_TAG, "{}")).get("former")
        return previous_champion

    @property
    def rollback_reason(self) -> str:
        """Why it was rolled back; "" where it was not."""
        reason: str = json.loads(self.tags.get(ROLLBACK_TAG, "{}")).get("reason", "")
        return reason


@dataclass(frozen=True)
class LocalModel(ModelVersion):
    """A version whose files are here and are those that were registered.

    Attributes:
        package: the MLflow model.
        folder: the part of it that ``Predictor.from_pretrained`` loads.
    """

    package: Path
    folder: Path

    @property
    def digest(self) -> str:
        """``manifest.digest`` of ``folder`` when it was registered."""
        return self.tags[MODEL_TAG]

    @property
    def golden(self) -> Path | None:
        """The file of its golden answers; None for a version that was registered without."""
        file = self.package / golden.GOLDEN
        return file if file.is_file() else None


class Registry:
    """One registered model."""

    def __init__(self, client: MlflowClient, name: str, cache: Path, lock: Path, *, smoke_test: bool = True) -> None:
        self.name, self._client, self._cache, self._lock = name, client, cache, lock
        self._smoke_test = smoke_test

    @classmethod
    def open(cls, tracking: TrackingConfig, storage: str, config: RegistryConfig | None = None) -> Self:
        """The registry beside the runs.

        Raises:
            TrackingError: the server cannot be reached.
            RegistryError: there is no local folder for downloads.
        """
        config = config or RegistryConfig()
        if not config.cache and "://" in storage:
            raise RegistryError(f"storage {storage!r} is not a local folder; set registry.cache to one for downloads")
        cache = Path(config.cache or Path(storage) / "models").absolute()
        client = open_store(tracking, storage)
        # Where all who promote see it: the storage folder is shared by all nodes.
        lock = (cache if "://" in storage else Path(storage).absolute()) / f".{tracking.model_name}.lock"
        return cls(client, tracking.model_name, cache, lock, smoke_test=config.smoke_test)

    def log_model(
        self,
        run_id: str,
        checkpoint: Path,
        example: tuple[bytes, str],
        score: VersionScore,
        step: int = 0,
        examples: Mapping[str, tuple[bytes, str]] | None = None,
    ) -> ModelVersion:
        """Store the inference part of a checkpoint with its run and register it as a new version.

        The same files of the same run give the same version again, so that a job that died may repeat this.

        Args:
            run_id: the MLflow run that made it.
            checkpoint: folder with what ``VLModel`` and ``VLProcessor`` saved.
            example: (encoded image, question), the input example and the input of the smoke test.
            score: of these weights.
            step: at which the checkpoint was taken.
            examples: one of each task of the model, for its golden answers; ``example``, of its first, if not given.

        Raises:
            SmokeError: it does not load or answer in a fresh process; nothing is registered.
            TrackingError: the server refused it.
        """
        fingerprint = manifest.digest(checkpoint)
        with mlflow_errors(f"register model {self.name!r}"):
            self._create_model()
            for known in self._client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'"):
                if known.tags.get(MODEL_TAG) == fingerprint:
                    return _version(known)
            run = self._client.get_run(run_id)
            run_name = run.data.tags.get(RUN_TAG, run.info.run_name or "")
            tags = {**score.to_tags(), "run_name": run_name, "step": str(step)}
            stored = self._client.create_logged_model(
                run.info.experiment_id, self.name, source_run_id=run_id, tags=tags, model_type="vlmodel"
            )
            try:
                tags[MANIFEST_TAG] = self._store(stored.model_id, run_id, checkpoint, example, examples)
                tags[MODEL_TAG] = fingerprint
                self._client.finalize_logged_model(stored.model_id, "READY")
            except BaseException:
                self._client.finalize_logged_model(stored.model_id, "FAILED")
                raise
            self._client.log_outputs(run_id, [LoggedModelOutput(stored.model_id, step)])
            version = self._client.create_model_version(
                self.name, stored.artifact_location, run_id, tags=tags, model_id=stored.model_id
            )
        log.info("registered %s version %s", self.name, version.version)
        return _version(version)

    def find(self, alias: str = CHAMPION) -> ModelVersion | None:
        """The version with the alias, None where there is none."""
        with mlflow_errors(f"look up model {self.name!r}"):
            aliases = self._aliases()
            if alias not in aliases:
                return None
            return _version(self._client.get_model_version(self.name, aliases[alias]))

    def version(self, version: str) -> ModelVersion:
        """The version of this number.

        Raises:
            RegistryError: there is none.
        """
        try:
            return _version(self._client.get_model_version(self.name, version))
        except MlflowException as error:
            raise RegistryError(
                f"model {self.name!r} has no version {version!r}; it has: {', '.join(self._numbers()) or 'none'}"
            ) from error

    def newest(self, run_name: str) -> ModelVersion | None:
        """The newest version that a training run of this name registered, None where there is none."""
        with mlflow_errors(f"look up versions of model {self.name!r}"):
            query = f"name = '{self.name}' and tags.run_name = '{run_name}'"
            found = [_version(stored) for stored in self._client.search_model_versions(query)]
        return max(found, key=lambda version: int(version.version), default=None)

    def champion(self) -> LocalModel:
        """The version in use, downloaded and verified.

        Raises:
            RegistryError: there is no champion.
            ArtifactError: its files are not those that were registered.
        """
        return self._download_alias(
            CHAMPION, "train one (python -m jobs.train) and promote it (python -m jobs.promote)"
        )

    def challenger(self) -> LocalModel:
        """The version with the alias ``challenger``, downloaded and verified.

        Raises:
            RegistryError: there is none.
            ArtifactError: its files are not those that were registered.
        """
        return self._download_alias(
            CHALLENGER,
            "judge a newer version (python -m jobs.promote), which is made the challenger if it is fit to be used and "
            "not shown to be better, or set serve.challenger.mode=off",
        )

    def _download_alias(self, alias: str, remedy: str) -> LocalModel:
        found = self.find(alias)
        if found is None:
            raise RegistryError(f"model {self.name!r} has no {alias}; {remedy}")
        return self.download(found)

    def download(self, version: ModelVersion) -> LocalModel:
        """The files of a version in the local cache, verified each time; a damaged copy is downloaded again.

        Raises:
            ArtifactError: what the store holds is not what was registered.
        """
        expected = self._expected(version)
        place = self._cache / self.name / f"{version.version}-{expected[:16]}"
        if place.is_dir():
            try:
                manifest.verify(place, expected)
            except ArtifactError:
                log.warning("the local copy of %s version %s is damaged; downloading", self.name, version.version)
                shutil.rmtree(place)
        if not place.is_dir():
            self._download(version, place, expected)
        folder = package.inference_folder(place)
        return LocalModel(version.name, version.version, version.run_id, version.tags, place, folder)

    def verify_stored(self, version: ModelVersion) -> None:
        """Compare what the store holds now, not the local copy, with what was registered.

        Raises:
            ArtifactError: it differs.
        """
        with TemporaryDirectory() as scratch:
            self._fetch(version, Path(scratch), self._expected(version))

    def promote(self, version: str, reason: str, over: str | None) -> LocalModel:
        """Make a version the champion; the former champion becomes ``previous``. Repeating it changes nothing.

        Args:
            version: its number.
            reason: why, for the record in the version's tags.
            over: the champion that it was judged against, None for none.

        Raises:
            RegistryError: there is no such version.
            ChampionChangedError: another version has become the champion meanwhile; nothing is changed.
            ArtifactError: its files are not those that were registered; the champion stays.
        """
        model = self.download(self.version(version))
        with self._locked_aliases(f"promote version {version}") as aliases:
            champion = aliases.get(CHAMPION)
            if champion not in (version, over):
                raise ChampionChangedError(
                    f"version {version} of model {self.name!r} was judged against "
                    f"{_called(over)}, and now {_called(champion)} is the champion; judge it again"
                )
            if champion != version:
                self._record(version, PROMOTION_TAG, {"reason": reason, "former": champion})
                self._client.set_registered_model_alias(self.name, CHAMPION, version)
                log.info("%s version %s is the champion: %s", self.name, version, reason)
            model = replace(model, tags=self.version(version).tags)
            self._update_other_aliases(model, aliases)
        return model

    def rollback(self, reason: str, of: str) -> LocalModel:
        """Make the champion that ``of`` took the place of the champion again. Repeating it changes nothing; with the
        new champion's number it goes back further.

        Args:
            reason: why, for the record in the tags of the version that is given up.
            of: the version to give up.

        Raises:
            RegistryError: there is no champion, or none before it.
            ChampionChangedError: another version is the champion meanwhile; nothing is changed.
            ArtifactError: the former champion's files are not those that were registered; the champion stays.
        """
        previous_champion = self.version(of).previous_champion
        if previous_champion is None:
            raise RegistryError(
                f"version {of} of model {self.name!r} took no champion's place; promote another version"
            )
        model = self.download(self.version(previous_champion))
        with self._locked_aliases(f"roll back version {of}") as aliases:
            champion = aliases.get(CHAMPION)
            if champion not in (previous_champion, of):
                raise ChampionChangedError(
                    f"version {of} of model {self.name!r} was to be rolled back, and now {_called(champion)} is the "
                    "champion; look at it first"
                )
            if champion == of:
                self._record(of, ROLLBACK_TAG, {"reason": reason, "to": previous_champion})
                self._client.set_registered_model_alias(self.name, CHAMPION, previous_champion)
                log.info("%s version %s is the champion again: %s", self.name, previous_champion, reason)
            self._update_other_aliases(model, aliases)
        return model

    def set_challenger(self, version: str, *, is_usable: bool) -> None:
        """Make a version the ``challenger``, or, where it is not fit to be, see that it is not."""
        with self._locked_aliases(f"name version {version} the challenger") as aliases:
            if is_usable and aliases.get(CHAMPION) != version:
                self._client.set_registered_model_alias(self.name, CHALLENGER, version)
            elif aliases.get(CHALLENGER) == version:
                self._client.delete_registered_model_alias(self.name, CHALLENGER)

    @contextmanager
    def _locked_aliases(self, action: str) -> Iterator[dict[str, str]]:
        """The aliases, which nobody else changes while the block runs."""
        busy = RegistryError(
            f"'{self._lock}' has been locked for {_LOCK_WAIT_S} s; see which process holds it (lsof), end it, try again"
        )
        with locked(self._lock, busy, _LOCK_WAIT_S), mlflow_errors(f"{action} of model {self.name!r}"):
            yield self._aliases()

    def _update_other_aliases(self, champion: ModelVersion, aliases: Mapping[str, str]) -> None:
        """Make the other aliases those that belong to a champion."""
        if champion.previous_champion is not None:
            self._client.set_registered_model_alias(self.name, PREVIOUS, champion.previous_champion)
        elif PREVIOUS in aliases:
            self._client.delete_registered_model_alias(self.name, PREVIOUS)
        if aliases.get(CHALLENGER) == champion.version:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)

    def _record(self, version: str, tag: str, facts: Mapping[str, str | None]) -> None:
        record = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self._client.set_model_version_tag(self.name, version, tag, json.dumps(record))

    def _store(
        self,
        model_id: str,
        run_id: str,
        checkpoint: Path,
        example: tuple[bytes, str],
        examples: Mapping[str, tuple[bytes, str]] | None,
    ) -> str:
        predictor = Predictor.from_pretrained(checkpoint)
        answers = golden.create(predictor, examples or {next(iter(predictor.processor.tasks)): example})
        with TemporaryDirectory() as scratch:
            built = Path(scratch) / "model"
            origin = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
            manifest_hash = package.build(checkpoint, built, example, origin, answers)
            if self._smoke_test:
                answers_in_fresh_process(built, [example])
            self._client.log_model_artifacts(model_id, str(built))
        return manifest_hash

    def _expected(self, version: ModelVersion) -> str:
        expected = version.tags.get(MANIFEST_TAG)
        if expected is None:
            raise ArtifactError(
                f"version {version.version} of model {self.name!r} has no tag {MANIFEST_TAG}, so its files cannot be "
                "verified; register the model again with this program"
            )
        return expected

    def _download(self, version: ModelVersion, place: Path, expected: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=".download-", dir=place.parent))
        try:
            got = self._fetch(version, scratch, expected)
            try:
                got.rename(place)
            except OSError:
                # Another process may have been faster; its copy must be as good.
                manifest.verify(place, expected)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _fetch(self, version: ModelVersion, scratch: Path, expected: str) -> Path:
        """The stored files of a version in ``scratch``, verified."""
        with mlflow_errors(f"download version {version.version} of model {self.name!r}"):
            address = self._client.get_model_version_download_uri(self.name, version.version)
            uri = self._client.tracking_uri
            with package.no_progress_bar():
                got = artifacts.download_artifacts(
                    artifact_uri=address, dst_path=str(scratch), tracking_uri=uri, registry_uri=uri
                )
        manifest.verify(Path(got), expected)
        return Path(got)

    def _create_model(self) -> None:
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self) -> dict[str, str]:
        try:
            aliases = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {alias: str(version) for alias, version in aliases.items()}

    def _numbers(self) -> list[str]:
        return [str(found.version) for found in self._client.search_model_versions(f"name = '{self.name}'")]


def _called(version: str | None) -> str:
    return f"version {version}" if version is not None else "no version"


def _version(stored: StoredVersion) -> ModelVersion:
    return ModelVersion(stored.name, str(stored.version), stored.run_id or "", dict(stored.tags))
