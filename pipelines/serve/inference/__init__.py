"""The model's side of the service: decoding, batching, forward passes."""
