"""Stores model packages in MLflow's artifact store, and verified copies of them in a local cache."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING

from mlflow import MlflowClient, artifacts
from mlflow.models import Model

from pipelines.registry import golden, package
from pipelines.registry.errors import ArtifactError
from pipelines.registry.own_examples import ModelExample
from pipelines.registry.smoke import answer_in_fresh_process
from pipelines.registry.versions import MANIFEST_TAG, LocalModel, ModelVersion
from pipelines.storage import bases
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.store import mlflow_errors
from vlmodel.bases import FOLDER, BaseWeightsError, read_base_weights_list
from vlmodel.processor import Example

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)


class PackageStore:
    """Stores and downloads the packages of models.

    Args:
        storage: the folder that holds the bases of all versions (``pipelines.storage.bases``).
        cache: local folder of downloaded packages and bases.
        smoke_test: whether each package must answer in a fresh process before it is stored.
    """

    def __init__(self, client: MlflowClient, storage: StorageFolder, cache: Path, *, smoke_test: bool = True) -> None:
        self._client, self._storage, self._cache, self._smoke_test = client, storage, cache, smoke_test

    def store_package(
        self,
        model_id: str,
        run_id: str,
        checkpoint: Path,
        example: Example,
        examples: Mapping[str, Example] | None,
        card: str = "",
        shown: Sequence[ModelExample] = (),
    ) -> str:
        """Build and store the package of a checkpoint's inference part, and its base weights unless they are stored.
        Returns the sha256 of the package's manifest.

        Args:
            checkpoint: as ``package.model_folder_without_base_weights`` gives it.
            shown: examples of the model's own data.

        Raises:
            BaseWeightsError: a base is missing or another.
            SmokeError: it does not load or answer in a fresh process; nothing is stored.
        """
        from vlmodel.inference import Predictor

        bases.copy_base_weights_to_storage(checkpoint, self._storage)
        predictor = Predictor.from_pretrained(checkpoint)
        answers = golden.record_golden_answers(predictor, examples or {next(iter(predictor.processor.tasks)): example})
        with TemporaryDirectory() as scratch:
            built = Path(scratch) / "model"
            origin = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
            manifest_hash = package.build_package(checkpoint, built, example, origin, answers, card, shown)
            if self._smoke_test:
                package.link_base_weights(checkpoint, Path(scratch))
                answer_in_fresh_process(built, [example])
            self._client.log_model_artifacts(model_id, str(built))
        return manifest_hash

    def download(self, version: ModelVersion) -> LocalModel:
        """Return a version's files in the local cache, verified each time, and its base weights, verified once in a
        process; a damaged copy is downloaded again.

        Raises:
            ArtifactError: the stored files are not those that were registered, or a base is missing or another.
        """
        expected = _manifest_hash(version)
        local = self._cache / version.name / f"{version.version}-{expected[:16]}"
        if local.is_dir():
            try:
                package.verify_package(local, expected)
            except ArtifactError:
                log.warning("the local copy of %s version %s is damaged; downloading", version.name, version.version)
                shutil.rmtree(local)
        if not local.is_dir():
            self._download_package(version, local, expected)
        folder = package.inference_folder(local)
        with _convert_base_errors(version):
            bases.download_base_weights(read_base_weights_list(folder), self._storage, self._cache / FOLDER)
        return LocalModel(version.name, version.version, version.run_id, version.tags, local, folder)

    def verify_stored(self, version: ModelVersion) -> None:
        """Compare the stored files and base weights of a version (not the local copies) with what was registered.

        Raises:
            ArtifactError: they differ.
        """
        with TemporaryDirectory() as scratch:
            fetched = self._fetch_and_verify(version, Path(scratch), _manifest_hash(version))
            with _convert_base_errors(version):
                bases.verify_base_weights(read_base_weights_list(package.inference_folder(fetched)), self._storage)

    def _download_package(self, version: ModelVersion, local: Path, expected: str) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(prefix=".download-", dir=local.parent))
        try:
            fetched = self._fetch_and_verify(version, scratch, expected)
            try:
                fetched.rename(local)
            except OSError:
                # Another process may have downloaded it; its copy must be valid.
                package.verify_package(local, expected)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _fetch_and_verify(self, version: ModelVersion, scratch: Path, expected: str) -> Path:
        """Download the stored files of a version to ``scratch`` and verify them."""
        package.hide_mlflow_progress_bar()
        with mlflow_errors(f"download version {version.version} of model {version.name!r}"):
            uri = self._client.tracking_uri
            address = self._client.get_model_version_download_uri(version.name, version.version)
            fetched = Path(
                artifacts.download_artifacts(
                    artifact_uri=address, dst_path=str(scratch), tracking_uri=uri, registry_uri=uri
                )
            )
        package.verify_package(fetched, expected)
        return fetched


@contextmanager
def _convert_base_errors(version: ModelVersion) -> Iterator[None]:
    try:
        yield
    except BaseWeightsError as error:
        raise ArtifactError(f"version {version.version} of model {version.name!r}: {error}") from error


def _manifest_hash(version: ModelVersion) -> str:
    expected = version.tags.get(MANIFEST_TAG)
    if expected is None:
        raise ArtifactError(
            f"version {version.version} of model {version.name!r} has no tag {MANIFEST_TAG}, so its files cannot be "
            "verified; register the model again with this program"
        )
    return expected
