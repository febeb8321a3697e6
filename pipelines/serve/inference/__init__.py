"""Runs requests on a loaded model: decoding images, batching, forward passes."""
