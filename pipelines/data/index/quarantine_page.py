"""Renders the quarantine as an HTML page: counts, and each fault with its image or, without one, its first bytes."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.tars.headers import BLOCK
from pipelines.report.html import render_page
from pipelines.storage.folder import StorageFolder
from vlmodel.images.pillow import open_image

_ROWS = 24
"""Faults shown of each reason, and shards listed; the rest is counted."""
_SIDE = 128
_MAX_PIXELS = 20_000_000
_MAX_BYTES = 16 << 20
_FIRST_BYTES = 96
_READERS = 16


def render_quarantine_page(folder: StorageFolder, quarantine: pa.Table, samples: Mapping[str, int]) -> str:
    """Render the quarantine as an HTML page.

    Args:
        folder: of the tars; the faulty members are read from it.
        quarantine: a table of ``FAULT_SCHEMA``.
        samples: number of valid samples of each split.
    """
    sizes = {file.name: file.size for file in folder.files()}
    shards = _value_counts(quarantine, "shard")
    listed = shards[:_ROWS]
    if len(shards) > _ROWS:
        listed.append((f"{len(shards) - _ROWS:,} more", sum(count for _, count in shards[_ROWS:])))
    with ThreadPoolExecutor(_READERS) as pool:
        reasons = [
            {
                "name": reason,
                "count": count,
                "faults": list(pool.map(lambda row: _fault_entry(folder, sizes, row), rows)),
            }
            for reason, count in _value_counts(quarantine, "reason")
            for rows in [quarantine.filter(pc.equal(quarantine["reason"], reason)).slice(0, _ROWS).to_pylist()]
        ]
    return render_page(
        "quarantine.html",
        folder=folder.uri,
        left_out=quarantine.num_rows,
        samples=sum(samples.values()),
        reasons=reasons,
        shards=listed,
    )


def _value_counts(quarantine: pa.Table, column: str) -> list[tuple[str, int]]:
    """List the values of a column with their numbers of rows, the most frequent first."""
    return sorted(Counter(quarantine[column].to_pylist()).items(), key=lambda item: (-item[1], item[0]))


def _fault_entry(folder: StorageFolder, sizes: Mapping[str, int], row: Mapping[str, Any]) -> dict[str, Any]:
    data = _read_faulty_bytes(folder, sizes, row)
    place = " ".join(str(part) for part in (row["shard"], row["member"]) if part is not None)
    return {
        "name": row["key"] if row["key"] is not None else row["member"] or row["shard"],
        "place": place + (f" at byte {row['offset']:,}" if row["offset"] is not None else ""),
        "detail": row["detail"],
        "thumbnail": _make_thumbnail(data),
        "first_bytes": _format_first_bytes(data) or "no bytes",
    }


def _read_faulty_bytes(folder: StorageFolder, sizes: Mapping[str, int], row: Mapping[str, Any]) -> bytes:
    """Read the bytes of a faulty tar member, as many as there are; b"" if none can be read."""
    shard, offset = row["shard"], row["offset"]
    if offset is None or shard not in sizes:
        return b""
    size = _FIRST_BYTES
    try:
        if row["member"] is not None and offset >= BLOCK:
            (header,) = folder.read_ranges(shard, [(offset - BLOCK, BLOCK)])
            with suppress(tarfile.HeaderError):
                size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        size = min(size, _MAX_BYTES, max(0, sizes[shard] - offset))
        return folder.read_ranges(shard, [(offset, size)])[0]
    except OSError:
        return b""


def _make_thumbnail(data: bytes) -> bytes | None:
    """Make a small JPEG of as much of a faulty image as can be decoded; None if nothing can."""
    try:
        with warnings.catch_warnings(), open_image(data) as opened:
            warnings.simplefilter("ignore")
            opened.decode_at_reduced_size((_SIDE, _SIDE))
            image = opened.image
            if image.width * image.height > _MAX_PIXELS:
                return None
            try:
                image.load()
            except (OSError, SyntaxError):
                image.tile = []  # keep what was decoded before the fault
                if image.getbbox() is None:
                    return None
            image.thumbnail((_SIDE, _SIDE))
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=80)
            return out.getvalue()
    except Exception:  # Pillow raises many types on broken bytes
        return None


def _format_first_bytes(data: bytes) -> str:
    """Format the first bytes as text if they are printable, else in hexadecimal."""
    first = data[:_FIRST_BYTES]
    text = first.decode("utf-8", "replace")
    return text if text.replace("\n", "").isprintable() else first.hex(" ", 1)
