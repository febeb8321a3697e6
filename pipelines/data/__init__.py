"""From any source to tensors: importers, index and quarantine, plan, stream."""
