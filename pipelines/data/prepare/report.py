"""The page of a preparation: one HTML file that needs no other, with counts and examples of what was dropped."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.filters import DropReason
from pipelines.data.prepare.summary import Summary
from pipelines.data.tars.reader import Record, ShardReader
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import open_image

_THUMBNAIL = 176
_TEXTS, _TEXT_CHARS = 3, 120

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem; border-bottom: 1px solid var(--line); }
th { text-align: left; font-weight: 600; } td, thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
tr.total th, tr.total td { font-weight: 600; background: var(--soft); } tr.none { opacity: .55; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: .4rem; width: 176px; }
figure.pair { width: 360px; } .pictures { display: flex; gap: 8px; } .pictures div { width: 176px; }
img, .gone { display: block; max-width: 100%; background: var(--soft); } .gone { padding: 2rem 0; text-align: center; }
figcaption { font-size: .85rem; margin-top: .3rem; overflow-wrap: anywhere; } figcaption p { margin: .3rem 0 0; }
small { opacity: .7; }
"""


def page(summary: Summary, dropped: pa.Table, index: Index, config: PrepareConfig) -> str:
    """The page as HTML.

    Args:
        dropped: a table of ``DROPPED_SCHEMA``.
        index: of the source; the examples' images are read from it.
    """
    reader = ShardReader(index)
    sections = [_section(reason, summary, dropped, reader, config.examples) for reason in DropReason]
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary.notes())
    settings = "".join(
        f"<tr><th>prepare.{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in config.model_dump(mode="json", exclude={"out", "examples"}).items()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Prepared data</title>
<style>{_STYLE}</style>
<h1>Prepared data</h1>
<p>Samples of {escape(summary.tars)}, by split. A sample that several reasons would drop counts for the first.</p>
{_table(summary)}
<ul>{notes}</ul>
{"".join(sections)}
<h2>Settings</h2>
<table>{settings}</table>
</html>
"""


def _table(summary: Summary) -> str:
    head = "".join(f"<th>{name}</th>" for name in (*SPLITS, "all"))
    lines = []
    for name, numbers in summary.rows():
        kind = "total" if name in ("before", "after") else "" if any(numbers) else "none"
        cells = "".join(f"<td>{number:,}</td>" for number in numbers)
        lines.append(f'<tr class="{kind}"><th>{name}</th>{cells}</tr>')
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _section(reason: DropReason, summary: Summary, dropped: pa.Table, reader: ShardReader, count: int) -> str:
    total = sum(summary.dropped[reason].values())
    if not total:
        return ""
    rows = dropped.filter(pc.equal(dropped["reason"], str(reason)))
    # Some of all of them, not the first: those are of one shard. The same for the same table.
    chosen = sorted(random.Random(0).sample(range(rows.num_rows), min(count, rows.num_rows)))
    cards = "".join(_card(row, reader) for row in rows.take(pa.array(chosen, pa.int64())).to_pylist())
    shown = f"{len(chosen)} of {total:,}" if len(chosen) < total else f"{total:,}"
    return f'<h2>{reason} <small>{shown}</small></h2><div class="cards">{cards}</div>'


def _card(row: dict[str, Any], reader: ShardReader) -> str:
    record = _read(reader, row["shard"], row["row"])
    pair = row["original_shard"] is not None
    pictures = f"<div>{_picture(record)}{'<small>dropped</small>' if pair else ''}</div>"
    if pair:
        original = _read(reader, row["original_shard"], row["original_row"])
        pictures += f"<div>{_picture(original)}<small>stays</small></div>"
    texts = "".join(f"<p>{escape(text)}</p>" for text in _some_texts(record))
    place = f"<small>{escape(row['split'])}, {escape(row['shard'])}</small>"
    about = f"<b>{escape(row['key'])}</b> {place}<p>{escape(row['detail'])}</p>{texts}"
    kind = ' class="pair"' if pair else ""
    return f'<figure{kind}><div class="pictures">{pictures}</div><figcaption>{about}</figcaption></figure>'


def _read(reader: ShardReader, shard: str, row: int) -> Record | None:
    try:
        return reader.read(shard, [row])[0]
    except DataError:  # the page is for looking at; what was prepared is complete without it
        return None


def _picture(record: Record | None) -> str:
    """A thumbnail as an element whose address holds the picture itself."""
    try:
        if record is None:
            raise ImageError("undecodable", "not read")
        with open_image(record.image) as opened:
            opened.draft(_THUMBNAIL)
            rgb = opened.upright()
    except ImageError:
        return '<div class="gone">no picture</div>'
    rgb.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    Image.frombytes("RGB", rgb.size, rgb.tobytes()).save(out, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'


def _some_texts(record: Record | None) -> Iterator[str]:
    if record is None:
        return
    texts: Sequence[str] = [*record.texts.captions, *(q.question for q in record.texts.questions)]
    for text in texts[:_TEXTS]:
        yield text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}…"
    if len(texts) > _TEXTS:
        yield f"and {len(texts) - _TEXTS} more"
