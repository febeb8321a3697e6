"""From an index to batches: their order, their making, what is kept of it."""
