"""From any source to tensors: importers, index and quarantine, the order of samples, streams of batches."""
