"""The workflow of the job ``serve``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.stored import EmbeddingsManifest
from pipelines.registry.errors import RegistryError
from pipelines.registry.versions import CHAMPION, LocalModel
from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment.address import check_port_free
from pipelines.storage import manifest
from pipelines.storage.folder import StorageFolder
from pipelines.workflows.cluster import connected_to_cluster, starts_own_cluster
from pipelines.workflows.workspace import Workspace, absolute_path

if TYPE_CHECKING:
    from pipelines.registry.registry import Registry


def run(work: Workspace) -> None:
    """Deploy the champion and, on a cluster of this job's own, wait until it is stopped."""
    # A missing model or a port in use is told before a cluster is started.
    if starts_own_cluster(work.config.cluster):
        check_port_free(work.config.serve.host, work.config.serve.port)
    model = None if work.config.serve.model else find_version_to_serve(work)
    _check_vectors_are_of_model(work, model)
    with connected_to_cluster(work.config.cluster) as own:
        if not own:
            print(f"serving at {deploy_model(work, model)}", flush=True)
            return
        with run_service(work, model) as address:
            print(f"serving at {address} (page /, API /docs); Ctrl-C stops it", flush=True)
            threading.Event().wait()


def deploy_model(work: Workspace, model: LocalModel | None = None) -> str:
    """Deploy the champion, or what ``serve.version`` or ``serve.model`` names, and the challenger if
    ``serve.challenger.mode`` wants one; returns the service's address.

    Args:
        model: of ``find_version_to_serve``, if it was called already.

    Raises:
        RegistryError: there is no such version or no challenger, or the challenger is of another kind than the version.
        ServeError: the folder holds no model.
    """
    from pipelines.serve.deployment import deploy

    config = _use_absolute_folder_of_vectors(_add_fact_store_to_settings(work))
    if config.model:
        folder = absolute_path(config.model)
        _warn_of_vectors_of_another_model(work, None)
        return deploy.deploy_service(config, folder, Path(folder).name, "0", "", _print_line)
    model = model or find_version_to_serve(work)
    _warn_of_vectors_of_another_model(work, model)
    return deploy.deploy_service(
        config, model.folder, model.name, model.version, model.digest, _print_line,
        golden=_golden_answers_file(model),
        challenger=None if config.challenger.mode == "off" else _find_compatible_challenger(work.registry, model),
    )  # fmt: skip


def _add_fact_store_to_settings(work: Workspace) -> ServeConfig:
    """Return the settings of the service, with the store of ``knowledge`` if they name none."""
    serve, source = work.config.serve, work.config.knowledge
    if serve.knowledge.store or not source.store:
        return serve
    facts = {"store": absolute_path(source.store), "encoder": source.encoder and absolute_path(source.encoder)}
    return serve.model_copy(update={"knowledge": serve.knowledge.model_copy(update=facts)})


def _use_absolute_folder_of_vectors(config: ServeConfig) -> ServeConfig:
    """Return the settings with an absolute folder of vectors, as replicas have other working directories."""
    if not config.search.embeddings:
        return config
    search = config.search.model_copy(update={"embeddings": absolute_path(config.search.embeddings)})
    return config.model_copy(update={"search": search})


def _check_vectors_are_of_model(work: Workspace, model: LocalModel | None) -> None:
    """Raise an error if the vectors to be searched were computed by another model.

    Args:
        model: None where ``serve.model`` names a folder.

    Raises:
        EmbeddingsError: they are another model's, or there are none.
    """
    config = work.config.serve
    if not config.search.embeddings:
        return
    stored = EmbeddingsManifest.read(StorageFolder(config.search.embeddings))
    if model is None:
        folder = Path(config.model)
        stored.check_model(manifest.folder_digest(folder), f"that in {str(folder)!r}", config.search.embeddings)
    else:
        stored.check_model(model.digest, f"{model.name} version {model.version}", config.search.embeddings)


def _warn_of_vectors_of_another_model(work: Workspace, model: LocalModel | None) -> None:
    """Print a warning if the vectors are of another model: a service updated to a new champion answers everything but
    searches until its vectors exist.
    """
    try:
        _check_vectors_are_of_model(work, model)
    except EmbeddingsError as error:
        _print_line(f"no search: {error}")


def find_version_to_serve(work: Workspace) -> LocalModel:
    """Find the version that ``serve.version`` names, or the champion; it is downloaded and verified.

    Raises:
        RegistryError: there is no such version.
    """
    registry, named = work.registry, work.config.serve.version
    if not named or named == CHAMPION:
        return registry.champion()
    return registry.download((None if named.isdecimal() else registry.find(named)) or registry.version(named))


def _print_line(line: str) -> None:
    print(line, flush=True)


def _find_compatible_challenger(registry: Registry, champion: LocalModel) -> Mapping[str, str]:
    """Find the challenger if it can be asked everything that the champion can."""
    from pipelines.registry.gate.stored import check_same_schema

    model = registry.challenger()
    schema = check_same_schema(model, champion)
    if not schema.passed:
        raise RegistryError(
            f"challenger (version {model.version}) and champion (version {champion.version}) of {model.name!r} cannot "
            f"be asked the same: {schema.measured}; register another kind of model under another name, or set "
            "serve.challenger.mode=off"
        )
    from pipelines.serve.deployment import application

    return application.describe_model_for_replicas(
        model.folder, model.name, model.version, model.digest, _golden_answers_file(model)
    )


def _golden_answers_file(model: LocalModel) -> str:
    return str(model.golden_answers_file or "")


@contextmanager
def run_service(work: Workspace, model: LocalModel | None = None) -> Iterator[str]:
    """Serve while the block runs; ``model`` is as for ``deploy_service``."""
    from pipelines.serve.deployment import deploy

    address = deploy_model(work, model)
    try:
        yield address
    finally:
        deploy.stop_service()
