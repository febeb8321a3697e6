"""Prepares a data set for training: filters, deduplicates and resizes its samples, and writes shards of equal size with
their lineage.

``prepare`` (run.py) makes two Ray Data passes over an indexed folder. The measuring pass (measure.py) reads each sample
once: it filters it (filters.py, language.py), resizes and encodes its image (images.py) and hashes it (hashing.py).
Then the driver, which holds a few numbers a sample, finds the duplicates (duplicates.py) and plans the shards
(layout.py, selection.py); the writing pass (write.py) makes one shard a task. Both passes write files that are complete
or absent, so a killed job continues where it was; neither that nor the number of tasks changes a byte of the result.

Nothing is tokenized here: the tokenizer is trained on the prepared training split. The processor truncates texts that
are too long in tokens, and ``max_chars`` leaves out those that are far too long.

The folder then holds, beside tars and ``_index/``, in ``_prepare/``:

- ``report.html``: counts and examples of what was dropped; ``dropped.parquet``: all of it, with its reason.
- ``lineage/SHARD.parquet``: the source shard, key and image hash of each sample of a shard.
- ``prepare.json``: written last; the settings, the source's index, the counts.
"""
