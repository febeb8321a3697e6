"""WebDataset tars: the sample, writing shards, reading samples by their position, tar headers."""
