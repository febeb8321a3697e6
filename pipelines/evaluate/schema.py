"""The table of a model's answers."""

from __future__ import annotations

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("split", pa.string()),
        pa.field("text", pa.string()),
        pa.field("target", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("id", pa.string()),
        pa.field("truncated", pa.bool_()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("shuffled", pa.string()),
        pa.field("shuffled_probability", pa.float32()),
        pa.field("image_embedding", pa.list_(pa.float32())),
        pa.field("text_embedding", pa.list_(pa.float32())),
    ]
)
"""A row for each row of the task (``vlmodel.task.TaskRow``): the sample (samples of different splits may have
the same key), the request, the right answer (null if unknown), whether the text was cut (``processor.max_tokens``),
the best answer, and the ``top_k`` best. ``shuffled`` is the best answer about the image of another sample (null if the
model was not asked). A task that embeds has its vectors, the image's in the first row of each sample."""
