"""The prepared form of a data set: filtered, without duplicates, shrunk, in shards of like size, with its lineage.

``prepare`` (run.py) goes over an indexed folder twice with Ray Data. The measuring pass (measure.py) reads each sample
once: it judges the sample by itself (filters.py, language.py), brings its image into the form it will have (images.py)
and hashes it (hashing.py). Then the driver, which holds a few numbers a sample, finds the duplicates (duplicates.py)
and lays out the shards (layout.py); the writing pass (write.py) makes one shard a task. Both passes write files that
are there as a whole or not at all, so a job that is killed goes on where it was, and neither that nor the number of
tasks changes a byte of the result.

Nothing is tokenized here. The tokenizer is trained on the texts of the prepared training split, so it cannot decide
what belongs to it; the processor cuts what is too long in tokens, and ``max_chars`` leaves out what is far too long.

The folder then holds, beside tars and ``_index/``, in ``_prepare/``:

- ``report.html``: counts and examples of what was dropped; ``dropped.parquet``: all of it, with its reason.
- ``lineage/SHARD.parquet``: for each sample of a shard the shard, key and image hash it came from.
- ``prepare.json``: written last; the settings, the source's index, the counts.
"""
