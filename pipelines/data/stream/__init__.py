"""From an index to batches: order, loading, caches."""
