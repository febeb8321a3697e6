"""WebDataset tars: the sample, writing shards, reading samples by their place, tar headers."""
