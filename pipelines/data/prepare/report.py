"""Renders the HTML page of a preparation: its counts, and examples of what was dropped."""

from __future__ import annotations

import io
import random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.filters import DropReason
from pipelines.data.prepare.summary import PreparationSummary
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from pipelines.report.html import render_page
from vlmodel.conversation import format_transcript
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import open_image
from vlmodel.sample import Sample

_EXAMPLES = 12
"""Of each reason."""
_THUMBNAIL = 176
_MAX_TEXTS, _MAX_CHARS = 3, 120


class _ShownSample(NamedTuple):
    """A sample as the page shows it: a JPEG (None if it cannot be decoded) and some texts."""

    thumbnail: bytes | None
    texts: list[str]


def render_preparation_page(summary: PreparationSummary, dropped: pa.Table, index: Index, config: PrepareConfig) -> str:
    """Render the page of a preparation as HTML.

    Args:
        dropped: a table of ``DROPPED_SCHEMA``.
        index: of the source; the examples' images are read from it.
    """
    reader = ShardReader(index)
    counts = {reason: sum(summary.dropped[reason].values()) for reason in DropReason}
    reasons = [
        {"name": reason, "count": count, "examples": _choose_dropped_examples(reason, dropped, reader)}
        for reason, count in counts.items()
        if count
    ]
    settings = config.model_dump(mode="json", exclude={"out"})
    return render_page("prepared.html", summary=summary, columns=(*SPLITS, "all"), reasons=reasons, settings=settings)


def _choose_dropped_examples(reason: DropReason, dropped: pa.Table, reader: ShardReader) -> list[dict[str, Any]]:
    rows = dropped.filter(pc.equal(dropped["reason"], str(reason)))
    # Drawn from all rows, since the first ones are of one shard; seeded, so that the same table gives the same page.
    chosen = sorted(random.Random(0).sample(range(rows.num_rows), min(_EXAMPLES, rows.num_rows)))
    return [
        {
            "row": row,
            "sample": _read_shown_sample(reader, row["shard"], row["row"]),
            "original": row["original_shard"]
            and _read_shown_sample(reader, row["original_shard"], row["original_row"]),
        }
        for row in rows.take(pa.array(chosen, pa.int64())).to_pylist()
    ]


def _read_shown_sample(reader: ShardReader, shard: str, row: int) -> _ShownSample:
    try:
        record = reader.read(shard, [row], inputs=("image",))[0]
    except DataError:  # an unreadable example does not fail the preparation
        return _ShownSample(None, [])
    return _ShownSample(_make_thumbnail(record.inputs["image"]), _choose_texts_to_show(record))


def _make_thumbnail(data: bytes) -> bytes | None:
    try:
        with open_image(data) as opened:
            opened.decode_at_reduced_size((_THUMBNAIL, _THUMBNAIL))
            rgb = opened.decode_upright()
    except ImageError:
        return None
    rgb.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    Image.frombytes("RGB", rgb.size, rgb.tobytes()).save(out, "JPEG", quality=80)
    return out.getvalue()


def _choose_texts_to_show(record: Sample) -> list[str]:
    said = map(format_transcript, record.texts.conversations)
    texts = [*record.texts.captions, *(q.question for q in record.texts.questions), *said]
    shown = [text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…" for text in texts[:_MAX_TEXTS]]
    return shown + ([f"and {len(texts) - _MAX_TEXTS} more"] if len(texts) > _MAX_TEXTS else [])
