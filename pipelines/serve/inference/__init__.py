"""Runs requests on a loaded model: image decoding, batching and forward passes."""
