"""Stores facts in one Lance table, one row for each fact; every change makes a new version.

    facts.lance/   the table: id, head, relation, tail, text, source, valid, fault, split, vector
    .lock          held by a writer on this machine, or on a file system with POSIX locks

Lance (github.com/lance-format/lance) commits a change by one rename, so a writer that is killed leaves the version
before it. Rows keep their row id over updates, and the version of their last change, so that a reader of an earlier
version reads only what changed (``snapshot.py``). Lines that are no facts are rows too, with ``valid`` false and a
typed ``fault``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.knowledge.errors import KnowledgeError, UnknownFactError
from pipelines.knowledge.triples import BadLine, derive_fact_id
from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock
from vlmodel.facts import Fact

if TYPE_CHECKING:
    import lance
    from numpy.typing import NDArray

TABLE = "facts.lance"
CHANGED = "_row_last_updated_at_version"
"""Lance's column of the version in which a row was changed last."""
TEXTS = ("id", "head", "relation", "tail", "text", "source")
"""The columns of a ``Fact``."""

_FORMAT = b"1"
_LOCK_S = 60.0
_CONFLICTS = 20


def arrow_schema_of_facts(encoder: str, width: int) -> pa.Schema:
    """The columns of the table in which facts are stored.

    Args:
        encoder: hash of the sentence encoder; "" for a store without vectors.
        width: F, numbers of a vector.
    """
    fields = [pa.field(name, pa.string()) for name in TEXTS]
    fields += [pa.field("valid", pa.bool_()), pa.field("fault", pa.string()), pa.field("split", pa.string())]
    if encoder:
        fields.append(pa.field("vector", pa.list_(pa.float32(), width)))
    return pa.schema(fields, {b"format": _FORMAT, b"encoder": encoder.encode(), b"width": str(width).encode()})


class FactStore:
    """A store of facts in a folder, on any file system that Lance supports (local, s3://, gs://, az://).

    Attributes:
        encoder: hash of the encoder whose vectors it has; "" for a store without vectors.

    Raises:
        KnowledgeError: pylance is not installed, there is no store, or it is of another version of this program.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        table = self._open()
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != _FORMAT:
            raise KnowledgeError(
                f"{self.uri} is a Lance table that this version did not write; name another folder in knowledge.store, "
                "or build the store anew (python -m jobs.knowledge)"
            )
        self.encoder, self.width = metadata[b"encoder"].decode(), int(metadata[b"width"])

    @classmethod
    def create(cls, uri: str, encoder: str, width: int) -> FactStore:
        """Open the store in a folder, or create it if there is none.

        Raises:
            KnowledgeError: there is one with vectors of another encoder.
        """
        lance = import_lance()
        if not cls.exists(uri):
            with _serialize_writers(uri):
                if not cls.exists(uri):
                    table = arrow_schema_of_facts(encoder, width).empty_table()
                    lance.write_dataset(table, _table_address(uri), enable_stable_row_ids=True)
        store = cls(uri)
        store.check_encoder(encoder)
        return store

    @staticmethod
    def exists(uri: str) -> bool:
        return bool(StorageFolder(f"{uri.rstrip('/')}/{TABLE}").subfolders())

    def check_encoder(self, encoder: str) -> None:
        """Raise an error if an encoder is not the one that computed the store's vectors.

        Raises:
            KnowledgeError: naming both.
        """
        if encoder != self.encoder:
            one, other = (name[:12] or "none" for name in (self.encoder, encoder))
            raise KnowledgeError(
                f"the vectors of {self.uri} are of the sentence encoder {one}, and knowledge.encoder is {other}; name "
                "the encoder with which the store was built, or build another store"
            )

    @property
    def version(self) -> int:
        """The number of the newest version; it grows with every change."""
        return int(self._open().version)

    def table(self, version: int = 0) -> lance.LanceDataset:
        """Open the Lance table of a version, the newest by default.

        Raises:
            KnowledgeError: the version does not exist, or was cleaned up.
        """
        return self._open(version)

    def texts_by_id(self) -> dict[str, str]:
        """Map the id of each valid fact to its text."""
        table = self._open().to_table(columns=["id", "text"], filter="valid")
        return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def hash_of_facts(self, version: int = 0) -> str:
        """Hash (SHA-256) the facts of a version in the order of their ids: stores with the same facts have the same
        hash.
        """
        table = self._open(version).to_table(columns=["id", "text"], filter="valid").sort_by("id")
        digest = hashlib.sha256(self.encoder.encode())
        for fact_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            digest.update(f"{fact_id}\0{text}\0".encode())
        return digest.hexdigest()

    def put(self, facts: Sequence[Fact], vectors_MF: NDArray[np.float32] | None, splits: Sequence[str] = ()) -> int:
        """Add facts, replacing those with the same id. Returns the new version.

        Args:
            vectors_MF: of the facts' texts, of length 1; None for a store without vectors.
        """
        columns: dict[str, Any] = {name: [getattr(fact, name) for fact in facts] for name in TEXTS}
        columns |= {"valid": [True] * len(facts), "fault": [""] * len(facts), "split": splits or [""] * len(facts)}
        if self.encoder:
            assert vectors_MF is not None
            flat = pa.array(np.ascontiguousarray(vectors_MF, np.float32).reshape(-1))
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, self.width)
        return self._merge(columns)

    def put_bad_lines(self, lines: Sequence[BadLine], source: str) -> int:
        """Store invalid lines of a source, each with its reason. Returns the new version."""
        rows = {f"bad-{derive_fact_id(source, line.where, line.line)}": line for line in lines}
        columns: dict[str, Any] = {name: [""] * len(rows) for name in TEXTS}
        columns |= {
            "id": list(rows),
            "text": [f"{line.where}: {_shorten_for_message(line.line)}" for line in rows.values()],
            "source": [source] * len(rows),
            "valid": [False] * len(rows),
            "fault": [str(line.fault) for line in rows.values()],
            "split": [""] * len(rows),
        }
        if self.encoder:
            columns["vector"] = pa.nulls(len(rows), pa.list_(pa.float32(), self.width))
        return self._merge(columns)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove facts. Returns the new version.

        Raises:
            UnknownFactError: one does not exist; nothing was removed.
        """
        chosen = sorted(set(ids))
        with _serialize_writers(self.uri):
            table = self._open()
            where = f"id in ({', '.join(map(_quote_sql_literal, chosen))})"
            there = set(table.to_table(columns=["id"], filter=where)["id"].to_pylist())
            if missing := [one for one in chosen if one not in there]:
                raise UnknownFactError(f"{self.uri} has no fact {missing[0][:80]!r}; ask for those of an entity first")
            table.delete(where, conflict_retries=_CONFLICTS)
            return int(table.version)

    def find_facts_of_entity(self, name: str, limit: int, version: int = 0) -> list[Fact]:
        """Find the facts whose head or tail has a name (ignoring case), in the order of their ids."""
        quoted = _quote_sql_literal(name.strip().lower())
        where = f"valid and (lower(head) = {quoted} or lower(tail) = {quoted})"
        table = self._open(version).to_table(columns=list(TEXTS), filter=where).sort_by("id")
        return [Fact(**row) for row in table.slice(0, limit).to_pylist()]

    def counts(self) -> Mapping[str, int]:
        """Count the facts ("facts"), and the invalid lines by fault."""
        table = self._open()
        faults = table.to_table(columns=["fault"], filter="not valid")["fault"].value_counts().to_pylist()
        return {"facts": table.count_rows("valid")} | {row["values"]: row["counts"] for row in faults}

    def clean_up(self, keep: int) -> None:
        """Delete the files of all but the newest versions."""
        versions = sorted(entry["version"] for entry in self._open().versions())
        if len(versions) > keep:
            self._open().cleanup_old_versions(retain_versions=keep, delete_unverified=False)

    def _merge(self, columns: dict[str, Any]) -> int:
        rows = pa.table(columns, arrow_schema_of_facts(self.encoder, self.width).remove_metadata())
        with _serialize_writers(self.uri):
            table = self._open()
            merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.conflict_retries(_CONFLICTS).execute(rows)
            return int(table.version)

    def _open(self, version: int = 0) -> lance.LanceDataset:
        lance = import_lance()
        try:
            return lance.dataset(_table_address(self.uri), version=version or None)
        except (ValueError, OSError) as error:
            if version and self.exists(self.uri):
                raise KnowledgeError(
                    f"{self.uri} has no version {version} any more (it was cleaned up, or never was); use the newest"
                ) from None
            raise KnowledgeError(
                f"there is no store of facts in {self.uri!r} ({str(error)[:200]}); build one (python -m jobs.knowledge "
                "knowledge.store=FOLDER), or name another in knowledge.store"
            ) from None


def import_lance() -> Any:
    """Import the package Lance, or raise an error with the remedy.

    Raises:
        KnowledgeError: it is not installed.
    """
    try:
        import lance
    except ImportError:
        raise KnowledgeError(
            'the store of facts needs pylance; install it with pip install "raylm[knowledge]"'
        ) from None
    return lance


@contextmanager
def _serialize_writers(uri: str) -> Iterator[None]:
    """Let the writers of a local store take turns; those of an object store are reconciled by Lance."""
    folder = StorageFolder(uri)
    if not folder.is_local:
        yield
        return
    message = "%s is written to by %s for more than a minute; wait for it, or end it"
    with hold_lock(Path(folder.path(".lock")), lambda by: KnowledgeError(message % (uri, by)), _LOCK_S):
        yield


def _table_address(uri: str) -> str:
    folder = StorageFolder(uri.rstrip("/"))
    return f"{folder.uri.rstrip('/')}/{TABLE}"


def _quote_sql_literal(text: str) -> str:
    """Quote a text as a literal of Lance's filters, which are SQL."""
    return "'" + text.replace("'", "''") + "'"


def _shorten_for_message(line: str) -> str:
    return line[:1000].encode("unicode_escape", "surrogatepass").decode("ascii")
