"""The quarantine as one HTML page for a person: counts, and each fault with its picture or else its first bytes.

The page needs no other file and no network. Nothing in it comes from the data but as escaped text and as pictures that
were encoded anew.
"""

from __future__ import annotations

import base64
import io
import tarfile
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.tars.headers import BLOCK
from pipelines.storage.folder import Folder
from vlmodel.images.pillow import open_image

_ROWS = 24
"""Faults shown of each reason, and shards with their counts; the rest is counted."""
_SIDE = 128
_MAX_PIXELS = 20_000_000
_MAX_BYTES = 16 << 20
_FIRST_BYTES = 96
_READERS = 16

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2126; background: #fff; margin: 2rem auto; max-width: 68rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #5a6570; margin: .2rem 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top; }
th { color: #5a6570; font-weight: 500; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.counts { display: flex; flex-wrap: wrap; gap: 3rem; align-items: flex-start; } a { color: #0b5cad; }
.faults { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: .8rem; }
.fault { border: 1px solid #d8dee4; border-radius: 6px; padding: .7rem; display: flex; gap: .8rem; min-width: 0; }
.fault > div { min-width: 0; overflow-wrap: anywhere; font-size: .87rem; } .fault b { font-size: .95rem; }
.fault .place { color: #5a6570; } .picture { flex: 0 0 8rem; }
.picture img { max-width: 8rem; background: #eef1f4; image-rendering: auto; }
pre { margin: 0; font-size: .68rem; line-height: 1.35; white-space: pre-wrap; overflow-wrap: anywhere;
  background: #f4f6f8; padding: .4rem; }
@media (prefers-color-scheme: dark) {
  body { background: #14181c; color: #e4e8ec; } a { color: #7db8f0; } .fault { border-color: #333b43; }
  p.note, th, .fault .place { color: #9aa5b0; } pre, .picture img { background: #1f252b; } }
"""


def quarantine_page(folder: Folder, quarantine: pa.Table, samples: Mapping[str, int]) -> str:
    """The page.

    Args:
        folder: of the tars; the members at fault are read from it.
        quarantine: a table of ``FAULT_SCHEMA``.
        samples: the sound samples of each split.
    """
    sizes = {file.name: file.size for file in folder.files()}
    reasons = _counted(quarantine, "reason")
    total = f"{quarantine.num_rows:,} left out, {sum(samples.values()):,} sound samples"
    sections = [_section(folder, sizes, quarantine, reason, count) for reason, count in reasons]
    links = [(f'<a href="#{escape(reason)}">{escape(reason)}</a>', count) for reason, count in reasons]
    shards = _counted(quarantine, "shard")
    shown = [(escape(shard), count) for shard, count in shards[:_ROWS]]
    if len(shards) > _ROWS:
        shown.append((f"{len(shards) - _ROWS:,} more", sum(count for _, count in shards[_ROWS:])))
    counts = f"{_table('reason', links)}{_table('shard', shown)}" if reasons else "<p>Nothing was left out.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Quarantine</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f"<style>{_STYLE}</style></head><body><h1>{total}</h1>"
        f'<p class="note">{escape(folder.uri)}</p><div class="counts">{counts}</div>{"".join(sections)}</body></html>\n'
    )


def _counted(quarantine: pa.Table, column: str) -> list[tuple[str, int]]:
    """Each value with its number of rows, the most frequent first."""
    return sorted(Counter(quarantine[column].to_pylist()).items(), key=lambda item: (-item[1], item[0]))


def _table(title: str, rows: list[tuple[str, int]]) -> str:
    lines = "".join(f'<tr><td>{name}</td><td class="n">{count:,}</td></tr>' for name, count in rows)
    return f"<table><tr><th>{title}</th><th>left out</th></tr>{lines}</table>"


def _section(folder: Folder, sizes: Mapping[str, int], quarantine: pa.Table, reason: str, count: int) -> str:
    rows = quarantine.filter(pc.equal(quarantine["reason"], reason)).slice(0, _ROWS).to_pylist()
    with ThreadPoolExecutor(_READERS) as pool:
        shown = list(pool.map(lambda row: _fault(row, _contents(folder, sizes, row)), rows))
    more = f'<p class="note">... and {count - _ROWS:,} more in quarantine.parquet</p>' if count > _ROWS else ""
    title = f'<h2 id="{escape(reason)}">{escape(reason)} ({count:,})</h2>'
    return f'{title}<div class="faults">{"".join(shown)}</div>{more}'


def _fault(row: Mapping[str, Any], data: bytes) -> str:
    picture = _thumbnail(data)
    if picture is not None:
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    elif data:
        shown = f"<pre>{_first_bytes(data)}</pre>"
    else:
        shown = "<pre>no bytes</pre>"
    name = escape(str(row["key"] if row["key"] is not None else row["member"] or row["shard"]))
    place = escape(" ".join(str(part) for part in (row["shard"], row["member"]) if part is not None))
    at = f" at byte {row['offset']:,}" if row["offset"] is not None else ""
    return (
        f'<div class="fault"><div class="picture">{shown}</div>'
        f'<div><b>{name}</b><br><span class="place">{place}{at}</span><br>{escape(row["detail"])}</div></div>'
    )


def _contents(folder: Folder, sizes: Mapping[str, int], row: Mapping[str, Any]) -> bytes:
    """The member at fault, or as much of it as there is; b"" where nothing can be read."""
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


def _thumbnail(data: bytes) -> bytes | None:
    """A small JPEG of what can be decoded; None where that is nothing."""
    try:
        with warnings.catch_warnings(), open_image(data) as opened:
            warnings.simplefilter("ignore")
            opened.draft(_SIDE)
            image = opened.image
            if image.width * image.height > _MAX_PIXELS:
                return None
            try:
                image.load()
            except (OSError, SyntaxError):
                image.tile = []  # what was decoded before the fault is kept, and nothing more asked for
                if image.getbbox() is None:
                    return None
            image.thumbnail((_SIDE, _SIDE))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=80)
            return small.getvalue()
    except Exception:  # Pillow's readers raise whatever broken bytes lead them to
        return None


def _first_bytes(data: bytes) -> str:
    """As text where it is one, else in hexadecimal."""
    first = data[:_FIRST_BYTES]
    text = first.decode("utf-8", "replace")
    if text.isprintable() or text.replace("\n", "").isprintable():
        return escape(text)
    return first.hex(" ", 1)
