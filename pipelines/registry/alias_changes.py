"""Promotes versions and rolls them back by changing the registry's aliases, one change at a time.

MLflow's aliases have no compare-and-swap, the last writer wins; so they are changed under a lock. Setting ``champion``
is the write that counts: what is written before it has no effect without it, and what comes after it is completed by
any later change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.registry.errors import ChampionChangedError, RegistryError
from pipelines.registry.package_store import PackageStore
from pipelines.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    PROMOTION_TAG,
    ROLLBACK_TAG,
    LocalModel,
    ModelVersion,
    ModelVersions,
)
from pipelines.storage.lock import hold_lock
from pipelines.tracking.store import mlflow_errors

log = logging.getLogger(__name__)

_LOCK_WAIT_S = 120


class AliasManager:
    """Changes the aliases (champion, previous, challenger) of one registered model.

    Args:
        lock: a file that all processes which change aliases can lock.
    """

    def __init__(self, versions: ModelVersions, packages: PackageStore, lock: Path) -> None:
        self._versions, self._packages, self._lock = versions, packages, lock
        self._client, self._name = versions.client, versions.name

    def promote(self, version: str, reason: str, over: str | None) -> LocalModel:
        """Make a version the champion; the current champion becomes ``previous``. A repetition changes nothing.

        Args:
            version: its number.
            reason: why, recorded in the version's tags.
            over: the champion that it was compared with, None for none.

        Raises:
            RegistryError: there is no such version.
            ChampionChangedError: another version has become the champion meanwhile; nothing is changed.
            ArtifactError: its files are not those that were registered; the champion stays.
        """
        model = self._packages.download(self._versions.version(version))
        with self._locked_aliases(f"promote version {version}") as aliases:
            champion = aliases.get(CHAMPION)
            if champion not in (version, over):
                raise ChampionChangedError(
                    f"version {version} of model {self._name!r} was judged against "
                    f"{_describe_version(over)}, and now {_describe_version(champion)} is the champion; judge it again"
                )
            if champion != version:
                self._set_version_tag(version, PROMOTION_TAG, {"reason": reason, "former": champion})
                self._client.set_registered_model_alias(self._name, CHAMPION, version)
                log.info("%s version %s is the champion: %s", self._name, version, reason)
            model = replace(model, tags=self._versions.version(version).tags)
            self._update_other_aliases(model, aliases)
        return model

    def rollback(self, reason: str, of: str) -> LocalModel:
        """Replace the champion, version ``of``, by the champion before it. A repetition changes nothing; with the new
        champion's number it goes back further.

        Args:
            reason: why, recorded in the tags of version ``of``.
            of: the champion to replace.

        Raises:
            RegistryError: there is no champion, or none before it.
            ChampionChangedError: another version is the champion meanwhile; nothing is changed.
            ArtifactError: the previous champion's files are not those that were registered; the champion stays.
        """
        previous = self._versions.version(of).previous_champion
        if previous is None:
            raise RegistryError(
                f"version {of} of model {self._name!r} took no champion's place; promote another version"
            )
        model = self._packages.download(self._versions.version(previous))
        with self._locked_aliases(f"roll back version {of}") as aliases:
            champion = aliases.get(CHAMPION)
            if champion not in (previous, of):
                raise ChampionChangedError(
                    f"version {of} of model {self._name!r} was to be rolled back, and now "
                    f"{_describe_version(champion)} is the champion; look at it first"
                )
            if champion == of:
                self._set_version_tag(of, ROLLBACK_TAG, {"reason": reason, "to": previous})
                self._client.set_registered_model_alias(self._name, CHAMPION, previous)
                log.info("%s version %s is the champion again: %s", self._name, previous, reason)
            self._update_other_aliases(model, aliases)
        return model

    def set_challenger(self, version: str, *, is_usable: bool) -> None:
        """Give a version the alias ``challenger``, or remove this alias from it if the version is not usable."""
        with self._locked_aliases(f"name version {version} the challenger") as aliases:
            if is_usable and aliases.get(CHAMPION) != version:
                self._client.set_registered_model_alias(self._name, CHALLENGER, version)
            elif aliases.get(CHALLENGER) == version:
                self._client.delete_registered_model_alias(self._name, CHALLENGER)

    @contextmanager
    def _locked_aliases(self, action: str) -> Iterator[dict[str, str]]:
        """Lock the aliases against other processes while the block runs, and yield them."""
        busy = RegistryError(
            f"'{self._lock}' has been locked for {_LOCK_WAIT_S} s; see which process holds it (lsof), end it, try again"
        )
        with hold_lock(self._lock, busy, _LOCK_WAIT_S), mlflow_errors(f"{action} of model {self._name!r}"):
            yield self._versions.aliases()

    def _update_other_aliases(self, champion: ModelVersion, aliases: Mapping[str, str]) -> None:
        """Set the aliases ``previous`` and ``challenger`` to the versions that belong to a new champion."""
        if champion.previous_champion is not None:
            self._client.set_registered_model_alias(self._name, PREVIOUS, champion.previous_champion)
        elif PREVIOUS in aliases:
            self._client.delete_registered_model_alias(self._name, PREVIOUS)
        if aliases.get(CHALLENGER) == champion.version:
            self._client.delete_registered_model_alias(self._name, CHALLENGER)

    def _set_version_tag(self, version: str, tag: str, facts: Mapping[str, str | None]) -> None:
        record = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self._client.set_model_version_tag(self._name, version, tag, json.dumps(record))


def _describe_version(version: str | None) -> str:
    return f"version {version}" if version is not None else "no version"
