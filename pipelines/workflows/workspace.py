"""The workspace of a job: its folders, indexes, registry and tracked runs, each opened once and passed on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.feature_cache import FeatureCache
from pipelines.knowledge.opened import FactSource
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.tracker import Tracker
from pipelines.workflows.config import JobConfig
from vlmodel.config import ConfigError

if TYPE_CHECKING:
    from pipelines.registry.registry import Registry


_VERSIONS = "data.json"
_STORE = "(knowledge)"
"""The store's version among those of indexes; no source of a mix can have this name."""


class Workspace:
    """The storage, indexes, registry and tracking that the workflows of one configuration use.

    Args:
        config: the settings of the job.

    Attributes:
        storage: the storage folder, absolute where it is local.
        run_folder: the folder of the run called ``config.name``.
        tars: the folder of ``data.tars``, absolute where it is local.

    Raises:
        ConfigError: the path of the storage folder has letters with a meaning in addresses.
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.storage = _check_storage_setting(absolute_path(config.storage))
        self.run_folder = f"{self.storage}/{config.name}"
        self.tars = absolute_path(config.data.tars)

    def with_changed_settings(self, **settings: Any) -> Workspace:
        """Return a workspace of the same configuration with other values of top-level settings; the registry is
        shared.
        """
        other = Workspace(self.config.model_copy(update=settings))
        same = ("storage", "tracking", "registry")
        if "registry" in self.__dict__ and not settings.keys() & set(same):
            other.__dict__["registry"] = self.registry
        return other

    @cached_property
    def registry(self) -> Registry:
        """The model registry."""
        from pipelines.registry.registry import Registry

        return Registry.open(self.config.tracking, self.storage, self.config.registry)

    @property
    def local_folder(self) -> Path:
        """Return the local folder for the run's small files (processor, answers): the run's own, or one whose name has
        a hash of the storage, so that runs of the same name in two storages do not share it.
        """
        if "://" not in self.config.storage:
            return Path(self.run_folder)
        place = hashlib.sha256(self.config.storage.rstrip("/").encode()).hexdigest()
        return Path("build") / "runs" / f"{self.config.name}-{place[:8]}"

    def track(self, parent: str = "") -> Tracker:
        """Open the tracked run called ``config.name``: the existing one, or a new one.

        Args:
            parent: id of the run that a new one is nested in, "" for none.
        """
        return Tracker.open(self.config.tracking, self.storage, self.config.name, parent=parent)

    def open_tracked_run(self, run_id: str) -> Tracker:
        """Open the tracked run with this id."""
        return Tracker.reopen_run(self.config.tracking, self.storage, run_id)

    def newest_index(self) -> Index:
        """Open the newest index of ``data.tars``.

        Raises:
            DataError: there is none.
        """
        return Index.open(self.tars)

    def index(self, name: str = "") -> Index:
        """Open the index with which the run began, even if there are newer ones; the newest if the run has not begun.

        Args:
            name: of a source of ``data.mix``; "" is ``data.tars``.

        Raises:
            DataError: there is no index, or that version no longer exists.
        """
        folder = absolute_path(self.config.data.mix[name].tars) if name else self.tars
        first = self.index_versions().get(name, "")
        if first and (newest := Index.newest(folder)) != first:
            print(
                f"run {self.config.name} continues with index {first[:12]} of {folder}, with which it began; start "
                f"another run to use the newest, {newest[:12]}",
                flush=True,
            )
        return Index.open(folder, first)

    def index_versions(self) -> dict[str, str]:
        """Return the hashes of the indexes with which the run began: "" is that of ``data.tars``, others are named as
        in ``data.mix``; {} if it has not begun.
        """
        try:
            versions: dict[str, str] = json.loads(StorageFolder(self.run_folder).read(_VERSIONS))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return versions

    def record_index_versions(self, hashes: Mapping[str, str]) -> None:
        """Record the hashes of the indexes with which the run begins, and the version of the store of facts; those
        recorded before stay.
        """
        before = self.index_versions()
        if self.fact_source is not None:
            hashes = {**hashes, _STORE: str(self.fact_source.version)}
        if not hashes.keys() <= before.keys():
            contents = json.dumps({**hashes, **before}, indent=1, sort_keys=True)
            StorageFolder(self.run_folder).write(_VERSIONS, contents.encode())

    def source(
        self, index: Index, split: str, processor: str | Path, features: tuple[FeatureCache, ...] = ()
    ) -> Source:
        """Describe where the samples of a split of ``data.tars`` are read from."""
        return Source(self.tars, index.hash, split, str(processor), features, facts=self.fact_source)

    @cached_property
    def fact_source(self) -> FactSource | None:
        """Return the store of ``knowledge.store``, in the version with which the run began; None if no store is
        configured.

        Raises:
            KnowledgeError: there is none.
        """
        config = self.config.knowledge
        if not config.store:
            return None
        config = config.model_copy(
            update={"store": absolute_path(config.store), "encoder": config.encoder and absolute_path(config.encoder)}
        )
        return FactSource.of(config, int(self.index_versions().get(_STORE, 0)))


def absolute_path(folder: str) -> str:
    """Make a local folder's path absolute, as workers have other working directories; a URI stays unchanged."""
    return folder if "://" in folder else str(Path(folder).absolute())


def _check_storage_setting(storage: str) -> str:
    if letters := "".join(letter for letter in "%?#" if "://" not in storage and letter in storage):
        raise ConfigError(
            f"storage {storage!r}: {' and '.join(letters)} mean something else in the addresses that MLflow "
            "makes of a folder; choose or rename the folder so that its whole path has none of them"
        )
    return storage
