"""From an index to batches: the order of samples, loading, caches."""
